"""Threads that read ahead of the network: many files in order, one video, or the newest frame of a live stream.

Both classes keep a bounded number of results and of bytes, never reorder, and stop when `close()` is called from any
thread. They know nothing of pictures: the cost of a result in bytes comes from a function.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

BYTES_AHEAD = 256 * 2**20  # decoded pictures that wait; one that is larger still passes, alone
CLOSE_SECONDS = 1.0  # how long close() waits for a thread that is inside a decoder or a socket; it ends by itself later


def reader_threads() -> int:
    """Threads for decoding files: one per usable core, at most four."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, usable))


class _Readers:
    """Daemon threads that share one condition. `closed` is an event, so that a producer can wait on it."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def _start(self, count: int, name: str) -> None:
        _open.add(self)
        for number in range(count):
            thread = threading.Thread(target=self._run, name=f"yolonas-{name}-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Stops the threads; a waiting `get` or `next` ends. Allowed more than once and from any thread."""
        self._stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(CLOSE_SECONDS)
        _open.discard(self)

    def _stop(self) -> None:
        self.closed.set()
        with self._changed:
            self._changed.notify_all()


_open: weakref.WeakSet[_Readers] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Python ends daemon threads at exit; one that is inside OpenCV then would abort the whole process."""
    readers = list(_open)
    for reader in readers:
        reader._stop()
    for reader in readers:
        reader.close()


class OrderedMap(_Readers, Generic[Item, Result]):
    """`work(item)` for each item on several threads; `get(0)`, `get(1)`, ... gives the results in order.

    At most `depth` results are made or wait at any time. `work` should not raise: an exception of it comes from `get`.
    """

    def __init__(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        depth: int,
        cost: Callable[[Result], int],
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self._work, self._items, self._depth, self._cost = work, items, depth, cost
        self._results: dict[int, Result | BaseException] = {}
        self._next = 0  # the item that the next free thread takes
        self._wanted = 0  # the item that the consumer gets next
        self._bytes = 0  # of the results that wait
        self._start(min(threads or reader_threads(), len(items), depth), "read")

    def get(self, index: int) -> Result:
        """Result of `items[index]`; each is to be asked for once, in order. StopIteration after `close()`."""
        with self._changed:
            self._changed.wait_for(lambda: index in self._results or self.closed.is_set())
            if self.closed.is_set():
                raise StopIteration
            result = self._results.pop(index)
            self._wanted = index + 1
            if isinstance(result, BaseException):
                raise result
            self._bytes -= self._cost(result)
            self._changed.notify_all()
        return result

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.closed.is_set() or self._next >= len(self._items) or self._room())
                if self.closed.is_set() or self._next >= len(self._items):
                    return
                index = self._next
                self._next += 1
            try:
                result: Result | BaseException = self._work(self._items[index])
            except BaseException as error:
                result = error
            with self._changed:
                self._results[index] = result
                if not isinstance(result, BaseException):
                    self._bytes += self._cost(result)
                self._changed.notify_all()
            del result  # or the thread would keep the last picture alive while it waits

    def _room(self) -> bool:
        if self._next == self._wanted:
            return True
        return self._next < self._wanted + self._depth and self._bytes < BYTES_AHEAD


class Ahead(_Readers, Generic[Result]):
    """Runs an iterator on a thread of its own; `next()` gives its items, its end and its exceptions.

    `make` gets the event that tells it to stop. With `newest=True` an item that was not fetched in time is replaced by
    the next one, so that the consumer always sees the latest; otherwise the producer waits for room.
    """

    def __init__(
        self,
        make: Callable[[threading.Event], Iterator[Result]],
        *,
        depth: int,
        cost: Callable[[Result], int],
        newest: bool = False,
    ) -> None:
        super().__init__()
        self._make, self._depth, self._cost, self._newest = make, 1 if newest else depth, cost, newest
        self._waiting: deque[Result] = deque()
        self._bytes = 0
        self._ended = False
        self._error: BaseException | None = None
        self._start(1, "stream")

    def __iter__(self) -> Ahead[Result]:
        return self

    def __next__(self) -> Result:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self.closed.is_set())
            if self.closed.is_set():
                raise StopIteration
            if self._waiting:
                item = self._waiting.popleft()
                self._bytes -= self._cost(item)
                self._changed.notify_all()
                return item
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopIteration

    def _run(self) -> None:
        items = self._make(self.closed)
        try:
            for item in items:
                if not self._put(item):
                    break
        except BaseException as error:
            self._error = error
        finally:
            close = getattr(items, "close", None)  # here, not in another thread: the generator owns the video
            if close is not None:
                close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: Result) -> bool:
        with self._changed:
            if self._newest:
                self._waiting.clear()
                self._bytes = 0
            self._changed.wait_for(lambda: self.closed.is_set() or self._room())
            if self.closed.is_set():
                return False
            self._waiting.append(item)
            self._bytes += self._cost(item)
            self._changed.notify_all()
            return True

    def _room(self) -> bool:
        return not self._waiting or (len(self._waiting) < self._depth and self._bytes < BYTES_AHEAD)
