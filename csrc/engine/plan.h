// Where the values of a run lie: sizes and lifetimes of the buffers of a graph for one input size, and their places.
// Independent of the processor.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/arena.h"
#include "engine/graph.h"

namespace yolonas::engine {

struct InputSize {
  std::int64_t pictures = 0, height = 0, width = 0;
};

struct BufferPlan {
  std::int64_t height = 0, width = 0, channels = 0;
  std::int64_t picture = 0;          // numbers of one picture; pictures lie one after another
  bool is_int8 = false;              // else float32
  std::int64_t first = 0, last = 0;  // steps of its first write and its last use; `first` of the input is -1
  std::int64_t offset = -1;          // in the arena, in floats; -1: the caller's memory, or never used

  // What so many pictures take.
  std::int64_t floats(std::int64_t pictures) const {
    return is_int8 ? (pictures * picture + 3) / 4 : pictures * picture;
  }
};

// A head output: written straight to the caller's memory, or copied there after the last step.
struct OutputPlan {
  View view;
  std::int64_t picture = 0;  // floats of one picture
  bool direct = false;       // the view is all of its buffer, which then lies in the caller's memory
};

struct MemoryPlan {
  InputSize size;
  std::vector<BufferPlan> buffers;
  std::vector<OutputPlan> outputs;  // cls and reg of level 0, of level 1, ...
  std::int64_t arena_floats = 0;
};

// Throws std::invalid_argument for a size that is not a multiple of graph.size_multiple(), for no pictures, or for more
// than 2^31 pixels; `op` goes into the text.
void check_size(const Graph& graph, const InputSize& size, const char* op);

// The graph must have passed check_graph, the size check_size.
MemoryPlan plan_memory(const Graph& graph, const InputSize& size);

}  // namespace yolonas::engine
