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

}  // namespace yolonas
