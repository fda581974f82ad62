"""`NAS.train` from end to end: files, numbers, events, fine-tuning, quantised networks, and what stops a run."""

from __future__ import annotations

import copy
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from train_runs import NAMES, narrow_s, write_trained

from yolonas import NAS, SourceError, train_loop
from yolonas.data import shapes
from yolonas.errors import TrainingError
from yolonas.lowering import lower
from yolonas.model import EVENTS
from yolonas.quantization.sensitivity import quantised_steps
from yolonas.train_loop import Loop
from yolonas.training.loss import DetectionLoss, LossTerms
from yolonas.training.step import Batch, StepResult
from yolonas.training.table import read_table

QUICK: dict[str, Any] = {
    **{"imgsz": 64, "epochs": 2, "batch": 4, "min_samples": 0, "lr0": 2e-3, "workers": 1},
    **{"plots": False, "verbose": False},
}
VAL: dict[str, Any] = {"batch": 4, "workers": 1, "plots": False, "verbose": False}
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of a narrow S, and a data yaml of pictures that it finds something in."""
    with narrow_s():
        return write_trained(tmp_path_factory.mktemp("files"))


@pytest.fixture
def narrow() -> Iterator[None]:
    with narrow_s():
        yield


@pytest.fixture
def model(files: tuple[Path, Path], narrow: None) -> NAS:
    return NAS(files[0])


@pytest.fixture
def data(files: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the data set that the test may spoil, with pictures to measure on that are not trained on."""
    folder = shutil.copytree(files[1].parent, tmp_path / "cells")
    labels = folder / "labels"
    for part in (folder / "images", labels):
        (part / "val").rename(part / "train")
        (part / "val").mkdir()
    for picture in sorted((folder / "images" / "train").iterdir()):
        label = labels / "train" / f"{picture.stem}.txt"
        if label.exists() and label.read_text():
            shutil.copy(label, labels / "val" / f"other-{label.name}")
            cv2.imwrite(str(folder / "images" / "val" / f"other-{picture.name}"), cv2.imread(str(picture)) ^ 1)
        label.touch()
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {NAMES}\n")
    return folder / "data.yaml"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "yolonas")


def state_of(nas: NAS) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in nas.model.state_dict().items()}


