"""Trainings of two processes on one CPU: who speaks and writes, and that together they are one with a larger batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from train_runs import TESTS, assert_left_alike, narrow_s, write_trained

import yolonas
from yolonas import NAS, train_loop
from yolonas.cli import main
from yolonas.train import Trainer
from yolonas.training.processes import Processes
from yolonas.training.table import read_table

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")

PACKAGE = Path(yolonas.__file__).resolve().parents[1]
ENVIRONMENT = {
    **os.environ,
    **{"YOLONAS_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    "PYTHONPATH": os.pathsep.join([str(PACKAGE), str(TESTS)]),
}
TIMEOUT = 200  # seconds, after which two processes wait for each other for ever
# 8 pictures: two steps of 2 pictures from each of two processes.
OPTIONS: dict[str, Any] = {
    **{"epochs": 2, "imgsz": 64, "batch": 2, "min_samples": 0, "lr0": 2e-3, "close_mosaic": 1, "workers": 1},
    **{"plots": False, "verbose": False, "device": "cpu"},
}


class Stop(Exception):
    """Ends a training from within."""


# What the processes do.


def train(files: tuple[Path, Path], events: Mapping[str, Any], **options: Any) -> Trainer:
    model = NAS("yolo_nas_s.yaml") if "resume" in options else NAS(files[0])
    for event, act in events.items():
        model.add_callback(event, act)
    told = {} if "resume" in options else {"data": str(files[1]), **OPTIONS}
    with suppress(Stop):
        model.train(**{**told, "verbose": False, **options})
    return model.trainer


def measured(files: tuple[Path, Path], project: Path, **options: Any) -> dict[str, float]:
    """The scores of the weights that a training begins with."""
    found: dict[str, float] = {}

    def measure(trainer: Trainer) -> None:
        found.update(trainer.loop.measure().results_dict)
        raise Stop

    train(files, {"on_train_start": measure}, project=str(project), **options)
    return found


def first_step(files: tuple[Path, Path], project: Path, **options: Any) -> dict[str, Any]:
    """Loss and gradients of a step with 16 pictures, each of the data twice.

    Batch norms stand still, as those of one process would see other pictures. And the assigned scores of 8 pictures add
    up to more than 1, below which a loss is not divided by them.
    """
    found: dict[str, Any] = {}

    def freeze(trainer: Trainer) -> None:
        trainer.loop._frozen = [one for one in trainer.model.modules() if isinstance(one, nn.BatchNorm2d)]

    def keep(trainer: Trainer) -> None:
        parameters = trainer.model.named_parameters()
        found["gradients"] = {name: value.grad.clone() for name, value in parameters if value.grad is not None}

    events = {"on_train_start": freeze, "on_train_batch_end": keep}
    trainer = train(files, events, project=str(project), **options, epochs=1, min_samples=16)
    row = trainer.rows[0]
    return {**found, "losses": (row.loss, row.cls_loss, row.iou_loss, row.dfl_loss), "steps": trainer.loop.step}


def stop_in_second_epoch(trainer: Trainer) -> None:
    if trainer.epoch == 1:
        raise Stop


def work(cells: str, data: str, folder: str) -> None:
    """All that two processes have to show, kept by each in a file of its own."""
    files, place, kept = (Path(cells), Path(data)), Path(folder), {}
    # One group for all: a second one that begins before both have left the first would never meet.
    distributed.init_process_group("gloo")
    with narrow_s():
        kept["measured"] = measured(files, place / "measured")
        kept["measured with one batch"] = measured(files, place / "measured", val_batch=8)
        kept["first step"] = first_step(files, place / "first", batch=8)
        ended = train(files, {}, project=str(place / "whole"))
        learner = ended.loop.learner
        kept["weights"] = {name: value.detach() for name, value in learner.model.named_parameters()}
        kept["average"] = learner.ema.model.state_dict()
        kept["folder"] = str(ended.save_dir)
        for name in ("stopped", "left"):
            train(files, {"on_train_epoch_start": stop_in_second_epoch}, project=str(place / name))
        resumed = train(files, {}, resume=str(place / "stopped" / "train"))
        kept["resumed"] = resumed.loop.learner.ema.model.state_dict()
    distributed.destroy_process_group()
    torch.save(kept, place / f"rank{os.environ['RANK']}.pt")


def fail(cells: str, data: str, folder: str) -> None:
    """The second process fails in its second step."""
    step = train_loop.train_step

    def broken(*args: Any, **options: Any) -> Any:
        if options["step"] == 1 and os.environ["RANK"] == "1":
            raise OSError("the cable is out")
        return step(*args, **options)

    train_loop.train_step = broken  # type: ignore[assignment]
    with narrow_s():
        words = [f"{name}={value}" for name, value in {**OPTIONS, "verbose": True}.items()]
        sys.exit(main(["train", f"model={cells}", f"data={data}", f"project={folder}", *words]))


# What they have shown.


def together(task: str, *arguments: object, count: int = 2) -> list[tuple[int, str, str]]:
    """Runs a function of this file in processes that know of each other: exit code, output and errors of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"import sys, test_train_processes as here; here.{task}(*sys.argv[1:])"
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    with ExitStack() as stack:
        processes = []
        for rank in range(count):
            process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                env={**ENVIRONMENT, **rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        told = [process.communicate(timeout=TIMEOUT) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, told, strict=True)]


