"""Texts that stand beside an ONNX file for what runs it: Frigate, Triton, DeepStream, TensorRT's `trtexec`.

Everything is made from the `ExportSpec` of the file; nothing is written here. The presets are what the file of a target
has unless the user says otherwise: fields of `ExportSpec` and `DetectSettings`, and `size` (height, width).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from ..config import REG_MAX, STRIDES
from ..preprocess import STRIDE
from .spec import BATCH_NAMES, INPUT_NAME

if TYPE_CHECKING:
    from .spec import ExportSpec

FRIGATE: Mapping[str, Any] = {
    "size": (320, 320),
    "uint8": True,
    "nhwc": False,
    "channels": "bgr",
    "outputs": "rows",
    "batch": 1,
    "dynamic_size": False,
    "conf": 0.4,
    "top_k": 300,
    "max_det": 20,  # Frigate reads no more
}
TRITON: Mapping[str, Any] = {
    "uint8": True,
    "nhwc": False,
    "channels": "rgb",
    "outputs": "batch",
    "batch": None,
}
DEEPSTREAM: Mapping[str, Any] = {
    "uint8": False,  # nvinfer scales pixels itself
    "nhwc": False,
    "channels": "rgb",
    "outputs": "deepstream",
    "batch": None,
    "dynamic_size": False,
}

LABELS_FILE = "labels.txt"
MAX_BATCH = 16  # pictures per call, of what has to know the most before it runs

# Outputs whose first axis is the batch.
_BY_PICTURE = ("batch", "raw", "heads", "deepstream")
_NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}

_FRIGATE_HEAD = """\
# For Frigate's config.yml. Frigate sends pictures as input_pixel_format says, and the network in this file gets its
# channels in the order that it was trained with: where they differ, the file itself swaps them, so that no accuracy is
# lost. Scaling and suppression are in the file too.
# On Intel hardware "type: openvino" with "device: GPU" reads the same file.
"""

_DEEPSTREAM_HEAD = """\
# For Gst-nvinfer with the parser of DeepStream-Yolo, of which custom-lib-path is the built library.
# Suppression is that of nvinfer, class by class, over the best class of each anchor.
# nvinfer pads with black and without a border, whatever the network was trained with.
"""
_DEEPSTREAM_INT8 = """\
# The file says itself what is int8, which nvinfer does not build: engine-create-func-name does, or trtexec beforehand.
"""


# --- labels ---


def labels(spec: ExportSpec) -> str:
    """One name a line, in the order of the class numbers."""
    return "".join(f"{name}\n" for name in _names(spec))


def frigate_labels(spec: ExportSpec) -> str:
    """A number and a name a line: without numbers Frigate would take a first name such as "7 up" for one."""
    return "".join(f"{number} {name}\n" for number, name in enumerate(_names(spec)))


def _names(spec: ExportSpec) -> list[str]:
    """The names, each of them something that fits into a line."""
    return [" ".join(spec.names[number].split()) or f"class_{number}" for number in range(spec.num_classes)]


# --- Frigate ---


def frigate_config(spec: ExportSpec, model_path: str, labels_path: str) -> str:
    """The part of Frigate's `config.yml` that runs the file.

    Args:
        model_path: of the ONNX file, as Frigate's container sees it; `labels_path`: of `frigate_labels`, likewise.

    Raises:
        ValueError: the file is none that Frigate takes.
    """
    height, width = spec.preprocess.size
    _require("frigate", "outputs", spec.outputs, ("rows", "flat"), "Frigate reads rows of seven numbers")
    _require("frigate", "preprocess", spec.uint8, (True,), "Frigate sends bytes")
    _require(
        "frigate", "layout", spec.layout, ("nchw",), "Frigate's OpenVINO detector takes batch, channel, height, width"
    )
    _require("frigate", "batch", spec.batch, (1,), "Frigate sends one picture at a time")
    _require("frigate", "dynamic", spec.dynamic_size, (False,), "Frigate sends pictures of one size")
    if height != width:
        raise ValueError(
            f"frigate: size must be square, got {height}x{width}; Frigate cuts squares out of its pictures"
        )
    config = {
        "detectors": {"onnx": {"type": "onnx"}},
        "model": {
            "model_type": "yolonas",
            "width": width,
            "height": height,
            "input_tensor": "nchw",
            "input_pixel_format": spec.channels,
            "input_dtype": "int",
            "path": model_path,
            "labelmap_path": labels_path,
        },
    }
    return _FRIGATE_HEAD + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=float("inf"))


# --- Triton ---


def triton_files(
    spec: ExportSpec, name: str, *, max_batch: int = MAX_BATCH, queue_delay_us: int = 1000
) -> dict[str, bytes | None]:
    """The files of a model repository by their paths below it; None: the ONNX file itself. See `triton_config`."""
    config = triton_config(spec, name, max_batch=max_batch, queue_delay_us=queue_delay_us)
    return {
        f"{name}/config.pbtxt": config.encode(),
        f"{name}/{LABELS_FILE}": labels(spec).encode(),
        f"{name}/1/model.onnx": None,
    }


def triton_config(spec: ExportSpec, name: str, *, max_batch: int = MAX_BATCH, queue_delay_us: int = 1000) -> str:
    """The text of `config.pbtxt` for Triton's ONNX Runtime backend.

    Triton puts requests together into batches where the file takes any number of pictures and each output has an axis
    for them; else `max_batch_size` is 0, and a request is what the file takes. The precision changes nothing: inputs
    and outputs are the same in all of them.

    Args:
        name: of the model, which is a folder's too. max_batch: pictures per call at most. queue_delay_us: how long a
            request may wait for others, in microseconds.

    Raises:
        ValueError: a name or a number that cannot be used.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"triton: name must be letters, digits, '_', '-' and '.', got {name!r}")
    if max_batch < 1 or queue_delay_us < 0:
        raise ValueError(
            "triton: max_batch must be at least 1 and queue_delay_us at least 0, got "
            f"max_batch={max_batch} and queue_delay_us={queue_delay_us}"
        )
    by_picture = spec.outputs in _BY_PICTURE
    batched = by_picture and spec.batch is None
    batch = -1 if spec.batch is None else spec.batch
    sides = (-1, -1) if spec.dynamic_size else spec.preprocess.size
    shape = spec.input_shape(batch, *sides)
    inputs = [_tensor(INPUT_NAME, "UINT8" if spec.uint8 else "FP32", shape[1:] if batched else shape)]
    outputs = []
    for output, axes in zip(spec.output_names, _axes(spec), strict=True):
        is_int = output in (BATCH_NAMES[0], BATCH_NAMES[3])
        shape = axes if batched or not by_picture else (batch, *axes)
        file = LABELS_FILE if output == BATCH_NAMES[3] else None
        outputs.append(_tensor(output, "INT64" if is_int else "FP32", shape, file))
    text = f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {max_batch if batched else 0}\n'
    for group, tensors in (("input", inputs), ("output", outputs)):
        text += f"{group} [\n" + ",\n".join(tensors) + "\n]\n"
    if batched:
        # No preferred sizes: ONNX Runtime runs none of them better than others.
        text += f"dynamic_batching {{\n  max_queue_delay_microseconds: {queue_delay_us}\n}}\n"
    return text


