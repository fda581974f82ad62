"""The emulator of CUDA does what CUDA does, and sees the mistakes that it is there to see."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from emulated_cuda import FLAGS

HERE = Path(__file__).parent
ORDERS = ["forward", "backward", *(f"random:{seed}" for seed in range(6))]

pytestmark = pytest.mark.slow  # compiles C++ first

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module", params=["plain", "address"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs one check of emulator_check.cpp; the second time with AddressSanitizer, which must bear the fibers."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("emulator") / "check"
    sanitize = ["-fsanitize=address"] if request.param == "address" else []
    command = [compiler, *FLAGS, *sanitize, f"-I{HERE / 'cuda_emulator'}", str(HERE / "emulator_check.cpp")]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    if sanitize and "asan" in done.stderr:
        pytest.skip("no AddressSanitizer")
    assert (done.returncode, done.stderr) == (0, "")

    def call(name: str, data: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
        settings = {f"YOLONAS_EMULATOR_{key}": value for key, value in environment.items()}
        if sanitize:
            settings["ASAN_OPTIONS"] = "handle_segv=0:detect_leaks=0"  # checks crash on purpose
        return subprocess.run(
            [program, name], input=data, env={**os.environ, **settings}, capture_output=True, timeout=60, check=False
        )

    return call


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


CASES = ["indices", "collectives", "neighbours", "intrinsics", "shared memory", "copies", "float product"]
CASES += ["int8 product", "halves", "events", "eager branches", "graphs", "capture errors", "overlap"]


@pytest.mark.parametrize("name", CASES)
def test_cases_in_any_order(run: Run, name: str) -> None:
    for order in ORDERS:
        assert said(run(name, ORDER=order, GRAPH=order)) == "ok", order


def test_a_device_of_choice(run: Run) -> None:
    assert said(run("devices", ARCH="75")) == "ok"
    assert said(run("memory", MEMORY=str(1 << 20))) == "ok"


ERRORS = {
    "ended lane": "__syncwarp at .*: ?.* with a mask that names lanes that have ended or never were",
    "late lane": "__syncwarp at .*lanes that have ended or never were|lane 3 has ended; a collective needs every lane",
    "other collective": r"__(syncwarp|ballot_sync) at .* while other lanes of the warp are at __(syncwarp|ballot_sync)",
    "other mask": "with another mask than lanes at __syncwarp",
    "foreign mask": "thread (0|32) of block .*with a mask that lacks the calling lane",
    "barrier and collective": "waits for ever: lane 9 is elsewhere, some lanes wait at __syncthreads at ",
    "ended thread": "some threads ended, others met a barrier: __syncthreads at ",
    "other barrier": "is at __syncthreads at .*, others are at __syncthreads at ",
    "foreign lane": "a shuffle reads lane 20, which is not in its mask",
    "half a warp": "with a mask that names lanes that have ended or never were",
    "overrun into the rest": "a kernel wrote past its 1000 shared bytes",
    "crooked copy": "cp_async16 at .* with an address that is no multiple of 16",
    "overlap after an event": "may overlap the one before it, but its stream waits for another stream's event",
    "overlap without a wait": "may overlap the launch before it do not wait for it",
    "overlap with some waits": "may overlap the launch before it do not wait for it",
    "begin before the wait": "lets the next begin before it waited",
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_mistakes_are_named(run: Run, name: str) -> None:
    for order in ORDERS:
        text = said(run(name, ORDER=order))
        assert text.startswith("emulator: ")
        assert re.search(ERRORS[name], text), text


@pytest.mark.parametrize("name", ["overrun into the page", "allocation overrun"])
def test_what_lies_behind_memory_may_not_be_touched(run: Run, name: str) -> None:
    assert run(name).returncode == -signal.SIGSEGV


def test_a_missing_barrier_shows(run: Run) -> None:
    assert said(run("neighbours without a barrier")) != "ok"
    assert said(run("neighbours without a barrier", ORDER="backward")) != "ok"


def test_a_missing_dependency_shows(run: Run) -> None:
    assert said(run("graphs without a wait")) == "ok"  # in the order of the program
    assert {said(run("graphs without a wait", GRAPH=f"random:{seed}")) for seed in range(8)} != {"ok"}


def test_float16_to_float32(run: Run) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    floats = np.frombuffer(run("from half", halves.tobytes()).stdout, np.float32)
    np.testing.assert_array_equal(floats, halves.view(np.float16).astype(np.float32))


def test_float32_to_float16(run: Run) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32)
    near = halves.view(np.uint32)[:0x7C00]
    middles = near + np.uint32(0x1000)  # ties between neighbours, and next to them
    with np.errstate(over="ignore", invalid="ignore"):
        spread = (np.random.default_rng(1).normal(size=100_000) * 1e-6).astype(np.float32)
        floats = [halves, bits.view(np.float32), spread]
        floats += [(middles + np.uint32(step)).view(np.float32) for step in (0, 1)]
        floats += [(middles - np.uint32(1)).view(np.float32), np.float32([65519.996, 65520, 2**-25, 2**-25 * 1.0001])]
        floats += [np.float32([3, 5, 7, 2047, 2049]) * np.float32(2**-25)]
        values = np.concatenate(floats)
        expected = values.astype(np.float16)
    result = np.frombuffer(run("to half", values.tobytes()).stdout, np.float16)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(result[number].view(np.uint16), expected[number].view(np.uint16))
    assert (result[~number].view(np.uint16) == 0x7FFF).all()
