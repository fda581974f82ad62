"""The README's Python blocks run, its shell commands parse, and what it says of files is so."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import cuda_stand_in
import cv2
import numpy as np
import pytest
from recipe_checkpoint import write

from yolonas import NAS
from yolonas.cli import parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL_LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: weights, a picture, a short video."""
    folder = tmp_path_factory.mktemp("readme")
    write(folder / "yolo_nas_s.safetensors").rename(folder / "yolo_nas_s.pt")  # the content decides, not the name
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    cv2.imwrite(str(folder / "bus.jpg"), picture)
    video = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96))
    for _ in range(3):
        video.write(picture)
    video.release()
    (folder / "clip.avi").rename(folder / "traffic.mp4")
    (folder / "pictures").mkdir()
    cv2.imwrite(str(folder / "pictures" / "a.png"), picture)
    for part in ("images", "labels"):
        (folder / part / "val").mkdir(parents=True)
    for name in ("a", "b"):
        cv2.imwrite(str(folder / "images" / "val" / f"{name}.jpg"), picture)
        (folder / "labels" / "val" / f"{name}.txt").write_text("5 0.5 0.5 0.3 0.4\n")
    for name in ("coco8", "cells"):
        (folder / f"{name}.yaml").write_text("train: images/val\nval: images/val\nnc: 80\n")
    return folder


@pytest.fixture
def short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training of the README, but for how long it is."""
    train, short = NAS.train, {"epochs": 1, "imgsz": 64, "batch": 2, "min_samples": 0}
    monkeypatch.setattr(NAS, "train", lambda model, **options: train(model, **{**options, **short}))


@pytest.mark.usefixtures("short_trainings")
@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_python_blocks_run(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    if 'to("cuda")' in block:
        world = cuda_stand_in.install(monkeypatch)
        world.eager = True
        names["pictures"] = world.put(np.zeros((2, 96, 128, 3), np.uint8))
    exec(compile(block, "README.md", "exec"), names)


def test_there_are_blocks() -> None:
    assert PYTHON_BLOCKS
    assert any(line.startswith("yolonas predict") for line in SHELL_LINES)


@pytest.mark.parametrize("line", [line for line in SHELL_LINES if line.startswith("yolonas ")])
def test_shell_lines_parse(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    assert parse(words)[0] == words[0]


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_test_command_is_what_ci_runs() -> None:
    assert "python3 dev.py test" in README
    assert "python3 dev.py test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_version_stands_once() -> None:
    import yolonas

    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{yolonas.__version__}"' in project


def test_the_tables_are_printed_from_saved_results() -> None:
    done = subprocess.run([sys.executable, ROOT / "bench" / "report.py"], capture_output=True, text=True, check=True)
    for line in done.stdout.strip().splitlines():
        assert line in README
