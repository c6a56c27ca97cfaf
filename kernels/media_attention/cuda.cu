// flamvid::media_attention for CUDA: launches of the block programs, and the registration.
#include "../cuda.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <tuple>

#include "block_backward.h"
#include "block_forward.h"

namespace {

using namespace flamvid::attention;
using flamvid::DeviceBlock;
using flamvid::cuda::check_launch;
using flamvid::cuda::current_stream;
using flamvid::cuda::grid;
using flamvid::cuda::ScalarType;
using flamvid::cuda::Tensor;

// Up to this many tokens each row gets a block of its own: tiles of text would be mostly empty.
constexpr int64_t DECODE_TOKENS = 4;

template <typename T, int D>
__global__ void __launch_bounds__(Shape<D>::THREADS)
    forward_kernel(Problem p, View<const T> q, View<const T> k, View<const T> v, View<T> out,
                   float* lse) {
  __shared__ ForwardShared<D> shared;
  DeviceBlock<ForwardState<D>> block;
  forward_block<D, T>(block, shared, blockIdx.x, p, q, k, v, out, lse);
}

template <typename T, int D>
__global__ void __launch_bounds__(DecodeShape<D>::THREADS)
    decode_kernel(Problem p, View<const T> q, View<const T> k, View<const T> v, View<T> out,
                  float* lse) {
  __shared__ DecodeShared<D> shared;
  DeviceBlock<DecodeState> block;
  decode_block<D, T>(block, shared, blockIdx.x, p, q, k, v, out, lse);
}

template <typename T, int D>
__global__ void __launch_bounds__(Shape<D>::THREADS)
    query_grad_kernel(Problem p, View<const T> q, View<const T> k, View<const T> v,
                      View<const T> out, View<const T> dout, const float* lse, float* delta,
                      View<T> dq) {
  __shared__ BackwardShared<D> shared;
  DeviceBlock<QueryGradState<D>> block;
  query_grad_block<D, T>(block, shared, blockIdx.x, p, q, k, v, out, dout, lse, delta, dq);
}

template <typename T, int D>
__global__ void __launch_bounds__(Shape<D>::THREADS)
    key_grad_kernel(int64_t slots, Problem p, View<const T> q, View<const T> k, View<const T> v,
                    View<const T> dout, const float* lse, const float* delta, View<T> dk,
                    View<T> dv) {
  __shared__ BackwardShared<D> shared;
  DeviceBlock<KeyGradState<D>> block;
  key_grad_block<D, T>(block, shared, blockIdx.x, slots, p, q, k, v, dout, lse, delta, dk, dv);
}

// __shared__ variables have no constructors to run and fit what every GPU grants.
static_assert(sizeof(ForwardShared<128>) <= 49152 && sizeof(ForwardShared<256>) <= 49152);
static_assert(sizeof(BackwardShared<64>) <= 49152 && sizeof(BackwardShared<128>) <= 49152);
static_assert(sizeof(BackwardShared<256>) <= 49152);

// Calls run(T{}, std::integral_constant<int, D>{}) for the tensor's dtype and padded width.
template <typename T, typename F>
void with_width(int64_t width, F&& run) {
  if (width <= 32) return run(T{}, std::integral_constant<int, 32>{});
  if (width <= 64) return run(T{}, std::integral_constant<int, 64>{});
  if (width <= 128) return run(T{}, std::integral_constant<int, 128>{});
  return run(T{}, std::integral_constant<int, 256>{});
}

template <typename F>
void with_type(const Tensor& q, F&& run) {
  switch (q.scalar_type()) {
    case ScalarType::Float: return with_width<float>(q.size(3), run);
    case ScalarType::Half: return with_width<torch::headeronly::Half>(q.size(3), run);
    case ScalarType::BFloat16: return with_width<torch::headeronly::BFloat16>(q.size(3), run);
    default:
      STD_TORCH_CHECK(false, "media_attention: dtype ", torch::headeronly::toString(q.scalar_type()),
                      "; must be float32, float16 or bfloat16");
  }
}

// Strides of any layout are fine as long as the last dimension is contiguous; else one copy.
Tensor rows(const Tensor& x) {
  return x.size(3) <= 1 || x.stride(3) == 1 ? x : torch::stable::contiguous(x);
}

template <typename T>
View<T> view(const Tensor& x) {
  auto* data = static_cast<T*>(const_cast<void*>(x.data_ptr()));
  const int64_t b = x.stride(0), h = x.stride(1), r = x.stride(2);
  const bool packed = x.size(3) % 4 == 0 && b % 4 == 0 && h % 4 == 0 && r % 4 == 0 &&
                      reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0;
  return {data, b, h, r, packed};
}

void check_same(const Tensor& x, const Tensor& q, const char* name) {
  STD_TORCH_CHECK(x.is_cuda() && x.get_device_index() == q.get_device_index(), "media_attention: ",
                  name, " is not on the device of q");
  STD_TORCH_CHECK(x.scalar_type() == q.scalar_type(), "media_attention: ", name, " is ",
                  torch::headeronly::toString(x.scalar_type()), ", q is ",
                  torch::headeronly::toString(q.scalar_type()), "; must be equal");
  STD_TORCH_CHECK(x.dim() == 4 && x.size(0) == q.size(0) && x.size(1) == q.size(1) &&
                      x.size(3) == q.size(3),
                  "media_attention: ", name, " must be [B,H,rows,d] with the B, H and d of q");
}

struct Inputs {
  Tensor q, k, v, index, offsets;
  Problem problem;
};

// Checks everything a pointer depends on; what stands in index and offsets is clamped on the GPU.
Inputs checked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& index,
               const Tensor& offsets, double scale) {
  STD_TORCH_CHECK(q.is_cuda() && q.dim() == 4, "media_attention: q must be a CUDA tensor [B,H,S,d]");
  STD_TORCH_CHECK(q.size(3) >= 1 && q.size(3) <= 256, "media_attention: head width ", q.size(3),
                  "; must be between 1 and 256");
  check_same(k, q, "k");
  check_same(v, q, "v");
  STD_TORCH_CHECK(v.size(2) == k.size(2), "media_attention: k has ", k.size(2), " latents, v ",
                  v.size(2), "; must be equal");
  STD_TORCH_CHECK(index.is_cuda() && index.get_device_index() == q.get_device_index() &&
                      index.scalar_type() == ScalarType::Int && index.dim() == 2 &&
                      index.size(0) == q.size(0) && index.size(1) == q.size(2),
                  "media_attention: index must be int32 [B,S] on the device of q");
  STD_TORCH_CHECK(offsets.is_cuda() && offsets.get_device_index() == q.get_device_index() &&
                      offsets.scalar_type() == ScalarType::Long && offsets.dim() == 1 &&
                      offsets.size(0) >= 1,
                  "media_attention: offsets must be int64 [M+1] on the device of q");
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
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const int64_t B = q.size(0), H = q.size(1), S = q.size(2);
  Tensor out = torch::stable::new_empty(q, {B, H, S, q.size(3)});
  Tensor lse = torch::stable::new_empty(q, {B, H, S}, ScalarType::Float);
  if (B * H * S == 0) return {out, lse};
  const cudaStream_t stream = current_stream(q);

  with_type(q, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int D = decltype(width)::value;
    const auto launch = [&](auto* kernel, int64_t blocks, int threads) {
      kernel<<<grid(blocks, "media_attention"), threads, 0, stream>>>(
          in.problem, view<const T>(in.q), view<const T>(in.k), view<const T>(in.v), view<T>(out),
          static_cast<float*>(lse.data_ptr()));
    };
    if (S <= DECODE_TOKENS) {
      launch(decode_kernel<T, D>, B * H * S, DecodeShape<D>::THREADS);
    } else {
      const int64_t tiles = (S + Shape<D>::ROWS - 1) / Shape<D>::ROWS;
      launch(forward_kernel<T, D>, B * H * tiles, Shape<D>::THREADS);
    }
    check_launch("media_attention");
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& q,
                                            const Tensor& k, const Tensor& v, const Tensor& out,
                                            const Tensor& lse, const Tensor& index,
                                            const Tensor& offsets, double scale) {
  const Inputs in = checked(q, k, v, index, offsets, scale);
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  check_same(grad_out, q, "grad_out");
  check_same(out, q, "out");
  const int64_t B = q.size(0), H = q.size(1), S = q.size(2), latents = k.size(2);
  STD_TORCH_CHECK(grad_out.size(2) == S && out.size(2) == S,
                  "media_attention: grad_out and out must have the shape of q");
  STD_TORCH_CHECK(lse.is_cuda() && lse.get_device_index() == q.get_device_index() &&
                      lse.scalar_type() == ScalarType::Float && lse.numel() == B * H * S,
                  "media_attention: lse must be float32 [B,H,S] on the device of q");
  const Tensor dout = rows(grad_out), saved = rows(out), stats = torch::stable::contiguous(lse);
  Tensor dq = torch::stable::new_empty(q, {B, H, S, q.size(3)});
  // Zeros, not empty: latents that offsets leave out have no block that would write them.
  Tensor dk = torch::stable::new_zeros(k, {B, H, latents, q.size(3)});
  Tensor dv = torch::stable::new_zeros(v, {B, H, latents, q.size(3)});
  if (B * H * S == 0) return {dq, dk, dv};
  Tensor delta = torch::stable::new_empty(q, {B, H, S}, ScalarType::Float);
  const cudaStream_t stream = current_stream(q);

  with_type(q, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int D = decltype(width)::value;
    const auto qv = view<const T>(in.q), kv = view<const T>(in.k), vv = view<const T>(in.v);
    const auto gv = view<const T>(dout);
    const auto* lse_data = static_cast<const float*>(stats.data_ptr());
    auto* delta_data = static_cast<float*>(delta.data_ptr());

    const int64_t tiles = (S + Shape<D>::ROWS - 1) / Shape<D>::ROWS;
    query_grad_kernel<T, D>
        <<<grid(B * H * tiles, "media_attention"), Shape<D>::THREADS, 0, stream>>>(
            in.problem, qv, kv, vv, view<const T>(saved), gv, lse_data, delta_data, view<T>(dq));
    check_launch("media_attention, dq");

    // Same stream: delta is complete before this kernel starts.
    if (in.problem.media == 0 || latents == 0) return;
    const int64_t slots = key_grad_slots<D>(latents, in.problem.media);
    key_grad_kernel<T, D><<<grid(B * H * slots, "media_attention"), Shape<D>::THREADS, 0, stream>>>(
        slots, in.problem, qv, kv, vv, gv, lse_data, delta_data, view<T>(dk), view<T>(dv));
    check_launch("media_attention, dk and dv");
  });
  return {dq, dk, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(flamvid, CUDA, m) {
  m.impl("media_attention_forward", TORCH_BOX(&forward));
  m.impl("media_attention_backward", TORCH_BOX(&backward));
}
