// What the kernels of suppression share: the verdict on a pair, and on 64 candidates in a row. Included by .cu files
// alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace yolonas::cuda {

inline constexpr int kNmsBits = 64;
inline constexpr unsigned kWarp = 0xffffffffu;  // all lanes

// A box at any address.
__device__ inline float4 box_at(const float* sides) { return make_float4(sides[0], sides[1], sides[2], sides[3]); }

// IoU of boxes x1, y1, x2, y2 above the limit, which is not negative; never with NaN. The order of operations is the
// CPU op's. Boxes that do not meet, which most do not, go without the division: its result would not be above 0.
__device__ inline bool overlap(const float4& kept, const float4& box, float limit) {
  const float w = (kept.z < box.z ? kept.z : box.z) - (kept.x > box.x ? kept.x : box.x);
  const float h = (kept.w < box.w ? kept.w : box.w) - (kept.y > box.y ? kept.y : box.y);
  const float inter = (w > 0.0f ? w : 0.0f) * (h > 0.0f ? h : 0.0f);
  if (!(inter > 0.0f)) return false;
  const float kept_area = (kept.z - kept.x) * (kept.w - kept.y);
  const float area = (box.z - box.x) * (box.w - box.y);
  return inter / (kept_area + area - inter) > limit;
}

// The first n bits; n in 0..64.
__device__ inline std::uint64_t first_bits(int n) {
  return n >= kNmsBits ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
}

// Which of up to 64 candidates in order are kept. alive: those that nobody before the 64 has dropped; bit j of
// drops[i]: candidate i, if kept, drops candidate j > i. By a whole warp, and the same on all lanes. The chain of
// decisions, each of which waits for the one before, has a step for each kept candidate that drops somebody: most do
// not.
__device__ inline std::uint64_t keep_in_order(std::uint64_t alive, const std::uint64_t* drops, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::uint64_t low = lane < n ? drops[lane] : 0, high = lane + 32 < n ? drops[lane + 32] : 0;
  const std::uint64_t low_busy = __ballot_sync(kWarp, low != 0), high_busy = __ballot_sync(kWarp, high != 0);
  for (std::uint64_t left = alive & (high_busy << 32 | low_busy); left != 0;) {
    const int i = __ffsll(static_cast<long long>(left)) - 1;
    const std::uint64_t dropped = __shfl_sync(kWarp, i < 32 ? low : high, i);  // of lane i modulo 32
    alive &= ~dropped;
    left &= (left - 1) & ~dropped;
  }
  return alive;
}

}  // namespace yolonas::cuda
