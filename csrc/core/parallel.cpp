#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/env.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace yolonas {
namespace {

#if defined(__linux__)
// Processors that a container's quota amounts to, rounded up; 0 for no quota. Control groups version 2, then version 1.
int quota_processors() noexcept {
  double quota = -1, period = 0;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%lf %lf", &quota, &period) != 2) quota = -1;  // "max 100000" has no number
    std::fclose(file);
  } else {
    const char* const names[] = {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"};
    double* const values[] = {&quota, &period};
    for (int i = 0; i < 2; ++i) {
      if (std::FILE* part = std::fopen(names[i], "r")) {
        if (std::fscanf(part, "%lf", values[i]) != 1) quota = -1;
        std::fclose(part);
      }
    }
  }
  return quota > 0 && period > 0 ? static_cast<int>(std::ceil(quota / period)) : 0;
}
#endif

#if defined(__linux__)
// Cores behind the processors of the set: those of one core name the same first sibling. A processor that says nothing
// counts as a core.
int cores_of(const cpu_set_t& set) noexcept {
  bool seen[CPU_SETSIZE] = {};
  int count = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    char path[80];
    std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    int first = cpu;
    if (std::FILE* file = std::fopen(path, "r")) {
      if (std::fscanf(file, "%d", &first) != 1 || first < 0 || first >= CPU_SETSIZE) first = cpu;
      std::fclose(file);
    }
    count += !seen[first];
    seen[first] = true;
  }
  return count;
}
#endif

int allowed_cores() noexcept {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    const int count = cores_of(set), quota = quota_processors();
    if (count > 0) return quota > 0 && quota < count ? quota : count;
  }
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count ? static_cast<int>(count) : 1;
}

int initial_threads() noexcept {
  const std::string wish = env_num_threads();
  const long asked = wish.empty() ? 0 : std::strtol(wish.c_str(), nullptr, 10);
  const int count = asked >= 1 && asked <= kMaxThreads ? static_cast<int>(asked) : allowed_cores();
  return count < kMaxThreads ? count : kMaxThreads;
}

std::atomic<int>& thread_limit() noexcept {
  static std::atomic<int> limit{initial_threads()};
  return limit;
}

thread_local bool inside_parallel = false;
thread_local int own_worker_index = 0;

void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Long enough to meet the next step of a network, short enough that nobody minds.
constexpr std::chrono::microseconds kSpin{50};
// From then on with yields, for a thread that waits for this very processor. Not from the start: on a busy machine a
// yield costs the rest of the time slice.
constexpr std::chrono::microseconds kSpinAlone{20};

// Asks `done` again and again, for kSpin at most; returns its last answer.
template <class Condition>
bool spin_until(const Condition& done) noexcept {
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      pause();
    }
    const auto spent = std::chrono::steady_clock::now() - start;
    if (spent >= kSpin) return done();
    if (spent >= kSpinAlone) std::this_thread::yield();
  }
}

// One job at a time. The whole state of a job is one number: its generation, the seats that are left for workers, the
// workers inside, and whether the caller sleeps until they have left. A worker that finds a seat takes part; the caller
// works too, then closes the seats and waits for those inside only, so a worker that gets no processor delays nobody.
// Both sides spin for a moment before they sleep. Never destroyed: at interpreter exit other libraries may still hold
// threads inside, and the operating system ends ours.
class Pool {
 public:
  // Runs the job with up to `threads` threads, the caller's included. False if the pool is busy.
  bool run(int threads, std::int64_t count, std::int64_t step, detail::RangeFunction body, void* context) noexcept {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    try {
      for (; workers_ < threads - 1; ++workers_) std::thread([this, index = workers_ + 1] { work(index); }).detach();
    } catch (...) {
      // No more threads to be had: go on with those that exist.
    }
    // Nobody is inside and there are no seats: nobody looks at these.
    body_ = body;
    context_ = context;
    count_ = count;
    step_ = step;
    next_.store(0, std::memory_order_relaxed);
    const int seats = std::min(threads - 1, workers_);
    const std::uint64_t generation = (state_.load(std::memory_order_relaxed) & kGeneration) + kOneGeneration;
    state_.store(generation | static_cast<std::uint64_t>(seats) * kOneSeat);
    if (sleepers_.load() > 0) {  // both sequentially consistent: a worker counts itself first and looks then
      {
        std::lock_guard<std::mutex> lock(mutex_);
      }
      for (int i = 0; i < seats; ++i) start_.notify_one();
    }
    take_ranges();
    state_.fetch_and(~kSeats);
    const auto all_left = [this] { return (state_.load(std::memory_order_acquire) & kInside) == 0; };
    if (!spin_until(all_left)) {
      std::unique_lock<std::mutex> lock(mutex_);
      state_.fetch_or(kCallerSleeps);
      done_.wait(lock, all_left);
    }
    return true;
  }

