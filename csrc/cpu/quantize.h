// Fake quantisation on the CPU.
#pragma once

#include "ops/quantize.h"

namespace yolonas::cpu {

// In place (y the same memory as x) allowed. Bit-equal to torch.fake_quantize_per_{tensor,channel}_affine.
void fake_quantize(const TensorView& x, const TensorView& scale, const FakeQuantizeParams& params, const TensorView& y);

// Straight-through gradient with clipped range: dx = dy where the unclamped integer lies in [qmin, qmax], else 0.
void fake_quantize_backward(const TensorView& dy, const TensorView& x, const TensorView& scale,
                            const FakeQuantizeParams& params, const TensorView& dx);

}  // namespace yolonas::cpu
