"""`CudaEngine` on the kernels and plans of the CUDA engine, in the emulator: all of the way but the device."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_stand_in
import numpy as np
import pytest
import torch
from cuda_stand_in import World
from emulated_cuda import build
from golden_recipe import fill_
from quantized_networks import picture as noise
from quantized_networks import quantize_

from yolonas import NAS
from yolonas.cuda_engine import CudaEngine
from yolonas.nn import YoloNAS, fuse_

pytestmark = pytest.mark.slow

CUDA = torch.device("cuda:0")
QUICK: dict[str, Any] = {"imgsz": 64, "conf": 0.6, "max_det": 30, "verbose": False}
SIZES = [(90, 120), (64, 40)]
PICTURES = [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return build(tmp_path_factory.mktemp("emulated_cuda"))


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
