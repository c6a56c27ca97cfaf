// Media attention for one instruction set; cpu_core.h includes this once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace), FLAMVID_FN (the attributes of
// its functions), FLAMVID_LANES (floats of a vector) and FLAMVID_VECTORS (vectors of a tile).
//
// Scores are kept transposed, [latents][text rows]: then keys and values are read where they lie,
// the softmax runs down columns with no sums across lanes, and only the text rows are transposed.
#include "cpu_tiles.h"

namespace flamvid::attention::cpu::FLAMVID_ISA {

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

// The rows of a tile, to be called for ahead of their use.
template <typename T>
FLAMVID_FN Stream stream(const View<T>& x, const Tile& t, int width) {
  const int lines = (static_cast<int>(sizeof(T)) * width + 63) / 64;
  const char* from = reinterpret_cast<const char*>(x.at(t.b, t.h, t.first));
  return {from, static_cast<int64_t>(sizeof(T)) * x.row - 64 * lines, lines, 0, t.count};
}

// How the scores of a tile of text rows stand: key after key, `pitch` floats apart. A short text
// between two media has few rows, so two keys share a vector.
struct Scores {
  int rows;

  FLAMVID_FN bool few() const { return rows <= HALF; }
  FLAMVID_FN int pitch() const { return few() ? HALF : ROWS; }
  FLAMVID_FN int padded_rows() const { return few() ? HALF : padded(rows); }
  // As columns of vectors, `step` floats from one to the next below.
  FLAMVID_FN int width() const { return few() ? LANES : padded(rows); }
  FLAMVID_FN int step() const { return few() ? LANES : ROWS; }
  FLAMVID_FN int height(int keys) const { return few() ? (keys + 1) / 2 : keys; }

  // to = panel times text rows as `gather` turns them.
  FLAMVID_FN void product(const Panel& a, int keys, int depth, const float* turned, float* to,
                          Stream& ahead) const {
    if (few()) return folded(a.data, a.stride, turned, to, keys, padded(depth), ahead);
    multiply(Along{a.data, a.stride}, turned, ROWS, to, ROWS, keys, depth, width(), false,
             ahead);
  }
};

// Text rows as floats into `wide` [rows][padded], and transposed into `turned` [padded][ROWS]; few
// of them in pairs of channels.
template <typename T>
FLAMVID_FN void gather(const View<const T>& x, const Unit& u, const int32_t* rows,
                       const Scores& shape, int width, float factor, float* wide, float* turned) {
  const int n = shape.rows, all_rows = shape.padded_rows(), ld = padded(width);
  for (int r = 0; r < n; ++r) {
    Stream row = stream(x, {u.b, u.h, rows[r], 1}, width);
    while (row.rows > 0) row.call();
  }
  for (int r = 0; r < n; ++r) widen(x.at(u.b, u.h, rows[r]), wide + r * ld, width);
  std::memset(wide + n * ld, 0, sizeof(float) * (all_rows - n) * ld);
  if (shape.few()) return turn_pairs(wide, ld, turned, all_rows, ld, factor);
  turn(wide, ld, turned, all_rows, ld, factor);
}

// Down one vector of columns: the highest of the scores and `top`. Four chains hide latency.
FLAMVID_FN V column_top(const float* column, int step, int height, V top) {
  V tops[4] = {top, top, top, top};
  int j = 0;
  for (; j + 4 <= height; j += 4) {
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) {
      const V x = get(column + (j + e) * step);
      tops[e] = x > tops[e] ? x : tops[e];
    }
  }
  for (; j < height; ++j) {
    const V x = get(column + j * step);
    tops[0] = x > tops[0] ? x : tops[0];
  }
  const V left = tops[0] > tops[1] ? tops[0] : tops[1];
  const V right = tops[2] > tops[3] ? tops[2] : tops[3];
  return left > right ? left : right;
}