def same_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def numbers(metrics: Any) -> list[float]:
    return [metrics.box.mp, metrics.box.mr, metrics.box.map50, metrics.box.map]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def measuring(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Has the epochs measure these mAPs."""
    left = iter(values)

    def measure(self: Loop) -> Any:
        value = next(left)
        return SimpleNamespace(box=SimpleNamespace(mp=0.5, mr=0.5, map50=value, map=value))

    monkeypatch.setattr(Loop, "measure", measure)


# A whole run.


def test_a_training_from_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shapes.write(tmp_path / "made", train=8, val=8, size=(96, 128), verbose=False)
    model = NAS("yolo_nas_s.yaml")
    events: list[tuple[str, int]] = []
    for event in EVENTS:
        model.add_callback(event, lambda trainer, event=event: events.append((event, trainer.epoch)))
    metrics = model.train(data=data, imgsz=64, epochs=2, batch=4)

    folder = Path("runs/detect/train")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        *("args.yaml", "results.csv", "results.png", "train_batch0.jpg", "train_batch1.jpg", "train_batch2.jpg"),
        *("weights/best.safetensors", "weights/last.safetensors"),
    ]
    stated = yaml.safe_load((folder / "args.yaml").read_text())
    assert (stated["model"], stated["data"], stated["recipe"]) == ("yolo_nas_s", str(data), "coco")
    assert (stated["epochs"], stated["lr0"], stated["used"]["learning_rate"]) == (2, None, 2e-4)
    for picture in ("results.png", "train_batch0.jpg", "train_batch2.jpg"):
        assert cv2.imread(str(folder / picture)) is not None

    trainer = model.trainer
    assert trainer is not None
    assert (trainer.save_dir, trainer.epoch, trainer.fresh, trainer.is_kept) == (folder, 1, True, False)
    assert trainer.best == folder / "weights" / "best.safetensors"
    assert trainer.last == folder / "weights" / "last.safetensors"
    rows = read_table(folder / "results.csv")
    assert [row.epoch for row in rows] == [row.epoch for row in trainer.rows] == [1, 2]
    best = max(trainer.rows, key=lambda row: row.map)
    assert metrics is model.metrics is trainer.metrics
    assert numbers(metrics) == [best.precision, best.recall, best.map50, best.map]

    assert model.ckpt_path == trainer.best
    again = NAS(trainer.best)
    assert same_weights(state_of(model), state_of(again))
    assert (model.model.form, model.model.num_classes, model.model.training) == ("training", 8, False)
    assert model.names == dict(enumerate(shapes.NAMES))
    assert (model.preprocess.size, model.preprocess.fit) == ((64, 64), (60, 60))
    assert numbers(again.val(data=data, **VAL)) == numbers(metrics)

    epoch = [
        *("on_train_epoch_start", *("on_train_batch_start", "on_train_batch_end") * 2),
        *("on_train_epoch_end", "on_fit_epoch_end"),
    ]
    assert events[: 2 * len(epoch) + 2] == [
        ("on_train_start", 0),
        *((event, 0) for event in epoch),
        *((event, 1) for event in epoch),
        ("on_train_end", 1),
    ]
    told = capsys.readouterr().out
    for text in (
        "train: YOLO-NAS S, 8 classes; random weights",
        "data: shapes, 8 pictures, 112 boxes; measured on 8 of val",
        "recipe: coco; 2 epochs of 2 steps, batch 4, 64x64; adamw 0.0002, average 0.9997; float32 on cpu",
        "folder: runs/detect/train\n",
        "      1/2 ",
        "      2/2 ",
    ):
        assert text in told


def test_a_fine_tuning(model: NAS, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = model.train(data=data, **QUICK)
    trainer = model.trainer
    assert trainer.options.recipe == "fine-tuning"
    assert 0 < metrics.box.map < metrics.box.map50
    assert numbers(NAS(trainer.best).val(data=data, **VAL)) == numbers(metrics)
    assert len({row.map for row in trainer.rows}) == 2
    assert len({row.loss for row in trainer.rows}) == 2
    for row in trainer.rows:
        assert row.loss == pytest.approx(row.cls_loss + row.iou_loss + row.dfl_loss)
    assert warnings(caplog) == []
    assert model.predict(np.zeros((64, 64, 3), np.uint8), verbose=False)[0].names == dict(enumerate(NAMES))


def test_a_second_training_goes_on_from_the_first(model: NAS, data: Path) -> None:
    model.train(data=data, **{**QUICK, "epochs": 1})
    first = model.ckpt_path
    model.train(data=data, **{**QUICK, "epochs": 1})
    assert model.trainer.source == str(first)
    assert not model.trainer.fresh
    assert model.ckpt_path == Path("runs/detect/train-2/weights/best.safetensors")


def test_the_same_seed_gives_the_same_weights(files: tuple[Path, Path], data: Path, narrow: None) -> None:
    weights = []
    for seed in (3, 3, 4):
        model = NAS(files[0])
        model.train(data=data, **{**QUICK, "epochs": 1, "seed": seed, "workers": len(weights) + 1})
        weights.append(model.trainer.last.read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_random_weights_follow_the_seed(files: tuple[Path, Path], data: Path, narrow: None) -> None:
    states = []
    for source, more in (("yolo_nas_s.yaml", {}), (files[0], {"pretrained": False}), ("yolo_nas_s.yaml", {"seed": 1})):
        model = NAS(source)
        model.add_callback(
            "on_train_start", lambda trainer: states.append(copy.deepcopy(trainer.setup.model.backbone.state_dict()))
        )
        model.train(data=data, **{**QUICK, "epochs": 1, "val": False, **more})
        assert model.trainer.fresh
    assert same_weights(states[0], states[1])
    assert not same_weights(states[0], states[2])


def test_the_recipe_follows_the_weights(files: tuple[Path, Path], data: Path, narrow: None) -> None:
    options = {name: value for name, value in QUICK.items() if name != "lr0"}
    options |= {"epochs": 1, "val": False}
    new, known = NAS("yolo_nas_s.yaml"), NAS(files[0])
    new.train(data=data, **options)
    known.train(data=data, **options)
    assert [one.trainer.options.recipe for one in (new, known)] == ["coco", "fine-tuning"]
    assert [one.trainer.setup.recipe.learning_rate for one in (new, known)] == [2e-4, 5e-4]
    known.train(data=data, recipe="coco", **options)
    assert known.trainer.setup.recipe.learning_rate == 2e-4


# Other networks and classes.


def test_another_number_of_classes(
    files: tuple[Path, Path], tmp_path: Path, narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shapes.write(tmp_path / "made", train=4, val=2, size=(64, 64), verbose=False)
    model = NAS(files[0])
    before = state_of(model)
    model.train(data=data, freeze="backbone", **{**QUICK, "epochs": 1, "verbose": True})
    assert f"weights of {files[0]}, new class outputs: 8 in place of 3" in capsys.readouterr().out
    after = state_of(model)
    assert model.names == dict(enumerate(shapes.NAMES))
    backbone = [key for key in before if key.startswith("backbone.")]
    assert all(torch.equal(after[key], before[key]) for key in backbone)
    assert not torch.equal(after["heads.head1.reg_pred.weight"], before["heads.head1.reg_pred.weight"])
    assert len(model.predict(np.zeros((64, 64, 3), np.uint8), conf=0, verbose=False)[0].names) == 8


def test_classes_in_another_order(files: tuple[Path, Path], data: Path, narrow: None) -> None:
    """The same training, whatever the numbers of the classes in the labels."""
    results = []
    for order in ([0, 1, 2], [2, 0, 1]):
        for file in data.parent.glob("labels/*/*.txt"):
            lines = [line.split(" ", 1) for line in file.read_text().splitlines()]
            file.write_text("".join(f"{order.index(int(label))} {rest}\n" for label, rest in lines))
        content = yaml.safe_load(data.read_text())
        data.write_text(yaml.safe_dump({**content, "names": [NAMES[number] for number in order]}))
        model = NAS(files[0])
        metrics = model.train(data=data, **{**QUICK, "epochs": 1})
        assert model.names == dict(enumerate(NAMES))
        results.append((numbers(metrics), model.trainer.last.read_bytes()))
    assert results[0] == results[1]


def test_a_fused_network_is_read_again(model: NAS, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = state_of(model)
    model.predict(np.zeros((64, 64, 3), np.uint8), verbose=False)
    assert model.model.form == "folded"
    model.train(data=data, freeze="backbone", **{**QUICK, "epochs": 1, "val": False})
    assert "fused the network; it is read again from" in caplog.text
    after = state_of(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("backbone."))


def test_a_file_of_a_fused_network_is_refused(model: NAS, data: Path, tmp_path: Path) -> None:
    fused = NAS(model.fuse().save(tmp_path / "fused.safetensors"))
    with pytest.raises(ValueError, match=r"fused\.safetensors must be in training form, .*'folded'; train from the ch"):
        fused.train(data=data, **QUICK)
    compiled = NAS(model.save(tmp_path / "fused.yolonas"))
    with pytest.raises(ValueError, match="train: model must be a checkpoint, got a compiled or exported file"):
        compiled.train(data=data, **QUICK)
    assert not Path("runs").exists()


@pytest.fixture
def quantized(model: NAS, data: Path) -> NAS:
    return model.quantize(data=data, imgsz=64, method="max", equalize=False, correct_bias=False, verbose=False)


@pytest.mark.parametrize("bits", [8, 6])
def test_a_quantised_network(bits: int, quantized: NAS, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = quantised_steps(lower(quantized.model))
    before = state_of(quantized)
    options = {**QUICK, "epochs": 1, "verbose": True, "weight_bits": bits}
    metrics = quantized.train(data=data, **options)
    trainer = quantized.trainer
    assert trainer.options.recipe == "qat"
    assert f"quantised: weights of {bits} bits, activations of 8" in capsys.readouterr().out
    assert quantized.ckpt_path == trainer.best
    assert (quantized.model.form, quantised_steps(lower(quantized.model))) == ("folded", layers)
    assert not same_weights(state_of(quantized), before)
    for step in lower(quantized.model).steps:
        for module in step.get("modules", ()):
            if (scale := getattr(module, "weight_scale", None)) is not None:
                transposed = isinstance(module, torch.nn.ConvTranspose2d)
                integers = module.weight.detach() / (scale[:, None, None] if transposed else scale[:, None, None, None])
                assert integers.round().abs().max() == 2 ** (bits - 1) - 1
                torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
    # The file is smaller than one in float, runs as integers, and gives the numbers of the training.
    assert trainer.best.stat().st_size < 0.6 * sum(value.nbytes for value in before.values())
    again = NAS(trainer.best)
    assert again.model.activation_scales == quantized.model.activation_scales
    assert numbers(again.val(data=data, **VAL)) == numbers(metrics)
    assert metrics.box.map > 0
    with pytest.raises(ValueError, match="a quantised network runs in the native engine"):
        again.val(data=data, engine="torch", **VAL)


def test_what_a_quantised_network_is_refused(quantized: NAS, data: Path, tmp_path: Path) -> None:
    others = shapes.write(tmp_path / "made", train=2, val=1, size=(64, 64), verbose=False)
    with pytest.raises(ValueError, match="must have the 3 classes of a quantised network, got 8"):
        quantized.train(data=others, **QUICK)
    with pytest.raises(ValueError, match="save_pth must be False here: model must not be quantised"):
        quantized.train(data=data, save_pth=True, **QUICK)
    assert not Path("runs/detect/train").exists()


def test_weight_bits_of_a_float_network(model: NAS, data: Path) -> None:
    with pytest.raises(ValueError, match="weight_bits is for training a quantised network"):
        model.train(data=data, weight_bits=6, **QUICK)


# Options.


def test_parts_of_a_step_count_as_one_batch(
    files: tuple[Path, Path], data: Path, narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batch norms that keep their statistics, two calls with 4 pictures are one with 8."""
    make, seen = train_loop.train_step, []

    def frozen(learner: Any, batches: list[Batch], **options: Any) -> StepResult:
        seen.append([len(batch.names) for batch in batches])
        for module in learner.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        return make(learner, batches, **options)

    monkeypatch.setattr(train_loop, "train_step", frozen)
    options = {**QUICK, "epochs": 1, "val": False, "ema": False, "warmup_epochs": 0, "optimizer": "sgd", "lr0": 0.01}
    states = []
    for parts in ({"batch": 8}, {"batch": 4, "accumulate": 2}):
        model = NAS(files[0])
        model.train(data=data, **{**options, **parts})
        states.append(state_of(model))
    assert seen == [[8], [4, 4]]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-3, atol=1e-5, msg=key)


