// flamvid::linear_few for CPU: what it is given is checked here, the work is in core.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "core.h"

namespace {

namespace few = flamvid::few;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor linear_few(const Tensor& x, const Tensor& weight) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 2,
                  "linear_few: x must be a float32 CPU tensor [rows,width]");
  const int64_t rows = x.size(0), width = x.size(1);
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Float &&
                      weight.dim() == 2 && weight.size(1) == width,
                  "linear_few: weight must be a float32 CPU tensor [outputs,", width, "]");
  const int64_t outputs = weight.size(0);
  const Tensor xs = torch::stable::contiguous(x), w = torch::stable::contiguous(weight);
  Tensor out = torch::stable::new_empty(x, {rows, outputs});
  if (rows == 0 || outputs == 0) return out;
  const few::Problem p{static_cast<const float*>(xs.data_ptr()),
                       static_cast<const float*>(w.data_ptr()),
                       static_cast<float*>(out.data_ptr()),
                       rows,
                       width,
                       outputs};
  static const few::Outputs run = few::best_outputs();
  // Less than this is done before another thread is awake.
  const int64_t grain = std::clamp<int64_t>(1'000'000 / (width * rows + 1), 1, outputs);
  torch::stable::parallel_for(0, outputs, grain,
                              [&](int64_t first, int64_t last) { run(p, first, last); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CPU, m) { m.impl("linear_few", TORCH_BOX(&linear_few)); }
