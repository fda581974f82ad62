// Observe: histograms of all values of a run, counted right after each step, before its place in the arena is another
// buffer's.
#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "cpu/engine.h"

namespace yolonas::cpu {
namespace {

using engine::Histograms;

constexpr const char* kOp = "observe";
constexpr std::int64_t kBins = Histograms::kBins;
constexpr std::int64_t kBlock = 128;                         // bins of one exponent
constexpr std::int64_t kBlocksAtOnce = 64;                   // to merge
constexpr std::int64_t kChannels = 16;                       // to add up on a thread, at least
constexpr std::int64_t kGrain = 1 << 14;                     // values worth a thread
constexpr std::int64_t kRun = 1 << 12;                       // values that stay in the first cache for a second look
constexpr std::int64_t kMostValues = std::int64_t{1} << 31;  // between two merges: no count can overflow

// What one thread has counted and not merged yet.
struct alignas(64) Tally {
  // In turn: values of one bin that follow each other, such as zeros, do not have to wait for the count before.
  std::uint32_t counts[2][kBins] = {};
  std::int32_t largest = 0;  // bits of a float
  std::int64_t negatives = 0;
};

// Channels of a feature map.
struct Map {
  const float* values;
  std::int64_t pixels, channels, stride;  // floats from pixel to pixel
};

std::int32_t magnitude_bits(float value) {
  std::int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x7fffffff;
}

std::size_t bin_of(float value) { return static_cast<std::size_t>(magnitude_bits(value) >> 16); }

void add_values(const float* x, std::int64_t n, Tally& tally) {
  constexpr std::int32_t kInfinity = 0x7f800000;
  std::int32_t largest = 0, negatives = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t magnitude = magnitude_bits(x[i]), finite = magnitude < kInfinity ? magnitude : 0;
    largest = finite > largest ? finite : largest;
    negatives += x[i] < 0.0f ? 1 : 0;
  }
  tally.largest = std::max(tally.largest, largest);
  tally.negatives += negatives;
  std::int64_t i = 0;
  for (; i + 1 < n; i += 2) {
    ++tally.counts[0][bin_of(x[i])];
    ++tally.counts[1][bin_of(x[i + 1])];
  }
  if (i < n) ++tally.counts[0][bin_of(x[i])];
}

void add_pixels(const Map& map, std::int64_t begin, std::int64_t end, Tally& tally) {
  if (map.stride == map.channels) {
    for (std::int64_t at = begin * map.channels; at < end * map.channels; at += kRun) {
      add_values(map.values + at, std::min(kRun, end * map.channels - at), tally);
    }
  } else {
    for (std::int64_t pixel = begin; pixel < end; ++pixel) {
      add_values(map.values + pixel * map.stride, map.channels, tally);
    }
  }
}

// Moves what `count` tallies hold into a row of the histograms.
void merge(Tally* tallies, std::int64_t count, std::int64_t row, const Histograms& histograms) {
  std::int64_t* counts = histograms.counts.as<std::int64_t>() + row * kBins;
  parallel_for(kBins / kBlock, kBlocksAtOnce, [&](std::int64_t begin, std::int64_t end) {
    for (Tally* tally = tallies; tally < tallies + count; ++tally) {
      for (std::uint32_t* table : tally->counts) {
        for (std::int64_t at = begin * kBlock; at < end * kBlock; at += kBlock) {
          std::uint32_t any = 0;
          for (std::int64_t i = at; i < at + kBlock; ++i) any |= table[i];
          if (!any) continue;
          for (std::int64_t i = at; i < at + kBlock; ++i) {
            counts[i] += table[i];
            table[i] = 0;
          }
        }
      }
    }
  });
  float& largest = histograms.largest.as<float>()[row];
  for (Tally* tally = tallies; tally < tallies + count; ++tally) {
    float value;
    std::memcpy(&value, &tally->largest, sizeof value);
    largest = std::max(largest, value);
    histograms.negatives.as<std::int64_t>()[row] += tally->negatives;
    tally->largest = 0;
    tally->negatives = 0;
  }
}

// The first thread takes the first part of the pixels, and so on: often the part that it has just computed.
void add_map(const Map& map, std::int64_t row, std::vector<Tally>& tallies, const Histograms& histograms) {
  const std::int64_t threads = static_cast<std::int64_t>(tallies.size());
  const std::int64_t most = std::max<std::int64_t>(1, kMostValues / map.channels);
  for (std::int64_t first = 0; first < map.pixels; first += most) {
    const std::int64_t pixels = std::min(most, map.pixels - first);
    const std::int64_t workers = std::clamp<std::int64_t>(pixels * map.channels / kGrain, 1, threads);
    parallel_for(workers, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        add_pixels(map, first + i * pixels / workers, first + (i + 1) * pixels / workers,
                   tallies[static_cast<std::size_t>(i)]);
      }
    });
    merge(tallies.data(), workers, row, histograms);
  }
}

}  // namespace

void Engine::channel_sums(const TensorView& x, const TensorView& sums) {
  const char* op = "channel_sums";
  const engine::InputSize size = check_input(x, op);
  engine::check_channel_sums(graph_, x, sums, op);
  Outputs outputs;
  const std::vector<engine::Memory> memory = spare_outputs(size, outputs);
  run_parts(size, x.as<const float>(), outputs, [&](const Plan& plan, Context& context) {
    std::int64_t* to = sums.as<std::int64_t>();
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      run_step(plan, plan.steps[i], context);
      const engine::View& view = graph_.steps[i].output;
      const auto buffer = static_cast<std::size_t>(view.buffer);
      const engine::BufferPlan& whole = plan.memory.buffers[buffer];
      if (whole.is_int8) {
        const std::int8_t* values = static_cast<const std::int8_t*>(context.buffers[buffer]) + view.offset;
        const std::int64_t pixels = plan.memory.size.pictures * whole.height * whole.width;
        parallel_for(view.channels, kChannels, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
            for (std::int64_t c = begin; c < end; ++c) to[c] += values[pixel * whole.channels + c];
          }
        });
      }
      to += view.channels;
    }
  });
}

void Engine::observe(const TensorView& x, const Histograms& histograms) {
  const engine::InputSize size = check_input(x, kOp);
  engine::check_histograms(graph_, x, histograms, kOp);
  Outputs outputs;
  const std::vector<engine::Memory> memory = spare_outputs(size, outputs);
  std::vector<Tally> tallies;
  run_parts(size, x.as<const float>(), outputs, [&](const Plan& plan, Context& context) {
    tallies.resize(static_cast<std::size_t>(plan.threads));
    const auto add = [&](const engine::View& view, std::size_t row) {
      const auto buffer = static_cast<std::size_t>(view.buffer);
      const engine::BufferPlan& whole = plan.memory.buffers[buffer];
      const std::int64_t pixels = plan.memory.size.pictures * whole.height * whole.width;
      add_map({static_cast<const float*>(context.buffers[buffer]) + view.offset, pixels, view.channels, whole.channels},
              static_cast<std::int64_t>(row), tallies, histograms);
    };
    add({0, 0, graph_.buffers[0].channels}, 0);
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      run_step(plan, plan.steps[i], context);
      add(graph_.steps[i].output, i + 1);
    }
  });
}

}  // namespace yolonas::cpu
