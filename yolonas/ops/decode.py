"""From head outputs to boxes and scores: all anchors, or only the candidates above a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _native
from ._dispatch import check_top_k, class_mask, lists_are_torch, torch_ops

STRIDES = (8.0, 16.0, 32.0)  # input pixels per cell of the three pyramid levels


class Candidates(NamedTuple):
    """Pairs of anchor and class that passed the threshold, best first; rows beyond the count are undefined."""

    boxes: Any  # (B, N, 4) float32 xyxy, input pixels
    scores: Any  # (B, N) float32
    classes: Any  # (B, N) int32
    counts: Any  # (B,) int64


def decode(
    cls: Sequence[Any], reg: Sequence[Any], strides: Sequence[float] = STRIDES, *, channels_last: bool = False
) -> tuple[Any, Any]:
    """Boxes and scores of all anchors, levels in the given order, rows of a level from the top.

    A side's distance is the expectation of a softmax over 17 bins (distribution focal loss, Li et al. 2020) times the
    stride; a score is the sigmoid of its logit.

    Args:
        cls: per level float32 `(B, K, h, w)` class logits, or `(B, h, w, K)` with `channels_last`.
        reg: per level float32 `(B, 68, h, w)` box logits (channel = side * 17 + bin; left, top, right, bottom).
        strides: input pixels per cell, per level.

    Returns:
        boxes `(B, A, 4)` float32 xyxy in input pixels, not clipped; scores `(B, A, K)` float32.
    """
    strides = [float(stride) for stride in strides]
    if lists_are_torch("decode", {"cls": cls, "reg": reg}):
        return torch_ops().decode(list(cls), list(reg), strides, channels_last)
    batch, anchors, classes = _anchors("decode", cls, channels_last)
    boxes = np.empty((batch, anchors, 4), np.float32)
    scores = np.empty((batch, anchors, classes), np.float32)
    _native.cpu().decode(cls, reg, strides, channels_last=channels_last, boxes=boxes, scores=scores)
    return boxes, scores


def decode_candidates(
    cls: Sequence[Any],
    reg: Sequence[Any],
    strides: Sequence[float] = STRIDES,
    *,
    conf: float,
    top_k: int = 1024,
    multi_label: bool = True,
    classes: Sequence[int] | None = None,
    channels_last: bool = False,
) -> Candidates:
    """The pairs of anchor and class above the threshold, and nothing else: boxes are decoded for those alone.

    Args:
        cls, reg, strides, channels_last: as in `decode`.
        conf: `multi_label`: every pair with score > conf; otherwise the best class of an anchor, score >= conf.
        top_k: at most so many pairs per picture, those with the highest scores.
        classes: only these classes; None for all.

    Returns:
        Candidates by descending score, equal scores by ascending (anchor, class); scores and boxes are bit-equal to
        those of `decode`. Pairs whose box is not finite are left out.
    """
    check_top_k("decode_candidates", top_k)
    strides = [float(stride) for stride in strides]
    as_torch = lists_are_torch("decode_candidates", {"cls": cls, "reg": reg})
    batch, anchors, count = _anchors("decode_candidates", cls, channels_last)
    mask = class_mask("decode_candidates", classes, count)
    top_k = max(1, min(top_k, anchors * (count if multi_label else 1)))
    if as_torch:
        wanted = None if classes is None else [int(index) for index in classes]
        return Candidates(
            *torch_ops().decode_candidates(
                list(cls), list(reg), strides, float(conf), top_k, multi_label, wanted, channels_last
            )
        )
    result = Candidates(
        np.empty((batch, top_k, 4), np.float32),
        np.empty((batch, top_k), np.float32),
        np.empty((batch, top_k), np.int32),
        np.empty(batch, np.int64),
    )
    _native.cpu().decode_candidates(
        cls,
        reg,
        strides,
        channels_last=channels_last,
        conf=conf,
        top_k=top_k,
        multi_label=multi_label,
        class_mask=mask,
        **result._asdict(),
    )
    return result


def _anchors(op: str, cls: Sequence[Any], channels_last: bool) -> tuple[int, int, int]:
    """(batch, anchors, classes) of a list of class outputs."""
    if any(level.ndim != 4 for level in cls):
        shapes = [tuple(level.shape) for level in cls]
        raise ValueError(f"{op}: class outputs must have four axes, got shapes {shapes}")
    batch, classes = cls[0].shape[0], cls[0].shape[3 if channels_last else 1]
    rows = 1 if channels_last else 2
    return batch, sum(level.shape[rows] * level.shape[rows + 1] for level in cls), classes
