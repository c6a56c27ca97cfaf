// flamvid::token_loss_ for CPU: what it is given is checked here, the work is in core.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "core.h"

namespace {

namespace core = flamvid::token_loss;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor token_loss(Tensor logits, const Tensor& given) {
  const bool half = logits.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(logits.is_cpu() && (half || logits.scalar_type() == ScalarType::Float) &&
                      logits.dim() == 2 && logits.is_contiguous(),
                  "token_loss_: logits must be a contiguous float32 or bfloat16 CPU tensor [X,V]");
  const int64_t rows = logits.size(0), columns = logits.size(1);
  const Tensor targets = torch::stable::contiguous(given);
  STD_TORCH_CHECK(targets.is_cpu() && targets.scalar_type() == ScalarType::Long &&
                      targets.dim() == 1 && targets.size(0) == rows,
                  "token_loss_: targets must be int64 [", rows, "]");
  const auto* at = static_cast<const int64_t*>(targets.data_ptr());
  for (int64_t r = 0; r < rows; ++r) {
    STD_TORCH_CHECK(0 <= at[r] && at[r] < columns, "token_loss_: a target is ", at[r],
                    "; must be one of the ", columns, " columns");
  }
  Tensor losses = torch::stable::new_empty(logits, {rows}, ScalarType::Float);
  auto* out = static_cast<float*>(losses.data_ptr());
  void* data = logits.data_ptr();
  static const core::Isa isa = core::best_isa();
  const int64_t grain = std::max<int64_t>(1, 50'000 / (columns + 1));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
    std::vector<float> room(columns);
    for (int64_t r = first; r < last; ++r) {
      out[r] = half ? isa.half(static_cast<core::Half*>(data) + r * columns, columns, at[r],
                               room.data())
                    : isa.wide(static_cast<float*>(data) + r * columns, columns, at[r],
                               room.data());
    }
  });
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CPU, m) { m.impl("token_loss_", TORCH_BOX(&token_loss)); }
