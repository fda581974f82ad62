#include "cpu/conv2d.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"

namespace yolonas::cpu {

void conv2d_bias_act(const TensorView& x, const TensorView& weight, const TensorView* bias, const TensorView* residual,
                     const Conv2dParams& params, const TensorView& y) {
  const Conv2dShape s = check_conv2d(x, weight, bias, residual, params, y);
  if (s.batch == 0) return;
  const CpuKernels& table = kernels();
  const std::int64_t blocks = conv_blocks(s.out_c, table.conv_block);
  std::vector<float> packed(
      static_cast<std::size_t>(pack_direct_floats(s.out_c, s.kernel_h, s.kernel_w, s.in_c, table.conv_block)));
  pack_direct(weight.as<const float>(), s.out_c, s.kernel_h, s.kernel_w, s.in_c, table.conv_block, packed.data());
  std::vector<float> padded_bias(static_cast<std::size_t>(blocks * table.conv_block), 0.0f);
  if (bias) std::copy(bias->as<const float>(), bias->as<const float>() + s.out_c, padded_bias.begin());
  const std::vector<float> zeros(static_cast<std::size_t>(s.in_c), 0.0f);

  ConvArgs args{};
  args.in_h = s.in_h;
  args.in_w = s.in_w;
  args.in_c = args.in_stride = s.in_c;
  args.out_h = s.out_h;
  args.out_w = s.out_w;
  args.out_c = args.out_stride = args.residual_stride = s.out_c;
  args.kernel_h = s.kernel_h;
  args.kernel_w = s.kernel_w;
  args.stride = params.stride;
  args.padding = params.padding;
  args.weight = packed.data();
  args.bias = padded_bias.data();
  args.zeros = zeros.data();
  args.residual_scale = params.residual_scale;
  args.relu = params.relu;
  // The larger of input and weights is cut, so that a piece of it stays in the L2 cache while the other passes by.
  const bool cut_blocks = s.out_c * s.kernel_h * s.kernel_w > s.in_h * s.in_w;
  const std::int64_t row_bytes = std::max<std::int64_t>(s.in_w * s.in_c * params.stride * 4, 1);
  const std::int64_t rows = cut_blocks ? s.out_h : std::clamp<std::int64_t>((512 << 10) / row_bytes, 1, s.out_h);
  const std::int64_t per_piece = cut_blocks ? 1 : blocks;
  const std::int64_t row_pieces = (s.out_h + rows - 1) / rows, pieces = row_pieces * (blocks / per_piece);
  const bool pointwise = s.kernel_h == 1 && s.kernel_w == 1 && params.stride == 1 && params.padding == 0;
  parallel_for(s.batch * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t picture = at / pieces, piece = at % pieces;
      const std::int64_t first = piece % row_pieces * rows, last = std::min(first + rows, s.out_h);
      const std::int64_t block = piece / row_pieces * per_piece;
      const std::int64_t out_picture = s.out_h * s.out_w * s.out_c;
      ConvArgs one = args;
      one.x = x.as<const float>() + picture * s.in_h * s.in_w * s.in_c;
      one.y = y.as<float>() + picture * out_picture;
      one.residual = residual ? residual->as<const float>() + picture * out_picture : nullptr;
      if (pointwise) {
        table.conv2d_pointwise_f32(one, first * s.out_w, last * s.out_w, block, block + per_piece);
      } else {
        table.conv2d_direct_f32(one, first, last, block, block + per_piece);
      }
    }
  });
}

}  // namespace yolonas::cpu
