"""The network as ONNX nodes: preparation of the input, convolutions, and in INT8 explicit Q/DQ pairs.

A pair stands behind every operation whose result is read in integers, and behind the input. So every convolution has
its input and its weights from a DequantizeLinear, which is what TensorRT and OpenVINO look for; the shortcut of a
bottleneck comes out of a pair too. Nothing stands between a convolution and its ReLU or sum. Zero points are 0, weights
are int8 constants with a scale per output channel. Biases and the six head outputs are in float.

Concatenations, whose parts have one scale, are of integers. For TensorRT they are of floats between pairs, as its
documentation has it; OpenVINO 2026.4 computes that form wrongly where it reads the ONNX file itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .spec import INPUT_NAME

if TYPE_CHECKING:
    from .dataflow import Dataflow, Op
    from .onnx_builder import Builder
    from .spec import ExportSpec

PREPARED = "prepared"  # what the network sees


def add_input(b: Builder, spec: ExportSpec) -> None:
    """From the input of the spec to float maps, scaled where the input is bytes; the order of channels stays."""
    height, width = ("height", "width") if spec.dynamic_size else spec.preprocess.size
    shape = spec.input_shape("batch" if spec.batch is None else spec.batch, height, width)
    x = b.input(INPUT_NAME, "uint8" if spec.uint8 else "float32", shape)
    if spec.nhwc:
        x = b.node("Transpose", [x], "input_nchw", perm=[0, 3, 1, 2])
    if spec.uint8:
        x = b.cast(x, "float32", "input_float")
        mean, divisor = (_per_channel(values, spec) for values in (spec.preprocess.mean, spec.preprocess.divisor))
        if mean.any():
            x = b.node("Sub", [x, b.constant("input_mean", mean)], "input_centred")
        x = b.node("Mul", [x, b.constant("input_factor", 1 / divisor)], "input_scaled")
    if spec.precision == "fp16":
        b.cast(x, "float16", PREPARED)
    else:
        b.node("Identity", [x], PREPARED)


def add_network(b: Builder, flow: Dataflow, *, half: bool, for_tensorrt: bool) -> None:
    """All operations; the input is the tensor `PREPARED`, and every map has its own name."""
    nodes = _Nodes(b, half, for_tensorrt)
    for op in flow.ops:
        getattr(nodes, op.kind)(op)


class _Nodes:
    def __init__(self, b: Builder, half: bool, for_tensorrt: bool):
        self.b, self.for_tensorrt = b, for_tensorrt
        self.dtype = np.float16 if half else np.float32
        self.tensors = {INPUT_NAME: PREPARED}  # of maps that do not have the name of their tensor
        self.steps: dict[str, float] = {}  # of maps that come out of integers

    def conv(self, op: Op) -> None:
        assert op.weight is not None
        kernel = list(op.weight.shape[2:])
        attributes = {
            "kernel_shape": kernel,
            "pads": [side // 2 for side in kernel * 2],
            "strides": [op.stride] * 2,
        }
        name = f"{op.name}.conv" if op.relu else op.name
        self.b.node("Conv", [*self._inputs(op), self._weight(op, axis=0), self._bias(op)], name, **attributes)
        if op.relu:
            self.b.node("Relu", [name], op.name)

    def deconv(self, op: Op) -> None:
        assert op.weight is not None
        inputs = [*self._inputs(op), self._weight(op, axis=1), self._bias(op)]
        self.b.node("ConvTranspose", inputs, op.name, kernel_shape=list(op.weight.shape[2:]), strides=[op.stride] * 2)

    def add(self, op: Op) -> None:
        first, second = self._inputs(op)
        factor = self.b.constant(f"{op.name}.factor", np.asarray(op.scale, self.dtype))
        scaled = self.b.node("Mul", [second, factor], f"{op.name}.scaled")
        self.b.node("Add", [first, scaled], op.name)

    def concat(self, op: Op) -> None:
        scale = self.steps.get(op.inputs[0].name)  # None: the parts are in float
        if scale is None or self.for_tensorrt:
            self.b.node("Concat", self._inputs(op), op.name, axis=1)
            return
        integers = self.b.node("Concat", [f"{x.name}.int8" for x in op.inputs], f"{op.name}.int8", axis=1)
        self._dequantize(integers, scale, op.name)

    def max_pool5(self, op: Op) -> None:
        self.b.node("MaxPool", self._inputs(op), op.name, kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1])

    def quantize(self, op: Op) -> None:
        (x,) = op.inputs
        if self.steps.get(x.name) == op.scale:
            self.tensors[op.name] = x.name
            return
        integers = self.b.node("QuantizeLinear", [*self._inputs(op), *self._step(op.scale)], f"{op.name}.int8")
        self._dequantize(integers, op.scale, op.name)

    def _dequantize(self, integers: str, scale: float, name: str) -> None:
        self.b.node("DequantizeLinear", [integers, *self._step(scale)], name)
        self.steps[name] = scale

    def _step(self, scale: float) -> list[str]:
        return [
            self.b.shared(f"scale_{np.float32(scale)!s}", scale, self.dtype),
            self.b.shared("zero_int8", 0, np.int8),
        ]

    def _inputs(self, op: Op) -> list[str]:
        return [self.tensors.get(x.name, x.name) for x in op.inputs]

    def _weight(self, op: Op, *, axis: int) -> str:
        weight, scale, name = op.weight, op.weight_scale, f"{op.name}.weight"
        assert weight is not None
        if scale is None:
            return self.b.constant(name, lambda: weight.astype(self.dtype, copy=False))
        steps = [
            self.b.constant(f"{name}.scale", scale.astype(self.dtype)),
            self.b.shared(f"zeros_int8_{len(scale)}", np.zeros(len(scale)), np.int8),
        ]
        integers = self.b.constant(f"{name}.int8", weight)
        return self.b.node("DequantizeLinear", [integers, *steps], name, axis=axis)

    def _bias(self, op: Op) -> str:
        assert op.bias is not None
        return self.b.constant(f"{op.name}.bias", op.bias.astype(self.dtype))


def _per_channel(values: tuple[float, ...], spec: ExportSpec) -> np.ndarray:
    """A number per channel in the order in which they come, as one number where all are the same."""
    ordered = np.asarray(values[::-1] if spec.swaps_channels else values, np.float64)
    return (ordered[:1] if len(set(values)) == 1 else ordered).reshape(1, -1, 1, 1).astype(np.float32)
