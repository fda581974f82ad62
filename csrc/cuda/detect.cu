// Few candidates pass the threshold, so all but the first look at the logits is done by one block a picture, in shared
// memory where it fits: a launch costs more than what most pictures need.
#include "cuda/detect_kernels.h"
#include "cuda/heads.h"
#include "cuda/launch.h"
#include "cuda/suppress.h"
#include "cuda/tensor_core.h"

namespace yolonas::cuda {
namespace {

constexpr const char* kOp = "detect";
constexpr int kLanes = 8;     // that share an anchor's classes
constexpr int kBlock = 1024;  // threads that finish a picture
constexpr int kWarps = kBlock / 32;
constexpr int kShelf = 1024;  // kept boxes held in shared memory; later ones are read from the result
constexpr int kDigit = 11;    // bits of a key looked at in one pass
constexpr int kDigits = 1 << kDigit;
constexpr int kKeyBits = 62;  // scores are at most 1, whose bits are below 2^30
constexpr std::int64_t kLowBits = 0x7fffffff;

__device__ std::uint64_t make_key(float score, int anchor, int classes, int k) {
  const std::int64_t index = static_cast<std::int64_t>(anchor) * classes + k;
  return static_cast<std::uint64_t>(__float_as_uint(score)) << 32 | static_cast<std::uint64_t>(kLowBits - index);
}

__device__ const DetectPlan::Level& level_of(const DetectPlan& a, int anchor) {
  int at = a.levels - 1;
  while (a.level[at].first_anchor > anchor) --at;
  return a.level[at];
}

__device__ std::int64_t pixel_of(const DetectPlan& a, const DetectPlan::Level& level, std::int64_t picture,
                                 int anchor) {
  return picture * level.cells + (anchor - level.first_anchor);
}

// Adds the keys that are not 0 to the picture's list, with one atomic operation for the warp. By the whole warp.
template <int kCount>
__device__ void append(const DetectPlan& a, std::int64_t picture, const std::uint64_t (&key)[kCount]) {
  bool some = false;
  for (int i = 0; i < kCount; ++i) some = some || key[i] != 0;
  if (__ballot_sync(kWarp, some) == 0) return;
  unsigned votes[kCount], total = 0;
  for (int i = 0; i < kCount; ++i) {
    votes[i] = __ballot_sync(kWarp, key[i] != 0);
    total += static_cast<unsigned>(__popc(votes[i]));
  }
  const unsigned lane = threadIdx.x % 32, before = (1u << lane) - 1;
  unsigned at = 0;
  if (lane == 0) at = atomicAdd(a.found + picture, total);
  at = __shfl_sync(kWarp, at, 0);
  std::uint64_t* list = a.keys + picture * a.pairs;
  for (int i = 0; i < kCount; ++i) {
    if (key[i] != 0) list[at + static_cast<unsigned>(__popc(votes[i] & before))] = key[i];
    at += static_cast<unsigned>(__popc(votes[i]));
  }
}

__global__ void __launch_bounds__(kThreads) empty_kernel(unsigned* found, int batch) {
  wait_for_previous();
  let_next_begin();
  YN_FOR_EACH(i, batch) found[i] = 0;
}

// Multi-label: a thread looks at kCount neighbouring classes of an anchor.
template <int kCount>
__global__ void __launch_bounds__(kThreads) filter_pairs_kernel(const DetectPlan a) {
  wait_for_previous();
  let_next_begin();
  const int groups = a.classes / kCount;
  const std::int64_t items = static_cast<std::int64_t>(a.anchors) * groups;
  const std::int64_t tiles = (items + kThreads - 1) / kThreads;
  for (std::int64_t tile = blockIdx.x; tile < tiles * a.batch; tile += gridDim.x) {
    const std::int64_t picture = tile / tiles, item = tile % tiles * kThreads + threadIdx.x;
    std::uint64_t key[kCount] = {};
    if (item < items) {
      const int anchor = static_cast<int>(item) / groups, first = static_cast<int>(item) % groups * kCount;
      const DetectPlan::Level& level = level_of(a, anchor);
      const float* from = level.cls + pixel_of(a, level, picture, anchor) * level.cls_pixel + first;
      float x[kCount];
      if constexpr (kCount == 4) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
      } else {
        for (int i = 0; i < kCount; ++i) x[i] = from[i];
      }
      for (int i = 0; i < kCount; ++i) {
        if (!(x[i] >= a.floor)) continue;
        const float score = sigmoid(x[i]);
        if (!(score > a.conf) || (a.class_mask && !a.class_mask[first + i])) continue;
        key[i] = make_key(score, anchor, a.classes, first + i);
      }
    }
    append(a, picture, key);
  }
}

// Single-label: kLanes lanes look for the best class of an anchor. The lowest class wins a tie of scores.
__global__ void __launch_bounds__(kThreads) filter_anchors_kernel(const DetectPlan a) {
  wait_for_previous();
  let_next_begin();
  constexpr int kAnchors = kThreads / kLanes;
  const std::int64_t tiles = (static_cast<std::int64_t>(a.anchors) + kAnchors - 1) / kAnchors;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (std::int64_t tile = blockIdx.x; tile < tiles * a.batch; tile += gridDim.x) {
    const std::int64_t picture = tile / tiles, item = tile % tiles * kAnchors + threadIdx.x / kLanes;
    const int anchor = static_cast<int>(item);
    float best = -1.0f;
    int best_class = 0;
    if (item < a.anchors) {
      const DetectPlan::Level& level = level_of(a, anchor);
      const float* x = level.cls + pixel_of(a, level, picture, anchor) * level.cls_pixel;
      for (int k = lane; k < a.classes; k += kLanes) {
        if (!(x[k] >= a.floor)) continue;
        const float score = sigmoid(x[k]);
        if (!(score > best)) continue;
        best = score;
        best_class = k;
      }
    }
    std::uint32_t score = best >= a.conf ? __float_as_uint(best) + 1 : 0;  // 0: none
    std::uint32_t label = static_cast<std::uint32_t>(best_class);
    for (int apart = 1; apart < kLanes; apart *= 2) {
      const std::uint32_t other_score = shuffle_xor(score, apart), other_label = shuffle_xor(label, apart);
      if (other_score > score || (other_score == score && other_label < label)) {
        score = other_score;
        label = other_label;
      }
    }
    std::uint64_t key[1] = {};
    if (lane == 0 && score != 0 && !(a.class_mask && !a.class_mask[label])) {
      key[0] = make_key(__uint_as_float(score - 1), anchor, a.classes, static_cast<int>(label));
    }
    append(a, picture, key);
  }
}

struct Candidate {
  float4 box;
  float score;
  int label;
};

// Those of a round of suppression.
struct Round {
  float4 box[kNmsBits];
  float score[kNmsBits];
  int label[kNmsBits];

