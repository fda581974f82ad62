// A block makes 64 pixels x 64 output channels; a thread 4 x 4 of them. 16 numbers of depth a step: while one part of
// shared memory is multiplied, the loads for the next are under way.
#include "cuda/conv_f32.h"
#include "cuda/elements.h"
#include "cuda/launch.h"
#include "cuda/tensor_core.h"

namespace yolonas::cuda {
namespace {

constexpr int kTile = 64;   // rows and columns of a block
constexpr int kDepth = 16;  // of a step
constexpr int kQuad = 4;    // depth that a thread loads at once; rows and columns that it makes
static_assert(kTile / kQuad * (kTile / kQuad) == kThreads && kTile * kDepth / kQuad == kThreads);

// [depth][row or column]; the rest of a line spreads the stores over the banks.
using Side = float[kDepth][kTile + 4];

struct Problem {
  ConvArgs a;
  int kernel_h, kernel_w, depth, out_n;
  std::int64_t rows;
  unsigned column_tiles;
  bool quads;  // y and the residual can be loaded and stored by four channels
};

// What one thread loads of the pixels: four numbers a step, of one row of the product, walking up the depth.
struct PixelWalk {
  const float* picture;
  int y, x;  // of the window's first pixel
  int ky, kx, c;
  bool inside;  // false for rows beyond the last

  __device__ PixelWalk(const Problem& p, std::int64_t row, int first) {
    const ConvArgs& a = p.a;
    inside = row < p.rows;
    const std::int64_t of = inside ? row : 0;
    const int in_picture = static_cast<int>(of % (static_cast<std::int64_t>(a.out_h) * a.out_w));
    const std::int64_t n = of / (static_cast<std::int64_t>(a.out_h) * a.out_w);
    picture = static_cast<const float*>(a.x.data) + n * a.in_h * a.in_w * a.x.pixel;
    y = in_picture / a.out_w * a.stride - a.pad;
    x = in_picture % a.out_w * a.stride - a.pad;
    ky = 0;
    kx = 0;
    c = 0;
    advance(p, first);
  }

  __device__ void advance(const Problem& p, int by) {
    c += by;
    while (c >= p.a.x.channels) {
      c -= p.a.x.channels;
      if (++kx == p.kernel_w) kx = 0, ++ky;
    }
  }

  // Null outside the picture and beyond the depth, where there are zeros.
  __device__ const float* address(const Problem& p) const {
    const ConvArgs& a = p.a;
    const int at_y = y + ky, at_x = x + kx;
    if (!inside || ky >= p.kernel_h || at_y < 0 || at_y >= a.in_h || at_x < 0 || at_x >= a.in_w) return nullptr;
    const std::int64_t pixel = static_cast<std::int64_t>(at_y) * a.in_w + at_x;
    return picture + pixel * a.x.pixel + c;
  }

  template <bool kPieces>
  __device__ Piece<float> load(const Problem& p) const {
    if constexpr (kPieces) {
      const float* const from = address(p);
      return from ? Piece<float>::load(from) : Piece<float>{};
    } else {
      Piece<float> four = {};
      PixelWalk walk = *this;
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const float* const from = walk.address(p);
        if (from) four.at[i] = *from;
        walk.advance(p, 1);
      }
      return four;
    }
  }
};

__device__ __forceinline__ void put(Side& side, int depth, int at, const Piece<float>& four) {
#pragma unroll
  for (int i = 0; i < kQuad; ++i) side[depth + i][at] = four.at[i];
}

// The first of four columns of a row of the product in y and in the residual: pixel and channel.
struct Target {
  std::int64_t pixel;
  int channel;

  __device__ Target(const ConvArgs& a, std::int64_t row, int column) : pixel(row), channel(column) {
    if (!a.transposed) return;
    const std::int64_t line = row / a.out_w;  // of all pictures
    const int ox = static_cast<int>(row % a.out_w), corner = column / a.y.channels;
    channel = column % a.y.channels;
    pixel = (2 * line + corner / 2) * (2 * a.out_w) + 2 * ox + corner % 2;
  }
};

__device__ __forceinline__ float finished(const ConvArgs& a, float sum, int column) {
  const float value = a.offset ? sum + a.offset[column] : sum;
  return a.relu && value < 0.0f ? 0.0f : value;  // NaN passes
}

__device__ void write(const Problem& p, std::int64_t row, int column, const float (&sums)[kQuad]) {
  const ConvArgs& a = p.a;
  const float* const residual = static_cast<const float*>(a.residual.data);
  float* const y = static_cast<float*>(a.y.data);
  if (p.quads && column + kQuad <= p.out_n) {
    const Target to(a, row, column);
    Piece<float> four, added = {};
    if (residual) added = Piece<float>::load(residual + to.pixel * a.residual.pixel + to.channel);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      four.at[j] = finished(a, sums[j], column + j);
      if (residual) four.at[j] += a.residual_scale * added.at[j];
    }
    four.store(y + to.pixel * a.y.pixel + to.channel);
    return;
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    if (column + j >= p.out_n) break;
    const Target to(a, row, column + j);
    float value = finished(a, sums[j], column + j);
    if (residual) value += a.residual_scale * residual[to.pixel * a.residual.pixel + to.channel];
    y[to.pixel * a.y.pixel + to.channel] = value;
  }
}

