// Detect: from uint8 pictures to detections, some pictures at a time, in the memory of one context.
#include <algorithm>
#include <chrono>

#include "core/check.h"
#include "core/parallel.h"
#include "cpu/engine.h"

namespace yolonas::cpu {
namespace {

constexpr const char* kOp = "detect";

void hold(engine::Memory& memory, std::int64_t floats, bool guard) {
  if (guard) {
    memory = engine::Memory::guarded(floats);
  } else if (memory.floats() < floats) {
    memory = engine::Memory();  // before the new one is made
    memory = engine::Memory(floats);
  }
}

// Adds up the milliseconds between its calls.
class Watch {
 public:
  void add_to(double& stage) {
    const auto now = std::chrono::steady_clock::now();
    stage += std::chrono::duration<double, std::milli>(now - last_).count();
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

Engine::StageTimes Engine::detect(const DetectRequest& request) {
  Watch watch;
  StageTimes times;
  engine::InputSize size = check_detect(request);
  Lease lease(*this);
  Context& context = lease.context();
  DetectMemory& memory = context.detect;
  check_pictures(kOp, request, memory.frames);
  CandidateParams candidates = request.candidates;
  if (request.class_mask) candidates.class_mask = request.class_mask->as<const std::uint8_t>();

  const std::int64_t picture_floats = size.height * size.width * 3, row_floats = request.nms.max_det * 6;
  engine::InputSize part = part_of(size, num_threads());
  for (std::int64_t first = 0; first < size.pictures; first += part.pictures) {
    part.pictures = std::min(part.pictures, size.pictures - first);
    const std::shared_ptr<const Plan> plan = plan_for(part);
    prepare_detect(*plan, request, memory);
    for (std::int64_t i = 0; i < part.pictures; ++i) {
      LetterboxFrame& frame = memory.frames[static_cast<std::size_t>(first + i)];
      frame.out = memory.input.data() + i * picture_floats;
      letterbox(*plan->table, frame, memory.letterbox);
    }
    watch.add_to(times.preprocess);

    prepare(*plan, memory.input.data(), memory.outputs, context);
    for (const StepPlan& step : plan->steps) run_step(*plan, step, context);
    copy_outputs(*plan, memory.outputs, context);
    watch.add_to(times.network);

    parallel_for(part.pictures, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        request.counts.as<std::int64_t>()[first + i] =
            select(*plan->table, memory.heads, i, candidates, request.nms, memory.select[static_cast<std::size_t>(i)],
                   request.detections.as<float>() + (first + i) * row_floats);
      }
    });
    watch.add_to(times.postprocess);
  }
  return times;
}

// All but the pictures.
engine::InputSize Engine::check_detect(const DetectRequest& request) const {
  const engine::InputSize size{static_cast<std::int64_t>(request.pictures.size()), request.frame_h, request.frame_w};
  YN_CHECK(size.pictures >= 1, kOp, ": pictures must hold at least one picture, got none");
  engine::check_size(graph_, size, kOp);
  yolonas::check_detect(kOp, request, levels_);
  return size;
}

// Makes room for a part, whose heads lie as decode takes them.
void Engine::prepare_detect(const Plan& plan, const DetectRequest& request, DetectMemory& memory) const {
  const engine::InputSize& size = plan.memory.size;
  const bool guard = guard_.load(std::memory_order_relaxed);
  hold(memory.input, size.pictures * plan.memory.buffers[0].picture, guard);
  memory.head_memory.resize(plan.memory.outputs.size());
  memory.outputs.clear();
  for (std::size_t i = 0; i < memory.head_memory.size(); ++i) {
    hold(memory.head_memory[i], size.pictures * plan.memory.outputs[i].picture, guard);
    memory.outputs.push_back(memory.head_memory[i].data());
  }
  HeadOutputs& heads = memory.heads;
  heads.levels.clear();
  heads.batch = size.pictures;
  heads.classes = num_classes();
  heads.anchors = 0;
  heads.channels_last = true;
  for (std::size_t i = 0; i < graph_.levels.size(); ++i) {
    const std::int64_t stride = graph_.levels[i].stride, h = size.height / stride, w = size.width / stride;
    heads.levels.push_back(
        {memory.outputs[2 * i], memory.outputs[2 * i + 1], h, w, static_cast<float>(stride), heads.anchors});
    heads.anchors += h * w;
  }
  if (memory.select.size() < static_cast<std::size_t>(size.pictures)) {
    memory.select.resize(static_cast<std::size_t>(size.pictures));
  }
  for (std::int64_t i = 0; i < size.pictures; ++i) {
    memory.select[static_cast<std::size_t>(i)].reserve(heads, request.candidates, request.nms);
  }
}

}  // namespace yolonas::cpu
