// Block programs of the backward pass: dq by tiles of text rows; dk and dv by tiles of latents.
//
// With P = exp(scale q.k - lse) and delta = dout.out:  dS = P (dout.v - delta) scale,
// dq = dS k, dk = dS^T q, dv = P^T dout. Each gradient element is summed by one thread in a fixed
// order: no atomics, bit-identical from run to run.
#pragma once

#include "block_tiles.h"

namespace flamvid::attention {

template <int D>
struct BackwardShared {
  using S = Shape<D>;
  Tile<S::ROWS, D> q, dout;
  Tile<S::ROWS, D> k, v;  // ROWS latents
  float p[S::ROWS][S::ROWS + 1];
  float ds[S::ROWS][S::ROWS + 1];
  float partial[S::ROWS][S::TX];  // of delta
  float lse[S::ROWS];
  float delta[S::ROWS];
  int32_t sees[S::ROWS];  // whether a row sees the media whose latents are loaded
  MediaList<S::ROWS> media;
};

template <int D>
struct QueryGradState {
  float dq[Shape<D>::ROWS_EACH][Shape<D>::CHUNKS_EACH][4];
};

template <int D>
struct KeyGradState {
  float dk[Shape<D>::ROWS_EACH][Shape<D>::CHUNKS_EACH][4];
  float dv[Shape<D>::ROWS_EACH][Shape<D>::CHUNKS_EACH][4];
};

// P and dS of the loaded text rows and latents; 0 where the row does not see the latent.
template <int D>
FLAMVID_BLOCK_FN void score_gradients(int thread, BackwardShared<D>& sh, int keys, float scale) {
  using S = Shape<D>;
  constexpr int KEYS_EACH = (S::ROWS + S::TX - 1) / S::TX;
  float scores[S::ROWS_EACH][KEYS_EACH];
  float dp[S::ROWS_EACH][KEYS_EACH];
  tile_dots<S::ROWS, S::ROWS, D>(thread, sh.q, sh.k, scores);
  tile_dots<S::ROWS, S::ROWS, D>(thread, sh.dout, sh.v, dp);
  FLAMVID_UNROLL
  for (int i = 0; i < S::ROWS_EACH; ++i) {
    const int r = thread / S::TX + i * S::TY;
    FLAMVID_UNROLL
    for (int n = 0; n < KEYS_EACH; ++n) {
      const int j = thread % S::TX + n * S::TX;
      if (j >= S::ROWS) continue;
      const bool seen = sh.sees[r] != 0 && j < keys;
      const float weight = seen ? expf(scores[i][n] * scale - sh.lse[r]) : 0.0f;
      sh.p[r][j] = weight;
      sh.ds[r][j] = seen ? weight * (dp[i][n] - sh.delta[r]) * scale : 0.0f;
    }
  }
}

// Block `id` of B*H*ceil(S/ROWS). Also writes delta [B,H,S], which the dk/dv kernel reads.
template <int D, typename T, class Block>
FLAMVID_BLOCK_FN void query_grad_block(Block& block, BackwardShared<D>& sh, int64_t id,
                                       const Problem& p, const View<const T>& q,
                                       const View<const T>& k, const View<const T>& v,
                                       const View<const T>& out, const View<const T>& dout,
                                       const float* lse, float* delta, const View<T>& dq) {
  using S = Shape<D>;
  const int64_t tiles = (p.tokens + S::ROWS - 1) / S::ROWS;
  const int64_t first = id % tiles * S::ROWS;
  const int64_t h = id / tiles % p.heads;
  const int64_t b = id / tiles / p.heads;
  const int64_t rows = p.tokens - first;  // may exceed ROWS
  const int64_t stats = (b * p.heads + h) * p.tokens + first;

  block.phase([&](int thread, auto& my) {
    load_tile<S::ROWS, D>(thread, sh.q, q, b, h, first, rows, p.width);
    load_tile<S::ROWS, D>(thread, sh.dout, dout, b, h, first, rows, p.width);
    if (thread < S::ROWS) {
      sh.media.row[thread] = media_of(p, b, first + thread);
      sh.lse[thread] = thread < rows ? lse[stats + thread] : 0.0f;
    }
    FLAMVID_UNROLL
    for (int i = 0; i < S::ROWS_EACH; ++i) {
      FLAMVID_UNROLL
      for (int n = 0; n < S::CHUNKS_EACH; ++n) {
        FLAMVID_UNROLL
        for (int e = 0; e < 4; ++e) my.dq[i][n][e] = 0.0f;
      }
    }
  });

  block.phase([&](int thread, auto&) {
    const int tx = thread % S::TX;
    FLAMVID_UNROLL
    for (int i = 0; i < S::ROWS_EACH; ++i) {
      const int r = thread / S::TX + i * S::TY;
      float sum = 0.0f;
      if (r < rows) {
        const T* row = out.at(b, h, first + r);
        for (int c = tx; c < S::CHUNKS; c += S::TX) {
          const Vec4 value = load4(row, 4 * c, p.width, out.packed);
          const Vec4 grad = sh.dout[r][c];
          FLAMVID_UNROLL
          for (int e = 0; e < 4; ++e) sum += value.x[e] * grad.x[e];
        }
      }
      sh.partial[r][tx] = sum;
    }
  });
  block.phase([&](int thread, auto&) {
    if (thread >= S::ROWS) return;
    float sum = 0.0f;
    for (int x = 0; x < S::TX; ++x) sum += sh.partial[thread][x];
    sh.delta[thread] = sum;
    if (thread < rows) delta[stats + thread] = sum;
  });
  list_media(block, sh.media);

  const int count = sh.media.count;
  for (int m = 0; m < count; ++m) {
    const int32_t media = sh.media.list[m];
    const Range range = latents_of(p, media);
    for (int64_t latent = range.begin; latent < range.end; latent += S::ROWS) {
      const int keys = static_cast<int>(clamp(range.end - latent, 0, S::ROWS));

      block.phase([&](int thread, auto&) {
        load_tile<S::ROWS, D>(thread, sh.k, k, b, h, latent, keys, p.width);
        load_tile<S::ROWS, D>(thread, sh.v, v, b, h, latent, keys, p.width);
        if (thread < S::ROWS) sh.sees[thread] = sh.media.row[thread] == media ? 1 : 0;
      });
      block.phase([&](int thread, auto&) { score_gradients<D>(thread, sh, keys, p.scale); });
      block.phase([&](int thread, auto& my) {
        FLAMVID_UNROLL
        for (int i = 0; i < S::ROWS_EACH; ++i) {
          const int r = thread / S::TX + i * S::TY;
          if (sh.sees[r] == 0) continue;
          for (int j = 0; j < keys; ++j) {
            add_row<D>(thread % S::TX, sh.ds[r][j], sh.k[j], my.dq[i]);
          }
        }
      });
    }
  }

  block.phase([&](int thread, auto& my) {
    FLAMVID_UNROLL
    for (int i = 0; i < S::ROWS_EACH; ++i) {
      const int r = thread / S::TX + i * S::TY;
      if (r >= rows) continue;
      FLAMVID_UNROLL
      for (int n = 0; n < S::CHUNKS_EACH; ++n) {
        store4(dq.at(b, h, first + r), 4 * (thread % S::TX + n * S::TX), p.width, dq.packed,
               my.dq[i][n], 1.0f);
      }
    }
  });
}

// Blocks per head of the dk/dv kernel. Media m starts at slot offsets[m] / ROWS + m: always room
// for its tiles, whatever the counts, and the launch needs only sizes that the CPU knows. A slot
// past the tiles of its media has no work.
template <int D>
int64_t key_grad_slots(int64_t latents, int64_t media) {
  return latents / Shape<D>::ROWS + media;
}

template <int D>
FLAMVID_BLOCK_FN int64_t first_slot(const Problem& p, int64_t media) {
  return latents_of(p, media).begin / Shape<D>::ROWS + media;
}

// Block `id` of B*H*slots: all text rows that see the media of one tile of latents, in order.
template <int D, typename T, class Block>
FLAMVID_BLOCK_FN void key_grad_block(Block& block, BackwardShared<D>& sh, int64_t id, int64_t slots,
                                     const Problem& p, const View<const T>& q,
                                     const View<const T>& k, const View<const T>& v,
                                     const View<const T>& dout, const float* lse,
                                     const float* delta, const View<T>& dk, const View<T>& dv) {
  using S = Shape<D>;
  const int64_t slot = id % slots;
  const int64_t h = id / slots % p.heads;
  const int64_t b = id / slots / p.heads;

  // The last media that starts at or before the slot, by bisection.
  int64_t media = 0;
  for (int64_t high = p.media; high - media > 1;) {
    const int64_t middle = (media + high) / 2;
    if (first_slot<D>(p, middle) <= slot) {
      media = middle;
    } else {
      high = middle;
    }
  }
  const Range range = latents_of(p, media);
  const int64_t latent = range.begin + (slot - first_slot<D>(p, media)) * S::ROWS;
  if (latent < range.begin || latent >= range.end) return;  // the same in all threads
  const int keys = static_cast<int>(clamp(range.end - latent, 0, S::ROWS));

  block.phase([&](int thread, auto& my) {
    load_tile<S::ROWS, D>(thread, sh.k, k, b, h, latent, keys, p.width);
    load_tile<S::ROWS, D>(thread, sh.v, v, b, h, latent, keys, p.width);
    FLAMVID_UNROLL
    for (int i = 0; i < S::ROWS_EACH; ++i) {
      FLAMVID_UNROLL
      for (int n = 0; n < S::CHUNKS_EACH; ++n) {
        FLAMVID_UNROLL
        for (int e = 0; e < 4; ++e) my.dk[i][n][e] = my.dv[i][n][e] = 0.0f;
      }
    }
  });

  for (int64_t first = 0; first < p.tokens; first += S::ROWS) {
    const int64_t rows = p.tokens - first;
    const int64_t stats = (b * p.heads + h) * p.tokens + first;
    const bool seen = block.any([&](int thread, auto&) {
      if (thread >= S::ROWS) return false;
      const bool sees = media_of(p, b, first + thread) == media;
      sh.sees[thread] = sees ? 1 : 0;
      return sees;
    });
    if (!seen) continue;  // most tiles: a media is seen by one stretch of text

    block.phase([&](int thread, auto&) {
      load_tile<S::ROWS, D>(thread, sh.q, q, b, h, first, rows, p.width);
      load_tile<S::ROWS, D>(thread, sh.dout, dout, b, h, first, rows, p.width);
      if (thread < S::ROWS) {
        sh.lse[thread] = thread < rows ? lse[stats + thread] : 0.0f;
        sh.delta[thread] = thread < rows ? delta[stats + thread] : 0.0f;
      }
    });
    block.phase([&](int thread, auto&) { score_gradients<D>(thread, sh, keys, p.scale); });
    block.phase([&](int thread, auto& my) {
      for (int r = 0; r < S::ROWS; ++r) {
        if (sh.sees[r] == 0) continue;
        FLAMVID_UNROLL
        for (int i = 0; i < S::ROWS_EACH; ++i) {
          const int j = thread / S::TX + i * S::TY;
          add_row<D>(thread % S::TX, sh.p[r][j], sh.dout[r], my.dv[i]);
          add_row<D>(thread % S::TX, sh.ds[r][j], sh.q[r], my.dk[i]);
        }
      }
    });
  }

  block.phase([&](int thread, auto& my) {
    FLAMVID_UNROLL
    for (int i = 0; i < S::ROWS_EACH; ++i) {
      const int j = thread / S::TX + i * S::TY;
      if (j >= keys) continue;
      FLAMVID_UNROLL
      for (int n = 0; n < S::CHUNKS_EACH; ++n) {
        const int channel = 4 * (thread % S::TX + n * S::TX);
        store4(dk.at(b, h, latent + j), channel, p.width, dk.packed, my.dk[i][n], 1.0f);
        store4(dv.at(b, h, latent + j), channel, p.width, dv.packed, my.dv[i][n], 1.0f);
      }
    }
  });
}

}  // namespace flamvid::attention
