#include "ops/post.h"

#include <algorithm>
#include <cmath>

namespace yolonas {
namespace {

constexpr std::int64_t kMaxSide = 1 << 20;  // rows * columns, also of an empty batch, cannot overflow

}  // namespace

HeadOutputs check_heads(const char* op, const std::vector<TensorView>& cls, const std::vector<TensorView>& reg,
                        const std::vector<double>& strides, bool channels_last) {
  YN_CHECK(!cls.empty() && cls.size() == reg.size() && cls.size() == strides.size(), op,
           ": class outputs, box outputs and strides must be lists of the same length >= 1, got ", cls.size(), ", ",
           reg.size(), " and ", strides.size());
  HeadOutputs heads;
  heads.channels_last = channels_last;
  const int channel_axis = channels_last ? 3 : 1, row_axis = channels_last ? 1 : 2;
  const char* cls_what = channels_last ? "(B, h, w, K)" : "(B, K, h, w)";
  const char* reg_what = channels_last ? "(B, h, w, 68)" : "(B, 68, h, w)";
  for (std::size_t i = 0; i < cls.size(); ++i) {
    check_tensor(cls[i], op, "class output", DType::f32, {-1, -1, -1, -1}, cls_what);
    if (i == 0) {
      heads.batch = cls[0].shape[0];
      heads.classes = cls[0].shape[channel_axis];
      YN_CHECK(heads.classes >= 1 && heads.classes <= (1 << 20), op, ": number of classes must lie in 1..", 1 << 20,
               ", got ", heads.classes);
    }
    const std::int64_t h = cls[i].shape[row_axis], w = cls[i].shape[row_axis + 1];
    YN_CHECK(cls[i].shape[0] == heads.batch && cls[i].shape[channel_axis] == heads.classes, op, ": class output ", i,
             " must have the batch and classes of the first, ", shape_text(cls[0]), ", got ", shape_text(cls[i]));
    if (channels_last) {
      check_tensor(reg[i], op, "box output", DType::f32, {heads.batch, h, w, 4 * kBoxBins}, reg_what);
    } else {
      check_tensor(reg[i], op, "box output", DType::f32, {heads.batch, 4 * kBoxBins, h, w}, reg_what);
    }
    YN_CHECK(h <= kMaxSide && w <= kMaxSide, op, ": class output ", i, " must have at most ", kMaxSide,
             " rows and columns, got ", shape_text(cls[i]));
    YN_CHECK(std::isfinite(strides[i]) && strides[i] > 0, op, ": strides must be positive, got ", strides[i]);
    heads.levels.push_back(
        {cls[i].as<const float>(), reg[i].as<const float>(), h, w, static_cast<float>(strides[i]), heads.anchors});
    heads.anchors += h * w;
  }
  // Candidates are numbered anchor * classes + class in 32 bits.
  YN_CHECK(heads.anchors <= 0x7fffffff / heads.classes, op, ": anchors * classes must be below 2^31, got ",
           heads.anchors, " * ", heads.classes);
  return heads;
}

float logit_floor(float score) {
  if (score <= 0.0f) return -INFINITY;
  if (score >= 1.0f) return 14.0f;  // sigmoid rounds to 1 from about 16.6 on
  const double p = score, logit = std::log(p / (1.0 - p));
  // An error of a few ulp in the score is 1 / (p (1 - p)) times that in the logit.
  return static_cast<float>(std::min(logit, 15.0) - 1e-3 - 1e-5 * std::abs(logit) - 1e-6 / (1.0 - p));
}

void check_candidate_params(const char* op, const CandidateParams& p, std::int64_t classes,
                            const TensorView* class_mask) {
  YN_CHECK(p.conf >= 0.0f && p.conf <= 1.0f, op, ": conf must lie in 0..1, got ", p.conf);
  YN_CHECK(p.top_k >= 1, op, ": top_k must be at least 1, got ", p.top_k);
  if (class_mask) check_tensor(*class_mask, op, "class_mask", DType::u8, {classes}, "(K,)");
}

void check_nms_params(const char* op, const NmsParams& p) {
  YN_CHECK(p.iou >= 0.0f && p.iou <= 1.0f, op, ": iou must lie in 0..1, got ", p.iou);
  YN_CHECK(p.max_det >= 1 && p.max_det <= 1000000, op, ": max_det must lie in 1..1000000, got ", p.max_det);
}

void check_nms_candidates(const char* op, const TensorView& boxes, const TensorView& scores, const TensorView& classes,
                          const TensorView& candidate_counts, const NmsParams& params, const TensorView& detections,
                          const TensorView& counts) {
  check_nms_params(op, params);
  check_tensor(boxes, op, "boxes", DType::f32, {-1, -1, 4}, "(B, N, 4)");
  const std::int64_t batch = boxes.shape[0], capacity = boxes.shape[1];
  YN_CHECK(capacity <= 0x7fffffff, op, ": N must be below 2^31, got ", capacity);
  check_tensor(scores, op, "scores", DType::f32, {batch, capacity}, "(B, N)");
  check_tensor(classes, op, "classes", DType::s32, {batch, capacity}, "(B, N)");
  check_tensor(candidate_counts, op, "counts", DType::s64, {batch}, "(B,)");
  check_output(detections, op, "detections", DType::f32, {batch, params.max_det, 6}, "(B, max_det, 6)");
  check_output(counts, op, "result counts", DType::s64, {batch}, "(B,)");
}

}  // namespace yolonas
