// The float32 convolution.
#pragma once

#include "cuda/conv.h"

namespace yolonas::cuda {

// As conv() for float32 without splits, on the CUDA cores: every product is a fused multiply-add in float32, every sum
// begins at 0 and goes up the depth, so a result depends on nothing but its own inputs.
void conv_f32(const ConvArgs& args, Queue queue);

}  // namespace yolonas::cuda