def _tensor(name: str, kind: str, shape: tuple[int | str, ...], label_file: str | None = None) -> str:
    lines = [f'name: "{name}"', f"data_type: TYPE_{kind}", f"dims: [ {', '.join(map(str, shape))} ]"]
    lines += [] if label_file is None else [f'label_filename: "{label_file}"']
    return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"


def _axes(spec: ExportSpec) -> list[tuple[int, ...]]:
    """The axes of the outputs, of one picture in those that have an axis for pictures; -1: not known before a call."""
    most, classes, (height, width) = spec.settings.max_det, spec.num_classes, spec.preprocess.size
    cells = [(-1, -1) if spec.dynamic_size else (height // stride, width // stride) for stride in STRIDES]
    anchors = -1 if spec.dynamic_size else sum(rows * columns for rows, columns in cells)
    return {
        "batch": [(1,), (most, 4), (most,), (most,)],
        "flat": [(-1, 7)],
        "rows": [(-1 if spec.batch is None else spec.batch * most, 7)],
        "raw": [(anchors, 4), (anchors, classes)],
        "heads": [(channels, *level) for channels in (classes, 4 * (REG_MAX + 1)) for level in cells],
        "deepstream": [(anchors, 6)],
    }[spec.outputs]


# --- DeepStream ---


def deepstream_config(spec: ExportSpec, onnx_name: str, labels_name: str, *, batch: int = 1) -> str:
    """The text of a configuration of Gst-nvinfer, with the parser of the DeepStream-Yolo library.

    That parser takes one float32 output, for each picture a row of x1, y1, x2, y2 in pixels of the input, score and
    class for each anchor; it looks up a threshold by the class before it checks anything, so that no row may have -1.

    Args:
        onnx_name: of the file, `labels_name`: of `labels`, both relative to the configuration. batch: pictures per
            call, usually the number of streams, for a file that takes any number.

    Raises:
        ValueError: the file is none that nvinfer takes, or nvinfer cannot scale pixels as the network needs it.
    """
    pre, settings = spec.preprocess, spec.settings
    _require("deepstream", "outputs", spec.outputs, ("deepstream",), "the parser reads no others")
    _require("deepstream", "preprocess", spec.uint8, (False,), "nvinfer sends float32")
    _require("deepstream", "layout", spec.layout, ("nchw",), "the network's axes must be batch, channel, height, width")
    _require("deepstream", "dynamic", spec.dynamic_size, (False,), "nvinfer sends pictures of one size")
    if len(set(pre.divisor)) != 1:
        raise ValueError(
            f"deepstream: divisor must be the same for all channels, got {pre.divisor}; nvinfer has but one"
        )
    batch = batch if spec.batch is None else spec.batch
    mean = pre.mean[::-1] if spec.swaps_channels else pre.mean
    int8 = spec.precision == "int8"
    # Engines have the names under which nvinfer, or the library's own builder, stores what it builds.
    stem = "model" if int8 else onnx_name
    properties = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,  # whole frames
        "network-type": 0,  # a detector
        "onnx-file": onnx_name,
        "model-engine-file": f"{stem}_b{batch}_gpu0_{spec.precision}.engine",
        "labelfile-path": labels_name,
        "batch-size": batch,
        "network-mode": _NETWORK_MODES[spec.precision],
        "num-detected-classes": spec.num_classes,
        "interval": 0,
        "model-color-format": 0 if spec.channels == "rgb" else 1,
        "net-scale-factor": 1.0 / pre.divisor[0],
        **({"offsets": ";".join(map(repr, mean))} if any(mean) else {}),
        "maintain-aspect-ratio": int(pre.keep_ratio),
        "symmetric-padding": int(pre.padding == "center"),
        "cluster-mode": 2,  # suppression
        "parse-bbox-func-name": "NvDsInferParseYolo",
        "custom-lib-path": "nvdsinfer_custom_impl_Yolo/libnvdsinfer_custom_impl_Yolo.so",
        **({"engine-create-func-name": "NvDsInferYoloCudaEngineGet"} if int8 else {}),
    }
    thresholds = {
        "nms-iou-threshold": settings.iou,
        "pre-cluster-threshold": settings.conf,
        "topk": settings.max_det,
    }
    groups = {"property": properties, "class-attrs-all": thresholds}
    text = "\n".join(
        f"[{group}]\n" + "".join(f"{key}={value}\n" for key, value in values.items())
        for group, values in groups.items()
    )
    return _DEEPSTREAM_HEAD + (_DEEPSTREAM_INT8 if int8 else "") + text


# --- TensorRT ---


def trtexec_line(
    spec: ExportSpec,
    onnx_path: str,
    engine_path: str,
    *,
    max_batch: int = MAX_BATCH,
    workspace: float | None = None,
) -> str:
    """The shell command that builds an engine of the file, with TensorRT 10 or newer.

    Types are those of the file: `--stronglyTyped`, without which TensorRT 10 would choose them by flags that are
    deprecated there and unknown to TensorRT 11. An int8 file says itself which layers are int8.

    Args:
        max_batch: pictures per call at most, for a file that takes any number. workspace: GiB of scratch memory at
            most; None: what the GPU has.
    """
    parts = ["trtexec", f"--onnx={onnx_path}", f"--saveEngine={engine_path}", "--stronglyTyped", "--skipInference"]
    for name, shape in zip(("min", "opt", "max"), profile_shapes(spec, max_batch) or (), strict=False):
        parts.append(f"--{name}Shapes={INPUT_NAME}:{'x'.join(map(str, shape))}")
    if workspace is not None:
        parts.append(f"--memPoolSize=workspace:{round(1024 * workspace)}")  # MiB
    return shlex.join(parts)


def profile_shapes(spec: ExportSpec, max_batch: int) -> tuple[tuple[int, ...], ...] | None:
    """The smallest input, the one to be fastest with, and the largest; None: there is but one.

    The largest sides are those that the file is meant for, since an engine holds memory for them.
    """
    if spec.batch is not None and not spec.dynamic_size:
        return None
    low, high = (1, max_batch) if spec.batch is None else (spec.batch, spec.batch)
    large = spec.preprocess.size
    small = (STRIDE, STRIDE) if spec.dynamic_size else large
    shapes = (spec.input_shape(low, *small), spec.input_shape(high, *large))
    return tuple(tuple(map(int, shape)) for shape in (shapes[0], shapes[1], shapes[1]))


def _require(target: str, name: str, value: Any, allowed: tuple[Any, ...], reason: str) -> None:
    if value not in allowed:
        wanted = " or ".join(map(repr, allowed))
        raise ValueError(f"{target}: {name} must be {wanted}, got {value!r}; {reason}")
