// Compares the kernels of every instruction set that this processor has with the generic ones, without Python: for
// processors that only an emulator stands for.
//
//   tables_check ENGINE INPUT HEIGHT WIDTH OUTPUT
//
// ENGINE holds an engine's bytes, INPUT float32 (1, H, W, 3). Writes all head outputs as each instruction set gives
// them to OUTPUT.ISA. Prints a line per comparison; exit status 1 where one fails.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "cpu/engine.h"
#include "cpu/kernels.h"
#include "cpu/letterbox.h"
#include "cpu/pack.h"
#include "engine/serialize.h"

namespace {

using namespace yolonas;
using Floats = std::vector<float>;

int failures = 0;

void report(const char* what, const char* isa, double difference, double allowed) {
  const bool fine = difference <= allowed;  // false for NaN
  failures += !fine;
  std::printf("%s %s: %g of %g %s\n", isa, what, difference, allowed, fine ? "" : "FAILED");
}

Floats numbers(std::size_t count, float low, float high, unsigned seed) {
  Floats values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = low + (high - low) * static_cast<float>(seed >> 8) / 16777216.0f;
  }
  return values;
}

// The largest difference; places where both are NaN are equal, where one is are not.
double distance(const Floats& a, const Floats& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (a[i] == b[i]) continue;
    const double one = std::fabs(static_cast<double>(a[i]) - b[i]);
    most = std::isnan(one) || one > most ? one : most;
  }
  return a.size() == b.size() ? most : std::numeric_limits<double>::infinity();
}

Floats sigmoid(const cpu::CpuKernels& table) {
  Floats x = numbers(1003, -100, 100, 1);
  x[5] = std::nanf("");
  x[6] = std::numeric_limits<float>::infinity();
  x[7] = -x[6];
  table.sigmoid_f32(x.data(), x.data(), 1003);
  return x;
}

Floats collect(const cpu::CpuKernels& table) {
  Floats x = numbers(1003, 0, 1, 2), value(1003);
  x[9] = std::nanf("");
  std::vector<std::int32_t> index(1003);
  const std::int64_t count = table.collect_greater_f32(x.data(), 1003, 0.7f, index.data(), value.data());
  Floats found(value.begin(), value.begin() + count);
  found.insert(found.end(), index.begin(), index.begin() + count);
  return found;
}

Floats dfl(const cpu::CpuKernels& table) {
  Floats x = numbers(17 * 8, -8, 8, 3), out(8);
  x[3] = std::nanf("");
  table.dfl_expectation_f32(x.data(), 8, out.data());
  return out;
}

Floats class_max(const cpu::CpuKernels& table) {
  Floats x = numbers(21 * 100, -1, 1, 4), best(99);
  for (std::size_t i = 0; i < x.size(); i += 13) x[i] = 0.75f;  // ties
  x[40] = std::nanf("");
  std::vector<std::int32_t> which(99);
  table.class_max_f32(x.data(), 100, 21, 99, best.data(), which.data());
  best.insert(best.end(), which.begin(), which.end());
  return best;
}

Floats nms(const cpu::CpuKernels& table) {
  Floats boxes = numbers(4 * 300, 0, 60, 5);
  std::vector<std::int32_t> classes(300), keep(200);
  for (std::size_t i = 0; i < 300; ++i) {
    boxes[4 * i + 2] = boxes[4 * i] + 5 + boxes[4 * i + 2] / 2;
    boxes[4 * i + 3] = boxes[4 * i + 1] + 5 + boxes[4 * i + 3] / 2;
    classes[i] = static_cast<std::int32_t>(i % 3);
  }
  boxes[17] = std::nanf("");
  Floats workspace(static_cast<std::size_t>(cpu::nms_workspace(200)));
  const std::int64_t count = table.nms_f32(boxes.data(), classes.data(), 300, 0.4f, 200, keep.data(), workspace.data());
  return Floats(keep.begin(), keep.begin() + count);
}

Floats fake_quantize(const cpu::CpuKernels& table) {
  Floats x = numbers(1003, -4, 4, 6), y(1003), scale = numbers(1003, 0.01f, 0.1f, 7);
  for (std::size_t i = 0; i < 200; ++i) x[i] = scale[i] * (static_cast<float>(i % 60) - 30.5f);  // ties
  table.fake_quantize_f32(x.data(), scale.data(), 1, 1003, -128, 127, y.data());
  Floats gradient = numbers(1003, -1, 1, 8);
  table.fake_quantize_backward_f32(gradient.data(), x.data(), scale.data(), 1, 1003, -128, 127, gradient.data());
  y.insert(y.end(), gradient.begin(), gradient.end());
  return y;
}

