// Which detection of a picture found which true box, by COCO's rules: what it reads and writes, and the checks.
//
// Letters: D detections, N of them that count, G true boxes, A area ranges, T IoU thresholds. Boxes are x, y, width,
// height in float64, and so is all arithmetic.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace yolonas {

struct MatchInput {
  TensorView boxes;          // (D, 4) f64
  TensorView classes;        // (D,) s64
  TensorView order;          // (N,) s64 rows of boxes, those of a class side by side, best first
  TensorView truth_boxes;    // (G, 4) f64
  TensorView truth_classes;  // (G,) s64
  TensorView truth_areas;    // (G,) f64
  TensorView truth_crowd;    // (G,) bool
  TensorView thresholds;     // (T,) f64
  TensorView area_ranges;    // (A, 2) f64 smallest and largest area that counts
};

struct MatchOutput {
  TensorView matched;        // (A, T, N) bool
  TensorView ignored;        // (A, T, N) bool: neither right nor wrong
  TensorView truth;          // (A, T, N) s32 row of the true box, -1 for none
  TensorView truth_ignored;  // (A, G) bool
};

// Shapes, dtypes and values: numbers must be finite and rows in range, so that no input can reach outside.
void check_match(const char* op, const MatchInput& input, const MatchOutput& output);

// Scores f64 (D,) finite, classes s64 (D,); order s64 (D,), rank s32 (D,).
void check_match_order(const char* op, const TensorView& scores, const TensorView& classes, std::int64_t max_det,
                       const TensorView& order, const TensorView& rank);

}  // namespace yolonas
