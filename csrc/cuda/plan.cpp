#include "cuda/plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/check.h"
#include "cuda/half_bits.h"
#include "engine/arena.h"

namespace yolonas::cuda {
namespace {

using engine::Graph;
using engine::Op;
using engine::Step;
using engine::View;

constexpr int kChunk = 16;  // bytes that kernels read at once

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

int round_up_int(std::int64_t count, int multiple) { return static_cast<int>(engine::round_up(count, multiple)); }

bool is_whole(const Graph& graph, const View& view) {
  return view.offset == 0 && view.channels == graph.buffers[at(view.buffer)].channels;
}

float inverse(float scale) { return static_cast<float>(1.0 / static_cast<double>(scale)); }

// Per buffer, which steps read or write it.
struct Uses {
  std::vector<std::vector<std::size_t>> readers, writers;
  explicit Uses(const Graph& graph) : readers(graph.buffers.size()), writers(graph.buffers.size()) {
    for (std::size_t i = 0; i < graph.steps.size(); ++i) {
      const Step& step = graph.steps[i];
      readers[at(step.input.buffer)].push_back(i);
      if (step.has_residual) readers[at(step.residual.buffer)].push_back(i);
      writers[at(step.output.buffer)].push_back(i);
    }
  }
};

class Builder {
 public:
  Builder(const Graph& graph, bool half, std::vector<unsigned char>& weights)
      : graph_(graph), half_(half), weights_(weights), uses_(graph), zeros_beyond_(graph.buffers.size(), false) {}

  Network build() {
    check_types();
    add_buffers();
    choose_input();
    const std::vector<std::vector<int>> needs = engine::step_needs(graph_);
    for (std::size_t i = 0; i < graph_.steps.size(); ++i) {
      add_step(graph_.steps[i]);
      network_.steps.back().needs = needs[i];
    }
    network_.graph_steps = graph_.steps.size();
    if (skipped_ >= 0) {
      network_.steps[at(skipped_)].work = Work::none;
      for (NetworkStep& step : network_.steps) {
        step.needs.erase(std::remove(step.needs.begin(), step.needs.end(), static_cast<int>(skipped_)),
                         step.needs.end());
      }
    }
    add_outputs();
    network_.weight_bytes = static_cast<std::int64_t>(weights_.size());
    return std::move(network_);
  }

 private:
  void check_types() const {
    const bool quantised = std::any_of(graph_.buffers.begin(), graph_.buffers.end(),
                                       [](const engine::Buffer& buffer) { return buffer.is_int8(); });
    YN_CHECK(!half_ || !quantised, "engine: half must be off: a quantised network keeps its float steps in float32");
  }

  // Only convolutions can write another type than they read.
  bool is_only_output(std::size_t buffer) const {
    const auto is_in = [&](const View& view) { return at(view.buffer) == buffer; };
    return uses_.readers[buffer].empty() &&
           std::any_of(graph_.levels.begin(), graph_.levels.end(),
                       [&](const engine::Level& level) { return is_in(level.cls) || is_in(level.reg); }) &&
           std::all_of(uses_.writers[buffer].begin(), uses_.writers[buffer].end(),
                       [&](std::size_t step) { return graph_.steps[step].has_weight(); });
  }

  void add_buffers() {
    for (std::size_t i = 0; i < graph_.buffers.size(); ++i) {
      const engine::Buffer& buffer = graph_.buffers[i];
      Network::Buffer one;
      one.elem = buffer.is_int8() ? Elem::s8 : half_ && !is_only_output(i) ? Elem::f16 : Elem::f32;
      one.downscale_log2 = buffer.downscale_log2;
      one.channels = static_cast<int>(buffer.channels);
      one.pixel = round_up_int(buffer.channels, kChunk / bytes_of(one.elem));
      network_.buffers.push_back(one);
      // Conversions write zeros beyond what they read, if they are asked for more.
      const auto& writers = uses_.writers[i];
      zeros_beyond_[i] =
          i == 0 || (!writers.empty() && std::all_of(writers.begin(), writers.end(), [&](std::size_t step) {
            const Op op = graph_.steps[step].op;
            return (op == Op::quantize || op == Op::dequantize) && is_whole(graph_, graph_.steps[step].output);
          }));
    }
  }

