#include "cpu/engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/parallel.h"
#include "engine/arguments.h"

namespace yolonas::cpu {
namespace {

constexpr std::size_t kPlans = 8;  // kept; a data set of pictures of many shapes makes more in turn

// Whether any of n floats is NaN or infinite: all bits of the exponent set.
bool any_not_finite(const float* x, std::int64_t n) {
  constexpr std::uint32_t kExponent = 0x7f800000u;
  std::uint32_t found = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    found |= (bits & kExponent) == kExponent ? 1u : 0u;
  }
  return found != 0;
}

void check_finite(const TensorView& x, const char* op) {
  constexpr std::int64_t kGrain = 1 << 16;
  std::atomic<bool> found{false};
  const float* data = x.as<const float>();
  parallel_for(x.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    if (any_not_finite(data + begin, end - begin)) found.store(true, std::memory_order_relaxed);
  });
  YN_CHECK(!found.load(), op, ": x must be finite, got NaN or infinity");
}

}  // namespace

Engine::Lease::Lease(Engine& engine) : engine_(engine) {
  {
    const std::lock_guard<std::mutex> lock(engine_.contexts_mutex_);
    if (!engine_.free_contexts_.empty()) {
      context_ = std::move(engine_.free_contexts_.back());
      engine_.free_contexts_.pop_back();
    }
  }
  if (!context_) context_ = std::make_unique<Context>();
}

Engine::Lease::~Lease() {
  try {
    const std::lock_guard<std::mutex> lock(engine_.contexts_mutex_);
    engine_.free_contexts_.push_back(std::move(context_));
  } catch (...) {
    // No memory for the list: the context is let go.
  }
}

Engine::Engine(engine::Graph&& graph) : graph_(std::move(graph)) {
  engine::check_graph(graph_);
  std::int64_t widest = 0;
  for (const engine::Step& step : graph_.steps) widest = std::max(widest, step.input.channels);
  for (const engine::Level& level : graph_.levels) {
    levels_.push_back({level.cls.channels, level.reg.channels, level.stride});
  }
  zeros_.assign(static_cast<std::size_t>(widest), 0.0f);
  forced_.assign(graph_.steps.size(), -1);
  estimate_errors(graph_);
  weights_ = std::make_shared<const PackedWeights>(graph_, kernels().conv_block);
}

engine::Graph Engine::graph() {
  const std::lock_guard<std::mutex> build(build_mutex_);
  return weights_->unpacked(graph_);
}

engine::InputSize Engine::check_input(const TensorView& x, const char* op) const {
  const engine::InputSize size = engine::check_input(graph_, x, op);
  check_finite(x, op);
  return size;
}

void Engine::run(const TensorView& x, const std::vector<TensorView>& cls, const std::vector<TensorView>& reg) {
  const engine::InputSize size = check_input(x, "run");
  const Outputs outputs = engine::check_outputs(graph_, x, cls, reg, "run");
  run_parts(size, x.as<const float>(), outputs, [](const Plan& plan, Context& context) {
    for (const StepPlan& step : plan.steps) run_step(plan, step, context);
  });
}

// Calls run_steps(plan, context) for some pictures at a time.
void Engine::run_parts(const engine::InputSize& size, const float* x, const Outputs& outputs,
                       const std::function<void(const Plan&, Context&)>& run_steps) {
  const std::int64_t x_picture = size.height * size.width * graph_.buffers[0].channels;
  engine::InputSize part = part_of(size, num_threads());
  Outputs to = outputs;
  for (std::int64_t left = size.pictures; left > 0; left -= part.pictures) {
    part.pictures = std::min(part.pictures, left);
    const std::shared_ptr<const Plan> plan = plan_for(part);
    Lease lease(*this);
    prepare(*plan, x, to, lease.context());
    run_steps(*plan, lease.context());
    copy_outputs(*plan, to, lease.context());
    x += part.pictures * x_picture;
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += part.pictures * plan->memory.outputs[i].picture;
  }
}

// Places for the outputs of a run that nobody looks at, in the memory that is returned.
std::vector<engine::Memory> Engine::spare_outputs(const engine::InputSize& size, Outputs& outputs) const {
  const bool guard = guard_.load(std::memory_order_relaxed);
  std::vector<engine::Memory> memory;
  for (const engine::OutputPlan& output : engine::plan_memory(graph_, size).outputs) {
    const std::int64_t floats = size.pictures * output.picture;
    memory.push_back(guard ? engine::Memory::guarded(floats) : engine::Memory(floats));
    outputs.push_back(memory.back().data());
  }
  return memory;
}

