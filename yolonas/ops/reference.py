"""Plain NumPy twins of the native ops, written to be obviously right and not to be fast.

Tests compare every kernel with them. The integer and comparison parts (resampling, candidates, suppression,
quantisation, matching, `conv2d_s8`) use the dtype of their input and the order of operations of the contract, so they
can be compared for equality; `decode` and `conv2d_bias_act` compute in float64, so the difference is the kernel's
rounding. Arguments are not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 17  # of a box side's distribution: 0..16 in units of the stride


def resize_bilinear(image: np.ndarray, resized: tuple[int, int]) -> np.ndarray:
    """OpenCV's uint8 bilinear: `(h, w, C)` uint8 to `(*resized, C)` uint8 with weights of 2048ths."""
    height, width = image.shape[:2]
    left, right, wx0, wx1 = _axis(width, resized[1], keep_border_weights=False)
    top, bottom, wy0, wy1 = _axis(height, resized[0], keep_border_weights=True)
    pixels = image.astype(np.int32)
    rows = pixels[:, left] * wx0[:, None] + pixels[:, right] * wx1[:, None]  # (h, W', C)
    upper = (wy0[:, None, None] * (rows[top] >> 4)) >> 16
    lower = (wy1[:, None, None] * (rows[bottom] >> 4)) >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def letterbox(
    image: np.ndarray,
    *,
    frame: tuple[int, int],
    resized: tuple[int, int],
    offset: tuple[int, int] = (0, 0),
    pad_value: int = 114,
    swap_channels: bool = False,
    layout: str = "chw",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    divisor: Sequence[float] = (255.0, 255.0, 255.0),
) -> np.ndarray:
    """Resize, pad, reorder channels, scale. uint8 `(h, w, 3)` to float32 `(3, H, W)` or `(H, W, 3)`."""
    padded = np.full((*frame, 3), pad_value, np.uint8)
    picture = resize_bilinear(image, resized)
    if swap_channels:
        picture = picture[:, :, ::-1]
    padded[offset[0] : offset[0] + resized[0], offset[1] : offset[1] + resized[1]] = picture
    scaled = (padded.astype(np.float32) - np.float32(mean)) / np.float32(divisor)
    return scaled if layout == "hwc" else np.ascontiguousarray(scaled.transpose(2, 0, 1))


