// The kernels between head outputs and detections, for tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>

#include "bindings/cuda_map.h"
#include "bindings/gil.h"
#include "cuda/detect.h"
#include "cuda/device.h"

namespace py = pybind11;

namespace yolonas::bindings {
void bind_cuda_detect(py::module_& module);

namespace {

constexpr const char* kOp = "detect";

void bind_detect(py::module_& module) {
  module.def(
      "_detect_workspace_bytes",
      [](const std::vector<std::pair<int, int>>& sizes, int batch, int classes, std::int64_t top_k, bool multi_label) {
        cuda::DetectArgs args;
        for (const auto& [h, w] : sizes) args.levels.push_back({{}, {}, h, w, 1.0f});
        args.batch = batch;
        args.classes = classes;
        args.candidates.top_k = top_k;
        args.candidates.multi_label = multi_label;
        return cuda::detect_workspace_bytes(args);
      },
      py::arg("sizes"), py::arg("batch"), py::arg("classes"), py::kw_only(), py::arg("top_k"), py::arg("multi_label"),
      "Bytes of workspace for _detect with levels of these (h, w).");

  module.def(
      "_detect",
      [](const py::sequence& cls, const py::sequence& reg, const std::vector<double>& strides, double conf,
         std::int64_t top_k, bool multi_label, const std::optional<py::object>& class_mask, double iou,
         std::int64_t max_det, bool agnostic, const py::object& detections, const py::object& counts,
         const py::object& workspace, bool prepared, std::uintptr_t stream) {
        CudaArgs tensors(kOp);
        const auto take_maps = [&](const py::sequence& objects, const char* argument) {
          std::vector<Map> maps;
          for (const py::handle& object : objects) {
            maps.emplace_back(tensors, object, kOp, argument);
            maps.back().check_type(kOp, argument, cuda::Elem::f32);
          }
          return maps;
        };
        const std::vector<Map> cls_args = take_maps(cls, "class output"), reg_args = take_maps(reg, "box output");
        const TensorArg detections_arg = tensors.take(detections, "detections"),
                        counts_arg = tensors.take(counts, "counts"),
                        workspace_arg = tensors.take(workspace, "workspace");
        std::optional<TensorArg> mask_arg;
        if (class_mask) mask_arg.emplace(tensors.take(*class_mask, "class_mask"));
        const GilRelease release;
        YN_CHECK(!cls_args.empty() && cls_args.size() == reg_args.size() && cls_args.size() == strides.size(), kOp,
                 ": class outputs, box outputs and strides must be lists of the same length >= 1, got ",
                 cls_args.size(), ", ", reg_args.size(), " and ", strides.size());
        cuda::DetectArgs args;
        for (std::size_t i = 0; i < cls_args.size(); ++i) {
          const Map &scores = cls_args[i], &boxes = reg_args[i];
          if (i == 0) {
            args.batch = scores.side(0);
            args.classes = scores.view.channels;
          }
          scores.check_sides(kOp, "class output", args.batch, scores.side(1), scores.side(2));
          boxes.check_sides(kOp, "box output", args.batch, scores.side(1), scores.side(2));
          args.levels.push_back(
              {scores.view, boxes.view, scores.side(1), scores.side(2), static_cast<float>(strides[i])});
        }
        args.candidates.conf = static_cast<float>(conf);
        args.candidates.top_k = top_k;
        args.candidates.multi_label = multi_label;
        const TensorView* mask = mask_arg ? &mask_arg->view() : nullptr;
        check_candidate_params(kOp, args.candidates, args.classes, mask);
        if (mask) args.candidates.class_mask = mask->as<const std::uint8_t>();
        args.nms = {static_cast<float>(iou), max_det, agnostic};
        check_nms_params(kOp, args.nms);
        check_output(detections_arg.view(), kOp, "detections", DType::f32, {args.batch, max_det, 6}, "(N, max_det, 6)");
        check_output(counts_arg.view(), kOp, "counts", DType::s64, {args.batch}, "(N,)");
        check_output(workspace_arg.view(), kOp, "workspace", DType::u8, {-1}, "(bytes,)");
        args.detections = detections_arg.view().as<float>();
        args.counts = counts_arg.view().as<std::int64_t>();
        args.workspace = workspace_arg.view().data;
        args.prepared = prepared;
        const std::int64_t needed = cuda::detect_workspace_bytes(args);
        YN_CHECK(workspace_arg.view().numel() >= needed, kOp, ": workspace must have at least ", needed, " bytes, got ",
                 workspace_arg.view().numel());
        const cuda::DeviceGuard guard(kOp, tensors.device());
        cuda::detect(args, {as_stream(stream), false});
      },
      py::arg("cls"), py::arg("reg"), py::arg("strides"), py::kw_only(), py::arg("conf"), py::arg("top_k"),
      py::arg("multi_label"), py::arg("class_mask"), py::arg("iou"), py::arg("max_det"), py::arg("agnostic"),
      py::arg("detections"), py::arg("counts"), py::arg("workspace"), py::arg("prepared") = false, py::arg("stream"),
      "Head outputs (N, h, w, C), perhaps slices of more channels, to detections (N, max_det, 6) and counts (N,).");
}

}  // namespace

void bind_cuda_detect(py::module_& module) { bind_detect(module); }

}  // namespace yolonas::bindings
