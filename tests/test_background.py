"""Jobs behind the network: in order, bounded, and their errors are not lost."""

from __future__ import annotations

import threading
import time

import pytest

from yolonas.background import Background


def test_jobs_run_in_order() -> None:
    seen: list[int] = []
    background = Background("test")
    for number in range(50):
        background.run(seen.append, number)
    background.close()
    assert seen == list(range(50))


def test_few_wait() -> None:
    gate, started = threading.Event(), []
    background = Background("test", waiting=2)
    background.run(gate.wait)
    background.run(started.append, 1)
    blocked = threading.Thread(target=background.run, args=(started.append, 2))
    blocked.start()
    time.sleep(0.05)
    assert blocked.is_alive()
    gate.set()
    blocked.join(5)
    background.close()
    assert started == [1, 2]


def fail(number: int) -> None:
    raise RuntimeError(f"job {number}")


def test_the_first_error_comes_out() -> None:
    background = Background("test")
    background.run(fail, 1)
    with pytest.raises(RuntimeError, match="job 1"):
        background.close()
    background = Background("test")
    with pytest.raises(RuntimeError, match="job 0"):  # noqa: PT012
        for number in range(100):
            background.run(fail, number)


def test_another_error_under_way_stays_the_reason() -> None:
    background = Background("test")
    background.run(fail, 1)
    background.close(quiet=True)


def test_an_error_is_not_lost_where_the_caller_handles_another_one() -> None:
    background = Background("test")
    try:
        raise KeyError
    except KeyError:
        background.run(fail, 1)
        with pytest.raises(RuntimeError, match="job 1"):
            background.close()
