"""What a training is, before it runs: the pictures, the network in the form that is trained, and all settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .checkpoint import load_model, read_checkpoint
from .errors import CheckpointError
from .nn import YoloNAS
from .preprocess import Preprocess
from .training.augment import PRESETS, Augmentation
from .training.classes import replace_classes_
from .training.fake_quant import EngineConv, prepare
from .training.recipes import Recipe, recipe_for
from .val import ValOptions
from .val_setup import ValSetup
from .val_setup import set_up as set_up_val

if TYPE_CHECKING:
    from .data.dataset import DetectionDataset, Problem
    from .train import TrainOptions

LOGGER = logging.getLogger("yolonas")

SHOWN_NAMES = 5  # of pictures in a message
SHOWN_PROBLEMS = 10  # of the data, on the console


@dataclass
class TrainSetup:
    """Which pictures a network is trained and measured on, and how.

    Attributes:
        model: in the form that is trained: "training" or "partial", or what `fake_quant.prepare` made.
        recipe: the published settings with what the user changed. preprocess: of the network, at the input size.
        train: the pictures. val: what the network is measured on, None if it is not. start: in words, what the weights
            are at the beginning.
    """

    model: YoloNAS
    names: dict[int, str]
    preprocess: Preprocess
    recipe: Recipe
    train: DetectionDataset
    val: ValSetup | None
    start: str

    @property
    def is_quantized(self) -> bool:
        """Whether quantisation is simulated."""
        return bool(self.model.activation_scales)

    def quantized_as(self) -> dict[str, Any] | None:
        """What `quantized_network` takes beside the size; None for a network in float."""
        if not self.is_quantized:
            return None
        layers = [name for name, one in self.model.named_modules() if isinstance(one, EngineConv) and one.weight_bits]
        return {"activation_scales": dict(self.model.activation_scales), "layers": layers}

    @property
    def placement(self) -> Preprocess:
        """How training pictures are placed, as published: as large as the frame allows, padded right and below."""
        return replace(self.preprocess, fit=self.preprocess.size, padding="bottom_right", rect=False)


def set_up(
    options: TrainOptions, model: YoloNAS, names: Mapping[int, str], preprocess: Preprocess, source: str, *, fresh: bool
) -> TrainSetup:
    """Reads the data set and makes the network ready.

    Args:
        model: changed in place where its classes are not those of the data. source: for people, its file.
        fresh: its weights are random.

    Raises:
        ValueError: the data cannot be used, or the options or the network do not fit. FileNotFoundError: no such data.
    """
    if options.imgsz is not None:
        preprocess = preprocess.with_size(options.imgsz)
    dataset, names, start = _with_classes(options, model, dict(names), source, fresh=fresh)
    recipe = _recipe(options, model)
    val = _val(options, names, preprocess, recipe.batch) if options.val else None
    _warn_of_data(options, dataset, val)
    if model.activation_scales:
        model = prepare(model, weight_bits=options.weight_bits)
        start += f", quantised: weights of {options.weight_bits} bits, activations of 8"
    elif options.weight_bits != 8:
        raise ValueError("weight_bits is for training a quantised network; make one with NAS.quantize")
    return TrainSetup(model, names, preprocess, recipe, dataset, val, start)


def _val(options: TrainOptions, names: Mapping[int, str], preprocess: Preprocess, batch: int) -> ValSetup:
    """What the network is measured on."""
    chosen = ValOptions.of(
        data=options.data,
        split=options.split,
        download=options.download,
        batch=options.val_batch or min(batch, 4096),  # no more is taken
        workers=options.workers,
        single_cls=options.single_cls,
        plots=False,
        verbose=False,
    )
    try:
        return set_up_val(chosen, names, preprocess)
    except ValueError as error:
        if "split must be one of" in str(error):
            raise ValueError(f"{error}; val=False trains without measuring") from None
        raise


def quantized_network(
    variant: str, num_classes: int, activation_scales: Mapping[str, float], layers: Sequence[str]
) -> YoloNAS:
    """A quantised network whose weights are to be read from elsewhere.

    Args:
        activation_scales: of the network. layers: the convolutions that have scales of their own.

    Raises:
        ValueError: these are not of such a network.
    """
    model = YoloNAS(variant, num_classes, "folded")
    modules = dict(model.named_modules())
    for name in layers:
        if not isinstance(modules.get(name), torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            raise ValueError(f"there is no convolution {name!r}")
        outputs = modules[name].out_channels
        modules[name].register_buffer("weight_scale", torch.ones(outputs))
    model.activation_scales = {name: float(scale) for name, scale in activation_scales.items()}
    return model


def trainable(model: YoloNAS, source: Path | None) -> YoloNAS:
    """The network in a form that can be trained: itself, or read again where `predict` has fused it.

    Raises:
        ValueError: its file has only the fused form.
    """
    if model.activation_scales or model.form in ("training", "partial"):
        return model
    cure = "train from the checkpoint that it was made of; one in training form can be trained"
    if source is None:
        raise ValueError(f"train: model must be in training form, got {model.form!r}; {cure}")
    try:
        checkpoint = read_checkpoint(source)
    except (CheckpointError, OSError) as error:
        raise ValueError(f"train: model must be in training form, its file cannot be read again: {error}") from None
    if checkpoint.form not in ("training", "partial"):
        raise ValueError(f"train: {source} must be in training form, it is in the form {checkpoint.form!r}; {cure}")
    LOGGER.info("train: predict, val or fuse has fused the network; it is read again from %s", source)
    return load_model(checkpoint)


def _with_classes(
    options: TrainOptions, model: YoloNAS, names: dict[int, str], source: str, *, fresh: bool
) -> tuple[DetectionDataset, dict[int, str], str]:
    """The training pictures, the classes, and in words what the weights are at the beginning."""
    dataset = _open(options)
    start = "random weights" if fresh else f"weights of {source}"
    if options.single_cls:
        images = [replace(image, labels=_one_class(image.labels)) for image in dataset.images]
        dataset = replace(dataset, names={0: "object"}, category_ids=(1,), images=images)
    own, known = list(dataset.names.values()), [names[number] for number in sorted(names)]
    if len(own) == len(known):
        if _by_name(own, known):
            return dataset.for_model(names), names, start
        if not fresh and any(name != f"class_{number}" for number, name in names.items()):
            LOGGER.info("train: the classes are named as in %s; their weights stay", dataset.name)
        return dataset, dict(dataset.names), start
    if model.activation_scales:
        raise ValueError(
            f"train: {dataset.name} must have the {len(known)} classes of a quantised network, got {len(own)}; "
            "train its float checkpoint on the new classes, then quantise the result"
        )
    replace_classes_(model, len(own))
    if fresh:
        return dataset, dict(dataset.names), start
    start += f", new class outputs: {len(own)} in place of {len(known)}"
    return dataset, dict(dataset.names), start


def _by_name(own: list[str], known: list[str]) -> bool:
    from .data.dataset import numbers_by_name

    return numbers_by_name(own, known) is not None


def _one_class(labels: Any) -> Any:
    return replace(labels, classes=labels.classes * 0)


def _open(options: TrainOptions) -> DetectionDataset:
    from .data.catalog import locate
    from .data.dataset import open_dataset

    found = locate(options.data, download=options.download)
    if isinstance(found, Path) and found.suffix.lower() == ".json":
        raise ValueError(f"train: data must be a data yaml with train and {options.split}, got {found}")
    dataset = open_dataset(found, "train").with_fraction(options.fraction)
    if not dataset.images:
        raise ValueError(f"train: the train split of {dataset.name} has no pictures")
    if not any((~image.truth((1, 1)).crowd).any() for image in dataset.images):
        raise ValueError(f"train: the labels of {dataset.name} have no boxes in {dataset.labels_from}")
    return dataset


def _warn_of_data(options: TrainOptions, dataset: DetectionDataset, val: ValSetup | None) -> None:
    """Tells of what is wrong with the pictures that are trained on, and of those that are measured on too."""
    problems = problems_of(dataset, val)
    for problem in problems[:SHOWN_PROBLEMS]:
        LOGGER.warning("%s", problem)
    more = sum(problem.count for problem in problems[SHOWN_PROBLEMS:])
    if more:
        LOGGER.warning("and %d more problems; problems.txt in the run folder lists them", more)
    if val is None or options.split == "train":
        return
    from .data.shared_pictures import shared_pictures

    both = shared_pictures([image.path for image in dataset.images], [image.path for image in val.dataset.images])
    if both:
        shown = ", ".join(first if first == second else f"{first} = {second}" for first, second in both[:SHOWN_NAMES])
        many = f"{len(both)} pictures are" if len(both) > 1 else "a picture is"
        more_names = ", ..." if len(both) > SHOWN_NAMES else ""
        LOGGER.warning(
            "train: %s in train and in %s, so mAP there says too much: %s%s", many, options.split, shown, more_names
        )


def problems_of(train: DetectionDataset, val: ValSetup | None) -> list[Problem]:
    """What is wrong with the pictures of both parts, each problem once."""
    return list(dict.fromkeys([*train.problems, *(val.dataset.problems if val is not None else ())]))


def _recipe(options: TrainOptions, model: YoloNAS) -> Recipe:
    """The published settings, with what the user says in their place."""
    assert options.recipe is not None
    recipe = recipe_for(options.recipe, model.variant.name)
    names = {
        "epochs": "epochs",
        "batch": "batch",
        "lr0": "learning_rate",
        "lrf": "final_factor",
        "weight_decay": "weight_decay",
        "warmup_epochs": "warmup_epochs",
        "close_mosaic": "plain_epochs",
        "min_samples": "min_samples",
    }
    changed = {ours: getattr(options, name) for name, ours in names.items() if getattr(options, name) is not None}
    if options.warmup_epochs is not None:
        changed["warmup_most"] = None
    if options.ema is not None:
        changed["ema_decay"] = options.ema or None
    recipe = replace(recipe, **changed, augmentation=_augmentation(options, recipe.augmentation))
    # A warm-up of more than the learning rate could be would fall.
    return replace(
        recipe,
        plain_epochs=min(recipe.plain_epochs, recipe.epochs),
        warmup_start=min(recipe.warmup_start, recipe.learning_rate),
    )


def _augmentation(options: TrainOptions, published: Augmentation) -> Augmentation:
    chosen = published if options.augment is None else PRESETS[options.augment]
    factors = {"hsv_h": ("hue", 180), "hsv_s": ("saturation", 255), "hsv_v": ("value", 255)}
    changed: dict[str, Any] = {
        ours: round(getattr(options, name) * factor)
        for name, (ours, factor) in factors.items()
        if getattr(options, name) is not None
    }
    if changed and chosen.colours == 0:
        changed["colours"] = 1.0
    same = {"fliplr": "horizontal_flip", "flipud": "vertical_flip", "bgr": "channel_swap"}
    same |= {name: name for name in ("degrees", "shear", "translate", "mosaic", "mixup")}
    changed |= {ours: getattr(options, name) for name, ours in same.items() if getattr(options, name) is not None}
    if options.scale is not None:
        changed["scale"] = (1 - options.scale, 1 + options.scale)
    return replace(chosen, **changed)


def warmup_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Steps until the highest learning rate."""
    steps = round(recipe.warmup_epochs * steps_per_epoch)
    return steps if recipe.warmup_most is None else min(steps, recipe.warmup_most)


def frozen_parts(model: YoloNAS, names: tuple[str, ...]) -> list[Any]:
    """The modules whose weights and statistics stay, of the beginnings of names that the user gives.

    Raises:
        ValueError: a name that no module has, or nothing is left to train.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules or not name]
    if unknown:
        raise ValueError(
            f"freeze must name parts of the network such as backbone, neck or heads.head1, got {unknown[0]!r}"
        )
    frozen = [modules[name] for name in names]
    for module in frozen:
        module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze must leave something to train, got {', '.join(names)}")
    return frozen
