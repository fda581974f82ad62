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
std::vector<Job> upsample_jobs(const Job& whole, std::int64_t tap_floats, std::int64_t conv_block) {
  std::vector<Job> jobs;
  for (std::int64_t tap = 0; tap < 4; ++tap) {
    Job job = whole;
    if (job.integer) {
      job.quant.weight += tap * tap_floats * 4;
      job.quant.weight_sum += tap * conv_blocks(job.args.out_c, conv_block) * conv_block;
    } else {
      job.args.weight += tap * tap_floats;
    }
    job.args.in_h = job.args.out_h = 1;
    job.args.out_w = job.args.in_w;
    job.args.out_stride *= 2;
    job.args.kernel_h = job.args.kernel_w = job.args.stride = 1;
    job.y.offset += tap / 2 * whole.args.out_w * whole.args.out_stride + tap % 2 * whole.args.out_stride;
    jobs.push_back(job);
  }
  return jobs;
}

std::int64_t units_of(Algorithm algorithm, const ConvSizes& args) {
  switch (algorithm) {
    case Algorithm::pointwise:
    case Algorithm::quantize:
    case Algorithm::dequantize:
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
std::vector<Algorithm> algorithms_of(const Step& step, const ConvSizes& args, int forced, const CpuKernels& table) {
  if (step.op == Op::upsample) return {Algorithm::upsample};
  if (step.op == Op::max_pool5) return {Algorithm::max_pool};
  if (step.op == Op::quantize) return {Algorithm::quantize};
  if (step.op == Op::dequantize) return {Algorithm::dequantize};
  if (forced >= 0) {
    const auto algorithm = static_cast<Algorithm>(forced);
    // An error of floats is the user's to allow; sums of integers would be wrong.
    return {step.is_integer() && !is_exact_enough(step, algorithm) ? Algorithm::direct : algorithm};
  }
  Algorithm first = choose_algorithm(args, step.is_integer(), table);
  if (!is_exact_enough(step, first)) first = Algorithm::direct;
  std::vector<Algorithm> all{first};
  for (const Algorithm other : algorithms_for(step.kernel, step.stride, step.is_integer())) {
    if (other != first && is_exact_enough(step, other)) all.push_back(other);
  }
  return all;
}

// Units of all calls, and how many calls share them. Where pictures lie one after another a kernel sees one tall one.
std::pair<std::int64_t, std::int64_t> units_and_pictures(Algorithm algorithm, const ConvSizes& args,
                                                         std::int64_t pictures) {
  const std::int64_t units = units_of(algorithm, args);
  switch (algorithm) {
    case Algorithm::pointwise:
    case Algorithm::upsample:
    case Algorithm::quantize:
    case Algorithm::dequantize:
      return {units * pictures, 1};
    default:
      return {units, pictures};
  }
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

float buffer_scale(const Graph& graph, const View& view) {
  return graph.buffers[static_cast<std::size_t>(view.buffer)].scale;
}

// Of an integer job, with its sizes.
QuantConvArgs quant_args(const Job& job) {
  QuantConvArgs args = job.quant;
  static_cast<ConvSizes&>(args) = job.args;
  return args;
}

// Without sizes, inputs and outputs.
QuantConvArgs quant_args_of(const Step& step, const ConvArgs& sizes, const PackedWeights& weights, std::size_t index) {
  QuantConvArgs args{};
  args.weight = weights.weight_s8(index);
  args.weight_sum = weights.weight_sum(index);
  args.multiplier = weights.multiplier(index);
  args.offset = weights.offset(index);
  args.residual_stride = sizes.residual_stride;
  args.relu = step.relu;
  return args;
}

// Floats that a thread needs.
std::int64_t workspace_of(const Job& job, const CpuKernels& table) {
  const std::int64_t tiles = job.cut.unit_step;
  if (job.algorithm == Algorithm::winograd_s2) return table.winograd_s2_workspace(job.args, tiles);
  if (job.algorithm != Algorithm::winograd43) return 0;
  return job.integer ? table.s8.winograd43_workspace(quant_args(job), tiles)
                     : table.winograd43_workspace(job.args, tiles);
}

struct Piece {
  std::int64_t unit, unit_end, block, block_end;
};

template <class T>
T* at(const Place& place, void* const* buffers, std::int64_t picture) {
  return static_cast<T*>(buffers[place.buffer]) + place.offset + picture * place.picture;
}

void run_float(const CpuKernels& table, const Job& job, const Piece& piece, void* const* buffers, std::int64_t picture,
               float* workspace) {
  ConvArgs args = job.args;
  args.x = at<float>(job.x, buffers, picture);
  args.y = at<float>(job.y, buffers, picture);
  args.residual = job.residual.buffer >= 0 ? at<float>(job.residual, buffers, picture) : nullptr;
  switch (job.algorithm) {
    case Algorithm::pointwise:
      return table.conv2d_pointwise_f32(args, piece.unit, piece.unit_end, piece.block, piece.block_end);
    case Algorithm::winograd43:
      return table.conv2d_winograd43_f32(args, piece.unit, piece.unit_end, piece.block, piece.block_end, workspace);
    case Algorithm::winograd_s2:
      return table.conv2d_winograd_s2_f32(args, piece.unit, piece.unit_end, piece.block, piece.block_end, workspace);
    case Algorithm::upsample: {
      const float* x = args.x;
      float* y = args.y;
      for (std::int64_t row = piece.unit; row < piece.unit_end; ++row) {
        args.x = x + row * args.in_w * args.in_stride;
        args.y = y + row * 2 * args.out_w * args.out_stride;  // two rows: out_stride is that of every other pixel
        table.conv2d_pointwise_f32(args, 0, args.out_w, piece.block, piece.block_end);
      }
      return;
    }
    default:
      return table.conv2d_direct_f32(args, piece.unit, piece.unit_end, piece.block, piece.block_end);
  }
}

void run_integer(const CpuKernels& table, const Job& job, const Piece& piece, void* const* buffers,
                 std::int64_t picture, float* workspace) {
  QuantConvArgs args = quant_args(job);
  args.x = at<std::int8_t>(job.x, buffers, picture);
  if (job.int8_out) {
    args.y = at<std::int8_t>(job.y, buffers, picture);
  } else {
    args.y_f32 = at<float>(job.y, buffers, picture);
  }
  args.residual = job.residual.buffer >= 0 ? at<std::int8_t>(job.residual, buffers, picture) : nullptr;
  switch (job.algorithm) {
    case Algorithm::pointwise:
      return table.s8.conv2d_pointwise(args, piece.unit, piece.unit_end, piece.block, piece.block_end);
    case Algorithm::winograd43:
      return table.s8.conv2d_winograd43(args, piece.unit, piece.unit_end, piece.block, piece.block_end, workspace);
    case Algorithm::upsample: {
      const QuantConvArgs whole = args;
      for (std::int64_t row = piece.unit; row < piece.unit_end; ++row) {
        const std::int64_t out = row * 2 * args.out_w * args.out_stride;  // as above
        args.x = whole.x + row * args.in_w * args.in_stride;
        if (whole.y) args.y = whole.y + out;
        if (whole.y_f32) args.y_f32 = whole.y_f32 + out;
        table.s8.conv2d_pointwise(args, 0, args.out_w, piece.block, piece.block_end);
      }
      return;
    }
    default:
      return table.s8.conv2d_direct(args, piece.unit, piece.unit_end, piece.block, piece.block_end);
  }
}

void run_pool(const CpuKernels& table, const Job& job, const Piece& piece, void* const* buffers, std::int64_t picture) {
  const ConvSizes& sizes = job.args;
  if (job.integer) {
    table.s8.max_pool5({sizes.in_h, sizes.in_w, sizes.in_c, sizes.in_stride, sizes.out_stride,
                        at<std::int8_t>(job.x, buffers, picture), at<std::int8_t>(job.y, buffers, picture)},
                       piece.unit, piece.unit_end);
  } else {
    table.max_pool5_f32({sizes.in_h, sizes.in_w, sizes.in_c, sizes.in_stride, sizes.out_stride,
                         at<float>(job.x, buffers, picture), at<float>(job.y, buffers, picture)},
                        piece.unit, piece.unit_end);
  }
}

// The pixels of all pictures are one run of them.
void run_conversion(const CpuKernels& table, const Job& job, const Piece& piece, void* const* buffers) {
  const ConvSizes& sizes = job.args;
  if (job.algorithm == Algorithm::quantize) {
    const auto inverse = static_cast<float>(1.0 / static_cast<double>(job.scale));
    table.s8.quantize({sizes.in_c, sizes.in_stride, sizes.out_c, sizes.out_stride, at<float>(job.x, buffers, 0),
                       at<std::int8_t>(job.y, buffers, 0), inverse},
                      piece.unit, piece.unit_end);
  } else {
    table.s8.dequantize({sizes.in_c, sizes.in_stride, sizes.out_stride, at<std::int8_t>(job.x, buffers, 0),
                         at<float>(job.y, buffers, 0), job.scale},
                        piece.unit, piece.unit_end);
  }
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
  const std::vector<bool> nonnegative = engine::nonnegative_buffers(graph);
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
    job.integer = step.is_integer() ||
                  (!step.has_weight() && graph.buffers[static_cast<std::size_t>(step.input.buffer)].is_int8());
    job.int8_out = graph.buffers[static_cast<std::size_t>(step.output.buffer)].is_int8();
    if (step.is_integer()) {
      job.quant = quant_args_of(step, job.args, *plan.weights, i);
      job.quant.zeros = reinterpret_cast<const std::int8_t*>(zeros);
      job.quant.residual_multiplier = engine::requantization(graph, step).residual_multiplier;
      job.quant.unsigned_input = nonnegative[static_cast<std::size_t>(step.input.buffer)];
    } else {
      job.args.weight = plan.weights->weight(i);
      job.args.bias = plan.weights->bias(i);
      job.args.zeros = zeros;
    }
    if (!step.has_weight()) job.scale = buffer_scale(graph, step.op == Op::quantize ? step.output : step.input);
    job.x = place_of(plan.memory, step.input);
    job.y = place_of(plan.memory, step.output);
    if (step.has_residual) job.residual = place_of(plan.memory, step.residual);
    step_plan.algorithm = job.algorithm;
    if (job.algorithm == Algorithm::upsample) {
      step_plan.jobs = upsample_jobs(job, plan.weights->tap_floats(i), table.conv_block);
    } else {
      step_plan.jobs.push_back(job);
    }
    for (const Job& one : step_plan.jobs) step_plan.pieces += one.pieces();
    plan.workspace_floats =
        std::max(plan.workspace_floats, engine::round_up(workspace_of(job, table), engine::kAlignFloats));
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
          step.has_weight() ? flop / 1e6 : 0,
          plan.weights->bytes(index),
          args.in_stride,
          args.out_stride,
          step.has_residual,
          step_plan.tuned,
          step_plan.jobs.front().integer,
          step_plan.jobs.front().cut.unit_step,
          step_plan.jobs.front().cut.block_step,
          plan.memory.size.pictures};
}

void run_piece(const Plan& plan, const StepPlan& step, std::int64_t index, void* const* buffers, float* workspace) {
  const Job* job = step.jobs.data();
  while (index >= job->pieces()) index -= (job++)->pieces();
  const Cut& cut = job->cut;
  const std::int64_t block = index % cut.block_pieces() * cut.block_step;
  index /= cut.block_pieces();
  const std::int64_t unit = index % cut.unit_pieces() * cut.unit_step, picture = index / cut.unit_pieces();
  const Piece piece{unit, std::min(unit + cut.unit_step, cut.units), block,
                    std::min(block + cut.block_step, cut.blocks)};
  switch (job->algorithm) {
    case Algorithm::max_pool:
      return run_pool(*plan.table, *job, piece, buffers, picture);
    case Algorithm::quantize:
    case Algorithm::dequantize:
      return run_conversion(*plan.table, *job, piece, buffers);
    default:
      return job->integer ? run_integer(*plan.table, *job, piece, buffers, picture, workspace)
                          : run_float(*plan.table, *job, piece, buffers, picture, workspace);
  }
}

}  // namespace yolonas::cpu
