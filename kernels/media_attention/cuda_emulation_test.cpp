// Runs the CUDA block programs on the CPU, thread by thread, against a naive double reference.
//
// What it proves for each random problem, with the very code that the .cu files launch:
//   - out, dq, dk, dv and media_index equal the reference; blind rows are exactly 0;
//   - every element of every output is written (outputs start as NaN) and shared memory and
//     registers are not read before they are written (they start as NaN too);
//   - no two threads race: falling and shuffled orders within a phase agree bit for bit with the
//     rising one; with the argument `together` every thread is a real one (see host_block.h), and
//     ThreadSanitizer watches the barriers.
// What it cannot prove: speed, and the GPU's own rounding of exp and log.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../host_block.h"
#include "../media_index/block.h"
#include "block_backward.h"
#include "block_forward.h"

namespace {

using namespace flamvid::attention;
using flamvid::host::Order;
using flamvid::host::poisoned;
using flamvid::host::run_block;

std::mt19937_64 rng(20261124);

// What must agree bit for bit with the rising order.
std::vector<Order> others{Order::falling, Order::shuffled};

int64_t between(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(rng);
}

struct BFloat16 {  // rounds to nearest, as the GPU's
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(float x) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    const bool is_nan = (word & 0x7FFFFFFFU) > 0x7F800000U;
    bits = is_nan ? 0x7FC0 : static_cast<uint16_t>((word + 0x7FFF + ((word >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }
};

// A [B,H,R,d] tensor in one of two layouts: contiguous, or [B,R,H,d] as a model's split leaves it.
template <typename T>
struct Tensor4 {
  int64_t B, H, R, d;
  bool heads_inside;
  std::vector<T> data;

  Tensor4(int64_t B, int64_t H, int64_t R, int64_t d, bool inside)
      : B(B), H(H), R(R), d(d), heads_inside(inside),
        data(static_cast<size_t>(B * H * R * d),
             static_cast<T>(std::numeric_limits<float>::quiet_NaN())) {}

  void randomize() {
    std::normal_distribution<float> normal;
    for (T& x : data) x = static_cast<T>(normal(rng));
  }
  template <typename U>
  View<U> view() {
    const bool packed = d % 4 == 0 && reinterpret_cast<uintptr_t>(data.data()) % (4 * sizeof(T)) == 0;
    if (heads_inside) return {data.data(), R * H * d, d, H * d, packed};
    return {data.data(), H * R * d, R * d, d, packed};
  }
  void set_nan(int64_t b, int64_t h, int64_t r) {
    const T nan = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
    std::fill_n(view<T>().at(b, h, r), d, nan);
  }
  double at(int64_t b, int64_t h, int64_t r, int64_t c) {
    return static_cast<float>(view<const T>().at(b, h, r)[c]);
  }
};

struct Sizes {
  int64_t B, H, S, M, d;
  std::vector<int64_t> offsets;
  std::vector<int32_t> index;
  double scale;
  int64_t latents() const { return offsets.back(); }
};

void fail(const char* what, const Sizes& s, double error, double limit) {
  std::printf("FAIL %s: error %g, limit %g; B=%ld H=%ld S=%ld M=%ld d=%ld latents=%ld\n", what,
              error, limit, long(s.B), long(s.H), long(s.S), long(s.M), long(s.d),
              long(s.latents()));
  std::exit(1);
}

template <typename T>
struct Results {
  Tensor4<T> out, dq, dk, dv;
  std::vector<float> lse, delta;
};

template <typename T, int D>
Results<T> emulate(const Sizes& s, Tensor4<T>& q, Tensor4<T>& k, Tensor4<T>& v, Tensor4<T>& dout,
                   Order order, bool decode) {
  const bool inside = q.heads_inside;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> stats(static_cast<size_t>(s.B * s.H * s.S), nan);
  Results<T> got{{s.B, s.H, s.S, s.d, inside},
                 {s.B, s.H, s.S, s.d, inside},
                 {s.B, s.H, s.latents(), s.d, inside},
                 {s.B, s.H, s.latents(), s.d, inside},
                 stats,
                 stats};
  const Problem p{s.H,           s.S, s.M, s.latents(), int(s.d), s.index.data(), s.offsets.data(),
                  float(s.scale)};
  using Sh = Shape<D>;
  const auto qv = q.template view<const T>(), kv = k.template view<const T>(),
             vv = v.template view<const T>(), gv = dout.template view<const T>();
  const auto ov = got.out.template view<T>();
  const int64_t tiles = (s.S + Sh::ROWS - 1) / Sh::ROWS;

  if (decode) {
    for (int64_t id = 0; id < s.B * s.H * s.S; ++id) {
      auto shared = poisoned<DecodeShared<D>>();
      run_block<DecodeState>(order, DecodeShape<D>::THREADS, [&](auto& block) {
        decode_block<D, T>(block, *shared, id, p, qv, kv, vv, ov, got.lse.data());
      });
    }
  } else {
    for (int64_t id = 0; id < s.B * s.H * tiles; ++id) {
      auto shared = poisoned<ForwardShared<D>>();
      run_block<ForwardState<D>>(order, Sh::THREADS, [&](auto& block) {
        forward_block<D, T>(block, *shared, id, p, qv, kv, vv, ov, got.lse.data());
      });
    }
  }
  for (int64_t id = 0; id < s.B * s.H * tiles; ++id) {
    auto shared = poisoned<BackwardShared<D>>();
    run_block<QueryGradState<D>>(order, Sh::THREADS, [&](auto& block) {
      query_grad_block<D, T>(block, *shared, id, p, qv, kv, vv, got.out.template view<const T>(),
                             gv, got.lse.data(), got.delta.data(), got.dq.template view<T>());
    });
  }
  const int64_t slots = key_grad_slots<D>(s.latents(), s.M);
  for (int64_t id = 0; id < s.B * s.H * slots; ++id) {
    auto shared = poisoned<BackwardShared<D>>();
    run_block<KeyGradState<D>>(order, Sh::THREADS, [&](auto& block) {
      key_grad_block<D, T>(block, *shared, id, slots, p, qv, kv, vv, gv, got.lse.data(),
                           got.delta.data(), got.dk.template view<T>(), got.dv.template view<T>());
    });
  }
  return got;
}

template <typename T>
void compare(const char* what, const Sizes& s, Tensor4<T>& got, const std::vector<double>& want,
             double limit) {
  size_t n = 0;
  double worst = 0;
  for (int64_t b = 0; b < got.B; ++b)
    for (int64_t h = 0; h < got.H; ++h)
      for (int64_t r = 0; r < got.R; ++r)
        for (int64_t c = 0; c < got.d; ++c, ++n) {
          const double error = std::abs(got.at(b, h, r, c) - want[n]) / (1 + std::abs(want[n]));
          if (!(error <= limit)) fail(what, s, error, limit);  // NaN fails too
          if (want[n] == 0 && got.at(b, h, r, c) != 0) fail("exact zero", s, error, 0);
          worst = std::max(worst, error);
        }
}

template <typename T, int D>
void check(const Sizes& s, bool inside, double limit) {
  Tensor4<T> q(s.B, s.H, s.S, s.d, inside), dout(s.B, s.H, s.S, s.d, inside);
  Tensor4<T> k(s.B, s.H, s.latents(), s.d, inside), v(s.B, s.H, s.latents(), s.d, inside);
  for (auto* x : {&q, &k, &v, &dout}) x->randomize();
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t h = 0; h < s.H; ++h)
      for (int64_t t = 0; t < s.S; ++t)
        if (const int64_t m = s.index[b * s.S + t]; m < 0 || m >= s.M)
          for (auto* x : {&q, &dout})  // NaN in a blind row must reach nothing, not even as 0 * NaN
            x->set_nan(b, h, t);

  // The reference: every row alone, in double, straight from the formulas.
  const size_t texts = s.B * s.H * s.S * s.d, latents = s.B * s.H * s.latents() * s.d;
  std::vector<double> out(texts), dq(texts), dk(latents), dv(latents);
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t h = 0; h < s.H; ++h)
      for (int64_t t = 0; t < s.S; ++t) {
        const int64_t m = s.index[b * s.S + t];
        if (m < 0 || m >= s.M) continue;
        const int64_t begin = s.offsets[m], L = s.offsets[m + 1] - begin;
        if (L == 0) continue;
        const size_t row = ((b * s.H + h) * s.S + t) * s.d;
        std::vector<double> weight(L), dweight(L);
        double peak = -1e300, sum = 0, mean = 0;
        for (int64_t j = 0; j < L; ++j) {
          for (int64_t c = 0; c < s.d; ++c)
            weight[j] += q.at(b, h, t, c) * k.at(b, h, begin + j, c) * s.scale;
          peak = std::max(peak, weight[j]);
        }
        for (double& w : weight) sum += w = std::exp(w - peak);
        for (int64_t j = 0; j < L; ++j) {
          weight[j] /= sum;
          for (int64_t c = 0; c < s.d; ++c) {
            out[row + c] += weight[j] * v.at(b, h, begin + j, c);
            dweight[j] += dout.at(b, h, t, c) * v.at(b, h, begin + j, c);
          }
          mean += weight[j] * dweight[j];
        }
        for (int64_t j = 0; j < L; ++j) {
          const double ds = weight[j] * (dweight[j] - mean) * s.scale;
          const size_t key = ((b * s.H + h) * s.latents() + begin + j) * s.d;
          for (int64_t c = 0; c < s.d; ++c) {
            dq[row + c] += ds * k.at(b, h, begin + j, c);
            dk[key + c] += ds * q.at(b, h, t, c);
            dv[key + c] += weight[j] * dout.at(b, h, t, c);
          }
        }
      }

  for (const bool decode : {false, true}) {
    auto got = emulate<T, D>(s, q, k, v, dout, Order::rising, decode);
    compare(decode ? "decode out" : "out", s, got.out, out, limit);
    compare("dq", s, got.dq, dq, limit);
    compare("dk", s, got.dk, dk, limit);
    compare("dv", s, got.dv, dv, limit);
    for (const Order order : others) {
      const auto again = emulate<T, D>(s, q, k, v, dout, order, decode);
      const auto same = [](const auto& a, const auto& b) {
        return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
      };
      if (!same(got.out.data, again.out.data) || !same(got.lse, again.lse) ||
          !same(got.dq.data, again.dq.data) || !same(got.dk.data, again.dk.data) ||
          !same(got.dv.data, again.dv.data))
        fail("result depends on the order of threads", s, 1, 0);
    }
  }
}

template <typename T>
void check_width(const Sizes& s, bool inside, double limit) {
  if (s.d <= 32) return check<T, 32>(s, inside, limit);
  if (s.d <= 64) return check<T, 64>(s, inside, limit);
  if (s.d <= 128) return check<T, 128>(s, inside, limit);
  return check<T, 256>(s, inside, limit);
}

// Small enough for real threads when `small`: a thread starts and ends for every one of a block.
Sizes random_sizes(bool small) {
  Sizes s{between(1, 2), between(1, 3), between(0, 3) == 0 ? 1 : between(1, 90), between(1, 6), 0,
          {0},           {},            0};
  if (small) s.B = s.H = 1, s.S = between(20, 40), s.M = 2;
  const int64_t top[] = {32, 64, 128, 256};
  const int64_t wide = top[between(0, 3)];
  s.d = between(0, 1) == 0 ? wide : between(wide == 32 ? 1 : wide / 2 + 1, wide);
  s.scale = 1 / std::sqrt(double(s.d));
  const bool equal = between(0, 1) == 0;
  const int64_t L = between(1, 80);
  for (int64_t m = 0; m < s.M; ++m) s.offsets.push_back(s.offsets.back() + (equal ? L : between(0, 80)));
  const int kind = int(between(0, 2));  // rising as in text, any, or mostly blind and out of range
  for (int64_t b = 0; b < s.B; ++b) {
    int64_t now = -1;
    for (int64_t t = 0; t < s.S; ++t) {
      if (kind == 0 && between(0, 9) == 0 && now < s.M - 1) ++now;
      if (kind == 1) now = between(-1, s.M - 1);
      if (kind == 2) now = between(0, 3) == 0 ? between(0, s.M - 1) : between(0, 1) == 0 ? s.M + 5 : -9;
      s.index.push_back(int32_t(now));
    }
  }
  return s;
}

void check_media_index() {
  const int64_t B = between(1, 3), S = between(0, 4) == 0 ? 1 : between(1, 700), token = 7;
  std::vector<int64_t> ids(B * S);
  const int64_t rarity = between(1, 40);
  for (auto& id : ids) id = between(0, rarity) == 0 ? token : 1;
  const std::vector<int32_t> before{3, 0, 5};
  for (const bool next : {false, true})
    for (const int32_t* start : {static_cast<const int32_t*>(nullptr), before.data()})
      for (const Order order : others) {
        std::vector<int32_t> out(B * S, 12345);
        for (int64_t b = 0; b < B; ++b) {
          auto shared = poisoned<flamvid::index::Shared>();
          run_block<flamvid::index::State>(order, flamvid::index::THREADS, [&](auto& block) {
            flamvid::index::index_block(block, *shared, b, S, ids.data(), token, next, start,
                                        out.data());
          });
        }
        for (int64_t b = 0; b < B; ++b)
          for (int64_t t = 0; t < S; ++t) {
            // The definition, token by token: walk to the media and count those before it.
            const int64_t* row = &ids[b * S];
            int64_t at = t;
            while (at >= 0 && at < S && row[at] != token) at += next ? 1 : -1;
            const int32_t first = start != nullptr ? start[b] : 0;
            int32_t want = first - 1;
            if (at >= 0 && at < S) want = first + int32_t(std::count(row, row + at, token));
            if (at >= S) want = -1;
            if (out[b * S + t] != want) {
              std::printf("FAIL media_index: b=%ld t=%ld next=%d: %d, want %d\n", long(b), long(t),
                          int(next), out[b * S + t], want);
              std::exit(1);
            }
          }
      }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 40;
  if (argc > 2 && std::strcmp(argv[2], "together") == 0) others = {Order::together};
  for (int round = 0; round < rounds; ++round) {
    check_media_index();
    const Sizes s = random_sizes(others.front() == Order::together);
    const bool inside = between(0, 1) == 0;
    if (round % 3 == 2) {
      check_width<BFloat16>(s, inside, 2e-2);
    } else {
      check_width<float>(s, inside, 1e-5);
    }
  }
  std::printf("ok: %d random problems\n", rounds);
  return 0;
}
