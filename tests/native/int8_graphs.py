"""A graph of int8 and float32 steps for the tests of the native engine, and the same in plain integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from engine_graphs import Graph, conv, upsample

from yolonas.lowering import Buffer, View
from yolonas.lowering import Graph as LoweredGraph
from yolonas.quantization.reference import run_integer
from yolonas.quantized_graph import quantized_weight


def integer(step: dict[str, Any]) -> dict[str, Any]:
    """The step with int8 weights, a scale per output channel."""
    axis = 1 if step["op"] == "upsample" else 0
    others = tuple(i for i in range(4) if i != axis)
    scale = (np.abs(step["weight"]).max(axis=others) / 127).astype(np.float32)
    return {**step, "weight": quantized_weight(step["weight"], scale, axis=axis), "weight_scale": scale}


def convert(op: str, name: str, x: Any, y: Any) -> dict[str, Any]:
    return {"op": op, "name": name, "input": x, "output": y}


def graph() -> Graph:
    """Every kind of step in integers; in the middle a float step, and one that overwrites its residual in place."""
    picture, stem, join, inside, four = (1, 0, 4), (2, 0, 24), (3, 0, 64), (4, 0, 24), (5, 0, 56)
    island, back = (13, 0, 24), (14, 0, 24)
    buffers: list[Any] = [(0, 3), (0, 4, 0.02), (1, 24, 0.03), (2, 64, 0.04), (2, 24, 0.03), (3, 56, 0.05)]
    buffers += [(3, 36, 0.05), (2, 33, 0.04), (2, 9), (3, 50), (2, 34), (4, 21), (4, 7), (2, 24), (2, 24, 0.0)]
    steps = [
        convert("quantize", "input.quantize", (0, 0, 3), picture),
        integer(conv("stem", picture, stem, 3, 2)),
        integer(conv("down", stem, (3, 0, 24), 3, 2)),
        integer(conv("side", (3, 0, 24), (3, 24, 16), 1)),
        integer(conv("first", (3, 0, 24), inside, 3)),
        integer(conv("second", inside, (3, 40, 24), 3, residual=(3, 0, 24), residual_scale=0.75)),
        convert("dequantize", "island.in", (3, 40, 24), island),
        conv("island", island, back, 3, residual=island, residual_scale=0.5),
        convert("quantize", "island.out", back, (3, 40, 24)),
        integer(conv("deeper", join, four, 3, 2, relu=False)),
        integer(conv("pool in", four, (6, 0, 9), 1)),
        convert("max_pool5", "pool", (6, 0, 9), (6, 9, 9)),
        convert("max_pool5", "pool 2", (6, 9, 9), (6, 18, 9)),
        convert("max_pool5", "pool 3", (6, 18, 9), (6, 27, 9)),
        integer(conv("in place", (6, 0, 36), four, 1, residual=four, residual_scale=-0.5)),
        integer(upsample("up", four, (7, 10, 23))),
        integer(conv("beside", join, (7, 0, 10), 5)),
        integer(conv("fine cls", (7, 0, 33), (8, 0, 9), 1, relu=False)),
        integer(conv("fine reg", (7, 0, 33), (10, 0, 34), 3, relu=False)),
        integer(conv("coarse", four, (9, 0, 50), 3, relu=False)),
        integer(conv("last cls", four, (11, 0, 21), 1, 2, relu=False)),
        conv("last reg", (9, 0, 50), (12, 0, 7), 3, 2, relu=False),
    ]
    outputs = [
        {"cls": (8, 0, 9), "reg": (10, 2, 30), "stride": 4},
        {"cls": (9, 0, 13), "reg": (9, 13, 37), "stride": 8},
        {"cls": (11, 0, 21), "reg": (12, 0, 7), "stride": 16},
    ]
    return buffers, steps, outputs


def only_integers() -> Graph:
    """The same without the float steps: whatever the processor, every bit is known."""
    buffers, steps, outputs = graph()
    floats = {"island.in", "island", "island.out", "last reg"}
    outputs[2]["reg"] = (11, 0, 21)
    outputs[2]["cls"] = (12, 0, 7)
    last = integer(conv("last", (5, 0, 56), (12, 0, 7), 3, 2, relu=False))
    return buffers, [step for step in steps if step["name"] not in floats] + [last], outputs


def interpret(graph: Graph, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All outputs, cls and reg of each level; and what every step wrote."""
    steps = [with_views(step) for step in graph[1]]
    buffers = [
        Buffer(down, channels, *(float(np.float32(one)) for one in scale)) for down, channels, *scale in graph[0]
    ]
    written = run_integer(LoweredGraph(buffers, steps), x)
    writer = {step["output"].buffer: step for step in steps}
    outputs = []
    for view in (View(*level[kind]) for level in graph[2] for kind in ("cls", "reg")):
        step = writer[view.buffer]
        first = view.offset - step["output"].offset
        outputs.append(written[step["name"]][..., first : first + view.channels])
    return outputs, list(written.values())


def with_views(step: dict[str, Any]) -> dict[str, Any]:
    ends = ("input", "output", "residual")
    return {key: View(*value) if key in ends and value is not None else value for key, value in step.items()}


GRAPH = graph()
INTEGERS = only_integers()
