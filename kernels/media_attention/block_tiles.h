// Tiles, views and the problem's arithmetic, shared by the forward and backward block programs.
//
// Legend: B batch, H heads, S text tokens, M media, d head width, D = d rounded up to 32..256.
// A block owns ROWS rows; a thread (ty, tx) of the TY x TX grid owns rows ty, ty+TY, ... and,
// where it accumulates, the groups of four channels tx, tx+TX, ... of those rows.
#pragma once

#include <cstdint>

#include "../block.h"

namespace flamvid::attention {

// Four floats: one 16-byte access to shared memory.
struct alignas(16) Vec4 {
  float x[4];
};

template <typename T>
struct alignas(4 * sizeof(T)) Pack {
  T x[4];
};

// A [B,H,rows,d] tensor whose last dimension is contiguous; strides count elements.
template <typename T>
struct View {
  T* data;
  int64_t batch, head, row;
  bool packed;  // every row starts at a multiple of 4 elements and d is one: 4 at a time

  FLAMVID_BLOCK_FN T* at(int64_t b, int64_t h, int64_t r) const {
    return data + b * batch + h * head + r * row;
  }
};

struct Problem {
  int64_t heads, tokens, media, latents;  // latents: of all media together
  int width;
  const int32_t* index;    // [B,S]: the media of each token; < 0 or >= M: none
  const int64_t* offsets;  // [M+1]: media m owns latents offsets[m] .. offsets[m+1]
  float scale;
};

struct Range {
  int64_t begin, end;
};

FLAMVID_BLOCK_FN int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : (x > high ? high : x);
}

// Clamped: whatever stands in `offsets`, no latent outside the tensor is ever read or written.
FLAMVID_BLOCK_FN Range latents_of(const Problem& p, int64_t media) {
  const int64_t begin = clamp(p.offsets[media], 0, p.latents);
  return {begin, clamp(p.offsets[media + 1], begin, p.latents)};
}

// The media that a token sees; -1 for none, for an index out of range and past the last token.
FLAMVID_BLOCK_FN int32_t media_of(const Problem& p, int64_t b, int64_t token) {
  if (token >= p.tokens) return -1;
  const int32_t media = p.index[b * p.tokens + token];
  return media < 0 || media >= p.media ? -1 : media;
}

// Block sizes per padded width. ROWS: text rows of a tile, and latents of a tile in the backward
// pass; KEYS: latents of a tile in the forward pass. All shared memory stays below 48 KiB, which
// every GPU grants without an opt-in.
template <int D>
struct Shape {
  static_assert(D == 32 || D == 64 || D == 128 || D == 256);
  static constexpr int CHUNKS = D / 4;
  static constexpr int TX = D == 32 ? 8 : 16;
  static constexpr int TY = D == 256 ? 8 : 16;
  static constexpr int THREADS = TX * TY;
  static constexpr int ROWS = D <= 64 ? 32 : (D == 128 ? 16 : 8);
  static constexpr int KEYS = D == 256 ? 16 : 32;
  static constexpr int ROWS_EACH = ROWS / TY;       // rows per thread
  static constexpr int CHUNKS_EACH = CHUNKS / TX;   // groups of four channels per thread
};

// One more Vec4 per row than needed: 8 threads that read 8 successive rows hit all 32 banks once.
template <int N, int D>
using Tile = Vec4[N][D / 4 + 1];

template <typename T>
FLAMVID_BLOCK_FN Vec4 load4(const T* row, int channel, int width, bool packed) {
  Vec4 out{{0.0f, 0.0f, 0.0f, 0.0f}};
  if (packed) {
    if (channel < width) {
      const Pack<T> four = *reinterpret_cast<const Pack<T>*>(row + channel);
      FLAMVID_UNROLL
      for (int e = 0; e < 4; ++e) out.x[e] = static_cast<float>(four.x[e]);
    }
    return out;
  }
  FLAMVID_UNROLL
  for (int e = 0; e < 4; ++e) {
    if (channel + e < width) out.x[e] = static_cast<float>(row[channel + e]);
  }
  return out;
}

