// Feature maps on a device as kernels take them. Plain C++.
#pragma once

#include <cstdint>

namespace yolonas::cuda {

using Stream = void*;  // a cudaStream_t; null is the default stream

// Where a launch is queued. overlap: it may begin while the one before it on the stream still runs (programmatic
// dependent launch, from sm_90 on); its kernel waits for the end of that one before it touches what others write.
// Launches that follow another stream's event must not ask for it.
struct Queue {
  Stream stream = nullptr;
  bool overlap = false;
};

enum class Elem : std::uint8_t { f32, f16, s8 };
constexpr int bytes_of(Elem elem) { return elem == Elem::f32 ? 4 : elem == Elem::f16 ? 2 : 1; }
const char* name(Elem elem) noexcept;  // "float32", "float16", "int8"

// Some channels of an NHWC buffer: pixels in raster order, pictures one after another without a gap.
struct MapView {
  void* data = nullptr;  // first channel of the first pixel
  Elem elem = Elem::f32;
  int channels = 0;
  int pixel = 0;  // elements from pixel to pixel
};

}  // namespace yolonas::cuda
