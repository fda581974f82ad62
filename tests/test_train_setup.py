"""What a training is before it runs: recipes and options, classes, the data, the network, and memory."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from quantized_networks import narrow, picture, quantize_

from yolonas.checkpoint import save_checkpoint
from yolonas.config import COCO_NAMES, VARIANTS, DetectSettings, Variant
from yolonas.data import shapes
from yolonas.nn import YoloNAS, fuse_
from yolonas.preprocess import Preprocess
from yolonas.train import TrainOptions
from yolonas.train_loop import Loop
from yolonas.train_setup import TrainSetup, frozen_parts, quantized_network, set_up, trainable, warmup_steps
from yolonas.training.augment import NONE, PRESETS
from yolonas.training.fake_quant import prepare
from yolonas.training.memory import bytes_per_picture, fitting_batch, free_bytes
from yolonas.training.processes import Processes
from yolonas.training.recipes import RECIPES, recipe_for

SHAPES = dict(enumerate(shapes.NAMES))
PLAIN = {number: f"class_{number}" for number in range(8)}
SMALL = Preprocess().with_size((64, 64))

# Options of `train` and what they become in the recipe.
OF_RECIPE: list[tuple[str, Any, dict[str, Any]]] = [
    ("epochs", 7, {"epochs": 7, "plain_epochs": 7}),
    ("batch", 3, {"batch": 3}),
    ("lr0", 0.02, {"learning_rate": 0.02}),
    ("lr0", 1e-8, {"learning_rate": 1e-8, "warmup_start": 1e-8}),
    ("lrf", 0.5, {"final_factor": 0.5}),
    ("weight_decay", 0.3, {"weight_decay": 0.3}),
    ("warmup_epochs", 2, {"warmup_epochs": 2.0}),
    ("ema", 0.5, {"ema_decay": 0.5}),
    ("ema", False, {"ema_decay": None}),
    ("ema", 0, {"ema_decay": None}),
    ("close_mosaic", 4, {"plain_epochs": 4}),
    ("close_mosaic", 1000, {"plain_epochs": 100}),
    ("min_samples", 9, {"min_samples": 9}),
]
# And in the augmentation.
OF_AUGMENTATION: list[tuple[str, Any, dict[str, Any]]] = [
    ("degrees", 10, {"degrees": 10.0}),
    ("shear", 5, {"shear": 5.0}),
    ("scale", 0.25, {"scale": (0.75, 1.25)}),
    ("scale", 0, {"scale": (1.0, 1.0)}),
    ("translate", 0.2, {"translate": 0.2}),
    ("fliplr", 0, {"horizontal_flip": 0.0}),
    ("flipud", 0.1, {"vertical_flip": 0.1}),
    ("hsv_h", 0.015, {"hue": 3}),  # OpenCV's circle has 180 parts
    ("hsv_h", 1, {"hue": 180}),
    ("hsv_s", 0.7, {"saturation": 178}),
    ("hsv_v", 0.4, {"value": 102}),
    ("bgr", 0.3, {"channel_swap": 0.3}),
    ("mosaic", 0.4, {"mosaic": 0.4}),
    ("mixup", 0.15, {"mixup": 0.15}),
]
# What does not become a part of the recipe.
OTHERS = {
    *("data", "recipe", "accumulate", "imgsz", "pretrained", "freeze", "optimizer", "momentum", "clip", "cls", "box"),
    *("dfl", "weight_bits", "augment", "fraction", "single_cls", "split", "val", "val_batch", "patience", "seed"),
    *(
        "deterministic",
        "amp",
        "precision",
        "sync_bn",
        "device",
        "workers",
        "save_period",
        "save_pth",
        "plots",
        "resume",
    ),
    *("download", "project", "name", "exist_ok", "verbose"),
}


@pytest.fixture(scope="module")
def variant() -> Variant:
    """As deep as the S, much narrower."""
    return narrow("s").variant


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(VARIANTS, "narrow", variant)  # so that files of it can be written and read
    monkeypatch.setattr("yolonas.train_loop.bytes_per_picture", lambda model, size: 1000)  # counting takes a second
    caplog.set_level(logging.INFO, "yolonas")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "drawn"
    return shapes.write(folder, train=6, val=3, size=(64, 64), verbose=False)


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A copy of the data set that the test may spoil."""
    return shutil.copytree(made.parent, tmp_path / "data") / made.name


