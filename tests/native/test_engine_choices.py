"""How the native engine's steps are computed: the alternatives, timing them, and choosing among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_graphs import GRAPH, assert_close, graph, interpret, make, picture, run, same
from harness import ISAS, hostile_values, runs_here, using_isa, using_threads

SIZE = (1, 48, 64)  # pictures, height, width


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    if not runs_here(request.param):
        pytest.skip(f"this processor or build cannot run {request.param}")
    with using_isa(request.param):
        yield request.param


def chosen(engine: Any, count: int, height: int, width: int) -> list[tuple[str, int, int]]:
    return [(step["algorithm"], *step["cut"]) for step in engine.plan(height, width, count)]


def test_the_first_alternative_is_the_tables_choice(isa: str) -> None:
    engine = make(GRAPH)
    for count, height, width in (SIZE, (3, 32, 48)):
        alternatives = engine.alternatives(height, width, count, 6)
        assert [ways[0] for ways in alternatives] == chosen(engine, count, height, width)
        for ways, step in zip(alternatives, engine.plan(height, width, count), strict=True):
            assert len(set(ways)) == len(ways)
            algorithms = {way[0] for way in ways}
            if step["op"] != "conv":
                assert algorithms == {step["algorithm"]}
            elif step["kernel"] == 3:
                assert algorithms == {"direct", "winograd43" if step["stride"] == 1 else "winograd_s2"}
            assert all(len([way for way in ways if way[0] == one]) <= 6 for one in algorithms)
    assert all(len(ways) <= 2 for ways in engine.alternatives(48, 64, 1, 1))


@pytest.mark.parametrize("threads", [1, 3])
def test_cuts_change_no_bit(isa: str, threads: int) -> None:
    """Each step in every cut of the table's algorithm, all at the same time, with buffers at guard pages."""
    with using_threads(threads):
        engine, x = make(GRAPH), picture(*SIZE)
        expected = run(engine, x)
        ways = [[way for way in step if way[0] == step[0][0]] for step in engine.alternatives(*SIZE[1:], SIZE[0], 6)]
        assert max(map(len, ways)) > 1
        engine._guard_buffers(True)
        for turn in range(max(map(len, ways))):
            choices = [step[turn % len(step)] for step in ways]
            engine.set_choices(*SIZE[1:], SIZE[0], choices)
            assert chosen(engine, *SIZE) == choices
            tuned = [step["tuned"] for step in engine.plan(*SIZE[1:])]
            assert tuned == [choice != step[0] for choice, step in zip(choices, ways, strict=True)]
            assert same(run(engine, x), expected)


def test_the_smallest_and_largest_cuts(isa: str) -> None:
    engine, x = make(GRAPH), picture(*SIZE)
    expected = run(engine, x)
    plan = engine.plan(*SIZE[1:])
    engine.set_choices(*SIZE[1:], SIZE[0], [(step["algorithm"], 1, 1) for step in plan])
    assert same(run(engine, x), expected)


def test_pools_are_cut_by_rows_only() -> None:
    """Their kernel takes no range of blocks: more pieces would do the same work again."""
    for threads in (1, 2, 8, 64):
        with using_threads(threads):
            engine = make(GRAPH)
            for step, ways in zip(engine.plan(16, 16), engine.alternatives(16, 16, 1, 6), strict=True):
                if step["op"] == "max_pool5":
                    assert {step["cut"][1]} == {way[2] for way in ways} == {1}


def test_other_algorithms_compute_the_same(isa: str) -> None:
    engine, x = make(GRAPH), picture(*SIZE)
    engine.set_choices(*SIZE[1:], SIZE[0], [ways[-1] for ways in engine.alternatives(*SIZE[1:], SIZE[0], 3)])
    assert_close(run(engine, x), interpret(GRAPH, x))


def test_choices_are_for_one_size_one_isa_and_one_number_of_threads() -> None:
    engine = make(GRAPH)
    with using_threads(2):
        usual = chosen(engine, *SIZE)
        ways = engine.alternatives(*SIZE[1:], SIZE[0], 6)
        choices = [step[-1] for step in ways]
        engine.set_choices(*SIZE[1:], SIZE[0], choices)
        assert chosen(engine, *SIZE) == choices != usual
        assert not any(step["tuned"] for step in engine.plan(64, 64))
        assert not any(step["tuned"] for step in engine.plan(*SIZE[1:], 2))
        with using_threads(3):
            assert not any(step["tuned"] for step in engine.plan(*SIZE[1:]))
        with using_isa("generic"):
            before = chosen(engine, *SIZE)
            engine.set_choices(*SIZE[1:], SIZE[0], [None] * len(GRAPH[1]))
            assert chosen(engine, *SIZE) == before
        assert chosen(engine, *SIZE) == choices
        engine.set_choices(*SIZE[1:], SIZE[0], [None] * len(GRAPH[1]))
        assert chosen(engine, *SIZE) == usual


def test_as_many_pictures_as_run_side_by_side_share_choices() -> None:
    with using_threads(2):
        engine, x = make(GRAPH), picture(5, *SIZE[1:])
        expected = run(engine, x)
        assert {step["pictures"] for step in engine.plan(*SIZE[1:], 5)} == {2}
        choices = [step[1 % len(step)] for step in engine.alternatives(*SIZE[1:], 16, 6)]
        engine.set_choices(*SIZE[1:], 16, choices)
        assert chosen(engine, 2, *SIZE[1:]) == chosen(engine, 5, *SIZE[1:]) == choices
        assert [len(times) for times in engine.time_choices(*SIZE[1:], 16, [choices])] == [len(choices)]
        algorithms = [step[0][0] for step in engine.alternatives(*SIZE[1:], 16, 6)]
        if algorithms == [choice[0] for choice in choices]:
            assert same(run(engine, x), expected)


