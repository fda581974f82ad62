"""Lets the kernels of the CUDA engine prove themselves on a device before its first use there.

A GPU, driver or build that nobody has tried yet may compute something else, fail or hang. So when an engine is made on
a device for the first time, every variant of its convolutions runs the network on a small input, and the head outputs
are compared with those of the CPU engine. That is done in another process, which may crash or be ended; where none can
be had, in this one. Variants that differ or fail are left out from then on; if what is left differs or fails too, the
engine is not used. What was found is kept in `cuda_checks.json` in the user's cache folder, which may be deleted at any
time. `YOLONAS_CUDA_CHECK=0` leaves the check out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _native
from .cuda_comparison import compare, kind_of, unproven
from .errors import UnprovenError
from .folders import cache_folder
from .runs import write_file

if TYPE_CHECKING:
    from .cuda_engine import CudaEngine

LOGGER = logging.getLogger("yolonas")

START_SECONDS = 120.0  # until the first outputs: torch is imported, and the driver may have to compile all kernels
SECONDS = 60.0  # for the outputs of one variant
LAST_SECONDS = 10.0  # for a process to end that prints no more, or that was killed
MOST_CHILDREN = 8  # all but the last may end at a variant: as many as Hopper alone has
MAX_CACHE_BYTES = 1 << 20
PROGRAM = "import sys; sys.path[:] = {}; import json; from yolonas.cuda_comparison import main; "
PROGRAM += "main(**json.loads(sys.argv[1]))"


def prove(engine: CudaEngine, reference: Callable[[], Any]) -> None:
    """Checks an engine where its kind is new on this machine, and leaves the variants out that are wrong.

    Args:
        reference: makes a `_cpu.Engine` of the same network; called only if it is needed.

    Raises:
        UnprovenError: no choice of variants gives the CPU's results. MemoryError: there is no room to find that out.
    """
    if os.environ.get("YOLONAS_CUDA_CHECK", "").strip() == "0":
        return
    path, key = cache_folder() / "cuda_checks.json", _key(engine)
    excluded = _kept(path).get(key)
    if excluded is None:
        cpu = reference()
        try:
            excluded = _compare_elsewhere(engine, cpu)
        except _NoChildError as error:
            LOGGER.info("the GPU's kernels are checked in this process: %s", error)
            excluded = compare(engine, cpu)
        _keep(path, key, excluded)
    if excluded:
        LOGGER.warning(
            "%s: kernels that fail or compute something else than the CPU are left out: %s; please report this with "
            "the output of nvidia-smi",
            *(engine.describe(), ", ".join(excluded)),
        )
        engine.native.exclude(excluded)


# --- in another process ---


class _NoChildError(Exception):
    """No other process can be started, or it comes to no result for reasons that are not the kernels'."""


class _Failure(NamedTuple):
    what: str  # was tried, in words
    variant: str | None  # None: what nothing can do without
    cause: str


def _compare_elsewhere(engine: CudaEngine, cpu: Any) -> list[str]:
    """As `compare`, in processes each of which ends at the first variant that crashes or hangs.

    Raises:
        UnprovenError: as `compare`, or too many crash. _NoChildError: the first process is none that can tell.
    """
    excluded: list[str] = []
    failure = None
    try:
        with tempfile.TemporaryDirectory(prefix="yolonas-", ignore_cleanup_errors=True) as folder:
            network, errors = Path(folder, "network"), Path(folder, "errors")
            network.write_bytes(cpu.serialize())
            for _ in range(MOST_CHILDREN):
                failure = _run(_command(engine, network, excluded), errors, excluded)
                if failure is None:
                    return excluded
                what, variant, cause = failure
                if variant is None:
                    break
                LOGGER.warning("%s: %s cannot be had (%s); checking the others", engine.describe(), what, cause)
                excluded.append(variant)
    except (OSError, _NoChildError) as error:
        if failure is None:
            raise _NoChildError(str(error)) from None
        raise unproven(engine, failure.what, f"cannot be had: {failure.cause}; then: {error}") from None
    raise unproven(engine, failure.what, f"cannot be had: {failure.cause}")


