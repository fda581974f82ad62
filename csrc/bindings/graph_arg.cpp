#include "bindings/graph_arg.h"

#include <pybind11/stl.h>

#include <string>
#include <type_traits>

#include "bindings/gil.h"
#include "bindings/tensor_arg.h"
#include "engine/serialize.h"

namespace py = pybind11;

namespace yolonas::bindings {
namespace {

using engine::View;

// The value of a dict's key in the type that is asked for; only numbers with a fraction may come as another type.
template <class T>
T item(const py::dict& dict, const char* key, const std::string& owner) {
  YN_CHECK(dict.contains(key), "engine: ", owner, " must have the key '", key, "'");
  const py::object value = dict[key];
  py::detail::make_caster<T> caster;
  YN_CHECK_TYPE(caster.load(value, std::is_floating_point<T>::value), "engine: ", key, " of ", owner,
                " has the wrong type, got ", std::string(py::str(py::type::handle_of(value).attr("__name__"))));
  return py::detail::cast_op<T>(caster);
}

View view_item(const py::dict& dict, const char* key, const std::string& owner) {
  const auto numbers = item<std::vector<std::int64_t>>(dict, key, owner);
  YN_CHECK(numbers.size() == 3, "engine: ", key, " of ", owner, " must be (buffer, offset, channels), got ",
           numbers.size(), " numbers");
  return {numbers[0], numbers[1], numbers[2]};
}

void read_weights(const py::dict& dict, const std::string& owner, engine::Step& step) {
  const std::string weight_name = concat("weight of ", owner), bias_name = concat("bias of ", owner);
  const TensorArg weight = on_cpu(item<py::object>(dict, "weight", owner), "engine", weight_name.c_str());
  const TensorArg bias = on_cpu(item<py::object>(dict, "bias", owner), "engine", bias_name.c_str());
  const std::int64_t in_c = step.input.channels, out_c = step.output.channels;
  const bool integer = weight.view().dtype == DType::s8;
  const DType dtype = integer ? DType::s8 : DType::f32;
  if (integer) {
    const std::string name = concat("weight_scale of ", owner);
    const TensorArg scale = on_cpu(item<py::object>(dict, "weight_scale", owner), "engine", name.c_str());
    check_tensor(scale.view(), "engine", name.c_str(), DType::f32, {out_c}, "(K,)");
    step.weight_scale.assign(scale.view().as<const float>(), scale.view().as<const float>() + out_c);
  }
  const auto order = [&](const auto& ordered) {
    if (integer) {
      step.weight_s8 = ordered(weight.view().as<const std::int8_t>());
    } else {
      step.weight = ordered(weight.view().as<const float>());
    }
  };
  if (step.op == engine::Op::upsample) {
    check_tensor(weight.view(), "engine", weight_name.c_str(), dtype, {in_c, out_c, 2, 2}, "(C, K, 2, 2)");
    order([&](const auto* values) { return engine::upsample_weight(values, in_c, out_c); });
    step.kernel = step.stride = 2;
  } else {
    step.kernel = weight.view().rank == 4 ? weight.view().shape[2] : -1;
    check_tensor(weight.view(), "engine", weight_name.c_str(), dtype, {out_c, in_c, step.kernel, step.kernel},
                 "(K, C, k, k)");
    order([&](const auto* values) { return engine::conv_weight(values, out_c, in_c, step.kernel); });
    step.stride = item<std::int64_t>(dict, "stride", owner);
    step.relu = item<bool>(dict, "relu", owner);
    step.has_residual = dict.contains("residual") && !dict["residual"].is_none();
    if (step.has_residual) {
      step.residual = view_item(dict, "residual", owner);
      step.residual_scale = item<float>(dict, "residual_scale", owner);
    }
  }
  check_tensor(bias.view(), "engine", bias_name.c_str(), DType::f32, {out_c}, "(K,)");
  step.bias.assign(bias.view().as<const float>(), bias.view().as<const float>() + out_c);
}

engine::Step read_step(const py::dict& dict, std::size_t index) {
  engine::Step step;
  std::string owner = concat("step ", index);
  step.name = dict.contains("name") ? item<std::string>(dict, "name", owner) : std::to_string(index);
  owner = concat("step '", step.name, "'");
  const auto op = item<std::string>(dict, "op", owner);
  bool known = false;
  for (const engine::Op one :
       {engine::Op::conv, engine::Op::upsample, engine::Op::max_pool5, engine::Op::quantize, engine::Op::dequantize}) {
    if (op == engine::name(one)) {
      step.op = one;
      known = true;
    }
  }
  YN_CHECK(known, "engine: op of ", owner, " must be conv, upsample, max_pool5, quantize or dequantize, got '", op,
           "'");
  step.input = view_item(dict, "input", owner);
  step.output = view_item(dict, "output", owner);
  // Sizes are checked with the graph; here only what the reading of the weights relies on.
  for (const View* view : {&step.input, &step.output}) {
    YN_CHECK(view->channels >= 1, "engine: views of ", owner, " must have at least one channel, got ", view->channels);
  }
  if (step.has_weight()) read_weights(dict, owner, step);
  return step;
}

// (downscale, channels) of a float32 buffer, and with a scale of one that is int8 unless it is 0.
engine::Buffer read_buffer(const py::tuple& numbers, std::size_t index) {
  YN_CHECK(numbers.size() == 2 || numbers.size() == 3, "engine: buffer ", index,
           " must be (downscale, channels) or (downscale, channels, scale), got ", numbers.size(), " numbers");
  py::dict named;
  named["downscale"] = numbers[0];
  named["channels"] = numbers[1];
  if (numbers.size() == 3) named["scale"] = numbers[2];
  const std::string owner = concat("buffer ", index);
  engine::Buffer buffer;
  buffer.downscale_log2 = item<std::int64_t>(named, "downscale", owner);
  buffer.channels = item<std::int64_t>(named, "channels", owner);
  if (numbers.size() == 3) buffer.scale = item<float>(named, "scale", owner);
  return buffer;
}

}  // namespace

engine::Graph graph_of(const std::vector<py::tuple>& buffers, const std::vector<py::dict>& steps,
                       const std::vector<py::dict>& outputs) {
  engine::Graph graph;
  for (const py::tuple& buffer : buffers) graph.buffers.push_back(read_buffer(buffer, graph.buffers.size()));
  for (const py::dict& step : steps) graph.steps.push_back(read_step(step, graph.steps.size()));
  for (const py::dict& output : outputs) {
    const std::string owner = concat("output ", graph.levels.size());
    graph.levels.push_back({view_item(output, "cls", owner), view_item(output, "reg", owner),
                            item<std::int64_t>(output, "stride", owner)});
  }
  return graph;
}

engine::Graph graph_of_bytes(const py::buffer& data) {
  const py::buffer_info info = data.request();
  YN_CHECK(info.ndim == 1 && info.itemsize == 1 && info.strides[0] == 1,
           "deserialize: data must be contiguous bytes, got ", info.ndim, " dimensions of ", info.itemsize, " bytes");
  const GilRelease release;
  return engine::deserialize(static_cast<const char*>(info.ptr), static_cast<std::size_t>(info.size));
}

}  // namespace yolonas::bindings
