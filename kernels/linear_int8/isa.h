// A linear layer with int8 weights for one instruction set; core.h includes this once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace), FLAMVID_FN (the attributes of
// its functions), FLAMVID_LANES (floats of a vector) and FLAMVID_WIDEN (as many bytes to floats).

namespace flamvid::linear::FLAMVID_ISA {

#include "../vector.h"

inline constexpr int STEPS = GROUP / LANES;
inline constexpr int AHEAD = 16;  // weight rows that are called for: hardware ends with a page

// What offsets are multiplied with: the sum of each group of x.
FLAMVID_FN void sum_groups(const float* x, int64_t groups, float* sums) {
  for (int64_t g = 0; g < groups; ++g) {
    V sum{};
    for (int step = 0; step < STEPS; ++step) sum += load(x + g * GROUP + step * LANES);
    sums[g] = total(sum);
  }
}

// N weight rows from row n on times ROWS rows of x from row r on.
template <int ROWS, int N>
FLAMVID_FN void multiply(const Problem& p, int64_t n, int64_t r) {
  const int64_t groups = p.width / GROUP;
  const float* x = p.x + r * p.width;
  const int8_t* weights = p.weights + n * p.width;
  const float* scales = p.scales + n * groups;
  V totals[N][ROWS] = {};
  for (int64_t g = 0; g < groups; ++g) {
#pragma GCC unroll 2
    for (int o = 0; o < N; ++o) {
      __builtin_prefetch(weights + (AHEAD + o) * p.width + g * GROUP, 0, 2);
    }
    // A scale for each of many sums of a group is more work than one for each weight.
    constexpr bool EACH = ROWS > 2;
    V parts[N][ROWS] = {};
#pragma GCC unroll 8
    for (int step = 0; step < STEPS; ++step) {
      const int64_t k = g * GROUP + step * LANES;
      V w[N];
#pragma GCC unroll 2
      for (int o = 0; o < N; ++o) {
        w[o] = FLAMVID_WIDEN(weights + o * p.width + k);
        if (EACH) w[o] *= scales[o * groups + g];
      }
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) {
        const V some = load(x + i * p.width + k);
#pragma GCC unroll 2
        for (int o = 0; o < N; ++o) (EACH ? totals : parts)[o][i] += w[o] * some;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; !EACH && i < ROWS; ++i) {
#pragma GCC unroll 2
      for (int o = 0; o < N; ++o) totals[o][i] += parts[o][i] * scales[o * groups + g];
    }
  }
#pragma GCC unroll 2
  for (int o = 0; o < N; ++o) {
    const float* offsets = p.offsets + (n + o) * groups;
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      const float* sums = p.sums + (r + i) * groups;
      V rest = totals[o][i];
      int64_t g = 0;
      for (; g + LANES <= groups; g += LANES) rest += load(offsets + g) * load(sums + g);
      float sum = total(rest);
      for (; g < groups; ++g) sum += offsets[g] * sums[g];
      p.out[(r + i) * p.outputs + n + o] = sum;
    }
  }
}

template <int N>
FLAMVID_FN void rows(const Problem& p, int64_t n) {
  for (int64_t r = 0; r < p.rows; r += 4) {
    switch (p.rows - r) {
      case 1: multiply<1, N>(p, n, r); break;
      case 2: multiply<2, N>(p, n, r); break;
      case 3: multiply<3, N>(p, n, r); break;
      default: multiply<4, N>(p, n, r);
    }
  }
}

// Weight rows `first` to `last` times all rows of x.
FLAMVID_FN void outputs(const Problem& p, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + 2 <= last; n += 2) rows<2>(p, n);
  if (n < last) rows<1>(p, n);
}

// The float32 weights of groups `first` to `last` of all.
FLAMVID_FN void widen(const Weights& w, float* out, int64_t first, int64_t last) {
  for (int64_t g = first; g < last; ++g) {
    for (int64_t k = g * GROUP; k < (g + 1) * GROUP; k += LANES) {
      store(out + k, FLAMVID_WIDEN(w.bytes + k) * w.scales[g] + w.offsets[g]);
    }
  }
}

inline constexpr Isa ISA{&outputs, &widen, &sum_groups};

}  // namespace flamvid::linear::FLAMVID_ISA
