// How a step of a plan is computed: the algorithm of a convolution, by a built-in cost table, and the pieces that it is
// cut into for threads. Neither changes with time or load: the same plan every time, unless measured choices are given.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace yolonas::cpu {

// Of the kernels and the cost table: raised when a change to them makes earlier measurements worthless.
inline constexpr int kPlanVersion = 2;

enum class Algorithm : std::uint32_t {
  direct,
  pointwise,
  winograd43,
  winograd_s2,
  upsample,
  max_pool,
  quantize,
  dequantize
};
const char* name(Algorithm algorithm) noexcept;
Algorithm find_algorithm(const std::string& name);  // throws std::invalid_argument

// What can compute a convolution with padding kernel / 2, of floats or of integers: direct always, others by kernel and
// stride. Best guess last.
std::vector<Algorithm> algorithms_for(std::int64_t kernel, std::int64_t stride, bool integer);

// The algorithm with the least estimated time for one picture on the table's instruction set.
Algorithm choose_algorithm(const ConvSizes& sizes, bool integer, const CpuKernels& table);

// Units are what the kernel's first range counts: rows, pixels or tiles of a picture. Block steps below `blocks` only
// where the kernel takes a range of blocks.
struct Cut {
  std::int64_t units = 1, unit_step = 1, blocks = 1, block_step = 1;

  std::int64_t unit_pieces() const { return (units + unit_step - 1) / unit_step; }
  std::int64_t block_pieces() const { return (blocks + block_step - 1) / block_step; }
};

// Pieces for `threads` threads that share `pictures` calls like this one. For the pointwise form all pictures count as
// one, as they do in `sizes`.
Cut choose_cut(Algorithm algorithm, const ConvSizes& sizes, std::int64_t units, std::int64_t pictures, int threads,
               const CpuKernels& table);

// That cut, and up to `most` in all that differ from each other by a quarter at least, best guess first.
std::vector<Cut> best_cuts(Algorithm algorithm, const ConvSizes& sizes, std::int64_t units, std::int64_t pictures,
                           int threads, const CpuKernels& table, std::size_t most);

// A way to compute a step, made elsewhere than in the cost table. The steps of its cut lie in 1..units and 1..blocks.
struct Choice {
  Algorithm algorithm = Algorithm::direct;
  std::int64_t unit_step = 1, block_step = 1;
};

}  // namespace yolonas::cpu
