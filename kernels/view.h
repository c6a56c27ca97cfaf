// Queries, keys or values of attention as they lie.
#pragma once

#include <cstdint>

namespace flamvid {

// [batch, heads, length, d], d contiguous.
template <typename T>
struct View {
  T* data;
  int64_t batch, head, row;

  T* at(int64_t b, int64_t h, int64_t k) const { return data + b * batch + h * head + k * row; }
};

}  // namespace flamvid
