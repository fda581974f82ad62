"""What the network benchmark derives from its times, and that it goes on without peers that are not installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import yolonas

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    import network

    return network


def row(peak_mb: dict[str, float | None] | None = None, **medians: float) -> dict[str, Any]:
    return {
        "times": {side: {"median_ms": ms} for side, ms in medians.items()},
        "peak_mb": peak_mb or dict.fromkeys(medians),
    }


def step(algorithm: str, output: tuple[int, int, int], mflop: float, ms: float) -> dict[str, Any]:
    return {
        **{"name": f"{algorithm}{output}", "op": "conv", "algorithm": algorithm, "input": (40, 40, 8)},
        **{"output": output, "kernel": 3, "stride": 1, "mflop": mflop, "ms": ms, "weight_bytes": 0},
    }


def test_ratios_of_one_picture(network: ModuleType) -> None:
    found = network.ratios(
        "s_640_1_2", row({"yolonas": 60, "OpenVINO": 100, "ncnn": 50}, yolonas=70, OpenVINO=110, ncnn=100)
    )
    assert [(line["what"], line["peer"], line["ratio"], line["met"]) for line in found] == [
        ("time over the best peer", "ncnn", 0.7, True),
        ("time over OpenVINO", "OpenVINO", 0.636, True),
        ("peak memory over OpenVINO", "OpenVINO", 0.6, True),
    ]
    found = network.ratios("l_640_1_2", row(yolonas=76, OpenVINO=100))
    assert [(line["ratio"], line["aim"], line["met"]) for line in found] == [(0.76, 0.75, False), (0.76, 0.5, False)]
    assert [line["met"] for line in network.ratios("s_640_1_1", row(yolonas=1, torch=2))] == [None]


def test_ratio_of_a_batch(network: ModuleType) -> None:
    times = {"yolonas": 100.0, "OpenVINO": 150.0, "OpenVINO, streams": 139.0}
    (line,) = network.ratios("m_640_8_2", row(**times))
    assert (line["what"], line["peer"]) == ("images/s over the best peer", "OpenVINO, streams")
    assert (line["ratio"], line["aim"], line["at_least"], line["met"]) == (1.39, 1.4, True, False)


@pytest.mark.parametrize("sides", [{"yolonas": 1.0}, {"torch": 1.0}, {}])
def test_no_ratio_without_both(network: ModuleType, sides: dict[str, float]) -> None:
    assert network.ratios("s_640_1_2", row(**sides)) == []


def test_speed_ups(network: ModuleType) -> None:
    rows = {"s_640_1_2": row(yolonas=50, torch=60), "s_640_1_1": row(yolonas=95, torch=90), "m_640_1_2": row(yolonas=1)}
    assert [(line["side"], line["ratio"], line["met"]) for line in network.speed_ups(rows)] == [
        ("yolonas", 1.9, True),
        ("torch", 1.5, None),
    ]


def test_layers_count_what_is_executed(network: ModuleType) -> None:
    steps = [
        step("direct", (20, 20, 8), 100.0, 0.5),
        step("winograd43", (20, 20, 8), 100.0, 0.5),
        step("winograd43", (10, 10, 8), 100.0, 0.5),  # 9 tiles of 16 for 100 pixels
        step("winograd_s2", (20, 20, 8), 100.0, 0.5),
        step("max_pool", (20, 20, 8), 0.0, 0.5),
    ]
    rows = network.layer_table(steps, 400.0)
    assert [layer["gflops"] for layer in rows] == [200, 200, 200, 200, None]
    assert [layer["executed_gflops"] for layer in rows] == [200, 50, 72, 112.5, None]
    assert [layer["share"] for layer in rows] == [0.5, 0.125, 0.18, 0.281, None]
    assert network.worst_layers(rows) == [steps[number]["name"] for number in (1, 2, 3, 0)]
    assert network.worst_layers(network.layer_table(steps, None)) == []


def test_the_extra_is_what_the_peers_need(network: ModuleType) -> None:
    import network_sides

    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = re.search(r"^bench = (\[.*\])$", project, re.MULTILINE)
    assert extra
    assert set(json.loads(extra[1])) == {package for names in network_sides.PACKAGES.values() for package in names}
    assert set(network_sides.PACKAGES) < set(network_sides.SIDES)


def test_what_is_not_installed_is_named_with_the_extra(network: ModuleType) -> None:
    import network_sides

    assert network_sides.not_installed(("numpy", "torch")) == ""
    assert network_sides.not_installed(("numpy", "no_such_one", "nor_this")) == (
        "no_such_one, nor_this not installed; pip install 'yolonas[bench]'"
    )


@pytest.mark.slow
def test_it_goes_on_without_a_peer(tmp_path: Path) -> None:
    """In a process, since the sides run in processes; the peer is hidden, whether it is installed or not."""
    program = (
        "import sys; sys.path.insert(0, 'bench')\n"
        "if __name__ == '__main__':\n"
        "    import network_sides\n"
        "    network_sides.PACKAGES['ncnn'] = ('no_such_one',)\n"
        "    import network\n"
        "    network.main()\n"
    )
    script = tmp_path / "without_ncnn.py"
    script.write_text(program)
    options = ["--folder", tmp_path, *["--cases", "s_320_1_2", "--sides", "yolonas", "ncnn", "--rounds", "1"]]
    environment = {**os.environ, "PYTHONPATH": str(Path(yolonas.__file__).parents[1])}
    command = [sys.executable, script, *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "ncnn is left out: no_such_one not installed; pip install 'yolonas[bench]'" in done.stdout
    assert "not timed: no_such_one not installed" in done.stdout
    assert re.search(r"yolonas +[\d.]+ ms", done.stdout)
