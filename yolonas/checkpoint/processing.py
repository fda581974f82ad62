"""Turns the processing that super-gradients stores in a checkpoint into a `Preprocess`, and checks our own stored form.

super-gradients lists the steps from an RGB picture to the network's input. They come as plain dicts (what its trainer
writes) or as pickled objects, here inert records. Nothing of them runs: their sizes and values are read, checked and
put together into one convention. Everything is untrusted.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import CheckpointError
from ..preprocess import Preprocess, round_up
from .pickle_names import Record, numpy_dtype
from .tensor_file import brief

MAX_STEPS = 64
MAX_SIDE = 16384  # pixels

_WRAPPERS = ("ComposeProcessing",)
_PADDINGS = {
    "DetectionCenterPadding": "center",
    "DetectionBottomRightPadding": "bottom_right",
    "DetectionAutoPadding": "bottom_right",
}


def read_processing(value: Any) -> tuple[Preprocess | None, list[str]]:
    """The convention that a stored image processor describes, and a sentence for each step that was left out.

    Args:
        value: `{"ComposeProcessing": {"processings": [...]}}`, a list of steps, or the live `ComposeProcessing` record.

    Returns:
        None where there are no steps.

    Raises:
        CheckpointError: a known step with values that make no sense, or that this library cannot do.
    """
    notes: list[str] = []
    steps = _steps(value)
    if not steps:
        return None, notes
    fit: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    padding, pad_value, keep_ratio, resized, flips = "center", 114, True, False, 0
    mean, divisor = [0.0] * 3, [1.0] * 3  # so far the network would see (value - mean) / divisor
    for name, values in steps:
        if name in ("DetectionLongestMaxSizeRescale", "DetectionRescale"):
            fit = _size(name, values.get("output_shape"))
            keep_ratio, resized = name == "DetectionLongestMaxSizeRescale", True
        elif name in _PADDINGS:
            if divisor != [1.0] * 3 or mean != [0.0] * 3:
                raise CheckpointError(f"processing: {name} must come before the scaling of values, got it after")
            if name != "DetectionAutoPadding":
                size = _size(name, values.get("output_shape"))
            padding, pad_value = _PADDINGS[name], _pad_value(name, values.get("pad_value", 114))
        elif name == "ReverseImageChannels":
            mean.reverse()
            divisor.reverse()
            flips += 1
        elif name == "StandardizeImage":
            limit = _number(name, "max_value", values.get("max_value", 255.0))
            divisor = [d * limit for d in divisor]
        elif name == "NormalizeImage":
            shift, scale = _three(name, "mean", values.get("mean")), _three(name, "std", values.get("std"))
            mean = [m + s * d for m, s, d in zip(mean, shift, divisor, strict=True)]
            divisor = [d * s for d, s in zip(divisor, scale, strict=True)]
        elif name == "ImagePermute":
            order = values.get("permutation", (2, 0, 1))
            if _plain(order) not in ([2, 0, 1], (2, 0, 1)):
                raise CheckpointError(f"processing: ImagePermute must be (2, 0, 1), got {_shown(order)}")
        else:
            notes.append(f"The processing step {brief(name)} is not known and was left out.")
    if size is None:
        size = (640, 640) if fit is None else (round_up(fit[0]), round_up(fit[1]))
    try:
        found = Preprocess(
            size=size,
            fit=fit if resized else None,
            keep_ratio=keep_ratio,
            padding=padding,
            pad_value=pad_value,
            channels="bgr" if flips % 2 else "rgb",
            mean=tuple(mean),
            divisor=tuple(divisor),
        )
    except ValueError as error:
        raise CheckpointError(f"processing: {error}") from None
    return found, notes


def preprocess_from_metadata(values: Any) -> Preprocess:
    """A `Preprocess` from the JSON that `Preprocess.to_dict` became. Raises CheckpointError for wrong keys or types."""
    if not isinstance(values, dict):
        raise CheckpointError("metadata: preprocess must be an object")
    unknown = sorted(set(values) - {field.name for field in fields(Preprocess)})
    if unknown:
        raise CheckpointError(f"metadata: preprocess has unknown keys {brief(', '.join(unknown))}")
    checked: dict[str, Any] = {}
    for key, value in values.items():
        what = f"metadata: preprocess.{key}"
        if key == "size" or (key == "fit" and value is not None):
            checked[key] = _size(what, value)
        elif key in ("keep_ratio", "enlarge", "rect"):
            if type(value) is not bool:
                raise CheckpointError(f"{what} must be true or false, got {_shown(value)}")
            checked[key] = value
        elif key in ("mean", "divisor"):
            checked[key] = tuple(_three(what, key, value))
        elif key == "pad_value":
            checked[key] = _pad_value(what, value)
        elif value is not None and type(value) is not str:
            raise CheckpointError(f"{what} must be a string, got {_shown(value)}")
        else:
            checked[key] = value
    try:
        return Preprocess(**checked)
    except ValueError as error:
        raise CheckpointError(f"metadata: {error}") from None


def plain_list(value: Any) -> list[Any] | None:
    """A list from a list, a tuple, a NumPy array of numbers or an omegaconf list; None for anything else."""
    value = _plain(value)
    return list(value) if isinstance(value, (list, tuple)) else None


def _steps(value: Any) -> list[tuple[str, Mapping[Any, Any]]]:
    """Names and values of the steps, in order, without the wrappers around them."""
    steps: list[tuple[str, Mapping[Any, Any]]] = []
    pending = [value]
    visited = 0
    while pending:
        visited += 1
        if visited > 2 * MAX_STEPS or len(steps) >= MAX_STEPS:
            raise CheckpointError(f"processing: must have at most {MAX_STEPS} steps, got more")
        item = pending.pop()
        if isinstance(item, Record):
            name, values = item.class_name, item.attributes
        elif isinstance(item, str):
            name, values = item, {}
        elif isinstance(item, Mapping) and len(item) == 1:
            name, values = next(iter(item.items()))
            values = values if isinstance(values, Mapping) else {}
        elif isinstance(item, (list, tuple)):
            name, values = _WRAPPERS[0], {"processings": item}
        else:
            name, values = None, {}
        if not isinstance(name, str):
            continue
        if name in _WRAPPERS:
            inner = plain_list(values.get("processings")) or []
            pending.extend(reversed(inner[: MAX_STEPS + 1]))
        else:
            steps.append((name, values))
    return steps


def _size(what: str, value: Any) -> tuple[int, int]:
    value = _plain(value)
    sides = [value, value] if type(value) is int else value
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or not all(_is_whole(side) for side in sides):
        raise CheckpointError(f"{_where(what, 'output_shape')} must be (height, width), got {_shown(value)}")
    height, width = int(sides[0]), int(sides[1])
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise CheckpointError(f"{_where(what, 'output_shape')} must lie in 1..{MAX_SIDE}, got {height}x{width}")
    return height, width


def _pad_value(what: str, value: Any) -> int:
    value = _plain(value)
    channels = value if isinstance(value, (list, tuple)) else [value]
    if not 1 <= len(channels) <= 3 or not all(_is_whole(channel) and 0 <= channel <= 255 for channel in channels):
        raise CheckpointError(f"{_where(what, 'pad_value')} must be a value in 0..255, got {_shown(value)}")
    if len({int(channel) for channel in channels}) != 1:
        raise CheckpointError(f"{_where(what, 'pad_value')} must be the same in all channels, got {_shown(value)}")
    return int(channels[0])


def _three(what: str, key: str, value: Any) -> list[float]:
    values = plain_list(value)
    if values is None or len(values) != 3:
        raise CheckpointError(f"{_where(what, key)} must be three numbers, got {_shown(value)}")
    return [_number(what, key, number) for number in values]


def _number(what: str, key: str, value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > 1e6 or not math.isfinite(value):
        raise CheckpointError(f"{_where(what, key)} must be a number of usual size, got {_shown(value)}")
    return float(value)


def _is_whole(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def _where(what: str, key: str) -> str:
    return what if what.startswith("metadata") else f"processing: {what}.{key}"


def _shown(value: Any) -> str:
    # Containers from a file may be nested without end, so only flat ones are printed.
    value = _plain(value)
    if isinstance(value, (list, tuple)):
        return brief([item if isinstance(item, (str, int, float)) else type(item).__name__ for item in value[:8]])
    return brief(repr(value)) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"


def _plain(value: Any) -> Any:
    """Lists out of the records of NumPy arrays and omegaconf containers; anything else as it is."""
    if not isinstance(value, Record):
        return value
    if value.class_name == "_reconstruct":
        return _array(value.state)
    if value.class_name == "ListConfig":
        content = value.attributes.get("_content")
        return [_node(item) for item in content] if isinstance(content, list) else value
    return _node(value)


def _node(value: Any) -> Any:
    is_node = isinstance(value, Record) and value.class_name.endswith("Node")
    return value.attributes.get("_val") if is_node else value


def _array(state: Any) -> Any:
    """The numbers of a one-dimensional NumPy array: (version, shape, dtype, is_fortran, bytes)."""
    if type(state) is not tuple or len(state) != 5 or type(state[4]) is not bytes or len(state[4]) > 8 * 1024:
        return None
    kind = numpy_dtype(state[2])
    code = {"<f8": "d", "<f4": "f", "<i8": "q", "<i4": "i"}.get(kind)
    if code is None or len(state[4]) % struct.calcsize(f"<{code}"):
        return None
    return [number for (number,) in struct.iter_unpack(f"<{code}", state[4])]
