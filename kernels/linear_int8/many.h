// The int8 linear layer of many rows, as of a short prompt: a few weights are widened at a time and
// go through all rows while they are in the cache. Widened as a whole they are written to memory and
// read from there, which takes as long as the product of thirty rows; no torch.
#pragma once

#include <vector>

#include "../media_attention/cpu_core.h"
#include "../room.h"
#include "core.h"

namespace flamvid::linear::many {

inline constexpr int BLOCK = 24;     // weight rows
inline constexpr int64_t ROWS = 16;  // the pitch of turned rows is a multiple of it

struct Problem {
  const float* x;  // [rows, width]
  Weights weights;
  float* out;  // [rows, outputs]
  int64_t rows, pitch, width, outputs;
};

// What a thread needs for itself.
struct Scratch {
  std::vector<float> wide, out;
};

// The two of one instruction set.
struct Isa {
  // turned [width, pitch], zeros behind the rows, of those columns of x from `first` to `last`.
  void (*turn_rows)(const Problem&, int64_t first, int64_t last, float* turned);
  // Weight rows `first` to `last` times all rows of x.
  void (*outputs)(const Problem&, const float* turned, int64_t first, int64_t last, Scratch&);
};

}  // namespace flamvid::linear::many

#define FLAMVID_BODY "linear_int8/many_isa.h"
#include "../each_isa.h"

namespace flamvid::linear::many {

// The best that this processor has.
inline Isa best_isa() { return FLAMVID_BEST(ISA); }

}  // namespace flamvid::linear::many
