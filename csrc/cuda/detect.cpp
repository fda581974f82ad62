#include "cuda/detect.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "cuda/detect_kernels.h"

namespace yolonas::cuda {
namespace {

constexpr const char* kOp = "detect";
constexpr std::int64_t kAlign = 256;
constexpr std::int64_t kMaxBatch = 1 << 20;

// Hands out parts of the workspace, one after another. With a null base it only counts.
class Parts {
 public:
  explicit Parts(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(std::int64_t count) {
    const std::int64_t at = used_;
    used_ += (count * static_cast<std::int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }

  std::int64_t used() const { return used_; }

 private:
  char* base_;
  std::int64_t used_ = 0;
};

// Sizes and the parts of the workspace, from the sizes in `args` alone.
std::int64_t lay_out(const DetectArgs& args, DetectPlan& plan) {
  YN_CHECK(!args.levels.empty() && args.levels.size() <= kDetectLevels, kOp, ": levels must be 1..", kDetectLevels,
           ", got ", args.levels.size());
  YN_CHECK(args.batch >= 0 && args.batch <= kMaxBatch, kOp, ": batch must lie in 0..", kMaxBatch, ", got ", args.batch);
  YN_CHECK(args.classes >= 1 && args.classes <= (1 << 20), kOp, ": number of classes must lie in 1..", 1 << 20,
           ", got ", args.classes);
  YN_CHECK(args.candidates.top_k >= 1, kOp, ": top_k must be at least 1, got ", args.candidates.top_k);
  const std::int64_t most = 0x7fffffff / args.classes;
  std::int64_t anchors = 0;
  for (std::size_t i = 0; i < args.levels.size(); ++i) {
    const DetectLevel& level = args.levels[i];
    YN_CHECK(level.h >= 0 && level.w >= 0, kOp, ": level ", i, " must not have negative sides, got ", level.h, " x ",
             level.w);
    const std::int64_t cells = static_cast<std::int64_t>(level.h) * level.w;
    YN_CHECK(cells <= most - anchors, kOp, ": anchors * classes must be below 2^31, got at least ", anchors + cells,
             " * ", args.classes);
    DetectPlan::Level& to = plan.level[i];
    to.w = level.w;
    to.cells = static_cast<int>(cells);
    to.first_anchor = static_cast<int>(anchors);
    anchors += cells;
  }
  plan.levels = static_cast<int>(args.levels.size());
  plan.batch = args.batch;
  plan.classes = args.classes;
  plan.anchors = static_cast<int>(anchors);
  plan.multi_label = args.candidates.multi_label;
  plan.pairs = anchors * (plan.multi_label ? args.classes : 1);
  plan.top_k = std::min(args.candidates.top_k, plan.pairs);
  plan.room = kSortKeys;
  while (plan.room < plan.top_k) plan.room *= 2;
  const std::int64_t batch = args.batch;
  Parts parts(args.workspace);
  plan.found = parts.take<unsigned>(batch);
  plan.keys = parts.take<std::uint64_t>(batch * plan.pairs);
  plan.sorted = parts.take<std::uint64_t>(plan.room > kSortKeys ? batch * plan.room : 0);
  plan.boxes = parts.take<float>(batch * plan.top_k * 4);
  plan.scores = parts.take<float>(batch * plan.top_k);
  plan.labels = parts.take<std::int32_t>(batch * plan.top_k);
  return parts.used();
}

void check_workspace(const DetectArgs& args) {
  YN_CHECK(args.batch == 0 || (args.workspace && reinterpret_cast<std::uintptr_t>(args.workspace) % kAlign == 0), kOp,
           ": workspace must lie at a multiple of ", kAlign, " bytes");
}

void check_map(const MapView& map, std::size_t level, const char* what, int channels) {
  YN_CHECK_TYPE(map.elem == Elem::f32, kOp, ": ", what, " ", level, " must be float32, got ", name(map.elem));
  YN_CHECK(map.channels == channels && map.pixel >= channels, kOp, ": ", what, " ", level, " must have ", channels,
           " channels, got ", map.channels, " of ", map.pixel);
}

}  // namespace

std::int64_t detect_workspace_bytes(const DetectArgs& args) {
  DetectArgs sizes = args;
  sizes.workspace = nullptr;
  DetectPlan plan{};
  return lay_out(sizes, plan);
}

void detect_prepare(const DetectArgs& args, Queue queue) {
  DetectPlan plan{};
  lay_out(args, plan);
  check_workspace(args);
  empty_lists(plan, queue);
}

void detect(const DetectArgs& args, Queue queue, bool after_event) {
  check_candidate_params(kOp, args.candidates, args.classes, nullptr);
  check_nms_params(kOp, args.nms);
  DetectPlan plan{};
  lay_out(args, plan);
  check_workspace(args);
  plan.vectors = args.classes % 4 == 0;
  for (std::size_t i = 0; i < args.levels.size(); ++i) {
    const DetectLevel& level = args.levels[i];
    check_map(level.cls, i, "class output", args.classes);
    check_map(level.reg, i, "box output", 4 * kBoxBins);
    YN_CHECK(std::isfinite(level.stride) && level.stride > 0, kOp, ": strides must be positive, got ", level.stride);
    DetectPlan::Level& to = plan.level[i];
    to.cls = static_cast<const float*>(level.cls.data);
    to.reg = static_cast<const float*>(level.reg.data);
    to.cls_pixel = level.cls.pixel;
    to.reg_pixel = level.reg.pixel;
    to.stride = level.stride;
    plan.vectors = plan.vectors && level.cls.pixel % 4 == 0 && reinterpret_cast<std::uintptr_t>(to.cls) % 16 == 0;
  }
  plan.conf = args.candidates.conf;
  plan.floor = logit_floor(args.candidates.conf);
  plan.class_mask = args.candidates.class_mask;
  plan.iou = args.nms.iou;
  plan.agnostic = args.nms.agnostic;
  plan.max_det = static_cast<int>(args.nms.max_det);
  plan.detections = args.detections;
  plan.counts = args.counts;
  const Queue first{queue.stream, queue.overlap && !after_event};
  if (!args.prepared) empty_lists(plan, first);
  detect_launches(plan, args.prepared ? first : queue, queue);
}

}  // namespace yolonas::cuda
