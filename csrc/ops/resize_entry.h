// One destination of a resized axis, for host and device alike: the numbers must be the same bit for bit.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define YN_HOST_DEVICE __host__ __device__
#else
#define YN_HOST_DEVICE
#endif

namespace yolonas {

// First source index and packed weights in 2048ths: low half first source, high half second.
struct ResizeEntry {
  std::int32_t index, weights;
};

// Destination i of an axis with `source` sources and ratio = double(source) / double(destinations); the formula stands
// in ops/letterbox.h. Needs a build without contraction to FMA. i may lie outside the axis (the result is of no use
// then).
YN_HOST_DEVICE inline ResizeEntry resize_entry(std::int64_t i, double ratio, std::int64_t source,
                                               bool keep_border_weights) {
  const float position = static_cast<float>((static_cast<double>(i) + 0.5) * ratio - 0.5);
  const float floor = floorf(position);
  float part = position - floor;
  std::int64_t index = static_cast<std::int64_t>(floor);
  if (!keep_border_weights && (index < 0 || index >= source - 1)) {
    part = 0.0f;
    index = index < 0 ? 0 : source - 1;
  }
  if (index > source - 1) index = source - 1;
  const std::int32_t w1 = static_cast<std::int32_t>(rintf(part * 2048.0f));
  const std::int32_t w0 = static_cast<std::int32_t>(rintf((1.0f - part) * 2048.0f));
  return {static_cast<std::int32_t>(index), w0 | w1 << 16};
}

}  // namespace yolonas
