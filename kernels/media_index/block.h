// Block program of media_index: one block per row of tokens, a prefix sum tile by tile.
#pragma once

#include "../block.h"

namespace flamvid::index {

inline constexpr int THREADS = 256;

struct Shared {
  int32_t scan[2][THREADS];  // two buffers: a step of the scan reads one and writes the other
};

struct State {};

// ids [B,S] contiguous; `before` [B] or null: media that stand before the first of these tokens,
// as in decoding with a cache. previous: the last media at or before a token; next: the first at
// or after it; -1 where there is none.
template <typename Id, class Block>
FLAMVID_BLOCK_FN void index_block(Block& block, Shared& sh, int64_t row, int64_t tokens,
                                  const Id* ids, int64_t media_token_id, bool next,
                                  const int32_t* before, int32_t* out) {
  const Id* row_ids = ids + row * tokens;
  int32_t* row_out = out + row * tokens;
  const int32_t start = before == nullptr ? 0 : before[row];

  int32_t total = start;
  for (int64_t first = 0; next && first < tokens; first += THREADS) {
    total += block.count([&](int thread, auto&) {
      return first + thread < tokens && row_ids[first + thread] == media_token_id;
    });
  }

  int32_t seen = start;
  for (int64_t first = 0; first < tokens; first += THREADS) {
    seen += block.count([&](int thread, auto&) {
      const bool is_media = first + thread < tokens && row_ids[first + thread] == media_token_id;
      sh.scan[0][thread] = is_media ? 1 : 0;
      return is_media;
    });
    int from = 0;
    for (int step = 1; step < THREADS; step *= 2, from = 1 - from) {
      block.phase([&](int thread, auto&) {
        const int32_t left = thread >= step ? sh.scan[from][thread - step] : 0;
        sh.scan[1 - from][thread] = sh.scan[from][thread] + left;
      });
    }
    // `seen` already counts this whole tile; the scan's last entry takes it back to the start.
    block.phase([&](int thread, auto&) {
      if (first + thread >= tokens) return;
      const int32_t upto = seen - sh.scan[from][THREADS - 1] + sh.scan[from][thread];
      if (!next) {
        row_out[first + thread] = upto - 1;
        return;
      }
      const int32_t following = upto - (row_ids[first + thread] == media_token_id ? 1 : 0);
      row_out[first + thread] = following < total ? following : -1;
    });
  }
}

}  // namespace flamvid::index
