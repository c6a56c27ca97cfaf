// A float32 linear layer of few rows for one instruction set; core.h includes this once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace), FLAMVID_FN (the attributes of
// its functions) and FLAMVID_LANES (floats of a vector).

namespace flamvid::few::FLAMVID_ISA {

#include "../vector.h"

inline constexpr int HINTS = LANES / 4;

// N weight rows from row n on times ROWS rows of x from row r on.
template <int ROWS, int N>
FLAMVID_FN void multiply(const Problem& p, int64_t n, int64_t r) {
  const float* x = p.x + r * p.width;
  const float* weights = p.weights + n * p.width;
  V totals[N][ROWS] = {};
  int64_t k = 0;
  for (; k + LANES <= p.width; k += LANES) {
#pragma GCC unroll 8
    for (int o = 0; o < N; ++o) {
      const float* at = weights + o * p.width + k;
      // The next rows come while these are used: hardware looks no further than a page. It drops
      // hints while it is busy, so those of a line are given again, and one time ahead.
#pragma GCC unroll 4
      for (int hint = 0; hint < HINTS; ++hint) {
        __builtin_prefetch(at + (1 + hint % 2) * N * p.width, 0, 2);
      }
      const V w = load(at);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; ++i) totals[o][i] += w * load(x + i * p.width + k);
    }
  }
  for (int o = 0; o < N; ++o) {
    for (int i = 0; i < ROWS; ++i) {
      float sum = total(totals[o][i]);
      for (int64_t j = k; j < p.width; ++j) sum += weights[o * p.width + j] * x[i * p.width + j];
      p.out[(r + i) * p.outputs + n + o] = sum;
    }
  }
}

// All rows: as many in one pass over the weights as registers hold sums of, AVX-512's of six.
template <int N>
FLAMVID_FN void rows(const Problem& p, int64_t n) {
  constexpr int MOST = LANES == 16 ? 6 : 4;
  int64_t r = 0;
  for (; p.rows - r > MOST; r += 4) multiply<4, N>(p, n, r);
  switch (p.rows - r) {
    case 0: break;
    case 1: multiply<1, N>(p, n, r); break;
    case 2: multiply<2, N>(p, n, r); break;
    case 3: multiply<3, N>(p, n, r); break;
    case 4: multiply<4, N>(p, n, r); break;
    case 5: multiply<5, N>(p, n, r); break;
    default: multiply<6, N>(p, n, r);
  }
}

// Weight rows `first` to `last` times all rows of x, as many at a time as registers hold sums of.
FLAMVID_FN void outputs(const Problem& p, int64_t first, int64_t last) {
  int64_t n = first;
  for (; p.rows == 1 && n + 8 <= last; n += 8) multiply<1, 8>(p, n, 0);
  for (; n + 4 <= last; n += 4) rows<4>(p, n);
  for (; n < last; ++n) rows<1>(p, n);
}

}  // namespace flamvid::few::FLAMVID_ISA
