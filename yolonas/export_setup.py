"""What an export is, before it runs: the protocol of the file, and where it goes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import DetectSettings
from .exported import kind_of
from .exporting.spec import METADATA_KEY, MOST_ROWS, SUPPRESSED, ExportSpec
from .exporting.targets import DEEPSTREAM, FRIGATE, TRITON
from .inspection import graphs_in, stated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .export import ExportOptions
    from .preprocess import Preprocess

FORMATS = {  # and what their files or folders end with
    "onnx": ".onnx",
    "openvino": "_openvino_model",
    "engine": ".engine",
    "torchscript": ".torchscript",
    "pt2": ".pt2",
    "ncnn": "_ncnn_model",
}
TARGETS: dict[str, Mapping[str, Any]] = {"frigate": FRIGATE, "triton": TRITON, "deepstream": DEEPSTREAM}
TARGET_ENDINGS = {"frigate": "-frigate.onnx", "triton": "_triton", "deepstream": "_deepstream"}

INT8_FORMATS = ("onnx", "openvino", "engine")
USUAL_OUTPUTS = {"torchscript": "raw", "pt2": "raw", "ncnn": "heads"}  # of others "batch"

# How files in folders end that export writes, or that runtimes leave there.
_WRITTEN = (".bin", ".engine", ".onnx", ".param", ".pbtxt", ".txt", ".xml", ".yaml")

# Fields of the settings, and the options that give them.
_THRESHOLDS = {name: name for name in ("conf", "iou", "top_k", "max_det", "multi_label")} | {"agnostic": "agnostic_nms"}


def make_spec(
    options: ExportOptions,
    *,
    variant: str,
    names: Mapping[int, str],
    preprocess: Preprocess,
    settings: DetectSettings,
    quantized: bool,
    card: Mapping[str, Any] | None,
) -> ExportSpec:
    """The protocol that the options ask for; what they leave open is the target's, else the checkpoint's.

    Raises:
        ValueError, NotImplementedError: options that do not go together.
    """
    preset = dict(TARGETS.get(options.target or "", {}))
    usual_size = preset.pop("size", None)
    if options.imgsz or usual_size:
        preprocess = preprocess.with_size(options.imgsz or usual_size)
    precision = options.quantize or ("int8" if quantized else "fp32")
    if quantized != (precision == "int8"):
        raise ValueError(
            f"quantize must be 'int8' for a quantised network, got {precision!r}; load what it was made from"
            if quantized
            else "quantize='int8' needs a quantised network: 'yolonas quantize model=... data=...' makes one"
        )
    if precision == "int8" and options.format not in INT8_FORMATS:
        raise NotImplementedError(
            f"export: format {options.format!r} has no int8; {', '.join(map(repr, INT8_FORMATS))} have"
        )
    thresholds = {field: preset.pop(field, getattr(settings, field)) for field in _THRESHOLDS}
    given = {field: getattr(options, name) for field, name in _THRESHOLDS.items()}
    thresholds |= {field: value for field, value in given.items() if value is not None}
    if options.top_k is None:
        thresholds["top_k"] = max(thresholds["top_k"], thresholds["max_det"])
    usual_outputs = preset.pop("outputs", None) or USUAL_OUTPUTS.get(options.format, "batch")
    outputs = options.outputs or usual_outputs
    if options.nms is not None and options.nms != (outputs in SUPPRESSED):
        if options.outputs is not None:
            raise ValueError(f"nms must be {not options.nms} for outputs={outputs!r}, got {options.nms}; leave one out")
        outputs = "batch" if options.nms else "raw"
    if outputs == "deepstream":
        if options.multi_label:
            raise ValueError(
                "multi_label must be False for outputs='deepstream', got True; they give the best class of each box"
            )
        thresholds["multi_label"] = False
    any_batch, any_size = options.dynamic in (True, "batch"), options.dynamic in (True, "size")
    asked = {
        "uint8": options.preprocess,
        "nhwc": None if options.layout is None else options.layout == "nhwc",
        "channels": options.channels,
        "batch": options.batch,
        "dynamic_size": any_size or None,
    }
    usual = {"uint8": options.format != "ncnn", "nhwc": False, "channels": "rgb", "batch": 1, "dynamic_size": False}
    chosen = usual | preset | {name: value for name, value in asked.items() if value is not None}
    if any_batch or preset.get("batch", 1) is None:
        chosen["batch"] = None
    spec = ExportSpec(
        variant=variant,
        names=dict(names),
        preprocess=replace(preprocess, rect=False),
        settings=DetectSettings(**thresholds),
        precision=precision,
        outputs=outputs,
        card=card,
        **chosen,
    )
    _check(spec, options)
    return spec


def _check(spec: ExportSpec, options: ExportOptions) -> None:
    settings = spec.settings
    if spec.outputs in SUPPRESSED and settings.max_det > settings.top_k:
        raise ValueError(f"max_det must be at most top_k, {settings.top_k}, got {settings.max_det}")
    unrolled = spec.outputs == "rows" or (spec.outputs == "batch" and options.format in ("torchscript", "pt2"))
    if unrolled and settings.max_det > MOST_ROWS:
        raise ValueError(
            f"max_det must be at most {MOST_ROWS} for outputs={spec.outputs!r} in format {options.format!r}, whose "
            f"graph has a step for each, got {settings.max_det}; such as max_det=20"
        )
    if options.target is not None and options.format != "onnx":
        raise ValueError(f"format must be 'onnx' for target={options.target!r}, got {options.format!r}")


def destinations(options: ExportOptions, source: Path, *, builds_engine: bool) -> list[Path]:
    """Where the file or folder goes, beside the model unless `save` says otherwise, and then what goes beside it.

    Args:
        builds_engine: whether format "engine" gives one, and not only the ONNX file that it is made of.

    Raises:
        ValueError: `save` has another ending. FileNotFoundError, PermissionError: the folder is not there, or cannot be
            written to. FileExistsError: something stands there that no export has written.
    """
    ending = TARGET_ENDINGS.get(options.target or "", FORMATS[options.format])
    path = Path(options.save).expanduser() if options.save else source.with_name(source.stem + ending)
    if options.save and not path.name.endswith(ending):
        raise ValueError(f"save must end in {ending}, got {path.name!r}")
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"save must be in an existing folder, there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"export: {folder} must be a folder that can be written to; save=... names another place")
    paths = [path]
    if options.format == "engine":
        graph = path.with_name(f"{path.stem}-tensorrt.onnx")
        paths = [path, graph] if builds_engine else [graph]
    elif options.target == "frigate":
        paths = [path, path.with_name(f"{path.stem}-labels.txt")]
    for one in paths:
        # A list of labels does not say who wrote it: it belongs to the file that it stands beside.
        told_by = path if one.suffix == ".txt" else one
        if os.path.lexists(one) and not options.exist_ok and not _is_ours(told_by):
            raise FileExistsError(
                f"export: {one} exists and was not written by export, or has other files in it; exist_ok=True replaces "
                "it, save=... goes elsewhere"
            )
    return paths


def _is_ours(path: Path) -> bool:
    """Whether an export has written it; of a folder, it and all that is in it."""
    try:
        if path.is_dir():
            if not all(inner.is_dir() or inner.suffix in _WRITTEN for inner in path.rglob("*")):
                return False
            if not kind_of(path):
                (path,) = graphs_in(path)
        ExportSpec.from_json(stated(path)[METADATA_KEY])
    except Exception:  # whatever it is that cannot be read
        return False
    return True
