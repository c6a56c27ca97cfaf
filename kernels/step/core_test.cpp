// Parts of a decoding step in every instruction set that this processor has, by one thread and by
// several, against the formulas in double.
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "core.h"

namespace step = flamvid::step;

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

int failures = 0;
std::mt19937 dice(7);

int64_t pick(int64_t most) { return static_cast<int64_t>(dice() % most) + 1; }

// Exactly as long as it is said to be: the sanitizer hears of a float too far.
Floats drawn(int64_t size, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  Floats out(size);
  for (float& value : out) value = normal(dice);
  return out;
}

Doubles normed(const Floats& weight, const Floats& bias, bool rms, const Doubles& x) {
  const auto n = static_cast<double>(x.size());
  double mean = 0, square = 0;
  for (double value : x) mean += rms ? 0 : value / n;
  for (double value : x) square += (value - mean) * (value - mean) / n;
  Doubles out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    out[i] = (x[i] - mean) / std::sqrt(square + 1e-5) * weight[i] + (rms ? 0 : bias[i]);
  }
  return out;
}

Doubles product(const Floats& weights, const Doubles& x) {
  Doubles out(weights.size() / x.size());
  for (size_t o = 0; o < out.size(); ++o) {
    for (size_t i = 0; i < x.size(); ++i) out[o] += weights[o * x.size() + i] * x[i];
  }
  return out;
}

Doubles row(const Floats& x, int64_t r, int64_t width) {
  return {x.begin() + r * width, x.begin() + (r + 1) * width};
}

void compare(const char* name, const Floats& out, int64_t r, const Doubles& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double got = out[r * want.size() + i];
    if (!(std::abs(got - want[i]) <= 1e-4 * (1 + std::abs(want[i])))) {
      std::printf("%s: row %ld, %zu is %g, not %g\n", name, long(r), i, got, want[i]);
      ++failures;
      return;
    }
  }
}

// As a parallel loop would: each thread takes some of the places, and not all threads as many.
template <typename Part>
void together(int64_t threads, Part&& part) {
  const int64_t places = threads == 1 ? 1 : threads * 2 - 1;
  step::Team team(places);
  std::vector<std::thread> all;
  for (int64_t t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      step::Scratch own;
      const int64_t count = std::min<int64_t>(2, places - 2 * t);
      part(team, team.join(threads == 1 ? 1 : count), own);
    });
  }
  for (std::thread& thread : all) thread.join();
}

void feed(const char* name, const step::Isa& isa, int64_t threads) {
  const int64_t rows = pick(10) - 1, width = pick(70), inner = pick(70);
  const auto kind = static_cast<step::Activation>(dice() % 4);
  const bool gated = kind == step::Activation::silu_gated, rms = dice() % 2;
  const int64_t wide = gated ? 2 * inner : inner;
  const Floats x = drawn(rows * width), weight = drawn(width), bias = drawn(width),
               up = drawn(wide * width, 0.1f), down = drawn(width * inner, 0.1f);
  Floats first(rows * wide), hidden(rows * inner), out(rows * width);
  const step::Feed f{{weight.data(), rms ? nullptr : bias.data(), 1e-5f, rms},
                     {up.data(), {}, wide, width},
                     {down.data(), {}, width, inner},
                     kind, 0.5f, x.data(), first.data(), hidden.data(), out.data(), rows, width};
  together(threads, [&](step::Team& team, int64_t member, step::Scratch& own) {
    isa.feed(f, team, member, own);
  });
  for (int64_t r = 0; r < rows; ++r) {
    Doubles middle = product(up, normed(weight, bias, rms, row(x, r, width)));
    for (int64_t i = 0; i < inner; ++i) {
      const double v = middle[i], above = v > 0 ? v : 0;
      if (gated) middle[i] = v / (1 + std::exp(-v)) * middle[inner + i];
      if (kind == step::Activation::gelu) middle[i] = v / 2 * (1 + std::erf(v / std::sqrt(2.0)));
      if (kind == step::Activation::relu) middle[i] = above;
      if (kind == step::Activation::squared_relu) middle[i] = above * above;
    }
    middle.resize(inner);
    Doubles want = product(down, middle);
    for (int64_t o = 0; o < width; ++o) want[o] = x[r * width + o] + 0.5 * want[o];
    compare(name, out, r, want);
  }
}

