// Single kernels of the table in use, for tests: on channel ranges of wider buffers, and in pieces of any size.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
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
  Picture(const py::handle& object, const char* op, const char* argument, DType dtype = DType::f32)
      : arg(object, op, argument) {
    const TensorView& view = arg.view();
    const bool even = view.device == Device::cpu && view.dtype == dtype && view.rank == 3 &&
                      (view.stride[2] == 1 || view.shape[2] == 1) &&
                      (view.stride[0] == view.stride[1] * view.shape[1] || view.shape[0] <= 1);
    YN_CHECK(even, op, ": ", argument, " must be ", name(dtype),
             " of shape (H, W, C), channels of a contiguous array, got ", name(view.dtype), " ", shape_text(view));
    stride = view.shape[1] > 1 ? view.stride[1] : view.shape[0] > 1 ? view.stride[0] : view.shape[2];
  }
  std::int64_t side(int axis) const { return arg.view().shape[static_cast<std::size_t>(axis)]; }
  template <class T = float>
  T* data() const {
    return arg.view().as<T>();
  }

  TensorArg arg;
  std::int64_t stride;
};

void set_sizes(const Picture& in, const Picture& to, const TensorView& weight, std::int64_t stride,
               std::int64_t padding, cpu::ConvSizes& sizes) {
  sizes = {in.side(0), in.side(1), in.side(2),      in.stride,       to.side(0), to.side(1),
           to.side(2), to.stride,  weight.shape[1], weight.shape[2], stride,     padding};
}

bool is_pointwise(const char* op, const std::string& kernel, const cpu::ConvSizes& a) {
  const bool pointwise = kernel == "pointwise";
  YN_CHECK(pointwise || kernel == "direct", op, ": kernel must be direct or pointwise, got '", kernel, "'");
  YN_CHECK(!pointwise || (a.kernel_h == 1 && a.kernel_w == 1 && a.stride == 1 && a.padding == 0), op,
           ": pointwise must have a kernel of 1x1, stride 1 and no padding");
  return pointwise;
}

// Calls run(first row, last row, first block, last block) for all pieces of `rows` rows and `blocks` blocks.
template <class Run>
void for_each_piece(std::int64_t all_rows, std::int64_t rows, std::int64_t all_blocks, std::int64_t blocks,
                    const Run& run) {
  for (std::int64_t block = 0; block < all_blocks; block += blocks) {
    for (std::int64_t row = 0; row < all_rows; row += rows) {
      run(row, std::min(row + rows, all_rows), block, std::min(block + blocks, all_blocks));
    }
  }
}

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
  set_sizes(in, to, weight_arg.view(), stride, padding, a);
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

  const bool pointwise = is_pointwise(op, kernel, a);
  const auto run = pointwise ? table.conv2d_pointwise_f32 : table.conv2d_direct_f32;
  for_each_piece(pointwise ? a.out_h * a.out_w : a.out_h, rows, all, blocks, [&](auto... piece) { run(a, piece...); });
}

// The arguments of a quantised convolution, and what they point to.
struct QuantConv {
  QuantConv(const char* op, const py::object& x, const py::object& weight, const py::object& multiplier,
            const py::object& offset, const py::object& residual, const py::object& out, std::int64_t stride,
            std::int64_t padding, bool relu, double residual_multiplier, bool unsigned_input)
      : in(x, op, "x", DType::s8),
        to_s8(TensorArg(out, op, "out").view().dtype == DType::s8),
        to(out, op, "out", to_s8 ? DType::s8 : DType::f32) {
    const TensorArg weight_arg(weight, op, "weight"), multiplier_arg(multiplier, op, "multiplier"),
        offset_arg(offset, op, "offset");
    if (!residual.is_none()) added.emplace(residual, op, "residual", DType::s8);
    check_tensor(weight_arg.view(), op, "weight", DType::s8, {to.side(2), -1, -1, in.side(2)}, "(K, kh, kw, C)");
    check_tensor(multiplier_arg.view(), op, "multiplier", DType::f32, {to.side(2)}, "(K,)");
    check_tensor(offset_arg.view(), op, "offset", DType::f32, {to.side(2)}, "(K,)");
    const std::int64_t block = cpu::kernels().conv_block;

    set_sizes(in, to, weight_arg.view(), stride, padding, args);
    args.x = in.data<std::int8_t>();
    args.y = to_s8 ? to.data<std::int8_t>() : nullptr;
    args.y_f32 = to_s8 ? nullptr : to.data();
    args.residual = added ? added->data<std::int8_t>() : nullptr;
    args.residual_stride = added ? added->stride : 0;
    args.residual_multiplier = static_cast<float>(residual_multiplier);
    args.relu = relu;
    args.unsigned_input = unsigned_input;
    blocks = cpu::conv_blocks(args.out_c, block);
    const auto channels = static_cast<std::size_t>(blocks * block);
    packed.resize(static_cast<std::size_t>(
        cpu::pack_direct_s8_bytes(args.out_c, args.kernel_h, args.kernel_w, args.in_c, block)));
    weight_sum.resize(channels);
    cpu::pack_direct_s8(weight_arg.view().as<std::int8_t>(), args.out_c, args.kernel_h, args.kernel_w, args.in_c, block,
                        packed.data(), weight_sum.data());
    multipliers.resize(channels);
    offsets.resize(channels);
    std::copy_n(multiplier_arg.view().as<float>(), args.out_c, multipliers.begin());
    std::copy_n(offset_arg.view().as<float>(), args.out_c, offsets.begin());
    zeros.resize(static_cast<std::size_t>(args.in_c));
    args.weight = packed.data();
    args.weight_sum = weight_sum.data();
    args.multiplier = multipliers.data();
    args.offset = offsets.data();
    args.zeros = zeros.data();
  }

