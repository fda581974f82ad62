#include "cpu/match.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace yolonas::cpu {
namespace {

constexpr double kHighestStart = 1 - 1e-10;  // so that a threshold of 1 can be reached at all

// Widths and heights may have any sign. Every operation is in this order in COCO's code, too.
double intersection_ratio(const double* box, const double* truth, bool crowd) {
  const double width = std::min(box[2] + box[0], truth[2] + truth[0]) - std::max(box[0], truth[0]);
  if (width <= 0) return 0;
  const double height = std::min(box[3] + box[1], truth[3] + truth[1]) - std::max(box[1], truth[1]);
  if (height <= 0) return 0;
  const double shared = width * height, area = box[2] * box[3];
  return shared / (crowd ? area : area + truth[2] * truth[3] - shared);
}

bool outside(double area, const double* range) { return area < range[0] || area > range[1]; }

// The true boxes of one class, and who has taken them.
class ClassTruths {
 public:
  explicit ClassTruths(const MatchInput& input)
      : boxes_(input.truth_boxes.as<const double>()),
        crowd_(input.truth_crowd.as<const std::uint8_t>()),
        thresholds_(input.thresholds.shape[0]),
        areas_(input.area_ranges.shape[0]),
        regular_(static_cast<std::size_t>(areas_)) {}

  // `rows` in their given order; truth_ignored (A, G) of the whole picture.
  void start(const std::int64_t* rows, std::int64_t count, const std::uint8_t* truth_ignored, std::int64_t truths) {
    rows_ = rows;
    count_ = count;
    iou_.resize(static_cast<std::size_t>(count));
    position_.resize(static_cast<std::size_t>(areas_ * count));
    taken_.assign(static_cast<std::size_t>(areas_ * thresholds_ * count), 0);
    for (std::int64_t a = 0; a < areas_; ++a) {
      std::int64_t* position = position_.data() + a * count;
      std::iota(position, position + count, 0);
      const auto counts = [&](std::int64_t at) { return truth_ignored[a * truths + rows[at]] == 0; };
      regular_[static_cast<std::size_t>(a)] = std::stable_partition(position, position + count, counts) - position;
    }
  }

  // True if `box` may take something at the lowest of the thresholds. NaN, of boxes next to zero, passes all.
  bool compare(const double* box, double lowest) {
    bool reaches = false;
    for (std::int64_t i = 0; i < count_; ++i) {
      const double iou = intersection_ratio(box, boxes_ + 4 * rows_[i], crowd_[rows_[i]] != 0);
      iou_[static_cast<std::size_t>(i)] = iou;
      reaches |= !(iou < lowest);
    }
    return reaches;
  }

  // Takes a true box for the box compared last; its row, or -1.
  std::int64_t take(std::int64_t a, std::int64_t t, double start) {
    const std::int64_t* position = position_.data() + a * count_;
    std::uint8_t* taken = taken_.data() + (a * thresholds_ + t) * count_;
    const std::int64_t regular = regular_[static_cast<std::size_t>(a)];
    std::int64_t found = best(position, position + regular, taken, start);
    if (found < 0) found = best(position + regular, position + count_, taken, start);
    if (found < 0) return -1;
    taken[found] = 1;
    return rows_[found];
  }

 private:
  std::int64_t best(const std::int64_t* first, const std::int64_t* last, const std::uint8_t* taken, double iou) const {
    std::int64_t found = -1;
    for (; first != last; ++first) {
      if (taken[*first] && crowd_[rows_[*first]] == 0) continue;
      if (iou_[static_cast<std::size_t>(*first)] < iou) continue;
      iou = iou_[static_cast<std::size_t>(*first)];
      found = *first;
    }
    return found;
  }

  const double* boxes_;
  const std::uint8_t* crowd_;
  std::int64_t thresholds_, areas_;
  std::vector<std::int64_t> regular_;  // per area range: how many are not ignored
  const std::int64_t* rows_ = nullptr;
  std::int64_t count_ = 0;
  std::vector<double> iou_;
  std::vector<std::int64_t> position_;  // per area range: numbers of the boxes, ignored ones last
  std::vector<std::uint8_t> taken_;     // (A, T, count)
};

}  // namespace

