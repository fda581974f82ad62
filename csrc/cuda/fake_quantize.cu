// Fake quantisation, symmetric, and its straight-through gradient (Jacob et al. 2018). Bound by memory; with a scale a
// channel, two divisions an element come near it, so they are of 32 bits where the numbers fit (Index).
#include "cuda/launch.h"

namespace yolonas::cuda {
namespace {

std::int64_t elements(const FakeQuantizeArgs& a) { return a.outer * a.channels * a.inner; }

template <class Index>
__device__ float scale_of(const FakeQuantizeArgs& a, std::int64_t i) {
  if (a.channels == 1) return a.scale[0];
  return a.scale[static_cast<Index>(i) / static_cast<Index>(a.inner) % static_cast<Index>(a.channels)];
}

// Adding zero turns -0 into 0: an integer has no sign of zero.
__device__ float quantized(float x, float scale) { return rintf(x * (1.0f / scale)) + 0.0f; }

template <class Index>
__global__ void __launch_bounds__(kThreads) fake_quantize_kernel(const FakeQuantizeArgs a, float* y) {
#pragma unroll 1
  YN_FOR_EACH(i, a.outer * a.channels * a.inner) {
    const float s = scale_of<Index>(a, i), q = quantized(a.x[i], s);
    const float low = q > a.qmin ? q : a.qmin;  // NaN becomes qmin
    y[i] = (low < a.qmax ? low : a.qmax) * s;
  }
}

template <class Index>
__global__ void __launch_bounds__(kThreads)
    fake_quantize_backward_kernel(const FakeQuantizeArgs a, const float* dy, float* dx) {
#pragma unroll 1
  YN_FOR_EACH(i, a.outer * a.channels * a.inner) {
    const float q = quantized(a.x[i], scale_of<Index>(a, i));
    dx[i] = q >= a.qmin && q <= a.qmax ? dy[i] : 0.0f;
  }
}

// Numbers of elements below this are divided in 32 bits.
#if defined(YOLONAS_CUDA_EMULATOR)
constexpr std::int64_t kShort = 1 << 8;  // so that both kernels run
#else
constexpr std::int64_t kShort = std::int64_t{1} << 32;
#endif

}  // namespace

void fake_quantize_f32(const FakeQuantizeArgs& args, float* y, Stream stream) {
  const std::int64_t count = elements(args);
  launch("fake_quantize", stream, count, kThreads, kThreads,
         count < kShort ? fake_quantize_kernel<std::uint32_t> : fake_quantize_kernel<std::int64_t>, args, y);
}

void fake_quantize_backward_f32(const FakeQuantizeArgs& args, const float* dy, float* dx, Stream stream) {
  const std::int64_t count = elements(args);
  launch("fake_quantize_backward", stream, count, kThreads, kThreads,
         count < kShort ? fake_quantize_backward_kernel<std::uint32_t> : fake_quantize_backward_kernel<std::int64_t>,
         args, dy, dx);
}

}  // namespace yolonas::cuda
