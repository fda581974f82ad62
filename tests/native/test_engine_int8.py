"""The native engine in integers: every bit against plain integers, for any instruction set, batch, cut and threads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_graphs import conv, make, outputs_for, picture, same
from harness import ISAS, guarded, guarded_empty, native, runs_here, using_isa, using_threads
from int8_graphs import GRAPH, INTEGERS, Graph, convert, graph, integer, interpret


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    if not runs_here(request.param):
        pytest.skip(f"this processor or build cannot run {request.param}")
    with using_isa(request.param):
        yield request.param


def run(engine: Any, graph: Graph, x: np.ndarray, empty: Callable[..., np.ndarray] = np.empty) -> list[np.ndarray]:
    cls, reg = outputs_for(graph, x, empty)
    engine.run(x, cls, reg)
    return [level for pair in zip(cls, reg, strict=True) for level in pair]


def index_of(graph: Graph, name: str) -> int:
    return next(i for i, step in enumerate(graph[1]) if step["name"] == name)


# --- what it computes ---


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 48, 80), (3, 32, 48), (2, 112, 16)], ids=str)
def test_integers_bit_for_bit(isa: str, shape: tuple[int, int, int]) -> None:
    x = picture(*shape)
    engine = make(INTEGERS)
    expected = interpret(INTEGERS, x)[0]
    assert all(level.std() > 0 for level in expected)
    for threads in (1, 2, 3):
        with using_threads(threads):
            assert same(run(engine, INTEGERS, x), expected)


def test_every_algorithm_gives_the_same_bits(isa: str) -> None:
    x = picture(1, 48, 80)
    engine = make(INTEGERS)
    expected = interpret(INTEGERS, x)[0]
    for choices in zip(
        *(2 * step if len(step) == 1 else step[:2] for step in engine.alternatives(48, 80, 1, 2)), strict=True
    ):
        engine.set_choices(48, 80, 1, list(choices))
        assert same(run(engine, INTEGERS, x), expected)


def test_winograd_is_left_where_its_sums_could_be_wrong(isa: str) -> None:
    """All weights at their limit: 127 * 9 channels * 230 is more than a sum of Winograd's form may hold."""
    x = picture(1, 16, 16)
    for channels, exact in ((229, True), (230, False)):
        step = integer(conv("wide", (1, 0, channels), (2, 0, 8), 3))
        step["weight"] = np.full_like(step["weight"], 127)
        steps = [convert("quantize", "in", (0, 0, 3), (1, 0, channels)), step]
        graph = [(0, 3), (0, channels, 0.01), (0, 8)], steps, [{"cls": (2, 0, 4), "reg": (2, 4, 4), "stride": 1}]
        engine = make(graph)
        engine.set_algorithm("wide", "winograd43")
        assert engine.plan(16, 16)[1]["algorithm"] == ("winograd43" if exact else "direct")
        assert same(run(engine, graph, x), interpret(graph, x)[0])


def test_float_steps_between(isa: str) -> None:
    """The float steps differ in their last bits, and so a number that lies between two may become its neighbour."""
    x = picture(2, 48, 80)
    expected, _ = interpret(GRAPH, x)
    for one, other in zip(run(make(GRAPH), GRAPH, x), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0.02 * np.abs(other).max())
        assert np.mean(np.abs(one - other) > 1e-5 * np.abs(other).max()) < 0.02


def test_no_buffer_is_left_and_nothing_unwritten_is_read(isa: str) -> None:
    engine, x = make(INTEGERS), picture(2, 48, 32)
    expected = run(engine, INTEGERS, x)
    engine._guard_buffers(True)
    for front in (False, True):

        def empty(shape: Any, dtype: Any, front: bool = front) -> np.ndarray:
            return guarded_empty(shape, dtype, front=front)

        assert same(run(engine, INTEGERS, guarded(x, front=front), empty), expected)


def test_nonnegative_inputs_are_told_from_others() -> None:
    """A value of -128 and of 127 in every layer: none is taken for another by the faster unsigned kernels."""
    x = picture(1, 32, 32) * np.float32(1e3)
    assert same(run(make(INTEGERS), INTEGERS, x), interpret(INTEGERS, x)[0])


