// Vectors and small matrix products for one instruction set; see cpu_isa.h, which includes this.

namespace flamvid::attention::cpu::FLAMVID_ISA {

inline constexpr int LANES = FLAMVID_LANES;
inline constexpr int VECTORS = FLAMVID_VECTORS;
inline constexpr int HALF = LANES / 2;

typedef float V __attribute__((vector_size(4 * FLAMVID_LANES)));
typedef float Loose __attribute__((vector_size(4 * FLAMVID_LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * FLAMVID_LANES)));
typedef int64_t Pairs __attribute__((vector_size(4 * FLAMVID_LANES)));

FLAMVID_FN V get(const float* from) { return *reinterpret_cast<const Loose*>(from); }
FLAMVID_FN void put(float* to, V value) { *reinterpret_cast<Loose*>(to) = value; }
FLAMVID_FN V all(float value) {
  V out;
  for (int e = 0; e < LANES; ++e) out[e] = value;
  return out;
}
FLAMVID_FN V higher(V x, V y) { return x > y ? x : y; }
FLAMVID_FN constexpr int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

#include "../exp2.h"

// log for x >= 1, which the sum of a softmax is: its largest term is 1.
FLAMVID_FN V log_of(V x) {
  const Bits bits = (Bits)x;
  const Bits fraction = (bits & 0x007FFFFFu) | 0x3F800000u;
  V m = (V)fraction;
  V e = __builtin_convertvector(bits >> 23, V) - 127.0f;
  const V half = all(0.5f), one = all(1.0f), root = all(1.41421356f), huge = all(3e38f);
  const auto above = m > root;
  m = above ? m * half : m;
  e = above ? e + one : e;
  const V r = m - 1.0f, z = r * r;
  V y = r * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * r + 1.1676998740e-1f;
  y = y * r - 1.2420140846e-1f;
  y = y * r + 1.4249322787e-1f;
  y = y * r - 1.6668057665e-1f;
  y = y * r + 2.0000714765e-1f;
  y = y * r - 2.4999993993e-1f;
  y = y * r + 3.3333331174e-1f;
  y = y * r * z - e * 2.12194440e-4f - z * 0.5f;
  const V out = r + y + e * 0.693359375f;
  return x < huge ? out : x;  // infinity and NaN stay what they are
}

// Rows to come, whose cache lines the steps of a product call for one by one. A processor drops
// hints that come in bursts, and its own guesses end with a page. They are called into the second
// cache: the first has few places for what is under way, and loads of the product waited for one.
struct Stream {
  const char* at = nullptr;
  int64_t skip = 0;  // bytes from the end of a row to the next
  int lines = 0, line = 0, rows = 0;

  FLAMVID_FN __attribute__((always_inline)) void call() {
    if (rows == 0) return;
    __builtin_prefetch(at, 0, 2);
    at += 64;
    if (++line < lines) return;
    at += skip, line = 0, --rows;
  }
};

// A left operand, of which either rows (ALONG) or columns are contiguous: element [r][e] is
// data[r * stride + e] or data[r + e * stride].
template <bool ALONG>
struct Left {
  const float* data;
  int64_t stride;
  FLAMVID_FN Left from(int row) const { return {data + row * (ALONG ? stride : 1), stride}; }
  FLAMVID_FN float at(int r, int e) const {
    return ALONG ? data[r * stride + e] : data[r + e * stride];
  }
};

using Along = Left<true>;
using Across = Left<false>;

// sum[r][n] += a[r][e] * b[n]
template <int R, int N, bool ALONG>
FLAMVID_FN __attribute__((always_inline)) void step(V (&sum)[R][N], Left<ALONG> a, int e,
                                                    const float* b, Stream& stream) {
  for (int n = 0; n < (R * N + 11) / 12; ++n) stream.call();
  V value[N];
#pragma GCC unroll 12
  for (int n = 0; n < N; ++n) value[n] = get(b + n * LANES);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    const float weight = a.at(r, e);
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) sum[r][n] += value[n] * weight;
  }
}

