"""`yolonas val` and `yolonas val merge` from the shell: what they print, their exit codes, and being killed."""

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
from yolonas.cli import UsageError, parse
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
    return write_data(tmp_path_factory.mktemp("made"), NAS(weights), pictures=24)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "yolonas", "val", *map(str, words)]


def run(*words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, "XDG_CACHE_HOME": str(cwd / "cache"), **variables}
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def results(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "results.json").read_text())
    return {key: found[key] for key in ("metrics", "coco", "classes", "pictures", "threshold", "protocol")}


def test_a_run(weights: Path, made: Path, tmp_path: Path) -> None:
    done = run(f"model={weights}", f"data={made}", "imgsz=64", "batch=4", "plots=False", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in (
        "data: ",
        "24 pictures",
        "protocol: sg: 64x64",
        "                 Class     Images  Instances      Box(P          R      mAP50  mAP50-95)",
        "                   all         24",
        "Speed: ",
        "Results saved to runs/detect/val",
    ):
        assert text in done.stdout
    assert "8 of 24 pictures have no label file" in done.stderr
    assert not list(tmp_path.glob("runs/detect/val/*.ndjson"))


def test_pictures_left_out_show_in_the_exit_code(weights: Path, made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made.parent, tmp_path / "data")
    (folder / "images" / "val" / "000.png").write_bytes(b"nothing")
    done = run(f"model={weights}", f"data={folder / 'data.yaml'}", "imgsz=64", "plots=False", cwd=tmp_path)
    assert done.returncode == 1
    assert "000.png: left out" in done.stderr
    assert "1 picture left out" in done.stderr
    assert "problems are listed in runs/detect/val/problems.txt" in done.stderr
    assert "all         23" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["data=nowhere.yaml"], 1, "nowhere.yaml"),
        (["data=coco9.yaml"], 1, "or coco8.yaml"),
        (["data=coco8.yaml"], 1, "download=True"),
        (["conf=30"], 2, "did you mean 0.3?"),
        (["dat=x"], 2, "unknown argument 'dat'; did you mean 'data'"),
        (["shard=5"], 2, "shard must be like '1/4'"),
        (["resume=nowhere"], 1, "resume: nowhere holds no interrupted run"),
        (["evaluator=best"], 2, "evaluator must be one of"),
        (["classes=7"], 2, "classes must lie in 0..2, got 7"),
        (["split=test"], 2, "split"),
    ],
)
def test_wrong_arguments(weights: Path, made: Path, tmp_path: Path, words: list[str], code: int, text: str) -> None:
    given = [] if words[0].startswith("data=") else [f"data={made}"]
    done = run(f"model={weights}", *given, *words, "imgsz=64", "verbose=False", cwd=tmp_path)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_shards_and_merge(weights: Path, made: Path, tmp_path: Path) -> None:
    options = (f"model={weights}", f"data={made}", "imgsz=64", "batch=3", "plots=False")
    for part in ("1/2", "2/2"):
        done = run(*options, f"shard={part}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "'yolonas val merge' joins all 2" in done.stdout
    merged = run("merge", "runs/detect/val", "runs/detect/val-2", "name=joined", "plots=False", cwd=tmp_path)
    assert merged.returncode == 0, merged.stderr
    whole = run(*options, "name=whole", cwd=tmp_path)
    assert whole.returncode == 0
    runs = tmp_path / "runs" / "detect"
    assert results(runs / "joined") == results(runs / "whole")
    table = [line for line in whole.stdout.splitlines() if line.startswith("      ")]
    assert len(table) == 5
    assert [line for line in merged.stdout.splitlines() if line.startswith("      ")] == table
    missing = run("merge", "runs/detect/val", cwd=tmp_path)
    assert missing.returncode == 1
    assert "these are missing: 2" in missing.stderr


def test_merge_reads_its_words() -> None:
    assert parse(["val", "merge", "a", "b", "name=c", "save_json"]) == (
        "merge",
        {"parts": ["a", "b"], "name": "c", "save_json": True},
    )
    with pytest.raises(UsageError, match="unknown argument 'conf'"):
        parse(["val", "merge", "a", "conf=0.1"])
    with pytest.raises(UsageError, match="unknown argument 'parts'"):
        parse(["val", "merge", "parts=a", "b"])
    assert parse(["val", "detect", "data=a"]) == ("val", {"data": "a"})


@POSIX
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_a_run_that_is_stopped_goes_on(weights: Path, made: Path, tmp_path: Path, how: signal.Signals) -> None:
    options = (f"model={weights}", f"data={made}", "imgsz=192", "batch=1", "plots=False")
    process = subprocess.Popen(
        command(*options),
        cwd=tmp_path,
        env={**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background is started with the signal ignored; here it is meant to arrive.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = tmp_path / "runs" / "detect" / "val" / "progress.ndjson"
    until = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 4):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(how)
    _, told = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "of 24 pictures; the same command with resume goes on from there" in told
        assert "Traceback" not in told
    written = journal.read_bytes().count(b"\n")
    assert 4 < written < 25
    resumed = run(*options, "resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on with runs/detect/val" in resumed.stdout
    assert not journal.exists()
    run(*options, "name=whole", cwd=tmp_path)
    runs = tmp_path / "runs" / "detect"
    assert results(runs / "val") == results(runs / "whole")
    assert (runs / "val" / "images.csv").read_bytes() == (runs / "whole" / "images.csv").read_bytes()
