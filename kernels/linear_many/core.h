// A float32 linear layer for the many rows of a prompt; no torch.
//
// The weights of 64 outputs at a time are turned into the cache, where some hundred rows go through
// them; those of the next are called for meanwhile. oneDNN turns all of them into memory first.
#pragma once

#include "../media_attention/cpu_core.h"
#include "../processor.h"
#include "../room.h"

namespace flamvid::dense {

inline constexpr int PANEL = 64;       // outputs at a time
inline constexpr int64_t STEP = 16;    // width and outputs are multiples of it
inline constexpr int64_t DEPTH = 512;  // of the width at a time: a panel of it stays in the cache
inline constexpr int64_t ROWS = 288;   // at a time at most: their part of the width stays there too
inline constexpr int64_t LEAST = 48;   // for fewer it takes too long to turn the weights

struct Problem {
  const float* x;        // [rows, width]
  const float* weights;  // [outputs, width]
  const float* bias;     // [outputs], or null
  float* out;            // [rows, outputs]
  int64_t rows, width, outputs;
  bool gelu;
  int64_t blocks;  // of rows

  int64_t panels() const { return (outputs + PANEL - 1) / PANEL; }
  // Where even blocks of rows, and even parts of the width, begin.
  int64_t row(int64_t block) const { return rows * block / blocks; }
  int64_t parts() const { return (width + DEPTH - 1) / DEPTH; }
  int64_t column(int64_t part) const { return width / STEP * part / parts() * STEP; }
};

// Blocks of so many rows and panels that each of some threads has one to do, if there is work for all.
inline int64_t blocks_of(int64_t rows, int64_t panels, int64_t threads) {
  const int64_t least = (rows + ROWS - 1) / ROWS, most = rows / LEAST;
  return std::max(least, std::min(most, (threads + panels - 1) / std::max<int64_t>(panels, 1)));
}

}  // namespace flamvid::dense

#define FLAMVID_BODY "linear_many/isa.h"
#include "../each_isa.h"

namespace flamvid::dense {

// The outputs of a panel for the rows of a block; `own` is scratch of the thread.
using Outputs = void (*)(const Problem&, int64_t block, int64_t panel, std::vector<float>& own);

// The best that this processor has.
inline Outputs best_outputs() { return FLAMVID_BEST(outputs); }

}  // namespace flamvid::dense
