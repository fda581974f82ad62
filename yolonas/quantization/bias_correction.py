"""Bias correction: takes out of each layer the shift of its mean that rounding its weights brings.

Rounding changes the weights of an output channel by an error e, and so its mean over pictures by the sum of e * E[x]:
that much is taken off the bias (Nagel et al. 2019, "Data-free quantization through weight equalization and bias
correction", where E[x] comes from the batch norms; here it is measured).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..lowering import lower
from ..native_engine import NativeEngine
from ..quantized_graph import quantized_graph
from .counting import ChannelSums

if TYPE_CHECKING:
    from ..lowering import Graph
    from ..nn import YoloNAS
    from .counting import AnyEngine


def correct_bias_(
    model: YoloNAS,
    batches: Iterable[np.ndarray],
    *,
    progress: Callable[[int], None] | None = None,
    engine_of: Callable[[Graph, int], AnyEngine] = NativeEngine.of_graph,
) -> YoloNAS:
    """Corrects the biases of a quantised network, in place, and returns it.

    `E[x]` is the mean of a layer's int8 input over all pixels of all pictures, from exact sums: it depends neither on
    the order of the pictures nor on how they come in batches. The padding's zeros are not in it, though a 3x3 kernel
    sees them at the edges. The weights must still be those before rounding, else nothing changes.

    Args:
        batches: float32 `(N, H, W, 3)` each, as for `collect_histograms`.
        progress: called after each batch with the number of its pictures.
        engine_of: makes the engine of a quantised graph with so many classes; which one does not change the result.

    Raises:
        TypeError, ValueError: a batch of another dtype or shape; no batches; a network whose scales are wrong.
    """
    import torch

    plain = {step["name"]: step for step in lower(model).steps}
    graph = quantized_graph(lower(model), model.activation_scales)
    engine = engine_of(graph, model.num_classes)
    ends = np.cumsum([step["output"].channels for step in graph.steps])
    totals, pixels, pictures = ChannelSums(engine, int(ends[-1])), 0, 0
    for batch in batches:
        totals.add(batch)
        pixels += batch.shape[0] * batch.shape[1] * batch.shape[2]
        pictures += len(batch)
        if progress is not None:
            progress(len(batch))
    if pictures == 0:
        raise ValueError("bias correction: pictures must be at least one, got none")

    means = [np.zeros(buffer.channels) for buffer in graph.buffers]  # of the int8 values, as they are at each step
    for step, written in zip(graph.steps, np.split(totals.array(), ends[:-1]), strict=True):
        x, y = step["input"], step["output"]
        if step.get("weight_scale") is not None:
            error = _rounding_error(step["weight"], step["weight_scale"], plain[step["name"]]["weight"], step["op"])
            mean = means[x.buffer][x.offset : x.offset + error.shape[1]] * graph.buffers[x.buffer].scale
            corrections = np.split(-error @ mean, np.cumsum([len(module.bias) for module in step["modules"]])[:-1])
            for module, correction in zip(step["modules"], corrections, strict=True):
                with torch.no_grad():
                    module.bias.copy_(module.bias.double() + torch.from_numpy(correction))
        means[y.buffer][y.offset : y.offset + y.channels] = written / (pixels >> 2 * graph.downscale(y))
    return model


def _rounding_error(rounded: np.ndarray, scale: np.ndarray, weight: np.ndarray, op: str) -> np.ndarray:
    """What rounding adds to the weights, float64 (K, C), all taps that one output pixel sees added up."""
    if op == "upsample":  # every pixel sees one tap, in turn
        error = rounded * scale.astype(np.float64)[:, None, None] - weight
        return error.mean(axis=(2, 3)).T
    error = rounded[:, : weight.shape[1]] * scale.astype(np.float64)[:, None, None, None] - weight
    return error.sum(axis=(2, 3))
