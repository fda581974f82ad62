// Single kernels on feature maps, for tests: on channel ranges of wider buffers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/cuda_args.h"
#include "bindings/gil.h"
#include "cuda/conv_f32.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "ops/letterbox.h"

namespace py = pybind11;

namespace yolonas::bindings {
void bind_cuda_maps(py::module_& module);

namespace {

constexpr std::int64_t kBins = 1 << 15;  // of observe_map
constexpr std::int64_t kMostElements = 0x7fffffff;

// Pictures (N, H, W, C) on a device whose pixels lie evenly in raster order.
struct Map {
  Map(CudaArgs& args, const py::handle& object, const char* op, const char* argument)
      : arg(args.take(object, argument)) {
    const TensorView& tensor = arg.view();
    const auto& [n, h, w, c] = sides(tensor);
    view.channels = static_cast<int>(c);
    const bool empty = tensor.numel() == 0;  // such a tensor may have any strides
    const std::int64_t pixel = empty   ? c
                               : w > 1 ? tensor.stride[2]
                               : h > 1 ? tensor.stride[1]
                               : n > 1 ? tensor.stride[0]
                                       : c;
    const bool typed = tensor.dtype == DType::f32 || tensor.dtype == DType::f16 || tensor.dtype == DType::s8;
    const bool even = (tensor.stride[3] == 1 || c == 1) && (h == 1 || tensor.stride[1] == w * pixel) &&
                      (n == 1 || tensor.stride[0] == h * w * pixel);
    YN_CHECK(typed && tensor.rank == 4 && (empty || even) && pixel >= c && pixel <= kMostElements, op, ": ", argument,
             " must be float32, float16 or int8 of shape (N, H, W, C), channels of a contiguous tensor, got ",
             name(tensor.dtype), " ", shape_text(tensor));
    for (const std::int64_t side : {n, h, w}) {
      YN_CHECK(side <= kMostElements, op, ": ", argument, " has a side that is too long, got ", shape_text(tensor));
    }
    view.data = tensor.data;
    view.elem = tensor.dtype == DType::f32   ? cuda::Elem::f32
                : tensor.dtype == DType::f16 ? cuda::Elem::f16
                                             : cuda::Elem::s8;
    view.pixel = static_cast<int>(pixel);
  }

  static std::array<std::int64_t, 4> sides(const TensorView& tensor) {
    return {tensor.shape[0], tensor.shape[1], tensor.shape[2], tensor.shape[3]};
  }
  int side(int axis) const { return static_cast<int>(arg.view().shape[static_cast<std::size_t>(axis)]); }
  std::int64_t pixels() const { return static_cast<std::int64_t>(side(0)) * side(1) * side(2); }

  void check_type(const char* op, const char* argument, cuda::Elem elem) const {
    YN_CHECK_TYPE(view.elem == elem, op, ": ", argument, " must be ", name(elem), ", got ", name(view.elem));
  }
  void check_sides(const char* op, const char* argument, std::int64_t n, std::int64_t h, std::int64_t w) const {
    YN_CHECK(side(0) == n && side(1) == h && side(2) == w, op, ": ", argument, " must have ", n, " pictures of ", h,
             "x", w, ", got ", shape_text(arg.view()));
  }

