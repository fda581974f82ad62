// Single kernels on feature maps, for tests: on channel ranges of wider buffers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "bindings/cuda_map.h"
#include "bindings/engine_args.h"
#include "bindings/gil.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "ops/letterbox.h"

namespace py = pybind11;

namespace yolonas::bindings {
void bind_cuda_maps(py::module_& module);

namespace {

constexpr std::int64_t kBins = 1 << 15;  // of observe_map

cuda::Queue queue_of(std::uintptr_t stream) { return {as_stream(stream), false}; }

void letterbox_batch(const py::sequence& images, const py::object& out, const std::vector<Pair>& resized,
                     const std::vector<Pair>& offsets, int pad_value, bool swap_channels,
                     const std::array<double, 3>& mean, const std::array<double, 3>& divisor, double inverse_scale,
                     std::uintptr_t stream) {
  const char* op = "_letterbox_batch";
  CudaArgs args(op);
  const Map to(args, out, op, "out");
  const auto image_args = args.take_list(images, "image");
  const std::size_t count = image_args.size();
  YN_CHECK(static_cast<std::size_t>(to.side(0)) == count, op, ": out must be of as many pictures as images, ", count);
  const auto placed = placements(op, count, resized, offsets, pad_value, swap_channels, mean, divisor);
  YN_CHECK(to.view.channels >= 3 && to.view.pixel == to.view.channels, op,
           ": out must be contiguous and have at least 3 channels, got ", shape_text(to.arg.view()));
  std::vector<LetterboxFrame> frames;
  for (std::size_t i = 0; i < count; ++i) {
    frames.push_back(check_letterbox(op, "image", image_args[i].view(), to.side(1), to.side(2), placed[i]));
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
}

}  // namespace yolonas::bindings
