// The convolution on the tensor cores, an implicit matrix product: rows are output pixels, columns output channels, the
// depth runs over taps and input channels. Included by the .cu files that instantiate it.
//
// A block computes a tile of kRows x kColumns in steps of kStep bytes of depth. kStages steps of both operands lie in
// shared memory or are on their way there, copied 16 bytes at a time ("chunks") straight from the map: a chunk belongs
// to one tap, so padding, stride and the edge of a picture are a matter of where each chunk comes from, or that it is
// zero. Shared memory holds rows of kStep bytes whose chunks are permuted, so that the eight rows of an 8x16 byte
// matrix lie in different banks.
#pragma once

#include <type_traits>

#include "cuda/conv.h"
#include "cuda/launch.h"
#include "cuda/tensor_core.h"

namespace yolonas::cuda {

// How results are written. It is the same for a whole launch, so each way is code of its own: what a block runs is
// short and lies together, as instructions are loaded anew by nearly every launch.
enum class Store {
  eights,   // eight channels at a time; with a residual only where y is no transposed one
  floats,   // two float32 numbers at a time, not of a transposed one
  singles,  // all else
};

struct ConvKernelArgs {
  const unsigned char* x;
  const unsigned char* weight;
  const float* multiplier;
  const float* offset;
  const void* residual;
  void* y;
  void* partial;
  unsigned* counters;
  float residual_scale;
  int rows, columns;  // of the product
  int in_h, in_w, out_h, out_w, kernel, stride, pad;
  int x_pixel;             // bytes
  int y_pixel, r_pixel;    // elements
  int y_channels;          // of a pixel of y: columns, or a fourth of them
  int tap_chunks, chunks;  // of one tap, and of the whole depth
  int column_tiles, splits, split_steps;
  Store store;
  bool relu, transposed, y_f32;
};

// The element type of a product.
struct Half {
  using Sum = float;
  static constexpr Elem kElem = Elem::f16;
};
struct Int8 {
  using Sum = std::int32_t;
  static constexpr Elem kElem = Elem::s8;
};

template <class Type_, int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_, int kStep_, int kStages_,
          int kLeastArch_ = 80>
struct ConvTile {
  using Type = Type_;
  using Sum = typename Type::Sum;
  static constexpr int kRows = kRows_, kColumns = kColumns_;                  // of a block
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;  // of a warp
  static constexpr int kStep = kStep_;                                        // bytes of depth
  static constexpr int kStages = kStages_;
  static constexpr int kLeastArch = kLeastArch_;

  static constexpr int kRowWarps = kRows / kWarpRows, kColumnWarps = kColumns / kWarpColumns;
  static constexpr int kThreads = 32 * kRowWarps * kColumnWarps;
  static constexpr int kStepChunks = kStep / 16;
  static constexpr int kPassRows = kThreads / kStepChunks;  // that all threads copy at once, a chunk each
  static constexpr int kRowPasses = (kRows + kPassRows - 1) / kPassRows;
  static constexpr int kColumnPasses = (kColumns + kPassRows - 1) / kPassRows;
  static constexpr int kStageBytes = (kRows + kColumns) * kStep;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kFragmentRows = kWarpRows / 16, kFragmentColumns = kWarpColumns / 8;  // of 16 x 8 results

  static_assert(kRows % kWarpRows == 0 && kColumns % kWarpColumns == 0, "a block is cut evenly");
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 32 == 0, "four fragments of 8 columns are stored together");
  static_assert(kStep == 64 || kStep == 128, "the two permutations of chunks");
  static_assert(kThreads % kStepChunks == 0 && kStages >= 2, "");
};

// Where a chunk of a row lies in a tile.
template <int kStep>
__device__ __forceinline__ int tile_offset(int row, int chunk) {
  const int permuted = chunk ^ (kStep == 128 ? row & 7 : row >> 1 & 3);
  return row * kStep + permuted * 16;
}

