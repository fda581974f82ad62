// A network that runs on a CUDA device in one call: weights in the device's memory, plans for the input sizes that were
// seen, and their captured graphs. Plain C++.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor_view.h"
#include "cuda/detect.h"
#include "cuda/plan.h"
#include "cuda/runtime.h"
#include "engine/arguments.h"
#include "engine/graph.h"
#include "ops/detect.h"

namespace yolonas::cuda {

struct Options {
  int device = 0;
  bool half = false;  // float16 where a network of floats computes; inputs and outputs are float32 all the same
};

// What users see of a step.
struct StepInfo {
  std::string name;
  const char* op;
  std::string algorithm;
  std::int64_t splits;
  std::int64_t in_h, in_w, in_c, out_h, out_w, out_c, kernel, stride;
  double mflop;  // of the direct form, for all pictures
  std::int64_t weight_bytes;
  const char* dtype;                   // of what it computes with
  std::int64_t in_stride, out_stride;  // numbers from pixel to pixel
  bool residual, tuned;
  std::int64_t pictures;
  int stream;                      // of the captured graph
  std::vector<std::string> waits;  // for steps on other streams
  bool overlap;                    // may begin while the step before it ends
  double estimate;                 // of its time by choose.h, microseconds
};

// Functions may be called from several threads at once; one lock makes them queue one after another. `run` and `detect`
// only queue, on the caller's stream, and never wait for the device once their size has been seen; calls on different
// streams are run one after another, as they share the engine's memory. A size is run step by step the first time, and
// captured as a graph the second time; where that fails, step by step again. On a stream that its owner is capturing
// every step is queued on it; the size must have been run before, and the owner's graph must not run beside other
// calls. Errors of CUDA are std::runtime_error, too little memory is OutOfMemory.
//
// Results are the same bits on every call, stream and place in the batch. Integer steps give the CPU's bits.
class Engine {
 public:
  // Throws std::invalid_argument as check_graph; NotSupported for a network that the kernels do not take: channels that
  // are no multiples of 16 bytes inside of it, kernels above 7.
  Engine(engine::Graph&& graph, const Options& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // x: (N, H, W, 3). cls, reg: per level (N, H / stride, W / stride, channels of its view). All float32, contiguous and
  // on the device, no output overlaps x or another output. That x is finite is not checked.
  void run(const TensorView& x, const std::vector<TensorView>& cls, const std::vector<TensorView>& reg, Stream stream);

  // Letterbox, run and detections in one, all in memory of the device; see detect.h and DetectRequest.
  void detect(const DetectRequest& request, Stream stream);

  // Runs without outputs, and adds the values of x and of the view that each step writes to the histograms, which must
  // not overlap x or each other. Queued step by step, on the caller's stream. For networks of floats only, in float32
  // or as they are rounded to float16. Values that are not finite are counted as such, those of x too.
  void observe(const TensorView& x, const engine::Histograms& histograms, Stream stream);

  // Runs without outputs, and adds up what each step writes as int8, channel by channel. sums: int64 (total,), the
  // output channels of step 0, of step 1, ...; those of steps that write floats stay as they are. Must not overlap x.
  // Queued as `observe`.
  void channel_sums(const TensorView& x, const TensorView& sums, Stream stream);

  std::vector<StepInfo> plan(const engine::InputSize& size);

  // Bytes of the weights, of the arena of a run, and of what splits need beside it.
  struct MemoryUse {
    std::int64_t weights, arena, workspaces;
  };
  MemoryUse memory(const engine::InputSize& size);

  // Milliseconds of each step, the median of `rounds` times, each of some launches in a row; on noise for input. Waits.
  std::vector<double> time_steps(const engine::InputSize& size, int rounds);

  // As on the CPU: see cpu/engine.h. A choice is a variant and a number of splits.
  std::vector<std::vector<NamedChoice>> alternatives(const engine::InputSize& size, int splits);
  std::vector<std::vector<double>> time_choices(const engine::InputSize& size, const std::vector<TunedSteps>& runs);
  void set_choices(const engine::InputSize& size, const TunedSteps& steps);

  // Leaves variants out of the choices of all later runs, in place of those left out before, and forgets choices that
  // were set. The first variant of a type cannot be left out.
  void exclude(const std::vector<std::string>& variants);

  // For tests: every buffer of later runs is an allocation of its own.
  void guard_buffers(bool on);
  int graph_count();  // that are kept

  // Why the latest graph could not be made, or made so that steps overlap; empty if there was no such trouble.
  std::string capture_failure();

  std::vector<std::string> step_names() const { return graph_.step_names(); }
  std::int64_t num_classes() const { return levels_[0].classes; }  // of the first level
  int device() const { return options_.device; }
  bool half() const { return options_.half; }

 private:
  // A graph, and what it was captured with.
  struct Captured {
    GraphExec exec;
    std::int64_t generation = -1;  // of the memory
    bool seen = false;             // run once
  };
  struct DetectSettings {
    float conf, iou;
    std::int64_t top_k, max_det;
    bool multi_label, mask, agnostic;
    bool operator==(const DetectSettings& other) const;
  };
  struct DetectState {
    DetectSettings settings;
    Captured captured;
  };
  struct PlanState {
    NetworkPlan plan;
    std::vector<DeviceMemory> guarded;  // of each buffer and each step's partial sums, where they are asked for
    Captured captured;
    bool watched = false;                             // run step by step, with a look at each
    std::list<std::unique_ptr<DetectState>> detects;  // last used first
    DeviceMemory detections, counts, workspace;       // of all detects
    bool prepared = false;  // the workspace is as detect_prepare() or a whole detect() left it
  };
  // The use of the engine's memory by a call: after all that were queued before, whatever stream they are on. What is
  // queued counts as used when the call is left, also by an exception.
  class Call {
   public:
    Call(Engine& engine, Stream stream, bool capturing);
    ~Call();
    void end();

   private:
    Engine& engine_;
    Stream stream_;
    bool capturing_, ended_ = false;
  };
  // The places of a plan.
  struct Pointers {
    std::vector<void*> buffers, partials;
  };

  NetworkPlan make_plan_for(const engine::InputSize& size) const;
  PlanState& state_for(const engine::InputSize& size, bool may_forget);
  void make_room(PlanState& state, bool may_allocate);
  DetectState& detect_state(PlanState& state, const DetectRequest& request, bool may_allocate);
  void make_room_for(PlanState& state, const DetectSettings& settings);
  Pointers pointers(const PlanState& state) const;
  DetectArgs detect_args(const PlanState& state, const Pointers& at, const DetectSettings& settings) const;

  void queue_step(const NetworkPlan& plan, const Pointers& at, std::size_t step, Queue queue) const;
  void queue_steps(const NetworkPlan& plan, const Pointers& at, Stream stream, bool overlap) const;
  void queue_input(const NetworkPlan& plan, const Pointers& at, const TensorView& x, Stream stream) const;
  // Queues the steps of the graph one after another. look(index, map, pixels) queues what is to be done with what the
  // step has written, on the same stream.
  using Look = std::function<void(std::size_t, const MapView&, std::int64_t)>;
  void run_watched(const char* op, const TensorView& x, const engine::InputSize& size, Stream stream, const Look& look);
  GraphExec capture(const PlanState& state, const DetectState* detect, bool overlap);
  bool has_graph(const PlanState& state, const DetectState* detect, Captured& captured);
  void queue_network(PlanState& state, DetectState* detect, Stream stream, bool capturing);
  DeviceMemory noise_for(const engine::InputSize& size) const;
  std::vector<std::vector<double>> timed(PlanState& state, const DeviceMemory& x, int rounds);

  void wait_for_all() const;
  void forget_plans();

  engine::Graph graph_;  // without weights
  std::vector<DetectOutputs> levels_;
  Options options_;
  Processor processor_;
  bool use_graphs_, overlap_;
  bool overlap_captured_ = false;  // in a graph that was made
  int failed_captures_ = 0;
  std::string capture_failure_;
  Network network_;

  std::mutex mutex_;
  DeviceMemory weights_, arena_, counters_, mask_;
  std::int64_t generation_ = 0;     // grows when the arena or the counters move
  std::vector<DeviceMemory> kept_;  // what a graph of the caller may still use
  bool captured_by_caller_ = false;
  std::list<std::unique_ptr<PlanState>> plans_;  // last used first
  struct Tuned {
    engine::InputSize size;
    TunedSteps steps;
  };
  std::vector<Tuned> tuned_;
  std::vector<OwnedStream> streams_;
  std::vector<Event> events_;  // one per step, and the begin
  std::optional<Event> last_;  // the end of the last call
  bool guard_ = false;
};

}  // namespace yolonas::cuda
