// Attention of a text to itself and what was read of it before: each token sees those before it, by
// tiles, of which the ones that nobody sees are left out; no torch.
#pragma once

#include "../media_attention/cpu_core.h"
#include "../processor.h"
#include "../view.h"

namespace flamvid::causal {

using flamvid::View;

inline constexpr int ROWS = attention::cpu::ROWS;  // tokens of a unit
inline constexpr int KEYS = attention::cpu::KEYS;
inline constexpr int WIDEST = attention::cpu::WIDTH;
inline constexpr int64_t STEP = 16;  // d is a multiple of it

struct Problem {
  View<const float> q;             // [batch, heads, tokens, d]: the last of all
  View<const float> keys, values;  // [batch, groups, length, d]
  View<float> out;                 // as q
  const float* slopes;             // [heads] of ALiBi: bias of a key for each place nearer; null: none
  const uint8_t* real;             // [batch, length]: which keys may be seen; null: all
  int64_t heads, groups, tokens, length, d;
  float scale;
};

struct alignas(64) Scratch {
  float q[ROWS * WIDEST], turned[ROWS * WIDEST], scores[KEYS * ROWS], out[ROWS * WIDEST];
};

}  // namespace flamvid::causal

#define FLAMVID_BODY "causal_attention/isa.h"
#include "../each_isa.h"

namespace flamvid::causal {

// Up to ROWS tokens of one head, from `first` on, whose rows of `out` no other unit writes.
using Attend = void (*)(const Problem&, int64_t b, int64_t head, int64_t first, Scratch&);

// The best that this processor has.
inline Attend best_attend() { return FLAMVID_BEST(attend); }

}  // namespace flamvid::causal
