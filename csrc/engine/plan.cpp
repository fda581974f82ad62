#include "engine/plan.h"

#include <algorithm>

#include "core/check.h"

namespace yolonas::engine {
namespace {

constexpr std::int64_t kMaxSide = 1 << 16, kMaxPixels = std::int64_t{1} << 31;

}  // namespace

void check_size(const Graph& graph, const InputSize& size, const char* op) {
  const std::int64_t multiple = graph.size_multiple();
  YN_CHECK(size.pictures >= 1, op, ": batch must have at least one picture, got ", size.pictures);
  YN_CHECK(
      size.height >= multiple && size.width >= multiple && size.height % multiple == 0 && size.width % multiple == 0,
      op, ": height and width must be multiples of ", multiple, ", got ", size.height, " x ", size.width);
  YN_CHECK(size.height <= kMaxSide && size.width <= kMaxSide && size.pictures <= kMaxPixels &&
               size.height * size.width <= kMaxPixels / size.pictures,
           op, ": input must have at most ", kMaxSide, " pixels a side and ", kMaxPixels, " in all, got ",
           size.pictures, " x ", size.height, " x ", size.width);
}

MemoryPlan plan_memory(const Graph& graph, const InputSize& size) {
  MemoryPlan plan;
  plan.size = size;
  const std::int64_t steps = static_cast<std::int64_t>(graph.steps.size());
  for (const Buffer& buffer : graph.buffers) {
    BufferPlan one;
    one.height = size.height >> buffer.downscale_log2;
    one.width = size.width >> buffer.downscale_log2;
    one.channels = buffer.channels;
    one.picture = one.height * one.width * one.channels;
    one.is_int8 = buffer.is_int8();
    one.first = steps;
    one.last = -1;
    plan.buffers.push_back(one);
  }
  const auto buffer_of = [&](const View& view) -> BufferPlan& {
    return plan.buffers[static_cast<std::size_t>(view.buffer)];
  };
  plan.buffers[0].first = -1;
  for (std::int64_t i = 0; i < steps; ++i) {
    const Step& step = graph.steps[static_cast<std::size_t>(i)];
    buffer_of(step.output).first = std::min(buffer_of(step.output).first, i);
    buffer_of(step.output).last = i;
    buffer_of(step.input).last = i;
    if (step.has_residual) buffer_of(step.residual).last = i;
  }
  // An output that shares its buffer with another one, or fills only a part of it, is copied out at the end.
  std::vector<View> views;
  for (const Level& level : graph.levels) {
    views.push_back(level.cls);
    views.push_back(level.reg);
  }
  std::vector<bool> outside(plan.buffers.size(), false);
  outside[0] = true;
  for (const View& view : views) {
    const bool direct = view.channels == buffer_of(view).channels;
    plan.outputs.push_back({view, buffer_of(view).height * buffer_of(view).width * view.channels, direct});
    if (direct) outside[static_cast<std::size_t>(view.buffer)] = true;
    buffer_of(view).last = steps;
  }
  std::vector<Lifetime> lifetimes;
  for (std::size_t i = 0; i < plan.buffers.size(); ++i) {
    const BufferPlan& buffer = plan.buffers[i];
    const bool used = !outside[i] && buffer.last >= 0;
    lifetimes.push_back({used ? buffer.floats(size.pictures) : 0, buffer.first, buffer.last});
  }
  const Layout layout = lay_out(lifetimes);
  for (std::size_t i = 0; i < plan.buffers.size(); ++i) plan.buffers[i].offset = layout.offset[i];
  plan.arena_floats = layout.size;
  return plan;
}

}  // namespace yolonas::engine
