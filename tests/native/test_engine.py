"""The native engine: graphs against float64, guarded memory, threads, plans and bytes."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from engine_graphs import (
    CONVOLUTIONS,
    GRAPH,
    Graph,
    assert_close,
    conv,
    graph,
    interpret,
    make,
    outputs_for,
    picture,
    run,
    same,
    with_checksum,
)
from harness import ISAS, guarded, guarded_empty, native, runs_here, using_isa, using_threads
from int8_graphs import convert, integer


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    if not runs_here(request.param):
        pytest.skip(f"this processor or build cannot run {request.param}")
    with using_isa(request.param):
        yield request.param


# --- what it computes ---


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 48, 80), (3, 32, 48), (2, 112, 16)], ids=str)
def test_graph_against_float64(isa: str, shape: tuple[int, int, int]) -> None:
    x = picture(*shape)
    expected = interpret(GRAPH, x)
    engine = make(GRAPH)
    assert_close(run(engine, x), expected)
    for name in CONVOLUTIONS:
        engine.set_algorithm(name, "direct")
    assert_close(run(engine, x), expected)


def test_no_buffer_is_left_and_nothing_unwritten_is_read(isa: str) -> None:
    """With buffers at guard pages and NaN in them: the same bits as in the arena, where buffers share places."""
    engine, x = make(GRAPH), picture(2, 48, 32)
    expected = run(engine, x)
    engine._guard_buffers(True)
    for front in (False, True):
        cls, reg = outputs_for(GRAPH, x, lambda shape, dtype, front=front: guarded_empty(shape, dtype, front=front))
        engine.run(guarded(x, front=front), cls, reg)
        assert same([level for pair in zip(cls, reg, strict=True) for level in pair], expected)
    for name in CONVOLUTIONS:
        engine.set_algorithm(name, "direct")
    assert all(np.isfinite(level).all() for level in run(engine, x))
    engine._guard_buffers(False)
    engine.set_algorithm("stem", "auto")
    assert all(np.isfinite(level).all() for level in run(engine, x))


def test_every_algorithm_of_every_convolution(isa: str) -> None:
    engine, x = make(GRAPH), picture(1, 48, 64)
    expected = interpret(GRAPH, x)
    chosen = {step["name"]: step["algorithm"] for step in engine.plan(48, 64)}
    for step in GRAPH[1]:
        if step["op"] != "conv":
            continue
        for algorithm in ("direct", "pointwise", "winograd43", "winograd_s2"):
            fits = {"pointwise": (1, 1), "winograd43": (3, 1), "winograd_s2": (3, 2)}.get(algorithm)
            if fits in (None, (step["weight"].shape[2], step["stride"])):
                engine.set_algorithm(step["name"], algorithm)
                assert {one["name"]: one["algorithm"] for one in engine.plan(48, 64)}[step["name"]] == algorithm
                assert_close(run(engine, x), expected)
            else:
                with pytest.raises(ValueError, match=f"algorithm of '{step['name']}' must be one of auto, direct.*got"):
                    engine.set_algorithm(step["name"], algorithm)
        engine.set_algorithm(step["name"], "auto")
    assert {step["name"]: step["algorithm"] for step in engine.plan(48, 64)} == chosen


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
def test_any_number_of_threads_and_any_place_in_the_batch_give_the_same_bits(isa: str, algorithm: str) -> None:
    engine, x = make(GRAPH), picture(5, 80, 48)
    for name in CONVOLUTIONS:
        engine.set_algorithm(name, algorithm)
    with using_threads(1):
        expected = run(engine, x)
    for count in (2, 3, 8, 256):
        with using_threads(count):
            assert same(run(engine, x), expected), count
    for first, last in ((0, 1), (1, 3), (4, 5)):
        assert same(run(engine, x[first:last].copy()), [level[first:last] for level in expected])


def test_weights_too_large_for_winograd_take_the_direct_form(isa: str) -> None:
    buffers, steps, outputs = graph()
    at = [step["name"] for step in steps[:5]].index("first")
    steps[at]["weight"] = steps[at]["weight"] * np.float32(1e31)
    steps[at + 1]["weight"] = steps[at + 1]["weight"] * np.float32(1e-31)
    engine = make((buffers, steps, outputs))
    plan = {step["name"]: step["algorithm"] for step in engine.plan(64, 64)}
    assert plan["first"] == "direct"
    assert plan["second"] == "winograd43"
    engine.set_algorithm("first", "winograd43")
    assert {step["name"]: step["algorithm"] for step in engine.plan(64, 64)}["first"] == "winograd43"


# --- plans and runs side by side ---


def test_plan_says_what_runs(isa: str) -> None:
    engine = make(GRAPH)
    plan = engine.plan(64, 96, 2)
    assert [step["op"] for step in plan] == [step["op"] for step in GRAPH[1]]
    deeper = plan[5]
    assert deeper["name"] == "deeper"
    assert (deeper["input"], deeper["output"], deeper["kernel"], deeper["stride"]) == ((16, 24, 64), (8, 12, 56), 3, 2)
    assert deeper["mflop"] == pytest.approx(2 * 2 * 8 * 12 * 9 * 64 * 56 / 1e6)
    up = next(step for step in plan if step["op"] == "upsample")
    assert up["mflop"] == pytest.approx(2 * 2 * 8 * 12 * 4 * 56 * 23 / 1e6)
    assert all(step["weight_bytes"] > 0 for step in plan if step["op"] != "max_pool5")
    use = engine.memory(64, 96, 2)
    assert use["weights"] == sum(step["weight_bytes"] for step in plan)
    alone = sum(2 * (64 >> down) * (96 >> down) * channels * 4 for down, channels in GRAPH[0][1:])
    assert 0 < use["arena"] < alone  # buffers share places
    times = engine.time_steps(picture(1, 64, 96), 3)
    assert len(times) == len(plan)
    assert all(time >= 0 for time in times)


def test_many_sizes_in_turn_and_again() -> None:
    engine = make(GRAPH)
    sizes = [(1, 16 * i, 16 * j) for i in (1, 2, 3, 4) for j in (1, 3, 5)]
    first = [run(engine, picture(*size)) for size in sizes]
    for size, expected in zip(sizes[::-1], first[::-1], strict=True):
        assert same(run(engine, picture(*size)), expected)


def test_runs_side_by_side() -> None:
    """Runs of several sizes on threads of their own, while the number of threads and an algorithm change."""
    engine = make(GRAPH)
    pictures = [picture(1 + i % 3, 16 + 16 * (i % 4), 48, seed=i) for i in range(6)]
    for name in CONVOLUTIONS:
        engine.set_algorithm(name, "direct")
    expected = [run(engine, x) for x in pictures]
    start, stop = threading.Barrier(5), threading.Event()

    def caller(seed: int) -> bool:
        order = np.random.default_rng(seed).integers(0, len(pictures), 25)
        start.wait()
        return all(same(run(engine, pictures[i]), expected[i]) for i in order)

    def unsettle() -> None:
        start.wait()
        while not stop.is_set():
            for count, algorithm in ((1, "auto"), (8, "direct"), (2, "auto"), (5, "direct")):
                native().set_num_threads(count)
                engine.set_algorithm("side", algorithm)  # pointwise has the bits of direct

    with using_threads(4), ThreadPoolExecutor(5) as pool:
        unsettled = pool.submit(unsettle)
        callers = [pool.submit(caller, seed) for seed in range(4)]
        results = [one.result() for one in callers]
        stop.set()
        unsettled.result()
    assert results == [True] * 4


def test_no_python_object_is_kept() -> None:
    buffers, steps, outputs = graph()
    engine, x = make((buffers, steps, outputs)), picture(1, 32, 32)
    expected = run(engine, x)
    for step in steps:
        for key in ("weight", "bias"):
            if key in step:
                step[key][...] = np.nan
    assert same(run(engine, x), expected)


# --- bytes ---


def test_bytes_and_back(isa: str) -> None:
    engine, x = make(GRAPH), picture(1, 48, 32)
    data = engine.serialize()
    for form in (data, bytearray(data), memoryview(data)):
        copy = native().Engine.deserialize(form)
        assert same(run(copy, x), run(engine, x))
        assert copy.serialize() == data


def test_damaged_bytes_are_refused() -> None:
    data = make(GRAPH).serialize()
    rng = np.random.default_rng(0)
    load = native().Engine.deserialize
    for length in [0, 1, 8, 31, 32, 33, len(data) - 1, *rng.integers(33, len(data), 50).tolist()]:
        with pytest.raises(ValueError, match=r"deserialize: data must"):
            load(data[:length])
    with pytest.raises(ValueError, match=rf"must have {len(data)} bytes, got {len(data) - 5}; it is truncated"):
        load(data[:-5])
    with pytest.raises(ValueError, match=rf"must have {len(data)} bytes, got {len(data) + 1}$"):
        load(data + b"\0")
    for at in [*range(100), *rng.integers(0, len(data), 200).tolist()]:
        changed = bytearray(data)
        changed[at] ^= 1 << rng.integers(8)
        with pytest.raises(ValueError, match="deserialize: data must"):
            load(changed)
    changed = bytearray(data)
    changed[8] = 3
    with pytest.raises(ValueError, match="must have version 2, got 3; compile the model again"):
        load(changed)
    for other in (b"", b"PK\x03\x04" * 20, b"YOLONASE"):
        with pytest.raises(ValueError, match="must be a serialized engine"):
            load(other)
    for other in (None, 3, "YOLONASE" * 9):
        with pytest.raises(TypeError):
            load(other)
    with pytest.raises(ValueError, match="must be contiguous bytes"):
        load(np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="must be contiguous bytes"):
        load(memoryview(data)[::2])


@pytest.mark.parametrize("integer_step", [False, True])
def test_bytes_with_wrong_contents_and_a_right_checksum_are_refused(integer_step: bool) -> None:
    """Every byte of the description changed, with a checksum that fits: an engine that runs, or an error."""
    graph = [(0, 3), (1, 4)], [conv("a", (0, 0, 3), (1, 0, 4), 1, 2)], SMALL_OUTPUTS
    if integer_step:
        steps = [convert("quantize", "q", (0, 0, 3), (2, 0, 4)), integer(conv("a", (2, 0, 4), (1, 0, 4), 1, 2))]
        graph = [(0, 3), (1, 4), (0, 4, 0.5)], steps, SMALL_OUTPUTS
    data = make(graph).serialize()
    refused = 0
    for at in range(32, len(data)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[at] ^= flip
            try:
                engine = native().Engine.deserialize(with_checksum(bytes(changed)))
            except ValueError:
                refused += 1
                continue
            assert len(engine.plan(16, 16)) == len(graph[1])
            run_any(engine, graph)
    assert refused > 100


def run_any(engine: Any, graph: Graph) -> None:
    """Runs whatever came of the bytes on a small picture, if its outputs are still of the graph's shapes."""
    x = picture(1, 16, 16)
    cls, reg = outputs_for(graph, x)
    with contextlib.suppress(ValueError):
        engine.run(x, cls, reg)


SMALL_OUTPUTS = [{"cls": (1, 0, 1), "reg": (1, 1, 3), "stride": 2}]
