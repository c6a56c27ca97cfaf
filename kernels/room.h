// Floats that a thread needs for itself, kept from call to call of it.
#pragma once

#include <cstdint>
#include <vector>

namespace flamvid {

// `size` floats from the beginning of a cache line on: no vector of them lies on two.
inline float* room(std::vector<float>& buffer, int64_t size) {
  constexpr int64_t LINE = 64 / sizeof(float);
  if (static_cast<int64_t>(buffer.size()) < size + LINE) buffer.resize(size + LINE);
  const auto at = reinterpret_cast<uintptr_t>(buffer.data());
  return buffer.data() + (64 - at % 64) % 64 / sizeof(float);
}

}  // namespace flamvid
