"""Times work on a GPU with CUDA events, sides in turn; reads clocks and never changes them; keeps to a time limit."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

LEAST_CALLS, MOST_CALLS = 3, 4000  # between two events
WARM_UP = 3  # calls before the first event


class Clock(Protocol):
    """Times calls that queue work."""

    def measure(self, function: Callable[[], object], calls: int) -> float:
        """Milliseconds of one of so many calls, queued one after another without waiting."""

    def measure_apart(self, function: Callable[[], object], calls: int) -> list[float]:
        """Milliseconds of each of so many calls, before each of which the caches are emptied."""

    def works(self) -> bool:
        """Whether the device still computes for this process."""


class CudaClock:
    """Events on torch's current stream."""

    def __init__(self, torch: Any):
        self._torch = torch
        self._flush: Any = None  # several times the L2 cache

    def measure(self, function: Callable[[], object], calls: int) -> float:
        begin, end = self._events()
        begin.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / calls

    def measure_apart(self, function: Callable[[], object], calls: int) -> list[float]:
        if self._flush is None:
            self._flush = self._torch.empty(512 << 20, dtype=self._torch.uint8, device="cuda")
        found = []
        for _ in range(calls):
            begin, end = self._events()
            self._flush.zero_()  # long enough for the host to have queued what follows
            self._flush.zero_()
            begin.record()
            function()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end))
        return found

    def works(self) -> bool:
        try:
            return float(self._torch.ones(1, device="cuda").add_(1).item()) == 2.0
        except Exception:
            return False

    def _events(self) -> tuple[Any, Any]:
        return tuple(self._torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[return-value]


def compare(
    sides: Mapping[str, Callable[[], object]],
    clock: Clock,
    *,
    rounds: int = 9,
    seconds: float = 0.03,
    before: Callable[[str], object] = str,
) -> dict[str, dict[str, float]]:
    """Times functions against each other, as `timing.compare` does on the CPU.

    Each round runs every side for about `seconds`, every other round in the reverse order, so that a change of clocks
    hits all sides alike. Returns per side milliseconds of a call: median over the rounds, lowest and highest, and
    `calls` of a round.

    Args:
        before: called with a side's name before it runs, and not timed.
    """
    calls = {}
    for name, function in sides.items():
        before(name)
        clock.measure(function, WARM_UP)  # plans, graphs, compiled code
        single = clock.measure(function, LEAST_CALLS)
        calls[name] = calls_for(single, seconds)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            before(name)
            times[name].append(clock.measure(sides[name], calls[name]))
    return {name: spread(values) | {"calls": calls[name]} for name, values in times.items()}


def calls_for(ms: float, seconds: float) -> int:
    """How many calls of so many milliseconds fill the seconds."""
    return min(MOST_CALLS, max(LEAST_CALLS, round(1e3 * seconds / max(ms, 1e-4))))


def spread(values: list[float]) -> dict[str, float]:
    return {"median_ms": statistics.median(values), "min_ms": min(values), "max_ms": max(values)}


def in_turn(run: Callable[[int], object], inputs: int) -> Callable[[], object]:
    """A function that runs with the numbers of the inputs, one after another and again."""
    numbers = itertools.cycle(range(inputs))
    return lambda: run(next(numbers))


class Budget:
    """Time that is left. Parts that would not fit are noted and left out."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self._now, self._end = now, now() + seconds
        self.left_out: dict[str, str] = {}

    @property
    def left(self) -> float:
        return self._end - self._now()

    def allows(self, part: str, seconds: float) -> bool:
        """Whether so many seconds are left; notes the part if not."""
        if self.left >= seconds:
            return True
        self.left_out[part] = f"needs about {seconds:.0f} s, {max(0.0, self.left):.0f} s were left"
        return False


@contextlib.contextmanager
def limited(seconds: float, what: str) -> Iterator[None]:
    """Raises TimeoutError in the block when its time is up. Needs the main thread of a POSIX system, else no limit."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeoutError(f"{what} took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- nvidia-smi ---

FIELDS = (
    *("name", "driver_version", "compute_cap", "memory.total", "memory.used", "pstate", "temperature.gpu"),
    *("power.draw", "power.limit", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "utilization.gpu"),
)
CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "pstate")


def query(fields: tuple[str, ...] = FIELDS) -> dict[str, str]:
    """What nvidia-smi says of the first GPU; empty without one. Only reads."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_query(done.stdout, fields) if done.returncode == 0 else {}


def parse_query(text: str, fields: tuple[str, ...]) -> dict[str, str]:
    """The first line of `nvidia-smi --query-gpu --format=csv,noheader`."""
    row = next(csv.reader(io.StringIO(text), skipinitialspace=True), [])
    return dict(zip(fields, row, strict=True)) if len(row) == len(fields) else {}


def clocks_while_busy(
    function: Callable[[], object], clock: Clock, single_ms: float, seconds: float = 1.5
) -> dict[str, str]:
    """Clocks while the GPU works. It does so until they have been read, however long that takes."""
    clock.measure(function, calls_for(single_ms, seconds))  # clocks rise slowly
    found: dict[str, str] = {}
    reader = threading.Thread(target=lambda: found.update(query(CLOCKS)))
    reader.start()
    while reader.is_alive():
        clock.measure(function, calls_for(single_ms, 0.1))
    return found
