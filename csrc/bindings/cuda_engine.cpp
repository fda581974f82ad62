// The engine on a CUDA device. Steps and views come as dicts and tuples; no Python object is kept.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/cuda_args.h"
#include "bindings/engine_args.h"
#include "bindings/gil.h"
#include "bindings/graph_arg.h"
#include "cuda/engine.h"
#include "engine/schedule.h"

namespace py = pybind11;

namespace yolonas::bindings {
void bind_cuda_engine(py::module_& module);

namespace {

std::unique_ptr<cuda::Engine> engine_of(engine::Graph&& graph, int device, bool half) {
  const GilRelease release;
  return std::make_unique<cuda::Engine>(std::move(graph), cuda::Options{device, half});
}

std::unique_ptr<cuda::Engine> make_engine(const std::vector<py::tuple>& buffers, const std::vector<py::dict>& steps,
                                          const std::vector<py::dict>& outputs, int device, bool half) {
  return engine_of(graph_of(buffers, steps, outputs), device, half);
}

std::unique_ptr<cuda::Engine> engine_from_bytes(const py::buffer& data, int device, bool half) {
  return engine_of(graph_of_bytes(data), device, half);
}

// After all tensors were taken.
void check_place(const cuda::Engine& self, const CudaArgs& args, const char* op) {
  YN_CHECK(args.device() < 0 || args.device() == self.device(), op,
           ": tensors must lie on the engine's device, cuda:", self.device(), ", got cuda:", args.device());
}

void run(cuda::Engine& self, const py::object& x, const py::sequence& cls, const py::sequence& reg,
         std::uintptr_t stream) {
  CudaArgs args("run");
  const TensorArg x_arg = args.take(x, "x");
  const std::vector<TensorArg> cls_args = args.take_list(cls, "cls"), reg_args = args.take_list(reg, "reg");
  check_place(self, args, "run");
  const GilRelease release;
  self.run(x_arg.view(), views(cls_args), views(reg_args), as_stream(stream));
}

void observe(cuda::Engine& self, const py::object& x, const py::object& counts, const py::object& largest,
             const py::object& negatives, std::uintptr_t stream) {
  const char* op = "observe";
  CudaArgs args(op);
  const TensorArg x_arg = args.take(x, "x"), counts_arg = args.take(counts, "counts"),
                  largest_arg = args.take(largest, "largest"), negatives_arg = args.take(negatives, "negatives");
  check_place(self, args, op);
  const GilRelease release;
  self.observe(x_arg.view(), {counts_arg.view(), largest_arg.view(), negatives_arg.view()}, as_stream(stream));
}

void channel_sums(cuda::Engine& self, const py::object& x, const py::object& sums, std::uintptr_t stream) {
  const char* op = "channel_sums";
  CudaArgs args(op);
  const TensorArg x_arg = args.take(x, "x"), sums_arg = args.take(sums, "sums");
  check_place(self, args, op);
  const GilRelease release;
  self.channel_sums(x_arg.view(), sums_arg.view(), as_stream(stream));
}

void detect(cuda::Engine& self, const py::sequence& pictures, const Pair& frame, const std::vector<Pair>& resized,
            const std::vector<Pair>& offsets, int pad_value, bool swap_channels, const std::array<double, 3>& mean,
            const std::array<double, 3>& divisor, double conf, std::int64_t top_k, bool multi_label,
            const py::object& class_mask, double iou, std::int64_t max_det, bool agnostic, const py::object& detections,
            const py::object& counts, std::uintptr_t stream) {
  const char* op = "detect";
  CudaArgs args(op);
  const std::vector<TensorArg> images = args.take_list(pictures, "picture");
  const std::vector<LetterboxParams> placed =
      placements(op, images.size(), resized, offsets, pad_value, swap_channels, mean, divisor);
  DetectRequest request;
  for (std::size_t i = 0; i < images.size(); ++i) {
    request.pictures.push_back({images[i].view(), placed[i]});
  }
  request.frame_h = frame[0];
  request.frame_w = frame[1];
  request.candidates = {static_cast<float>(conf), top_k, multi_label, nullptr};
  request.nms = {static_cast<float>(iou), max_det, agnostic};
  std::unique_ptr<TensorArg> mask;
  if (!class_mask.is_none()) {
    mask = std::make_unique<TensorArg>(args.take(class_mask, "class_mask"));
    request.class_mask = &mask->view();
  }
  const TensorArg detections_arg = args.take(detections, "detections"), counts_arg = args.take(counts, "counts");
  request.detections = detections_arg.view();
  request.counts = counts_arg.view();
  check_place(self, args, op);
  const GilRelease release;
  self.detect(request, as_stream(stream));
}

py::list plan(cuda::Engine& self, std::int64_t height, std::int64_t width, std::int64_t batch) {
  std::vector<cuda::StepInfo> infos;
  {
    const GilRelease release;
    infos = self.plan({batch, height, width});
  }
  py::list steps;
  for (const cuda::StepInfo& info : infos) {
    py::dict step = step_dict(info);
    step["dtype"] = info.dtype;
    step["splits"] = info.splits;
    step["stream"] = info.stream;
    step["waits"] = info.waits;
    step["overlap"] = info.overlap;
    step["estimate"] = info.estimate;
    steps.append(step);
  }
  return steps;
}

py::dict memory(cuda::Engine& self, std::int64_t height, std::int64_t width, std::int64_t batch) {
  cuda::Engine::MemoryUse use{};
  {
    const GilRelease release;
    use = self.memory({batch, height, width});
  }
  return memory_dict(use);
}

std::vector<double> time_steps(cuda::Engine& self, std::int64_t height, std::int64_t width, std::int64_t batch,
                               int rounds) {
  const GilRelease release;
  return self.time_steps({batch, height, width}, rounds);
}

// Of (variant, splits, 0).
cuda::TunedSteps read_choices(const std::vector<ChoiceTuple>& tuples) {
  cuda::TunedSteps steps;
  for (const ChoiceTuple& one : tuples) {
    steps.emplace_back();
    if (one) steps.back() = cuda::NamedChoice{std::get<0>(*one), std::get<1>(*one)};
  }
  return steps;
}

std::vector<std::vector<ChoiceTuple>> alternatives(cuda::Engine& self, std::int64_t height, std::int64_t width,
                                                   std::int64_t batch, int cuts) {
  const GilRelease release;
  std::vector<std::vector<ChoiceTuple>> all;
  for (const std::vector<cuda::NamedChoice>& step : self.alternatives({batch, height, width}, cuts)) {
    all.emplace_back();
    for (const cuda::NamedChoice& one : step) all.back().push_back({{one.name, one.splits, 0}});
  }
  return all;
}

std::vector<std::vector<double>> time_choices(cuda::Engine& self, std::int64_t height, std::int64_t width,
                                              std::int64_t batch, const std::vector<std::vector<ChoiceTuple>>& runs) {
  const GilRelease release;
  std::vector<cuda::TunedSteps> read;
  for (const std::vector<ChoiceTuple>& run : runs) read.push_back(read_choices(run));
  return self.time_choices({batch, height, width}, read);
}

void set_choices(cuda::Engine& self, std::int64_t height, std::int64_t width, std::int64_t batch,
                 const std::vector<ChoiceTuple>& choices) {
  const GilRelease release;
  self.set_choices({batch, height, width}, read_choices(choices));
}

void exclude(cuda::Engine& self, const std::vector<std::string>& variants) {
  const GilRelease release;
  self.exclude(variants);
}

// For tests: (stream, waits, fork, record, overlap) of each task, and the joins.
py::tuple schedule(const std::vector<double>& costs, const std::vector<std::vector<int>>& needs, int streams) {
  std::vector<engine::Task> tasks;
  for (std::size_t i = 0; i < costs.size(); ++i) tasks.push_back({costs[i], needs.at(i)});
  const engine::Schedule made = engine::schedule(tasks, streams);
  py::list slots;
  for (const engine::Slot& slot : made.slots) {
    slots.append(py::make_tuple(slot.stream, slot.waits, slot.fork, slot.record, slot.overlap));
  }
  return py::make_tuple(slots, made.joins);
}

int graph_count(cuda::Engine& self) {
  const GilRelease release;
  return self.graph_count();
}

std::string capture_failure(cuda::Engine& self) {
  const GilRelease release;
  return self.capture_failure();
}

void guard_buffers(cuda::Engine& self, bool on) {
  const GilRelease release;
  self.guard_buffers(on);
}

}  // namespace

void bind_cuda_engine(py::module_& module) {
  py::class_<cuda::Engine>(module, "Engine", py::module_local(),
                           "A network in one call on a CUDA device: a graph of steps with its weights.")
      .def(py::init(&make_engine), py::arg("buffers"), py::arg("steps"), py::arg("outputs"), py::kw_only(),
           py::arg("device").noconvert() = 0, py::arg("half").noconvert() = false)
      .def_static("deserialize", &engine_from_bytes, py::arg("data"), py::kw_only(), py::arg("device").noconvert() = 0,
                  py::arg("half").noconvert() = false)
      .def("run", &run, py::arg("x"), py::arg("cls"), py::arg("reg"), py::kw_only(), py::arg("stream"))
      .def("detect", &detect, py::arg("pictures"), py::kw_only(), py::arg("frame"), py::arg("resized"),
           py::arg("offsets"), py::arg("pad_value"), py::arg("swap_channels"), py::arg("mean"), py::arg("divisor"),
           py::arg("conf"), py::arg("top_k"), py::arg("multi_label"), py::arg("class_mask"), py::arg("iou"),
           py::arg("max_det"), py::arg("agnostic"), py::arg("detections"), py::arg("counts"), py::arg("stream"))
      .def("observe", &observe, py::arg("x"), py::arg("counts"), py::arg("largest"), py::arg("negatives"),
           py::kw_only(), py::arg("stream"))
      .def("channel_sums", &channel_sums, py::arg("x"), py::arg("sums"), py::kw_only(), py::arg("stream"))
      .def("plan", &plan, py::arg("height").noconvert(), py::arg("width").noconvert(), py::arg("batch").noconvert() = 1)
      .def("memory", &memory, py::arg("height").noconvert(), py::arg("width").noconvert(),
           py::arg("batch").noconvert() = 1)
      .def("time_steps", &time_steps, py::arg("height").noconvert(), py::arg("width").noconvert(),
           py::arg("batch").noconvert(), py::arg("rounds").noconvert())
      .def("alternatives", &alternatives, py::arg("height").noconvert(), py::arg("width").noconvert(),
           py::arg("batch").noconvert(), py::arg("cuts").noconvert())
      .def("time_choices", &time_choices, py::arg("height").noconvert(), py::arg("width").noconvert(),
           py::arg("batch").noconvert(), py::arg("runs"))
      .def("exclude", &exclude, py::arg("variants"))
      .def("set_choices", &set_choices, py::arg("height").noconvert(), py::arg("width").noconvert(),
           py::arg("batch").noconvert(), py::arg("choices"))
      .def_property_readonly("step_names", &cuda::Engine::step_names)
      .def_property_readonly("num_classes", &cuda::Engine::num_classes)
      .def_property_readonly("device", &cuda::Engine::device)
      .def_property_readonly("half", &cuda::Engine::half)
      .def_property_readonly("graph_count", &graph_count)
      .def_property_readonly("capture_failure", &capture_failure)
      .def_property_readonly_static("plan_version", [](const py::object&) { return cuda::kPlanVersion; })
      .def("_guard_buffers", &guard_buffers, py::arg("on"));
  module.def("_schedule", &schedule, py::arg("costs"), py::arg("needs"), py::arg("streams"));
}

}  // namespace yolonas::bindings
