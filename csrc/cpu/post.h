// Decode and NMS on the CPU. B pictures, A anchors, K classes; boxes are xyxy in input pixels, float32, contiguous.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/candidates.h"
#include "cpu/kernels.h"
#include "ops/post.h"

namespace yolonas::cpu {

// All anchors: boxes (B, A, 4), scores (B, A, K). Reference: yolo-nas head, DFL (Li et al. 2020).
void decode(const HeadOutputs& heads, const TensorView& boxes, const TensorView& scores);

// Only the pairs above the threshold, the best top_k of them, sorted: boxes (B, top_k, 4), scores (B, top_k), classes
// int32 (B, top_k), counts int64 (B,). Rows beyond the count are left as they were. Boxes are decoded for the chosen
// pairs alone. Pairs whose box is not finite are left out. Same scores and boxes, bit for bit, as decode().
void decode_candidates(const HeadOutputs& heads, const CandidateParams& params, const TensorView& boxes,
                       const TensorView& scores, const TensorView& classes, const TensorView& counts);

// Suppression of candidates as decode_candidates gives them: detections (B, max_det, 6) rows x1, y1, x2, y2, score,
// class by descending score, zero beyond the count; counts int64 (B,).
void nms_candidates(const TensorView& boxes, const TensorView& scores, const TensorView& classes,
                    const TensorView& candidate_counts, const NmsParams& params, const TensorView& detections,
                    const TensorView& counts);

// Candidates of decoded boxes (B, A, 4) and scores (B, A, K), then suppression, a picture per thread.
void batched_nms(const TensorView& boxes, const TensorView& scores, const CandidateParams& candidates,
                 const NmsParams& params, const TensorView& detections, const TensorView& counts);

// What the selection of one picture's detections works in. Kept between calls it grows to the largest one's needs.
struct SelectWorkspace {
  CandidateKeys keys;
  std::vector<float> boxes, scores, suppression;
  std::vector<std::int32_t> classes, keep;

  // Room for so many pairs of anchor and class, of those so many candidates, and of those so many kept.
  void reserve(std::int64_t pairs, std::int64_t candidates, std::int64_t kept);
  // For select() and heads of this size.
  void reserve(const HeadOutputs& heads, const CandidateParams& candidates, const NmsParams& params);
};

// decode_candidates and nms_candidates for one picture, bit for bit: writes max_det rows of six and returns how many
// are detections. The workspace must have been reserved: allocates nothing and may run inside parallel_for.
std::int64_t select(const CpuKernels& table, const HeadOutputs& heads, std::int64_t picture,
                    const CandidateParams& candidates, const NmsParams& params, SelectWorkspace& workspace,
                    float* detections);

}  // namespace yolonas::cpu