std::vector<std::int8_t> small_integers(std::size_t count, int low, int high, unsigned seed) {
  std::vector<std::int8_t> values;
  for (const float value : numbers(count, static_cast<float>(low), static_cast<float>(high) + 1.0f, seed)) {
    values.push_back(static_cast<std::int8_t>(std::floor(value)));
  }
  return values;
}

Floats quantize_and_pool(const cpu::CpuKernels& table) {
  Floats x = numbers(7 * 9 * 45, -4, 4, 9);
  for (std::size_t i = 0; i < 200; ++i) x[i] = 0.0625f * (static_cast<float>(i) - 100.5f);  // ties
  x[300] = std::nanf("");
  x[301] = std::numeric_limits<float>::infinity();
  std::vector<std::int8_t> whole(7 * 9 * 47), most(whole.size()), four(7 * 9 * 15 * 4);
  table.s8.quantize({45, 45, 47, 47, x.data(), whole.data(), 16}, 0, 7 * 9);
  table.s8.quantize({3, 3, 4, 4, x.data(), four.data(), 16}, 0, 7 * 9 * 15);
  table.s8.max_pool5({7, 9, 47, 47, 47, whole.data(), most.data()}, 0, 7);
  Floats back(most.size());
  table.s8.dequantize({47, 47, 47, most.data(), back.data(), 0.1f}, 0, 7 * 9);
  back.insert(back.end(), whole.begin(), whole.end());
  back.insert(back.end(), four.begin(), four.end());
  return back;
}

Floats conv2d_s8(const cpu::CpuKernels& table) {
  Floats all;
  for (const std::int64_t in_c : {3, 4, 32, 37}) {
    for (const bool is_unsigned : {false, true}) {
      constexpr std::int64_t kOut = 21;
      const auto x = small_integers(static_cast<std::size_t>(6 * 17 * in_c), is_unsigned ? 0 : -128, 127, 10);
      const auto weight = small_integers(static_cast<std::size_t>(kOut * 9 * in_c), -127, 127, 11);
      const auto channels = static_cast<std::size_t>(cpu::conv_blocks(kOut, table.conv_block) * table.conv_block);
      std::vector<std::int8_t> packed(
          static_cast<std::size_t>(cpu::pack_direct_s8_bytes(kOut, 3, 3, in_c, table.conv_block)));
      std::vector<std::int32_t> weight_sum(channels);
      cpu::pack_direct_s8(weight.data(), kOut, 3, 3, in_c, table.conv_block, packed.data(), weight_sum.data());
      const Floats multiplier(channels, 0.001f), offset(channels, 0.5f);
      const std::vector<std::int8_t> zeros(static_cast<std::size_t>(in_c));
      std::vector<std::int8_t> y(6 * 17 * kOut);
      Floats y_f32(y.size());
      cpu::QuantConvArgs args{};
      static_cast<cpu::ConvSizes&>(args) = {6, 17, in_c, in_c, 6, 17, kOut, kOut, 3, 3, 1, 1};
      args.x = x.data();
      args.weight = packed.data();
      args.weight_sum = weight_sum.data();
      args.multiplier = multiplier.data();
      args.offset = offset.data();
      args.zeros = zeros.data();
      args.unsigned_input = is_unsigned;
      args.y_f32 = y_f32.data();
      const std::int64_t blocks = cpu::conv_blocks(kOut, table.conv_block);
      table.s8.conv2d_direct(args, 0, 6, 0, blocks);
      args.y = y.data();
      table.s8.conv2d_direct(args, 0, 6, 0, blocks);
      std::vector<std::int8_t> winograd(y.size());
      args.y = winograd.data();
      const std::int64_t tiles = cpu::conv_tiles(6) * cpu::conv_tiles(17);
      Floats workspace(static_cast<std::size_t>(table.s8.winograd43_workspace(args, tiles)));
      table.s8.conv2d_winograd43(args, 0, tiles, 0, blocks, workspace.data());
      if (winograd != y) report("the int8 convolutions differ", table.isa, 1, 0);
      all.insert(all.end(), y_f32.begin(), y_f32.end());
      all.insert(all.end(), y.begin(), y.end());
    }
  }
  return all;
}

