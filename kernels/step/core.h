// One layer's part of a decoding step: a norm, products with few rows, attention of one token for
// each row, and the sum, with all threads from the first to the last; no torch.
//
// Written in separate operations, threads are woken and put to wait a dozen times in a layer, and
// most of a token's time goes by between the products, which are as quick as memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../linear_few/core.h"
#include "../linear_int8/core.h"
#include "../processor.h"
#include "../room.h"
#include "../view.h"
#include "team.h"

namespace flamvid::step {

using flamvid::View;

inline constexpr int64_t PIECE = 8;  // outputs that `few::outputs` makes at a time

// A layer norm, or a norm of root mean squares; weight null: none; bias may be null.
struct Norm {
  const float* weight;
  const float* bias;
  float eps;
  bool rms;
};

// Weights [outputs, width] in float32, or, where `wide` is null, in eight bits.
struct Dense {
  const float* wide;
  linear::Weights int8;
  int64_t outputs, width;
};

enum class Activation { relu, squared_relu, gelu, silu_gated };

// x + gate down(activation(up(norm(x)))). silu_gated: silu of the first half of `up` times the other.
struct Feed {
  Norm norm;
  Dense up, down;
  Activation activation;
  float gate;
  const float* x;  // [rows, width]
  float* wide;     // [rows, up.outputs]
  float* hidden;   // [rows, down.width]; may be `wide`
  float* out;      // [rows, width]
  int64_t rows, width;
};

// x + gate out(attention(q(norm(x)), media)); a row sees `latents` keys from index * latents on.
struct Cross {
  Norm norm;
  Dense to_q, to_out;
  float gate, scale;
  View<const float> keys, values;
  const int32_t* index;       // [rows]; -1 sees nothing
  int64_t start;              // of the first media that has keys
  int64_t latents, rows_each;  // so many rows in succession look at the same media
  int64_t heads, d;
  const float* x;
  float *q, *attended;  // [rows, heads * d]
  float* out;
  int64_t rows, width;
};

// x + out(attention(qkv(norm(x)))), whose keys and values go to the cache first.
struct Self {
  Norm norm, q_norm, k_norm;
  Dense qkv, to_out;
  const float *cosine, *sine;  // [rows or 1, d] of a rotary embedding; null: none
  int64_t turn_step;           // d, or 0 where all rows have the same
  const float* slopes;         // [heads] of ALiBi; null: none
  View<float> keys, values;    // [rows / each, groups, length + each at least, d]
  const uint8_t* real;         // [rows / each, length + each]: which keys may be seen; null: all
  int64_t length, each;        // of the cache, before so many rows in succession: a text's next tokens
  int64_t heads, groups, d;
  float scale;
  const float* x;
  float* mixed;     // [rows, (heads + 2 groups) * d]
  float* attended;  // [rows, heads * d]
  float* out;
  int64_t rows, width;
};

// What a thread needs for itself.
struct Scratch {
  std::vector<float> normed, sums, scores, q, k;
};

// The three of one instruction set.
struct Isa {
  void (*feed)(const Feed&, Team&, int64_t, Scratch&);
  void (*cross)(const Cross&, Team&, int64_t, Scratch&);
  void (*self)(const Self&, Team&, int64_t, Scratch&);
};

}  // namespace flamvid::step

#define FLAMVID_BODY "step/isa.h"
#include "../each_isa.h"

namespace flamvid::step {

// The best that this processor has.
inline Isa best_isa() { return FLAMVID_BEST(ISA); }

}  // namespace flamvid::step
