"""A graph for the tests of the native engine, and the same in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from harness import bits, native

from yolonas.ops import reference

Graph = tuple[list[tuple[int, int]], list[dict[str, Any]], list[dict[str, Any]]]


def conv(name: str, x: Any, y: Any, kernel: int, stride: int = 1, **rest: Any) -> dict[str, Any]:
    rng = np.random.default_rng([*name.encode()])
    shape = (y[2], x[2], kernel, kernel)
    weight = (rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    step = {"op": "conv", "name": name, "input": x, "output": y, "weight": weight, "stride": stride, "relu": True}
    bias = rng.normal(0, 0.3, y[2]).astype(np.float32)
    return {**step, "bias": bias, "residual": None, "residual_scale": 1.0, **rest}


def upsample(name: str, x: Any, y: Any) -> dict[str, Any]:
    rng = np.random.default_rng([*name.encode()])
    weight = (rng.normal(0, 1, (x[2], y[2], 2, 2)) / np.sqrt(x[2])).astype(np.float32)
    bias = rng.normal(0, 0.3, y[2]).astype(np.float32)
    return {"op": "upsample", "name": name, "input": x, "output": y, "weight": weight, "bias": bias}


class Widths(NamedTuple):
    """Channels of the buffers of `graph`."""

    stem: int
    four: int
    pool: int  # a fourth of the joined ones
    up: int
    beside: int
    coarse: int  # at least 50


ODD = Widths(24, 56, 9, 23, 10, 50)
SIXTEENS = Widths(32, 48, 16, 32, 16, 64)  # multiples of 16, where a step reads them


def graph(widths: Widths = ODD) -> Graph:
    """Every kind of step, concats, residuals in and out of place, outputs with and without a buffer of their own."""
    w, last = widths, widths.stem + 16  # where the last of the joined parts begins
    stem, two, bottleneck, four = (1, 0, w.stem), (2, 0, last + w.stem), (3, 0, w.stem), (4, 0, w.four)
    first, spp, joined = (2, 0, w.stem), (5, 0, 4 * w.pool), (6, 0, w.beside + w.up)
    buffers = [(0, 3), (1, w.stem), (2, two[2]), (2, w.stem), (3, w.four), (3, spp[2]), (2, joined[2]), (2, 9)]
    buffers += [(3, w.coarse), (2, 34), (4, 21), (4, 7)]
    steps = [
        conv("stem", (0, 0, 3), stem, 3, 2),
        conv("down", stem, first, 3, 2),
        conv("side", first, (2, w.stem, 16), 1),
        conv("first", first, bottleneck, 3),
        conv("second", bottleneck, (2, last, w.stem), 3, residual=first, residual_scale=0.75),
        conv("deeper", two, four, 3, 2, relu=False),
        conv("pool in", four, (5, 0, w.pool), 1),
        {"op": "max_pool5", "name": "pool", "input": (5, 0, w.pool), "output": (5, w.pool, w.pool)},
        {"op": "max_pool5", "name": "pool", "input": (5, w.pool, w.pool), "output": (5, 2 * w.pool, w.pool)},
        {"op": "max_pool5", "input": (5, 2 * w.pool, w.pool), "output": (5, 3 * w.pool, w.pool)},
        conv("in place", spp, four, 1, residual=four, residual_scale=-0.5),
        upsample("up", four, (6, w.beside, w.up)),
        conv("beside", two, (6, 0, w.beside), 5),
        conv("fine cls", joined, (7, 0, 9), 1, relu=False),
        conv("fine reg", joined, (9, 0, 34), 3, relu=False),
        conv("coarse", four, (8, 0, w.coarse), 3, relu=False),
        conv("last cls", four, (10, 0, 21), 1, 2, relu=False),
        conv("last reg", (8, 0, w.coarse), (11, 0, 7), 3, 2, relu=False),
    ]
    outputs = [
        {"cls": (7, 0, 9), "reg": (9, 2, 30), "stride": 4},
        {"cls": (8, 0, 13), "reg": (8, 13, 37), "stride": 8},
        {"cls": (10, 0, 21), "reg": (11, 0, 7), "stride": 16},
    ]
    return buffers, steps, outputs


def detector() -> Graph:
    """A small network with the head outputs of a detector of five classes; those of one level share a buffer."""
    buffers = [(0, 3), (1, 16), (2, 16), (3, 24), (3, 5), (3, 68), (4, 32), (4, 80), (5, 24), (5, 5), (5, 68)]
    fine, middle, coarse = (3, 0, 24), (6, 0, 32), (8, 0, 24)
    steps = [
        conv("stem", (0, 0, 3), (1, 0, 16), 3, 2),
        conv("down", (1, 0, 16), (2, 0, 16), 3, 2),
        conv("fine", (2, 0, 16), fine, 3, 2),
        conv("fine cls", fine, (4, 0, 5), 3, relu=False),
        conv("fine reg", fine, (5, 0, 68), 1, relu=False),
        conv("middle", fine, middle, 3, 2),
        conv("middle heads", middle, (7, 0, 80), 1, relu=False),
        conv("coarse", middle, coarse, 3, 2),
        conv("coarse cls", coarse, (9, 0, 5), 1, relu=False),
        conv("coarse reg", coarse, (10, 0, 68), 3, relu=False),
    ]
    outputs = [
        {"cls": (4, 0, 5), "reg": (5, 0, 68), "stride": 8},
        {"cls": (7, 0, 5), "reg": (7, 7, 68), "stride": 16},
        {"cls": (9, 0, 5), "reg": (10, 0, 68), "stride": 32},
    ]
    return buffers, steps, outputs


def interpret(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
    """All outputs in float64: cls and reg of each level."""
    count, height, width, _ = x.shape
    maps = [np.full((count, height >> down, width >> down, channels), np.nan) for down, channels in graph[0]]
    maps[0][...] = x
    at = [lambda view, of=maps: of[view[0]][..., view[1] : view[1] + view[2]]][0]
    for step in graph[1]:
        source, out = at(step["input"]), at(step["output"])
        if step["op"] == "conv":
            residual = None if step["residual"] is None else at(step["residual"])
            out[...] = reference.conv2d_bias_act(
                source,
                step["weight"].transpose(0, 2, 3, 1),
                step["bias"],
                stride=step["stride"],
                padding=step["weight"].shape[2] // 2,
                relu=step["relu"],
                residual=residual,
                residual_scale=step["residual_scale"],
            )
        elif step["op"] == "upsample":
            for row, column in np.ndindex(2, 2):
                tap = step["weight"][:, :, row, column].astype(np.float64)
                out[:, row::2, column::2] = source @ tap + step["bias"]
        else:
            padded = np.pad(source, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-np.inf)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
            out[...] = windows.max(axis=(-2, -1))
    return [at(level[kind]) for level in graph[2] for kind in ("cls", "reg")]


def make(graph: Graph) -> Any:
    return native().Engine(*graph)


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (*shape, 3)).astype(np.float32)


def outputs_for(graph: Graph, x: np.ndarray, empty: Callable[..., np.ndarray] = np.empty) -> list[list[np.ndarray]]:
    """Lists cls and reg."""
    shape = x.shape
    return [
        [
            empty((shape[0], shape[1] // level["stride"], shape[2] // level["stride"], level[kind][2]), np.float32)
            for level in graph[2]
        ]
        for kind in ("cls", "reg")
    ]


def run(engine: Any, x: np.ndarray) -> list[np.ndarray]:
    cls, reg = outputs_for(GRAPH, x)
    engine.run(x, cls, reg)
    return [level for pair in zip(cls, reg, strict=True) for level in pair]


def with_checksum(data: bytes) -> bytes:
    """The checksum of engine/serialize.cpp once more."""
    mask, body = 2**64 - 1, data[32:]

    def mix(state: int, word: int) -> int:
        state = (state ^ word) * 0x9E3779B185EBCA87 & mask
        return (state << 31 | state >> 33) & mask

    lane = [1, 2, 3, len(body)]
    whole = len(body) // 32 * 32
    for at in range(0, whole, 8):
        lane[at // 8 % 4] = mix(lane[at // 8 % 4], int.from_bytes(body[at : at + 8], "little"))
    for at in range(whole, len(body)):
        lane[at % 4] = mix(lane[at % 4], body[at])
    total = lane[0]
    for one in lane[1:]:
        total = mix(total, one)
    return data[:24] + total.to_bytes(8, "little") + body


RTOL = 2e-5  # of the largest output, after some layers by Winograd


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=RTOL * np.abs(other).max())


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(bits(a), bits(b)) for a, b in zip(first, second, strict=True))


def values_of_steps(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
    """The input, and what each step writes: the steps up to it as a network whose outputs are this step's."""
    buffers, steps, _ = graph
    found = [x]
    for index, step in enumerate(steps):
        buffer, offset, channels = step["output"]
        down = buffers[buffer][0]
        split = {"cls": (buffer, offset, channels - 1), "reg": (buffer, offset + channels - 1, 1)}
        part = (buffers, steps[: index + 1], [{**split, "stride": 1 << down}])
        cls, reg = outputs_for(part, x)
        make(part).run(x, cls, reg)
        found.append(np.concatenate([*cls, *reg], axis=3))
    return found


GRAPH = graph()
DETECTOR = detector()
CONVOLUTIONS = [step["name"] for step in GRAPH[1] if step["op"] == "conv"]
