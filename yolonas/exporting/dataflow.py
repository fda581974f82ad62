"""A lowered network as plain operations on named maps, each written once: what other runtimes' files are made of.

The engine's graph has wide buffers whose parts are written one by one; here a concatenation is an operation again, and
two convolutions that the engine runs as one are two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..lowering import INPUT, lower
from ..quantized_graph import quantized_graph

if TYPE_CHECKING:
    from ..lowering import View
    from ..nn import YoloNAS


class Map(NamedTuple):
    """A feature map `(B, channels, H >> downscale, W >> downscale)`."""

    name: str
    channels: int
    downscale: int


@dataclass(frozen=True)
class Op:
    """One operation.

    "conv": convolution of `weight` (K, C, kh, kw) and `bias` (K,), of `stride`, padding kh // 2, then ReLU if `relu`.
    "deconv": transposed convolution of `weight` (C, K, 2, 2) and `bias`, stride 2. "add": first + `scale` * second.
    "concat": of channels. "max_pool5": maximum of 5x5 windows, stride 1. "quantize": rounding to the int8 steps of
    `scale`, half to even, and back to float.

    A convolution with a `weight_scale` (K,) has int8 `weight`, which stand for weight * weight_scale; all its inputs
    come from "quantize".
    """

    kind: str
    name: str
    inputs: tuple[Map, ...]
    output: Map
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    weight_scale: np.ndarray | None = None
    stride: int = 1
    relu: bool = False
    scale: float = 0.0


@dataclass(frozen=True)
class Dataflow:
    """Operations in an order in which they can run; `outputs` are class and box logits, from fine to coarse levels."""

    input: Map
    ops: list[Op]
    cls: list[Map]
    reg: list[Map]


def dataflow(model: YoloNAS, *, input_name: str, swap_channels: bool = False) -> Dataflow:
    """The operations of a folded network, in integers where it has scales.

    Args:
        swap_channels: the input comes with its channels in the reverse order; the first weights are turned round.

    Raises:
        ValueError: see `lower` and `quantized_graph`.
    """
    graph = lower(model)
    if model.activation_scales:
        graph = quantized_graph(graph, model.activation_scales)
    return _Flow(graph, input_name, swap_channels).build()


def check_weights(flow: Dataflow, precision: str) -> None:
    """Raises ValueError for weights and biases that the precision has no numbers for."""
    limit = np.finfo(np.float16 if precision == "fp16" else np.float32).max
    for op in flow.ops:
        for values in (op.weight, op.bias):
            largest = 0 if values is None else np.abs(values.astype(np.float32, copy=False)).max(initial=0)
            if not largest <= limit:
                raise ValueError(
                    f"export: weights of {op.name!r} must lie within {limit:g} for precision={precision!r}, got "
                    f"{largest:g}"
                )


class _Flow:
    def __init__(self, graph: Any, input_name: str, swap_channels: bool):
        self.graph, self.swap_channels = graph, swap_channels
        self.ops: list[Op] = []
        self.input = Map(input_name, graph.buffers[INPUT].channels, 0)
        # What the parts of each buffer hold at the moment, by their first channel.
        self.parts: list[dict[int, Map]] = [{} for _ in graph.buffers]
        self.parts[INPUT][0] = self.input
        self.joined: dict[tuple[str, ...], Map] = {}

    def build(self) -> Dataflow:
        for step in self.graph.steps:
            getattr(self, f"_{step['op']}")(step)
        cls, reg = ([self._read(level[kind], "") for level in self.graph.outputs] for kind in ("cls", "reg"))
        return Dataflow(self.input, self.ops, cls, reg)

    def _conv(self, step: dict[str, Any]) -> None:
        modules, begin = step["modules"], 0
        names = _module_names(step["name"], len(modules))
        x = self._read(step["input"], names[0])
        for name, module in zip(names, modules, strict=True):
            channels = module.out_channels
            rows = slice(begin, begin + channels)
            weight, scale = step["weight"][rows, : x.channels], step["weight_scale"]
            if x.name == self.input.name or x.name == f"{self.input.name}.quantized":
                weight = weight[:, ::-1] if self.swap_channels else weight
            op = self._add(
                "conv",
                name,
                (x,),
                channels,
                self.graph.downscale(step["output"]),
                weight=np.ascontiguousarray(weight),
                bias=step["bias"][rows],
                weight_scale=None if scale is None else scale[rows],
                stride=step["stride"],
                relu=step["relu"],
            )
            if step["residual"] is not None:
                assert len(modules) == 1
                residual = self._read(step["residual"], f"{name}.residual")
                op = self._add(
                    "add", f"{name}.sum", (op, residual), channels, op.downscale, scale=step["residual_scale"]
                )
            self._write(step["output"].part(begin, channels), op)
            begin += channels

    def _upsample(self, step: dict[str, Any]) -> None:
        x, out = self._read(step["input"], step["name"]), step["output"]
        made = self._add(
            "deconv",
            step["name"],
            (x,),
            out.channels,
            self.graph.downscale(out),
            weight=step["weight"],
            bias=step["bias"],
            weight_scale=step["weight_scale"],
            stride=2,
        )
        self._write(out, made)

    def _max_pool5(self, step: dict[str, Any]) -> None:
        x = self._read(step["input"], step["name"])
        self._write(step["output"], self._add("max_pool5", step["name"], (x,), x.channels, x.downscale))

    def _quantize(self, step: dict[str, Any]) -> None:
        """The fourth channel of an int8 input is for the engine's kernels alone."""
        self._write(step["output"], self._read(step["input"], step["name"]))

    def _dequantize(self, step: dict[str, Any]) -> None:
        self._write(step["output"], self._read(step["input"], step["name"]))

    def _add(self, kind: str, name: str, inputs: tuple[Map, ...], channels: int, downscale: int, **values: Any) -> Map:
        output = Map(name, channels, downscale)
        self.ops.append(Op(kind, name, inputs, output, **values))
        return output

    def _write(self, view: View, made: Map) -> None:
        scale = self.graph.buffers[view.buffer].scale
        parts = self.parts[view.buffer]
        assert not any(view.offset < at < view.offset + view.channels for at in parts)
        parts[view.offset] = self._quantized(made, scale) if scale > 0 else made

    def _quantized(self, made: Map, scale: float) -> Map:
        return self._add("quantize", f"{made.name}.quantized", (made,), made.channels, made.downscale, scale=scale)

    def _read(self, view: View, reader: str) -> Map:
        parts, maps = self.parts[view.buffer], []
        at = view.offset
        while at < view.offset + view.channels and at in parts:
            maps.append(parts[at])
            at += parts[at].channels
        if len(maps) == 1:
            return maps[0]
        assert at == view.offset + view.channels
        key = tuple(one.name for one in maps)
        if key not in self.joined:
            joined = self._add("concat", f"{reader}.input", tuple(maps), view.channels, maps[0].downscale)
            scale = self.graph.buffers[view.buffer].scale
            # Once more where it is whole: runtimes look for this before a convolution, and the values stay the same.
            self.joined[key] = self._quantized(joined, scale) if scale > 0 else joined
        return self.joined[key]


def _module_names(name: str, count: int) -> list[str]:
    """`a.conv1+conv2` stands for a.conv1 and a.conv2."""
    before, _, last = name.rpartition(".")
    names = [f"{before}.{part}" for part in last.split("+")]
    assert len(names) == count
    return names
