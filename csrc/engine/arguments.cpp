#include "engine/arguments.h"

#include "core/check.h"

namespace yolonas::engine {

InputSize check_input(const Graph& graph, const TensorView& x, const char* op) {
  check_tensor(x, op, "x", DType::f32, {-1, -1, -1, graph.buffers[0].channels}, "(N, H, W, C)");
  const InputSize size{x.shape[0], x.shape[1], x.shape[2]};
  check_size(graph, size, op);
  return size;
}

void check_histograms(const Graph& graph, const TensorView& x, const Histograms& histograms, const char* op) {
  for (const Buffer& buffer : graph.buffers) {
    YN_CHECK(!buffer.is_int8(), op, ": the network must compute with floats only, got one with int8");
  }
  const std::int64_t rows = static_cast<std::int64_t>(graph.steps.size()) + 1;
  check_output(histograms.counts, op, "counts", DType::s64, {rows, Histograms::kBins}, "(1 + steps, bins)");
  check_output(histograms.largest, op, "largest", DType::f32, {rows}, "(1 + steps,)");
  check_output(histograms.negatives, op, "negatives", DType::s64, {rows}, "(1 + steps,)");
  const TensorView* all[] = {&x, &histograms.counts, &histograms.largest, &histograms.negatives};
  for (int i = 1; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      YN_CHECK(!yolonas::overlap(*all[i], *all[j]), op,
               ": counts, largest and negatives must not overlap x or each other");
    }
  }
}

void check_channel_sums(const Graph& graph, const TensorView& x, const TensorView& sums, const char* op) {
  std::int64_t total = 0;
  for (const Step& step : graph.steps) total += step.output.channels;
  check_output(sums, op, "sums", DType::s64, {total}, "(total,)");
  YN_CHECK(!yolonas::overlap(x, sums), op, ": sums must not overlap x");
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
