// y = act(conv2d(x, weight) + bias) + residual_scale * residual in NHWC, float32, groups 1, dilation 1.
#pragma once

#include "core/tensor_view.h"

namespace yolonas {

struct Conv2dParams {
  std::int64_t stride = 1, padding = 0;
  bool relu = true;
  float residual_scale = 1.0f;
};

struct Conv2dShape {
  std::int64_t batch, in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w;
};

// x (N, H, W, C); weight (K, kh, kw, C); bias (K,) or null; residual (N, H', W', K) or null; y (N, H', W', K) with
// H' = (H + 2 * padding - kh) / stride + 1. All float32 and contiguous. y may be residual, and must not overlap x.
// Errors begin with `op`.
Conv2dShape check_conv2d(const TensorView& x, const TensorView& weight, const TensorView* bias,
                         const TensorView* residual, const Conv2dParams& params, const TensorView& y,
                         const char* op = "conv2d_bias_act");

// The same on symmetrically quantised numbers: y = requantised(act(sum * multiplier + offset) + residual *
// residual_multiplier), all of it as QuantConvArgs in cpu/kernels.h says.
struct QuantConv2dParams {
  std::int64_t stride = 1, padding = 0;
  bool relu = true;
  float residual_multiplier = 1.0f;
  bool unsigned_input = false;  // promises that no x is negative
};

inline constexpr std::int64_t kMaxQuantDepth = 65536;  // of kh * kw * C: 65536 * 255 * 127 fits int32

// x, weight and residual int8 in the shapes above, weight without -128; multiplier and offset float32 (K,) and finite;
// y int8 or float32. y may be residual where both are int8.
Conv2dShape check_conv2d_s8(const TensorView& x, const TensorView& weight, const TensorView& multiplier,
                            const TensorView& offset, const TensorView* residual, const QuantConv2dParams& params,
                            const TensorView& y);

}  // namespace yolonas