  __device__ void put(int at, const Candidate& candidate) {
    box[at] = candidate.box;
    score[at] = candidate.score;
    label[at] = candidate.label;
  }
};

struct Shared {
  union {
    std::uint64_t keys[kSortKeys];
    unsigned histogram[kDigits];
  };
  float4 shelf[kShelf];  // boxes and classes of the kept
  int shelf_label[kShelf];
  Round round[2];  // this one and the next
  std::uint64_t drops[kNmsBits];
  unsigned dropped[2];  // a bit each of the 64; atomics of 64 bits would be loops
  std::uint64_t keep;
  unsigned sums[kWarps];
  std::uint64_t prefix;   // of the key sought
  std::int64_t above;     // keys with greater prefixes
  std::int64_t included;  // these and the keys of the prefix
  unsigned gathered;
};

// The first lane at which the sum over the lanes so far reaches `wanted`, which that of all does; before: the sum over
// those before it. By a whole warp, and the same on all lanes.
__device__ int lane_reaching(unsigned value, unsigned wanted, unsigned& before) {
  const unsigned lane = threadIdx.x % 32;
  unsigned sum = value;
  for (unsigned apart = 1; apart < 32; apart *= 2) {
    const unsigned other = __shfl_up_sync(kWarp, sum, apart);
    if (lane >= apart) sum += other;
  }
  const int reached = __ffs(static_cast<int>(__ballot_sync(kWarp, sum >= wanted))) - 1;
  before = __shfl_sync(kWarp, sum - value, reached);
  return reached;
}

// A lower bound that at least `need` keys of the list and at most `room` reach, need <= room < n. By the whole block.
// From the top, digit after digit, the prefix of the need-th key; as soon as all keys from the prefix on fit, that is
// enough.
__device__ std::uint64_t bound_of(Shared& s, const std::uint64_t* list, std::int64_t n, std::int64_t need,
                                  std::int64_t room) {
  const int thread = static_cast<int>(threadIdx.x);
  std::uint64_t prefix = 0;
  std::int64_t above = 0;
  for (int top = kKeyBits; top > 0;) {
    const int bits = top < kDigit ? top : kDigit, shift = top - bits;
    for (int at = thread; at < kDigits; at += kBlock) s.histogram[at] = 0;
    __syncthreads();
    for (std::int64_t i = thread; i < n; i += kBlock) {
      const std::uint64_t key = list[i];
      if (key >> top == prefix) atomicAdd(&s.histogram[key >> shift & ((1u << bits) - 1)], 1u);
    }
    __syncthreads();
    constexpr int kPart = kDigits / kWarps;  // of the histogram, for a warp
    static_assert(kWarps == 32 && kPart == 64);
    unsigned sum = 0;
    for (int at = thread % 32; at < kPart; at += 32) sum += s.histogram[thread / 32 * kPart + at];
    for (int apart = 16; apart > 0; apart /= 2) sum += shuffle_xor(sum, apart);
    if (thread % 32 == 0) s.sums[thread / 32] = sum;
    __syncthreads();
    if (thread < 32) {  // from the top: the part of the histogram that has the need-th key, two digits of it, one
      unsigned wanted = static_cast<unsigned>(need - above), before = 0;
      const int part = kWarps - 1 - lane_reaching(s.sums[kWarps - 1 - thread], wanted, before);
      wanted -= before;
      const int last = part * kPart + kPart - 1, own = last - 2 * thread;
      int digit = last - 2 * lane_reaching(s.histogram[own] + s.histogram[own - 1], wanted, before);
      wanted -= before;
      if (thread == 0) {
        above = need - wanted;
        if (s.histogram[digit] < wanted) above += s.histogram[digit--];
        s.prefix = prefix << bits | static_cast<std::uint64_t>(digit);
        s.above = above;
        s.included = above + s.histogram[digit];
      }
    }
    __syncthreads();
    prefix = s.prefix;
    above = s.above;
    top = shift;
    const bool fits = s.included <= room;
    __syncthreads();  // everyone has read: the histogram and these are written again
    if (fits) return prefix << shift;
  }
  return prefix;  // no two keys are equal: not reached
}

// Sorts n keys, best first, in memory for the next power of two. By the whole block. For distances up to 32 a warp
// meets only keys that no other warp touches.
__device__ void sort_keys(std::uint64_t* keys, std::int64_t n) {
  std::int64_t size = 1;
  while (size < n) size *= 2;
  for (std::int64_t i = n + threadIdx.x; i < size; i += kBlock) keys[i] = 0;
  __syncthreads();
  for (std::int64_t run = 2; run <= size; run *= 2) {
    for (std::int64_t apart = run / 2; apart > 0; apart /= 2) {
      for (std::int64_t t = threadIdx.x; t < size / 2; t += kBlock) {
        const std::int64_t low = 2 * t - (t & (apart - 1)), high = low + apart;
        const std::uint64_t first = keys[low], second = keys[high];
        if ((first < second) == ((low & run) == 0)) {
          keys[low] = second;
          keys[high] = first;
        }
      }
      const std::int64_t next = apart > 1 ? apart / 2 : run;
      if (apart > 32 || next > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
  __syncthreads();
}

// The picture's best keys, at most top_k, best first. By the whole block.
__device__ const std::uint64_t* best_keys(const DetectPlan& a, Shared& s, std::int64_t picture, std::int64_t& count) {
  const std::uint64_t* list = a.keys + picture * a.pairs;
  const std::int64_t n = a.found[picture];
  std::int64_t chosen = n;
  std::uint64_t bound = 0;
  if (n > a.room) {
    bound = bound_of(s, list, n, a.top_k, a.room);
    chosen = s.included;
  }
  std::uint64_t* keys = chosen <= kSortKeys ? s.keys : a.sorted + picture * a.room;
  if (bound == 0) {
    for (std::int64_t i = threadIdx.x; i < n; i += kBlock) keys[i] = list[i];
  } else {
    if (threadIdx.x == 0) s.gathered = 0;
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < n; i += kBlock) {
      if (list[i] >= bound) keys[atomicAdd(&s.gathered, 1u)] = list[i];
    }
  }
  count = chosen < a.top_k ? chosen : a.top_k;
  if (chosen <= kSortKeys) {
    sort_keys(s.keys, chosen);
    return s.keys;
  }
  sort_keys(keys, chosen);
  return keys;
}

// Boxes, scores and classes of the keys in order, without the boxes that are not finite; returns how many are left.
// Four lanes a key, one a side. By the whole block.
__device__ std::int64_t decode_keys(const DetectPlan& a, Shared& s, std::int64_t picture, const std::uint64_t* keys,
                                    std::int64_t count) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int side = lane % 4, begin = lane - side;  // first lane of the key's four
  std::int64_t written = 0;
  for (std::int64_t first = 0; first < count; first += kBlock / 4) {
    const std::int64_t i = first + threadIdx.x / 4;
    float edge = 0.0f, score = 0.0f;
    int label = 0;
    if (i < count) {
      const int index = static_cast<int>(kLowBits - static_cast<std::int64_t>(keys[i] & kLowBits));
      const int anchor = index / a.classes;
      label = index % a.classes;
      score = __uint_as_float(static_cast<std::uint32_t>(keys[i] >> 32));
      const DetectPlan::Level& level = level_of(a, anchor);
      const float* reg = level.reg + pixel_of(a, level, picture, anchor) * level.reg_pixel + side * kBins;
      edge = box_side(side, anchor - level.first_anchor, level.w, dfl_expectation(reg, 1), level.stride);
    }
    unsigned votes = __ballot_sync(kWarp, i < count && edge - edge == 0.0f);
    votes &= votes >> 1 & votes >> 2 & votes >> 3 & 0x11111111u;  // one bit a key: all four sides are finite
    if (lane == 0) s.sums[warp] = static_cast<unsigned>(__popc(votes));
    __syncthreads();
    unsigned before = 0, total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) before = total;
      total += s.sums[w];
    }
    if ((votes >> begin & 1) != 0) {
      const std::int64_t at = picture * a.top_k + written + before + __popc(votes & ((1u << begin) - 1));
      a.boxes[at * 4 + side] = edge;
      if (side == 0) a.scores[at] = score;
      if (side == 1) a.labels[at] = label;
    }
    written += total;
    __syncthreads();  // the sums are written again; at the end, the candidates can be read
  }
  return written;
}