// Copies the chunks of one thread: always the same chunk of a step, of every kPassRows-th row.
template <class Tile>
class ConvLoader {
 public:
  __device__ __forceinline__ ConvLoader(const ConvKernelArgs& a, int first_row, int first_column, int first_step)
      : a_(a), first_column_(first_column) {
    const int thread = static_cast<int>(threadIdx.x);
    chunk_ = thread % Tile::kStepChunks;
    pass_row_ = thread / Tile::kStepChunks;
#pragma unroll
    for (int i = 0; i < Tile::kRowPasses; ++i) {
      const int row = first_row + pass_row_ + i * Tile::kPassRows;
      const int line = row / a.out_w, ox = row % a.out_w;  // line: of all pictures
      const int picture = line / a.out_h, oy = line % a.out_h;
      x_[i] = ox * a.stride - a.pad;
      y_[i] = row < a.rows ? oy * a.stride - a.pad : kNowhere;
      from_[i] =
          a.x + (static_cast<std::int64_t>(picture * a.in_h + oy * a.stride - a.pad) * a.in_w + x_[i]) * a.x_pixel;
    }
    depth_ = first_step * Tile::kStepChunks + chunk_;
    weight_depth_ = depth_;
    const int tap = depth_ / a.tap_chunks;
    in_tap_ = depth_ % a.tap_chunks;
    ky_ = tap / a.kernel;
    kx_ = tap % a.kernel;
  }

  // The weights of the next step.
  __device__ __forceinline__ void load_weights(unsigned char* tile) {
    const bool inside = weight_depth_ < a_.chunks;
#pragma unroll
    for (int i = 0; i < Tile::kColumnPasses; ++i) {
      const int row = pass_row_ + i * Tile::kPassRows, column = first_column_ + row;
      if (Tile::kColumns % Tile::kPassRows != 0 && row >= Tile::kColumns) break;
      const bool valid = inside && column < a_.columns;
      const std::int64_t at = valid ? (static_cast<std::int64_t>(column) * a_.chunks + weight_depth_) * 16 : 0;
      cp_async16(tile + tile_offset<Tile::kStep>(row, chunk_), a_.weight + at, valid);
    }
    weight_depth_ += Tile::kStepChunks;
  }

  // The pixels of the next step.
  __device__ __forceinline__ void load_pixels(unsigned char* tile) {
    const std::int64_t tap = static_cast<std::int64_t>(ky_ * a_.in_w + kx_) * a_.x_pixel + in_tap_ * 16;
    const bool inside = depth_ < a_.chunks;
#pragma unroll
    for (int i = 0; i < Tile::kRowPasses; ++i) {
      const int row = pass_row_ + i * Tile::kPassRows;
      if (Tile::kRows % Tile::kPassRows != 0 && row >= Tile::kRows) break;
      const bool valid = inside && static_cast<unsigned>(y_[i] + ky_) < static_cast<unsigned>(a_.in_h) &&
                         static_cast<unsigned>(x_[i] + kx_) < static_cast<unsigned>(a_.in_w);
      cp_async16(tile + tile_offset<Tile::kStep>(row, chunk_), valid ? from_[i] + tap : a_.x, valid);
    }
    depth_ += Tile::kStepChunks;
    in_tap_ += Tile::kStepChunks;
    while (in_tap_ >= a_.tap_chunks) {
      in_tap_ -= a_.tap_chunks;
      if (++kx_ == a_.kernel) {
        kx_ = 0;
        ++ky_;
      }
    }
  }

 private:
  static constexpr int kNowhere = -(1 << 20);  // no row of any picture, whatever the tap

  const ConvKernelArgs& a_;
  int first_column_, chunk_, pass_row_;
  int x_[Tile::kRowPasses], y_[Tile::kRowPasses];  // of the first tap
  const unsigned char* from_[Tile::kRowPasses];
  int depth_, weight_depth_, in_tap_, ky_, kx_;  // of the chunk that comes next
};

