// A float32 linear layer for the few rows of a decoding step; no torch.
//
// Writing a text reads every weight once for each token and does little with it: this is as quick
// as memory is. BLAS packs the weights first, or goes to one core, or knows no AVX-512 here.
#pragma once

#include <cstdint>

namespace flamvid::few {

struct Problem {
  const float* x;        // [rows, width]
  const float* weights;  // [outputs, width]
  float* out;            // [rows, outputs]
  int64_t rows, width, outputs;
};

}  // namespace flamvid::few

#define FLAMVID_ISA plain
#define FLAMVID_FN inline
#define FLAMVID_LANES 4
#include "isa.h"
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES

#if defined(__x86_64__) && defined(__GNUC__)
#define FLAMVID_ISA avx2
#define FLAMVID_FN __attribute__((target("avx2,fma"))) inline
#define FLAMVID_LANES 8
#include "isa.h"
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES

#define FLAMVID_ISA avx512
#define FLAMVID_FN __attribute__((target("avx512f,avx2,fma"))) inline
#define FLAMVID_LANES 16
#include "isa.h"
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES
#endif

namespace flamvid::few {

using Outputs = void (*)(const Problem&, int64_t, int64_t);

// The best that this processor has.
inline Outputs best_outputs() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f")) return &avx512::outputs;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2::outputs;
#endif
  return &plain::outputs;
}

}  // namespace flamvid::few
