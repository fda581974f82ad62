// Decoding and non-maximum suppression: what they mean on any device, and their checks.
//
// Order of candidates everywhere: descending score, equal scores by ascending (anchor * classes + class). Picture after
// picture and level after level this is a total order, so results do not depend on threads, ISA or batch position.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor_view.h"

namespace yolonas {

inline constexpr int kBoxBins = 17;  // reg_max + 1

// One pyramid level of head outputs.
struct HeadLevel {
  const float* cls = nullptr;  // channels first (B, K, h, w) or last (B, h, w, K)
  const float* reg = nullptr;  // channels first (B, 68, h, w) or last (B, h, w, 68); channel = side * 17 + bin
  std::int64_t h = 0, w = 0;
  float stride = 0;  // input pixels per cell
  std::int64_t first_anchor = 0;
};

struct HeadOutputs {
  std::vector<HeadLevel> levels;
  std::int64_t batch = 0, classes = 0, anchors = 0;
  bool channels_last = false;
};

// Checks the lists (same length, float32, contiguous, matching batch and sizes) and lays out the anchors.
HeadOutputs check_heads(const char* op, const std::vector<TensorView>& cls, const std::vector<TensorView>& reg,
                        const std::vector<double>& strides, bool channels_last);

// Which (anchor, class) pairs become candidates, and how many of them.
struct CandidateParams {
  float conf = 0.25f;  // multi-label: score > conf; single-label: best class, score >= conf
  std::int64_t top_k = 1024;
  bool multi_label = true;
  const std::uint8_t* class_mask = nullptr;  // [classes], 0 = never a candidate; null = all
};
void check_candidate_params(const char* op, const CandidateParams& params, std::int64_t classes,
                            const TensorView* class_mask);

// A logit that no score >= `score` can lie below: sigmoid's inverse, less a margin for its rounding.
float logit_floor(float score);

struct NmsParams {
  float iou = 0.7f;  // a box is dropped when its IoU with a kept one is > iou
  std::int64_t max_det = 300;
  bool agnostic = false;
};
void check_nms_params(const char* op, const NmsParams& params);

// Shapes and dtypes of suppression: boxes (B, N, 4), scores (B, N), classes int32 (B, N), candidate_counts int64 (B,);
// detections (B, max_det, 6), counts int64 (B,). Not the values in candidate_counts.
void check_nms_candidates(const char* op, const TensorView& boxes, const TensorView& scores, const TensorView& classes,
                          const TensorView& candidate_counts, const NmsParams& params, const TensorView& detections,
                          const TensorView& counts);

}  // namespace yolonas
