// A network as a flat list of steps over buffers: what the engine is given, keeps and saves. Independent of the input's
// size and of the processor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace yolonas::engine {

// A feature map, NHWC float32, of 1 / 2^downscale_log2 of the input's height and width. Buffer 0 is the input.
struct Buffer {
  std::int64_t downscale_log2 = 0, channels = 0;
};

// Channels [offset, offset + channels) of a buffer. A concat is one buffer with several views.
struct View {
  std::int64_t buffer = 0, offset = 0, channels = 0;
};

enum class Op : std::uint32_t {
  conv,      // output = act(conv(input) + bias) + residual_scale * residual, padding kernel / 2, stride 1 or 2
  upsample,  // transposed convolution, 2x2, stride 2, no overlap: output = conv_transpose(input) + bias
  max_pool5  // 5x5, stride 1, padding 2 (never wins)
};
const char* name(Op op) noexcept;

struct Step {
  Op op = Op::conv;
  std::string name;  // unique; of a max_pool5 it may be any text
  View input, output;
  // conv and upsample:
  std::int64_t kernel = 1, stride = 1;
  bool relu = false, has_residual = false;
  View residual;  // as wide as output; may be the same view (in place)
  float residual_scale = 1;
  std::vector<float> weight;   // conv (K, kernel, kernel, C), upsample (2, 2, K, C); C and K as the views say
  std::vector<float> bias;     // (K,)
  double winograd_error = -1;  // of a 3x3: estimate of its relative error by Winograd, negative where not known
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

  std::int64_t size_multiple() const noexcept;  // height and width of an input must be multiples of this
};

// Throws std::invalid_argument unless: views lie in their buffers; weights fit the views; scales of input, output and
// residual agree; every channel is written before it is read, and once only (but in place onto the residual); the input
// is never written; names of convolutions are unique; head outputs have the stride of their buffers.
void check_graph(const Graph& graph);

// Weights from the order of training frameworks into that of Step: conv from (K, C, kernel, kernel), upsample from
// (C, K, 2, 2).
std::vector<float> conv_weight(const float* weight, std::int64_t out_c, std::int64_t in_c, std::int64_t kernel);
std::vector<float> upsample_weight(const float* weight, std::int64_t in_c, std::int64_t out_c);

// "buffer 3, channels 32..95"
std::string view_text(const View& view);

}  // namespace yolonas::engine
