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

// kBlocks: how many blocks of a multiprocessor the compiler has to leave registers for. Shared memory has room for as
// many, and the compiler keeps nothing in local memory for it.
template <class Type_, int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_, int kStep_, int kStages_,
          int kBlocks_, int kLeastArch_ = 80>
struct ConvTile {
  using Type = Type_;
  using Sum = typename Type::Sum;
  static constexpr int kRows = kRows_, kColumns = kColumns_;                  // of a block
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;  // of a warp
  static constexpr int kStep = kStep_;                                        // bytes of depth
  static constexpr int kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kLeastArch = kLeastArch_;

  static constexpr int kRowWarps = kRows / kWarpRows, kColumnWarps = kColumns / kWarpColumns;
  static constexpr int kThreads = 32 * kRowWarps * kColumnWarps;
  static constexpr int kStepChunks = kStep / 16;
  static constexpr int kPassRows = kThreads / kStepChunks;  // that all threads copy at once, a chunk each
  static constexpr int kRowPasses = (kRows + kPassRows - 1) / kPassRows;
  static constexpr int kColumnPasses = (kColumns + kPassRows - 1) / kPassRows;
  static constexpr int kPixelBytes = kRows * kStep, kStageBytes = kPixelBytes + kColumns * kStep;
  static constexpr int kStagesBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = kStagesBytes + kColumns * 8;              // with the columns' constants
  static constexpr int kReadRows = kThreads / 32 * (kWarpRows + kWarpColumns);  // in a step, by ldmatrix
  static constexpr int kFragmentRows = kWarpRows / 16, kFragmentColumns = kWarpColumns / 8;  // of 16 x 8 results

  static_assert(kRows % kWarpRows == 0 && kColumns % kWarpColumns == 0, "a block is cut evenly");
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 32 == 0, "four fragments of 8 columns are stored together");
  static_assert(kStep == 64 || kStep == 128, "the two permutations of chunks");
  static_assert(kThreads % kStepChunks == 0 && kStages >= 2 && kThreads >= kColumns, "");
};

// Where a chunk of a row lies in a tile.
template <int kStep>
__device__ __forceinline__ int tile_offset(int row, int chunk) {
  const int permuted = chunk ^ (kStep == 128 ? row & 7 : row >> 1 & 3);
  return row * kStep + permuted * 16;
}

// A thread copies the same chunk of every step, of every kPassRows-th row of a tile. Loops are short of instructions
// before they are short of anything else, so the loaders count addresses on instead of computing them: a copy takes an
// addition of 64 bits, a test and the copy itself.
template <class Tile>
struct OwnChunk {
  int chunk, row;  // of the first pass
  int at;          // in a tile; passes are kPassRows * kStep bytes apart, as their rows are permuted alike

  __device__ __forceinline__ OwnChunk() {
    static_assert(Tile::kPassRows % 8 == 0, "rows of all passes are permuted alike");
    const int thread = static_cast<int>(threadIdx.x);
    chunk = thread % Tile::kStepChunks;
    row = thread / Tile::kStepChunks;
    at = tile_offset<Tile::kStep>(row, chunk);
  }
  // Whether the tile ends before this thread's row of a pass: in the last one alone.
  template <int kTileRows>
  __device__ __forceinline__ bool ends_before(int pass) const {
    constexpr int kWhole = kTileRows / Tile::kPassRows;
    return pass == kWhole && row + kWhole * Tile::kPassRows >= kTileRows;
  }
};

template <class Tile>
class WeightLoader {
 public:
  __device__ __forceinline__ void start(const ConvKernelArgs& a, int first_column, int first_step) {
    const int column = first_column + own_.row, depth = first_step * Tile::kStepChunks + own_.chunk;
    left_ = a.chunks - depth;
    from_ = a.weight + (static_cast<std::int64_t>(column) * a.chunks + depth) * 16;
    pass_bytes_ = static_cast<std::int64_t>(a.chunks) * (Tile::kPassRows * 16);
    missing_ = 0;
#pragma unroll
    for (int i = 0; i < Tile::kColumnPasses; ++i) {
      if (column + i * Tile::kPassRows >= a.columns) missing_ |= 1u << i;
    }
  }

