"""`NAS.quantize` on a CUDA device: where networks run, and what does not change by that. The device is a stand-in."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cuda_stand_in
import numpy as np
import pytest
from cuda_stand_in import World
from quantized_networks import narrow
from val_data import NAMES, write_data

from yolonas import NAS
from yolonas.config import VARIANTS
from yolonas.errors import UnprovenError
from yolonas.lowering import lower

QUICK: dict[str, Any] = {"imgsz": 64, "method": "max", "equalize": False, "correct_bias": False, "verbose": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("apart", numbered=False), NAS(narrow("s"), names=NAMES), pictures=9)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NAS:
    nas = NAS(narrow("s"), names=NAMES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VARIANTS, "narrow", nas.model.variant)
    return nas


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return cuda_stand_in.install(monkeypatch)


def state_of(nas: NAS) -> dict[str, np.ndarray]:
    scales = {f"scale of {name}": np.array(scale) for name, scale in nas.model.activation_scales.items()}
    return scales | {key: value.numpy() for key, value in nas.model.state_dict().items()}


def assert_same(found: NAS, expected: NAS) -> None:
    one, other = state_of(found), state_of(expected)
    assert list(one) == list(other)
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_all_networks_run_there(world: World, model: NAS, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stand-in computes as the CPU does, so the result is the same to the last bit."""
    options = {**QUICK, "equalize": True, "correct_bias": True, "sensitivity": True, "sensitivity_n": 2, "batch": 4}
    options["float_layers"] = ["backbone", "neck"]
    expected = model.quantize(data=data, device="cpu", **options)
    assert not world.made
    found = model.quantize(data=data, device=0, **{**options, "verbose": True})
    assert_same(found, expected)
    assert found.card.trials == expected.card.trials
    assert found.card.sensitivity == expected.card.sensitivity
    layers = found.card.layers - len(found.card.in_float)
    # float, equalised, with and without int8, corrected with its sums, the result; and each layer alone
    assert len(world.made) == layers + 7
    assert {engine.device for engine in world.made} == {0}
    assert not any(engine.half for engine in world.made)
    assert found.card.machine["device"] == "Stand-in"
    assert found.card.machine["kernels"] == "sm_90"
    assert (found.card.float32.ms, found.card.int8.ms) == (2.0, 2.0)  # of events
    assert "; Stand-in (sm_90)\n" in capsys.readouterr().out
    assert "device" not in expected.card.machine


def test_the_default_is_the_cpu_or_where_the_model_was_moved_to(world: World, model: NAS, data: Path) -> None:
    model.quantize(data=data, **QUICK)
    model.predict(np.zeros((64, 64, 3), np.uint8), device=0, imgsz=64, verbose=False)
    del world.made[:]
    assert "device" not in model.quantize(data=data, **QUICK).card.machine
    assert not world.made
    model.to("cuda:1")
    assert model.quantize(data=data, **QUICK).card.machine["device"] == "Stand-in"
    assert {engine.device for engine in world.made} == {1}
    del world.made[:]
    model.quantize(data=data, device="cpu", **QUICK)
    assert not world.made


def test_devices_that_do_not_do(world: World, model: NAS, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="device 'cuda:7' does not exist"):
        model.quantize(data=data, device=7, **QUICK)
    world.architecture = 70
    text = "networks cannot run on device cuda:0: .*sm_70.*; or use device='cpu'"
    with pytest.raises(ValueError, match=text):
        model.quantize(data=data, device=0, **QUICK)
    model.to("cuda")
    with caplog.at_level(logging.WARNING, "yolonas"):
        quantized = model.quantize(data=data, **QUICK)
    assert "quantize: networks run on the CPU, not on cuda: " in caplog.text
    assert "device" not in quantized.card.machine
    assert not Path("runs/detect/quantize-2").exists()


@pytest.mark.parametrize("kind", [NotImplementedError, UnprovenError])
def test_kernels_that_do_not_do(
    world: World,
    model: NAS,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[Exception],
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise kind("engine: these widths; or these results")

    if kind is UnprovenError:
        monkeypatch.setattr("yolonas.cuda_check.prove", refuse)
    else:
        monkeypatch.setattr(cuda_stand_in.Engine, "_start", refuse)
    with pytest.raises(kind, match="engine: these widths; or these results"):
        model.quantize(data=data, device=0, **QUICK)
    model.to("cuda")
    assert "device" not in model.quantize(data=data, **QUICK).card.machine
    assert "quantize: networks run on the CPU: " in caplog.text


def test_kernels_are_checked_at_their_first_use(
    world: World, model: NAS, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("YOLONAS_CUDA_CHECK")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    excluded: list[list[str]] = []
    monkeypatch.setattr(cuda_stand_in.Engine, "exclude", lambda _, names: excluded.append(names), raising=False)
    model.quantize(data=data, device=0, **QUICK)
    model.quantize(data=data, device=0, float_layers="heads", **QUICK)
    kept = json.loads((tmp_path / "yolonas" / "cuda_checks.json").read_text())
    assert [key.rpartition(", ")[2] for key in kept] == ["float32", "int8", "int8 among float32"]
    assert excluded == [[], [], []]


def test_values_that_are_not_finite_are_named(world: World, model: NAS, data: Path) -> None:
    for step in lower(model.model).steps[:4]:
        for module in step["modules"]:
            module.weight.data *= 1e15
    text = r"calibration: outputs of '.*' must be finite, got \d+ that are NaN or infinite in the first \d pictures"
    with pytest.raises(ValueError, match=text):
        model.quantize(data=data, device=0, **QUICK)


def test_too_little_memory(world: World, model: NAS, data: Path) -> None:
    world.short = 1  # torch gives back what it keeps, and the engine tries again
    model.quantize(data=data, device=0, **QUICK)
    assert world.released == 1
    world.short = 2
    with pytest.raises(MemoryError, match="use a smaller batch"):
        model.quantize(data=data, device=0, **QUICK)


def test_predicting_goes_on_as_before(world: World, model: NAS, data: Path) -> None:
    """The model stays where it is, and as it is."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    model.to("cuda")
    (expected,) = model.predict(picture, imgsz=64, conf=0.3, verbose=False)
    before = state_of(model)
    model.quantize(data=data, **QUICK)
    assert all(np.array_equal(value, before[key]) for key, value in state_of(model).items())
    (found,) = model.predict(picture, imgsz=64, conf=0.3, verbose=False)
    assert np.array_equal(found.boxes.data, expected.boxes.data)
