// A float32 linear layer for the few rows of a decoding step; no torch.
//
// Writing a text reads every weight once for each token and does little with it: this is as quick
// as memory is. BLAS packs the weights first, or goes to one core, or knows no AVX-512 here.
#pragma once

#include <cstdint>

#include "../processor.h"

namespace flamvid::few {

struct Problem {
  const float* x;        // [rows, width]
  const float* weights;  // [outputs, width]
  float* out;            // [rows, outputs]
  int64_t rows, width, outputs;
};

}  // namespace flamvid::few

#define FLAMVID_BODY "linear_few/isa.h"
#include "../each_isa.h"

namespace flamvid::few {

using Outputs = void (*)(const Problem&, int64_t, int64_t);

// The best that this processor has.
inline Outputs best_outputs() { return FLAMVID_BEST(outputs); }

}  // namespace flamvid::few
