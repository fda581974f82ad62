// Weights (K, kh, kw, C) into the layouts of the convolution kernels: blocks of `block` output channels, the table's
// conv_block, zero beyond K. `packed` holds *_floats(...) floats. Plain C++, the same for every instruction set.
#pragma once

#include <cstdint>

namespace yolonas::cpu {

// [blocks][kh][kw][C][block]: conv2d_direct_f32, conv2d_pointwise_f32 (kh = kw = 1), the Winograd kernels (kh = kw =
// 3).
std::int64_t pack_direct_floats(std::int64_t out_c, std::int64_t kernel_h, std::int64_t kernel_w, std::int64_t in_c,
                                std::int64_t block);
void pack_direct(const float* weight, std::int64_t out_c, std::int64_t kernel_h, std::int64_t kernel_w,
                 std::int64_t in_c, std::int64_t block, float* packed);

// [blocks][kh][kw][ceil(C / 4)][block][4], zero beyond C too: QuantKernels. weight_sum: [blocks * block], the sum of
// each output channel's weights. `packed` holds pack_direct_s8_bytes(...) bytes.
std::int64_t pack_direct_s8_bytes(std::int64_t out_c, std::int64_t kernel_h, std::int64_t kernel_w, std::int64_t in_c,
                                  std::int64_t block);
void pack_direct_s8(const std::int8_t* weight, std::int64_t out_c, std::int64_t kernel_h, std::int64_t kernel_w,
                    std::int64_t in_c, std::int64_t block, std::int8_t* packed, std::int32_t* weight_sum);

// Estimate of the float32 error of a Winograd convolution: of its worst output channel, as a root mean square relative
// to that of the channel's outputs, for independent inputs. Infinity for weights that are not finite, or so large
// (1e30) that a product may overflow. The transforms are linear, so that the worst weights are only some ten times
// worse than random ones; an output that is small by cancellation can still be off by more, as in the direct form.
double winograd_error(const float* weight, std::int64_t out_c, std::int64_t in_c, std::int64_t stride);

}  // namespace yolonas::cpu
