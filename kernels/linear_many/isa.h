// The linear layer of many rows for one instruction set; core.h includes this once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace) and FLAMVID_FN (the attributes of
// its functions).

namespace flamvid::dense::FLAMVID_ISA {

using namespace attention::cpu::FLAMVID_ISA;

#include "../erf.h"

// What comes after the sums of some outputs.
FLAMVID_FN void finish(const Problem& p, int64_t first, int64_t last, int64_t n, int some) {
  for (int64_t r = first; r < last; ++r) {
    float* out = p.out + r * p.outputs + n;
    for (int e = 0; e < some; e += LANES) {
      V sum = get(out + e);
      if (p.bias) sum += get(p.bias + n + e);
      put(out + e, p.gelu ? gelu_of(sum) : sum);
    }
  }
}

// The part of a panel's weights in columns `k` to `end`, to be called for ahead of its use.
FLAMVID_FN Stream stream(const Problem& p, int64_t n, int64_t k, int64_t end) {
  if (n >= p.outputs) return {};
  const auto size = static_cast<int64_t>(sizeof(float)), lines = (end - k) * size / 64;
  return {reinterpret_cast<const char*>(p.weights + n * p.width + k), size * p.width - 64 * lines,
          static_cast<int>(lines), 0, static_cast<int>(std::min<int64_t>(PANEL, p.outputs - n))};
}

FLAMVID_FN void outputs(const Problem& p, int64_t block, int64_t panel, std::vector<float>& own) {
  const int64_t n = panel * PANEL, first = p.row(block), last = p.row(block + 1), parts = p.parts();
  const int some = static_cast<int>(std::min<int64_t>(PANEL, p.outputs - n));
  float* turned = room(own, PANEL * DEPTH);
  float* out = p.out + first * p.outputs + n;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t k = p.column(part), end = p.column(part + 1);
    turn(p.weights + n * p.width + k, p.width, turned, some, static_cast<int>(end - k), 1, some);
    Stream ahead = part + 1 < parts ? stream(p, n, end, p.column(part + 2))
                                    : stream(p, n + PANEL, 0, p.column(1));
    multiply(Along{p.x + first * p.width + k, p.width}, turned, some, out, p.outputs,
             static_cast<int>(last - first), static_cast<int>(end - k), some, part > 0, ahead);
  }
  if (p.bias || p.gelu) finish(p, first, last, n, some);
}

}  // namespace flamvid::dense::FLAMVID_ISA