std::vector<StepInfo> Engine::plan(const engine::InputSize& size) {
  engine::check_size(graph_, size, "plan");
  const std::shared_ptr<const Plan> plan = plan_for(part_of(size, num_threads()));
  std::vector<StepInfo> steps;
  for (std::size_t i = 0; i < graph_.steps.size(); ++i) {
    steps.push_back(step_info(graph_, *plan, i, size.pictures));
  }
  return steps;
}

Engine::MemoryUse Engine::memory(const engine::InputSize& size) {
  engine::check_size(graph_, size, "memory");
  const std::shared_ptr<const Plan> plan = plan_for(part_of(size, num_threads()));
  MemoryUse use{0, plan->memory.arena_floats * 4, plan->workspace_floats * plan->threads * 4};
  for (std::size_t i = 0; i < graph_.steps.size(); ++i) use.weights += plan->weights->bytes(i);
  return use;
}

std::vector<double> Engine::time_steps(const TensorView& x, int rounds) {
  YN_CHECK(rounds >= 1 && rounds <= 100000, "time_steps: rounds must lie in 1..100000, got ", rounds);
  const engine::InputSize size = check_input(x, "time_steps");
  Outputs outputs;
  const std::vector<engine::Memory> memory = spare_outputs(size, outputs);
  std::vector<std::vector<double>> times(graph_.steps.size());
  for (int round = -1; round < rounds; ++round) {  // the first one warms up
    std::vector<double> spent(graph_.steps.size(), 0.0);
    run_parts(size, x.as<const float>(), outputs, [&](const Plan& plan, Context& context) {
      for (std::size_t i = 0; i < plan.steps.size(); ++i) {
        const auto start = std::chrono::steady_clock::now();
        run_step(plan, plan.steps[i], context);
        spent[i] += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
      }
    });
    for (std::size_t i = 0; i < spent.size() && round >= 0; ++i) times[i].push_back(spent[i]);
  }
  std::vector<double> medians;
  for (std::vector<double>& one : times) {
    std::nth_element(one.begin(), one.begin() + rounds / 2, one.end());
    medians.push_back(one[static_cast<std::size_t>(rounds / 2)]);
  }
  return medians;
}

void Engine::set_algorithm(const std::string& step, const std::string& algorithm) {
  const char* op = "set_algorithm";
  std::size_t index = 0;
  while (index < graph_.steps.size() &&
         (graph_.steps[index].name != step || graph_.steps[index].op != engine::Op::conv)) {
    ++index;
  }
  YN_CHECK(index < graph_.steps.size(), op, ": name must be that of a convolution, got '", step, "'");
  int chosen = -1;
  std::string possible = "auto";
  for (const Algorithm one :
       algorithms_for(graph_.steps[index].kernel, graph_.steps[index].stride, graph_.steps[index].is_integer())) {
    if (algorithm == name(one)) chosen = static_cast<int>(one);
    possible += concat(", ", name(one));
  }
  YN_CHECK(chosen >= 0 || algorithm == "auto", op, ": algorithm of '", step, "' must be one of ", possible, ", got '",
           algorithm, "'");
  const std::lock_guard<std::mutex> build(build_mutex_);
  const std::lock_guard<std::mutex> plans(plans_mutex_);
  forced_[index] = chosen;
  plans_.clear();
}

std::shared_ptr<const Plan> Engine::find_plan(const engine::InputSize& size, const CpuKernels& table, int threads) {
  const std::lock_guard<std::mutex> lock(plans_mutex_);
  for (auto at = plans_.begin(); at != plans_.end(); ++at) {
    const Plan& plan = **at;
    const engine::InputSize& other = plan.memory.size;
    if (plan.table == &table && plan.threads == threads && other.pictures == size.pictures &&
        other.height == size.height && other.width == size.width) {
      plans_.splice(plans_.begin(), plans_, at);
      return plans_.front();
    }
  }
  return nullptr;
}

std::shared_ptr<const Plan> Engine::plan_for(const engine::InputSize& size) {
  const CpuKernels& table = kernels();
  const int threads = num_threads();
  if (auto plan = find_plan(size, table, threads)) return plan;
  const std::lock_guard<std::mutex> build(build_mutex_);
  if (auto plan = find_plan(size, table, threads)) return plan;  // another thread was first
  auto plan = make_plan_with(size, tuned_steps(size, table, threads), threads, table);
  const std::lock_guard<std::mutex> lock(plans_mutex_);
  plans_.push_front(plan);
  if (plans_.size() > kPlans) plans_.pop_back();
  return plan;
}

