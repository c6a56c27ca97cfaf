// flamvid::latent_attention for CPU: what it is given is checked here, the work is in core.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "core.h"

namespace {

namespace latent = flamvid::latent;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const float* floats(const Tensor& x) { return static_cast<const float*>(x.data_ptr()); }

// A contiguous float32 tensor of such sizes.
Tensor checked(const Tensor& x, std::initializer_list<int64_t> sizes, const char* name) {
  bool fits = x.is_cpu() && x.scalar_type() == ScalarType::Float &&
              x.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t i = 0; fits && i < x.dim(); ++i) fits = x.size(i) == sizes.begin()[i];
  STD_TORCH_CHECK(fits, "latent_attention: ", name, " is no float32 CPU tensor that fits the rest");
  return torch::stable::contiguous(x);
}

Tensor latent_attention(const Tensor& q, const Tensor& latents, const Tensor& turned,
                        const Tensor& to_keys, const Tensor& to_values, const Tensor& index,
                        int64_t heads, double scale) {
  STD_TORCH_CHECK(q.dim() == 2 && latents.dim() == 3 && heads > 0 && q.size(1) % heads == 0,
                  "latent_attention: q must be [S,heads*d], latents [M,L,D]");
  const int64_t S = q.size(0), inner = q.size(1), d = inner / heads;
  const int64_t M = latents.size(0), L = latents.size(1), D = latents.size(2);
  STD_TORCH_CHECK(d > 0 && L > 0 && D > 0 && d % latent::STEP == 0 && L % latent::STEP == 0 &&
                      D % latent::STEP == 0 && d < INT32_MAX && L < INT32_MAX && S < INT32_MAX,
                  "latent_attention: widths ", d, ", ", D, " and ", L, " latents must be multiples of ",
                  latent::STEP);
  const Tensor qs = checked(q, {S, inner}, "q"), all = checked(latents, {M, L, D}, "latents");
  const Tensor across = checked(turned, {M, D, L}, "turned");
  const Tensor keys = checked(to_keys, {inner, D}, "to_keys");
  const Tensor values = checked(to_values, {inner, D}, "to_values");
  STD_TORCH_CHECK(index.is_cpu() && index.scalar_type() == ScalarType::Int && index.dim() == 1 &&
                      index.size(0) == S,
                  "latent_attention: index must be an int32 CPU tensor [", S, "]");
  const Tensor at = torch::stable::contiguous(index);
  const auto* seen = static_cast<const int32_t*>(at.data_ptr());
  for (int64_t s = 0; s < S; ++s) {
    STD_TORCH_CHECK(-1 <= seen[s] && seen[s] < M, "latent_attention: the index is ", seen[s],
                    "; must be from -1 (none) to ", M - 1);
  }
  Tensor out = torch::stable::new_zeros(q, {S, inner});
  const latent::Plan plan(seen, S, M);
  if (plan.chunks.empty()) return out;
  static const latent::Isa isa = latent::best_isa();
  const Tensor turned_values = torch::stable::new_empty(q, {D, inner});
  torch::stable::parallel_for(0, D / latent::STEP, 1, [&](int64_t first, int64_t last) {
    isa.turn_columns(floats(values), inner, D, first * latent::STEP, last * latent::STEP,
                     static_cast<float*>(turned_values.data_ptr()));
  });
  const latent::Problem p{floats(qs), floats(all), floats(across), floats(keys),
                          floats(turned_values), static_cast<float*>(out.data_ptr()), heads, d, L, D,
                          static_cast<float>(scale)};
  // All heads of a media in succession: its latents are then in the cache.
  const int64_t units = static_cast<int64_t>(plan.chunks.size()) * heads;
  torch::stable::parallel_for(0, units, 1, [&](int64_t first, int64_t last) {
    latent::Scratch scratch;
    for (int64_t id = first; id < last; ++id) {
      const latent::Chunk& chunk = plan.chunks[id / heads];
      isa.attend(p, id % heads, chunk, plan.rows.data() + chunk.first, scratch);
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CPU, m) {
  m.impl("latent_attention", TORCH_BOX(&latent_attention));
}