std::int64_t match_order(const TensorView& scores, const TensorView& classes, std::int64_t max_det,
                         const TensorView& order, const TensorView& rank) {
  check_match_order("match_order", scores, classes, max_det, order, rank);
  const std::int64_t rows = scores.shape[0];
  const double* score = scores.as<const double>();
  const std::int64_t* label = classes.as<const std::int64_t>();
  std::int64_t* row = order.as<std::int64_t>();
  std::iota(row, row + rows, 0);
  std::sort(row, row + rows, [&](std::int64_t left, std::int64_t right) {
    if (label[left] != label[right]) return label[left] < label[right];
    if (score[left] != score[right]) return score[left] > score[right];
    return left < right;
  });
  std::int64_t kept = 0, place = 0, previous = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    place = i > 0 && label[row[i]] == previous ? place + 1 : 0;
    previous = label[row[i]];
    if (place >= max_det) continue;
    rank.as<std::int32_t>()[kept] = static_cast<std::int32_t>(place);
    row[kept++] = row[i];
  }
  return kept;
}

void match_detections(const MatchInput& input, const MatchOutput& output) {
  check_match("match_detections", input, output);
  const std::int64_t count = input.order.shape[0], truths = input.truth_boxes.shape[0];
  const std::int64_t areas = input.area_ranges.shape[0], thresholds = input.thresholds.shape[0];
  const double* boxes = input.boxes.as<const double>();
  const std::int64_t* order = input.order.as<const std::int64_t>();
  const std::int64_t* classes = input.classes.as<const std::int64_t>();
  const std::int64_t* truth_classes = input.truth_classes.as<const std::int64_t>();
  const double* ranges = input.area_ranges.as<const double>();
  const std::uint8_t* crowd = input.truth_crowd.as<const std::uint8_t>();
  std::uint8_t* matched = output.matched.as<std::uint8_t>();
  std::uint8_t* ignored = output.ignored.as<std::uint8_t>();
  std::int32_t* truth = output.truth.as<std::int32_t>();
  std::uint8_t* truth_ignored = output.truth_ignored.as<std::uint8_t>();

  for (std::int64_t a = 0; a < areas; ++a) {
    for (std::int64_t g = 0; g < truths; ++g) {
      truth_ignored[a * truths + g] = crowd[g] != 0 || outside(input.truth_areas.as<const double>()[g], ranges + 2 * a);
    }
  }
  // As if nothing were taken; the loop over detections corrects this.
  std::fill(matched, matched + areas * thresholds * count, std::uint8_t{0});
  std::fill(truth, truth + areas * thresholds * count, -1);
  for (std::int64_t a = 0; a < areas; ++a) {
    std::uint8_t* row = ignored + a * thresholds * count;
    for (std::int64_t n = 0; n < count; ++n) {
      const double* box = boxes + 4 * order[n];
      row[n] = outside(box[2] * box[3], ranges + 2 * a);
    }
    for (std::int64_t t = 1; t < thresholds; ++t) std::copy(row, row + count, row + t * count);
  }

  std::vector<double> start(input.thresholds.as<const double>(), input.thresholds.as<const double>() + thresholds);
  for (double& threshold : start) threshold = std::min(threshold, kHighestStart);
  const double lowest = *std::min_element(start.begin(), start.end());

  std::vector<std::int64_t> by_class(static_cast<std::size_t>(truths));
  std::iota(by_class.begin(), by_class.end(), 0);
  std::stable_sort(by_class.begin(), by_class.end(),
                   [&](std::int64_t left, std::int64_t right) { return truth_classes[left] < truth_classes[right]; });
  const auto below = [&](std::int64_t row, std::int64_t wanted) { return truth_classes[row] < wanted; };
  const auto above = [&](std::int64_t wanted, std::int64_t row) { return wanted < truth_classes[row]; };

  ClassTruths rivals(input);
  bool has_truths = false;
  for (std::int64_t n = 0; n < count; ++n) {
    const std::int64_t label = classes[order[n]];
    if (n == 0 || label != classes[order[n - 1]]) {
      const auto first = std::lower_bound(by_class.begin(), by_class.end(), label, below);
      const auto last = std::upper_bound(first, by_class.end(), label, above);
      has_truths = first != last;
      if (has_truths) rivals.start(&*first, last - first, truth_ignored, truths);
    }
    const double* box = boxes + 4 * order[n];
    if (!has_truths || !rivals.compare(box, lowest)) continue;
    for (std::int64_t a = 0; a < areas; ++a) {
      for (std::int64_t t = 0; t < thresholds; ++t) {
        const std::int64_t found = rivals.take(a, t, start[static_cast<std::size_t>(t)]);
        if (found < 0) continue;
        const std::int64_t at = (a * thresholds + t) * count + n;
        matched[at] = 1;
        ignored[at] = truth_ignored[a * truths + found];
        truth[at] = static_cast<std::int32_t>(found);
      }
    }
  }
}

}  // namespace yolonas::cpu
