// Candidates: the (anchor, class) pairs that pass the threshold, before their boxes are looked at.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "ops/post.h"

namespace yolonas::cpu {

// A candidate as a 64-bit number, score descending then anchor * classes + class ascending, so that one plain integer
// order serves the top-k cut and the sort.
using CandidateKey = std::uint64_t;
using CandidateKeys = std::vector<CandidateKey>;

// Scores are >= 0, where IEEE bits grow with the value; inverted they sort descending.
inline CandidateKey make_key(float score, std::int64_t index) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &score, sizeof bits);
  return static_cast<CandidateKey>(~bits) << 32 | static_cast<std::uint32_t>(index);
}

inline float key_score(CandidateKey key) {
  const std::uint32_t bits = ~static_cast<std::uint32_t>(key >> 32);
  float score = 0;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

inline std::int64_t key_index(CandidateKey key) { return static_cast<std::uint32_t>(key); }

// Appends the candidates of one picture to `keys`, in any order. `keys` must have room for all pairs (multi-label) or
// all anchors (single-label): these run inside parallel_for and must not allocate. Scores of logits are those of
// CpuKernels::sigmoid_f32; the best class of an anchor is the one with the highest score, the lowest class on ties; NaN
// is never the best.
void collect_logits(const CpuKernels& table, const HeadOutputs& heads, std::int64_t picture,
                    const CandidateParams& params, CandidateKeys& keys);
void collect_scores(const CpuKernels& table, const float* scores, std::int64_t anchors, std::int64_t classes,
                    const CandidateParams& params, CandidateKeys& keys);

// Keeps the best `count` keys, sorted.
void keep_best(CandidateKeys& keys, std::int64_t count);

}  // namespace yolonas::cpu
