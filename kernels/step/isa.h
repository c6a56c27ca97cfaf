// Parts of a decoding step for one instruction set; core.h includes this once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace), FLAMVID_FN (the attributes of
// its functions) and FLAMVID_LANES (floats of a vector).

namespace flamvid::step::FLAMVID_ISA {

#include "../vector.h"
#include "../erf.h"

inline constexpr float LOG2E = 1.44269504f;

// The first `count` floats, and zeros.
FLAMVID_FN V load_some(const float* at, int64_t count) {
  if (count == LANES) return load(at);
  V v{};
  for (int64_t e = 0; e < count; ++e) v[e] = at[e];
  return v;
}
FLAMVID_FN void store_some(float* at, V v, int64_t count) {
  if (count == LANES) return store(at, v);
  for (int64_t e = 0; e < count; ++e) at[e] = v[e];
}

// Sum of (x - shift)^power over n.
template <int POWER>
FLAMVID_FN float moment(const float* x, int64_t n, float shift) {
  V sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * LANES <= n; i += 2 * LANES) {
    for (int half = 0; half < 2; ++half) {
      const V far = load(x + i + half * LANES) - shift;
      sums[half] += POWER == 2 ? far * far : far;
    }
  }
  float sum = total(sums[0] + sums[1]);
  for (; i < n; ++i) sum += POWER == 2 ? (x[i] - shift) * (x[i] - shift) : x[i] - shift;
  return sum;
}

FLAMVID_FN void normalise(const Norm& norm, const float* x, float* out, int64_t n) {
  const float mean = norm.rms ? 0 : moment<1>(x, n, 0) / n;
  const float scale = 1 / std::sqrt(moment<2>(x, n, mean) / n + norm.eps);
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    V v = (load(x + i) - mean) * scale * load(norm.weight + i);
    if (norm.bias) v += load(norm.bias + i);
    store(out + i, v);
  }
  for (; i < n; ++i) {
    out[i] = (x[i] - mean) * scale * norm.weight[i] + (norm.bias ? norm.bias[i] : 0);
  }
}

FLAMVID_FN const float* normed(const Norm& norm, const float* x, int64_t rows, int64_t width,
                               Scratch& own) {
  float* out = room(own.normed, rows * width);
  for (int64_t r = 0; r < rows; ++r) normalise(norm, x + r * width, out + r * width, width);
  return out;
}

// Some outputs of a product.
FLAMVID_FN void multiply(const Dense& w, const float* x, int64_t rows, float* out,
                         Team::Share part, Scratch& own) {
  if (w.wide) {
    few::FLAMVID_ISA::outputs({x, w.wide, out, rows, w.width, w.outputs}, part.first, part.last);
    return;
  }
  const int64_t groups = rows * w.width / linear::GROUP;
  float* sums = room(own.sums, groups);
  linear::FLAMVID_ISA::sum_groups(x, groups, sums);
  linear::FLAMVID_ISA::outputs({x, w.int8.bytes, w.int8.scales, w.int8.offsets, sums, out, rows,
                                w.width, w.outputs},
                               part.first, part.last);
}

// out = x + gate product(y): the end of each part.
FLAMVID_FN void add(const Dense& w, const float* y, const float* x, float gate, int64_t rows,
                    float* out, Team::Share part, Scratch& own) {
  multiply(w, y, rows, out, part, own);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = r * w.outputs + part.first; o < r * w.outputs + part.last; ++o) {
      out[o] = x[o] + gate * out[o];
    }
  }
}

// x / (1 + e^-x).
FLAMVID_FN V silu_of(V x) {
  const V most = all(126.0f), power = x * -LOG2E;
  return x / (1.0f + exp2_of(power > most ? most : power));
}

FLAMVID_FN V activated(Activation kind, V x) {
  if (kind == Activation::gelu) return gelu_of(x);
  const V none{}, above = x < none ? none : x;  // what is no number stays none
  return kind == Activation::relu ? above : above * above;
}

