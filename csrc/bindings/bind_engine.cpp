// Engine: a network in one call. Steps and views come as dicts and tuples; no Python object is kept.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/gil.h"
#include "bindings/tensor_arg.h"
#include "cpu/engine.h"
#include "engine/serialize.h"

namespace py = pybind11;

namespace yolonas::bindings {
void bind_engine(py::module_& module);

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

std::unique_ptr<cpu::Engine> make_engine(const std::vector<py::tuple>& buffers, const std::vector<py::dict>& steps,
                                         const std::vector<py::dict>& outputs) {
  engine::Graph graph;
  for (const py::tuple& buffer : buffers) graph.buffers.push_back(read_buffer(buffer, graph.buffers.size()));
  for (const py::dict& step : steps) graph.steps.push_back(read_step(step, graph.steps.size()));
  for (const py::dict& output : outputs) {
    const std::string owner = concat("output ", graph.levels.size());
    graph.levels.push_back({view_item(output, "cls", owner), view_item(output, "reg", owner),
                            item<std::int64_t>(output, "stride", owner)});
  }
  const GilRelease release;
  return std::make_unique<cpu::Engine>(std::move(graph));
}

std::unique_ptr<cpu::Engine> engine_from_bytes(const py::buffer& data) {
  const py::buffer_info info = data.request();
  YN_CHECK(info.ndim == 1 && info.itemsize == 1 && info.strides[0] == 1,
           "deserialize: data must be contiguous bytes, got ", info.ndim, " dimensions of ", info.itemsize, " bytes");
  const GilRelease release;
  return std::make_unique<cpu::Engine>(
      engine::deserialize(static_cast<const char*>(info.ptr), static_cast<std::size_t>(info.size)));
}

py::bytes serialize(cpu::Engine& self) {
  std::string data;
  {
    const GilRelease release;
    data = engine::serialize(self.graph());
  }
  return py::bytes(data);
}

void run(cpu::Engine& self, const py::object& x, const py::sequence& cls, const py::sequence& reg) {
  const TensorArg x_arg = on_cpu(x, "run", "x");
  const std::vector<TensorArg> cls_args = tensor_list(cls, "run", "cls"), reg_args = tensor_list(reg, "run", "reg");
  for (const std::vector<TensorArg>* list : {&cls_args, &reg_args}) {
    for (const TensorArg& out : *list) {
      YN_CHECK(out.view().device == Device::cpu, "run: outputs must lie on the CPU, got device ",
               name(out.view().device), ":", out.view().device_index);
    }
  }
  const GilRelease release;
  self.run(x_arg.view(), views(cls_args), views(reg_args));
}

void channel_sums(cpu::Engine& self, const py::object& x, const py::object& sums) {
  const char* op = "channel_sums";
  const TensorArg x_arg = on_cpu(x, op, "x"), sums_arg = on_cpu(sums, op, "sums");
  const GilRelease release;
  self.channel_sums(x_arg.view(), sums_arg.view());
}

void observe(cpu::Engine& self, const py::object& x, const py::object& counts, const py::object& largest,
             const py::object& negatives) {
  const char* op = "observe";
  const TensorArg x_arg = on_cpu(x, op, "x"), counts_arg = on_cpu(counts, op, "counts");
  const TensorArg largest_arg = on_cpu(largest, op, "largest"), negatives_arg = on_cpu(negatives, op, "negatives");
  const GilRelease release;
  self.observe(x_arg.view(), {counts_arg.view(), largest_arg.view(), negatives_arg.view()});
}

using Pair = std::array<std::int64_t, 2>;  // along (height, width)

py::tuple detect(cpu::Engine& self, const py::sequence& pictures, const Pair& frame, const std::vector<Pair>& resized,
                 const std::vector<Pair>& offsets, int pad_value, bool swap_channels, const std::array<double, 3>& mean,
                 const std::array<double, 3>& divisor, double conf, std::int64_t top_k, bool multi_label,
                 const py::object& class_mask, double iou, std::int64_t max_det, bool agnostic,
                 const py::object& detections, const py::object& counts) {
  const char* op = "detect";
  const std::vector<TensorArg> images = tensor_list(pictures, op, "picture");
  YN_CHECK(resized.size() == images.size() && offsets.size() == images.size(), op,
           ": resized and offsets must have one pair per picture, ", images.size(), ", got ", resized.size(), " and ",
           offsets.size());
  cpu::DetectRequest request;
  LetterboxParams placement;
  placement.pad_value = pad_value;
  placement.swap_channels = swap_channels;
  for (std::size_t c = 0; c < 3; ++c) {
    placement.mean[c] = static_cast<float>(mean[c]);
    placement.divisor[c] = static_cast<float>(divisor[c]);
  }
  for (std::size_t i = 0; i < images.size(); ++i) {
    check_on_cpu(images[i], op, "picture");
    placement.resized_h = resized[i][0];
    placement.resized_w = resized[i][1];
    placement.top = offsets[i][0];
    placement.left = offsets[i][1];
    request.pictures.push_back({images[i].view(), placement});
  }
  request.frame_h = frame[0];
  request.frame_w = frame[1];
  request.candidates = {static_cast<float>(conf), top_k, multi_label, nullptr};
  request.nms = {static_cast<float>(iou), max_det, agnostic};
  std::unique_ptr<TensorArg> mask;
  if (!class_mask.is_none()) {
    mask = std::make_unique<TensorArg>(on_cpu(class_mask, op, "class_mask"));
    request.class_mask = &mask->view();
  }
  const TensorArg detections_arg = on_cpu(detections, op, "detections"), counts_arg = on_cpu(counts, op, "counts");
  request.detections = detections_arg.view();
  request.counts = counts_arg.view();
  cpu::Engine::StageTimes times;
  {
    const GilRelease release;
    times = self.detect(request);
  }
  return py::make_tuple(times.preprocess, times.network, times.postprocess);
}

py::list plan(cpu::Engine& self, std::int64_t height, std::int64_t width, std::int64_t batch) {
  std::vector<cpu::StepInfo> infos;
  {
    const GilRelease release;
    infos = self.plan({batch, height, width});
  }
  py::list steps;
  for (const cpu::StepInfo& info : infos) {
    py::dict step;
    step["name"] = info.name;
    step["op"] = info.op;
    step["algorithm"] = info.algorithm;
    step["input"] = py::make_tuple(info.in_h, info.in_w, info.in_c);
    step["output"] = py::make_tuple(info.out_h, info.out_w, info.out_c);
    step["kernel"] = info.kernel;
    step["stride"] = info.stride;
    step["mflop"] = info.mflop;
    step["weight_bytes"] = info.weight_bytes;
    step["dtype"] = info.integer ? "int8" : "float32";
    step["pixel_numbers"] = py::make_tuple(info.in_stride, info.out_stride);
    step["residual"] = info.residual;
    step["cut"] = py::make_tuple(info.unit_step, info.block_step);
    step["tuned"] = info.tuned;
    step["pictures"] = info.pictures;
    steps.append(step);
  }
  return steps;
}

py::dict memory(cpu::Engine& self, std::int64_t height, std::int64_t width, std::int64_t batch) {
  cpu::Engine::MemoryUse use{};
  {
    const GilRelease release;
    use = self.memory({batch, height, width});
  }
  py::dict bytes;
  bytes["weights"] = use.weights;
  bytes["arena"] = use.arena;
  bytes["workspaces"] = use.workspaces;
  return bytes;
}

std::vector<double> time_steps(cpu::Engine& self, const py::object& x, int rounds) {
  const TensorArg x_arg = on_cpu(x, "time_steps", "x");
  const GilRelease release;
  return self.time_steps(x_arg.view(), rounds);
}

// (algorithm, unit step, block step), or None.
using ChoiceTuple = std::optional<std::tuple<std::string, std::int64_t, std::int64_t>>;

cpu::Engine::TunedSteps read_choices(const std::vector<ChoiceTuple>& tuples) {
  cpu::Engine::TunedSteps steps;
  for (const ChoiceTuple& one : tuples) {
    steps.emplace_back();
    if (!one) continue;
    const auto& [algorithm, unit_step, block_step] = *one;
    steps.back() = {cpu::find_algorithm(algorithm), unit_step, block_step};
  }
  return steps;
}

std::vector<std::vector<ChoiceTuple>> alternatives(cpu::Engine& self, std::int64_t height, std::int64_t width,
                                                   std::int64_t batch, int cuts) {
  const GilRelease release;
  std::vector<std::vector<ChoiceTuple>> all;
  for (const std::vector<cpu::Choice>& step : self.alternatives({batch, height, width}, cuts)) {
    all.emplace_back();
    for (const cpu::Choice& one : step) all.back().push_back({{name(one.algorithm), one.unit_step, one.block_step}});
  }
  return all;
}

std::vector<std::vector<double>> time_choices(cpu::Engine& self, std::int64_t height, std::int64_t width,
                                              std::int64_t batch, const std::vector<std::vector<ChoiceTuple>>& runs) {
  const GilRelease release;
  std::vector<cpu::Engine::TunedSteps> read;
  for (const std::vector<ChoiceTuple>& run : runs) read.push_back(read_choices(run));
  return self.time_choices({batch, height, width}, read);
}

void set_choices(cpu::Engine& self, std::int64_t height, std::int64_t width, std::int64_t batch,
                 const std::vector<ChoiceTuple>& choices) {
  const GilRelease release;
  self.set_choices({batch, height, width}, read_choices(choices));
}

void set_algorithm(cpu::Engine& self, const std::string& step, const std::string& algorithm) {
  const GilRelease release;
  self.set_algorithm(step, algorithm);
}

}  // namespace

