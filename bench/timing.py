"""The only timer of the benchmarks: rounds that alternate between the sides, medians, and the spread beside them."""

from __future__ import annotations

import contextlib
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def compare(
    sides: dict[str, Callable[[], Any]], *, rounds: int = 15, seconds: float = 0.1, repeats: int | None = None
) -> dict[str, dict[str, float]]:
    """Times functions against each other.

    Each round runs every side for about `seconds` and notes its fastest-half mean, so that a disturbance hits one
    round of one side and not a side. Sides that take seconds get a number of `repeats` instead, and no warm-up.
    Returns per side milliseconds: median over rounds, lowest and highest.
    """
    calls = dict.fromkeys(sides, repeats)
    for name, function in sides.items():
        if repeats is not None:
            break
        function()  # warm-up: caches, threads, lazy imports
        start = time.perf_counter()
        function()
        calls[name] = max(3, int(seconds / max(time.perf_counter() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, function in sides.items():
            single = []
            for _ in range(calls[name]):
                start = time.perf_counter()
                function()
                single.append(time.perf_counter() - start)
            single.sort()
            times[name].append(1e3 * statistics.mean(single[: max(1, len(single) // 2)]))
    return {
        name: {"median_ms": statistics.median(values), "min_ms": min(values), "max_ms": max(values)}
        for name, values in times.items()
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    import os

    import cv2
    import numpy as np
    import torch

    import yolonas
    from yolonas import _native

    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "commit": _git("rev-parse", "--short", "HEAD") + "+" * bool(_git("status", "--porcelain")),
        "yolonas": yolonas.__version__,
        "cpu_isa": _native.build_info()["cpu_isa"],
        "threads": {
            "yolonas": _native.build_info()["threads"],
            "torch": torch.get_num_threads(),
            "opencv": cv2.getNumThreads(),
        },
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def _git(*words: str) -> str:
    """What git answers; empty without git or a repository."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """What is installed of some packages."""
    found = {}
    for package in sorted(set(packages)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def save(name: str, result: dict[str, Any]) -> Path:
    """Writes `bench/results/<name>.json`."""
    path = ROOT / "bench" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
