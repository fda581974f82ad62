// Decode and NMS on a CUDA device. B pictures, A anchors, K classes, N candidates; all tensors lie on the current
// device.
#pragma once

#include "cuda/kernels.h"
#include "ops/post.h"

namespace yolonas::cuda {

// All anchors: boxes (B, A, 4), scores (B, A, K).
void decode(const HeadOutputs& heads, const TensorView& boxes, const TensorView& scores, Stream stream);

// Bytes that nms_candidates needs for each picture that it takes at a time.
std::int64_t nms_workspace_bytes(std::int64_t capacity);

// As the CPU op, but that counts outside 0..N are not an error: they mean the nearer end. N is at most
// kNmsMaxCapacity. workspace: int64, contiguous, at least nms_workspace_bytes(N); with room for more pictures they are
// done together.
void nms_candidates(const TensorView& boxes, const TensorView& scores, const TensorView& classes,
                    const TensorView& candidate_counts, const NmsParams& params, const TensorView& detections,
                    const TensorView& counts, const TensorView& workspace, Stream stream);

}  // namespace yolonas::cuda
