// A linear layer with int8 weights for one instruction set; core.h includes this once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace), FLAMVID_FN (the attributes of
// its functions), FLAMVID_LANES (floats of a vector) and FLAMVID_WIDEN (as many bytes to floats).

namespace flamvid::linear::FLAMVID_ISA {

inline constexpr int LANES = FLAMVID_LANES;
inline constexpr int STEPS = GROUP / LANES;
inline constexpr int AHEAD = 16;  // weight rows that are called for: hardware ends with a page

typedef float V __attribute__((vector_size(4 * FLAMVID_LANES)));
typedef float Loose __attribute__((vector_size(4 * FLAMVID_LANES), aligned(4), may_alias));

FLAMVID_FN float sum_of(V x) {
  float sum = 0;
  for (int e = 0; e < LANES; ++e) sum += x[e];
  return sum;
}

// Weight row n times ROWS rows of x, from row r on.
template <int ROWS>
FLAMVID_FN void multiply(const Problem& p, int64_t n, int64_t r) {
  const int64_t groups = p.width / GROUP;
  const float* x = p.x + r * p.width;
  const int8_t* weights = p.weights + n * p.width;
  const float* scales = p.scales + n * groups;
  V totals[ROWS] = {};
  for (int64_t g = 0; g < groups; ++g) {
    __builtin_prefetch(weights + AHEAD * p.width + g * GROUP, 0, 2);
    V parts[ROWS] = {};
#pragma GCC unroll 8
    for (int step = 0; step < STEPS; ++step) {
      const int64_t k = g * GROUP + step * LANES;
      const V w = FLAMVID_WIDEN(weights + k);
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) {
        parts[i] += w * *reinterpret_cast<const Loose*>(x + i * p.width + k);
      }
    }
    // The scale once for each group, not for each weight.
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) totals[i] += parts[i] * scales[g];
  }
  const float* offsets = p.offsets + n * groups;
  for (int i = 0; i < ROWS; ++i) {
    const float* sums = p.sums + (r + i) * groups;
    V rest = {};
    int64_t g = 0;
    for (; g + LANES <= groups; g += LANES) {
      rest += *reinterpret_cast<const Loose*>(offsets + g) *
              *reinterpret_cast<const Loose*>(sums + g);
    }
    float total = sum_of(totals[i] + rest);
    for (; g < groups; ++g) total += offsets[g] * sums[g];
    p.out[(r + i) * p.outputs + n] = total;
  }
}

// Weight rows `first` to `last` times all rows of x.
FLAMVID_FN void outputs(const Problem& p, int64_t first, int64_t last) {
  for (int64_t n = first; n < last; ++n) {
    for (int64_t r = 0; r < p.rows; r += 4) {
      switch (p.rows - r) {
        case 1: multiply<1>(p, n, r); break;
        case 2: multiply<2>(p, n, r); break;
        case 3: multiply<3>(p, n, r); break;
        default: multiply<4>(p, n, r);
      }
    }
  }
}

// The float32 weights of groups `first` to `last` of all.
FLAMVID_FN void widen(const Weights& w, float* out, int64_t first, int64_t last) {
  for (int64_t g = first; g < last; ++g) {
    for (int64_t k = g * GROUP; k < (g + 1) * GROUP; k += LANES) {
      *reinterpret_cast<Loose*>(out + k) = FLAMVID_WIDEN(w.bytes + k) * w.scales[g] + w.offsets[g];
    }
  }
}

}  // namespace flamvid::linear::FLAMVID_ISA
