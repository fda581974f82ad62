"""The settings with which networks of this kind were trained, as published."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .augment import COCO, FINE_TUNING, Augmentation


@dataclass(frozen=True)
class Recipe:
    """What a training does where the user says nothing. Learning rates are those of AdamW."""

    epochs: int
    batch: int  # pictures per step, on one device
    learning_rate: float  # the highest, at the end of the warm-up
    final_factor: float  # what is left of it at the end
    weight_decay: float
    warmup_epochs: float
    warmup_start: float  # learning rate of the first step
    warmup_most: int | None  # steps that the warm-up takes at most
    ema_decay: float | None  # the largest; None: no average is kept
    augmentation: Augmentation
    plain_epochs: int  # at the end, without mosaic and mixup
    min_samples: int  # pictures per epoch at least


RECIPES = {
    # COCO from random weights, as published for S: 8 GPUs with 32 pictures each.
    "coco": Recipe(
        epochs=300,
        batch=32,
        learning_rate=2e-4,
        final_factor=0.1,
        weight_decay=1e-5,
        warmup_epochs=1.0,
        warmup_start=1e-6,
        warmup_most=1000,
        ema_decay=0.9997,
        augmentation=COCO,
        plain_epochs=0,
        min_samples=0,
    ),
    # Other pictures from COCO weights, as published for S on Roboflow 100; only that the mosaic ends before the end.
    "fine-tuning": Recipe(
        epochs=100,
        batch=16,
        learning_rate=5e-4,
        final_factor=0.1,
        weight_decay=1e-4,
        warmup_epochs=3.0,
        warmup_start=1e-6,
        warmup_most=None,
        ema_decay=0.9,
        augmentation=FINE_TUNING,
        plain_epochs=10,
        min_samples=512,
    ),
    # The fine-tuning of a quantised network: a tenth of the epochs, a hundredth of learning rate and weight decay.
    "qat": Recipe(
        epochs=10,
        batch=16,
        learning_rate=5e-6,
        final_factor=0.01,
        weight_decay=1e-6,
        warmup_epochs=1.0,
        warmup_start=5e-8,
        warmup_most=None,
        ema_decay=None,
        augmentation=FINE_TUNING,
        plain_epochs=0,
        min_samples=512,
    ),
}

# Of the fine-tuning of the larger sizes.
_LARGER = {"batch": 12, "learning_rate": 4e-4}


def recipe_for(name: str, variant: str) -> Recipe:
    """The recipe of this name for the size "s", "m" or "l"."""
    recipe = RECIPES[name]
    return replace(recipe, **_LARGER) if name == "fine-tuning" and variant != "s" else recipe
