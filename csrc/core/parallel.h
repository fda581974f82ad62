// parallel_for over a small pool of our own threads: the only file that knows the thread runtime.
#pragma once

#include <cstdint>
#include <type_traits>

namespace yolonas {

inline constexpr int kMaxThreads = 256;

// Threads that parallel_for may use, the caller included. Starts as YOLONAS_NUM_THREADS or OMP_NUM_THREADS where set,
// else as the number of cores that this process may run on (affinity, and the quota of its control group).
int num_threads() noexcept;
void set_num_threads(int count);  // throws std::invalid_argument outside 1..256

// Which of the pool's threads this one is, from 1 on; 0 for all other threads. A body that finds the data of its last
// call in this processor's caches does best to go on with the same part.
int worker_index() noexcept;

namespace detail {
using RangeFunction = void (*)(void* context, std::int64_t begin, std::int64_t end);
void parallel_ranges(std::int64_t count, std::int64_t grain, RangeFunction body, void* context) noexcept;
}  // namespace detail

// Calls body(begin, end) on disjoint ranges that cover [0, count), at least `grain` long but for the last one, and
// returns when all are done. The body must not throw. Ranges depend on nothing but their order of claiming, so a body
// whose ranges are independent gives the same result for any number of threads. A call from inside a body, or while
// another thread is using the pool, runs on the calling thread alone. Costs a few microseconds while calls follow each
// other within 50 of them, which idle threads spend looking out for the next; more to wake them up later.
template <class Body>
void parallel_for(std::int64_t count, std::int64_t grain, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  detail::parallel_ranges(
      count, grain,
      [](void* context, std::int64_t begin, std::int64_t end) { (*static_cast<Plain*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace yolonas