// Suppression of the n candidates, 64 at a time: a lane holds two of them, and warps share the kept boxes to compare
// them with. So the work is that of the pairs with a kept box, and needs no memory for verdicts. The candidates of the
// next round are on their way from memory while those of this one are compared. By the whole block.
__device__ void suppress(const DetectPlan& a, Shared& s, std::int64_t picture, std::int64_t n) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const auto* boxes = reinterpret_cast<const float4*>(a.boxes) + picture * a.top_k;
  const float* scores = a.scores + picture * a.top_k;
  const std::int32_t* labels = a.labels + picture * a.top_k;
  float* rows = a.detections + picture * a.max_det * 6;
  const auto candidate = [&](std::int64_t i) {  // zeros where there is none
    return i < n ? Candidate{boxes[i], scores[i], labels[i]} : Candidate{};
  };
  if (thread < kNmsBits) s.round[0].put(thread, candidate(thread));
  int kept = 0;
  for (std::int64_t first = 0; first < n && kept < a.max_det; first += kNmsBits) {
    const int here = static_cast<int>(n - first < kNmsBits ? n - first : kNmsBits);
    const int turn = static_cast<int>(first / kNmsBits % 2);
    const Round& now = s.round[turn];
    if (thread < 2) s.dropped[thread] = 0;
    __syncthreads();  // the candidates and the kept of earlier rounds can be read
    Candidate next{};
    if (thread < kNmsBits) next = candidate(first + kNmsBits + thread);
    const float4 own[2] = {now.box[lane], now.box[lane + 32]};
    const int own_label[2] = {now.label[lane], now.label[lane + 32]};

    bool drop[2] = {};
    for (int r = warp; r < kept; r += kWarps) {
      const float* row = rows + static_cast<std::int64_t>(r) * 6;
      const float4 box = r < kShelf ? s.shelf[r] : box_at(row);
      const int label = r < kShelf ? s.shelf_label[r] : static_cast<int>(row[5]);
      for (int half = 0; half < 2; ++half) {
        drop[half] = drop[half] || ((a.agnostic || label == own_label[half]) && overlap(box, own[half], a.iou));
      }
    }
    for (int half = 0; half < 2; ++half) {
      const unsigned votes = __ballot_sync(kWarp, drop[half]);
      if (lane == 0 && votes != 0) atomicOr(&s.dropped[half], votes);
    }
    for (int row = warp; row < here; row += kWarps) {
      const float4 box = now.box[row];
      const int label = now.label[row];
      std::uint64_t verdicts = 0;
      for (int half = 0; half < 2; ++half) {
        const int c = lane + 32 * half;
        const bool verdict =
            c > row && c < here && (a.agnostic || label == own_label[half]) && overlap(box, own[half], a.iou);
        verdicts |= static_cast<std::uint64_t>(__ballot_sync(kWarp, verdict)) << 32 * half;
      }
      if (lane == 0) s.drops[row] = verdicts;
    }
    if (thread < kNmsBits) s.round[1 - turn].put(thread, next);
    __syncthreads();
    if (warp == 0) {
      const std::uint64_t dropped = static_cast<std::uint64_t>(s.dropped[1]) << 32 | s.dropped[0];
      const std::uint64_t keep = keep_in_order(~dropped & first_bits(here), s.drops, here);
      if (lane == 0) s.keep = keep;
    }
    __syncthreads();

    const std::uint64_t keep = s.keep;
    if (thread < kNmsBits && (keep >> thread & 1) != 0) {
      const int at = kept + __popcll(keep & first_bits(thread));
      if (at < a.max_det) {
        const float4 box = now.box[thread];
        const int label = now.label[thread];
        float* row = rows + static_cast<std::int64_t>(at) * 6;
        row[0] = box.x, row[1] = box.y, row[2] = box.z, row[3] = box.w;
        row[4] = now.score[thread];
        row[5] = static_cast<float>(label);
        if (at < kShelf) {
          s.shelf[at] = box;
          s.shelf_label[at] = label;
        }
      }
    }
    kept += __popcll(keep);
    if (kept > a.max_det) kept = a.max_det;
  }
  for (std::int64_t at = static_cast<std::int64_t>(kept) * 6 + thread; at < static_cast<std::int64_t>(a.max_det) * 6;
       at += kBlock) {
    rows[at] = 0.0f;
  }
  if (thread == 0) a.counts[picture] = kept;
}

