// The steps on feature maps that are no convolutions: bound by memory, or by the time of a launch.
#include <algorithm>

#include "cuda/elements.h"
#include "cuda/launch.h"
#include "cuda/tensor_core.h"

namespace yolonas::cuda {
namespace {

constexpr int kPoolThreads = 128;
#if defined(YOLONAS_CUDA_EMULATOR)  // so that the loops over what is left, and strips of several rows, run as well
constexpr std::int64_t kMaxRowBlocks = 2, kMaxPictures = 2, kManyThreads = 1 << 6;
#else
constexpr std::int64_t kMaxRowBlocks = 65535, kMaxPictures = 65535;  // of gridDim.y and .z
constexpr std::int64_t kManyThreads = 1 << 17;                       // that the larger devices run at once
#endif

// A block takes whole pixels side by side, as many as it has threads for, each of `parts` parts; a thread takes a part
// of a pixel, and the parts kThreads further where there are more. No division but this one.
int pixels_per_block(int parts) { return parts < kThreads ? kThreads / parts : 1; }

// Calls run(pixel, part) for all of them, over the threads of the grid.
template <class Run>
__device__ void for_each_part(std::int64_t pixels, int parts, int per_block, const Run& run) {
  const int own_pixel = static_cast<int>(threadIdx.x) / parts, own_part = static_cast<int>(threadIdx.x) % parts;
  if (own_pixel >= per_block) return;  // threads left over
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * per_block;
  for (std::int64_t pixel = static_cast<std::int64_t>(blockIdx.x) * per_block + own_pixel; pixel < pixels;
       pixel += step) {
    for (int part = own_part; part < parts; part += kThreads) run(pixel, part);
  }
}

// --- convert ---

// A part of a pixel is kCount channels: 16 bytes of the smaller type.
template <class From, class To>
struct Convert {
  static constexpr int kCount = 16 / static_cast<int>(sizeof(From) < sizeof(To) ? sizeof(From) : sizeof(To));

  const From* x;
  To* y;
  int in_c, out_c, in_pixel, out_pixel;
  bool in_pieces, out_pieces;  // whether pieces of 16 bytes are aligned
  float factor;
};

template <class To>
__device__ To converted(float value, float factor) {
  To to;
  assign(to, value * factor);
  return to;
}

template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const Convert<From, To> a, std::int64_t pixels, int parts, int per_block) {
  wait_for_previous();
  let_next_begin();
  constexpr int kCount = Convert<From, To>::kCount;
  for_each_part(pixels, parts, per_block, [&](std::int64_t pixel, int part) {
    const int c = part * kCount;
    const From* const from = a.x + pixel * a.in_pixel + c;
    To* const to = a.y + pixel * a.out_pixel + c;
    From values[kCount];
    if (a.in_pieces && c + kCount <= a.in_c) {
      constexpr int kAtOnce = Piece<From>::kCount;
#pragma unroll
      for (int i = 0; i < kCount; i += kAtOnce) {
        const Piece<From> piece = Piece<From>::load(from + i);
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) values[i + j] = piece.at[j];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = c + i < a.in_c ? from[i] : From{};
    }
    To results[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if constexpr (sizeof(From) == sizeof(To)) {
        results[i] = values[i];  // of one type: the bits
      } else {
        results[i] = converted<To>(as_float(values[i]), a.factor);
      }
    }
    if (a.out_pieces && c + kCount <= a.out_c) {
      constexpr int kAtOnce = Piece<To>::kCount;
#pragma unroll
      for (int i = 0; i < kCount; i += kAtOnce) {
        Piece<To> piece;
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) piece.at[j] = results[i + j];
        piece.store(to + i);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (c + i < a.out_c) to[i] = results[i];
      }
    }
  });
}

// --- max_pool5 ---

__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ __half larger(__half a, __half b) { return __hmax(a, b); }
__device__ __forceinline__ std::int8_t larger(std::int8_t a, std::int8_t b) { return a > b ? a : b; }

