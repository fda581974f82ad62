// Boxes and scores from head outputs, and suppression, split over threads.
#include "cpu/post.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "cpu/candidates.h"
#include "cpu/kernels.h"

namespace yolonas::cpu {
namespace {

// Distances of eight (side, anchor) pairs to boxes: the grid point minus or plus the distance, then times the stride.
void box_from_distances(const HeadLevel& level, std::int64_t cell, const float* distance, std::int64_t step,
                        float* box) {
  const float x = static_cast<float>(cell % level.w) + 0.5f, y = static_cast<float>(cell / level.w) + 0.5f;
  box[0] = (x - distance[0]) * level.stride;
  box[1] = (y - distance[step]) * level.stride;
  box[2] = (x + distance[2 * step]) * level.stride;
  box[3] = (y + distance[3 * step]) * level.stride;
}

// Boxes of two anchors at a time: eight distributions side by side.
void decode_two(const CpuKernels& table, const HeadOutputs& heads, std::int64_t picture, const HeadLevel* const* level,
                const std::int64_t* cell, int count, float* const* box) {
  float bins[kBoxBins * 8], distance[8];
  for (int i = 0; i < 2; ++i) {
    const int from = i < count ? i : 0;  // a lone anchor stands twice
    const std::int64_t cells = level[from]->h * level[from]->w;
    const float* reg = level[from]->reg + picture * 4 * kBoxBins * cells +
                       (heads.channels_last ? cell[from] * 4 * kBoxBins : cell[from]);
    const std::int64_t step = heads.channels_last ? 1 : cells;
    for (int side = 0; side < 4; ++side) {
      for (int bin = 0; bin < kBoxBins; ++bin) bins[bin * 8 + i * 4 + side] = reg[(side * kBoxBins + bin) * step];
    }
  }
  table.dfl_expectation_f32(bins, 8, distance);
  for (int i = 0; i < count; ++i) box_from_distances(*level[i], cell[i], distance + 4 * i, 1, box[i]);
}

// Scores of the cells [first, last) of a level; `out` is row 0 of the level. At most 64 cells.
void decode_scores(const CpuKernels& table, const HeadOutputs& heads, const HeadLevel& level, std::int64_t picture,
                   std::int64_t first, std::int64_t last, float* out) {
  const std::int64_t cells = level.h * level.w, classes = heads.classes;
  const float* cls = level.cls + picture * classes * cells;
  if (heads.channels_last) {
    table.sigmoid_f32(cls + first * classes, out + first * classes, (last - first) * classes);
    return;
  }
  float score[64];
  for (std::int64_t k = 0; k < classes; ++k) {
    table.sigmoid_f32(cls + k * cells + first, score, last - first);
    for (std::int64_t cell = first; cell < last; ++cell) out[cell * classes + k] = score[cell - first];
  }
}

// Boxes of the same cells: channels first, eight cells of a side are eight neighbouring distributions.
void decode_boxes(const CpuKernels& table, const HeadOutputs& heads, const HeadLevel& level, std::int64_t picture,
                  std::int64_t first, std::int64_t last, float* out) {
  const std::int64_t cells = level.h * level.w;
  std::int64_t cell = first;
  if (!heads.channels_last) {
    const float* reg = level.reg + picture * 4 * kBoxBins * cells;
    for (; cell + 8 <= last; cell += 8) {
      float distance[4][8];
      for (int side = 0; side < 4; ++side) {
        table.dfl_expectation_f32(reg + side * kBoxBins * cells + cell, cells, distance[side]);
      }
      for (int i = 0; i < 8; ++i) box_from_distances(level, cell + i, &distance[0][i], 8, out + 4 * (cell + i));
    }
  }
  for (; cell < last; cell += 2) {
    const HeadLevel* both[2] = {&level, &level};
    const std::int64_t pair[2] = {cell, cell + 1};
    float* const box[2] = {out + 4 * cell, out + 4 * (cell + 1)};
    decode_two(table, heads, picture, both, pair, cell + 1 < last ? 2 : 1, box);
  }
}

bool finite_box(const float* box) {
  return std::isfinite(box[0]) && std::isfinite(box[1]) && std::isfinite(box[2]) && std::isfinite(box[3]);
}

const HeadLevel& level_of(const HeadOutputs& heads, std::int64_t anchor) {
  std::size_t at = heads.levels.size() - 1;
  while (heads.levels[at].first_anchor > anchor) --at;
  return heads.levels[at];
}

// Pairs of anchor and class that can become candidates of one picture.
std::int64_t pairs_of(const HeadOutputs& heads, const CandidateParams& params) {
  return heads.anchors * (params.multi_label ? heads.classes : 1);
}

// The best top_k keys of one picture, sorted.
void choose_candidates(const CpuKernels& table, const HeadOutputs& heads, std::int64_t picture,
                       const CandidateParams& params, CandidateKeys& keys) {
  keys.clear();
  collect_logits(table, heads, picture, params, keys);
  keep_best(keys, params.top_k);
}

// Boxes, scores and classes of the keys; returns how many have a finite box.
std::int64_t decode_chosen(const CpuKernels& table, const HeadOutputs& heads, std::int64_t picture,
                           const CandidateKeys& keys, float* box, float* score, std::int32_t* label) {
  std::int64_t written = 0;
  for (std::size_t i = 0; i < keys.size(); i += 2) {
    const HeadLevel* level[2];
    std::int64_t cell[2];
    float decoded[2][4];
    float* to[2] = {decoded[0], decoded[1]};
    const int pair = i + 1 < keys.size() ? 2 : 1;
    for (int j = 0; j < pair; ++j) {
      const std::int64_t anchor = key_index(keys[i + static_cast<std::size_t>(j)]) / heads.classes;
      level[j] = &level_of(heads, anchor);
      cell[j] = anchor - level[j]->first_anchor;
    }
    decode_two(table, heads, picture, level, cell, pair, to);
    for (int j = 0; j < pair; ++j) {
      if (!finite_box(decoded[j])) continue;
      const CandidateKey key = keys[i + static_cast<std::size_t>(j)];
      std::copy(decoded[j], decoded[j] + 4, box + 4 * written);
      score[written] = key_score(key);
      label[written++] = static_cast<std::int32_t>(key_index(key) % heads.classes);
    }
  }
  return written;
}

// Boxes that suppression can keep of n candidates; one of none, so that there is memory.
std::int64_t most_kept(const NmsParams& params, std::int64_t n) {
  return std::min(params.max_det, std::max<std::int64_t>(n, 1));
}

// Suppresses one picture's sorted candidates and writes its rows of the result.
std::int64_t suppress(const CpuKernels& table, const float* boxes, const float* scores, const std::int32_t* classes,
                      std::int64_t n, const NmsParams& params, SelectWorkspace& workspace, float* detections) {
  const std::int64_t most = most_kept(params, n);
  workspace.keep.resize(static_cast<std::size_t>(most));
  workspace.suppression.resize(static_cast<std::size_t>(nms_workspace(most)));
  const std::int64_t kept = table.nms_f32(boxes, params.agnostic ? nullptr : classes, n, params.iou, most,
                                          workspace.keep.data(), workspace.suppression.data());
  for (std::int64_t i = 0; i < kept; ++i) {
    const std::int64_t from = workspace.keep[static_cast<std::size_t>(i)];
    float* row = detections + 6 * i;
    std::copy(boxes + 4 * from, boxes + 4 * from + 4, row);
    row[4] = scores[from];
    row[5] = static_cast<float>(classes[from]);
  }
  std::fill(detections + 6 * kept, detections + 6 * params.max_det, 0.0f);
  return kept;
}

}  // namespace

void decode(const HeadOutputs& heads, const TensorView& boxes, const TensorView& scores) {
  const std::int64_t anchors = heads.anchors, classes = heads.classes;
  check_output(boxes, "decode", "boxes", DType::f32, {heads.batch, anchors, 4}, "(B, A, 4)");
  check_output(scores, "decode", "scores", DType::f32, {heads.batch, anchors, classes}, "(B, A, K)");
  const CpuKernels& table = kernels();
  constexpr std::int64_t kCells = 64;
  for (const HeadLevel& level : heads.levels) {
    const std::int64_t cells = level.h * level.w, blocks = (cells + kCells - 1) / kCells;
    parallel_for(heads.batch * blocks, 8, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t at = begin; at < end; ++at) {
        const std::int64_t picture = at / blocks, first = at % blocks * kCells;
        const std::int64_t last = std::min(first + kCells, cells);
        const std::int64_t row = picture * anchors + level.first_anchor;
        decode_scores(table, heads, level, picture, first, last, scores.as<float>() + row * classes);
        decode_boxes(table, heads, level, picture, first, last, boxes.as<float>() + row * 4);
      }
    });
  }
}

