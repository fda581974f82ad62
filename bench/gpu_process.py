"""Runs parts of the benchmark in processes of their own: after a CUDA error nothing works in a process any more.

Such a process says what it is doing in a file, so that whoever started it can tell that it hangs, and in what it died.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STALLED = 60.0  # seconds of the same thing after which a process hangs
DEAD = 4  # ends a process in which the device has failed
LATE, HUNG = 1001, 1002  # instead of an exit code
PAUSE = 0.2  # seconds between two looks


class DeadError(RuntimeError):
    """The device has failed, and does nothing more for this process."""


class Doing:
    """What this process does, by name. Without a file it is only remembered."""

    def __init__(self, path: Path | None = None):
        self.path, self.name = path, ""

    def __call__(self, name: str) -> None:
        self.name = name
        self._write(name)

    def failed(self, reason: str) -> None:
        self._write(f"{self.name}\n{reason}")

    def _write(self, text: str) -> None:
        if self.path:
            self.path.write_text(text, encoding="utf-8")


def last_done(path: Path) -> tuple[str, str]:
    """What a process did last, and why it ended; empty where it has not said so."""
    with contextlib.suppress(OSError):
        name, _, reason = path.read_text(encoding="utf-8").partition("\n")
        return name, reason
    return "", ""


def watch(command: Sequence[str], doing: Path, seconds: float, stalled: float = STALLED) -> tuple[int, str]:
    """Runs a program, and kills it when its time is up or when it does the same thing for too long.

    Returns its exit code, or `LATE` or `HUNG`, and in words why it ended; "" if it ended well.
    """
    doing.unlink(missing_ok=True)
    process = subprocess.Popen(command)
    begin = changed = time.monotonic()
    before = 0
    try:
        while (code := process.poll()) is None:
            time.sleep(PAUSE)
            now, stamp = time.monotonic(), _stamp(doing)
            if stamp != before:
                before, changed = stamp, now
            if now - begin > seconds:
                return LATE, f"no time was left after {seconds:.0f} s"
            if now - changed > stalled:
                return HUNG, f"hung: nothing came for {stalled:.0f} s"
    finally:
        if process.poll() is None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may not let it go
                process.wait(10)
    if code < 0:
        return code, f"the process was ended by {signal.Signals(-code).name}"
    return code, f"the process ended with {code}" if code else ""


def _stamp(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def read(path: Path) -> dict[str, Any]:
    """A JSON object."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def write(path: Path, result: dict[str, Any]) -> None:
    """The whole file or nothing."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
