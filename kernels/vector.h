// Vectors of floats for one instruction set; included inside the namespace of each.

inline constexpr int LANES = FLAMVID_LANES;

typedef float V __attribute__((vector_size(4 * FLAMVID_LANES)));
typedef float Loose __attribute__((vector_size(4 * FLAMVID_LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * FLAMVID_LANES)));

FLAMVID_FN V all(float value) {
  V out;
  for (int e = 0; e < LANES; ++e) out[e] = value;
  return out;
}

FLAMVID_FN V load(const float* at) { return *reinterpret_cast<const Loose*>(at); }
FLAMVID_FN void store(float* at, V v) { *reinterpret_cast<Loose*>(at) = v; }

#include "exp2.h"