// Scores become exp(score - top); returns their sums.
FLAMVID_FN V column_exp(float* column, int step, int height, V top) {
  V sums[4] = {};
  int j = 0;
  for (; j + 4 <= height; j += 4) {
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) {
      const V weight = exp2_of(get(column + (j + e) * step) - top);
      put(column + (j + e) * step, weight);
      sums[e] += weight;
    }
  }
  for (; j < height; ++j) {
    const V weight = exp2_of(get(column + j * step) - top);
    put(column + j * step, weight);
    sums[0] += weight;
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// One text row, as in decoding: nothing to transpose, and scores stand in a row.
template <typename T>
FLAMVID_FN void forward_one(const Problem& p, const Unit& u, const Unit& next, Range range,
                            int64_t row, const View<const T>& q, const View<const T>& k,
                            const View<const T>& v, const View<T>& out, float* lse, Scratch& s) {
  const int d = p.width, ld = padded(d);
  widen(q.at(u.b, u.h, row), s.q, d);
  float peak = -INFINITY, sum = 0.0f;
  for (int64_t latent = range.begin; latent < range.end; latent += KEYS) {
    const int keys = static_cast<int>(std::min<int64_t>(KEYS, range.end - latent));
    const Tile ahead = tile_after(p, u, latent, next);
    Stream next_k = stream(k, ahead, d), next_v = stream(v, ahead, d);
    const Panel ks = panel(k, u.b, u.h, latent, keys, d, s.k);
    const Panel vs = panel(v, u.b, u.h, latent, keys, d, s.v);
    V tops = all(peak);
    for (int j = 0; j < KEYS; ++j) s.p[j] = -INFINITY;
    for (int j = 0; j < keys; ++j) {
      for (int line = 0; line < next_k.lines; ++line) next_k.call(), next_v.call();
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
    multiply(Along{s.p, 0}, vs.data, vs.stride, s.acc, ld, 1, keys, ld, !first, next_v);
  }
  narrow(s.acc, 1.0f / sum, out.at(u.b, u.h, row), d);
  lse[row] = peak / LOG2E + log_of(all(sum))[0];
}

// Up to ROWS text rows that see one media.
template <typename T>
FLAMVID_FN void forward(const Problem& p, const Unit& u, const Unit& next, const int32_t* rows,
                        int n, const View<const T>& q, const View<const T>& k, const View<const T>& v,
                        const View<T>& out, float* all_lse, Scratch& s) {
  const int d = p.width, ld = padded(d);
  const Scores shape{n};
  float* lse = all_lse + (u.b * p.heads + u.h) * p.tokens;
  const Range range = u.media < 0 ? Range{0, 0} : latents_of(p, u.media);
  if (range.begin == range.end) {  // sees nothing: exactly 0
    for (int r = 0; r < n; ++r) {
      std::memset(static_cast<void*>(out.at(u.b, u.h, rows[r])), 0, sizeof(T) * d);
      lse[rows[r]] = -INFINITY;
    }
    return;
  }
  if (n == 1) return forward_one(p, u, next, range, rows[0], q, k, v, out, lse, s);

  gather(q, u, rows, shape, d, p.scale * LOG2E, s.q, s.qt);
  float peak[ROWS], sum[ROWS], fix[ROWS];
  for (int64_t latent = range.begin; latent < range.end; latent += KEYS) {
    const int keys = static_cast<int>(std::min<int64_t>(KEYS, range.end - latent));
    const Tile ahead = tile_after(p, u, latent, next);
    Stream next_k = stream(k, ahead, d), next_v = stream(v, ahead, d);
    const bool first = latent == range.begin;
    const Panel ks = panel(k, u.b, u.h, latent, keys, d, s.k);
    shape.product(ks, keys, d, s.qt, s.p, next_k);
    for (int c = 0; c < shape.width(); c += LANES) {
      const V before = first ? all(-INFINITY) : get(peak + c);
      const int height = shape.height(keys);
      V top = column_top(s.p + c, shape.step(), height, before);
      if (shape.few()) top = higher(top, swap_halves(top, Lane{}));
      V total = column_exp(s.p + c, shape.step(), height, top);
      if (shape.few()) total += swap_halves(total, Lane{});
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
    multiply(Across{s.p, shape.pitch()}, vs.data, vs.stride, s.acc, ld, n, keys, ld, !first, next_v);
  }
  for (int c = 0; c < shape.width(); c += LANES) {
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
FLAMVID_FN void backward(const Problem& p, const Unit& u, const Unit& next, const int32_t* rows,
                         int64_t count,
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
    const Tile ahead = tile_after(p, u, latent, next);
    Stream next_k = stream(k, ahead, d), next_v = stream(v, ahead, d);
    const bool last = latent + keys == range.end;
    const Panel ks = panel(k, u.b, u.h, latent, keys, d, s.k);
    const Panel vs = panel(v, u.b, u.h, latent, keys, d, s.v);
    float *to_k = s.sum_k, *to_v = s.sum_v;
    int64_t ld_k = ld, ld_v = ld;
    bool in_place = false;
    Stream own_k, own_v;  // gradients, which are fetched before they are written, too
    if constexpr (std::is_same_v<T, float>) {
      in_place = d % LANES == 0;
      if (in_place) {
        to_k = dk.at(u.b, u.h, latent), to_v = dv.at(u.b, u.h, latent);
        ld_k = dk.row, ld_v = dv.row;
        own_k = stream(dk, {u.b, u.h, latent, keys}, d);
        own_v = stream(dv, {u.b, u.h, latent, keys}, d);
      }
    }
    for (int64_t at = 0; at < count; at += ROWS) {
      const int n = static_cast<int>(std::min<int64_t>(ROWS, count - at));
      const Scores shape{n};
      gather(q, u, rows + at, shape, d, p.scale * LOG2E, s.q, s.qt);
      gather(dout, u, rows + at, shape, d, 1.0f, s.g, s.gt);
      for (int r = 0; r < n; ++r) {
        widen(out.at(u.b, u.h, rows[at + r]), s.acc, d);
        V dots{};
        for (int c = 0; c < ld; c += LANES) dots += get(s.acc + c) * get(s.g + r * ld + c);
        delta[r] = 0.0f;
        for (int e = 0; e < LANES; ++e) delta[r] += dots[e];
        peak[r] = lse[rows[at + r]] * LOG2E;
      }
      if (shape.few()) {  // two keys to a vector
        std::copy_n(peak, HALF, peak + HALF);
        std::copy_n(delta, HALF, delta + HALF);
      }
      shape.product(ks, keys, d, s.qt, s.p, next_k);
      shape.product(vs, keys, d, s.gt, s.ds, next_v);
      const int height = shape.height(keys);
      for (int j = 0; j < height; ++j) {
        for (int c = 0; c < shape.width(); c += LANES) {
          float *weights = s.p + j * shape.step() + c, *grads = s.ds + j * shape.step() + c;
          const V weight = exp2_of(get(weights) - get(peak + c));
          put(weights, weight);
          put(grads, weight * (get(grads) - get(delta + c)) * p.scale);
        }
      }
      float* to_q = range.end - range.begin > KEYS ? sum_q + at * ld : s.acc;
      const int pitch = shape.pitch();
      multiply(Across{s.ds, pitch}, ks.data, ks.stride, to_q, ld, n, keys, ld, latent > range.begin,
               own_k);
      multiply(Along{s.ds, pitch}, s.q, ld, to_k, ld_k, keys, n, ld, at > 0, own_v);
      multiply(Along{s.p, pitch}, s.g, ld, to_v, ld_v, keys, n, ld, at > 0, own_v);
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
