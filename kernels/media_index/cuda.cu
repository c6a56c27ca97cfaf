// flamvid::media_index for CUDA: the launch of the block program, and the registration.
#include "../cuda.h"

#include "block.h"

#include <string>

namespace {

using flamvid::cuda::ScalarType;
using flamvid::cuda::Tensor;

template <typename Id>
__global__ void __launch_bounds__(flamvid::index::THREADS)
    index_kernel(int64_t tokens, const Id* ids, int64_t media_token_id, bool next,
                 const int32_t* before, int32_t* out) {
  __shared__ flamvid::index::Shared shared;
  flamvid::DeviceBlock<flamvid::index::State> block;
  flamvid::index::index_block(block, shared, blockIdx.x, tokens, ids, media_token_id, next, before,
                              out);
}

Tensor media_index(const Tensor& input_ids, int64_t media_token_id, std::string attend) {
  STD_TORCH_CHECK(input_ids.is_cuda() && input_ids.dim() == 2,
                  "media_index: input_ids must be a CUDA tensor [B,S]");
  STD_TORCH_CHECK(attend == "previous" || attend == "next", "media_index: attend is '", attend,
                  "'; must be 'previous' or 'next'");
  const torch::stable::accelerator::DeviceGuard guard(input_ids.get_device_index());
  const Tensor ids = torch::stable::contiguous(input_ids);
  const int64_t B = ids.size(0), S = ids.size(1);
  Tensor out = torch::stable::new_empty(ids, {B, S}, ScalarType::Int);
  if (B * S == 0) return out;

  const auto launch = [&](const auto* data) {
    index_kernel<<<flamvid::cuda::grid(B, "media_index"), flamvid::index::THREADS, 0,
                   flamvid::cuda::current_stream(ids)>>>(S, data, media_token_id, attend == "next",
                                                         nullptr,
                                                         static_cast<int32_t*>(out.data_ptr()));
    flamvid::cuda::check_launch("media_index");
  };
  switch (ids.scalar_type()) {
    case ScalarType::Long: launch(static_cast<const int64_t*>(ids.data_ptr())); break;
    case ScalarType::Int: launch(static_cast<const int32_t*>(ids.data_ptr())); break;
    default:
      STD_TORCH_CHECK(false, "media_index: input_ids are ",
                      torch::headeronly::toString(ids.scalar_type()), "; must be int32 or int64");
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CUDA, m) { m.impl("media_index", TORCH_BOX(&media_index)); }
