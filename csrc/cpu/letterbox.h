// Letterbox on the CPU.
#pragma once

#include "core/tensor_view.h"
#include "ops/letterbox.h"

namespace yolonas::cpu {

// Splits the frame's rows over threads; the result does not depend on how. Bit-equal between ISAs.
void letterbox(const TensorView& image, const TensorView& out, const LetterboxParams& params);

}  // namespace yolonas::cpu
