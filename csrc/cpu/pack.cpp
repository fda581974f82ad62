#include "cpu/pack.h"

namespace yolonas::cpu {

std::int64_t pack_direct_floats(std::int64_t out_c, std::int64_t kernel_h, std::int64_t kernel_w, std::int64_t in_c,
                                std::int64_t block) {
  return (out_c + block - 1) / block * kernel_h * kernel_w * in_c * block;
}

void pack_direct(const float* weight, std::int64_t out_c, std::int64_t kernel_h, std::int64_t kernel_w,
                 std::int64_t in_c, std::int64_t block, float* packed) {
  const std::int64_t depth = kernel_h * kernel_w * in_c;
  for (std::int64_t first = 0; first < out_c; first += block, packed += depth * block) {
    for (std::int64_t k = 0; k < block; ++k) {
      const float* source = first + k < out_c ? weight + (first + k) * depth : nullptr;
      for (std::int64_t d = 0; d < depth; ++d) packed[d * block + k] = source ? source[d] : 0.0f;
    }
  }
}

}  // namespace yolonas::cpu
