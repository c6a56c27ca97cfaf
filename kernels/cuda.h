// What the CUDA files share: launching a block program on the current stream, with checks.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace flamvid::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  const auto error = aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream);
  STD_TORCH_CHECK(error == 0, "flamvid: no current CUDA stream on device ",
                  static_cast<int>(tensor.get_device_index()));
  return static_cast<cudaStream_t>(stream);
}

// A one-dimensional grid: the only dimension that reaches 2^31 - 1 blocks.
inline unsigned grid(int64_t blocks, const char* op) {
  STD_TORCH_CHECK(blocks <= 0x7FFFFFFF, op, ": ", blocks,
                  " blocks; a CUDA grid holds 2147483647; split the batch");
  return static_cast<unsigned>(blocks);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, op, ": the CUDA kernel did not start: ",
                  cudaGetErrorString(error));
}

}  // namespace flamvid::cuda
