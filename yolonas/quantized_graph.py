"""Makes the graph of a quantised network of a lowered one: integer steps on int8 buffers, float steps on float32 ones.

Quantisation is symmetric, of weights per output channel and of activations per buffer: the parts of a concatenation,
what is added up in place and the maxima of a pool have one scale each (Jacob et al. 2018, "Quantization and training of
neural networks for efficient integer-arithmetic-only inference", without zero points).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .lowering import INPUT, Graph, View

INPUT_NAME = "input"  # of the network's input among the scales
INPUT_CHANNELS = 4  # of the int8 input, the last of them zeros: kernels take channels by fours

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)  # of a scale


def quantized_graph(graph: Graph, scales: Mapping[str, float]) -> Graph:
    """The mixed graph of a lowered network, in which every step with a `weight_scale` runs on integers.

    A buffer is int8 where an integer step reads it, else float32. Besides the steps of `lower` there are
    {"op": "quantize"} and {"op": "dequantize"}, with `name`, `input` and `output`: they stand between a float step and
    an int8 buffer, with a buffer of the step's own in between, and "input.quantize" between the input and an int8
    buffer of four channels. "quantize" may have fewer input than output channels, the rest becomes 0; and it may write
    what was written before. "max_pool5" runs on both types.

    Integer steps have int8 `weight` within -127..127, float32 `weight_scale` and `bias`; they read int8 buffers, the
    residual's too, and write an int8 or a float32 one. Their arithmetic is that of `ops.reference.conv2d_s8`.

    Args:
        graph: of `lower`, which stays as it is.
        scales: the scale of each step that writes an int8 buffer, by its name, and that of "input". Others are ignored.

    Raises:
        ValueError: a scale that is needed is missing or is no positive float32, or steps that write the same buffer
            have different ones.
    """
    return _Builder(graph, scales).build()


def quantized_weight(weight: np.ndarray, scale: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """`clip(rint(weight / scale), -127, 127)` as int8, in float32, with a scale per slice along an axis."""
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    integers = np.rint(weight.astype(np.float32) / scale.reshape(shape))
    return np.clip(integers, -127, 127).astype(np.int8)


class _Builder:
    def __init__(self, source: Graph, scales: Mapping[str, float]):
        self.source = source
        self.scales = scales
        read = {view.buffer for step in source.steps if _is_integer(step) for view in _inputs(step)}
        self.graph = Graph(outputs=source.outputs)
        writers: dict[int, list[str]] = {number: [] for number in read - {INPUT}}
        for step in source.steps:
            writers.get(step["output"].buffer, []).append(step["name"])
        for number, (downscale, channels, _) in enumerate(source.buffers):
            self.graph.buffer(downscale, channels, self._common_scale(writers[number]) if number in writers else 0.0)
        self.input = View(INPUT, 0, source.buffers[INPUT].channels)
        if INPUT in read:
            self.input = self.graph.buffer(0, INPUT_CHANNELS, self._scale(INPUT_NAME))
            self._add("quantize", INPUT_NAME, View(INPUT, 0, source.buffers[INPUT].channels), self.input)

    def build(self) -> Graph:
        assert not any(self._is_int8(level[kind]) for level in self.source.outputs for kind in ("cls", "reg"))
        for step in self.source.steps:
            if _is_integer(step):
                self._integer_step(step)
            elif step["op"] == "max_pool5":
                assert step["input"].buffer == step["output"].buffer
                self.graph.steps.append(step)
            else:
                self._float_step(step)
        return self.graph

    def _integer_step(self, step: dict[str, Any]) -> None:
        weight, scale = step["weight"], _checked_weight_scale(step)
        axis = 1 if step["op"] == "upsample" else 0
        changed = {"weight": quantized_weight(weight, scale, axis=axis), "bias": step["bias"].astype(np.float32)}
        if step["input"].buffer == INPUT:
            assert step["input"].channels == weight.shape[1]
            missing = self.input.channels - weight.shape[1]
            changed["weight"] = np.pad(changed["weight"], ((0, 0), (0, missing), (0, 0), (0, 0)))
            changed["input"] = self.input
        self.graph.steps.append(step | changed)

    def _float_step(self, step: dict[str, Any]) -> None:
        name, out = step["name"], step["output"]
        changed = {"input": self._as_float(name, step["input"])}
        if step.get("residual") is not None:
            changed["residual"] = self._as_float(f"{name}.residual", step["residual"])
        if not self._is_int8(out):
            self.graph.steps.append(step | changed)
            return
        own = self.graph.buffer(self.source.downscale(out), out.channels)
        self.graph.steps.append(step | changed | {"output": own})
        self._add("quantize", name, own, out)

    def _as_float(self, name: str, view: View) -> View:
        """The view, or a buffer into which it is dequantised."""
        if not self._is_int8(view):
            return view
        own = self.graph.buffer(self.source.downscale(view), view.channels)
        self._add("dequantize", name, view, own)
        return own

    def _add(self, op: str, name: str, source: View, out: View) -> None:
        self.graph.steps.append({"op": op, "name": f"{name}.{op}", "input": source, "output": out})

    def _is_int8(self, view: View) -> bool:
        return self.graph.buffers[view.buffer].scale > 0

    def _common_scale(self, names: list[str]) -> float:
        first = self._scale(names[0])
        for name in names[1:]:
            if (other := self._scale(name)) != first:
                raise ValueError(
                    f"quantize: scale of {name!r} must be that of {names[0]!r}, {first!r}, as both write the same "
                    f"buffer, got {other!r}"
                )
        return first

    def _scale(self, name: str) -> float:
        scale = self.scales.get(name)
        if not isinstance(scale, int | float | np.number) or not _is_scale(scale):
            raise ValueError(f"quantize: scale of {name!r} must be a positive number, got {scale!r}")
        return float(np.float32(scale))


def _is_integer(step: dict[str, Any]) -> bool:
    return step.get("weight_scale") is not None


def _inputs(step: dict[str, Any]) -> list[View]:
    residual = step.get("residual")
    return [step["input"]] if residual is None else [step["input"], residual]


def _is_scale(scale: Any) -> Any:
    """Whether it and its inverse are positive finite float32 numbers; of an array, each."""
    return (scale >= SMALLEST) & (scale <= LARGEST)


def _checked_weight_scale(step: dict[str, Any]) -> np.ndarray:
    scale: np.ndarray = step["weight_scale"]
    if scale.dtype != np.float32 or scale.shape != step["bias"].shape:
        expected, found = (f"float32 {step['bias'].shape}", f"{scale.dtype} {scale.shape}")
        raise ValueError(f"quantize: weight_scale of {step['name']!r} must be {expected}, got {found}")
    wrong = np.flatnonzero(~_is_scale(scale))
    if len(wrong):
        value, channel = scale[wrong[0]], wrong[0]
        raise ValueError(
            f"quantize: weight_scale of {step['name']!r} must be positive, got {value} for channel {channel}"
        )
    return scale
