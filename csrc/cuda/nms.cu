// Suppression by bitmask, as in torchvision's CUDA op: the verdict of every pair in parallel, then a walk in score
// order that only ors bits together. The walk is done on the device too, so the host never waits. It takes 64
// candidates at a time: one warp decides among them, then all threads or the kept ones' verdicts on what follows.
#include "cuda/launch.h"
#include "cuda/suppress.h"

namespace yolonas::cuda {
namespace {

constexpr int kBits = kNmsBits;
constexpr int kWalkThreads = 256;

__device__ std::int64_t candidates_of(const NmsArgs& a, std::int64_t picture) {
  const std::int64_t n = a.candidate_counts[picture];
  return n < 0 ? 0 : n > a.capacity ? a.capacity : n;
}

// Bit b of mask[picture][i][word]: candidate i, if kept, drops candidate 64 * word + b, which comes after it. Words
// before i's own are not written. Neighbouring threads take neighbouring i, so that they meet the same j together.
__global__ void __launch_bounds__(kThreads)
    nms_mask_kernel(const NmsArgs a, std::int64_t first, std::int64_t pictures) {
  const std::int64_t words = (a.capacity + kBits - 1) / kBits;
  const std::int64_t flags = words * a.capacity;  // of a picture; below 2^31, unlike those of all
#pragma unroll 1
  YN_FOR_EACH(at, pictures * flags) {
    const std::int64_t slot = at / flags;
    const auto rest = static_cast<std::uint32_t>(at - slot * flags), capacity = static_cast<std::uint32_t>(a.capacity);
    const std::int64_t i = rest % capacity, word = rest / capacity;
    const std::int64_t picture = first + slot, n = candidates_of(a, picture);
    if (i >= n || word * kBits >= n || (word + 1) * kBits <= i) continue;
    const float* boxes = a.boxes + picture * a.capacity * 4;
    const std::int32_t* classes = a.classes + picture * a.capacity;
    const std::int64_t begin = word * kBits, end = begin + kBits < n ? begin + kBits : n;
    const float4 box = box_at(boxes + 4 * i);
    std::uint64_t bits = 0;
    for (std::int64_t j = begin > i ? begin : i + 1; j < end; ++j) {
      if ((a.agnostic || classes[i] == classes[j]) && overlap(box, box_at(boxes + 4 * j), a.iou)) {
        bits |= std::uint64_t{1} << (j - begin);
      }
    }
    a.workspace[(slot * a.capacity + i) * words + word] = bits;
  }
}

// One block a picture.
__global__ void __launch_bounds__(kWalkThreads)
    nms_walk_kernel(const NmsArgs a, std::int64_t first, std::int64_t pictures) {
  __shared__ unsigned dropped[kNmsMaxCapacity / 32];  // a bit a candidate; atomics of 64 bits would be loops
  __shared__ std::uint64_t drops[kBits];              // the verdicts of the 64 on each other
  __shared__ std::uint64_t keep;
  __shared__ int kept_rows[kBits];
  const std::int64_t words = (a.capacity + kBits - 1) / kBits;
  const int thread = static_cast<int>(threadIdx.x);
  for (std::int64_t slot = blockIdx.x; slot < pictures; slot += gridDim.x) {
    const std::int64_t picture = first + slot, n = candidates_of(a, picture), used = (n + kBits - 1) / kBits;
    const std::uint64_t* mask = a.workspace + slot * a.capacity * words;
    for (std::int64_t at = thread; at < 2 * used; at += kWalkThreads) dropped[at] = 0;
    float* rows = a.detections + picture * a.max_det * 6;
    std::int64_t kept = 0;
    for (std::int64_t word = 0; word < used && kept < a.max_det; ++word) {
      const std::int64_t begin = word * kBits;
      const int here = static_cast<int>(n - begin < kBits ? n - begin : kBits);
      if (thread < here) drops[thread] = mask[(begin + thread) * words + word];
      __syncthreads();  // the flags of the 64 are complete
      if (thread < 32) {
        const std::uint64_t before = static_cast<std::uint64_t>(dropped[2 * word + 1]) << 32 | dropped[2 * word];
        const std::uint64_t of_these = keep_in_order(~before & first_bits(here), drops, here);
        if (thread == 0) keep = of_these;
      }
      __syncthreads();
      int count = __popcll(keep);
      if (count > a.max_det - kept) count = static_cast<int>(a.max_det - kept);
      if (thread < kBits && (keep >> thread & 1) != 0) kept_rows[__popcll(keep & first_bits(thread))] = thread;
      __syncthreads();
      const std::int64_t left = used - word - 1;
      for (std::int64_t at = thread; at < count * left; at += kWalkThreads) {
        const std::int64_t to = word + 1 + at % left;
        const std::uint64_t bits = mask[(begin + kept_rows[at / left]) * words + to];
        const auto low = static_cast<unsigned>(bits), high = static_cast<unsigned>(bits >> 32);
        if (low != 0) atomicOr(&dropped[2 * to], low);
        if (high != 0) atomicOr(&dropped[2 * to + 1], high);
      }
      for (int at = thread; at < count * 6; at += kWalkThreads) {
        const std::int64_t from = picture * a.capacity + begin + kept_rows[at / 6];
        const int part = at % 6;
        rows[kept * 6 + at] = part < 4    ? a.boxes[from * 4 + part]
                              : part == 4 ? a.scores[from]
                                          : static_cast<float>(a.classes[from]);
      }
      kept += count;
    }
    for (std::int64_t at = kept * 6 + thread; at < a.max_det * 6; at += kWalkThreads) rows[at] = 0.0f;
    if (thread == 0) a.counts[picture] = kept;
    __syncthreads();  // the next picture overwrites the flags
  }
}

}  // namespace

void nms_bitmask_f32(const NmsArgs& args, Stream stream) {
  const std::int64_t words = nms_workspace(args.capacity);
  const std::int64_t room = words > 0 ? args.workspace_words / words : args.batch;  // pictures at a time
  for (std::int64_t first = 0; first < args.batch; first += room) {
    const std::int64_t pictures = args.batch - first < room ? args.batch - first : room;
    launch("nms_candidates", stream, pictures * words, kThreads, kThreads, nms_mask_kernel, args, first, pictures);
    launch("nms_candidates", stream, pictures, 1, kWalkThreads, nms_walk_kernel, args, first, pictures);
  }
}

}  // namespace yolonas::cuda
