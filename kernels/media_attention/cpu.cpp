// flamvid::media_attention for CPU: checks, threads and the registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <tuple>

#include "cpu_core.h"

namespace {

using namespace flamvid::attention;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename F>
void with_type(const Tensor& q, F&& run) {
  switch (q.scalar_type()) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Half: return run(torch::headeronly::Half{});
    case ScalarType::BFloat16: return run(torch::headeronly::BFloat16{});
    default:
      STD_TORCH_CHECK(false, "media_attention: dtype ", torch::headeronly::toString(q.scalar_type()),
                      "; must be float32, float16 or bfloat16");
  }
}

Tensor rows(const Tensor& x) {
  return x.size(3) <= 1 || x.stride(3) == 1 ? x : torch::stable::contiguous(x);
}

template <typename T>
View<T> view(const Tensor& x) {
  return {static_cast<T*>(const_cast<void*>(x.data_ptr())), x.stride(0), x.stride(1), x.stride(2),
          false};
}

void check_like(const Tensor& x, const Tensor& q, int64_t length, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == q.scalar_type() && x.dim() == 4 &&
                      x.size(0) == q.size(0) && x.size(1) == q.size(1) && x.size(2) == length &&
                      x.size(3) == q.size(3),
                  "media_attention: ", name, " must be a CPU tensor [B,H,", length,
                  ",d] with the B, H, d and dtype of q");
}

struct Inputs {
  Tensor q, k, v, index, offsets;
  Problem problem;
};

// Checks all that a pointer depends on; latents_of and media_of clamp what stands in the tensors.
Inputs checked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& index,
               const Tensor& offsets, double scale) {
  STD_TORCH_CHECK(q.is_cpu() && q.dim() == 4, "media_attention: q must be a CPU tensor [B,H,S,d]");
  STD_TORCH_CHECK(q.size(3) >= 1 && q.size(3) <= cpu::WIDTH, "media_attention: head width ",
                  q.size(3), "; must be between 1 and 256");
  STD_TORCH_CHECK(k.dim() == 4, "media_attention: k must be [B,H,K,d]");
  check_like(k, q, k.size(2), "k");
  check_like(v, q, k.size(2), "v");
  STD_TORCH_CHECK(index.is_cpu() && index.scalar_type() == ScalarType::Int && index.dim() == 2 &&
                      index.size(0) == q.size(0) && index.size(1) == q.size(2),
                  "media_attention: index must be an int32 CPU tensor [B,S]");
  STD_TORCH_CHECK(offsets.is_cpu() && offsets.scalar_type() == ScalarType::Long &&
                      offsets.dim() == 1 && offsets.size(0) >= 1,
                  "media_attention: offsets must be an int64 CPU tensor [M+1]");
  Inputs in{rows(q), rows(k), rows(v), torch::stable::contiguous(index),
            torch::stable::contiguous(offsets), {}};
  in.problem = {q.size(1), q.size(2), offsets.size(0) - 1, k.size(2), static_cast<int>(q.size(3)),
                static_cast<const int32_t*>(in.index.data_ptr()),
                static_cast<const int64_t*>(in.offsets.data_ptr()), static_cast<float>(scale)};
  return in;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& index, const Tensor& offsets, double scale) {
  const Inputs in = checked(q, k, v, index, offsets, scale);
  const int64_t B = q.size(0), H = q.size(1), S = q.size(2);
  Tensor out = torch::stable::new_empty(q, {B, H, S, q.size(3)});
  Tensor lse = torch::stable::new_empty(q, {B, H, S}, ScalarType::Float);
  if (B * H * S == 0) return {out, lse};
  with_type(q, [&](auto type) {
    using T = decltype(type);
    const auto qv = view<const T>(in.q), kv = view<const T>(in.k), vv = view<const T>(in.v);
    const auto to = view<T>(out);
    auto* stats = static_cast<float*>(lse.data_ptr());
    const int64_t units = B * H * ((S + cpu::ROWS - 1) / cpu::ROWS);
    torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
      thread_local cpu::Scratch scratch;
      for (int64_t id = begin; id < end; ++id) {
        cpu::forward_unit<T>(id, in.problem, qv, kv, vv, to, stats, scratch);
      }
    });
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& q,
                                            const Tensor& k, const Tensor& v, const Tensor& out,
                                            const Tensor& lse, const Tensor& index,
                                            const Tensor& offsets, double scale) {
  const Inputs in = checked(q, k, v, index, offsets, scale);
  const int64_t B = q.size(0), H = q.size(1), S = q.size(2), K = k.size(2);
  check_like(grad_out, q, S, "grad_out");
  check_like(out, q, S, "out");
  STD_TORCH_CHECK(lse.is_cpu() && lse.scalar_type() == ScalarType::Float && lse.dim() == 3 &&
                      lse.numel() == B * H * S,
                  "media_attention: lse must be a float32 CPU tensor [B,H,S]");
  const Tensor dout = rows(grad_out), saved = rows(out), stats = torch::stable::contiguous(lse);
  Tensor dq = torch::stable::new_zeros(q, {B, H, S, q.size(3)});
  Tensor dk = torch::stable::new_zeros(k, {B, H, K, q.size(3)});
  Tensor dv = torch::stable::new_zeros(v, {B, H, K, q.size(3)});
  if (B * H * S * K == 0) return {dq, dk, dv};
  with_type(q, [&](auto type) {
    using T = decltype(type);
    const auto qv = view<const T>(in.q), kv = view<const T>(in.k), vv = view<const T>(in.v);
    const auto ov = view<const T>(saved), gv = view<const T>(dout);
    const auto to_q = view<T>(dq), to_k = view<T>(dk), to_v = view<T>(dv);
    const auto* lse_data = static_cast<const float*>(stats.data_ptr());
    torch::stable::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
      thread_local cpu::Scratch scratch;
      for (int64_t id = begin; id < end; ++id) {
        cpu::backward_unit<T>(id, in.problem, qv, kv, vv, ov, gv, lse_data, to_q, to_k, to_v,
                              scratch);
      }
    });
  });
  return {dq, dk, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CPU, m) {
  m.impl("media_attention_forward", TORCH_BOX(&forward));
  m.impl("media_attention_backward", TORCH_BOX(&backward));
}
