#include "ops/conv2d.h"

#include <cmath>

namespace yolonas {

Conv2dShape check_conv2d(const TensorView& x, const TensorView& weight, const TensorView* bias,
                         const TensorView* residual, const Conv2dParams& p, const TensorView& y, const char* op) {
  check_tensor(x, op, "x", DType::f32, {-1, -1, -1, -1}, "(N, H, W, C)");
  check_tensor(weight, op, "weight", DType::f32, {-1, -1, -1, x.shape[3]}, "(K, kh, kw, C)");
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
  YN_CHECK(p.stride >= 1 && p.stride <= 1024, op, ": stride must lie in 1..1024, got ", p.stride);
  YN_CHECK(p.padding >= 0 && p.padding < 1024, op, ": padding must lie in 0..1023, got ", p.padding);
  YN_CHECK(std::isfinite(p.residual_scale), op, ": residual_scale must be finite, got ", p.residual_scale);
  const std::int64_t room_h = s.in_h + 2 * p.padding - s.kernel_h, room_w = s.in_w + 2 * p.padding - s.kernel_w;
  YN_CHECK(room_h >= 0 && room_w >= 0, op, ": a kernel of ", s.kernel_h, "x", s.kernel_w,
           " must fit into the padded input, got x ", shape_text(x), " and padding ", p.padding);
  s.out_h = room_h / p.stride + 1;
  s.out_w = room_w / p.stride + 1;
  if (bias) check_tensor(*bias, op, "bias", DType::f32, {s.out_c}, "(K,)");
  const auto out_shape = {s.batch, s.out_h, s.out_w, s.out_c};
  if (residual) check_tensor(*residual, op, "residual", DType::f32, out_shape, "(N, H', W', K)");
  check_output(y, op, "out", DType::f32, out_shape, "(N, H', W', K)");
  YN_CHECK(!overlap(x, y), op, ": out must not overlap x");
  YN_CHECK(!residual || residual->data == y.data || !overlap(*residual, y), op,
           ": out must be residual itself or not overlap it");
  return s;
}

}  // namespace yolonas
