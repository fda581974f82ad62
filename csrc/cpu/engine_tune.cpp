// What a measurement of an engine's steps takes: their alternatives, runs that time them, and choices to keep.
#include <algorithm>
#include <chrono>

#include "core/check.h"
#include "core/parallel.h"
#include "cpu/engine.h"

namespace yolonas::cpu {
namespace {

constexpr int kMostCuts = 64;

bool same_size(const engine::InputSize& a, const engine::InputSize& b) {
  return a.pictures == b.pictures && a.height == b.height && a.width == b.width;
}

// In [0, 1), the same every time (Knuth's generator).
void fill_with_noise(engine::Memory& memory) {
  std::uint64_t state = 1;
  for (std::int64_t i = 0; i < memory.floats(); ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    memory.data()[i] = static_cast<float>(state >> 40) * 0x1p-24f;
  }
}

}  // namespace

std::vector<std::vector<Choice>> Engine::alternatives(const engine::InputSize& size, int cuts) {
  engine::check_size(graph_, size, "alternatives");
  YN_CHECK(cuts >= 1 && cuts <= kMostCuts, "alternatives: cuts must lie in 1..", kMostCuts, ", got ", cuts);
  const std::shared_ptr<const Plan> plan = plan_for(part_of(size, num_threads()));
  const std::lock_guard<std::mutex> build(build_mutex_);
  std::vector<std::vector<Choice>> all;
  for (std::size_t i = 0; i < graph_.steps.size(); ++i) {
    all.push_back(cpu::alternatives(graph_, *plan, i, forced_[i], static_cast<std::size_t>(cuts)));
  }
  return all;
}

std::vector<std::vector<double>> Engine::time_choices(const engine::InputSize& size,
                                                      const std::vector<TunedSteps>& runs) {
  engine::check_size(graph_, size, "time_choices");
  const CpuKernels& table = kernels();
  const int threads = num_threads();
  const engine::InputSize part = part_of(size, threads);
  std::vector<std::shared_ptr<const Plan>> plans;
  {
    const std::lock_guard<std::mutex> build(build_mutex_);
    for (const TunedSteps& steps : runs) plans.push_back(make_plan_with(part, steps, threads, table));
  }
  engine::Memory x(part.pictures * part.height * part.width * graph_.buffers[0].channels);
  fill_with_noise(x);
  Outputs outputs;
  const std::vector<engine::Memory> memory = spare_outputs(part, outputs);
  Context context;
  std::vector<std::vector<double>> times;
  for (std::size_t run = 0; run < plans.size(); ++run) {
    const Plan& plan = *plans[run];
    prepare(plan, x.data(), outputs, context);
    if (run == 0) {  // warms up
      for (const StepPlan& step : plan.steps) run_step(plan, step, context);
    }
    std::vector<double> spent;
    for (const StepPlan& step : plan.steps) {
      const auto start = std::chrono::steady_clock::now();
      run_step(plan, step, context);
      spent.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    times.push_back(std::move(spent));
  }
  return times;
}

void Engine::set_choices(const engine::InputSize& size, const TunedSteps& steps) {
  engine::check_size(graph_, size, "set_choices");
  const CpuKernels& table = kernels();
  const int threads = num_threads();
  const engine::InputSize part = part_of(size, threads);
  const std::lock_guard<std::mutex> build(build_mutex_);
  make_plan_with(part, steps, threads, table);  // throws where they do not fit
  const std::lock_guard<std::mutex> plans(plans_mutex_);
  tuned_.erase(std::remove_if(tuned_.begin(), tuned_.end(),
                              [&](const Tuned& one) {
                                return one.table == &table && one.threads == threads && same_size(one.size, part);
                              }),
               tuned_.end());
  tuned_.push_back({part, &table, threads, steps});
  plans_.clear();
}

// Under build_mutex_.
Engine::TunedSteps Engine::tuned_steps(const engine::InputSize& part, const CpuKernels& table, int threads) const {
  for (const Tuned& one : tuned_) {
    if (one.table == &table && one.threads == threads && same_size(one.size, part)) return one.steps;
  }
  return TunedSteps(graph_.steps.size());
}

// Under build_mutex_. Throws std::invalid_argument for choices that do not fit.
std::shared_ptr<const Plan> Engine::make_plan_with(const engine::InputSize& part, const TunedSteps& steps, int threads,
                                                   const CpuKernels& table) {
  YN_CHECK(steps.size() == graph_.steps.size(), "choices: there must be one per step, ", graph_.steps.size(), ", got ",
           steps.size());
  return std::make_shared<const Plan>(
      make_plan(graph_, part, {forced_, steps}, weights_for(table.conv_block), zeros_.data(), threads, table));
}

}  // namespace yolonas::cpu
