"""Registers the ops as `torch.ops.yolonas.*`, each with a fake kernel; fake_quantize with its gradient as well.

The CPU implementations hand torch's memory to the native module without copying; torch allocates every result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import _native
from ._dispatch import class_mask
from .conv import conv2d_shape
from .decode import _anchors

Tensor = torch.Tensor


def _operator(name: str, schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Registers a CPU implementation. The schema is spelled out: torch versions read annotations differently."""
    return torch.library.custom_op(f"yolonas::{name}", mutates_args=(), device_types="cpu", schema=schema)


@_operator(
    "letterbox",
    "(Tensor image, SymInt[] frame, SymInt[] resized, SymInt[] offset, SymInt pad_value, "
    "bool swap_channels, bool hwc, float[] mean, float[] divisor) "
    "-> Tensor",
)
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
    out = torch.empty((*frame, 3) if hwc else (3, *frame), dtype=torch.float32)
    _native.cpu().letterbox(
        image.detach(),
        out,
        resized_h=resized[0],
        resized_w=resized[1],
        top=offset[0],
        left=offset[1],
        pad_value=pad_value,
        swap_channels=swap_channels,
        hwc=hwc,
        mean=tuple(mean),
        divisor=tuple(divisor),
    )
    return out


@letterbox.register_fake
def _(image, frame, resized, offset, pad_value, swap_channels, hwc, mean, divisor):
    return image.new_empty((*frame, 3) if hwc else (3, *frame), dtype=torch.float32)


@_operator(
    "decode",
    "(Tensor[] cls, Tensor[] reg, float[] strides, bool channels_last) -> (Tensor, Tensor)",
)
def decode(
    cls: Sequence[Tensor], reg: Sequence[Tensor], strides: Sequence[float], channels_last: bool
) -> tuple[Tensor, Tensor]:
    boxes, scores = _decode_outputs(cls, channels_last)
    cls, reg = _detached(cls), _detached(reg)
    _native.cpu().decode(cls, reg, list(strides), channels_last=channels_last, boxes=boxes, scores=scores)
    return boxes, scores


@decode.register_fake
def _(cls, reg, strides, channels_last):
    return _decode_outputs(cls, channels_last)


