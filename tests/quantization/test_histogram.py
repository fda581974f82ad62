"""Bins of magnitudes, and the histogram of an array."""

from __future__ import annotations

import numpy as np
import pytest

from yolonas.quantization.histogram import BINS, EDGES, FINITE, Histogram

TINY, MOST = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max


def awkward_values() -> np.ndarray:
    """Of all exponents, on both sides of all edges, and those that are no numbers."""
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 1 << 32, 5000, np.uint64).astype(np.uint32).view(np.float32)
    edges = EDGES[rng.integers(0, FINITE, 500)].astype(np.float32)
    around = [np.nextafter(edges, np.float32(side)) for side in (0, np.inf)]
    named = np.array([0.0, -0.0, 1.0, -1.0, TINY, -TINY, MOST, -MOST, np.inf, -np.inf, np.nan, -np.nan], np.float32)
    return np.concatenate([anything, edges, -edges, *around, named])


def test_bins_are_narrow_and_have_no_gaps() -> None:
    assert (len(EDGES), EDGES[0], EDGES[1], EDGES[-1]) == (FINITE + 1, 0, 2.0**-133, 2.0**128)
    width = np.diff(EDGES)
    assert (width > 0).all()
    normal = EDGES[:-1] >= 2.0**-126
    assert (width[normal] <= EDGES[:-1][normal] / 128).all()


def test_every_value_lies_in_its_bin() -> None:
    values = awkward_values()
    for one in values:
        histogram = Histogram.from_values(one)
        (at,) = np.flatnonzero(histogram.counts)
        assert histogram.counts[at] == 1
        assert histogram.non_finite == (not np.isfinite(one))
        assert histogram.negatives == (one < 0)
        if np.isfinite(one):
            assert EDGES[at] <= abs(float(one)) < EDGES[at + 1]
            assert histogram.largest == abs(float(one))
        else:
            assert FINITE <= at < BINS
            assert histogram.largest == 0


def test_of_an_array() -> None:
    values = awkward_values().reshape(-1, 2)
    histogram = Histogram.from_values(values)
    finite = np.abs(values[np.isfinite(values)]).astype(np.float64)
    assert histogram.counts.dtype == np.int64
    assert histogram.counts.shape == (BINS,)
    assert np.array_equal(histogram.counts[:FINITE], np.histogram(finite, EDGES)[0])
    assert histogram.counts.sum() == values.size
    assert histogram.non_finite == np.count_nonzero(~np.isfinite(values))
    assert histogram.negatives == np.count_nonzero(values < 0)
    assert histogram.largest == finite.max() == MOST


@pytest.mark.parametrize("parts", [[0, 3], [1, 1], [100, 1000, 4000]], ids=str)
def test_parts_add_up_to_the_whole(parts: list[int]) -> None:
    values = awkward_values()
    whole = Histogram.from_values(values)
    pieces = [Histogram.from_values(piece) for piece in np.split(values, parts)]
    for order in (pieces, pieces[::-1]):
        merged = Histogram.from_values([])
        for piece in order:
            merged = merged.merge(piece)
        assert np.array_equal(merged.counts, whole.counts)
        assert (merged.largest, merged.negatives) == (whole.largest, whole.negatives)


def test_of_nothing() -> None:
    empty = Histogram.from_values([])
    assert (empty.counts.sum(), empty.largest, empty.negatives, empty.non_finite) == (0, 0, 0, 0)
