// A graph from Python's lists, for the engines of both modules. No Python object is kept.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "engine/graph.h"

namespace yolonas::bindings {

// buffers: (downscale, channels) or (downscale, channels, scale); steps and outputs: dicts as in yolonas/lowering.py.
// Weights must lie on the CPU. Throws for what cannot be read; check_graph comes after it.
engine::Graph graph_of(const std::vector<pybind11::tuple>& buffers, const std::vector<pybind11::dict>& steps,
                       const std::vector<pybind11::dict>& outputs);

// Throws for an object that is not contiguous bytes, or that engine::deserialize refuses.
engine::Graph graph_of_bytes(const pybind11::buffer& data);

}  // namespace yolonas::bindings
