// Attention of few tokens to the latents of their media, of which keys and values are never made: a
// query goes through the weights of the keys to the latents, and what it takes of them through the
// weights of the values. Of T tokens that see one media of L latents it is 2 T / L of the work. No
// torch.
#pragma once

#include "../media_attention/cpu_core.h"
#include "../processor.h"
#include "../room.h"

namespace flamvid::latent {

inline constexpr int TOKENS = 64;     // at a time
inline constexpr int64_t PART = 256;  // of a latent's width at a time: its products stay in the cache
inline constexpr int64_t STEP = 16;   // widths and numbers of latents are multiples of it

struct Problem {
  const float* q;          // [tokens, heads * d]
  const float* latents;    // [media, count, width]
  const float* turned;     // [media, width, count]: the same
  const float* to_keys;    // [heads * d, width]
  const float* to_values;  // [width, heads * d]
  float* out;              // [tokens, heads * d]
  int64_t heads, d, count, width;
  float scale;
};

// What a thread needs for itself.
struct Scratch {
  std::vector<float> q, scores, part;
};

// Tokens that see one media, rows[first .. first + count].
struct Chunk {
  int64_t media, first;
  int count;
};

struct Plan {
  std::vector<int32_t> rows;  // of all tokens that see a media, by media
  std::vector<Chunk> chunks;  // at most TOKENS each

  Plan(const int32_t* index, int64_t tokens, int64_t media) {
    std::vector<int64_t> starts(media + 1);
    for (int64_t t = 0; t < tokens; ++t) {
      if (index[t] >= 0) ++starts[index[t] + 1];
    }
    for (int64_t m = 0; m < media; ++m) starts[m + 1] += starts[m];
    rows.resize(starts[media]);
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t t = 0; t < tokens; ++t) {
      if (index[t] >= 0) rows[next[index[t]]++] = static_cast<int32_t>(t);
    }
    for (int64_t m = 0; m < media; ++m) {
      for (int64_t at = starts[m]; at < starts[m + 1]; at += TOKENS) {
        const int64_t some = std::min<int64_t>(TOKENS, starts[m + 1] - at);
        chunks.push_back({m, at, static_cast<int>(some)});
      }
    }
  }
};

// The two of one instruction set.
struct Isa {
  // One head of a chunk, whose rows of `out` no other unit writes.
  void (*attend)(const Problem&, int64_t head, const Chunk&, const int32_t* rows, Scratch&);
  // to [columns][rows] = from [rows][columns], of those columns from `first` to `last`.
  void (*turn_columns)(const float* from, int64_t rows, int64_t columns, int64_t first, int64_t last,
                       float* to);
};

}  // namespace flamvid::latent

#define FLAMVID_BODY "latent_attention/isa.h"
#include "../each_isa.h"

namespace flamvid::latent {

// The best that this processor has.
inline Isa best_isa() { return FLAMVID_BEST(ISA); }

}  // namespace flamvid::latent
