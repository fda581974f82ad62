#include "engine/serialize.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/check.h"

namespace yolonas::engine {
namespace {

constexpr char kMagic[8] = {'Y', 'O', 'L', 'O', 'N', 'A', 'S', 'E'};
constexpr std::uint32_t kVersion = 2, kByteOrder = 0x01020304;
constexpr std::size_t kHeader = 32;
constexpr std::size_t kLeastStep = 100;  // bytes, a little less than those of a step without name and weights

// Tells accidents, not attacks. Four lanes of multiply and rotate, so that 50 MB take a few milliseconds.
std::uint64_t checksum(const char* data, std::size_t size) {
  constexpr std::uint64_t kPrime = 0x9e3779b185ebca87ull;
  std::uint64_t lane[4] = {1, 2, 3, size};
  const auto mix = [](std::uint64_t state, std::uint64_t word) {
    state = (state ^ word) * kPrime;
    return state << 31 | state >> 33;
  };
  std::size_t at = 0;
  for (; at + 32 <= size; at += 32) {
    for (int i = 0; i < 4; ++i) {
      std::uint64_t word;
      std::memcpy(&word, data + at + 8 * i, sizeof word);
      lane[i] = mix(lane[i], word);
    }
  }
  for (; at < size; ++at) lane[at % 4] = mix(lane[at % 4], static_cast<unsigned char>(data[at]));
  return mix(mix(mix(lane[0], lane[1]), lane[2]), lane[3]);
}

class Writer {
 public:
  void bytes(const void* data, std::size_t size) {
    if (size) out_.append(static_cast<const char*>(data), size);
  }
  template <class T>
  void value(T value) {
    bytes(&value, sizeof value);
  }
  void text(const std::string& text) {
    value<std::uint64_t>(text.size());
    bytes(text.data(), text.size());
  }
  template <class T>
  void values(const std::vector<T>& values) {
    value<std::uint64_t>(values.size());
    bytes(values.data(), values.size() * sizeof(T));
  }
  void view(const View& view) {
    value(view.buffer);
    value(view.offset);
    value(view.channels);
  }
  std::string& out() { return out_; }

 private:
  std::string out_;
};

class Reader {
 public:
  Reader(const char* data, std::size_t size) : data_(data), left_(size) {}

  const char* bytes(std::uint64_t size) {
    YN_CHECK(size <= left_, "deserialize: data must hold ", size, " more bytes, got ", left_, "; it is damaged");
    const char* at = data_;
    data_ += size;
    left_ -= static_cast<std::size_t>(size);
    return at;
  }
  template <class T>
  T value() {
    T value;
    std::memcpy(&value, bytes(sizeof value), sizeof value);
    return value;
  }
  // A number of things of at least `size` bytes each.
  std::uint64_t count(std::size_t size) {
    const auto count = value<std::uint64_t>();
    YN_CHECK(count <= left_ / size, "deserialize: data must hold ", count, " values, got ", left_,
             " bytes; it is damaged");
    return count;
  }
  std::string text() {
    const std::uint64_t size = count(1);
    return std::string(bytes(size), static_cast<std::size_t>(size));
  }
  template <class T>
  std::vector<T> values() {
    std::vector<T> values(static_cast<std::size_t>(count(sizeof(T))));
    if (!values.empty()) std::memcpy(values.data(), bytes(values.size() * sizeof(T)), values.size() * sizeof(T));
    return values;
  }
  View view() {
    View view;
    view.buffer = value<std::int64_t>();
    view.offset = value<std::int64_t>();
    view.channels = value<std::int64_t>();
    return view;
  }
  std::size_t left() const { return left_; }

