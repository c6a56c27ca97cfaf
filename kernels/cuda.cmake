# The CUDA side of flamvid._C, for kernels/CMakeLists.txt:
#
#   include(cuda.cmake)
#   flamvid_add_cuda_kernels("${TORCH_INCLUDE_DIRS}")      # when nvcc and a CUDA build of torch exist
#   target_link_libraries(_C PRIVATE flamvid_cuda)         # its objects, and the static CUDA runtime
#   flamvid_add_cuda_emulation_test()                      # always: needs only a C++ compiler
#
# The objects compile without a GPU and without a driver. `aoti_torch_get_current_cuda_stream` is in
# libtorch_cuda.so, which torch loads before flamvid._C: link that library when it is at hand, or
# leave the symbol undefined.
#
# On architectures: PTX for 7.5 runs on everything newer through the driver; binaries for 8.0 (which
# 8.6 and 8.9 run too) and 9.0 spare the commonest GPUs that wait. Override for a faster build:
#   -DFLAMVID_CUDA_ARCHITECTURES=90-real

set(FLAMVID_CUDA_ARCHITECTURES "75-virtual;80-real;90-real" CACHE STRING
    "GPU architectures, as CMAKE_CUDA_ARCHITECTURES spells them")
set(FLAMVID_CUDA_DIR "${CMAKE_CURRENT_LIST_DIR}")

# A macro, because languages may be enabled only at directory scope.
macro(flamvid_add_cuda_kernels torch_include_dirs)
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
  target_link_libraries(flamvid_cuda PUBLIC CUDA::cudart_static)
endmacro()

# The block programs of the kernels, run on the CPU against a double reference (see the file).
function(flamvid_add_cuda_emulation_test)
  add_executable(cuda_emulation_test
    "${FLAMVID_CUDA_DIR}/media_attention/cuda_emulation_test.cpp")
  target_compile_features(cuda_emulation_test PRIVATE cxx_std_20)
  target_compile_options(cuda_emulation_test PRIVATE
    -O2 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all)
  target_link_options(cuda_emulation_test PRIVATE -fsanitize=address,undefined)
  add_test(NAME cuda_emulation COMMAND cuda_emulation_test 60)
  set_tests_properties(cuda_emulation PROPERTIES TIMEOUT 300)
endfunction()
