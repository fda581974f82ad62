#include "cuda/post.h"

namespace yolonas::cuda {

void decode(const HeadOutputs& heads, const TensorView& boxes, const TensorView& scores, Stream stream) {
  check_output(boxes, "decode", "boxes", DType::f32, {heads.batch, heads.anchors, 4}, "(B, A, 4)");
  check_output(scores, "decode", "scores", DType::f32, {heads.batch, heads.anchors, heads.classes}, "(B, A, K)");
  for (const HeadLevel& level : heads.levels) {
    DecodeArgs args{};
    args.cls = level.cls;
    args.reg = level.reg;
    args.channels_last = heads.channels_last;
    args.batch = heads.batch;
    args.classes = heads.classes;
    args.h = level.h;
    args.w = level.w;
    args.stride = level.stride;
    args.anchors = heads.anchors;
    args.first_anchor = level.first_anchor;
    args.boxes = boxes.as<float>();
    args.scores = scores.as<float>();
    decode_boxes_f32(args, stream);
    decode_scores_f32(args, stream);
  }
}

std::int64_t nms_workspace_bytes(std::int64_t capacity) {
  const char* op = "nms_candidates";
  YN_CHECK(capacity >= 0, op, ": N must not be negative, got ", capacity);
  if (capacity > kNmsMaxCapacity) {
    throw NotSupported(concat(op, ": N must be at most ", kNmsMaxCapacity, " on a CUDA device, got ", capacity,
                              "; lower top_k or raise conf"));
  }
  return nms_workspace(capacity) * static_cast<std::int64_t>(sizeof(std::uint64_t));
}

void nms_candidates(const TensorView& boxes, const TensorView& scores, const TensorView& classes,
                    const TensorView& candidate_counts, const NmsParams& params, const TensorView& detections,
                    const TensorView& counts, const TensorView& workspace, Stream stream) {
  const char* op = "nms_candidates";
  check_nms_candidates(op, boxes, scores, classes, candidate_counts, params, detections, counts);
  check_output(workspace, op, "workspace", DType::s64, {-1}, "(words,)");
  NmsArgs args{};
  args.boxes = boxes.as<const float>();
  args.scores = scores.as<const float>();
  args.classes = classes.as<const std::int32_t>();
  args.candidate_counts = candidate_counts.as<const std::int64_t>();
  args.batch = boxes.shape[0];
  args.capacity = boxes.shape[1];
  args.iou = params.iou;
  args.agnostic = params.agnostic;
  args.max_det = params.max_det;
  args.detections = detections.as<float>();
  args.counts = counts.as<std::int64_t>();
  args.workspace = workspace.as<std::uint64_t>();
  args.workspace_words = workspace.numel();
  const std::int64_t needed = nms_workspace_bytes(args.capacity) / static_cast<std::int64_t>(sizeof(std::uint64_t));
  YN_CHECK(args.batch == 0 || args.workspace_words >= needed, op, ": workspace must have at least ", needed,
           " words for N = ", args.capacity, ", got ", args.workspace_words);
  nms_bitmask_f32(args, stream);
}

}  // namespace yolonas::cuda