// Softmax over `count` keys of one head; `bias` of each key.
Doubles attention(const double* q, const step::View<const float>& keys,
                  const step::View<const float>& values, int64_t b, int64_t h, int64_t first,
                  const Doubles& bias, int64_t d, double scale) {
  Doubles out(d);
  double sum = 0;
  for (size_t k = 0; k < bias.size(); ++k) {
    double score = bias[k];
    for (int64_t e = 0; e < d; ++e) score += scale * q[e] * keys.at(b, h, first + k)[e];
    sum += std::exp(score);
    for (int64_t e = 0; e < d; ++e) out[e] += std::exp(score) * values.at(b, h, first + k)[e];
  }
  for (double& value : out) value /= sum;
  return out;
}

void cross(const char* name, const step::Isa& isa, int64_t threads) {
  const int64_t prompts = pick(3), each = pick(2), rows = prompts * each, heads = pick(5);
  const int64_t d = pick(70), width = pick(40), media = pick(3), latents = pick(9);
  const int64_t inner = heads * d, held = media * latents;
  const Floats x = drawn(rows * width), weight = drawn(width), bias = drawn(width),
               to_q = drawn(inner * width, 0.2f), to_out = drawn(width * inner, 0.2f),
               k = drawn(prompts * heads * held * d), v = drawn(prompts * heads * held * d);
  std::vector<int32_t> index(rows);
  const int32_t start = dice() % 3;
  for (int32_t& at : index) at = dice() % 4 ? start + static_cast<int32_t>(dice() % media) : -1;
  const step::View<const float> keys{k.data(), heads * held * d, held * d, d},
      values{v.data(), heads * held * d, held * d, d};
  Floats q(rows * inner), attended(rows * inner), out(rows * width);
  const step::Cross c{{weight.data(), bias.data(), 1e-5f, false},
                      {to_q.data(), {}, inner, width},
                      {to_out.data(), {}, width, inner},
                      0.5f, 0.3f, keys, values, index.data(), start, latents, each, heads, d,
                      x.data(), q.data(), attended.data(), out.data(), rows, width};
  together(threads, [&](step::Team& team, int64_t member, step::Scratch& own) {
    isa.cross(c, team, member, own);
  });
  for (int64_t r = 0; r < rows; ++r) {
    const Doubles query = product(to_q, normed(weight, bias, false, row(x, r, width)));
    Doubles read;
    for (int64_t h = 0; h < heads; ++h) {
      Doubles part(d);
      if (index[r] >= 0) {
        part = attention(query.data() + h * d, keys, values, r / each, h, (index[r] - start) * latents,
                         Doubles(latents), d, 0.3f);
      }
      read.insert(read.end(), part.begin(), part.end());
    }
    Doubles want = product(to_out, read);
    for (int64_t o = 0; o < width; ++o) want[o] = x[r * width + o] + 0.5 * want[o];
    compare(name, out, r, want);
  }
}

