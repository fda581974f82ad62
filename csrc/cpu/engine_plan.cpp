#include "cpu/engine_plan.h"

#include <algorithm>
#include <utility>

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

Algorithm algorithm_of(const Step& step, const ConvArgs& args, int forced, const CpuKernels& table) {
  if (step.op == Op::upsample) return Algorithm::upsample;
  if (step.op == Op::max_pool5) return Algorithm::max_pool;
  if (forced >= 0) return static_cast<Algorithm>(forced);
  const Algorithm chosen = choose_algorithm(args, table);
  const bool winograd = chosen == Algorithm::winograd43 || chosen == Algorithm::winograd_s2;
  return winograd && !(step.winograd_error <= kLargestError) ? Algorithm::direct : chosen;
}

}  // namespace

Plan make_plan(const Graph& graph, const engine::InputSize& size, const std::vector<int>& forced,
               std::shared_ptr<const PackedWeights> weights, const float* zeros, int threads, const CpuKernels& table) {
  Plan plan;
  plan.table = &table;
  plan.threads = threads;
  plan.memory = engine::plan_memory(graph, size);
  plan.weights = std::move(weights);
  for (std::size_t i = 0; i < graph.steps.size(); ++i) {
    const Step& step = graph.steps[i];
    Job job;
    job.args = args_of(plan.memory, step);
    job.algorithm = algorithm_of(step, job.args, forced[i], table);
    job.args.weight = plan.weights->weight(i);
    job.args.bias = plan.weights->bias(i);
    job.args.zeros = zeros;
    job.x = place_of(plan.memory, step.input);
    job.y = place_of(plan.memory, step.output);
    if (step.has_residual) job.residual = place_of(plan.memory, step.residual);
    job.pictures = size.pictures;
    std::int64_t units = units_of(job.algorithm, job.args);
    if (job.algorithm == Algorithm::pointwise || job.algorithm == Algorithm::upsample) {
      units *= std::exchange(job.pictures, 1);  // pictures lie one after another, so these kernels see one tall picture
    }
    job.cut = choose_cut(job.algorithm, job.args, units, job.pictures, threads, table);
    StepPlan step_plan;
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
          plan.weights->bytes(index)};
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
