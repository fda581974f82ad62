// Letterbox: resize, place on grey, reorder channels, scale, in one pass; what it means on any device, and its checks.
//
// Resizing is OpenCV's uint8 bilinear: for n destinations and m sources along an axis f = float((i + 0.5) * (m / n) -
// 0.5), s = floor(f), t = f - s, weights rint((1 - t) * 2048) and rint(t * 2048). Along x, s outside [0, m - 2] means t
// = 0; along y, t is kept and both rows are clamped. Horizontal pass R = I[s] * w0 + I[s + 1] * w1 in int32, then
// (((v0 * (R0 >> 4)) >> 16) + ((v1 * (R1 >> 4)) >> 16) + 2) >> 2.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor_view.h"
#include "ops/letterbox_frame.h"

namespace yolonas {

struct LetterboxParams {
  std::int64_t resized_h = 0, resized_w = 0;  // the picture after resizing
  std::int64_t top = 0, left = 0;             // where it lies in the frame
  int pad_value = 114;                        // uint8
  bool swap_channels = false;                 // BGR <-> RGB
  bool hwc = false;                           // layout of out: (H, W, 3) instead of (3, H, W)
  float mean[3] = {0, 0, 0};                  // per output channel, uint8 units
  float divisor[3] = {255, 255, 255};
};

// Checks the arguments and lays them out for a kernel. image: uint8 (h, w, 3), rows may be any distance apart, pixels
// contiguous. out: float32, contiguous.
LetterboxFrame check_letterbox(const TensorView& image, const TensorView& out, const LetterboxParams& params);

// The same for a frame that has no memory yet: `out` of the result is null. `op` and `argument`, which names the image,
// go into the text.
LetterboxFrame check_letterbox(const char* op, const char* argument, const TensorView& image, std::int64_t frame_h,
                               std::int64_t frame_w, const LetterboxParams& params);

// Source index and packed weights (low half first source, high half second) of one axis.
struct ResizeTable {
  std::vector<std::int32_t> index, weights;
};
void resize_table(std::int64_t source, std::int64_t resized, bool keep_border_weights, ResizeTable& table);

}  // namespace yolonas
