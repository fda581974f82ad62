// The kernels that exist once per instruction set, as one table of function pointers with the contract of each.
// All of them: single-threaded, reentrant; they never allocate, throw, print or read the environment; every pointer is
// valid for exactly the elements named and no byte beyond is read; inputs and outputs do not overlap unless said.
#pragma once

#include <cstdint>

#include "ops/letterbox_frame.h"

namespace yolonas::cpu {

// Resampling of one axis: destination i reads sources index[i] and min(index[i] + 1, last) with integer weights of
// 2048ths. `weights` packs both: low 16 bits for the first, high 16 bits for the second.
struct ResizeAxis {
  const std::int32_t* index;    // [n]
  const std::int32_t* weights;  // [n]
};

struct LetterboxArgs : LetterboxFrame {
  ResizeAxis x;          // resized_w entries, index in pixels, second weight 0 where index is the last column
  std::int64_t x_inner;  // leading entries of x whose index + 2 < src_w, so that 8 bytes from the first one can be read
  ResizeAxis y;          // resized_h entries; a negative index and its successor both mean row 0
};

// Sizes of a 2-d convolution of one picture in NHWC, without groups. x, y and residual may be channel ranges of wider
// buffers: `*_stride` is the distance in elements from one pixel to the next, in raster order, and at least the
// channels; other channels are never touched.
struct ConvSizes {
  std::int64_t in_h, in_w, in_c, in_stride;
  std::int64_t out_h, out_w, out_c, out_stride;
  std::int64_t kernel_h, kernel_w, stride, padding;
};

// A convolution of floats:
//   y[oy][ox][k] = act(sum over ky, kx, c of x[oy * stride + ky - padding][ox * stride + kx - padding][c] *
//   w[k][ky][kx][c]
//                      + bias[k]) + residual_scale * residual[oy][ox][k]
// with x = 0 outside the picture.
struct ConvArgs : ConvSizes {
  const float* x;
  float* y;               // must not overlap x; may be the very memory of residual with the same stride
  const float* weight;    // as the kernel says, in blocks of CpuKernels::conv_block output channels, zero beyond out_c
  const float* bias;      // [conv_blocks(out_c, conv_block) * conv_block], zero beyond out_c
  const float* zeros;     // [in_c] zeros, stands for pixels in the padding
  const float* residual;  // or null
  std::int64_t residual_stride;
  float residual_scale;
  bool relu;  // NaN passes
};

// The same on symmetrically quantised numbers:
//   sum = sum over ky, kx, c of x[...][c] * w[k][ky][kx][c]                                exact, in int32
//   v = float(sum) * multiplier[k] + offset[k];  v = max(v, 0) if relu;  v = v + float(residual) * residual_multiplier
// in float32, every operation rounded by itself; then y = clamp(rint(v), -128, 127) with ties to even, or y_f32 = v.
struct QuantConvArgs : ConvSizes {
  const std::int8_t* x;
  std::int8_t* y;                  // must not overlap x; may be the very memory of residual with the same stride
  float* y_f32;                    // written where y is null; must not overlap x or residual
  const std::int8_t* weight;       // within -127..127, as QuantKernels says
  const std::int32_t* weight_sum;  // [conv_blocks(out_c, conv_block) * conv_block]: all weights of a channel, added up
  const float* multiplier;         // these two finite and as long
  const float* offset;
  const std::int8_t* zeros;     // [in_c] zeros, stands for pixels in the padding
  const std::int8_t* residual;  // or null
  std::int64_t residual_stride;
  float residual_multiplier;
  bool relu;
  bool unsigned_input;  // no x is negative, as after a ReLU; faster on most processors
};

// A maximum over windows of one picture in NHWC; strides as in ConvArgs.
struct PoolArgs {
  std::int64_t h, w, channels, in_stride, out_stride;
  const float* x;
  float* y;  // must not overlap x
};

struct QuantPoolArgs {
  std::int64_t h, w, channels, in_stride, out_stride;
  const std::int8_t* x;
  std::int8_t* y;  // must not overlap x
};

// Pixels in raster order; x and y must not overlap.
struct QuantizeArgs {
  std::int64_t in_c, in_stride, out_c, out_stride;  // out_c >= in_c
  const float* x;
  std::int8_t* y;
  float inv_scale;
};
struct DequantizeArgs {
  std::int64_t channels, in_stride, out_stride;
  const std::int8_t* x;
  float* y;
  float scale;
};

// The kernels on quantised numbers, bit-equal on every instruction set and for any cut; ranges as for the float twins.
// Weights of the convolutions: [blocks][kernel_h][kernel_w][ceil(in_c / 4)][conv_block][4], four
// neighbouring input channels of an output channel side by side, zero beyond in_c and out_c; pack_direct_s8 in pack.h
// makes it. kernel_h * kernel_w * in_c <= 65536, so that no sum can leave int32. A NaN, from a v that overflowed,
// becomes -128 in y.
struct QuantKernels {
  void (*conv2d_direct)(const QuantConvArgs& args, std::int64_t row_begin, std::int64_t row_end,
                        std::int64_t block_begin, std::int64_t block_end);
  void (*conv2d_pointwise)(const QuantConvArgs& args, std::int64_t pixel_begin, std::int64_t pixel_end,
                           std::int64_t block_begin, std::int64_t block_end);

