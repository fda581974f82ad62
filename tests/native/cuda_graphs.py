"""Graphs for the tests of the CUDA engine: those of `engine_graphs` and `int8_graphs` with channels in sixteens."""

from __future__ import annotations

from typing import Any

from engine_graphs import SIXTEENS, Graph, conv, graph
from int8_graphs import convert, integer, only_integers
from int8_graphs import graph as int8_graph


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


GRAPH = graph(SIXTEENS)
INT8 = int8_graph(SIXTEENS)
INTEGERS = only_integers(SIXTEENS)
DETECTOR = detector()
DETECTOR_INT8 = detector(int8=True)