void self(const char* name, const step::Isa& isa, int64_t threads) {
  const int64_t texts = pick(3), each = pick(3), rows = texts * each;
  const int64_t groups = pick(3), heads = groups * pick(3), d = 2 * pick(35);
  const int64_t width = pick(40), length = pick(30) - 1, room = length + each + pick(3) - 1;
  const int64_t inner = heads * d, outputs = (heads + 2 * groups) * d;
  const Floats x = drawn(rows * width), weight = drawn(width), bias = drawn(width),
               qkv = drawn(outputs * width, 0.2f), to_out = drawn(width * inner, 0.2f),
               slopes = drawn(heads, 0.1f), angles = drawn(rows * d / 2);
  Floats cosine(rows * d), sine(rows * d);
  Floats k = drawn(texts * groups * room * d), v = drawn(texts * groups * room * d);
  for (int64_t i = 0; i < rows * d; ++i) {
    const float angle = angles[i / d * (d / 2) + i % (d / 2)];
    cosine[i] = std::cos(angle);
    sine[i] = std::sin(angle);
  }
  std::vector<uint8_t> real(texts * (length + each));
  for (uint8_t& seen : real) seen = dice() % 4 != 0;
  const bool turned = dice() % 2;
  Floats mixed(rows * outputs), attended(rows * inner), out(rows * width);
  const step::Self s{{weight.data(), bias.data(), 1e-5f, false}, {}, {},
                     {qkv.data(), {}, outputs, width},
                     {to_out.data(), {}, width, inner},
                     turned ? cosine.data() : nullptr, turned ? sine.data() : nullptr, d,
                     slopes.data(),
                     {k.data(), groups * room * d, room * d, d},
                     {v.data(), groups * room * d, room * d, d},
                     real.data(), length, each, heads, groups, d, 0.3f,
                     x.data(), mixed.data(), attended.data(), out.data(), rows, width};
  together(threads, [&](step::Team& team, int64_t member, step::Scratch& own) {
    isa.self(s, team, member, own);
  });
  const step::View<const float> keys{k.data(), groups * room * d, room * d, d},
      values{v.data(), groups * room * d, room * d, d};
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t text = r / each, place = length + r % each;
    Doubles all = product(qkv, normed(weight, bias, false, row(x, r, width)));
    for (int64_t h = 0; turned && h < heads + groups; ++h) {
      double* at = all.data() + h * d;
      for (int64_t e = 0; e < d / 2; ++e) {
        const double a = at[e], b = at[d / 2 + e];
        at[e] = a * cosine[r * d + e] - b * sine[r * d + e];
        at[d / 2 + e] = b * cosine[r * d + e] + a * sine[r * d + e];
      }
    }
    for (int64_t g = 0; g < groups; ++g) {  // what the cache has been given
      for (int64_t e = 0; e < d; ++e) {
        const double key = all[inner + g * d + e], value = all[inner + (groups + g) * d + e];
        if (!(std::abs(keys.at(text, g, place)[e] - key) <= 1e-4 * (1 + std::abs(key))) ||
            !(std::abs(values.at(text, g, place)[e] - value) <= 1e-4 * (1 + std::abs(value)))) {
          std::printf("%s: row %ld: not in the cache\n", name, long(r));
          ++failures;
        }
      }
    }
    Doubles read;
    for (int64_t h = 0; h < heads; ++h) {
      Doubles seen(place + 1);
      for (int64_t i = 0; i <= place; ++i) {
        const bool hidden = i < place && !real[text * (length + each) + i];
        seen[i] = hidden ? -INFINITY : slopes[h] * (i - place);
      }
      const Doubles part = attention(all.data() + h * d, keys, values, text, h / (heads / groups), 0,
                                     seen, d, 0.3f);
      read.insert(read.end(), part.begin(), part.end());
    }
    Doubles want = product(to_out, read);
    for (int64_t o = 0; o < width; ++o) want[o] += x[r * width + o];
    compare(name, out, r, want);
  }
}

void check(const char* name, const step::Isa& isa) {
  for (int turn = 0; turn < 40; ++turn) {
    const int64_t threads = turn % 3 + 1;
    feed(name, isa, threads);
    cross(name, isa, threads);
    self(name, isa, threads);
  }
}

}  // namespace

int main() {
#define CHECK(isa) check(#isa, step::isa::ISA)
  FLAMVID_EACH(CHECK);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
