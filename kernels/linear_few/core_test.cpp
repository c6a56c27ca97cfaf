// The linear layer of few rows of every instruction set that this processor has, against double.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "core.h"

namespace few = flamvid::few;

namespace {

int failures = 0;

void check(const char* name, few::Outputs run, std::mt19937& dice) {
  for (int turn = 0; turn < 100; ++turn) {
    const auto pick = [&](int most) { return static_cast<int64_t>(dice() % most) + 1; };
    const int64_t rows = pick(10) - 1, width = pick(70), outputs = pick(20);
    // Exactly as long as they are said to be: the sanitizer hears of a float too far.
    std::vector<float> x(rows * width), weights(outputs * width), out(rows * outputs, NAN);
    std::normal_distribution<float> normal;
    for (float& value : x) value = normal(dice);
    for (float& value : weights) value = normal(dice);
    const few::Problem p{x.data(), weights.data(), out.data(), rows, width, outputs};
    const int64_t middle = outputs / 2;
    run(p, 0, middle);
    run(p, middle, outputs);
    for (int64_t r = 0; r < rows; ++r) {
      // Texts are read some tokens at once where that changes no bit (docs/adr/0012-lookup.md).
      std::vector<float> alone(outputs, NAN);
      run({x.data() + r * width, weights.data(), alone.data(), 1, width, outputs}, 0, outputs);
      if (std::memcmp(alone.data(), &out[r * outputs], outputs * sizeof(float)) != 0) {
        std::printf("%s: row %ld of %ld is not what it is alone\n", name, long(r), long(rows));
        ++failures;
      }
      for (int64_t n = 0; n < outputs; ++n) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < width; ++k) {
          const double part = static_cast<double>(x[r * width + k]) * weights[n * width + k];
          sum += part;
          size += std::abs(part);
        }
        if (!(std::abs(out[r * outputs + n] - sum) <= 1e-6 * size)) {
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
#define CHECK(isa) check(#isa, &few::isa::outputs, dice)
  FLAMVID_EACH(CHECK);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