// c[r][n] (+)= sum over e of a[r][e] * b[e][n]: R rows, N vectors of columns, all in registers.
template <int R, int N, bool ALONG>
FLAMVID_FN void tile(Left<ALONG> a, const float* b, int64_t ldb, float* c, int64_t ldc, int depth,
                     bool add, Stream& ahead) {
  V sum[R][N];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) sum[r][n] = add ? get(c + r * ldc + n * LANES) : V{};
  }
  Stream stream = ahead;  // in registers
  int e = 0;
  for (; e + 4 <= depth; e += 4) {
    step(sum, a, e, b + e * ldb, stream);
    step(sum, a, e + 1, b + (e + 1) * ldb, stream);
    step(sum, a, e + 2, b + (e + 2) * ldb, stream);
    step(sum, a, e + 3, b + (e + 3) * ldb, stream);
  }
  for (; e < depth; ++e) step(sum, a, e, b + e * ldb, stream);
  ahead = stream;
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) put(c + r * ldc + n * LANES, sum[r][n]);
  }
}

// The tile of R rows or fewer.
template <int R, int N, bool ALONG>
FLAMVID_FN void tile_rows(int rows, Left<ALONG> a, const float* b, int64_t ldb, float* c,
                          int64_t ldc, int depth, bool add, Stream& ahead) {
  if constexpr (R > 1) {
    if (rows < R) return tile_rows<R - 1, N>(rows, a, b, ldb, c, ldc, depth, add, ahead);
  }
  tile<R, N>(a, b, ldb, c, ldc, depth, add, ahead);
}

// N vectors of columns, rows in even groups of up to R.
template <int R, int N, bool ALONG>
FLAMVID_FN void columns(Left<ALONG> a, const float* b, int64_t ldb, float* c, int64_t ldc, int rows,
                        int depth, bool add, Stream& ahead) {
  const int groups = (rows + R - 1) / R;
  for (int i = 0; i < groups; ++i) {
    const int first = rows * i / groups, count = rows * (i + 1) / groups - first;
    tile_rows<R, N>(count, a.from(first), b, ldb, c + first * ldc, ldc, depth, add, ahead);
  }
}

// c [rows][width] (+)= a times b; `width` is a multiple of LANES. Columns outside, so that a panel
// of b stays in the nearest cache. A tile's sums fill the registers, narrow ones with more rows.
template <bool ALONG>
FLAMVID_FN void multiply(Left<ALONG> a, const float* b, int64_t ldb, float* c, int64_t ldc,
                         int rows, int depth, int width, bool add, Stream& ahead) {
  int n = 0;
  for (; n + VECTORS * LANES <= width; n += VECTORS * LANES) {
    columns<6, VECTORS>(a, b + n, ldb, c + n, ldc, rows, depth, add, ahead);
  }
  for (; VECTORS > 2 && n + 2 * LANES <= width; n += 2 * LANES) {
    columns<VECTORS == 2 ? 6 : 12, 2>(a, b + n, ldb, c + n, ldc, rows, depth, add, ahead);
  }
  for (; n < width; n += LANES) columns<12, 1>(a, b + n, ldb, c + n, ldc, rows, depth, add, ahead);
}

// Two neighbouring floats, again and again.
FLAMVID_FN V pairs_of(const float* from) {
  int64_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return (V)(Pairs{} + pair);
}

using Lane = std::make_integer_sequence<int, LANES>;

// x0+x1, x2+x3, .. of x, then of y.
template <int... I>
FLAMVID_FN V fold(V x, V y, std::integer_sequence<int, I...>) {
  return FLAMVID_SHUFFLE(x, y, (2 * I)...) + FLAMVID_SHUFFLE(x, y, (2 * I + 1)...);
}

template <int... I>
FLAMVID_FN V swap_halves(V x, std::integer_sequence<int, I...>) {
  return FLAMVID_SHUFFLE(x, x, ((I + HALF) % LANES)...);
}