  // Those of the next step.
  __device__ __forceinline__ void load(unsigned char* tile) {
    const unsigned missing = left_ > 0 ? missing_ : ~0u;
    const unsigned char* from = from_;
#pragma unroll
    for (int i = 0; i < Tile::kColumnPasses; ++i) {
      if (own_.template ends_before<Tile::kColumns>(i)) break;
      cp_async16(tile + own_.at + i * Tile::kPassRows * Tile::kStep, from, missing & 1u << i);
      from += pass_bytes_;
    }
    from_ += Tile::kStep;
    left_ -= Tile::kStepChunks;
  }

 private:
  OwnChunk<Tile> own_;
  const unsigned char* from_;  // of the first pass
  std::int64_t pass_bytes_;
  unsigned missing_;  // bit i: the column of pass i is beyond the last one
  int left_;          // chunks from this one to the end of the depth
};

// Whether a tap lies in the picture is looked up: taps are two bits, 1 << kx and 1 << (kLineBit + ky), and each row
// knows the bits of those that lie outside. Beyond the end of the depth ky is at least `kernel`, which is outside.
template <class Tile>
class PixelLoader {
 public:
  __device__ __forceinline__ void start(const ConvKernelArgs& a, int first_row, int first_step) {
    tap_chunks_ = a.tap_chunks;
    end_ = 1u << a.kernel;
#pragma unroll
    for (int i = 0; i < Tile::kRowPasses; ++i) {
      const int row = first_row + own_.row + i * Tile::kPassRows;
      const int line = row / a.out_w;  // of all pictures
      const int picture = line / a.out_h;
      const int x = row % a.out_w * a.stride - a.pad, y = line % a.out_h * a.stride - a.pad;
      from_[i] = a.x + (static_cast<std::int64_t>(picture * a.in_h + y) * a.in_w + x) * a.x_pixel;
      const unsigned inside = taps_inside(x, a.in_w, a.kernel) | taps_inside(y, a.in_h, a.kernel) << kLineBit;
      outside_[i] = row < a.rows ? ~inside : ~0u;
    }
    const int depth = first_step * Tile::kStepChunks + own_.chunk;
    const int tap = depth / a.tap_chunks, ky = tap / a.kernel, kx = tap % a.kernel;
    in_tap_ = depth % a.tap_chunks;
    bits_ = 1u << kx | 1u << (kLineBit + ky);
    at_ = static_cast<std::int64_t>(ky * a.in_w + kx) * a.x_pixel + in_tap_ * 16;
    to_next_tap_ = a.x_pixel - a.tap_chunks * 16;
    to_next_line_ = static_cast<std::int64_t>(a.in_w - a.kernel) * a.x_pixel;
  }

  // Those of the next step.
  __device__ __forceinline__ void load(unsigned char* tile) {
#pragma unroll
    for (int i = 0; i < Tile::kRowPasses; ++i) {
      if (own_.template ends_before<Tile::kRows>(i)) break;
      cp_async16(tile + own_.at + i * Tile::kPassRows * Tile::kStep, from_[i] + at_, outside_[i] & bits_);
    }
    at_ += Tile::kStep;
    in_tap_ += Tile::kStepChunks;
    while (in_tap_ >= tap_chunks_) {
      in_tap_ -= tap_chunks_;
      at_ += to_next_tap_;
      bits_ += bits_ & kColumnBits;
      if (bits_ & end_) {
        bits_ = (bits_ & ~kColumnBits) << 1 | 1;
        at_ += to_next_line_;
      }
    }
  }

 private:
  static constexpr int kLineBit = 8;
  static constexpr unsigned kColumnBits = (1u << kLineBit) - 1;
  // Chunks beyond the end belong to at most 8 more taps, so to 8 more lines.
  static_assert(kMostKernel < kLineBit && kLineBit + kMostKernel + 8 < 32, "bits for all columns and lines");

