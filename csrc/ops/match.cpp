#include "ops/match.h"

#include <cmath>

namespace yolonas {
namespace {

constexpr std::int64_t kMaxRows = 0x7fffffff;  // rows are numbered in 32 bits
// What matching needs to remember grows with thresholds * ranges * true boxes of a class.
constexpr std::int64_t kMaxThresholds = 1024, kMaxRanges = 64;

void check_finite(const TensorView& view, const char* op, const char* argument) {
  const double* value = view.as<const double>();
  const std::int64_t count = view.numel(), columns = view.rank == 2 ? view.shape[1] : 1;
  for (std::int64_t i = 0; i < count; ++i) {
    YN_CHECK(std::isfinite(value[i]), op, ": ", argument, " must be finite, got ", value[i], " in row ", i / columns);
  }
}

void check_rows(std::int64_t rows, const char* op, const char* argument) {
  YN_CHECK(rows <= kMaxRows, op, ": ", argument, " must have less than 2^31 rows, got ", rows);
}

}  // namespace

void check_match(const char* op, const MatchInput& input, const MatchOutput& output) {
  check_tensor(input.boxes, op, "boxes", DType::f64, {-1, 4}, "(D, 4)");
  check_tensor(input.truth_boxes, op, "truth_boxes", DType::f64, {-1, 4}, "(G, 4)");
  const std::int64_t rows = input.boxes.shape[0], truths = input.truth_boxes.shape[0];
  check_rows(rows, op, "boxes");
  check_rows(truths, op, "truth_boxes");
  check_tensor(input.classes, op, "classes", DType::s64, {rows}, "(D,)");
  check_tensor(input.truth_classes, op, "truth_classes", DType::s64, {truths}, "(G,)");
  check_tensor(input.truth_areas, op, "truth_areas", DType::f64, {truths}, "(G,)");
  check_tensor(input.truth_crowd, op, "truth_crowd", DType::boolean, {truths}, "(G,)");
  check_finite(input.boxes, op, "boxes");
  check_finite(input.truth_boxes, op, "truth_boxes");
  check_finite(input.truth_areas, op, "truth_areas");

  check_tensor(input.order, op, "order", DType::s64, {-1}, "(N,)");
  const std::int64_t count = input.order.shape[0];
  check_rows(count, op, "order");
  const std::int64_t* order = input.order.as<const std::int64_t>();
  for (std::int64_t i = 0; i < count; ++i) {
    YN_CHECK(order[i] >= 0 && order[i] < rows, op, ": order must hold rows of boxes, 0..", rows - 1, ", got ",
             order[i]);
  }

  check_tensor(input.thresholds, op, "thresholds", DType::f64, {-1}, "(T,)");
  check_tensor(input.area_ranges, op, "area_ranges", DType::f64, {-1, 2}, "(A, 2)");
  const std::int64_t thresholds = input.thresholds.shape[0], areas = input.area_ranges.shape[0];
  YN_CHECK(thresholds >= 1 && thresholds <= kMaxThresholds, op, ": thresholds must have 1..", kMaxThresholds,
           " values, got ", thresholds);
  YN_CHECK(areas >= 1 && areas <= kMaxRanges, op, ": area_ranges must have 1..", kMaxRanges, " rows, got ", areas);
  for (std::int64_t t = 0; t < thresholds; ++t) {
    const double threshold = input.thresholds.as<const double>()[t];
    YN_CHECK(threshold >= 0 && threshold <= 1, op, ": thresholds must lie in 0..1, got ", threshold);
  }
  for (std::int64_t a = 0; a < areas; ++a) {
    const double* range = input.area_ranges.as<const double>() + 2 * a;
    YN_CHECK(range[0] <= range[1], op, ": area_ranges must be rows of smallest and largest area, got ", range[0],
             " and ", range[1], " in row ", a);
  }

  check_output(output.matched, op, "matched", DType::boolean, {areas, thresholds, count}, "(A, T, N)");
  check_output(output.ignored, op, "ignored", DType::boolean, {areas, thresholds, count}, "(A, T, N)");
  check_output(output.truth, op, "truth", DType::s32, {areas, thresholds, count}, "(A, T, N)");
  check_output(output.truth_ignored, op, "truth_ignored", DType::boolean, {areas, truths}, "(A, G)");
}

void check_match_order(const char* op, const TensorView& scores, const TensorView& classes, std::int64_t max_det,
                       const TensorView& order, const TensorView& rank) {
  YN_CHECK(max_det >= 1, op, ": max_det must be at least 1, got ", max_det);
  check_tensor(scores, op, "scores", DType::f64, {-1}, "(D,)");
  const std::int64_t rows = scores.shape[0];
  check_rows(rows, op, "scores");
  check_tensor(classes, op, "classes", DType::s64, {rows}, "(D,)");
  check_finite(scores, op, "scores");
  check_output(order, op, "order", DType::s64, {rows}, "(D,)");
  check_output(rank, op, "rank", DType::s32, {rows}, "(D,)");
}

}  // namespace yolonas
