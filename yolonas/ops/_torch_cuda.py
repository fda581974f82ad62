"""Registers the ops for CUDA tensors: kernels of `yolonas._cuda` on the current stream, without waiting for the device.

Choosing and sorting candidates is done with torch's own top-k on keys that hold score and position, so the order is the
CPU ops' order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import _native
from . import _torch
from .conv import conv2d_shape

Tensor = torch.Tensor

MASK_BYTES = 256 << 20  # memory for the pairwise verdicts of nms_candidates; at least one picture's are held
LOW_BITS = 0x7FFFFFFF


@_torch.letterbox.register_kernel("cuda")
def letterbox(
    image: Tensor,
    frame: Sequence[int],
    resized: Sequence[int],
    offset: Sequence[int],
    pad_value: int,
    swap_channels: bool,
    hwc: bool,
    mean: Sequence[float],
    divisor: Sequence[float],
) -> Tensor:
    out = image.new_empty((*frame, 3) if hwc else (3, *frame), dtype=torch.float32)
    _call(
        "letterbox",
        image,
        image.detach(),
        out,
        resized_h=resized[0],
        resized_w=resized[1],
        top=offset[0],
        left=offset[1],
        pad_value=pad_value,
        swap_channels=swap_channels,
        hwc=hwc,
        mean=list(mean),
        divisor=list(divisor),
    )
    return out


@_torch.decode.register_kernel("cuda")
def decode(
    cls: Sequence[Tensor], reg: Sequence[Tensor], strides: Sequence[float], channels_last: bool
) -> tuple[Tensor, Tensor]:
    boxes, scores = _torch._decode_outputs(cls, channels_last)
    cls, reg = _torch._detached(cls), _torch._detached(reg)
    _call("decode", boxes, cls, reg, list(strides), channels_last=channels_last, boxes=boxes, scores=scores)
    return boxes, scores


@_torch.decode_candidates.register_kernel("cuda")
def decode_candidates(
    cls: Sequence[Tensor],
    reg: Sequence[Tensor],
    strides: Sequence[float],
    conf: float,
    top_k: int,
    multi_label: bool,
    classes: Sequence[int] | None,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    boxes, scores = decode(cls, reg, strides, channels_last)
    return select_candidates("decode_candidates", boxes, scores, conf, top_k, multi_label, classes)


@_torch.nms_candidates.register_kernel("cuda")
def nms_candidates(
    boxes: Tensor, scores: Tensor, classes: Tensor, counts: Tensor, iou: float, max_det: int, agnostic: bool
) -> tuple[Tensor, Tensor]:
    detections, kept = _torch._detection_outputs(boxes, max_det)
    per_picture = _native.cuda().nms_workspace_bytes(boxes.shape[1])
    pictures = min(boxes.shape[0], max(1, MASK_BYTES // max(1, per_picture)))
    workspace = boxes.new_empty((pictures * per_picture // 8,), dtype=torch.int64)
    _call(
        "nms_candidates",
        boxes,
        *_torch._detached((boxes, scores, classes, counts)),
        iou=iou,
        max_det=max_det,
        agnostic=agnostic,
        detections=detections,
        counts=kept,
        workspace=workspace,
    )
    return detections, kept


@_torch.batched_nms.register_kernel("cuda")
def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    conf: float,
    iou: float,
    top_k: int,
    max_det: int,
    multi_label: bool,
    agnostic: bool,
    classes: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    top_k = max(1, min(top_k, scores.shape[1] * (scores.shape[2] if multi_label else 1)))
    candidates = select_candidates("batched_nms", boxes, scores, conf, top_k, multi_label, classes)
    return nms_candidates(*candidates, iou, max_det, agnostic)


@_torch.conv2d_bias_act.register_kernel("cuda")
def conv2d_bias_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: int,
    padding: int,
    relu: bool,
    residual_scale: float,
) -> Tensor:
    out = x.new_empty(conv2d_shape(x.shape, weight.shape, stride, padding), dtype=torch.float32)
    _call(
        "conv2d_bias_act",
        x,
        x.detach(),
        weight.detach(),
        None if bias is None else bias.detach(),
        None if residual is None else residual.detach(),
        out,
        stride=stride,
        padding=padding,
        relu=relu,
        residual_scale=residual_scale,
    )
    return out


@_torch.fake_quantize.register_kernel("cuda")
def fake_quantize(x: Tensor, scale: Tensor, axis: int, quant_min: int, quant_max: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    limits = {"axis": axis, "quant_min": quant_min, "quant_max": quant_max}
    _call("fake_quantize", x, x.detach(), _torch._flat(scale), out, **limits)
    return out


@_torch.fake_quantize_backward.register_kernel("cuda")
def fake_quantize_backward(grad: Tensor, x: Tensor, scale: Tensor, axis: int, quant_min: int, quant_max: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    limits = {"axis": axis, "quant_min": quant_min, "quant_max": quant_max}
    grad = grad.detach().contiguous()
    _call("fake_quantize_backward", x, grad, x.detach(), _torch._flat(scale), out, **limits)
    return out


def select_candidates(
    op: str,
    boxes: Tensor,
    scores: Tensor,
    conf: float,
    top_k: int,
    multi_label: bool,
    classes: Sequence[int] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Candidates of decoded boxes `(B, A, 4)` and scores `(B, A, K)`, chosen and ordered as the CPU ops do it.

    Returns boxes `(B, top_k, 4)`, scores `(B, top_k)`, classes int32 `(B, top_k)` and counts int64 `(B,)`; rows beyond
    the count are undefined. Works on any device and never waits for it. Memory: 8 bytes a pair, and torch's top-k.
    """
    _check_selection(op, boxes, scores, conf, top_k)
    batch, anchors, count = scores.shape
    conf = float(np.float32(conf))  # the native ops compare in float32
    if multi_label:
        best = scores.reshape(batch, anchors * count)
        index = torch.arange(anchors * count, device=scores.device).expand(batch, -1)
        passes = best > conf
    else:
        # The first class wins a tie, and a NaN never does.
        best, label = torch.where(scores.isnan(), -torch.inf, scores).max(dim=2)
        index = torch.arange(anchors, device=scores.device) * count + label
        passes = best >= conf
    passes = passes & (best < torch.inf)
    if classes is not None:
        wanted = torch.zeros(count, dtype=torch.bool, device=scores.device)
        for number in classes:
            wanted[number] = True  # a fill on the device: a copied list would make the host wait
        passes = passes & wanted[index % max(count, 1)]

    # Scores are >= 0, where the bits of a float grow with its value. No two keys are equal, so top-k has no choice.
    bits = (best + 0.0).view(torch.int32).to(torch.int64)  # -0 becomes 0
    keys = torch.where(passes, bits << 32 | (LOW_BITS - index), -1)
    keys = keys.topk(min(top_k, keys.shape[1]), dim=1).values
    keys = torch.nn.functional.pad(keys, (0, top_k - keys.shape[1]), value=-1)
    chosen = keys >= 0
    index = torch.where(chosen, LOW_BITS - (keys & LOW_BITS), 0)
    score = (keys >> 32).to(torch.int32).view(torch.float32)
    if anchors == 0:
        boxes = boxes.new_zeros((batch, 1, 4))
    box = boxes.gather(1, (index // max(count, 1))[..., None].expand(-1, -1, 4))

    # Boxes that are not finite are left out: the others move up, in order.
    chosen = chosen & box.isfinite().all(dim=2)
    order = chosen.logical_not().to(torch.int32).argsort(dim=1, stable=True)
    box = box.gather(1, order[..., None].expand(-1, -1, 4))
    label = (index % max(count, 1)).gather(1, order).to(torch.int32)
    return box, score.gather(1, order), label, chosen.sum(dim=1)


def _check_selection(op: str, boxes: Tensor, scores: Tensor, conf: float, top_k: int) -> None:
    for name, tensor in (("boxes", boxes), ("scores", scores)):
        if tensor.dtype != torch.float32:
            raise TypeError(f"{op}: {name} must be float32, got {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.device != boxes.device:
            raise ValueError(f"{op}: {name} must lie on the device of boxes, {boxes.device}, got {tensor.device}")
    if scores.ndim != 3 or boxes.shape != (*scores.shape[:2], 4):
        raise ValueError(
            f"{op}: boxes must have shape (B, A, 4) and scores (B, A, K), got {tuple(boxes.shape)} and "
            f"{tuple(scores.shape)}"
        )
    if scores.shape[2] == 0 and scores.shape[1] > 0:
        raise ValueError(f"{op}: scores must have at least one class, got {tuple(scores.shape)}")
    if scores.shape[1] * scores.shape[2] > LOW_BITS:
        raise ValueError(f"{op}: anchors * classes must be below 2^31, got {tuple(scores.shape)}")
    if not 0.0 <= conf <= 1.0:
        raise ValueError(f"{op}: conf must lie in 0..1, got {conf}")
    if top_k < 1:
        raise ValueError(f"{op}: top_k must be at least 1, got {top_k}")


def _call(op: str, on: Tensor, *arguments: Any, **settings: Any) -> None:
    """Queues a native op on the current stream of the device of `on`."""
    with torch.cuda.device(on.device):  # torch hands out a tensor's memory only while its device is current
        stream = torch.cuda.current_stream(on.device).cuda_stream
        getattr(_native.cuda(), op)(*arguments, **settings, stream=stream)
