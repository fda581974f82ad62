// A graph prepared for one input size, one instruction set and a number of threads: for every step its kernel calls,
// cut into pieces. Read-only once made, so that any number of runs may share it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/choose.h"
#include "cpu/engine_weights.h"
#include "cpu/kernels.h"
#include "engine/plan.h"

namespace yolonas::cpu {

// Where a job's pictures lie: `offset` numbers into a buffer, `picture` numbers apart.
struct Place {
  std::int64_t buffer = -1, offset = 0, picture = 0;
};

// The calls of one kernel with the same weights. Pieces are independent of each other.
struct Job {
  Algorithm algorithm = Algorithm::direct;
  bool integer = false;   // computes with int8
  bool int8_out = false;  // writes it
  ConvArgs args{};        // x, y, residual null; of an integer job only the sizes count
  QuantConvArgs quant{};  // of an integer job, without the sizes; x, y, residual null
  float scale = 0;        // of quantize and dequantize
  Place x, y, residual;
  std::int64_t pictures = 1;
  Cut cut;

  std::int64_t pieces() const { return pictures * cut.unit_pieces() * cut.block_pieces(); }
};

struct StepPlan {
  std::vector<Job> jobs;
  Algorithm algorithm = Algorithm::direct;
  bool tuned = false;  // by a choice that is not the cost table's
  std::int64_t pieces = 0;
};

struct Plan {
  const CpuKernels* table = nullptr;
  int threads = 1;
  engine::MemoryPlan memory;
  std::shared_ptr<const PackedWeights> weights;
  std::vector<StepPlan> steps;
  std::int64_t workspace_floats = 0;  // of a thread
};

// What users see of a step.
struct StepInfo {
  std::string name;
  const char* op;
  const char* algorithm;
  std::int64_t in_h, in_w, in_c, out_h, out_w, out_c, kernel, stride;
  double mflop;  // of the direct form, for all pictures
  std::int64_t weight_bytes;
  std::int64_t in_stride, out_stride;  // numbers from pixel to pixel
  bool residual, tuned, integer;
  std::int64_t unit_step, block_step;  // of its cut
  std::int64_t pictures;               // that run side by side
};

// How a step is computed in the end. `forced` [steps]: an Algorithm that algorithms_for has for the step, or a negative
// number. `tuned` [steps]: a choice, or none; it gives way to another algorithm that is forced. What neither says is
// for the cost table.
struct Choices {
  std::vector<int> forced;
  std::vector<std::optional<Choice>> tuned;
};

// Pictures that run side by side with this many threads: one each for a few of them. More would be no faster, in a
// larger arena.
engine::InputSize part_of(engine::InputSize size, int threads);

// Throws std::invalid_argument for a choice whose algorithm may not take the step, or whose cut does not fit. `zeros`
// holds as many zeros as the widest input has channels, and outlives the plan, as does the graph.
Plan make_plan(const engine::Graph& graph, const engine::InputSize& size, const Choices& choices,
               std::shared_ptr<const PackedWeights> weights, const float* zeros, int threads, const CpuKernels& table);

// Ways to compute a step, the cost table's first: with every algorithm that may take it, and for each the best `cuts`
// cuts by the table. A step whose error by Winograd is too large has none of that kind.
std::vector<Choice> alternatives(const engine::Graph& graph, const Plan& plan, std::size_t step, int forced,
                                 std::size_t cuts);

// For `pictures` in all.
StepInfo step_info(const engine::Graph& graph, const Plan& plan, std::size_t step, std::int64_t pictures);

// Runs pieces [0, pieces) of a step, `index` of them; `buffers` are the places of all buffers, `workspace` holds
// workspace_floats and belongs to this call alone.
void run_piece(const Plan& plan, const StepPlan& step, std::int64_t index, void* const* buffers, float* workspace);

}  // namespace yolonas::cpu
