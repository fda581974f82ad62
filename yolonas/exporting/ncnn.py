"""Files for ncnn: layers in a text file, their weights in a binary one, and what they are in `metadata.yaml`.

ncnn reads float32 of one picture, channel by channel, at any size; its files give the head outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .dataflow import check_weights, dataflow
from .spec import INPUT_NAME, write_metadata

if TYPE_CHECKING:
    from ..nn import YoloNAS
    from .dataflow import Op
    from .spec import ExportSpec

PARAM_FILE, BIN_FILE = "model.ncnn.param", "model.ncnn.bin"

MAGIC = 7767517  # the first line of the text file
# What stands before weights, and not before biases: how they are stored.
TAGS = {"fp32": (0, np.dtype("<f4")), "fp16": (0x01306B47, np.dtype("<f2"))}

# What a spec must have, as users write it, and why.
_ONLY = (
    ("outputs", "outputs", "heads", "yolonas.hpp makes boxes of them"),
    ("preprocess", "uint8", False, "ncnn reads float32"),
    ("layout", "layout", "nchw", "ncnn reads channel by channel"),
    ("batch", "batch", 1, "ncnn has no batches"),
)


def check_ncnn_spec(model: YoloNAS, spec: ExportSpec) -> None:
    """Raises NotImplementedError for a quantised network, and for outputs or an input that ncnn cannot have."""
    for name, attribute, only, reason in _ONLY:
        if (value := getattr(spec, attribute)) != only:
            raise NotImplementedError(f"export: {name} must be {only!r} for format='ncnn', got {value!r}; {reason}")
    if spec.precision not in TAGS or model.activation_scales:
        got = "a quantised network" if model.activation_scales else repr(spec.precision)
        raise NotImplementedError(
            f"export: precision must be 'fp32' or 'fp16' for format='ncnn', got {got}; 'onnx' and 'openvino' take int8"
        )


def write_ncnn(folder: Path, model: YoloNAS, spec: ExportSpec) -> None:
    """Writes `model.ncnn.param`, `model.ncnn.bin` and `metadata.yaml` into an empty folder.

    The input "input" is float32 `(3, H, W)`, its sides any multiples of 32 whatever `spec` says; the outputs are those
    of "heads", without the batch. With precision "fp16" weights are stored as halves, biases as float32.

    Args:
        model: in folded form.

    Raises:
        NotImplementedError: see `check_ncnn_spec`.
        ValueError: the network is in another form, or has weights that the precision has no numbers for.
    """
    check_ncnn_spec(model, spec)
    flow = dataflow(model, input_name=INPUT_NAME, swap_channels=spec.swaps_channels)
    check_weights(flow, spec.precision)
    outputs = dict(zip((one.name for one in (*flow.cls, *flow.reg)), spec.output_names, strict=True))
    layers = _Layers(Counter(one.name for op in flow.ops for one in op.inputs))
    height, width = spec.preprocess.size
    layers.add("Input", INPUT_NAME, (), INPUT_NAME, {} if spec.dynamic_size else {0: width, 1: height, 2: 3})
    with (folder / BIN_FILE).open("wb") as file:
        for op in flow.ops:
            kind, params = _layer(op)
            layers.add(kind, op.name, [one.name for one in op.inputs], outputs.get(op.name, op.name), params)
            if op.weight is not None:
                _write_weights(file, op, spec.precision)
    (folder / PARAM_FILE).write_text(layers.text(), encoding="utf-8", newline="\n")
    write_metadata(folder, spec)


class _Layers:
    """The lines of the text file. A blob has one reader: where there are more, each has its own copy, of a Split.

    Args:
        readers: how many read each blob.
    """

    def __init__(self, readers: Mapping[str, int]):
        self.readers = readers
        self.lines: list[str] = []
        self.blobs = 0
        self.unread: dict[str, list[str]] = {}

    def add(self, kind: str, name: str, inputs: Sequence[str], output: str, params: Mapping[int, Any]) -> None:
        self._line(kind, name, [self.unread[one].pop(0) for one in inputs], [output], params)
        self.unread[output] = [output]
        if (count := self.readers.get(output, 0)) > 1:
            self.unread[output] = [f"{output}.split{number}" for number in range(count)]
            self._line("Split", f"{output}.split", [output], self.unread[output], {})

    def _line(
        self, kind: str, name: str, inputs: Sequence[str], outputs: Sequence[str], params: Mapping[int, Any]
    ) -> None:
        words = [kind, name, len(inputs), len(outputs), *inputs, *outputs]
        words += [f"{number}={value}" for number, value in params.items()]
        self.lines.append(" ".join(map(str, words)))
        self.blobs += len(outputs)

    def text(self) -> str:
        return "\n".join([str(MAGIC), f"{len(self.lines)} {self.blobs}", *self.lines, ""])


def _layer(op: Op) -> tuple[str, dict[int, Any]]:
    """Kind and parameters, by ncnn's numbers, of the layer that does an operation."""
    if op.kind == "add":  # a sum with factors, in one pass; the parser takes numbers of at most 15 characters
        return "Eltwise", {0: 1, -23301: f"2,1.0,{op.scale:.8e}"}
    if op.kind == "concat":  # of channels
        return "Concat", {0: 0}
    if op.kind == "max_pool5":  # kernel, stride, padding, of which every window has as much as it needs
        return "Pooling", {0: 0, 1: 5, 2: 1, 3: 2, 5: 1}
    assert op.weight is not None
    params = {0: op.output.channels, 1: op.weight.shape[-1], 3: op.stride, 5: 1, 6: op.weight.size}
    if op.kind == "deconv":
        return "Deconvolution", params
    return "Convolution", params | {4: op.weight.shape[-1] // 2, 9: int(op.relu)}


def _write_weights(file: BinaryIO, op: Op, precision: str) -> None:
    """Weights as (outputs, inputs, height, width), filled up to four bytes, and biases."""
    assert op.weight is not None
    assert op.bias is not None
    tag, dtype = TAGS[precision]
    weight = op.weight.swapaxes(0, 1) if op.kind == "deconv" else op.weight
    stored = np.ascontiguousarray(weight, dtype)
    file.write(tag.to_bytes(4, "little"))
    file.write(stored.data)
    file.write(bytes(-stored.nbytes % 4))
    file.write(np.ascontiguousarray(op.bias, "<f4").data)
