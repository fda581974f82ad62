// Fake quantisation on a CUDA device. All tensors lie on the current device; the values of scale are not checked.
#pragma once

#include "cuda/kernels.h"
#include "ops/quantize.h"

namespace yolonas::cuda {

// In place (y the same memory as x) allowed.
void fake_quantize(const TensorView& x, const TensorView& scale, const FakeQuantizeParams& params, const TensorView& y,
                   Stream stream);

// Straight-through gradient with clipped range: dx = dy where the unclamped integer lies in [qmin, qmax], else 0.
void fake_quantize_backward(const TensorView& dy, const TensorView& x, const TensorView& scale,
                            const FakeQuantizeParams& params, const TensorView& dx, Stream stream);

}  // namespace yolonas::cuda