__device__ __forceinline__ float lowest_of(float) { return __int_as_float(0xff800000); }
__device__ __forceinline__ __half lowest_of(__half) { return __ushort_as_half(0xfc00); }
__device__ __forceinline__ std::int8_t lowest_of(std::int8_t) { return -128; }

// A number alone, where pieces of 16 bytes are not aligned.
template <class T>
struct One {
  static constexpr int kCount = 1;
  T at[1];

  __device__ __forceinline__ static One load(const T* from) { return {{*from}}; }
  __device__ __forceinline__ void store(T* to) const { *to = at[0]; }
};

template <class P>
__device__ __forceinline__ void raise(P& most, const P& value) {
#pragma unroll
  for (int i = 0; i < P::kCount; ++i) most.at[i] = larger(most.at[i], value.at[i]);
}
#if !defined(YOLONAS_CUDA_EMULATOR)  // several numbers at once, where there are instructions
__device__ __forceinline__ void raise(Piece<__half>& most, const Piece<__half>& value) {
  const auto to = reinterpret_cast<__half2*>(most.at);
  const auto from = reinterpret_cast<const __half2*>(value.at);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = __hmax2(to[i], from[i]);
}
__device__ __forceinline__ void raise(Piece<std::int8_t>& most, const Piece<std::int8_t>& value) {
  const auto to = reinterpret_cast<unsigned*>(most.at);
  const auto from = reinterpret_cast<const unsigned*>(value.at);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = __vmaxs4(to[i], from[i]);
}
#endif

template <class T>
struct Pool {
  const T* x;
  T* y;
  int batch, h, w, channels, in_pixel, out_pixel;
};

