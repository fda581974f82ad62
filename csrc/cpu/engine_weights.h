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
  // no time do all of them exist twice. Throws std::bad_alloc, with the graph unchanged.
  PackedWeights(engine::Graph& graph, std::int64_t conv_block);

  // The same for other blocks. `graph`, here and below, is the one that the weights were taken from.
  PackedWeights repacked(const engine::Graph& graph, std::int64_t conv_block) const;

  // A graph with its weights again.
  engine::Graph unpacked(const engine::Graph& graph) const;

  std::int64_t conv_block() const { return conv_block_; }
  const float* weight(std::size_t step) const { return memory_.data() + places_[step].weight; }  // of an upsample: of
  const float* bias(std::size_t step) const { return memory_.data() + places_[step].bias; }
  std::int64_t tap_floats(std::size_t step) const { return places_[step].tap_floats; }  // its four taps, so far apart
  std::int64_t bytes(std::size_t step) const { return places_[step].floats * 4; }

 private:
  struct Place {
    std::int64_t weight = 0, bias = 0;  // offsets in memory_
    std::int64_t tap_floats = 0;
    std::int64_t floats = 0;  // of weight and bias, with padding
  };

  void lay_out(const engine::Graph& graph, std::int64_t conv_block);
  void pack(const engine::Step& step, std::size_t index) const;
  void unpack(std::size_t index, engine::Step& step) const;

  std::int64_t conv_block_ = 0;
  std::vector<Place> places_;
  engine::Memory memory_;
};

// Relative error of a 3x3 layer by Winograd, see winograd_error, above which the direct form takes its place. Trained
// and random layers have 1e-6; some layers in a row add theirs.
inline constexpr double kLargestError = 2e-5;

// Fills Step::winograd_error where a step could take that form and it is not known yet. On all threads.
void estimate_errors(engine::Graph& graph);

}  // namespace yolonas::cpu
