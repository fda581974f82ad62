#include "cpu/engine_weights.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
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
  const std::int64_t out_c = step.output.channels, in_c = step.input.channels, kernel = kernel_of(step);
  if (step.is_integer()) return pack_direct_s8_bytes(out_c, kernel, kernel, in_c, conv_block) / 4;
  return pack_direct_floats(out_c, kernel, kernel, in_c, conv_block);
}

template <class T>
void let_go(std::vector<T>& values) {
  std::vector<T>().swap(values);
}

// Zero up to whole blocks.
void copy_padded(const std::vector<float>& values, std::int64_t padded, float* to) {
  std::fill(std::copy(values.begin(), values.end(), to), to + padded, 0.0f);
}

}  // namespace

PackedWeights::PackedWeights(engine::Graph& graph, std::int64_t conv_block) {
  lay_out(graph, conv_block);
  parallel_for(static_cast<std::int64_t>(graph.steps.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::size_t i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      Step& step = graph.steps[i];
      if (!step.has_weight()) continue;
      if (step.is_integer()) {
        pack_integer(graph, i);
        let_go(step.weight_s8);
      } else {
        pack(graph, i);
        let_go(step.bias);
      }
      let_go(step.weight);
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

std::int64_t PackedWeights::padded_channels(const Step& step) const {
  return conv_blocks(step.output.channels, conv_block_) * conv_block_;
}

void PackedWeights::lay_out(const engine::Graph& graph, std::int64_t conv_block) {
  conv_block_ = conv_block;
  std::int64_t floats = 0;
  const auto place_of = [&](std::int64_t count) {
    const std::int64_t at = floats;
    floats += engine::round_up(count, engine::kAlignFloats);
    return at;
  };
  for (const Step& step : graph.steps) {
    Place place;
    const std::int64_t begin = floats;
    if (step.has_weight()) {
      place.tap_floats = part_floats(step, conv_block);
      place.weight = place_of(parts_of(step) * place.tap_floats);
      place.bias = place_of(padded_channels(step));
      if (step.is_integer()) {
        place.weight_sum = place_of(parts_of(step) * padded_channels(step));
        place.multiplier = place_of(padded_channels(step));
      }
    }
    place.floats = floats - begin;
    places_.push_back(place);
  }
  memory_ = engine::Memory(floats);
}

void PackedWeights::pack(const engine::Graph& graph, std::size_t index) const {
  const Step& step = graph.steps[index];
  const Place& place = places_[index];
  const std::int64_t in_c = step.input.channels, out_c = step.output.channels, kernel = kernel_of(step);
  for (std::int64_t part = 0; part < parts_of(step); ++part) {
    pack_direct(step.weight.data() + part * out_c * in_c, out_c, kernel, kernel, in_c, conv_block_,
                memory_.data() + place.weight + part * place.tap_floats);
  }
  copy_padded(step.bias, padded_channels(step), memory_.data() + place.bias);
}

void PackedWeights::pack_integer(const engine::Graph& graph, std::size_t index) const {
  const Step& step = graph.steps[index];
  const Place& place = places_[index];
  const std::int64_t in_c = step.input.channels, out_c = step.output.channels, kernel = kernel_of(step);
  auto* const weight = reinterpret_cast<std::int8_t*>(memory_.data() + place.weight);
  auto* const sums = reinterpret_cast<std::int32_t*>(memory_.data() + place.weight_sum);
  for (std::int64_t part = 0; part < parts_of(step); ++part) {
    pack_direct_s8(step.weight_s8.data() + part * out_c * in_c, out_c, kernel, kernel, in_c, conv_block_,
                   weight + part * place.tap_floats * 4, sums + part * padded_channels(step));
  }
  const engine::Requantization numbers = engine::requantization(graph, step);
  copy_padded(numbers.multiplier, padded_channels(step), memory_.data() + place.multiplier);
  copy_padded(numbers.offset, padded_channels(step), memory_.data() + place.bias);
}

void PackedWeights::unpack(std::size_t index, Step& step) const {
  if (!step.has_weight()) return;
  const std::int64_t out_c = step.output.channels, in_c = step.input.channels,
                     depth = kernel_of(step) * kernel_of(step) * in_c;
  const auto values = static_cast<std::size_t>(parts_of(step) * out_c * depth);
  if (step.is_integer()) {
    const std::int64_t groups = (in_c + 3) / 4;
    step.weight_s8.resize(values);
    std::int8_t* out = step.weight_s8.data();
    for (std::int64_t part = 0; part < parts_of(step); ++part) {
      const std::int8_t* packed = weight_s8(index) + part * tap_floats(index) * 4;
      for (std::int64_t k = 0; k < out_c; ++k) {
        for (std::int64_t d = 0; d < depth; ++d) {
          const std::int64_t tap = k / conv_block_ * (depth / in_c) + d / in_c, c = d % in_c;
          *out++ = packed[((tap * groups + c / 4) * conv_block_ + k % conv_block_) * 4 + c % 4];
        }
      }
    }
    return;
  }
  step.weight.resize(values);
  float* out = step.weight.data();
  for (std::int64_t part = 0; part < parts_of(step); ++part) {
    const float* packed = weight(index) + part * tap_floats(index);
    for (std::int64_t k = 0; k < out_c; ++k, out += depth) {
      const float* from = packed + k / conv_block_ * depth * conv_block_ + k % conv_block_;
      for (std::int64_t d = 0; d < depth; ++d) out[d] = from[d * conv_block_];
    }
  }
  step.bias.assign(bias(index), bias(index) + out_c);
}

namespace {

// Whether Winograd's form of an integer step is exact: see QuantKernels.
bool has_exact_winograd(const Step& step) {
  const std::size_t outputs = step.bias.size(), depth = step.weight_s8.size() / outputs;
  const std::int8_t* weight = step.weight_s8.data();
  for (std::size_t k = 0; k < outputs; ++k, weight += depth) {
    std::int64_t sum = 0;
    for (std::size_t d = 0; d < depth; ++d) sum += std::abs(weight[d]);
    if (sum > kWinograd43WeightSum) return false;
  }
  return true;
}

}  // namespace

void estimate_errors(engine::Graph& graph) {
  parallel_for(static_cast<std::int64_t>(graph.steps.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::size_t i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      Step& step = graph.steps[i];
      if (step.op != Op::conv || step.kernel != 3) continue;
      if (step.is_integer()) {
        step.winograd_error = has_exact_winograd(step) ? 0 : std::numeric_limits<double>::infinity();
        continue;
      }
      if (step.winograd_error >= 0) continue;
      step.winograd_error = winograd_error(step.weight.data(), step.output.channels, step.input.channels, step.stride);
    }
  });
}

}  // namespace yolonas::cpu
