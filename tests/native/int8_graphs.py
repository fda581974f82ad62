"""A graph of int8 and float32 steps for the tests of the native engine, and the same in plain integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from engine_graphs import ODD, Graph, Widths, conv, upsample

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


def graph(widths: Widths = ODD) -> Graph:
    """Every kind of step in integers; in the middle a float step, and one that overwrites its residual in place."""
    w, last = widths, widths.stem + 16  # where the last of the joined parts begins
    picture, stem, join, inside = (1, 0, 4), (2, 0, w.stem), (3, 0, last + w.stem), (4, 0, w.stem)
    first, four, spp, joined = (3, 0, w.stem), (5, 0, w.four), (6, 0, 4 * w.pool), (7, 0, w.beside + w.up)
    island, back = (13, 0, w.stem), (14, 0, w.stem)
    buffers: list[Any] = [(0, 3), (0, 4, 0.02), (1, w.stem, 0.03), (2, join[2], 0.04), (2, w.stem, 0.03)]
    buffers += [(3, w.four, 0.05), (3, spp[2], 0.05), (2, joined[2], 0.04), (2, 9), (3, w.coarse), (2, 34), (4, 21)]
    buffers += [(4, 7), (2, w.stem), (2, w.stem, 0.0)]
    steps = [
        convert("quantize", "input.quantize", (0, 0, 3), picture),
        integer(conv("stem", picture, stem, 3, 2)),
        integer(conv("down", stem, first, 3, 2)),
        integer(conv("side", first, (3, w.stem, 16), 1)),
        integer(conv("first", first, inside, 3)),
        integer(conv("second", inside, (3, last, w.stem), 3, residual=first, residual_scale=0.75)),
        convert("dequantize", "island.in", (3, last, w.stem), island),
        conv("island", island, back, 3, residual=island, residual_scale=0.5),
        convert("quantize", "island.out", back, (3, last, w.stem)),
        integer(conv("deeper", join, four, 3, 2, relu=False)),
        integer(conv("pool in", four, (6, 0, w.pool), 1)),
        convert("max_pool5", "pool", (6, 0, w.pool), (6, w.pool, w.pool)),
        convert("max_pool5", "pool 2", (6, w.pool, w.pool), (6, 2 * w.pool, w.pool)),
        convert("max_pool5", "pool 3", (6, 2 * w.pool, w.pool), (6, 3 * w.pool, w.pool)),
        integer(conv("in place", spp, four, 1, residual=four, residual_scale=-0.5)),
        integer(upsample("up", four, (7, w.beside, w.up))),
        integer(conv("beside", join, (7, 0, w.beside), 5)),
        integer(conv("fine cls", joined, (8, 0, 9), 1, relu=False)),
        integer(conv("fine reg", joined, (10, 0, 34), 3, relu=False)),
        integer(conv("coarse", four, (9, 0, w.coarse), 3, relu=False)),
        integer(conv("last cls", four, (11, 0, 21), 1, 2, relu=False)),
        conv("last reg", (9, 0, w.coarse), (12, 0, 7), 3, 2, relu=False),
    ]
    outputs = [
        {"cls": (8, 0, 9), "reg": (10, 2, 30), "stride": 4},
        {"cls": (9, 0, 13), "reg": (9, 13, 37), "stride": 8},
        {"cls": (11, 0, 21), "reg": (12, 0, 7), "stride": 16},
    ]
    return buffers, steps, outputs


def only_integers(widths: Widths = ODD) -> Graph:
    """The same without the float steps: whatever the processor, every bit is known."""
    buffers, steps, outputs = graph(widths)
    floats = {"island.in", "island", "island.out", "last reg"}
    outputs[2]["reg"] = (11, 0, 21)
    outputs[2]["cls"] = (12, 0, 7)
    last = integer(conv("last", (5, 0, widths.four), (12, 0, 7), 3, 2, relu=False))
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
