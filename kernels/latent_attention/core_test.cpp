// Latent attention of every instruction set that this processor has, against double.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "core.h"

namespace latent = flamvid::latent;

namespace {

int failures = 0;

std::vector<float> random(int64_t count, float spread, std::mt19937& dice) {
  std::normal_distribution<float> normal;
  std::vector<float> out(count);  // the sanitizer hears of one too far
  for (float& x : out) x = spread * normal(dice);
  return out;
}

// What one token takes of one head, by keys and values.
std::vector<double> wanted(const latent::Problem& p, int64_t token, int64_t head, int64_t media) {
  const int64_t inner = p.heads * p.d;
  std::vector<double> scores(p.count), out(p.d);
  double top = -INFINITY, sum = 0;
  const float* latents = p.latents + media * p.count * p.width;
  for (int64_t k = 0; k < p.count; ++k) {
    for (int64_t e = 0; e < p.d; ++e) {
      double key = 0;
      for (int64_t c = 0; c < p.width; ++c) {
        key += double(latents[k * p.width + c]) * p.to_keys[(head * p.d + e) * p.width + c];
      }
      scores[k] += key * p.q[token * inner + head * p.d + e] * p.scale;
    }
    top = std::max(top, scores[k]);
  }
  for (double& score : scores) sum += score = std::exp(score - top);
  for (int64_t k = 0; k < p.count; ++k) {
    for (int64_t e = 0; e < p.d; ++e) {
      double value = 0;
      for (int64_t c = 0; c < p.width; ++c) {
        value += double(latents[k * p.width + c]) * p.to_values[c * inner + head * p.d + e];
      }
      out[e] += scores[k] / sum * value;
    }
  }
  return out;
}

void check(const char* name, const latent::Isa& isa) {
  std::mt19937 dice(5);
  for (int turn = 0; turn < 25; ++turn) {
    const int64_t d = 16 * (dice() % 3 + 1), heads = dice() % 3 + 1, count = 16 * (dice() % 3 + 1);
    const int64_t width = 16 * (turn % 5 == 0 ? 18 : dice() % 5 + 1);  // of more than a part, too
    const int64_t media = dice() % 4, tokens = turn % 5 == 1 ? 150 : dice() % 24;
    const int64_t inner = heads * d;
    const bool sharp = turn % 3 == 0;  // scores far apart: exp makes more of their rounding
    const auto q = random(tokens * inner, sharp ? 8.0f : 1.0f, dice);
    const auto latents = random(media * count * width, 1, dice);
    const auto to_keys = random(inner * width, 0.2f, dice);
    const auto to_values = random(width * inner, 0.2f, dice);
    std::vector<float> turned(latents.size()), out(q.size());
    for (int64_t m = 0; m < media; ++m) {
      for (int64_t k = 0; k < count; ++k) {
        for (int64_t c = 0; c < width; ++c) {
          turned[(m * width + c) * count + k] = latents[(m * count + k) * width + c];
        }
      }
    }
    std::vector<int32_t> index(tokens);
    for (int32_t& at : index) at = static_cast<int32_t>(dice() % (media + 1)) - 1;
    const latent::Problem p{q.data(), latents.data(), turned.data(), to_keys.data(),
                            to_values.data(), out.data(), heads, d, count, width, 0.25f};
    const latent::Plan plan(index.data(), tokens, media);
    latent::Scratch scratch;
    for (const latent::Chunk& chunk : plan.chunks) {
      for (int64_t h = 0; h < heads; ++h) {
        isa.attend(p, h, chunk, plan.rows.data() + chunk.first, scratch);
      }
    }
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<double> want(d);
        if (index[t] >= 0) want = wanted(p, t, h, index[t]);
        for (int64_t e = 0; e < d; ++e) {
          const double got = out[t * inner + h * d + e];
          const double most = index[t] < 0 ? 0 : (sharp ? 1e-3 : 3e-5) * (1 + std::abs(want[e]));
          if (!(std::abs(got - want[e]) <= most)) {
            std::printf("%s: token %ld, head %ld: %g, not %g\n", name, long(t), long(h), got, want[e]);
            ++failures;
          }
        }
      }
    }
  }
}

void turn(const char* name, const latent::Isa& isa) {
  const int64_t rows = 48, columns = 80;
  std::vector<float> from(rows * columns), to(from.size());
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i);
  isa.turn_columns(from.data(), rows, columns, 0, 32, to.data());
  isa.turn_columns(from.data(), rows, columns, 32, columns, to.data());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      if (to[c * rows + r] == from[r * columns + c]) continue;
      std::printf("%s: row %ld, column %ld is elsewhere\n", name, long(r), long(c));
      ++failures;
    }
  }
}

void both(const char* name, const latent::Isa& isa) {
  check(name, isa);
  turn(name, isa);
}

}  // namespace

int main() {
#define CHECK(isa) both(#isa, latent::isa::ISA)
  FLAMVID_EACH(CHECK);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
