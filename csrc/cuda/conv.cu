// Convolutions: the tables of variants, checks of what a launch relies on, and the launch.
#include <atomic>
#include <memory>
#include <vector>

#include "core/check.h"
#include "cuda/conv.h"
#include "cuda/conv_f32.h"
#include "cuda/conv_kernel.h"

namespace yolonas::cuda {
namespace {

constexpr ConvVariant kFloatVariants[] = {{"64x64f32", 64, 64, 64, 0, 256, 0, 75, kNewest}};
constexpr int kPlainShared = 48 << 10;  // bytes of a block that a kernel need not ask for

// All variants of a type.
struct Table {
  std::vector<ConvEntry> entries;
  std::vector<ConvVariant> variants;
  std::unique_ptr<std::atomic<std::uint64_t>[]> prepared;  // of each variant the devices, a bit each

  void add(const ConvEntry* more, int count) {
    for (int i = 0; i < count; ++i) {
      entries.push_back(more[i]);
      variants.push_back(more[i].variant);
      variants.back().index = static_cast<int>(variants.size()) - 1;
    }
    prepared = std::make_unique<std::atomic<std::uint64_t>[]>(entries.size());
  }

  // Before the first launch of a variant on the current device: lets it have its shared memory, and asks for as much as
  // the device has on all multiprocessors, as kernels that want it divided differently cannot run side by side. Once,
  // since the driver may wait for copies then.
  cudaError_t prepare(int variant) const {
    int device = 0;
    if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
    const std::uint64_t bit = device < 64 ? std::uint64_t{1} << device : 0;
    std::atomic<std::uint64_t>& devices = prepared[static_cast<std::size_t>(variant)];
    if (devices.load(std::memory_order_acquire) & bit) return cudaSuccess;
    const ConvEntry& entry = entries[static_cast<std::size_t>(variant)];
    cudaError_t error = cudaSuccess;
    if (entry.variant.shared_bytes > kPlainShared) {
      error =
          cudaFuncSetAttribute(entry.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, entry.variant.shared_bytes);
    }
    if (error == cudaSuccess) {
      error = cudaFuncSetAttribute(entry.kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                   cudaSharedmemCarveoutMaxShared);
    }
    if (error == cudaSuccess) devices.fetch_or(bit, std::memory_order_release);
    return error;
  }

  // See resident_blocks.
  std::vector<int> resident(int arch, int code) const {
    std::vector<int> counts;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const ConvVariant& variant = variants[i];
      int blocks = 0;
      if (variant.runs_on(arch, code)) {
        cudaError_t error = prepare(static_cast<int>(i));
        if (error == cudaSuccess) {
          error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, entries[i].kernel, variant.threads,
                                                                static_cast<std::size_t>(variant.shared_bytes));
        }
        if (error != cudaSuccess) {  // shared memory that this device does not have
          blocks = 0;
          cudaGetLastError();
        }
      }
      counts.push_back(blocks);
    }
    return counts;
  }
};

struct Tables {
  Table half, int8;

  Tables() {
    half.add(kHalfConvs, kHalfConvCount);
    int8.add(kInt8Convs, kInt8ConvCount);
#if defined(YOLONAS_HOPPER)
    half.add(kWarpgroupHalfConvs, kWarpgroupHalfConvCount);
    int8.add(kWarpgroupInt8Convs, kWarpgroupInt8ConvCount);
#endif
  }
};

const Table& table_of(Elem elem) {
  static const Tables tables;
  return elem == Elem::f16 ? tables.half : tables.int8;
}

const ConvEntry& entry_of(const ConvArgs& args, const ConvChoice& choice) {
  const std::vector<ConvEntry>& entries = table_of(args.x.elem).entries;
  const int count = static_cast<int>(entries.size());
  YN_CHECK(choice.variant >= 0 && choice.variant < count, "conv: variant must lie in 0..", count - 1, ", got ",
           choice.variant);
  return entries[static_cast<std::size_t>(choice.variant)];
}

int tiles_of(std::int64_t size, int tile) { return static_cast<int>((size + tile - 1) / tile); }

int tiles_of(const ConvArgs& args, const ConvVariant& variant) {
  return tiles_of(args.rows(), variant.rows) * tiles_of(args.out_n(), variant.columns);
}

int steps_of(const ConvArgs& args, const ConvVariant& variant) {
  return tiles_of(static_cast<std::int64_t>(args.depth()) * bytes_of(args.x.elem), variant.step);
}

// Parts with the same number of steps but for the last; none is empty, so they may be fewer than asked for.
int split_steps_of(const ConvArgs& args, const ConvVariant& variant, int splits) {
  return tiles_of(steps_of(args, variant), splits);
}
int splits_of(const ConvArgs& args, const ConvVariant& variant, int splits) {
  return tiles_of(steps_of(args, variant), split_steps_of(args, variant, splits));
}

bool lies_at(const MapView& view, int multiple) {
  return reinterpret_cast<std::uintptr_t>(view.data) % static_cast<unsigned>(multiple) == 0 &&
         view.pixel * bytes_of(view.elem) % multiple == 0;
}

