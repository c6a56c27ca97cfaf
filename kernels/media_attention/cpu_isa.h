// Media attention for one instruction set; cpu_core.h includes this once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace), FLAMVID_FN (the attributes of
// its functions), FLAMVID_LANES (floats of a vector) and FLAMVID_VECTORS (vectors of a tile).
//
// Scores are kept transposed, [latents][text rows]: then keys and values are read where they lie,
// the softmax runs down columns with no sums across lanes, and only the text rows are transposed.

namespace flamvid::attention::cpu::FLAMVID_ISA {

inline constexpr int LANES = FLAMVID_LANES;
inline constexpr int VECTORS = FLAMVID_VECTORS;

typedef float V __attribute__((vector_size(4 * FLAMVID_LANES)));
typedef float Loose __attribute__((vector_size(4 * FLAMVID_LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * FLAMVID_LANES)));

FLAMVID_FN V get(const float* from) { return *reinterpret_cast<const Loose*>(from); }
FLAMVID_FN void put(float* to, V value) { *reinterpret_cast<Loose*>(to) = value; }
FLAMVID_FN V all(float value) {
  V out;
  for (int e = 0; e < LANES; ++e) out[e] = value;
  return out;
}
FLAMVID_FN constexpr int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

// 2^x for x <= 0 (and a little above): 2^n times a polynomial, whose relative error is 2e-9 at most.
// Scores are in units of log 2 to come here. Far below the peak it stays at 2^-125, which is
// nothing beside the sum.
FLAMVID_FN V exp2_of(V x) {
  const V low = all(-125.0f);
  x = x < low ? low : x;
  // Adding 1.5 * 2^23 + 127 rounds to an integer: the exponent of 2^n then stands in the lowest
  // bits. NaN stays NaN, as the product of one.
  const V shifted = x + 12583039.0f;
  const V r = x - (shifted - 12583039.0f);
  V p = r * 1.5337576729e-4f + 1.3399860364e-3f;
  p = p * r + 9.6185195347e-3f;
  p = p * r + 5.5503289975e-2f;
  p = p * r + 2.4022646609e-1f;
  p = p * r + 6.9314720560e-1f;
  p = p * r + 1.0f;
  return p * (V)((Bits)shifted << 23);
}

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
                                                    const float* b) {
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
                     bool add) {
  V sum[R][N];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) sum[r][n] = add ? get(c + r * ldc + n * LANES) : V{};
  }
  int e = 0;
  for (; e + 4 <= depth; e += 4) {
    step(sum, a, e, b + e * ldb);
    step(sum, a, e + 1, b + (e + 1) * ldb);
    step(sum, a, e + 2, b + (e + 2) * ldb);
    step(sum, a, e + 3, b + (e + 3) * ldb);
  }
  for (; e < depth; ++e) step(sum, a, e, b + e * ldb);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) put(c + r * ldc + n * LANES, sum[r][n]);
  }
}

// The tile of R rows or fewer.
template <int R, int N, bool ALONG>
FLAMVID_FN void tile_rows(int rows, Left<ALONG> a, const float* b, int64_t ldb, float* c,
                          int64_t ldc, int depth, bool add) {
  if constexpr (R > 1) {
    if (rows < R) return tile_rows<R - 1, N>(rows, a, b, ldb, c, ldc, depth, add);
  }
  tile<R, N>(a, b, ldb, c, ldc, depth, add);
}

// N vectors of columns, rows in even groups of up to R.
template <int R, int N, bool ALONG>
FLAMVID_FN void columns(Left<ALONG> a, const float* b, int64_t ldb, float* c, int64_t ldc, int rows,
                        int depth, bool add) {
  const int groups = (rows + R - 1) / R;
  for (int i = 0; i < groups; ++i) {
    const int first = rows * i / groups, count = rows * (i + 1) / groups - first;
    tile_rows<R, N>(count, a.from(first), b, ldb, c + first * ldc, ldc, depth, add);
  }
}