  // Where nothing but one conversion reads the input, it is written as its output at once.
  void choose_input() {
    if (uses_.readers[0].size() != 1) return;
    const std::size_t reader = uses_.readers[0][0];
    const Step& step = graph_.steps[reader];
    if (step.op != Op::quantize || !is_whole(graph_, step.input) || !is_whole(graph_, step.output)) return;
    if (uses_.writers[at(step.output.buffer)].size() != 1) return;
    skipped_ = static_cast<std::int64_t>(reader);
    network_.input = static_cast<int>(step.output.buffer);
    network_.input_factor = inverse(graph_.buffers[at(step.output.buffer)].scale);
  }

  // As kernels read it: whole chunks.
  View readable(const Step& step, const View& view) const {
    const Network::Buffer& buffer = network_.buffers[at(view.buffer)];
    const int multiple = kChunk / bytes_of(buffer.elem);
    if (view.offset == 0 && zeros_beyond_[at(view.buffer)] && view.channels == buffer.channels) {
      return {view.buffer, 0, buffer.pixel};
    }
    if (view.offset % multiple != 0 || view.channels % multiple != 0) {
      throw NotSupported(concat("engine: input of step '", step.name, "' must begin at and have a multiple of ",
                                multiple, " channels of ", cuda::name(buffer.elem), " on a CUDA device, got ",
                                engine::view_text(view)));
    }
    return view;
  }

  // The next place in the weights, and `bytes` there.
  std::int64_t reserve(std::int64_t bytes) {
    const std::int64_t place = engine::round_up(static_cast<std::int64_t>(weights_.size()), kAlignBytes);
    weights_.resize(at(place + bytes), 0);
    return place;
  }

  std::int64_t put_floats(const std::vector<float>& values) {
    const std::int64_t bytes = static_cast<std::int64_t>(values.size() * sizeof(float)), place = reserve(bytes);
    if (bytes > 0) std::memcpy(weights_.data() + place, values.data(), at(bytes));
    return place;
  }

  // Rows of `channels` numbers, each padded to `padded`.
  template <class To, class From, class Convert>
  std::int64_t put_weights(const std::vector<From>& values, std::int64_t channels, std::int64_t padded,
                           const Convert& convert) {
    const std::int64_t rows = static_cast<std::int64_t>(values.size()) / channels;
    const std::int64_t place = reserve(rows * padded * static_cast<std::int64_t>(sizeof(To)));
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t c = 0; c < channels; ++c) {
        const To value = convert(values[at(row * channels + c)]);
        std::memcpy(weights_.data() + place + (row * padded + c) * static_cast<std::int64_t>(sizeof(To)), &value,
                    sizeof value);
      }
    }
    return place;
  }

  void add_weights(const Step& step, NetworkStep& one) {
    const std::int64_t begin = engine::round_up(static_cast<std::int64_t>(weights_.size()), kAlignBytes);
    const std::int64_t channels = step.input.channels, padded = one.x.channels;
    const auto same = [](auto value) { return value; };
    if (step.is_integer()) {
      const engine::Requantization numbers = engine::requantization(graph_, step);
      one.weight = put_weights<std::int8_t>(step.weight_s8, channels, padded, same);
      one.multiplier = put_floats(repeated(numbers.multiplier, one.transposed));
      one.offset = put_floats(repeated(numbers.offset, one.transposed));
      one.residual_scale = numbers.residual_multiplier;
    } else {
      if (network_.buffers[at(step.input.buffer)].elem == Elem::f16) {
        for (const float value : step.weight) {
          YN_CHECK(std::fabs(value) <= kLargestHalf, "engine: weight of step '", step.name,
                   "' must lie within -65504..65504 for float16, got ", value, "; use half=False");
        }
        one.weight = put_weights<std::uint16_t>(step.weight, channels, padded, half_bits);
      } else {
        one.weight = put_weights<float>(step.weight, channels, padded, same);
      }
      one.offset = put_floats(repeated(step.bias, one.transposed));
      one.residual_scale = step.residual_scale;
    }
    one.weight_bytes = static_cast<std::int64_t>(weights_.size()) - begin;
  }

  // A transposed convolution has a column per tap and channel.
  static std::vector<float> repeated(const std::vector<float>& values, bool transposed) {
    std::vector<float> all;
    for (int i = 0; i < (transposed ? 4 : 1); ++i) all.insert(all.end(), values.begin(), values.end());
    return all;
  }