@pytest.fixture(autouse=True, scope="module")
def _narrow() -> Iterator[None]:
    with narrow_s():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a data yaml."""
    return write_trained(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def worked(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done `work`."""
    folder = tmp_path_factory.mktemp("worked")
    for code, _, told in together("work", *files, folder):
        assert code == 0, told
    return folder


@pytest.fixture(scope="module")
def kept(worked: Path) -> list[dict[str, Any]]:
    """What each has kept."""
    return [torch.load(worked / f"rank{rank}.pt") for rank in range(2)]


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(value.equal(theirs[name]) for name, value in ours.items())


def test_both_end_with_the_same_weights(kept: list[dict[str, Any]]) -> None:
    for name in ("weights", "average"):
        assert same(kept[0][name], kept[1][name])
    assert kept[0]["folder"] == kept[1]["folder"]


def test_files_are_those_of_the_first(kept: list[dict[str, Any]]) -> None:
    folder = Path(kept[0]["folder"])
    assert [path.name for path in folder.parent.iterdir()] == ["train"]
    saved = NAS(folder / "weights" / "last.safetensors").model.state_dict()
    assert same({name: saved[name] for name in kept[0]["average"]}, kept[0]["average"])
    assert [row.epoch for row in read_table(folder / "results.csv")] == [1, 2]


@pytest.mark.parametrize(("name", "batch"), [("measured", 2), ("measured with one batch", 8)])
def test_they_measure_what_one_does(
    files: tuple[Path, Path], kept: list[dict[str, Any]], tmp_path: Path, name: str, batch: int
) -> None:
    alone = measured(files, tmp_path, val_batch=batch)
    assert alone["metrics/mAP50-95(B)"] > 0.05
    assert kept[0][name] == kept[1][name] == alone


def test_their_step_is_that_of_one_with_twice_the_batch(
    files: tuple[Path, Path], kept: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = first_step(files, tmp_path, batch=16)
    for one in (both["first step"] for both in kept):
        assert one["steps"] == alone["steps"] == 1
        assert one["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        ours, theirs = (torch.cat([value.flatten() for value in run["gradients"].values()]) for run in (one, alone))
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    assert same(kept[0]["first step"]["gradients"], kept[1]["first step"]["gradients"])


def test_they_go_on_to_the_same_end(worked: Path, kept: list[dict[str, Any]]) -> None:
    assert same(kept[0]["resumed"], kept[1]["resumed"])
    assert_left_alike(worked / "stopped" / "train", worked / "whole" / "train")


def test_one_does_not_go_on_with_what_two_began(worked: Path) -> None:
    text = (
        r"resume: batch must be as in the interrupted run .*train, got 2 pictures over 1 processes in place of 4; train"
    )
    with pytest.raises(ValueError, match=text):
        NAS("yolo_nas_s.yaml").train(resume=str(worked / "left" / "train"))


def test_one_that_fails_ends_the_other(files: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = together("fail", *files, tmp_path)
    assert second[0] == 1
    assert "the cable is out" in second[2]
    assert second[1] == ""
    assert first[0] == 1
    assert first[2].splitlines()[-1].startswith("yolonas: ")
    assert "Traceback" not in first[2]


def test_torchrun(files: tuple[Path, Path], tmp_path: Path, worked: Path) -> None:
    words = [f"{name}={value}" for name, value in {**OPTIONS, "verbose": True}.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train_runs"]
    done = subprocess.run(
        [*torchrun, "train", f"model={files[0]}", f"data={files[1]}", *words],
        **{"capture_output": True, "text": True, "check": False, "cwd": tmp_path, "env": ENVIRONMENT},
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for once in (
        "yolonas 0",
        "train: ",
        "recipe: ",
        "folder: runs/detect/train",
        "Results saved to runs/detect/train;",
    ):
        assert len([line for line in lines if line.startswith(once)]) == 1, once
    assert "batch 2 x 2 processes" in done.stdout
    assert [line.split()[0] for line in lines if "/2 " in line] == ["1/2", "2/2"]
    assert done.stderr.count("have no label file") == 1
    assert [path.name for path in (tmp_path / "runs" / "detect").iterdir()] == ["train"]
    assert_left_alike(tmp_path / "runs" / "detect" / "train", worked / "whole" / "train")


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"},
        {"RANK": "first", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""},
    ],
)
def test_variables_that_make_no_sense(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = f"train: RANK, WORLD_SIZE and LOCAL_RANK must be as torchrun sets them, got {variables}"
    with pytest.raises(ValueError, match=r"must be as torchrun sets them, got") as raised:
        Processes.of_environment()
    assert str(raised.value) == text
    words = [f"model={files[0]}", f"data={files[1]}", f"project={tmp_path}", "verbose=False"]
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err == f"yolonas: {text}\n"
    assert list(tmp_path.iterdir()) == []


def test_one_process_needs_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    alone = Processes.of_environment()
    assert (alone, alone.is_first) == (Processes(0, 1, 0), True)
    assert alone.gathered("a") == ["a"]
    assert alone.from_first("a") == "a"
    alone.wait()
    with alone.together(torch.device("cpu")):
        assert not distributed.is_initialized()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert Processes.of_environment() == Processes(3, 8, 3)
