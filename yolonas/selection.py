"""From head outputs to detections: decode, thresholds and NMS, by the native ops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import ops

if TYPE_CHECKING:
    import numpy as np

    from .config import DetectSettings


def select_detections(
    cls: list[np.ndarray], reg: list[np.ndarray], settings: DetectSettings, *, channels_last: bool = True
) -> list[np.ndarray]:
    """Detections of each picture from head outputs per level, float32 `(N, h, w, K)` and `(N, h, w, 68)`.

    Or, without `channels_last`, `(N, K, h, w)` and `(N, 68, h, w)`.

    Returns:
        Per picture float32 `(n, 6)` rows x1, y1, x2, y2, score, class in input pixels, best first.
    """
    candidates = ops.decode_candidates(
        cls,
        reg,
        conf=settings.conf,
        top_k=settings.top_k,
        multi_label=settings.multi_label,
        classes=settings.classes,
        channels_last=channels_last,
    )
    detections, counts = ops.nms_candidates(
        candidates, iou=settings.iou, max_det=settings.max_det, agnostic=settings.agnostic
    )
    return [rows[:count].copy() for rows, count in zip(detections, counts, strict=True)]