 private:
  static constexpr std::uint64_t kInside = 0xffff, kSeats = 0x7fff0000, kCallerSleeps = 0x80000000;
  static constexpr std::uint64_t kOneSeat = 0x10000, kOneGeneration = std::uint64_t{1} << 32;
  static constexpr std::uint64_t kGeneration = ~(kOneGeneration - 1);

  void take_ranges() noexcept {
    inside_parallel = true;
    for (;;) {
      const std::int64_t begin = next_.fetch_add(step_, std::memory_order_relaxed);
      if (begin >= count_) break;
      body_(context_, begin, begin + step_ < count_ ? begin + step_ : count_);
    }
    inside_parallel = false;
  }

  void work(int index) noexcept {
    own_worker_index = index;
    std::uint64_t seen = 0;  // the last generation that this worker took part in
    const auto seat_free = [&] {
      const std::uint64_t state = state_.load();
      return (state & kSeats) != 0 && (state & kGeneration) != seen;
    };
    for (;;) {
      if (!spin_until(seat_free)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        start_.wait(lock, seat_free);
        sleepers_.fetch_sub(1);
      }
      std::uint64_t state = state_.load();
      bool seated = false;
      while (!seated && (state & kSeats) != 0 && (state & kGeneration) != seen) {
        seated = state_.compare_exchange_weak(state, state - kOneSeat + 1);
      }
      if (!seated) continue;
      seen = state & kGeneration;
      take_ranges();
      const std::uint64_t before = state_.fetch_sub(1);
      if ((before & kCallerSleeps) != 0 && (before & kInside) == 1) {
        {
          std::lock_guard<std::mutex> lock(mutex_);
        }
        done_.notify_one();
      }
    }
  }

  std::mutex owner_;  // held by the thread whose job runs
  std::mutex mutex_;  // of both condition variables
  std::condition_variable start_, done_;
  int workers_ = 0;  // under owner_
  // Written by the caller before it offers seats.
  detail::RangeFunction body_ = nullptr;
  void* context_ = nullptr;
  std::int64_t count_ = 0, step_ = 1;
  // On cache lines of their own: one is watched by all, the other changed by all.
  alignas(64) std::atomic<std::uint64_t> state_{0};
  std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<std::int64_t> next_{0};
};

Pool*& pool_slot() noexcept {
  static Pool* pool = new Pool;
  return pool;
}

#if defined(__linux__)
// The child of a fork has none of the threads: it starts with a fresh pool (the old one is left as it is).
void renew_pool_in_child() noexcept { pool_slot() = new Pool; }
[[maybe_unused]] const int fork_hook = pthread_atfork(nullptr, nullptr, renew_pool_in_child);
#endif

}  // namespace

int worker_index() noexcept { return own_worker_index; }

int num_threads() noexcept { return thread_limit().load(std::memory_order_relaxed); }

void set_num_threads(int count) {
  YN_CHECK(count >= 1 && count <= kMaxThreads, "set_num_threads: count must lie in 1..", kMaxThreads, ", got ", count);
  thread_limit().store(count, std::memory_order_relaxed);
}

void detail::parallel_ranges(std::int64_t count, std::int64_t grain, RangeFunction body, void* context) noexcept {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  const std::int64_t most = (count + grain - 1) / grain;
  const std::int64_t limit = num_threads();
  const int threads = static_cast<int>(most < limit ? most : limit);
  if (threads > 1 && !inside_parallel) {
    // Four ranges a thread even out differences in speed.
    std::int64_t step = (count + 4 * threads - 1) / (4 * threads);
    if (step < grain) step = grain;
    if (pool_slot()->run(threads, count, step, body, context)) return;
  }
  body(context, 0, count);
}

}  // namespace yolonas
