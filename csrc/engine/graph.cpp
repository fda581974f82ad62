#include "engine/graph.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "core/check.h"

namespace yolonas::engine {
namespace {

constexpr std::int64_t kMaxBuffers = 4096, kMaxSteps = 4096, kMaxChannels = 1 << 16, kMaxDownscale = 10;
constexpr std::int64_t kInputChannels = 3;
constexpr std::size_t kMaxName = 1000;
constexpr std::int64_t kMaxIntegerDepth = 65536;  // of kernel * kernel * C: 65536 * 255 * 127 fits int32

bool overlap(const View& a, const View& b) {
  return a.buffer == b.buffer && a.offset < b.offset + b.channels && b.offset < a.offset + a.channels;
}

bool same(const View& a, const View& b) {
  return a.buffer == b.buffer && a.offset == b.offset && a.channels == b.channels;
}

// Which channels hold a value so far.
class Written {
 public:
  explicit Written(const Graph& graph) {
    for (const Buffer& buffer : graph.buffers) written_.emplace_back(static_cast<std::size_t>(buffer.channels), false);
    std::fill(written_.at(0).begin(), written_.at(0).end(), true);
  }
  void mark(const View& view) { std::fill(first(view), first(view) + view.channels, true); }
  bool all(const View& view) const { return std::count(first(view), first(view) + view.channels, false) == 0; }
  bool any(const View& view) const { return std::count(first(view), first(view) + view.channels, true) != 0; }

