"""Trainings that are stopped at any moment, and go on to the same end; and what may not differ meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from train_runs import assert_left_alike, left, narrow_s, write_trained

from yolonas import NAS, runs, train_loop
from yolonas.errors import CheckpointError
from yolonas.train_files import find_interrupted
from yolonas.training import state as states
from yolonas.training.table import read_table

OPTIONS: dict[str, Any] = {
    **{"epochs": 3, "imgsz": 64, "batch": 4, "min_samples": 0, "lr0": 2e-3, "close_mosaic": 1, "workers": 1},
    **{"plots": False, "verbose": False, "save_period": 2},
}
STEPS = 2  # per epoch


class Killed(BaseException):
    """Ends a run as nothing in it expects."""


@pytest.fixture(autouse=True, scope="module")
def _narrow() -> Iterator[None]:
    """Sums depend on the number of threads, and with them which epoch is the best."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with narrow_s():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a data yaml."""
    return write_trained(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def whole(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has stopped."""
    return train(files, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def stopped(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped in its third epoch. To be copied by whoever changes it."""
    project = tmp_path_factory.mktemp("stopped")
    with killed_at_step(2 * STEPS + 1):
        train(files, project)
    return project / "train"


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "train")


def train(files: tuple[Path, Path], project: Path, **options: Any) -> Path:
    model = NAS(files[0])
    model.train(**{"data": str(files[1]), "project": str(project), **OPTIONS, **options})
    return model.trainer.save_dir


def resume(folder: Path, resume: Any = None, **options: Any) -> NAS:
    model = NAS("yolo_nas_s.yaml")
    model.train(resume=resume or str(folder), plots=False, verbose=False, **options)
    return model


@contextmanager
def killed_at_step(step: int) -> Iterator[None]:
    """A run in the block ends before it makes step 0, 1, ..."""
    make = train_loop.train_step

    def stop(*args: Any, **options: Any) -> Any:
        if options["step"] == step:
            raise Killed
        return make(*args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_loop, "train_step", stop)
        with pytest.raises(Killed):
            yield


@contextmanager
def killed_after_file(name: str, times: int) -> Iterator[None]:
    """A run in the block ends when a file of this name has been written so many times."""
    replace, count = Path.replace, iter(range(1, 100))

    def stop(self: Path, target: str | Path) -> Path:
        done = replace(self, target)
        if Path(target).name == name and next(count) == times:
            raise Killed
        return done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "replace", stop)
        with pytest.raises(Killed):
            yield


def test_the_run_of_these_tests_has_something_to_tell(whole: Path) -> None:
    rows = read_table(whole / "results.csv")
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert len({row.map for row in rows}) == 3, "each epoch has an mAP of its own"
    assert sorted(path.name for path in (whole / "weights").iterdir()) == [
        f"{name}.safetensors" for name in ("best", "epoch2", "last")
    ]
    assert (whole / "weights" / "best.safetensors").read_bytes() != (
        whole / "weights" / "last.safetensors"
    ).read_bytes()


