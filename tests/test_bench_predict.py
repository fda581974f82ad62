"""The benchmark from a picture file to drawn boxes: its parts, and a run of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from recipe_checkpoint import write

import yolonas
from yolonas import NAS
from yolonas.demo import draw_scene

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    import predict

    return predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    cv2.imwrite(str(folder / "scene.jpg"), draw_scene(270, 200))
    write(folder / "s.safetensors")
    return folder


def test_stages_and_the_way_by_hand_find_what_predict_finds(bench: ModuleType, folder: Path) -> None:
    import predict_by_hand
    import torch

    model, path = NAS(folder / "s.safetensors"), folder / "scene.jpg"
    conf = bench.conf_for(model, path, bench.BOXES)
    found = model.predict(path, conf=conf, **bench.QUIET)[0]
    assert len(found) == bench.BOXES
    stages = bench.stages(model, path)
    ours = np.asarray(found.boxes.data)
    assert bench.same(stages["decode, NMS"](), ours)
    assert bench.same(np.asarray(stages["Results"]().boxes.data), ours)
    np.testing.assert_array_equal(stages["plot"](), found.plot())

    def infer(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            return tuple(output[0].numpy() for output in model.model(torch.from_numpy(x)))

    settings = model.predictor.settings
    theirs = predict_by_hand.detect_and_draw(infer, path, model.preprocess, settings, model.names)
    assert bench.same(ours, theirs)


def test_same_boxes(bench: ModuleType) -> None:
    rows = np.array([[0, 0, 10, 10, 0.9, 1], [5, 5, 20, 20, 0.8, 0]], np.float32)
    assert bench.same(rows, rows[::-1] + 1e-3 * np.array([1, 1, 1, 1, 0, 0]))
    assert not bench.same(rows, rows[:1])
    assert not bench.same(rows, rows + np.array([0, 0, 1, 0, 0, 0]))
    assert bench.same(rows[:0], rows[:0])


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The benchmark as a program, on the package that is tested."""
    command = [sys.executable, ROOT / "bench" / "predict.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(yolonas.__file__).parents[1])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_it_runs(folder: Path) -> None:
    done = run("--rounds", "1", "--source", folder / "scene.jpg")
    assert done.returncode == 0, done.stderr
    assert "JPEG of 200x270" in done.stdout
    for stage in ("network alone", "read the file, decode JPEG", "letterbox", "decode, NMS", "Results", "plot"):
        assert f"\n  {stage} " in done.stdout


def test_a_source_that_is_no_jpeg(folder: Path) -> None:
    done = run("--source", folder / "s.safetensors")
    assert done.returncode == 1
    assert done.stderr.startswith("--source must be a JPEG file, got ")
