// Runs the CPU core on random problems (a fixed seed) against a naive double reference, for every
// instruction set that this processor has. Built with AddressSanitizer and UBSan: tensors lie in
// heap blocks of exactly their size, so a read or write past an end stops the test.
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>

#include "cpu_core.h"

namespace {

using namespace flamvid::attention;

std::mt19937_64 rng(20261124);
constexpr float NaN = std::numeric_limits<float>::quiet_NaN();

int64_t between(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(rng);
}

// Stands in for the 16-bit types: converts to and from float, and is not float.
struct Short {
  uint16_t bits;
  Short() = default;
  explicit Short(float x) : bits(static_cast<uint16_t>((std::bit_cast<uint32_t>(x) + 0x8000) >> 16)) {}
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// [B,H,R,d], heads outside or inside; every element NaN until it is written.
template <typename T>
struct Tensor4 {
  int64_t B, H, R, d;
  bool inside;
  std::unique_ptr<T[]> data{new T[B * H * R * d]};

  Tensor4(int64_t B, int64_t H, int64_t R, int64_t d, bool inside)
      : B(B), H(H), R(R), d(d), inside(inside) {
    std::fill_n(data.get(), B * H * R * d, T(NaN));
  }
  void randomize() {
    std::normal_distribution<float> normal;
    std::generate_n(data.get(), B * H * R * d, [&] { return T(normal(rng)); });
  }
  template <typename U>
  View<U> view() const {
    if (inside) return {data.get(), R * H * d, d, H * d, false};
    return {data.get(), H * R * d, R * d, d, false};
  }
  double at(int64_t b, int64_t h, int64_t r, int64_t c) const {
    return static_cast<float>(view<T>().at(b, h, r)[c]);
  }
};

void check(bool good, const char* what, const Problem& p, const char* isa, double have,
           double want) {
  if (good) return;
  std::printf("FAIL %s, %s: %.9g, want %.9g; H=%ld S=%ld M=%ld latents=%ld d=%d\n", what, isa,
              have, want, long(p.heads), long(p.tokens), long(p.media), long(p.latents), p.width);
  std::exit(1);
}

template <typename T>
void compare(const char* what, const Problem& p, const char* isa, const Tensor4<T>& got,
             const std::vector<double>& want, double limit, bool exact = true) {
  size_t n = 0;
  for (int64_t b = 0; b < got.B; ++b)
    for (int64_t h = 0; h < got.H; ++h)
      for (int64_t r = 0; r < got.R; ++r)
        for (int64_t c = 0; c < got.d; ++c, ++n) {
          const double have = got.at(b, h, r, c);
          check(std::abs(have - want[n]) <= limit * (1 + std::abs(want[n])), what, p, isa, have,
                want[n]);
          check(!exact || want[n] != 0 || have == 0, "exact zero", p, isa, have, 0);
        }
}

template <typename T>
void check_problem(const Problem& p, int64_t B, bool inside, double limit) {
  const int64_t H = p.heads, S = p.tokens, K = p.latents;
  const int d = p.width;
  Tensor4<T> q(B, H, S, d, inside), g(B, H, S, d, inside), k(B, H, K, d, inside),
      v(B, H, K, d, inside);
  for (auto* x : {&q, &g, &k, &v}) x->randomize();
  bool single = false;
  for (int64_t m = 0; m < p.media; ++m) single |= p.offsets[m + 1] - p.offsets[m] == 1;
  std::vector<double> out(B * H * S * d), dq(out), dk(B * H * K * d), dv(dk);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t t = 0; t < S; ++t) {
        const int32_t m = media_of(p, b, t);
        const Range range = m < 0 ? Range{0, 0} : latents_of(p, m);
        const int64_t L = range.end - range.begin;
        if (m < 0)  // NaN in a blind row must reach nothing
          for (auto* x : {&q, &g}) std::fill_n(x->template view<T>().at(b, h, t), d, T(NaN));
        if (L == 0) continue;
        const size_t row = ((b * H + h) * S + t) * d;
        std::vector<double> weight(L), dweight(L);
        double peak = -1e300, sum = 0, mean = 0;
        for (int64_t j = 0; j < L; ++j) {
          for (int c = 0; c < d; ++c)
            weight[j] += q.at(b, h, t, c) * k.at(b, h, range.begin + j, c) * p.scale;
          peak = std::max(peak, weight[j]);
        }
        for (double& w : weight) sum += w = std::exp(w - peak);
        for (int64_t j = 0; j < L; ++j) {
          weight[j] /= sum;
          for (int c = 0; c < d; ++c) {
            out[row + c] += weight[j] * v.at(b, h, range.begin + j, c);
            dweight[j] += g.at(b, h, t, c) * v.at(b, h, range.begin + j, c);
          }
          mean += weight[j] * dweight[j];
        }
        for (int64_t j = 0; j < L; ++j) {
          const double ds = weight[j] * (dweight[j] - mean) * p.scale;
          const size_t key = ((b * H + h) * K + range.begin + j) * d;
          for (int c = 0; c < d; ++c) {
            dq[row + c] += ds * k.at(b, h, range.begin + j, c);
            dk[key + c] += ds * q.at(b, h, t, c);
            dv[key + c] += weight[j] * g.at(b, h, t, c);
          }
        }
      }