  void add_step(const Step& step) {
    NetworkStep one;
    one.name = step.name;
    one.x = step.input;
    one.y = step.output;
    switch (step.op) {
      case Op::conv:
      case Op::upsample:
        one.work = Work::conv;
        one.transposed = step.op == Op::upsample;
        if (!one.transposed && step.kernel > kMostKernel) {
          throw NotSupported(concat("engine: kernel of step '", step.name, "' must be at most ", kMostKernel,
                                    " on a CUDA device, got ", step.kernel));
        }
        one.kernel = one.transposed ? 1 : static_cast<int>(step.kernel);
        one.stride = one.transposed ? 1 : static_cast<int>(step.stride);
        one.relu = step.relu;
        one.has_residual = step.has_residual;
        one.residual = step.residual;
        one.x = readable(step, step.input);
        add_weights(step, one);
        break;
      case Op::max_pool5:
        one.work = Work::pool;
        break;
      case Op::quantize:
        one.work = Work::convert;
        one.factor = inverse(graph_.buffers[at(step.output.buffer)].scale);
        break;
      case Op::dequantize:
        one.work = Work::convert;
        one.factor = graph_.buffers[at(step.input.buffer)].scale;
        break;
    }
    const Network::Buffer& out = network_.buffers[at(step.output.buffer)];
    if (zeros_beyond_[at(step.output.buffer)]) one.y.channels = out.pixel;
    network_.steps.push_back(std::move(one));
  }

  void add_outputs() {
    for (const engine::Level& level : graph_.levels) {
      for (const View* view : {&level.cls, &level.reg}) add_output(*view);
    }
  }

  void add_output(const View& view) {
    const Network::Buffer from = network_.buffers[at(view.buffer)];
    if (from.elem == Elem::f32) {
      network_.outputs.push_back(view);
      return;
    }
    Network::Buffer own;
    own.downscale_log2 = from.downscale_log2;
    own.channels = static_cast<int>(view.channels);
    own.pixel = round_up_int(view.channels, kChunk / bytes_of(own.elem));
    NetworkStep one;
    one.work = Work::convert;
    one.name = concat("output ", network_.outputs.size());
    one.x = view;
    one.y = {static_cast<std::int64_t>(network_.buffers.size()), 0, view.channels};
    for (std::size_t i = 0; i < graph_.steps.size(); ++i) {
      if (graph_.steps[i].output.buffer == view.buffer) one.needs.push_back(static_cast<int>(i));
    }
    network_.buffers.push_back(own);
    network_.outputs.push_back(one.y);
    network_.steps.push_back(std::move(one));
  }

  const Graph& graph_;
  bool half_;
  std::vector<unsigned char>& weights_;
  Uses uses_;
  std::vector<bool> zeros_beyond_;  // per buffer: the channels between its own and the next pixel are written, with 0
  std::int64_t skipped_ = -1;       // a step
  Network network_;
};

const char* name_of(Work work) {
  switch (work) {
    case Work::none:
      return "input";
    case Work::pool:
      return "max_pool";
    default:
      return "convert";
  }
}

const ConvVariant* variants_of(const Network& network, const NetworkStep& step, int* count) {
  return conv_variants(network.buffers[at(step.x.buffer)].elem, count);
}

std::int64_t bytes_of_view(const Network& network, const NetworkPlan& plan, const View& view) {
  return plan.pixels(static_cast<int>(view.buffer)) * view.channels * bytes_of(network.buffers[at(view.buffer)].elem);
}

ConvChoice find_choice(const Network& network, const NetworkStep& step, const ConvWork& work, const NamedChoice& wanted,
                       const Processor& processor) {
  int count = 0;
  const ConvVariant* variants = variants_of(network, step, &count);
  int variant = 0;
  while (variant < count && wanted.name != variants[variant].name) ++variant;
  YN_CHECK(variant < count && variants[variant].runs_on(processor.arch, processor.code), "choices: step '", step.name,
           "' cannot be computed by ", wanted.name);
  const bool fits = wanted.splits >= 1 && wanted.splits <= std::numeric_limits<int>::max() &&
                    can_run(work, variants, count, {variant, static_cast<int>(wanted.splits)}, processor);
  YN_CHECK(fits, "choices: step '", step.name, "' cannot be computed by ", wanted.name, " in ", wanted.splits,
           " splits");
  return {variant, static_cast<int>(wanted.splits)};
}

