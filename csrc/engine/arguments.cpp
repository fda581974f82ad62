#include "engine/arguments.h"

#include "core/check.h"

namespace yolonas::engine {

InputSize check_input(const Graph& graph, const TensorView& x, const char* op) {
  check_tensor(x, op, "x", DType::f32, {-1, -1, -1, graph.buffers[0].channels}, "(N, H, W, C)");
  const InputSize size{x.shape[0], x.shape[1], x.shape[2]};
  check_size(graph, size, op);
  return size;
}

std::vector<float*> check_outputs(const Graph& graph, const TensorView& x, const std::vector<TensorView>& cls,
                                  const std::vector<TensorView>& reg, const char* op) {
  const std::size_t levels = graph.levels.size();
  YN_CHECK(cls.size() == levels && reg.size() == levels, op, ": cls and reg must have one array per level, ", levels,
           ", got ", cls.size(), " and ", reg.size());
  std::vector<float*> outputs;
  std::vector<const TensorView*> seen{&x};
  for (std::size_t i = 0; i < levels; ++i) {
    const Level& level = graph.levels[i];
    for (const bool is_cls : {true, false}) {
      const TensorView& out = is_cls ? cls[i] : reg[i];
      const std::string argument = concat(is_cls ? "cls[" : "reg[", i, "]");
      check_output(out, op, argument.c_str(), DType::f32,
                   {x.shape[0], x.shape[1] / level.stride, x.shape[2] / level.stride,
                    is_cls ? level.cls.channels : level.reg.channels},
                   "(N, h, w, channels)");
      for (const TensorView* other : seen) {
        YN_CHECK(!yolonas::overlap(out, *other), op, ": ", argument, " must not overlap x or another output");
      }
      seen.push_back(&out);
      outputs.push_back(out.as<float>());
    }
  }
  return outputs;
}

}  // namespace yolonas::engine
