// Convolution on the CPU: the direct form, the seam that faster algorithms fill.
#pragma once

#include "ops/conv2d.h"

namespace yolonas::cpu {

// Packs the weight on every call (a plan packs once). Bit-equal for any thread count and batch position.
void conv2d_bias_act(const TensorView& x, const TensorView& weight, const TensorView* bias, const TensorView* residual,
                     const Conv2dParams& params, const TensorView& y);

// The same on quantised numbers; y is int8 or float32. Bit-equal on every instruction set, too.
void conv2d_s8(const TensorView& x, const TensorView& weight, const TensorView& multiplier, const TensorView& offset,
               const TensorView* residual, const QuantConv2dParams& params, const TensorView& y);

}  // namespace yolonas::cpu
