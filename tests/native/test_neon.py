"""The NEON kernels, built for 64-bit ARM and run in an emulator.

Needs g++-aarch64-linux-gnu and qemu-user-static, as Debian calls them.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from engine_graphs import graph, interpret
from harness import native

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-static", "-pthread"]


@pytest.mark.slow
@pytest.mark.skipif(not (COMPILER and EMULATOR), reason="no aarch64-linux-gnu-g++ and qemu-aarch64-static")
def test_neon_does_as_the_generic_kernels(tmp_path: Path) -> None:
    folders = [SOURCES / "cpu", SOURCES / "core", SOURCES / "ops", SOURCES / "engine"]
    sources = [source for folder in folders for source in sorted(folder.glob("*.cpp"))]
    sources += [SOURCES / "cpu" / isa / "table.cpp" for isa in ("generic", "neon")]
    program = Path(__file__).with_name("tables_check.cpp")
    command = [str(COMPILER), *FLAGS, "-DYOLONAS_HAVE_NEON", f"-I{SOURCES}", str(program), *map(str, sources)]
    subprocess.run([*command, "-o", str(tmp_path / "check")], check=True)

    height, width = 96, 64
    x = np.random.default_rng(3).normal(0, 1, (1, height, width, 3)).astype(np.float32)
    (tmp_path / "engine").write_bytes(native().Engine(*graph()).serialize())
    x.tofile(tmp_path / "x")
    names = ("engine", "x", str(height), str(width), "y")
    done = subprocess.run([str(EMULATOR), "./check", *names], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "neon nms: 0 of 0" in done.stdout
    expected = np.concatenate([output.ravel() for output in interpret(graph(), x)])
    for isa in ("neon", "generic"):
        found = np.fromfile(tmp_path / f"y.{isa}", np.float32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
