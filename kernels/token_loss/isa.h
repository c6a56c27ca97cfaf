// The softmax loss of a row for one instruction set; core.h includes this once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace), FLAMVID_FN (the attributes of
// its functions) and FLAMVID_LANES (floats of a vector).

namespace flamvid::token_loss::FLAMVID_ISA {

#include "../vector.h"

typedef uint16_t Short __attribute__((vector_size(2 * FLAMVID_LANES)));
typedef uint16_t LooseShort
    __attribute__((vector_size(2 * FLAMVID_LANES), aligned(2), may_alias));

FLAMVID_FN V load(const Half* at) {
  const Short bits = *reinterpret_cast<const LooseShort*>(at);
  return (V)(__builtin_convertvector(bits, Bits) << 16);
}

// To the nearest, of two to the even one.
FLAMVID_FN void store(Half* at, V v) {
  const Bits bits = (Bits)v;
  const Bits rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  *reinterpret_cast<LooseShort*>(at) = __builtin_convertvector(rounded, Short);
}

// The same of the last columns, fewer than a vector has; those past the end read `none`.
template <typename T>
FLAMVID_FN V load_some(const T* at, int64_t count, float none) {
  T some[LANES];
  for (int e = 0; e < count; ++e) some[e] = at[e];
  for (int64_t e = count; e < LANES; ++e) some[e] = at[0];
  V v = load(some);
  for (int64_t e = count; e < LANES; ++e) v[e] = none;
  return v;
}

template <typename T>
FLAMVID_FN void store_some(T* at, V v, int64_t count) {
  T some[LANES];
  store(some, v);
  for (int e = 0; e < count; ++e) at[e] = some[e];
}

// e^(x - top), exactly 0 far below it: a column of minus infinity is no token's.
FLAMVID_FN V weight(V x, float top) {
  const V power = (x - top) * 1.44269504f, low = all(-125.0f);
  return power < low ? V{} : exp2_of(power);
}

// The negative log-probability of the target; the row becomes its gradient, softmax less one-hot.
template <typename T>
FLAMVID_FN float loss(T* row, int64_t columns, int64_t target, float* room) {
  const float none = -std::numeric_limits<float>::infinity();
  const int64_t whole = columns / LANES * LANES, rest = columns - whole;
  const float asked = load_some(row + target, 1, 0)[0];

  V tops[4] = {all(none), all(none), all(none), all(none)};
  int64_t i = 0, chain = 0;
  for (; i < whole; i += LANES, chain = (chain + 1) % 4) {
    const V x = load(row + i);
    tops[chain] = x > tops[chain] ? x : tops[chain];
  }
  if (rest) {
    const V x = load_some(row + whole, rest, none);
    tops[0] = x > tops[0] ? x : tops[0];
  }
  float top = none;
  for (const V& some : tops) {
    for (int e = 0; e < LANES; ++e) top = some[e] > top ? some[e] : top;
  }

  V sums[4] = {};
  for (i = 0, chain = 0; i < whole; i += LANES, chain = (chain + 1) % 4) {
    const V w = weight(load(row + i), top);
    store(room + i, w);
    sums[chain] += w;
  }
  V last{};
  if (rest) {
    last = weight(load_some(row + whole, rest, none), top);
    sums[0] += last;
  }
  float sum = 0;
  for (const V& some : sums) {
    for (int e = 0; e < LANES; ++e) sum += some[e];
  }

  const float share = 1 / sum;
  const float less = weight(all(asked), top)[0] * share - 1;
  for (i = 0; i < whole; i += LANES) store(row + i, load(room + i) * share);
  if (rest) store_some(row + whole, last * share, rest);
  store_some(row + target, all(less), 1);
  return std::log(sum) + top - asked;
}

inline constexpr Isa ISA{&loss<float>, &loss<Half>};

}  // namespace flamvid::token_loss::FLAMVID_ISA
