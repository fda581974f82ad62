// Fake quantisation, symmetric, and its straight-through gradient (Jacob et al. 2018). Bound by memory.
#include "cuda/launch.h"

namespace yolonas::cuda {
namespace {

__device__ float scale_of(const FakeQuantizeArgs& a, std::int64_t i) {
  return a.scale[a.channels == 1 ? 0 : i / a.inner % a.channels];
}

// Adding zero turns -0 into 0: an integer has no sign of zero.
__device__ float quantized(float x, float scale) { return rintf(x * (1.0f / scale)) + 0.0f; }

__global__ void __launch_bounds__(kThreads) fake_quantize_kernel(const FakeQuantizeArgs a, float* y) {
  YN_FOR_EACH(i, a.outer * a.channels * a.inner) {
    const float s = scale_of(a, i), q = quantized(a.x[i], s);
    const float low = q > a.qmin ? q : a.qmin;  // NaN becomes qmin
    y[i] = (low < a.qmax ? low : a.qmax) * s;
  }
}

__global__ void __launch_bounds__(kThreads)
    fake_quantize_backward_kernel(const FakeQuantizeArgs a, const float* dy, float* dx) {
  YN_FOR_EACH(i, a.outer * a.channels * a.inner) {
    const float q = quantized(a.x[i], scale_of(a, i));
    dx[i] = q >= a.qmin && q <= a.qmax ? dy[i] : 0.0f;
  }
}

}  // namespace

void fake_quantize_f32(const FakeQuantizeArgs& args, float* y, Stream stream) {
  launch("fake_quantize", stream, args.outer * args.channels * args.inner, kThreads, kThreads, fake_quantize_kernel,
         args, y);
}

void fake_quantize_backward_f32(const FakeQuantizeArgs& args, const float* dy, float* dx, Stream stream) {
  launch("fake_quantize_backward", stream, args.outer * args.channels * args.inner, kThreads, kThreads,
         fake_quantize_backward_kernel, args, dy, dx);
}

}  // namespace yolonas::cuda
