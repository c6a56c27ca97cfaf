// A CUDA block as phases: the same block program runs on a GPU and, thread by thread, on a CPU.
//
// A block program is a template over `Block`. All per-thread work happens inside
// `block.phase([&](int thread, auto& state) {...})`: on a GPU every thread runs the lambda and a
// barrier follows; on a CPU (the emulation in the test) a loop runs it once per thread. `state` is
// what a thread keeps between phases: registers on a GPU, an array entry on a CPU.
//
// Rule that keeps the two equal: control flow between phases may read only arguments, global
// memory that the kernel does not write, results of `any` and `count`, and shared fields that are
// written in one early phase and never again. Anything else would race on a GPU and look fine here.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define FLAMVID_BLOCK_FN __device__ __forceinline__
#define FLAMVID_UNROLL _Pragma("unroll")
#else
#define FLAMVID_BLOCK_FN inline
#define FLAMVID_UNROLL
#endif

namespace flamvid {

#ifdef __CUDACC__
template <typename State>
struct DeviceBlock {
  State state;

  template <typename F>
  __device__ __forceinline__ void phase(F&& work) {
    work(static_cast<int>(threadIdx.x), state);
    __syncthreads();
  }

  // Whether any thread says true; the answer is the same in all threads. Also a barrier.
  template <typename F>
  __device__ __forceinline__ bool any(F&& work) {
    return __syncthreads_or(work(static_cast<int>(threadIdx.x), state)) != 0;
  }

  // How many threads say true. Also a barrier.
  template <typename F>
  __device__ __forceinline__ int count(F&& work) {
    return __syncthreads_count(work(static_cast<int>(threadIdx.x), state));
  }
};
#endif

}  // namespace flamvid