  TensorArg arg;
  cuda::MapView view;
};

cuda::Queue queue_of(std::uintptr_t stream) { return {as_stream(stream), false}; }

using Pair = std::array<std::int64_t, 2>;

void letterbox_batch(const py::sequence& images, const py::object& out, const std::vector<Pair>& resized,
                     const std::vector<Pair>& offsets, int pad_value, bool swap_channels,
                     const std::array<double, 3>& mean, const std::array<double, 3>& divisor, double inverse_scale,
                     std::uintptr_t stream) {
  const char* op = "_letterbox_batch";
  CudaArgs args(op);
  const Map to(args, out, op, "out");
  const auto image_args = args.take_list(images, "image");
  const std::size_t count = image_args.size();
  YN_CHECK(resized.size() == count && offsets.size() == count && static_cast<std::size_t>(to.side(0)) == count, op,
           ": out, resized and offsets must be of as many pictures as images, ", count);
  YN_CHECK(to.view.channels >= 3 && to.view.pixel == to.view.channels, op,
           ": out must be contiguous and have at least 3 channels, got ", shape_text(to.arg.view()));
  std::vector<LetterboxFrame> frames;
  for (std::size_t i = 0; i < count; ++i) {
    LetterboxParams params;
    params.resized_h = resized[i][0];
    params.resized_w = resized[i][1];
    params.top = offsets[i][0];
    params.left = offsets[i][1];
    params.pad_value = pad_value;
    params.swap_channels = swap_channels;
    for (std::size_t c = 0; c < 3; ++c) {
      params.mean[c] = static_cast<float>(mean[c]);
      params.divisor[c] = static_cast<float>(divisor[c]);
    }
    frames.push_back(check_letterbox(op, "image", image_args[i].view(), to.side(1), to.side(2), params));
  }
  const GilRelease release;
  const cuda::DeviceGuard guard(op, args.device());
  cuda::letterbox_batch(frames.data(), static_cast<int>(count),
                        {to.view.data, to.view.elem, to.view.pixel, static_cast<float>(inverse_scale)},
                        queue_of(stream));
}

void convert_map(const py::object& x, const py::object& out, double factor, std::uintptr_t stream) {
  const char* op = "_convert_map";
  CudaArgs args(op);
  const Map from(args, x, op, "x"), to(args, out, op, "out");
  to.check_sides(op, "out", from.side(0), from.side(1), from.side(2));
  YN_CHECK(to.view.channels >= from.view.channels, op, ": out must have the channels of x or more, got ",
           shape_text(to.arg.view()));
  const GilRelease release;
  const cuda::DeviceGuard guard(op, args.device());
  cuda::convert_map(from.view, to.view, from.pixels(), static_cast<float>(factor), queue_of(stream));
}

void max_pool5(const py::object& x, const py::object& out, std::uintptr_t stream) {
  const char* op = "_max_pool5";
  CudaArgs args(op);
  const Map from(args, x, op, "x"), to(args, out, op, "out");
  to.check_type(op, "out", from.view.elem);
  to.check_sides(op, "out", from.side(0), from.side(1), from.side(2));
  YN_CHECK(to.view.channels == from.view.channels, op, ": out must have the channels of x, got ",
           shape_text(to.arg.view()));
  const GilRelease release;
  const cuda::DeviceGuard guard(op, args.device());
  cuda::max_pool5(from.view, to.view, from.side(0), from.side(1), from.side(2), queue_of(stream));
}

void observe_map(const py::object& x, const py::object& counts, const py::object& largest, const py::object& negatives,
                 std::uintptr_t stream) {
  const char* op = "_observe_map";
  CudaArgs args(op);
  const Map from(args, x, op, "x");
  YN_CHECK_TYPE(from.view.elem != cuda::Elem::s8, op, ": x must be float32 or float16, got int8");
  const TensorArg counts_arg = args.take(counts, "counts"), largest_arg = args.take(largest, "largest"),
                  negatives_arg = args.take(negatives, "negatives");
  check_output(counts_arg.view(), op, "counts", DType::s64, {kBins}, "(bins,)");
  check_output(largest_arg.view(), op, "largest", DType::f32, {1}, "(1,)");
  check_output(negatives_arg.view(), op, "negatives", DType::s64, {1}, "(1,)");
  const GilRelease release;
  const cuda::DeviceGuard guard(op, args.device());
  cuda::observe_map(from.view, from.pixels(), counts_arg.view().as<unsigned long long>(),
                    largest_arg.view().as<unsigned>(), negatives_arg.view().as<unsigned long long>(), queue_of(stream));
}

void add_channel_sums(const py::object& x, const py::object& sums, std::uintptr_t stream) {
  const char* op = "_add_channel_sums";
  CudaArgs args(op);
  const Map from(args, x, op, "x");
  from.check_type(op, "x", cuda::Elem::s8);
  const TensorArg sums_arg = args.take(sums, "sums");
  check_output(sums_arg.view(), op, "sums", DType::s64, {from.view.channels}, "(C,)");
  const GilRelease release;
  const cuda::DeviceGuard guard(op, args.device());
  cuda::add_channel_sums(from.view, from.pixels(), sums_arg.view().as<std::int64_t>(), queue_of(stream));
}

// weight (K, k, k, C), or (2, 2, K, C) of a transposed convolution; bias of all of its columns, 4 * K of such a one.
void conv_f32(const py::object& x, const py::object& weight, const py::object& bias, const py::object& residual,
              const py::object& out, int stride, int pad, bool relu, double residual_scale, bool transposed,
              std::uintptr_t stream) {
  const char* op = "_conv_f32";
  CudaArgs args(op);
  const Map from(args, x, op, "x"), to(args, out, op, "out");
  std::optional<Map> added;
  if (!residual.is_none()) added.emplace(args, residual, op, "residual");
  const TensorArg weight_arg = args.take(weight, "weight"), bias_arg = args.take(bias, "bias");
  from.check_type(op, "x", cuda::Elem::f32);
  to.check_type(op, "out", cuda::Elem::f32);
  const int channels = to.view.channels, in_c = from.view.channels;
  if (transposed) {
    check_tensor(weight_arg.view(), op, "weight", DType::f32, {2, 2, channels, in_c}, "(2, 2, K, C)");
  } else {
    check_tensor(weight_arg.view(), op, "weight", DType::f32, {channels, -1, -1, in_c}, "(K, k, k, C)");
  }
  check_tensor(bias_arg.view(), op, "bias", DType::f32, {(transposed ? 4 : 1) * channels}, "(columns,)");
  const int kernel = transposed ? 1 : static_cast<int>(weight_arg.view().shape[1]);
  YN_CHECK(transposed || (weight_arg.view().shape[2] == kernel && kernel >= 1 && kernel <= 7), op,
           ": weight must have a square kernel of 1 to 7, got ", shape_text(weight_arg.view()));
  YN_CHECK(stride >= 1 && pad >= 0 && pad < kernel && (!transposed || stride == 1), op,
           ": stride must be positive, 1 of a transposed one, and pad in 0..", kernel - 1, ", got ", stride, " and ",
           pad);
  YN_CHECK(in_c > 0 && in_c % 4 == 0 && from.view.pixel % 4 == 0 &&
               reinterpret_cast<std::uintptr_t>(from.view.data) % 16 == 0 &&
               reinterpret_cast<std::uintptr_t>(weight_arg.view().data) % 16 == 0,
           op, ": x and weight must begin at multiples of 16 bytes, pixels and channels of x be multiples of 4 floats");
  const int out_h = (from.side(1) + 2 * pad - kernel) / stride + 1;
  const int out_w = (from.side(2) + 2 * pad - kernel) / stride + 1;
  const int grown = transposed ? 2 : 1;
  to.check_sides(op, "out", from.side(0), grown * out_h, grown * out_w);
  if (added) {
    added->check_type(op, "residual", cuda::Elem::f32);
    added->check_sides(op, "residual", from.side(0), grown * out_h, grown * out_w);
    YN_CHECK(added->view.channels == channels, op, ": residual must have the channels of out, got ",
             shape_text(added->arg.view()));
  }
  cuda::ConvArgs a{};
  a.x = from.view;
  a.weight = weight_arg.view().data;
  a.offset = bias_arg.view().as<const float>();
  if (added) a.residual = added->view;
  a.y = to.view;
  a.residual_scale = static_cast<float>(residual_scale);
  a.batch = from.side(0);
  a.in_h = from.side(1);
  a.in_w = from.side(2);
  a.out_h = out_h;
  a.out_w = out_w;
  a.kernel = kernel;
  a.stride = stride;
  a.pad = pad;
  a.relu = relu;
  a.transposed = transposed;
  const GilRelease release;
  const cuda::DeviceGuard guard(op, args.device());
  cuda::conv_f32(a, queue_of(stream));
}

}  // namespace

void bind_cuda_maps(py::module_& module) {
  module.def("_letterbox_batch", letterbox_batch, py::arg("images"), py::arg("out"), py::kw_only(), py::arg("resized"),
             py::arg("offsets"), py::arg("pad_value"), py::arg("swap_channels"), py::arg("mean"), py::arg("divisor"),
             py::arg("inverse_scale"), py::arg("stream"));
  module.def("_convert_map", convert_map, py::arg("x"), py::arg("out"), py::kw_only(), py::arg("factor"),
             py::arg("stream"));
  module.def("_max_pool5", max_pool5, py::arg("x"), py::arg("out"), py::kw_only(), py::arg("stream"));
  module.def("_observe_map", observe_map, py::arg("x"), py::arg("counts"), py::arg("largest"), py::arg("negatives"),
             py::kw_only(), py::arg("stream"));
  module.def("_add_channel_sums", add_channel_sums, py::arg("x"), py::arg("sums"), py::kw_only(), py::arg("stream"));
  module.def("_conv_f32", conv_f32, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"),
             py::arg("out"), py::kw_only(), py::arg("stride"), py::arg("pad"), py::arg("relu"),
             py::arg("residual_scale"), py::arg("transposed"), py::arg("stream"));
}

}  // namespace yolonas::bindings
