// What the engines of both modules take from Python, and tell it.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "ops/letterbox.h"

namespace yolonas::bindings {

using Pair = std::array<std::int64_t, 2>;  // along (height, width)

// Where each of `count` pictures goes in its frame.
inline std::vector<LetterboxParams> placements(const char* op, std::size_t count, const std::vector<Pair>& resized,
                                               const std::vector<Pair>& offsets, int pad_value, bool swap_channels,
                                               const std::array<double, 3>& mean,
                                               const std::array<double, 3>& divisor) {
  YN_CHECK(resized.size() == count && offsets.size() == count, op,
           ": resized and offsets must have one pair per picture, ", count, ", got ", resized.size(), " and ",
           offsets.size());
  LetterboxParams common;
  common.pad_value = pad_value;
  common.swap_channels = swap_channels;
  for (std::size_t c = 0; c < 3; ++c) {
    common.mean[c] = static_cast<float>(mean[c]);
    common.divisor[c] = static_cast<float>(divisor[c]);
  }
  std::vector<LetterboxParams> all(count, common);
  for (std::size_t i = 0; i < count; ++i) {
    all[i].resized_h = resized[i][0];
    all[i].resized_w = resized[i][1];
    all[i].top = offsets[i][0];
    all[i].left = offsets[i][1];
  }
  return all;
}

// The keys of a step of a plan that every engine has.
template <class StepInfo>
pybind11::dict step_dict(const StepInfo& info) {
  pybind11::dict step;
  step["name"] = info.name;
  step["op"] = info.op;
  step["algorithm"] = info.algorithm;
  step["input"] = pybind11::make_tuple(info.in_h, info.in_w, info.in_c);
  step["output"] = pybind11::make_tuple(info.out_h, info.out_w, info.out_c);
  step["kernel"] = info.kernel;
  step["stride"] = info.stride;
  step["mflop"] = info.mflop;
  step["weight_bytes"] = info.weight_bytes;
  step["pixel_numbers"] = pybind11::make_tuple(info.in_stride, info.out_stride);
  step["residual"] = info.residual;
  step["tuned"] = info.tuned;
  step["pictures"] = info.pictures;
  return step;
}

template <class MemoryUse>
pybind11::dict memory_dict(const MemoryUse& use) {
  pybind11::dict bytes;
  bytes["weights"] = use.weights;
  bytes["arena"] = use.arena;
  bytes["workspaces"] = use.workspaces;
  return bytes;
}

// How a step is computed: a name and two numbers, whose meaning is the engine's; or None.
using ChoiceTuple = std::optional<std::tuple<std::string, std::int64_t, std::int64_t>>;

}  // namespace yolonas::bindings
