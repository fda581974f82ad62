"""Graphs for the tests of the CUDA engine: those of `engine_graphs` and `int8_graphs` with channels in sixteens."""

from __future__ import annotations

from typing import Any

from engine_graphs import Graph, conv, upsample
from int8_graphs import convert, integer


def graph() -> Graph:
    """Every kind of step, concats, residuals in and out of place, outputs that are read and such that are not."""
    stem, bottleneck, four, spp = (1, 0, 32), (3, 0, 32), (4, 0, 48), (5, 0, 64)
    buffers = [(0, 3), (1, 32), (2, 80), (2, 32), (3, 48), (3, 64), (2, 48), (2, 9), (3, 64), (2, 34), (4, 21), (4, 7)]
    steps = [
        conv("stem", (0, 0, 3), stem, 3, 2),
        conv("down", stem, (2, 0, 32), 3, 2),
        conv("side", (2, 0, 32), (2, 32, 16), 1),
        conv("first", (2, 0, 32), bottleneck, 3),
        conv("second", bottleneck, (2, 48, 32), 3, residual=(2, 0, 32), residual_scale=0.75),
        conv("deeper", (2, 0, 80), four, 3, 2, relu=False),
        conv("pool in", four, (5, 0, 16), 1),
        convert("max_pool5", "pool", (5, 0, 16), (5, 16, 16)),
        convert("max_pool5", "pool 2", (5, 16, 16), (5, 32, 16)),
        convert("max_pool5", "pool 3", (5, 32, 16), (5, 48, 16)),
        conv("in place", spp, four, 1, residual=four, residual_scale=-0.5),
        upsample("up", four, (6, 16, 32)),
        conv("beside", (2, 0, 80), (6, 0, 16), 5),
        conv("fine cls", (6, 0, 48), (7, 0, 9), 1, relu=False),
        conv("fine reg", (6, 0, 48), (9, 0, 34), 3, relu=False),
        conv("coarse", four, (8, 0, 64), 3, relu=False),
        conv("last cls", four, (10, 0, 21), 1, 2, relu=False),
        conv("last reg", (8, 0, 64), (11, 0, 7), 3, 2, relu=False),
    ]
    outputs = [
        {"cls": (7, 0, 9), "reg": (9, 2, 30), "stride": 4},
        {"cls": (8, 0, 13), "reg": (8, 13, 37), "stride": 8},
        {"cls": (10, 0, 21), "reg": (11, 0, 7), "stride": 16},
    ]
    return buffers, steps, outputs


def int8_graph() -> Graph:
    """Every kind of step in integers; in the middle a float step, and one that overwrites its residual in place."""
    image, stem, join, inside, four = (1, 0, 4), (2, 0, 32), (3, 0, 80), (4, 0, 32), (5, 0, 48)
    island, back = (13, 0, 32), (14, 0, 32)
    buffers: list[Any] = [(0, 3), (0, 4, 0.02), (1, 32, 0.03), (2, 80, 0.04), (2, 32, 0.03), (3, 48, 0.05)]
    buffers += [(3, 64, 0.05), (2, 48, 0.04), (2, 9), (3, 64), (2, 34), (4, 21), (4, 7), (2, 32), (2, 32, 0.0)]
    steps = [
        convert("quantize", "input.quantize", (0, 0, 3), image),
        integer(conv("stem", image, stem, 3, 2)),
        integer(conv("down", stem, (3, 0, 32), 3, 2)),
        integer(conv("side", (3, 0, 32), (3, 32, 16), 1)),
        integer(conv("first", (3, 0, 32), inside, 3)),
        integer(conv("second", inside, (3, 48, 32), 3, residual=(3, 0, 32), residual_scale=0.75)),
        convert("dequantize", "island.in", (3, 48, 32), island),
        conv("island", island, back, 3, residual=island, residual_scale=0.5),
        convert("quantize", "island.out", back, (3, 48, 32)),
        integer(conv("deeper", join, four, 3, 2, relu=False)),
        integer(conv("pool in", four, (6, 0, 16), 1)),
        convert("max_pool5", "pool", (6, 0, 16), (6, 16, 16)),
        convert("max_pool5", "pool 2", (6, 16, 16), (6, 32, 16)),
        convert("max_pool5", "pool 3", (6, 32, 16), (6, 48, 16)),
        integer(conv("in place", (6, 0, 64), four, 1, residual=four, residual_scale=-0.5)),
        integer(upsample("up", four, (7, 16, 32))),
        integer(conv("beside", join, (7, 0, 16), 5)),
        integer(conv("fine cls", (7, 0, 48), (8, 0, 9), 1, relu=False)),
        integer(conv("fine reg", (7, 0, 48), (10, 0, 34), 3, relu=False)),
        integer(conv("coarse", four, (9, 0, 64), 3, relu=False)),
        integer(conv("last cls", four, (11, 0, 21), 1, 2, relu=False)),
        conv("last reg", (9, 0, 64), (12, 0, 7), 3, 2, relu=False),
    ]
    outputs = [
        {"cls": (8, 0, 9), "reg": (10, 2, 30), "stride": 4},
        {"cls": (9, 0, 13), "reg": (9, 13, 37), "stride": 8},
        {"cls": (11, 0, 21), "reg": (12, 0, 7), "stride": 16},
    ]
    return buffers, steps, outputs


def only_integers() -> Graph:
    """The same without the float steps: whatever the device, every bit is known."""
    buffers, steps, outputs = int8_graph()
    floats = {"island.in", "island", "island.out", "last reg"}
    last = integer(conv("last", (5, 0, 48), (12, 0, 7), 3, 2, relu=False))
    return buffers, [step for step in steps if step["name"] not in floats] + [last], outputs


def detector(*, int8: bool = False) -> Graph:
    """A small network with the head outputs of a detector of five classes; those of one level share a buffer."""
    scale = (0.03,) if int8 else ()
    buffers: list[Any] = [(0, 3), (1, 16, *scale), (2, 16, *scale), (3, 32, *scale), (3, 5), (3, 68)]
    buffers += [(4, 32, *scale), (4, 80), (5, 32, *scale), (5, 5), (5, 68), (0, 4, *scale)]
    image, fine, middle, coarse = (11, 0, 4) if int8 else (0, 0, 3), (3, 0, 32), (6, 0, 32), (8, 0, 32)
    steps = [
        conv("stem", image, (1, 0, 16), 3, 2),
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
    if int8:
        steps = [convert("quantize", "input.quantize", (0, 0, 3), image), *map(integer, steps)]
    outputs = [
        {"cls": (4, 0, 5), "reg": (5, 0, 68), "stride": 8},
        {"cls": (7, 0, 5), "reg": (7, 7, 68), "stride": 16},
        {"cls": (9, 0, 5), "reg": (10, 0, 68), "stride": 32},
    ]
    return buffers, steps, outputs


GRAPH = graph()
INT8 = int8_graph()
INTEGERS = only_integers()
DETECTOR = detector()
DETECTOR_INT8 = detector(int8=True)
