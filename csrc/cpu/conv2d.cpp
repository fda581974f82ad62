#include "cpu/conv2d.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace yolonas::cpu {
namespace {

// (K, kh, kw, C) -> [ceil(K / 16)][kh][kw][C][16]
std::vector<float> pack_weight(const float* weight, const Conv2dShape& s) {
  const std::int64_t blocks = (s.out_c + kConvBlock - 1) / kConvBlock, depth = s.kernel_h * s.kernel_w * s.in_c;
  std::vector<float> packed(static_cast<std::size_t>(blocks * depth * kConvBlock), 0.0f);
  for (std::int64_t k = 0; k < s.out_c; ++k) {
    float* out = packed.data() + k / kConvBlock * depth * kConvBlock + k % kConvBlock;
    for (std::int64_t d = 0; d < depth; ++d) out[d * kConvBlock] = weight[k * depth + d];
  }
  return packed;
}

}  // namespace

void conv2d_bias_act(const TensorView& x, const TensorView& weight, const TensorView* bias, const TensorView* residual,
                     const Conv2dParams& params, const TensorView& y) {
  const Conv2dShape s = check_conv2d(x, weight, bias, residual, params, y);
  if (s.batch == 0) return;
  const CpuKernels& table = kernels();
  const std::vector<float> packed = pack_weight(weight.as<const float>(), s);
  const std::int64_t blocks = (s.out_c + kConvBlock - 1) / kConvBlock;
  std::vector<float> padded_bias(static_cast<std::size_t>(blocks * kConvBlock), 0.0f);
  if (bias) std::copy(bias->as<const float>(), bias->as<const float>() + s.out_c, padded_bias.begin());
  const std::vector<float> zeros(static_cast<std::size_t>(s.in_c), 0.0f);

  Conv2dArgs args{};
  args.in_h = s.in_h;
  args.in_w = s.in_w;
  args.in_c = s.in_c;
  args.out_h = s.out_h;
  args.out_w = s.out_w;
  args.out_c = s.out_c;
  args.kernel_h = s.kernel_h;
  args.kernel_w = s.kernel_w;
  args.stride = params.stride;
  args.padding = params.padding;
  args.weight = packed.data();
  args.bias = padded_bias.data();
  args.zeros = zeros.data();
  args.residual_scale = params.residual_scale;
  args.relu = params.relu;
  // A few rows per range keep its inputs in the L2 cache while the channel blocks pass over them.
  const std::int64_t row_inputs = s.in_w * s.in_c * params.stride * 4;
  const std::int64_t rows = std::clamp<std::int64_t>((256 << 10) / std::max<std::int64_t>(row_inputs, 1), 1, s.out_h);
  const std::int64_t pieces = (s.out_h + rows - 1) / rows;
  parallel_for(s.batch * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t picture = at / pieces, first = at % pieces * rows;
      const std::int64_t out_picture = s.out_h * s.out_w * s.out_c;
      Conv2dArgs one = args;
      one.x = x.as<const float>() + picture * s.in_h * s.in_w * s.in_c;
      one.y = y.as<float>() + picture * out_picture;
      one.residual = residual ? residual->as<const float>() + picture * out_picture : nullptr;
      table.conv2d_direct_f32(one, first, std::min(first + rows, s.out_h), 0, blocks);
    }
  });
}

}  // namespace yolonas::cpu