def test_no_sum_leaves_its_buffer_twice() -> None:
    engine = make(INTEGERS)
    x = np.concatenate([picture(1, 32, 48, seed=seed) for seed in range(5)])
    together = run(engine, INTEGERS, x)
    for i in range(len(x)):
        assert same(run(engine, INTEGERS, x[i : i + 1]), [level[i : i + 1] for level in together])


# --- what it tells ---


def test_plan_names_types_and_algorithms() -> None:
    plan = {step["name"]: step for step in make(GRAPH).plan(64, 64)}
    assert plan["input.quantize"]["algorithm"] == "quantize"
    assert plan["island.in"]["algorithm"] == "dequantize"
    assert plan["stem"]["dtype"] == plan["pool"]["dtype"] == plan["fine cls"]["dtype"] == "int8"
    assert plan["island"]["dtype"] == plan["input.quantize"]["dtype"] == "float32"
    assert plan["input.quantize"]["mflop"] == plan["island.in"]["mflop"] == 0


def test_memory_is_that_of_int8() -> None:
    floats = [dict(step) for step in INTEGERS[1] if step["op"] != "quantize"]
    for step in floats:
        step["input"] = (0, 0, 3) if step["name"] == "stem" else step["input"]
        if "weight_scale" in step:
            step["weight"] = step["weight"].astype(np.float32)
            step["weight"] = step["weight"][:, :3].copy() if step["name"] == "stem" else step["weight"]
    plain = native().Engine([buffer[:2] for buffer in INTEGERS[0]], floats, INTEGERS[2])
    large, small = plain.memory(256, 256), make(INTEGERS).memory(256, 256)
    assert small["arena"] < 0.45 * large["arena"]
    assert small["weights"] < 0.5 * large["weights"]  # blocks of channels are padded


def test_bytes_and_back() -> None:
    x = picture(1, 48, 48)
    engine = make(GRAPH)
    data = engine.serialize()
    expected = run(engine, GRAPH, x)
    with using_isa("generic"):
        again = native().Engine.deserialize(data)
        assert again.serialize() == data
    assert same(run(again, GRAPH, x), expected)
    assert engine.serialize() == data
    for at in range(0, len(data), 997):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        with pytest.raises(ValueError, match="deserialize"):
            native().Engine.deserialize(bytes(damaged))


@pytest.mark.parametrize("threads", [1, 2])
def test_channel_sums(threads: int) -> None:
    x = picture(3, 48, 32)
    _, written = interpret(INTEGERS, x)
    expected = [
        level.sum(axis=(0, 1, 2), dtype=np.int64) if level.dtype == np.int8 else np.zeros(level.shape[-1], np.int64)
        for level in written
    ]
    sums = np.ones(sum(len(one) for one in expected), np.int64)
    with using_threads(threads):
        make(INTEGERS).channel_sums(x, sums)
    np.testing.assert_array_equal(sums, 1 + np.concatenate(expected))


def test_channel_sums_checks_its_arguments() -> None:
    engine, x = make(INTEGERS), picture(1, 16, 16)
    with pytest.raises(ValueError, match="channel_sums: sums must have shape"):
        engine.channel_sums(x, np.zeros(3, np.int64))
    with pytest.raises(TypeError, match="channel_sums: sums must"):
        engine.channel_sums(x, np.zeros(3, np.int32))


def test_observe_is_for_floats() -> None:
    with pytest.raises(ValueError, match="observe: the network must compute with floats only, got one with int8"):
        make(GRAPH).observe(picture(1, 16, 16), np.zeros(3, np.int64), np.zeros(3, np.float32), np.zeros(3, np.int64))


# --- what it refuses ---


def broken(change: Callable[[Graph], None]) -> Graph:
    changed = copy.deepcopy(graph())
    change(changed)
    return changed


def set_step(name: str, **values: Any) -> Callable[[Graph], None]:
    return lambda graph: graph[1][index_of(graph, name)].update(values)


def set_buffer(index: int, *numbers: Any) -> Callable[[Graph], None]:
    return lambda graph: graph[0].__setitem__(index, numbers)


def drop(key: str) -> Callable[[Graph], None]:
    return lambda graph: graph[1][index_of(graph, "side")].pop(key)


