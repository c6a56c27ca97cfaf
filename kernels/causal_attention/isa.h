// Causal attention for one instruction set; core.h includes this once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace) and FLAMVID_FN (the attributes of
// its functions). Scores stand as in media attention: key after key, a token in each lane.

namespace flamvid::causal::FLAMVID_ISA {

using attention::cpu::LOG2E;
using namespace attention::cpu::FLAMVID_ISA;

inline constexpr float HIDDEN = -1e30f;  // less than any score, and a number: its difference is 0

// What is known of the tokens of a unit, in vectors: the highest score so far, and the sum.
struct Softmax {
  float top[ROWS], sum[ROWS], fix[ROWS];
};

// Scores of a tile's keys become weights; `fix` is what earlier ones are worth beside them.
FLAMVID_FN void weigh(float* scores, int keys, int width, Softmax& s) {
  for (int c = 0; c < width; c += LANES) {
    const V before = get(s.top + c), top = column_top(scores + c, ROWS, keys, before);
    V sums[2] = {};
    for (int j = 0; j < keys; ++j) {
      const V far = get(scores + j * ROWS + c) - top;
      V weight = exp2_of(far);
      weight = far < all(-125.0f) ? V{} : weight;  // nothing of what is hidden
      put(scores + j * ROWS + c, weight);
      sums[j % 2] += weight;
    }
    const V factor = exp2_of(before - top);
    put(s.fix + c, factor);
    put(s.sum + c, get(s.sum + c) * factor + (sums[0] + sums[1]));
    put(s.top + c, top);
  }
}

FLAMVID_FN void attend(const Problem& p, int64_t b, int64_t head, int64_t first, Scratch& s) {
  const int n = static_cast<int>(std::min<int64_t>(ROWS, p.tokens - first));
  const int d = static_cast<int>(p.d), width = padded(n);
  const int64_t group = head / (p.heads / p.groups), place = p.length - p.tokens + first;
  const float slope = p.slopes ? p.slopes[head] * LOG2E : 0;
  const uint8_t* real = p.real ? p.real + b * p.length : nullptr;
  for (int r = 0; r < width; ++r) {
    float* to = s.q + r * d;
    if (r < n) {
      std::memcpy(to, p.q.at(b, head, first + r), sizeof(float) * d);
    } else {
      std::memset(to, 0, sizeof(float) * d);
    }
  }
  turn(s.q, d, s.turned, width, d, p.scale * LOG2E);
  Softmax soft;
  for (int c = 0; c < width; c += LANES) put(soft.top + c, all(HIDDEN)), put(soft.sum + c, V{});
  for (int64_t key = 0; key < place + n; key += KEYS) {
    const int keys = static_cast<int>(std::min<int64_t>(KEYS, place + n - key));
    Stream none;
    const float *k = p.keys.at(b, group, key), *v = p.values.at(b, group, key);
    multiply(Along{k, p.keys.row}, s.turned, ROWS, s.scores, ROWS, keys, d, width, false, none);
    for (int j = 0; j < keys; ++j) {
      float* row = s.scores + j * ROWS;
      const int64_t at = key + j;
      if (slope != 0) {  // what all keys of a token get besides, its softmax doesn't see
        const float bias = slope * static_cast<float>(at + 1 - p.length);
        for (int c = 0; c < width; c += LANES) put(row + c, get(row + c) + bias);
      }
      const int64_t own = at - place;  // the token of this key, if it is one of these
      const int64_t hidden = real && !real[at] ? n : std::clamp<int64_t>(own, 0, n);
      for (int64_t r = 0; r < hidden; ++r) {
        if (r != own) row[r] = HIDDEN;  // a token always sees itself
      }
    }
    weigh(s.scores, keys, width, soft);
    for (int r = 0; key > 0 && r < n; ++r) {
      for (int e = 0; e < d; e += LANES) put(s.out + r * d + e, get(s.out + r * d + e) * soft.fix[r]);
    }
    multiply(Across{s.scores, ROWS}, v, p.values.row, s.out, d, n, keys, d, key > 0, none);
  }
  for (int r = 0; r < n; ++r) {
    float* to = p.out.at(b, head, first + r);
    const float share = 1 / soft.sum[r];
    for (int e = 0; e < d; e += LANES) put(to + e, get(s.out + r * d + e) * share);
  }
}

}  // namespace flamvid::causal::FLAMVID_ISA
