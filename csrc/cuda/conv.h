// Convolutions as matrix products on the tensor cores: what their launchers take, and which variants there are. Plain
// C++.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/maps.h"

namespace yolonas::cuda {

inline constexpr int kMostKernel = 7;  // taps a line

// One convolution of a batch, or a 2x2 transposed one of stride 2, as a product of pixels (rows) and output channels
// (columns) over kernel * kernel * in_c (depth):
//   floats: y = act(sum + offset) + residual_scale * residual, sums in float32, y rounded to its type
//   int8: v = float(sum) * multiplier + offset; v = max(v, 0) if relu; v = v + float(residual) * residual_scale, each
//         operation rounded by itself, sums exact in int32; y = clamp(rint(v), -128, 127), ties to even, NaN gives
//         -128, or y = v where y is float32. The CPU's bits (QuantConvArgs in cpu/kernels.h).
// x, weight and residual are of one type, f32, f16 or s8; y is of that type or float32.
// Needs: x and weight at multiples of 16 bytes, x.pixel and in_c multiples of 16 bytes; y and residual may be anywhere
// (fastest at multiples of 16 bytes with out_c a multiple of 8). y may be the very memory of residual, and must not
// overlap x.
struct ConvArgs {
  MapView x;                // x.channels is in_c
  const void* weight;       // [out_n][kernel][kernel][in_c]
  const float* multiplier;  // [out_n], of int8 alone
  const float* offset;      // [out_n], the bias
  MapView residual;         // data null: none
  MapView y;                // y.channels is out_n, or out_n / 4 of a transposed one
  float residual_scale;
  int batch, in_h, in_w, out_h, out_w;  // out_h, out_w: rows and columns of the product, so in_h and in_w of a
                                        // transposed one, whose y has 2 * out_h x 2 * out_w pixels
  int kernel, stride, pad;              // a transposed one: 1, 1, 0
  bool relu;
  bool transposed;  // weight [2][2][y.channels][in_c]: column (2 * dy + dx) * y.channels + k goes to pixel
                    // (2 * oy + dy, 2 * ox + dx), channel k

  int out_n() const { return transposed ? 4 * y.channels : y.channels; }
  std::int64_t rows() const { return static_cast<std::int64_t>(batch) * out_h * out_w; }
  int depth() const { return kernel * kernel * x.channels; }
};

// How it is computed. Every variant gives the same integers; floats may differ in the order of their sums, which
// depends on the variant and on `splits`, and on nothing else: not on the batch, not on earlier runs.
struct ConvChoice {
  int variant = 0;  // of conv_variants(elem)
  int splits = 1;   // parts of the depth that different blocks add up, the last to finish adds the parts in order
};

inline constexpr int kNewest = 9999;  // any later architecture
struct ConvVariant {
  const char* name;           // "64x32k64": rows x columns of a block, bytes of depth in a step
  int rows, columns;          // of a block
  int step;                   // bytes of depth
  int read_rows;              // that all warps together read from shared memory in a step, of pixels and of weights
  int threads;                // of a block
  int shared_bytes;           // of a block
  int least_arch, most_arch;  // runs on devices of these compute capabilities, ten times: 75, 80, 90
  int index = 0;              // of conv_variants(elem)

  // arch: of the device. code: what the kernels were compiled for, which may be older.
  bool runs_on(int arch, int code) const { return arch >= least_arch && code >= least_arch && arch <= most_arch; }
};

// Those of a type; their number goes to *count. The first takes everything on every architecture.
const ConvVariant* conv_variants(Elem elem, int* count);

// How many blocks of each variant a multiprocessor of the current device runs at once, as the driver says from their
// registers, threads and shared memory; 0 for those that do not run there, see ConvVariant::runs_on. A call of the
// driver for each: to be asked once. Throws nothing.
struct ResidentBlocks {
  std::vector<int> half, int8;  // by variant
};
ResidentBlocks resident_blocks(int arch, int code);

// Memory for splits > 1: partial sums, undefined before and after; and counters, which must be zero before the first
// launch and are zero again after each. One launch at a time may use them.
std::int64_t conv_partial_bytes(const ConvArgs& args, const ConvChoice& choice);
std::int64_t conv_counters(const ConvArgs& args, const ConvChoice& choice);  // of 4 bytes
struct ConvWorkspace {
  void* partial = nullptr;
  unsigned* counters = nullptr;
};

// Queues it. Throws std::runtime_error, naming the op, for an error of CUDA.
void conv(const ConvArgs& args, const ConvChoice& choice, const ConvWorkspace& workspace, Queue queue);

}  // namespace yolonas::cuda
