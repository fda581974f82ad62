// The arrays of a run: their checks, on any device.
#pragma once

#include <vector>

#include "core/tensor_view.h"
#include "engine/graph.h"
#include "engine/plan.h"

namespace yolonas::engine {

// The size of x, float32 (N, H, W, 3) and contiguous; not its values. Throws with `op` in the text.
InputSize check_input(const Graph& graph, const TensorView& x, const char* op);

// Where the outputs go, cls and reg of level 0, of level 1, ...: per level (N, H / stride, W / stride, channels of its
// view), float32 and contiguous. Throws, too, where one overlaps x or another output. x has passed check_input.
std::vector<float*> check_outputs(const Graph& graph, const TensorView& x, const std::vector<TensorView>& cls,
                                  const std::vector<TensorView>& reg, const char* op);

}  // namespace yolonas::engine
