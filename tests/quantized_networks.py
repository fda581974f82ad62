"""Narrow networks of all the shapes that there are, and scales for them, for tests of what runs quantised networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from golden_recipe import fill_

from yolonas.config import VARIANTS, StageConfig
from yolonas.lowering import INPUT, lower
from yolonas.nn import YoloNAS, fuse_
from yolonas.quantization.reference import run_fake_quantized


def sixteens(width: int) -> int:
    """A sixth, in sixteens: CUDA kernels read int8 channels by so many."""
    return max(16, width // 96 * 16)


def narrow(name: str, num_classes: int = 3, width: Callable[[int], int] = lambda width: width // 8) -> YoloNAS:
    """A network as deep as "s", "m" or "l", and much narrower, in folded form."""

    def less(stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        return tuple(replace(stage, channels=width(stage.channels), hidden=width(stage.hidden)) for stage in stages)

    whole = VARIANTS[name]
    parts = {part: less(getattr(whole, part)) for part in ("backbone", "up", "down")}
    heads = tuple(map(width, whole.heads))
    variant = replace(whole, name="narrow", **parts, heads=heads)  # type: ignore[arg-type]
    return fuse_(fill_(YoloNAS(variant, num_classes=num_classes)).eval())  # type: ignore[arg-type, return-value]


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    """float32 (*shape, 3) in 0..1."""
    return np.random.default_rng(seed).random((*shape, 3), np.float32)


def quantize_(model: YoloNAS, x: np.ndarray, kept: Callable[[str], bool] = lambda name: False) -> YoloNAS:
    """Gives a folded network scales, in place: of the largest magnitudes, of the weights and for this input.

    Args:
        kept: by the name of a step, whether it stays in float.
    """
    graph = lower(model)
    outputs = run_fake_quantized(graph, x)
    largest = {INPUT: float(np.abs(x).max())}
    for step in graph.steps:
        number = step["output"].buffer
        largest[number] = max(largest.get(number, 0.0), float(np.abs(outputs[step["name"]]).max()))
    model.activation_scales = {"input": float(np.float32(largest[INPUT] / 127))}
    for step in graph.steps:
        model.activation_scales[step["name"]] = float(np.float32(largest[step["output"].buffer] / 127))
        if kept(step["name"]):
            continue
        for module in step.get("modules", ()):
            axes = (0, 2, 3) if isinstance(module, torch.nn.ConvTranspose2d) else (1, 2, 3)
            module.register_buffer("weight_scale", module.weight.abs().amax(axes) / 127)
    return model
