"""Which detections of a picture found which true boxes, by COCO's rules, for all thresholds and area ranges at once.

Only the matching: no precision, no recall, no average over pictures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _native

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the IoU
COCO_AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # all, small, medium, large
COCO_THRESHOLDS.flags.writeable = COCO_AREA_RANGES.flags.writeable = False


class Matches(NamedTuple):
    """The matches of one picture: N detections that count, G true boxes, A area ranges, T thresholds."""

    order: np.ndarray  # (N,) int64 rows of those detections: classes ascending, in each the best first
    rank: np.ndarray  # (N,) int32 position within the class, from 0
    matched: np.ndarray  # (A, T, N) bool
    ignored: np.ndarray  # (A, T, N) bool: neither right nor wrong
    truth: np.ndarray  # (A, T, N) int32 row of the matched true box, -1 for none
    truth_ignored: np.ndarray  # (A, G) bool: need not be found


def match_detections(
    boxes: Any,
    scores: Any,
    classes: Any,
    truth_boxes: Any,
    truth_classes: Any,
    truth_areas: Any,
    truth_crowd: Any,
    *,
    thresholds: Any = COCO_THRESHOLDS,
    area_ranges: Any = COCO_AREA_RANGES,
    max_det: int = 100,
) -> Matches:
    """Matches the detections of one picture with its true boxes, each class by itself.

    Per area range and threshold each detection, the best first, takes the box with the highest IoU that is free, of
    equal ones the last. Crowd regions and true boxes outside the area range are ignored: taken only where no other box
    can be had, and whoever takes them is ignored, too. So are detections that take nothing and lie outside the range.
    All arithmetic is float64 in the order of pycocotools, so the matches are the same.

    Args:
        boxes: `(D, 4)` x, y, width, height. scores: `(D,)`. classes: `(D,)` integers. Any array-like.
        truth_boxes: `(G, 4)` as boxes. truth_classes: `(G,)`. truth_areas: `(G,)` square pixels.
        truth_crowd: `(G,)` bool, regions of many objects that any number of detections may take.
        thresholds: `(T,)` IoU thresholds in 0..1.
        area_ranges: `(A, 2)` smallest and largest area; both still belong to the range.
        max_det: the best of each class that count; equal scores in the given order.

    Raises:
        ValueError: a shape, a setting, or a number that is not finite. TypeError: a dtype that does not fit.
    """
    boxes = _array("boxes", boxes, np.float64, 2)
    scores = _array("scores", scores, np.float64, 1)
    classes = _array("classes", classes, np.int64, 1)
    thresholds = _array("thresholds", thresholds, np.float64, 1)
    area_ranges = _array("area_ranges", area_ranges, np.float64, 2)
    truth_boxes = _array("truth_boxes", truth_boxes, np.float64, 2)
    order, rank = np.empty(len(scores), np.int64), np.empty(len(scores), np.int32)
    count = _native.cpu().match_order(scores, classes, max_det=max_det, order=order, rank=rank)
    if count < len(order):
        order, rank = order[:count].copy(), rank[:count].copy()
    shape = len(area_ranges), len(thresholds), count
    matched, ignored, truth = np.empty(shape, bool), np.empty(shape, bool), np.empty(shape, np.int32)
    truth_ignored = np.empty((len(area_ranges), len(truth_boxes)), bool)
    _native.cpu().match_detections(
        boxes,
        classes,
        order,
        truth_boxes,
        _array("truth_classes", truth_classes, np.int64, 1),
        _array("truth_areas", truth_areas, np.float64, 1),
        _array("truth_crowd", truth_crowd, np.bool_, 1),
        thresholds=thresholds,
        area_ranges=area_ranges,
        matched=matched,
        ignored=ignored,
        truth=truth,
        truth_ignored=truth_ignored,
    )
    return Matches(order, rank, matched, ignored, truth, truth_ignored)


_KINDS = {np.float64: "fiu", np.int64: "iu", np.bool_: "biu"}  # of dtypes that become these without a surprise


def _array(argument: str, value: Any, dtype: Any, axes: int) -> np.ndarray:
    """A contiguous array of that dtype. Empty ones may have any: that of `[]` is float64."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on other devices
        raise TypeError(
            f"match_detections: {argument} must be an array on the CPU, got {type(value).__name__}: {error}"
        ) from error
    if array.size == 0 and array.ndim != axes:
        array = np.empty((0, 4)[:axes])
    if (array.size and array.dtype.kind not in _KINDS[dtype]) or array.dtype == np.uint64:
        raise TypeError(f"match_detections: {argument} must hold {np.dtype(dtype)} numbers, got {array.dtype}")
    if array.ndim != axes:
        raise ValueError(f"match_detections: {argument} must have {axes} axes, got shape {array.shape}")
    return np.ascontiguousarray(array, dtype)