def with_minus_128(graph: Graph) -> None:
    graph[1][index_of(graph, "side")]["weight"][3, 2] = -128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_buffer(2, 1, 24, -1.0), "scale of buffer 2 must be positive and finite, or 0 for float32, got -1"),
        (set_buffer(2, 1, 24, float("nan")), "scale of buffer 2 must be positive and finite"),
        (set_buffer(2, 1, 24, float("inf")), "scale of buffer 2 must be positive and finite"),
        (set_buffer(2, 1, 24, 1e-42), "scale of buffer 2 must be positive and finite"),
        (set_buffer(0, 0, 3, 0.5), "buffer 0 is the input and must be float32"),
        (set_buffer(2, 1, 24), "input of step 'down' must be int8, got float32"),
        (set_buffer(2, 1), r"buffer 2 must be \(downscale, channels\) or"),
        (set_buffer(2, 1, 24, "1"), "scale of buffer 2 has the wrong type"),
        (set_buffer(9, 3, 50, 0.1), "must be float32, got int8"),
        (set_buffer(13, 2, 24, 0.1), "output of step 'island.in' must be float32, got int8"),
        (with_minus_128, "weight of step 'side' must lie within -127..127, got -128"),
        (drop("weight_scale"), "step 'side' must have the key 'weight_scale'"),
        (set_step("side", weight_scale=np.zeros(16, np.float32)), "weight_scale of step 'side' must be positive"),
        (
            set_step("side", weight_scale=np.full(16, np.nan, np.float32)),
            "weight_scale of step 'side' must be positive",
        ),
        (set_step("side", weight_scale=np.ones(15, np.float32)), "weight_scale of step 'side' must have shape"),
        (
            set_step("first", weight_scale=np.full(24, 3e38, np.float32)),
            "scales of step 'first' must give finite factors",
        ),
        (set_step("side", bias=np.full(16, 3e38, np.float32)), "scales of step 'side' must give finite factors"),
        (set_step("side", weight=np.zeros((16, 24, 1, 1), np.uint8)), "weight of step 'side' must"),
        (set_step("island.in", input=(3, 40, 23)), "output of step 'island.in' must have as many channels"),
        (set_step("input.quantize", output=(1, 0, 2)), "output of step 'input.quantize' must have as many channels"),
        (set_step("pool", op="dequantize"), "must be float32, got int8"),
        (set_step("last reg", input=(5, 0, 50)), "input of step 'last reg' must be float32, got int8"),
        (
            set_step("stem", input=(0, 0, 3), weight=np.zeros((24, 3, 3, 3), np.int8)),
            "input of step 'stem' must be int8",
        ),
        (set_step("island", residual=(3, 0, 24)), "residual of step 'island' must be float32, got int8"),
        (set_step("island", output=(4, 0, 24)), "must not overlap the output of an earlier step|must be float32"),
    ],
)
def test_graphs_that_make_no_sense(change: Callable[[Graph], None], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(broken(change))


def test_pools_keep_their_scale() -> None:
    buffers, steps, outputs = graph()
    buffers.append((3, 9, 0.07))
    steps[index_of((buffers, steps, outputs), "in place")]["input"] = (6, 0, 36)
    at = index_of((buffers, steps, outputs), "in place")
    steps.insert(at, {"op": "max_pool5", "name": "other", "input": (6, 0, 9), "output": (15, 0, 9)})
    with pytest.raises(ValueError, match=r"output of step 'other' must have the scale of its input, 0\.05, got 0\.07"):
        make((buffers, steps, outputs))


def test_sums_that_could_leave_32_bits() -> None:
    wide = 65536 // 9 + 1
    steps = [
        {"op": "quantize", "name": "in", "input": (0, 0, 3), "output": (1, 0, wide)},
        {
            **{"op": "conv", "name": "wide", "input": (1, 0, wide), "output": (2, 0, 2), "stride": 1, "relu": False},
            **{"weight": np.ones((2, wide, 3, 3), np.int8), "weight_scale": np.ones(2, np.float32)},
            "bias": np.zeros(2, np.float32),
        },
    ]
    outputs = [{"cls": (2, 0, 1), "reg": (2, 1, 1), "stride": 1}]
    with pytest.raises(ValueError, match="weight of step 'wide' must have at most 65536 values per output channel"):
        native().Engine([(0, 3), (0, wide, 1.0), (0, 2)], steps, outputs)
