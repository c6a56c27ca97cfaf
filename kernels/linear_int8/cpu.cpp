// flamvid::linear_int8 and widen_int8 for CPU: arguments are checked here, the work is in core.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#include "../huge_pages.h"
#include "many.h"

namespace {

namespace linear = flamvid::linear;
namespace many = flamvid::linear::many;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_groups(const Tensor& x, int64_t outputs, int64_t groups, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 2 &&
                      x.size(0) == outputs && x.size(1) == groups,
                  name, " must be a float32 CPU tensor [", outputs, ",", groups, "]");
}

// More rows are more work than the reading of the weights.
constexpr int64_t FEW = 8;

void outputs_of_many(const many::Problem& p) {
  static const many::Isa isa = many::best_isa();
  std::vector<float> turned(p.width * p.pitch);
  torch::stable::parallel_for(0, p.width / linear::GROUP, 8, [&](int64_t first, int64_t last) {
    isa.turn_rows(p, first * linear::GROUP, last * linear::GROUP, turned.data());
  });
  const int64_t blocks = (p.outputs + many::BLOCK - 1) / many::BLOCK;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    many::Scratch scratch;
    isa.outputs(p, turned.data(), first * many::BLOCK, std::min(last * many::BLOCK, p.outputs),
                scratch);
  });
}

Tensor linear_int8(const Tensor& x, const Tensor& weight, const Tensor& scales,
                   const Tensor& offsets) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 2,
                  "linear_int8: x must be a float32 CPU tensor [rows,width]");
  const int64_t rows = x.size(0), width = x.size(1), groups = width / linear::GROUP;
  STD_TORCH_CHECK(width % linear::GROUP == 0, "linear_int8: width is ", width,
                  "; must be a multiple of ", linear::GROUP);
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Char &&
                      weight.dim() == 2 && weight.size(1) == width,
                  "linear_int8: weight must be an int8 CPU tensor [outputs,", width, "]");
  const int64_t outputs = weight.size(0);
  check_groups(scales, outputs, groups, "scales");
  check_groups(offsets, outputs, groups, "offsets");
  const Tensor xs = torch::stable::contiguous(x), w = torch::stable::contiguous(weight),
               s = torch::stable::contiguous(scales), o = torch::stable::contiguous(offsets);
  Tensor out = torch::stable::new_empty(x, {rows, outputs});
  if (rows == 0 || outputs == 0) return out;
  const auto* data = static_cast<const float*>(xs.data_ptr());
  if (rows > FEW) {
    const int64_t pitch = (rows + many::ROWS - 1) / many::ROWS * many::ROWS;
    outputs_of_many({data,
                     {static_cast<const int8_t*>(w.data_ptr()),
                      static_cast<const float*>(s.data_ptr()),
                      static_cast<const float*>(o.data_ptr())},
                     static_cast<float*>(out.data_ptr()), rows, pitch, width, outputs});
    return out;
  }
  std::vector<float> sums(rows * groups);
  static const linear::Isa isa = linear::best_isa();
  isa.sum_groups(data, rows * groups, sums.data());
  const linear::Problem p{data,
                          static_cast<const int8_t*>(w.data_ptr()),
                          static_cast<const float*>(s.data_ptr()),
                          static_cast<const float*>(o.data_ptr()),
                          sums.data(),
                          static_cast<float*>(out.data_ptr()),
                          rows, width, outputs};
  // Less than this is done before another thread is awake.
  const int64_t grain = std::clamp<int64_t>(1'000'000 / (width * rows + 1), 1, outputs);
  torch::stable::parallel_for(0, outputs, grain,
                              [&](int64_t first, int64_t last) { isa.outputs(p, first, last); });
  return out;
}

Tensor widen_int8(const Tensor& weight, const Tensor& scales, const Tensor& offsets) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Char &&
                      weight.dim() == 2 && weight.size(1) % linear::GROUP == 0,
                  "widen_int8: weight must be an int8 CPU tensor [outputs,width], width a multiple "
                  "of ", linear::GROUP);
  const int64_t outputs = weight.size(0), groups = weight.size(1) / linear::GROUP;
  check_groups(scales, outputs, groups, "scales");
  check_groups(offsets, outputs, groups, "offsets");
  const Tensor w = torch::stable::contiguous(weight), s = torch::stable::contiguous(scales),
               o = torch::stable::contiguous(offsets);
  Tensor out = torch::stable::new_empty(scales, {outputs, weight.size(1)});
  if (outputs * groups == 0) return out;
  auto* to = static_cast<float*>(out.data_ptr());
  flamvid::huge_pages(to, out.numel() * sizeof(float));
  const linear::Weights from{static_cast<const int8_t*>(w.data_ptr()),
                             static_cast<const float*>(s.data_ptr()),
                             static_cast<const float*>(o.data_ptr())};
  static const linear::Isa isa = linear::best_isa();
  torch::stable::parallel_for(0, outputs * groups, 4096, [&](int64_t first, int64_t last) {
    isa.widen(from, to, first, last);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CPU, m) {
  m.impl("linear_int8", TORCH_BOX(&linear_int8));
  m.impl("widen_int8", TORCH_BOX(&widen_int8));
}