// c [rows][width] (+)= a times b; `width` is a multiple of LANES. Columns outside, so that a panel
// of b stays in the nearest cache. A tile's sums fill the registers, narrow ones with more rows.
template <bool ALONG>
FLAMVID_FN void multiply(Left<ALONG> a, const float* b, int64_t ldb, float* c, int64_t ldc,
                         int rows, int depth, int width, bool add) {
  int n = 0;
  for (; n + VECTORS * LANES <= width; n += VECTORS * LANES) {
    columns<6, VECTORS>(a, b + n, ldb, c + n, ldc, rows, depth, add);
  }
  for (; VECTORS > 2 && n + 2 * LANES <= width; n += 2 * LANES) {
    columns<VECTORS == 2 ? 6 : 12, 2>(a, b + n, ldb, c + n, ldc, rows, depth, add);
  }
  for (; n < width; n += LANES) columns<12, 1>(a, b + n, ldb, c + n, ldc, rows, depth, add);
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

// to[c][r] = factor * from[r][c], four by four; rows and width are multiples of four.
FLAMVID_FN void turn(const float* from, int64_t ld, float* to, int rows, int width, float factor) {
  for (int c = 0; c < width; c += 4) {
    for (int r = 0; r < rows; r += 4) {
      const float* at = from + r * ld + c;
      const Four w = *reinterpret_cast<const LooseFour*>(at) * factor;
      const Four x = *reinterpret_cast<const LooseFour*>(at + ld) * factor;
      const Four y = *reinterpret_cast<const LooseFour*>(at + 2 * ld) * factor;
      const Four z = *reinterpret_cast<const LooseFour*>(at + 3 * ld) * factor;
      const Four wx0 = FLAMVID_SHUFFLE(w, x, 0, 4, 1, 5), wx1 = FLAMVID_SHUFFLE(w, x, 2, 6, 3, 7);
      const Four yz0 = FLAMVID_SHUFFLE(y, z, 0, 4, 1, 5), yz1 = FLAMVID_SHUFFLE(y, z, 2, 6, 3, 7);
      float* out = to + c * ROWS + r;
      *reinterpret_cast<LooseFour*>(out) = FLAMVID_SHUFFLE(wx0, yz0, 0, 1, 4, 5);
      *reinterpret_cast<LooseFour*>(out + ROWS) = FLAMVID_SHUFFLE(wx0, yz0, 2, 3, 6, 7);
      *reinterpret_cast<LooseFour*>(out + 2 * ROWS) = FLAMVID_SHUFFLE(wx1, yz1, 0, 1, 4, 5);
      *reinterpret_cast<LooseFour*>(out + 3 * ROWS) = FLAMVID_SHUFFLE(wx1, yz1, 2, 3, 6, 7);
    }
  }
}

struct Panel {
  const float* data;
  int64_t stride;
};

// Rows of a head as floats: where they lie if that will do, else widened into `buffer`.
template <typename T>
FLAMVID_FN Panel panel(const View<const T>& x, int64_t b, int64_t h, int64_t first, int count,
                       int width, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    if (width % LANES == 0) return {x.at(b, h, first), x.row};
  }
  for (int j = 0; j < count; ++j) widen(x.at(b, h, first + j), buffer + j * padded(width), width);
  return {buffer, padded(width)};
}

