"""A graph of int8 and float32 steps for the tests of the native engine, and the same in plain integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from engine_graphs import Graph, conv, upsample

from yolonas.ops import reference


def integer(step: dict[str, Any]) -> dict[str, Any]:
    """The step with int8 weights, a scale per output channel."""
    axis = 1 if step["op"] == "upsample" else 0
    others = tuple(i for i in range(4) if i != axis)
    scale = (np.abs(step["weight"]).max(axis=others) / 127).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(4)]
    return {
        **step,
        "weight": np.clip(np.rint(step["weight"] / scale.reshape(shape)), -127, 127).astype(np.int8),
        "weight_scale": scale,
    }


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
        convert("max_pool5", "pool", (6, 9, 9), (6, 18, 9)),
        convert("max_pool5", "pool", (6, 18, 9), (6, 27, 9)),
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
    """All outputs, cls and reg of each level; and what every step wrote, as it was then."""
    scales = [buffer[2] if len(buffer) > 2 else 0.0 for buffer in graph[0]]
    maps: list[np.ndarray] = [
        np.full((len(x), x.shape[1] >> down, x.shape[2] >> down, channels), -99 if scales[i] else np.nan).astype(
            np.int8 if scales[i] else np.float32
        )
        for i, (down, channels, *_) in enumerate(graph[0])
    ]
    maps[0] = x

    def at(view: Any) -> np.ndarray:
        return maps[view[0]][..., view[1] : view[1] + view[2]]

    written = []
    for step in graph[1]:
        out = at(step["output"])
        out[...] = _step(step, at, scales, out.dtype)
        written.append(out.copy())
    return [at(level[kind]) for level in graph[2] for kind in ("cls", "reg")], written


def _step(step: dict[str, Any], at: Any, scales: list[float], dtype: Any) -> np.ndarray:
    x = at(step["input"])
    if step["op"] == "quantize":
        inverse = np.float32(1 / np.float64(np.float32(scales[step["output"][0]])))
        y = np.clip(np.rint(x * inverse), -128, 127)
        return np.pad(y, [(0, 0)] * 3 + [(0, step["output"][2] - step["input"][2])])
    if step["op"] == "dequantize":
        return x.astype(np.float32) * np.float32(scales[step["input"][0]])
    if step["op"] == "max_pool5":
        padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-128)
        return np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2)).max(axis=(-2, -1))
    residual = None if step.get("residual") is None else at(step["residual"])
    if "weight_scale" not in step:
        settings = {"stride": step["stride"], "padding": step["weight"].shape[2] // 2, "relu": step["relu"]}
        weight = step["weight"].transpose(0, 2, 3, 1)
        return reference.conv2d_bias_act(
            x, weight, step["bias"], residual=residual, residual_scale=step["residual_scale"], **settings
        )
    source, target = (np.float64(np.float32(scales[step[end][0]])) or 1.0 for end in ("input", "output"))
    numbers = {
        "multiplier": (source * step["weight_scale"] / target).astype(np.float32),
        "offset": (step["bias"] / target).astype(np.float32),
        "dtype": dtype,
    }
    if step["op"] == "upsample":
        y = np.empty((len(x), 2 * x.shape[1], 2 * x.shape[2], step["output"][2]), dtype)
        for row, column in np.ndindex(2, 2):
            tap = step["weight"][:, :, row, column].T[:, None, None]
            y[:, row::2, column::2] = reference.conv2d_s8(x, tap, relu=False, **numbers)
        return y
    if residual is not None:
        of_residual = np.float64(np.float32(scales[step["residual"][0]]))
        numbers["residual_multiplier"] = np.float32(step["residual_scale"] * of_residual / target)
    return reference.conv2d_s8(
        x,
        step["weight"].transpose(0, 2, 3, 1),
        residual=residual,
        stride=step["stride"],
        padding=step["weight"].shape[2] // 2,
        relu=step["relu"],
        **numbers,
    )


GRAPH = graph()
INTEGERS = only_integers()