template <typename T>
FLAMVID_BLOCK_FN void store4(T* row, int channel, int width, bool packed, const float (&value)[4],
                             float factor) {
  if (packed) {
    if (channel < width) {
      Pack<T> four;
      FLAMVID_UNROLL
      for (int e = 0; e < 4; ++e) four.x[e] = static_cast<T>(value[e] * factor);
      *reinterpret_cast<Pack<T>*>(row + channel) = four;
    }
    return;
  }
  FLAMVID_UNROLL
  for (int e = 0; e < 4; ++e) {
    if (channel + e < width) row[channel + e] = static_cast<T>(value[e] * factor);
  }
}

// Rows first .. first+count of one head into a tile, 0 where there is no row or no channel.
// Successive threads read successive groups of four channels: coalesced.
template <int N, int D, typename T>
FLAMVID_BLOCK_FN void load_tile(int thread, Tile<N, D>& tile, const View<T>& view, int64_t b,
                                int64_t h, int64_t first, int64_t count, int width) {
  for (int e = thread; e < N * Shape<D>::CHUNKS; e += Shape<D>::THREADS) {
    const int r = e / Shape<D>::CHUNKS;
    const int c = e % Shape<D>::CHUNKS;
    Vec4 value{{0.0f, 0.0f, 0.0f, 0.0f}};
    if (r < count) value = load4(view.at(b, h, first + r), 4 * c, width, view.packed);
    tile[r][c] = value;
  }
}

// dots[i][n] = row (ty + i TY) of `rows` . row (tx + n TX) of `keys`.
template <int N, int K, int D, int I, int J>
FLAMVID_BLOCK_FN void tile_dots(int thread, const Tile<N, D>& rows, const Tile<K, D>& keys,
                                float (&dots)[I][J]) {
  using S = Shape<D>;
  const int tx = thread % S::TX;
  const int ty = thread / S::TX;
  FLAMVID_UNROLL
  for (int i = 0; i < I; ++i) {
    FLAMVID_UNROLL
    for (int n = 0; n < J; ++n) dots[i][n] = 0.0f;
  }
  for (int c = 0; c < S::CHUNKS; ++c) {
    Vec4 a[I];
    Vec4 b[J];
    FLAMVID_UNROLL
    for (int i = 0; i < I; ++i) a[i] = rows[ty + i * S::TY][c];
    FLAMVID_UNROLL
    for (int n = 0; n < J; ++n) {
      // A tile may have fewer rows than TX: such a thread reads row 0 and its dot is not used.
      const int j = tx + n * S::TX;
      b[n] = keys[j < K ? j : 0][c];
    }
    FLAMVID_UNROLL
    for (int i = 0; i < I; ++i) {
      FLAMVID_UNROLL
      for (int n = 0; n < J; ++n) {
        FLAMVID_UNROLL
        for (int e = 0; e < 4; ++e) dots[i][n] += a[i].x[e] * b[n].x[e];
      }
    }
  }
}

// acc += weight * (this thread's channels of a tile's row).
template <int D>
FLAMVID_BLOCK_FN void add_row(int tx, float weight, const Vec4 (&row)[D / 4 + 1],
                              float (&acc)[Shape<D>::CHUNKS_EACH][4]) {
  FLAMVID_UNROLL
  for (int n = 0; n < Shape<D>::CHUNKS_EACH; ++n) {
    const Vec4 value = row[tx + n * Shape<D>::TX];
    FLAMVID_UNROLL
    for (int e = 0; e < 4; ++e) acc[n][e] += weight * value.x[e];
  }
}

// The distinct media of a tile's rows, in order of first appearance. Any index is right, sorted or
// not; in practice a tile of 32 tokens sees one to three media.
template <int N>
struct MediaList {
  int32_t row[N];  // media of each row, -1 for none
  int32_t first[N];
  int32_t list[N];
  int32_t count;
};

template <int N, class Block>
FLAMVID_BLOCK_FN void list_media(Block& block, MediaList<N>& media) {
  block.phase([&](int thread, auto&) {
    if (thread >= N) return;
    bool first = media.row[thread] >= 0;
    for (int r = 0; r < thread; ++r) first = first && media.row[r] != media.row[thread];
    media.first[thread] = first ? 1 : 0;
  });
  block.phase([&](int thread, auto&) {
    if (thread >= N) return;
    int32_t before = 0;
    for (int r = 0; r < thread; ++r) before += media.first[r];
    if (media.first[thread] != 0) media.list[before] = media.row[thread];
    if (thread == N - 1) media.count = before + media.first[thread];
  });
}

}  // namespace flamvid::attention
