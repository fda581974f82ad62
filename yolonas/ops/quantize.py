"""Fake quantisation: rounds to the values an int8 tensor can hold, with a straight-through gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _native
from ._dispatch import all_torch, is_torch, torch_ops


def fake_quantize(x: Any, scale: Any, *, axis: int | None = None, quant_min: int = -128, quant_max: int = 127) -> Any:
    """`clamp(rint(x / scale), quant_min, quant_max) * scale`, symmetric (zero point 0), ties to even (Jacob et al.
    2018).

    Bit-equal to `torch.fake_quantize_per_tensor_affine` and `_per_channel_affine` with zero point 0 (NaN becomes the
    lowest value; infinity the highest, where torch per channel overflows beyond 2^63 to the lowest). For torch tensors
    the gradient with respect to x passes unchanged where the integer is inside the range and is 0 outside; scale gets
    none.

    Args:
        x: float32 of any shape, contiguous.
        scale: float32, positive: one value, or one per slice of x along `axis`; an array of x's kind or plain numbers.
        axis: None per tensor; otherwise the channel axis.

    Returns:
        float32 of x's shape.
    """
    array = scale if is_torch(scale) or isinstance(scale, np.ndarray) else None
    as_torch = all_torch("fake_quantize", {"x": x}, {"scale": array})
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise ValueError(f"fake_quantize: axis must name an axis of x {tuple(x.shape)}, got {axis}")
    channel_axis = -1 if axis is None else axis % x.ndim
    if array is None and not isinstance(scale, (int, float, np.number, list, tuple)):
        raise TypeError(f"fake_quantize: scale must be an array or real numbers, got {type(scale).__name__}")
    if as_torch:
        if array is None:
            scale = x.new_tensor(scale)
        return torch_ops().fake_quantize(x, scale, channel_axis, quant_min, quant_max)
    scale = np.asarray(scale)
    if scale.dtype.kind not in "fiu":
        raise TypeError(f"fake_quantize: scale must be an array of real numbers, got {scale.dtype}")
    scale = np.ascontiguousarray(scale, np.float32).reshape(-1)
    out = np.empty(x.shape, np.float32)
    _native.cpu().fake_quantize(x, scale, out, axis=channel_axis, quant_min=quant_min, quant_max=quant_max)
    return out