 private:
  const char* data_;
  std::size_t left_;
};

}  // namespace

std::string serialize(const Graph& graph) {
  Writer writer;
  std::size_t weights = 0;
  for (const Step& step : graph.steps) {
    weights += (step.weight.size() + step.bias.size() + step.weight_scale.size()) * sizeof(float);
    weights += step.weight_s8.size();
  }
  writer.out().reserve(weights + 256 * (graph.steps.size() + graph.buffers.size() + 16));
  writer.bytes(kMagic, sizeof kMagic);
  writer.value(kVersion);
  writer.value(kByteOrder);
  writer.value<std::uint64_t>(0);  // size and checksum, below
  writer.value<std::uint64_t>(0);
  writer.value<std::uint64_t>(graph.buffers.size());
  for (const Buffer& buffer : graph.buffers) {
    writer.value(buffer.downscale_log2);
    writer.value(buffer.channels);
    writer.value(buffer.scale);
  }
  writer.value<std::uint64_t>(graph.steps.size());
  for (const Step& step : graph.steps) {
    writer.value(static_cast<std::uint32_t>(step.op));
    writer.text(step.name);
    writer.view(step.input);
    writer.view(step.output);
    writer.value(step.kernel);
    writer.value(step.stride);
    writer.value<std::uint8_t>(step.relu);
    writer.value<std::uint8_t>(step.has_residual);
    writer.view(step.residual);
    writer.value(step.residual_scale);
    writer.value(step.winograd_error);
    writer.values(step.weight);
    writer.values(step.bias);
    writer.values(step.weight_s8);
    writer.values(step.weight_scale);
  }
  writer.value<std::uint64_t>(graph.levels.size());
  for (const Level& level : graph.levels) {
    writer.view(level.cls);
    writer.view(level.reg);
    writer.value(level.stride);
  }
  std::string out = std::move(writer.out());
  const std::uint64_t size = out.size(), sum = checksum(out.data() + kHeader, out.size() - kHeader);
  std::memcpy(&out[16], &size, sizeof size);
  std::memcpy(&out[24], &sum, sizeof sum);
  return out;
}

Graph deserialize(const char* data, std::size_t size) {
  YN_CHECK(size >= kHeader && std::memcmp(data, kMagic, sizeof kMagic) == 0,
           "deserialize: data must be a serialized engine, got ", size, " bytes of something else");
  Reader reader(data, size);
  reader.bytes(sizeof kMagic);
  const auto version = reader.value<std::uint32_t>();
  YN_CHECK(version == kVersion, "deserialize: data must have version ", kVersion, ", got ", version,
           "; compile the model again with this version of yolonas");
  YN_CHECK(reader.value<std::uint32_t>() == kByteOrder, "deserialize: data must have this machine's byte order");
  const auto total = reader.value<std::uint64_t>();
  YN_CHECK(total == size, "deserialize: data must have ", total, " bytes, got ", size,
           size < total ? "; it is truncated" : "");
  const auto sum = reader.value<std::uint64_t>();
  YN_CHECK(sum == checksum(data + kHeader, size - kHeader), "deserialize: data must match its checksum; it is damaged");
  Graph graph;
  graph.buffers.resize(static_cast<std::size_t>(reader.count(20)));
  for (Buffer& buffer : graph.buffers) {
    buffer.downscale_log2 = reader.value<std::int64_t>();
    buffer.channels = reader.value<std::int64_t>();
    buffer.scale = reader.value<float>();
  }
  graph.steps.resize(static_cast<std::size_t>(reader.count(kLeastStep)));
  for (Step& step : graph.steps) {
    const auto op = reader.value<std::uint32_t>();
    YN_CHECK(op <= static_cast<std::uint32_t>(Op::dequantize), "deserialize: op must be known, got number ", op);
    step.op = static_cast<Op>(op);
    step.name = reader.text();
    step.input = reader.view();
    step.output = reader.view();
    step.kernel = reader.value<std::int64_t>();
    step.stride = reader.value<std::int64_t>();
    step.relu = reader.value<std::uint8_t>() != 0;
    step.has_residual = reader.value<std::uint8_t>() != 0;
    step.residual = reader.view();
    step.residual_scale = reader.value<float>();
    step.winograd_error = reader.value<double>();
    step.weight = reader.values<float>();
    step.bias = reader.values<float>();
    step.weight_s8 = reader.values<std::int8_t>();
    step.weight_scale = reader.values<float>();
  }
  graph.levels.resize(static_cast<std::size_t>(reader.count(56)));
  for (Level& level : graph.levels) {
    level.cls = reader.view();
    level.reg = reader.view();
    level.stride = reader.value<std::int64_t>();
  }
  YN_CHECK(reader.left() == 0, "deserialize: data must end after the outputs, got ", reader.left(), " more bytes");
  check_graph(graph);
  return graph;
}

}  // namespace yolonas::engine
