#include "ops/conv2d.h"

#include <algorithm>
#include <cmath>

namespace yolonas {
namespace {

// What both kinds share: x and weight of the given dtype, sizes, and their output shape.
Conv2dShape check_sizes(const char* op, const TensorView& x, const TensorView& weight, DType dtype, std::int64_t stride,
                        std::int64_t padding) {
  check_tensor(x, op, "x", dtype, {-1, -1, -1, -1}, "(N, H, W, C)");
  check_tensor(weight, op, "weight", dtype, {-1, -1, -1, x.shape[3]}, "(K, kh, kw, C)");
  Conv2dShape s{};
  s.batch = x.shape[0];
  s.in_h = x.shape[1];
  s.in_w = x.shape[2];
  s.in_c = x.shape[3];
  s.out_c = weight.shape[0];
  s.kernel_h = weight.shape[1];
  s.kernel_w = weight.shape[2];
  YN_CHECK(s.kernel_h >= 1 && s.kernel_w >= 1 && s.in_c >= 1 && s.out_c >= 1, op,
           ": weight must have at least one channel and tap, got ", shape_text(weight));
  YN_CHECK(stride >= 1 && stride <= 1024, op, ": stride must lie in 1..1024, got ", stride);
  YN_CHECK(padding >= 0 && padding < 1024, op, ": padding must lie in 0..1023, got ", padding);
  const std::int64_t room_h = s.in_h + 2 * padding - s.kernel_h, room_w = s.in_w + 2 * padding - s.kernel_w;
  YN_CHECK(room_h >= 0 && room_w >= 0, op, ": a kernel of ", s.kernel_h, "x", s.kernel_w,
           " must fit into the padded input, got x ", shape_text(x), " and padding ", padding);
  s.out_h = room_h / stride + 1;
  s.out_w = room_w / stride + 1;
  return s;
}

void check_results(const char* op, const TensorView& x, const TensorView* residual, DType residual_dtype,
                   const Conv2dShape& s, const TensorView& y, DType y_dtype) {
  const auto out_shape = {s.batch, s.out_h, s.out_w, s.out_c};
  if (residual) check_tensor(*residual, op, "residual", residual_dtype, out_shape, "(N, H', W', K)");
  check_output(y, op, "out", y_dtype, out_shape, "(N, H', W', K)");
  YN_CHECK(!overlap(x, y), op, ": out must not overlap x");
  YN_CHECK(!residual || (residual->data == y.data && residual_dtype == y_dtype) || !overlap(*residual, y), op,
           ": out must be residual itself or not overlap it");
}

void check_factors(const char* op, const char* argument, const TensorView& view, std::int64_t channels) {
  check_tensor(view, op, argument, DType::f32, {channels}, "(K,)");
  for (std::int64_t k = 0; k < channels; ++k) {
    const float value = view.as<const float>()[k];
    YN_CHECK(std::isfinite(value), op, ": ", argument, " must be finite, got ", value, " for channel ", k);
  }
}

}  // namespace

Conv2dShape check_conv2d(const TensorView& x, const TensorView& weight, const TensorView* bias,
                         const TensorView* residual, const Conv2dParams& p, const TensorView& y, const char* op) {
  const Conv2dShape s = check_sizes(op, x, weight, DType::f32, p.stride, p.padding);
  YN_CHECK(std::isfinite(p.residual_scale), op, ": residual_scale must be finite, got ", p.residual_scale);
  if (bias) check_tensor(*bias, op, "bias", DType::f32, {s.out_c}, "(K,)");
  check_results(op, x, residual, DType::f32, s, y, DType::f32);
  return s;
}

Conv2dShape check_conv2d_s8(const TensorView& x, const TensorView& weight, const TensorView& multiplier,
                            const TensorView& offset, const TensorView* residual, const QuantConv2dParams& p,
                            const TensorView& y) {
  const char* op = "conv2d_s8";
  const Conv2dShape s = check_sizes(op, x, weight, DType::s8, p.stride, p.padding);
  const std::int64_t depth = s.kernel_h * s.kernel_w * s.in_c;
  YN_CHECK(depth <= kMaxQuantDepth, op, ": kh * kw * C must be at most ", kMaxQuantDepth, ", got ", depth);
  check_factors(op, "multiplier", multiplier, s.out_c);
  check_factors(op, "offset", offset, s.out_c);
  YN_CHECK(std::isfinite(p.residual_multiplier), op, ": residual_multiplier must be finite, got ",
           p.residual_multiplier);
  YN_CHECK_TYPE(y.dtype == DType::s8 || y.dtype == DType::f32, op, ": out must be int8 or float32, got ",
                name(y.dtype));
  check_results(op, x, residual, DType::s8, s, y, y.dtype);
  const auto lowest = [](const TensorView& view) {
    const auto* values = view.as<const std::int8_t>();
    return view.numel() ? int{*std::min_element(values, values + view.numel())} : 0;
  };
  YN_CHECK(lowest(weight) > -128, op, ": weight must lie within -127..127, got -128");
  YN_CHECK(!p.unsigned_input || lowest(x) >= 0, op, ": x must not be negative with unsigned_input, got ", lowest(x));
  return s;
}

}  // namespace yolonas
