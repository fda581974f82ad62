"""Which predictions of a batch answer for which labelled boxes: the task-aligned assignment.

TOOD: Task-aligned One-stage Object Detection (Feng et al. 2021). No gradients pass through here, and nothing waits for
the device as long as the targets are on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn.head import Raw, decode_boxes, decoding_dtype

TOP_K = 13  # candidates per labelled box
IOU_POWER = 6  # alignment = score * IoU ** 6
EPSILON = 1e-9
BACKGROUND = -1


@dataclass(frozen=True)
class Assignment:
    """What each of A anchors of N pictures should predict."""

    classes: Tensor  # (N, A) int64, `BACKGROUND` where the anchor answers for no box
    boxes: Tensor  # (N, A, 4) float, xyxy in pixels of the input; for background any finite numbers
    scores: Tensor  # (N, A) float in 0..1: the score to predict for that class, and the box's weight; 0 for background


@torch.no_grad()
def assign(raw: Raw, targets: Tensor) -> Assignment:
    """Assigns the boxes of a batch to the raw outputs of a network in training mode (`head.raw_outputs`).

    Args:
        raw: for N pictures; half-precision logits are taken to float32.
        targets: `(M, 6)` float32, one row per labelled box: picture 0..N-1, class, x1, y1, x2, y2 in pixels of the
            input. Rows may come in any order, boxes may be empty or leave the picture, M may be 0. Best left on the CPU
            whatever the device of `raw`: reading them elsewhere waits for that device.

    Raises:
        ValueError: `targets` has another shape, values that are not finite, or pictures or classes out of range.
    """
    class_logits, box_logits, _, points, _, strides = raw
    pictures, _, num_classes = class_logits.shape
    dtype = decoding_dtype(box_logits)
    boxes = decode_boxes(box_logits.to(dtype), points / strides, strides)
    classes, labelled = pad_targets(targets, pictures, num_classes)
    return assign_task_aligned(
        class_logits.to(dtype).sigmoid(),
        boxes,
        points,
        classes.to(boxes.device, non_blocking=True),
        labelled.to(boxes, non_blocking=True),
    )


def pad_targets(targets: Tensor, pictures: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Rows `(M, 6)` as `assign` takes them to classes `(N, G)` int64 and boxes `(N, G, 4)`, G at least 1.

    A picture's boxes keep their order; boxes of zeros with class 0 come after them, which contain no anchor point.

    Raises:
        ValueError: as for `assign`.
    """
    if targets.ndim != 2 or targets.shape[1] != 6:
        raise ValueError(
            f"assign: targets must have shape (M, 6), got {tuple(targets.shape)}; "
            "the columns are picture class x1 y1 x2 y2"
        )
    finite = targets.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(f"assign: targets must be finite, got {targets[~finite][0].tolist()}")
    picture, classes = targets[:, :2].long().unbind(dim=1)
    for name, column, count in (("pictures", picture, pictures), ("classes", classes, num_classes)):
        outside = (column < 0) | (column >= count)
        if outside.any():
            raise ValueError(f"assign: targets must name {name} from 0 to {count - 1}, got {column[outside][0].item()}")

    picture, order = picture.sort(stable=True)
    counts = picture.bincount(minlength=pictures)
    place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[picture]
    most = max(1, int(counts.max()))
    padded_classes = classes.new_zeros(pictures, most)
    padded_boxes = targets.new_zeros(pictures, most, 4)
    padded_classes[picture, place] = classes[order]
    padded_boxes[picture, place] = targets[order, 2:]
    return padded_classes, padded_boxes


@torch.no_grad()
def assign_task_aligned(
    scores: Tensor, boxes: Tensor, points: Tensor, classes: Tensor, labelled: Tensor, *, top_k: int = TOP_K
) -> Assignment:
    """Assigns G labelled boxes per picture to A anchors (Feng et al. 2021, section 3.2).

    The alignment of a labelled box and an anchor is the anchor's score for the box's class times the sixth power of
    their IoU. Candidates of a box are, of the `top_k` best aligned anchors, those whose point lies inside of it. An
    anchor that several boxes want goes to the one of all the picture's boxes that overlaps its prediction most, the
    first of equal ones. The scores to predict are the alignments, scaled per box: its highest becomes its highest IoU.

    Args:
        scores: `(N, A, C)` float, predicted, 0..1.
        boxes: `(N, A, 4)` float, predicted, xyxy in pixels.
        points: `(A, 2)` float, x and y of the anchors in pixels.
        classes: `(N, G)` int64, G at least 1.
        labelled: `(N, G, 4)` float, xyxy in pixels; rows of zeros at the end are padding.
        top_k: candidates per box at most.
    """
    pictures = torch.arange(len(scores), device=scores.device)
    ious = pairwise_iou(labelled, boxes)  # (N, G, A), as all below where nothing else is said
    alignments = scores.mT[pictures[:, None], classes] * ious.pow(IOU_POWER)
    inside = contains(labelled, points)
    best = alignments.mul(inside).topk(min(top_k, len(points)), dim=2).indices  # (N, G, top_k)
    candidates = torch.zeros_like(inside).scatter_(2, best, True) & inside

    claims = candidates.sum(dim=1)  # (N, A)
    # Padding overlaps nothing and comes last, so the first box of the highest IoU is always a real one.
    owners = torch.where(claims > 1, ious.argmax(dim=1), candidates.int().argmax(dim=1))  # (N, A)
    assigned = claims > 0

    own_alignments = alignments.gather(1, owners[:, None])[:, 0] * assigned  # (N, A)
    own_ious = ious.gather(1, owners[:, None])[:, 0] * assigned
    nothing = alignments.new_zeros(classes.shape)  # (N, G)
    best_alignments = nothing.scatter_reduce(1, owners, own_alignments, "amax")
    best_ious = nothing.scatter_reduce(1, owners, own_ious, "amax")
    scale = best_ious / (best_alignments + EPSILON)
    return Assignment(
        classes=classes.gather(1, owners).where(assigned, BACKGROUND),
        boxes=labelled[pictures[:, None], owners],
        scores=own_alignments * scale.gather(1, owners),
    )


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU `(N, G, A)` of every box `(N, G, 4)` with every other one `(N, A, 4)`, xyxy; 0 where both are empty."""
    left, top, right, bottom = boxes[:, :, None].unbind(dim=-1)  # (N, G, 1)
    other_left, other_top, other_right, other_bottom = others[:, None].unbind(dim=-1)  # (N, 1, A)
    width = torch.minimum(right, other_right).sub_(torch.maximum(left, other_left)).clamp_(min=0)
    height = torch.minimum(bottom, other_bottom).sub_(torch.maximum(top, other_top)).clamp_(min=0)
    overlap = width.mul_(height)
    area = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    other_area = (other_right - other_left) * (other_bottom - other_top)
    return overlap / (area + other_area - overlap + EPSILON)


def contains(boxes: Tensor, points: Tensor) -> Tensor:
    """Whether each box `(N, G, 4)` has each point `(A, 2)` strictly inside: `(N, G, A)` bool."""
    left, top, right, bottom = boxes[:, :, None].unbind(dim=-1)  # (N, G, 1)
    x, y = points.unbind(dim=-1)  # (A,)
    across = torch.minimum(x - left, right - x) > EPSILON
    return across & (torch.minimum(y - top, bottom - y) > EPSILON)