// Calls for rows ahead of their use: a short text between two media computes for less time than
// keys take to arrive, and the hardware does not guess across pages.
template <typename T>
FLAMVID_FN void fetch(const View<const T>& x, int64_t b, int64_t h, int64_t first, int64_t end,
                      int width) {
  for (int64_t j = first; j < end; ++j) {
    const char* row = reinterpret_cast<const char*>(x.at(b, h, j));
    const int bytes = static_cast<int>(sizeof(T)) * width;
    for (int at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
  }
}

// s.p = keys times text rows, while the next keys arrive.
template <typename T>
FLAMVID_FN void score(const Problem& p, const Unit& u, const Panel& ks, int64_t latent, int keys,
                      int lanes, const View<const T>& k, Scratch& s) {
  constexpr int STEP = 12;
  for (int j = 0; j < keys; j += STEP) {
    const int count = std::min(STEP, keys - j);
    const int64_t next = latent + keys + j;
    fetch(k, u.b, u.h, next, std::min(next + count, p.latents), p.width);
    multiply(Along{ks.data + j * ks.stride, ks.stride}, s.qt, ROWS, s.p + j * ROWS, ROWS, count,
             p.width, lanes, false);
  }
}

// Text rows as floats into `wide` [rows][padded], and transposed into `turned` [padded][ROWS].
template <typename T>
FLAMVID_FN void gather(const View<const T>& x, const Unit& u, const int32_t* rows, int n, int width,
                       float factor, float* wide, float* turned) {
  const int ld = padded(width);
  for (int r = 0; r < n; ++r) fetch(x, u.b, u.h, rows[r], rows[r] + 1, width);
  for (int r = 0; r < n; ++r) widen(x.at(u.b, u.h, rows[r]), wide + r * ld, width);
  std::memset(wide + n * ld, 0, sizeof(float) * (padded(n) - n) * ld);
  turn(wide, ld, turned, padded(n), ld, factor);
}

// Down one vector of columns: the highest of `keys` scores and `top`. Four chains hide latency.
FLAMVID_FN V column_top(const float* column, int keys, V top) {
  V tops[4] = {top, top, top, top};
  int j = 0;
  for (; j + 4 <= keys; j += 4) {
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) {
      const V x = get(column + (j + e) * ROWS);
      tops[e] = x > tops[e] ? x : tops[e];
    }
  }
  for (; j < keys; ++j) {
    const V x = get(column + j * ROWS);
    tops[0] = x > tops[0] ? x : tops[0];
  }
  const V left = tops[0] > tops[1] ? tops[0] : tops[1];
  const V right = tops[2] > tops[3] ? tops[2] : tops[3];
  return left > right ? left : right;
}

