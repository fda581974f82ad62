"""From a decoded picture to the network's input: what `Preprocess` and `Geometry` say, by the native letterbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import ops

if TYPE_CHECKING:
    from .config import DetectSettings
    from .preprocess import Geometry, Preprocess, Size


def input_shape(frame: Size, layout: str) -> tuple[int, ...]:
    """The shape of one picture in a (height, width) frame whose axes are "chw" or "hwc"."""
    return (*frame, 3) if layout == "hwc" else (3, *frame)


def common_frame(pictures: Sequence[np.ndarray], geometries: Sequence[Geometry]) -> Size:
    """The frame that the pictures of one network call share. Raises ValueError if they do not share one."""
    if len(pictures) != len(geometries):
        raise ValueError(f"detect: geometries must be one per picture, {len(pictures)}, got {len(geometries)}")
    frames = sorted({geometry.frame for geometry in geometries})
    if len(frames) != 1:
        raise ValueError(f"detect: pictures must be one or more with frames of one size, got frames {frames}")
    return frames[0]


def detect_arguments(
    frame: Size, geometries: Sequence[Geometry], preprocess: Preprocess, settings: DetectSettings
) -> dict[str, Any]:
    """What `detect` of the native engines takes besides pictures, class mask and memory for the results."""
    return {
        "frame": frame,
        "resized": [geometry.resized for geometry in geometries],
        "offsets": [(geometry.top, geometry.left) for geometry in geometries],
        "pad_value": preprocess.pad_value,
        "swap_channels": preprocess.channels == "rgb",  # pictures come as BGR
        "mean": preprocess.mean,
        "divisor": preprocess.divisor,
        "conf": settings.conf,
        "top_k": settings.top_k,
        "multi_label": settings.multi_label,
        "iou": settings.iou,
        "max_det": settings.max_det,
        "agnostic": settings.agnostic,
    }


def fill_from_picture(
    out: np.ndarray, picture: np.ndarray, geometry: Geometry, preprocess: Preprocess, layout: str = "chw"
) -> None:
    """Writes a `(H, W, 3)` uint8 BGR picture into `out`, float32 of the `input_shape` of the geometry's frame."""
    ops.letterbox(
        picture,
        frame=geometry.frame,
        resized=geometry.resized,
        offset=(geometry.top, geometry.left),
        pad_value=preprocess.pad_value,
        swap_channels=preprocess.channels == "rgb",  # pictures come as BGR
        mean=preprocess.mean,
        divisor=preprocess.divisor,
        layout=layout,
        out=out,
    )


def fill_from_planes(out: np.ndarray, planes: np.ndarray, preprocess: Preprocess, layout: str = "chw") -> None:
    """Writes `(3, height, width)` float32 RGB in 0..1, already in the network's frame, into `out`."""
    if preprocess.channels == "bgr":
        planes = planes[::-1]
    mean, divisor = (np.asarray(value, np.float32)[:, None, None] for value in (preprocess.mean, preprocess.divisor))
    np.divide(planes * np.float32(255) - mean, divisor, out=out.transpose(2, 0, 1) if layout == "hwc" else out)
