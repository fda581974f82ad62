"""Fused convolution in NHWC: the seam between a plan of layers and the algorithms that run them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _native
from ._dispatch import all_torch, torch_ops


def conv2d_bias_act(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    residual: Any = None,
    stride: int = 1,
    padding: int = 0,
    relu: bool = True,
    residual_scale: float = 1.0,
) -> Any:
    """`act(conv2d(x, weight) + bias) + residual_scale * residual`, groups 1, dilation 1, zero padding.

    The activation comes before the residual, as in YOLO-NAS's bottleneck `alpha * x + relu(conv(...))`. Inference only.

    Args:
        x: float32 `(N, H, W, C)`. weight: float32 `(K, kh, kw, C)`. bias: float32 `(K,)` or None.
        residual: float32 of the result's shape, or None.
        relu: False for no activation.

    Returns:
        float32 `(N, H', W', K)` with `H' = (H + 2 * padding - kh) // stride + 1`.

    Raises:
        ValueError: shapes do not fit, or an array is not C-contiguous. TypeError: a dtype is not float32.
    """
    if all_torch("conv2d_bias_act", {"x": x, "weight": weight}, {"bias": bias, "residual": residual}):
        return torch_ops().conv2d_bias_act(x, weight, bias, residual, stride, padding, relu, float(residual_scale))
    out = np.empty(conv2d_shape(x.shape, weight.shape, stride, padding), np.float32)
    _native.cpu().conv2d_bias_act(
        x, weight, bias, residual, out, stride=stride, padding=padding, relu=relu, residual_scale=residual_scale
    )
    return out


def conv2d_shape(x: Any, weight: Any, stride: int, padding: int) -> tuple[Any, Any, Any, Any]:
    """Shape of the result for shapes `(N, H, W, C)` and `(K, kh, kw, C)`."""
    if len(x) != 4 or len(weight) != 4:
        raise ValueError(
            "conv2d_bias_act: x must have shape (N, H, W, C) and weight (K, kh, kw, C), got "
            f"{tuple(x)} and {tuple(weight)}"
        )
    if not 1 <= stride <= 1024 or not 0 <= padding <= 1023:
        raise ValueError(
            f"conv2d_bias_act: stride must lie in 1..1024 and padding in 0..1023, got {stride} and {padding}"
        )
    height, width = ((x[i] + 2 * padding - weight[i]) // stride + 1 for i in (1, 2))
    if height < 1 or width < 1:
        raise ValueError(
            f"conv2d_bias_act: a kernel of {weight[1]}x{weight[2]} must fit into the padded input, got x {tuple(x)} "
            f"and padding {padding}"
        )
    return (x[0], height, width, weight[0])
