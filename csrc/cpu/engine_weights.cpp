#include "cpu/engine_weights.h"

#include <algorithm>
#include <utility>

#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"

namespace yolonas::cpu {
namespace {

using engine::Op;
using engine::Step;

// A transposed convolution is four 1x1 convolutions.
std::int64_t parts_of(const Step& step) { return step.op == Op::upsample ? 4 : 1; }
std::int64_t kernel_of(const Step& step) { return step.op == Op::upsample ? 1 : step.kernel; }

std::int64_t part_floats(const Step& step, std::int64_t conv_block) {
  return pack_direct_floats(step.output.channels, kernel_of(step), kernel_of(step), step.input.channels, conv_block);
}

}  // namespace

PackedWeights::PackedWeights(engine::Graph& graph, std::int64_t conv_block) {
  lay_out(graph, conv_block);
  parallel_for(static_cast<std::int64_t>(graph.steps.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::size_t i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      pack(graph.steps[i], i);
      std::vector<float>().swap(graph.steps[i].weight);
      std::vector<float>().swap(graph.steps[i].bias);
    }
  });
}

PackedWeights PackedWeights::repacked(const engine::Graph& graph, std::int64_t conv_block) const {
  engine::Graph whole = unpacked(graph);
  return PackedWeights(whole, conv_block);
}

engine::Graph PackedWeights::unpacked(const engine::Graph& graph) const {
  engine::Graph whole = graph;
  for (std::size_t i = 0; i < whole.steps.size(); ++i) unpack(i, whole.steps[i]);
  return whole;
}

void PackedWeights::lay_out(const engine::Graph& graph, std::int64_t conv_block) {
  conv_block_ = conv_block;
  std::int64_t floats = 0;
  for (const Step& step : graph.steps) {
    Place place;
    if (step.op != Op::max_pool5) {
      place.tap_floats = part_floats(step, conv_block);
      place.weight = floats;
      place.bias = floats + engine::round_up(parts_of(step) * place.tap_floats, engine::kAlignFloats);
      floats = place.bias +
               engine::round_up(conv_blocks(step.output.channels, conv_block) * conv_block, engine::kAlignFloats);
      place.floats = floats - place.weight;
    }
    places_.push_back(place);
  }
  memory_ = engine::Memory(floats);
}

void PackedWeights::pack(const Step& step, std::size_t index) const {
  if (step.op == Op::max_pool5) return;
  const Place& place = places_[index];
  const std::int64_t in_c = step.input.channels, out_c = step.output.channels, kernel = kernel_of(step);
  for (std::int64_t part = 0; part < parts_of(step); ++part) {
    pack_direct(step.weight.data() + part * out_c * in_c, out_c, kernel, kernel, in_c, conv_block_,
                memory_.data() + place.weight + part * place.tap_floats);
  }
  float* const bias = memory_.data() + place.bias;
  std::fill(std::copy(step.bias.begin(), step.bias.end(), bias), bias + conv_blocks(out_c, conv_block_) * conv_block_,
            0.0f);
}

void PackedWeights::unpack(std::size_t index, Step& step) const {
  if (step.op == Op::max_pool5) return;
  const Place& place = places_[index];
  const std::int64_t out_c = step.output.channels, depth = kernel_of(step) * kernel_of(step) * step.input.channels;
  step.weight.resize(static_cast<std::size_t>(parts_of(step) * out_c * depth));
  float* out = step.weight.data();
  for (std::int64_t part = 0; part < parts_of(step); ++part) {
    const float* packed = memory_.data() + place.weight + part * place.tap_floats;
    for (std::int64_t k = 0; k < out_c; ++k, out += depth) {
      const float* from = packed + k / conv_block_ * depth * conv_block_ + k % conv_block_;
      for (std::int64_t d = 0; d < depth; ++d) out[d] = from[d * conv_block_];
    }
  }
  step.bias.assign(bias(index), bias(index) + out_c);
}

void estimate_errors(engine::Graph& graph) {
  parallel_for(static_cast<std::int64_t>(graph.steps.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::size_t i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      Step& step = graph.steps[i];
      if (step.op != Op::conv || step.kernel != 3 || step.winograd_error >= 0) continue;
      step.winograd_error = winograd_error(step.weight.data(), step.output.channels, step.input.channels, step.stride);
    }
  });
}

}  // namespace yolonas::cpu
