"""Checks the settings that a checkpoint states: class names, thresholds, and the metadata of our own files.

Whatever does not make sense in other people's files is replaced by a default and noted; in our own it is an error.
The pre-processing has a module of its own, `processing`.
"""

from __future__ import annotations

import json
from typing import Any

from .. import __version__
from ..config import COCO_NAMES, DetectSettings
from ..errors import CheckpointError
from .contents import Contents, listed
from .pickle_names import Record
from .processing import plain_list
from .safetensors_file import parse_json
from .tensor_file import brief

FORMAT_VERSION = 1  # of the metadata that we write
METADATA_KEY = "yolonas"
THRESHOLDS = ("conf", "iou", "top_k", "max_det", "multi_label", "agnostic")  # fields of DetectSettings that are stored
METADATA_FIELDS = {
    *("format_version", "yolonas_version", "variant", "form", "num_classes", "names", "preprocess"),
    *("activation_scales", *THRESHOLDS),
}
MAX_NAME_LENGTH = 200  # characters of a class name

UNSTATED_CONF = 0.5  # of super-gradients' predict, for a network other than COCO's that states none


def read_names(value: Any, num_classes: int, notes: list[str]) -> dict[int, str]:
    """Class names from a list or a dict by class number; COCO's or numbered ones where they are missing or unusable."""
    if isinstance(value, dict):
        numbers = {str(i): i for i in range(num_classes)}  # JSON has no numbers for keys
        table = {numbers.get(key, key): name for key, name in value.items()}
        value = [table[i] for i in range(num_classes)] if table.keys() == set(range(num_classes)) else []
    names = plain_list(value)
    if names is not None and len(names) == num_classes and all(isinstance(name, (str, int)) for name in names):
        return {i: _printable(str(name)) or f"class_{i}" for i, name in enumerate(names)}
    if value is not None:
        count = "none that can be read" if names is None else len(names)
        notes.append(f"The file's class names do not fit its {num_classes} classes (it has {count}) and were ignored.")
    if num_classes == len(COCO_NAMES):
        notes.append("The file has no class names; those of COCO are assumed.")
        return dict(enumerate(COCO_NAMES))
    notes.append("The file has no class names; they are numbered.")
    return {i: f"class_{i}" for i in range(num_classes)}


def read_thresholds(contents: Contents, num_classes: int, notes: list[str]) -> DetectSettings:
    """The file's own thresholds where it has them, else those of the COCO weights."""
    default = DetectSettings() if num_classes == len(COCO_NAMES) else DetectSettings(conf=UNSTATED_CONF)
    for key in ("conf", "iou"):
        if getattr(contents, key) is None:
            notes.append(f"The file does not state {key}; {getattr(default, key)} is assumed.")
    return DetectSettings(
        conf=_fraction("conf", contents.conf, default.conf, notes),
        iou=_fraction("iou", contents.iou, default.iou, notes),
        top_k=_count("top_k", contents.top_k, default.top_k, notes),
        max_det=_count("max_det", contents.max_det, default.max_det, notes),
        multi_label=_flag("multi_label", contents.multi_label, default.multi_label, notes),
        agnostic=_flag("agnostic", contents.agnostic, default.agnostic, notes),
    )


def own_settings(
    network: dict[str, Any], *, names: list[str], preprocess: dict[str, Any], thresholds: dict[str, Any]
) -> str:
    """The metadata string that `read_own_settings` reads. Raises ValueError for thresholds out of range."""
    notes: list[str] = []
    read_thresholds(Contents("", {}, **thresholds), len(names), notes)
    if notes:
        raise ValueError(f"save: thresholds must make sense, got {thresholds}")
    versions = {"format_version": FORMAT_VERSION, "yolonas_version": __version__}
    return json.dumps({**versions, **network, "names": names, "preprocess": preprocess, **thresholds})


def read_own_settings(text: str, contents: Contents) -> dict[str, Any]:
    """Our metadata; puts the settings into `contents` for the same checks that other files' settings get."""
    settings = parse_json(text.encode("utf-8", "replace"), f"metadata {METADATA_KEY!r}")
    version = settings.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"metadata: format_version must be a positive whole number, got {shown(version)}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"metadata: format_version must be at most {FORMAT_VERSION}, got {shown(version)}; "
            f"a newer yolonas wrote this file, please update"
        )
    unknown = sorted(set(settings) - METADATA_FIELDS)
    if unknown:
        raise CheckpointError(f"metadata: has unknown entries {listed(unknown)}")
    contents.kind = "yolonas"
    for key in ("names", *THRESHOLDS):
        setattr(contents, key, settings.get(key))
    return settings


def shown(value: Any) -> str:
    """A value from a file for an error message."""
    if isinstance(value, Record):
        return brief(value.cls.full)
    # Containers are not printed: they may be nested without end.
    return brief(repr(value)) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"


def _printable(name: str) -> str:
    # Names go to terminals, pictures and file names.
    return "".join(c if c.isprintable() else " " for c in name[:MAX_NAME_LENGTH]).strip()


def _fraction(key: str, value: Any, default: float, notes: list[str]) -> float:
    if type(value) in (int, float) and 0 <= value <= 1:
        return float(value)
    return _default(key, value, default, notes)


def _count(key: str, value: Any, default: int, notes: list[str]) -> int:
    if type(value) is int and 1 <= value <= 1_000_000:
        return value
    return _default(key, value, default, notes)


def _flag(key: str, value: Any, default: bool, notes: list[str]) -> bool:
    return value if type(value) is bool else _default(key, value, default, notes)


def _default(key: str, value: Any, default: Any, notes: list[str]) -> Any:
    if value is not None:
        notes.append(f"The stored {key} makes no sense ({shown(value)}); {default} is used.")
    return default
