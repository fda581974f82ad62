"""`yolonas quantize` from the shell: what it prints, its exit codes, and being interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from golden_recipe import fill_
from val_data import NAMES, write_data

import yolonas
from yolonas import NAS
from yolonas.cli import parse
from yolonas.nn import YoloNAS

# The package under test, wherever the command runs.
ENVIRONMENT = {**os.environ, "YOLONAS_OFFLINE": "1", "PYTHONPATH": str(Path(yolonas.__file__).resolve().parents[1])}
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals are sent another way there")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = NAS(fill_(YoloNAS("s", num_classes=3).eval()), names=NAMES)
    return model.save(tmp_path_factory.mktemp("weights") / "cells.safetensors")


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("made"), NAS(weights), pictures=12)


def command(mode: str, *words: object) -> list[str]:
    return [sys.executable, "-m", "yolonas", mode, *map(str, words)]


def run(mode: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.run(command(mode, *words), capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def test_words() -> None:
    assert parse(["quantize", "model=a.pth", "data=[a.jpg,", "b.jpg]", "float_layers=heads.*,neck", "sensitivity"]) == (
        "quantize",
        {"model": "a.pth", "data": ["a.jpg", "b.jpg"], "float_layers": "heads.*,neck", "sensitivity": True},
    )


def test_a_run_and_its_file(weights: Path, made: Path, tmp_path: Path) -> None:
    words = (f"model={weights}", f"data={made}", "imgsz=64", "float_layers=heads.head3.stem")
    done = run("quantize", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ranges come from 12 pictures; take at least 32" in done.stderr
    model, card = (tmp_path / f"runs/detect/quantize/cells-int8.{suffix}" for suffix in ("safetensors", "json"))
    lines = done.stdout.splitlines()
    places = [path.relative_to(tmp_path) for path in (model, card)]
    assert lines[-2:] == [f"Model saved to {places[0]}", f"Card saved to {places[1]}"]
    assert "in float, asked for: heads.head3.stem" in done.stdout
    about = json.loads(card.read_text())
    assert about["model"] == str(weights)
    assert about["int8"]["bytes"] == model.stat().st_size < 0.27 * about["float32"]["bytes"]

    scored = run("val", f"model={model}", f"data={made}", "plots=False", "quantize=int8", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    results = json.loads((tmp_path / "runs/detect/val/results.json").read_text())
    assert results["metrics"]["metrics/mAP50-95(B)"] == about["int8"]["scores"]["map"]
    again = run("quantize", f"model={model}", f"data={made}", cwd=tmp_path)
    assert again.returncode == 2
    assert "this one is quantised" in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "data must name a data yaml or pictures"),
        (["data=nowhere.yaml"], 1, "nowhere.yaml"),
        (["data=nowhere/*.jpg"], 1, "must match pictures"),
        (["data=x.yaml", "method=best"], 2, "method must be one of"),
        (["data=x.yaml", "max_map_drop=abc"], 2, "max_map_drop must be points of mAP"),
        (["data=x.yaml", "save=a.pt"], 2, "save must end in .safetensors"),
        (["dat=x"], 2, "unknown argument 'dat'; did you mean 'data'"),
    ],
)
def test_wrong_arguments(weights: Path, tmp_path: Path, words: list[str], code: int, text: str) -> None:
    done = run("quantize", f"model={weights}", *words, "verbose=False", cwd=tmp_path)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_pictures_left_out_show_in_the_exit_code(weights: Path, made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made.parent / "images" / "val", tmp_path / "pictures")
    (folder / "000.png").write_bytes(b"nothing")
    done = run("quantize", f"model={weights}", f"data={folder}", "imgsz=64", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("000.png: left out") == 1
    assert "no mAP: the pictures have no labels" in done.stdout


@POSIX
def test_ctrl_c_leaves_nothing(weights: Path, made: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("quantize", f"model={weights}", f"data={made}", "imgsz=64", "sensitivity", "batch=1"),
        cwd=tmp_path,
        env={**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background is started with the signal ignored; here it is meant to arrive.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("int8: "):
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; nothing is half-written" in told
    assert "Traceback" not in told
    assert not (tmp_path / "runs").exists()
