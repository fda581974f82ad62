#include "cuda/engine.h"

#include <algorithm>
#include <cstdio>

#include "core/check.h"
#include "core/env.h"
#include "cuda/copy_maps.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "engine/arguments.h"

namespace yolonas::cuda {
namespace {

constexpr const char* kOp = "engine";
constexpr std::size_t kPlans = 32, kDetects = 16;  // kept; of detects, per plan
constexpr int kMostFailures = 3;                   // of captures in a row

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

bool same_size(const engine::InputSize& a, const engine::InputSize& b) {
  return a.pictures == b.pictures && a.height == b.height && a.width == b.width;
}

std::string gib(std::int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  return text;
}

// `owner` says what needs the memory.
DeviceMemory allocate(std::int64_t bytes, std::int64_t needed, const std::string& owner, int device, const char* cure) {
  try {
    return DeviceMemory(bytes);
  } catch (const OutOfMemory&) {
    throw OutOfMemory(concat(kOp, ": ", owner, " needs ", gib(needed), " on cuda:", device, ", ", gib(free_bytes()),
                             " are free", cure));
  }
}

std::string size_text(const engine::InputSize& size) {
  return concat(size.pictures, " x ", size.height, " x ", size.width);
}

constexpr const char* kSmaller = "; use a smaller batch or size";

MapView dense(float* data, std::int64_t channels) {
  return {data, Elem::f32, static_cast<int>(channels), static_cast<int>(channels)};
}

[[noreturn]] void raise_unseen(const engine::InputSize& size, const char* with = "") {
  throw std::runtime_error(
      concat(kOp, ": ", size_text(size), " must have been run once", with, " before a stream is captured with it"));
}

}  // namespace

bool Engine::DetectSettings::operator==(const DetectSettings& other) const {
  return conf == other.conf && iou == other.iou && top_k == other.top_k && max_det == other.max_det &&
         multi_label == other.multi_label && mask == other.mask && agnostic == other.agnostic;
}

Engine::Engine(engine::Graph&& graph, const Options& options) : graph_(std::move(graph)), options_(options) {
  engine::check_graph(graph_);
  std::vector<unsigned char> weights;
  network_ = make_network(graph_, options_.half, weights);
  for (engine::Step& step : graph_.steps) {
    step.weight = std::vector<float>();
    step.weight_s8 = std::vector<std::int8_t>();
  }
  for (const engine::Level& level : graph_.levels) {
    levels_.push_back({level.cls.channels, level.reg.channels, level.stride});
  }
  check_device(kOp, options_.device);
  const DeviceGuard device(kOp, options_.device);
  processor_ = processor_of(options_.device);
  use_graphs_ = env_cuda_graph() && !env_cuda_sync();
  overlap_ = env_cuda_overlap() && processor_.code >= 90;  // others do not wait, see wait_for_previous()
  const auto bytes = static_cast<std::int64_t>(weights.size());
  weights_ = allocate(bytes, bytes, "the network", options_.device, "");
  upload(weights_.data(), weights.data(), bytes);
  mask_ = DeviceMemory(num_classes());
}

Engine::~Engine() {
  try {
    const DeviceGuard device(kOp, options_.device);
    wait_for_all();
    forget_plans();
    streams_.clear();
    events_.clear();
    last_.reset();
    for (DeviceMemory* memory : {&weights_, &arena_, &counters_, &mask_}) *memory = DeviceMemory();
    kept_.clear();
  } catch (const std::exception&) {
    // The device is lost, or the process ends: there is nothing to give back.
  }
}

// --- calls ---

void Engine::run(const TensorView& x, const std::vector<TensorView>& cls, const std::vector<TensorView>& reg,
                 Stream stream) {
  const engine::InputSize size = engine::check_input(graph_, x, "run");
  const std::vector<float*> outputs = engine::check_outputs(graph_, x, cls, reg, "run");
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device("run", options_.device);
  const bool capturing = is_capturing(stream);
  PlanState& state = state_for(size, !capturing);
  make_room(state, !capturing);
  if (capturing && !state.captured.seen) raise_unseen(size);  // kernels are loaded by their first launch
  const Pointers places = pointers(state);
  Call call(*this, stream, capturing);
  queue_input(state.plan, places, x, stream);
  queue_network(state, nullptr, stream, capturing);
  std::vector<MapCopy> copies;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const engine::View& view = network_.outputs[i];
    copies.push_back({network_.view(view, places.buffers[at(view.buffer)]), outputs[i],
                      state.plan.pixels(static_cast<int>(view.buffer))});
  }
  copy_maps(copies.data(), static_cast<int>(copies.size()), {stream, false});
  call.end();
}

