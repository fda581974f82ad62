"""Inspect: what an exported file, or any other file of a network, says about itself, in lines for people."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError
from .exported import kind_of, read_stated
from .exporting.spec import METADATA_KEY, SUPPRESSED, ExportSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWN_NAMES = 8

_OUTPUTS = {
    "batch": "number, boxes, scores and classes, best first, unused places -1",
    "flat": "rows of picture, x1, y1, x2, y2, score, class; as many as there are detections",
    "rows": "rows of picture, x1, y1, x2, y2, score, class; unused ones -1",
    "raw": "boxes and scores of all anchors",
    "heads": "class and box logits of three levels",
    "deepstream": "rows of x1, y1, x2, y2, score, class; the best class of each anchor",
}


def protocol_lines(spec: ExportSpec) -> list[str]:
    """What a file takes and gives."""
    lines = {
        "network": f"YOLO-NAS {spec.variant.upper()}, {spec.precision}",
        "classes": f"{spec.num_classes}: {_shortened(list(spec.names.values()))}",
        "input": _input(spec),
        "picture": _picture(spec),
        "outputs": ", ".join(spec.output_names),
        "": _OUTPUTS[spec.outputs],
        "boxes": "x1, y1, x2, y2 in pixels of the input" if spec.outputs != "heads" else "to be decoded by the caller",
        "thresholds": _thresholds(spec),
    }
    return [f"{name:<11} {line}" for name, line in lines.items()]


def inspect_lines(path: str | os.PathLike[str]) -> list[str]:
    """What an exported file says about itself; of one by another library its plain metadata.

    Raises:
        CheckpointError: there is no such file, it is damaged, or is of another kind. ImportError: see `read_stated`.
    """
    path = Path(path).expanduser()
    if path.exists() and not kind_of(path):
        raise CheckpointError(
            f"{path}: is no file that export writes; for a checkpoint there is 'yolonas info model={path}'"
        )
    stated = read_stated(path)
    lines = [f"{'file':<11} {path} ({kind_of(path)})"]
    if METADATA_KEY not in stated:
        plain = [f"{_printable(key):<11} {_printable(value)[:300]}" for key, value in stated.items()]
        return [*lines, "not exported by yolonas; its metadata:", *(plain or ["none"])]
    spec = ExportSpec.from_json(stated[METADATA_KEY])
    return [*lines, *protocol_lines(spec), *_card_lines(spec)]


def _input(spec: ExportSpec) -> str:
    height, width = ("any", "any") if spec.dynamic_size else map(str, spec.preprocess.size)
    shape = spec.input_shape("any" if spec.batch is None else str(spec.batch), height, width)
    kind = "uint8" if spec.uint8 else "float32, (value - mean) / divisor"
    sides = "; sides are multiples of 32" if spec.dynamic_size else ""
    swapped = ", swapped in the graph for the network" if spec.swaps_channels else ""
    return f"input {kind} ({', '.join(map(str, shape))}), {spec.channels.upper()}{swapped}{sides}"


def _picture(spec: ExportSpec) -> str:
    preprocess = spec.preprocess
    height, width = preprocess.size
    fit = f"resized to fit {preprocess.fit[0]}x{preprocess.fit[1]}, " if preprocess.fit else "not resized, "
    scaling = "" if spec.uint8 else f"; mean {_numbers(preprocess.mean)}, divisor {_numbers(preprocess.divisor)}"
    return f"{fit}padded to {height}x{width} with {preprocess.pad_value}, {preprocess.padding}{scaling}"


def _thresholds(spec: ExportSpec) -> str:
    settings = spec.settings
    where = "in the graph" if spec.outputs in SUPPRESSED else "for the caller"
    labels = "several classes a box" if settings.multi_label else "one class a box"
    across = ", across classes" if settings.agnostic else ""
    return (
        f"{where}: conf {settings.conf:g}, NMS IoU {settings.iou:g}{across}, top {settings.top_k}, "
        f"{settings.max_det} boxes a picture, {labels}"
    )


def _card_lines(spec: ExportSpec) -> Iterator[str]:
    """The quantisation's, as far as a file has it in the form that we write."""
    if spec.card is None:
        return
    try:
        sides = [(name, spec.card[name]["scores"]) for name in ("float32", "int8")]
        evaluation: Mapping[str, Any] = spec.card["evaluation"]
        for name, scores in sides:
            if scores["map"] is not None:
                yield f"{name:<11} mAP50-95 {scores['map']:.4f}, mAP50 {scores['map50']:.4f}"
        yield f"{'measured on':<11} {int(evaluation['pictures'])} pictures of {_printable(evaluation['source'])}"
        if spec.card["in_float"]:
            yield f"{'in float':<11} {_shortened([_printable(one) for one in spec.card['in_float']])}"
    except (KeyError, TypeError, ValueError, AttributeError):
        yield f"{'card':<11} cannot be read"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _shortened(names: list[str]) -> str:
    more = f", ... ({len(names) - SHOWN_NAMES} more)" * (len(names) > SHOWN_NAMES)
    return ", ".join(names[:SHOWN_NAMES]) + more


def _printable(value: Any) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in str(value))
