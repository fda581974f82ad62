"""Graphs, bytes and arrays that the native engine refuses, with what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_graphs import GRAPH, Graph, graph, make, outputs_for, picture
from harness import hostile_values, native

# --- graphs that do not fit ---


def change_step(step_name: str, /, **change: Any) -> Graph:
    buffers, steps, outputs = graph()
    at = [step.get("name") for step in steps].index(step_name)
    steps[at] = {**steps[at], **change}
    return buffers, steps, outputs


def without(name: str, key: str) -> Graph:
    buffers, steps, outputs = graph()
    at = [step.get("name") for step in steps].index(name)
    del steps[at][key]
    return buffers, steps, outputs


ONE, THREE = np.ones((24, 24, 3, 3), np.float32), np.ones((3, 3, 3, 3), np.float32)
BAD_GRAPHS = {
    "no buffers": (([], *GRAPH[1:]), "number of buffers must lie in 1..4096, got 0"),
    "input of four channels": (([(0, 4), *GRAPH[0][1:]], *GRAPH[1:]), r"must be \(0, 3\), got \(0, 4\)"),
    "negative channels": (([*GRAPH[0], (1, -1)], *GRAPH[1:]), "channels of buffer 12 must lie in 1..65536, got -1"),
    "negative scale": (([*GRAPH[0], (-1, 4)], *GRAPH[1:]), "downscale_log2 of buffer 12 must lie in 0..10, got -1"),
    "no steps": ((GRAPH[0], [], GRAPH[2]), "number of steps must lie in 1..4096, got 0"),
    "no outputs": ((*GRAPH[:2], []), "at least one output"),
    "unknown op": (
        change_step("side", op="relu"),
        "op of step 'side' must be conv, upsample, max_pool5, quantize or dequantize, got 'relu'",
    ),
    "no weight": (without("side", "weight"), "step 'side' must have the key 'weight'"),
    "no stride": (without("side", "stride"), "step 'side' must have the key 'stride'"),
    "name that is no text": (change_step("side", name="a\nb"), "name of step 2 must be printable ASCII"),
    "name that is long": (change_step("side", name="n" * 1001), "name of step 2 must be printable ASCII of at most"),
    "name twice": (change_step("side", name="down"), "names of steps must be unique, got 'down' twice"),
    "buffer that is not there": (change_step("side", input=(12, 0, 24)), "one of the buffers 0..11, got buffer 12"),
    "channels beyond": (change_step("second", output=(2, 41, 24)), "must lie in the 64 channels of buffer 2, got"),
    "offset that overflows": (change_step("side", output=(2, 2**63 - 1, 16)), "must lie in the 64 channels"),
    "negative offset": (change_step("side", output=(2, -1, 16)), "got offset -1 and 16 channels"),
    "no channels": (change_step("pool in", output=(5, 0, 0)), "at least one channel, got 0"),
    "view of two numbers": (change_step("side", output=(2, 24)), r"must be \(buffer, offset, channels\), got 2"),
    "onto the input": (
        change_step("stem", output=(0, 0, 3), weight=THREE, bias=THREE[0, 0, 0]),
        "not be the input",
    ),
    "onto its own input": (change_step("first", output=(2, 12, 24)), "must not overlap its input"),
    "onto an earlier output": (change_step("second", output=(2, 39, 24)), "not overlap the output of an earlier step"),
    "onto a part of the residual": (change_step("second", output=(2, 1, 24)), "be its residual or not overlap it"),
    "reading what nothing wrote": (change_step("first", input=(2, 40, 24)), "must have been written by earlier steps"),
    "residual that nothing wrote": (change_step("second", residual=(2, 40, 24)), "must have been written by earlier"),
    "residual of other width": (change_step("second", residual=(2, 0, 23)), "must be as large as its output"),
    "residual of other scale": (change_step("second", residual=(1, 0, 24)), "must be as large as its output"),
    "scale of another stride": (change_step("side", stride=2), "must be in a buffer at 1 / 2\\^3, got buffer 2"),
    "stride 3": (change_step("side", stride=3), "stride of step 'side' must be 1 or 2, got 3"),
    "weight of other width": (change_step("first", weight=ONE[:, :23]), r"\(K, C, k, k\) = \(24, 24, 3, 3\), got"),
    "kernel of two": (
        change_step("first", weight=ONE[..., :2, :2].copy()),
        "kernel of step 'first' must be odd, got 2",
    ),
    "kernel not square": (change_step("first", weight=ONE[..., :1].copy()), r"must have shape \(K, C, k, k\)"),
    "kernel too large": (
        change_step("first", weight=np.ones((24, 24, 17, 17), np.float32)),
        "kernel of step 'first' must lie in 1..15, got 17",
    ),
    "weight not contiguous": (change_step("first", weight=ONE.transpose(1, 0, 2, 3)[:, ::-1]), "must be C-contiguous"),
    "weight NaN": (change_step("first", weight=ONE * np.float32(np.nan)), "weight of step 'first' must be finite"),
    "bias infinite": (
        change_step("first", bias=np.full(24, np.inf, np.float32)),
        "bias of step 'first' must be finite",
    ),
    "bias of other length": (change_step("first", bias=np.ones(23, np.float32)), r"\(K,\) = \(24\), got \(23,\)"),
    "scale NaN": (change_step("second", residual_scale=float("nan")), "residual_scale of step 'second' must be finite"),
    "pool of other width": (change_step("pool", output=(5, 9, 8)), "must have as many channels as its input, 9, got 8"),
    "upsample to the same scale": (change_step("up", output=(8, 0, 23)), "must be in a buffer at 1 / 2\\^2"),
    "upsample weight": (
        change_step("up", weight=np.ones((23, 56, 2, 2), np.float32)),
        r"\(C, K, 2, 2\) = \(56, 23, 2, 2\), got \(23, 56, 2, 2\)",
    ),
    "output overlaps": (
        (*GRAPH[:2], [{"cls": (8, 0, 14), "reg": (8, 13, 37), "stride": 8}]),
        "reg of output 0 must not overlap another output",
    ),
    "output of other stride": (
        (*GRAPH[:2], [{"cls": (7, 0, 9), "reg": (9, 0, 34), "stride": 8}]),
        "stride of output 0 must be 4, the scale of its buffer, got 8",
    ),
    "output that nothing wrote": (
        ([*GRAPH[0], (2, 4)], GRAPH[1], [{"cls": (12, 0, 4), "reg": (9, 0, 34), "stride": 4}]),
        "cls of output 0 must have been written by a step",
    ),
    "the input as output": (
        (*GRAPH[:2], [{"cls": (0, 0, 3), "reg": (9, 0, 34), "stride": 4}]),
        "cls of output 0 must have been written by a step",
    ),
}


@pytest.mark.parametrize("name", list(BAD_GRAPHS))
def test_graphs_that_do_not_fit_are_refused(name: str) -> None:
    graph, text = BAD_GRAPHS[name]
    with pytest.raises(ValueError, match=text):
        make(graph)


FITTING = {("name", "text"), ("residual", "none")} | {
    ("residual_scale", kind) for kind in ("number", "negative", "huge number", "zero-dimensional")
}


@pytest.mark.parametrize("kind", list(hostile_values()))
def test_hostile_values_in_a_step(kind: str) -> None:
    value = hostile_values()[kind]
    for key in ("op", "name", "input", "output", "weight", "bias", "stride", "relu", "residual", "residual_scale"):
        if (key, kind) in FITTING:
            make(change_step("second", **{key: value}))
        else:
            with pytest.raises((TypeError, ValueError)):
                make(change_step("second", **{key: value}))
    for change in ((value, *GRAPH[1:]), (GRAPH[0], value, GRAPH[2]), (*GRAPH[:2], value)):
        with pytest.raises((TypeError, ValueError)):
            native().Engine(*change)


# --- runs that do not fit ---


def test_wrong_input_is_named() -> None:
    engine, x = make(GRAPH), picture(1, 32, 48)
    cls, reg = outputs_for(GRAPH, x)
    nan, infinite = x.copy(), x.copy()
    nan[0, 31, 47, 2], infinite[0, 0, 0, 0] = np.nan, -np.inf
    for wrong, error, text in (
        (x.astype(np.float64), TypeError, "run: x must be float32, got float64"),
        (x[0], ValueError, r"run: x must have shape \(N, H, W, C\) = \(\*, \*, \*, 3\), got \(32, 48, 3\)"),
        (x.transpose(0, 3, 1, 2).copy(), ValueError, r"got \(1, 3, 32, 48\)"),
        (x[:, ::-1], ValueError, "must be C-contiguous"),
        (picture(0, 32, 48), ValueError, "run: batch must have at least one picture, got 0"),
        (picture(1, 24, 48), ValueError, "run: height and width must be multiples of 16, got 24 x 48"),
        (picture(1, 0, 48), ValueError, "run: height and width must be multiples of 16, got 0 x 48"),
        (nan, ValueError, "run: x must be finite, got NaN or infinity"),
        (infinite, ValueError, "run: x must be finite, got NaN or infinity"),
        ("picture.jpg", TypeError, r"x must be an array \(buffer protocol or DLPack\), got str"),
    ):
        with pytest.raises(error, match=text):
            engine.run(wrong, cls, reg)
        with pytest.raises(error, match=text.replace("run:", "time_steps:")):
            engine.time_steps(wrong, 1)
    for rounds in (0, -1, 10**9):
        with pytest.raises(ValueError, match=r"rounds must lie in 1\.\.100000"):
            engine.time_steps(x, rounds)
    for size in (
        (0, 16, 1),
        (16, -16, 1),
        (16, 20, 1),
        (16, 16, 0),
        (2**40, 16, 1),
        (2**16, 2**16, 2),
        (16, 16, 2**62),
    ):
        with pytest.raises(ValueError, match="plan: "):
            engine.plan(*size)
        with pytest.raises(ValueError, match="memory: "):
            engine.memory(*size)
    with pytest.raises(ValueError, match="name must be that of a convolution, got 'up'"):
        engine.set_algorithm("up", "direct")
    engine.run(x, cls, reg)


def test_wrong_outputs_are_named() -> None:
    engine, x = make(GRAPH), picture(1, 32, 48)
    cls, reg = outputs_for(GRAPH, x)
    memory = np.zeros(cls[0].size + reg[0].size, np.float32)
    shared = memory[1 : 1 + reg[0].size].reshape(reg[0].shape)
    frozen = cls[0].copy()
    frozen.flags.writeable = False
    for wrong, error, text in (
        ((cls[:2], reg), ValueError, "one array per level, 3, got 2 and 3"),
        (([*cls, cls[0]], reg), ValueError, "one array per level, 3, got 4 and 3"),
        ((reg, cls), ValueError, r"run: cls\[0\] must have shape .* \(1, 8, 12, 9\), got \(1, 8, 12, 30\)"),
        (([cls[0].astype(np.float64), *cls[1:]], reg), TypeError, r"cls\[0\] must be float32, got float64"),
        (([frozen, *cls[1:]], reg), ValueError, r"cls\[0\] is written to and must not be read-only"),
        ((cls, [reg[0][:, ::-1], *reg[1:]]), ValueError, r"reg\[0\] .* must be C-contiguous"),
        (
            ([memory[: cls[0].size].reshape(cls[0].shape), *cls[1:]], [shared, *reg[1:]]),
            ValueError,
            r"reg\[0\] must not overlap x or another output",
        ),
        ((None, reg), TypeError, "incompatible function arguments"),
        (([None, *cls[1:]], reg), TypeError, r"cls must be an array \(buffer protocol or DLPack\), got NoneType"),
    ):
        with pytest.raises(error, match=text):
            engine.run(x, *wrong)
    together = np.zeros(x.size + 9, np.float32)
    inside = together[: cls[2].size].reshape(cls[2].shape)
    with pytest.raises(ValueError, match=r"cls\[2\] must not overlap x"):
        engine.run(together[: x.size].reshape(x.shape), [*cls[:2], inside], reg)
    engine.run(x, cls, reg)


@pytest.mark.parametrize("kind", list(hostile_values()))
def test_hostile_values_in_a_run(kind: str) -> None:
    engine, x, value = make(GRAPH), picture(1, 16, 16), hostile_values()[kind]
    cls, reg = outputs_for(GRAPH, x)
    for arguments in (
        (value, cls, reg),
        (x, value, reg),
        (x, cls, value),
        (x, [value] * 3, reg),
        (x, cls, [*reg[:2], value]),
    ):
        with pytest.raises((TypeError, ValueError)):
            engine.run(*arguments)
    for call in (
        lambda: engine.plan(value, 16),
        lambda: engine.memory(16, 16, value),
        lambda: engine.time_steps(x, value),
        lambda: engine.set_algorithm(value, "direct"),
        lambda: engine.set_algorithm("side", value),
        lambda: native().Engine.deserialize(value),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    engine.run(x, cls, reg)