void decode_candidates(const HeadOutputs& heads, const CandidateParams& params, const TensorView& boxes,
                       const TensorView& scores, const TensorView& classes, const TensorView& counts) {
  const std::int64_t top_k = params.top_k;
  check_output(boxes, "decode_candidates", "boxes", DType::f32, {heads.batch, top_k, 4}, "(B, top_k, 4)");
  check_output(scores, "decode_candidates", "scores", DType::f32, {heads.batch, top_k}, "(B, top_k)");
  check_output(classes, "decode_candidates", "classes", DType::s32, {heads.batch, top_k}, "(B, top_k)");
  check_output(counts, "decode_candidates", "counts", DType::s64, {heads.batch}, "(B,)");
  const CpuKernels& table = kernels();
  // Made here: bodies of parallel_for must not throw, and pictures are few.
  std::vector<SelectWorkspace> workspaces(static_cast<std::size_t>(heads.batch));
  for (SelectWorkspace& workspace : workspaces) workspace.reserve(pairs_of(heads, params), 0, 0);
  parallel_for(heads.batch, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t picture = begin; picture < end; ++picture) {
      CandidateKeys& keys = workspaces[static_cast<std::size_t>(picture)].keys;
      choose_candidates(table, heads, picture, params, keys);
      counts.as<std::int64_t>()[picture] =
          decode_chosen(table, heads, picture, keys, boxes.as<float>() + picture * top_k * 4,
                        scores.as<float>() + picture * top_k, classes.as<std::int32_t>() + picture * top_k);
    }
  });
}