def _command(engine: CudaEngine, network: Path, excluded: list[str]) -> list[str]:
    """Runs `cuda_comparison.main` where modules are found as they are here, and nothing of the user's program is run.

    Raises:
        _NoChildError: what runs here is not Python, but a program that has it inside.
    """
    name = Path(sys.executable or "").name.lower()
    if not name.startswith(("python", "pypy")) or getattr(sys, "frozen", False):
        raise _NoChildError(f"there is no Python to start, sys.executable is {sys.executable!r}")
    given = {
        "network": str(network),
        "device": engine.cuda.index,
        "half": engine.half,
        "machine": engine.machine(),
        "excluded": excluded,
    }
    return [sys.executable, "-c", PROGRAM.format([str(entry) for entry in sys.path]), json.dumps(given)]


def _run(command: list[str], errors: Path, excluded: list[str]) -> _Failure | None:
    """Follows a process, adds to `excluded` what it finds wrong, and returns where it fails; it is gone afterwards.

    Raises:
        UnprovenError: the process says so. _NoChildError: it has tried nothing, has no room, or others ended it.
    """
    what, variant, limit = "", None, START_SECONDS
    end = time.monotonic() + limit
    with _started(command, errors) as (process, lines):
        while True:
            try:
                line = lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                cause = f"nothing has come within {limit:g} s"
                break
            if line is None:
                cause = _last_words(process, errors)
                break
            message = _message(line)
            if "trying" in message:
                what, variant = message["trying"], message.get("variant")
                limit = START_SECONDS if variant is None else SECONDS
                end = time.monotonic() + limit
            elif "wrong" in message:
                excluded.append(message["wrong"])
            elif "failed" in message:
                cause = message["failed"]
                break
            elif "unproven" in message:
                raise UnprovenError(message["unproven"])
            elif "no_room" in message:
                raise _NoChildError("the device has no room for the network twice")
            elif "done" in message:
                return None
    if not what:
        raise _NoChildError(cause)
    return _Failure(what, variant, cause)


@contextlib.contextmanager
def _started(command: list[str], errors: Path) -> Iterator[tuple[subprocess.Popen[bytes], queue.Queue[bytes | None]]]:
    """A process and the lines that it prints, None after the last one. It is killed at the end of the block."""
    lines: queue.Queue[bytes | None] = queue.Queue()
    with errors.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closes with this process, which ends that one
            stdout=subprocess.PIPE,
            stderr=file,
            env={**os.environ, "YOLONAS_CUDA_CHECK": "0"},
        )

    def read() -> None:
        with process.stdout as stream:  # type: ignore[union-attr]
            for line in stream:
                lines.put(line)
        lines.put(None)

    try:
        threading.Thread(target=read, daemon=True).start()
        yield process, lines
    finally:
        process.kill()
        process.stdin.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may keep what hangs in a kernel
            process.wait(LAST_SECONDS)


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _last_words(process: subprocess.Popen[bytes], errors: Path) -> str:
    """How a process that prints no more has ended, and the last line of its errors.

    Raises:
        _NoChildError: somebody else has ended it.
    """
    try:
        code = process.wait(LAST_SECONDS)
    except subprocess.TimeoutExpired:
        return "its process says nothing more"
    if -code in (signal.SIGTERM, getattr(signal, "SIGKILL", None)):  # the system, where memory is short
        raise _NoChildError(f"the process for it was ended by signal {-code}")
    ended = f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"code {code}"
    words = [line.strip() for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    return f"its process ended with {': '.join([ended, *(line[:300] for line in words[-1:])])}"


# --- keeping ---


def _key(engine: CudaEngine) -> str:
    """What the results hold for. A driver may compile the code anew."""
    driver = _native.cuda().driver_version()  # type: ignore[union-attr]
    return f"{engine.machine()}, driver for CUDA {driver}, {_build()}, {kind_of(engine)}"


def _build() -> str:
    """What tells two builds of the module apart."""
    try:
        status = Path(_native.cuda().__file__).stat()  # type: ignore[union-attr, arg-type]
    except (AttributeError, OSError, TypeError):
        return "built in memory"
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


def _kept(path: Path) -> dict[str, list[str]]:
    try:
        if path.stat().st_size > MAX_CACHE_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        key: names
        for key, names in content.items()
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }


def _keep(path: Path, key: str, excluded: list[str]) -> None:
    try:
        write_file(path, json.dumps({**_kept(path), key: excluded}, indent=1).encode())
    except OSError as error:
        LOGGER.warning("the check of the GPU's kernels cannot be kept in %s: %s", path, error.strerror or error)
