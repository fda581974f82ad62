#include "cpu/winograd.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "engine/arena.h"

namespace yolonas::cpu {
namespace {

constexpr std::int64_t kPieceTiles = 56;  // fewer tiles a piece would read the weights more often

struct Cut {
  std::int64_t tiles, blocks;  // of a piece
};

// Threads share the tiles where there are enough of them, else the blocks.
Cut cut(std::int64_t tiles, std::int64_t blocks, std::int64_t pictures) {
  const std::int64_t wanted = num_threads() == 1 ? 1 : std::max<std::int64_t>(2 * num_threads() / pictures, 1);
  const std::int64_t tile_pieces = std::clamp<std::int64_t>(tiles / kPieceTiles, 1, wanted);
  const std::int64_t block_pieces = std::clamp<std::int64_t>(wanted / tile_pieces, 1, blocks);
  return {(tiles + tile_pieces - 1) / tile_pieces, (blocks + block_pieces - 1) / block_pieces};
}

}  // namespace

void conv2d_winograd(const TensorView& x, const TensorView& weight, const TensorView* bias, const TensorView* residual,
                     const Conv2dParams& params, const TensorView& y) {
  const char* op = "conv2d_winograd";
  const Conv2dShape s = check_conv2d(x, weight, bias, residual, params, y, op);
  YN_CHECK(s.kernel_h == 3 && s.kernel_w == 3, op, ": weight must have a kernel of 3x3, got ", shape_text(weight));
  YN_CHECK(params.padding == 1 && params.stride <= 2, op, ": stride must be 1 or 2 and padding 1, got ", params.stride,
           " and ", params.padding);
  if (s.batch == 0 || s.out_h == 0 || s.out_w == 0) return;
  const CpuKernels& table = kernels();
  const std::int64_t block = table.conv_block, blocks = conv_blocks(s.out_c, block);
  const auto run = params.stride == 1 ? table.conv2d_winograd43_f32 : table.conv2d_winograd_s2_f32;
  const auto workspace_floats = params.stride == 1 ? table.winograd43_workspace : table.winograd_s2_workspace;
  const engine::Memory packed(pack_direct_floats(s.out_c, 3, 3, s.in_c, block));
  pack_direct(weight.as<const float>(), s.out_c, 3, 3, s.in_c, block, packed.data());
  std::vector<float> padded_bias(static_cast<std::size_t>(blocks * block), 0.0f);
  if (bias) std::copy(bias->as<const float>(), bias->as<const float>() + s.out_c, padded_bias.begin());

  ConvArgs args{};
  args.in_h = s.in_h;
  args.in_w = s.in_w;
  args.in_c = args.in_stride = s.in_c;
  args.out_h = s.out_h;
  args.out_w = s.out_w;
  args.out_c = args.out_stride = args.residual_stride = s.out_c;
  args.kernel_h = args.kernel_w = 3;
  args.stride = params.stride;
  args.padding = 1;
  args.weight = packed.data();
  args.bias = padded_bias.data();
  args.residual_scale = params.residual_scale;
  args.relu = params.relu;

  const std::int64_t tiles = conv_tiles(s.out_h) * conv_tiles(s.out_w);
  const Cut piece = cut(tiles, blocks, s.batch);
  const std::int64_t tile_pieces = (tiles + piece.tiles - 1) / piece.tiles;
  const std::int64_t pieces = s.batch * tile_pieces * ((blocks + piece.blocks - 1) / piece.blocks);
  std::vector<engine::Memory> workspaces;  // one a thread
  for (int thread = 0; thread < num_threads(); ++thread) workspaces.emplace_back(workspace_floats(args, piece.tiles));
  std::atomic<std::int64_t> next{0};
  parallel_for(static_cast<std::int64_t>(workspaces.size()), 1, [&](std::int64_t begin, std::int64_t) {
    for (std::int64_t at = next++; at < pieces; at = next++) {
      const std::int64_t picture = at % s.batch, tile = at / s.batch % tile_pieces * piece.tiles;
      const std::int64_t first_block = at / s.batch / tile_pieces * piece.blocks;
      const std::int64_t out_picture = s.out_h * s.out_w * s.out_c;
      ConvArgs one = args;
      one.x = x.as<const float>() + picture * s.in_h * s.in_w * s.in_c;
      one.y = y.as<float>() + picture * out_picture;
      one.residual = residual ? residual->as<const float>() + picture * out_picture : nullptr;
      run(one, tile, std::min(tile + piece.tiles, tiles), first_block, std::min(first_block + piece.blocks, blocks),
          workspaces[static_cast<std::size_t>(begin)].data());
    }
  });
}

double winograd_error(const TensorView& weight, std::int64_t stride) {
  const char* op = "winograd_error";
  check_tensor(weight, op, "weight", DType::f32, {-1, 3, 3, -1}, "(K, 3, 3, C)");
  YN_CHECK(stride == 1 || stride == 2, op, ": stride must be 1 or 2, got ", stride);
  return winograd_error(weight.as<const float>(), weight.shape[0], weight.shape[3], stride);
}

}  // namespace yolonas::cpu
