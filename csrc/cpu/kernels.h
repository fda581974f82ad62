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

// A 2-d convolution in NHWC without groups; see conv2d_direct_f32.
struct Conv2dArgs {
  std::int64_t in_h, in_w, in_c;
  std::int64_t out_h, out_w, out_c;
  std::int64_t kernel_h, kernel_w, stride, padding;
  const float* x;         // [in_h][in_w][in_c], one picture
  const float* weight;    // packed: [ceil(out_c / 16)][kernel_h][kernel_w][in_c][16], zero beyond out_c
  const float* bias;      // [ceil(out_c / 16) * 16], zero beyond out_c
  const float* zeros;     // [in_c] zeros, stands for pixels in the padding
  const float* residual;  // [out_h][out_w][out_c] or null
  float residual_scale;
  bool relu;
  float* y;  // [out_h][out_w][out_c]; may be the same memory as residual
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

  // y = act(conv(x) + bias) + residual_scale * residual for output rows [row_begin, row_end) and blocks of 16 output
  // channels [block_begin, block_end). Direct form: for every output tile of 6 columns and 16 channels the sum runs
  // over kernel_h, kernel_w, in_c in this order in one float32 accumulator per output (with FMA where the ISA has it).
  void (*conv2d_direct_f32)(const Conv2dArgs& args, std::int64_t row_begin, std::int64_t row_end,
                            std::int64_t block_begin, std::int64_t block_end);
};

// Internal linkage on purpose: an inline function that is not inlined (-O0) would be a weak symbol of the files built
// for an instruction set, and the linker could give that copy to everyone.
constexpr int kDflBins = 17;
constexpr int kConvBlock = 16;

static inline std::int64_t letterbox_row_stride(const LetterboxArgs& args) { return (args.resized_w + 31) / 16 * 16; }
static inline std::int64_t letterbox_workspace(const LetterboxArgs& args) { return 6 * letterbox_row_stride(args); }
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