  Picture in;
  bool to_s8;
  Picture to;
  std::optional<Picture> added;
  cpu::QuantConvArgs args{};
  std::int64_t blocks;
  std::vector<std::int8_t> packed, zeros;
  std::vector<std::int32_t> weight_sum;
  std::vector<float> multipliers, offsets;
};

void run_conv2d_s8(const std::string& kernel, const py::object& x, const py::object& weight,
                   const py::object& multiplier, const py::object& offset, const py::object& residual,
                   const py::object& out, std::int64_t stride, std::int64_t padding, bool relu,
                   double residual_multiplier, bool unsigned_input, std::int64_t rows, std::int64_t blocks) {
  const char* op = "_run_conv2d_s8";
  const QuantConv conv(op, x, weight, multiplier, offset, residual, out, stride, padding, relu, residual_multiplier,
                       unsigned_input);
  const cpu::QuantConvArgs& a = conv.args;
  YN_CHECK(rows >= 1 && blocks >= 1, op, ": rows and blocks must be positive, got ", rows, " and ", blocks);
  const bool pointwise = is_pointwise(op, kernel, a);
  const cpu::QuantKernels& table = cpu::kernels().s8;
  const auto run = pointwise ? table.conv2d_pointwise : table.conv2d_direct;
  for_each_piece(pointwise ? a.out_h * a.out_w : a.out_h, rows, conv.blocks, blocks,
                 [&](auto... piece) { run(a, piece...); });
}

// The magnitudes of a channel's weights, (K, kh, kw, C), add up to what the integer Winograd convolution allows.
void check_weight_sums(const char* op, const py::object& weight) {
  const TensorArg arg(weight, op, "weight");
  const TensorView& view = arg.view();
  const std::int64_t count = view.shape[1] * view.shape[2] * view.shape[3];
  for (std::int64_t k = 0; k < view.shape[0]; ++k) {
    const std::int8_t* const first = view.as<std::int8_t>() + k * count;
    const std::int64_t sum = std::accumulate(first, first + count, std::int64_t{0},
                                             [](std::int64_t all, std::int8_t one) { return all + std::abs(one); });
    YN_CHECK(sum <= cpu::kWinograd43WeightSum, op, ": weight must have magnitudes that add up to at most ",
             cpu::kWinograd43WeightSum, " in every output channel, got ", sum, " in channel ", k);
  }
}

