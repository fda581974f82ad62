// Engine: a network in one call. Steps and views come as dicts and tuples; no Python object is kept.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/engine_args.h"
#include "bindings/gil.h"
#include "bindings/graph_arg.h"
#include "bindings/tensor_arg.h"
#include "cpu/engine.h"
#include "engine/serialize.h"

namespace py = pybind11;

namespace yolonas::bindings {
void bind_engine(py::module_& module);

namespace {

std::unique_ptr<cpu::Engine> make_engine(const std::vector<py::tuple>& buffers, const std::vector<py::dict>& steps,
                                         const std::vector<py::dict>& outputs) {
  engine::Graph graph = graph_of(buffers, steps, outputs);
  const GilRelease release;
  return std::make_unique<cpu::Engine>(std::move(graph));
}

std::unique_ptr<cpu::Engine> engine_from_bytes(const py::buffer& data) {
  engine::Graph graph = graph_of_bytes(data);
  const GilRelease release;
  return std::make_unique<cpu::Engine>(std::move(graph));
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

py::tuple detect(cpu::Engine& self, const py::sequence& pictures, const Pair& frame, const std::vector<Pair>& resized,
                 const std::vector<Pair>& offsets, int pad_value, bool swap_channels, const std::array<double, 3>& mean,
                 const std::array<double, 3>& divisor, double conf, std::int64_t top_k, bool multi_label,
                 const py::object& class_mask, double iou, std::int64_t max_det, bool agnostic,
                 const py::object& detections, const py::object& counts) {
  const char* op = "detect";
  const std::vector<TensorArg> images = tensor_list(pictures, op, "picture");
  const std::vector<LetterboxParams> placed =
      placements(op, images.size(), resized, offsets, pad_value, swap_channels, mean, divisor);
  DetectRequest request;
  for (std::size_t i = 0; i < images.size(); ++i) {
    check_on_cpu(images[i], op, "picture");
    request.pictures.push_back({images[i].view(), placed[i]});
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
    py::dict step = step_dict(info);
    step["dtype"] = info.integer ? "int8" : "float32";
    step["cut"] = py::make_tuple(info.unit_step, info.block_step);
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
  return memory_dict(use);
}

std::vector<double> time_steps(cpu::Engine& self, const py::object& x, int rounds) {
  const TensorArg x_arg = on_cpu(x, "time_steps", "x");
  const GilRelease release;
  return self.time_steps(x_arg.view(), rounds);
}

// Of (algorithm, unit step, block step).
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
