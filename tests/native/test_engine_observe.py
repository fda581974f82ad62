"""Histograms of all values of a run: against NumPy on the outputs of each step, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from engine_graphs import CONVOLUTIONS, GRAPH, Graph, graph, make, picture, run, same, values_of_steps
from harness import ISAS, bits, guarded, guarded_empty, hostile_values, native, runs_here, using_isa, using_threads

from yolonas.quantization.histogram import BINS, Histogram

ROWS = 1 + len(GRAPH[1])


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    if not runs_here(request.param):
        pytest.skip(f"this processor or build cannot run {request.param}")
    with using_isa(request.param):
        yield request.param


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # counts, largest, negatives


def zeros(rows: int = ROWS) -> Arrays:
    return np.zeros((rows, BINS), np.int64), np.zeros(rows, np.float32), np.zeros(rows, np.int64)


def observe(engine: Any, *batches: np.ndarray, rows: int = ROWS) -> Arrays:
    arrays = zeros(rows)
    for x in batches:
        engine.observe(x, *arrays)
    return arrays


def assert_counted(found: Arrays, values: list[np.ndarray]) -> None:
    for row, one in enumerate(values):
        expected = Histogram.from_values(one)
        assert np.array_equal(found[0][row], expected.counts), row
        assert found[1][row] == np.float32(expected.largest), row
        assert found[2][row] == expected.negatives, row
    assert len(found[0]) == len(values)


# --- what is counted ---


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 48), (2, 112, 160)], ids=str)
def test_every_value_of_every_step_is_counted(isa: str, shape: tuple[int, int, int]) -> None:
    engine, x = make(GRAPH), picture(*shape)
    values = values_of_steps(GRAPH, x)
    assert_counted(observe(engine, x), values)
    engine._guard_buffers(True)
    for front in (False, True):
        arrays = [guarded_empty(one.shape, one.dtype, front=front) for one in zeros()]
        for one in arrays:
            one[...] = 0
        engine.observe(guarded(x, front=front), *arrays)
        assert_counted(tuple(arrays), values)  # type: ignore[arg-type]


def test_batches_order_and_threads_change_nothing(isa: str) -> None:
    engine, x = make(GRAPH), picture(5, 112, 80)
    with using_threads(1):
        expected = observe(engine, x)
    for count in (1, 2, 3, 8, 64):
        with using_threads(count):
            for batches in (
                [x],
                [x[:4], x[4:]],
                [x[i : i + 1] for i in range(5)],
                [x[i : i + 1] for i in (3, 0, 4, 1, 2)],
            ):
                assert same(list(observe(engine, *batches)), list(expected)), count


def test_it_adds_to_what_there_is() -> None:
    engine, first, second = make(GRAPH), picture(1, 32, 32), 3 * picture(2, 48, 16, seed=1)
    both = observe(engine, first, second)
    one, other = observe(engine, first), observe(engine, second)
    assert np.array_equal(both[0], one[0] + other[0])
    assert np.array_equal(both[1], np.maximum(one[1], other[1]))
    assert np.array_equal(both[2], one[2] + other[2])
    assert both[0].sum() == one[0].sum() + other[0].sum() > 0


def test_the_algorithms_of_a_run_are_those_observed(isa: str) -> None:
    """What is chosen for `run` holds here, and a run afterwards is as before."""
    engine, x = make(GRAPH), picture(1, 64, 48)
    usual, before = observe(engine, x), run(engine, x)
    for name in CONVOLUTIONS:
        engine.set_algorithm(name, "direct")
    direct = observe(engine, x)
    assert not same(list(direct), list(usual))
    for name in CONVOLUTIONS:
        engine.set_algorithm(name, "auto")
    assert same(list(observe(engine, x)), list(usual))
    assert same(run(engine, x), before)


def test_odd_values_are_counted_where_they_belong() -> None:
    """A network that copies: zeros of both signs, subnormal numbers, the largest ones."""
    copied: Graph = (
        [(0, 3), (0, 5)],
        [
            {
                **{"op": "conv", "name": "copy", "input": (0, 0, 3), "output": (1, 2, 3), "stride": 1, "relu": False},
                **{"weight": np.eye(3, dtype=np.float32)[..., None, None], "bias": np.zeros(3, np.float32)},
            },
            {
                **{"op": "conv", "name": "rest", "input": (0, 0, 3), "output": (1, 0, 2), "stride": 1, "relu": True},
                **{"weight": -np.ones((2, 3, 1, 1), np.float32), "bias": np.zeros(2, np.float32)},
            },
        ],
        [{"cls": (1, 0, 4), "reg": (1, 4, 1), "stride": 1}],
    )
    odd = [0.0, -0.0, 1e-45, -1e-45, 2.0**-133, -(2.0**-133), 2.0**-126, 1.0, -1.0, 1.0078125, 3.4028235e38, 1e38]
    x = np.resize(np.array(odd, np.float32), (2, 3, 7, 3))
    engine = make(copied)
    found = observe(engine, x, rows=3)
    assert_counted(found, values_of_steps(copied, x))
    assert engine.step_names == ["copy", "rest"]
    assert np.array_equal(found[0][0], Histogram.from_values(x).counts)
    assert found[1][0] == np.float32(3.4028235e38)


def test_values_that_are_not_finite_are_counted(isa: str) -> None:
    buffers, steps, outputs = graph()
    at = [step.get("name") for step in steps].index("first")
    steps[at]["weight"] = steps[at]["weight"] * np.float32(1e38)
    huge, x = (buffers, steps, outputs), 1e3 * picture(2, 32, 48)
    found = observe(make(huge), x)
    values = values_of_steps(huge, x)
    assert_counted(found, values)
    not_finite = [np.count_nonzero(~np.isfinite(one)) for one in values]
    assert [Histogram(row, 0, 0).non_finite for row in found[0]] == not_finite
    assert not_finite[: at + 1] == [0] * (at + 1)
    assert not_finite[at + 1] > 0
    assert np.isfinite(found[1]).all()


def test_several_at_once() -> None:
    engine = make(GRAPH)
    pictures = [picture(1 + i % 3, 16 + 16 * (i % 4), 48, seed=i) for i in range(6)]
    expected = [observe(engine, x) for x in pictures]
    with using_threads(3), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: observe(engine, pictures[i % 6]), range(24)))
    assert all(same(list(one), list(expected[i % 6])) for i, one in enumerate(found))


def test_names_are_those_of_the_plan() -> None:
    engine = make(GRAPH)
    assert engine.step_names == [step["name"] for step in engine.plan(16, 16)]


# --- what is refused ---


def test_wrong_histograms_are_named() -> None:
    engine, x = make(GRAPH), picture(1, 32, 48)
    counts, largest, negatives = zeros()
    frozen = largest.copy()
    frozen.flags.writeable = False
    together = np.zeros((ROWS + 1, BINS), np.int64)
    nan = x.copy()
    nan[0, 0, 0, 0] = np.nan
    for wrong, error, text in (
        ((nan, counts, largest, negatives), ValueError, "observe: x must be finite, got NaN or infinity"),
        ((x[0], counts, largest, negatives), ValueError, r"observe: x must have shape \(N, H, W, C\)"),
        ((x[:, :24], counts, largest, negatives), ValueError, "observe: "),
        ((x, counts[1:], largest, negatives), ValueError, rf"counts must have shape .* \({ROWS}, 32768\), got"),
        ((x, counts[:, 1:].copy(), largest, negatives), ValueError, r"counts must have shape \(1 \+ steps, bins\)"),
        ((x, counts.astype(np.int32), largest, negatives), TypeError, "counts must be int64, got int32"),
        ((x, counts, largest.astype(np.float64), negatives), TypeError, "largest must be float32, got float64"),
        ((x, counts, largest[1:], negatives), ValueError, rf"largest must have shape .* \({ROWS}\), got"),
        ((x, counts, frozen, negatives), ValueError, "largest is written to and must not be read-only"),
        ((x, counts, largest, negatives[1:]), ValueError, rf"negatives must have shape .* \({ROWS}\), got"),
        ((x, together[1:], largest, together[1, :ROWS]), ValueError, "negatives must not overlap x or each other"),
        ((x, together[1:], together[1:].view(np.float32)[0, 2 : ROWS + 2], negatives), ValueError, "must not overlap"),
        ((x, together[1:], x.reshape(-1)[:ROWS], negatives), ValueError, "must not overlap x or each other"),
    ):
        with pytest.raises(error, match=text):
            engine.observe(*wrong)
    assert not counts.any()
    assert not largest.any()
    assert not negatives.any()
    engine.observe(x, together[1:], largest, together[0, :ROWS])
    assert np.array_equal(bits(together[1:]), bits(observe(engine, x)[0]))


@pytest.mark.parametrize("kind", list(hostile_values()))
def test_hostile_values(kind: str) -> None:
    engine, x, value = make(GRAPH), picture(1, 16, 16), hostile_values()[kind]
    for at in range(4):
        arguments: list[Any] = [x, *zeros()]
        arguments[at] = value
        with pytest.raises((TypeError, ValueError)):
            engine.observe(*arguments)
    with pytest.raises(TypeError):
        native().Engine.observe(value, x, *zeros())
