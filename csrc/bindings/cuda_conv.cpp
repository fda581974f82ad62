// Single convolutions, for tests and measurements.
#include <pybind11/pybind11.h>

#include "bindings/cuda_args.h"
#include "bindings/gil.h"
#include "cuda/conv.h"
#include "cuda/device.h"

namespace py = pybind11;

namespace yolonas::bindings {
void bind_cuda_conv(py::module_& module);

namespace {

constexpr const char* kOp = "conv";

cuda::Elem elem_of(const TensorView& view, const char* argument) {
  YN_CHECK_TYPE(view.dtype == DType::f32 || view.dtype == DType::f16 || view.dtype == DType::s8, kOp, ": ", argument,
                " must be float32, float16 or int8, got ", name(view.dtype));
  return view.dtype == DType::f32 ? cuda::Elem::f32 : view.dtype == DType::f16 ? cuda::Elem::f16 : cuda::Elem::s8;
}

// (N, H, W, C), channels of a contiguous array.
cuda::MapView map_of(const TensorView& view, const char* argument) {
  YN_CHECK(view.rank == 4, kOp, ": ", argument, " must have shape (N, H, W, C), got ", shape_text(view));
  std::int64_t pixel = view.shape[3];
  for (int axis = 2; axis >= 0; --axis) {
    if (view.shape[static_cast<std::size_t>(axis)] > 1) {
      std::int64_t pixels = 1;
      for (int inner = 2; inner > axis; --inner) pixels *= view.shape[static_cast<std::size_t>(inner)];
      pixel = view.stride[static_cast<std::size_t>(axis)] / pixels;
      break;
    }
  }
  std::int64_t pixels = 1;
  bool even = view.stride[3] == 1 || view.shape[3] == 1;
  for (std::size_t axis = 3; axis-- > 0;) {
    even = even && (view.shape[axis] <= 1 || view.stride[axis] == pixel * pixels);
    pixels *= view.shape[axis];
  }
  YN_CHECK(even, kOp, ": ", argument, " must be channels of a contiguous array (N, H, W, C), got ", shape_text(view));
  return {view.data, elem_of(view, argument), static_cast<int>(view.shape[3]), static_cast<int>(pixel)};
}

const float* numbers(const TensorView& view, const char* argument, std::int64_t count) {
  check_tensor(view, kOp, argument, DType::f32, {count}, "(K,)");
  return view.as<const float>();
}

void conv(const py::object& x, const py::object& weight, const py::object& multiplier, const py::object& offset,
          const py::object& residual, const py::object& y, int stride, bool relu, bool transposed,
          double residual_scale, int variant, int splits, const py::object& partial, const py::object& counters,
          std::uintptr_t stream) {
  CudaArgs args(kOp);
  std::vector<TensorArg> held;
  const auto take = [&](const py::object& object, const char* argument) {
    held.push_back(args.take(object, argument));
    return held.back().view();
  };
  cuda::ConvArgs a{};
  a.x = map_of(take(x, "x"), "x");
  const TensorView in = held.back().view();
  a.y = map_of(take(y, "y"), "y");
  const TensorView out = held.back().view();
  const TensorView w = take(weight, "weight");  // (K, k, k, C), or (2, 2, K, C) transposed
  YN_CHECK(w.rank == 4 && w.is_contiguous() && elem_of(w, "weight") == a.x.elem && w.shape[3] == a.x.channels, kOp,
           ": weight must be contiguous, as x, with its channels last, got ", shape_text(w));
  a.weight = w.data;
  a.transposed = transposed;
  a.kernel = transposed ? 1 : static_cast<int>(w.shape[1]);
  a.stride = stride;
  a.pad = a.kernel / 2;
  a.batch = static_cast<int>(in.shape[0]);
  a.in_h = static_cast<int>(in.shape[1]);
  a.in_w = static_cast<int>(in.shape[2]);
  const int by = transposed ? 2 : 1;
  a.out_h = transposed ? a.in_h : (a.in_h + 2 * a.pad - a.kernel) / stride + 1;
  a.out_w = transposed ? a.in_w : (a.in_w + 2 * a.pad - a.kernel) / stride + 1;
  const std::int64_t taps = transposed ? w.shape[0] * w.shape[1] : w.shape[1] * w.shape[2];
  YN_CHECK(taps == (transposed ? 4 : a.kernel * a.kernel) && w.shape[transposed ? 2 : 0] == a.y.channels, kOp,
           ": weight must fit y, got ", shape_text(w));
  YN_CHECK(out.shape[0] == in.shape[0] && out.shape[1] == a.out_h * by && out.shape[2] == a.out_w * by, kOp,
           ": y must have ", a.out_h * by, " x ", a.out_w * by, " pixels, got ", shape_text(out));
  a.offset = numbers(take(offset, "offset"), "offset", a.out_n());
  if (a.x.elem == cuda::Elem::s8) a.multiplier = numbers(take(multiplier, "multiplier"), "multiplier", a.out_n());
  if (!residual.is_none()) {
    a.residual = map_of(take(residual, "residual"), "residual");
    const TensorView r = held.back().view();
    YN_CHECK(r.shape == out.shape, kOp, ": residual must have the shape of y, got ", shape_text(r));
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
             py::arg("residual"), py::arg("y"), py::kw_only(), py::arg("stride") = 1, py::arg("relu") = false,
             py::arg("transposed") = false, py::arg("residual_scale") = 1.0, py::arg("variant") = 0,
             py::arg("splits") = 1, py::arg("partial") = py::none(), py::arg("counters") = py::none(),
             py::arg("stream"));
}

}  // namespace yolonas::bindings
