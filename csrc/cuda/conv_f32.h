// The float32 convolution.
#pragma once

#include "cuda/conv.h"

namespace yolonas::cuda {

// As conv() for float32 without splits, on the CUDA cores: every product is a fused multiply-add in float32, every sum
// begins at 0 and goes up the depth, so a result depends on nothing but its own inputs.
void conv_f32(const ConvArgs& args, Queue queue);

// The same for kernels that are no squares, in place of args.kernel, and without its needs: any number of channels, any
// address, no offset where it is null. kernel_h * kernel_w * in_c and out_h * out_w are below 2^31.
void conv_f32_any(const ConvArgs& args, int kernel_h, int kernel_w, Queue queue);

}  // namespace yolonas::cuda
