// A 3x3 convolution by Winograd's algorithms, whatever the cost table would choose: for tests, measurements and the
// choice itself.
#pragma once

#include "ops/conv2d.h"

namespace yolonas::cpu {

// conv2d_bias_act for a 3x3 kernel, stride 1 or 2 and padding 1. Packs the weight on every call (a plan packs once).
// Bit-equal for any thread count and batch position. A NaN or infinity in the input reaches all outputs of the 4x4
// tiles that read it.
void conv2d_winograd(const TensorView& x, const TensorView& weight, const TensorView* bias, const TensorView* residual,
                     const Conv2dParams& params, const TensorView& y);

// pack.h's estimate for a weight (K, 3, 3, C).
double winograd_error(const TensorView& weight, std::int64_t stride);

}  // namespace yolonas::cpu
