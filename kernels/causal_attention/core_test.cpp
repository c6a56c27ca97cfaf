// Causal attention of every instruction set that this processor has, against double.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "core.h"

namespace causal = flamvid::causal;

namespace {

int failures = 0;

std::vector<float> random(int64_t count, std::mt19937& dice) {
  std::normal_distribution<float> normal;
  std::vector<float> out(count);  // the sanitizer hears of one too far
  for (float& x : out) x = normal(dice);
  return out;
}

void check(const char* name, causal::Attend attend) {
  std::mt19937 dice(3);
  for (int turn = 0; turn < 40; ++turn) {
    const int64_t d = 16 * (dice() % 5 + 1), groups = dice() % 2 + 1, heads = groups * (dice() % 2 + 1);
    const int64_t tokens = turn % 4 ? dice() % 70 + 1 : dice() % 200 + 1;
    const int64_t length = tokens + (turn % 3 ? dice() % 90 : 0), batch = dice() % 2 + 1;
    const auto q = random(batch * heads * tokens * d, dice);
    const auto k = random(batch * groups * length * d, dice);
    const auto v = random(batch * groups * length * d, dice);
    std::vector<float> slopes(heads), out(q.size());
    for (float& slope : slopes) slope = 0.5f / (dice() % 30 + 1);
    std::vector<uint8_t> real(batch * length);
    for (uint8_t& seen : real) seen = dice() % 4 != 0;
    for (int64_t i = 0; i < length / 2; ++i) real[i] = 0;  // as on the left of a short text
    const bool alibi = dice() % 2, padded = dice() % 2;
    const causal::Problem p{{q.data(), heads * tokens * d, tokens * d, d},
                            {k.data(), groups * length * d, length * d, d},
                            {v.data(), groups * length * d, length * d, d},
                            {out.data(), tokens * heads * d, d, heads * d},
                            alibi ? slopes.data() : nullptr, padded ? real.data() : nullptr,
                            heads, groups, tokens, length, d, 0.2f};
    const auto scratch = std::make_unique<causal::Scratch>();
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t t = 0; t < tokens; t += causal::ROWS) attend(p, b, h, t, *scratch);
        for (int64_t t = 0; t < tokens; ++t) {
          const int64_t last = length - tokens + t, g = h / (heads / groups);
          std::vector<double> want(d);
          double sum = 0;
          for (int64_t key = 0; key <= last; ++key) {
            if (padded && !real[b * length + key] && key != last) continue;
            double score = 0;
            for (int64_t e = 0; e < d; ++e) score += double(p.q.at(b, h, t)[e]) * p.keys.at(b, g, key)[e];
            score = std::exp(0.2 * score + (alibi ? slopes[h] * double(key - last) : 0));
            sum += score;
            for (int64_t e = 0; e < d; ++e) want[e] += score * p.values.at(b, g, key)[e];
          }
          for (int64_t e = 0; e < d; ++e) {
            const double got = out[((b * tokens + t) * heads + h) * d + e];
            if (!(std::abs(got - want[e] / sum) <= 2e-5)) {
              std::printf("%s: token %ld: %g, not %g\n", name, long(t), got, want[e] / sum);
              ++failures;
            }
          }
        }
      }
    }
  }
}

}  // namespace

int main() {
#define CHECK(isa) check(#isa, &causal::isa::attend)
  FLAMVID_EACH(CHECK);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
