#include "cuda/conv2d.h"

#include "core/check.h"
#include "cuda/conv_f32.h"

namespace yolonas::cuda {
namespace {

constexpr const char* kOp = "conv2d_bias_act";
constexpr std::int64_t kMost = 1 << 30;  // what kernels count in int

MapView map_of(const TensorView& tensor) {
  const int channels = static_cast<int>(tensor.shape[3]);
  return {tensor.data, Elem::f32, channels, channels};
}

void check_counts(const Conv2dShape& s) {
  for (const std::int64_t count : {s.batch, s.in_h, s.in_w, s.in_c, s.out_c, s.kernel_h, s.kernel_w}) {
    YN_CHECK(count <= kMost, kOp, ": sides of x and weight must be at most ", kMost, " on a CUDA device, got ", count);
  }
  const std::int64_t taps = s.kernel_h * s.kernel_w;
  YN_CHECK(taps <= kMost && taps * s.in_c <= kMost, kOp, ": kh * kw * C must be at most ", kMost,
           " on a CUDA device, got ", s.kernel_h, " * ", s.kernel_w, " * ", s.in_c);
  YN_CHECK(s.out_h <= kMost && s.out_w <= kMost && s.out_h * s.out_w <= kMost, kOp, ": H' * W' must be at most ", kMost,
           " on a CUDA device, got ", s.out_h, " * ", s.out_w);
}

}  // namespace

void conv2d(const TensorView& x, const TensorView& weight, const TensorView* bias, const TensorView* residual,
            const Conv2dParams& params, const TensorView& y, Stream stream) {
  const Conv2dShape s = check_conv2d(x, weight, bias, residual, params, y, kOp);
  check_counts(s);
  ConvArgs args{};
  args.x = map_of(x);
  args.weight = weight.data;
  if (bias) args.offset = bias->as<const float>();
  if (residual) args.residual = map_of(*residual);
  args.y = map_of(y);
  args.residual_scale = params.residual_scale;
  args.batch = static_cast<int>(s.batch);
  args.in_h = static_cast<int>(s.in_h);
  args.in_w = static_cast<int>(s.in_w);
  args.out_h = static_cast<int>(s.out_h);
  args.out_w = static_cast<int>(s.out_w);
  args.stride = static_cast<int>(params.stride);
  args.pad = static_cast<int>(params.padding);
  args.relu = params.relu;
  conv_f32_any(args, static_cast<int>(s.kernel_h), static_cast<int>(s.kernel_w), {stream, false});
}

}  // namespace yolonas::cuda