def test_the_same_seed_gives_the_same_files(files: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    assert_left_alike(train(files, tmp_path, workers=3), whole)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_stopped_between_steps_goes_on_to_the_same_end(
    files: tuple[Path, Path], whole: Path, tmp_path: Path, epoch: int
) -> None:
    with killed_at_step(epoch * STEPS + 1):
        train(files, tmp_path)
    folder = tmp_path / "train"
    assert [row.epoch for row in read_table(folder / "results.csv")] == list(range(1, epoch + 1))
    resumed = resume(folder)
    assert_left_alike(folder, whole)
    assert resumed.trainer.save_dir == folder
    assert resumed.ckpt_path == folder / "weights" / "best.safetensors"
    assert resumed.names == {0: "cat", 1: "dog", 2: "bird"}


@pytest.mark.parametrize(
    ("name", "times", "epoch"),
    [
        ("last.safetensors", 2, 1),  # the weights are of another epoch than the state
        ("state.safetensors", 2, 2),  # and the table has not heard of it
        ("state.safetensors", 3, 3),
        ("results.csv", 3, 3),  # all is done but to say so
    ],
)
def test_a_run_stopped_between_two_files_goes_on_to_the_same_end(
    files: tuple[Path, Path],
    whole: Path,
    tmp_path: Path,
    name: str,
    times: int,
    epoch: int,
) -> None:
    with killed_after_file(name, times):
        train(files, tmp_path)
    folder = tmp_path / "train"
    assert states.read_state(folder / "weights" / "state.safetensors").progress.epoch == epoch
    best = max(row.map for row in read_table(whole / "results.csv"))
    assert resume(folder).metrics.box.map == pytest.approx(best, abs=1e-5)
    assert_left_alike(folder, whole)


def test_a_run_that_patience_has_ended_does_not_go_on(files: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    patient = train(files, tmp_path / "whole", epochs=6, lr0=1e-12, patience=1, save_period=0)
    epochs = [row.epoch for row in read_table(patient / "results.csv")]
    assert len(epochs) < 6
    with killed_after_file("state.safetensors", len(epochs)):
        train(files, tmp_path, epochs=6, lr0=1e-12, patience=1, save_period=0)
    resume(tmp_path / "train")
    assert_left_alike(tmp_path / "train", patient)


def test_a_run_that_is_stopped_twice(whole: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    for step in (STEPS, 2 * STEPS):
        with killed_at_step(step):
            if step == STEPS:
                train(files, tmp_path)
            else:
                resume(tmp_path / "train")
    resume(tmp_path / "train")
    assert_left_alike(tmp_path / "train", whole)


@pytest.mark.parametrize(
    "place", ["", "weights", "weights/last.safetensors", "weights/state.safetensors", "weights/best.safetensors"]
)
def test_a_run_is_found_by_its_folder_or_a_file_in_it(stopped: Path, place: str) -> None:
    found = find_interrupted(str(stopped / place), None, None)
    assert found.path == stopped / "weights" / "state.safetensors"
    assert found.progress.epoch == 2


def test_true_finds_the_latest_run(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("train-3", "train", "train-2", "other")):
        kept = shutil.copytree(stopped, tmp_path / "cells" / name) / "weights" / "state.safetensors"
        os.utime(kept, (1e9 + number, 1e9 + number))
    monkeypatch.chdir(tmp_path)
    assert find_interrupted(True, "./cells", None).path.parts[1] == "train-2"
    assert find_interrupted(True, "./cells", "other").path.parts[1] == "other"
    with pytest.raises(FileNotFoundError, match=r"no interrupted training in runs/detect/train; name its folder"):
        find_interrupted(True, None, None)


def test_a_run_that_has_ended_or_not_begun_has_nothing_to_resume(
    files: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="a training that has ended leaves none"):
        resume(whole)
    with killed_at_step(1):
        train(files, tmp_path)
    with pytest.raises(FileNotFoundError, match="one that was stopped in its first epoch begins again"):
        resume(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match="must be the folder of an interrupted training"):
        resume(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epochs": 5}, "epochs must be as in the interrupted run, 3, got 5"),
        ({"lr0": 0.1}, "lr0 must be as in the interrupted run, 0.002, got 0.1"),
        ({"imgsz": 96}, r"imgsz must be as in the interrupted run, \(64, 64\), got \(96, 96\)"),
        ({"data": "other.yaml"}, "data must be as in the interrupted run, '.*data.yaml', got 'other.yaml'"),
        ({"seed": 4}, "seed must be as in the interrupted run, 0, got 4"),
        ({"optimizer": "sgd"}, "optimizer must be as in the interrupted run, 'adamw', got 'sgd'"),
        ({"freeze": "backbone"}, r"freeze must be as in the interrupted run, None, got \('backbone',\)"),
    ],
)
def test_options_that_must_stay(stopped: Path, options: dict[str, Any], text: str) -> None:
    before = left(stopped)
    with pytest.raises(ValueError, match=f"resume: {text}"):
        resume(stopped, **options)
    assert left(stopped) == before


def test_options_that_are_said_again_or_do_not_matter(copied: Path, whole: Path) -> None:
    resume(copied, epochs=3, imgsz=64, lr0=2e-3, workers=2, device="cpu", project="elsewhere", name="other")
    assert_left_alike(copied, whole)


def test_what_is_not_said_is_as_it_was(files: tuple[Path, Path], tmp_path: Path) -> None:
    with killed_at_step(STEPS):
        train(files, tmp_path, epochs=2, save_pth=True)
    model = NAS("yolo_nas_s.yaml")
    model.train(resume=str(tmp_path / "train"), verbose=False)
    options = model.trainer.options
    assert (options.save_pth, options.plots, options.workers, options.verbose) == (True, False, 1, False)
    kept = {path.name for path in (tmp_path / "train" / "weights").iterdir()}
    assert kept >= {"best.pth", "last.pth"}
    for name in ("best", "last"):
        ours, theirs = (NAS(tmp_path / f"train/weights/{name}{suffix}").model for suffix in (".pth", ".safetensors"))
        for key, value in ours.state_dict().items():
            assert value.equal(theirs.state_dict()[key]), key


def test_labels_that_have_changed_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    data = shutil.copytree(files[1].parent, tmp_path / "data") / "data.yaml"
    with killed_at_step(STEPS):
        train((files[0], data), tmp_path)
    labels = tmp_path / "data" / "labels" / "val" / "000.txt"
    text = labels.read_text()
    labels.write_text(text + "0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(ValueError, match=r"resume: train must be as .*pictures or labels have changed; train anew, or"):
        resume(tmp_path / "train")
    labels.write_text(text)
    assert resume(tmp_path / "train").trainer.rows[-1].epoch == 3


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data[: len(data) // 2], "training state .*state.safetensors: "),
        (lambda data: data[:5], "training state .*state.safetensors: "),
        (lambda data: b"", "training state .*state.safetensors: "),
        (lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:], "its checksum does not match"),
        (lambda data: data.replace(b'"epochs\\": 3', b'"epochs\\": 9', 1), "its checksum does not match"),
    ],
    ids=["half", "beginning", "empty", "bit", "options"],
)
def test_a_damaged_state(copied: Path, damage: Callable[[bytes], bytes], text: str) -> None:
    path = copied / "weights" / "state.safetensors"
    data = damage(path.read_bytes())
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=text):
        resume(copied)
    assert path.read_bytes() == data


