// flamvid::linear_many for CPU: what it is given is checked here, the work is in core.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "core.h"

namespace {

namespace dense = flamvid::dense;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool is_float(const Tensor& x, int64_t dim) {
  return x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == dim;
}

const float* floats(const Tensor& x) { return static_cast<const float*>(x.data_ptr()); }

Tensor linear_many(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   bool gelu) {
  STD_TORCH_CHECK(is_float(x, 2), "linear_many: x must be a float32 CPU tensor [rows,width]");
  const int64_t rows = x.size(0), width = x.size(1);
  STD_TORCH_CHECK(is_float(weight, 2) && weight.size(1) == width,
                  "linear_many: weight must be a float32 CPU tensor [outputs,", width, "]");
  const int64_t outputs = weight.size(0);
  STD_TORCH_CHECK(width > 0 && width % dense::STEP == 0 && outputs % dense::STEP == 0,
                  "linear_many: width ", width, " and outputs ", outputs, " must be multiples of ",
                  dense::STEP);
  STD_TORCH_CHECK(!bias || (is_float(*bias, 1) && bias->size(0) == outputs),
                  "linear_many: bias must be a float32 CPU tensor [", outputs, "]");
  const Tensor xs = torch::stable::contiguous(x), w = torch::stable::contiguous(weight);
  const Tensor b = bias ? torch::stable::contiguous(*bias) : xs;
  Tensor out = torch::stable::new_empty(x, {rows, outputs});
  dense::Problem p{floats(xs), floats(w), bias ? floats(b) : nullptr,
                   static_cast<float*>(out.data_ptr()), rows, width, outputs, gelu, 0};
  const int64_t panels = p.panels();
  p.blocks = dense::blocks_of(rows, panels, torch::stable::get_num_threads());
  static const dense::Outputs run = dense::best_outputs();
  // All panels of a block in succession: a thread then keeps to rows that it has in its cache, and
  // leaves its part of them there for what comes next.
  const int64_t units = p.blocks * panels;
  // Less than this is done before another thread is awake.
  const int64_t grain = std::clamp<int64_t>(1'000'000 * units / (rows * width * outputs + 1), 1,
                                            std::max<int64_t>(units, 1));
  torch::stable::parallel_for(0, units, grain, [&](int64_t first, int64_t last) {
    thread_local std::vector<float> own;
    for (int64_t id = first; id < last; ++id) run(p, id / panels, id % panels, own);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CPU, m) { m.impl("linear_many", TORCH_BOX(&linear_many)); }