@pytest.fixture
def network(variant: Variant) -> Callable[[int], YoloNAS]:
    """Makes a network in training form for so many classes."""
    return lambda classes: YoloNAS(variant, classes).eval()


@pytest.fixture(scope="module")
def quantized() -> YoloNAS:
    """A quantised network of 3 classes."""
    return quantize_(narrow("s"), picture(1, 64, 64))


def prepared(
    data: Path,
    model: YoloNAS,
    names: dict[int, str] = SHAPES,
    *,
    fresh: bool = False,
    preprocess: Preprocess = SMALL,
    **options: Any,
) -> TrainSetup:
    options = {"recipe": "fine-tuning", "val": False, **options}
    return set_up(TrainOptions.of(data=data, **options), model, names, preprocess, "a.pt", fresh=fresh)


def loop_of(setup: TrainSetup, data: Path, **options: Any) -> Loop:
    chosen = TrainOptions.of(data=data, verbose=False, **options)
    return Loop(setup, chosen, torch.device("cpu"), Processes())


def state_of(model: YoloNAS) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def spoil(data: Path, old: str, new: str) -> None:
    text = data.read_text()
    assert old in text
    data.write_text(text.replace(old, new))


# Recipes and options.


@pytest.mark.parametrize(("name", "value", "changed"), OF_RECIPE, ids=lambda value: str(value)[:24])
def test_options_of_the_recipe(
    name: str, value: Any, changed: dict[str, Any], made: Path, network: Callable[[int], YoloNAS]
) -> None:
    published = recipe_for("fine-tuning", "narrow")
    assert prepared(made, network(8), **{name: value}).recipe == replace(published, **changed)


@pytest.mark.parametrize(("name", "value", "changed"), OF_AUGMENTATION, ids=lambda value: str(value)[:24])
def test_options_of_the_augmentation(
    name: str, value: Any, changed: dict[str, Any], made: Path, network: Callable[[int], YoloNAS]
) -> None:
    published = recipe_for("fine-tuning", "narrow")
    expected = replace(published, augmentation=replace(published.augmentation, **changed))
    assert prepared(made, network(8), **{name: value}).recipe == expected


def test_no_option_is_left_out() -> None:
    tested = {name for name, _, _ in (*OF_RECIPE, *OF_AUGMENTATION)}
    assert {item.name for item in fields(TrainOptions)} == tested | OTHERS


def test_presets_of_augmentation(made: Path, network: Callable[[int], YoloNAS]) -> None:
    def augmentation(**options: Any) -> Any:
        return prepared(made, network(8), **options).recipe.augmentation

    for name, preset in PRESETS.items():
        assert augmentation(augment=name) == preset
    # Where no colours are changed at all, what is asked for happens to all pictures.
    assert augmentation(augment="none", hsv_v=0.2) == replace(NONE, colours=1.0, value=51)
    assert augmentation(augment="coco", hsv_v=0.2).colours == 0.5
    assert augmentation(augment="none", fliplr=0.5) == replace(NONE, horizontal_flip=0.5)


def test_recipes_by_size() -> None:
    for name, recipe in RECIPES.items():
        assert recipe_for(name, "s") == recipe
        for size in ("m", "l"):
            larger = {"batch": 12, "learning_rate": 4e-4} if name == "fine-tuning" else {}
            assert recipe_for(name, size) == replace(recipe, **larger)


def test_the_published_numbers() -> None:
    coco, tuning, qat = RECIPES["coco"], RECIPES["fine-tuning"], RECIPES["qat"]
    assert (coco.epochs, coco.batch, coco.learning_rate, coco.weight_decay, coco.ema_decay) == (
        *(300, 32, 2e-4, 1e-5),
        0.9997,
    )
    assert (tuning.epochs, tuning.batch, tuning.learning_rate, tuning.weight_decay) == (100, 16, 5e-4, 1e-4)
    assert (qat.epochs, qat.learning_rate, qat.weight_decay) == (
        tuning.epochs // 10,
        pytest.approx(tuning.learning_rate / 100),
        pytest.approx(tuning.weight_decay / 100),
    )
    assert (qat.warmup_epochs, qat.ema_decay, qat.final_factor) == (1.0, None, 0.01)
    assert coco.augmentation.mosaic == 0
    assert tuning.augmentation.channel_swap == 0


