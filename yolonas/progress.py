"""How a long run tells how far it is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import sys
import time

LOGGER = logging.getLogger("yolonas")

SECONDS = 10.0  # between lines where there is no terminal


class Progress:
    """Pictures done, per second, and the time left.

    Args:
        what: the word at the beginning of the line.
        total: pictures of the whole run. done: those of an earlier part of it.
        verbose: False shows nothing.
    """

    def __init__(self, what: str, total: int, done: int = 0, *, verbose: bool = True):
        self._what, self._total, self._done, self._first = what, total, done, done
        self._start = self._told = time.monotonic()
        self._verbose, self._bar = verbose, None
        if verbose and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit="img", desc=what, leave=False, dynamic_ncols=True)

    def advance(self, count: int, note: str = "") -> None:
        """Counts pictures that are done; `note` is shown behind the numbers."""
        self._done += count
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if self._verbose and now - self._told >= SECONDS:
            self._told = now
            rate = (self._done - self._first) / (now - self._start)
            minutes, seconds = divmod(round((self._total - self._done) / rate), 60)
            LOGGER.info(
                "%s: %d/%d images, %.1f images/s, %d:%02d left%s",
                *(self._what, self._done, self._total, rate, minutes, seconds, f", {note}" if note else ""),
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