std::int64_t select(const CpuKernels& table, const HeadOutputs& heads, std::int64_t picture,
                    const CandidateParams& candidates, const NmsParams& params, SelectWorkspace& workspace,
                    float* detections) {
  choose_candidates(table, heads, picture, candidates, workspace.keys);
  const std::int64_t n = decode_chosen(table, heads, picture, workspace.keys, workspace.boxes.data(),
                                       workspace.scores.data(), workspace.classes.data());
  return suppress(table, workspace.boxes.data(), workspace.scores.data(), workspace.classes.data(), n, params,
                  workspace, detections);
}

void SelectWorkspace::reserve(std::int64_t pairs, std::int64_t candidates, std::int64_t kept) {
  keys.reserve(static_cast<std::size_t>(pairs));
  boxes.resize(static_cast<std::size_t>(4 * candidates));
  scores.resize(static_cast<std::size_t>(candidates));
  classes.resize(static_cast<std::size_t>(candidates));
  keep.reserve(static_cast<std::size_t>(kept));
  suppression.reserve(static_cast<std::size_t>(nms_workspace(kept)));
}

void SelectWorkspace::reserve(const HeadOutputs& heads, const CandidateParams& params, const NmsParams& nms) {
  const std::int64_t pairs = pairs_of(heads, params), candidates = std::min(params.top_k, pairs);
  reserve(pairs, candidates, most_kept(nms, candidates));
}