Floats letterbox(const cpu::CpuKernels&) {  // the table in use
  std::vector<std::uint8_t> picture(97 * 131 * 3);
  for (std::size_t i = 0; i < picture.size(); ++i) picture[i] = static_cast<std::uint8_t>(i * i % 251);
  Floats out(64 * 96 * 3);
  TensorView image, result;
  image.data = picture.data();
  image.dtype = DType::u8;
  image.rank = result.rank = 3;
  image.shape = {97, 131, 3};
  image.stride = {131 * 3, 3, 1};
  result.data = out.data();
  result.shape = {64, 96, 3};
  result.stride = {96 * 3, 3, 1};
  LetterboxParams params;
  params.resized_h = 64;
  params.resized_w = 86;
  params.left = 5;
  params.hwc = params.swap_channels = true;
  cpu::letterbox(image, result, params);
  return out;
}

struct Check {
  const char* name;
  Floats (*run)(const cpu::CpuKernels& table);
  double allowed;
};
// Sigmoid and DFL may be off by some units in the last place, since the generic table has no FMA.
const Check kChecks[] = {{"sigmoid", sigmoid, 5e-7},
                         {"collect_greater", collect, 0},
                         {"dfl_expectation", dfl, 2e-5},
                         {"class_max", class_max, 0},
                         {"nms", nms, 0},
                         {"fake_quantize", fake_quantize, 0},
                         {"letterbox", letterbox, 0},
                         {"quantize_and_pool", quantize_and_pool, 0},
                         {"conv2d_s8", conv2d_s8, 0}};

std::string file(const char* path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

TensorView view(Floats& values, std::initializer_list<std::int64_t> shape) {
  TensorView tensor;
  tensor.data = values.data();
  tensor.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), tensor.shape.begin());
  std::int64_t stride = 1;
  for (int i = tensor.rank - 1; i >= 0; --i) {
    tensor.stride[static_cast<std::size_t>(i)] = stride;
    stride *= tensor.shape[static_cast<std::size_t>(i)];
  }
  return tensor;
}

// All head outputs, one after another.
Floats run_engine(cpu::Engine& engine, const engine::Graph& graph, Floats& x, std::int64_t height, std::int64_t width) {
  std::vector<Floats> maps;
  std::vector<TensorView> cls, reg;
  maps.reserve(2 * graph.levels.size());
  for (const engine::Level& level : graph.levels) {
    const std::int64_t h = height / level.stride, w = width / level.stride;
    for (const bool is_cls : {true, false}) {
      const std::int64_t channels = is_cls ? level.cls.channels : level.reg.channels;
      maps.emplace_back(static_cast<std::size_t>(h * w * channels));
      (is_cls ? cls : reg).push_back(view(maps.back(), {1, h, w, channels}));
    }
  }
  engine.run(view(x, {1, height, width, 3}), cls, reg);
  Floats all;
  for (const Floats& map : maps) all.insert(all.end(), map.begin(), map.end());
  return all;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) return 2;
  const std::string bytes = file(arguments[1]), input = file(arguments[2]);
  const std::int64_t height = std::atoi(arguments[3]), width = std::atoi(arguments[4]);
  Floats x(input.size() / 4);
  std::copy(input.begin(), input.end(), reinterpret_cast<char*>(x.data()));
  const engine::Graph graph = engine::deserialize(bytes.data(), bytes.size());
  cpu::Engine engine(engine::deserialize(bytes.data(), bytes.size()));
  set_num_threads(2);

  std::istringstream isas(cpu::available_isas());
  for (std::string isa; std::getline(isas >> std::ws, isa, ',');) {
    for (const Check& check : kChecks) {
      cpu::use_isa("generic");
      const Floats expected = check.run(cpu::kernels());
      cpu::use_isa(isa.c_str());
      report(check.name, isa.c_str(), distance(check.run(cpu::kernels()), expected), check.allowed);
    }
    const Floats outputs = run_engine(engine, graph, x, height, width);
    std::ofstream(arguments[5] + ("." + isa), std::ios::binary)
        .write(reinterpret_cast<const char*>(outputs.data()), static_cast<std::streamsize>(outputs.size() * 4));
  }
  return failures ? 1 : 0;
}
