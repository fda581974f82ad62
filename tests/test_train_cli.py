"""`yolonas train` from the shell: what it prints, its exit codes, and being stopped by a signal or a full disk."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from train_runs import TESTS, assert_left_alike, narrow_s, write_trained

import yolonas
from yolonas import NAS, train_files, train_loop
from yolonas.cli import UsageError, main, parse
from yolonas.data import shapes
from yolonas.errors import TrainingError
from yolonas.train import TrainOptions
from yolonas.train_files import TrainFiles
from yolonas.training.table import read_table

PACKAGE = Path(yolonas.__file__).resolve().parents[1]
# The package under test, wherever the command runs, and the network of `narrow_s`.
ENVIRONMENT = {**os.environ, "YOLONAS_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(PACKAGE), str(TESTS)])}
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals are sent another way there")
HEADER = ["epoch", "loss", "classes", "boxes", "dfl", "lr", "images/s", "mAP50", "mAP50-95", "left"]
STEPS = 2  # per epoch


@pytest.fixture(scope="module")
def _narrow() -> Iterator[None]:
    with narrow_s():
        yield


@pytest.fixture(scope="module")
def words(_narrow: None, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that trains a narrow network for three epochs of two steps."""
    model, data = write_trained(tmp_path_factory.mktemp("files"))
    options = "epochs=3 imgsz=64 batch=4 min_samples=0 lr0=2e-3 close_mosaic=1 workers=1 plots=False"
    return ["train", f"model={model}", f"data={data}", *options.split()]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has stopped."""
    project = tmp_path_factory.mktemp("whole")
    assert main([*words, f"project={project}", "verbose=False"]) == 0
    return project / "train"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder and without a network; the command sets how much is logged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLONAS_OFFLINE", "1")
    level = logging.getLogger("yolonas").level
    yield
    logging.getLogger("yolonas").setLevel(level)


def at_step(patched: pytest.MonkeyPatch, step: int, what: Any) -> None:
    """Calls `what` before step 0, 1, ... is made."""
    make = train_loop.train_step

    def call(*args: Any, **options: Any) -> Any:
        if options["step"] == step:
            what()
        return make(*args, **options)

    patched.setattr(train_loop, "train_step", call)


def interrupt() -> None:
    raise KeyboardInterrupt  # the signal itself is for a process of its own, see `test_a_process_that_is_stopped`


def test_words() -> None:
    mode, values = parse(
        ["train", "model=best.pth", "data=cells.yaml", "epochs=50", "lr0=1e-3", "freeze=neck,heads", "amp"]
    )
    assert mode == "train"
    options = TrainOptions.of(**{name: value for name, value in values.items() if name != "model"})
    assert (options.epochs, options.lr0, options.freeze, options.amp) == (50, 1e-3, ("neck", "heads"), True)
    assert parse(["train", "resume=runs/detect/train"]) == ("train", {"resume": "runs/detect/train"})
    assert parse(["detect", "train", "resume"]) == ("train", {"resume": True})
    assert parse(["train", "ema=False", "imgsz=[384,", "640]"])[1] == {"ema": False, "imgsz": [384, 640]}
    with pytest.raises(UsageError, match="unknown argument 'epoch'; did you mean 'epochs'"):
        parse(["train", "data=a.yaml", "epoch=5"])


def test_help_has_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-h"]) == 0
    told = capsys.readouterr().out
    assert "yolonas train   model=" in told
    part = told.partition("train takes:\n")[2].partition(" takes:\n")[0]
    lines = {line.split()[0]: line for line in part.splitlines() if line.startswith("  ")}
    for item in fields(TrainOptions):
        assert item.metadata["help"] in lines[item.name]
    assert lines["patience"].endswith("[100]")


def test_a_run(tmp_path: Path) -> None:
    data = shapes.write(tmp_path / "data", train=8, val=3, size=(96, 96), verbose=False)
    (tmp_path / "runs" / "detect" / "train").mkdir(parents=True)
    command = [sys.executable, "-m", "yolonas", "train", "model=yolo_nas_s.yaml", f"data={data}"]
    done = subprocess.run(
        [*command, "epochs=2", "imgsz=64", "batch=4", "workers=1"],
        **{"capture_output": True, "text": True, "check": False, "cwd": tmp_path, "env": ENVIRONMENT},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"yolonas {yolonas.__version__}, Python")
    assert lines[1] == "train: YOLO-NAS S, 8 classes; random weights"
    assert lines[2].startswith("data: shapes, 8 pictures, ")
    assert lines[2].endswith(" boxes; measured on 3 of val")
    assert lines[3] == (
        "recipe: coco; 2 epochs of 2 steps, batch 4, 64x64; adamw 0.0002, average 0.9997; float32 on "
        + lines[3].rpartition(" ")[2]
    )
    assert lines[4] == f"folder: {Path('runs/detect/train-2')}"
    assert lines[5].split() == HEADER
    assert [line.split()[0] for line in lines[6:8]] == ["1/2", "2/2"]
    assert lines[6].split()[-1] == "best"
    assert lines[8].split() == ["Class", "Images", "Instances", "Box(P", "R", "mAP50", "mAP50-95)"]
    best = Path("runs/detect/train-2/weights/best.safetensors")
    assert lines[-1] == f"Results saved to {best.parents[1]}; weights: {best}"
    table = read_table(tmp_path / best.parents[1] / "results.csv")
    assert [f"{row.loss:.4f}" for row in table] == [line.split()[1] for line in lines[6:8]]
    left = {path.name for path in (tmp_path / best.parents[1]).rglob("*.*")}
    assert left >= {"args.yaml", "results.csv", "results.png", "train_batch0.jpg", "best.safetensors"}
    assert "state.safetensors" not in left


def test_run_folders_are_numbered_and_a_quiet_run_says_nothing(
    words: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "train-2"):
        assert main([*words, "epochs=1", "verbose=False"]) == 0
        assert read_table(Path("runs", "detect", name, "results.csv"))[0].epoch == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        ([], 2, "data must name a data yaml, such as data=cells.yaml"),
        (["dat=x"], 2, "unknown argument 'dat'; did you mean 'data'"),
        (["data=x.yaml", "learning_rate=3"], 2, "unknown argument 'learning_rate'"),
        (["data=x.yaml", "epochs=0"], 2, "epochs must be"),
        (["data=x.yaml", "lr0=big"], 2, "lr0 must be a number in"),
        (["data=x.yaml", "optimizer=adam"], 2, "optimizer must be one of"),
        (["data=x.yaml", "optimizer=sgd"], 2, "lr0 must be given with optimizer='sgd'"),
        (["data=nowhere.yaml"], 1, "nowhere.yaml"),
        (["data=coco8.yaml"], 1, "download=True"),
        (["resume=nowhere"], 1, "nowhere must be the folder of an interrupted training"),
        (["resume"], 1, "no interrupted training in runs/detect/train; name its folder: resume=FOLDER"),
        (["data=x.yaml", "model=nowhere.pth"], 1, "nowhere.pth"),
    ],
)
def test_wrong_arguments(
    words: list[str], given: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words[:2], *given, "verbose=False"]) == code
    out, told = capsys.readouterr()
    assert out == ""
    assert text in told
    assert told.startswith("yolonas: ")
    assert "Traceback" not in told
    assert not Path("runs").exists()


def test_ctrl_c_in_the_first_epoch(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        at_step(patched, 1, interrupt)
        assert main([*words, "verbose=False"]) == 130
    assert capsys.readouterr().err == "interrupted in the first epoch; nothing is kept\n"
    assert main(["train", "resume=runs/detect/train"]) == 1
    assert "one that was stopped in its first epoch begins again" in capsys.readouterr().err


def test_ctrl_c_before_the_first_epoch(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("yolonas.train.set_up", lambda *args, **options: interrupt())
    assert main([*words, "verbose=False"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "way", ["resume", "resume=runs/detect/train", "resume=runs/detect/train/weights/last.safetensors"]
)
def test_ctrl_c_in_a_later_epoch(
    words: list[str], whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    with monkeypatch.context() as patched:
        at_step(patched, 2 * STEPS, interrupt)
        assert main([*words, "verbose=False"]) == 130
    folder = Path("runs", "detect", "train")
    assert capsys.readouterr().err == f"interrupted after epoch 2; 'yolonas train resume={folder}' goes on from there\n"
    assert main([*words, way, "epochs=4", "verbose=False"]) == 2
    assert capsys.readouterr().err == "yolonas: resume: epochs must be as in the interrupted run, 3, got 4\n"
    assert main(["train", way]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"folder: {folder}, going on after epoch 2" in lines
    assert [line.split()[0] for line in lines if "/3" in line] == ["3/3"]
    assert lines[-1].startswith(f"Results saved to {folder}; weights: {folder}")
    assert_left_alike(folder, whole)
    assert main(["train", "resume=runs/detect/train", "verbose=False"]) == 1
    assert "a training that has ended leaves none" in capsys.readouterr().err


def test_ctrl_c_while_the_files_are_written(
    words: list[str], whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, calls = train_files.save_state, iter(range(1, 10))

    def stop(*args: Any) -> Any:
        if next(calls) == 2:
            interrupt()
        return save(*args)

    with monkeypatch.context() as patched:
        patched.setattr(train_files, "save_state", stop)
        assert main([*words, "verbose=False"]) == 130
    assert "interrupted after epoch 1; " in capsys.readouterr().err
    assert main(["train", "resume", "verbose=False"]) == 0
    assert_left_alike(Path("runs", "detect", "train"), whole)


def test_ctrl_c_when_all_is_done(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    end = TrainFiles.end

    def stop(self: TrainFiles, rows: Any) -> None:
        end(self, rows)
        interrupt()

    monkeypatch.setattr(TrainFiles, "end", stop)
    assert main([*words, "epochs=1", "verbose=False"]) == 130
    folder = Path("runs", "detect", "train")
    told = capsys.readouterr().err
    assert told == f"interrupted after the training had ended; its weights are in {folder}\n"


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_full_disk(
    words: list[str], whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], epoch: int
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = Path("runs", "detect", "train")
    with monkeypatch.context() as patched:
        at_step(patched, epoch * STEPS - 1, lambda: patched.setattr(os, "fsync", full))
        assert main([*words, "verbose=False"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("yolonas: [Errno 28] No space left on device: ")
    assert "Traceback" not in told
    assert told.count("\n") == 1
    assert not list(folder.rglob("*.tmp"))
    if epoch == 1:
        assert told.endswith(" in the first epoch; nothing is kept\n")
        return
    assert told.endswith(f" after epoch 1; 'yolonas train resume={folder}' goes on from there\n")
    assert len(read_table(folder / "results.csv")) == 1
    for name in ("best", "last"):
        NAS(folder / "weights" / f"{name}.safetensors")
    assert main(["train", f"resume={folder}", "verbose=False"]) == 0
    assert_left_alike(folder, whole)


def test_a_loss_that_is_not_finite(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge() -> None:
        raise TrainingError("train_step: loss must be finite, got nan", ["a.png"])

    at_step(monkeypatch, STEPS, diverge)
    assert main([*words, "verbose=False"]) == 1
    assert capsys.readouterr().err == "yolonas: train_step: loss must be finite, got nan\n"


@POSIX
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_a_process_that_is_stopped(words: list[str], whole: Path, tmp_path: Path, how: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "train_runs", *words],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background is started with the signal ignored; here it is meant to arrive.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = tmp_path / "runs" / "detect" / "train"
    until = time.monotonic() + 120
    while not (folder / "results.csv").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(how)
    _, told = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    if how == signal.SIGINT:
        assert told.splitlines()[-1].startswith("interrupted after epoch ")
        assert "Traceback" not in told
    assert main(["train", f"resume={folder}", "verbose=False"]) == 0
    for path in folder.rglob("*.tmp"):  # a kill leaves it
        assert how == signal.SIGKILL
        path.unlink()
    assert_left_alike(folder, whole)
