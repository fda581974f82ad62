"""Sets the scales of a network: of its weights from the weights, of its activations from their histograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..lowering import lower
from ..quantized_graph import INPUT_NAME
from .calibrators import amax, percentile, scale_of
from .histogram import Histogram

if TYPE_CHECKING:
    from ..nn import YoloNAS


def set_ranges(
    model: YoloNAS,
    histograms: Mapping[str, Histogram],
    method: str = "mse",
    percent: float = 99.99,
) -> None:
    """Gives a network in folded form all its scales, in place: it is quantised then.

    The scale of a buffer is that of the widest of its writers: each finds its range on its own values, so that the
    parts of a concatenation do not clip each other, however many values they have. The input is never clipped: pixels
    are bounded, white ones are no outliers, and "entropy" is misled by values that come in even steps.

    Args:
        histograms: of `collect_histograms`.
        method: one of `METHODS`, for activations. percent: for "percentile".

    Raises:
        ValueError: another method, histograms of another network, or values that are not finite.
    """
    import torch

    graph = lower(model)
    names: dict[int, list[str]] = {}
    for step in graph.steps:
        names.setdefault(step["output"].buffer, []).append(step["name"])
    needed = [INPUT_NAME, *(step["name"] for step in graph.steps)]
    missing = [name for name in needed if name not in histograms]
    if missing:
        raise ValueError(f"quantize: histograms must be of this network, got none of {missing[0]!r}")

    scales = {INPUT_NAME: scale_of(amax(histograms[INPUT_NAME], "max"))}
    for writers in names.values():
        scale = scale_of(max(_range(histograms[name], method, percent) for name in writers))
        scales |= dict.fromkeys(writers, scale)
    for step in graph.steps:
        for module in step.get("modules", ()):
            weight = module.weight.detach()
            outputs = weight.transpose(0, 1) if module.transposed else weight  # first
            module.register_buffer("weight_scale", torch.from_numpy(weight_scales(outputs.numpy())))
    model.activation_scales = scales


def weight_scales(weight: np.ndarray) -> np.ndarray:
    """The scale of each output channel, float32 (K,), of weights (K, ...): nothing is clipped. 1 for zeros."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    return np.array([scale_of(one) for one in largest], np.float32)


def _range(histogram: Histogram, method: str, percent: float) -> float:
    return percentile(histogram, percent) if method == "percentile" else amax(histogram, method)
