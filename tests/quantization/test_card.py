"""The card: the table that people see, and the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from yolonas.quantization.card import Card, Scores, Side, Trial, sensitivity_lines, trial_lines
from yolonas.quantization.sensitivity import Sqnr, StepLoss

FLOAT = Side(Scores(0.5274, 0.8406), 20.0, 48_600_000)
INT8 = Side(Scores(0.5249, 0.8407, Sqnr(38.6, math.inf)), 9.0, 12_400_000)


def card(**changes: Any) -> Card:
    values: dict[str, Any] = {
        "yolonas": "0.1.0",
        "model": "cells.pth",
        "network": "YOLO-NAS S, 3 classes",
        "file": "cells-int8.safetensors",
        "calibration": {"source": "cells train", "pictures": 128},
        "evaluation": {"source": "cells val", "pictures": 87},
        "machine": {"kernels": "avx2", "threads": 2},
        "asked": {"method": "percentile", "float_layers": ("heads",)},
        "float32": FLOAT,
        "int8": INT8,
        "layers": 89,
    }
    return Card(**values | changes)


def test_the_table() -> None:
    assert card().lines() == [
        "              mAP50-95       mAP50    ms/image        file",
        "float32         0.5274      0.8406        20.0     48.6 MB",
        "int8            0.5249      0.8407         9.0     12.4 MB",
        "             -0.25 pts   +0.01 pts      x 0.45      x 0.26",
        "on 87 pictures of cells val; avx2 kernels, 2 threads",
        "noise of the outputs (SQNR): classes 38.6 dB, boxes exact",
        "int8 layers: 89 of 89",
    ]


def test_layers_in_float_say_why() -> None:
    in_float = {"stem": "asked for", **{f"layer{number}": "for the wanted mAP" for number in range(7)}}
    assert card(in_float=in_float).lines()[-3:] == [
        "int8 layers: 81 of 89",
        "in float, asked for: stem",
        "in float, for the wanted mAP: layer0, layer1, layer2, layer3, layer4 and 2 more",
    ]


def test_what_was_tried() -> None:
    assert card(applied={"equalisation": True, "bias correction": False}).lines()[-2:] == [
        "equalisation: showed a gain, kept",
        "bias correction: showed no gain, left out",
    ]


def test_without_labels() -> None:
    none = Scores(None, None)
    lines = card(float32=Side(none, 20.0, 4), int8=Side(Scores(None, None, Sqnr(20.0, 10.0)), 9.0, 1)).lines()
    assert lines[1].split() == ["float32", "-", "-", "20.0", "0.0", "MB"]
    assert "no mAP: the pictures have no labels" in lines[5]
    assert lines[6] == "noise of the outputs (SQNR): classes 20.0 dB, boxes 10.0 dB"


def test_the_file_holds_all(tmp_path: Path) -> None:
    losses = [StepLoss("stem", Sqnr(20.0, -math.inf), 0.5), StepLoss("head", Sqnr(30.0, 31.0))]
    trials = [Trial("int8", INT8.scores, 0, kept=True)]
    path = card(in_float={"stem": "asked for"}, sensitivity=losses, trials=trials).write(tmp_path / "card.json")
    read = json.loads(path.read_text())
    assert read["float32"] == {"scores": {"map": 0.5274, "map50": 0.8406, "sqnr": None}, "ms": 20.0, "bytes": 48600000}
    assert read["int8"]["scores"]["sqnr"] == {"cls": 38.6, "box": None}
    assert read["in_float"] == {"stem": "asked for"}
    assert read["sensitivity"][0] == {"name": "stem", "sqnr": {"cls": 20.0, "box": None}, "map_drop": 0.5}
    assert read["trials"][0]["kept"] is True
    assert read["asked"]["float_layers"] == ["heads"]
    assert list(tmp_path.iterdir()) == [path]


def test_trials() -> None:
    trials = [Trial("4 in float", Scores(0.53, 0.85, Sqnr(40.0, 39.0)), 4, kept=True), Trial("int8", INT8.scores, 0)]
    assert trial_lines(trials, 0.5274) == [
        "tried           mAP50-95       mAP50      change    SQNR cls    SQNR box",
        "int8              0.5249      0.8407   -0.25 pts     38.6 dB       exact",
        "4 in float        0.5300      0.8500   +0.26 pts     40.0 dB     39.0 dB  kept",
    ]


def test_the_most_sensitive_layers() -> None:
    losses = [StepLoss(f"layer{number}", Sqnr(20.0 + number, 50.0), 0.5 - number) for number in range(12)]
    lines = sensitivity_lines(losses)
    assert lines[0] == "layer       SQNR cls    SQNR box    mAP50-95"
    assert lines[1] == "layer0       20.0 dB     50.0 dB   -0.50 pts"
    assert lines[-1] == "... 2 more"
    assert len(lines) == 12
    assert "mAP" not in sensitivity_lines([StepLoss("a", Sqnr(1.0, 2.0))])[0]
