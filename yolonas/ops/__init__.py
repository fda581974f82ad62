"""Native ops with Python wrappers: letterbox, decode, batched NMS, fake quantisation, fused convolution, matching.

NumPy arrays in, NumPy arrays out; torch tensors in, torch tensors out, through `torch.ops.yolonas.*`, which are
registered with fake kernels (so torch.compile and torch.export can trace them). torch is imported only if the caller
has done so. Matching is part of no network: it takes any array-like and gives NumPy arrays.
"""

from __future__ import annotations

from .conv import conv2d_bias_act
from .decode import Candidates, decode, decode_candidates
from .letterbox import letterbox
from .match import COCO_AREA_RANGES, COCO_THRESHOLDS, Matches, match_detections
from .nms import batched_nms, nms_candidates
from .quantize import fake_quantize

__all__ = [
    "COCO_AREA_RANGES",
    "COCO_THRESHOLDS",
    "Candidates",
    "Matches",
    "batched_nms",
    "conv2d_bias_act",
    "decode",
    "decode_candidates",
    "fake_quantize",
    "letterbox",
    "match_detections",
    "nms_candidates",
]
