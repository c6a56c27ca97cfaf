// The CPU side of media attention, free of torch: text rows sorted by the media they see, and the
// kernels of each instruction set (cpu_isa.h), of which the best is chosen at run time.
//
// A unit of work is a head and the rows that see one media: units write apart from each other, so
// they may run on any number of threads in any order with the same result, bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "../processor.h"
#include "block_tiles.h"

namespace flamvid::attention::cpu {

inline constexpr int ROWS = 64;  // text rows of a tile
inline constexpr int KEYS = 64;  // latents of a tile
inline constexpr int WIDTH = 256;
inline constexpr float LOG2E = 1.44269504f;  // 2^x is cheaper than e^x

// The buffers of a thread: tiles only, whatever S, L and M.
struct alignas(64) Scratch {
  float q[ROWS * WIDTH], g[ROWS * WIDTH], qt[ROWS * WIDTH], gt[ROWS * WIDTH], acc[ROWS * WIDTH];
  float k[KEYS * WIDTH], v[KEYS * WIDTH], sum_k[KEYS * WIDTH], sum_v[KEYS * WIDTH];
  float p[KEYS * ROWS], ds[KEYS * ROWS];
};

struct Unit {
  int64_t b, h;
  int32_t media;  // -1: none
};

// Latents that are in work together.
struct Tile {
  int64_t b, h, first;
  int count;
};

// What comes after the tile of `u` that begins at `latent`: its next one, or the first of `next`.
inline Tile tile_after(const Problem& p, const Unit& u, int64_t latent, const Unit& next) {
  const auto tile = [](const Unit& unit, Range r) -> Tile {
    return {unit.b, unit.h, r.begin, static_cast<int>(clamp(r.end - r.begin, 0, KEYS))};
  };
  const int64_t end = latents_of(p, u.media).end;
  if (latent + KEYS < end) return tile(u, {latent + KEYS, end});
  return tile(next, next.media < 0 ? Range{0, 0} : latents_of(p, next.media));
}

// The text rows of each batch row, sorted by their media; those that see none come first.
struct Plan {
  struct Chunk {
    int32_t media;
    int64_t first;  // in `rows` of the batch row
    int count;
  };
  int64_t tokens, media;
  std::vector<int32_t> rows;               // [B,S]
  std::vector<int64_t> starts;             // [B,M+2]; media m: starts[m+1] .. starts[m+2]
  std::vector<std::vector<Chunk>> chunks;  // [B]: at most ROWS rows each
  int64_t longest = 0;                     // of the lists of chunks

  Plan(const Problem& p, int64_t batch)
      : tokens(p.tokens), media(p.media), rows(batch * p.tokens), starts(batch * (p.media + 2)),
        chunks(batch) {
    for (int64_t b = 0; b < batch; ++b) {
      int64_t* start = &starts[b * (media + 2)];
      for (int64_t s = 0; s < tokens; ++s) ++start[media_of(p, b, s) + 2];
      for (int64_t m = 1; m < media + 2; ++m) start[m] += start[m - 1];
      // start[m + 1] is where media m begins; filling moves it to where m ends, and back it goes.
      for (int64_t s = 0; s < tokens; ++s) {
        rows[b * tokens + start[media_of(p, b, s) + 1]++] = static_cast<int32_t>(s);
      }
      for (int64_t m = media + 1; m > 0; --m) start[m] = start[m - 1];
      start[0] = 0;
      for (int32_t m = -1; m < media; ++m) {
        for (int64_t at = begin(b, m); at < end(b, m); at += ROWS) {
          const int64_t count = std::min<int64_t>(ROWS, end(b, m) - at);
          chunks[b].push_back({m, at, static_cast<int>(count)});
        }
      }
      longest = std::max(longest, static_cast<int64_t>(chunks[b].size()));
    }
  }

  // Rows of b that see media m (or, -1, none): rows_of(b)[begin .. end].
  int64_t begin(int64_t b, int64_t m) const { return starts[b * (media + 2) + m + 1]; }
  int64_t end(int64_t b, int64_t m) const { return begin(b, m + 1); }
  const int32_t* rows_of(int64_t b) const { return rows.data() + b * tokens; }

