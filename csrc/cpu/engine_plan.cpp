#include "cpu/engine_plan.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "core/check.h"

namespace yolonas::cpu {
namespace {

using engine::BufferPlan;
using engine::Graph;
using engine::MemoryPlan;
using engine::Op;
using engine::Step;
using engine::View;

const BufferPlan& buffer_of(const MemoryPlan& memory, const View& view) {
  return memory.buffers[static_cast<std::size_t>(view.buffer)];
}

Place place_of(const MemoryPlan& memory, const View& view) {
  return {view.buffer, view.offset, buffer_of(memory, view).picture};
}

// Sizes and settings of a step for one picture; no pointers.
ConvArgs args_of(const MemoryPlan& memory, const Step& step) {
  const BufferPlan &in = buffer_of(memory, step.input), &out = buffer_of(memory, step.output);
  ConvArgs args{};
  args.in_h = in.height;
  args.in_w = in.width;
  args.in_c = step.input.channels;
  args.in_stride = in.channels;
  args.out_h = out.height;
  args.out_w = out.width;
  args.out_c = step.output.channels;
  args.out_stride = out.channels;
  args.kernel_h = args.kernel_w = step.kernel;
  args.stride = step.stride;
  args.padding = step.op == Op::conv ? step.kernel / 2 : 0;
  if (step.has_residual) args.residual_stride = buffer_of(memory, step.residual).channels;
  args.residual_scale = step.residual_scale;
  args.relu = step.relu;
  return args;
}

// The four taps of a transposed convolution: a row of the input to every other pixel of a row of the output.
std::vector<Job> upsample_jobs(const Job& whole, std::int64_t tap_floats) {
  std::vector<Job> jobs;
  for (std::int64_t tap = 0; tap < 4; ++tap) {
    Job job = whole;
    job.args.weight += tap * tap_floats;
    job.args.in_h = job.args.out_h = 1;
    job.args.out_w = job.args.in_w;
    job.args.out_stride *= 2;
    job.args.kernel_h = job.args.kernel_w = job.args.stride = 1;
    job.y.offset += tap / 2 * whole.args.out_w * whole.args.out_stride + tap % 2 * whole.args.out_stride;
    jobs.push_back(job);
  }
  return jobs;
}

std::int64_t units_of(Algorithm algorithm, const ConvArgs& args) {
  switch (algorithm) {
    case Algorithm::pointwise:
      return args.out_h * args.out_w;
    case Algorithm::winograd43:
    case Algorithm::winograd_s2:
      return conv_tiles(args.out_h) * conv_tiles(args.out_w);
    case Algorithm::upsample:
      return args.in_h;
    default:
      return args.out_h;
  }
}

bool is_exact_enough(const Step& step, Algorithm algorithm) {
  const bool winograd = algorithm == Algorithm::winograd43 || algorithm == Algorithm::winograd_s2;
  return !winograd || step.winograd_error <= kLargestError;
}

// All that may take the step, the cost table's first.
std::vector<Algorithm> algorithms_of(const Step& step, const ConvArgs& args, int forced, const CpuKernels& table) {
  if (step.op == Op::upsample) return {Algorithm::upsample};
  if (step.op == Op::max_pool5) return {Algorithm::max_pool};
  if (forced >= 0) return {static_cast<Algorithm>(forced)};
  Algorithm first = choose_algorithm(args, table);
  if (!is_exact_enough(step, first)) first = Algorithm::direct;
  std::vector<Algorithm> all{first};
  for (const Algorithm other : algorithms_for(step.kernel, step.stride)) {
    if (other != first && is_exact_enough(step, other)) all.push_back(other);
  }
  return all;
}

// Units of all calls, and how many calls share them. Where pictures lie one after another a kernel sees one tall one.
std::pair<std::int64_t, std::int64_t> units_and_pictures(Algorithm algorithm, const ConvArgs& args,
                                                         std::int64_t pictures) {
  const std::int64_t units = units_of(algorithm, args);
  if (algorithm == Algorithm::pointwise || algorithm == Algorithm::upsample) return {units * pictures, 1};
  return {units, pictures};
}

bool same(const Job& a, const Job& b) {
  return a.algorithm == b.algorithm && a.cut.unit_step == b.cut.unit_step && a.cut.block_step == b.cut.block_step;
}

// With the cut of the cost table.
Job job_of(const ConvArgs& args, Algorithm algorithm, std::int64_t pictures, int threads, const CpuKernels& table) {
  Job job;
  job.args = args;
  job.algorithm = algorithm;
  std::int64_t units;
  std::tie(units, job.pictures) = units_and_pictures(algorithm, args, pictures);
  job.cut = choose_cut(algorithm, args, units, job.pictures, threads, table);
  return job;
}

Job tuned_job(const Step& step, const ConvArgs& args, const Choice& choice, std::int64_t pictures, int threads,
              const CpuKernels& table) {
  const std::vector<Algorithm> possible = algorithms_of(step, args, -1, table);
  YN_CHECK(std::find(possible.begin(), possible.end(), choice.algorithm) != possible.end(), "choices: step '",
           step.name, "' cannot be computed by ", name(choice.algorithm));
  Job job = job_of(args, choice.algorithm, pictures, threads, table);
  Cut& cut = job.cut;
  YN_CHECK(choice.unit_step >= 1 && choice.unit_step <= cut.units && choice.block_step >= 1 &&
               choice.block_step <= cut.blocks,
           "choices: the cut of step '", step.name, "' must lie in 1..", cut.units, " and 1..", cut.blocks, ", got ",
           choice.unit_step, " and ", choice.block_step);
  cut.unit_step = choice.unit_step;
  cut.block_step = choice.block_step;
  return job;
}

}  // namespace

engine::InputSize part_of(engine::InputSize size, int threads) {
  size.pictures = std::min<std::int64_t>(size.pictures, std::min(threads, 8));
  return size;
}

Plan make_plan(const Graph& graph, const engine::InputSize& size, const Choices& choices,
               std::shared_ptr<const PackedWeights> weights, const float* zeros, int threads, const CpuKernels& table) {
  Plan plan;
  plan.table = &table;
  plan.threads = threads;
  plan.memory = engine::plan_memory(graph, size);
  plan.weights = std::move(weights);
  for (std::size_t i = 0; i < graph.steps.size(); ++i) {
    const Step& step = graph.steps[i];
    const ConvArgs args = args_of(plan.memory, step);
    const int forced = choices.forced[i];
    Job job = job_of(args, algorithms_of(step, args, forced, table).front(), size.pictures, threads, table);
    StepPlan step_plan;
    if (const std::optional<Choice>& tuned = choices.tuned[i]) {
      Job other = tuned_job(step, args, *tuned, size.pictures, threads, table);
      if (forced < 0 || other.algorithm == job.algorithm) {
        step_plan.tuned = !same(other, job);
        job = other;
      }
    }
    job.args.weight = plan.weights->weight(i);
    job.args.bias = plan.weights->bias(i);
    job.args.zeros = zeros;
    job.x = place_of(plan.memory, step.input);
    job.y = place_of(plan.memory, step.output);
    if (step.has_residual) job.residual = place_of(plan.memory, step.residual);
    step_plan.algorithm = job.algorithm;
    if (job.algorithm == Algorithm::upsample) {
      step_plan.jobs = upsample_jobs(job, plan.weights->tap_floats(i));
    } else {
      step_plan.jobs.push_back(job);
    }
    for (const Job& one : step_plan.jobs) step_plan.pieces += one.pieces();
    std::int64_t workspace = 0;
    if (job.algorithm == Algorithm::winograd43) workspace = table.winograd43_workspace(job.args, job.cut.unit_step);
    if (job.algorithm == Algorithm::winograd_s2) workspace = table.winograd_s2_workspace(job.args, job.cut.unit_step);
    plan.workspace_floats = std::max(plan.workspace_floats, engine::round_up(workspace, engine::kAlignFloats));
    plan.steps.push_back(std::move(step_plan));
  }
  return plan;
}

std::vector<Choice> alternatives(const Graph& graph, const Plan& plan, std::size_t index, int forced,
                                 std::size_t cuts) {
  const ConvArgs args = args_of(plan.memory, graph.steps[index]);
  std::vector<Choice> all;
  for (const Algorithm algorithm : algorithms_of(graph.steps[index], args, forced, *plan.table)) {
    const auto [units, pictures] = units_and_pictures(algorithm, args, plan.memory.size.pictures);
    for (const Cut& cut : best_cuts(algorithm, args, units, pictures, plan.threads, *plan.table, cuts)) {
      all.push_back({algorithm, cut.unit_step, cut.block_step});
    }
  }
  return all;
}

StepInfo step_info(const Graph& graph, const Plan& plan, std::size_t index, std::int64_t pictures) {
  const Step& step = graph.steps[index];
  const StepPlan& step_plan = plan.steps[index];
  const ConvArgs args = args_of(plan.memory, step);
  // The input pixels of a transposed convolution each meet all taps, as the output pixels of a convolution do.
  const std::int64_t pixels = step.op == Op::upsample ? args.in_h * args.in_w : args.out_h * args.out_w;
  const double flop = 2.0 * static_cast<double>(pictures * pixels) *
                      static_cast<double>(args.kernel_h * args.kernel_w * args.in_c * args.out_c);
  const bool pool = step.op == Op::max_pool5;
  return {step.name,
          engine::name(step.op),
          name(step_plan.algorithm),
          args.in_h,
          args.in_w,
          args.in_c,
          args.out_h,
          args.out_w,
          args.out_c,
          pool ? 5 : step.kernel,
          pool ? 1 : step.stride,
          pool ? 0 : flop / 1e6,
          plan.weights->bytes(index),
          args.in_stride,
          args.out_stride,
          step.has_residual,
          step_plan.tuned,
          step_plan.jobs.front().cut.unit_step,
          step_plan.jobs.front().cut.block_step,
          plan.memory.size.pictures};
}

void run_piece(const Plan& plan, const StepPlan& step, std::int64_t index, float* const* buffers, float* workspace) {
  const Job* job = step.jobs.data();
  while (index >= job->pieces()) index -= (job++)->pieces();
  const Cut& cut = job->cut;
  const std::int64_t block = index % cut.block_pieces() * cut.block_step;
  index /= cut.block_pieces();
  const std::int64_t unit = index % cut.unit_pieces() * cut.unit_step, picture = index / cut.unit_pieces();
  const std::int64_t block_end = std::min(block + cut.block_step, cut.blocks);
  const std::int64_t unit_end = std::min(unit + cut.unit_step, cut.units);
  const auto at = [&](const Place& place) { return buffers[place.buffer] + place.offset + picture * place.picture; };

  ConvArgs args = job->args;
  args.x = at(job->x);
  args.y = at(job->y);
  args.residual = job->residual.buffer >= 0 ? at(job->residual) : nullptr;
  switch (job->algorithm) {
    case Algorithm::direct:
      plan.table->conv2d_direct_f32(args, unit, unit_end, block, block_end);
      break;
    case Algorithm::pointwise:
      plan.table->conv2d_pointwise_f32(args, unit, unit_end, block, block_end);
      break;
    case Algorithm::winograd43:
      plan.table->conv2d_winograd43_f32(args, unit, unit_end, block, block_end, workspace);
      break;
    case Algorithm::winograd_s2:
      plan.table->conv2d_winograd_s2_f32(args, unit, unit_end, block, block_end, workspace);
      break;
    case Algorithm::upsample: {
      const float* x = args.x;
      float* y = args.y;
      for (std::int64_t row = unit; row < unit_end; ++row) {
        args.x = x + row * args.in_w * args.in_stride;
        args.y = y + row * 2 * args.out_w * args.out_stride;  // two rows: out_stride is that of every other pixel
        plan.table->conv2d_pointwise_f32(args, 0, args.out_w, block, block_end);
      }
      break;
    }
    case Algorithm::max_pool:
      plan.table->max_pool5_f32({args.in_h, args.in_w, args.in_c, args.in_stride, args.out_stride, args.x, args.y},
                                unit, unit_end);
      break;
  }
}

}  // namespace yolonas::cpu
