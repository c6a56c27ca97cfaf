// Attention through the weights of keys and values for one instruction set; core.h includes this
// once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace) and FLAMVID_FN (the attributes of
// its functions).

namespace flamvid::latent::FLAMVID_ISA {

using attention::cpu::LOG2E;
using namespace attention::cpu::FLAMVID_ISA;

// c [rows][width] (+)= a [rows][depth] times b [depth][width].
FLAMVID_FN void product(const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                        int64_t ldc, int rows, int depth, int width, bool add) {
  Stream none;
  multiply(Along{a, lda}, b, ldb, c, ldc, rows, depth, width, add, none);
}

// Scores in units of log 2 become weights that add up to 1.
FLAMVID_FN void softmax(float* scores, int count) {
  V top = get(scores);
  for (int k = LANES; k < count; k += LANES) top = higher(top, get(scores + k));
  float most = top[0];
  for (int e = 1; e < LANES; ++e) most = std::max(most, top[e]);
  V sums{};
  for (int k = 0; k < count; k += LANES) {
    const V weight = exp2_of(get(scores + k) - most);
    put(scores + k, weight);
    sums += weight;
  }
  float sum = 0;
  for (int e = 0; e < LANES; ++e) sum += sums[e];
  const float share = 1 / sum;
  for (int k = 0; k < count; k += LANES) put(scores + k, get(scores + k) * share);
}

// In blocks, as the floats of a column are pages apart: a cache has few places for such.
FLAMVID_FN void turn_columns(const float* from, int64_t rows, int64_t columns, int64_t first,
                             int64_t last, float* to) {
  for (int64_t c = first; c < last; c += STEP) {
    for (int64_t r = 0; r < rows; r += STEP / 2) {
      turn(from + r * columns + c, columns, to + c * rows + r, STEP / 2, STEP, 1, rows);
    }
  }
}

FLAMVID_FN void attend(const Problem& p, int64_t head, const Chunk& chunk, const int32_t* rows,
                       Scratch& s) {
  const int n = chunk.count, count = static_cast<int>(p.count), d = static_cast<int>(p.d);
  const int64_t D = p.width, inner = p.heads * d;
  const float* latents = p.latents + chunk.media * count * D;
  const float* turned = p.turned + chunk.media * count * D;
  const float* to_keys = p.to_keys + head * d * D;
  const float* to_values = p.to_values + head * d;
  float* q = room(s.q, n * d);
  float* scores = room(s.scores, n * p.count);
  float* part = room(s.part, n * PART);
  for (int r = 0; r < n; ++r) {
    const float* from = p.q + rows[r] * inner + head * d;
    for (int e = 0; e < d; e += LANES) put(q + r * d + e, get(from + e) * (p.scale * LOG2E));
  }
  for (int64_t at = 0; at < D; at += PART) {
    const int some = static_cast<int>(std::min(PART, D - at));
    product(q, d, to_keys + at, D, part, PART, n, d, some, false);
    product(part, PART, turned + at * count, count, scores, count, n, some, count, at > 0);
  }
  for (int r = 0; r < n; ++r) softmax(scores + r * p.count, count);
  for (int64_t at = 0; at < D; at += PART) {
    const int some = static_cast<int>(std::min(PART, D - at));
    product(scores, count, latents + at, D, part, PART, n, count, some, false);
    product(part, PART, to_values + at * inner, inner, q, d, n, some, d, at > 0);
  }
  for (int r = 0; r < n; ++r) {
    float* to = p.out + rows[r] * inner + head * d;
    for (int e = 0; e < d; e += LANES) put(to + e, get(q + r * d + e));
  }
}

inline constexpr Isa ISA{&attend, &turn_columns};

}  // namespace flamvid::latent::FLAMVID_ISA