@pytest.mark.parametrize(
    ("changed", "per_epoch", "expected"),
    [({}, 10, 30), ({"warmup_most": 20}, 10, 20), ({"warmup_epochs": 0.25}, 10, 2), ({"warmup_epochs": 0.0}, 10, 0)],
    ids=str,
)
def test_warmup_steps(changed: dict[str, Any], per_epoch: int, expected: int) -> None:
    assert warmup_steps(replace(RECIPES["fine-tuning"], **changed), per_epoch) == expected


def test_the_cap_of_the_warmup_goes_with_its_length(made: Path, network: Callable[[int], YoloNAS]) -> None:
    assert prepared(made, network(8), recipe="coco").recipe.warmup_most == 1000
    assert prepared(made, network(8), recipe="coco", warmup_epochs=5).recipe.warmup_most is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "data must name a data yaml"),
        ({"data": "  "}, "data must name a data yaml"),
        ({"epoch": 3}, "unknown argument 'epoch'; did you mean 'epochs'"),
        ({"optimizer": "sgd"}, "lr0 must be given with optimizer='sgd'"),
        ({"optimizer": "lion"}, "optimizer must be one of 'adamw', 'sgd', got 'lion'"),
        ({"recipe": "voc"}, "recipe must be one of 'coco', 'fine-tuning', 'qat', got 'voc'"),
        ({"augment": "strong"}, "augment must be one of 'none', 'coco', 'fine-tuning', got 'strong'"),
        ({"epochs": 0}, "epochs must be a whole number in 1..1000000, got 0"),
        ({"batch": -1}, "batch must be a whole number"),
        ({"batch": 2.5}, "batch must be a whole number"),
        ({"lr0": 0}, "lr0 must be a number in 1e-12..100, got 0"),
        ({"lr0": float("nan")}, "lr0 must be a number in 1e-12..100, got nan"),
        ({"lr0": "fast"}, "lr0 must be a number in 1e-12..100, got 'fast'"),
        ({"ema": 1}, "ema must be a number in 0..0.999999, got 1"),
        ({"ema": True}, "ema must be a number"),
        ({"hsv_h": 15}, "hsv_h must be a number in 0..1, got 15"),
        ({"scale": 1}, "scale must be a number in 0..0.99, got 1"),
        ({"mosaic": 50}, "mosaic must lie in 0..1, got 50; did you mean 0.5?"),
        ({"fraction": 0}, "fraction must be above 0 and at most 1, got 0"),
        ({"freeze": 10}, "freeze must name parts of the network such as backbone,neck, got 10"),
        ({"freeze": []}, "freeze must name parts of the network"),
        ({"split": "all"}, "split must be one of 'train', 'val', 'test', got 'all'"),
        ({"weight_bits": 3}, "weight_bits must be a whole number in 4..8, got 3"),
        ({"precision": "int8"}, "precision must be one of 'float32', 'bf16', 'fp16', got 'int8'"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"val": "yes"}, "val must be True or False, got 'yes'"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    data = {} if text.startswith("data") else {"data": "a.yaml"}
    with pytest.raises(ValueError, match=r"^.*") as error:
        TrainOptions.of(**{**data, **options})
    assert text in str(error.value)


def test_names_of_other_libraries(caplog: pytest.LogCaptureFixture) -> None:
    chosen = TrainOptions.of(data="a.yaml", batch_size=4, lr=0.1, cos_lr=True, erasing=0.4)
    assert (chosen.batch, chosen.lr0) == (4, 0.1)
    assert [record.getMessage() for record in caplog.records] == [
        "'batch_size' is an old name, use 'batch'",
        "'lr' is an old name, use 'lr0'",
        "'cos_lr' has no meaning here and is ignored",
        "'erasing' has no meaning here and is ignored",
    ]


@pytest.mark.parametrize("value", ["backbone,neck", "[backbone, neck]", "['backbone', 'neck']", ["backbone", "neck"]])
def test_how_parts_are_written(value: Any) -> None:
    assert TrainOptions.of(data="a.yaml", freeze=value).freeze == ("backbone", "neck")


