// Fake quantisation: what it means on any device, and its checks. Symmetric, zero point 0 (Jacob et al. 2018).
#pragma once

#include "core/tensor_view.h"

namespace yolonas {

// y = clamp(rint(x / s), qmin, qmax) * s, ties to even. One scale for the tensor, or one per slice along `axis`.
struct FakeQuantizeParams {
  int axis = -1;  // -1: per tensor
  int qmin = -128, qmax = 127;
};

// The tensor seen as [outer][channels][inner]; channels = 1 per tensor.
struct ChannelSplit {
  std::int64_t outer = 1, channels = 1, inner = 1;
};

// x, y: float32, contiguous, same shape. scale: float32 (1,) or (x.shape[axis],), positive and finite.
ChannelSplit check_fake_quantize(const char* op, const TensorView& x, const TensorView& scale,
                                 const FakeQuantizeParams& params, const TensorView& y);

}  // namespace yolonas
