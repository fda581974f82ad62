"""Histograms of magnitudes, exact in one pass over values whose range is not known before.

A bin has the magnitudes whose float32 begins with the same bits: those of the exponent and seven of the mantissa, so
it is at most 1/128 of its lower edge wide. Counts are integers: the histograms of parts add up to that of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 1 << 15
FINITE = 0x7F80  # bins from here on hold infinity and NaN

# Of the finite bins: bin i has the magnitudes from EDGES[i] on and below EDGES[i + 1].
EDGES = np.append((np.arange(FINITE, dtype=np.uint32) << 16).view(np.float32).astype(np.float64), 2.0**128)


@dataclass(frozen=True, eq=False)
class Histogram:
    """The magnitudes of float32 values. Bin 0 has the zeros, and what is below 2^-133."""

    counts: np.ndarray  # (BINS,) int64
    largest: float  # of the finite magnitudes, a float32; 0 if there are none
    negatives: int  # values below 0, minus infinity among them

    @classmethod
    def from_values(cls, values: Any) -> Histogram:
        """The histogram of an array, what `_cpu.Engine.observe` counts written to be obviously right."""
        values = np.asarray(values, np.float32).reshape(-1)
        magnitudes = np.abs(values)
        counts = np.bincount(magnitudes.view(np.uint32) >> 16, minlength=BINS)
        finite = magnitudes[np.isfinite(magnitudes)]
        return cls(counts, float(finite.max(initial=0)), int(np.count_nonzero(values < 0)))

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of the values of both."""
        return Histogram(self.counts + other.counts, max(self.largest, other.largest), self.negatives + other.negatives)

    @property
    def non_finite(self) -> int:
        """Values that are NaN or infinite."""
        return int(self.counts[FINITE:].sum())
