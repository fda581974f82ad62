"""Counts the values that each step of a network writes, on the host or where an engine on a CUDA device has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .histogram import BINS, FINITE

if TYPE_CHECKING:
    from ..cuda_engine import CudaEngine
    from ..native_engine import NativeEngine

    AnyEngine = NativeEngine | CudaEngine


class ValueCounts:
    """Histograms of the input and of each step's output, over all batches that were added; see `_cpu.Engine.observe`.

    Args:
        engine: of floats.
    """

    def __init__(self, engine: AnyEngine):
        self._counter = _counter(engine)
        rows = 1 + len(engine.native.step_names)
        self._counts = self._counter.zeros((rows, BINS), "int64")
        self._largest = self._counter.zeros((rows,), "float32")
        self._negatives = self._counter.zeros((rows,), "int64")

    def add(self, batch: np.ndarray) -> None:
        self._counter.call("observe", batch, self._counts, self._largest, self._negatives)

    def non_finite(self) -> np.ndarray:
        """How many values of the input and of each step are NaN or infinite: `(1 + steps,)`."""
        (counts,) = self._counter.arrays([self._counts[:, FINITE:]])
        return counts.sum(axis=1)  # type: ignore[no-any-return]

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts int64 `(1 + steps, BINS)`, largest magnitudes float32 and negative values int64 `(1 + steps,)`."""
        counts, largest, negatives = self._counter.arrays([self._counts, self._largest, self._negatives])
        return counts, largest, negatives


class ChannelSums:
    """Sums of each channel that each step writes as int8, over all batches added; see `_cpu.Engine.channel_sums`.

    Args:
        channels: of all steps.
    """

    def __init__(self, engine: AnyEngine, channels: int):
        self._counter = _counter(engine)
        self._sums = self._counter.zeros((channels,), "int64")

    def add(self, batch: np.ndarray) -> None:
        self._counter.call("channel_sums", batch, self._sums)

    def array(self) -> np.ndarray:
        """int64 `(channels,)`: the output channels of step 0, of step 1, ..."""
        (sums,) = self._counter.arrays([self._sums])
        return sums


class _OnHost:
    def __init__(self, engine: NativeEngine):
        self._native = engine.native

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        return np.zeros(shape, dtype)

    def call(self, name: str, batch: np.ndarray, *totals: np.ndarray) -> None:
        getattr(self._native, name)(batch, *totals)

    def arrays(self, totals: list[np.ndarray]) -> list[np.ndarray]:
        return totals


class _OnDevice:
    def __init__(self, engine: CudaEngine):
        self._engine = engine

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._engine.zeros(shape, dtype)

    def call(self, name: str, batch: np.ndarray, *totals: Any) -> None:
        self._engine.count(name, batch, *totals)

    def arrays(self, totals: list[Any]) -> list[np.ndarray]:
        return self._engine.fetch(totals)


def _counter(engine: AnyEngine) -> _OnHost | _OnDevice:
    return _OnDevice(engine) if engine.device.type == "cuda" else _OnHost(engine)  # type: ignore[arg-type]