def test_options_of_the_loop(made: Path, network: Callable[[int], YoloNAS]) -> None:
    setup = prepared(made, network(8), batch=2, min_samples=0, weight_decay=0.25, lr0=0.125)
    options = {"optimizer": "sgd", "lr0": 0.125, "momentum": 0.5, "accumulate": 2, "cls": 3, "box": 4, "dfl": 5}
    loop = loop_of(setup, made, workers=0, seed=11, **options)
    groups = loop.learner.optimizer.param_groups
    assert isinstance(loop.learner.optimizer, torch.optim.SGD)
    assert [(group["momentum"], group["lr"], group["weight_decay"]) for group in groups] == [
        (0.5, 0.125, 0.25),
        (0.5, 0.125, 0.0),
    ]
    assert (loop.loader.workers, loop.loader.seed, loop.loader.batch) == (1, 11, 2)
    assert (len(loop.loader), loop.steps) == (3, 2)  # 6 pictures; the second step has one part
    assert (loop._loss.class_weight, loop._loss.iou_weight, loop._loss.dfl_weight) == (3, 4, 5)
    assert loop.learner.ema is not None
    assert loop.learner.ema.largest_decay == 0.9
    assert loop.averaged is loop.learner.ema.model


def test_without_an_average_the_network_itself_is_kept(made: Path, network: Callable[[int], YoloNAS]) -> None:
    loop = loop_of(prepared(made, network(8), ema=False), made)
    assert loop.learner.ema is None
    assert loop.averaged is loop.learner.model


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_precision(precision: str, made: Path, network: Callable[[int], YoloNAS]) -> None:
    setup = prepared(made, network(8))
    assert loop_of(setup, made).learner.precision == "float32"  # on a CPU, whatever amp says
    assert loop_of(setup, made, precision=precision).learner.precision == precision


@pytest.mark.parametrize(
    ("batch", "min_samples", "steps"), [(4, 0, 1), (6, 0, 1), (8, 0, 1), (8, 8, 1), (8, 17, 2), (4, 9, 2)]
)
def test_steps_of_an_epoch(
    batch: int, min_samples: int, steps: int, made: Path, network: Callable[[int], YoloNAS]
) -> None:
    """Of 6 pictures: a data set smaller than a batch is one step, a remainder is left out."""
    loop = loop_of(prepared(made, network(8), batch=batch, min_samples=min_samples), made)
    assert loop.steps == steps
    assert sum(len(part.names) for part in loop.loader) == min(batch * steps, max(6, min_samples))


# Classes.


