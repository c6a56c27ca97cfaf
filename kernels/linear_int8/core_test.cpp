// The int8 linear layer of every instruction set that this processor has, against double.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "many.h"

namespace linear = flamvid::linear;

namespace {

int failures = 0;

void check(const char* name, const linear::Isa& isa, const linear::many::Isa& of_many,
           std::mt19937& dice) {
  for (int turn = 0; turn < 60; ++turn) {
    const auto pick = [&](int most) { return static_cast<int64_t>(dice() % most) + 1; };
    const int64_t rows = pick(turn % 3 ? 9 : 70), width = pick(6) * linear::GROUP, outputs = pick(60);
    // Exactly as long as they are said to be: the sanitizer hears of a byte too far.
    const int64_t groups = width / linear::GROUP;
    std::vector<float> x(rows * width), scales(outputs * groups), offsets(outputs * groups);
    std::vector<float> sums(rows * groups);
    std::vector<int8_t> weights(outputs * width);
    std::vector<float> out(rows * outputs, NAN);
    std::normal_distribution<float> normal;
    for (float& value : x) value = normal(dice);
    for (float& value : scales) value = std::abs(normal(dice)) / 100;
    for (float& value : offsets) value = normal(dice);
    for (int8_t& value : weights) value = static_cast<int8_t>(dice() % 256 - 128);
    isa.sum_groups(x.data(), rows * groups, sums.data());
    const linear::Problem p{x.data(),    weights.data(), scales.data(), offsets.data(),
                            sums.data(), out.data(),     rows,          width,
                            outputs};
    const int64_t middle = outputs / 2;
    if (turn % 2) {
      isa.outputs(p, 0, middle);
      isa.outputs(p, middle, outputs);
    } else {
      const int64_t pitch = (rows + 15) / 16 * 16, part = linear::GROUP * (groups / 2);
      const linear::many::Problem q{x.data(), {weights.data(), scales.data(), offsets.data()},
                                    out.data(), rows, pitch, width, outputs};
      std::vector<float> turned(width * pitch, NAN);
      of_many.turn_rows(q, 0, part, turned.data());
      of_many.turn_rows(q, part, width, turned.data());
      linear::many::Scratch scratch;
      of_many.outputs(q, turned.data(), 0, middle, scratch);
      of_many.outputs(q, turned.data(), middle, outputs, scratch);
    }
    std::vector<float> wide(outputs * width, NAN);
    const linear::Weights packed{weights.data(), scales.data(), offsets.data()};
    isa.widen(packed, wide.data(), 0, middle * groups);
    isa.widen(packed, wide.data(), middle * groups, outputs * groups);
    for (int64_t at = 0; at < outputs * width; ++at) {
      const int64_t g = at / linear::GROUP;
      const double part = static_cast<double>(weights[at]) * scales[g], want = part + offsets[g];
      if (!(std::abs(wide[at] - want) <= 1e-6 * (std::abs(part) + std::abs(offsets[g])))) {
        std::printf("%s: weight %ld is %g, not %g\n", name, long(at), wide[at], want);
        ++failures;
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t n = 0; n < outputs; ++n) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < width; ++k) {
          const int64_t at = n * width + k, g = at / linear::GROUP;
          const double weight = static_cast<double>(weights[at]) * scales[g] + offsets[g];
          const double part = x[r * width + k] * weight;
          sum += part;
          size += std::abs(x[r * width + k]) * (std::abs(weights[at] * scales[g]) + std::abs(offsets[g]));
        }
        if (!(std::abs(out[r * outputs + n] - sum) <= 1e-6 * size + 1e-30)) {
          std::printf("%s: row %ld output %ld is %g, not %g\n", name, long(r), long(n),
                      out[r * outputs + n], sum);
          ++failures;
        }
      }
    }
  }
}

}  // namespace

int main() {
  std::mt19937 dice(7);
#define CHECK(isa) check(#isa, linear::isa::ISA, linear::many::isa::ISA, dice)
  FLAMVID_EACH(CHECK);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