def test_weights_of_the_loss(files: tuple[Path, Path], data: Path, narrow: None) -> None:
    rows = []
    for gains in ({}, {"cls": 2}, {"box": 0, "dfl": 1.5}):
        model = NAS(files[0])
        model.train(data=data, **{**QUICK, **gains, "epochs": 1, "batch": 8, "val": False})
        rows.append(model.trainer.rows[0])
    plain, classes, others = rows
    assert classes.cls_loss == pytest.approx(2 * plain.cls_loss, rel=1e-4)
    assert classes.iou_loss == pytest.approx(plain.iou_loss, rel=1e-4)
    assert (others.iou_loss, others.dfl_loss) == (0, pytest.approx(3 * plain.dfl_loss, rel=1e-4))


def test_patience(model: NAS, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measuring(monkeypatch, 0.1, 0.3, 0.2, 0.3, 0.9)
    metrics = model.train(data=data, **{**QUICK, "epochs": 5, "patience": 2, "verbose": True})
    assert [row.epoch for row in model.trainer.rows] == [1, 2, 3, 4]
    assert "no better epoch than 2 in the last 2: the training ends here" in capsys.readouterr().out
    assert metrics.box.map == 0.3
    assert not model.trainer.is_kept
    assert model.trainer.best.read_bytes() != model.trainer.last.read_bytes()


def test_without_patience(model: NAS, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, 0.4, 0.3, 0.2)
    model.train(data=data, **{**QUICK, "epochs": 3, "patience": 0})
    assert len(model.trainer.rows) == 3


def test_weights_of_every_second_epoch(model: NAS, data: Path) -> None:
    model.train(data=data, **{**QUICK, "epochs": 3, "save_period": 2, "val": False})
    weights = model.trainer.save_dir / "weights"
    assert sorted(path.name for path in weights.iterdir()) == [
        *("best.safetensors", "epoch2.safetensors", "last.safetensors")
    ]
    assert (weights / "epoch2.safetensors").read_bytes() != (weights / "last.safetensors").read_bytes()


def test_nothing_is_measured(model: NAS, data: Path) -> None:
    shutil.rmtree(data.parent / "images" / "val")
    assert model.train(data=data, **{**QUICK, "val": False}) is None
    assert model.metrics is None
    assert [row.map for row in read_table(model.trainer.save_dir / "results.csv")] == [None, None]
    assert model.trainer.best.read_bytes() == model.trainer.last.read_bytes()  # of the latest epoch


def test_files_of_super_gradients(model: NAS, data: Path) -> None:
    model.train(data=data, **{**QUICK, "epochs": 1, "save_pth": True})
    for path in (model.trainer.best, model.trainer.last):
        again = NAS(path.with_suffix(".pth"))
        assert same_weights(state_of(again), state_of(NAS(path)))
        assert (again.names, again.preprocess, again.settings) == (model.names, model.preprocess, model.settings)


def test_what_super_gradients_has_not_is_told_at_the_start(model: NAS, data: Path) -> None:
    model.preprocess = replace(model.preprocess, enlarge=False)
    with pytest.raises(ValueError, match="save_pth must be False here: preprocess must have enlarge=True, super-grad"):
        model.train(data=data, save_pth=True, **QUICK)
    assert not Path("runs").exists()
    model.train(data=data, **{**QUICK, "epochs": 1, "val": False})
    assert not model.preprocess.enlarge


def test_one_class_of_a_part(model: NAS, data: Path) -> None:
    metrics = model.train(data=data, single_cls=True, fraction=0.5, split="train", **{**QUICK, "epochs": 1})
    assert model.names == {0: "object"}
    assert model.model.num_classes == 1
    assert len(model.trainer.setup.train) == 4
    assert numbers(model.val(data=data, split="train", single_cls=True, **VAL)) == numbers(metrics)


def test_the_run_folder(model: NAS, data: Path, tmp_path: Path) -> None:
    options = {**QUICK, "epochs": 1, "val": False, "project": tmp_path / "mine", "name": "first", "exist_ok": True}
    model.train(data=data, **options)
    assert model.trainer.save_dir == tmp_path / "mine" / "first"
    (tmp_path / "mine" / "first" / "weights" / "epoch7.safetensors").write_bytes(b"old")
    model.train(data=data, **options)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["first"]
    assert not (tmp_path / "mine" / "first" / "weights" / "epoch7.safetensors").exists()


# What is wrong with pictures and labels.


def test_problems_of_the_data(model: NAS, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data.parent / "labels" / "train" / "000.txt").write_text("3 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0\n0 0.5 0.5 0.2 0.2\n")
    model.train(data=data, **{**QUICK, "epochs": 1, "val": False})
    told = (model.trainer.save_dir / "problems.txt").read_text().splitlines()
    assert told == warnings(caplog)
    assert [re.sub(r".*(000\.txt:\d).*(; label left out)", r"\1\2", line) for line in told] == [
        "000.txt:1; label left out",
        "000.txt:2; label left out",
    ]


def test_pictures_that_cannot_be_read(model: NAS, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are told of once and left out; a resume does not take that for a change of the data."""
    (data.parent / "images" / "train" / "003.png").write_bytes(b"broken")
    val = min((data.parent / "images" / "val").iterdir())
    val.write_bytes(b"broken too")

    def stop(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    model.add_callback("on_fit_epoch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        model.train(data=data, **{**QUICK, "epochs": 3, "mosaic": 0})
    told = warnings(caplog)
    assert len(told) == 2, told
    assert sum("train/003.png" in text for text in told) == sum(val.name in text for text in told) == 1
    assert model.trainer.is_kept
    metrics = NAS("yolo_nas_s.yaml").train(resume=model.trainer.save_dir, plots=False, verbose=False)
    assert metrics is not None


def test_no_picture_can_be_read(model: NAS, data: Path) -> None:
    for file in (data.parent / "images" / "val").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(SourceError, match=r"no picture to measure on could be used; the first: .*other-\d+\.png"):
        model.train(data=data, **QUICK)
    for file in (data.parent / "images" / "train").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(SourceError, match="pictures of cells must be readable, 100 random ones were not"):
        model.train(data=data, **QUICK)


def test_the_same_pictures_in_both_parts(
    model: NAS, files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model.train(data=files[1], **{**QUICK, "epochs": 1})
    (told,) = (text for text in warnings(caplog) if "in train and in val" in text)
    assert "8 pictures are in train and in val, so mAP there says too much: " in told
    assert "000.png" in told
    assert told.endswith(", ...")


# What stops a run.


def plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolonas.train_loop.free_bytes", lambda device: 1 << 40)


def losing_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    of_assignment, count = DetectionLoss.of_assignment, iter(range(100))

    def broken(self: DetectionLoss, *args: Any) -> LossTerms:
        terms = of_assignment(self, *args)
        return LossTerms(*(term * float("nan") for term in terms)) if next(count) == 1 else terms

    monkeypatch.setattr(DetectionLoss, "of_assignment", broken)


def running_out(error: Exception) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **options: Any) -> StepResult:
            raise error

        monkeypatch.setattr(train_loop, "train_step", fail)
        plenty_of_memory(monkeypatch)

    return patch


def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which a picture takes a byte here, and a step 1.3 times that."""
    monkeypatch.setattr("yolonas.train_loop.free_bytes", lambda device: 3)


STOPS = {
    "loss": (losing_numbers, TrainingError, r"loss must be finite, got nan in step 1 with the pictures .*\d\d\d\.png"),
    "memory": (
        little_memory,
        MemoryError,
        r"a step will not fit with 4 pictures at 64x64: .* GB are free on cpu; "
        "batch=2 accumulate=2 would fit",
    ),
    "allocator": (
        running_out(RuntimeError(ALLOCATOR)),
        MemoryError,
        "a step ran out of memory with 4 pictures .*; batch=2 accumulate=2 would fit",
    ),
    "no memory": (running_out(MemoryError()), MemoryError, "a step ran out of memory with 4 pictures at 64x64"),
    "other": (running_out(RuntimeError("broken")), RuntimeError, "^broken$"),
    "disk": (running_out(OSError(28, "No space left on device")), OSError, "No space left"),
}


@pytest.mark.parametrize("stop", STOPS)
def test_an_error_leaves_the_object_as_it_was(
    stop: str, model: NAS, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, network = state_of(model), model.model
    about = (dict(model.names), model.preprocess, model.settings, model.ckpt_path, model.metrics)
    patch, kind, text = STOPS[stop]
    with monkeypatch.context() as patched:
        patch(patched)
        with pytest.raises(kind, match=text):
            model.train(data=data, **QUICK)
    assert model.model is network
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert same_weights(state_of(model), before)
    assert (model.names, model.preprocess, model.settings, model.ckpt_path, model.metrics) == about
    assert not list(Path().rglob("*.tmp"))
    model.train(data=data, **{**QUICK, "epochs": 1, "val": False})


def test_a_callback_that_fails_stops_the_run(model: NAS, data: Path) -> None:
    def fail(trainer: Any) -> None:
        raise LookupError("mine")

    before = state_of(model)
    model.add_callback("on_train_batch_end", fail)
    with pytest.raises(LookupError, match="mine"):
        model.train(data=data, **QUICK)
    assert same_weights(state_of(model), before)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"data": None}, ValueError, "train: data must name a data yaml"),
        ({"epoch": 2}, ValueError, "did you mean 'epochs'"),
        ({"data": "nowhere.yaml"}, FileNotFoundError, "nowhere"),
        ({"freeze": "spine"}, ValueError, "freeze must name parts of the network .*, got 'spine'"),
        ({"freeze": "backbone,neck,heads"}, ValueError, "freeze must leave something to train"),
        ({"split": "test"}, ValueError, "split must be one of train, val"),
        ({"trainer": print}, NotImplementedError, "trainer must be None"),
        ({"device": "cuda:77"}, ValueError, "77|CUDA"),
    ],
    ids=str,
)
def test_wrong_arguments_leave_nothing_behind(
    options: dict[str, Any], kind: type[Exception], text: str, model: NAS, data: Path
) -> None:
    before = state_of(model)
    with pytest.raises(kind, match=text):
        model.train(**{"data": data, **QUICK, **options})
    assert same_weights(state_of(model), before)
    assert not Path("runs").exists()


