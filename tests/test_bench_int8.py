"""What the int8 benchmark derives from outputs and times, and a run of our sides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import yolonas

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def int8(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    import int8

    return int8


def levels(noise: dict[str, float]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Six outputs with noise of some standard deviation per kind, and the right ones: variance 1 around 5."""
    rng = np.random.default_rng(0)
    right = [5 + rng.standard_normal((1, 4, side, side)) for _ in noise for side in (40, 20, 10)]
    deviations = [deviation for deviation in noise.values() for _ in range(3)]
    outputs = [
        (level + deviation * rng.standard_normal(level.shape)).astype(np.float32)
        for level, deviation in zip(right, deviations, strict=True)
    ]
    return outputs, right


def test_signal_to_noise(int8: ModuleType) -> None:
    noted, wrong = int8.judge(*levels({"cls": 0.1, "reg": 0.01}))
    assert noted["sqnr_db"] == pytest.approx({"cls": 20, "reg": 40}, abs=0.5)  # the mean of 5 is no signal
    assert not wrong


@pytest.mark.parametrize("noise", [1.0, float("nan")])
def test_a_lost_network_is_wrong(int8: ModuleType, noise: float) -> None:
    _, wrong = int8.judge(*levels({"cls": 0.1, "reg": noise}))
    assert wrong.startswith("signal to noise of reg is ")
    assert wrong.endswith(" dB")


def test_ratios(int8: ModuleType) -> None:
    medians = {"yolonas int8": 80, "OpenVINO int8": 100, "yolonas": 90, "OpenVINO": 400, "ONNX Runtime int8": 160}
    row: dict[str, Any] = {"times": {side: {"median_ms": ms} for side, ms in medians.items()}}
    found = int8.ratios("s_640_1_2", row)
    assert [(line["what"], line["ratio"], line["aim"], line["met"], line.get("hoped")) for line in found] == [
        ("time over OpenVINO int8", 0.8, 0.88, True, 0.78),
        ("time over yolonas float32", 0.889, 0.80, False, None),
        ("time over ONNX Runtime int8", 0.5, None, None, None),
    ]
    del row["times"]["yolonas int8"]
    assert int8.ratios("s_640_1_2", row) == int8.ratios("s_640_1_2", {}) == []


def test_layer_table(int8: ModuleType) -> None:
    step = {
        **{"name": "stem", "op": "conv", "algorithm": "direct_s8", "input": (640, 640, 4), "output": (320, 320, 48)},
        **{"kernel": 3, "stride": 2, "mflop": 250.0, "ms": 0.5},
    }
    conv, other = int8.layer_table([step, {**step, "op": "quantize", "mflop": 0.0}])
    assert (conv["input"], conv["gops"], other["gops"]) == ("640x640x4", 500, None)


@pytest.mark.slow
def test_our_sides_run(tmp_path: Path) -> None:
    """In a process, since the sides run in processes."""
    options = ["--folder", tmp_path, "--cases", "s_320_1_2", "--sides", "yolonas int8", "yolonas", "--rounds", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(yolonas.__file__).parents[1])}
    command = [sys.executable, ROOT / "bench" / "int8.py", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "not timed" not in done.stdout
    assert "s_320_1_2  time over yolonas float32: " in done.stdout
    assert "the layers one by one take" in done.stdout
    assert json.loads((tmp_path / "s_320_1.json").read_text())["gflop"] > 0
