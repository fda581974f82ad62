#include "cpu/pack.h"

#include <algorithm>

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

std::int64_t pack_direct_s8_bytes(std::int64_t out_c, std::int64_t kernel_h, std::int64_t kernel_w, std::int64_t in_c,
                                  std::int64_t block) {
  return pack_direct_floats(out_c, kernel_h, kernel_w, (in_c + 3) / 4 * 4, block);
}

void pack_direct_s8(const std::int8_t* weight, std::int64_t out_c, std::int64_t kernel_h, std::int64_t kernel_w,
                    std::int64_t in_c, std::int64_t block, std::int8_t* packed, std::int32_t* weight_sum) {
  const std::int64_t taps = kernel_h * kernel_w, groups = (in_c + 3) / 4;
  std::fill_n(packed, pack_direct_s8_bytes(out_c, kernel_h, kernel_w, in_c, block), std::int8_t{0});
  std::fill_n(weight_sum, (out_c + block - 1) / block * block, 0);
  for (std::int64_t k = 0; k < out_c; ++k) {
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      std::int8_t* target = packed + (k / block * taps + tap) * groups * block * 4 + k % block * 4;
      for (std::int64_t c = 0; c < in_c; ++c, ++weight) {
        target[c / 4 * block * 4 + c % 4] = *weight;
        weight_sum[k] += *weight;
      }
    }
  }
}

}  // namespace yolonas::cpu