  // Rows [row_begin, row_end) of y[oy][ox][c] = max of x in the 5x5 window around (oy, ox), cut at the edges.
  void (*max_pool5)(const QuantPoolArgs& args, std::int64_t row_begin, std::int64_t row_end);

  // Pixels [pixel_begin, pixel_end) of y[p][c] = clamp(rint(x[p][c] * inv_scale), -128, 127) with ties to even, -128
  // for a NaN; channels of y from in_c on become 0.
  void (*quantize)(const QuantizeArgs& args, std::int64_t pixel_begin, std::int64_t pixel_end);

  // Pixels [pixel_begin, pixel_end) of y[p][c] = float(x[p][c]) * scale.
  void (*dequantize)(const DequantizeArgs& args, std::int64_t pixel_begin, std::int64_t pixel_end);

  // Output tiles [tile_begin, tile_end) of blocks [block_begin, block_end) of a 3x3, stride 1, padding 1 by Winograd
  // F(4x4,3x3) in int16: the same bits as conv2d_direct from the same weights. The magnitudes of an output channel's
  // weights add up to kWinograd43WeightSum at most, or a sum may leave the 26 bits that it has. Tiles, what threads had
  // better share, and workspace, winograd43_workspace(args, tiles) floats: as for the float twin. weight_sum and
  // unsigned_input are not read.
  std::int64_t (*winograd43_workspace)(const QuantConvArgs& args, std::int64_t tiles);
  void (*conv2d_winograd43)(const QuantConvArgs& args, std::int64_t tile_begin, std::int64_t tile_end,
                            std::int64_t block_begin, std::int64_t block_end, float* workspace);

  // To choose by: how much slower than its float twin it is, both against their direct forms, with many input channels;
  // and the number of input channels with which that doubles.
  double winograd43_slower, winograd43_channels;
};

struct CpuKernels {
  const char* isa;

  // Rows [row_begin, row_end) of the letterboxed frame: OpenCV's uint8 bilinear (11-bit weights, see ops/letterbox.h),
  // grey outside, then (value - mean) / divisor in float32 with a true division. `workspace` holds
  // letterbox_workspace(args) int16 values, contents undefined afterwards.
  void (*letterbox_rows)(const LetterboxArgs& args, std::int64_t row_begin, std::int64_t row_end,
                         std::int16_t* workspace);

  // Writes the positions and values of all x[i] > threshold, in ascending order, and returns how many there are.
  // NaN is never greater. n <= 2^31 - 1. `index` and `value` hold n elements.
  std::int64_t (*collect_greater_f32)(const float* x, std::int64_t n, float threshold, std::int32_t* index,
                                      float* value);

  // y[i] = 1 / (1 + exp(-x[i])), within 3 ulp, and 0 for x[i] < -87; NaN stays NaN. In place allowed. A value does not
  // depend on its position in x.
  void (*sigmoid_f32)(const float* x, float* y, std::int64_t n);

  // Expectation of a softmax over 17 bins with values 0..16, for eight distributions side by side (DFL, Li et al.
  // 2020): out[j] = sum_b b * softmax_b(x[b * bin_stride + j]), j = 0..7. Largest bin subtracted first; NaN gives NaN.
  void (*dfl_expectation_f32)(const float* x, std::int64_t bin_stride, float* out);

  // Highest value and its class (the lowest on ties) of n anchors: x[k * class_stride + i] for k < classes. A NaN never
  // wins; with only NaNs best is -infinity and best_class 0.
  void (*class_max_f32)(const float* x, std::int64_t class_stride, std::int64_t classes, std::int64_t n, float* best,
                        std::int32_t* best_class);

  // Greedy non-maximum suppression of n boxes sorted by descending score. boxes: [n][4] xyxy; class_of: [n] or null for
  // class-agnostic. A box is dropped when its IoU (inter / (a1 + a2 - inter), no epsilon) with a kept box of its class
  // is > threshold; NaN IoU never drops. Stops after max_kept. keep: [max_kept] positions; returns how many. workspace:
  // nms_workspace(max_kept) floats.
  std::int64_t (*nms_f32)(const float* boxes, const std::int32_t* class_of, std::int64_t n, float threshold,
                          std::int64_t max_kept, std::int32_t* keep, float* workspace);

  // y[i] = (clamp(rint(x[i] * inv_s), qmin, qmax)) * s with s = scale[i * scale_step], inv_s = 1 / s; scale_step is 0
  // (one scale) or 1 (one per element). Ties to even, never -0. In place allowed. NaN gives qmin * s, as torch's CPU
  // kernel.
  void (*fake_quantize_f32)(const float* x, const float* scale, std::int64_t scale_step, std::int64_t n, float qmin,
                            float qmax, float* y);

