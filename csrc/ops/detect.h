// From pictures to detections in one call: what an engine is asked for, and its checks, on any device.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor_view.h"
#include "ops/letterbox.h"
#include "ops/post.h"

namespace yolonas {

// N pictures, all in frames of one size.
struct DetectRequest {
  struct Picture {
    TensorView image;           // uint8 (h, w, 3), pixels contiguous, rows may be apart
    LetterboxParams placement;  // `hwc` does not count: it is what the network takes
  };
  std::vector<Picture> pictures;
  std::int64_t frame_h = 0, frame_w = 0;
  CandidateParams candidates;  // top_k may be larger than there are pairs
  NmsParams nms;
  const TensorView* class_mask = nullptr;  // uint8 (K,), 0 = never a candidate; null = all
  TensorView detections;                   // float32 (N, max_det, 6), as nms_candidates gives them, in frame pixels
  TensorView counts;                       // int64 (N,)
};

// The head outputs of one level, as far as the checks need them.
struct DetectOutputs {
  std::int64_t classes = 0, boxes = 0;  // channels
  std::int64_t stride = 0;              // input pixels per cell
};

// All but the pictures: throws unless levels have the same number of classes and 4 * kBoxBins box outputs, settings are
// possible, and outputs have the shapes of the request. The frame's size is for the network to check.
void check_detect(const char* op, const DetectRequest& request, const std::vector<DetectOutputs>& levels);

// The pictures as kernels take them, without memory for the results; `frames` is filled anew. Throws for a picture that
// letterbox refuses, for a scaling that is not finite, and where detections or counts share a byte with each other or
// with what is read.
void check_pictures(const char* op, const DetectRequest& request, std::vector<LetterboxFrame>& frames);

}  // namespace yolonas
