// The weights of a graph's steps, packed for the kernels; the only copy that an engine keeps.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/arena.h"
#include "engine/graph.h"

namespace yolonas::cpu {

// One layout serves every algorithm of a step; only the number of channels of a block depends on the instruction set.
class PackedWeights {
 public:
  PackedWeights() = default;

  // Packs the weights and bias of every step on all threads, and empties them there, one by one as they are packed: at
  // no time do all of them exist twice. Integer steps keep weight_scale and bias. Throws std::bad_alloc, with the graph
  // unchanged.
  PackedWeights(engine::Graph& graph, std::int64_t conv_block);

  // The same for other blocks. `graph`, here and below, is the one that the weights were taken from.
  PackedWeights repacked(const engine::Graph& graph, std::int64_t conv_block) const;

  // A graph with its weights again.
  engine::Graph unpacked(const engine::Graph& graph) const;

  std::int64_t conv_block() const { return conv_block_; }
  std::int64_t bytes(std::size_t step) const { return places_[step].floats * 4; }
  // Of an upsample: the four taps, so far apart as tap_floats says; of an integer one the sums are blocks apart.
  const float* weight(std::size_t step) const { return memory_.data() + places_[step].weight; }
  std::int64_t tap_floats(std::size_t step) const { return places_[step].tap_floats; }
  const float* bias(std::size_t step) const { return memory_.data() + places_[step].bias; }
  // Of integer steps, see QuantConvArgs.
  const std::int8_t* weight_s8(std::size_t step) const { return reinterpret_cast<const std::int8_t*>(weight(step)); }
  const std::int32_t* weight_sum(std::size_t step) const {
    return reinterpret_cast<const std::int32_t*>(memory_.data() + places_[step].weight_sum);
  }
  const float* multiplier(std::size_t step) const { return memory_.data() + places_[step].multiplier; }
  const float* offset(std::size_t step) const { return bias(step); }

 private:
  struct Place {
    std::int64_t weight = 0, bias = 0, weight_sum = 0, multiplier = 0;  // offsets in memory_
    std::int64_t tap_floats = 0;
    std::int64_t floats = 0;  // of all of them, with padding
  };

  void lay_out(const engine::Graph& graph, std::int64_t conv_block);
  void pack(const engine::Graph& graph, std::size_t index) const;
  void pack_integer(const engine::Graph& graph, std::size_t index) const;
  void unpack(std::size_t index, engine::Step& step) const;
  std::int64_t padded_channels(const engine::Step& step) const;

  std::int64_t conv_block_ = 0;
  std::vector<Place> places_;
  engine::Memory memory_;
};

// Relative error of a 3x3 layer by Winograd, see winograd_error, above which the direct form takes its place. Trained
// and random layers have 1e-6; some layers in a row add theirs.
inline constexpr double kLargestError = 2e-5;

// Fills Step::winograd_error where a step could take that form and it is not known yet; 0 or infinity for an integer
// step, whatever is there: its form may not be taken where a sum could be wrong. On all threads.
void estimate_errors(engine::Graph& graph);

}  // namespace yolonas::cpu
