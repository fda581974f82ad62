#include "ops/detect.h"

#include <cmath>
#include <cstdio>

namespace yolonas {
namespace {

struct Bytes {
  const char *begin, *end;
};

Bytes bytes_of(const TensorView& contiguous, std::int64_t item) {
  const char* begin = contiguous.as<const char>();
  return {begin, begin + contiguous.numel() * item};
}

Bytes bytes_of(const LetterboxFrame& frame) {
  const char* begin = reinterpret_cast<const char*>(frame.image);
  return {begin, begin + (frame.src_h - 1) * frame.row_bytes + 3 * frame.src_w};
}

bool overlap(const Bytes& a, const Bytes& b) { return a.begin < b.end && b.begin < a.end; }

void check_no_overlap(const char* op, const DetectRequest& request, const std::vector<LetterboxFrame>& frames) {
  const Bytes detections = bytes_of(request.detections, 4), counts = bytes_of(request.counts, 8);
  bool found = overlap(detections, counts);
  const auto look = [&](const Bytes& read) { found = found || overlap(detections, read) || overlap(counts, read); };
  for (const LetterboxFrame& frame : frames) look(bytes_of(frame));
  if (request.class_mask) look(bytes_of(*request.class_mask, 1));
  YN_CHECK(!found, op, ": detections and counts must not overlap each other, a picture or class_mask");
}

// A network's input must be finite, and pixels are between these two.
void check_scaling(const char* op, const LetterboxFrame& frame) {
  for (int c = 0; c < 3; ++c) {
    for (const float value : {0.0f, 255.0f}) {
      YN_CHECK(std::isfinite((value - frame.mean[c]) / frame.divisor[c]), op,
               ": mean and divisor must give finite values for pixels of 0..255, got mean ", frame.mean[c],
               ", divisor ", frame.divisor[c], " for channel ", c);
    }
  }
}

}  // namespace

void check_detect(const char* op, const DetectRequest& request, const std::vector<DetectOutputs>& levels) {
  const std::int64_t classes = levels[0].classes, pictures = static_cast<std::int64_t>(request.pictures.size());
  std::int64_t anchors = 0;
  for (const DetectOutputs& level : levels) {
    YN_CHECK(level.classes == classes && level.boxes == 4 * kBoxBins, op,
             ": the network must have equally many class outputs and ", 4 * kBoxBins,
             " box outputs on every level, got ", level.classes, " and ", level.boxes, " after ", classes,
             " classes on the first");
    anchors += (request.frame_h / level.stride) * (request.frame_w / level.stride);
  }
  // Candidates are numbered anchor * classes + class in 32 bits.
  YN_CHECK(anchors <= 0x7fffffff / classes, op, ": anchors * classes must be below 2^31, got ", anchors, " * ",
           classes);
  check_candidate_params(op, request.candidates, classes, request.class_mask);
  check_nms_params(op, request.nms);
  check_output(request.detections, op, "detections", DType::f32, {pictures, request.nms.max_det, 6}, "(N, max_det, 6)");
  check_output(request.counts, op, "counts", DType::s64, {pictures}, "(N,)");
}

void check_pictures(const char* op, const DetectRequest& request, std::vector<LetterboxFrame>& frames) {
  frames.clear();
  frames.reserve(request.pictures.size());
  for (const DetectRequest::Picture& picture : request.pictures) {
    char argument[40];
    std::snprintf(argument, sizeof argument, "pictures[%zu]", frames.size());
    LetterboxParams placement = picture.placement;
    placement.hwc = true;
    frames.push_back(check_letterbox(op, argument, picture.image, request.frame_h, request.frame_w, placement));
    check_scaling(op, frames.back());
  }
  check_no_overlap(op, request, frames);
}

}  // namespace yolonas
