// Letterbox on the CPU.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor_view.h"
#include "cpu/kernels.h"
#include "ops/letterbox.h"

namespace yolonas::cpu {

// Splits the frame's rows over threads; the result does not depend on how. Bit-equal between ISAs.
void letterbox(const TensorView& image, const TensorView& out, const LetterboxParams& params);

// What a letterbox works in. Kept between calls it grows to the largest one's needs, and calls allocate nothing then.
struct LetterboxWorkspace {
  ResizeTable x, y;
  std::vector<std::int16_t> rows;
};

// The same for a checked frame, by the kernels of `table`.
void letterbox(const CpuKernels& table, const LetterboxFrame& frame, LetterboxWorkspace& workspace);

}  // namespace yolonas::cpu
