"""Which step of a network runs on which stream, and after which others: random tasks, and two that are known."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # compiles C++ first


def ancestors(needs: list[list[int]]) -> list[set[int]]:
    found: list[set[int]] = []
    for own in needs:
        found.append({task for need in own for task in {need, *found[need]}})
    return found


def random_tasks(rng: np.random.Generator) -> tuple[list[float], list[list[int]]]:
    count = int(rng.integers(1, 40))
    density = rng.choice([0.02, 0.1, 0.4])
    needs = [[j for j in range(i) if rng.random() < (0.5 if j == i - 1 else density)] for i in range(count)]
    return [float(cost) for cost in rng.choice([0.0, 1.0, 5.0], count)], needs


@pytest.mark.parametrize("seed", range(60))
def test_schedules(emulated: ModuleType, seed: int) -> None:
    """What a task needs has ended by its stream's order and the waits, and no wait says what is known already."""
    rng = np.random.default_rng(seed)
    costs, needs = random_tasks(rng)
    streams = int(rng.choice([1, 2, 3, 8]))
    slots, joins = emulated._schedule(costs, needs, streams)
    tails: dict[int, int] = {}
    ended: list[set[int]] = []  # when a task begins
    for task, (stream, waits, fork, _, overlap) in enumerate(slots):
        assert 0 <= stream < streams
        before = tails.get(stream)
        by_order = {before, *ended[before]} if before is not None else set()
        sources = [by_order, *({wait, *ended[wait]} for wait in waits)]
        ended.append(set().union(*sources))
        assert set(needs[task]) <= ended[task]
        for i, wait in enumerate(waits):
            assert slots[wait][0] != stream
            assert slots[wait][3]  # recorded
            assert wait not in set().union(*sources[: i + 1], *sources[i + 2 :])
        assert overlap == (before is not None and not waits)
        assert fork == (before is None and not waits and stream != 0)
        tails[stream] = task
    assert slots[0][0] == 0 or streams > 1
    last = tails.get(0)
    at_end = {last, *ended[last]} if last is not None else set()
    for join in joins:
        assert slots[join][3]
        assert join not in at_end
        at_end |= {join, *ended[join]}
    assert at_end == set(range(len(costs)))
    recorded = {task for task, slot in enumerate(slots) if slot[3]}
    assert recorded == {wait for slot in slots for wait in slot[1]} | set(joins)
    if streams == 1:
        assert all(slot[0] == 0 and not slot[1] for slot in slots)


def test_a_chain_stays_on_its_stream_and_branches_do_not(emulated: ModuleType) -> None:
    slots, joins = emulated._schedule([1.0] * 5, [[], [0], [1], [2], [3]], 8)
    assert slots == [(0, [], False, False, i > 0) for i in range(5)]
    assert joins == []
    # 0 -> 1 -> 2 -> 5 is the longest, 3 and 4 run beside.
    slots, joins = emulated._schedule([1.0, 5.0, 5.0, 1.0, 1.0, 1.0], [[], [0], [1], [0], [3], [2, 4]], 8)
    assert [slot[0] for slot in slots] == [0, 0, 0, 1, 1, 0]
    assert [slot[1] for slot in slots] == [[], [], [], [0], [], [4]]
    assert [slot[4] for slot in slots] == [False, True, True, False, True, False]
    assert joins == []
