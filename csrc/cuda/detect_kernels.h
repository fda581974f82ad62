// The launches behind detect(), callable from plain C++.
#pragma once

#include <cstdint>

#include "cuda/maps.h"

namespace yolonas::cuda {

inline constexpr int kDetectLevels = 8;
inline constexpr int kSortKeys = 2048;  // so many keys are sorted in shared memory

// Everything about one call, passed to the kernels by value. All memory is the device's.
struct DetectPlan {
  struct Level {
    const float* cls;
    const float* reg;
    int cls_pixel, reg_pixel;  // elements from pixel to pixel
    int w, cells;              // cells = h * w
    int first_anchor;
    float stride;
  };
  Level level[kDetectLevels];
  int levels, batch, classes, anchors;  // anchors * classes < 2^31
  bool multi_label, vectors;            // vectors: logits can be read four at a time
  float conf;
  float floor;  // no logit below it has a score that counts
  const std::uint8_t* class_mask;

  float iou;
  bool agnostic;
  int max_det;
  float* detections;
  std::int64_t* counts;

  // Workspace, of every picture one after another.
  std::int64_t pairs;     // keys of a picture that there is room for
  std::int64_t top_k;     // at most `pairs`
  std::int64_t room;      // keys that can be sorted: kSortKeys, or a power of two from top_k on
  unsigned* found;        // [batch] keys in the list; 0 between calls
  std::uint64_t* keys;    // [batch][pairs], in any order
  std::uint64_t* sorted;  // [batch][room] if room > kSortKeys
  float* boxes;           // [batch][top_k][4]
  float* scores;          // [batch][top_k]
  std::int32_t* labels;   // [batch][top_k]
};

void empty_lists(const DetectPlan& plan, Queue queue);

// Two launches, for any contents: the first adds the key of every pair that passes to its picture's list, which is
// empty; in the second one block a picture empties it again, sorts, decodes and suppresses. A key is score bits << 32 |
// (0x7fffffff - (anchor * classes + class)): greater is better, never 0, and no two are equal, so the order in which
// the list was filled does not matter.
void detect_launches(const DetectPlan& plan, Queue first, Queue queue);

}  // namespace yolonas::cuda
