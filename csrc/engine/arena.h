// Memory of the engine: aligned blocks, and one arena in which buffers that live at different times share places.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace yolonas::engine {

inline constexpr std::int64_t kAlignFloats = 16;  // 64 bytes: a cache line, and the widest vector

inline std::int64_t round_up(std::int64_t count, std::int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// A block of floats that begins at a multiple of 64 bytes; values undefined. Throws std::bad_alloc.
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::int64_t floats);
  // For tests: filled with NaN, and its end borders on a page that nobody may touch (where the system has such; not
  // aligned).
  static Memory guarded(std::int64_t floats);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;

  float* data() const noexcept { return data_; }
  std::int64_t floats() const noexcept { return floats_; }

 private:
  float* data_ = nullptr;
  std::int64_t floats_ = 0;
  void* mapping_ = nullptr;  // of a guarded or large block
  std::size_t mapping_bytes_ = 0;
};

// A buffer that holds values from step `first` to step `last`, both included.
struct Lifetime {
  std::int64_t floats = 0, first = 0, last = 0;
};

struct Layout {
  std::vector<std::int64_t> offset;  // in the units of the sizes, multiples of the alignment; -1 for empty blocks
  std::int64_t size = 0;             // of the whole arena
};

// Places blocks so that no two that `conflict` share a unit: the largest first, each into the smallest gap that holds
// it (Pisarchyk and Lee, 2020). Same input, same layout.
Layout lay_out(const std::vector<std::int64_t>& sizes, std::int64_t align,
               const std::function<bool(std::size_t, std::size_t)>& conflict);

// The same in floats, at multiples of kAlignFloats, for buffers that conflict when they live at the same time.
Layout lay_out(const std::vector<Lifetime>& buffers);

}  // namespace yolonas::engine
