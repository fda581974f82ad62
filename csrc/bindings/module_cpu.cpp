// The module yolonas._cpu: every function checks its arguments, releases the GIL and calls one op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "bindings/gil.h"
#include "bindings/tensor_arg.h"
#include "core/parallel.h"
#include "cpu/conv2d.h"
#include "cpu/kernels.h"
#include "cpu/letterbox.h"
#include "cpu/match.h"
#include "cpu/post.h"
#include "cpu/quantize.h"
#include "cpu/winograd.h"

namespace py = pybind11;

namespace yolonas::bindings {

void bind_engine(py::module_& module);   // bind_engine.cpp
void bind_kernels(py::module_& module);  // bind_kernels.cpp

namespace {

std::vector<TensorArg> list_on_cpu(const py::sequence& objects, const char* op, const char* argument) {
  std::vector<TensorArg> list = tensor_list(objects, op, argument);
  for (const TensorArg& tensor : list) check_on_cpu(tensor, op, argument);
  return list;
}

std::unique_ptr<TensorArg> optional_on_cpu(const py::object& object, const char* op, const char* argument) {
  return object.is_none() ? nullptr : std::make_unique<TensorArg>(on_cpu(object, op, argument));
}

const TensorView* view_or_null(const std::unique_ptr<TensorArg>& tensor) { return tensor ? &tensor->view() : nullptr; }

void bind_letterbox(py::module_& module) {
  module.def(
      "letterbox",
      [](const py::object& image, const py::object& out, std::int64_t resized_h, std::int64_t resized_w,
         std::int64_t top, std::int64_t left, int pad_value, bool swap_channels, bool hwc,
         const std::array<double, 3>& mean, const std::array<double, 3>& divisor) {
        const TensorArg image_arg = on_cpu(image, "letterbox", "image"), out_arg = on_cpu(out, "letterbox", "out");
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
        cpu::letterbox(image_arg.view(), out_arg.view(), params);
      },
      py::arg("image"), py::arg("out"), py::kw_only(), py::arg("resized_h"), py::arg("resized_w"), py::arg("top"),
      py::arg("left"), py::arg("pad_value"), py::arg("swap_channels"), py::arg("hwc"), py::arg("mean"),
      py::arg("divisor"));
}

void bind_post(py::module_& module) {
  module.def(
      "decode",
      [](const py::sequence& cls, const py::sequence& reg, const std::vector<double>& strides, bool channels_last,
         const py::object& boxes, const py::object& scores) {
        const auto cls_args = list_on_cpu(cls, "decode", "class output"),
                   reg_args = list_on_cpu(reg, "decode", "box output");
        const TensorArg boxes_arg = on_cpu(boxes, "decode", "boxes"), scores_arg = on_cpu(scores, "decode", "scores");
        const GilRelease release;
        const HeadOutputs heads = check_heads("decode", views(cls_args), views(reg_args), strides, channels_last);
        cpu::decode(heads, boxes_arg.view(), scores_arg.view());
      },
      py::arg("cls"), py::arg("reg"), py::arg("strides"), py::kw_only(), py::arg("channels_last"), py::arg("boxes"),
      py::arg("scores"));

  module.def(
      "decode_candidates",
      [](const py::sequence& cls, const py::sequence& reg, const std::vector<double>& strides, bool channels_last,
         double conf, std::int64_t top_k, bool multi_label, const py::object& class_mask, const py::object& boxes,
         const py::object& scores, const py::object& classes, const py::object& counts) {
        const char* op = "decode_candidates";
        const auto cls_args = list_on_cpu(cls, op, "class output"), reg_args = list_on_cpu(reg, op, "box output");
        const auto mask = optional_on_cpu(class_mask, op, "class_mask");
        const TensorArg boxes_arg = on_cpu(boxes, op, "boxes"), scores_arg = on_cpu(scores, op, "scores"),
                        classes_arg = on_cpu(classes, op, "classes"), counts_arg = on_cpu(counts, op, "counts");
        const GilRelease release;
        const HeadOutputs heads = check_heads(op, views(cls_args), views(reg_args), strides, channels_last);
        CandidateParams params{static_cast<float>(conf), top_k, multi_label, nullptr};
        check_candidate_params(op, params, heads.classes, view_or_null(mask));
        if (mask) params.class_mask = mask->view().as<const std::uint8_t>();
        cpu::decode_candidates(heads, params, boxes_arg.view(), scores_arg.view(), classes_arg.view(),
                               counts_arg.view());
      },
      py::arg("cls"), py::arg("reg"), py::arg("strides"), py::kw_only(), py::arg("channels_last"), py::arg("conf"),
      py::arg("top_k"), py::arg("multi_label"), py::arg("class_mask"), py::arg("boxes"), py::arg("scores"),
      py::arg("classes"), py::arg("counts"));

  module.def(
      "nms_candidates",
      [](const py::object& boxes, const py::object& scores, const py::object& classes,
         const py::object& candidate_counts, double iou, std::int64_t max_det, bool agnostic,
         const py::object& detections, const py::object& counts) {
        const char* op = "nms_candidates";
        const TensorArg boxes_arg = on_cpu(boxes, op, "boxes"), scores_arg = on_cpu(scores, op, "scores"),
                        classes_arg = on_cpu(classes, op, "classes"),
                        candidates_arg = on_cpu(candidate_counts, op, "counts"),
                        detections_arg = on_cpu(detections, op, "detections"),
                        counts_arg = on_cpu(counts, op, "result counts");
        const GilRelease release;
        cpu::nms_candidates(boxes_arg.view(), scores_arg.view(), classes_arg.view(), candidates_arg.view(),
                            {static_cast<float>(iou), max_det, agnostic}, detections_arg.view(), counts_arg.view());
      },
      py::arg("boxes"), py::arg("scores"), py::arg("classes"), py::arg("candidate_counts"), py::kw_only(),
      py::arg("iou"), py::arg("max_det"), py::arg("agnostic"), py::arg("detections"), py::arg("counts"));

  module.def(
      "batched_nms",
      [](const py::object& boxes, const py::object& scores, double conf, double iou, std::int64_t top_k,
         std::int64_t max_det, bool multi_label, bool agnostic, const py::object& class_mask,
         const py::object& detections, const py::object& counts) {
        const char* op = "batched_nms";
        const TensorArg boxes_arg = on_cpu(boxes, op, "boxes"), scores_arg = on_cpu(scores, op, "scores"),
                        detections_arg = on_cpu(detections, op, "detections"),
                        counts_arg = on_cpu(counts, op, "counts");
        const auto mask = optional_on_cpu(class_mask, op, "class_mask");
        const GilRelease release;
        const TensorView& score_view = scores_arg.view();
        CandidateParams params{static_cast<float>(conf), top_k, multi_label, nullptr};
        check_candidate_params(op, params, score_view.rank == 3 ? score_view.shape[2] : 0, view_or_null(mask));
        if (mask) params.class_mask = mask->view().as<const std::uint8_t>();
        cpu::batched_nms(boxes_arg.view(), score_view, params, {static_cast<float>(iou), max_det, agnostic},
                         detections_arg.view(), counts_arg.view());
      },
      py::arg("boxes"), py::arg("scores"), py::kw_only(), py::arg("conf"), py::arg("iou"), py::arg("top_k"),
      py::arg("max_det"), py::arg("multi_label"), py::arg("agnostic"), py::arg("class_mask"), py::arg("detections"),
      py::arg("counts"));
}

void bind_match(py::module_& module) {
  module.def(
      "match_order",
      [](const py::object& scores, const py::object& classes, std::int64_t max_det, const py::object& order,
         const py::object& rank) {
        const char* op = "match_order";
        const TensorArg scores_arg = on_cpu(scores, op, "scores"), classes_arg = on_cpu(classes, op, "classes"),
                        order_arg = on_cpu(order, op, "order"), rank_arg = on_cpu(rank, op, "rank");
        const GilRelease release;
        return cpu::match_order(scores_arg.view(), classes_arg.view(), max_det, order_arg.view(), rank_arg.view());
      },
      py::arg("scores"), py::arg("classes"), py::kw_only(), py::arg("max_det"), py::arg("order"), py::arg("rank"));
  module.def(
      "match_detections",
      [](const py::object& boxes, const py::object& classes, const py::object& order, const py::object& truth_boxes,
         const py::object& truth_classes, const py::object& truth_areas, const py::object& truth_crowd,
         const py::object& thresholds, const py::object& area_ranges, const py::object& matched,
         const py::object& ignored, const py::object& truth, const py::object& truth_ignored) {
        const char* op = "match_detections";
        const TensorArg boxes_arg = on_cpu(boxes, op, "boxes"), classes_arg = on_cpu(classes, op, "classes"),
                        order_arg = on_cpu(order, op, "order"),
                        truth_boxes_arg = on_cpu(truth_boxes, op, "truth_boxes"),
                        truth_classes_arg = on_cpu(truth_classes, op, "truth_classes"),
                        truth_areas_arg = on_cpu(truth_areas, op, "truth_areas"),
                        truth_crowd_arg = on_cpu(truth_crowd, op, "truth_crowd"),
                        thresholds_arg = on_cpu(thresholds, op, "thresholds"),
                        area_ranges_arg = on_cpu(area_ranges, op, "area_ranges"),
                        matched_arg = on_cpu(matched, op, "matched"), ignored_arg = on_cpu(ignored, op, "ignored"),
                        truth_arg = on_cpu(truth, op, "truth"),
                        truth_ignored_arg = on_cpu(truth_ignored, op, "truth_ignored");
        const GilRelease release;
        cpu::match_detections(
            {boxes_arg.view(), classes_arg.view(), order_arg.view(), truth_boxes_arg.view(), truth_classes_arg.view(),
             truth_areas_arg.view(), truth_crowd_arg.view(), thresholds_arg.view(), area_ranges_arg.view()},
            {matched_arg.view(), ignored_arg.view(), truth_arg.view(), truth_ignored_arg.view()});
      },
      py::arg("boxes"), py::arg("classes"), py::arg("order"), py::arg("truth_boxes"), py::arg("truth_classes"),
      py::arg("truth_areas"), py::arg("truth_crowd"), py::kw_only(), py::arg("thresholds"), py::arg("area_ranges"),
      py::arg("matched"), py::arg("ignored"), py::arg("truth"), py::arg("truth_ignored"));
}

void bind_quantize(py::module_& module) {
  module.def(
      "fake_quantize",
      [](const py::object& x, const py::object& scale, const py::object& out, int axis, int quant_min, int quant_max) {
        const char* op = "fake_quantize";
        const TensorArg x_arg = on_cpu(x, op, "x"), scale_arg = on_cpu(scale, op, "scale"),
                        out_arg = on_cpu(out, op, "out");
        const GilRelease release;
        cpu::fake_quantize(x_arg.view(), scale_arg.view(), {axis, quant_min, quant_max}, out_arg.view());
      },
      py::arg("x"), py::arg("scale"), py::arg("out"), py::kw_only(), py::arg("axis"), py::arg("quant_min"),
      py::arg("quant_max"));
  module.def(
      "fake_quantize_backward",
      [](const py::object& grad, const py::object& x, const py::object& scale, const py::object& out, int axis,
         int quant_min, int quant_max) {
        const char* op = "fake_quantize_backward";
        const TensorArg grad_arg = on_cpu(grad, op, "grad"), x_arg = on_cpu(x, op, "x"),
                        scale_arg = on_cpu(scale, op, "scale"), out_arg = on_cpu(out, op, "out");
        const GilRelease release;
        cpu::fake_quantize_backward(grad_arg.view(), x_arg.view(), scale_arg.view(), {axis, quant_min, quant_max},
                                    out_arg.view());
      },
      py::arg("grad"), py::arg("x"), py::arg("scale"), py::arg("out"), py::kw_only(), py::arg("axis"),
      py::arg("quant_min"), py::arg("quant_max"));
}

void bind_conv2d(py::module_& module) {
  module.def(
      "conv2d_bias_act",
      [](const py::object& x, const py::object& weight, const py::object& bias, const py::object& residual,
         const py::object& out, std::int64_t stride, std::int64_t padding, bool relu, double residual_scale) {
        const char* op = "conv2d_bias_act";
        const TensorArg x_arg = on_cpu(x, op, "x"), weight_arg = on_cpu(weight, op, "weight"),
                        out_arg = on_cpu(out, op, "out");
        const auto bias_arg = optional_on_cpu(bias, op, "bias"),
                   residual_arg = optional_on_cpu(residual, op, "residual");
        const GilRelease release;
        cpu::conv2d_bias_act(x_arg.view(), weight_arg.view(), view_or_null(bias_arg), view_or_null(residual_arg),
                             {stride, padding, relu, static_cast<float>(residual_scale)}, out_arg.view());
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"), py::arg("out"), py::kw_only(),
      py::arg("stride"), py::arg("padding"), py::arg("relu"), py::arg("residual_scale"));
  module.def(
      "conv2d_s8",
      [](const py::object& x, const py::object& weight, const py::object& multiplier, const py::object& offset,
         const py::object& residual, const py::object& out, std::int64_t stride, std::int64_t padding, bool relu,
         double residual_multiplier, bool unsigned_input) {
        const char* op = "conv2d_s8";
        const TensorArg x_arg = on_cpu(x, op, "x"), weight_arg = on_cpu(weight, op, "weight"),
                        multiplier_arg = on_cpu(multiplier, op, "multiplier"),
                        offset_arg = on_cpu(offset, op, "offset"), out_arg = on_cpu(out, op, "out");
        const auto residual_arg = optional_on_cpu(residual, op, "residual");
        const GilRelease release;
        cpu::conv2d_s8(
            x_arg.view(), weight_arg.view(), multiplier_arg.view(), offset_arg.view(), view_or_null(residual_arg),
            {stride, padding, relu, static_cast<float>(residual_multiplier), unsigned_input}, out_arg.view());
      },
      py::arg("x"), py::arg("weight"), py::arg("multiplier"), py::arg("offset"), py::arg("residual"), py::arg("out"),
      py::kw_only(), py::arg("stride"), py::arg("padding"), py::arg("relu"), py::arg("residual_multiplier"),
      py::arg("unsigned_input"));
  module.def(
      "conv2d_winograd",
      [](const py::object& x, const py::object& weight, const py::object& bias, const py::object& residual,
         const py::object& out, std::int64_t stride, bool relu, double residual_scale) {
        const char* op = "conv2d_winograd";
        const TensorArg x_arg = on_cpu(x, op, "x"), weight_arg = on_cpu(weight, op, "weight"),
                        out_arg = on_cpu(out, op, "out");
        const auto bias_arg = optional_on_cpu(bias, op, "bias"),
                   residual_arg = optional_on_cpu(residual, op, "residual");
        const GilRelease release;
        cpu::conv2d_winograd(x_arg.view(), weight_arg.view(), view_or_null(bias_arg), view_or_null(residual_arg),
                             {stride, 1, relu, static_cast<float>(residual_scale)}, out_arg.view());
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"), py::arg("out"), py::kw_only(),
      py::arg("stride"), py::arg("relu"), py::arg("residual_scale"));
  module.def(
      "winograd_error",
      [](const py::object& weight, std::int64_t stride) {
        const TensorArg weight_arg = on_cpu(weight, "winograd_error", "weight");
        const GilRelease release;
        return cpu::winograd_error(weight_arg.view(), stride);
      },
      py::arg("weight"), py::kw_only(), py::arg("stride"));
}

}  // namespace
}  // namespace yolonas::bindings

PYBIND11_MODULE(_cpu, module) {
  using namespace yolonas::bindings;
  module.doc() = "yolonas: native CPU ops";
  register_exceptions();
  bind_letterbox(module);
  bind_post(module);
  bind_match(module);
  bind_quantize(module);
  bind_conv2d(module);
  bind_engine(module);
  bind_kernels(module);
  module.def("isa", []() { return yolonas::cpu::kernels().isa; });
  module.def("_use_isa", [](const std::string& name) { yolonas::cpu::use_isa(name.c_str()); }, py::arg("name"));
  module.def("available_isas", []() { return yolonas::cpu::available_isas(); });
  module.def("num_threads", []() { return yolonas::num_threads(); });
  module.def("set_num_threads", &yolonas::set_num_threads, py::arg("count"));
  module.def("compiler", []() {
#if defined(__VERSION__)
    return __VERSION__;
#else
    return "unknown";
#endif
  });
}
