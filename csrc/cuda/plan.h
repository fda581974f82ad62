// A network as it is run on a device: the types and pitches of its buffers, its weights in one block of memory, and for
// one input size where everything lies, how each step is computed and on which stream. Plain C++: no device is needed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cuda/choose.h"
#include "cuda/conv.h"
#include "engine/graph.h"
#include "engine/plan.h"
#include "engine/schedule.h"

namespace yolonas::cuda {

inline constexpr std::int64_t kAlignBytes = 256;  // of buffers and weights
inline constexpr int kMostStreams = 8;

enum class Work : std::uint8_t {
  none,     // the input is written as this step would write it
  conv,     // transposed ones too
  pool,     // maxima
  convert,  // from one type to another
};

// A step of the graph, or at the end a conversion of a head output to float32.
struct NetworkStep {
  Work work = Work::none;
  std::string name;
  engine::View x, y, residual;  // of buffers of the network; those that are wider than in the graph hold zeros there
  bool has_residual = false;
  bool relu = false, transposed = false;
  int kernel = 1, stride = 1;
  float residual_scale = 0;
  float factor = 0;                                     // of a conversion, as convert_map takes it
  std::int64_t weight = 0, multiplier = 0, offset = 0;  // in the block of weights, in bytes
  std::int64_t weight_bytes = 0;                        // of all three
  std::vector<int> needs;                               // see step_needs
};

// What does not depend on the input's size.
struct Network {
  struct Buffer {
    Elem elem = Elem::f32;
    std::int64_t downscale_log2 = 0;
    int channels = 0;
    int pixel = 0;  // numbers from pixel to pixel, a multiple of 16 bytes; those beyond the channels may be anything
  };
  std::vector<Buffer> buffers;     // the graph's, then one per head output that is kept as float16
  std::vector<NetworkStep> steps;  // the graph's, then the conversions of those outputs
  std::size_t graph_steps = 0;
  std::vector<engine::View> outputs;  // float32: cls and reg of level 0, of level 1, ...
  int input = 0;                      // the buffer that takes the input, as letterbox_batch and convert_map write it
  float input_factor = 1;             // of an int8 one: 1 / scale
  std::int64_t weight_bytes = 0;

  MapView view(const engine::View& of, void* buffer) const;
};

// The graph must have passed check_graph. half: float steps in float16. Throws NotSupported for channels that the
// kernels cannot read, and std::invalid_argument for half of a quantised graph, or weights that float16 cannot hold.
// `weights`: what lies on the device, network.weight_bytes bytes.
Network make_network(const engine::Graph& graph, bool half, std::vector<unsigned char>& weights);

// How a step is computed, by the name of its variant: "64x64k128", 2 splits. Of steps without variants: their one name,
// 1.
struct NamedChoice {
  std::string name;
  std::int64_t splits = 1;
};
using TunedSteps = std::vector<std::optional<NamedChoice>>;  // one per step of the graph; none: by the estimate

struct StepPlan {
  ConvChoice choice;
  bool tuned = false;  // another choice than the estimate's
  double microseconds = 0;
  std::int64_t partial = -1, partial_bytes = 0;  // in the arena
  std::int64_t first_counter = 0, counters = 0;
  engine::Slot slot;  // nothing is queued for Work::none
};

struct NetworkPlan {
  engine::InputSize size;
  struct Place {
    int height = 0, width = 0;
    std::int64_t bytes = 0;    // 0: not used
    std::int64_t offset = -1;  // in the arena
  };
  std::vector<Place> places;    // of the buffers
  std::vector<StepPlan> steps;  // of the network
  std::vector<int> joins;       // steps that stream 0 waits for at the end
  int streams = 1;
  std::int64_t arena_bytes = 0;  // with the partial sums
  std::int64_t counters = 0;     // of 4 bytes

  std::int64_t pixels(int buffer) const {
    const Place& place = places[static_cast<std::size_t>(buffer)];
    return size.pictures * place.height * place.width;
  }
};

// Steps that may run at the same time share no memory. The size must have passed check_size. Throws
// std::invalid_argument for a choice that does not fit.
NetworkPlan make_plan(const Network& network, const engine::InputSize& size, const TunedSteps& tuned,
                      const Processor& processor);

// A convolution of the network, without memory: all pointers are null but those of `buffers` and `weights`, the places
// of each buffer and of the block of weights.
ConvArgs conv_args(const Network& network, const NetworkPlan& plan, std::size_t step, void* const* buffers,
                   const void* weights);

// What a step could be computed by, the estimate's choice first; at most `splits` per variant.
std::vector<NamedChoice> alternatives(const Network& network, const NetworkPlan& plan, std::size_t step,
                                      const Processor& processor, int splits);

NamedChoice choice_of(const Network& network, const NetworkPlan& plan, std::size_t step);

}  // namespace yolonas::cuda