def test_an_algorithm_set_by_name_goes_first() -> None:
    engine = make(GRAPH)
    at = [step.get("name") for step in GRAPH[1]].index("first")
    choices: list[Any] = [None] * len(GRAPH[1])
    choices[at] = ("winograd43", 2, 1)
    engine.set_choices(*SIZE[1:], SIZE[0], choices)
    assert chosen(engine, *SIZE)[at] == choices[at]
    engine.set_algorithm("first", "direct")
    assert chosen(engine, *SIZE)[at][0] == "direct"
    assert {way[0] for way in engine.alternatives(*SIZE[1:], SIZE[0], 3)[at]} == {"direct"}
    engine.set_algorithm("first", "auto")
    assert chosen(engine, *SIZE)[at] == choices[at]


def test_a_layer_that_is_too_inexact_for_winograd_stays_direct(isa: str) -> None:
    buffers, steps, outputs = graph()
    at = [step.get("name") for step in steps].index("first")
    steps[at]["weight"] = steps[at]["weight"] * np.float32(1e31)
    steps[at + 1]["weight"] = steps[at + 1]["weight"] * np.float32(1e-31)
    engine = make((buffers, steps, outputs))
    assert {way[0] for way in engine.alternatives(*SIZE[1:], SIZE[0], 3)[at]} == {"direct"}
    assert {way[0] for way in engine.alternatives(*SIZE[1:], SIZE[0], 3)[at + 1]} == {"direct", "winograd43"}
    choices: list[Any] = [None] * len(steps)
    choices[at] = ("winograd43", 1, 1)
    for call in (
        lambda: engine.set_choices(*SIZE[1:], SIZE[0], choices),
        lambda: engine.time_choices(*SIZE[1:], SIZE[0], [choices]),
    ):
        with pytest.raises(ValueError, match="step 'first' cannot be computed by winograd43"):
            call()
    assert chosen(engine, *SIZE)[at][0] == "direct"


def test_times_are_those_of_the_runs_asked_for() -> None:
    engine = make(GRAPH)
    ways = engine.alternatives(*SIZE[1:], SIZE[0], 2)
    times = engine.time_choices(*SIZE[1:], SIZE[0], [[step[0] for step in ways], [None] * len(ways)])
    assert [len(run) for run in times] == [len(GRAPH[1])] * 2
    assert all(time >= 0 for run in times for time in run)
    assert engine.time_choices(*SIZE[1:], SIZE[0], []) == []
    assert not any(step["tuned"] for step in engine.plan(*SIZE[1:]))


def test_choices_that_do_not_fit_are_refused() -> None:
    engine = make(GRAPH)
    usual, count = chosen(engine, *SIZE), len(GRAPH[1])
    for choice, text in (
        (("pointwise", 1, 1), "step 'stem' cannot be computed by pointwise"),
        (("upsample", 1, 1), "step 'stem' cannot be computed by upsample"),
        (("other", 1, 1), "there is no algorithm 'other'"),
        (("direct", 0, 1), r"the cut of step 'stem' must lie in 1\.\.24 and 1\.\..*, got 0 and 1"),
        (("direct", 25, 1), "got 25 and 1"),
        (("direct", 1, 1000), "got 1 and 1000"),
        (("direct", -(2**63), 2**63 - 1), "the cut of step 'stem' must lie in"),
    ):
        with pytest.raises(ValueError, match=text):
            engine.set_choices(*SIZE[1:], SIZE[0], [choice] + [None] * (count - 1))
    for number in (0, count - 1, count + 1):
        with pytest.raises(ValueError, match=f"there must be one per step, {count}, got {number}"):
            engine.set_choices(*SIZE[1:], SIZE[0], [None] * number)
    for cuts in (0, -1, 65):
        with pytest.raises(ValueError, match=r"cuts must lie in 1\.\.64"):
            engine.alternatives(*SIZE[1:], SIZE[0], cuts)
    for size in ((20, 16, 1), (16, 16, 0), (2**40, 16, 1)):
        for call in (
            lambda size: engine.alternatives(*size, 1),
            lambda size: engine.set_choices(*size, [None] * count),
            lambda size: engine.time_choices(*size, [[None] * count]),
        ):
            with pytest.raises(ValueError, match=r"height and width|batch|pixels"):
                call(size)
    assert chosen(engine, *SIZE) == usual


@pytest.mark.parametrize("kind", list(hostile_values()))
def test_hostile_choices(kind: str) -> None:
    engine, value = make(GRAPH), hostile_values()[kind]
    count = len(GRAPH[1])
    for call in (
        lambda: engine.alternatives(value, 16, 1, 1),
        lambda: engine.alternatives(16, 16, 1, value),
        lambda: engine.set_choices(16, 16, 1, value),
        lambda: engine.set_choices(16, 16, 1, [("direct", value, 1)] * count),
        lambda: engine.set_choices(16, 16, 1, [(value, 1, 1)] * count),
        lambda: engine.time_choices(16, 16, 1, [value]),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