__global__ void __launch_bounds__(kBlock) finish_kernel(const DetectPlan a) {
  __shared__ Shared s;
  wait_for_previous();
  let_next_begin();
  for (std::int64_t picture = blockIdx.x; picture < a.batch; picture += gridDim.x) {
    std::int64_t count = 0;
    const std::uint64_t* keys = best_keys(a, s, picture, count);
    if (threadIdx.x == 0) a.found[picture] = 0;  // for the next call; everyone has read it
    suppress(a, s, picture, decode_keys(a, s, picture, keys, count));
    __syncthreads();  // the next picture overwrites what is shared
  }
}

}  // namespace

void empty_lists(const DetectPlan& plan, Queue queue) {
  launch(kOp, queue, plan.batch, kThreads, kThreads, empty_kernel, plan.found, plan.batch);
}

void detect_launches(const DetectPlan& plan, Queue first, Queue queue) {
  const std::int64_t anchors = plan.anchors;
  const auto blocks = [&](std::int64_t items) { return (items + kThreads - 1) / kThreads * plan.batch; };
  if (!plan.multi_label) {
    launch(kOp, first, blocks(anchors * kLanes), 1, kThreads, filter_anchors_kernel, plan);
  } else if (plan.vectors) {
    launch(kOp, first, blocks(anchors * (plan.classes / 4)), 1, kThreads, filter_pairs_kernel<4>, plan);
  } else {
    launch(kOp, first, blocks(anchors * plan.classes), 1, kThreads, filter_pairs_kernel<1>, plan);
  }
  launch(kOp, anchors > 0 ? queue : first, plan.batch, 1, kBlock, finish_kernel, plan);
}

}  // namespace yolonas::cuda
