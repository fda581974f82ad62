// The convolution by Hopper's products of four warps. It differs from conv_kernel.h only in what multiplies the steps:
// the products run while the warps copy the next steps, so a stage is filled again two steps after it was read.
#pragma once

#include "cuda/conv_kernel.h"
#include "cuda/hopper/warpgroup.h"

namespace yolonas::cuda {

// A warp owns 16 rows and all columns: its sums lie as in conv_kernel.h.
template <class Type, int kRows, int kColumns, int kStages, int kBlocks>
struct WarpgroupTile : ConvTile<Type, kRows, kColumns, 16, kColumns, 128, kStages, kBlocks, 90> {
  static constexpr int kReadRows = kRows + kRows / 64 * kColumns;  // four warps read the weights together
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) conv_warpgroup_kernel(const ConvKernelArgs a) {
  static_assert(Tile::kStages >= 3 && Tile::kRows % 64 == 0 && Tile::kStep == 128, "");
  static_assert(Tile::kRows * Tile::kStep % 1024 == 0 && Tile::kStageBytes % 1024 == 0, "tiles at multiples of 1024");
  constexpr int kAhead = Tile::kStages - 2;  // steps that are copied before they are needed
  YN_DYNAMIC_SHARED(memory);
  unsigned char* const shared = kept(memory);
  const ConvBlock<Tile> block(a);
  WeightLoader<Tile> weights;
  PixelLoader<Tile> pixels;
  load_first<Tile, kAhead>(a, block, shared, weights, pixels);

  const int group_row = Tile::kRows == 64 ? 0 : same_in_warp(block.warp_row / 64 * 64);
  const std::uint64_t pixel_operand = operand_of(shared + group_row * Tile::kStep);
  const std::uint64_t weight_operand = operand_of(shared + Tile::kPixelBytes);
  typename Tile::Sum sums[1][Tile::kFragmentColumns][4] = {};
  int stage = 0, filled = kAhead * Tile::kStageBytes;
  for (int step = 0; step < block.steps; ++step) {
    cp_async_wait<kAhead - 1>();
    publish_to_products();
    __syncthreads();  // the step is there; and everyone's products of the step before the last one have ended
    begin_products();
    const std::uint64_t a_rows = further(pixel_operand, stage), b_rows = further(weight_operand, stage);
#pragma unroll
    for (int k = 0; k < Tile::kStep / 32; ++k) {
      warpgroup_product<Tile::kColumns>(sums[0], further(a_rows, k * 32), further(b_rows, k * 32));
    }
    commit_products();
    if (step + kAhead < block.steps) {
      weights.load(shared + filled + Tile::kPixelBytes);
      pixels.load(shared + filled);
      filled = stage_after<Tile>(filled);
    }
    cp_async_commit();
    stage = stage_after<Tile>(stage);
    wait_for_products<1>();
  }
  wait_for_products<0>();
#pragma unroll
  for (int j = 0; j < Tile::kFragmentColumns; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) settle(sums[0][j][e]);
  }
  if (a.splits > 1 && !add_splits<Tile>(a, block.tile, block.split, *reinterpret_cast<unsigned*>(shared), sums)) return;
  finish<Tile>(a, shared, sums);
}

template <class Tile>
constexpr ConvEntry warpgroup_entry(const char* name) {
  return conv_entry<Tile>(name, conv_warpgroup_kernel<Tile>, 90);  // their instructions are Hopper's alone
}

// As many stages as leave room for another block, or at least for the first of the next launch.
#define YN_WARPGROUP_TILES(Type)                                        \
  {                                                                     \
      warpgroup_entry<WarpgroupTile<Type, 64, 64, 4, 3>>("w64x64"),     \
      warpgroup_entry<WarpgroupTile<Type, 64, 96, 5, 2>>("w64x96"),     \
      warpgroup_entry<WarpgroupTile<Type, 64, 128, 4, 2>>("w64x128"),   \
      warpgroup_entry<WarpgroupTile<Type, 128, 64, 4, 2>>("w128x64"),   \
      warpgroup_entry<WarpgroupTile<Type, 128, 96, 4, 2>>("w128x96"),   \
      warpgroup_entry<WarpgroupTile<Type, 128, 128, 5, 1>>("w128x128"), \
      warpgroup_entry<WarpgroupTile<Type, 256, 64, 4, 1>>("w256x64"),   \
      warpgroup_entry<WarpgroupTile<Type, 128, 192, 4, 1>>("w128x192"), \
  }

}  // namespace yolonas::cuda
