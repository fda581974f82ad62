// Suppression by bitmask, as in torchvision's CUDA op: the verdict of every pair in parallel, then a walk in score
// order that only ors bits together. The walk is done on the device too, so the host never waits.
#include "cuda/launch.h"

namespace yolonas::cuda {
namespace {

constexpr int kBits = 64;
constexpr int kWalkThreads = 128;

__device__ std::int64_t candidates_of(const NmsArgs& a, std::int64_t picture) {
  const std::int64_t n = a.candidate_counts[picture];
  return n < 0 ? 0 : n > a.capacity ? a.capacity : n;
}

// IoU above the limit; never with NaN. The order of operations is the CPU op's.
__device__ bool overlap(const float* kept, const float* box, float limit) {
  const float w = (kept[2] < box[2] ? kept[2] : box[2]) - (kept[0] > box[0] ? kept[0] : box[0]);
  const float h = (kept[3] < box[3] ? kept[3] : box[3]) - (kept[1] > box[1] ? kept[1] : box[1]);
  const float inter = (w > 0.0f ? w : 0.0f) * (h > 0.0f ? h : 0.0f);
  const float kept_area = (kept[2] - kept[0]) * (kept[3] - kept[1]);
  const float area = (box[2] - box[0]) * (box[3] - box[1]);
  return inter / (kept_area + area - inter) > limit;
}

// Bit b of mask[picture][i][word]: candidate i, if kept, drops candidate 64 * word + b, which comes after it. Words
// before i's own are not written. Neighbouring threads take neighbouring i, so that they meet the same j together.
__global__ void __launch_bounds__(kThreads)
    nms_mask_kernel(const NmsArgs a, std::int64_t first, std::int64_t pictures) {
  const std::int64_t words = (a.capacity + kBits - 1) / kBits;
  YN_FOR_EACH(at, pictures * words * a.capacity) {
    const std::int64_t i = at % a.capacity, word = at / a.capacity % words, slot = at / a.capacity / words;
    const std::int64_t picture = first + slot, n = candidates_of(a, picture);
    if (i >= n || word * kBits >= n || (word + 1) * kBits <= i) continue;
    const float* boxes = a.boxes + picture * a.capacity * 4;
    const std::int32_t* classes = a.classes + picture * a.capacity;
    const std::int64_t begin = word * kBits, end = begin + kBits < n ? begin + kBits : n;
    std::uint64_t bits = 0;
    for (std::int64_t j = begin > i ? begin : i + 1; j < end; ++j) {
      if ((a.agnostic || classes[i] == classes[j]) && overlap(boxes + 4 * i, boxes + 4 * j, a.iou)) {
        bits |= std::uint64_t{1} << (j - begin);
      }
    }
    a.workspace[(slot * a.capacity + i) * words + word] = bits;
  }
}

// One block a picture. All threads take the same decisions from the flags in shared memory.
__global__ void __launch_bounds__(kWalkThreads)
    nms_walk_kernel(const NmsArgs a, std::int64_t first, std::int64_t pictures) {
  __shared__ std::uint64_t dropped[kNmsMaxCapacity / kBits];
  const std::int64_t words = (a.capacity + kBits - 1) / kBits;
  const int thread = static_cast<int>(threadIdx.x);
  for (std::int64_t slot = blockIdx.x; slot < pictures; slot += gridDim.x) {
    const std::int64_t picture = first + slot, n = candidates_of(a, picture), used = (n + kBits - 1) / kBits;
    for (std::int64_t word = thread; word < used; word += kWalkThreads) dropped[word] = 0;
    __syncthreads();
    float* rows = a.detections + picture * a.max_det * 6;
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < n && kept < a.max_det; ++i) {
      if (dropped[i / kBits] >> (i % kBits) & 1) continue;
      __syncthreads();  // everyone has read the flag of i
      const std::uint64_t* mask = a.workspace + (slot * a.capacity + i) * words;
      for (std::int64_t word = i / kBits + thread; word < used; word += kWalkThreads) dropped[word] |= mask[word];
      const std::int64_t from = picture * a.capacity + i;
      if (thread < 4) rows[kept * 6 + thread] = a.boxes[from * 4 + thread];
      if (thread == 4) rows[kept * 6 + 4] = a.scores[from];
      if (thread == 5) rows[kept * 6 + 5] = static_cast<float>(a.classes[from]);
      ++kept;
      __syncthreads();  // the flags are up to date
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