void Engine::detect(const DetectRequest& request, Stream stream) {
  const char* op = "detect";
  const engine::InputSize size{static_cast<std::int64_t>(request.pictures.size()), request.frame_h, request.frame_w};
  YN_CHECK(size.pictures >= 1, op, ": pictures must hold at least one picture, got none");
  engine::check_size(graph_, size, op);
  check_detect(op, request, levels_);
  std::vector<LetterboxFrame> frames;
  check_pictures(op, request, frames);
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device(op, options_.device);
  const bool capturing = is_capturing(stream);
  PlanState& state = state_for(size, !capturing);
  make_room(state, !capturing);
  DetectState& detect = detect_state(state, request, !capturing);
  const Pointers places = pointers(state);
  Call call(*this, stream, capturing);
  if (request.class_mask) copy_async(mask_.data(), request.class_mask->data, num_classes(), stream);
  const Network::Buffer& input = network_.buffers[at(network_.input)];
  letterbox_batch(frames.data(), static_cast<int>(frames.size()),
                  {places.buffers[at(network_.input)], input.elem, input.pixel, network_.input_factor},
                  {stream, false});
  // A graph of the caller cannot know what will have come before it.
  if (capturing || !state.prepared) detect_prepare(detect_args(state, places, detect.settings), {stream, false});
  if (!capturing) state.prepared = false;  // should what follows throw half way
  queue_network(state, &detect, stream, capturing);
  if (!capturing) state.prepared = true;
  // One launch for both; a count is copied as two floats.
  const MapCopy copies[] = {{dense(reinterpret_cast<float*>(state.detections.data()), 6),
                             request.detections.as<float>(), request.detections.numel() / 6},
                            {dense(reinterpret_cast<float*>(state.counts.data()), 2),
                             static_cast<float*>(request.counts.data), size.pictures}};
  copy_maps(copies, 2, {stream, false});
  call.end();
}

void Engine::observe(const TensorView& x, const engine::Histograms& histograms, Stream stream) {
  const char* op = "observe";
  const engine::InputSize size = engine::check_input(graph_, x, op);
  engine::check_histograms(graph_, x, histograms, op);
  const auto add = [&](std::size_t row, const MapView& map, std::int64_t pixels) {
    observe_map(map, pixels, histograms.counts.as<unsigned long long>() + at(engine::Histograms::kBins) * row,
                histograms.largest.as<unsigned>() + row, histograms.negatives.as<unsigned long long>() + row,
                {stream, false});
  };
  run_watched(op, x, size, stream, [&](std::size_t step, const MapView& map, std::int64_t pixels) {
    if (step == 0) add(0, dense(x.as<float>(), graph_.buffers[0].channels), size.pictures * size.height * size.width);
    add(step + 1, map, pixels);
  });
}

void Engine::channel_sums(const TensorView& x, const TensorView& sums, Stream stream) {
  const char* op = "channel_sums";
  const engine::InputSize size = engine::check_input(graph_, x, op);
  engine::check_channel_sums(graph_, x, sums, op);
  std::int64_t* to = sums.as<std::int64_t>();
  run_watched(op, x, size, stream, [&](std::size_t, const MapView& map, std::int64_t pixels) {
    if (map.elem == Elem::s8) add_channel_sums(map, pixels, to, {stream, false});
    to += map.channels;
  });
}

void Engine::run_watched(const char* op, const TensorView& x, const engine::InputSize& size, Stream stream,
                         const Look& look) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device(op, options_.device);
  const bool capturing = is_capturing(stream);
  PlanState& state = state_for(size, !capturing);
  make_room(state, !capturing);
  if (capturing && !state.watched) raise_unseen(size, " so");
  const Pointers places = pointers(state);
  Call call(*this, stream, capturing);
  try {
    queue_input(state.plan, places, x, stream);
    for (std::size_t i = 0; i < graph_.steps.size(); ++i) {
      queue_step(state.plan, places, i, {stream, false});
      // Of the graph: the network's may have zeros beside it.
      const engine::View& view = graph_.steps[i].output;
      look(i, network_.view(view, places.buffers[at(view.buffer)]), state.plan.pixels(static_cast<int>(view.buffer)));
    }
  } catch (const OutOfMemory& error) {
    throw std::runtime_error(error.what());  // a caller that tried again would count the first steps twice
  }
  state.watched = true;
  call.end();
}

