"""Trainings that are interrupted and go on to the same bits, and files of states that are refused."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from training_cases import assert_same, narrow_learner, narrow_network, random_batch, weights

from yolonas.errors import CheckpointError
from yolonas.training.ema import Ema
from yolonas.training.loss import DetectionLoss
from yolonas.training.optimizer import build_optimizer
from yolonas.training.schedule import learning_rate
from yolonas.training.state import (
    CHECKSUM_KEY,
    METADATA_KEY,
    Progress,
    _checksum,
    read_state,
    restore_,
    save_state,
)
from yolonas.training.step import Learner, train_step

STEPS = 4


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - states have the global generator
    torch.manual_seed(seed)


def drawn() -> list[float]:
    """A number of each global generator, the normal ones that leave half a pair behind."""
    return [random.gauss(0, 1), float(np.random.normal()), torch.randn(()).item()]  # noqa: NPY002


def steps(learner: Learner, start: int, stop: int) -> list[float]:
    """Trains from step to step, each on two parts of pictures that all global generators decide on."""
    losses = []
    for step in range(start, stop):
        seed = int(1000 * abs(sum(drawn())))
        batches = [random_batch([2], seed=seed), random_batch([0, 3], seed=seed + 1)]
        rate = learning_rate(step, STEPS, peak=1e-2, warmup_steps=2)
        losses.append(train_step(learner, batches, step=step, learning_rate=rate, loss=DetectionLoss()).total)
    return losses


@pytest.mark.parametrize(("name", "precision"), [("adamw", "float32"), ("sgd", "float32"), ("adamw", "fp16")])
def test_going_on_after_any_step_gives_the_same_bits(name: str, precision: str, tmp_path: Path) -> None:
    learner = narrow_learner(name=name, precision=precision)
    seed_all(5)
    losses = []
    for step in range(STEPS):
        save_state(tmp_path / f"{step}.safetensors", learner, Progress(step, 0))
        losses += steps(learner, step, step + 1)
    expected, numbers = weights(learner), drawn()
    for step in range(STEPS):
        seed_all(6)
        other = narrow_learner(seed=1, name=name, precision=precision)
        state = read_state(tmp_path / f"{step}.safetensors")
        restore_(state, other)
        assert steps(other, state.progress.step, STEPS) == losses[step:]
        assert_same(weights(other), expected)
        assert drawn() == numbers
        assert other.scaler.state_dict() == learner.scaler.state_dict()


def test_one_state_can_be_restored_twice(tmp_path: Path) -> None:
    learner = narrow_learner()
    steps(learner, 0, 1)
    state = read_state(save_state(tmp_path / "state.safetensors", learner, Progress(1, 0)))
    results = []
    for _ in range(2):
        other = narrow_learner(seed=1)
        restore_(state, other)
        steps(other, 1, 3)
        results.append(weights(other))
    assert_same(*results)


def test_progress_and_settings_come_back(tmp_path: Path) -> None:
    settings = {"data": "zellen/ä.yaml", "imgsz": [640, 640], "lr": 2e-4, "none": None, "nested": {"a": [1, 2.5]}}
    path = save_state(tmp_path / "state.safetensors", narrow_learner(), Progress(1234, 7, 0.4321), settings)
    state = read_state(path)
    assert state.path == path
    assert state.progress == Progress(1234, 7, 0.4321)
    assert state.settings == settings
    assert state.network == {"variant": "narrow", "form": "training", "num_classes": 3}
    with safe_open(path, "pt") as file:  # the package reads it too
        assert {"model.heads.head1.cls_pred.bias", "ema.heads.head1.cls_pred.bias"} <= set(file.keys())


def test_without_average_and_without_steps(tmp_path: Path) -> None:
    model = narrow_network()
    learner = Learner(model, build_optimizer(model))
    state = read_state(save_state(tmp_path / "state.safetensors", learner, Progress(0, 0)))
    assert not any(name.startswith(("ema.", "optimizer.")) for name in state.tensors)
    other = narrow_network(seed=1)
    restore_(state, Learner(other, build_optimizer(other)))
    assert_same(other.state_dict(), model.state_dict())


def test_frozen_parts_and_another_memory_format(tmp_path: Path) -> None:
    learners = []
    for seed in range(2):
        model = narrow_network(seed).to(memory_format=torch.channels_last)
        model.backbone.requires_grad_(False)
        learners.append(Learner(model, build_optimizer(model), ema=Ema(model)))
    steps(learners[0], 0, 1)
    restore_(read_state(save_state(tmp_path / "state.safetensors", learners[0], Progress(1, 0))), learners[1])
    for learner in learners:
        seed_all(0)
        steps(learner, 1, 2)
    assert_same(weights(learners[1]), weights(learners[0]))


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="no limits on this system")
    path = tmp_path / "state.safetensors"
    learner = narrow_learner()
    old = save_state(path, learner, Progress(1, 0)).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"state\.safetensors"):
            save_state(path, learner, Progress(2, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_data_that_do_not_reach_the_disk_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "state.safetensors"
    old = save_state(path, narrow_learner(), Progress(1, 0)).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*state\.safetensors"):
            save_state(path, narrow_learner(), Progress(2, 0))
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    learner = narrow_learner()
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_state(path, learner, Progress(1, 0), {"path": tmp_path})
    with pytest.raises(ValueError, match="JSON compliant"):
        save_state(path, learner, Progress(1, 0), {"score": float("nan")})
    with torch.no_grad():
        learner.model.heads.head2.reg_pred.bias[3] = float("inf")
    with pytest.raises(
        ValueError,
        match=r"^save_state: learner must have finite numbers of float32, float64, int64, uint8, got others in "
        r"model.heads.head2.reg_pred.bias$",
    ):
        save_state(path, learner, Progress(1, 0))
    other = Learner(learner.model, torch.optim.Adagrad(learner.model.parameters()))
    with pytest.raises(ValueError, match=r"^save_state: optimizer must be one of AdamW, SGD, got Adagrad$"):
        save_state(path, other, Progress(1, 0))
    assert not path.exists()
    for step, score in [(-1, None), (True, None), (1.0, None), (1, float("nan")), (1, "0.5")]:
        with pytest.raises(ValueError, match=r"^Progress: "):
            Progress(step, 0, score)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After one step."""
    learner = narrow_learner()
    steps(learner, 0, 1)
    return save_state(tmp_path_factory.mktemp("saved") / "state.safetensors", learner, Progress(1, 0), {"a": 1})