// Returns the floats of workspace that it needs, and runs only where `workspace` is given, float32 (n,).
std::int64_t run_conv2d_winograd43_s8(const py::object& x, const py::object& weight, const py::object& multiplier,
                                      const py::object& offset, const py::object& residual, const py::object& out,
                                      bool relu, double residual_multiplier, std::int64_t tiles, std::int64_t blocks,
                                      const py::object& workspace) {
  const char* op = "_run_conv2d_winograd43_s8";
  const QuantConv conv(op, x, weight, multiplier, offset, residual, out, 1, 1, relu, residual_multiplier, false);
  const cpu::QuantConvArgs& a = conv.args;
  YN_CHECK(a.kernel_h == 3 && a.kernel_w == 3, op, ": weight must have a kernel of 3x3, got ", a.kernel_h, "x",
           a.kernel_w);
  YN_CHECK(a.in_h == a.out_h && a.in_w == a.out_w, op, ": out must be as high and wide as x, got ", a.out_h, "x",
           a.out_w, " for ", a.in_h, "x", a.in_w);
  check_weight_sums(op, weight);
  YN_CHECK(tiles >= 1 && blocks >= 1, op, ": tiles and blocks must be positive, got ", tiles, " and ", blocks);
  const cpu::QuantKernels& table = cpu::kernels().s8;
  const std::int64_t all = cpu::conv_tiles(a.out_h) * cpu::conv_tiles(a.out_w);
  const std::int64_t floats = table.winograd43_workspace(a, std::min(tiles, all));
  if (workspace.is_none()) return floats;
  const TensorArg workspace_arg(workspace, op, "workspace");
  check_tensor(workspace_arg.view(), op, "workspace", DType::f32, {floats}, "(n,)");
  for_each_piece(all, tiles, conv.blocks, blocks,
                 [&](auto... piece) { table.conv2d_winograd43(a, piece..., workspace_arg.view().as<float>()); });
  return floats;
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

// The same of int8.
void run_max_pool5_s8(const py::object& x, const py::object& out, std::int64_t rows) {
  const char* op = "_run_max_pool5_s8";
  const Picture in(x, op, "x", DType::s8), to(out, op, "out", DType::s8);
  YN_CHECK(in.side(0) == to.side(0) && in.side(1) == to.side(1) && in.side(2) == to.side(2), op,
           ": out must have the shape of x, got ", shape_text(to.arg.view()));
  YN_CHECK(rows >= 1, op, ": rows must be positive, got ", rows);
  const cpu::QuantPoolArgs a{
      in.side(0), in.side(1), in.side(2), in.stride, to.stride, in.data<std::int8_t>(), to.data<std::int8_t>()};
  for (std::int64_t row = 0; row < a.h; row += rows) {
    cpu::kernels().s8.max_pool5(a, row, std::min(row + rows, a.h));
  }
}

// Checks that x and out have as many pixels, and calls run(first, last) for all pieces of `pixels` pixels.
template <class Run>
void for_each_pixels(const char* op, const Picture& in, const Picture& to, std::int64_t pixels, const Run& run) {
  YN_CHECK(in.side(0) == to.side(0) && in.side(1) == to.side(1), op, ": out must be as high and wide as x, got ",
           shape_text(to.arg.view()));
  YN_CHECK(pixels >= 1, op, ": pixels must be positive, got ", pixels);
  const std::int64_t all = in.side(0) * in.side(1);
  for (std::int64_t pixel = 0; pixel < all; pixel += pixels) run(pixel, std::min(pixel + pixels, all));
}

void run_quantize_s8(const py::object& x, const py::object& out, double inv_scale, std::int64_t pixels) {
  const char* op = "_run_quantize_s8";
  const Picture in(x, op, "x"), to(out, op, "out", DType::s8);
  YN_CHECK(to.side(2) >= in.side(2), op, ": out must have the channels of x or more, got ", shape_text(to.arg.view()));
  const cpu::QuantizeArgs a{
      in.side(2), in.stride, to.side(2), to.stride, in.data(), to.data<std::int8_t>(), static_cast<float>(inv_scale)};
  for_each_pixels(op, in, to, pixels, [&](auto... piece) { cpu::kernels().s8.quantize(a, piece...); });
}

void run_dequantize_s8(const py::object& x, const py::object& out, double scale, std::int64_t pixels) {
  const char* op = "_run_dequantize_s8";
  const Picture in(x, op, "x", DType::s8), to(out, op, "out");
  YN_CHECK(to.side(2) == in.side(2), op, ": out must have the channels of x, got ", shape_text(to.arg.view()));
  const cpu::DequantizeArgs a{
      in.side(2), in.stride, to.stride, in.data<std::int8_t>(), to.data(), static_cast<float>(scale)};
  for_each_pixels(op, in, to, pixels, [&](auto... piece) { cpu::kernels().s8.dequantize(a, piece...); });
}

}  // namespace

void bind_kernels(py::module_& module) {
  module.def("_run_conv2d", run_conv2d, py::arg("kernel"), py::arg("x"), py::arg("weight"), py::arg("bias"),
             py::arg("residual"), py::arg("out"), py::kw_only(), py::arg("stride"), py::arg("padding"), py::arg("relu"),
             py::arg("residual_scale"), py::arg("rows"), py::arg("blocks"));
  module.def("_run_conv2d_s8", run_conv2d_s8, py::arg("kernel"), py::arg("x"), py::arg("weight"), py::arg("multiplier"),
             py::arg("offset"), py::arg("residual"), py::arg("out"), py::kw_only(), py::arg("stride"),
             py::arg("padding"), py::arg("relu"), py::arg("residual_multiplier"), py::arg("unsigned_input"),
             py::arg("rows"), py::arg("blocks"));
  module.def("_run_conv2d_winograd43_s8", run_conv2d_winograd43_s8, py::arg("x"), py::arg("weight"),
             py::arg("multiplier"), py::arg("offset"), py::arg("residual"), py::arg("out"), py::kw_only(),
             py::arg("relu"), py::arg("residual_multiplier"), py::arg("tiles"), py::arg("blocks"),
             py::arg("workspace"));
  module.def("_run_max_pool5", run_max_pool5, py::arg("x"), py::arg("out"), py::kw_only(), py::arg("rows"));
  module.def("_run_max_pool5_s8", run_max_pool5_s8, py::arg("x"), py::arg("out"), py::kw_only(), py::arg("rows"));
  module.def("_run_quantize_s8", run_quantize_s8, py::arg("x"), py::arg("out"), py::kw_only(), py::arg("inv_scale"),
             py::arg("pixels"));
  module.def("_run_dequantize_s8", run_dequantize_s8, py::arg("x"), py::arg("out"), py::kw_only(), py::arg("scale"),
             py::arg("pixels"));
}

}  // namespace yolonas::bindings
