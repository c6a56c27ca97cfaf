// Threads that make one token together, and wait for each other between its stages; no torch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace flamvid::step {

// Waits until `done`. What is waited for takes microseconds, less than it takes to wake a thread;
// if it takes longer, another thread needs this core.
template <typename Done>
void spin(Done&& done) {
  for (int turn = 0; !done(); ++turn) {
    if (turn > 4000) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    _mm_pause();
#endif
  }
}

// A parallel loop over `places` calls its body in each thread once, with some of them. All these
// calls run at the same time, as OpenMP's do, but how many there are is known from inside alone.
class Team {
 public:
  explicit Team(int64_t places) : places_(places) {}

  // A thread with `count` of the places becomes a member; gives its number once all have come.
  int64_t join(int64_t count) {
    const int64_t member = members_.fetch_add(1, std::memory_order_relaxed);
    taken_.fetch_add(count, std::memory_order_acq_rel);
    spin([&] { return taken_.load(std::memory_order_acquire) == places_; });
    return member;
  }

  // Until all members have come this far.
  void wait() {
    const int64_t turn = turn_.load(std::memory_order_relaxed);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      waiting_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
    } else {
      spin([&] { return turn_.load(std::memory_order_acquire) != turn; });
    }
  }

  struct Share {
    int64_t first, last;
  };

  // What a member does of `count`, in whole pieces.
  Share share(int64_t member, int64_t count, int64_t piece) const {
    const int64_t pieces = (count + piece - 1) / piece, members = members_;
    const auto until = [&](int64_t m) { return std::min(count, pieces * m / members * piece); };
    return {until(member), until(member + 1)};
  }

 private:
  const int64_t places_;
  std::atomic<int64_t> members_{0}, taken_{0}, waiting_{0}, turn_{0};
};

}  // namespace flamvid::step
