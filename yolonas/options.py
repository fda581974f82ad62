"""Turning what users type into checked option objects: legacy names, nearest names, types. One dataclass per driver
says what exists.

An options dataclass declares each field with `option(default, ...)`. `build()` makes one from keyword arguments; the
command line uses the same fields, so names, defaults and checks stand in one place.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from typing import Any, TypeVar

LOGGER = logging.getLogger("yolonas")

Options = TypeVar("Options")
Check = Callable[[str, Any], Any]

PROTOCOLS = ("sg", "ultralytics")  # whose pre-processing and thresholds

ENGINES = ("native", "torch")  # what can run a network
ENGINE_HELP = "'native': this library's own, on CPUs and CUDA devices (default there); 'torch': the plain modules"
PRECISION_HELP = (
    "or precision=: 32/'fp32' (default), 16/'fp16' (on GPUs), 8/'int8' (of a network from 'yolonas quantize')"
)
TUNE_HELP = "native engine: measure once what runs fastest on this machine, and keep it"

PRECISIONS = {
    **dict.fromkeys((32, "32", "fp32", "w32a32"), "fp32"),
    **dict.fromkeys((16, "16", "fp16", "w16a16"), "fp16"),
    **dict.fromkeys((8, "8", "int8", "w8a8", "w8a16", "w8a32"), "int8"),
}


def option(default: Any, check: Check, help: str, *, ignored: bool = False) -> Any:
    """A dataclass field. `check(name, value)` returns the value to keep or raises ValueError.

    `ignored`: taken for compatibility, without effect here; a value other than the default is answered by a warning.
    """
    return field(default=default, metadata={"check": check, "help": help, "ignored": ignored})


def build(
    kind: type[Options],
    values: Mapping[str, Any],
    *,
    renamed: Mapping[str, tuple[str, Callable[[Any], Any]]],
    dropped: Iterable[str],
) -> Options:
    """An options object from user values.

    Args:
        kind: the options dataclass.
        values: by name; None means the default.
        renamed: old name -> (new name, function from the old value to the new one); taken with a warning.
        dropped: names that older releases had and that mean nothing any more; taken with a warning.

    Raises:
        ValueError: a value is out of range, or a name is unknown (the text names the nearest known one).
    """
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name in renamed:
            new_name, convert = renamed[name]
            if value is None:
                continue
            LOGGER.warning("'%s' is an old name, use '%s'", name, new_name)
            if new_name not in values:
                checked[new_name] = known[new_name].metadata["check"](new_name, convert(value))
        elif name in dropped:
            LOGGER.warning("'%s' has no meaning here and is ignored", name)
        elif name not in known:
            raise ValueError(unknown_name("argument", name, [*known, *renamed]))
        elif value is not None:
            checked[name] = known[name].metadata["check"](name, value)
            if known[name].metadata["ignored"] and checked[name] != known[name].default:
                LOGGER.warning("'%s' has no effect here and is ignored", name)
    return kind(**checked)


def with_quantize(values: dict[str, Any]) -> dict[str, Any]:
    """The same values with `quantize` in place of `precision`, another name for it, and of the older `half` and `int8`.

    Raises:
        ValueError: `precision` is none, or `quantize` says something else.
    """
    values = dict(values)
    named = values.pop("precision", None)
    if named is not None:
        named, other = precision("precision", named), values.get("quantize")
        if other is not None and precision("quantize", other) != named:
            raise ValueError(f"precision and quantize are names of one option, got {named!r} and {other!r}")
        values["quantize"] = named
    if values.get("int8"):  # of both deprecated names this one wins
        values.pop("half", None)
    for old, new in (("half", "fp16"), ("int8", "int8")):
        value = values.pop(old, None)
        if value is not None and flag(old, value):
            LOGGER.warning("'%s' is an old name, use quantize='%s'", old, new)
            if values.get("quantize") is None:
                values["quantize"] = new
    return values


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Text for a name that does not exist, with the nearest ones that do."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(repr(other) for other in close)}?" if close else "run 'yolonas help' for the list"
    )
    return f"unknown {what} {name!r}; {hint}"


def unit_fraction(name: str, value: Any) -> float:
    """A number in 0..1."""
    number = _number(name, value)
    if 1.0 < number <= 100.0:
        raise ValueError(f"{name} must lie in 0..1, got {value}; did you mean {number / 100:g}?")
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} must lie in 0..1, got {value}")
    return number


def map_points(name: str, value: Any) -> float:
    """Points of mAP, 0..100."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError(f"{name} must be points of mAP, 0 to 100, such as 0.5, got {value!r}")
    return float(value)


def whole(low: int, high: int) -> Check:
    """An integer in low..high."""

    def check(name: str, value: Any) -> int:
        number = _number(name, value)
        if number != int(number) or not low <= number <= high:
            raise ValueError(f"{name} must be a whole number in {low}..{high}, got {value}")
        return int(number)

    return check


def flag(name: str, value: Any) -> bool:
    """True or False; 1 and 0 are taken as well."""
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {value!r}")


def text(name: str, value: Any) -> str:
    """A string that is not empty; numbers and paths become text."""
    result = str(value)
    if not result:
        raise ValueError(f"{name} must not be empty")
    return result


def between(low: float, high: float) -> Check:
    """A number in low..high, not text."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{name} must be a number in {low:g}..{high:g}, got {value!r}")
        return float(value)

    return check


def flag_or_path(name: str, value: Any) -> bool | str:
    """True or False, or a path."""
    return str(value) if isinstance(value, str | os.PathLike) and str(value) else flag(name, value)


def as_list(value: Any) -> Any:
    """The parts of a text with commas, in brackets and quotes or not; anything else as it is."""
    return [part.strip(" '\"") for part in value.strip("[]()").split(",")] if isinstance(value, str) else value


def precision(name: str, value: Any) -> str:
    """Bits, or a name of the precision: "fp32", "fp16" or "int8"."""
    key = value.lower() if isinstance(value, str) else value
    if not isinstance(key, int | str) or isinstance(key, bool) or key not in PRECISIONS:
        names = ", ".join(dict.fromkeys(map(str, PRECISIONS)))
        raise ValueError(f"{name} must be one of {names}, got {value!r}")
    return PRECISIONS[key]


def anything(name: str, value: Any) -> Any:
    return value


def one_of(*choices: str) -> Check:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return str(value)

    return check


def data_split(name: str, value: Any) -> str:
    """A part of a data set."""
    return one_of("train", "val", "test")(name, {"validation": "val", "valid": "val"}.get(str(value), value))


def image_size(name: str, value: Any) -> tuple[int, int]:
    """One side or (height, width); sides that are no multiple of 32 go up to the next one, with a warning."""
    from .preprocess import check_size, round_up

    sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(sides) == 1:
        sides = sides * 2
    if len(sides) != 2:
        raise ValueError(f"{name} must be one side or (height, width), got {value!r}")
    wanted = (whole(1, 1 << 20)(name, sides[0]), whole(1, 1 << 20)(name, sides[1]))
    size = (round_up(wanted[0]), round_up(wanted[1]))
    if size != wanted:
        LOGGER.warning("%s %dx%d is not a multiple of 32, using %dx%d", name, *wanted, *size)
    check_size(name, size)
    return size


def class_list(name: str, value: Any) -> tuple[int, ...]:
    """One class number or several."""
    value = value.tolist() if hasattr(value, "tolist") else value  # NumPy, torch
    values = list(value) if isinstance(value, list | tuple | set | range) else [value]
    return tuple(whole(0, 1 << 20)(name, item) for item in values)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool | str):
        raise ValueError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number
