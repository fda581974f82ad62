"""How a picture becomes the network's input, and how boxes come back: the numbers, not the pixels.

A `Preprocess` is what a checkpoint says about its input (size, border, padding, channel order, scaling). `plan()`
turns it and one picture's size into a `Geometry`, which the native letterbox executes and whose inverse maps boxes
back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

STRIDE = 32  # input sides must be multiples of this

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Geometry:
    """Where one picture lies in the network's frame. Sizes are (height, width) in pixels."""

    original: Size
    resized: Size  # the picture after resizing
    frame: Size  # the network's input
    top: int
    left: int
    scale: tuple[float, float]  # network pixels per picture pixel, along (height, width)

    def boxes_to_picture(self, boxes: Any, *, clip: bool = True) -> Any:
        """Maps rows that begin with xyxy, `(N, 4 or more)`, from the network's frame to the picture, in place.

        `boxes` is a NumPy array or a torch tensor.
        The padding is subtracted first, then the sides are divided by the scale, in the array's own dtype.
        `clip=True` limits them to the picture.
        """
        height, width = self.original
        boxes[:, 0:4:2] -= self.left
        boxes[:, 1:4:2] -= self.top
        boxes[:, 0:4:2] *= 1.0 / self.scale[1]
        boxes[:, 1:4:2] *= 1.0 / self.scale[0]
        if clip:
            boxes[:, 0:4:2] = boxes[:, 0:4:2].clip(0, width)
            boxes[:, 1:4:2] = boxes[:, 1:4:2].clip(0, height)
        return boxes


@dataclass(frozen=True)
class Preprocess:
    """Input convention of a checkpoint. The defaults are those of the published COCO weights.

    The network sees `(value - mean) / divisor` per channel, where value is the padded uint8 picture whose channels are
    in the order `channels`; `mean` and `divisor` are in that order too.
    """

    size: Size = (640, 640)  # the network's input, (height, width), multiples of 32
    fit: Size | None = (636, 636)  # the picture is resized to fit into this; None: never resized
    keep_ratio: bool = True  # False: both sides are stretched to `fit`
    enlarge: bool = True  # False: pictures smaller than `fit` are left as they are
    padding: Literal["center", "bottom_right"] = "center"
    pad_value: int = 114  # uint8, before scaling
    channels: Literal["rgb", "bgr"] = "rgb"  # the order that the network was trained with
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # uint8 units
    divisor: tuple[float, float, float] = (255.0, 255.0, 255.0)  # uint8 units
    rect: bool = False  # True: the frame is only as large as the resized picture needs, in multiples of 32

    def __post_init__(self) -> None:
        check_size("size", self.size)
        if self.fit is not None and (min(self.fit) < 1 or self.fit[0] > self.size[0] or self.fit[1] > self.size[1]):
            raise ValueError(f"preprocess: fit must lie between (1, 1) and size {self.size}, got {self.fit}")
        if self.padding not in ("center", "bottom_right"):
            raise ValueError(f"preprocess: padding must be 'center' or 'bottom_right', got {self.padding!r}")
        if self.channels not in ("rgb", "bgr"):
            raise ValueError(f"preprocess: channels must be 'rgb' or 'bgr', got {self.channels!r}")
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"preprocess: pad_value must lie in 0..255, got {self.pad_value}")
        if len(self.mean) != 3 or len(self.divisor) != 3:
            raise ValueError("preprocess: mean and divisor must have three values")
        if not all(map(math.isfinite, (*self.mean, *self.divisor))) or 0.0 in self.divisor:
            raise ValueError(
                f"preprocess: mean {self.mean} and divisor {self.divisor} must be finite, divisor not zero"
            )

    def with_size(self, size: Size) -> Preprocess:
        """The same convention at another input size; the border (size - fit, 4 px for 636 in 640) stays the same."""
        check_size("imgsz", size)
        if self.fit is None:
            return replace(self, size=size)
        border = (self.size[0] - self.fit[0], self.size[1] - self.fit[1])
        fit = (max(1, size[0] - border[0]), max(1, size[1] - border[1]))
        return replace(self, size=size, fit=fit)

    def as_ultralytics(self) -> Preprocess:
        """The letterbox of ultralytics at this size: no border, grey 114, centred; channel order and scaling stay."""
        return replace(self, fit=self.size, keep_ratio=True, enlarge=True, padding="center", pad_value=114)

    def plan(self, height: int, width: int) -> Geometry:
        """Geometry of a picture of the given size. Raises ValueError for an empty picture or one that does not fit."""
        if height < 1 or width < 1:
            raise ValueError(f"letterbox: image must have at least one pixel, got {height}x{width}")
        scale, resized = self._resized(height, width)
        frame = self.size
        if self.rect or self.fit is None:
            border = (0, 0) if self.fit is None else (self.size[0] - self.fit[0], self.size[1] - self.fit[1])
            frame = (round_up(resized[0] + border[0]), round_up(resized[1] + border[1]))
        if resized[0] > frame[0] or resized[1] > frame[1]:
            raise ValueError(f"letterbox: a {height}x{width} picture does not fit into {frame[0]}x{frame[1]}")
        top, left = self._offset(frame[0] - resized[0]), self._offset(frame[1] - resized[1])
        return Geometry((height, width), resized, frame, top, left, scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Inverse of `to_dict`; unknown keys are an error, missing ones take the defaults."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"preprocess: unknown keys {unknown}, known are {sorted(cls.__dataclass_fields__)}")
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**plain)

    def _resized(self, height: int, width: int) -> tuple[tuple[float, float], Size]:
        if self.fit is None:
            return (1.0, 1.0), (height, width)
        if not self.keep_ratio:
            return (self.fit[0] / height, self.fit[1] / width), self.fit
        scale = min(self.fit[0] / height, self.fit[1] / width)
        if scale == 1.0 or (scale > 1.0 and not self.enlarge):
            return (1.0, 1.0), (height, width)
        # Python's round is half to even, as in super-gradients' predict. A side never vanishes: a picture of 4000x6
        # becomes one pixel high instead of failing.
        return (scale, scale), (max(1, round(height * scale)), max(1, round(width * scale)))

    def _offset(self, free: int) -> int:
        return free // 2 if self.padding == "center" else 0


def round_up(side: int) -> int:
    """The next multiple of the network's stride."""
    return -(-side // STRIDE) * STRIDE


def check_size(name: str, size: Size) -> None:
    """Raises ValueError unless both sides are positive multiples of 32 (and small enough to be meant)."""
    height, width = size
    if height < STRIDE or width < STRIDE or height % STRIDE or width % STRIDE:
        near = (max(STRIDE, round_up(height)), max(STRIDE, round_up(width)))
        raise ValueError(
            f"{name} must be multiples of {STRIDE}, got {height}x{width}; the next size up is {near[0]}x{near[1]}"
        )
    if height > 16384 or width > 16384:
        raise ValueError(f"{name} must be at most 16384, got {height}x{width}")
