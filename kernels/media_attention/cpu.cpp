// flamvid::media_attention for CPU: checks, threads and the registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <tuple>

#include "../huge_pages.h"
#include "cpu_core.h"

namespace {

using namespace flamvid::attention;
using flamvid::huge_pages;
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
  STD_TORCH_CHECK(q.size(2) < INT32_MAX && offsets.size(0) < INT32_MAX, "media_attention: ",
                  q.size(2), " tokens, ", offsets.size(0) - 1, " media; must be below 2^31 - 1");
  Inputs in{rows(q), rows(k), rows(v), torch::stable::contiguous(index),
            torch::stable::contiguous(offsets), {}};
  in.problem = {q.size(1), q.size(2), offsets.size(0) - 1, k.size(2), static_cast<int>(q.size(3)),
                static_cast<const int32_t*>(in.index.data_ptr()),
                static_cast<const int64_t*>(in.offsets.data_ptr()), static_cast<float>(scale)};
  // Overlapping media would share gradients between threads, gaps would leave some unwritten.
  const int64_t* at = in.problem.offsets;
  const int64_t M = in.problem.media;
  STD_TORCH_CHECK(at[0] == 0 && at[M] == k.size(2) && std::is_sorted(at, at + M + 1),
                  "media_attention: offsets must rise from 0 to the ", k.size(2), " rows of k");
  return in;
}

cpu::Scratch& scratch() {
  thread_local const auto buffers = std::make_unique<cpu::Scratch>();
  return *buffers;
}

// Units per task, so that a task is worth waking a thread for.
int64_t grain(const Problem& p, int64_t units, int64_t batch) {
  const double mean = p.media == 0 ? 1.0 : static_cast<double>(p.latents) / p.media;
  const double cost = mean * p.tokens * p.width * p.heads * batch / static_cast<double>(units);
  return static_cast<int64_t>(std::clamp(200'000.0 / (cost + 1.0), 1.0, 1e9));
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& index, const Tensor& offsets, double scale) {
  const Inputs in = checked(q, k, v, index, offsets, scale);
  const Problem& p = in.problem;
  const int64_t B = q.size(0), H = q.size(1), S = q.size(2);
  Tensor out = torch::stable::new_empty(q, {B, H, S, q.size(3)});
  Tensor lse = torch::stable::new_empty(q, {B, H, S}, ScalarType::Float);
  if (B * H * S == 0) return {out, lse};
  const cpu::Plan plan(p, B);
  with_type(q, [&](auto type) {
    using T = decltype(type);
    const auto kernels = cpu::best_kernels<T>();
    const auto qv = view<const T>(in.q), kv = view<const T>(in.k), vv = view<const T>(in.v);
    const auto to = view<T>(out);
    huge_pages(out.data_ptr(), out.numel() * sizeof(T));
    auto* stats = static_cast<float*>(lse.data_ptr());
    const int64_t units = B * H * plan.longest;
    torch::stable::parallel_for(0, units, grain(p, units, B), [&](int64_t begin, int64_t end) {
      cpu::Scratch& s = scratch();
      for (int64_t id = begin; id < end; ++id) {
        cpu::forward_unit<T>(id, kernels, plan, p, qv, kv, vv, to, stats, s);
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
  const Problem& p = in.problem;
  const int64_t B = q.size(0), H = q.size(1), S = q.size(2), K = k.size(2);
  check_like(grad_out, q, S, "grad_out");
  check_like(out, q, S, "out");
  STD_TORCH_CHECK(lse.is_cpu() && lse.scalar_type() == ScalarType::Float && lse.dim() == 3 &&
                      lse.size(0) == B && lse.size(1) == H && lse.size(2) == S,
                  "media_attention: lse must be a float32 CPU tensor [B,H,S]");
  const Tensor dout = rows(grad_out), saved = rows(out), stats = torch::stable::contiguous(lse);
  Tensor dq = torch::stable::new_empty(q, {B, H, S, q.size(3)});
  Tensor dk = torch::stable::new_empty(k, {B, H, K, q.size(3)});
  Tensor dv = torch::stable::new_empty(v, {B, H, K, q.size(3)});
  if (B * H == 0) return {dq, dk, dv};
  const cpu::Plan plan(p, B);
  with_type(q, [&](auto type) {
    using T = decltype(type);
    for (const Tensor& x : {dq, dk, dv}) huge_pages(x.data_ptr(), x.numel() * sizeof(T));
    const auto kernels = cpu::best_kernels<T>();
    const auto qv = view<const T>(in.q), kv = view<const T>(in.k), vv = view<const T>(in.v);
    const auto ov = view<const T>(saved), gv = view<const T>(dout);
    const auto to_q = view<T>(dq), to_k = view<T>(dk), to_v = view<T>(dv);
    const auto* lse_data = static_cast<const float*>(stats.data_ptr());
    const int64_t units = B * H * (p.media + 1);
    torch::stable::parallel_for(0, units, grain(p, units, B), [&](int64_t begin, int64_t end) {
      cpu::Scratch& s = scratch();
      std::vector<float> sum_q;
      for (int64_t id = begin; id < end; ++id) {
        cpu::backward_unit<T>(id, kernels, plan, p, qv, kv, vv, ov, gv, lse_data, to_q, to_k, to_v,
                              sum_q, s);
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
