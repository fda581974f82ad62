"""Letterbox: resize, pad, reorder channels and scale a uint8 picture in one native pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _native
from ._dispatch import all_torch, pair, torch_ops


def letterbox(
    image: Any,
    *,
    frame: tuple[int, int],
    resized: tuple[int, int],
    offset: tuple[int, int] = (0, 0),
    pad_value: int = 114,
    swap_channels: bool = False,
    layout: str = "chw",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    divisor: Sequence[float] = (255.0, 255.0, 255.0),
    out: Any = None,
) -> Any:
    """Resizes a picture, places it on a grey frame and scales it to float.

    The resampling is bit-equal to OpenCV's uint8 bilinear (`cv2.resize` with INTER_LINEAR); each value then becomes
    `(value - mean) / divisor` in float32.

    Args:
        image: uint8 `(h, w, 3)`, NumPy or torch. Pixels contiguous; rows may be apart (a crop is fine).
        frame: (height, width) of the result.
        resized: (height, width) of the picture inside the frame.
        offset: (top, left) of the picture inside the frame.
        pad_value: 0..255, around the picture, scaled like the rest.
        swap_channels: True swaps the first and the last channel (BGR <-> RGB).
        layout: "chw" for `(3, H, W)` or "hwc" for `(H, W, 3)`.
        mean, divisor: per output channel, in uint8 units.
        out: float32 array to write to, contiguous, of the result's shape; NumPy input only.

    Returns:
        float32 of shape `(3, H, W)` or `(H, W, 3)`.

    Raises:
        TypeError: image is not a uint8 array. ValueError: shapes, sizes or layout do not fit.
    """
    as_torch = all_torch("letterbox", {"image": image})
    frame, resized, offset = (
        pair("letterbox", name, value) for name, value in (("frame", frame), ("resized", resized), ("offset", offset))
    )
    if layout not in ("chw", "hwc"):
        raise ValueError(f"letterbox: layout must be 'chw' or 'hwc', got {layout!r}")
    if len(mean) != 3 or len(divisor) != 3:
        raise ValueError("letterbox: mean and divisor must have three values")
    mean, divisor = [float(value) for value in mean], [float(value) for value in divisor]
    if min(frame) < 1:
        raise ValueError(f"letterbox: frame must have at least one pixel, got {frame[0]}x{frame[1]}")
    if as_torch:
        if out is not None:
            raise ValueError("letterbox: out is for NumPy input; torch results are allocated by the op")
        return torch_ops().letterbox(
            image,
            list(frame),
            list(resized),
            list(offset),
            pad_value,
            swap_channels,
            layout == "hwc",
            mean,
            divisor,
        )
    if out is None:
        out = np.empty((*frame, 3) if layout == "hwc" else (3, *frame), np.float32)
    _native.cpu().letterbox(
        image,
        out,
        resized_h=resized[0],
        resized_w=resized[1],
        top=offset[0],
        left=offset[1],
        pad_value=pad_value,
        swap_channels=swap_channels,
        hwc=layout == "hwc",
        mean=mean,
        divisor=divisor,
    )
    return out