  // Unit `id` and its rows, rows_of(b)[first .. first + count]. Of no rows where there is nothing to
  // do, as past the last unit.
  struct Work {
    Unit unit;
    int64_t first, count;
  };
  Work forward_work(const Problem& p, int64_t id) const {
    const int64_t head = id / longest, at = id % longest, b = head / p.heads;
    if (b >= batch() || at >= static_cast<int64_t>(chunks[b].size())) return {{0, 0, -1}, 0, 0};
    const Chunk& chunk = chunks[b][at];
    return {{b, head % p.heads, chunk.media}, chunk.first, chunk.count};
  }
  Work backward_work(const Problem& p, int64_t id) const {
    const int64_t head = id / (media + 1), b = head / p.heads;
    if (b >= batch()) return {{0, 0, -1}, 0, 0};
    const int32_t m = static_cast<int32_t>(id % (media + 1)) - 1;
    return {{b, head % p.heads, m}, begin(b, m), end(b, m) - begin(b, m)};
  }
  int64_t batch() const { return static_cast<int64_t>(chunks.size()); }
};

typedef float Four __attribute__((vector_size(16)));
typedef float LooseFour __attribute__((vector_size(16), aligned(4), may_alias));
#if defined(__clang__) || __GNUC__ >= 12
#define FLAMVID_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define FLAMVID_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, decltype((x) < (y)){__VA_ARGS__})
#endif

}  // namespace flamvid::attention::cpu

// Attributes and not compiler flags: with flags, inline functions of the standard library would be
// compiled for AVX-512 here and might be the copies that the linker keeps for all.
#define FLAMVID_ISA plain
#define FLAMVID_FN inline
#define FLAMVID_LANES 4
#define FLAMVID_VECTORS 2
#include "cpu_isa.h"
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES
#undef FLAMVID_VECTORS

#if defined(__x86_64__) && defined(__GNUC__)
#define FLAMVID_ISA avx2
#define FLAMVID_FN __attribute__((target("avx2,fma,f16c"))) inline
#define FLAMVID_LANES 8
#define FLAMVID_VECTORS 2
#include "cpu_isa.h"
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES
#undef FLAMVID_VECTORS

#define FLAMVID_ISA avx512
#define FLAMVID_FN \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))) inline
#define FLAMVID_LANES 16
#define FLAMVID_VECTORS 4
#include "cpu_isa.h"
#undef FLAMVID_ISA
#undef FLAMVID_FN
#undef FLAMVID_LANES
#undef FLAMVID_VECTORS
#endif

namespace flamvid::attention::cpu {

template <typename T>
struct Kernels {
  decltype(&plain::forward<T>) forward;
  decltype(&plain::backward<T>) backward;
};

// The best that this processor has.
template <typename T>
Kernels<T> best_kernels() {
  return {FLAMVID_BEST(forward<T>), FLAMVID_BEST(backward<T>)};
}

// Forward unit `id` of B * H * plan.longest.
template <typename T>
void forward_unit(int64_t id, const Kernels<T>& kernels, const Plan& plan, const Problem& p,
                  const View<const T>& q, const View<const T>& k, const View<const T>& v,
                  const View<T>& out, float* lse, Scratch& s) {
  const auto [u, first, count] = plan.forward_work(p, id);
  if (count == 0) return;
  const int32_t* rows = plan.rows_of(u.b) + first;
  kernels.forward(p, u, plan.forward_work(p, id + 1).unit, rows, static_cast<int>(count), q, k, v,
                  out, lse, s);
}

// Backward unit `id` of B * H * (M + 1): dq of the rows that see one media (or none), dk and dv of
// its latents. Together the units write every element, 0 where nobody looks.
template <typename T>
void backward_unit(int64_t id, const Kernels<T>& kernels, const Plan& plan, const Problem& p,
                   const View<const T>& q, const View<const T>& k, const View<const T>& v,
                   const View<const T>& out, const View<const T>& dout, const float* lse,
                   const View<T>& dq, const View<T>& dk, const View<T>& dv,
                   std::vector<float>& sum_q, Scratch& s) {
  const auto [u, first, count] = plan.backward_work(p, id);
  const Range range = u.media < 0 ? Range{0, 0} : latents_of(p, u.media);
  const int64_t latents = range.end - range.begin;
  const int32_t* rows = plan.rows_of(u.b) + first;
  const auto clear = [&](T* row) { std::memset(static_cast<void*>(row), 0, sizeof(T) * p.width); };
  if (count == 0 || latents == 0) {
    for (int64_t r = 0; r < count; ++r) clear(dq.at(u.b, u.h, rows[r]));
    for (int64_t latent = range.begin; latent < range.end; ++latent) {
      clear(dk.at(u.b, u.h, latent));
      clear(dv.at(u.b, u.h, latent));
    }
    return;
  }
  if (latents > KEYS) sum_q.resize(count * ((p.width + 15) / 16 * 16));
  kernels.backward(p, u, plan.backward_work(p, id + 1).unit, rows, count, q, k, v, out, dout, lse,
                   dq, dk, dv, sum_q.data(), s);
}

}  // namespace flamvid::attention::cpu
