#include "cpu/conv2d.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"

namespace yolonas::cpu {
namespace {

// The sizes of one picture, whose pixels lie side by side.
void set_sizes(const Conv2dShape& s, std::int64_t stride, std::int64_t padding, ConvSizes& sizes) {
  sizes = {s.in_h, s.in_w, s.in_c, s.in_c, s.out_h, s.out_w, s.out_c, s.out_c, s.kernel_h, s.kernel_w, stride, padding};
}

// Calls run(picture, whether rows are pixels, first row, last row, first block, last block) for pieces of all pictures,
// on all threads. The larger of input and weights is cut, so that a piece of it stays in the L2 cache while the other
// passes by.
template <class Run>
void for_each_piece(const Conv2dShape& s, const ConvSizes& sizes, std::int64_t item_bytes, std::int64_t conv_block,
                    const Run& run) {
  const std::int64_t blocks = conv_blocks(s.out_c, conv_block);
  const bool cut_blocks = s.out_c * s.kernel_h * s.kernel_w > s.in_h * s.in_w;
  const std::int64_t row_bytes = std::max<std::int64_t>(s.in_w * s.in_c * sizes.stride * item_bytes, 1);
  const std::int64_t rows = cut_blocks ? s.out_h : std::clamp<std::int64_t>((512 << 10) / row_bytes, 1, s.out_h);
  const std::int64_t per_piece = cut_blocks ? 1 : blocks;
  const std::int64_t row_pieces = (s.out_h + rows - 1) / rows, pieces = row_pieces * (blocks / per_piece);
  const bool pointwise = s.kernel_h == 1 && s.kernel_w == 1 && sizes.stride == 1 && sizes.padding == 0;
  const std::int64_t scale = pointwise ? s.out_w : 1;
  parallel_for(s.batch * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t picture = at / pieces, piece = at % pieces;
      const std::int64_t first = piece % row_pieces * rows, last = std::min(first + rows, s.out_h);
      const std::int64_t block = piece / row_pieces * per_piece;
      run(picture, pointwise, first * scale, last * scale, block, block + per_piece);
    }
  });
}

// Numbers of the output channels, zero up to whole blocks.
std::vector<float> padded(const TensorView* values, std::int64_t channels, std::int64_t conv_block) {
  std::vector<float> all(static_cast<std::size_t>(conv_blocks(channels, conv_block) * conv_block), 0.0f);
  if (values) std::copy_n(values->as<const float>(), channels, all.begin());
  return all;
}

}  // namespace

void conv2d_bias_act(const TensorView& x, const TensorView& weight, const TensorView* bias, const TensorView* residual,
                     const Conv2dParams& params, const TensorView& y) {
  const Conv2dShape s = check_conv2d(x, weight, bias, residual, params, y);
  if (s.batch == 0) return;
  const CpuKernels& table = kernels();
  std::vector<float> packed(
      static_cast<std::size_t>(pack_direct_floats(s.out_c, s.kernel_h, s.kernel_w, s.in_c, table.conv_block)));
  pack_direct(weight.as<const float>(), s.out_c, s.kernel_h, s.kernel_w, s.in_c, table.conv_block, packed.data());
  const std::vector<float> padded_bias = padded(bias, s.out_c, table.conv_block);
  const std::vector<float> zeros(static_cast<std::size_t>(s.in_c), 0.0f);

  ConvArgs args{};
  set_sizes(s, params.stride, params.padding, args);
  args.weight = packed.data();
  args.bias = padded_bias.data();
  args.zeros = zeros.data();
  args.residual_stride = s.out_c;
  args.residual_scale = params.residual_scale;
  args.relu = params.relu;
  for_each_piece(s, args, 4, table.conv_block,
                 [&](std::int64_t picture, bool pointwise, std::int64_t first, std::int64_t last, std::int64_t block,
                     std::int64_t block_end) {
                   const std::int64_t out_picture = picture * s.out_h * s.out_w * s.out_c;
                   ConvArgs one = args;
                   one.x = x.as<const float>() + picture * s.in_h * s.in_w * s.in_c;
                   one.y = y.as<float>() + out_picture;
                   one.residual = residual ? residual->as<const float>() + out_picture : nullptr;
                   const auto run = pointwise ? table.conv2d_pointwise_f32 : table.conv2d_direct_f32;
                   run(one, first, last, block, block_end);
                 });
}

void conv2d_s8(const TensorView& x, const TensorView& weight, const TensorView& multiplier, const TensorView& offset,
               const TensorView* residual, const QuantConv2dParams& params, const TensorView& y) {
  const Conv2dShape s = check_conv2d_s8(x, weight, multiplier, offset, residual, params, y);
  if (s.batch == 0) return;
  const CpuKernels& table = kernels();
  std::vector<std::int8_t> packed(
      static_cast<std::size_t>(pack_direct_s8_bytes(s.out_c, s.kernel_h, s.kernel_w, s.in_c, table.conv_block)));
  std::vector<std::int32_t> weight_sum(
      static_cast<std::size_t>(conv_blocks(s.out_c, table.conv_block) * table.conv_block));
  pack_direct_s8(weight.as<const std::int8_t>(), s.out_c, s.kernel_h, s.kernel_w, s.in_c, table.conv_block,
                 packed.data(), weight_sum.data());
  const std::vector<float> multipliers = padded(&multiplier, s.out_c, table.conv_block),
                           offsets = padded(&offset, s.out_c, table.conv_block);
  const std::vector<std::int8_t> zeros(static_cast<std::size_t>(s.in_c), std::int8_t{0});

  QuantConvArgs args{};
  set_sizes(s, params.stride, params.padding, args);
  args.weight = packed.data();
  args.weight_sum = weight_sum.data();
  args.multiplier = multipliers.data();
  args.offset = offsets.data();
  args.zeros = zeros.data();
  args.residual_stride = s.out_c;
  args.residual_multiplier = params.residual_multiplier;
  args.relu = params.relu;
  args.unsigned_input = params.unsigned_input;
  for_each_piece(s, args, 1, table.conv_block,
                 [&](std::int64_t picture, bool pointwise, std::int64_t first, std::int64_t last, std::int64_t block,
                     std::int64_t block_end) {
                   const std::int64_t out_picture = picture * s.out_h * s.out_w * s.out_c;
                   QuantConvArgs one = args;
                   one.x = x.as<const std::int8_t>() + picture * s.in_h * s.in_w * s.in_c;
                   one.y = y.dtype == DType::s8 ? y.as<std::int8_t>() + out_picture : nullptr;
                   one.y_f32 = y.dtype == DType::f32 ? y.as<float>() + out_picture : nullptr;
                   one.residual = residual ? residual->as<const std::int8_t>() + out_picture : nullptr;
                   const auto run = pointwise ? table.s8.conv2d_pointwise : table.s8.conv2d_direct;
                   run(one, first, last, block, block_end);
                 });
}

}  // namespace yolonas::cpu