void bind_engine(py::module_& module) {
  py::class_<cpu::Engine>(module, "Engine", "A network in one call: a graph of steps with its weights.")
      .def(py::init(&make_engine), py::arg("buffers"), py::arg("steps"), py::arg("outputs"))
      .def("run", &run, py::arg("x"), py::arg("cls"), py::arg("reg"))
      .def("observe", &observe, py::arg("x"), py::arg("counts"), py::arg("largest"), py::arg("negatives"))
      .def("channel_sums", &channel_sums, py::arg("x"), py::arg("sums"))
      .def("detect", &detect, py::arg("pictures"), py::kw_only(), py::arg("frame"), py::arg("resized"),
           py::arg("offsets"), py::arg("pad_value"), py::arg("swap_channels"), py::arg("mean"), py::arg("divisor"),
           py::arg("conf"), py::arg("top_k"), py::arg("multi_label"), py::arg("class_mask"), py::arg("iou"),
           py::arg("max_det"), py::arg("agnostic"), py::arg("detections"), py::arg("counts"))
      .def("plan", &plan, py::arg("height").noconvert(), py::arg("width").noconvert(), py::arg("batch").noconvert() = 1)
      .def("memory", &memory, py::arg("height").noconvert(), py::arg("width").noconvert(),
           py::arg("batch").noconvert() = 1)
      .def("time_steps", &time_steps, py::arg("x"), py::arg("rounds").noconvert())
      .def("set_algorithm", &set_algorithm, py::arg("name"), py::arg("algorithm"))
      .def("alternatives", &alternatives, py::arg("height").noconvert(), py::arg("width").noconvert(),
           py::arg("batch").noconvert(), py::arg("cuts").noconvert())
      .def("time_choices", &time_choices, py::arg("height").noconvert(), py::arg("width").noconvert(),
           py::arg("batch").noconvert(), py::arg("runs"))
      .def("set_choices", &set_choices, py::arg("height").noconvert(), py::arg("width").noconvert(),
           py::arg("batch").noconvert(), py::arg("choices"))
      .def_property_readonly("step_names", &cpu::Engine::step_names)
      .def_property_readonly("num_classes", &cpu::Engine::num_classes)
      .def("serialize", &serialize)
      .def_static("deserialize", &engine_from_bytes, py::arg("data"))
      .def_property_readonly_static("plan_version", [](const py::object&) { return cpu::kPlanVersion; })
      .def("_guard_buffers", &cpu::Engine::guard_buffers, py::arg("on"));
}

}  // namespace yolonas::bindings
