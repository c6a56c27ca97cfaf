// The CPU side of media attention, free of torch: one unit of work forward, one backward.
//
// All loops over latents and channels are plain C++ that the compiler vectorises, once per
// instruction set (FLAMVID_CLONES); the loader picks the best at run time.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "block_tiles.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define FLAMVID_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FLAMVID_CLONES
#endif

namespace flamvid::attention::cpu {

inline constexpr int ROWS = 64;  // text rows of a tile
inline constexpr int KEYS = 64;  // latents of a tile
inline constexpr int WIDTH = 256;

// exp for x <= 0 (and a little above): 2^n times a polynomial; 0 below the normal range.
__attribute__((always_inline)) inline float fast_exp(float x) {
  const float clipped = std::min(std::max(x, -87.0f), 88.0f);
  const float n = std::nearbyint(clipped * 1.44269504f);
  const float r = clipped - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x < -87.0f ? 0.0f : (x != x ? x : p * power);
}

// score[r][j] = scale * a[r] . b[j]; bt is b transposed, [width][KEYS].
FLAMVID_CLONES inline void dots(const float* a, const float* bt, float* score, int rows, int width,
                                float scale) {
  for (int r = 0; r < rows; r += 2) {
    float first[KEYS] = {}, second[KEYS] = {};
    const float* x = a + r * width;
    const float* y = r + 1 < rows ? x + width : x;
    for (int c = 0; c < width; ++c) {
      const float* row = bt + c * KEYS;
      for (int j = 0; j < KEYS; ++j) {
        first[j] += x[c] * row[j];
        second[j] += y[c] * row[j];
      }
    }
    for (int j = 0; j < KEYS; ++j) score[r * KEYS + j] = first[j] * scale;
    if (r + 1 == rows) return;
    for (int j = 0; j < KEYS; ++j) score[(r + 1) * KEYS + j] = second[j] * scale;
  }
}

// acc[r] += sum over j of weight[r][j] * b[j]
FLAMVID_CLONES inline void weigh(const float* weight, const float* b, float* acc, int rows,
                                 int keys, int width) {
  for (int r = 0; r < rows; ++r) {
    int c = 0;
    for (; c + 64 <= width; c += 64) {
      float sum[64];
      for (int e = 0; e < 64; ++e) sum[e] = acc[r * width + c + e];
      for (int j = 0; j < keys; ++j) {
        const float w = weight[r * KEYS + j];
        for (int e = 0; e < 64; ++e) sum[e] += w * b[j * width + c + e];
      }
      for (int e = 0; e < 64; ++e) acc[r * width + c + e] = sum[e];
    }
    if (c == width) continue;
    for (int j = 0; j < keys; ++j) {
      const float w = weight[r * KEYS + j];
      for (int e = c; e < width; ++e) acc[r * width + e] += w * b[j * width + e];
    }
  }
}

// acc[j] += sum over r of weight[r][j] * a[r]
FLAMVID_CLONES inline void weigh_rows(const float* weight, const float* a, float* acc, int rows,
                                      int keys, int width) {
  for (int j = 0; j < keys; ++j) {
    int c = 0;
    for (; c + 64 <= width; c += 64) {
      float sum[64];
      for (int e = 0; e < 64; ++e) sum[e] = acc[j * width + c + e];
      for (int r = 0; r < rows; ++r) {
        const float w = weight[r * KEYS + j];
        for (int e = 0; e < 64; ++e) sum[e] += w * a[r * width + c + e];
      }
      for (int e = 0; e < 64; ++e) acc[j * width + c + e] = sum[e];
    }
    if (c == width) continue;
    for (int r = 0; r < rows; ++r) {
      const float w = weight[r * KEYS + j];
      for (int e = c; e < width; ++e) acc[j * width + e] += w * a[r * width + e];
    }
  }
}

// score = exp(score - peak); returns the sum, added up in 16 lanes.
FLAMVID_CLONES inline float exp_minus(float* score, float peak, int keys) {
  float lanes[16] = {};
  int j = 0;
  for (; j + 16 <= keys; j += 16) {
    for (int e = 0; e < 16; ++e) {
      score[j + e] = fast_exp(score[j + e] - peak);
      lanes[e] += score[j + e];
    }
  }
  float sum = 0.0f;
  for (int e = 0; e < 16; ++e) sum += lanes[e];
  for (; j < keys; ++j) sum += score[j] = fast_exp(score[j] - peak);
  return sum;
}

FLAMVID_CLONES inline float highest(const float* score, float peak, int keys) {
  float lanes[16];
  for (int e = 0; e < 16; ++e) lanes[e] = peak;
  int j = 0;
  for (; j + 16 <= keys; j += 16) {
    for (int e = 0; e < 16; ++e) lanes[e] = lanes[e] < score[j + e] ? score[j + e] : lanes[e];
  }
  for (int e = 0; e < 16; ++e) peak = std::max(peak, lanes[e]);
  for (; j < keys; ++j) peak = std::max(peak, score[j]);
  return peak;
}

// One row of decoding: no transposed tile pays for a single row.
FLAMVID_CLONES inline void dots_one(const float* a, const float* b, float* score, int keys,
                                    int width, float scale) {
  for (int j = 0; j < keys; ++j) {
    float lanes[16] = {};
    int c = 0;
    for (; c + 16 <= width; c += 16) {
      for (int e = 0; e < 16; ++e) lanes[e] += a[c + e] * b[j * width + c + e];
    }
    float sum = 0.0f;
    for (int e = 0; e < 16; ++e) sum += lanes[e];
    for (; c < width; ++c) sum += a[c] * b[j * width + c];
    score[j] = sum * scale;
  }
}

template <typename T>
void load(const T* from, float* to, int width) {
  for (int c = 0; c < width; ++c) to[c] = static_cast<float>(from[c]);
}

inline void transpose(const float* b, float* bt, int keys, int width) {
  for (int c = 0; c < width; ++c) {
    for (int j = 0; j < KEYS; ++j) bt[c * KEYS + j] = j < keys ? b[j * width + c] : 0.0f;
  }
}

// Buffers of a thread: tiles only, whatever S, L and M.
struct Scratch {
  std::vector<float> q = std::vector<float>(ROWS * WIDTH), g = q, acc = q, k = q, v = q, kt = q,
                     vt = q, score = std::vector<float>(ROWS * KEYS), grad = score;
};

// Rows of tile [first, first+count) that see `media`, into `rows`.
inline int rows_of(const Problem& p, int64_t b, int64_t first, int64_t count, int32_t media,
                   int64_t* rows) {
  int n = 0;
  for (int64_t s = first; s < first + count; ++s) {
    if (media_of(p, b, s) == media) rows[n++] = s;
  }
  return n;
}

// Unit `id` of B*H*ceil(S/ROWS).
template <typename T>
void forward_unit(int64_t id, const Problem& p, const View<const T>& q, const View<const T>& k,
                  const View<const T>& v, const View<T>& out, float* lse, Scratch& s) {
  const int64_t tiles = (p.tokens + ROWS - 1) / ROWS;
  const int64_t first = id % tiles * ROWS, h = id / tiles % p.heads, b = id / tiles / p.heads;
  const int64_t count = std::min<int64_t>(ROWS, p.tokens - first);
  const int d = p.width;
  constexpr float NONE = -std::numeric_limits<float>::infinity();
  int64_t rows[ROWS];
  bool done[ROWS] = {};
  for (int64_t at = 0; at < count; ++at) {
    if (done[at]) continue;
    const int32_t media = media_of(p, b, first + at);
    const int n = rows_of(p, b, first, count, media, rows);
    float peak[ROWS], sum[ROWS];
    for (int r = 0; r < n; ++r) {
      done[rows[r] - first] = true;
      peak[r] = NONE;
      sum[r] = 0.0f;
      load(q.at(b, h, rows[r]), &s.q[r * d], d);
    }
    std::fill_n(s.acc.begin(), n * d, 0.0f);
    const Range range = media < 0 ? Range{0, 0} : latents_of(p, media);
    for (int64_t latent = range.begin; latent < range.end; latent += KEYS) {
      const int keys = static_cast<int>(std::min<int64_t>(KEYS, range.end - latent));
      for (int j = 0; j < keys; ++j) {
        load(k.at(b, h, latent + j), &s.k[j * d], d);
        load(v.at(b, h, latent + j), &s.v[j * d], d);
      }
      if (n == 1) {
        dots_one(s.q.data(), s.k.data(), s.score.data(), keys, d, p.scale);
      } else {
        transpose(s.k.data(), s.kt.data(), keys, d);
        dots(s.q.data(), s.kt.data(), s.score.data(), n, d, p.scale);
      }
      for (int r = 0; r < n; ++r) {
        float* score = &s.score[r * KEYS];
        const float top = highest(score, peak[r], keys);
        const float fix = top == peak[r] ? 1.0f : std::exp(peak[r] - top);
        const float total = exp_minus(score, top, keys);
        sum[r] = sum[r] * fix + total;
        peak[r] = top;
        if (fix != 1.0f) {
          for (int c = 0; c < d; ++c) s.acc[r * d + c] *= fix;
        }
      }
      weigh(s.score.data(), s.v.data(), s.acc.data(), n, keys, d);
    }
    for (int r = 0; r < n; ++r) {
      const float factor = sum[r] == 0.0f ? 0.0f : 1.0f / sum[r];
      T* to = out.at(b, h, rows[r]);
      for (int c = 0; c < d; ++c) to[c] = static_cast<T>(s.acc[r * d + c] * factor);
      lse[(b * p.heads + h) * p.tokens + rows[r]] = peak[r] + std::log(sum[r]);
    }
  }
}

// Unit `id` of B*H: a head's latents belong to one thread, so sums have one order. dq, dk, dv come
// zeroed; dkv of T precision is written once per latent.
template <typename T>
void backward_unit(int64_t id, const Problem& p, const View<const T>& q, const View<const T>& k,
                   const View<const T>& v, const View<const T>& out, const View<const T>& dout,
                   const float* lse, const View<T>& dq, const View<T>& dk, const View<T>& dv,
                   Scratch& s) {
  const int64_t h = id % p.heads, b = id / p.heads;
  const int d = p.width;
  std::vector<std::vector<int64_t>> seen(p.media);
  for (int64_t t = 0; t < p.tokens; ++t) {
    if (const int32_t m = media_of(p, b, t); m >= 0) seen[m].push_back(t);
  }
  std::vector<float> sum_q, sum_k(KEYS * d), sum_v(KEYS * d);
  for (int64_t m = 0; m < p.media; ++m) {
    const Range range = latents_of(p, m);
    const auto& rows = seen[m];
    if (rows.empty()) continue;
    sum_q.assign(rows.size() * d, 0.0f);
    for (int64_t latent = range.begin; latent < range.end; latent += KEYS) {
      const int keys = static_cast<int>(std::min<int64_t>(KEYS, range.end - latent));
      for (int j = 0; j < keys; ++j) {
        load(k.at(b, h, latent + j), &s.k[j * d], d);
        load(v.at(b, h, latent + j), &s.v[j * d], d);
      }
      transpose(s.k.data(), s.kt.data(), keys, d);
      transpose(s.v.data(), s.vt.data(), keys, d);
      std::fill(sum_k.begin(), sum_k.end(), 0.0f);
      std::fill(sum_v.begin(), sum_v.end(), 0.0f);
      for (size_t at = 0; at < rows.size(); at += ROWS) {
        const int n = static_cast<int>(std::min<size_t>(ROWS, rows.size() - at));
        for (int r = 0; r < n; ++r) {
          load(q.at(b, h, rows[at + r]), &s.q[r * d], d);
          load(dout.at(b, h, rows[at + r]), &s.g[r * d], d);
        }
        dots(s.q.data(), s.kt.data(), s.score.data(), n, d, p.scale);
        dots(s.g.data(), s.vt.data(), s.grad.data(), n, d, 1.0f);
        for (int r = 0; r < n; ++r) {
          const T* o = out.at(b, h, rows[at + r]);
          float delta = 0.0f;
          for (int c = 0; c < d; ++c) delta += s.g[r * d + c] * static_cast<float>(o[c]);
          exp_minus(&s.score[r * KEYS], lse[(b * p.heads + h) * p.tokens + rows[at + r]], keys);
          for (int j = 0; j < keys; ++j) {
            float& grad = s.grad[r * KEYS + j];
            grad = s.score[r * KEYS + j] * (grad - delta) * p.scale;
          }
        }
        weigh(s.grad.data(), s.k.data(), &sum_q[at * d], n, keys, d);
        weigh_rows(s.grad.data(), s.q.data(), sum_k.data(), n, keys, d);
        weigh_rows(s.score.data(), s.g.data(), sum_v.data(), n, keys, d);
      }
      for (int j = 0; j < keys; ++j) {
        T *to_k = dk.at(b, h, latent + j), *to_v = dv.at(b, h, latent + j);
        for (int c = 0; c < d; ++c) to_k[c] = static_cast<T>(sum_k[j * d + c]);
        for (int c = 0; c < d; ++c) to_v[c] = static_cast<T>(sum_v[j * d + c]);
      }
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      T* to = dq.at(b, h, rows[r]);
      for (int c = 0; c < d; ++c) to[c] = static_cast<T>(sum_q[r * d + c]);
    }
  }
}

}  // namespace flamvid::attention::cpu
