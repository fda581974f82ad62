#include "cpu/quantize.h"

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace yolonas::cpu {
namespace {

constexpr std::int64_t kGrain = 1 << 15;

// Calls run(offset, length, scale pointer, scale step) over stretches that share a scale, or over rows of channels when
// the channel is the last axis.
template <class Run>
void for_each_stretch(const ChannelSplit& split, const float* scale, const Run& run) {
  if (split.inner == 1) {
    const std::int64_t grain = split.channels > kGrain ? 1 : kGrain / (split.channels > 0 ? split.channels : 1) + 1;
    parallel_for(split.outer, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t o = begin; o < end; ++o) run(o * split.channels, split.channels, scale, 1);
    });
  } else if (split.outer * split.channels == 1) {
    parallel_for(split.inner, kGrain, [&](std::int64_t begin, std::int64_t end) { run(begin, end - begin, scale, 0); });
  } else {
    const std::int64_t grain = kGrain / (split.inner > 0 ? split.inner : 1) + 1;
    parallel_for(split.outer * split.channels, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t at = begin; at < end; ++at) run(at * split.inner, split.inner, scale + at % split.channels, 0);
    });
  }
}

}  // namespace

void fake_quantize(const TensorView& x, const TensorView& scale, const FakeQuantizeParams& params,
                   const TensorView& y) {
  const ChannelSplit split = check_fake_quantize("fake_quantize", x, scale, params, y);
  const CpuKernels& table = kernels();
  for_each_stretch(split, scale.as<const float>(),
                   [&](std::int64_t at, std::int64_t length, const float* s, std::int64_t step) {
                     table.fake_quantize_f32(x.as<const float>() + at, s, step, length, static_cast<float>(params.qmin),
                                             static_cast<float>(params.qmax), y.as<float>() + at);
                   });
}

void fake_quantize_backward(const TensorView& dy, const TensorView& x, const TensorView& scale,
                            const FakeQuantizeParams& params, const TensorView& dx) {
  const char* op = "fake_quantize_backward";
  const ChannelSplit split = check_fake_quantize(op, x, scale, params, dx);
  check_fake_quantize(op, dy, scale, params, dx);
  const CpuKernels& table = kernels();
  for_each_stretch(split, scale.as<const float>(),
                   [&](std::int64_t at, std::int64_t length, const float* s, std::int64_t step) {
                     table.fake_quantize_backward_f32(dy.as<const float>() + at, x.as<const float>() + at, s, step,
                                                      length, static_cast<float>(params.qmin),
                                                      static_cast<float>(params.qmax), dx.as<float>() + at);
                   });
}

}  // namespace yolonas::cpu
