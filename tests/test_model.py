"""The facade: loading, saving, information, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_recipe import fill_

from yolonas import NAS, CheckpointError, WeightsNotFoundError
from yolonas.nn import YoloNAS


@pytest.fixture(scope="module")
def module() -> YoloNAS:
    return fill_(YoloNAS("s", num_classes=3).eval())


def test_model_is_the_module(module: YoloNAS) -> None:
    detector = NAS(module, names=["a", "b", "c"])
    assert detector.model is module
    boxes, scores = detector.model(torch.zeros(1, 3, 64, 64))
    assert boxes.shape == (1, 84, 4)
    assert scores.shape == (1, 84, 3)
    assert detector.task == "detect"
    assert str(detector.device) == "cpu"
    assert repr(detector) == "NAS(yolo_nas_s, 3 classes, 640x640, training)"


def test_save_and_load(module: YoloNAS, tmp_path: Path) -> None:
    detector = NAS(module, names={0: "a", 1: "b", 2: "ü"})
    detector.preprocess = detector.preprocess.with_size((320, 416))
    detector.settings = replace(detector.settings, conf=0.3, multi_label=False)
    path = detector.save(tmp_path / "m.safetensors")
    again = NAS(path)
    assert again.names == detector.names
    assert again.preprocess == detector.preprocess
    assert again.settings == detector.settings
    assert again.ckpt_path == path
    for (name, one), (other_name, other) in zip(
        module.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other)


def test_a_fused_model_saves_its_form_and_predicts_the_same(tmp_path: Path) -> None:
    detector = NAS(fill_(YoloNAS("s", num_classes=3).eval()))
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    first = detector.predict(picture, imgsz=64, conf=0.5, verbose=False)[0]
    assert detector.model.form == "folded"  # predict fuses in place
    again = NAS(detector.save(tmp_path / "fused.safetensors"))
    assert again.model.form == "folded"
    second = again.predict(picture, imgsz=64, conf=0.5, verbose=False)[0]
    assert torch.equal(first.boxes.data, second.boxes.data)


def test_info(module: YoloNAS, capsys: pytest.CaptureFixture[str]) -> None:
    layers, parameters, gradients, gflops = NAS(module).info()
    assert parameters > 19_000_000
    assert gradients < parameters  # the unused placeholders take none
    assert layers > 100
    assert gflops == pytest.approx(33.8, abs=0.3)
    assert "YOLO_NAS_S summary" in capsys.readouterr().out


@pytest.mark.parametrize("call", [lambda m: NAS(m, task="segment"), lambda m: NAS(m, names=["a"])])
def test_wrong_arguments(module: YoloNAS, call: object) -> None:
    with pytest.raises(ValueError, match="NAS: "):
        call(module)


def test_wrong_kinds_of_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLONAS_OFFLINE", "1")
    monkeypatch.setenv("YOLONAS_WEIGHTS", str(tmp_path))
    with pytest.raises(TypeError, match="model must be a path, a name or a YoloNAS module, got Linear"):
        NAS(torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"none\.pt"):
        NAS(tmp_path / "none.pt")
    with pytest.raises(WeightsNotFoundError, match="yolo_nas_s"):
        NAS("yolo_nas_s")
    with pytest.raises(CheckpointError):
        NAS("yolo_nas_x.yaml")