// c[r][HALF] = a times b as turn_pairs leaves it: R rows. What follows an odd R is -infinity, which
// no softmax sees.
template <int R>
FLAMVID_FN void folded_tile(const float* a, int64_t lda, const float* b, float* c, int depth,
                            Stream& ahead) {
  constexpr int EVEN = (R + 1) / 2 * 2;
  V sum[EVEN] = {};
  if constexpr (R < EVEN) sum[R] = all(-INFINITY);
  Stream stream = ahead;
  for (int e = 0; e < depth; e += 2) {
    stream.call();
    const V value = get(b + e * HALF);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) sum[r] += value * pairs_of(a + r * lda + e);
  }
  ahead = stream;
#pragma GCC unroll 12
  for (int r = 0; r < EVEN; r += 2) put(c + r * HALF, fold(sum[r], sum[r + 1], Lane{}));
}

template <int R>
FLAMVID_FN void folded_rows(int rows, const float* a, int64_t lda, const float* b, float* c,
                            int depth, Stream& ahead) {
  if constexpr (R > 1) {
    if (rows < R) return folded_rows<R - 1>(rows, a, lda, b, c, depth, ahead);
  }
  folded_tile<R>(a, lda, b, c, depth, ahead);
}

// Any number of rows, in even groups of up to R.
FLAMVID_FN void folded(const float* a, int64_t lda, const float* b, float* c, int rows, int depth,
                       Stream& ahead) {
  constexpr int R = 8;
  const int pairs = (rows + 1) / 2, groups = (2 * pairs + R - 1) / R;
  for (int i = 0; i < groups; ++i) {
    const int first = pairs * i / groups * 2, end = std::min(rows, pairs * (i + 1) / groups * 2);
    folded_rows<R>(end - first, a + first * lda, lda, b, c + first * HALF, depth, ahead);
  }
}

template <typename T>
FLAMVID_FN void widen(const T* from, float* to, int width) {
  for (int c = 0; c < width; ++c) to[c] = static_cast<float>(from[c]);
  for (int c = width; c < padded(width); ++c) to[c] = 0.0f;
}

template <typename T>
FLAMVID_FN void narrow(const float* from, float factor, T* to, int width) {
  for (int c = 0; c < width; ++c) to[c] = static_cast<T>(from[c] * factor);
}

// Within each four floats of two vectors, which to take: of the second those from 4 on.
template <int A, int B, int C, int D, int... I>
FLAMVID_FN V fours(V x, V y, std::integer_sequence<int, I...>) {
  constexpr int from[] = {A, B, C, D};
  return FLAMVID_SHUFFLE(x, y, (I / 4 * 4 + from[I % 4] % 4 + from[I % 4] / 4 * LANES)...);
}

// Of two vectors the fours in turns, from the first half of each or from the second.
template <int SECOND, int... I>
FLAMVID_FN V lanes_of(V x, V y, std::integer_sequence<int, I...>) {
  return FLAMVID_SHUFFLE(x, y, (SECOND * HALF + I / 8 * 4 + I % 4 + I / 4 % 2 * LANES)...);
}

// to[c][r] = from[r][c], LANES by LANES: each cache line is read once, whatever is between rows.
FLAMVID_FN void turn_square(const float* from, int64_t ld, float* to, float factor, int64_t pitch) {
  constexpr int FOURS = LANES / 4;
  V x[4][FOURS];  // [i][j]: of rows 4j to 4j + 3 the columns i, 4 + i, 8 + i ..
#pragma GCC unroll 4
  for (int j = 0; j < FOURS; ++j) {
    const float* at = from + 4 * j * ld;
    const V a = get(at) * factor, b = get(at + ld) * factor;
    const V c = get(at + 2 * ld) * factor, d = get(at + 3 * ld) * factor;
    const V ab0 = fours<0, 4, 1, 5>(a, b, Lane{}), ab1 = fours<2, 6, 3, 7>(a, b, Lane{});
    const V cd0 = fours<0, 4, 1, 5>(c, d, Lane{}), cd1 = fours<2, 6, 3, 7>(c, d, Lane{});
    x[0][j] = fours<0, 1, 4, 5>(ab0, cd0, Lane{});
    x[1][j] = fours<2, 3, 6, 7>(ab0, cd0, Lane{});
    x[2][j] = fours<0, 1, 4, 5>(ab1, cd1, Lane{});
    x[3][j] = fours<2, 3, 6, 7>(ab1, cd1, Lane{});
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    V(&y)[FOURS] = x[i];
    if constexpr (FOURS == 4) {
      const V a = lanes_of<0>(y[0], y[2], Lane{}), b = lanes_of<1>(y[0], y[2], Lane{});
      const V c = lanes_of<0>(y[1], y[3], Lane{}), d = lanes_of<1>(y[1], y[3], Lane{});
      y[0] = lanes_of<0>(a, c, Lane{}), y[1] = lanes_of<1>(a, c, Lane{});
      y[2] = lanes_of<0>(b, d, Lane{}), y[3] = lanes_of<1>(b, d, Lane{});
    } else if constexpr (FOURS == 2) {
      const V a = y[0];
      y[0] = lanes_of<0>(a, y[1], Lane{}), y[1] = lanes_of<1>(a, y[1], Lane{});
    }
#pragma GCC unroll 4
    for (int j = 0; j < FOURS; ++j) put(to + (4 * j + i) * pitch, y[j]);
  }
}