 private:
  std::vector<bool>::iterator first(const View& view) {
    return written_[static_cast<std::size_t>(view.buffer)].begin() + view.offset;
  }
  std::vector<bool>::const_iterator first(const View& view) const {
    return written_[static_cast<std::size_t>(view.buffer)].begin() + view.offset;
  }
  std::vector<std::vector<bool>> written_;
};

void check_view(const Graph& graph, const View& view, const std::string& owner, const char* argument) {
  const std::int64_t buffers = static_cast<std::int64_t>(graph.buffers.size());
  YN_CHECK(view.buffer >= 0 && view.buffer < buffers, "engine: ", argument, " of ", owner,
           " must be in one of the buffers 0..", buffers - 1, ", got buffer ", view.buffer);
  const std::int64_t channels = graph.buffers[static_cast<std::size_t>(view.buffer)].channels;
  YN_CHECK(view.offset >= 0 && view.channels >= 1 && view.offset <= channels && view.channels <= channels - view.offset,
           "engine: ", argument, " of ", owner, " must lie in the ", channels, " channels of buffer ", view.buffer,
           ", got offset ", view.offset, " and ", view.channels, " channels");
}

const Buffer& buffer_of(const Graph& graph, const View& view) {
  return graph.buffers[static_cast<std::size_t>(view.buffer)];
}

std::int64_t downscale(const Graph& graph, const View& view) { return buffer_of(graph, view).downscale_log2; }

const char* type_name(bool is_int8) { return is_int8 ? "int8" : "float32"; }

bool is_scale(float scale) { return std::isfinite(scale) && scale >= std::numeric_limits<float>::min(); }

// The sizes of a convolution's weight and settings.
void check_weight(const Step& step, const std::string& owner) {
  const bool upsample = step.op == Op::upsample;
  YN_CHECK(step.kernel >= 1 && step.kernel <= 15, "engine: kernel of ", owner, " must lie in 1..15, got ", step.kernel);
  YN_CHECK(upsample ? step.kernel == 2 : step.kernel % 2 == 1, "engine: kernel of ", owner, " must be ",
           upsample ? "2" : "odd", ", got ", step.kernel);
  YN_CHECK(step.stride == 2 || (!upsample && step.stride == 1), "engine: stride of ", owner, " must be ",
           upsample ? "2" : "1 or 2", ", got ", step.stride);
  const std::int64_t count = step.input.channels * step.output.channels * step.kernel * step.kernel;
  const std::size_t values = step.is_integer() ? step.weight_s8.size() : step.weight.size();
  YN_CHECK(static_cast<std::int64_t>(values) == count, "engine: weight of ", owner, " must have ", count,
           " values for ", step.input.channels, " -> ", step.output.channels, " channels and a kernel of ", step.kernel,
           "x", step.kernel, ", got ", values);
  YN_CHECK(static_cast<std::int64_t>(step.bias.size()) == step.output.channels, "engine: bias of ", owner,
           " must have one value per output channel, ", step.output.channels, ", got ", step.bias.size());
  const auto finite = [](float value) { return std::isfinite(value); };
  YN_CHECK(std::all_of(step.weight.begin(), step.weight.end(), finite), "engine: weight of ", owner,
           " must be finite, got NaN or infinity");
  YN_CHECK(std::all_of(step.bias.begin(), step.bias.end(), finite), "engine: bias of ", owner,
           " must be finite, got NaN or infinity");
  YN_CHECK(std::isfinite(step.residual_scale), "engine: residual_scale of ", owner, " must be finite, got ",
           step.residual_scale);
}

// What an integer step has beyond, and the sizes that it multiplies by.
void check_integer_step(const Graph& graph, const Step& step, const std::string& owner) {
  YN_CHECK(static_cast<std::int64_t>(step.weight_scale.size()) == step.output.channels, "engine: weight_scale of ",
           owner, " must have one value per output channel, ", step.output.channels, ", got ",
           step.weight_scale.size());
  for (const float scale : step.weight_scale) {
    YN_CHECK(is_scale(scale), "engine: weight_scale of ", owner, " must be positive and finite, got ", scale);
  }
  YN_CHECK(std::count(step.weight_s8.begin(), step.weight_s8.end(), std::int8_t{-128}) == 0, "engine: weight of ",
           owner, " must lie within -127..127, got -128");
  const std::int64_t depth = step.kernel * step.kernel * step.input.channels;
  YN_CHECK(depth <= kMaxIntegerDepth, "engine: weight of ", owner, " must have at most ", kMaxIntegerDepth,
           " values per output channel, got ", depth);
  const Requantization numbers = requantization(graph, step);
  const auto finite = [](float value) { return std::isfinite(value); };
  YN_CHECK(std::all_of(numbers.multiplier.begin(), numbers.multiplier.end(), finite) &&
               std::all_of(numbers.offset.begin(), numbers.offset.end(), finite) && finite(numbers.residual_multiplier),
           "engine: scales of ", owner, " must give finite factors; they are too far apart");
}

// The types of what a step reads and writes.
void check_types(const Graph& graph, const Step& step, const std::string& owner) {
  const bool input = buffer_of(graph, step.input).is_int8(), output = buffer_of(graph, step.output).is_int8();
  const bool reads = step.is_integer() || step.op == Op::dequantize;
  if (step.op == Op::max_pool5) {
    YN_CHECK(buffer_of(graph, step.input).scale == buffer_of(graph, step.output).scale, "engine: output of ", owner,
             " must have the scale of its input, ", buffer_of(graph, step.input).scale, ", got ",
             buffer_of(graph, step.output).scale);
    return;
  }
  YN_CHECK(input == reads, "engine: input of ", owner, " must be ", type_name(reads), ", got ", type_name(input));
  YN_CHECK(!step.has_residual || buffer_of(graph, step.residual).is_int8() == reads, "engine: residual of ", owner,
           " must be ", type_name(reads), ", got ", type_name(!reads));
  const bool writes = step.op == Op::quantize;
  YN_CHECK(step.is_integer() || output == writes, "engine: output of ", owner, " must be ", type_name(writes), ", got ",
           type_name(output));
}

void check_step(const Graph& graph, const Step& step, Written& written) {
  const std::string owner = concat("step '", step.name, "'");
  check_view(graph, step.input, owner, "input");
  check_view(graph, step.output, owner, "output");
  if (step.has_residual) check_view(graph, step.residual, owner, "residual");
  YN_CHECK(step.output.buffer != 0, "engine: output of ", owner, " must not be the input, buffer 0");
  YN_CHECK(!overlap(step.input, step.output), "engine: output of ", owner, " must not overlap its input, got ",
           view_text(step.output), " and ", view_text(step.input));
  YN_CHECK(written.all(step.input), "engine: input of ", owner, " must have been written by earlier steps, got ",
           view_text(step.input));
  const std::int64_t in = downscale(graph, step.input), out = downscale(graph, step.output);
  std::int64_t expected = in;
  if (step.op == Op::conv) expected = in + (step.stride == 2 ? 1 : 0);
  if (step.op == Op::upsample) expected = in - 1;
  YN_CHECK(out == expected, "engine: output of ", owner, " must be in a buffer at 1 / 2^", expected, ", got buffer ",
           step.output.buffer, " at 1 / 2^", out);
  if (step.has_weight()) {
    check_weight(step, owner);
    if (step.is_integer()) check_integer_step(graph, step, owner);
  } else {
    const bool fits = step.op == Op::quantize ? step.input.channels <= step.output.channels
                                              : step.input.channels == step.output.channels;
    YN_CHECK(fits, "engine: output of ", owner, " must have as many channels as its input, ", step.input.channels,
             ", got ", step.output.channels);
    YN_CHECK(!step.is_integer(), "engine: weight_scale of ", owner, " must be left out for ", name(step.op));
    YN_CHECK(step.kernel == 1 && step.stride == 1, "engine: kernel and stride of ", owner, " must be left out for ",
             name(step.op), ", got ", step.kernel, " and ", step.stride);
  }
  check_types(graph, step, owner);
  YN_CHECK(!step.has_residual || step.op == Op::conv, "engine: residual of ", owner, " must be left out for ",
           name(step.op));
  const bool in_place = step.has_residual && same(step.residual, step.output);
  if (step.has_residual) {
    YN_CHECK(step.residual.channels == step.output.channels && downscale(graph, step.residual) == out,
             "engine: residual of ", owner, " must be as large as its output, ", view_text(step.output), ", got ",
             view_text(step.residual));
    YN_CHECK(written.all(step.residual), "engine: residual of ", owner,
             " must have been written by earlier steps, got ", view_text(step.residual));
    YN_CHECK(in_place || !overlap(step.residual, step.output), "engine: output of ", owner,
             " must be its residual or not overlap it, got ", view_text(step.output), " and ",
             view_text(step.residual));
  }
  YN_CHECK(in_place || step.op == Op::quantize || !written.any(step.output), "engine: output of ", owner,
           " must not overlap the output of an earlier step, got ", view_text(step.output));
  written.mark(step.output);
}

}  // namespace

const char* name(Op op) noexcept {
  switch (op) {
    case Op::conv:
      return "conv";
    case Op::upsample:
      return "upsample";
    case Op::max_pool5:
      return "max_pool5";
    case Op::quantize:
      return "quantize";
    case Op::dequantize:
      return "dequantize";
  }
  return "unknown";
}

Requantization requantization(const Graph& graph, const Step& step) {
  const double in = buffer_of(graph, step.input).scale;
  const Buffer& output = buffer_of(graph, step.output);
  const double out = output.is_int8() ? output.scale : 1.0;
  Requantization numbers;
  for (std::size_t k = 0; k < step.weight_scale.size(); ++k) {
    numbers.multiplier.push_back(static_cast<float>(in * step.weight_scale[k] / out));
    numbers.offset.push_back(static_cast<float>(step.bias[k] / out));
  }
  if (step.has_residual) {
    const double residual = buffer_of(graph, step.residual).scale;
    numbers.residual_multiplier = static_cast<float>(step.residual_scale * residual / out);
  }
  return numbers;
}

std::vector<bool> nonnegative_buffers(const Graph& graph) {
  std::vector<bool> nonnegative(graph.buffers.size(), true);
  nonnegative[0] = false;
  const auto at = [&](const View& view) { return nonnegative[static_cast<std::size_t>(view.buffer)]; };
  for (bool changed = true; changed;) {
    changed = false;
    for (const Step& step : graph.steps) {
      if (!at(step.output)) continue;
      const bool summed = !step.has_residual || (at(step.residual) && step.residual_scale >= 0);
      if (step.has_weight() ? step.relu && summed : at(step.input)) continue;
      nonnegative[static_cast<std::size_t>(step.output.buffer)] = false;
      changed = true;
    }
  }
  return nonnegative;
}

std::string view_text(const View& view) {
  return concat("buffer ", view.buffer, ", channels ", view.offset, "..", view.offset + view.channels - 1);
}

std::vector<std::string> Graph::step_names() const {
  std::vector<std::string> names;
  for (const Step& step : steps) names.push_back(step.name);
  return names;
}

std::int64_t Graph::size_multiple() const noexcept {
  std::int64_t deepest = 0;
  for (const Buffer& buffer : buffers) deepest = std::max(deepest, buffer.downscale_log2);
  return std::int64_t{1} << deepest;
}

void check_graph(const Graph& graph) {
  const std::int64_t buffers = static_cast<std::int64_t>(graph.buffers.size());
  YN_CHECK(buffers >= 1 && buffers <= kMaxBuffers, "engine: number of buffers must lie in 1..", kMaxBuffers, ", got ",
           buffers);
  for (std::int64_t i = 0; i < buffers; ++i) {
    const Buffer& buffer = graph.buffers[static_cast<std::size_t>(i)];
    YN_CHECK(buffer.channels >= 1 && buffer.channels <= kMaxChannels, "engine: channels of buffer ", i,
             " must lie in 1..", kMaxChannels, ", got ", buffer.channels);
    YN_CHECK(buffer.downscale_log2 >= 0 && buffer.downscale_log2 <= kMaxDownscale, "engine: downscale_log2 of buffer ",
             i, " must lie in 0..", kMaxDownscale, ", got ", buffer.downscale_log2);
    YN_CHECK(buffer.scale == 0 || is_scale(buffer.scale), "engine: scale of buffer ", i,
             " must be positive and finite, or 0 for float32, got ", buffer.scale);
  }
  YN_CHECK(!graph.buffers[0].is_int8(), "engine: buffer 0 is the input and must be float32, got int8");
  YN_CHECK(graph.buffers[0].downscale_log2 == 0 && graph.buffers[0].channels == kInputChannels,
           "engine: buffer 0 is the input and must be (0, ", kInputChannels, "), got (",
           graph.buffers[0].downscale_log2, ", ", graph.buffers[0].channels, ")");
  YN_CHECK(!graph.steps.empty() && static_cast<std::int64_t>(graph.steps.size()) <= kMaxSteps,
           "engine: number of steps must lie in 1..", kMaxSteps, ", got ", graph.steps.size());
  Written written(graph);
  std::set<std::string> names;
  for (std::size_t i = 0; i < graph.steps.size(); ++i) {
    const Step& step = graph.steps[i];
    const bool printable = std::all_of(step.name.begin(), step.name.end(), [](char c) { return c >= ' ' && c <= '~'; });
    YN_CHECK(printable && step.name.size() <= kMaxName, "engine: name of step ", i,
             " must be printable ASCII of at most ", kMaxName, " characters");
    YN_CHECK(!step.has_weight() || names.insert(step.name).second, "engine: names of steps must be unique, got '",
             step.name, "' twice");
    check_step(graph, step, written);
  }
  YN_CHECK(!graph.levels.empty(), "engine: there must be at least one output");
  std::vector<View> outputs;
  for (std::size_t i = 0; i < graph.levels.size(); ++i) {
    const Level& level = graph.levels[i];
    for (const View* view : {&level.cls, &level.reg}) {
      const char* argument = view == &level.cls ? "cls" : "reg";
      const std::string owner = concat("output ", i);
      check_view(graph, *view, owner, argument);
      YN_CHECK(view->buffer != 0 && written.all(*view), "engine: ", argument, " of ", owner,
               " must have been written by a step, got ", view_text(*view));
      YN_CHECK(level.stride == std::int64_t{1} << downscale(graph, *view), "engine: stride of ", owner, " must be ",
               std::int64_t{1} << downscale(graph, *view), ", the scale of its buffer, got ", level.stride);
      YN_CHECK(!buffer_of(graph, *view).is_int8(), "engine: ", argument, " of ", owner, " must be float32, got int8");
      for (const View& other : outputs) {
        YN_CHECK(!overlap(*view, other), "engine: ", argument, " of ", owner, " must not overlap another output, got ",
                 view_text(*view));
      }
      outputs.push_back(*view);
    }
  }
}

}  // namespace yolonas::engine
