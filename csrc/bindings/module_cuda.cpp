// The module yolonas._cuda: every function checks its arguments, makes their device current, releases the GIL and
// queues one op on the given stream. Importing it needs no driver, and neither do the functions about the build.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "bindings/cuda_args.h"
#include "bindings/gil.h"
#include "cuda/conv2d.h"
#include "cuda/device.h"
#include "cuda/letterbox.h"
#include "cuda/post.h"
#include "cuda/quantize.h"

namespace py = pybind11;

namespace yolonas::bindings {
void bind_cuda_conv(py::module_& module);    // cuda_conv.cpp
void bind_cuda_maps(py::module_& module);    // cuda_maps.cpp
void bind_cuda_detect(py::module_& module);  // cuda_detect.cpp
void bind_cuda_engine(py::module_& module);  // cuda_engine.cpp

namespace {

void bind_letterbox(py::module_& module) {
  module.def(
      "letterbox",
      [](const py::object& image, const py::object& out, std::int64_t resized_h, std::int64_t resized_w,
         std::int64_t top, std::int64_t left, int pad_value, bool swap_channels, bool hwc,
         const std::array<double, 3>& mean, const std::array<double, 3>& divisor, std::uintptr_t stream) {
        CudaArgs args("letterbox");
        const TensorArg image_arg = args.take(image, "image"), out_arg = args.take(out, "out");
        LetterboxParams params;
        params.resized_h = resized_h;
        params.resized_w = resized_w;
        params.top = top;
        params.left = left;
        params.pad_value = pad_value;
        params.swap_channels = swap_channels;
        params.hwc = hwc;
        for (int c = 0; c < 3; ++c) {
          params.mean[c] = static_cast<float>(mean[static_cast<std::size_t>(c)]);
          params.divisor[c] = static_cast<float>(divisor[static_cast<std::size_t>(c)]);
        }
        const GilRelease release;
        const cuda::DeviceGuard guard("letterbox", args.device());
        cuda::letterbox(image_arg.view(), out_arg.view(), params, as_stream(stream));
      },
      py::arg("image"), py::arg("out"), py::kw_only(), py::arg("resized_h"), py::arg("resized_w"), py::arg("top"),
      py::arg("left"), py::arg("pad_value"), py::arg("swap_channels"), py::arg("hwc"), py::arg("mean"),
      py::arg("divisor"), py::arg("stream"));
}

void bind_post(py::module_& module) {
  module.def(
      "decode",
      [](const py::sequence& cls, const py::sequence& reg, const std::vector<double>& strides, bool channels_last,
         const py::object& boxes, const py::object& scores, std::uintptr_t stream) {
        CudaArgs args("decode");
        const auto cls_args = args.take_list(cls, "class output"), reg_args = args.take_list(reg, "box output");
        const TensorArg boxes_arg = args.take(boxes, "boxes"), scores_arg = args.take(scores, "scores");
        const GilRelease release;
        const HeadOutputs heads = check_heads("decode", views(cls_args), views(reg_args), strides, channels_last);
        const cuda::DeviceGuard guard("decode", args.device());
        cuda::decode(heads, boxes_arg.view(), scores_arg.view(), as_stream(stream));
      },
      py::arg("cls"), py::arg("reg"), py::arg("strides"), py::kw_only(), py::arg("channels_last"), py::arg("boxes"),
      py::arg("scores"), py::arg("stream"));

  module.def("nms_workspace_bytes", &cuda::nms_workspace_bytes, py::arg("candidates"),
             "Bytes of workspace for one picture; NotImplementedError for more candidates than nms_candidates takes.");

  module.def(
      "nms_candidates",
      [](const py::object& boxes, const py::object& scores, const py::object& classes,
         const py::object& candidate_counts, double iou, std::int64_t max_det, bool agnostic,
         const py::object& detections, const py::object& counts, const py::object& workspace, std::uintptr_t stream) {
        const char* op = "nms_candidates";
        CudaArgs args(op);
        const TensorArg boxes_arg = args.take(boxes, "boxes"), scores_arg = args.take(scores, "scores"),
                        classes_arg = args.take(classes, "classes"),
                        candidates_arg = args.take(candidate_counts, "counts"),
                        detections_arg = args.take(detections, "detections"),
                        counts_arg = args.take(counts, "result counts"),
                        workspace_arg = args.take(workspace, "workspace");
        const GilRelease release;
        const cuda::DeviceGuard guard(op, args.device());
        cuda::nms_candidates(boxes_arg.view(), scores_arg.view(), classes_arg.view(), candidates_arg.view(),
                             {static_cast<float>(iou), max_det, agnostic}, detections_arg.view(), counts_arg.view(),
                             workspace_arg.view(), as_stream(stream));
      },
      py::arg("boxes"), py::arg("scores"), py::arg("classes"), py::arg("candidate_counts"), py::kw_only(),
      py::arg("iou"), py::arg("max_det"), py::arg("agnostic"), py::arg("detections"), py::arg("counts"),
      py::arg("workspace"), py::arg("stream"));
}

void conv2d_bias_act(const py::object& x, const py::object& weight, const py::object& bias, const py::object& residual,
                     const py::object& out, std::int64_t stride, std::int64_t padding, bool relu, double residual_scale,
                     std::uintptr_t stream) {
  const char* op = "conv2d_bias_act";
  CudaArgs args(op);
  const TensorArg x_arg = args.take(x, "x"), weight_arg = args.take(weight, "weight");
  std::optional<TensorArg> bias_arg, residual_arg;
  if (!bias.is_none()) bias_arg.emplace(args.take(bias, "bias"));
  if (!residual.is_none()) residual_arg.emplace(args.take(residual, "residual"));
  const TensorArg out_arg = args.take(out, "out");
  const GilRelease release;
  const cuda::DeviceGuard guard(op, args.device());
  cuda::conv2d(x_arg.view(), weight_arg.view(), bias_arg ? &bias_arg->view() : nullptr,
               residual_arg ? &residual_arg->view() : nullptr,
               {stride, padding, relu, static_cast<float>(residual_scale)}, out_arg.view(), as_stream(stream));
}

void bind_conv2d(py::module_& module) {
  module.def("conv2d_bias_act", conv2d_bias_act, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"),
             py::arg("out"), py::kw_only(), py::arg("stride"), py::arg("padding"), py::arg("relu"),
             py::arg("residual_scale"), py::arg("stream"));
}

void bind_quantize(py::module_& module) {
  module.def(
      "fake_quantize",
      [](const py::object& x, const py::object& scale, const py::object& out, int axis, int quant_min, int quant_max,
         std::uintptr_t stream) {
        const char* op = "fake_quantize";
        CudaArgs args(op);
        const TensorArg x_arg = args.take(x, "x"), scale_arg = args.take(scale, "scale"),
                        out_arg = args.take(out, "out");
        const GilRelease release;
        const cuda::DeviceGuard guard(op, args.device());
        cuda::fake_quantize(x_arg.view(), scale_arg.view(), {axis, quant_min, quant_max}, out_arg.view(),
                            as_stream(stream));
      },
      py::arg("x"), py::arg("scale"), py::arg("out"), py::kw_only(), py::arg("axis"), py::arg("quant_min"),
      py::arg("quant_max"), py::arg("stream"));
  module.def(
      "fake_quantize_backward",
      [](const py::object& grad, const py::object& x, const py::object& scale, const py::object& out, int axis,
         int quant_min, int quant_max, std::uintptr_t stream) {
        const char* op = "fake_quantize_backward";
        CudaArgs args(op);
        const TensorArg grad_arg = args.take(grad, "grad"), x_arg = args.take(x, "x"),
                        scale_arg = args.take(scale, "scale"), out_arg = args.take(out, "out");
        const GilRelease release;
        const cuda::DeviceGuard guard(op, args.device());
        cuda::fake_quantize_backward(grad_arg.view(), x_arg.view(), scale_arg.view(), {axis, quant_min, quant_max},
                                     out_arg.view(), as_stream(stream));
      },
      py::arg("grad"), py::arg("x"), py::arg("scale"), py::arg("out"), py::kw_only(), py::arg("axis"),
      py::arg("quant_min"), py::arg("quant_max"), py::arg("stream"));
}

}  // namespace
}  // namespace yolonas::bindings

PYBIND11_MODULE(_cuda, module) {
  using namespace yolonas::bindings;
  module.doc() = "yolonas: native CUDA ops";
  register_exceptions();
  bind_letterbox(module);
  bind_post(module);
  bind_quantize(module);
  bind_conv2d(module);
  bind_cuda_conv(module);
  bind_cuda_maps(module);
  bind_cuda_detect(module);
  bind_cuda_engine(module);
  module.def("architectures", &yolonas::cuda::architectures, "Architectures compiled for, e.g. ['sm_80', 'sm_90'].");
  module.def("device_count", &yolonas::cuda::device_count, "Usable devices; 0 without a driver.");
  module.def("runtime_version", &yolonas::cuda::runtime_version, "Version of the CUDA runtime built in, e.g. '13.0'.");
  module.def("driver_version", []() -> py::object {
    const std::string version = yolonas::cuda::driver_version();
    return version.empty() ? py::object(py::none()) : py::object(py::str(version));
  });
}
