"""What an export is, before it runs: the protocol of the file, and where it goes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import DetectSettings
from .exported import read_exported
from .exporting.spec import MOST_ROWS, SUPPRESSED, ExportSpec
from .exporting.targets import DEEPSTREAM, FRIGATE, TRITON

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
    outputs = options.outputs or preset.pop("outputs", None)
    if outputs is None:
        outputs = USUAL_OUTPUTS.get(options.format, "batch")
        if options.nms is not None:
            outputs = "batch" if options.nms else "raw" if outputs == "batch" else outputs
    if options.nms is not None and options.nms != (outputs in SUPPRESSED):
        raise ValueError(f"nms must be {not options.nms} for outputs={outputs!r}, got {options.nms}; leave one out")
    if outputs == "deepstream":
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


def destination(options: ExportOptions, source: Path) -> Path:
    """Where the file or folder goes: beside the model, unless `save` says otherwise.

    Raises:
        FileNotFoundError, PermissionError: the folder is not there, or cannot be written to.
        FileExistsError: something else stands there.
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
    check_free(path, exist_ok=options.exist_ok)
    return path


def check_free(path: Path, *, exist_ok: bool) -> None:
    """Raises FileExistsError where something stands that no export has written."""
    if not os.path.lexists(path) or exist_ok:
        return
    try:
        inner = [path] if path.is_file() or (path / "metadata.yaml").is_file() else sorted(path.rglob("*.onnx"))
        read_exported(inner[0])
    except (Exception, IndexError):
        raise FileExistsError(
            f"export: {path} exists and was not written by export; exist_ok=True replaces it, save=... goes elsewhere"
        ) from None
