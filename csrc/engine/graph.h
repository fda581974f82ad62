// A network as a flat list of steps over buffers: what the engine is given, keeps and saves. Independent of the input's
// size and of the processor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace yolonas::engine {

// A feature map, NHWC, of 1 / 2^downscale_log2 of the input's height and width. Buffer 0 is the input.
struct Buffer {
  std::int64_t downscale_log2 = 0, channels = 0;
  float scale = 0;  // of int8 numbers, each of which stands for scale * number; 0: float32

  bool is_int8() const { return scale > 0; }
};

// Channels [offset, offset + channels) of a buffer. A concat is one buffer with several views.
struct View {
  std::int64_t buffer = 0, offset = 0, channels = 0;
};

enum class Op : std::uint32_t {
  conv,       // output = act(conv(input) + bias) + residual_scale * residual, padding kernel / 2, stride 1 or 2
  upsample,   // transposed convolution, 2x2, stride 2, no overlap: output = conv_transpose(input) + bias
  max_pool5,  // 5x5, stride 1, padding 2 (never wins)
  quantize,   // float32 to int8: clamp(rint(input / scale), -128, 127), ties to even; channels beyond the input's are 0
  dequantize  // int8 to float32
};
const char* name(Op op) noexcept;

struct Step {
  Op op = Op::conv;
  std::string name;  // unique; where there are no weights it may be any text
  View input, output;
  // conv and upsample:
  std::int64_t kernel = 1, stride = 1;
  bool relu = false, has_residual = false;
  View residual;  // as wide as output; may be the same view (in place)
  float residual_scale = 1;
  std::vector<float> weight;  // conv (K, kernel, kernel, C), upsample (2, 2, K, C); C and K as the views say
  std::vector<float> bias;    // (K,)
  // Of an integer step, instead of weight: numbers within -127..127, and (K,) what 1 stands for in each output channel.
  // Its input and residual are int8, its output is int8 or float32. All others know float32 only.
  std::vector<std::int8_t> weight_s8;
  std::vector<float> weight_scale;
  double winograd_error = -1;  // of a 3x3: estimate of its relative error by Winograd, negative where not known

  bool has_weight() const { return op == Op::conv || op == Op::upsample; }
  bool is_integer() const { return !weight_scale.empty(); }
};

// The head outputs of one level.
struct Level {
  View cls, reg;
  std::int64_t stride = 0;  // input pixels per cell, 2^downscale_log2 of both buffers
};

struct Graph {
  std::vector<Buffer> buffers;
  std::vector<Step> steps;
  std::vector<Level> levels;

  std::vector<std::string> step_names() const;
  std::int64_t size_multiple() const noexcept;  // height and width of an input must be multiples of this
};

// Throws std::invalid_argument unless: views lie in their buffers; weights fit the views; sizes and types of input,
// output and residual agree; every channel is written before it is read, and once only (but in place onto the residual,
// and by a quantize, which may come after such a one); input and outputs are float32, and the input is never written;
// names of convolutions are unique; head outputs have the stride of their buffers; what an integer step multiplies by
// is finite, and its sums fit int32.
void check_graph(const Graph& graph);

// What makes the sums of an integer step numbers of its output: see QuantConvArgs in cpu/kernels.h.
struct Requantization {
  std::vector<float> multiplier, offset;  // (K,)
  float residual_multiplier = 0;
};
Requantization requantization(const Graph& graph, const Step& step);

// Whether no value of a buffer can be negative, as after a ReLU; of the input nothing is known.
std::vector<bool> nonnegative_buffers(const Graph& graph);

// Weights from the order of training frameworks into that of Step: conv from (K, C, kernel, kernel), upsample from
// (C, K, 2, 2). T: float or std::int8_t.
template <class T>
std::vector<T> conv_weight(const T* weight, std::int64_t out_c, std::int64_t in_c, std::int64_t kernel) {
  const std::int64_t taps = kernel * kernel;
  std::vector<T> ordered(static_cast<std::size_t>(out_c * taps * in_c));
  T* out = ordered.data();
  for (std::int64_t k = 0; k < out_c; ++k) {
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      for (std::int64_t c = 0; c < in_c; ++c) *out++ = weight[(k * in_c + c) * taps + tap];
    }
  }
  return ordered;
}
template <class T>
std::vector<T> upsample_weight(const T* weight, std::int64_t in_c, std::int64_t out_c) {
  std::vector<T> ordered(static_cast<std::size_t>(4 * out_c * in_c));
  T* out = ordered.data();
  for (std::int64_t tap = 0; tap < 4; ++tap) {
    for (std::int64_t k = 0; k < out_c; ++k) {
      for (std::int64_t c = 0; c < in_c; ++c) *out++ = weight[(c * out_c + k) * 4 + tap];
    }
  }
  return ordered;
}

// "buffer 3, channels 32..95"
std::string view_text(const View& view);

}  // namespace yolonas::engine
