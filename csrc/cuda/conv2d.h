// conv2d_bias_act on tensors of a device.
#pragma once

#include "cuda/maps.h"
#include "ops/conv2d.h"

namespace yolonas::cuda {

// See check_conv2d for the shapes and the errors. All on the current device; queued on the stream. bias and residual
// may be null. Sums go up the depth in float32 with fused multiply-adds: a result depends on nothing but its own
// inputs.
void conv2d(const TensorView& x, const TensorView& weight, const TensorView* bias, const TensorView* residual,
            const Conv2dParams& params, const TensorView& y, Stream stream);

}  // namespace yolonas::cuda
