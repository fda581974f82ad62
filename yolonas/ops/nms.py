"""Non-maximum suppression for batches of pictures, in one native call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _native
from ._dispatch import all_torch, check_max_det, check_top_k, class_mask, torch_ops
from .decode import Candidates


def batched_nms(
    boxes: Any,
    scores: Any,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    top_k: int = 1024,
    max_det: int = 300,
    multi_label: bool = True,
    agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> tuple[Any, Any]:
    """Threshold, top-k cut and greedy suppression of decoded boxes.

    A box is dropped when its IoU (inter / (a1 + a2 - inter), no epsilon) with a kept one is > iou, within its class or,
    with `agnostic`, across classes. NaN scores and boxes that are not finite never pass.

    Args:
        boxes: float32 `(B, A, 4)` xyxy. scores: float32 `(B, A, K)`.
        conf: `multi_label`: every (anchor, class) with score > conf; otherwise each anchor's best class, score >= conf.
        top_k: pairs kept per picture before suppression, the highest scores.
        max_det: boxes kept per picture.
        classes: only these classes; None for all.

    Returns:
        detections `(B, max_det, 6)` float32, rows x1, y1, x2, y2, score, class by descending score (equal scores: lower
        anchor, then lower class first), zero beyond the count; counts `(B,)` int64.

    Raises:
        ValueError: a shape or setting is out of range. TypeError: a dtype is not float32.
    """
    check_top_k("batched_nms", top_k)
    check_max_det("batched_nms", max_det)
    as_torch = all_torch("batched_nms", {"boxes": boxes, "scores": scores})
    if scores.ndim != 3 or boxes.ndim != 3:
        raise ValueError(
            f"batched_nms: boxes must have shape (B, A, 4) and scores (B, A, K), got {tuple(boxes.shape)} and "
            f"{tuple(scores.shape)}"
        )
    mask = class_mask("batched_nms", classes, scores.shape[2])
    if as_torch:
        wanted = None if classes is None else [int(index) for index in classes]
        return torch_ops().batched_nms(
            boxes, scores, float(conf), float(iou), top_k, max_det, multi_label, agnostic, wanted
        )
    detections = np.empty((boxes.shape[0], max_det, 6), np.float32)
    counts = np.empty(boxes.shape[0], np.int64)
    _native.cpu().batched_nms(
        boxes,
        scores,
        conf=conf,
        iou=iou,
        top_k=top_k,
        max_det=max_det,
        multi_label=multi_label,
        agnostic=agnostic,
        class_mask=mask,
        detections=detections,
        counts=counts,
    )
    return detections, counts


def nms_candidates(
    candidates: Candidates, *, iou: float = 0.7, max_det: int = 300, agnostic: bool = False
) -> tuple[Any, Any]:
    """Suppression of candidates that are already chosen and sorted, as `decode_candidates` gives them.

    Returns detections `(B, max_det, 6)` and counts `(B,)` as `batched_nms` does.
    """
    check_max_det("nms_candidates", max_det)
    candidates = Candidates(*candidates)
    if all_torch("nms_candidates", candidates._asdict()):
        return torch_ops().nms_candidates(*candidates, float(iou), max_det, agnostic)
    if candidates.boxes.ndim != 3:
        raise ValueError(f"nms_candidates: boxes must have shape (B, N, 4), got {candidates.boxes.shape}")
    detections = np.empty((candidates.boxes.shape[0], max_det, 6), np.float32)
    counts = np.empty(candidates.boxes.shape[0], np.int64)
    _native.cpu().nms_candidates(
        *candidates, iou=iou, max_det=max_det, agnostic=agnostic, detections=detections, counts=counts
    )
    return detections, counts