def decode(
    cls: Sequence[np.ndarray], reg: Sequence[np.ndarray], strides: Sequence[float], *, channels_last: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(B, A, 4)` and scores `(B, A, K)` in float64 from levels of `(B, K, h, w)` and `(B, 68, h, w)` logits."""
    boxes, scores = [], []
    for logits, distribution, stride in zip(cls, reg, strides, strict=True):
        if not channels_last:
            logits, distribution = logits.transpose(0, 2, 3, 1), distribution.transpose(0, 2, 3, 1)
        batch, height, width, classes = logits.shape
        cells = height * width
        with np.errstate(over="ignore", invalid="ignore"):
            scores.append(1.0 / (1.0 + np.exp(-logits.astype(np.float64).reshape(batch, cells, classes))))
            bins = distribution.astype(np.float64).reshape(batch, cells, 4, BINS)
            weights = np.exp(bins - bins.max(axis=3, keepdims=True))
            distance = (weights * np.arange(BINS)).sum(axis=3) / weights.sum(axis=3)
        y, x = np.divmod(np.arange(cells), max(width, 1))
        centre = np.stack([x, y], axis=1) + 0.5
        box = np.concatenate([centre - distance[..., :2], centre + distance[..., 2:]], axis=2) * stride
        boxes.append(box)
    return np.concatenate(boxes, axis=1), np.concatenate(scores, axis=1)


def select(
    scores: np.ndarray,
    *,
    conf: float,
    top_k: int,
    multi_label: bool,
    classes: Sequence[int] | None = None,
) -> list[tuple[int, int]]:
    """The (anchor, class) pairs of one picture's scores `(A, K)` that pass, best first, equal scores in their order."""
    threshold = scores.dtype.type(conf)
    pairs = []
    for anchor, row in enumerate(scores):
        if multi_label:
            passing = [k for k in range(len(row)) if row[k] > threshold]
        else:  # the best class, the lowest of equal ones, NaN aside
            best = max((k for k in range(len(row)) if not np.isnan(row[k])), key=lambda k: (row[k], -k), default=None)
            passing = [best] if best is not None and row[best] >= threshold else []
        pairs += [(anchor, k) for k in passing if np.isfinite(row[k]) and (classes is None or k in classes)]
    pairs.sort(key=lambda pair: (-scores[pair], pair))
    return pairs[:top_k]


def candidates(boxes: np.ndarray, scores: np.ndarray, **settings: Any) -> list[np.ndarray]:
    """Per picture the rows x1, y1, x2, y2, score, class of `select`, without those whose box is not finite."""
    rows = []
    for picture_boxes, picture_scores in zip(boxes, scores, strict=True):
        pairs = select(picture_scores, **settings)
        table = [[*picture_boxes[anchor], picture_scores[anchor, k], k] for anchor, k in pairs]
        table = [row for row in table if np.isfinite(row[:4]).all()]
        rows.append(np.array(table, boxes.dtype).reshape(-1, 6))
    return rows


def iou(box: np.ndarray, other: np.ndarray) -> np.floating:
    """Intersection over union of two xyxy boxes, in their dtype, without an epsilon; NaN for two empty boxes."""
    zero = box.dtype.type(0)
    with np.errstate(all="ignore"):
        width = max(min(other[2], box[2]) - max(other[0], box[0]), zero)
        height = max(min(other[3], box[3]) - max(other[1], box[1]), zero)
        shared = width * height
        area, other_area = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
        return shared / (other_area + area - shared)


def suppress(rows: np.ndarray, *, iou_threshold: float, max_det: int, agnostic: bool) -> np.ndarray:
    """Greedy: a row is kept unless its IoU with a kept one (of its class, or of any) is > the threshold."""
    threshold = rows.dtype.type(iou_threshold)
    kept: list[np.ndarray] = []
    for row in rows:
        if len(kept) == max_det:
            break
        rivals = [other for other in kept if agnostic or other[5] == row[5]]
        if not any(iou(row[:4], other[:4]) > threshold for other in rivals):
            kept.append(row)
    return np.array(kept, rows.dtype).reshape(-1, 6)


def batched_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    top_k: int = 1024,
    max_det: int = 300,
    multi_label: bool = True,
    agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Detections `(B, max_det, 6)`, zero beyond the counts `(B,)`."""
    chosen = candidates(boxes, scores, conf=conf, top_k=top_k, multi_label=multi_label, classes=classes)
    detections = np.zeros((len(chosen), max_det, 6), boxes.dtype)
    counts = np.zeros(len(chosen), np.int64)
    for picture, rows in enumerate(chosen):
        kept = suppress(rows, iou_threshold=iou, max_det=max_det, agnostic=agnostic)
        detections[picture, : len(kept)] = kept
        counts[picture] = len(kept)
    return detections, counts


def match_detections(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    truth_boxes: np.ndarray,
    truth_classes: np.ndarray,
    truth_areas: np.ndarray,
    truth_crowd: np.ndarray,
    *,
    thresholds: np.ndarray,
    area_ranges: np.ndarray,
    max_det: int = 100,
) -> tuple[np.ndarray, ...]:
    """The six arrays of `Matches`, one (area range, threshold) after another."""
    ranked = []
    for label in np.unique(classes):
        rows = sorted(np.flatnonzero(classes == label), key=lambda row: -scores[row])
        ranked += list(enumerate(rows))[:max_det]
    rank, order = (np.array(numbers, np.int64) for numbers in (zip(*ranked, strict=True) if ranked else ((), ())))
    truth = np.full((len(area_ranges), len(thresholds), len(order)), -1)
    ignored = np.zeros(truth.shape, bool)
    truth_ignored = np.zeros((len(area_ranges), len(truth_boxes)), bool)
    for a, (low, high) in enumerate(area_ranges):
        truth_ignored[a] = truth_crowd | (truth_areas < low) | (truth_areas > high)
        rivals = sorted(range(len(truth_boxes)), key=lambda g: truth_ignored[a, g])
        for t, threshold in enumerate(thresholds):
            free = np.ones(len(truth_boxes), bool)
            for n, row in enumerate(order):
                best, found = min(threshold, 1 - 1e-10), -1
                for g in rivals:
                    if truth_classes[g] != classes[row] or not (free[g] or truth_crowd[g]):
                        continue
                    if found >= 0 and truth_ignored[a, g] and not truth_ignored[a, found]:
                        break
                    overlap = overlap_xywh(boxes[row], truth_boxes[g], truth_crowd[g])
                    if overlap < best:
                        continue
                    best, found = overlap, g
                truth[a, t, n] = found
                if found >= 0:
                    free[found] = False
                    ignored[a, t, n] = truth_ignored[a, found]
                else:
                    ignored[a, t, n] = not low <= boxes[row, 2] * boxes[row, 3] <= high
    return order, rank, truth >= 0, ignored, truth, truth_ignored


def overlap_xywh(box: np.ndarray, truth: np.ndarray, crowd: bool) -> float:
    """IoU of two x, y, width, height boxes; of a crowd region, the part of the box that lies inside."""
    shared = 1.0
    for axis in (0, 1):
        side = min(box[axis + 2] + box[axis], truth[axis + 2] + truth[axis]) - max(box[axis], truth[axis])
        if side <= 0:
            return 0.0
        shared *= side
    area = box[2] * box[3]
    with np.errstate(all="ignore"):
        return shared / (area if crowd else area + truth[2] * truth[3] - shared)


def fake_quantize(
    x: np.ndarray, scale: Any, *, axis: int | None = None, quant_min: int = -128, quant_max: int = 127
) -> np.ndarray:
    """`clamp(rint(x * (1 / scale))) * scale` in x's dtype, never -0; NaN becomes the lowest value."""
    scale, integers = _integers(x, scale, axis)
    integers = np.where(np.isnan(integers), quant_min, integers)
    return (np.clip(integers, quant_min, quant_max) * scale).astype(x.dtype)


def fake_quantize_backward(
    grad: np.ndarray,
    x: np.ndarray,
    scale: Any,
    *,
    axis: int | None = None,
    quant_min: int = -128,
    quant_max: int = 127,
) -> np.ndarray:
    """The gradient where the integer lies in the range, else 0."""
    _, integers = _integers(x, scale, axis)
    return np.where((integers >= quant_min) & (integers <= quant_max), grad, grad.dtype.type(0))


def conv2d_bias_act(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    residual: np.ndarray | None = None,
    stride: int = 1,
    padding: int = 0,
    relu: bool = True,
    residual_scale: float = 1.0,
) -> np.ndarray:
    """NHWC convolution in float64: `(N, H, W, C)` with `(K, kh, kw, C)` to `(N, H', W', K)`."""
    y = _correlate(x.astype(np.float64), weight.astype(np.float64), stride, padding)
    if bias is not None:
        y += bias
    if relu:
        y = np.where(y < 0, 0.0, y)  # NaN stays
    if residual is not None:
        y += np.float32(residual_scale).astype(np.float64) * residual
    return y


def conv2d_s8(
    x: np.ndarray,
    weight: np.ndarray,
    multiplier: np.ndarray,
    offset: np.ndarray,
    *,
    residual: np.ndarray | None = None,
    stride: int = 1,
    padding: int = 0,
    relu: bool = True,
    residual_multiplier: float = 1.0,
    dtype: Any = np.int8,
) -> np.ndarray:
    """NHWC convolution of int8 in int32, then float32 step by step; to int8 with ties to even, or to float32."""
    sums = _correlate(x.astype(np.int32), weight.astype(np.int32), stride, padding)
    y = sums.astype(np.float32) * multiplier + offset
    if relu:
        y = np.where(y < 0, np.float32(0), y)
    if residual is not None:
        y = y + residual.astype(np.float32) * np.float32(residual_multiplier)
    return np.clip(np.rint(y), -128, 127).astype(np.int8) if dtype == np.int8 else y


def _correlate(x: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """The sums of a convolution, in the dtype of both."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    kernel_h, kernel_w = weight.shape[1:3]
    height, width = (x.shape[1] - kernel_h) // stride + 1, (x.shape[2] - kernel_w) // stride + 1
    y = np.zeros((x.shape[0], height, width, weight.shape[0]), x.dtype)
    for row in range(kernel_h):
        for column in range(kernel_w):
            rows = slice(row, row + (height - 1) * stride + 1, stride)
            columns = slice(column, column + (width - 1) * stride + 1, stride)
            y += x[:, rows, columns] @ weight[:, row, column].T
    return y


def _axis(source: int, resized: int, *, keep_border_weights: bool) -> tuple[np.ndarray, ...]:
    """Both source indices and both integer weights for every destination of one axis."""
    position = ((np.arange(resized) + 0.5) * (source / resized) - 0.5).astype(np.float32)
    first = np.floor(position)
    part = position - first
    index = first.astype(np.int64)
    if not keep_border_weights:
        part[(index < 0) | (index >= source - 1)] = 0
    first_weight = np.rint((1 - part) * np.float32(2048)).astype(np.int32)
    second_weight = np.rint(part * np.float32(2048)).astype(np.int32)
    return index.clip(0, source - 1), (index + 1).clip(0, source - 1), first_weight, second_weight


def _integers(x: np.ndarray, scale: Any, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Scale in a shape that broadcasts over x, and the unclamped integers as floats."""
    scale = np.asarray(scale, x.dtype)
    if axis is None:
        scale = scale.reshape(())
    else:
        scale = scale.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    with np.errstate(over="ignore", invalid="ignore"):
        return scale, np.rint(x * (x.dtype.type(1) / scale)) + x.dtype.type(0)