// Under build_mutex_.
std::shared_ptr<const PackedWeights> Engine::weights_for(std::int64_t conv_block) {
  if (weights_->conv_block() != conv_block) {
    weights_ = std::make_shared<const PackedWeights>(weights_->repacked(graph_, conv_block));
  }
  return weights_;
}

void Engine::prepare(const Plan& plan, const float* x, const Outputs& outputs, Context& context) const {
  const std::vector<engine::BufferPlan>& buffers = plan.memory.buffers;
  context.buffers.assign(buffers.size(), nullptr);
  if (context.shares.size() < static_cast<std::size_t>(plan.threads)) {
    context.shares = std::vector<Share>(static_cast<std::size_t>(plan.threads));
  }
  context.guarded.clear();
  const std::int64_t workspaces = plan.workspace_floats * plan.threads;
  if (context.workspaces.floats() < workspaces) context.workspaces = engine::Memory(workspaces);
  if (guard_.load(std::memory_order_relaxed)) {
    context.workspaces = engine::Memory::guarded(workspaces);
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      if (buffers[i].offset < 0) continue;
      context.guarded.push_back(engine::Memory::guarded(buffers[i].floats(plan.memory.size.pictures)));
      context.buffers[i] = context.guarded.back().data();
    }
  } else {
    if (context.arena.floats() < plan.memory.arena_floats) {
      context.arena = engine::Memory();  // before the new one is made
      context.arena = engine::Memory(plan.memory.arena_floats);
    }
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      if (buffers[i].offset >= 0) context.buffers[i] = context.arena.data() + buffers[i].offset;
    }
  }
  context.buffers[0] = const_cast<float*>(x);  // no step writes to it
  for (std::size_t i = 0; i < plan.memory.outputs.size(); ++i) {
    const engine::OutputPlan& output = plan.memory.outputs[i];
    if (output.direct) context.buffers[static_cast<std::size_t>(output.view.buffer)] = outputs[i];
  }
}

// Each of up to `threads` workers begins with its share of the pieces, the same part of the picture in every step: much
// of its input is still in its own cache. Then it helps those that have more left. A share has a workspace.
void Engine::run_step(const Plan& plan, const StepPlan& step, Context& context) {
  const std::int64_t workers = std::min<std::int64_t>(plan.threads, step.pieces);
  const auto share = [&](std::int64_t index) -> Share& { return context.shares[static_cast<std::size_t>(index)]; };
  for (std::int64_t i = 0; i < workers; ++i) {
    share(i).taken.store(false, std::memory_order_relaxed);
    share(i).next.store(i * step.pieces / workers, std::memory_order_relaxed);
    share(i).end = (i + 1) * step.pieces / workers;
  }
  parallel_for(workers, 1, [&](std::int64_t, std::int64_t) {
    std::int64_t own = worker_index() % workers;
    while (share(own).taken.exchange(true, std::memory_order_relaxed)) own = (own + 1) % workers;
    float* workspace = context.workspaces.data() + own * plan.workspace_floats;
    for (std::int64_t i = 0; i < workers; ++i) {
      Share& from = share((own + i) % workers);
      for (;;) {
        const std::int64_t piece = from.next.fetch_add(1, std::memory_order_relaxed);
        if (piece >= from.end) break;
        run_piece(plan, step, piece, context.buffers.data(), workspace);
      }
    }
  });
}

void Engine::copy_outputs(const Plan& plan, const Outputs& outputs, const Context& context) {
  for (std::size_t i = 0; i < plan.memory.outputs.size(); ++i) {
    const engine::OutputPlan& output = plan.memory.outputs[i];
    if (output.direct) continue;
    const engine::BufferPlan& buffer = plan.memory.buffers[static_cast<std::size_t>(output.view.buffer)];
    const float* from =
        static_cast<const float*>(context.buffers[static_cast<std::size_t>(output.view.buffer)]) + output.view.offset;
    const std::int64_t channels = output.view.channels;
    const std::int64_t pixels = plan.memory.size.pictures * buffer.height * buffer.width;
    for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
      std::copy(from + pixel * buffer.channels, from + pixel * buffer.channels + channels,
                outputs[i] + pixel * channels);
    }
  }
}

}  // namespace yolonas::cpu