// kPieces: pixels and weights are loaded by four, which lie at multiples of 16 bytes.
template <bool kPieces>
__global__ void __launch_bounds__(kThreads) conv_f32_kernel(const __grid_constant__ Problem p, std::int64_t tiles) {
  __shared__ __align__(16) Side pixels[2], weights[2];
  wait_for_previous();
  let_next_begin();
  const int thread = static_cast<int>(threadIdx.x);
  const int load_at = thread / kQuad, load_depth = thread % kQuad * kQuad;  // the row and column that it loads
  const int row4 = thread / (kTile / kQuad) * kQuad, column4 = thread % (kTile / kQuad) * kQuad;
  for (std::int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const std::int64_t first_row = tile / p.column_tiles * kTile;
    const int first_column = static_cast<int>(tile % p.column_tiles) * kTile;
    PixelWalk walk(p, first_row + load_at, load_depth);
    const int column = first_column + load_at;
    const float* const weight = static_cast<const float*>(p.a.weight) + static_cast<std::int64_t>(column) * p.depth;
    const auto load_weight = [&](int depth) -> Piece<float> {
      if (column >= p.out_n || depth >= p.depth) return {};
      if constexpr (kPieces) {
        return Piece<float>::load(weight + depth);
      } else {
        Piece<float> four = {};
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
          if (depth + i < p.depth) four.at[i] = weight[depth + i];
        }
        return four;
      }
    };
    put(pixels[0], load_depth, load_at, walk.load<kPieces>(p));
    put(weights[0], load_depth, load_at, load_weight(load_depth));
    __syncthreads();

    float sums[kQuad][kQuad] = {};
    int part = 0;
    for (int depth = 0; depth < p.depth; depth += kDepth, part ^= 1) {
      const bool more = depth + kDepth < p.depth;
      Piece<float> next_pixels = {}, next_weights = {};
      if (more) {
        walk.advance(p, kDepth);
        next_pixels = walk.load<kPieces>(p);
        next_weights = load_weight(depth + kDepth + load_depth);
      }
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const Piece<float> left = Piece<float>::load(&pixels[part][d][row4]);
        const Piece<float> right = Piece<float>::load(&weights[part][d][column4]);
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
#pragma unroll
          for (int j = 0; j < kQuad; ++j) sums[i][j] = fmaf(left.at[i], right.at[j], sums[i][j]);
        }
      }
      if (more) {
        put(pixels[part ^ 1], load_depth, load_at, next_pixels);
        put(weights[part ^ 1], load_depth, load_at, next_weights);
      }
      __syncthreads();  // the other part is complete, and this one is free
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (first_row + row4 + i < p.rows) write(p, first_row + row4 + i, first_column + column4, sums[i]);
    }
  }
}

void launch_conv(const ConvArgs& args, int kernel_h, int kernel_w, Queue queue) {
  Problem p{args, kernel_h, kernel_w, kernel_h * kernel_w * args.x.channels, args.out_n(), args.rows(), 0, false};
  p.column_tiles = static_cast<unsigned>((p.out_n + kTile - 1) / kTile);
  p.quads = in_pieces(args.y) && args.y.channels % kQuad == 0 && (!args.residual.data || in_pieces(args.residual));
  const bool pieces = in_pieces(args.x) && args.x.channels % kQuad == 0 &&
                      reinterpret_cast<std::uintptr_t>(args.weight) % sizeof(Piece<float>) == 0;
  const std::int64_t tiles = (p.rows + kTile - 1) / kTile * p.column_tiles;
  launch("conv", queue, tiles, 1, kThreads, pieces ? conv_f32_kernel<true> : conv_f32_kernel<false>, p, tiles);
}

}  // namespace

void conv_f32(const ConvArgs& args, Queue queue) { launch_conv(args, args.kernel, args.kernel, queue); }

void conv_f32_any(const ConvArgs& args, int kernel_h, int kernel_w, Queue queue) {
  launch_conv(args, kernel_h, kernel_w, queue);
}

}  // namespace yolonas::cuda
