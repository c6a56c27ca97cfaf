// flamvid::causal_attention for CPU: what it is given is checked here, the work is in core.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "core.h"

namespace {

namespace causal = flamvid::causal;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Rows of d floats as they lie.
causal::View<const float> view(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 4 &&
                      (x.size(3) <= 1 || x.stride(3) == 1),
                  "causal_attention: ", name, " must be a float32 CPU tensor [B,H,S,d], d contiguous");
  return {static_cast<const float*>(x.data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

Tensor causal_attention(const Tensor& q, const Tensor& keys, const Tensor& values,
                        const std::optional<Tensor>& slopes, const std::optional<Tensor>& real,
                        double scale) {
  const auto qs = view(q, "q"), ks = view(keys, "k"), vs = view(values, "v");
  const int64_t B = q.size(0), H = q.size(1), S = q.size(2), d = q.size(3);
  const int64_t G = keys.size(1), K = keys.size(2);
  STD_TORCH_CHECK(d > 0 && d <= causal::WIDEST && d % causal::STEP == 0,
                  "causal_attention: d is ", d, "; must be a multiple of ", causal::STEP, " up to ",
                  causal::WIDEST);
  STD_TORCH_CHECK(G > 0 && H % G == 0, "causal_attention: ", H, " heads of ", G,
                  " groups; must be as many of each");
  for (const Tensor* x : {&keys, &values}) {
    STD_TORCH_CHECK(x->size(0) == B && x->size(1) == G && x->size(2) == K && x->size(3) == d && S <= K,
                    "causal_attention: k and v must be [", B, ",", G, ",", S, " or more,", d, "]");
  }
  if (slopes) {
    STD_TORCH_CHECK(slopes->is_cpu() && slopes->scalar_type() == ScalarType::Float &&
                        slopes->dim() == 1 && slopes->size(0) == H && slopes->is_contiguous(),
                    "causal_attention: slopes must be a contiguous float32 CPU tensor [", H, "]");
  }
  if (real) {
    STD_TORCH_CHECK(real->is_cpu() && real->scalar_type() == ScalarType::Bool && real->dim() == 2 &&
                        real->size(0) == B && real->size(1) == K && real->is_contiguous(),
                    "causal_attention: real must be a contiguous bool CPU tensor [", B, ",", K, "]");
  }
  Tensor out = torch::stable::new_empty(q, {B, S, H, d});
  const causal::Problem p{qs, ks, vs,
                          {static_cast<float*>(out.data_ptr()), S * H * d, d, H * d},
                          slopes ? static_cast<const float*>(slopes->data_ptr()) : nullptr,
                          real ? static_cast<const uint8_t*>(real->data_ptr()) : nullptr,
                          H, G, S, K, d, static_cast<float>(scale)};
  static const causal::Attend attend = causal::best_attend();
  const int64_t blocks = (S + causal::ROWS - 1) / causal::ROWS;
  torch::stable::parallel_for(0, B * H * blocks, 1, [&](int64_t first, int64_t last) {
    const auto scratch = std::make_unique<causal::Scratch>();
    for (int64_t id = first; id < last; ++id) {
      const int64_t head = id / blocks;
      attend(p, head / H, head % H, id % blocks * causal::ROWS, *scratch);
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CPU, m) {
  m.impl("causal_attention", TORCH_BOX(&causal_attention));
}