// A thread makes the P::kCount channels of kRows pixels below each other: it slides down the maxima of five columns, in
// which each row is loaded once for all of its pixels.
template <class T, class P, int kRows>
__global__ void __launch_bounds__(kPoolThreads) max_pool5_kernel(const Pool<T> a) {
  wait_for_previous();
  let_next_begin();
  const int parts = a.channels / P::kCount;
  const int i = static_cast<int>(blockIdx.x) * kPoolThreads + static_cast<int>(threadIdx.x);
  const int ox = i / parts, c = i % parts * P::kCount;
  if (ox >= a.w) return;
  P lowest;
#pragma unroll
  for (int k = 0; k < P::kCount; ++k) lowest.at[k] = lowest_of(T{});
  for (int picture = static_cast<int>(blockIdx.z); picture < a.batch; picture += static_cast<int>(gridDim.z)) {
    const std::int64_t first = static_cast<std::int64_t>(picture) * a.h;
    for (int top = static_cast<int>(blockIdx.y) * kRows; top < a.h; top += static_cast<int>(gridDim.y) * kRows) {
      P most[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) most[r] = lowest;
#pragma unroll
      for (int dy = -2; dy < kRows + 2; ++dy) {
        const int y = top + dy;
        if (y < 0 || y >= a.h) continue;
        const T* const row = a.x + (first + y) * a.w * a.in_pixel + c;
        P of_row = lowest;
#pragma unroll
        for (int dx = -2; dx <= 2; ++dx) {
          // At the edges the nearest pixel counts twice, which changes no maximum.
          const int x = min(max(ox + dx, 0), a.w - 1);
          raise(of_row, P::load(row + static_cast<std::int64_t>(x) * a.in_pixel));
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (dy >= r - 2 && dy <= r + 2) raise(most[r], of_row);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (top + r < a.h) {
          most[r].store(a.y + ((first + top + r) * a.w + ox) * a.out_pixel + c);
        }
      }
    }
  }
}

// One row a thread where there is little to do: it is the sooner done.
template <class T, class P>
void launch_pool(const Pool<T>& a, Queue queue) {
  const std::int64_t across = static_cast<std::int64_t>(a.w) * (a.channels / P::kCount);
  const bool strips = across * a.h * a.batch >= 4 * kManyThreads;
  const std::int64_t down = strips ? (a.h + 3) / 4 : a.h;
  const dim3 grid(static_cast<unsigned>((across + kPoolThreads - 1) / kPoolThreads),
                  static_cast<unsigned>(down < kMaxRowBlocks ? down : kMaxRowBlocks),
                  static_cast<unsigned>(a.batch < kMaxPictures ? a.batch : kMaxPictures));
  launch_grid("max_pool5", queue, grid, kPoolThreads, 0, strips ? max_pool5_kernel<T, P, 4> : max_pool5_kernel<T, P, 1>,
              a);
}

// --- observe ---

struct Tally {
  unsigned long long* counts;
  unsigned* largest;
  unsigned long long* negatives;
};

// A block adds up in shared memory what most values would meet in: zeros, the maximum, signs.
template <class T>
__global__ void __launch_bounds__(kThreads)
    observe_kernel(const T* x, int channels, int pixel_step, std::int64_t pixels, int per_block, const Tally to) {
  __shared__ unsigned long long zeros, negatives;
  __shared__ unsigned largest;
  if (threadIdx.x == 0) zeros = 0, negatives = 0, largest = 0;
  __syncthreads();
  wait_for_previous();
  let_next_begin();
  constexpr unsigned kInfinity = 0x7f800000;
  unsigned long long own_zeros = 0, own_negatives = 0;
  unsigned own_largest = 0;
  for_each_part(pixels, channels, per_block, [&](std::int64_t pixel, int c) {
    const float value = as_float(x[pixel * pixel_step + c]);
    const unsigned magnitude = __float_as_uint(value) & 0x7fffffff, bin = magnitude >> 16;
    own_negatives += value < 0.0f ? 1 : 0;
    if (magnitude < kInfinity && magnitude > own_largest) own_largest = magnitude;
    if (bin == 0) {
      ++own_zeros;
    } else {
      atomicAdd(to.counts + bin, 1ull);
    }
  });
  if (own_zeros) atomicAdd(&zeros, own_zeros);
  if (own_negatives) atomicAdd(&negatives, own_negatives);
  atomicMax(&largest, own_largest);
  __syncthreads();
  if (threadIdx.x == 0) {
    if (zeros) atomicAdd(to.counts, zeros);
    if (negatives) atomicAdd(to.negatives, negatives);
    atomicMax(to.largest, largest);
  }
}

constexpr std::int64_t kObserveBlocks = 2048;  // fill the device; more would only end in more atomic sums

// --- channel sums ---

constexpr int kSumChannels = 256;  // of a block at most; grid.y takes them in turn
constexpr int kSumPart = Piece<std::int8_t>::kCount;
static_assert(kSumChannels == kThreads);  // a thread each at the beginning and at the end

// A thread adds up 16 channels of some pixels, a block all that its threads have, in 64 bits. Those of a thread fit
// 32: it would take 2^24 pixels to reach the end, more than any device has memory for with this many threads.
__global__ void __launch_bounds__(kThreads)
    channel_sums_kernel(const std::int8_t* x, int channels, int pixel_step, bool pieces, std::int64_t pixels,
                        int per_block, std::int64_t* sums) {
  __shared__ unsigned long long totals[kSumChannels];
  totals[threadIdx.x] = 0;
  __syncthreads();
  wait_for_previous();
  let_next_begin();
  const int first = static_cast<int>(blockIdx.y) * kSumChannels;
  const int own = min(channels - first, kSumChannels);
  const int parts = (own + kSumPart - 1) / kSumPart;
  const int lane = static_cast<int>(threadIdx.x) / parts, c = static_cast<int>(threadIdx.x) % parts * kSumPart;
  if (lane < per_block) {
    int added[kSumPart] = {};
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * per_block;
    for (std::int64_t pixel = static_cast<std::int64_t>(blockIdx.x) * per_block + lane; pixel < pixels; pixel += step) {
      const std::int8_t* const from = x + pixel * pixel_step + first + c;
      if (pieces && c + kSumPart <= own) {
        const Piece<std::int8_t> piece = Piece<std::int8_t>::load(from);
#pragma unroll
        for (int i = 0; i < kSumPart; ++i) added[i] += piece.at[i];
      } else {
#pragma unroll
        for (int i = 0; i < kSumPart; ++i) added[i] += c + i < own ? from[i] : 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kSumPart; ++i) {  // a negative number comes to the same in unsigned ones of 64 bits
      if (c + i < own && added[i] != 0) {
        atomicAdd(totals + c + i, static_cast<unsigned long long>(static_cast<long long>(added[i])));
      }
    }
  }
  __syncthreads();
  const int at = static_cast<int>(threadIdx.x);
  if (at < own && totals[at] != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(sums + first + at), totals[at]);
  }
}

}  // namespace