// The end of a call that a caller captures is not known here.
Engine::Call::Call(Engine& engine, Stream stream, bool capturing)
    : engine_(engine), stream_(stream), capturing_(capturing) {
  if (capturing) {
    engine.captured_by_caller_ = true;
  } else if (engine.last_) {
    engine.last_->make_wait(stream);
  }
}

void Engine::Call::end() {
  ended_ = true;
  if (capturing_) return;
  if (!engine_.last_) engine_.last_.emplace();
  engine_.last_->record(stream_);
}

Engine::Call::~Call() {
  if (ended_) return;
  try {
    end();
  } catch (const std::exception&) {
    // What is raised already says what has failed.
  }
}

void Engine::wait_for_all() const {
  if (last_) last_->synchronize();
}

// --- plans and their memory ---

NetworkPlan Engine::make_plan_for(const engine::InputSize& size) const {
  for (const Tuned& one : tuned_) {
    if (same_size(one.size, size)) return make_plan(network_, size, one.steps, processor_);
  }
  return make_plan(network_, size, TunedSteps(network_.graph_steps), processor_);
}

Engine::PlanState& Engine::state_for(const engine::InputSize& size, bool may_forget) {
  for (auto one = plans_.begin(); one != plans_.end(); ++one) {
    if (same_size((*one)->plan.size, size)) {
      plans_.splice(plans_.begin(), plans_, one);
      return *plans_.front();
    }
  }
  auto state = std::make_unique<PlanState>();
  state->plan = make_plan_for(size);
  plans_.push_front(std::move(state));
  while (plans_.size() > kPlans && may_forget && !captured_by_caller_) {
    wait_for_all();
    plans_.pop_back();
  }
  return *plans_.front();
}

void Engine::forget_plans() {
  wait_for_all();
  if (captured_by_caller_) {
    for (std::unique_ptr<PlanState>& state : plans_) {
      for (DeviceMemory& memory : state->guarded) kept_.push_back(std::move(memory));
      for (DeviceMemory* memory : {&state->detections, &state->counts, &state->workspace}) {
        kept_.push_back(std::move(*memory));
      }
    }
  }
  plans_.clear();
}

void Engine::make_room(PlanState& state, bool may_allocate) {
  const NetworkPlan& plan = state.plan;
  const std::int64_t counter_bytes = 4 * plan.counters, needed = plan.arena_bytes + counter_bytes;
  const bool arena = !guard_ && arena_.bytes() < plan.arena_bytes, counters = counters_.bytes() < counter_bytes;
  const bool guarded = guard_ && state.guarded.empty();
  if (!arena && !counters && !guarded) return;
  if (!may_allocate) raise_unseen(plan.size);
  wait_for_all();
  ++generation_;
  const auto replace = [&](DeviceMemory& memory, std::int64_t bytes) {
    if (captured_by_caller_) kept_.push_back(std::move(memory));
    memory = DeviceMemory();  // before the new one is made
    memory = allocate(bytes, needed, size_text(plan.size), options_.device, kSmaller);
  };
  if (counters) {
    DeviceMemory zeros = allocate(counter_bytes, needed, size_text(plan.size), options_.device, kSmaller);
    upload(zeros.data(), std::vector<char>(at(counter_bytes), 0).data(), counter_bytes);
    if (captured_by_caller_) kept_.push_back(std::move(counters_));
    counters_ = std::move(zeros);
  }
  if (arena) replace(arena_, plan.arena_bytes);
  if (guarded) {
    std::vector<DeviceMemory> all;
    for (const NetworkPlan::Place& place : plan.places) all.emplace_back(place.bytes);
    for (const StepPlan& step : plan.steps) all.emplace_back(step.partial_bytes);
    state.guarded = std::move(all);
  }
}

