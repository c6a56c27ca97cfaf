// The softmax loss of tokens, and its gradient written over their logits; no torch.
//
// A vocabulary has fifty thousand columns: in separate operations its logits go through memory a
// dozen times. Here a row stays in the cache from its maximum to its gradient.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../processor.h"

namespace flamvid::token_loss {

// A bfloat16: the upper half of a float.
struct Half {
  uint16_t bits;
};

}  // namespace flamvid::token_loss

#define FLAMVID_BODY "token_loss/isa.h"
#include "../each_isa.h"

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