// sums += pixels * weights of one step.
template <class Tile>
__device__ __forceinline__ void multiply_step(
    const unsigned char* pixels, const unsigned char* weights, int warp_row, int warp_column,
    typename Tile::Sum (&sums)[Tile::kFragmentRows][Tile::kFragmentColumns][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < Tile::kStep / 32; ++k) {
    std::uint32_t a[Tile::kFragmentRows][4], b[Tile::kFragmentColumns / 2][4];
#pragma unroll
    for (int i = 0; i < Tile::kFragmentRows; ++i) {
      ldmatrix_x4(a[i], pixels + tile_offset<Tile::kStep>(warp_row + i * 16 + lane % 16, 2 * k + lane / 16));
    }
#pragma unroll
    for (int j = 0; j < Tile::kFragmentColumns / 2; ++j) {
      const int column = warp_column + j * 16 + lane % 8 + lane / 16 * 8;
      ldmatrix_x4(b[j], weights + tile_offset<Tile::kStep>(column, 2 * k + lane / 8 % 2));
    }
#pragma unroll
    for (int i = 0; i < Tile::kFragmentRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kFragmentColumns; ++j)
        mma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
}

// Exchanges among four neighbouring lanes: v[j] of lane q becomes v[q] of lane j.
__device__ __forceinline__ void transpose_quad(std::uint32_t (&v)[4], int quad) {
  const bool odd = quad & 1, upper = quad & 2;
#pragma unroll
  for (int j = 0; j < 4; j += 2) {
    const std::uint32_t other = shuffle_xor(odd ? v[j] : v[j + 1], 1);
    (odd ? v[j] : v[j + 1]) = other;
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const std::uint32_t other = shuffle_xor(upper ? v[j] : v[j + 2], 2);
    (upper ? v[j] : v[j + 2]) = other;
  }
}

// Numbers of a residual: two neighbouring ones, or one.
__device__ __forceinline__ float2 load_two(const __half* from) {
  return __half22float2(*reinterpret_cast<const __half2*>(from));
}
__device__ __forceinline__ float2 load_two(const std::int8_t* from) {
  const char2 two = *reinterpret_cast<const char2*>(from);
  return make_float2(static_cast<float>(two.x), static_cast<float>(two.y));
}
__device__ __forceinline__ float load_one(const __half* from) { return __half2float(*from); }
__device__ __forceinline__ float load_one(const std::int8_t* from) { return static_cast<float>(*from); }

__device__ __forceinline__ std::int8_t quantized_s8(float v) {
  return static_cast<std::int8_t>(__float2int_rn(fminf(fmaxf(v, -128.0f), 127.0f)));  // fmaxf makes -128 of NaN
}
__device__ __forceinline__ std::uint32_t packed(float2 v, Half) {
  const __half2 two = __floats2half2_rn(v.x, v.y);
  return *reinterpret_cast<const std::uint32_t*>(&two);
}
__device__ __forceinline__ std::uint32_t packed(float2 v, Int8) {
  return static_cast<std::uint8_t>(quantized_s8(v.x)) |
         static_cast<std::uint32_t>(static_cast<std::uint8_t>(quantized_s8(v.y))) << 8;
}
__device__ __forceinline__ void store_one(float* to, float v) { *to = v; }
__device__ __forceinline__ void store_one(__half* to, float v) { *to = __float2half_rn(v); }
__device__ __forceinline__ void store_one(std::int8_t* to, float v) { *to = quantized_s8(v); }

// Four packed pairs, which are eight neighbouring channels.
__device__ __forceinline__ void store_eight(__half* to, const std::uint32_t (&v)[4]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(v[0], v[1], v[2], v[3]);
}
__device__ __forceinline__ void store_eight(std::int8_t* to, const std::uint32_t (&v)[4]) {
  *reinterpret_cast<uint2*>(to) = make_uint2(v[0] | v[1] << 16, v[2] | v[3] << 16);
}

// From the sums of a warp to y.
template <class Tile, Store kStore>
__device__ __forceinline__ void finish_as(
    const ConvKernelArgs& a, int first_row, int first_column,
    const typename Tile::Sum (&sums)[Tile::kFragmentRows][Tile::kFragmentColumns][4]) {
  using Type = typename Tile::Type;
  using Element = std::conditional_t<std::is_same<Type, Half>::value, __half, std::int8_t>;
  constexpr bool kIsInt8 = std::is_same<Type, Int8>::value;
  const int lane = static_cast<int>(threadIdx.x) % 32, quad = lane % 4;
  float2 multiplier[Tile::kFragmentColumns], offset[Tile::kFragmentColumns];
#pragma unroll
  for (int j = 0; j < Tile::kFragmentColumns; ++j) {
    const int column = first_column + j * 8 + quad * 2;
    const bool one = column < a.columns, two = column + 1 < a.columns;
    offset[j] = make_float2(one ? __ldg(a.offset + column) : 0.0f, two ? __ldg(a.offset + column + 1) : 0.0f);
    if (kIsInt8) {
      multiplier[j] =
          make_float2(one ? __ldg(a.multiplier + column) : 0.0f, two ? __ldg(a.multiplier + column + 1) : 0.0f);
    }
  }
  // The pixel of y that a column belongs to, from a row's first one on, and its channel there.
  const auto pixel_of = [&](int column) -> std::int64_t {
    const int tap = a.transposed ? column / a.y_channels : 0;
    return tap / 2 * 2 * a.out_w + tap % 2;
  };
  const auto channel_of = [&](int column) { return a.transposed ? column % a.y_channels : column; };
  std::int64_t eight[Tile::kFragmentColumns / 4] = {};  // where this lane stores, from the row's first pixel on
  if (kStore == Store::eights) {
#pragma unroll
    for (int j = 0; j < Tile::kFragmentColumns / 4; ++j) {
      const int column = first_column + (4 * j + quad) * 8;
      eight[j] = pixel_of(column) * a.y_pixel + channel_of(column);
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * Tile::kFragmentRows; ++i) {
    const int row = first_row + i * 8 + lane / 4;
    const bool inside = row < a.rows;
    std::int64_t pixel = row;
    if (a.transposed) pixel = static_cast<std::int64_t>(row / a.out_w) * 4 * a.out_w + row % a.out_w * 2;
    const Element* const residual = static_cast<const Element*>(a.residual);
    const std::int64_t r_at = pixel * a.r_pixel, y_at = pixel * a.y_pixel;
    const auto store_single = [&](int column, float v) {
      if (!inside || column >= a.columns) return;
      const std::int64_t at = pixel + pixel_of(column);
      const int channel = channel_of(column);
      if (a.residual) v += load_one(residual + at * a.r_pixel + channel) * a.residual_scale;
      if (a.y_f32) {
        store_one(static_cast<float*>(a.y) + at * a.y_pixel + channel, v);
      } else {
        store_one(static_cast<Element*>(a.y) + at * a.y_pixel + channel, v);
      }
    };
    float2 added[Tile::kFragmentColumns] = {};  // all under way before the first is waited for
    if (kStore != Store::singles && a.residual) {
#pragma unroll
      for (int j = 0; j < Tile::kFragmentColumns; ++j) {
        const int column = first_column + j * 8 + quad * 2;
        if (inside && column < a.columns) added[j] = load_two(residual + r_at + column);
      }
    }
#pragma unroll
    for (int four = 0; four < Tile::kFragmentColumns; four += 4) {
      std::uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = first_column + (four + j) * 8 + quad * 2;
        float2 v = make_float2(static_cast<float>(sums[i / 2][four + j][i % 2 * 2]),
                               static_cast<float>(sums[i / 2][four + j][i % 2 * 2 + 1]));
        if (kIsInt8) {
          v.x *= multiplier[four + j].x;
          v.y *= multiplier[four + j].y;
        }
        v.x += offset[four + j].x;
        v.y += offset[four + j].y;
        if (a.relu) {
          v.x = v.x < 0.0f ? 0.0f : v.x;  // a NaN stays
          v.y = v.y < 0.0f ? 0.0f : v.y;
        }
        if constexpr (kStore == Store::singles) {  // in place: a lane reads what it alone writes
          store_single(column, v.x);
          store_single(column + 1, v.y);
        } else {
          if (a.residual) {
            v.x += added[four + j].x * a.residual_scale;
            v.y += added[four + j].y * a.residual_scale;
          }
          if constexpr (kStore == Store::eights) {
            pairs[j] = packed(v, Type{});
          } else if (inside && column < a.columns) {
            *reinterpret_cast<float2*>(static_cast<float*>(a.y) + y_at + column) = v;
          }
        }
      }
      if constexpr (kStore == Store::eights) {
        transpose_quad(pairs, quad);  // its shuffles also keep every read of a residual before the writes
        if (inside && first_column + (four + quad) * 8 < a.columns) {
          store_eight(static_cast<Element*>(a.y) + y_at + eight[four / 4], pairs);
        }
      }
    }
  }
}

template <class Tile>
__device__ __forceinline__ void finish(
    const ConvKernelArgs& a, int first_row, int first_column,
    const typename Tile::Sum (&sums)[Tile::kFragmentRows][Tile::kFragmentColumns][4]) {
  if (a.store == Store::eights) {
    finish_as<Tile, Store::eights>(a, first_row, first_column, sums);
  } else if (a.store == Store::floats) {
    finish_as<Tile, Store::floats>(a, first_row, first_column, sums);
  } else {
    finish_as<Tile, Store::singles>(a, first_row, first_column, sums);
  }
}

// Leaves this block's sums in memory, and gives the last block of a tile to come here those of all, added up in order.
// False for the other blocks. `finished`: of the memory that all threads of the block share, free once all are here.
template <class Tile>
__device__ __forceinline__ bool add_splits(const ConvKernelArgs& a, int tile, int split, unsigned& finished,
                                           typename Tile::Sum (&sums)[Tile::kFragmentRows][Tile::kFragmentColumns][4]) {
  using Sum = typename Tile::Sum;
  using Sum4 = std::conditional_t<std::is_same<Sum, float>::value, float4, int4>;
  constexpr int kFragments = Tile::kFragmentRows * Tile::kFragmentColumns;
  const int thread = static_cast<int>(threadIdx.x);
  Sum4* const parts =
      static_cast<Sum4*>(a.partial) + static_cast<std::int64_t>(tile) * a.splits * kFragments * Tile::kThreads + thread;
  Sum4* part = parts + static_cast<std::int64_t>(split) * kFragments * Tile::kThreads;
#pragma unroll
  for (int i = 0; i < kFragments; ++i) {
    const Sum(&four)[4] = sums[i / Tile::kFragmentColumns][i % Tile::kFragmentColumns];
    part[i * Tile::kThreads] = Sum4{four[0], four[1], four[2], four[3]};
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) finished = atomicAdd(a.counters + tile, 1u);
  __syncthreads();
  if (finished != static_cast<unsigned>(a.splits - 1)) return false;
  __threadfence();
  if (thread == 0) a.counters[tile] = 0;
  for (int s = 0; s < a.splits; ++s) {
    part = parts + static_cast<std::int64_t>(s) * kFragments * Tile::kThreads;
#pragma unroll
    for (int i = 0; i < kFragments; ++i) {
      const Sum4 add = __ldcg(part + i * Tile::kThreads);
      Sum(&four)[4] = sums[i / Tile::kFragmentColumns][i % Tile::kFragmentColumns];
      four[0] = s == 0 ? add.x : four[0] + add.x;
      four[1] = s == 0 ? add.y : four[1] + add.y;
      four[2] = s == 0 ? add.z : four[2] + add.z;
      four[3] = s == 0 ? add.w : four[3] + add.w;
    }
  }
  return true;
}

// What a block computes, (tile, split) of the grid, and where its steps lie in shared memory. Tiles of the same pixels
// are neighbours.
template <class Tile>
struct ConvBlock {
  int tile, split, first_row, first_column, first_step, steps;
  unsigned char* shared;

  __device__ __forceinline__ ConvBlock(const ConvKernelArgs& a, unsigned char* memory) : shared(memory) {
    tile = static_cast<int>(blockIdx.x);
    split = static_cast<int>(blockIdx.y);
    first_row = tile / a.column_tiles * Tile::kRows;
    first_column = tile % a.column_tiles * Tile::kColumns;
    const int all_steps = (a.chunks + Tile::kStepChunks - 1) / Tile::kStepChunks;
    first_step = split * a.split_steps;
    steps = min(a.split_steps, all_steps - first_step);
  }
  __device__ __forceinline__ unsigned char* pixels(int step) const {
    return shared + step % Tile::kStages * Tile::kStageBytes;
  }
  __device__ __forceinline__ unsigned char* weights(int step) const { return pixels(step) + Tile::kRows * Tile::kStep; }
};

// Shared memory decides how many blocks run at once, so the compiler need not save registers for more of them.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) conv_kernel(const ConvKernelArgs a) {
#if defined(__CUDA_ARCH__)
  if constexpr (Tile::kLeastArch * 10 > __CUDA_ARCH__) return;  // never launched there
#endif
  YN_DYNAMIC_SHARED(shared);
  const ConvBlock<Tile> block(a, shared);
  const int steps = block.steps;
  ConvLoader<Tile> loader(a, block.first_row, block.first_column, block.first_step);
  // Weights never change, so they may come before the launch that makes the pixels has ended.
#pragma unroll
  for (int step = 0; step < Tile::kStages - 1; ++step) {
    if (step < steps) loader.load_weights(block.weights(step));
  }
  wait_for_previous();
  let_next_begin();
#pragma unroll
  for (int step = 0; step < Tile::kStages - 1; ++step) {
    if (step < steps) loader.load_pixels(block.pixels(step));
    cp_async_commit();
  }

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / Tile::kColumnWarps * Tile::kWarpRows;
  const int warp_column = warp % Tile::kColumnWarps * Tile::kWarpColumns;
  typename Tile::Sum sums[Tile::kFragmentRows][Tile::kFragmentColumns][4] = {};
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<Tile::kStages - 2>();  // of this thread's copies for the step
    __syncthreads();                     // of everyone's; and all have left the stage that is filled next
    const int next = step + Tile::kStages - 1;
    if (next < steps) {
      loader.load_weights(block.weights(next));
      loader.load_pixels(block.pixels(next));
    }
    cp_async_commit();
    multiply_step<Tile>(block.pixels(step), block.weights(step), warp_row, warp_column, sums);
  }
  if (a.splits > 1 && !add_splits<Tile>(a, block.tile, block.split, *reinterpret_cast<unsigned*>(shared), sums)) return;
  finish<Tile>(a, block.first_row + warp_row, block.first_column + warp_column, sums);
}

