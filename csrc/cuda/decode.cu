// Every output value is worked out by one thread from the logits it needs: simple, and bound by memory. Threads next to
// each other take what lies next to each other in the logits (boxes) or in the result (scores).
#include "cuda/launch.h"

namespace yolonas::cuda {
namespace {

constexpr int kBins = 17;

// exp(-|x|) never overflows, and both signs of x share it; 0 below -87, as on the CPU.
__device__ float sigmoid(float x) {
  if (x < -87.0f) return 0.0f;
  const float e = expf(x > 0.0f ? -x : x);
  return (x > 0.0f ? 1.0f : e) / (1.0f + e);
}

// Expectation of a softmax over the bins at x[bin * step]. A NaN bin makes the sums NaN.
__device__ float dfl_expectation(const float* x, std::int64_t step) {
  float top = x[0];
  for (int bin = 1; bin < kBins; ++bin) top = x[bin * step] > top ? x[bin * step] : top;
  float total = 0.0f, weighted = 0.0f;
  for (int bin = 0; bin < kBins; ++bin) {
    const float e = expf(x[bin * step] - top);
    total += e;
    weighted += e * static_cast<float>(bin);
  }
  return weighted / total;
}

__global__ void __launch_bounds__(kThreads) decode_boxes_kernel(const DecodeArgs a) {
  const std::int64_t cells = a.h * a.w;
  YN_FOR_EACH(i, a.batch * cells * 4) {
    const std::int64_t picture = i / (4 * cells), rest = i % (4 * cells);
    const std::int64_t cell = a.channels_last ? rest / 4 : rest % cells;
    const int side = static_cast<int>(a.channels_last ? rest % 4 : rest / cells);  // left, top, right, bottom
    const float* reg = a.reg + picture * 4 * kBins * cells;
    const float distance = a.channels_last ? dfl_expectation(reg + (cell * 4 + side) * kBins, 1)
                                           : dfl_expectation(reg + side * kBins * cells + cell, cells);
    const float point = static_cast<float>(side % 2 == 0 ? cell % a.w : cell / a.w) + 0.5f;
    a.boxes[(picture * a.anchors + a.first_anchor + cell) * 4 + side] =
        (side < 2 ? point - distance : point + distance) * a.stride;
  }
}

__global__ void __launch_bounds__(kThreads) decode_scores_kernel(const DecodeArgs a) {
  const std::int64_t cells = a.h * a.w;
  YN_FOR_EACH(i, a.batch * cells * a.classes) {
    const std::int64_t picture = i / (cells * a.classes), rest = i % (cells * a.classes);
    const std::int64_t cell = rest / a.classes, k = rest % a.classes;
    const float* cls = a.cls + picture * cells * a.classes;
    a.scores[(picture * a.anchors + a.first_anchor) * a.classes + rest] =
        sigmoid(a.channels_last ? cls[rest] : cls[k * cells + cell]);
  }
}

}  // namespace

void decode_boxes_f32(const DecodeArgs& args, Stream stream) {
  launch("decode", stream, args.batch * args.h * args.w * 4, kThreads, kThreads, decode_boxes_kernel, args);
}

void decode_scores_f32(const DecodeArgs& args, Stream stream) {
  launch("decode", stream, args.batch * args.h * args.w * args.classes, kThreads, kThreads, decode_scores_kernel, args);
}

}  // namespace yolonas::cuda
