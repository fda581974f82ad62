// A checked letterbox as kernels take it. Nothing from std:: but integers: files of an instruction set include this.
#pragma once

#include <cstdint>

namespace yolonas {

struct LetterboxFrame {
  const std::uint8_t* image;  // [src_h][src_w][3], rows `row_bytes` apart
  std::int64_t src_h, src_w, row_bytes;
  float* out;  // CHW: [3][frame_h][frame_w]; HWC: [frame_h][frame_w][3]
  std::int64_t frame_h, frame_w;
  bool hwc;
  bool swap_channels;  // source channel c goes to 2 - c
  std::int64_t top, left, resized_h, resized_w;
  float mean[3], divisor[3];  // per destination channel
  float pad[3];               // per destination channel, already scaled
};

}  // namespace yolonas
