// What the kernels of suppression share: the verdict on a pair, and on 64 candidates in a row. Included by .cu files
// alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace yolonas::cuda {

inline constexpr int kNmsBits = 64;

// IoU above the limit; never with NaN. The order of operations is the CPU op's.
__device__ inline bool overlap(const float* kept, const float* box, float limit) {
  const float w = (kept[2] < box[2] ? kept[2] : box[2]) - (kept[0] > box[0] ? kept[0] : box[0]);
  const float h = (kept[3] < box[3] ? kept[3] : box[3]) - (kept[1] > box[1] ? kept[1] : box[1]);
  const float inter = (w > 0.0f ? w : 0.0f) * (h > 0.0f ? h : 0.0f);
  const float kept_area = (kept[2] - kept[0]) * (kept[3] - kept[1]);
  const float area = (box[2] - box[0]) * (box[3] - box[1]);
  return inter / (kept_area + area - inter) > limit;
}

// The first n bits; n in 0..64.
__device__ inline std::uint64_t first_bits(int n) {
  return n >= kNmsBits ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
}

// Which of up to 64 candidates in order are kept. alive: those that nobody before the 64 has dropped; bit j of
// drops[i]: candidate i, if kept, drops candidate j > i. The loads do not depend on what is alive, so they run ahead of
// the chain of decisions.
__device__ inline std::uint64_t keep_in_order(std::uint64_t alive, const std::uint64_t* drops, int n) {
#pragma unroll 8
  for (int i = 0; i < n; ++i) alive &= ~((alive >> i & 1) != 0 ? drops[i] : 0);
  return alive;
}

}  // namespace yolonas::cuda