void choose(const Network& network, NetworkPlan& plan, std::size_t index, const std::optional<NamedChoice>& tuned,
            const Processor& processor) {
  const NetworkStep& step = network.steps[index];
  StepPlan& one = plan.steps[index];
  if (step.work == Work::conv) {
    const ConvWork work = work_of(conv_args(network, plan, index, nullptr, nullptr));
    int count = 0;
    const ConvVariant* variants = variants_of(network, step, &count);
    const RatedChoice best = rated_choices(work, variants, count, processor, 1).front();
    one.choice = best.choice;
    one.microseconds = best.microseconds;
    if (tuned) {
      one.choice = find_choice(network, step, work, *tuned, processor);
      one.tuned = one.choice.variant != best.choice.variant || one.choice.splits != best.choice.splits;
      one.microseconds = estimated_time(variants[one.choice.variant], one.choice.splits, work, processor);
    }
    const ConvArgs args = conv_args(network, plan, index, nullptr, nullptr);
    one.partial_bytes = conv_partial_bytes(args, one.choice);
    one.counters = conv_counters(args, one.choice);
    one.first_counter = plan.counters;
    plan.counters += one.counters;
    return;
  }
  YN_CHECK(!tuned || (tuned->name == name_of(step.work) && tuned->splits == 1), "choices: step '", step.name,
           "' can only be computed by ", name_of(step.work), ", 1, got ", tuned->name, ", ", tuned->splits);
  if (step.work == Work::none) return;
  one.microseconds =
      estimated_copy_time(bytes_of_view(network, plan, step.x) + bytes_of_view(network, plan, step.y), processor);
}

// Which steps are queued, as tasks, and their indices in the network.
struct Tasks {
  std::vector<engine::Task> tasks;
  std::vector<int> step_of;
};

Tasks tasks_of(const Network& network, const NetworkPlan& plan) {
  Tasks all;
  std::vector<int> task_of(network.steps.size(), -1);
  for (std::size_t i = 0; i < network.steps.size(); ++i) {
    if (network.steps[i].work == Work::none) continue;
    engine::Task task;
    task.cost = plan.steps[i].microseconds;
    for (const int need : network.steps[i].needs) task.needs.push_back(task_of[at(need)]);
    task_of[i] = static_cast<int>(all.tasks.size());
    all.tasks.push_back(std::move(task));
    all.step_of.push_back(static_cast<int>(i));
  }
  return all;
}

// Buffers and partial sums share memory where all that uses one has ended before anything uses the other.
void lay_out_arena(const Network& network, const Tasks& tasks, NetworkPlan& plan) {
  const std::size_t buffers = network.buffers.size();
  std::vector<std::vector<int>> users(buffers + network.steps.size());  // tasks
  for (std::size_t i = 0; i < tasks.tasks.size(); ++i) {
    const std::size_t index = at(tasks.step_of[i]);
    const NetworkStep& step = network.steps[index];
    users[at(step.x.buffer)].push_back(static_cast<int>(i));
    users[at(step.y.buffer)].push_back(static_cast<int>(i));
    if (step.has_residual) users[at(step.residual.buffer)].push_back(static_cast<int>(i));
    users[buffers + index].push_back(static_cast<int>(i));
  }
  std::vector<bool> kept(users.size(), false);  // to the end
  for (const View& output : network.outputs) kept[at(output.buffer)] = true;
  const auto input = at(network.input);
  const engine::Order order(tasks.tasks);
  const auto before = [&](std::size_t first, std::size_t second) {
    if (kept[first] || second == input) return false;
    for (const int one : users[first]) {
      for (const int other : users[second]) {
        if (!order.before(one, other)) return false;
      }
    }
    return true;
  };
  std::vector<std::int64_t> sizes;
  for (std::size_t i = 0; i < buffers; ++i) {
    const Network::Buffer& buffer = network.buffers[i];
    const bool used = !users[i].empty() || i == input;
    plan.places[i].bytes = used ? plan.pixels(static_cast<int>(i)) * buffer.pixel * bytes_of(buffer.elem) : 0;
    sizes.push_back(plan.places[i].bytes);
  }
  for (const StepPlan& step : plan.steps) sizes.push_back(step.partial_bytes);
  const engine::Layout layout =
      engine::lay_out(sizes, kAlignBytes, [&](std::size_t a, std::size_t b) { return !before(a, b) && !before(b, a); });
  for (std::size_t i = 0; i < buffers; ++i) plan.places[i].offset = layout.offset[i];
  for (std::size_t i = 0; i < plan.steps.size(); ++i) plan.steps[i].partial = layout.offset[buffers + i];
  plan.arena_bytes = layout.size;
}

}  // namespace

