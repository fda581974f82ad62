// From head outputs to detections on a device, without the host: candidates, the best of them in order, their boxes,
// suppression.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/maps.h"
#include "ops/post.h"

namespace yolonas::cuda {

struct DetectLevel {
  MapView cls, reg;  // float32; `classes` channels and 4 * kBoxBins
  int h = 0, w = 0;
  float stride = 0;  // input pixels per cell
};

struct DetectArgs {
  std::vector<DetectLevel> levels;
  int batch = 0, classes = 0;
  CandidateParams candidates;  // class_mask is device memory, or null; top_k of any size
  NmsParams nms;
  float* detections = nullptr;     // [batch][max_det][6] x1, y1, x2, y2, score, class; zero beyond the count
  std::int64_t* counts = nullptr;  // [batch]
  void* workspace = nullptr;       // detect_workspace_bytes, at a multiple of 256 bytes
  bool prepared = false;           // the workspace is as detect_prepare() left it, or detect() of the same batch
};

// Pure functions of the sizes: levels' h and w, batch, classes, candidates.top_k and multi_label.
std::int64_t detect_workspace_bytes(const DetectArgs& args);

// Empties the lists of candidates in the workspace, which is all of it that a call expects of the one before. A
// detect() that is not `prepared` does it itself, with a launch of its own. One that throws leaves the workspace
// undefined: what it has queued may have filled lists that nobody empties, and to add to them would write beyond their
// end.
void detect_prepare(const DetectArgs& args, Queue queue);

// What decode_candidates and nms_candidates of the CPU give one after another (see ops/post.h for the order of
// candidates), up to the rounding of exp: scores within 1e-6, sides within 1e-5 cells. The same bits at every run and
// place in the batch. Boxes that are not finite are left out. Queues kernels only. after_event: the first of them
// follows other streams' events, so that it alone must not overlap.
void detect(const DetectArgs& args, Queue queue, bool after_event = false);

}  // namespace yolonas::cuda
