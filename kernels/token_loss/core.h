// The softmax loss of tokens, and its gradient written over their logits; no torch.
//
// A vocabulary has fifty thousand columns: in separate operations its logits go through memory a
// dozen times. Here a row stays in the cache from its maximum to its gradient.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../processor.h"

namespace flamvid::token_loss {

// A bfloat16: the upper half of a float.
struct Half {
  uint16_t bits;
};

// Of one row and its target: gives the loss. `room` has a float for each column.
struct Isa {
  float (*wide)(float* row, int64_t columns, int64_t target, float* room);
  float (*half)(Half* row, int64_t columns, int64_t target, float* room);
};

}  // namespace flamvid::token_loss

#define FLAMVID_BODY "token_loss/isa.h"
#include "../each_isa.h"

namespace flamvid::token_loss {

// The best that this processor has.
inline Isa best_isa() { return FLAMVID_BEST(ISA); }

}  // namespace flamvid::token_loss