FLAMVID_FN void feed(const Feed& f, Team& team, int64_t member, Scratch& own) {
  const float* x = normed(f.norm, f.x, f.rows, f.width, own);
  const int64_t inner = f.down.width, wide = f.up.outputs;
  const Team::Share part = team.share(member, inner, PIECE);
  multiply(f.up, x, f.rows, f.wide, part, own);
  const bool gated = f.activation == Activation::silu_gated;
  if (gated) multiply(f.up, x, f.rows, f.wide, {part.first + inner, part.last + inner}, own);
  for (int64_t r = 0; r < f.rows; ++r) {
    for (int64_t i = part.first; i < part.last; i += LANES) {
      const int64_t count = std::min<int64_t>(LANES, part.last - i);
      const float* from = f.wide + r * wide + i;
      const V x = load_some(from, count);
      store_some(f.hidden + r * inner + i,
                 gated ? silu_of(x) * load_some(from + inner, count) : activated(f.activation, x),
                 count);
    }
  }
  team.wait();
  add(f.down, f.hidden, f.x, f.gate, f.rows, f.out, team.share(member, f.width, PIECE), own);
}

// Products of q with N keys.
template <int N>
FLAMVID_FN void score(const float* q, const float* keys, int64_t step, int64_t d, float* scores) {
  V sums[N] = {};
  int64_t e = 0;
  for (; e + LANES <= d; e += LANES) {
    const V part = load(q + e);
    for (int n = 0; n < N; ++n) sums[n] += part * load(keys + n * step + e);
  }
  for (int n = 0; n < N; ++n) {
    float sum = total(sums[n]);
    for (int64_t i = e; i < d; ++i) sum += q[i] * keys[n * step + i];
    scores[n] = sum;
  }
}

// What is visible of the keys and values of one head.
struct Sight {
  const float *keys, *values;
  int64_t key_step, value_step, count;
  const uint8_t* real;  // null: all
  float slope;          // ALiBi's: bias of a key for each place nearer
};

// One token's attention in one head.
FLAMVID_FN void attend(const Sight& see, const float* q, float scale, int64_t d, float* out,
                       Scratch& own) {
  float* weights = room(own.scores, see.count);
  int64_t k = 0;
  for (; k + 4 <= see.count; k += 4) {
    score<4>(q, see.keys + k * see.key_step, see.key_step, d, weights + k);
  }
  for (; k < see.count; ++k) score<1>(q, see.keys + k * see.key_step, see.key_step, d, weights + k);
  const float none = -std::numeric_limits<float>::infinity();
  float most = none;
  for (int64_t i = 0; i < see.count; ++i) {
    if (see.real && !see.real[i] && i + 1 < see.count) {  // a token always sees itself
      weights[i] = none;
      continue;
    }
    weights[i] = weights[i] * scale + see.slope * static_cast<float>(i + 1 - see.count);
    most = weights[i] > most ? weights[i] : most;
  }
  V sums{};
  for (k = 0; k < see.count; k += LANES) {
    const int64_t count = std::min<int64_t>(LANES, see.count - k);
    const V power = (load_some(weights + k, count) - most) * LOG2E;
    V weight = power < all(-125.0f) ? V{} : exp2_of(power);  // nothing of what is hidden
    for (int64_t e = count; e < LANES; ++e) weight[e] = 0;
    store_some(weights + k, weight, count);
    sums += weight;
  }
  const float share = 1 / total(sums);
  int64_t e = 0;
  for (; e + 4 * LANES <= d; e += 4 * LANES) {
    V sums[4] = {};
    for (int64_t i = 0; i < see.count; ++i) {
      const float* value = see.values + i * see.value_step + e;
      for (int n = 0; n < 4; ++n) sums[n] += weights[i] * load(value + n * LANES);
    }
    for (int n = 0; n < 4; ++n) store(out + e + n * LANES, sums[n] * share);
  }
  for (; e < d; ++e) {
    float value = 0;
    for (int64_t i = 0; i < see.count; ++i) value += weights[i] * see.values[i * see.value_step + e];
    out[e] = value * share;
  }
}

