// Letterbox on a CUDA device.
#pragma once

#include "cuda/kernels.h"
#include "ops/letterbox.h"

namespace yolonas::cuda {

// image and out lie on the current device.
void letterbox(const TensorView& image, const TensorView& out, const LetterboxParams& params, Stream stream);

}  // namespace yolonas::cuda
