"""`CudaEngine` on the kernels and plans of the CUDA engine, in the emulator: all of the way but the device."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_stand_in
import cv2
import numpy as np
import pytest
import torch
from cuda_stand_in import World
from golden_recipe import fill_
from quantized_networks import narrow, quantize_, sixteens
from quantized_networks import picture as noise

from yolonas import NAS, _native
from yolonas.config import VARIANTS
from yolonas.cuda_engine import CudaEngine
from yolonas.lowering import lower
from yolonas.nn import YoloNAS, fuse_

pytestmark = pytest.mark.slow

CUDA = torch.device("cuda:0")
QUICK: dict[str, Any] = {"imgsz": 64, "conf": 0.6, "max_det": 30, "verbose": False}
SIZES = [(90, 120), (64, 40)]
PICTURES = [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8) for seed, size in enumerate(SIZES)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, emulated: ModuleType) -> World:
    return cuda_stand_in.install(monkeypatch, emulated)


def network() -> YoloNAS:
    return fuse_(fill_(YoloNAS("s", num_classes=3)).eval())


def assert_like(found: np.ndarray, expected: np.ndarray, score: float, box: float) -> None:
    """Each sure detection has one like it on the other side."""
    assert len(expected) > 3
    for one, other in ((found, expected), (expected, found)):
        for row in one[one[:, 4] > QUICK["conf"] + 2 * score][:10]:
            near = (np.abs(other[:, :4] - row[:4]).max(1) < box) & (np.abs(other[:, 4] - row[4]) < score)
            assert (near & (other[:, 5] == row[5])).any(), row


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_predict(world: World, kind: str, tmp_path: Path) -> None:
    model = network()
    if kind == "int8":
        quantize_(model, noise(1, 64, 64))
    detector = NAS(model)
    expected = detector.predict(PICTURES, device="cpu", **QUICK)
    precision = {"precision": "fp16"} if kind == "float16" else {}
    found = detector.predict(PICTURES, device=0, batch=2, **precision, **QUICK)
    score, box = {"float32": (1e-4, 0.01), "float16": (5e-3, 0.5), "int8": (1e-5, 1e-3)}[kind]
    for one, other in zip(found, expected, strict=True):
        assert_like(one.boxes.data.numpy(), other.boxes.data.numpy(), score, box)
    engine = detector._engine_for(0, half=kind == "float16", name=None)
    assert isinstance(engine, CudaEngine)
    kinds = {step["dtype"] for step in engine.plan((64, 64))}
    assert kinds == ({kind, "float32"} if kind == "int8" else {kind})
    assert engine.describe() == f"Stand-in (sm_90), {kind}"


def test_on_device_and_compiled_files(world: World, tmp_path: Path) -> None:
    world.eager = True
    compiled = NAS(NAS(network()).save(tmp_path / "m.yolonas"))
    expected = compiled.predict(PICTURES, device="cpu", **QUICK)
    detect = compiled.on_device(device=0, precision="fp16", imgsz=64, conf=QUICK["conf"], max_det=30)
    detections, counts = detect([world.put(picture) for picture in PICTURES])
    for rows, count, other in zip(detections.numpy(), counts.tolist(), expected, strict=True):
        assert_like(rows[:count], other.boxes.data, 5e-3, 0.5)
        assert not rows[count:].any()
    planes = noise(1, 64, 64).transpose(0, 3, 1, 2).copy()
    detections, counts = detect(world.put(planes))
    (other,) = compiled.predict(torch.from_numpy(planes), device="cpu", **QUICK)
    assert_like(detections[0, : int(counts[0])].numpy(), other.boxes.data, 5e-3, 0.5)


def scales_of(nas: NAS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of activations and of weights, and the biases."""
    steps = [step for step in lower(nas.model).steps if "weight" in step]
    weights = np.concatenate([step["weight_scale"] for step in steps])
    return np.array(list(nas.model.activation_scales.values())), weights, np.concatenate([s["bias"] for s in steps])


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """The name of device 0."""
    if request.param == "emulated":
        request.getfixturevalue("world")
        return "Stand-in"
    if _native.cuda() is None or not torch.cuda.is_available():
        pytest.skip("no CUDA device, or a build without yolonas._cuda")
    return torch.cuda.get_device_name(0)


@pytest.mark.parametrize("method", ["max", "mse"])
def test_quantize(device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str) -> None:
    """The network that the CPU makes, up to values that rounding moves into the next bin of a histogram."""
    detector = NAS(narrow("s", width=sixteens))
    monkeypatch.setitem(VARIANTS, "narrow", detector.model.variant)
    monkeypatch.chdir(tmp_path)
    more = {"correct_bias": True, "sensitivity": True} if method == "max" else {"correct_bias": False}
    options = {
        "imgsz": 64,
        "batch": 2,
        "method": method,
        "equalize": False,
        "sensitivity_n": 1,
        "verbose": False,
        **more,
    }
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), PICTURES[number % 2] // (1 + number))
    expected = detector.quantize(data=paths, device="cpu", **options)
    found = detector.quantize(data=paths, device=0, **options)
    assert list(found.model.activation_scales) == list(expected.model.activation_scales)
    (scales, weights, biases), (other_scales, other_weights, other_biases) = scales_of(found), scales_of(expected)
    np.testing.assert_allclose(scales, other_scales, rtol=1e-4 if method == "max" else 2 / 128)
    assert np.mean(np.isclose(scales, other_scales, rtol=1e-4)) > 0.9
    assert np.array_equal(weights, other_weights)
    np.testing.assert_allclose(biases, other_biases, rtol=0, atol=1e-3 * np.abs(other_biases).max())
    assert found.card.machine["device"] == device
    assert found.card.applied == expected.card.applied
    for one, other in zip(found.card.trials, expected.card.trials, strict=True):
        np.testing.assert_allclose(one.scores.sqnr, other.scores.sqnr, atol=0.5)  # dB
    order = {loss.name: loss.sqnr.worst for loss in expected.card.sensitivity}
    for loss in found.card.sensitivity:
        assert abs(loss.sqnr.worst - order[loss.name]) < 1.0
    assert len(found.card.sensitivity) == len(order) == (found.card.layers if method == "max" else 0)