Engine::Pointers Engine::pointers(const PlanState& state) const {
  Pointers places;
  const NetworkPlan& plan = state.plan;
  const auto place = [&](std::size_t index, std::int64_t offset) -> void* {
    if (!state.guarded.empty()) return state.guarded[index].data();
    return offset >= 0 ? arena_.data() + offset : nullptr;
  };
  for (const NetworkPlan::Place& one : plan.places) {
    places.buffers.push_back(place(places.buffers.size(), one.offset));
  }
  for (const StepPlan& step : plan.steps) {
    places.partials.push_back(place(places.buffers.size() + places.partials.size(), step.partial));
  }
  return places;
}

Engine::DetectState& Engine::detect_state(PlanState& state, const DetectRequest& request, bool may_allocate) {
  const CandidateParams& candidates = request.candidates;
  const NmsParams& nms = request.nms;
  const DetectSettings settings{
      candidates.conf, nms.iou, candidates.top_k, nms.max_det, candidates.multi_label, request.class_mask != nullptr,
      nms.agnostic};
  auto one = std::find_if(state.detects.begin(), state.detects.end(),
                          [&](const std::unique_ptr<DetectState>& of) { return of->settings == settings; });
  if (!may_allocate && (one == state.detects.end() || !(*one)->captured.seen)) {
    raise_unseen(state.plan.size, " with these settings");
  }
  make_room_for(state, settings);
  if (one == state.detects.end()) {
    if (state.detects.size() >= kDetects) state.detects.pop_back();  // CUDA lets a graph that still runs end first
    auto made = std::make_unique<DetectState>();
    made->settings = settings;
    one = state.detects.insert(one, std::move(made));
  }
  state.detects.splice(state.detects.begin(), state.detects, one);
  return *state.detects.front();
}

// Memory for the detections of a plan grows with the settings.
void Engine::make_room_for(PlanState& state, const DetectSettings& settings) {
  const engine::InputSize& size = state.plan.size;
  const std::int64_t workspace = detect_workspace_bytes(detect_args(state, pointers(state), settings));
  const std::int64_t rows = size.pictures * settings.max_det * 6 * 4, counts = size.pictures * 8;
  const auto grow = [&](DeviceMemory& memory, std::int64_t bytes) {
    if (memory.bytes() >= bytes) return;
    wait_for_all();
    for (const std::unique_ptr<DetectState>& one : state.detects) one->captured.exec = GraphExec();
    if (captured_by_caller_) kept_.push_back(std::move(memory));
    memory = DeviceMemory();  // before the new one is made
    memory = allocate(bytes, rows + counts + workspace, "the detections of " + size_text(size), options_.device,
                      "; use a smaller batch, max_det or top_k");
  };
  grow(state.detections, rows);
  grow(state.counts, counts);
  if (state.workspace.bytes() < workspace) state.prepared = false;
  grow(state.workspace, workspace);
}

// --- queueing ---

void Engine::queue_step(const NetworkPlan& plan, const Pointers& places, std::size_t index, Queue queue) const {
  const NetworkStep& step = network_.steps[index];
  const auto view = [&](const engine::View& of) { return network_.view(of, places.buffers[at(of.buffer)]); };
  const NetworkPlan::Place& out = plan.places[at(step.y.buffer)];
  switch (step.work) {
    case Work::none:
      return;
    case Work::conv: {
      const StepPlan& one = plan.steps[index];
      auto* counters = reinterpret_cast<unsigned*>(counters_.data());
      return conv(conv_args(network_, plan, index, places.buffers.data(), weights_.data()), one.choice,
                  {places.partials[index], counters ? counters + one.first_counter : nullptr}, queue);
    }
    case Work::pool:
      return max_pool5(view(step.x), view(step.y), static_cast<int>(plan.size.pictures), out.height, out.width, queue);
    case Work::convert:
      return convert_map(view(step.x), view(step.y), plan.pixels(static_cast<int>(step.y.buffer)), step.factor, queue);
  }
}

void Engine::queue_input(const NetworkPlan& plan, const Pointers& places, const TensorView& x, Stream stream) const {
  const engine::View input{network_.input, 0, network_.buffers[at(network_.input)].pixel};
  convert_map(dense(x.as<float>(), graph_.buffers[0].channels), network_.view(input, places.buffers[at(input.buffer)]),
              plan.size.pictures * plan.size.height * plan.size.width, network_.input_factor, {stream, false});
}

// All on one stream, in their order.
void Engine::queue_steps(const NetworkPlan& plan, const Pointers& places, Stream stream, bool overlap) const {
  bool first = true;
  for (std::size_t i = 0; i < network_.steps.size(); ++i) {
    if (network_.steps[i].work == Work::none) continue;
    queue_step(plan, places, i, {stream, overlap && !first});
    first = false;
  }
}

