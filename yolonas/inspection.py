"""Inspect: what an exported file, or any other file of a network, says about itself, in lines for people."""

from __future__ import annotations

import json
import os
import reprlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError
from .exported import EXECUTED, kind_of, read_stated
from .exporting.spec import INPUT_NAME, METADATA_KEY, MOST_METADATA, SUPPRESSED, ExportSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWN_NAMES = 8
MOST_LETTERS = 300

_SHORT = reprlib.Repr()  # of values that may hold each other many times over
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring = 3, 40, 40, 40

_ARCHIVES = {suffix: suffix[1:] for suffix in EXECUTED}
_CONFIG = "/extra/config.txt"  # of these archives, where `torch_formats` leaves the metadata

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
        "classes": f"{spec.num_classes}: {_shortened([_printable(name) for name in spec.names.values()])}",
        "input": _input(spec),
        "scaling": _scaling(spec),
        "picture": _picture(spec),
        "outputs": ", ".join(spec.output_names),
        "": _OUTPUTS[spec.outputs],
        "boxes": "x1, y1, x2, y2 in pixels of the input" if spec.outputs != "heads" else "to be decoded by the caller",
        "thresholds": _thresholds(spec),
    }
    return [f"{name:<11} {line}" for name, line in lines.items()]


def inspect_lines(path: str | os.PathLike[str]) -> list[str]:
    """What an exported file says about itself, or the file in a folder of a target; of one by another library its plain
    metadata.

    Raises:
        CheckpointError: there is no such file, it is damaged, or is of another kind. ImportError: see `read_stated`.
    """
    path = Path(path).expanduser()
    kind = kind_of(path) or _ARCHIVES.get(path.suffix, "")
    if path.exists() and not kind:
        graphs = graphs_in(path)
        if graphs:
            return [line for graph in graphs for line in inspect_lines(graph)]
        raise CheckpointError(
            f"{path}: is no file that export writes; for a checkpoint there is 'yolonas info model={path}'"
        )
    said = stated(path)
    lines = [f"{'file':<11} {_printable(str(path))} ({kind})"]
    if METADATA_KEY not in said:
        plain = [f"{_printable(key):<11} {_printable(value)}" for key, value in said.items()]
        return [*lines, "not exported by yolonas; its metadata:", *(plain or ["none"])]
    try:
        spec = ExportSpec.from_json(said[METADATA_KEY])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return [*lines, *protocol_lines(spec), *_card_lines(spec)]


def graphs_in(folder: Path) -> list[Path]:
    """The ONNX files where a folder of a target has them."""
    return sorted([*folder.glob("*.onnx"), *folder.glob("*/*/model.onnx")])


def stated(path: Path) -> Mapping[str, Any]:
    """As `read_stated`, and of TorchScript and torch.export files as well: nothing in them is executed."""
    if path.suffix not in _ARCHIVES or not path.is_file():
        return read_stated(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(_CONFIG)]
            if not entries:
                return {}
            with archive.open(entries[0]) as file:
                text = file.read(MOST_METADATA).decode()
        said = json.loads(text)
    except Exception:  # zipfile's have no common base
        raise CheckpointError(f"{path}: is no {_ARCHIVES[path.suffix]} file, or is damaged") from None
    if not isinstance(said, dict):
        return {}
    return {METADATA_KEY: text} if "format_version" in said else said


def _input(spec: ExportSpec) -> str:
    height, width = ("any", "any") if spec.dynamic_size else map(str, spec.preprocess.size)
    shape = spec.input_shape("any" if spec.batch is None else str(spec.batch), height, width)
    kind = "uint8" if spec.uint8 else "float32"
    sides = ", sides in multiples of 32" if spec.dynamic_size else ""
    return f"{kind} ({', '.join(map(str, shape))}), {spec.channels.upper()}{sides}, by the name {INPUT_NAME!r}"


def _scaling(spec: ExportSpec) -> str:
    pre = spec.preprocess
    if spec.uint8:
        text = "in the graph, which takes the bytes of a picture"
    else:
        mean, divisor = (values[::-1] if spec.swaps_channels else values for values in (pre.mean, pre.divisor))
        text = f"by the caller: (value - mean) / divisor, mean {_numbers(mean)}, divisor {_numbers(divisor)}"
    return text + f"; the graph swaps {spec.channels.upper()} to {pre.channels.upper()}" * spec.swaps_channels


def _picture(spec: ExportSpec) -> str:
    pre = spec.preprocess
    fit = "not resized"
    if pre.fit is not None:
        how = "resized to fit" if pre.enlarge else "if larger, resized to fit"
        fit = f"{how if pre.keep_ratio else 'stretched to'} {pre.fit[0]}x{pre.fit[1]}"
    where = "on all sides" if pre.padding == "center" else "at the right and the bottom"
    return f"{fit}, padded to {pre.size[0]}x{pre.size[1]} with {pre.pad_value} {where}"


def _thresholds(spec: ExportSpec) -> str:
    settings = spec.settings
    where = "in the graph" if spec.outputs in SUPPRESSED else "left to the caller"
    labels = "several classes a box" if settings.multi_label else "one class a box"
    across = " across classes" if settings.agnostic else ""
    return (
        f"{where}: conf {settings.conf:g}, NMS of {settings.top_k} candidates{across} at IoU {settings.iou:g}, "
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
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        yield f"{'card':<11} cannot be read"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _shortened(names: list[str]) -> str:
    more = f", ... ({len(names) - SHOWN_NAMES} more)" * (len(names) > SHOWN_NAMES)
    return ", ".join(names[:SHOWN_NAMES]) + more


def _printable(value: Any) -> str:
    """In one line of a terminal, and not endless: files are not to be trusted."""
    try:
        text = value if isinstance(value, str) else _SHORT.repr(value)
    except ValueError:  # a number of thousands of digits
        text = "..."
    return "".join(letter if letter.isprintable() else " " for letter in text[:MOST_LETTERS])
