"""What the tests of training share: narrow networks in training form, and random batches for them."""

from __future__ import annotations

from functools import lru_cache

import torch
from loss_cases import CLASSES, random_targets
from quantized_networks import narrow

from yolonas.config import Variant
from yolonas.nn import YoloNAS
from yolonas.training.ema import Ema
from yolonas.training.optimizer import build_optimizer
from yolonas.training.step import Batch, Learner


@lru_cache
def narrow_variant() -> Variant:
    return narrow("s").variant


def narrow_network(seed: int = 0) -> YoloNAS:
    """A narrow S with untrained weights, in training mode."""
    variant = narrow_variant()  # which draws numbers the first time
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return YoloNAS(variant, num_classes=CLASSES).train()


def narrow_learner(seed: int = 0, *, name: str = "adamw", precision: str = "float32", device: str = "cpu") -> Learner:
    """One that has made no step yet."""
    model = narrow_network(seed).to(device)
    optimizer = build_optimizer(model, name, learning_rate=1e-3, weight_decay=1e-2)
    return Learner(model, optimizer, ema=Ema(model), precision=precision)


def random_batch(counts: list[int], *, seed: int = 0, size: int = 64, device: str = "cpu") -> Batch:
    """As many boxes per picture as `counts` says; the pictures are called `<seed>-<number>.jpg`."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(len(counts), 3, size, size, generator=generator).to(device)
    names = tuple(f"{seed}-{number}.jpg" for number in range(len(counts)))
    return Batch(pictures, random_targets(counts, seed=seed, size=(size, size)), names)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    """Copies of the weights and of their average."""
    model, average = learner.model.state_dict(), learner.ema.model.state_dict()
    both = {**model, **{f"average of {key}": value for key, value in average.items()}}
    return {key: value.clone() for key, value in both.items()}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To the last bit."""
    assert actual.keys() == expected.keys()
    different = [key for key, value in expected.items() if not torch.equal(value, actual[key])]
    assert not different