def forged(saved: Path, path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> Path:
    """The file with other contents and a checksum that fits to them."""
    with safe_open(saved, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - this one is no dict
        table = json.loads(file.metadata()[METADATA_KEY])
    change(table, tensors)
    text = json.dumps(table)
    save_file(tensors, path, {METADATA_KEY: text, CHECKSUM_KEY: str(_checksum(text, tensors))})
    return path


def test_damaged_files_are_refused(saved: Path, tmp_path: Path) -> None:
    data, path = saved.read_bytes(), tmp_path / "state.safetensors"
    header = 8 + int.from_bytes(data[:8], "little")
    for length in (0, 5, 9, 200, header - 1, header, header + 4, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"^training state .*state\.safetensors: ") as error:
            read_state(path)
        assert "damaged" in str(error.value) or "cut short" in str(error.value)
    for place in (header, (header + len(data)) // 2, len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"checksum does not match|must have finite numbers"):
            read_state(path)
    step = data.index(rb"\"step\": 1") + len(rb"\"step\": ")
    path.write_bytes(data[:step] + b"2" + data[step + 1 :])
    with pytest.raises(CheckpointError, match="checksum does not match"):
        read_state(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_state(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_state(tmp_path)
    torch.save({"step": 1}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        read_state(tmp_path / "state.pt")
    text = json.dumps({"__metadata__": {METADATA_KEY: '{"half": "\ud800"}', CHECKSUM_KEY: "\ud800"}}).encode()
    (tmp_path / "half.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="checksum does not match"):
        read_state(tmp_path / "half.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="has weights but no state of a training"):
        read_state(tmp_path / "weights.safetensors")


def change_generators(kind: str, place: int, value: object) -> Callable[[dict[str, Any], Any], object]:
    return lambda table, _: table["generators"][kind].__setitem__(place, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table, _: table.update(format_version=2), "format_version 2, at most 1 is known; please update"),
        (lambda table, _: table.update(format_version="1"), "are missing or of another kind"),
        (lambda table, _: table.pop("network"), "are missing or of another kind"),
        (lambda table, _: table.update(settings=[]), "are missing or of another kind"),
        (lambda table, _: table.update(optimizer="Adagrad"), "are missing or of another kind"),
        (lambda table, _: table.update(optimizer={}), "are missing or of another kind"),
        (lambda table, _: table.update(step=-1), "step must be a whole number of at least 0, got -1"),
        (lambda table, _: table.pop("epoch"), "are missing or of another kind"),
        (lambda table, _: table.update(best_score="best"), "are missing or of another kind"),
        (lambda table, _: table.update(best_score=float("inf")), "no valid JSON"),
        (lambda table, _: table.update(scaler={"scale": 1.0}), "unusable scale"),
        (change_generators("numpy", 1, 100_000), "unusable states"),
        (change_generators("numpy", 0, [1, 2, 3]), "unusable states"),
        (change_generators("numpy", 0, [-1] * 624), "unusable states"),
        (change_generators("python", 1, [0] * 624 + [9999]), "unusable states"),
        (change_generators("python", 1, None), "unusable states"),
        (lambda table, _: table["generators"].pop("python"), "unusable states"),
        (lambda _, tensors: tensors.pop("generator.torch"), "unusable states"),
        (lambda _, tensors: tensors.update({"generator.torch": torch.zeros(9, dtype=torch.uint8)}), "unusable states"),
        (lambda _, tensors: tensors["ema.heads.head1.cls_pred.bias"].fill_(float("nan")), "got others in ema.heads"),
        (lambda _, tensors: tensors.update({"model.a": torch.zeros(1).to(torch.float8_e5m2)}), "got others in model.a"),
    ],
)
def test_hostile_contents_are_refused(change: Callable[..., object], message: str, saved: Path, tmp_path: Path) -> None:
    path = forged(saved, tmp_path / "state.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        read_state(path)


BIAS = "heads.head1.cls_pred.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table, _: table["network"].update(num_classes=4), "a network with num_classes 4, got 3"),
        (lambda table, _: table["network"].pop("variant"), "a network with variant None, got 'narrow'"),
        (lambda table, _: table.update(optimizer="SGD"), "for the optimizer SGD, got AdamW"),
        (lambda _, tensors: tensors.pop(f"ema.{BIAS}"), "network and its average, differs in"),
        (lambda _, tensors: tensors.update({"model.more": torch.zeros(1)}), "network and its average, differs in"),
        (lambda _, tensors: tensors.update({f"model.{BIAS}": torch.zeros(4)}), r"shape \(3,\), got torch.float32 and"),
        (
            lambda _, tensors: tensors.update({f"model.{BIAS}": torch.zeros(3, dtype=torch.int64)}),
            r"must be of torch.float32 and shape \(3,\), got torch.int64",
        ),
        (lambda _, tensors: tensors.pop(f"optimizer.exp_avg.{BIAS}"), f"must have optimizer.exp_avg.{BIAS}, as it has"),
        (
            lambda _, tensors: tensors.update({f"optimizer.exp_avg.{BIAS}": torch.zeros(1)}),
            f"optimizer.exp_avg.{BIAS} must be",
        ),
        (
            lambda _, tensors: tensors.update({f"optimizer.step.{BIAS}": torch.zeros(3)}),
            f"optimizer.step.{BIAS} must be",
        ),
        (
            lambda _, tensors: tensors.update({f"optimizer.max_exp_avg_sq.{BIAS}": torch.zeros(3)}),
            "has what no parameter of the optimizer needs",
        ),
    ],
)
def test_states_of_others_are_refused_and_change_nothing(
    change: Callable[..., object], message: str, saved: Path, tmp_path: Path
) -> None:
    state = read_state(forged(saved, tmp_path / "state.safetensors", change))
    learner = narrow_learner(seed=1)
    before = weights(learner)
    seed_all(0)
    expected = drawn()
    seed_all(0)
    with pytest.raises(CheckpointError, match=rf"^training state .*state\.safetensors: .*{message}"):
        restore_(state, learner)
    assert drawn() == expected
    assert_same(weights(learner), before)
    assert not learner.optimizer.state


def test_a_forged_file_without_changes_is_read(saved: Path, tmp_path: Path) -> None:
    state = read_state(forged(saved, tmp_path / "state.safetensors", lambda table, tensors: None))
    restore_(state, narrow_learner(seed=1))


def test_an_average_that_only_one_has_is_refused(saved: Path) -> None:
    model = narrow_network()
    with pytest.raises(CheckpointError, match="network and its average"):
        restore_(read_state(saved), Learner(model, build_optimizer(model)))


def test_another_precision_goes_on(saved: Path) -> None:
    learner = narrow_learner(seed=1, precision="fp16")
    restore_(read_state(saved), learner)
    assert learner.scaler.get_scale() == 65536