@_operator(
    "decode_candidates",
    "(Tensor[] cls, Tensor[] reg, float[] strides, float conf, SymInt top_k, bool multi_label, "
    "SymInt[]? classes, bool channels_last) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
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
    boxes, scores, labels, counts = _candidate_outputs(cls, top_k)
    count = cls[0].shape[3 if channels_last else 1]
    _native.cpu().decode_candidates(
        _detached(cls),
        _detached(reg),
        list(strides),
        channels_last=channels_last,
        conf=conf,
        top_k=top_k,
        multi_label=multi_label,
        class_mask=class_mask("decode_candidates", classes, count),
        boxes=boxes,
        scores=scores,
        classes=labels,
        counts=counts,
    )
    return boxes, scores, labels, counts


@decode_candidates.register_fake
def _(cls, reg, strides, conf, top_k, multi_label, classes, channels_last):
    return _candidate_outputs(cls, top_k)


@_operator(
    "nms_candidates",
    "(Tensor boxes, Tensor scores, Tensor classes, Tensor counts, float iou, SymInt max_det, bool agnostic) "
    "-> (Tensor, Tensor)",
)
def nms_candidates(
    boxes: Tensor, scores: Tensor, classes: Tensor, counts: Tensor, iou: float, max_det: int, agnostic: bool
) -> tuple[Tensor, Tensor]:
    detections, kept = _detection_outputs(boxes, max_det)
    _native.cpu().nms_candidates(
        *_detached((boxes, scores, classes, counts)),
        iou=iou,
        max_det=max_det,
        agnostic=agnostic,
        detections=detections,
        counts=kept,
    )
    return detections, kept


@nms_candidates.register_fake
def _(boxes, scores, classes, counts, iou, max_det, agnostic):
    return _detection_outputs(boxes, max_det)


@_operator(
    "batched_nms",
    "(Tensor boxes, Tensor scores, float conf, float iou, SymInt top_k, SymInt max_det, "
    "bool multi_label, bool agnostic, SymInt[]? classes) "
    "-> (Tensor, Tensor)",
)
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
    detections, counts = _detection_outputs(boxes, max_det)
    _native.cpu().batched_nms(
        boxes.detach(),
        scores.detach(),
        conf=conf,
        iou=iou,
        top_k=top_k,
        max_det=max_det,
        multi_label=multi_label,
        agnostic=agnostic,
        class_mask=class_mask("batched_nms", classes, scores.shape[2]),
        detections=detections,
        counts=counts,
    )
    return detections, counts


@batched_nms.register_fake
def _(boxes, scores, conf, iou, top_k, max_det, multi_label, agnostic, classes):
    return _detection_outputs(boxes, max_det)


@_operator(
    "conv2d_bias_act",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, SymInt stride, SymInt padding, bool relu, "
    "float residual_scale) "
    "-> Tensor",
)
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
    out = torch.empty(conv2d_shape(x.shape, weight.shape, stride, padding), dtype=torch.float32)
    _native.cpu().conv2d_bias_act(
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


@conv2d_bias_act.register_fake
def _(x, weight, bias, residual, stride, padding, relu, residual_scale):
    return x.new_empty(conv2d_shape(x.shape, weight.shape, stride, padding))


@_operator(
    "fake_quantize",
    "(Tensor x, Tensor scale, SymInt axis, SymInt quant_min, SymInt quant_max) -> Tensor",
)
def fake_quantize(x: Tensor, scale: Tensor, axis: int, quant_min: int, quant_max: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _native.cpu().fake_quantize(x.detach(), _flat(scale), out, axis=axis, quant_min=quant_min, quant_max=quant_max)
    return out


@fake_quantize.register_fake
def _(x, scale, axis, quant_min, quant_max):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_operator(
    "fake_quantize_backward",
    "(Tensor grad, Tensor x, Tensor scale, SymInt axis, SymInt quant_min, SymInt quant_max) -> Tensor",
)
def fake_quantize_backward(grad: Tensor, x: Tensor, scale: Tensor, axis: int, quant_min: int, quant_max: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _native.cpu().fake_quantize_backward(
        grad.detach().contiguous(), x.detach(), _flat(scale), out, axis=axis, quant_min=quant_min, quant_max=quant_max
    )
    return out


@fake_quantize_backward.register_fake
def _(grad, x, scale, axis, quant_min, quant_max):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_for_backward(ctx, inputs, output):
    x, scale, ctx.axis, ctx.quant_min, ctx.quant_max = inputs
    ctx.save_for_backward(x, scale)


def _backward(ctx, grad):
    x, scale = ctx.saved_tensors
    return fake_quantize_backward(grad, x, scale, ctx.axis, ctx.quant_min, ctx.quant_max), None, None, None, None


fake_quantize.register_autograd(_backward, setup_context=_save_for_backward)


def _flat(scale: Tensor) -> Tensor:
    return scale.detach().reshape(-1).contiguous()


def _detached(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach() for tensor in tensors]


def _decode_outputs(cls: Sequence[Tensor], channels_last: bool) -> tuple[Tensor, Tensor]:
    batch, anchors, classes = _anchors("decode", cls, channels_last)
    return cls[0].new_empty((batch, anchors, 4)), cls[0].new_empty((batch, anchors, classes))


def _candidate_outputs(cls: Sequence[Tensor], top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = cls[0].shape[0]
    return (
        cls[0].new_empty((batch, top_k, 4)),
        cls[0].new_empty((batch, top_k)),
        cls[0].new_empty((batch, top_k), dtype=torch.int32),
        cls[0].new_empty((batch,), dtype=torch.int64),
    )


def _detection_outputs(boxes: Tensor, max_det: int) -> tuple[Tensor, Tensor]:
    return boxes.new_empty((boxes.shape[0], max_det, 6)), boxes.new_empty((boxes.shape[0],), dtype=torch.int64)


if _native.cuda() is not None:
    from . import _torch_cuda  # noqa: F401 - importing it registers the CUDA kernels