  const cpu::Plan plan(p, B);
  const auto scratch = std::make_unique<cpu::Scratch>();
  std::vector<float> sum_q;
  const auto qv = q.template view<const T>(), kv = k.template view<const T>(),
             vv = v.template view<const T>(), gv = g.template view<const T>();
  const auto check_isa = [&](const char* isa, const cpu::Kernels<T>& kernels) {
    // What a thread left behind must not matter: NaN everywhere.
    std::fill_n(reinterpret_cast<float*>(scratch.get()), sizeof(cpu::Scratch) / 4, NaN);
    Tensor4<T> o(B, H, S, d, inside), gq(B, H, S, d, inside), gk(B, H, K, d, inside),
        gvv(B, H, K, d, inside);
    std::unique_ptr<float[]> lse{new float[B * H * S]};
    for (int64_t id = 0; id < B * H * plan.longest; ++id) {
      cpu::forward_unit<T>(id, kernels, plan, p, qv, kv, vv, o.template view<T>(), lse.get(),
                           *scratch);
    }
    for (int64_t id = B * H * (p.media + 1) - 1; id >= 0; --id) {
      cpu::backward_unit<T>(id, kernels, plan, p, qv, kv, vv, o.template view<const T>(), gv,
                            lse.get(), gq.template view<T>(), gk.template view<T>(),
                            gvv.template view<T>(), sum_q, *scratch);
    }
    compare("out", p, isa, o, out, limit);
    // The softmax over one latent is flat: its gradient is 0 but for rounding.
    compare("dq", p, isa, gq, dq, limit, !single);
    compare("dk", p, isa, gk, dk, limit, !single);
    compare("dv", p, isa, gvv, dv, limit);
  };
#define CHECK(isa) check_isa(#isa, {&cpu::isa::forward<T>, &cpu::isa::backward<T>})
  FLAMVID_EACH(CHECK);
}

void check_random(int round) {
  const int64_t B = between(1, 2), H = between(1, 3), M = between(0, 5);
  const int64_t S = between(0, 3) == 0 ? 1 : between(1, 150);
  const int tops[] = {16, 64, 128, 256};
  const int top = tops[between(0, 3)];
  const int d = between(0, 1) == 0 ? top : static_cast<int>(between(1, top));
  std::vector<int64_t> offsets{0};
  for (int64_t m = 0; m < M; ++m) {
    offsets.push_back(offsets.back() + (between(0, 4) == 0 ? 0 : between(1, 140)));
  }
  std::vector<int32_t> index(B * S);
  const int64_t kind = between(0, 2);  // rising as in text, any, or mostly out of range
  for (int64_t b = 0, now = -1; b < B; ++b, now = -1)
    for (int64_t t = 0; t < S; ++t) {
      if (kind == 0 && between(0, 19) == 0 && now < M - 1) ++now;
      if (kind == 1) now = between(-1, M - 1);
      if (kind == 2) now = between(0, 2) == 0 ? between(-1, M - 1) : between(0, 1) ? M + 3 : -7;
      index[b * S + t] = static_cast<int32_t>(now);
    }
  const Problem p{H, S, M, offsets.back(), d, index.data(), offsets.data(),
                  1.0f / std::sqrt(static_cast<float>(d))};
  const bool inside = between(0, 1) == 0;
  if (round % 3 == 2) {
    check_problem<Short>(p, B, inside, 3e-2);
  } else {
    check_problem<float>(p, B, inside, 1e-5);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 100;
  for (int round = 0; round < rounds; ++round) check_random(round);
  std::printf("ok: %d random problems:", rounds);
#define SAY(isa) std::printf(" " #isa)
  FLAMVID_EACH(SAY);
  std::printf("\n");
  return 0;
}
