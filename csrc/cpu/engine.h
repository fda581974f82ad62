// A network that runs in one call: a graph with its packed weights, plans for the input sizes that were seen, and the
// memory of its runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor_view.h"
#include "cpu/engine_plan.h"
#include "cpu/letterbox.h"
#include "cpu/post.h"
#include "engine/arena.h"
#include "engine/arguments.h"
#include "engine/graph.h"
#include "ops/detect.h"

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

  // Runs without outputs, and adds the values of the input and of the view that each step writes to the histograms,
  // which must not overlap x or each other.
  // For networks of floats only.
  void observe(const TensorView& x, const engine::Histograms& histograms);

  // Runs without outputs, and adds up what each step writes as int8, channel by channel. sums: int64 (total,), the
  // output channels of step 0, of step 1, ...; those of steps that write float32 stay as they are. Must not overlap x.
  void channel_sums(const TensorView& x, const TensorView& sums);

  // Letterbox, run, decode_candidates and nms_candidates one after another, bit for bit, in memory that the engine
  // keeps for the next call. For networks whose levels have the same number of classes and 4 * kBoxBins box outputs.
  // Detections and counts must not overlap each other or what is read.
  struct StageTimes {
    double preprocess = 0, network = 0, postprocess = 0;  // milliseconds
  };
  StageTimes detect(const DetectRequest& request);

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

  // For each step the ways to compute it that come into question, the cost table's first; for each algorithm `cuts`
  // cuts at most. Here and below for the instruction set and threads in use now, and for as many of the pictures as run
  // side by side.
  std::vector<std::vector<Choice>> alternatives(const engine::InputSize& size, int cuts);

  // A choice per step, or none: left to the cost table.
  using TunedSteps = std::vector<std::optional<Choice>>;

  // Milliseconds of each step [runs][steps], of one run each with these choices, one after another on noise for input.
  std::vector<std::vector<double>> time_choices(const engine::InputSize& size, const std::vector<TunedSteps>& runs);

  // Fixes how later runs of this size compute their steps, in place of earlier choices. Cuts never change a bit of the
  // results; algorithms do. An algorithm set by name goes first.
  void set_choices(const engine::InputSize& size, const TunedSteps& steps);

  // For tests: every buffer of later runs ends at a page that nobody may touch, and holds NaN at first.
  void guard_buffers(bool on) { guard_.store(on, std::memory_order_relaxed); }

  std::vector<std::string> step_names() const { return graph_.step_names(); }

  std::int64_t num_classes() const { return graph_.levels[0].cls.channels; }  // of the first level

  // The graph with its weights, in memory of its own.
  engine::Graph graph();

 private:
  // The pieces of a step that one thread begins with, then those of threads that have more left.
  struct alignas(64) Share {
    std::atomic<bool> taken{false};
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };
  using Outputs = std::vector<float*>;  // cls and reg of level 0, of level 1, ...
  // What detect needs beyond a run: empty until the first call.
  struct DetectMemory {
    std::vector<LetterboxFrame> frames;  // of all pictures
    engine::Memory input;
    std::vector<engine::Memory> head_memory;  // of one output each
    Outputs outputs;
    HeadOutputs heads;
    LetterboxWorkspace letterbox;
    std::vector<SelectWorkspace> select;  // of one picture each
  };
  // The memory of one run.
  struct Context {
    engine::Memory arena, workspaces;
    std::vector<engine::Memory> guarded;
    std::vector<void*> buffers;
    std::vector<Share> shares;  // one a thread
    DetectMemory detect;
  };
  // A context for the time of a run; returned to the engine at the end.
  class Lease {
   public:
    explicit Lease(Engine& engine);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Context& context() { return *context_; }

   private:
    Engine& engine_;
    std::unique_ptr<Context> context_;
  };

  engine::InputSize check_input(const TensorView& x, const char* op) const;
  std::shared_ptr<const Plan> plan_for(const engine::InputSize& size);
  std::shared_ptr<const Plan> find_plan(const engine::InputSize& size, const CpuKernels& table, int threads);
  std::shared_ptr<const PackedWeights> weights_for(std::int64_t conv_block);
  void run_parts(const engine::InputSize& size, const float* x, const Outputs& outputs,
                 const std::function<void(const Plan&, Context&)>& run_steps);
  std::vector<engine::Memory> spare_outputs(const engine::InputSize& size, Outputs& outputs) const;
  TunedSteps tuned_steps(const engine::InputSize& part, const CpuKernels& table, int threads) const;
  std::shared_ptr<const Plan> make_plan_with(const engine::InputSize& part, const TunedSteps& steps, int threads,
                                             const CpuKernels& table);
  void prepare(const Plan& plan, const float* x, const Outputs& outputs, Context& context) const;
  static void run_step(const Plan& plan, const StepPlan& step, Context& context);
  static void copy_outputs(const Plan& plan, const Outputs& outputs, const Context& context);
  engine::InputSize check_detect(const DetectRequest& request) const;
  void prepare_detect(const Plan& plan, const DetectRequest& request, DetectMemory& memory) const;

  engine::Graph graph_;  // without weights
  std::vector<DetectOutputs> levels_;
  std::vector<float> zeros_;

  std::mutex build_mutex_;                        // held while a plan is made
  std::shared_ptr<const PackedWeights> weights_;  // for the instruction set of the last plan
  std::vector<int> forced_;                       // an Algorithm per step, or -1
  struct Tuned {
    engine::InputSize size;
    const CpuKernels* table;
    int threads;
    TunedSteps steps;
  };
  std::vector<Tuned> tuned_;

  std::mutex plans_mutex_;                        // held to look at the list
  std::list<std::shared_ptr<const Plan>> plans_;  // last used first

  std::mutex contexts_mutex_;  // held to take one or give it back
  std::vector<std::unique_ptr<Context>> free_contexts_;
  std::atomic<bool> guard_{false};
};

}  // namespace yolonas::cpu
