// The int8 linear layer of many rows for one instruction set; many.h includes this once for each.
//
// No include guard: the includer defines FLAMVID_ISA (a namespace) and FLAMVID_FN (the attributes of
// its functions).

namespace flamvid::linear::many::FLAMVID_ISA {

using namespace attention::cpu::FLAMVID_ISA;

FLAMVID_FN void turn_rows(const Problem& p, int64_t first, int64_t last, float* to) {
  const int wide = static_cast<int>(last - first);
  for (int64_t r = 0; r < p.pitch; r += 4) {
    if (r + 4 <= p.rows) {
      turn(p.x + r * p.width + first, p.width, to + first * p.pitch + r, 4, wide, 1, p.pitch);
      continue;
    }
    for (int64_t k = first; k < last; ++k) {
      for (int64_t i = r; i < r + 4; ++i) {
        to[k * p.pitch + i] = i < p.rows ? p.x[i * p.width + k] : 0;
      }
    }
  }
}

FLAMVID_FN void outputs(const Problem& p, const float* turned, int64_t first, int64_t last,
                        Scratch& s) {
  const int64_t groups = p.width / GROUP;
  const int pitch = static_cast<int>(p.pitch), width = static_cast<int>(p.width);
  float* wide = room(s.wide, BLOCK * p.width);
  float* out = room(s.out, BLOCK * p.pitch);
  for (int64_t n = first; n < last; n += BLOCK) {
    const int some = static_cast<int>(std::min<int64_t>(BLOCK, last - n));
    const Weights block{p.weights.bytes + n * p.width, p.weights.scales + n * groups,
                        p.weights.offsets + n * groups};
    linear::FLAMVID_ISA::widen(block, wide, 0, some * groups);
    Stream none;
    multiply(Along{wide, p.width}, turned, pitch, out, pitch, some, width, pitch,
             false, none);
    for (int64_t r = 0; r < p.rows; ++r) {
      for (int o = 0; o < some; ++o) p.out[r * p.outputs + n + o] = out[o * pitch + r];
    }
  }
}

inline constexpr Isa ISA{&turn_rows, &outputs};

}  // namespace flamvid::linear::many::FLAMVID_ISA
