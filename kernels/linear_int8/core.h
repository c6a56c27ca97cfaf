// A linear layer whose weights are int8, with a scale and an offset for each group of 32; no torch.
//
// Writing a text reads every weight once for each token and does little with it: a third of the
// bytes is up to three times the speed. 256 steps from the least to the largest of each group hold
// the 16 of the 4-bit file that the default language model comes from exactly.
#pragma once

#include <cstdint>
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include "../processor.h"

namespace flamvid::linear {

inline constexpr int GROUP = 32;

struct Problem {
  const float* x;         // [rows, width]
  const int8_t* weights;  // [outputs, width]
  const float* scales;    // [outputs, width / GROUP]
  const float* offsets;   // [outputs, width / GROUP]; a weight is byte * scale + offset
  const float* sums;      // [rows, width / GROUP]: of each group of x, as `sum_groups` makes them
  float* out;             // [rows, outputs]
  int64_t rows, width, outputs;
};

// Weights [outputs, width], and one scale and one offset for each group.
struct Weights {
  const int8_t* bytes;
  const float* scales;
  const float* offsets;
};

// The three of one instruction set.
struct Isa {
  void (*outputs)(const Problem&, int64_t, int64_t);
  void (*widen)(const Weights&, float*, int64_t, int64_t);
  void (*sum_groups)(const float*, int64_t, float*);
};

}  // namespace flamvid::linear

#define FLAMVID_ISA plain
#define FLAMVID_FN inline
#define FLAMVID_LANES 4
#define FLAMVID_WIDEN(at) \
  V { static_cast<float>((at)[0]), static_cast<float>((at)[1]), static_cast<float>((at)[2]), \
      static_cast<float>((at)[3]) }
#include "isa.h"
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES
#undef FLAMVID_WIDEN

#if defined(__x86_64__) && defined(__GNUC__)
#define FLAMVID_ISA avx2
#define FLAMVID_FN __attribute__((target("avx2,fma"))) inline
#define FLAMVID_LANES 8
// Intrinsics, as GCC 12 converts a vector of bytes one by one.
#define FLAMVID_WIDEN(at) \
  (V) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(at))))
#include "isa.h"
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES
#undef FLAMVID_WIDEN

#define FLAMVID_ISA avx512
#define FLAMVID_FN __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) inline
#define FLAMVID_LANES 16
// Masked, as GCC 12 warns of its own unmasked ones.
#define FLAMVID_WIDEN(at)                                                                      \
  (V) _mm512_maskz_cvtepi32_ps(                                                            \
      0xFFFF, _mm512_maskz_cvtepi8_epi32(0xFFFF, _mm_loadu_si128((const __m128i*)(at))))
#include "isa.h"
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES
#undef FLAMVID_WIDEN
#endif

namespace flamvid::linear {

// The best that this processor has.
inline Isa best_isa() { return FLAMVID_BEST(ISA); }

}  // namespace flamvid::linear
