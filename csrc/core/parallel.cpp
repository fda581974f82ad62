#include "core/parallel.h"

#include <atomic>
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

int allowed_processors() noexcept {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    const int count = CPU_COUNT(&set), quota = quota_processors();
    if (count > 0) return quota > 0 && quota < count ? quota : count;
  }
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count ? static_cast<int>(count) : 1;
}

int initial_threads() noexcept {
  const std::string wish = env_num_threads();
  const long asked = wish.empty() ? 0 : std::strtol(wish.c_str(), nullptr, 10);
  const int count = asked >= 1 && asked <= kMaxThreads ? static_cast<int>(asked) : allowed_processors();
  return count < kMaxThreads ? count : kMaxThreads;
}

std::atomic<int>& thread_limit() noexcept {
  static std::atomic<int> limit{initial_threads()};
  return limit;
}

thread_local bool inside_parallel = false;

// One job at a time; workers sleep between jobs. Never destroyed: at interpreter exit other libraries may still hold
// threads inside, and the operating system ends ours.
class Pool {
 public:
  // Runs the job with up to `threads` threads, the caller's included. False if the pool is busy.
  bool run(int threads, std::int64_t count, std::int64_t step, detail::RangeFunction body, void* context) noexcept {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    try {
      while (static_cast<int>(workers_) < threads - 1) {
        std::thread([this, id = workers_] { work(id); }).detach();
        ++workers_;
      }
    } catch (...) {
      // No more threads to be had: go on with those that exist.
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      context_ = context;
      count_ = count;
      step_ = step;
      next_.store(0, std::memory_order_relaxed);
      wanted_ = threads - 1 < workers_ ? threads - 1 : workers_;
      active_ = wanted_;
      ++generation_;
    }
    if (wanted_ > 0) start_.notify_all();
    take_ranges();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return active_ == 0; });
    return true;
  }

 private:
  void take_ranges() noexcept {
    inside_parallel = true;
    for (;;) {
      const std::int64_t begin = next_.fetch_add(step_, std::memory_order_relaxed);
      if (begin >= count_) break;
      body_(context_, begin, begin + step_ < count_ ? begin + step_ : count_);
    }
    inside_parallel = false;
  }

  void work(int id) noexcept {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      start_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (id >= wanted_) continue;
      lock.unlock();
      take_ranges();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex owner_;  // held by the thread whose job runs
  std::mutex mutex_;
  std::condition_variable start_, done_;
  std::uint64_t generation_ = 0;
  int workers_ = 0, wanted_ = 0, active_ = 0;
  detail::RangeFunction body_ = nullptr;
  void* context_ = nullptr;
  std::int64_t count_ = 0, step_ = 1;
  std::atomic<std::int64_t> next_{0};
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