def test_a_state_of_another_version(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied / "weights" / "state.safetensors"
    read = states.read_state(path)
    for key in ("options", "rows", "names", "preprocess", "source", "run"):
        kept = {name: value for name, value in read.settings.items() if name != key}
        object.__setattr__(read, "settings", kept)
        monkeypatch.setattr("yolonas.train.find_interrupted", lambda *_: read)
        with pytest.raises(CheckpointError, match=r"state.safetensors: is of another version or damaged"):
            resume(copied)


def test_a_new_run_does_not_overwrite_an_interrupted_one(files: tuple[Path, Path], copied: Path) -> None:
    before = left(copied)
    with pytest.raises(FileExistsError, match=r"holds an interrupted training; go on with it by resume=.*, or delete"):
        train(files, copied.parent, exist_ok=True)
    assert left(copied) == before
    assert train(files, copied.parent, epochs=1) == copied.with_name("train-2")


def test_a_new_run_clears_the_folder_of_one_that_has_ended(
    files: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "train")
    folder = train(files, tmp_path, exist_ok=True, epochs=1, save_period=0)
    assert folder == tmp_path / "train"
    assert sorted(path.name for path in (folder / "weights").iterdir()) == ["best.safetensors", "last.safetensors"]
    assert len(read_table(folder / "results.csv")) == 1


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "state.safetensors", "results.csv"])
def test_a_full_disk_leaves_whole_files(copied: Path, whole: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = left(copied)
    temporary = runs._temporary_beside

    def full(path: Path) -> Any:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return temporary(path)

    with monkeypatch.context() as patched:
        patched.setattr(runs, "_temporary_beside", full)
        # In the third epoch nothing is better: its best is that of the second.
        patched.setattr("yolonas.train.best_row", lambda rows: rows[-1])
        with pytest.raises(OSError, match=rf"No space left on device.*{name}"):
            resume(copied)
    after = left(copied)
    assert sorted(after) == sorted(before)
    assert after[name if name in after else "table"] == before[name if name in before else "table"]
    for kept in ("best.safetensors", "last.safetensors"):
        NAS(copied / "weights" / kept)
    resume(copied)
    assert left(copied)["last.safetensors"] == left(whole)["last.safetensors"]
    assert left(copied)["table"] == left(whole)["table"]


def test_a_file_that_grows_too_large_leaves_whole_files(copied: Path, whole: Path) -> None:
    resource = pytest.importorskip("resource", reason="no limits on this system")
    before = left(copied)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["state.safetensors"]) // 2, limits[1]))  # type: ignore
    try:
        with pytest.raises(OSError, match=r"state\.safetensors"):
            resume(copied)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    after = left(copied)
    assert sorted(after) == sorted(before)
    assert after["state.safetensors"] == before["state.safetensors"]
    resume(copied)
    assert_left_alike(copied, whole)
