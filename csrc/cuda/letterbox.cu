// A block makes tiles of 32 x 8 pixels. The first threads of each row and column work out the tile's resampling (double
// precision, slow on most devices) once for all 256 threads.
#include "cuda/launch.h"
#include "ops/resize_entry.h"

namespace yolonas::cuda {
namespace {

constexpr int kTileW = 32, kTileH = 8;

struct Tiling {
  std::int64_t across, count;
  double ratio_x, ratio_y;  // source pixels per resized pixel
};

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

__global__ void __launch_bounds__(kThreads) letterbox_kernel(const LetterboxFrame a, const Tiling tiling) {
  __shared__ ResizeEntry column[kTileW], row[kTileH];
  const int tile_x = static_cast<int>(threadIdx.x) % kTileW, tile_y = static_cast<int>(threadIdx.x) / kTileW;
  for (std::int64_t tile = blockIdx.x; tile < tiling.count; tile += gridDim.x) {
    const std::int64_t frame_x = tile % tiling.across * kTileW + tile_x;
    const std::int64_t frame_y = tile / tiling.across * kTileH + tile_y;
    const std::int64_t x = frame_x - a.left, y = frame_y - a.top;  // in the resized picture, or outside it
    if (tile_y == 0) column[tile_x] = resize_entry(x, tiling.ratio_x, a.src_w, false);
    if (tile_x == 0) row[tile_y] = resize_entry(y, tiling.ratio_y, a.src_h, true);
    __syncthreads();
    if (frame_x < a.frame_w && frame_y < a.frame_h) {
      const bool inside = x >= 0 && x < a.resized_w && y >= 0 && y < a.resized_h;
      for (int c = 0; c < 3; ++c) {
        const int to = a.swap_channels ? 2 - c : c;
        float value = a.pad[to];
        if (inside) {
          value = (static_cast<float>(resampled(a, column[tile_x], row[tile_y], c)) - a.mean[to]) / a.divisor[to];
        }
        a.out[a.hwc ? (frame_y * a.frame_w + frame_x) * 3 + to : (to * a.frame_h + frame_y) * a.frame_w + frame_x] =
            value;
      }
    }
    __syncthreads();  // the next tile overwrites column and row
  }
}

}  // namespace

void letterbox_u8_f32(const LetterboxFrame& args, Stream stream) {
  Tiling tiling{};
  tiling.across = (args.frame_w + kTileW - 1) / kTileW;
  tiling.count = tiling.across * ((args.frame_h + kTileH - 1) / kTileH);
  tiling.ratio_x = static_cast<double>(args.src_w) / static_cast<double>(args.resized_w);
  tiling.ratio_y = static_cast<double>(args.src_h) / static_cast<double>(args.resized_h);
  launch("letterbox", stream, tiling.count, 1, kThreads, letterbox_kernel, args, tiling);
}

}  // namespace yolonas::cuda
