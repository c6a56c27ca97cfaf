// The softmax loss of tokens, and its gradient written over their logits; no torch.
//
// A vocabulary has fifty thousand columns: in separate operations its logits go through memory a
// dozen times. Here a row stays in the cache from its maximum to its gradient.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace flamvid::token_loss {

// A bfloat16: the upper half of a float.
struct Half {
  uint16_t bits;
};

}  // namespace flamvid::token_loss

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
#define FLAMVID_FN __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) inline
#define FLAMVID_LANES 16
#include "isa.h"
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES
#endif

namespace flamvid::token_loss {

// Of one row and its target: gives the loss. `room` has a float for each column.
struct Isa {
  float (*wide)(float* row, int64_t columns, int64_t target, float* room);
  float (*half)(Half* row, int64_t columns, int64_t target, float* room);
};

inline constexpr Isa PLAIN{&plain::loss<float>, &plain::loss<Half>};
#if defined(__x86_64__) && defined(__GNUC__)
inline constexpr Isa AVX2{&avx2::loss<float>, &avx2::loss<Half>};
inline constexpr Isa AVX512{&avx512::loss<float>, &avx512::loss<Half>};

inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

inline bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The best that this processor has.
inline Isa best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (has_avx512()) return AVX512;
  if (has_avx2()) return AVX2;
#endif
  return PLAIN;
}

}  // namespace flamvid::token_loss
