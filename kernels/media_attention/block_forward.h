// Block programs of the forward pass: one for tiles of text rows, one for single rows (decoding).
//
// Work is S x L per head however many media there are: a tile visits only the media that its own
// rows see. The softmax is online (running peak and sum in float32); no [S, L] buffer exists.
#pragma once

#include "block_tiles.h"

namespace flamvid::attention {

template <int D>
struct ForwardShared {
  using S = Shape<D>;
  Tile<S::ROWS, D> q;
  Tile<S::KEYS, D> kv;  // keys for the scores, then values for the sum
  float score[S::ROWS][S::KEYS + 1];
  float weight[S::ROWS][S::KEYS + 1];
  MediaList<S::ROWS> media;
};

// The TX threads of a row all keep its peak and sum: the same operations in the same order, so the
// copies agree bit for bit and need no exchange.
template <int D>
struct ForwardState {
  float acc[Shape<D>::ROWS_EACH][Shape<D>::CHUNKS_EACH][4];
  float peak[Shape<D>::ROWS_EACH];
  float sum[Shape<D>::ROWS_EACH];
  float fix[Shape<D>::ROWS_EACH];  // what the newest peak makes of everything summed before
};

// Block `id` of B*H*ceil(S/ROWS), tiles of one head in succession: they share K and V in cache.
template <int D, typename T, class Block>
FLAMVID_BLOCK_FN void forward_block(Block& block, ForwardShared<D>& sh, int64_t id,
                                    const Problem& p, const View<const T>& q,
                                    const View<const T>& k, const View<const T>& v,
                                    const View<T>& out, float* lse) {
  using S = Shape<D>;
  constexpr int KEYS_EACH = S::KEYS / S::TX;
  const int64_t tiles = (p.tokens + S::ROWS - 1) / S::ROWS;
  const int64_t first = id % tiles * S::ROWS;
  const int64_t h = id / tiles % p.heads;
  const int64_t b = id / tiles / p.heads;

  block.phase([&](int thread, auto& my) {
    load_tile<S::ROWS, D>(thread, sh.q, q, b, h, first, p.tokens - first, p.width);
    if (thread < S::ROWS) sh.media.row[thread] = media_of(p, b, first + thread);
    FLAMVID_UNROLL
    for (int i = 0; i < S::ROWS_EACH; ++i) {
      my.peak[i] = -INFINITY;
      my.sum[i] = 0.0f;
      my.fix[i] = 1.0f;
      FLAMVID_UNROLL
      for (int n = 0; n < S::CHUNKS_EACH; ++n) {
        FLAMVID_UNROLL
        for (int e = 0; e < 4; ++e) my.acc[i][n][e] = 0.0f;
      }
    }
  });
  list_media(block, sh.media);

  const int count = sh.media.count;
  for (int m = 0; m < count; ++m) {
    const int32_t media = sh.media.list[m];
    const Range range = latents_of(p, media);
    for (int64_t latent = range.begin; latent < range.end; latent += S::KEYS) {
      const int keys = static_cast<int>(clamp(range.end - latent, 0, S::KEYS));

      block.phase([&](int thread, auto&) {
        load_tile<S::KEYS, D>(thread, sh.kv, k, b, h, latent, keys, p.width);
      });

      block.phase([&](int thread, auto&) {
        float dots[S::ROWS_EACH][KEYS_EACH];
        tile_dots<S::ROWS, S::KEYS, D>(thread, sh.q, sh.kv, dots);
        FLAMVID_UNROLL
        for (int i = 0; i < S::ROWS_EACH; ++i) {
          FLAMVID_UNROLL
          for (int n = 0; n < KEYS_EACH; ++n) {
            const int j = thread % S::TX + n * S::TX;
            sh.score[thread / S::TX + i * S::TY][j] = dots[i][n] * p.scale;
          }
        }
      });

      // The keys are spent: values take their place while the scores become weights.
      block.phase([&](int thread, auto& my) {
        load_tile<S::KEYS, D>(thread, sh.kv, v, b, h, latent, keys, p.width);
        FLAMVID_UNROLL
        for (int i = 0; i < S::ROWS_EACH; ++i) {
          const int r = thread / S::TX + i * S::TY;
          if (sh.media.row[r] != media) continue;
          float peak = my.peak[i];
          for (int j = 0; j < keys; ++j) peak = fmaxf(peak, sh.score[r][j]);
          my.fix[i] = expf(my.peak[i] - peak);
          my.peak[i] = peak;
          FLAMVID_UNROLL
          for (int n = 0; n < KEYS_EACH; ++n) {
            const int j = thread % S::TX + n * S::TX;
            sh.weight[r][j] = j < keys ? expf(sh.score[r][j] - peak) : 0.0f;
          }
        }
      });

      block.phase([&](int thread, auto& my) {
        FLAMVID_UNROLL
        for (int i = 0; i < S::ROWS_EACH; ++i) {
          const int r = thread / S::TX + i * S::TY;
          if (sh.media.row[r] != media) continue;
          float sum = 0.0f;
          FLAMVID_UNROLL
          for (int n = 0; n < S::CHUNKS_EACH; ++n) {
            FLAMVID_UNROLL
            for (int e = 0; e < 4; ++e) my.acc[i][n][e] *= my.fix[i];
          }
          for (int j = 0; j < keys; ++j) {
            const float weight = sh.weight[r][j];
            sum += weight;
            add_row<D>(thread % S::TX, weight, sh.kv[j], my.acc[i]);
          }
          my.sum[i] = my.sum[i] * my.fix[i] + sum;
        }
      });
    }
  }

  block.phase([&](int thread, auto& my) {
    const int tx = thread % S::TX;
    FLAMVID_UNROLL
    for (int i = 0; i < S::ROWS_EACH; ++i) {
      const int64_t row = first + thread / S::TX + i * S::TY;
      if (row >= p.tokens) continue;
      // A row that sees nothing is exactly 0. (A NaN sum is not 0: NaN stays NaN.)
      const float factor = my.sum[i] == 0.0f ? 0.0f : 1.0f / my.sum[i];
      FLAMVID_UNROLL
      for (int n = 0; n < S::CHUNKS_EACH; ++n) {
        store4(out.at(b, h, row), 4 * (tx + n * S::TX), p.width, out.packed, my.acc[i][n], factor);
      }
      if (tx == 0) lse[(b * p.heads + h) * p.tokens + row] = my.peak[i] + logf(my.sum[i]);
    }
  });
}

// Decoding: one row per block, so the parallelism comes from its latents. LANES threads share the
// dot product of one latent, then the threads of a channel split the latents between them.
template <int D>
struct DecodeShape {
  static constexpr int THREADS = 256;
  static constexpr int LANES = 16;
  static constexpr int KEYS = 64;
  static constexpr int PARTS = THREADS / D;
};

template <int D>
struct DecodeShared {
  using S = DecodeShape<D>;
  float q[D];
  float partial[S::KEYS][S::LANES + 1];
  float score[S::KEYS];
  float weight[S::KEYS];
  float out[S::PARTS][D];
};

struct DecodeState {
  float acc, peak, sum, fix;
};

// Block `id` of B*H*S.
template <int D, typename T, class Block>
FLAMVID_BLOCK_FN void decode_block(Block& block, DecodeShared<D>& sh, int64_t id, const Problem& p,
                                   const View<const T>& q, const View<const T>& k,
                                   const View<const T>& v, const View<T>& out, float* lse) {
  using S = DecodeShape<D>;
  const int64_t row = id % p.tokens;
  const int64_t h = id / p.tokens % p.heads;
  const int64_t b = id / p.tokens / p.heads;
  const int32_t media = media_of(p, b, row);
  const Range range = media < 0 ? Range{0, 0} : latents_of(p, media);

  block.phase([&](int thread, auto& my) {
    if (thread < D) {
      sh.q[thread] = thread < p.width ? static_cast<float>(q.at(b, h, row)[thread]) : 0.0f;
    }
    my = DecodeState{0.0f, -INFINITY, 0.0f, 1.0f};
  });

  for (int64_t latent = range.begin; latent < range.end; latent += S::KEYS) {
    const int keys = static_cast<int>(clamp(range.end - latent, 0, S::KEYS));

    block.phase([&](int thread, auto&) {
      const int lane = thread % S::LANES;
      for (int j = thread / S::LANES; j < keys; j += S::THREADS / S::LANES) {
        const T* key = k.at(b, h, latent + j);
        float dot = 0.0f;
        for (int c = lane; c < p.width; c += S::LANES) dot += sh.q[c] * static_cast<float>(key[c]);
        sh.partial[j][lane] = dot;
      }
    });

    block.phase([&](int thread, auto&) {
      if (thread >= keys) return;
      float dot = 0.0f;
      for (int lane = 0; lane < S::LANES; ++lane) dot += sh.partial[thread][lane];
      sh.score[thread] = dot * p.scale;
    });

    block.phase([&](int thread, auto& my) {
      float peak = my.peak;
      for (int j = 0; j < keys; ++j) peak = fmaxf(peak, sh.score[j]);
      my.fix = expf(my.peak - peak);
      my.peak = peak;
      if (thread < keys) sh.weight[thread] = expf(sh.score[thread] - peak);
    });

    block.phase([&](int thread, auto& my) {
      float sum = 0.0f;
      for (int j = 0; j < keys; ++j) sum += sh.weight[j];
      my.sum = my.sum * my.fix + sum;
      my.acc *= my.fix;
      const int channel = thread % D;
      if (channel >= p.width) return;
      for (int j = thread / D; j < keys; j += S::PARTS) {
        my.acc += sh.weight[j] * static_cast<float>(v.at(b, h, latent + j)[channel]);
      }
    });
  }

  block.phase([&](int thread, auto& my) { sh.out[thread / D][thread % D] = my.acc; });
  block.phase([&](int thread, auto& my) {
    if (thread == 0) lse[(b * p.heads + h) * p.tokens + row] = my.peak + logf(my.sum);
    if (thread >= p.width) return;
    float total = 0.0f;
    for (int part = 0; part < S::PARTS; ++part) total += sh.out[part][thread];
    const float factor = my.sum == 0.0f ? 0.0f : 1.0f / my.sum;
    out.at(b, h, row)[thread] = static_cast<T>(total * factor);
  });
}

}  // namespace flamvid::attention