  // Bits of the taps from `first` on that lie in 0..size - 1.
  __device__ __forceinline__ static unsigned taps_inside(int first, int size, int kernel) {
    return ((1u << max(0, min(kernel, size - first))) - 1) & ~0u << min(31, max(0, -first));
  }

  OwnChunk<Tile> own_;
  const unsigned char* from_[Tile::kRowPasses];  // the first tap
  unsigned outside_[Tile::kRowPasses];
  unsigned bits_;    // of the tap that comes next
  std::int64_t at_;  // of the chunk that comes next, from the first tap on
  int in_tap_, tap_chunks_;
  unsigned end_;
  int to_next_tap_;            // from the end of a tap to the next one's begin
  std::int64_t to_next_line_;  // from the end of a line of taps to the next one's begin
};

// What a warp multiplies of a step, rows x columns from (row, column) of the block's tile on.
template <class Tile>
class StepProduct {
 public:
  __device__ __forceinline__ StepProduct(int row, int column) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    pixels_ = tile_offset<Tile::kStep>(row + lane % 16, lane / 16);
    weights_ = tile_offset<Tile::kStep>(column + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }

  // sums += pixels * weights.
  __device__ __forceinline__ void add(const unsigned char* pixels, const unsigned char* weights,
                                      typename Tile::Sum (&sums)[Tile::kFragmentRows][Tile::kFragmentColumns][4]) {
#pragma unroll
    for (int k = 0; k < Tile::kStep / 32; ++k) {  // the next two chunks: a bit or two of the permutation change
      std::uint32_t a[Tile::kFragmentRows][4], b[Tile::kFragmentColumns / 2][4];
#pragma unroll
      for (int i = 0; i < Tile::kFragmentRows; ++i) {
        ldmatrix_x4(a[i], pixels + (pixels_ ^ 32 * k) + i * 16 * Tile::kStep);
      }
#pragma unroll
      for (int j = 0; j < Tile::kFragmentColumns / 2; ++j) {
        ldmatrix_x4(b[j], weights + (weights_ ^ 32 * k) + j * 16 * Tile::kStep);
      }
#pragma unroll
      for (int i = 0; i < Tile::kFragmentRows; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kFragmentColumns; ++j)
          mma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

 private:
  int pixels_, weights_;  // where this lane's first row lies in the tiles
};

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

// What a block computes, (tile, split) of the grid, and which part of the tile this warp. Tiles of the same pixels are
// neighbours.
template <class Tile>
struct ConvBlock {
  int tile, split, first_row, first_column, first_step, steps;
  int warp_row, warp_column;

  __device__ __forceinline__ explicit ConvBlock(const ConvKernelArgs& a) {
    tile = found_anew(static_cast<int>(blockIdx.x));
    split = static_cast<int>(blockIdx.y);
    first_row = tile / a.column_tiles * Tile::kRows;
    first_column = tile % a.column_tiles * Tile::kColumns;
    const int all_steps = (a.chunks + Tile::kStepChunks - 1) / Tile::kStepChunks;
    first_step = split * a.split_steps;
    steps = min(a.split_steps, all_steps - first_step);
    const int warp = found_anew(static_cast<int>(threadIdx.x)) / 32;
    warp_row = warp / Tile::kColumnWarps * Tile::kWarpRows;
    warp_column = warp % Tile::kColumnWarps * Tile::kWarpColumns;
  }
};

// From the sums of a warp to y. `constants`: of its columns, those of two neighbours in each.
template <class Tile, Store kStore>
__device__ __forceinline__ void finish_as(
    const ConvKernelArgs& a, int first_row, int first_column, const float4* constants,
    const typename Tile::Sum (&sums)[Tile::kFragmentRows][Tile::kFragmentColumns][4]) {
  using Type = typename Tile::Type;
  using Element = std::conditional_t<std::is_same<Type, Half>::value, __half, std::int8_t>;
  constexpr bool kIsInt8 = std::is_same<Type, Int8>::value;
  const int lane = static_cast<int>(threadIdx.x) % 32, quad = lane % 4;
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
        const float4 two = constants[((four + j) * 8 + quad * 2) / 2];  // the constants of both
        if (kIsInt8) {
          v.x *= two.x;
          v.y *= two.z;
        }
        v.x += two.y;
        v.y += two.w;
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
    const ConvKernelArgs& a, const unsigned char* shared,
    const typename Tile::Sum (&sums)[Tile::kFragmentRows][Tile::kFragmentColumns][4]) {
  const ConvBlock<Tile> block(a);  // again, as no registers were left to keep it
  const int first_row = block.first_row + block.warp_row, first_column = block.first_column + block.warp_column;
  const auto* const constants = reinterpret_cast<const float4*>(shared + Tile::kStagesBytes) + block.warp_column / 2;
  if (a.store == Store::eights) {
    finish_as<Tile, Store::eights>(a, first_row, first_column, constants, sums);
  } else if (a.store == Store::floats) {
    finish_as<Tile, Store::floats>(a, first_row, first_column, constants, sums);
  } else {
    finish_as<Tile, Store::singles>(a, first_row, first_column, constants, sums);
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

// A stage, as where it begins in shared memory: first the pixels, then the weights.
template <class Tile>
__device__ __forceinline__ int stage_after(int stage) {
  return stage == Tile::kStagesBytes - Tile::kStageBytes ? 0 : stage + Tile::kStageBytes;
}

// A column's multiplier (of int8 alone) and offset. They lie in shared memory behind the stages: a block fetches them
// when it begins, a column each thread, so that at the end nobody waits for them.
template <class Tile>
__device__ __forceinline__ float2 constants_of(const ConvKernelArgs& a, int first_column) {
  const int column = static_cast<int>(threadIdx.x);
  if (column >= Tile::kColumns || first_column + column >= a.columns) return make_float2(0.0f, 0.0f);
  const float multiplier = a.multiplier ? __ldg(a.multiplier + first_column + column) : 1.0f;
  return make_float2(multiplier, __ldg(a.offset + first_column + column));
}

// Queues the first kAhead steps of a block, each a group of copies, and brings the columns' constants. Weights never
// change, so theirs may begin before the launch that makes the pixels has ended. What comes before the wait costs
// nothing where launches overlap: a loop stands between it and the pixels' addresses, as the compiler moves them beyond
// the wait where nothing does. The loops are not unrolled: a block runs them once, and instructions have to be fetched.
template <class Tile, int kAhead>
__device__ __forceinline__ void load_first(const ConvKernelArgs& a, const ConvBlock<Tile>& block, unsigned char* shared,
                                           WeightLoader<Tile>& weights, PixelLoader<Tile>& pixels) {
  weights.start(a, block.first_column, block.first_step);
  weights.load(shared + Tile::kPixelBytes);
  pixels.start(a, block.first_row, block.first_step);
  const float2 constants = constants_of<Tile>(a, block.first_column);
#pragma unroll 1
  for (int step = 1; step < min(block.steps, kAhead); ++step) {
    weights.load(shared + step * Tile::kStageBytes + Tile::kPixelBytes);
  }
  wait_for_previous();
  let_next_begin();
#pragma unroll 1
  for (int step = 0; step < kAhead; ++step) {
    if (step < block.steps) pixels.load(shared + step * Tile::kStageBytes);
    cp_async_commit();
  }
  if (threadIdx.x < Tile::kColumns) {  // to be read after the first step's barrier
    reinterpret_cast<float2*>(shared + Tile::kStagesBytes)[threadIdx.x] = constants;
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) conv_kernel(const ConvKernelArgs a) {
#if defined(__CUDA_ARCH__)
  if constexpr (Tile::kLeastArch * 10 > __CUDA_ARCH__) __trap();  // never launched there
#endif
  constexpr int kAhead = Tile::kStages - 1;  // steps that are copied before they are needed
  YN_DYNAMIC_SHARED(memory);
  unsigned char* const shared = kept(memory);
  const ConvBlock<Tile> block(a);
  WeightLoader<Tile> weights;
  PixelLoader<Tile> pixels;
  load_first<Tile, kAhead>(a, block, shared, weights, pixels);

  StepProduct<Tile> product(block.warp_row, block.warp_column);
  typename Tile::Sum sums[Tile::kFragmentRows][Tile::kFragmentColumns][4] = {};
  int stage = 0, filled = kAhead * Tile::kStageBytes;
  for (int step = 0; step < block.steps; ++step) {
    cp_async_wait<kAhead - 1>();  // of this thread's copies for the step
    __syncthreads();              // of everyone's; and all have left the stage that is filled next
    if (step + kAhead < block.steps) {
      weights.load(shared + filled + Tile::kPixelBytes);
      pixels.load(shared + filled);
      filled = stage_after<Tile>(filled);
    }
    cp_async_commit();
    product.add(shared + stage, shared + stage + Tile::kPixelBytes, sums);
    stage = stage_after<Tile>(stage);
  }
  if (a.splits > 1 && !add_splits<Tile>(a, block.tile, block.split, *reinterpret_cast<unsigned*>(shared), sums)) return;
  finish<Tile>(a, shared, sums);
}

// A row of the tables of conv.cu.
struct ConvEntry {
  ConvVariant variant;
  void (*kernel)(const ConvKernelArgs);
  int partial_bytes;  // of a block's sums
};
template <class Tile>
constexpr ConvEntry conv_entry(const char* name, void (*kernel)(const ConvKernelArgs) = conv_kernel<Tile>,
                               int most_arch = kNewest) {
  return {{name, Tile::kRows, Tile::kColumns, Tile::kStep, Tile::kReadRows, Tile::kThreads, Tile::kSharedBytes,
           Tile::kLeastArch, most_arch},
          kernel,
          Tile::kRows * Tile::kColumns * 4};
}

// The tiles of one element type: the same for both, as their bytes go the same way. The first is for everyone.
#define YN_CONV_TILES(Type)                                                   \
  {                                                                           \
      conv_entry<ConvTile<Type, 64, 64, 32, 32, 128, 3, 4, 75>>("64x64k128"), \
      conv_entry<ConvTile<Type, 32, 32, 16, 32, 128, 4, 6, 75>>("32x32k128"), \
      conv_entry<ConvTile<Type, 128, 64, 32, 32, 64, 4, 3, 75>>("128x64k64"), \
      conv_entry<ConvTile<Type, 32, 64, 16, 32, 128, 4, 4>>("32x64k128"),     \
      conv_entry<ConvTile<Type, 64, 32, 16, 32, 128, 4, 4>>("64x32k128"),     \
      conv_entry<ConvTile<Type, 128, 32, 32, 32, 64, 4, 4>>("128x32k64"),     \
      conv_entry<ConvTile<Type, 64, 96, 32, 32, 128, 3, 3>>("64x96k128"),     \
      conv_entry<ConvTile<Type, 128, 96, 64, 32, 64, 4, 2>>("128x96k64"),     \
      conv_entry<ConvTile<Type, 128, 64, 64, 32, 128, 3, 3>>("128x64k128"),   \
      conv_entry<ConvTile<Type, 128, 128, 64, 32, 64, 4, 2>>("128x128k64"),   \
      conv_entry<ConvTile<Type, 128, 128, 64, 32, 128, 3, 2>>("128x128k128"), \
      conv_entry<ConvTile<Type, 256, 64, 64, 32, 64, 4, 2>>("256x64k64"),     \
  }

extern const ConvEntry kHalfConvs[], kInt8Convs[];
extern const int kHalfConvCount, kInt8ConvCount;
extern const ConvEntry kWarpgroupHalfConvs[], kWarpgroupInt8Convs[];  // of hopper/, where the build has it
extern const int kWarpgroupHalfConvCount, kWarpgroupInt8ConvCount;

}  // namespace yolonas::cuda
