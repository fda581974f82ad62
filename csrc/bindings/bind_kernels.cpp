// Single kernels of the table in use, for tests: on channel ranges of wider buffers, and in pieces of any size.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "bindings/tensor_arg.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"

namespace py = pybind11;

namespace yolonas::bindings {
namespace {

// A picture (H, W, C) of pixels that lie evenly in raster order, on the CPU.
struct Picture {
  Picture(const py::handle& object, const char* op, const char* argument) : arg(object, op, argument) {
    const TensorView& view = arg.view();
    const bool even = view.device == Device::cpu && view.dtype == DType::f32 && view.rank == 3 &&
                      (view.stride[2] == 1 || view.shape[2] == 1) &&
                      (view.stride[0] == view.stride[1] * view.shape[1] || view.shape[0] <= 1);
    YN_CHECK(even, op, ": ", argument, " must be float32 of shape (H, W, C), channels of a contiguous array, got ",
             shape_text(view));
    stride = view.shape[1] > 1 ? view.stride[1] : view.shape[0] > 1 ? view.stride[0] : view.shape[2];
  }
  std::int64_t side(int axis) const { return arg.view().shape[static_cast<std::size_t>(axis)]; }
  float* data() const { return arg.view().as<float>(); }

  TensorArg arg;
  std::int64_t stride;
};

void run_conv2d(const std::string& kernel, const py::object& x, const py::object& weight, const py::object& bias,
                const py::object& residual, const py::object& out, std::int64_t stride, std::int64_t padding, bool relu,
                double residual_scale, std::int64_t rows, std::int64_t blocks) {
  const char* op = "_run_conv2d";
  const Picture in(x, op, "x"), to(out, op, "out");
  std::optional<Picture> added;
  if (!residual.is_none()) added.emplace(residual, op, "residual");
  const TensorArg weight_arg(weight, op, "weight"), bias_arg(bias, op, "bias");
  check_tensor(weight_arg.view(), op, "weight", DType::f32, {to.side(2), -1, -1, in.side(2)}, "(K, kh, kw, C)");
  check_tensor(bias_arg.view(), op, "bias", DType::f32, {to.side(2)}, "(K,)");
  YN_CHECK(rows >= 1 && blocks >= 1, op, ": rows and blocks must be positive, got ", rows, " and ", blocks);
  const cpu::CpuKernels& table = cpu::kernels();

  cpu::ConvArgs a{};
  a.in_h = in.side(0);
  a.in_w = in.side(1);
  a.in_c = in.side(2);
  a.in_stride = in.stride;
  a.out_h = to.side(0);
  a.out_w = to.side(1);
  a.out_c = to.side(2);
  a.out_stride = to.stride;
  a.kernel_h = weight_arg.view().shape[1];
  a.kernel_w = weight_arg.view().shape[2];
  a.stride = stride;
  a.padding = padding;
  a.x = in.data();
  a.y = to.data();
  a.residual = added ? added->data() : nullptr;
  a.residual_stride = added ? added->stride : 0;
  a.residual_scale = static_cast<float>(residual_scale);
  a.relu = relu;
  const std::int64_t all = cpu::conv_blocks(a.out_c, table.conv_block);
  std::vector<float> packed(
      static_cast<std::size_t>(cpu::pack_direct_floats(a.out_c, a.kernel_h, a.kernel_w, a.in_c, table.conv_block)));
  cpu::pack_direct(weight_arg.view().as<float>(), a.out_c, a.kernel_h, a.kernel_w, a.in_c, table.conv_block,
                   packed.data());
  std::vector<float> padded_bias(static_cast<std::size_t>(all * table.conv_block), 0.0f);
  std::copy_n(bias_arg.view().as<float>(), a.out_c, padded_bias.begin());
  const std::vector<float> zeros(static_cast<std::size_t>(a.in_c), 0.0f);
  a.weight = packed.data();
  a.bias = padded_bias.data();
  a.zeros = zeros.data();

  const bool pointwise = kernel == "pointwise";
  YN_CHECK(pointwise || kernel == "direct", op, ": kernel must be direct or pointwise, got '", kernel, "'");
  YN_CHECK(!pointwise || (a.kernel_h == 1 && a.kernel_w == 1 && stride == 1 && padding == 0), op,
           ": pointwise must have a kernel of 1x1, stride 1 and no padding");
  const auto run = pointwise ? table.conv2d_pointwise_f32 : table.conv2d_direct_f32;
  const std::int64_t end = pointwise ? a.out_h * a.out_w : a.out_h;
  for (std::int64_t block = 0; block < all; block += blocks) {
    for (std::int64_t row = 0; row < end; row += rows) {
      run(a, row, std::min(row + rows, end), block, std::min(block + blocks, all));
    }
  }
}

void run_max_pool5(const py::object& x, const py::object& out, std::int64_t rows) {
  const char* op = "_run_max_pool5";
  const Picture in(x, op, "x"), to(out, op, "out");
  YN_CHECK(in.side(0) == to.side(0) && in.side(1) == to.side(1) && in.side(2) == to.side(2), op,
           ": out must have the shape of x, got ", shape_text(to.arg.view()));
  YN_CHECK(rows >= 1, op, ": rows must be positive, got ", rows);
  const cpu::PoolArgs a{in.side(0), in.side(1), in.side(2), in.stride, to.stride, in.data(), to.data()};
  for (std::int64_t row = 0; row < a.h; row += rows) {
    cpu::kernels().max_pool5_f32(a, row, std::min(row + rows, a.h));
  }
}

}  // namespace

void bind_kernels(py::module_& module) {
  module.def("_run_conv2d", run_conv2d, py::arg("kernel"), py::arg("x"), py::arg("weight"), py::arg("bias"),
             py::arg("residual"), py::arg("out"), py::kw_only(), py::arg("stride"), py::arg("padding"), py::arg("relu"),
             py::arg("residual_scale"), py::arg("rows"), py::arg("blocks"));
  module.def("_run_max_pool5", run_max_pool5, py::arg("x"), py::arg("out"), py::kw_only(), py::arg("rows"));
}

}  // namespace yolonas::bindings
