// A graph with its weights as bytes, and back: what a compiled model file holds besides its names and settings.
#pragma once

#include <cstddef>
#include <string>

#include "engine/graph.h"

namespace yolonas::engine {

// Little-endian: "YOLONASE", u32 version, u32 byte order mark, u64 number of bytes in all, u64 checksum of what
// follows; then the buffers, steps and levels. Independent of instruction set and input size.
std::string serialize(const Graph& graph);

// Throws std::invalid_argument for bytes of another kind or version, truncated or damaged ones, and graphs that
// check_graph refuses.
Graph deserialize(const char* data, std::size_t size);

}  // namespace yolonas::engine
