// A network that runs in one call: a graph with its packed weights, plans for the input sizes that were seen, and the
// memory of its runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/tensor_view.h"
#include "cpu/engine_plan.h"
#include "engine/arena.h"
#include "engine/graph.h"

namespace yolonas::cpu {

// All functions may be called from several threads at once. A run holds no lock, and allocates nothing when its size
// was seen before and no more runs are under way than then. Results are the same bits for any number of threads, place
// in the batch and earlier runs.
class Engine {
 public:
  explicit Engine(engine::Graph&& graph);  // throws std::invalid_argument as check_graph
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // x: (N, H, W, 3), finite. cls, reg: per level (N, H / stride, W / stride, channels of its view). All float32 and
  // contiguous, no output overlaps x or another output.
  void run(const TensorView& x, const std::vector<TensorView>& cls, const std::vector<TensorView>& reg);

  // The steps as they would run on this input size, with the instruction set and threads in use now.
  std::vector<StepInfo> plan(const engine::InputSize& size);

  // Milliseconds of each step, the median of `rounds` runs.
  std::vector<double> time_steps(const TensorView& x, int rounds);

  // Bytes of the packed weights, of the arena of one run, and of its threads' workspaces.
  struct MemoryUse {
    std::int64_t weights, arena, workspaces;
  };
  MemoryUse memory(const engine::InputSize& size);

  // Fixes the algorithm of the named convolution, or leaves the choice to the cost table ("auto").
  void set_algorithm(const std::string& step, const std::string& algorithm);

  // For tests: every buffer of later runs ends at a page that nobody may touch, and holds NaN at first.
  void guard_buffers(bool on) { guard_.store(on, std::memory_order_relaxed); }

  // The graph with its weights, in memory of its own.
  engine::Graph graph();

 private:
  // The pieces of a step that one thread begins with, then those of threads that have more left.
  struct alignas(64) Share {
    std::atomic<bool> taken{false};
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };
  // The memory of one run.
  struct Context {
    engine::Memory arena, workspaces;
    std::vector<engine::Memory> guarded;
    std::vector<float*> buffers;
    std::vector<Share> shares;  // one a thread
  };
  class Lease;
  using Outputs = std::vector<float*>;  // cls and reg of level 0, of level 1, ...

  engine::InputSize check_input(const TensorView& x, const char* op) const;
  std::shared_ptr<const Plan> plan_for(const engine::InputSize& size);
  std::shared_ptr<const Plan> find_plan(const engine::InputSize& size, const CpuKernels& table, int threads);
  std::shared_ptr<const PackedWeights> weights_for(std::int64_t conv_block);
  template <class Visit>
  void run_parts(const engine::InputSize& size, const float* x, const Outputs& outputs, const Visit& run_steps);
  void prepare(const Plan& plan, const float* x, const Outputs& outputs, Context& context) const;
  static void run_step(const Plan& plan, const StepPlan& step, Context& context);
  static void copy_outputs(const Plan& plan, const Outputs& outputs, const Context& context);

  engine::Graph graph_;  // without weights
  std::vector<float> zeros_;

  std::mutex build_mutex_;                        // held while a plan is made
  std::shared_ptr<const PackedWeights> weights_;  // for the instruction set of the last plan
  std::vector<int> forced_;                       // an Algorithm per step, or -1

  std::mutex plans_mutex_;                        // held to look at the list
  std::list<std::shared_ptr<const Plan>> plans_;  // last used first

  std::mutex contexts_mutex_;  // held to take one or give it back
  std::vector<std::unique_ptr<Context>> free_contexts_;
  std::atomic<bool> guard_{false};
};

}  // namespace yolonas::cpu
