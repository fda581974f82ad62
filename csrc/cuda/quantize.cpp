#include "cuda/quantize.h"

namespace yolonas::cuda {
namespace {

FakeQuantizeArgs arguments(const TensorView& x, const TensorView& scale, const FakeQuantizeParams& params,
                           const ChannelSplit& split) {
  FakeQuantizeArgs args{};
  args.x = x.as<const float>();
  args.scale = scale.as<const float>();
  args.outer = split.outer;
  args.channels = split.channels;
  args.inner = split.inner;
  args.qmin = static_cast<float>(params.qmin);
  args.qmax = static_cast<float>(params.qmax);
  return args;
}

}  // namespace

void fake_quantize(const TensorView& x, const TensorView& scale, const FakeQuantizeParams& params, const TensorView& y,
                   Stream stream) {
  const ChannelSplit split = check_fake_quantize("fake_quantize", x, scale, params, y);
  fake_quantize_f32(arguments(x, scale, params, split), y.as<float>(), stream);
}

void fake_quantize_backward(const TensorView& dy, const TensorView& x, const TensorView& scale,
                            const FakeQuantizeParams& params, const TensorView& dx, Stream stream) {
  const char* op = "fake_quantize_backward";
  const ChannelSplit split = check_fake_quantize(op, x, scale, params, dx);
  check_fake_quantize(op, dy, scale, params, dx);
  fake_quantize_backward_f32(arguments(x, scale, params, split), dy.as<const float>(), dx.as<float>(), stream);
}

}  // namespace yolonas::cuda