DetectArgs Engine::detect_args(const PlanState& state, const Pointers& places, const DetectSettings& settings) const {
  const NetworkPlan& plan = state.plan;
  DetectArgs args;
  for (std::size_t i = 0; i < levels_.size(); ++i) {
    const engine::View &cls = network_.outputs[2 * i], &reg = network_.outputs[2 * i + 1];
    DetectLevel level;
    level.cls = network_.view(cls, places.buffers[at(cls.buffer)]);
    level.reg = network_.view(reg, places.buffers[at(reg.buffer)]);
    level.h = plan.places[at(cls.buffer)].height;
    level.w = plan.places[at(cls.buffer)].width;
    level.stride = static_cast<float>(levels_[i].stride);
    args.levels.push_back(level);
  }
  args.batch = static_cast<int>(plan.size.pictures);
  args.classes = static_cast<int>(num_classes());
  args.candidates = {settings.conf, settings.top_k, settings.multi_label,
                     settings.mask ? reinterpret_cast<const std::uint8_t*>(mask_.data()) : nullptr};
  args.nms = {settings.iou, settings.max_det, settings.agnostic};
  args.detections = reinterpret_cast<float*>(state.detections.data());
  args.counts = reinterpret_cast<std::int64_t*>(state.counts.data());
  args.workspace = state.workspace.data();
  args.prepared = true;
  return args;
}

GraphExec Engine::capture(const PlanState& state, const DetectState* detect, bool overlap) {
  const NetworkPlan& plan = state.plan;
  const Pointers places = pointers(state);
  while (streams_.size() < static_cast<std::size_t>(plan.streams)) streams_.emplace_back();
  while (events_.size() < network_.steps.size() + 1) events_.emplace_back();
  const Stream main = streams_[0].get();
  const Event& fork = events_.back();
  Capture capture(main);
  fork.record(main);
  for (std::size_t i = 0; i < network_.steps.size(); ++i) {
    if (network_.steps[i].work == Work::none) continue;
    const engine::Slot& slot = plan.steps[i].slot;
    const Stream stream = streams_[at(slot.stream)].get();
    if (slot.fork) fork.make_wait(stream);
    for (const int wait : slot.waits) events_[at(wait)].make_wait(stream);
    queue_step(plan, places, i, {stream, overlap && slot.overlap});
    if (slot.record) events_[i].record(stream);
  }
  for (const int join : plan.joins) events_[at(join)].make_wait(main);
  if (detect) cuda::detect(detect_args(state, places, detect->settings), {main, overlap}, !plan.joins.empty());
  return capture.finish();
}

// Whether there is a graph, made now if need be. A capture may fail through no fault of its own: it ends when another
// thread of the process waits for the whole device. And not every driver takes launches that overlap in a graph.
// Nothing has run then, so the steps can be queued one by one.
bool Engine::has_graph(const PlanState& state, const DetectState* detect, Captured& captured) {
  if (captured.exec && captured.generation == generation_) return true;
  captured.exec = GraphExec();
  if (failed_captures_ >= kMostFailures) return false;
  for (const bool overlap : {overlap_, overlap_, false}) {
    try {
      captured.exec = capture(state, detect, overlap);
    } catch (const OutOfMemory&) {
      throw;
    } catch (const std::runtime_error& error) {
      capture_failure_ = error.what();
      continue;
    }
    captured.generation = generation_;
    failed_captures_ = 0;
    overlap_captured_ |= overlap;
    overlap_ &= overlap_captured_;
    return true;
  }
  ++failed_captures_;
  return false;
}

// The first run of a size is queued step by step: many sizes come only once, and a kernel's code is loaded at its first
// launch, which is not for a capture.
void Engine::queue_network(PlanState& state, DetectState* detect, Stream stream, bool capturing) {
  Captured& captured = detect ? detect->captured : state.captured;
  if (use_graphs_ && !capturing && captured.seen && has_graph(state, detect, captured)) {
    captured.exec.launch(stream);
    return;
  }
  const bool overlap = overlap_ && (!capturing || overlap_captured_);  // a graph of the caller gets no second try
  const Pointers places = pointers(state);
  queue_steps(state.plan, places, stream, overlap);
  if (detect) cuda::detect(detect_args(state, places, detect->settings), {stream, overlap});
  captured.seen = true;
}