  // Straight-through gradient: dx[i] = dy[i] where qmin <= rint(x[i] / s) <= qmax, else 0. In place on dy allowed.
  void (*fake_quantize_backward_f32)(const float* dy, const float* x, const float* scale, std::int64_t scale_step,
                                     std::int64_t n, float qmin, float qmax, float* dx);

  // --- Convolutions. One float32 accumulator per output; per output always the same operations in the same order (with
  // FMA where the ISA has it), so that a result does not depend on how ranges are cut. Weights are packed by pack.h;
  // any alignment works, 64 bytes is fastest. ---

  // Output channels of a packed block: two vectors. A last block with at most one vector's channels computes with one.
  std::int64_t conv_block;

  // Output rows [row_begin, row_end) of blocks [block_begin, block_end), any kernel, stride and padding. weight:
  // [blocks][kernel_h][kernel_w][in_c][conv_block]. The sum starts from the bias and runs over ky, kx, c in this order.
  // Fast where a block's weights and the input rows of the range fit the L2 cache.
  void (*conv2d_direct_f32)(const ConvArgs& args, std::int64_t row_begin, std::int64_t row_end,
                            std::int64_t block_begin, std::int64_t block_end);

  // The same for 1x1, stride 1, padding 0, over pixels [pixel_begin, pixel_end) in raster order: a matrix product, with
  // the same bits as conv2d_direct_f32. Of the sizes only in_c, out_c and the pixel strides are read, so that any run
  // of evenly spaced pixels will do (a row of a transposed convolution).
  void (*conv2d_pointwise_f32)(const ConvArgs& args, std::int64_t pixel_begin, std::int64_t pixel_end,
                               std::int64_t block_begin, std::int64_t block_end);

  // Output tiles [tile_begin, tile_end) of blocks [block_begin, block_end) of a 3x3, stride 1, padding 1 by Winograd
  // F(4x4,3x3). Tiles are 4x4 outputs in raster order, conv_tiles(out_h) * conv_tiles(out_w) of them, cut at the edges.
  // weight: as for conv2d_direct_f32. A call transforms the inputs of its tiles, and the weights of its blocks once for
  // some 58 tiles: threads had better share the tiles where there are more of them than output channels, else the
  // blocks. workspace: winograd43_workspace(args, tiles) floats for calls of at most `tiles` tiles, contents undefined
  // afterwards; it does not grow beyond some number of tiles. zeros is not read. Error: see winograd_error in pack.h. A
  // NaN or infinity in x reaches all outputs of the tiles that read it.
  std::int64_t (*winograd43_workspace)(const ConvArgs& args, std::int64_t tiles);
  void (*conv2d_winograd43_f32)(const ConvArgs& args, std::int64_t tile_begin, std::int64_t tile_end,
                                std::int64_t block_begin, std::int64_t block_end, float* workspace);

  // The same for stride 2, split by the parity of the input rows and columns into F(4x4,2x2), F(4,2) twice and a 1x1.
  std::int64_t (*winograd_s2_workspace)(const ConvArgs& args, std::int64_t tiles);
  void (*conv2d_winograd_s2_f32)(const ConvArgs& args, std::int64_t tile_begin, std::int64_t tile_end,
                                 std::int64_t block_begin, std::int64_t block_end, float* workspace);

  // Rows [row_begin, row_end) of y[oy][ox][c] = max of x in the 5x5 window around (oy, ox), cut at the edges. A NaN may
  // be lost.
  void (*max_pool5_f32)(const PoolArgs& args, std::int64_t row_begin, std::int64_t row_end);

  QuantKernels s8;
};

// Internal linkage on purpose: an inline function that is not inlined (-O0) would be a weak symbol of the files built
// for an instruction set, and the linker could give that copy to everyone.
constexpr int kDflBins = 17;
constexpr std::int64_t kWinograd43WeightSum = 262143;  // 128 times as many are less than 2^25

static inline std::int64_t letterbox_row_stride(const LetterboxArgs& args) { return (args.resized_w + 31) / 16 * 16; }
static inline std::int64_t letterbox_workspace(const LetterboxArgs& args) { return 6 * letterbox_row_stride(args); }
static inline std::int64_t conv_blocks(std::int64_t out_c, std::int64_t block) { return (out_c + block - 1) / block; }
static inline std::int64_t conv_tiles(std::int64_t size) { return (size + 3) / 4; }
static inline std::int64_t nms_workspace(std::int64_t max_kept) { return 6 * ((max_kept + 15) / 8 * 8); }

// The table in use: the one named by YOLONAS_CPU_ISA, else the fastest that this processor can run. Chosen on the first
// call; throws std::invalid_argument for a name that does not exist or cannot run here, with the list of those that
// can.
const CpuKernels& kernels();

// Changes the table in use, from the next op on; same errors. For tests, which run every table in one process.
void use_isa(const char* isa);

// Names that can run here, best first, separated by ", ".
const char* available_isas();

}  // namespace yolonas::cpu