void nms_candidates(const TensorView& boxes, const TensorView& scores, const TensorView& classes,
                    const TensorView& candidate_counts, const NmsParams& params, const TensorView& detections,
                    const TensorView& counts) {
  const char* op = "nms_candidates";
  check_nms_candidates(op, boxes, scores, classes, candidate_counts, params, detections, counts);
  const std::int64_t batch = boxes.shape[0], capacity = boxes.shape[1];
  for (std::int64_t picture = 0; picture < batch; ++picture) {
    const std::int64_t n = candidate_counts.as<const std::int64_t>()[picture];
    YN_CHECK(n >= 0 && n <= capacity, op, ": counts must lie in 0..", capacity, ", got ", n, " for picture ", picture);
  }
  const CpuKernels& table = kernels();
  std::vector<SelectWorkspace> workspaces(static_cast<std::size_t>(batch));
  for (SelectWorkspace& workspace : workspaces) workspace.reserve(0, 0, most_kept(params, capacity));
  parallel_for(batch, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      counts.as<std::int64_t>()[i] =
          suppress(table, boxes.as<const float>() + i * capacity * 4, scores.as<const float>() + i * capacity,
                   classes.as<const std::int32_t>() + i * capacity, candidate_counts.as<const std::int64_t>()[i],
                   params, workspaces[static_cast<std::size_t>(i)], detections.as<float>() + i * params.max_det * 6);
    }
  });
}

void batched_nms(const TensorView& boxes, const TensorView& scores, const CandidateParams& candidates,
                 const NmsParams& params, const TensorView& detections, const TensorView& counts) {
  const char* op = "batched_nms";
  check_nms_params(op, params);
  check_tensor(boxes, op, "boxes", DType::f32, {-1, -1, 4}, "(B, A, 4)");
  const std::int64_t batch = boxes.shape[0], anchors = boxes.shape[1];
  check_tensor(scores, op, "scores", DType::f32, {batch, anchors, -1}, "(B, A, K)");
  const std::int64_t classes = scores.shape[2];
  YN_CHECK(classes >= 1 || anchors == 0, op, ": scores must have at least one class, got ", shape_text(scores));
  YN_CHECK(classes == 0 || anchors <= 0x7fffffff / classes, op, ": anchors * classes must be below 2^31, got ",
           shape_text(scores));
  check_output(detections, op, "detections", DType::f32, {batch, params.max_det, 6}, "(B, max_det, 6)");
  check_output(counts, op, "counts", DType::s64, {batch}, "(B,)");
  const CpuKernels& table = kernels();
  const std::int64_t pairs = anchors * (candidates.multi_label ? classes : 1);
  const std::int64_t most = std::min(candidates.top_k, pairs);
  std::vector<SelectWorkspace> workspaces(static_cast<std::size_t>(batch));
  for (SelectWorkspace& workspace : workspaces) workspace.reserve(pairs, most, most_kept(params, most));
  parallel_for(batch, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t picture = begin; picture < end; ++picture) {
      SelectWorkspace& s = workspaces[static_cast<std::size_t>(picture)];
      const float* box = boxes.as<const float>() + picture * anchors * 4;
      const float* score = scores.as<const float>() + picture * anchors * classes;
      collect_scores(table, score, anchors, classes, candidates, s.keys);
      keep_best(s.keys, candidates.top_k);
      std::int64_t n = 0;
      for (const CandidateKey key : s.keys) {
        const float* from = box + 4 * (key_index(key) / classes);
        if (!finite_box(from)) continue;
        std::copy(from, from + 4, s.boxes.data() + 4 * n);
        s.scores[static_cast<std::size_t>(n)] = key_score(key);
        s.classes[static_cast<std::size_t>(n++)] = static_cast<std::int32_t>(key_index(key) % classes);
      }
      counts.as<std::int64_t>()[picture] = suppress(table, s.boxes.data(), s.scores.data(), s.classes.data(), n, params,
                                                    s, detections.as<float>() + picture * params.max_det * 6);
    }
  });
}

}  // namespace yolonas::cpu