int Engine::graph_count() {
  const std::lock_guard<std::mutex> lock(mutex_);
  int count = 0;
  for (const std::unique_ptr<PlanState>& state : plans_) {
    count += state->captured.exec ? 1 : 0;
    for (const std::unique_ptr<DetectState>& one : state->detects) count += one->captured.exec ? 1 : 0;
  }
  return count;
}

std::string Engine::capture_failure() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return capture_failure_;
}

void Engine::guard_buffers(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device(kOp, options_.device);
  forget_plans();
  guard_ = on;
}

// --- what is known of steps ---

std::vector<StepInfo> Engine::plan(const engine::InputSize& size) {
  engine::check_size(graph_, size, "plan");
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device("plan", options_.device);
  const NetworkPlan& plan = state_for(size, true).plan;
  std::vector<StepInfo> infos;
  for (std::size_t i = 0; i < graph_.steps.size(); ++i) {
    const engine::Step& step = graph_.steps[i];
    const StepPlan& one = plan.steps[i];
    const auto place = [&](const engine::View& view) { return plan.places[at(view.buffer)]; };
    const NetworkPlan::Place in = place(step.input), out = place(step.output);
    const auto pixels = static_cast<std::int64_t>(step.op == engine::Op::upsample ? in.height : out.height) *
                        (step.op == engine::Op::upsample ? in.width : out.width);
    const double flop = 2.0 * static_cast<double>(size.pictures * pixels) *
                        static_cast<double>(step.kernel * step.kernel * step.input.channels * step.output.channels);
    const bool pool = step.op == engine::Op::max_pool5;
    const NamedChoice choice = choice_of(network_, plan, i);
    StepInfo info{step.name,
                  engine::name(step.op),
                  choice.name,
                  choice.splits,
                  in.height,
                  in.width,
                  step.input.channels,
                  out.height,
                  out.width,
                  step.output.channels,
                  pool ? 5 : step.kernel,
                  pool ? 1 : step.stride,
                  step.has_weight() ? flop / 1e6 : 0,
                  network_.steps[i].weight_bytes,
                  cuda::name(network_.buffers[at(step.input.buffer)].elem),
                  network_.buffers[at(step.input.buffer)].pixel,
                  network_.buffers[at(step.output.buffer)].pixel,
                  step.has_residual,
                  one.tuned,
                  size.pictures,
                  one.slot.stream,
                  {},
                  one.slot.overlap && overlap_,
                  one.microseconds};
    for (const int wait : one.slot.waits) info.waits.push_back(network_.steps[at(wait)].name);
    infos.push_back(std::move(info));
  }
  return infos;
}

Engine::MemoryUse Engine::memory(const engine::InputSize& size) {
  engine::check_size(graph_, size, "memory");
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device("memory", options_.device);
  const NetworkPlan& plan = state_for(size, true).plan;
  return {network_.weight_bytes, plan.arena_bytes, 4 * plan.counters};
}

// --- measuring and choosing ---

// An input for steps to be timed with.
DeviceMemory Engine::noise_for(const engine::InputSize& size) const {
  std::vector<float> noise(at(size.pictures * size.height * size.width * graph_.buffers[0].channels));
  std::uint64_t random = 1;  // the same every time (Knuth's generator)
  for (float& value : noise) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<float>(random >> 40) * 0x1p-24f;
  }
  DeviceMemory x(static_cast<std::int64_t>(noise.size() * sizeof(float)));
  upload(x.data(), noise.data(), x.bytes());
  return x;
}

