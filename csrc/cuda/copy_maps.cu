#include "cuda/copy_maps.h"
#include "cuda/launch.h"
#include "cuda/tensor_core.h"

namespace yolonas::cuda {
namespace {

struct Copies {
  struct Item {
    const float* from;
    float* to;
    std::int64_t first;  // piece of all
    int pieces, pixel;   // of a pixel, and floats from pixel to pixel
    int floats;          // of a piece: 4 or 1
  };
  Item items[kMostCopies];
  int count;
  std::int64_t pieces;
};

__global__ void __launch_bounds__(kThreads) copy_maps_kernel(const __grid_constant__ Copies a) {
  wait_for_previous();
  let_next_begin();
  YN_FOR_EACH(at, a.pieces) {
    int index = a.count - 1;
    while (at < a.items[index].first) --index;
    const Copies::Item& item = a.items[index];
    const std::int64_t piece = at - item.first, pixel = piece / item.pieces;
    const float* from = item.from + pixel * item.pixel + (piece - pixel * item.pieces) * item.floats;
    float* to = item.to + piece * item.floats;
    if (item.floats == 4) {
      *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
    } else {
      *to = *from;
    }
  }
}

bool lies_at_16(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; }

}  // namespace

void copy_maps(const MapCopy* copies, int count, Queue queue) {
  for (int first = 0; first < count; first += kMostCopies) {
    Copies all{};
    for (int i = first; i < count && i < first + kMostCopies; ++i) {
      const MapCopy& one = copies[i];
      const float* from = static_cast<const float*>(one.from.data);
      const bool fours =
          lies_at_16(from) && lies_at_16(one.to) && one.from.pixel % 4 == 0 && one.from.channels % 4 == 0;
      const int floats = fours ? 4 : 1, pieces = one.from.channels / floats;
      if (one.pixels == 0 || pieces == 0) continue;
      all.items[all.count++] = {from, one.to, all.pieces, pieces, one.from.pixel, floats};
      all.pieces += one.pixels * pieces;
    }
    launch("copy_maps", queue, all.pieces, kThreads, kThreads, copy_maps_kernel, all);
  }
}

}  // namespace yolonas::cuda
