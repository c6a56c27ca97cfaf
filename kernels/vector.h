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

// The sum of a vector's floats, in few steps that wait for each other.
FLAMVID_FN float total(V v) {
  typedef float Four __attribute__((vector_size(16)));
  union {
    V whole;
    Four parts[LANES / 4];
  } u = {v};
  Four sum = u.parts[0];
  for (int part = 1; part < LANES / 4; ++part) sum += u.parts[part];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

#include "exp2.h"
