// The linear layer of many rows of every instruction set that this processor has, against double.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "core.h"

namespace dense = flamvid::dense;

namespace {

int failures = 0;

void check(const char* name, dense::Outputs run, std::mt19937& dice) {
  for (int turn = 0; turn < 60; ++turn) {
    const auto pick = [&](int most) { return static_cast<int64_t>(dice() % most) + 1; };
    // Several blocks of rows, parts of the width and panels now and then, and less than one of each.
    const int64_t rows = pick(8) > 1 ? pick(40) - 1 : pick(700), width = pick(pick(5) > 1 ? 6 : 80) * 16;
    const int64_t outputs = pick(pick(3) > 1 ? 3 : 10) * 16;
    const bool gelu = dice() % 2, biased = dice() % 2;
    // Exactly as long as they are said to be: the sanitizer hears of a float too far.
    std::vector<float> x(rows * width), weights(outputs * width), out(rows * outputs, NAN);
    std::vector<float> bias(outputs), own;
    std::normal_distribution<float> normal;
    for (auto* values : {&x, &weights, &bias}) {
      for (float& value : *values) value = normal(dice);
    }
    dense::Problem p{x.data(), weights.data(), biased ? bias.data() : nullptr, out.data(),
                           rows, width, outputs, gelu, 0};
    p.blocks = dense::blocks_of(rows, p.panels(), pick(64));
    for (int64_t block = 0; block < p.blocks; ++block) {
      for (int64_t panel = 0; panel < p.panels(); ++panel) run(p, block, panel, own);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t n = 0; n < outputs; ++n) {
        double sum = biased ? bias[n] : 0, size = std::abs(sum) + 1;
        for (int64_t k = 0; k < width; ++k) {
          const double part = static_cast<double>(x[r * width + k]) * weights[n * width + k];
          sum += part;
          size += std::abs(part);
        }
        const double want = gelu ? sum * 0.5 * (1 + std::erf(sum * std::sqrt(0.5))) : sum;
        if (!(std::abs(out[r * outputs + n] - want) <= 1e-6 * size)) {
          std::printf("%s: row %ld output %ld is %g, not %g\n", name, long(r), long(n),
                      out[r * outputs + n], want);
          ++failures;
        }
      }
    }
  }
}

}  // namespace

int main() {
  std::mt19937 dice(7);
#define CHECK(isa) check(#isa, &dense::isa::outputs, dice)
  FLAMVID_EACH(CHECK);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
