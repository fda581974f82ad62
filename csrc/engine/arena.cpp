#include "engine/arena.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>
#include <numeric>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#define YN_HAVE_MMAP 1
#else
#define YN_HAVE_MMAP 0
#endif

namespace yolonas::engine {
namespace {

constexpr std::int64_t kMaxFloats = std::numeric_limits<std::int64_t>::max() / 16;

[[maybe_unused]] constexpr std::size_t kHugePage = 2 << 20;

std::size_t bytes_of(std::int64_t floats) {
  if (floats < 0 || floats > kMaxFloats) throw std::bad_alloc();
  return static_cast<std::size_t>(floats) * sizeof(float);
}

}  // namespace

// Large blocks ask for huge pages: the planes of a Winograd convolution lie far apart, and with small pages every one
// of them costs a place in the processor's table of addresses.
Memory::Memory(std::int64_t floats) : floats_(floats) {
  if (floats == 0) return;
  const std::size_t bytes = bytes_of(floats);
#if defined(__linux__)
  if (bytes >= kHugePage) {
    mapping_bytes_ = (bytes + kHugePage - 1) / kHugePage * kHugePage + kHugePage;
    mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    const std::size_t past = reinterpret_cast<std::uintptr_t>(mapping_) % kHugePage;
    char* const start = static_cast<char*>(mapping_) + (past ? kHugePage - past : 0);
    (void)madvise(start, mapping_bytes_ - kHugePage, MADV_HUGEPAGE);  // where there are none, small ones do
    data_ = reinterpret_cast<float*>(start);
    return;
  }
#endif
  data_ = static_cast<float*>(::operator new(bytes, std::align_val_t{kAlignFloats * sizeof(float)}));
}

Memory Memory::guarded(std::int64_t floats) {
  if (floats == 0) return Memory();
#if YN_HAVE_MMAP
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t bytes = bytes_of(floats), body = (bytes + page - 1) / page * page;
  Memory memory;
  void* mapping = mmap(nullptr, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  memory.mapping_ = mapping;
  memory.mapping_bytes_ = body + page;
  memory.floats_ = floats;
  char* const end = static_cast<char*>(mapping) + body;
  memory.data_ = reinterpret_cast<float*>(end - bytes);
  if (mprotect(end, page, PROT_NONE) != 0) throw std::bad_alloc();
#else
  Memory memory(floats);
#endif
  std::fill(memory.data_, memory.data_ + floats, std::numeric_limits<float>::quiet_NaN());
  return memory;
}

Memory::~Memory() {
#if YN_HAVE_MMAP
  if (mapping_) {
    munmap(mapping_, mapping_bytes_);
    return;
  }
#endif
  if (data_) ::operator delete(data_, std::align_val_t{kAlignFloats * sizeof(float)});
}

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      floats_(std::exchange(other.floats_, 0)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_bytes_(std::exchange(other.mapping_bytes_, 0)) {}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(floats_, other.floats_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  return *this;
}

Layout lay_out(const std::vector<std::int64_t>& sizes, std::int64_t align,
               const std::function<bool(std::size_t, std::size_t)>& conflict) {
  std::vector<std::size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return sizes[a] > sizes[b]; });
  Layout layout;
  layout.offset.assign(sizes.size(), -1);
  std::vector<std::size_t> placed;  // by offset
  for (const std::size_t at : order) {
    if (sizes[at] == 0) continue;
    const std::int64_t size = round_up(sizes[at], align);
    std::int64_t best = -1, best_gap = std::numeric_limits<std::int64_t>::max(), end = 0;
    for (const std::size_t other : placed) {
      if (!conflict(at, other)) continue;
      const std::int64_t gap = layout.offset[other] - end;
      if (gap >= size && gap < best_gap) {
        best = end;
        best_gap = gap;
      }
      end = std::max(end, layout.offset[other] + round_up(sizes[other], align));
    }
    layout.offset[at] = best >= 0 ? best : end;
    layout.size = std::max(layout.size, layout.offset[at] + size);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), at,
                                   [&](std::size_t a, std::size_t b) { return layout.offset[a] < layout.offset[b]; }),
                  at);
  }
  return layout;
}

Layout lay_out(const std::vector<Lifetime>& buffers) {
  std::vector<std::int64_t> floats;
  for (const Lifetime& buffer : buffers) floats.push_back(buffer.floats);
  return lay_out(floats, kAlignFloats, [&](std::size_t a, std::size_t b) {
    return buffers[a].first <= buffers[b].last && buffers[b].first <= buffers[a].last;
  });
}

}  // namespace yolonas::engine
