// Single convolutions, for tests and measurements.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "bindings/cuda_map.h"
#include "bindings/gil.h"
#include "cuda/conv.h"
#include "cuda/device.h"

namespace py = pybind11;

namespace yolonas::bindings {
void bind_cuda_conv(py::module_& module);

namespace {

constexpr const char* kOp = "conv";

const float* numbers(const TensorView& view, const char* argument, std::int64_t count) {
  check_tensor(view, kOp, argument, DType::f32, {count}, "(K,)");
  return view.as<const float>();
}

// weight (K, k, k, C), or (2, 2, K, C) of a transposed convolution; pad: kernel / 2 where it is None.
void conv(const py::object& x, const py::object& weight, const py::object& multiplier, const py::object& offset,
          const py::object& residual, const py::object& y, int stride, std::optional<int> pad, bool relu,
          bool transposed, double residual_scale, int variant, int splits, const py::object& partial,
          const py::object& counters, std::uintptr_t stream) {
  CudaArgs args(kOp);
  std::vector<TensorArg> held;
  const auto take = [&](const py::object& object, const char* argument) {
    held.push_back(args.take(object, argument));
    return held.back().view();
  };
  const Map in(args, x, kOp, "x"), out(args, y, kOp, "y");
  std::optional<Map> added;
  if (!residual.is_none()) added.emplace(args, residual, kOp, "residual");
  cuda::ConvArgs a{};
  a.x = in.view;
  a.y = out.view;
  const TensorView w = take(weight, "weight");
  const DType dtype = in.arg.view().dtype;
  if (transposed) {
    check_tensor(w, kOp, "weight", dtype, {2, 2, a.y.channels, a.x.channels}, "(2, 2, K, C)");
  } else {
    check_tensor(w, kOp, "weight", dtype, {a.y.channels, -1, -1, a.x.channels}, "(K, k, k, C)");
    YN_CHECK(w.shape[1] == w.shape[2] && w.shape[1] >= 1, kOp, ": weight must have a square kernel, got ",
             shape_text(w));
  }
  a.weight = w.data;
  a.transposed = transposed;
  a.kernel = transposed ? 1 : static_cast<int>(w.shape[1]);
  a.stride = stride;
  a.pad = pad.value_or(a.kernel / 2);
  YN_CHECK(stride >= 1 && a.pad >= 0 && a.pad < a.kernel && (!transposed || stride == 1), kOp,
           ": stride must be positive, 1 of a transposed one, and pad in 0..", a.kernel - 1, ", got ", stride, " and ",
           a.pad);
  a.batch = in.side(0);
  a.in_h = in.side(1);
  a.in_w = in.side(2);
  a.out_h = (a.in_h + 2 * a.pad - a.kernel) / stride + 1;
  a.out_w = (a.in_w + 2 * a.pad - a.kernel) / stride + 1;
  const int by = transposed ? 2 : 1;
  out.check_sides(kOp, "y", a.batch, by * a.out_h, by * a.out_w);
  a.offset = numbers(take(offset, "offset"), "offset", a.out_n());
  if (a.x.elem == cuda::Elem::s8) a.multiplier = numbers(take(multiplier, "multiplier"), "multiplier", a.out_n());
  if (added) {
    added->check_sides(kOp, "residual", a.batch, by * a.out_h, by * a.out_w);
    YN_CHECK(added->view.channels == a.y.channels, kOp, ": residual must have the channels of y, got ",
             shape_text(added->arg.view()));
    a.residual = added->view;
  }
  a.relu = relu;
  a.residual_scale = static_cast<float>(residual_scale);
  const cuda::ConvChoice choice{variant, splits};
  cuda::ConvWorkspace workspace;
  if (const std::int64_t bytes = cuda::conv_partial_bytes(a, choice); bytes > 0) {
    const TensorView p = take(partial, "partial"), c = take(counters, "counters");
    YN_CHECK(p.is_contiguous() && p.dtype == DType::f32 && p.numel() * 4 >= bytes, kOp, ": partial must hold ", bytes,
             " bytes of float32, got ", shape_text(p));
    const std::int64_t wanted = cuda::conv_counters(a, choice);
    YN_CHECK(c.is_contiguous() && c.dtype == DType::s32 && c.numel() >= wanted, kOp, ": counters must be ", wanted,
             " zeros of int32, got ", shape_text(c));
    workspace = {p.data, c.as<unsigned>()};
  }
  const GilRelease release;
  const cuda::DeviceGuard guard(kOp, args.device());
  cuda::conv(a, choice, workspace, {as_stream(stream), false});
}

py::list variants(const std::string& dtype) {
  const bool known = dtype == "float32" || dtype == "float16" || dtype == "int8";
  YN_CHECK(known, "conv_variants: dtype must be float32, float16 or int8, got '", dtype, "'");
  int count = 0;
  const cuda::ConvVariant* all = cuda::conv_variants(dtype == "float32"   ? cuda::Elem::f32
                                                     : dtype == "float16" ? cuda::Elem::f16
                                                                          : cuda::Elem::s8,
                                                     &count);
  py::list names;
  for (int i = 0; i < count; ++i) names.append(py::str(all[i].name));
  return names;
}

}  // namespace

void bind_cuda_conv(py::module_& module) {
  module.def("_conv_variants", &variants, py::arg("dtype"));
  module.def("_conv", &conv, py::arg("x"), py::arg("weight"), py::arg("multiplier"), py::arg("offset"),
             py::arg("residual"), py::arg("y"), py::kw_only(), py::arg("stride") = 1, py::arg("pad") = py::none(),
             py::arg("relu") = false, py::arg("transposed") = false, py::arg("residual_scale") = 1.0,
             py::arg("variant") = 0, py::arg("splits") = 1, py::arg("partial") = py::none(),
             py::arg("counters") = py::none(), py::arg("stream"));
}

}  // namespace yolonas::bindings
