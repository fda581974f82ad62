"""Runs pictures through a network and counts the values of each of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from .counting import ValueCounts
from .histogram import Histogram

if TYPE_CHECKING:
    from .counting import AnyEngine

INPUT = "input"  # the name of the network's input


def collect_histograms(
    engine: AnyEngine, batches: Iterable[np.ndarray], *, progress: Callable[[int], None] | None = None
) -> dict[str, Histogram]:
    """The histogram of the input, named "input", and of the output of each step, by its name, in the order of the run.

    They do not depend on the order of the pictures, on how they come in batches, or on the number of threads; on
    a CUDA device values that lie at the edge of a bin may come into the next one. Steps of one name share a histogram.

    Args:
        batches: float32 `(N, H, W, 3)` each, prepared as for `NativeEngine.heads`; sizes may differ.
        progress: called after each batch with the number of its pictures.

    Raises:
        TypeError, ValueError: a batch of another dtype or shape; no batches; a layer with values that are not finite.
    """
    names = [INPUT, *engine.native.step_names]
    values = ValueCounts(engine)
    pictures = 0
    for batch in batches:
        values.add(batch)
        pictures += len(batch)
        non_finite = values.non_finite()
        if non_finite.any():
            first = int(np.flatnonzero(non_finite)[0])
            raise ValueError(
                f"calibration: outputs of {names[first]!r} must be finite, got {non_finite[first]} that are NaN or "
                f"infinite in the first {pictures} pictures; check the weights and the scaling of the pictures"
            )
        if progress is not None:
            progress(len(batch))
    if pictures == 0:
        raise ValueError("calibration: pictures must be at least one, got none")

    counts, largest, negatives = values.arrays()
    histograms: dict[str, Histogram] = {}
    for name, row, most, below in zip(names, counts, largest.tolist(), negatives.tolist(), strict=True):
        one = Histogram(row, most, below)
        histograms[name] = histograms[name].merge(one) if name in histograms else one
    return histograms
