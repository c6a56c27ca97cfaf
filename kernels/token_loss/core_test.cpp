// The softmax loss of every instruction set that this processor has, against double.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "core.h"

namespace loss = flamvid::token_loss;

namespace {

int failures = 0;

float wide(float x) { return x; }
float wide(loss::Half x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

template <typename T>
T as(float x);
template <>
float as(float x) { return x; }
template <>
loss::Half as(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<uint16_t>(bits >> 16)};
}

template <typename T>
void check(const char* name, float (*run)(T*, int64_t, int64_t, float*), float rounding,
           std::mt19937& dice) {
  std::normal_distribution<float> normal;
  for (int turn = 0; turn < 300; ++turn) {
    const int64_t columns = dice() % 150 + 1, target = dice() % columns;
    const float spread = turn % 3 == 0 ? 60.0f : 3.0f, shift = 30.0f * normal(dice);
    std::vector<T> row(columns);
    std::vector<float> given(columns), room(columns);  // the sanitizer hears of one too far
    for (int64_t i = 0; i < columns; ++i) {
      const bool none = i != target && dice() % 8 == 0;
      row[i] = as<T>(none ? -INFINITY : shift + spread * normal(dice));
      given[i] = wide(row[i]);
    }
    double top = -INFINITY, sum = 0;
    for (float x : given) top = std::max<double>(top, x);
    for (float x : given) sum += std::exp(x - top);
    const double want = top + std::log(sum) - given[target];
    const double got = run(row.data(), columns, target, room.data());
    if (!(std::abs(got - want) <= 1e-5 * (1 + std::abs(want) + std::abs(top)))) {
      std::printf("%s: the loss is %g, not %g\n", name, got, want);
      ++failures;
    }
    for (int64_t i = 0; i < columns; ++i) {
      const double slope = std::exp(given[i] - top) / sum - (i == target);
      // Less than 2^-125 of the largest is nothing.
      const double error = std::abs(wide(row[i]) - slope);
      const bool exact = given[i] != -INFINITY || wide(row[i]) == 0;
      if (!(error <= rounding * std::abs(slope) + 3e-7) || !exact) {
        std::printf("%s: column %ld is %g, not %g\n", name, long(i), wide(row[i]), slope);
        ++failures;
      }
    }
  }
  // What is no number is told, not lost.
  std::vector<T> row(40, as<T>(1.0f));
  std::vector<float> room(40);
  row[33] = as<T>(NAN);
  if (!std::isnan(run(row.data(), 40, 2, room.data()))) {
    std::printf("%s: NaN was lost\n", name);
    ++failures;
  }
}

void check(const char* name, const loss::Isa& isa) {
  std::mt19937 dice(7);
  check<float>(name, isa.wide, 2e-6f, dice);
  check<loss::Half>(name, isa.half, 1.0f / 256 * 1.001f, dice);
}

}  // namespace

int main() {
#define CHECK(isa) check(#isa, loss::isa::ISA)
  FLAMVID_EACH(CHECK);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
