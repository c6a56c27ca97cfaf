# The CUDA side of flamvid._C, for kernels/CMakeLists.txt:
#
#   include(cuda.cmake)
#   # With nvcc and a CUDA build of torch (one whose lib folder holds libtorch_cuda.so); the two
#   # arguments are lists: torch.utils.cpp_extension.include_paths() and library_paths().
#   flamvid_add_cuda_kernels("${TORCH_INCLUDE_DIRS}" "${TORCH_LIBRARY_DIRS}")
#   target_link_libraries(_C PRIVATE flamvid_cuda)  # its objects, libtorch_cuda, the CUDA runtime
#   flamvid_add_cuda_emulation_test()               # always: needs only a C++ compiler
#
# All compiles and links without a GPU and without a driver. _C must link torch's libraries: Python
# loads them with RTLD_LOCAL, so symbols left undefined are not found when _C is imported.
#
# Schemas that the .cu files implement (a change here is a change of their last lines):
#   media_index(Tensor input_ids, int media_token_id, str attend) -> Tensor
#   media_attention_forward(Tensor q, Tensor k, Tensor v, Tensor index, Tensor offsets, float scale)
#     -> (Tensor out, Tensor lse)              offsets: int64 [M+1] on the GPU; lse: float32 [B,H,S]
#   media_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
#     Tensor index, Tensor offsets, float scale) -> (Tensor dq, Tensor dk, Tensor dv)
# Outputs are contiguous whatever the strides of the inputs.
#
# On architectures: PTX for 7.5 runs on everything newer through the driver; binaries for 8.0 (which
# 8.6 and 8.9 run too) and 9.0 spare the commonest GPUs that wait. Override for a faster build:
#   -DFLAMVID_CUDA_ARCHITECTURES=90-real

set(FLAMVID_CUDA_ARCHITECTURES "75-virtual;80-real;90-real" CACHE STRING
    "GPU architectures, as CMAKE_CUDA_ARCHITECTURES spells them")
set(FLAMVID_CUDA_DIR "${CMAKE_CURRENT_LIST_DIR}")

# A macro, because languages may be enabled only at directory scope.
macro(flamvid_add_cuda_kernels torch_include_dirs torch_library_dirs)
  if(CMAKE_VERSION VERSION_LESS 3.28)
    message(FATAL_ERROR "CMake ${CMAKE_VERSION} rejects C++20 with nvcc 13; "
                        "pip install 'cmake>=3.28', or set FLAMVID_BUILD_KERNELS=0")
  endif()
  set(CMAKE_CUDA_ARCHITECTURES "${FLAMVID_CUDA_ARCHITECTURES}")
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)

  add_library(flamvid_cuda OBJECT
    "${FLAMVID_CUDA_DIR}/media_attention/cuda.cu"
    "${FLAMVID_CUDA_DIR}/media_index/cuda.cu")
  set_target_properties(flamvid_cuda PROPERTIES
    CUDA_STANDARD 20
    CUDA_STANDARD_REQUIRED ON
    CUDA_VISIBILITY_PRESET hidden
    POSITION_INDEPENDENT_CODE ON)
  # System: warnings inside torch's headers are not ours.
  target_include_directories(flamvid_cuda SYSTEM PRIVATE ${torch_include_dirs})
  # USE_CUDA opens the stream functions of torch's C interface; the target is torch 2.11.
  target_compile_definitions(flamvid_cuda PRIVATE
    USE_CUDA TORCH_TARGET_VERSION=0x020b000000000000)
  target_compile_options(flamvid_cuda PRIVATE -Xcompiler=-Wall,-Wextra --Werror=cross-execution-space-call)
  # Static: the binary does not depend on the CUDA version that a later torch brings.
  # libtorch_cuda has aoti_torch_get_current_cuda_stream, libtorch_cpu the rest of the interface.
  find_library(FLAMVID_TORCH_CUDA torch_cuda PATHS ${torch_library_dirs} NO_DEFAULT_PATH REQUIRED)
  find_library(FLAMVID_TORCH_CPU torch_cpu PATHS ${torch_library_dirs} NO_DEFAULT_PATH REQUIRED)
  target_link_libraries(flamvid_cuda PUBLIC
    "${FLAMVID_TORCH_CUDA}" "${FLAMVID_TORCH_CPU}" CUDA::cudart_static)
endmacro()

# The block programs of the kernels, run on the CPU against a double reference (see the file): once
# in turn under AddressSanitizer, once with real threads under ThreadSanitizer.
function(flamvid_add_cuda_emulation_test)
  find_package(Threads REQUIRED)
  set(names cuda_emulation cuda_emulation_threads)
  set(sanitizers address,undefined thread)
  foreach(name sanitizer IN ZIP_LISTS names sanitizers)
    add_executable(${name}_test "${FLAMVID_CUDA_DIR}/media_attention/cuda_emulation_test.cpp")
    target_compile_features(${name}_test PRIVATE cxx_std_20)
    target_compile_options(${name}_test PRIVATE
      -O2 -Wall -Wextra -fsanitize=${sanitizer} -fno-sanitize-recover=all)
    target_link_options(${name}_test PRIVATE -fsanitize=${sanitizer})
    target_link_libraries(${name}_test PRIVATE Threads::Threads)
  endforeach()
  add_test(NAME cuda_emulation COMMAND cuda_emulation_test 60)
  add_test(NAME cuda_emulation_threads COMMAND cuda_emulation_threads_test 2 together)
  set_tests_properties(cuda_emulation cuda_emulation_threads PROPERTIES TIMEOUT 300)
endfunction()
