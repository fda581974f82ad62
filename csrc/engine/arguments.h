// The arrays of a run: their checks, on any device.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor_view.h"
#include "engine/graph.h"
#include "engine/plan.h"

namespace yolonas::engine {

// The size of x, float32 (N, H, W, 3) and contiguous; not its values. Throws with `op` in the text.
InputSize check_input(const Graph& graph, const TensorView& x, const char* op);

// What `observe` adds to: a row for the input and one per step. Sums and maxima, so that neither the order of the
// pictures, nor how they come in batches, nor what runs at the same time changes a bit.
struct Histograms {
  static constexpr std::int64_t kBins = 1 << 15;

  TensorView counts;     // int64 (1 + steps, kBins): values by the upper 16 bits of |value| as float32: 8 of the
                         // exponent, 7 of the mantissa. From bin 0x7f80 on they are not finite
  TensorView largest;    // float32 (1 + steps,): largest finite magnitude, not negative before either
  TensorView negatives;  // int64 (1 + steps,): values below 0
};

// Throws unless the network is of floats, and the histograms fit it and overlap neither x, which has passed
// check_input, nor each other.
void check_histograms(const Graph& graph, const TensorView& x, const Histograms& histograms, const char* op);

// Throws unless sums, int64 (total,), has the output channels of all steps and does not overlap x, which has passed
// check_input.
void check_channel_sums(const Graph& graph, const TensorView& x, const TensorView& sums, const char* op);

// Where the outputs go, cls and reg of level 0, of level 1, ...: per level (N, H / stride, W / stride, channels of its
// view), float32 and contiguous. Throws, too, where one overlaps x or another output. x has passed check_input.
std::vector<float*> check_outputs(const Graph& graph, const TensorView& x, const std::vector<TensorView>& cls,
                                  const std::vector<TensorView>& reg, const char* op);

}  // namespace yolonas::engine
