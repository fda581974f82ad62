// The model. A multiprocessor works on some blocks at once, as many as the driver says, or without a device as its
// shared memory and threads allow. A step of a block takes the longest of four times: that of its products, at the rate
// of the tensor cores that the blocks of a multiprocessor share; that of its bytes, at the rate of the L2 cache, and
// that of what the warps write to shared memory and read there, which they share too; and what a step takes even of a
// lone block, from the latency of loads and products. A part of what is not the longest is not hidden behind it. Blocks
// that find no place wait for the next wave. The constants come from the data sheets of the devices named, the rest are
// guesses that no device has confirmed: `tune` measures instead.
#include "cuda/choose.h"

#include <algorithm>

namespace yolonas::cuda {
namespace {

constexpr double kGigahertz = 1.6;  // clock of a busy multiprocessor

constexpr double kLaunchCycles = 2500;        // from the end of a kernel to the first step of the next one
constexpr double kBlockCycles = 1500;         // to begin and end a block: addresses, the first loads, writing results
constexpr double kStepCycles = 140;           // least time of a step of 64 bytes of depth, loads under way
constexpr double kLoneShare = 0.6;            // of the rate of products that a lone block reaches,
constexpr double kLoneWarpgroupShare = 0.85;  // and by Hopper's, which run while the warps copy
constexpr double kNotHidden = 0.15;           // of the times besides the longest
constexpr double kSplitCycles = 1500;         // to meet the other parts of a tile
constexpr double kPartBytesPerCycle = 32;     // of partial sums, written and read again
constexpr double kLoadBytesPerCycle = 28;     // from L2 to one multiprocessor, all being at it
constexpr double kSharedBytesPerCycle = 128;  // of a multiprocessor's shared memory, by the data sheets
constexpr double kMemoryBytesPerCycle = 16;   // from memory to one multiprocessor, all being at it

constexpr int kMostThreads = 1536;     // of a multiprocessor; some have 2048, but registers are short first
constexpr int kMostBlocks = 16;        // of a multiprocessor
constexpr int kReservedShared = 1024;  // of each block, the system's
constexpr int kMostSplits = 16;
constexpr int kLeastSteps = 2;  // of a part

bool is_warpgroup(const ConvVariant& variant) { return variant.most_arch != kNewest; }

// Multiply-adds of one multiprocessor in a cycle, as far as they may be reached. Of float16, by the data sheets: 2048
// on Hopper by products of four warps, 1024 on A100, 512 on Turing, Ampere's and Ada's smaller ones (half of that on
// GeForce, where sums are float32); Hopper's other products are said to reach six tenths. conv_f32 is bound by shared
// memory at half of 128.
double products_per_cycle(const ConvVariant& variant, Elem elem, int arch) {
  if (elem == Elem::f32) return 50;
  const double half = arch == 90 ? (is_warpgroup(variant) ? 1700 : 1200) : arch == 80 || arch >= 100 ? 900 : 450;
  return elem == Elem::s8 ? 2 * half : half;
}

std::int64_t parts_of(std::int64_t size, std::int64_t part) { return (size + part - 1) / part; }

std::int64_t steps_of(const ConvVariant& variant, const ConvWork& work) {
  return std::max<std::int64_t>(1, parts_of(work.depth_bytes, variant.step));
}

// How many blocks a multiprocessor works on at once.
int places_of(const ConvVariant& variant, Elem elem, const Processor& processor) {
  const std::vector<int>& known = elem == Elem::s8 ? processor.resident.int8 : processor.resident.half;
  const auto index = static_cast<std::size_t>(variant.index);
  if (elem != Elem::f32 && index < known.size() && known[index] > 0) return known[index];
  const int by_shared = processor.shared_bytes / (variant.shared_bytes + kReservedShared);
  return std::max(1, std::min({by_shared, kMostThreads / variant.threads, kMostBlocks}));
}

// That many parts of equally many steps; asking for another number could give the same parts.
bool is_even(std::int64_t steps, int splits) { return parts_of(steps, parts_of(steps, splits)) == splits; }

}  // namespace

ConvWork work_of(const ConvArgs& args) {
  return {args.x.elem, args.rows(), args.out_n(), static_cast<std::int64_t>(args.depth()) * bytes_of(args.x.elem)};
}

double estimated_time(const ConvVariant& variant, int splits, const ConvWork& work, const Processor& processor) {
  const double steps = static_cast<double>(parts_of(steps_of(variant, work), splits));
  const std::int64_t blocks = parts_of(work.rows, variant.rows) * parts_of(work.columns, variant.columns) * splits;
  const int places = places_of(variant, work.elem, processor);
  const auto each = static_cast<double>(parts_of(blocks, processor.multiprocessors));  // blocks of one multiprocessor
  const auto waves = static_cast<double>(parts_of(blocks, std::int64_t{processor.multiprocessors} * places));

  const double tile = static_cast<double>(variant.rows) * variant.columns;
  const double products =
      tile * variant.step / bytes_of(work.elem) / products_per_cycle(variant, work.elem, processor.arch);
  const double loads = static_cast<double>(variant.rows + variant.columns) * variant.step / kLoadBytesPerCycle;
  const double shared =
      static_cast<double>(variant.rows + variant.columns + variant.read_rows) * variant.step / kSharedBytesPerCycle;
  const double share = is_warpgroup(variant) ? kLoneWarpgroupShare : kLoneShare;
  const double alone = std::max(kStepCycles * variant.step / 64, products / share);
  const double longest = std::max({products, loads, shared});
  const double together = longest + kNotHidden * (products + loads + shared - longest);
  double cycles = kLaunchCycles + waves * kBlockCycles;
  cycles += std::max(each * steps * together, waves * steps * alone);
  if (splits > 1) {  // the last block of a tile reads the sums of all
    const double bytes = tile * 4;
    cycles += kSplitCycles + bytes * (each + splits) / kPartBytesPerCycle;
  }
  return cycles / kGigahertz / 1e3;
}

double estimated_copy_time(std::int64_t bytes, const Processor& processor) {
  const double rate = kMemoryBytesPerCycle * processor.multiprocessors;
  return (kLaunchCycles + kBlockCycles + static_cast<double>(bytes) / rate) / kGigahertz / 1e3;
}

std::vector<RatedChoice> rated_choices(const ConvWork& work, const ConvVariant* variants, int count,
                                       const Processor& processor, int splits) {
  const auto faster = [](const RatedChoice& a, const RatedChoice& b) { return a.microseconds < b.microseconds; };
  std::vector<RatedChoice> all;
  for (int v = 0; v < count; ++v) {
    std::vector<RatedChoice> own;
    for (int s = 1; s <= kMostSplits; ++s) {
      const ConvChoice choice{v, s};
      if (!can_run(work, variants, count, choice, processor)) continue;
      if (s > 1 && parts_of(steps_of(variants[v], work), s) < kLeastSteps) break;
      own.push_back({choice, estimated_time(variants[v], s, work, processor)});
    }
    std::stable_sort(own.begin(), own.end(), faster);
    if (own.size() > static_cast<std::size_t>(splits)) own.resize(static_cast<std::size_t>(splits));
    all.insert(all.end(), own.begin(), own.end());
  }
  std::stable_sort(all.begin(), all.end(), faster);
  return all;
}

bool can_run(const ConvWork& work, const ConvVariant* variants, int count, const ConvChoice& choice,
             const Processor& processor) {
  if (choice.variant < 0 || choice.variant >= count) return false;
  const ConvVariant& variant = variants[choice.variant];
  if (!variant.runs_on(processor.arch, processor.code)) return false;
  const std::vector<std::string>& excluded = processor.excluded;
  if (std::find(excluded.begin(), excluded.end(), variant.name) != excluded.end()) return false;
  if (choice.splits < 1 || choice.splits > kMostSplits) return false;
  if (variant.shared_bytes > processor.shared_bytes - kReservedShared) return false;
  if (work.elem == Elem::f32 && choice.splits != 1) return false;
  return is_even(steps_of(variant, work), choice.splits);
}

}  // namespace yolonas::cuda