FLAMVID_FN void cross(const Cross& c, Team& team, int64_t member, Scratch& own) {
  const float* x = normed(c.norm, c.x, c.rows, c.width, own);
  const int64_t inner = c.heads * c.d;
  const Team::Share heads = team.share(member, c.heads, 1);  // which need no other's queries
  multiply(c.to_q, x, c.rows, c.q, {heads.first * c.d, heads.last * c.d}, own);
  // Rows inside: what they see of a head is then in the cache.
  for (int64_t h = heads.first; h < heads.last; ++h) {
    for (int64_t r = 0; r < c.rows; ++r) {
      float* out = c.attended + r * inner + h * c.d;
      if (c.index[r] < 0) {
        for (int64_t e = 0; e < c.d; ++e) out[e] = 0;
        continue;
      }
      const int64_t prompt = r / c.rows_each, first = (c.index[r] - c.start) * c.latents;
      attend({c.keys.at(prompt, h, first), c.values.at(prompt, h, first), c.keys.row, c.values.row,
              c.latents, nullptr, 0},
             c.q + r * inner + h * c.d, c.scale, c.d, out, own);
    }
  }
  team.wait();
  add(c.to_out, c.attended, c.x, c.gate, c.rows, c.out, team.share(member, c.width, PIECE), own);
}

// A rotary embedding of one head, in place.
FLAMVID_FN void turn(float* x, const float* cosine, const float* sine, int64_t d) {
  const int64_t half = d / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cosine[i] - b * sine[i];
    x[half + i] = b * cosine[half + i] + a * sine[half + i];
  }
}

// Heads of a row as attention takes them: after their norm, and turned.
FLAMVID_FN void prepare(const Norm& norm, const float* x, float* out, int64_t heads, const Self& s,
                        int64_t row) {
  const int64_t n = heads * s.d;
  if (norm.weight) {
    normalise(norm, x, out, n);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i];
  }
  for (int64_t h = 0; s.cosine && h < heads; ++h) {
    turn(out + h * s.d, s.cosine + row * s.turn_step, s.sine + row * s.turn_step, s.d);
  }
}

FLAMVID_FN void self(const Self& s, Team& team, int64_t member, Scratch& own) {
  const float* x = normed(s.norm, s.x, s.rows, s.width, own);
  multiply(s.qkv, x, s.rows, s.mixed, team.share(member, s.qkv.outputs, PIECE), own);
  team.wait();
  const int64_t inner = s.heads * s.d, key_inner = s.groups * s.d, each = s.heads / s.groups;
  const Team::Share groups = team.share(member, s.groups, 1);
  float* q = room(own.q, s.rows * inner);
  float* k = room(own.k, key_inner);
  for (int64_t r = 0; groups.first < groups.last && r < s.rows; ++r) {
    const float* mixed = s.mixed + r * s.qkv.outputs;
    // All heads, as a norm may be over all of them: it is little.
    prepare(s.q_norm, mixed, q + r * inner, s.heads, s, r);
    prepare(s.k_norm, mixed + inner, k, s.groups, s, r);
    const float* v = mixed + inner + key_inner;
    for (int64_t g = groups.first; g < groups.last; ++g) {
      const int64_t at = s.length + r % s.each;
      float *key = s.keys.at(r / s.each, g, at), *value = s.values.at(r / s.each, g, at);
      for (int64_t e = 0; e < s.d; ++e) {
        key[e] = k[g * s.d + e];
        value[e] = v[g * s.d + e];
      }
    }
  }
  for (int64_t h = groups.first * each; h < groups.last * each; ++h) {
    for (int64_t r = 0; r < s.rows; ++r) {  // inside: keys and values are then in the cache
      const int64_t text = r / s.each, g = h / each, at = r * inner + h * s.d;
      attend({s.keys.at(text, g, 0), s.values.at(text, g, 0), s.keys.row, s.values.row,
              s.length + r % s.each + 1, s.real ? s.real + text * (s.length + s.each) : nullptr,
              s.slopes ? s.slopes[h] : 0},
             q + at, s.scale, s.d, s.attended + at, own);
    }
  }
  team.wait();
  add(s.to_out, s.attended, s.x, 1, s.rows, s.out, team.share(member, s.width, PIECE), own);
}

inline constexpr Isa ISA{&feed, &cross, &self};

}  // namespace flamvid::step::FLAMVID_ISA
