// The CUDA kernels' launchers, callable from plain C++, with the contract of each.
// All of them: queue work on the stream of the current device and return; they neither allocate nor synchronise (but
// for YOLONAS_CUDA_SYNC=1), so they can be captured in a graph; every pointer is device memory of exactly the elements
// named; inputs and outputs do not overlap unless said; zero elements launch nothing. A CUDA error is a
// std::runtime_error that names the op. Arithmetic is float32 without contraction to FMA, as in the CPU's shared code.
#pragma once

#include <cstdint>

#include "cuda/maps.h"
#include "ops/letterbox_frame.h"

namespace yolonas::cuda {

// As cpu/kernels.h's: OpenCV's uint8 bilinear (ops/letterbox.h), grey outside, then (value - mean) / divisor with a
// true division. One thread an output pixel; bit-equal to the CPU op.
void letterbox_u8_f32(const LetterboxFrame& args, Stream stream);

// The same for the pictures of a batch, into the network's input as the engine holds it: NHWC, `pixel` elements from
// pixel to pixel, channels from 3 on are 0. Float16 is the rounded float32 value; int8 is quantize() of it, with 1 /
// scale as `inverse_scale`. All frames have one size; their `out` and `hwc` do not count. One launch for up to
// kLetterboxBatch pictures.
inline constexpr int kLetterboxBatch = 16;
struct NetworkInput {
  void* data;
  Elem elem;
  int pixel;
  float inverse_scale;  // of int8
};
void letterbox_batch(const LetterboxFrame* frames, int count, const NetworkInput& out, Queue queue);

// One pyramid level of `batch` pictures to its rows of boxes and scores. A score is 1 / (1 + exp(-logit)); a side's
// distance the expectation of a softmax over 17 bins (DFL, Li et al. 2020); a box (grid point -+ distance) * stride.
// NaN logits give NaN. Differs from the CPU op by the rounding of exp: scores within 1e-6, distances within 1e-5 cells.
struct DecodeArgs {
  const float* cls;  // channels first [batch][classes][h][w] or last [batch][h][w][classes]
  const float* reg;  // channels first [batch][68][h][w] or last [batch][h][w][68]; channel = side * 17 + bin
  bool channels_last;
  std::int64_t batch, classes, h, w;
  float stride;          // input pixels per cell
  std::int64_t anchors;  // of all levels: rows of a picture in boxes and scores
  std::int64_t first_anchor;
  float* boxes;   // [batch][anchors][4] xyxy, pixels
  float* scores;  // [batch][anchors][classes]
};
void decode_boxes_f32(const DecodeArgs& args, Stream stream);   // one thread a (cell, side)
void decode_scores_f32(const DecodeArgs& args, Stream stream);  // one thread a score

// Greedy suppression of candidates sorted by descending score, picture by picture, as nms_f32 in cpu/kernels.h: first
// every pair's verdict as a bit (one thread 64 of them), then one block a picture walks the candidates in order.
// Decisions and rows are bit-equal to the CPU op.
struct NmsArgs {
  const float* boxes;                    // [batch][capacity][4] xyxy
  const float* scores;                   // [batch][capacity]
  const std::int32_t* classes;           // [batch][capacity]
  const std::int64_t* candidate_counts;  // [batch]; values outside 0..capacity mean the nearer end
  std::int64_t batch, capacity;          // capacity <= kNmsMaxCapacity
  float iou;
  bool agnostic;
  std::int64_t max_det;
  float* detections;             // [batch][max_det][6] x1, y1, x2, y2, score, class; zero beyond the count
  std::int64_t* counts;          // [batch]
  std::uint64_t* workspace;      // nms_workspace(capacity) words a picture, for at least one picture
  std::int64_t workspace_words;  // more pictures at once where there is room for them; contents undefined afterwards
};
inline constexpr std::int64_t kNmsMaxCapacity = 1 << 18;  // the flags of a picture fill 32 KiB of shared memory
inline std::int64_t nms_workspace(std::int64_t capacity) { return capacity * ((capacity + 63) / 64); }
void nms_bitmask_f32(const NmsArgs& args, Stream stream);

// --- Feature maps of the engine. `pixels` in raster order over all pictures; 16 bytes at a time where addresses and
// strides allow it. ---

// y[p][c] = convert(x[p][c]) for c < x.channels; y.channels >= x.channels, and y's channels from there on become 0.
// Between any two types: float32 to float16 rounds to nearest even; float32 to int8 (quantize) is clamp(rint(x *
// factor), -128, 127) with ties to even, -128 for a NaN; int8 to float32 (dequantize) is float(x) * factor; `factor` is
// not read otherwise. float16 to int8 and back go through float32. Int8 numbers are bit-equal to the CPU's.
void convert_map(const MapView& x, const MapView& y, std::int64_t pixels, float factor, Queue queue);

// y[oy][ox][c] = max of x in the 5x5 window around (oy, ox), cut at the edges. x and y are of one type and do not
// overlap. Equal to the CPU; a NaN may be lost, and either of two zeros may be the maximum.
void max_pool5(const MapView& x, const MapView& y, int batch, int h, int w, Queue queue);

// Adds the values of a float32 or float16 map to a histogram over the upper 16 bits of |value| as float32 (as
// Histograms in engine/arguments.h): counts [1 << 15], *largest the largest finite magnitude (as its bits; starts from
// what is there), *negatives how many are below 0. Integer sums, so any order gives the same. A NaN of float16 may
// count in another one's bin.
void observe_map(const MapView& x, std::int64_t pixels, unsigned long long* counts, unsigned* largest,
                 unsigned long long* negatives, Queue queue);

// sums[c] += x[p][c] over all pixels, c < x.channels, of an int8 map. Integer sums, so any order gives the same.
void add_channel_sums(const MapView& x, std::int64_t pixels, std::int64_t* sums, Queue queue);

// The tensor seen as [outer][channels][inner], element i has scale[i / inner % channels]. Scales must be positive and
// finite: they are not looked at, others give meaningless values. In place allowed. One thread an element.
struct FakeQuantizeArgs {
  const float* x;
  const float* scale;  // [channels]
  std::int64_t outer, channels, inner;
  float qmin, qmax;
};
// y = clamp(rint(x * (1 / s)), qmin, qmax) * s, ties to even, never -0; NaN gives qmin * s. Bit-equal to the CPU op.
void fake_quantize_f32(const FakeQuantizeArgs& args, float* y, Stream stream);
// dx = dy where qmin <= rint(x * (1 / s)) <= qmax, else 0. dx may be dy. Equal to the CPU op.
void fake_quantize_backward_f32(const FakeQuantizeArgs& args, const float* dy, float* dx, Stream stream);

}  // namespace yolonas::cuda
