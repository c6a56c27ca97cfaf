// Two stand-ins for a CUDA block on the CPU, to test block programs (see block.h).
//
// In turn: one loop over the threads per phase, in rising, falling or shuffled order. Fast; a race
// within a phase shows as a result that depends on the order.
// Together: every thread is a thread, phases end at a real barrier, and the whole program runs once
// per thread as on a GPU. Under ThreadSanitizer this finds every race, between phases too.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace flamvid::host {

enum class Order { rising, falling, shuffled, together };

// 0xFF everywhere: NaN as float, -1 as int. Registers and shared memory start with no fair value.
template <typename T>
void poison(T& value) {
  std::memset(static_cast<void*>(&value), 0xFF, sizeof(T));
}

template <typename T>
std::unique_ptr<T> poisoned() {
  auto out = std::make_unique<T>();
  poison(*out);
  return out;
}

template <typename State>
struct TurnBlock {
  TurnBlock(Order order, int threads) : order(order), states(threads), ids(threads) {
    for (State& state : states) poison(state);
    std::iota(ids.begin(), ids.end(), 0);
    if (order == Order::falling) std::reverse(ids.begin(), ids.end());
  }

  template <typename F>
  void phase(F&& work) {
    if (order == Order::shuffled) std::shuffle(ids.begin(), ids.end(), shuffler);
    for (const int id : ids) work(id, states[id]);
  }
  template <typename F>
  int count(F&& work) {
    int out = 0;
    phase([&](int id, State& state) { out += work(id, state) ? 1 : 0; });
    return out;
  }
  template <typename F>
  bool any(F&& work) {
    return count(work) > 0;
  }

  Order order;
  std::vector<State> states;
  std::vector<int> ids;
  std::mt19937 shuffler{7};
};

struct Team {
  explicit Team(int threads) { pthread_barrier_init(&barrier, nullptr, threads); }
  ~Team() { pthread_barrier_destroy(&barrier); }
  void wait() { pthread_barrier_wait(&barrier); }
  pthread_barrier_t barrier;
  std::atomic<int> votes{0};
};

template <typename State>
struct ThreadBlock {
  ThreadBlock(int id, Team& team) : id(id), team(team) { poison(state); }

  template <typename F>
  void phase(F&& work) {
    work(id, state);
    team.wait();
  }
  // One more barrier than the phase, to read the votes. On a GPU both are one instruction.
  template <typename F>
  int count(F&& work) {
    if (work(id, state)) ++team.votes;
    team.wait();
    const int out = team.votes;
    team.wait();
    if (id == 0) team.votes = 0;
    team.wait();
    return out;
  }
  template <typename F>
  bool any(F&& work) {
    return count(work) > 0;
  }

  int id;
  Team& team;
  State state;
};

// Runs program(block) as one block of `threads` threads.
template <typename State, typename Program>
void run_block(Order order, int threads, Program&& program) {
  if (order != Order::together) {
    TurnBlock<State> block(order, threads);
    return program(block);
  }
  Team team(threads);
  std::vector<std::thread> running;
  for (int id = 0; id < threads; ++id) {
    running.emplace_back([&, id] {
      ThreadBlock<State> block(id, team);
      program(block);
    });
  }
  for (std::thread& thread : running) thread.join();
}

}  // namespace flamvid::host