// to[c][r] = factor * from[r][c]; rows and width are multiples of four. Squares of LANES where the
// width is made of them, four by four for the rest.
FLAMVID_FN void turn(const float* from, int64_t ld, float* to, int rows, int width, float factor,
                     int64_t pitch = ROWS) {
  const int squares = width % LANES ? 0 : rows / LANES * LANES;
  for (int c = 0; c < width; c += LANES) {
    for (int r = 0; r < squares; r += LANES) {
      turn_square(from + r * ld + c, ld, to + c * pitch + r, factor, pitch);
    }
  }
  for (int c = 0; c < width; c += 4) {
    for (int r = squares; r < rows; r += 4) {
      const float* at = from + r * ld + c;
      const Four w = *reinterpret_cast<const LooseFour*>(at) * factor;
      const Four x = *reinterpret_cast<const LooseFour*>(at + ld) * factor;
      const Four y = *reinterpret_cast<const LooseFour*>(at + 2 * ld) * factor;
      const Four z = *reinterpret_cast<const LooseFour*>(at + 3 * ld) * factor;
      const Four wx0 = FLAMVID_SHUFFLE(w, x, 0, 4, 1, 5), wx1 = FLAMVID_SHUFFLE(w, x, 2, 6, 3, 7);
      const Four yz0 = FLAMVID_SHUFFLE(y, z, 0, 4, 1, 5), yz1 = FLAMVID_SHUFFLE(y, z, 2, 6, 3, 7);
      float* out = to + c * pitch + r;
      *reinterpret_cast<LooseFour*>(out) = FLAMVID_SHUFFLE(wx0, yz0, 0, 1, 4, 5);
      *reinterpret_cast<LooseFour*>(out + pitch) = FLAMVID_SHUFFLE(wx0, yz0, 2, 3, 6, 7);
      *reinterpret_cast<LooseFour*>(out + 2 * pitch) = FLAMVID_SHUFFLE(wx1, yz1, 0, 1, 4, 5);
      *reinterpret_cast<LooseFour*>(out + 3 * pitch) = FLAMVID_SHUFFLE(wx1, yz1, 2, 3, 6, 7);
    }
  }
}

// The same for at most HALF rows, a row's channels in pairs: to[c / 2][r][c % 2].
FLAMVID_FN void turn_pairs(const float* from, int64_t ld, float* to, int rows, int width,
                           float factor) {
  for (int r = 0; r < rows; r += 2) {
    for (int c = 0; c < width; c += 4) {
      const float* at = from + r * ld + c;
      const Four x = *reinterpret_cast<const LooseFour*>(at) * factor;
      const Four y = *reinterpret_cast<const LooseFour*>(at + ld) * factor;
      float* out = to + c * HALF + 2 * r;
      *reinterpret_cast<LooseFour*>(out) = FLAMVID_SHUFFLE(x, y, 0, 1, 4, 5);
      *reinterpret_cast<LooseFour*>(out + LANES) = FLAMVID_SHUFFLE(x, y, 2, 3, 6, 7);
    }
  }
}

}  // namespace flamvid::attention::cpu::FLAMVID_ISA