# What it is for.


@pytest.mark.slow
def test_eight_pictures_are_learnt(tmp_path: Path, narrow: None) -> None:
    """From random weights, without any change of the pictures, in the frame that they are measured in.

    Small things are not among them: from random weights boxes begin some 100 pixels wide, so that the assignment gives
    small ones next to no weight, and eight pictures are too few to learn the way down to them.
    """
    data = write_large_things(tmp_path / "made", pictures=8, side=128, least=25)
    model = NAS("yolo_nas_s.yaml")
    model.preprocess = replace(model.preprocess, size=(128, 128), fit=(128, 128))
    metrics = model.train(
        **{"data": data, "split": "train", "epochs": 7, "batch": 8, "min_samples": 320, "augment": "none"},
        **{"lr0": 5e-3, "lrf": 0.01, "ema": 0.9, "workers": 1, "plots": False, "verbose": False},
    )
    assert metrics.box.map50 > 0.95
    assert model.trainer.rows[-1].loss < 0.2 * model.trainer.rows[0].loss


def write_large_things(folder: Path, *, pictures: int, side: int, least: int) -> Path:
    """A data yaml of the first drawn pictures all of whose things have sides of `least` pixels or more."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    number = 0
    for index in range(1000):
        picture, rows = shapes.draw(index, size=(side, side))
        corners, sides = rows[:, 1:3], rows[:, 3:5] - rows[:, 1:3]
        if sides.min() < least:
            continue
        values = np.column_stack((corners + sides / 2, sides)) / side
        lines = [f"{int(row[0])} {' '.join(map(str, value))}\n" for row, value in zip(rows, values, strict=True)]
        (folder / "labels" / f"{number}.txt").write_text("".join(lines))
        cv2.imwrite(str(folder / "images" / f"{number}.png"), picture)
        number += 1
        if number == pictures:
            break
    (folder / "large.yaml").write_text(f"train: images\nval: images\nnames: {list(shapes.NAMES)}\n")
    return folder / "large.yaml"
