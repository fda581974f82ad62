"""Threads that read ahead: order, bounds, errors and a prompt end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from made_files import reader_threads

from yolonas.data import readahead
from yolonas.data.readahead import Ahead, OrderedMap


def wait_until(condition: object, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return bool(condition())


def test_results_come_in_order_whatever_finishes_first() -> None:
    def work(number: int) -> int:
        time.sleep(0.004 * (3 - number % 4))
        return number * number

    ahead = OrderedMap(work, range(40), depth=6, cost=lambda result: 0, threads=4)
    try:
        assert [ahead.get(i) for i in range(40)] == [i * i for i in range(40)]
    finally:
        ahead.close()


def test_no_more_than_depth_is_made_ahead() -> None:
    started: list[int] = []
    ahead = OrderedMap(lambda n: started.append(n), range(100), depth=5, cost=lambda result: 0, threads=3)
    try:
        assert wait_until(lambda: len(started) == 5)
        time.sleep(0.05)
        assert sorted(started) == [0, 1, 2, 3, 4]
        ahead.get(0)
        assert wait_until(lambda: len(started) == 6)
        time.sleep(0.02)
        assert len(started) == 6
    finally:
        ahead.close()


def test_bytes_that_wait_are_bounded_but_one_result_always_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "BYTES_AHEAD", 10)
    started: list[int] = []
    ahead = OrderedMap(lambda n: started.append(n) or n, range(20), depth=10, cost=lambda n: 100, threads=1)
    try:
        for number in range(20):
            assert ahead.get(number) == number
            assert len(started) <= number + 2
    finally:
        ahead.close()
    several = Ahead(lambda stop: iter(range(20)), depth=10, cost=lambda n: 100)
    try:
        assert list(several) == list(range(20))
    finally:
        several.close()


def test_an_exception_of_the_work_comes_out_where_it_belongs() -> None:
    ahead = OrderedMap(lambda n: 6 // n, [3, 2, 0, 1], depth=4, cost=lambda n: 0, threads=2)
    try:
        assert (ahead.get(0), ahead.get(1)) == (2, 3)
        with pytest.raises(ZeroDivisionError):
            ahead.get(2)
        assert ahead.get(3) == 6
    finally:
        ahead.close()


def test_close_wakes_a_waiting_consumer_and_ends_the_threads() -> None:
    release = threading.Event()
    ahead = OrderedMap(lambda n: release.wait(10), range(8), depth=4, cost=lambda n: 0, threads=2)
    ended: list[bool] = []

    def consume() -> None:
        try:
            ahead.get(0)
        except StopIteration:
            ended.append(True)

    consumer = threading.Thread(target=consume)
    consumer.start()
    time.sleep(0.02)
    threading.Timer(0.05, release.set).start()
    ahead.close()
    consumer.join(5)
    assert ended == [True]
    assert reader_threads() == []
    ahead.close()


def test_ahead_passes_items_end_and_exception() -> None:
    def numbers(stop: threading.Event) -> Iterator[int]:
        yield from range(5)
        raise ValueError("no more")

    ahead = Ahead(numbers, depth=2, cost=lambda n: 0)
    got = []
    while len(got) < 5:
        got.append(next(ahead))
    with pytest.raises(ValueError, match="no more"):
        next(ahead)
    assert got == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


def test_an_item_of_none_or_false_is_an_item() -> None:
    ahead = Ahead(lambda stop: iter([None, 0, False]), depth=1, cost=lambda n: 0)
    assert list(ahead) == [None, 0, False]
    ahead.close()


def test_every_item_or_the_newest() -> None:
    for newest in (False, True):
        go = threading.Semaphore(0)
        made: list[int] = []

        def numbers(stop: threading.Event, go: threading.Semaphore = go, made: list[int] = made) -> Iterator[int]:
            for number in range(50):
                if number == 1:
                    go.acquire()
                made.append(number)
                yield number

        ahead = Ahead(numbers, depth=3, cost=lambda n: 0, newest=newest)
        assert next(ahead) == 0
        go.release()
        if newest:
            assert wait_until(lambda made=made: len(made) == 50)
            time.sleep(0.02)
            assert list(ahead) == [49]
        else:
            time.sleep(0.05)
            assert len(made) <= 1 + 3 + 1
            assert list(ahead) == list(range(1, 50))
        ahead.close()


def test_the_producer_is_closed_in_its_own_thread() -> None:
    closed_by: list[str] = []

    def numbers(stop: threading.Event) -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed_by.append(threading.current_thread().name)

    ahead = Ahead(numbers, depth=2, cost=lambda n: 0)
    assert next(ahead) == 0
    ahead.close()
    assert closed_by == ["yolonas-stream-0"]
    with pytest.raises(StopIteration):
        next(ahead)
