// The arithmetic of head outputs, for every kernel that reads them. Included by .cu files alone.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace yolonas::cuda {

inline constexpr int kBins = 17;

// exp(-|x|) never overflows, and both signs of x share it; 0 below -87, as on the CPU.
__device__ inline float sigmoid(float x) {
  if (x < -87.0f) return 0.0f;
  const float e = expf(x > 0.0f ? -x : x);
  return (x > 0.0f ? 1.0f : e) / (1.0f + e);
}

// Expectation of a softmax over the bins at x[bin * step]. A NaN bin makes the sums NaN.
__device__ inline float dfl_expectation(const float* x, std::int64_t step) {
  float top = x[0];
  for (int bin = 1; bin < kBins; ++bin) top = x[bin * step] > top ? x[bin * step] : top;
  float total = 0.0f, weighted = 0.0f;
  for (int bin = 0; bin < kBins; ++bin) {
    const float e = expf(x[bin * step] - top);
    total += e;
    weighted += e * static_cast<float>(bin);
  }
  return weighted / total;
}

// A side of a box: the grid point of its axis minus (left, top) or plus (right, bottom) the distance, in input pixels.
__device__ inline float box_side(int side, std::int64_t cell, std::int64_t w, float distance, float stride) {
  const float point = static_cast<float>(side % 2 == 0 ? cell % w : cell / w) + 0.5f;
  return (side < 2 ? point - distance : point + distance) * stride;
}

}  // namespace yolonas::cuda
