// A block makes tiles of 32 x 8 pixels. Two of its warps work out the resampling of the tile's columns and rows, in
// double precision, which is slow on most devices, for all 256 threads.
#include "cuda/elements.h"
#include "cuda/launch.h"
#include "cuda/tensor_core.h"
#include "ops/resize_entry.h"

namespace yolonas::cuda {
namespace {

constexpr int kTileW = 32, kTileH = 8;
#if defined(YOLONAS_CUDA_EMULATOR)
constexpr std::int64_t kMaxTileRows = 2;  // so that the loop over the rest runs as well
#else
constexpr std::int64_t kMaxTileRows = 65535;  // of gridDim.y
#endif

std::int64_t tiles_across(const LetterboxFrame& a) { return (a.frame_w + kTileW - 1) / kTileW; }
std::int64_t tiles_down(const LetterboxFrame& a) { return (a.frame_h + kTileH - 1) / kTileH; }

// Source pixels per resized pixel.
struct Ratio {
  double x, y;
};

Ratio ratio_of(const LetterboxFrame& a) {
  return {static_cast<double>(a.src_w) / static_cast<double>(a.resized_w),
          static_cast<double>(a.src_h) / static_cast<double>(a.resized_h)};
}

__device__ std::int64_t clamped(std::int64_t value, std::int64_t last) {
  return value < 0 ? 0 : value > last ? last : value;
}

// Channel c of the resized picture at (x, y), 0..255.
__device__ std::int32_t resampled(const LetterboxFrame& a, const ResizeEntry& x, const ResizeEntry& y, int c) {
  const std::uint8_t* upper = a.image + clamped(y.index, a.src_h - 1) * a.row_bytes + c;
  const std::uint8_t* lower = a.image + clamped(y.index + 1, a.src_h - 1) * a.row_bytes + c;
  const std::int64_t first = 3 * static_cast<std::int64_t>(x.index);
  const std::int64_t second = 3 * clamped(x.index + 1, a.src_w - 1);
  const std::int32_t w0 = x.weights & 0xffff, w1 = x.weights >> 16;
  const std::int32_t v0 = y.weights & 0xffff, v1 = y.weights >> 16;
  const std::int32_t r0 = (upper[first] * w0 + upper[second] * w1) >> 4;
  const std::int32_t r1 = (lower[first] * w0 + lower[second] * w1) >> 4;
  return (((v0 * r0) >> 16) + ((v1 * r1) >> 16) + 2) >> 2;
}

// Makes one tile of the frame: calls store(y, x, the values of the frame's three channels there) for each of its
// pixels. By the whole block.
template <class Store>
__device__ void make_tile(const LetterboxFrame& a, const Ratio& ratio, std::int64_t tile_row, std::int64_t tile_column,
                          const Store& store) {
  __shared__ ResizeEntry column[kTileW], row[kTileH];
  const int tile_x = static_cast<int>(threadIdx.x) % kTileW, tile_y = static_cast<int>(threadIdx.x) / kTileW;
  const std::int64_t frame_x = tile_column * kTileW + tile_x, frame_y = tile_row * kTileH + tile_y;
  const std::int64_t x = frame_x - a.left, y = frame_y - a.top;  // in the resized picture, or outside it
  if (tile_y == 0) column[tile_x] = resize_entry(x, ratio.x, a.src_w, false);
  if (tile_y == 1 && tile_x < kTileH) {
    row[tile_x] = resize_entry(tile_row * kTileH + tile_x - a.top, ratio.y, a.src_h, true);
  }
  __syncthreads();
  if (frame_x < a.frame_w && frame_y < a.frame_h) {
    float value[3] = {a.pad[0], a.pad[1], a.pad[2]};
    if (x >= 0 && x < a.resized_w && y >= 0 && y < a.resized_h) {
#pragma unroll
      for (int to = 0; to < 3; ++to) {
        const int c = a.swap_channels ? 2 - to : to;
        value[to] = (static_cast<float>(resampled(a, column[tile_x], row[tile_y], c)) - a.mean[to]) / a.divisor[to];
      }
    }
    store(frame_y, frame_x, value);
  }
  __syncthreads();  // the next tile overwrites column and row
}

__global__ void __launch_bounds__(kThreads)
    letterbox_kernel(const LetterboxFrame a, const Ratio ratio, std::int64_t across, std::int64_t tiles) {
  for (std::int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    make_tile(a, ratio, tile / across, tile % across, [&](std::int64_t y, std::int64_t x, const float (&value)[3]) {
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        a.out[a.hwc ? (y * a.frame_w + x) * 3 + c : (c * a.frame_h + y) * a.frame_w + x] = value[c];
      }
    });
  }
}

// The pictures of one launch.
struct Frames {
  LetterboxFrame frame[kLetterboxBatch];
  Ratio ratio[kLetterboxBatch];
};
static_assert(sizeof(Frames) + 64 <= 4096, "the parameters of a kernel");

// kPieces: a pixel is 16-byte pieces, and the first holds the three channels.
template <class T, bool kPieces>
__global__ void __launch_bounds__(kThreads)
    letterbox_batch_kernel(const __grid_constant__ Frames frames, T* out, int pixel, float inverse_scale) {
  wait_for_previous();
  let_next_begin();
  const LetterboxFrame& a = frames.frame[blockIdx.z];
  T* const picture = out + static_cast<std::int64_t>(blockIdx.z) * a.frame_h * a.frame_w * pixel;
  for (std::int64_t tile_row = blockIdx.y; tile_row * kTileH < a.frame_h; tile_row += gridDim.y) {
    const auto store = [&](std::int64_t y, std::int64_t x, const float (&value)[3]) {
      T* const to = picture + (y * a.frame_w + x) * pixel;
      const float factor = sizeof(T) == 1 ? inverse_scale : 1.0f;  // times 1 changes no bit
      if constexpr (kPieces) {
        Piece<T> piece = {};
#pragma unroll
        for (int c = 0; c < 3; ++c) assign(piece.at[c], value[c] * factor);
        piece.store(to);
        for (int c = Piece<T>::kCount; c < pixel; c += Piece<T>::kCount) Piece<T>{}.store(to + c);
      } else {
        for (int c = 0; c < pixel; ++c) assign(to[c], c < 3 ? value[c] * factor : 0.0f);
      }
    };
    make_tile(a, frames.ratio[blockIdx.z], tile_row, blockIdx.x, store);
  }
}

}  // namespace

