"""The loss of the detectors: classes, overlap of the boxes and distributions of their sides, as PP-YOLOE has it.

Everything is computed for all anchors and weighted, with weight 0 where an anchor answers for no box: that costs little
beside a network and needs no numbers from the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn import functional

from ..config import REG_MAX
from ..nn.head import BINS, Raw, decode_boxes, decoding_dtype
from .assigner import Assignment, assign

NEGATIVE_WEIGHT = 0.75  # of the varifocal loss
LARGEST_DISTANCE = REG_MAX - 0.01  # in cells: both bins beside it exist
EPSILON = 1e-10  # square cells


class LossTerms(NamedTuple):
    """The loss and its three weighted terms: float scalars on the device. Only `total` has gradients."""

    total: Tensor
    classes: Tensor
    iou: Tensor
    dfl: Tensor


@dataclass(frozen=True)
class DetectionLoss:
    """The weighted sum of three terms, divided by the sum of the batch's assigned scores (or by 1 if that is more).

    - classes: `class_loss` of every anchor and class;
    - iou: `1 - generalized_iou` of every assigned anchor, times its score;
    - dfl: `distribution_focal_loss` of every assigned anchor, times its score.

    In distributed training the divisor is the mean over all processes, so the mean of their losses and gradients is
    that of the whole batch.
    """

    class_weight: float = 1.0
    iou_weight: float = 2.5
    dfl_weight: float = 0.5
    varifocal: bool = True

    def __call__(self, raw: Raw, targets: Tensor) -> LossTerms:
        """The loss of a batch of N pictures.

        Args:
            raw: what a network in training mode returns beside its predictions (`head.raw_outputs`). Computed in
                float32 or float64, inside autocast as well.
            targets: `(M, 6)` float32, one row per labelled box: picture 0..N-1, class, x1, y1, x2, y2 in pixels of the
                input, in any order, best on the CPU: see `assigner.assign`. M may be 0.

        Raises:
            ValueError: `targets` has another shape, values that are not finite, or pictures or classes out of range.
        """
        return self.of_assignment(raw, assign(raw, targets))

    def of_assignment(self, raw: Raw, assignment: Assignment) -> LossTerms:
        """The loss if the anchors are to predict what `assignment` says."""
        class_logits, box_logits, _, points, _, strides = raw
        dtype = decoding_dtype(box_logits)  # autocast leaves it alone: there is no matrix product below
        class_logits, box_logits = class_logits.to(dtype), box_logits.to(dtype)
        cells = points / strides  # (A, 2), as all below in units of the anchor's stride
        boxes = decode_boxes(box_logits, cells, strides) / strides  # (N, A, 4)
        wanted = assignment.boxes / strides
        distances = torch.cat([cells - wanted[..., :2], wanted[..., 2:] - cells], dim=-1)

        is_class = assignment.classes[..., None] == torch.arange(class_logits.shape[-1], device=class_logits.device)
        scores = is_class * assignment.scores[..., None]  # (N, A, C)
        divisor = mean_over_processes(assignment.scores.sum()).clamp(min=1)
        classes = class_loss(class_logits, scores, is_class, varifocal=self.varifocal).sum()
        iou = ((1 - generalized_iou(boxes, wanted)) * assignment.scores).sum()
        dfl = (distribution_focal_loss(box_logits, distances) * assignment.scores).sum()
        weights = (self.class_weight, self.iou_weight, self.dfl_weight)
        terms = [weight * term / divisor for weight, term in zip(weights, (classes, iou, dfl), strict=True)]
        return LossTerms(sum(terms), *(term.detach() for term in terms))


def class_loss(logits: Tensor, wanted: Tensor, is_class: Tensor, *, varifocal: bool = True) -> Tensor:
    """Cross-entropy with the scores `wanted` as targets, weighted; `(...)` like its three tensors.

    The weight is the score itself where `is_class` (bool), elsewhere three quarters of the squared prediction (Zhang et
    al. 2021, VarifocalNet); or everywhere the squared error of the prediction (Li et al. 2020, quality focal loss).
    Gradients flow through the weights too.
    """
    predicted = logits.sigmoid()
    if varifocal:
        weights = torch.where(is_class, wanted, NEGATIVE_WEIGHT * predicted.square())
    else:
        weights = (predicted - wanted).square()
    return weights * functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """GIoU `(...)`, above -1 and at most 1, of boxes `(..., 4)` and `(..., 4)`, xyxy (Rezatofighi et al. 2019).

    The IoU minus the share of the smallest box around both that neither covers; 0 for two empty boxes in one place.
    """
    left, top, right, bottom = boxes.unbind(dim=-1)
    other_left, other_top, other_right, other_bottom = others.unbind(dim=-1)
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    overlap = width * height
    areas = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top)
    union = areas - overlap + EPSILON
    hull_width = torch.maximum(right, other_right) - torch.minimum(left, other_left)
    hull_height = torch.maximum(bottom, other_bottom) - torch.minimum(top, other_top)
    hull = hull_width * hull_height + EPSILON
    return overlap / union - (hull - union) / hull


def distribution_focal_loss(box_logits: Tensor, distances: Tensor) -> Tensor:
    """How far the four distributions are from the wanted distances, mean over the sides, `(...)` (Li et al. 2020).

    Cross-entropy to the two bins beside a distance, which share its weight by how near they are.

    Args:
        box_logits: `(..., 68)`, four sides of 17 bins.
        distances: `(..., 4)` left, top, right, bottom in cells, finite, clipped to 0..15.99.
    """
    distances = distances.clamp(0, LARGEST_DISTANCE)
    below = distances.floor()
    above_share = distances - below
    bins = torch.stack([below, below + 1], dim=-1).long()  # (..., 4, 2)
    shares = torch.stack([1 - above_share, above_share], dim=-1)
    log_probabilities = box_logits.unflatten(-1, (4, BINS)).log_softmax(dim=-1).gather(-1, bins)
    return -(shares * log_probabilities).sum(dim=-1).mean(dim=-1)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean over all processes of distributed training; the value itself where there is no such training."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