template <class Tile>
void launch_conv(const ConvKernelArgs& args, int row_tiles, Queue queue) {
  const dim3 grid(static_cast<unsigned>(row_tiles * args.column_tiles), static_cast<unsigned>(args.splits));
  launch_grid("conv", queue, grid, Tile::kThreads, Tile::kSharedBytes, conv_kernel<Tile>, args);
}

using LaunchConv = void (*)(const ConvKernelArgs& args, int row_tiles, Queue queue);
// A row of the tables of conv.cu.
struct ConvEntry {
  ConvVariant variant;
  LaunchConv launch;
  int partial_bytes;  // of a block's sums
};
template <class Tile>
constexpr ConvEntry conv_entry(const char* name, LaunchConv launch = launch_conv<Tile>, int most_arch = kNewest) {
  return {
      {name, Tile::kRows, Tile::kColumns, Tile::kStep, Tile::kThreads, Tile::kSharedBytes, Tile::kLeastArch, most_arch},
      launch,
      Tile::kRows * Tile::kColumns * 4};
}

// The tiles of one element type: the same for both, as their bytes go the same way. The first is for everyone.
#define YN_CONV_TILES(Type)                                                \
  {                                                                        \
      conv_entry<ConvTile<Type, 64, 64, 32, 32, 128, 3, 75>>("64x64k128"), \
      conv_entry<ConvTile<Type, 32, 32, 16, 32, 128, 4, 75>>("32x32k128"), \
      conv_entry<ConvTile<Type, 128, 64, 32, 32, 64, 4, 75>>("128x64k64"), \
      conv_entry<ConvTile<Type, 32, 64, 16, 32, 128, 4>>("32x64k128"),     \
      conv_entry<ConvTile<Type, 64, 32, 16, 32, 128, 4>>("64x32k128"),     \
      conv_entry<ConvTile<Type, 128, 32, 32, 32, 64, 4>>("128x32k64"),     \
      conv_entry<ConvTile<Type, 64, 96, 32, 32, 128, 3>>("64x96k128"),     \
      conv_entry<ConvTile<Type, 128, 96, 64, 32, 64, 4>>("128x96k64"),     \
      conv_entry<ConvTile<Type, 128, 64, 64, 32, 128, 3>>("128x64k128"),   \
      conv_entry<ConvTile<Type, 128, 128, 64, 32, 64, 4>>("128x128k64"),   \
      conv_entry<ConvTile<Type, 128, 128, 64, 32, 128, 3>>("128x128k128"), \
      conv_entry<ConvTile<Type, 256, 64, 64, 32, 64, 4>>("256x64k64"),     \
  }

extern const ConvEntry kHalfConvs[], kInt8Convs[];
extern const int kHalfConvCount, kInt8ConvCount;
extern const ConvEntry kWarpgroupHalfConvs[], kWarpgroupInt8Convs[];  // of hopper/, where the build has it
extern const int kWarpgroupHalfConvCount, kWarpgroupInt8ConvCount;

}  // namespace yolonas::cuda
