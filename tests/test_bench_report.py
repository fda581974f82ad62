"""The tables that `bench/report.py` prints, from results made up here and from those that are saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MACHINE = {"processor": "Some Processor", "cores": 2, "cpu_isa": "avx512", "commit": "abc1234", "torch": "2.13.0"}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "bench")
    import report

    return report


def times(**sides: float) -> dict[str, dict[str, float]]:
    return {side: {"median_ms": ms, "min_ms": ms - 1, "max_ms": ms + 1} for side, ms in sides.items()}


def layer(name: str, share: float | None, **values: Any) -> dict[str, Any]:
    return {
        **{"name": name, "op": "conv", "algorithm": "winograd43", "input": "20x20x8", "output": "20x20x16"},
        **{"kernel": 3, "stride": 1, "ms": 0.5, "gflops": 400.0, "executed_gflops": 100.0, "share": share, **values},
    }


def ratio(case: str, what: str, peer: str, value: float, aim: float | None, *, least: bool = False) -> dict[str, Any]:
    met = None if aim is None else value >= aim if least else value <= aim
    return {"case": case, "what": what, "peer": peer, "ratio": value, "aim": aim, "at_least": least, "met": met}


@pytest.fixture
def network() -> dict[str, Any]:
    pool = layer("pool", None, algorithm="max_pool", gflops=None, executed_gflops=None)
    rows = {
        "s_640_1_2": {
            "case": "S at 640, 2 threads",
            "missing": {"ncnn": "ncnn not installed"},
            "times": times(yolonas=66.0, torch=200.0, OpenVINO=100.0),
            "layers": [layer("stem", 0.5), pool, layer("neck", 0.25)],
            "worst_layers": ["neck", "stem"],
        },
        "m_640_8_2": {
            "case": "M at 640, batch 8, 2 threads",
            "missing": {"ncnn": "ncnn not installed", "torch": "out of memory"},
            "times": times(yolonas=800.0, OpenVINO=1000.0),
        },
    }
    return {
        "machine": MACHINE,
        "versions": {"openvino": "2026.4.1"},
        "rounds": 9,
        "all_sides_on": None,
        "peak_gflops": {"1": 178.0, "2": 353.0},
        "ratios": [
            ratio("s_640_1_2", "time over the best peer", "OpenVINO", 0.66, 0.70),
            ratio("s_640_1_2", "time over OpenVINO", "OpenVINO", 0.66, 0.60),
            ratio("s_640_1_2", "peak memory over OpenVINO", "OpenVINO", 0.63, None),
            ratio("m_640_8_2", "images/s over the best peer", "OpenVINO", 1.25, 1.4, least=True),
        ],
        "one_thread_to_two": [
            {"case": "s_640_1_2", "side": "yolonas", "ratio": 1.9, "aim": 1.85, "at_least": True, "met": True},
            {"case": "s_640_1_2", "side": "torch", "ratio": 1.7, "aim": None, "at_least": True, "met": None},
        ],
        "rows": rows,
    }


def test_network_tables(report: ModuleType, network: dict[str, Any]) -> None:
    text = "\n".join(report.network({"network": network}))
    assert "| S at 640, 2 threads | 66.0 | 200.0 | 100.0 | 0.66 | 0.66 |" in text
    assert "| M at 640, batch 8, 2 threads | 800.0 |  | 1000.0 | 0.80 |  |" in text  # 1 / 1.25
    assert "Aims met: 2 of 4." in text
    assert "| S at 640, 2 threads: time over the best peer, OpenVINO | 0.660 | at most 0.70 | met |" in text
    assert "| S at 640, 2 threads: time over OpenVINO | 0.660 | at most 0.60 | **not met** |" in text
    assert "images/s over the best peer, OpenVINO | 1.250 | at least 1.40 | **not met** |" in text
    assert "| S at 640, 2 threads: speed-up of two threads | 1.900 | at least 1.85 | met |" in text
    assert "peak memory" not in text  # nothing was aimed at
    assert "Some Processor, 2 cores, avx512 kernels, peak GFLOP/s 178 with 1 thread and 353 with 2 threads" in text
    assert "torch 2.13.0, openvino 2026.4.1." in text
    assert "Not timed (S at 640, 2 threads; M at 640, batch 8, 2 threads): ncnn: ncnn not installed." in text
    assert "Not timed (M at 640, batch 8, 2 threads): torch: out of memory." in text


@pytest.mark.parametrize(("held", "words"), [("avx2", "All sides held to AVX2:"), (None, "but for ONNX Runtime")])
def test_network_held_to_avx2(report: ModuleType, network: dict[str, Any], held: str | None, words: str) -> None:
    other = {**copy.deepcopy(network), "all_sides_on": held, "peak_gflops": {}, "ratios": [], "one_thread_to_two": []}
    text = "\n".join(report.network({"network": network, "network_avx2": other}))
    assert words in text
    assert text.count("Aims met") == 1
    assert text.count("peak GFLOP/s") == 1


def test_layers(report: ModuleType, network: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import layer_limits

    monkeypatch.setitem(layer_limits.LIMITS, "s_640_1_2", {"neck": "small maps"})
    text = report.layers(network)
    cells = "winograd43 | 3, 1 | 20x20x8 | 20x20x16 | 0.500 | 400 | 100"
    assert f"| neck | {cells} | 25% | small maps |\n| stem | {cells} | 50% | - |" in text
    assert f"| stem | {cells} | 50% |\n| pool |" in text  # all of them, in the order of the plan
    assert "| pool | max_pool | 3, 1 | 20x20x8 | 20x20x16 | 0.500 |  |  |  |" in text
    assert "take 1.5 ms, the network 66.0 ms" in text
    assert "batch 8" not in text


def test_layers_where_no_peak_was_measured(report: ModuleType, network: dict[str, Any]) -> None:
    row = network["rows"]["s_640_1_2"]
    row["layers"], row["worst_layers"], network["peak_gflops"] = [layer("stem", None)], [], {}
    assert "smallest share" not in report.layers(network)


def test_what_limits_a_layer(report: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import layer_limits

    monkeypatch.setattr(layer_limits, "LIMITS", {"*": {"stem": "three channels", "neck": "a"}, "s": {"neck": "b"}})
    assert [layer_limits.limit("s", name) for name in ("stem", "neck", "head")] == ["three channels", "b", "-"]
    assert layer_limits.limit("m", "neck") == "a"


@pytest.fixture
def int8() -> dict[str, Any]:
    sides = {"yolonas int8": 22.0, "OpenVINO int8": 28.0, "yolonas": 75.0}
    rows = {
        key: {
            "case": case,
            "missing": {"ONNX Runtime int8": "onnxruntime not installed"},
            "times": times(**sides),
            "sqnr_db": {side: {"cls": 31.2, "reg": 28.9} for side in sides},
            "about": {"OpenVINO int8": "2026.4.1, convolutions: 98 some_I8"},
        }
        for key, case in (("s_640_1_2", "S at 640, 2 threads"), ("m_640_1_2", "M at 640, 2 threads"))
    }
    del rows["m_640_1_2"]["times"]["yolonas"]  # type: ignore[attr-defined]
    return {
        **{"machine": MACHINE, "versions": {"nncf": "3.4.0"}, "rounds": 9, "all_sides_on": None},
        "ratios": [
            {**ratio("s_640_1_2", "time over OpenVINO int8", "OpenVINO int8", 0.786, 0.88), "hoped": 0.78},
            ratio("s_640_1_2", "time over yolonas float32", "yolonas", 0.293, 0.80),
        ],
        "rows": rows,
    }


def test_int8_tables(report: ModuleType, int8: dict[str, Any]) -> None:
    text = "\n".join(report.int8({"int8": int8}))
    assert (
        "| network | yolonas int8 | OpenVINO int8 | yolonas float32 | over OpenVINO int8 | over yolonas float32 |"
        in text
    )
    assert "| S at 640, 2 threads | 22.0 | 28.0 | 75.0 | 0.79 | 0.29 |" in text
    assert "| M at 640, 2 threads | 22.0 | 28.0 |  |  |  |" in text
    assert "| M at 640, 2 threads | 31, 29 | 31, 29 |  |" in text
    assert "time over OpenVINO int8 | 0.786 | at most 0.88, hoped for 0.78 | met |" in text
    assert "Aims met: 2 of 2." in text
    ran = "OpenVINO int8 (S at 640, 2 threads; M at 640, 2 threads): 2026.4.1, convolutions: 98 some_I8."
    assert ran in text
    assert "Some Processor, 2 cores, avx512 kernels, commit abc1234; median of 9 rounds." in text
    assert "Not timed (S at 640, 2 threads; M at 640, 2 threads): ONNX Runtime int8: onnxruntime not installed." in text


@pytest.mark.parametrize(("held", "words"), [("avx2", "All sides held to AVX2:"), (None, "but for ONNX Runtime")])
def test_int8_held_to_avx2(report: ModuleType, int8: dict[str, Any], held: str | None, words: str) -> None:
    text = "\n".join(report.int8({"int8": int8, "int8_avx2": {**copy.deepcopy(int8), "all_sides_on": held}}))
    assert words in text
    assert text.count("Aims met") == 2


def test_int8_accuracy_table(report: ModuleType) -> None:
    row = {"side": "yolonas int8", "coco": {"AP": 0.52764, "AP50": 0.838, "AP75": 0.5832}}
    result = {
        **{"model": "cells.pth", "data": "cells", "calibration": "128 of 205 pictures of cells train", "pictures": 87},
        **{"rows": [row], "machine": MACHINE, "versions": {"nncf": "3.4.0"}},
    }
    text = "\n".join(report.int8_accuracy({"int8_accuracy_bccd": result}))
    assert "| yolonas int8 | 0.5276 | 0.8380 | 0.5832 |" in text
    assert "cells.pth on 87 pictures of cells" in text
    assert "(128 of 205 pictures of cells train)" in text
    assert "avx512 kernels, nncf 3.4.0, commit abc1234." in text


@pytest.mark.parametrize(("met", "word"), [(True, "met"), (False, "**not met**")])
def test_predict_table(report: ModuleType, met: bool, word: str) -> None:
    result = {
        "machine": {**MACHINE, "opencv": "5.0.0"},
        "versions": {},
        "rounds": 9,
        **{"model": "yolo_nas_s", "weights": "made by a recipe", "size": "640x640", "picture": "JPEG", "boxes": 20},
        **{"network": "network alone", "measured": "predict", "ratio": 1.1, "aim": 1.15, "met": met},
        "times": times(**{"network alone": 80.0, "predict": 88.0}),
        "missing": {"by hand": "openvino not installed"},
    }
    text = "\n".join(report.predict({"predict": result}))
    assert "| network alone | 80.0 | 1.00 |\n| predict | 88.0 | 1.10 |" in text
    assert f"predict: 1.10 times the network alone, aim at most 1.15: {word}." in text
    assert "Not timed: by hand: openvino not installed." in text


def test_what_was_not_saved_leaves_its_place_empty(report: ModuleType, network: dict[str, Any]) -> None:
    before = (
        "a\n<!-- bench/report.py: network -->\n<!-- end -->\n\n<!-- bench/report.py: predict -->\n<!-- end -->\nb\n"
    )
    assert report.filled(before, {}) == before
    after = report.filled(before, {"network": network})
    assert "## Speed of the network" in after
    assert report.filled(after, {"network": network}) == after
    assert report.filled(after, {}) == before


def test_saved_files_and_texts_agree(report: ModuleType) -> None:
    saved = report.read()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in report.SECTIONS:
        assert readme.count(f"<!-- bench/report.py: {name} -->") == 1
    assert report.filled(readme, saved) == readme, "run `python bench/report.py --write`"
    if "network" in saved:
        layers = (ROOT / "bench" / "results" / report.LAYERS).read_text(encoding="utf-8")
        assert layers == report.layers(saved["network"]), "run `python bench/report.py --write`"


def part(before: float | None, after: float, **settings: Any) -> dict[str, Any]:
    used = {"epochs": 50, "batch": 8, "learning_rate": 7e-4}
    stated = {"imgsz": None, "precision": None, "weight_bits": 8, **settings}
    scores = [
        None if value is None else {"map": value, "map50": value + 0.3, "map75": value} for value in (before, after)
    ]
    found = {"settings": {**stated, "used": used}, "seconds": 600.0, "size": [288, 288], "commit": "0123abc"}
    return {**found, "after": scores[1]} | ({} if scores[0] is None else {"before": scores[0]})


def test_training_tables(report: ModuleType) -> None:
    quantised = part(0.1, 0.5, weight_bits=4) | {"float32": {"map": 0.52}, "int8": {"map": 0.51}}
    machine = {"processor": "Some Processor", "cores": 2, "cpu_isa": "avx2", "torch": "2.13.0", "commit": "0123abc"}
    saved: dict[str, Any] = {"data": "cells", "checkpoint": "best.pth", "machine": machine}
    saved["parts"] = {"scratch": part(None, 0.55, imgsz=[224, 224], precision="bf16"), "quantised": quantised}
    text = "\n".join(report.train_accuracy({"train_bccd": saved}))
    assert "| S from random weights (bf16) | 50 | 224 | 8 | 0.0007 | 10 |  | 0.5500 | 0.8500 |" in text
    assert "| best.pth in int8 with weights of 4 bits | 50 | 288 | 8 | 0.0007 | 10 | 0.1000 | 0.5000 | 0.8000 |" in text
    assert "has 0.5200, with weights of 8 bits 0.5100." in text
    assert report.train_accuracy({}) == report.train({}) == []

    times = {"yolonas": {"median_ms": 900.0}, "plain torch": {"median_ms": 1000.0}}
    step = {"machine": machine, "versions": {"torch": "2.13.0"}, "size": "320x320", "batch": 8, "threads": 2}
    step |= {"times": times, "stages_ms": {"forward": 300.0, "backward": 597.0, "loss": 3.0}}
    step |= {"images_per_second": {"yolonas": 8.9, "plain torch": 8.0, "loader": 240.4}}
    text = "\n".join(report.train({"train": step}))
    assert "| `yolonas` | 900 ms | 8.9 | 0.90 |" in text
    assert "forward 33%, backward 66%." in text
    assert "240 changed pictures a second" in text
