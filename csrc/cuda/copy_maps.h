// Copies of several float32 maps in one launch: the outputs of a run. Plain C++.
#pragma once

#include <cstdint>

#include "cuda/maps.h"

namespace yolonas::cuda {

struct MapCopy {
  MapView from;  // float32
  float* to;     // [pixels][from.channels], one pixel after another
  std::int64_t pixels;
};

// Any number of them, one launch for up to kMostCopies. 16 bytes at a time where addresses and strides allow it. As the
// launchers of kernels.h.
inline constexpr int kMostCopies = 16;
void copy_maps(const MapCopy* copies, int count, Queue queue);

}  // namespace yolonas::cuda