void convert_map(const MapView& x, const MapView& y, std::int64_t pixels, float factor, Queue queue) {
  with_elem(x.elem, [&](auto from) {
    with_elem(y.elem, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      // The factor belongs to int8: times 1 changes no bit.
      const bool scaled = (x.elem == Elem::s8) != (y.elem == Elem::s8);
      const Convert<From, To> a{static_cast<const From*>(x.data),
                                static_cast<To*>(y.data),
                                x.channels,
                                y.channels,
                                x.pixel,
                                y.pixel,
                                in_pieces(x),
                                in_pieces(y),
                                scaled ? factor : 1.0f};
      const int parts = (y.channels + a.kCount - 1) / a.kCount, per_block = parts > 0 ? pixels_per_block(parts) : 1;
      launch("convert", queue, parts > 0 ? pixels : 0, per_block, kThreads, convert_kernel<From, To>, a, pixels, parts,
             per_block);
    });
  });
}

void max_pool5(const MapView& x, const MapView& y, int batch, int h, int w, Queue queue) {
  if (batch <= 0 || h <= 0 || w <= 0 || x.channels <= 0) return;
  with_elem(x.elem, [&](auto type) {
    using T = decltype(type);
    const Pool<T> a{static_cast<const T*>(x.data), static_cast<T*>(y.data), batch, h, w, x.channels, x.pixel, y.pixel};
    if (in_pieces(x) && in_pieces(y) && x.channels % Piece<T>::kCount == 0) {
      launch_pool<T, Piece<T>>(a, queue);
    } else {
      launch_pool<T, One<T>>(a, queue);
    }
  });
}

void observe_map(const MapView& x, std::int64_t pixels, unsigned long long* counts, unsigned* largest,
                 unsigned long long* negatives, Queue queue) {
  if (pixels <= 0 || x.channels <= 0) return;
  const int per_block = pixels_per_block(x.channels);
  const std::int64_t blocks = (pixels - 1) / per_block + 1;
  const dim3 grid(static_cast<unsigned>(std::min({blocks, kObserveBlocks, kMaxBlocks})));
  const auto run = [&](auto type) {
    using T = decltype(type);
    launch_grid("observe", queue, grid, kThreads, 0, observe_kernel<T>, static_cast<const T*>(x.data), x.channels,
                x.pixel, pixels, per_block, Tally{counts, largest, negatives});
  };
  if (x.elem == Elem::f32) {
    run(float{});
  } else {
    run(__half{});
  }
}

void add_channel_sums(const MapView& x, std::int64_t pixels, std::int64_t* sums, Queue queue) {
  if (pixels <= 0 || x.channels <= 0) return;
  const int widest = std::min(x.channels, kSumChannels);
  const int per_block = kThreads / ((widest + kSumPart - 1) / kSumPart);
  const std::int64_t blocks = (pixels - 1) / per_block + 1;
  const dim3 grid(static_cast<unsigned>(std::min({blocks, kObserveBlocks, kMaxBlocks})),
                  static_cast<unsigned>((x.channels - 1) / kSumChannels + 1));
  launch_grid("channel_sums", queue, grid, kThreads, 0, channel_sums_kernel, static_cast<const std::int8_t*>(x.data),
              x.channels, x.pixel, in_pieces(x), pixels, per_block, sums);
}

}  // namespace yolonas::cuda