// Scores become exp(score - top); returns their sums.
FLAMVID_FN V column_exp(float* column, int keys, V top) {
  V sums[4] = {};
  int j = 0;
  for (; j + 4 <= keys; j += 4) {
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) {
      const V weight = exp2_of(get(column + (j + e) * ROWS) - top);
      put(column + (j + e) * ROWS, weight);
      sums[e] += weight;
    }
  }
  for (; j < keys; ++j) {
    const V weight = exp2_of(get(column + j * ROWS) - top);
    put(column + j * ROWS, weight);
    sums[0] += weight;
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// One text row, as in decoding: nothing to transpose, and scores stand in a row.
template <typename T>
FLAMVID_FN void forward_one(const Problem& p, const Unit& u, Range range, int64_t row,
                            const View<const T>& q, const View<const T>& k, const View<const T>& v,
                            const View<T>& out, float* lse, Scratch& s) {
  const int d = p.width, ld = padded(d);
  widen(q.at(u.b, u.h, row), s.q, d);
  float peak = -INFINITY, sum = 0.0f;
  for (int64_t latent = range.begin; latent < range.end; latent += KEYS) {
    const int keys = static_cast<int>(std::min<int64_t>(KEYS, range.end - latent));
    const Panel ks = panel(k, u.b, u.h, latent, keys, d, s.k);
    const Panel vs = panel(v, u.b, u.h, latent, keys, d, s.v);
    V tops = all(peak);
    for (int j = 0; j < KEYS; ++j) s.p[j] = -INFINITY;
    for (int j = 0; j < keys; ++j) {
      V dots{};
      for (int c = 0; c < ld; c += LANES) dots += get(s.q + c) * get(ks.data + j * ks.stride + c);
      float dot = 0.0f;
      for (int e = 0; e < LANES; ++e) dot += dots[e];
      s.p[j] = dot * p.scale * LOG2E;
    }
    for (int j = 0; j < keys; j += LANES) {
      const V x = get(s.p + j);
      tops = x > tops ? x : tops;
    }
    float top = peak;
    for (int e = 0; e < LANES; ++e) top = std::max(top, tops[e]);
    const float fix = exp2_of(all(peak - top))[0];
    V sums{};
    for (int j = 0; j < keys; j += LANES) {
      const V weight = exp2_of(get(s.p + j) - top);
      put(s.p + j, weight);
      sums += weight;
    }
    sum *= fix;
    for (int e = 0; e < LANES; ++e) sum += sums[e];
    peak = top;
    const bool first = latent == range.begin;
    for (int c = 0; !first && c < ld; c += LANES) put(s.acc + c, get(s.acc + c) * fix);
    multiply(Along{s.p, 0}, vs.data, vs.stride, s.acc, ld, 1, keys, ld, !first);
  }
  narrow(s.acc, 1.0f / sum, out.at(u.b, u.h, row), d);
  lse[row] = peak / LOG2E + log_of(all(sum))[0];
}

// Up to ROWS text rows that see one media.
template <typename T>
FLAMVID_FN void forward(const Problem& p, const Unit& u, const int32_t* rows, int n,
                        const View<const T>& q, const View<const T>& k, const View<const T>& v,
                        const View<T>& out, float* all_lse, Scratch& s) {
  const int d = p.width, ld = padded(d), lanes = padded(n);
  float* lse = all_lse + (u.b * p.heads + u.h) * p.tokens;
  const Range range = u.media < 0 ? Range{0, 0} : latents_of(p, u.media);
  if (range.begin == range.end) {  // sees nothing: exactly 0
    for (int r = 0; r < n; ++r) {
      std::memset(static_cast<void*>(out.at(u.b, u.h, rows[r])), 0, sizeof(T) * d);
      lse[rows[r]] = -INFINITY;
    }
    return;
  }
  if (n == 1) return forward_one(p, u, range, rows[0], q, k, v, out, lse, s);

  gather(q, u, rows, n, d, p.scale * LOG2E, s.q, s.qt);
  float peak[ROWS], sum[ROWS], fix[ROWS];
  for (int64_t latent = range.begin; latent < range.end; latent += KEYS) {
    const int keys = static_cast<int>(std::min<int64_t>(KEYS, range.end - latent));
    const bool first = latent == range.begin;
    const Panel ks = panel(k, u.b, u.h, latent, keys, d, s.k);
    score(p, u, ks, latent, keys, lanes, k, s);
    for (int c = 0; c < lanes; c += LANES) {
      const V before = first ? all(-INFINITY) : get(peak + c);
      const V top = column_top(s.p + c, keys, before);
      V total = column_exp(s.p + c, keys, top);
      if (!first) {
        const V factor = exp2_of(before - top);
        put(fix + c, factor);
        total += get(sum + c) * factor;
      }
      put(peak + c, top);
      put(sum + c, total);
    }
    for (int r = 0; !first && r < n; ++r) {
      for (int c = 0; c < ld; c += LANES) put(s.acc + r * ld + c, get(s.acc + r * ld + c) * fix[r]);
    }
    const Panel vs = panel(v, u.b, u.h, latent, keys, d, s.v);
    multiply(Across{s.p, ROWS}, vs.data, vs.stride, s.acc, ld, n, keys, ld, !first);
  }
  for (int c = 0; c < lanes; c += LANES) {
    put(peak + c, get(peak + c) / LOG2E + log_of(get(sum + c)));
    put(fix + c, 1.0f / get(sum + c));
  }
  for (int r = 0; r < n; ++r) {
    narrow(s.acc + r * ld, fix[r], out.at(u.b, u.h, rows[r]), d);
    lse[rows[r]] = peak[r];
  }
}

// All `count` text rows of a head that see one media: their dq, and dk and dv of its latents.
// `sum_q` [count][padded] is used when the media has more latents than a tile.
template <typename T>
FLAMVID_FN void backward(const Problem& p, const Unit& u, const int32_t* rows, int64_t count,
                         const View<const T>& q, const View<const T>& k, const View<const T>& v,
                         const View<const T>& out, const View<const T>& dout, const float* all_lse,
                         const View<T>& dq, const View<T>& dk, const View<T>& dv, float* sum_q,
                         Scratch& s) {
  const int d = p.width, ld = padded(d);
  const float* lse = all_lse + (u.b * p.heads + u.h) * p.tokens;
  const Range range = latents_of(p, u.media);
  float peak[ROWS] = {}, delta[ROWS] = {};
  for (int64_t latent = range.begin; latent < range.end; latent += KEYS) {
    const int keys = static_cast<int>(std::min<int64_t>(KEYS, range.end - latent));
    const bool last = latent + keys == range.end;
    const Panel ks = panel(k, u.b, u.h, latent, keys, d, s.k);
    const Panel vs = panel(v, u.b, u.h, latent, keys, d, s.v);
    float *to_k = s.sum_k, *to_v = s.sum_v;
    bool in_place = false;
    if constexpr (std::is_same_v<T, float>) {
      in_place = d % LANES == 0;
      if (in_place) to_k = dk.at(u.b, u.h, latent), to_v = dv.at(u.b, u.h, latent);
    }
    for (int64_t at = 0; at < count; at += ROWS) {
      const int n = static_cast<int>(std::min<int64_t>(ROWS, count - at)), lanes = padded(n);
      gather(q, u, rows + at, n, d, p.scale * LOG2E, s.q, s.qt);
      gather(dout, u, rows + at, n, d, 1.0f, s.g, s.gt);
      for (int r = 0; r < n; ++r) {
        widen(out.at(u.b, u.h, rows[at + r]), s.acc, d);
        V dots{};
        for (int c = 0; c < ld; c += LANES) dots += get(s.acc + c) * get(s.g + r * ld + c);
        delta[r] = 0.0f;
        for (int e = 0; e < LANES; ++e) delta[r] += dots[e];
        peak[r] = lse[rows[at + r]] * LOG2E;
      }
      fetch(v, u.b, u.h, latent, latent + keys, d);
      score(p, u, ks, latent, keys, lanes, k, s);
      multiply(Along{vs.data, vs.stride}, s.gt, ROWS, s.ds, ROWS, keys, d, lanes, false);
      for (int j = 0; j < keys; ++j) {
        for (int c = 0; c < lanes; c += LANES) {
          float *weights = s.p + j * ROWS + c, *grads = s.ds + j * ROWS + c;
          const V weight = exp2_of(get(weights) - get(peak + c));
          put(weights, weight);
          put(grads, weight * (get(grads) - get(delta + c)) * p.scale);
        }
      }
      float* to_q = range.end - range.begin > KEYS ? sum_q + at * ld : s.acc;
      multiply(Across{s.ds, ROWS}, ks.data, ks.stride, to_q, ld, n, keys, ld, latent > range.begin);
      multiply(Along{s.ds, ROWS}, s.q, ld, to_k, ld, keys, n, ld, at > 0);
      multiply(Along{s.p, ROWS}, s.g, ld, to_v, ld, keys, n, ld, at > 0);
      for (int r = 0; last && r < n; ++r) {
        narrow(to_q + r * ld, 1.0f, dq.at(u.b, u.h, rows[at + r]), d);
      }
    }
    for (int j = 0; !in_place && j < keys; ++j) {
      narrow(s.sum_k + j * ld, 1.0f, dk.at(u.b, u.h, latent + j), d);
      narrow(s.sum_v + j * ld, 1.0f, dv.at(u.b, u.h, latent + j), d);
    }
  }
}

}  // namespace flamvid::attention::cpu::FLAMVID_ISA
