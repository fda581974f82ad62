// Every output value is worked out by one thread from the logits it needs: simple, and bound by memory. Threads next to
// each other take what lies next to each other in the logits (boxes) or in the result (scores).
#include "cuda/heads.h"
#include "cuda/launch.h"

namespace yolonas::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) decode_boxes_kernel(const DecodeArgs a) {
  const std::int64_t cells = a.h * a.w;
  YN_FOR_EACH(i, a.batch * cells * 4) {
    const std::int64_t picture = i / (4 * cells), rest = i % (4 * cells);
    const std::int64_t cell = a.channels_last ? rest / 4 : rest % cells;
    const int side = static_cast<int>(a.channels_last ? rest % 4 : rest / cells);  // left, top, right, bottom
    const float* reg = a.reg + picture * 4 * kBins * cells;
    const float distance = a.channels_last ? dfl_expectation(reg + (cell * 4 + side) * kBins, 1)
                                           : dfl_expectation(reg + side * kBins * cells + cell, cells);
    a.boxes[(picture * a.anchors + a.first_anchor + cell) * 4 + side] = box_side(side, cell, a.w, distance, a.stride);
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