def test_the_same_classes(made: Path, network: Callable[[int], YoloNAS]) -> None:
    model = network(8)
    before = state_of(model)
    setup = prepared(made, model)
    assert setup.model is model
    assert setup.start == "weights of a.pt"
    assert setup.names == SHAPES
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_number_of_classes(made: Path, network: Callable[[int], YoloNAS]) -> None:
    model = network(80)
    before = state_of(model)
    setup = prepared(made, model, dict(enumerate(COCO_NAMES)), val=True)
    assert setup.start == "weights of a.pt, new class outputs: 8 in place of 80"
    assert setup.names == SHAPES
    assert setup.val is not None
    assert setup.val.names == SHAPES
    assert model.num_classes == 8
    changed = {key for key, value in model.state_dict().items() if value.shape != before[key].shape}
    assert changed == {f"heads.head{n}.cls_pred.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if key not in changed)


def test_random_weights_are_said_to_be(made: Path, network: Callable[[int], YoloNAS]) -> None:
    setup = prepared(made, network(80), dict(enumerate(COCO_NAMES)), fresh=True)
    assert setup.start == "random weights"
    assert setup.names == SHAPES


def test_classes_in_another_order(made: Path, network: Callable[[int], YoloNAS]) -> None:
    """The network keeps its numbers, the labels get them."""
    names = dict(enumerate(reversed([name.upper() for name in shapes.NAMES])))
    setup = prepared(made, network(8), names, val=True)
    plain = prepared(made, network(8), val=True)
    assert setup.names == names
    assert setup.start == "weights of a.pt"
    assert setup.val is not None
    assert plain.val is not None
    for ours, theirs in ((setup.train, plain.train), (setup.val.dataset, plain.val.dataset)):
        for one, other in zip(ours.images, theirs.images, strict=True):
            assert (one.labels.classes == 7 - other.labels.classes).all()


def test_as_many_classes_with_other_names(
    made: Path, network: Callable[[int], YoloNAS], caplog: pytest.LogCaptureFixture
) -> None:
    names = {number: f"thing {number}" for number in range(8)}
    setup = prepared(made, network(8), names, val=True)
    assert setup.names == SHAPES
    assert setup.val is not None
    assert setup.val.names == SHAPES
    assert "the classes are named as in shapes; their weights stay" in caplog.text


def test_a_network_without_names_takes_those_of_the_data(
    made: Path, network: Callable[[int], YoloNAS], caplog: pytest.LogCaptureFixture
) -> None:
    assert prepared(made, network(8), PLAIN).names == SHAPES
    assert not caplog.records


def test_one_class(made: Path, network: Callable[[int], YoloNAS]) -> None:
    setup = prepared(made, network(8), single_cls=True, val=True)
    assert setup.names == {0: "object"}
    assert setup.model.num_classes == 1
    assert all((image.labels.classes == 0).all() for image in setup.train.images)
    assert setup.val is not None
    assert setup.val.names == {0: "object"}
    assert setup.val.settings.agnostic
    again = prepared(made, setup.model, setup.names, single_cls=True)
    assert again.start == "weights of a.pt"


# The data.


def test_fraction_and_split(made: Path, network: Callable[[int], YoloNAS], caplog: pytest.LogCaptureFixture) -> None:
    setup = prepared(made, network(8), fraction=0.5, split="train", val=True)
    assert len(setup.train) == 3
    assert setup.val is not None
    assert len(setup.val.dataset) == 6
    assert setup.val.dataset.split == "train"
    assert not caplog.records  # who asks for it knows that these pictures are trained on


def test_what_is_measured(made: Path, network: Callable[[int], YoloNAS]) -> None:
    setup = prepared(made, network(8), val=True, val_batch=5, imgsz=96, workers=1)
    assert setup.val is not None
    assert (setup.val.options.batch, setup.val.options.workers) == (5, 1)
    assert setup.val.preprocess == SMALL.with_size((96, 96)) == setup.preprocess
    assert prepared(made, network(8), val=True, batch=3).val.options.batch == 3  # type: ignore[union-attr]
    assert prepared(made, network(8), val=True, batch=9000).val.options.batch == 4096  # type: ignore[union-attr]
    assert prepared(made, network(8)).val is None


def test_how_training_pictures_are_placed(made: Path, network: Callable[[int], YoloNAS]) -> None:
    odd = replace(SMALL, channels="bgr", pad_value=7)
    setup = prepared(made, network(8), preprocess=odd)
    assert setup.placement == replace(odd, fit=(64, 64), padding="bottom_right")
    never = prepared(made, network(8), preprocess=replace(odd, fit=None, rect=True))
    assert never.placement == replace(odd, fit=(64, 64), padding="bottom_right")


def test_data_that_cannot_be_used(data: Path, network: Callable[[int], YoloNAS], tmp_path: Path) -> None:
    def refused(kind: type[Exception] = ValueError, path: Path = data, **options: Any) -> str:
        with pytest.raises(kind) as error:
            prepared(path, network(8), **options)
        return str(error.value)

    json_file = tmp_path / "instances_train.json"
    json_file.write_text("{}")
    assert f"data must be a data yaml with train and val, got {json_file}" in refused(path=json_file)
    assert "no.yaml" in refused(FileNotFoundError, path=tmp_path / "no.yaml")
    assert "split must be one of train, val" in refused(val=True, split="test")
    labels = data.parent / "labels" / "train"
    for file in labels.iterdir():
        file.write_text("")
    assert "have no boxes" in refused()
    shutil.rmtree(data.parent / "images" / "train")
    assert "images/train" in refused()


@pytest.mark.parametrize(("part", "other"), [("train", "val"), ("val", "train")])
def test_a_yaml_without_a_part(part: str, other: str, data: Path, network: Callable[[int], YoloNAS]) -> None:
    spoil(data, f"{part}: ", "# ")
    with pytest.raises(ValueError, match=f"split must be one of {other} in .*, got '{part}'"):
        prepared(data, network(8), val=True)


def test_wrong_labels_are_told_of(
    data: Path, network: Callable[[int], YoloNAS], caplog: pytest.LogCaptureFixture
) -> None:
    labels = data.parent / "labels"
    (labels / "train" / "000001.txt").write_text("8 0.5 0.5 0.2 0.2\n0 0.5 0.5 0 0.2\n1 0.5 0.5 0.2 0.2\n")
    (labels / "val" / "000001.txt").write_text("".join(f"{number} 0.5 0.5 0.2 0.2\n" for number in range(30)))
    setup = prepared(data, network(8), val=True)
    train, val = setup.train, setup.val
    assert val is not None
    (image,) = (image for image in train.images if image.path.endswith("000001.jpg"))
    assert image.labels.classes.tolist() == [1]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told[:2] == [str(problem) for problem in train.problems]
    assert "labels/train/000001.txt:1" in told[0]
    assert "labels/train/000001.txt:2" in told[1]
    assert told[2:10] == [str(problem) for problem in val.dataset.problems[:8]]
    assert told[10] == "and 14 more problems; problems.txt in the run folder lists them"
    assert len(told) == 11


def test_problems_are_told_of_once(
    data: Path, network: Callable[[int], YoloNAS], caplog: pytest.LogCaptureFixture
) -> None:
    (data.parent / "labels" / "train" / "000001.txt").write_text("8 0.5 0.5 0.2 0.2\n")
    prepared(data, network(8), val=True, split="train")
    assert caplog.text.count("labels/train/000001.txt:1") == 1


def test_pictures_in_both_parts(
    data: Path, network: Callable[[int], YoloNAS], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(data.parent / "images" / "train" / "000002.jpg", data.parent / "images" / "val" / "000001.jpg")
    prepared(data, network(8), val=True)
    (record,) = caplog.records
    assert "a picture is in train and in val, so mAP there says too much: " in record.getMessage()
    assert "000002.jpg = " in record.getMessage()
    assert "val/000001.jpg" in record.getMessage()


# The network.


def test_weight_bits_of_a_float_network(made: Path, network: Callable[[int], YoloNAS]) -> None:
    with pytest.raises(ValueError, match=r"weight_bits is for training a quantised network; make one with NAS.quan"):
        prepared(made, network(8), weight_bits=6)


def test_a_quantised_network_keeps_its_classes(made: Path, quantized: YoloNAS) -> None:
    with pytest.raises(ValueError, match="shapes must have the 3 classes of a quantised network, got 8; train its fl"):
        prepared(made, quantized, {0: "a", 1: "b", 2: "c"})


def test_a_quantised_network_in_training(data: Path, quantized: YoloNAS) -> None:
    content = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump({**content, "names": ["a", "b", "c"]}))
    setup = prepared(data, quantized, {0: "a", 1: "b", 2: "c"}, recipe="qat", weight_bits=6)
    assert setup.is_quantized
    assert setup.start == "weights of a.pt, quantised: weights of 6 bits, activations of 8"
    assert setup.model is not quantized
    assert setup.model.training
    assert quantized.training is False
    about = setup.quantized_as()
    assert about is not None
    again = quantized_network("narrow", 3, **about)
    assert again.activation_scales == quantized.activation_scales
    again.load_state_dict(quantized.state_dict())
    assert prepare(again, weight_bits=6).state_dict().keys() == setup.model.state_dict().keys()


def test_a_float_network_has_nothing_quantised(made: Path, network: Callable[[int], YoloNAS]) -> None:
    setup = prepared(made, network(8))
    assert not setup.is_quantized
    assert setup.quantized_as() is None


def test_a_quantised_network_with_a_wrong_layer() -> None:
    with pytest.raises(ValueError, match=r"there is no convolution 'backbone\.stem'"):
        quantized_network("narrow", 3, {"input": 1.0}, ["backbone.stem"])


def test_what_can_be_trained(
    network: Callable[[int], YoloNAS], quantized: YoloNAS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = network(8)
    assert trainable(model, None) is model
    assert trainable(quantized, None) is quantized
    about: dict[str, Any] = {"names": SHAPES, "preprocess": SMALL, "settings": DetectSettings()}
    whole = save_checkpoint(tmp_path / "whole.safetensors", model, **about)
    fused = fuse_(network(8))
    folded = save_checkpoint(tmp_path / "folded.safetensors", fused, **about)

    again = trainable(fused, whole)
    assert again.form == "training"
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert f"fused the network; it is read again from {whole}" in caplog.text
    cure = "train from the checkpoint that it was made of"
    with pytest.raises(ValueError, match=f"model must be in training form, got 'folded'; {cure}"):
        trainable(fused, None)
    with pytest.raises(ValueError, match=f"folded.safetensors must be in training form, it is in .*'folded'; {cure}"):
        trainable(fused, folded)
    with pytest.raises(ValueError, match="must be in training form, its file cannot be read again"):
        trainable(fused, tmp_path / "gone.safetensors")


def test_frozen_parts(network: Callable[[int], YoloNAS]) -> None:
    model = network(8)
    parts = frozen_parts(model, ("backbone", "heads.head1"))
    assert parts == [model.backbone, model.heads.head1]
    for name, parameter in model.named_parameters():
        if ".rbr_reparam." not in name:  # those are not in use in this form
            assert parameter.requires_grad != name.startswith(("backbone.", "heads.head1.")), name
    for wrong in ("backbones", "", "model.0"):
        with pytest.raises(ValueError, match=r"freeze must name parts of the network such as .*, got "):
            frozen_parts(network(8), (wrong,))
    with pytest.raises(ValueError, match="freeze must leave something to train, got backbone, neck, heads"):
        frozen_parts(network(8), ("backbone", "neck", "heads"))


def test_what_is_frozen_stays(made: Path, network: Callable[[int], YoloNAS]) -> None:
    setup = prepared(made, network(8), batch=3, min_samples=0, ema=False, warmup_epochs=0, lr0=0.01)
    before = state_of(setup.model)
    loop = loop_of(setup, made, freeze="backbone,neck", workers=1)
    loop.train_epoch(0, lambda step, batch: None, lambda: None)
    changed = {key for key, value in setup.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("heads.")}  # counters and statistics too


# Memory.


def test_memory_of_a_picture(network: Callable[[int], YoloNAS], quantized: YoloNAS) -> None:
    model = network(8)
    before = state_of(model)
    small, large = (bytes_per_picture(model, size) for size in ((32, 32), (64, 128)))
    assert large == 8 * small  # nothing is counted that does not grow with the picture
    assert large > 64 * 128 * 3 * 4
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert bytes_per_picture(prepare(quantized), (64, 64)) > 64 * 64 * 3 * 4


def test_fitting_batch() -> None:
    assert fitting_batch(100.0, 1299) == 9
    assert fitting_batch(100.0, 1300) == 10
    assert fitting_batch(100.0, 129) == 0


def test_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 1 << 20
    assert free_bytes(torch.device("meta")) is None
    for text in ("", "MemFree: 3 kB\n", "MemAvailable:\n", "MemAvailable: much kB\n"):
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        assert free_bytes(torch.device("cpu")) is None
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "MemFree: 3 kB\nMemAvailable:    20 kB\n")
    assert free_bytes(torch.device("cpu")) == 20480


def test_a_batch_that_cannot_fit(
    made: Path, network: Callable[[int], YoloNAS], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = prepared(made, network(8), batch=6, min_samples=0)
    one = 1300  # bytes, see above

    def refused(pictures: float, **options: Any) -> str:
        monkeypatch.setattr("yolonas.train_loop.free_bytes", lambda device: int(pictures * one) + 1)
        with pytest.raises(MemoryError) as error:
            loop_of(setup, made, **options)
        return str(error.value)

    assert "a step will not fit with 6 pictures at 64x64: it takes about " in refused(5)
    assert " GB are free on cpu; batch=3 accumulate=2 would fit" in refused(5)
    assert "; batch=2 accumulate=3 would fit" in refused(2)
    assert "; batch=2 accumulate=6 would fit" in refused(2, accumulate=2)
    assert "; batch=2 accumulate=3 would fit" in refused(2, accumulate=1)
    assert refused(0.5).endswith("; use a smaller imgsz")
    monkeypatch.setattr("yolonas.train_loop.free_bytes", lambda device: int(6 * one) + 1)
    loop_of(setup, made)
    loop_of(prepared(made, network(8), batch=32, min_samples=0), made)  # there are only 6 pictures
    monkeypatch.setattr("yolonas.train_loop.free_bytes", lambda device: None)
    loop_of(setup, made)


def test_a_device_is_kept_as_a_resume_can_hold_it() -> None:
    assert TrainOptions.of(data="a.yaml", device=torch.device("cpu")).device == "cpu"
    assert TrainOptions.of(data="a.yaml", device=[0, 1]).device == [0, 1]
    assert TrainOptions.of(data="a.yaml", device=None).device is None