void check(const ConvArgs& a, const ConvChoice& choice) {
  const std::int64_t kMost = std::int64_t{1} << 31;
  const int size = bytes_of(a.x.elem);
  YN_CHECK(lies_at(a.x, 16) && a.x.channels * size % 16 == 0 && reinterpret_cast<std::uintptr_t>(a.weight) % 16 == 0,
           "conv: x and weight must lie at multiples of 16 bytes, with multiples of 16 bytes of channels, got ",
           a.x.channels, " channels, ", a.x.pixel, " from pixel to pixel, of ", name(a.x.elem));
  YN_CHECK(a.y.elem == a.x.elem || a.y.elem == Elem::f32, "conv: y must be float32 or as x, ", name(a.x.elem), ", got ",
           name(a.y.elem));
  YN_CHECK(!a.residual.data || a.residual.elem == a.x.elem, "conv: residual must be as x, ", name(a.x.elem), ", got ",
           name(a.residual.elem));
  YN_CHECK(a.rows() < kMost && std::int64_t{a.batch} * a.in_h * a.in_w < kMost,
           "conv: maps must have fewer than 2^31 pixels");
  YN_CHECK(a.kernel >= 1 && a.kernel <= kMostKernel, "conv: kernel must lie in 1..", kMostKernel, ", got ", a.kernel);
  YN_CHECK(choice.splits >= 1 && choice.splits <= 65535, "conv: splits must lie in 1..65535, got ", choice.splits);
}

}  // namespace

const ConvVariant* conv_variants(Elem elem, int* count) {
  if (elem == Elem::f32) {
    *count = 1;
    return kFloatVariants;
  }
  const std::vector<ConvVariant>& variants = table_of(elem).variants;
  *count = static_cast<int>(variants.size());
  return variants.data();
}

ResidentBlocks resident_blocks(int arch, int code) {
  return {table_of(Elem::f16).resident(arch, code), table_of(Elem::s8).resident(arch, code)};
}

std::int64_t conv_partial_bytes(const ConvArgs& args, const ConvChoice& choice) {
  if (args.x.elem == Elem::f32 || choice.splits == 1) return 0;
  const ConvEntry& entry = entry_of(args, choice);
  const int splits = splits_of(args, entry.variant, choice.splits);
  return splits == 1 ? 0 : std::int64_t{tiles_of(args, entry.variant)} * splits * entry.partial_bytes;
}

std::int64_t conv_counters(const ConvArgs& args, const ConvChoice& choice) {
  return conv_partial_bytes(args, choice) == 0 ? 0 : tiles_of(args, entry_of(args, choice).variant);
}

void conv(const ConvArgs& args, const ConvChoice& choice, const ConvWorkspace& workspace, Queue queue) {
  check(args, choice);
  if (args.rows() == 0) return;
  if (args.x.elem == Elem::f32) return conv_f32(args, queue);
  const ConvEntry& entry = entry_of(args, choice);
  const ConvVariant& variant = entry.variant;
  const int size = bytes_of(args.x.elem), y_size = bytes_of(args.y.elem);
  ConvKernelArgs a{};
  a.x = static_cast<const unsigned char*>(args.x.data);
  a.weight = static_cast<const unsigned char*>(args.weight);
  a.multiplier = args.multiplier;
  a.offset = args.offset;
  a.residual = args.residual.data;
  a.y = args.y.data;
  a.partial = workspace.partial;
  a.counters = workspace.counters;
  a.residual_scale = args.residual_scale;
  a.rows = static_cast<int>(args.rows());
  a.columns = args.out_n();
  a.in_h = args.in_h;
  a.in_w = args.in_w;
  a.out_h = args.out_h;
  a.out_w = args.out_w;
  a.kernel = args.kernel;
  a.stride = args.stride;
  a.pad = args.pad;
  a.x_pixel = args.x.pixel * size;
  a.y_pixel = args.y.pixel;
  a.r_pixel = args.residual.pixel;
  a.y_channels = args.y.channels;
  a.tap_chunks = args.x.channels * size / 16;
  a.chunks = args.depth() * size / 16;
  a.column_tiles = tiles_of(a.columns, variant.columns);
  a.split_steps = split_steps_of(args, variant, choice.splits);
  a.splits = splits_of(args, variant, choice.splits);
  a.relu = args.relu;
  a.transposed = args.transposed;
  a.y_f32 = args.y.elem == Elem::f32;
  const bool pairs = args.y.channels % 2 == 0 && lies_at(args.y, 2 * y_size) &&
                     (!args.residual.data || (lies_at(args.residual, 2 * size) && !args.transposed));
  const bool eights = pairs && !a.y_f32 && args.y.channels % 8 == 0 && lies_at(args.y, 8 * y_size);
  a.store = eights ? Store::eights : pairs && a.y_f32 && !args.transposed ? Store::floats : Store::singles;
  YN_CHECK(a.splits == 1 || (workspace.partial && workspace.counters), "conv: splits need a workspace");
  YN_CUDA_CHECK("conv", table_of(args.x.elem).prepare(choice.variant));
  const dim3 grid(static_cast<unsigned>(tiles_of(args, variant)), static_cast<unsigned>(a.splits));
  launch_grid("conv", queue, grid, variant.threads, variant.shared_bytes, entry.kernel, a);
}

}  // namespace yolonas::cuda
