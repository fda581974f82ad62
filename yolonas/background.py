"""One thread that works behind the network: jobs in order, few of them waiting, errors handed on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """Runs jobs one after another on a thread. Where `waiting` of them are not done, `run` blocks.

    The first exception of a job ends all work: it comes from the next `run`, or from `close`.
    """

    def __init__(self, name: str, waiting: int = 2) -> None:
        self._places = threading.Semaphore(waiting)
        self._pool = ThreadPoolExecutor(1, name)
        self._error: BaseException | None = None

    def run(self, job: Callable[..., None], *arguments: Any) -> None:
        """Queues `job(*arguments)`."""
        self._raise()
        self._places.acquire()
        try:
            self._pool.submit(job, *arguments).add_done_callback(self._done)
        except BaseException:
            self._places.release()
            raise

    def close(self, *, quiet: bool = False) -> None:
        """Waits for the queued jobs and raises their first exception; not if `quiet`: another one is the reason."""
        self._pool.shutdown(wait=True)
        if not quiet:
            self._raise()

    def _done(self, future: Future[None]) -> None:
        if self._error is None and not future.cancelled():
            self._error = future.exception()
        self._places.release()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