// Milliseconds [rounds][steps of the graph]. A step is a graph of its own, of some launches in a row, so that the time
// is the device's and not the host's.
std::vector<std::vector<double>> Engine::timed(PlanState& state, const DeviceMemory& x, int rounds) {
  make_room(state, true);
  const NetworkPlan& plan = state.plan;
  const Pointers places = pointers(state);
  if (streams_.empty()) streams_.emplace_back();
  const Stream stream = streams_[0].get();
  const std::int64_t pixels = plan.size.pictures * plan.size.height * plan.size.width;
  const engine::View input{network_.input, 0, network_.buffers[at(network_.input)].pixel};
  Call call(*this, stream, false);
  convert_map(dense(reinterpret_cast<float*>(x.data()), graph_.buffers[0].channels),
              network_.view(input, places.buffers[at(input.buffer)]), pixels, network_.input_factor, {stream, false});
  queue_steps(plan, places, stream, false);
  const int repeats = timed_repeats();
  const Event begin(true), end(true);
  std::vector<std::vector<double>> times(at(rounds), std::vector<double>(graph_.steps.size(), 0.0));
  for (std::size_t i = 0; i < graph_.steps.size(); ++i) {
    if (network_.steps[i].work == Work::none) continue;
    const auto repeat = [&] {
      for (int n = 0; n < repeats; ++n) queue_step(plan, places, i, {stream, false});
    };
    GraphExec exec;
    if (use_graphs_) {
      Capture capture(stream);
      repeat();
      exec = capture.finish();
    }
    for (int round = -1; round < rounds; ++round) {  // the first one warms up
      begin.record(stream);
      if (exec) {
        exec.launch(stream);
      } else {
        repeat();
      }
      end.record(stream);
      end.synchronize();
      if (round >= 0) times[at(round)][i] = end.milliseconds_since(begin) / repeats;
    }
  }
  call.end();
  wait_for_all();
  return times;
}

std::vector<double> Engine::time_steps(const engine::InputSize& size, int rounds) {
  const char* op = "time_steps";
  YN_CHECK(rounds >= 1 && rounds <= 100000, op, ": rounds must lie in 1..100000, got ", rounds);
  engine::check_size(graph_, size, op);
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device(op, options_.device);
  const DeviceMemory x = noise_for(size);
  const std::vector<std::vector<double>> times = timed(state_for(size, true), x, rounds);
  std::vector<double> medians;
  for (std::size_t i = 0; i < graph_.steps.size(); ++i) {
    std::vector<double> one;
    for (const std::vector<double>& round : times) one.push_back(round[i]);
    std::nth_element(one.begin(), one.begin() + rounds / 2, one.end());
    medians.push_back(one[at(rounds / 2)]);
  }
  return medians;
}

std::vector<std::vector<NamedChoice>> Engine::alternatives(const engine::InputSize& size, int splits) {
  constexpr int kMost = 64;
  engine::check_size(graph_, size, "alternatives");
  YN_CHECK(splits >= 1 && splits <= kMost, "alternatives: cuts must lie in 1..", kMost, ", got ", splits);
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device("alternatives", options_.device);
  const NetworkPlan& plan = state_for(size, true).plan;
  std::vector<std::vector<NamedChoice>> all;
  for (std::size_t i = 0; i < graph_.steps.size(); ++i) {
    all.push_back(cuda::alternatives(network_, plan, i, processor_, splits));
  }
  return all;
}

std::vector<std::vector<double>> Engine::time_choices(const engine::InputSize& size,
                                                      const std::vector<TunedSteps>& runs) {
  engine::check_size(graph_, size, "time_choices");
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device("time_choices", options_.device);
  const DeviceMemory x = noise_for(size);
  std::vector<std::vector<double>> times;
  for (const TunedSteps& steps : runs) {
    PlanState state;
    state.plan = make_plan(network_, size, steps, processor_);
    times.push_back(timed(state, x, 1)[0]);
  }
  return times;
}

void Engine::set_choices(const engine::InputSize& size, const TunedSteps& steps) {
  engine::check_size(graph_, size, "set_choices");
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device("set_choices", options_.device);
  make_plan(network_, size, steps, processor_);  // throws where they do not fit
  tuned_.erase(
      std::remove_if(tuned_.begin(), tuned_.end(), [&](const Tuned& one) { return same_size(one.size, size); }),
      tuned_.end());
  tuned_.push_back({size, steps});
  forget_plans();
}

void Engine::exclude(const std::vector<std::string>& variants) {
  const auto known = [&](Elem elem, const std::string& wanted, int first) {
    int count = 0;
    const ConvVariant* all = conv_variants(elem, &count);
    return std::any_of(all + std::min(first, count), all + count,
                       [&](const ConvVariant& one) { return wanted == one.name; });
  };
  for (const std::string& name : variants) {
    YN_CHECK(known(Elem::f16, name, 1) || known(Elem::s8, name, 1),
             "exclude: variants must be names of variants, and not the first of a type, got '", name, "'");
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceGuard device("exclude", options_.device);
  processor_.excluded = variants;
  tuned_.clear();
  forget_plans();
}

}  // namespace yolonas::cuda
