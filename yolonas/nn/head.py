"""The three prediction heads, and the decoding of their outputs into boxes and scores (in plain torch, differentiable).

No thresholds and no suppression here: every anchor comes out.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..config import REG_MAX, STRIDES, Variant
from .blocks import ConvUnit

BINS = REG_MAX + 1
PRIOR = 0.01  # the class probability that an untrained network starts with
ANCHOR_CELLS = 5.0  # side of the square anchor boxes, in cells; part of the raw outputs, and read by nothing here

Raw = tuple[Tensor, Tensor, Tensor, Tensor, list[int], Tensor]


def head_unit(channels_in: int, channels_out: int, kernel: int, *, form: str) -> nn.Sequential:
    """A convolution unit under one more key, `seq`, as checkpoints have it in the heads."""
    return nn.Sequential(OrderedDict(seq=ConvUnit(channels_in, channels_out, kernel, form=form)))


class Head(nn.Module):
    """Predictions for one level: class logits `(N, C, h, w)` and box logits `(N, 68, h, w)` (four sides of 17 bins)."""

    def __init__(self, channels_in: int, width: int, num_classes: int, *, form: str = "training"):
        super().__init__()
        self.stem = head_unit(channels_in, width, 1, form=form)
        self.cls_convs = nn.Sequential(head_unit(width, width, 3, form=form))
        self.reg_convs = nn.Sequential(head_unit(width, width, 3, form=form))
        self.cls_pred = nn.Conv2d(width, num_classes, 1)
        self.reg_pred = nn.Conv2d(width, 4 * BINS, 1)
        nn.init.constant_(self.cls_pred.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.cls_pred(self.cls_convs(x)), self.reg_pred(self.reg_convs(x))


class Heads(nn.Module):
    """One head per level. Returns the class logits and the box logits, each a list from fine to coarse."""

    def __init__(self, variant: Variant, num_classes: int, *, form: str = "training"):
        super().__init__()
        p3, p4, p5 = variant.up[1].channels, variant.down[0].channels, variant.down[1].channels
        self.head1 = Head(p3, variant.heads[0], num_classes, form=form)
        self.head2 = Head(p4, variant.heads[1], num_classes, form=form)
        self.head3 = Head(p5, variant.heads[2], num_classes, form=form)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        levels = [self.head1(p3), self.head2(p4), self.head3(p5)]
        return [level[0] for level in levels], [level[1] for level in levels]


def flatten_levels(maps: list[Tensor]) -> Tensor:
    """Maps `(N, C, h, w)` of all levels to `(N, A, C)`: fine to coarse, rows first, then columns."""
    return torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)


def anchor_grid(maps: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Centres `(A, 2)` of all cells as x, y in cells, and the stride `(A, 1)` of each in pixels."""
    points, strides = [], []
    for level, stride in zip(maps, STRIDES, strict=True):
        height, width = level.shape[2:]
        y = torch.arange(height, dtype=dtype, device=level.device) + 0.5
        x = torch.arange(width, dtype=dtype, device=level.device) + 0.5
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack([columns, rows], dim=-1).reshape(-1, 2))
        strides.append(torch.full((height * width, 1), stride, dtype=dtype, device=level.device))
    return torch.cat(points), torch.cat(strides)


def decode(class_maps: list[Tensor], box_maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes `(N, A, 4)` as xyxy in input pixels, not clipped, and scores `(N, A, C)` in 0..1.

    Half-precision logits give float32 results: half has too few bits for pixel coordinates.
    """
    box_logits = flatten_levels(box_maps)
    dtype = decoding_dtype(box_logits)
    points, strides = anchor_grid(box_maps, dtype)
    boxes = decode_boxes(box_logits.to(dtype), points, strides)
    return boxes, flatten_levels(class_maps).to(dtype).sigmoid()


def decode_boxes(box_logits: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Box logits `(N, A, 68)` to boxes `(N, A, 4)`, xyxy pixels; points `(A, 2)` in cells, strides `(A, 1)` in pixels.

    Channel = side * 17 + bin, sides left, top, right, bottom. A distance is the mean of its bins' distribution.
    """
    bins = torch.arange(BINS, dtype=box_logits.dtype, device=box_logits.device)
    # Multiply and sum, not a matrix product: that would run in TF32 on some GPUs.
    distances = (box_logits.unflatten(-1, (4, BINS)).softmax(dim=-1) * bins).sum(dim=-1)  # (N, A, 4), in cells
    left_top, right_bottom = distances.chunk(2, dim=-1)
    return torch.cat([points - left_top, points + right_bottom], dim=-1) * strides


def raw_outputs(class_maps: list[Tensor], box_maps: list[Tensor]) -> Raw:
    """What a loss needs: class logits `(N, A, C)`, box logits `(N, A, 68)`, anchor boxes `(A, 4)` as xyxy in
    pixels, anchor points `(A, 2)` as x, y in pixels too (decoding has them in cells), the number of anchors per level,
    and strides `(A, 1)` in pixels.
    """
    box_logits = flatten_levels(box_maps)
    points, strides = anchor_grid(box_maps, decoding_dtype(box_logits))
    points = points * strides
    half_side = strides * (ANCHOR_CELLS / 2)
    anchor_boxes = torch.cat([points - half_side, points + half_side], dim=-1)
    counts = [level.shape[2] * level.shape[3] for level in box_maps]
    return flatten_levels(class_maps), box_logits, anchor_boxes, points, counts, strides


def decoding_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, float32 for everything else."""
    return torch.promote_types(logits.dtype, torch.float32)