void letterbox_u8_f32(const LetterboxFrame& args, Stream stream) {
  const std::int64_t across = tiles_across(args), tiles = across * tiles_down(args);
  launch("letterbox", stream, tiles, 1, kThreads, letterbox_kernel, args, ratio_of(args), across, tiles);
}

void letterbox_batch(const LetterboxFrame* frames, int count, const NetworkInput& out, Queue queue) {
  const bool pieces = in_pieces({out.data, out.elem, out.pixel, out.pixel});
  for (int first = 0; first < count; first += kLetterboxBatch) {
    Frames some{};
    const int pictures = count - first < kLetterboxBatch ? count - first : kLetterboxBatch;
    for (int i = 0; i < pictures; ++i) {
      some.frame[i] = frames[first + i];
      some.ratio[i] = ratio_of(frames[first + i]);
    }
    const std::int64_t down = tiles_down(frames[0]);
    const dim3 grid(static_cast<unsigned>(tiles_across(frames[0])),
                    static_cast<unsigned>(down < kMaxTileRows ? down : kMaxTileRows), static_cast<unsigned>(pictures));
    with_elem(out.elem, [&](auto type) {
      using T = decltype(type);
      T* const to = static_cast<T*>(out.data) + first * frames[0].frame_h * frames[0].frame_w * out.pixel;
      launch_grid("letterbox", queue, grid, kThreads, 0,
                  pieces ? letterbox_batch_kernel<T, true> : letterbox_batch_kernel<T, false>, some, to, out.pixel,
                  out.inverse_scale);
    });
  }
}

}  // namespace yolonas::cuda