MapView Network::view(const View& of, void* buffer) const {
  const Buffer& one = buffers[at(of.buffer)];
  char* const first = static_cast<char*>(buffer);
  return {first ? first + of.offset * bytes_of(one.elem) : nullptr, one.elem, static_cast<int>(of.channels), one.pixel};
}

Network make_network(const Graph& graph, bool half, std::vector<unsigned char>& weights) {
  weights.clear();
  return Builder(graph, half, weights).build();
}

ConvArgs conv_args(const Network& network, const NetworkPlan& plan, std::size_t index, void* const* buffers,
                   const void* weights) {
  const NetworkStep& step = network.steps[index];
  const auto view = [&](const View& of) { return network.view(of, buffers ? buffers[of.buffer] : nullptr); };
  const NetworkPlan::Place &in = plan.places[at(step.x.buffer)], &out = plan.places[at(step.y.buffer)];
  const char* const block = static_cast<const char*>(weights);
  ConvArgs args{};
  args.x = view(step.x);
  args.y = view(step.y);
  if (step.has_residual) args.residual = view(step.residual);
  if (block) {
    args.weight = block + step.weight;
    args.multiplier = reinterpret_cast<const float*>(block + step.multiplier);
    args.offset = reinterpret_cast<const float*>(block + step.offset);
  }
  args.residual_scale = step.residual_scale;
  args.batch = static_cast<int>(plan.size.pictures);
  args.in_h = in.height;
  args.in_w = in.width;
  args.out_h = step.transposed ? in.height : out.height;
  args.out_w = step.transposed ? in.width : out.width;
  args.kernel = step.kernel;
  args.stride = step.stride;
  args.pad = step.kernel / 2;
  args.relu = step.relu;
  args.transposed = step.transposed;
  return args;
}

NetworkPlan make_plan(const Network& network, const engine::InputSize& size, const TunedSteps& tuned,
                      const Processor& processor) {
  YN_CHECK(tuned.size() == network.graph_steps, "choices: there must be one per step, ", network.graph_steps, ", got ",
           tuned.size());
  NetworkPlan plan;
  plan.size = size;
  for (const Network::Buffer& buffer : network.buffers) {
    NetworkPlan::Place place;
    place.height = static_cast<int>(size.height >> buffer.downscale_log2);
    place.width = static_cast<int>(size.width >> buffer.downscale_log2);
    plan.places.push_back(place);
  }
  plan.steps.resize(network.steps.size());
  for (std::size_t i = 0; i < network.steps.size(); ++i) {
    choose(network, plan, i, i < tuned.size() ? tuned[i] : std::nullopt, processor);
  }
  const Tasks tasks = tasks_of(network, plan);
  engine::Schedule schedule = engine::schedule(tasks.tasks, kMostStreams);
  for (std::size_t i = 0; i < tasks.tasks.size(); ++i) {
    for (int& wait : schedule.slots[i].waits) wait = tasks.step_of[at(wait)];
    plan.steps[at(tasks.step_of[i])].slot = schedule.slots[i];
  }
  for (const int join : schedule.joins) plan.joins.push_back(tasks.step_of[at(join)]);
  plan.streams = schedule.streams;
  lay_out_arena(network, tasks, plan);
  return plan;
}

std::vector<NamedChoice> alternatives(const Network& network, const NetworkPlan& plan, std::size_t index,
                                      const Processor& processor, int splits) {
  const NetworkStep& step = network.steps[index];
  if (step.work != Work::conv) return {{name_of(step.work), 1}};
  int count = 0;
  const ConvVariant* variants = variants_of(network, step, &count);
  std::vector<NamedChoice> all;
  const ConvWork work = work_of(conv_args(network, plan, index, nullptr, nullptr));
  for (const RatedChoice& one : rated_choices(work, variants, count, processor, splits)) {
    all.push_back({variants[one.choice.variant].name, one.choice.splits});
  }
  return all;
}

NamedChoice choice_of(const Network& network, const NetworkPlan& plan, std::size_t index) {
  const NetworkStep& step = network.steps[index];
  if (step.work != Work::conv) return {name_of(step.work), 1};
  int count = 0;
  const ConvChoice& choice = plan.steps[index].choice;
  return {variants_of(network, step, &count)[choice.variant].name, choice.splits};
}

}  // namespace yolonas::cuda
