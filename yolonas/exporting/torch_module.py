"""A network as other runtimes run it: picture in, what an `ExportSpec` says out, in torch ops that trace and export.

No op has a shape or a branch that depends on data, and none names a device, so that files serve all devices. What the
outputs mean is that of `nn.head.decode` and of `ops.batched_nms`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import REG_MAX, STRIDES, DetectSettings
from ..nn import YoloNAS, fuse_
from .spec import MOST_ROWS, OUTPUTS, SUPPRESSED, ExportSpec

BINS = REG_MAX + 1
MOST_CANDIDATES = 4096  # of suppression, which compares all of them with all
MOST_CELLS = 16384 // STRIDES[0]  # along a side of the largest picture
FEWEST_ANCHORS = sum((STRIDES[-1] // stride) ** 2 for stride in STRIDES)  # of the smallest picture
UNUSED = -1.0  # fills unused places of the outputs; also the score of what is not or no longer to be chosen


class Deployed(nn.Module):
    """What a file computes.

    Args:
        model: in any form; it is copied, and the copy is fused.
        spec: what to take and to give. "flat" is no output of this module.

    Raises:
        NotImplementedError: the network is quantised, or the outputs are "flat".
        ValueError: more boxes or candidates than a graph of suppression has room for.
    """

    def __init__(self, model: YoloNAS, spec: ExportSpec):
        super().__init__()
        check_torch_spec(model, spec)
        self.spec = spec
        self.num_classes = model.num_classes
        self.dtype = torch.float16 if spec.precision == "fp16" else torch.float32
        network = fuse_(copy.deepcopy(model).eval()).requires_grad_(False)
        mean = torch.tensor(spec.preprocess.mean, dtype=torch.float32)
        divisor = torch.tensor(spec.preprocess.divisor, dtype=torch.float32)
        if spec.swaps_channels:
            stem = network.backbone.stem.conv.rbr_reparam
            stem.weight.copy_(stem.weight.flip(1))
            mean, divisor = mean.flip(0), divisor.flip(0)
        self.network = network.to(device="cpu", dtype=self.dtype)
        self.register_buffer("mean", mean.view(3, 1, 1))
        self.register_buffer("divisor", divisor.view(3, 1, 1))
        self.register_buffer(
            "cells", torch.arange(MOST_CELLS, dtype=torch.float32) + 0.5
        )  # centres, in units of the stride
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32))
        self.eval()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`x` as `spec` describes it. Returns the tensors of `spec.outputs` in their order, one alone as it is."""
        spec = self.spec
        cls, reg = self._heads(x)
        if spec.outputs == "heads":
            return tuple(level.contiguous() for level in (*cls, *reg))
        boxes = torch.cat([self._boxes(*level) for level in zip(reg, STRIDES, strict=True)], dim=1)
        scores = torch.cat([_cells_last(level) for level in cls], dim=1).sigmoid()
        if spec.outputs == "raw":
            return boxes, scores
        number, boxes, scores, classes = self._detect(boxes, scores)
        if spec.outputs == "batch":
            return number, boxes, scores, classes
        picture = torch.ones_like(number).cumsum(0) - 1  # (B, 1)
        picture = picture.expand(-1, spec.settings.max_det).where(classes >= 0, -1)
        return torch.cat(
            [picture[..., None].float(), boxes, scores[..., None], classes[..., None].float()], dim=2
        ).flatten(0, 1)

    def _heads(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits `(B, K, h, w)` and box logits `(B, 68, h, w)` of the levels, float32."""
        if self.spec.nhwc:
            x = x.permute(0, 3, 1, 2)
        if self.spec.uint8:
            x = (x.float() - self.mean) / self.divisor
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        # Not forward_heads: its checks of the input would become part of a traced graph.
        cls, reg = self.network.heads(*self.network.neck(*self.network.backbone(x)))
        return [level.float() for level in cls], [level.float() for level in reg]

    def _boxes(self, reg: Tensor, stride: int) -> Tensor:
        """Boxes `(B, h * w, 4)` of a level, xyxy in pixels."""
        height, width = reg.shape[2:]
        logits = reg.permute(0, 2, 3, 1).unflatten(3, (4, BINS))
        left, top, right, bottom = (logits.softmax(4) * self.bins).sum(4).unbind(3)  # (B, h, w) each
        x, y = self.cells[:width], self.cells[:height, None]
        return torch.stack([x - left, y - top, x + right, y + bottom], dim=3).flatten(1, 2) * stride

    def _detect(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        settings, (height, width) = self.spec.settings, self.spec.preprocess.size
        if self.spec.dynamic_size:
            missing = max(0, settings.top_k - FEWEST_ANCHORS)
            boxes = F.pad(boxes, (0, 0, 0, missing))
            scores = F.pad(scores, (0, 0, 0, missing), value=UNUSED)
            anchors = settings.top_k
        else:
            anchors = sum((height // stride) * (width // stride) for stride in STRIDES)
        candidates = choose(boxes, scores, settings, anchors=anchors, classes=self.num_classes)
        return suppress(*candidates, settings)


def check_torch_spec(model: YoloNAS, spec: ExportSpec) -> None:
    """Raises what `Deployed` raises, before anything is computed."""
    if model.activation_scales or spec.precision == "int8":
        raise NotImplementedError(
            "export: precision must be fp32 or fp16 for torchscript and pt2, got int8; "
            "onnx, openvino and engine take int8"
        )
    if spec.outputs == "flat":
        others = ", ".join(name for name in OUTPUTS if name != "flat")
        raise NotImplementedError(
            f"export: outputs must be one of {others} for torchscript and pt2, got 'flat', whose number of rows "
            "depends on the picture; 'rows' has the same rows and a fixed number of them"
        )
    if spec.outputs not in SUPPRESSED:
        return
    for name, most, why in (
        ("max_det", MOST_ROWS, "each takes steps of its own in the graph"),
        ("top_k", MOST_CANDIDATES, "the graph compares all with all"),
    ):
        value = getattr(spec.settings, name)
        if not 1 <= value <= most:
            raise ValueError(
                f"export: {name} must lie in 1..{most} for outputs {spec.outputs!r}, got {value}; {why}; "
                f"say {name}={most}, or outputs='raw'"
            )


def choose(
    boxes: Tensor, scores: Tensor, settings: DetectSettings, *, anchors: int, classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The `settings.top_k` best candidates of each picture, or all if there cannot be more.

    Args:
        boxes: `(B, A, 4)`. scores: `(B, A, K)`, NaN for none. anchors: min(A, top_k) or A, known without looking at
            the shape. classes: K.

    Returns:
        boxes `(B, N, 4)`, scores `(B, N)` and classes `(B, N)` int64, best first, equal scores by anchor, then class;
        the score is `UNUSED` where there is no candidate or its box is not finite.
    """
    passes = scores > settings.conf if settings.multi_label else scores >= settings.conf
    scores = scores.where(passes, UNUSED)
    # No candidate belongs to an anchor whose best class is behind those of top_k others.
    count = min(settings.top_k, anchors)
    anchor = _best(scores.amax(2), count)
    if settings.multi_label:
        anchor = anchor.sort(1).values  # so that pairs stand in the order that equal scores keep
        pairs = _rows(scores, anchor, classes).flatten(1)
        pair = _best(pairs, min(settings.top_k, count * classes))
        score, label = pairs.gather(1, pair), pair % classes
        anchor = anchor.gather(1, pair // classes)
    else:
        score, label = _rows(scores, anchor, classes).max(2)
    box = _rows(boxes, anchor, 4)
    return box, score.where(box.isfinite().all(2), UNUSED), label


def suppress(
    boxes: Tensor, scores: Tensor, classes: Tensor, settings: DetectSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Greedy suppression of what `choose` returns, in `settings.max_det` steps.

    Returns:
        number int64 `(B, 1)` and, with max_det places each, boxes `(B, N, 4)`, scores `(B, N)`, classes int64 `(B, N)`,
        best first, -1 beyond the number.
    """
    x1, y1, x2, y2 = boxes.transpose(1, 2).contiguous().unbind(1)  # five times as fast as with gaps between values
    width = (_each(torch.minimum, x2) - _each(torch.maximum, x1)).clamp(min=0)
    height = (_each(torch.minimum, y2) - _each(torch.maximum, y1)).clamp(min=0)
    shared = width * height  # (B, N, N), as all of pairs
    drops = shared / (_each(torch.add, (x2 - x1) * (y2 - y1)) - shared) > settings.iou
    if not settings.agnostic:
        drops = drops & _each(torch.eq, classes)
    order = torch.ones_like(classes).cumsum(1)
    drops = drops | _each(torch.eq, order)  # a box without area does not overlap itself

    left, kept, places = scores, [], []
    for _ in range(settings.max_det):
        score, place = left.max(1, keepdim=True)  # the first of equal ones
        left = left.masked_fill(_rows(drops, place, scores.shape[1]).squeeze(1), UNUSED)
        kept.append(score)
        places.append(place)
    scores, place = torch.cat(kept, dim=1), torch.cat(places, dim=1)
    used = scores >= 0
    boxes = _rows(boxes, place, 4).where(used[..., None], UNUSED)
    return used.sum(1, keepdim=True), boxes, scores, classes.gather(1, place).where(used, -1)


def _cells_last(level: Tensor) -> Tensor:
    """`(B, C, h, w)` to `(B, h * w, C)`."""
    return level.permute(0, 2, 3, 1).flatten(1, 2)


def _best(values: Tensor, count: int) -> Tensor:
    """Where the highest of each row `(B, N)` stand, descending, equal ones in their order; topk has no such order."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _rows(table: Tensor, index: Tensor, width: int) -> Tensor:
    """Rows `(B, n, width)` of `(B, N, width)` by their index `(B, n)`."""
    return table.gather(1, index[..., None].expand(-1, -1, width))


def _each(function: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
    """A function of two, of all pairs of `(B, N)`: `(B, N, N)`."""
    return function(values[:, :, None], values[:, None, :])
