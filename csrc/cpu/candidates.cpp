#include "cpu/candidates.h"

#include <algorithm>
#include <cmath>

namespace yolonas::cpu {
namespace {

constexpr std::int64_t kPiece = 2048;  // elements scanned per call: index and value buffers stay in the L1 cache

// Turns positions and values found in a piece into keys. `index_of` maps a position to anchor * classes + class.
class Collector {
 public:
  Collector(const CpuKernels& table, const CandidateParams& params, std::int64_t classes, bool logits,
            CandidateKeys& keys)
      : table_(table), params_(params), classes_(classes), logits_(logits), keys_(keys) {
    scan_floor_ = logits ? logit_floor(params.conf) : std::nextafter(params.conf, -1.0f);
  }

  // x[0..n): values of consecutive positions.
  template <class IndexOf>
  void scan(const float* x, std::int64_t n, IndexOf index_of) {
    for (std::int64_t begin = 0; begin < n; begin += kPiece) {
      const std::int64_t length = std::min(kPiece, n - begin);
      const std::int64_t found = table_.collect_greater_f32(x + begin, length, scan_floor_, position_, value_);
      if (found == 0) continue;
      if (logits_) table_.sigmoid_f32(value_, value_, found);
      for (std::int64_t i = 0; i < found; ++i) {
        if (value_[i] > params_.conf) add(value_[i], index_of(begin + position_[i]));
      }
    }
  }

  // Best class of n anchors with class k of anchor i at x[k * class_stride + i * anchor_stride].
  void single_label(const float* x, std::int64_t class_stride, std::int64_t anchor_stride, std::int64_t n,
                    std::int64_t first_anchor) {
    constexpr std::int64_t kAnchors = 64;
    float best[kAnchors];
    std::int32_t best_class[kAnchors];
    for (std::int64_t begin = 0; begin < n; begin += kAnchors) {
      const std::int64_t length = std::min(kAnchors, n - begin);
      if (anchor_stride == 1) {
        table_.class_max_f32(x + begin, class_stride, classes_, length, best, best_class);
      } else {
        for (std::int64_t i = 0; i < length; ++i) {
          plain_class_max(x + (begin + i) * anchor_stride, class_stride, best[i], best_class[i]);
        }
      }
      if (logits_) table_.sigmoid_f32(best, best, length);
      for (std::int64_t i = 0; i < length; ++i) {
        if (!(best[i] >= params_.conf)) continue;
        if (logits_) best_score(x + (begin + i) * anchor_stride, class_stride, best[i], best_class[i]);
        if (best[i] >= params_.conf) add(best[i], (first_anchor + begin + i) * classes_ + best_class[i]);
      }
    }
  }

 private:
  void add(float score, std::int64_t index) {
    if (!std::isfinite(score)) return;
    if (params_.class_mask && !params_.class_mask[index % classes_]) return;
    keys_.push_back(make_key(score + 0.0f, index));  // -0 becomes 0
  }

  // As CpuKernels::class_max_f32, for one anchor.
  void plain_class_max(const float* x, std::int64_t class_stride, float& best, std::int32_t& best_class) const {
    best = -INFINITY;
    best_class = 0;
    for (std::int64_t k = 0; k < classes_; ++k) {
      if (x[k * class_stride] > best) {
        best = x[k * class_stride];
        best_class = static_cast<std::int32_t>(k);
      }
    }
  }

  // From the score of the highest logit to the highest score: different logits can have equal scores (then the lowest
  // class counts), and by rounding even scores in the other order. -1 if all logits are NaN.
  void best_score(const float* x, std::int64_t class_stride, float& best, std::int32_t& best_class) const {
    const float floor = logit_floor(best);
    best = -1.0f;
    for (std::int64_t k = 0; k < classes_; ++k) {
      float score = x[k * class_stride];
      if (!(score >= floor)) continue;
      table_.sigmoid_f32(&score, &score, 1);
      if (score > best) {
        best = score;
        best_class = static_cast<std::int32_t>(k);
      }
    }
  }

  const CpuKernels& table_;
  const CandidateParams& params_;
  const std::int64_t classes_;
  const bool logits_;
  CandidateKeys& keys_;
  float scan_floor_ = 0;
  std::int32_t position_[kPiece];
  float value_[kPiece];
};

}  // namespace

void collect_logits(const CpuKernels& table, const HeadOutputs& heads, std::int64_t picture,
                    const CandidateParams& params, CandidateKeys& keys) {
  const std::int64_t classes = heads.classes;
  Collector collector(table, params, classes, true, keys);
  for (const HeadLevel& level : heads.levels) {
    const std::int64_t cells = level.h * level.w;
    const float* cls = level.cls + picture * classes * cells;
    const std::int64_t first = level.first_anchor;
    if (!params.multi_label) {
      collector.single_label(cls, heads.channels_last ? 1 : cells, heads.channels_last ? classes : 1, cells, first);
    } else if (heads.channels_last) {
      collector.scan(cls, cells * classes, [=](std::int64_t at) { return first * classes + at; });
    } else {
      for (std::int64_t k = 0; k < classes; ++k) {
        if (params.class_mask && !params.class_mask[k]) continue;
        collector.scan(cls + k * cells, cells, [=](std::int64_t cell) { return (first + cell) * classes + k; });
      }
    }
  }
}

void collect_scores(const CpuKernels& table, const float* scores, std::int64_t anchors, std::int64_t classes,
                    const CandidateParams& params, CandidateKeys& keys) {
  Collector collector(table, params, classes, false, keys);
  if (params.multi_label) {
    collector.scan(scores, anchors * classes, [](std::int64_t at) { return at; });
  } else {
    collector.single_label(scores, 1, classes, anchors, 0);
  }
}

void keep_best(CandidateKeys& keys, std::int64_t count) {
  if (static_cast<std::int64_t>(keys.size()) > count) {
    std::nth_element(keys.begin(), keys.begin() + count, keys.end());
    keys.resize(static_cast<std::size_t>(count));
  }
  std::sort(keys.begin(), keys.end());
}

}  // namespace yolonas::cpu
