// flamvid::media_index for CPU: two passes over each row of tokens.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <string>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename Id>
void index_row(const Id* ids, int64_t tokens, int64_t media_token_id, bool next, int32_t* out) {
  const auto total = next ? std::count(ids, ids + tokens, static_cast<Id>(media_token_id)) : 0;
  int32_t seen = 0;
  for (int64_t s = 0; s < tokens; ++s) {
    const bool is_media = ids[s] == media_token_id;
    if (next) out[s] = seen < total ? seen : -1;
    seen += is_media ? 1 : 0;
    if (!next) out[s] = seen - 1;
  }
}

Tensor media_index(const Tensor& input_ids, int64_t media_token_id, std::string attend) {
  STD_TORCH_CHECK(input_ids.is_cpu() && input_ids.dim() == 2,
                  "media_index: input_ids must be a CPU tensor [B,S]");
  STD_TORCH_CHECK(attend == "previous" || attend == "next", "media_index: attend is '", attend,
                  "'; must be 'previous' or 'next'");
  const Tensor ids = torch::stable::contiguous(input_ids);
  const int64_t B = ids.size(0), S = ids.size(1);
  Tensor out = torch::stable::new_empty(ids, {B, S}, ScalarType::Int);
  auto* to = static_cast<int32_t*>(out.data_ptr());
  const auto run = [&](const auto* data) {
    for (int64_t b = 0; b < B; ++b) {
      index_row(data + b * S, S, media_token_id, attend == "next", to + b * S);
    }
  };
  switch (ids.scalar_type()) {
    case ScalarType::Long: run(static_cast<const int64_t*>(ids.data_ptr())); break;
    case ScalarType::Int: run(static_cast<const int32_t*>(ids.data_ptr())); break;
    default:
      STD_TORCH_CHECK(false, "media_index: input_ids are ",
                      torch::headeronly::toString(ids.scalar_type()), "; must be int32 or int64");
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CPU, m) { m.impl("media_index", TORCH_BOX(&media_index)); }
