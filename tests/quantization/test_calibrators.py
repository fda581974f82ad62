"""Ranges from histograms, each against the same method written out on the values themselves."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest

from yolonas.ops import reference
from yolonas.quantization.calibrators import METHODS, _linear_bins, amax, entropy, mse, percentile, scale_of
from yolonas.quantization.histogram import EDGES, FINITE, Histogram

BIN = 1 / 128  # relative width of a bin

EVEN = (np.arange(20000) + 0.5) / 20000  # quantiles: samples without noise
SHAPES = {
    "uniform": EVEN,
    "normal": np.array([NormalDist().inv_cdf(p) for p in EVEN]),
    "exponential": -np.log(1 - EVEN),
    "long tail": np.exp([NormalDist(0, 1.2).inv_cdf(p) for p in EVEN]),
    "after a relu": np.maximum([NormalDist(-0.5, 2).inv_cdf(p) for p in EVEN], 0),
    "with outliers": np.append(np.array([NormalDist().inv_cdf(p) for p in EVEN]), [40.0, -50.0, 60.0]),
    "noisy": np.random.default_rng(0).laplace(0, 3, 20000),
    "far from zero": 7 + EVEN,
}


def values_of(name: str) -> np.ndarray:
    return np.asarray(SHAPES[name], np.float32)


@pytest.fixture(params=list(SHAPES))
def values(request: pytest.FixtureRequest) -> np.ndarray:
    return values_of(request.param)


# --- each method ---


def test_max(values: np.ndarray) -> None:
    assert amax(Histogram.from_values(values), "max") == np.abs(values).max()


@pytest.mark.parametrize("count", [1, 2, 3, 100, 9999, 10000, 20000])
@pytest.mark.parametrize("percent", ["0.001", "50", "99", "99.9", "99.99", "99.999", "100"])
def test_percentile(values: np.ndarray, count: int, percent: str) -> None:
    values = np.random.default_rng(1).permutation(values)[:count]
    rank = math.ceil(Fraction(percent) * len(values) / 100)
    expected = float(np.sort(np.abs(values))[rank - 1]) or float(np.abs(values).max())
    assert percentile(Histogram.from_values(values), float(percent)) == pytest.approx(expected, rel=BIN)


def test_percentile_by_default(values: np.ndarray) -> None:
    histogram = Histogram.from_values(values)
    assert amax(histogram, "percentile") == percentile(histogram, 99.99)


def test_percentile_of_almost_only_zeros() -> None:
    values = np.zeros(100000, np.float32)
    values[:3] = 2, 3, -4
    assert percentile(Histogram.from_values(values)) == 4


def entropy_of_bins(bins: np.ndarray) -> list[float]:
    """The divergences of the ranges of 128 to 2048 of these bins, as TensorRT's slides have them."""
    divergences = []
    for i in range(128, 2049):
        p = bins[:i].astype(np.float64)
        p[-1] += bins[i:].sum()
        level = np.arange(i) * 128 // i
        sums = np.bincount(level, bins[:i], 128)
        occupied = np.bincount(level, bins[:i] > 0, 128)
        q = np.where(bins[:i] > 0, sums[level] / np.maximum(occupied[level], 1), 0)
        if (q[p > 0] == 0).any():
            divergences.append(math.inf)
        else:
            p, q = p[p > 0], q[p > 0]
            divergences.append(float(np.sum(p / p.sum() * np.log(p / p.sum() / (q / q.sum())))))
    return divergences


DENSE = np.arange(0.5, 2e6) / 2e6
DENSE_SHAPES = {
    "uniform": (DENSE, BIN),
    "exponential": (-np.log(1 - DENSE), BIN),
    "lighter tail": ((-np.log(1 - DENSE)) ** (1 / 1.5), BIN),
    "long tail": ((1 - DENSE) ** (-1 / 4) - 1, BIN),
    "shorter tail": ((1 - DENSE) ** (-1 / 8) - 1, BIN),
    # Divergences of neighbours differ by less than the noise.
    "noisy normal": (np.random.default_rng(1).normal(0, 1, 2_000_000), 0.05),
    "noisy long tail": ((1 - np.random.default_rng(3).random(2_000_000)) ** (-1 / 6) - 1, 0.05),
}


@pytest.mark.parametrize("name", list(DENSE_SHAPES))
def test_entropy_of_many_values(name: str) -> None:
    """So many that bins of equal width on the values are not mostly empty where they are narrower than ours."""
    values = DENSE_SHAPES[name][0].astype(np.float32)
    magnitudes = np.abs(values[values != 0]).astype(np.float64)
    bins, edges = np.histogram(magnitudes, 2048, (0, magnitudes.max()))
    expected = edges[128 + int(np.argmin(entropy_of_bins(bins)))]
    assert entropy(Histogram.from_values(values)) == pytest.approx(expected, rel=DENSE_SHAPES[name][1])


def test_entropy_of_the_linear_bins(values: np.ndarray) -> None:
    histogram = Histogram.from_values(values)
    bins = _linear_bins(histogram)
    kept = 128 + int(np.argmin(entropy_of_bins(bins)))
    assert entropy(histogram) == pytest.approx(kept / 2048 * histogram.largest, rel=1e-12)


def test_linear_bins_hold_all_values(values: np.ndarray) -> None:
    """And each value within the width of its bin."""
    histogram = Histogram.from_values(values)
    bins = _linear_bins(histogram)
    magnitudes = np.abs(values[values != 0]).astype(np.float64)
    assert bins.sum() == pytest.approx(len(magnitudes), rel=1e-9)
    edges = np.linspace(0, histogram.largest, 2049)
    below = np.append(0, np.cumsum(bins))
    for edge, found in zip(edges, below, strict=True):
        assert found >= np.count_nonzero(magnitudes < edge * (1 - BIN)) - 1e-2
        assert found <= np.count_nonzero(magnitudes < edge * (1 + BIN)) + 1e-2


def squared_error(values: np.ndarray, range_: float) -> float:
    x = values.astype(np.float64)
    return float(np.mean((reference.fake_quantize(x, range_ / 127, quant_min=-127) - x) ** 2))


def test_mse(values: np.ndarray) -> None:
    found = mse(Histogram.from_values(values))
    ranges = float(np.abs(values).max()) * 2.0 ** (-np.arange(512) / 64)
    errors = [squared_error(values, one) for one in ranges]
    assert found in ranges
    assert found == pytest.approx(ranges[np.argmin(errors)], rel=2 ** (1 / 64) - 1 + 1e-6)  # the neighbour at most
    assert squared_error(values, found) <= 1.001 * min(errors)


@pytest.mark.parametrize("power", [-90, -1, 0, 3, 100])
def test_mse_of_each_range_alone(values: np.ndarray, power: int) -> None:
    """Without what ranges an octave apart have in common."""
    histogram = Histogram.from_values(values * np.float32(2.0**power))
    low, high = EDGES[:-1], EDGES[1:]
    ranges = histogram.largest * 2.0 ** (-np.arange(512) / 64)
    errors = []
    for scale in ranges / 127:
        ends = []
        for edge in (low, high):
            n = np.minimum(np.rint(edge / scale), 127)
            ends.append(n / 12 + (edge / scale - n) ** 3 / 3)
        errors.append(scale**3 * np.sum(histogram.counts[:FINITE] / (high - low) * (ends[1] - ends[0]), where=low > 0))
    assert mse(histogram) == ranges[np.argmin(errors)]


# --- all of them ---


@pytest.mark.parametrize("method", list(METHODS))
def test_ranges_lie_within_the_values_and_grow_with_them(method: str, values: np.ndarray) -> None:
    found = amax(Histogram.from_values(values), method)
    assert 0 < found <= np.abs(values).max()
    for power in (-100, -3, 1, 100):
        factor = np.float32(2.0**power)
        assert amax(Histogram.from_values(values * factor), method) == pytest.approx(found * factor, rel=1e-12)
    assert amax(Histogram.from_values(-values), method) == found


@pytest.mark.parametrize("method", list(METHODS))
def test_few_values(method: str) -> None:
    assert amax(Histogram.from_values([]), method) == 0
    assert amax(Histogram.from_values([0.0, -0.0, 0.0]), method) == 0
    for one in (1.0, -1.0, 3.0, 1.0078124, 1e-30, 3.4e38, 1e-45):
        expected = float(np.float32(abs(one)))
        assert amax(Histogram.from_values([one]), method) == pytest.approx(expected, rel=BIN)
        assert amax(Histogram.from_values([one] * 1000), method) == pytest.approx(expected, rel=BIN)
        assert amax(Histogram.from_values([0.0, one, one]), method) == pytest.approx(expected, rel=BIN)


@pytest.mark.parametrize("method", list(METHODS))
def test_values_that_are_not_finite_are_refused(method: str) -> None:
    with pytest.raises(ValueError, match="values must be finite, got 2 that are NaN or infinite"):
        amax(Histogram.from_values([1.0, np.nan, -np.inf]), method)


@pytest.mark.parametrize("method", ["Max", "kl", "", None, 1])
def test_other_methods_are_refused(method: object) -> None:
    with pytest.raises(ValueError, match="method must be one of max, percentile, entropy, mse, got "):
        amax(Histogram.from_values([1.0]), method)  # type: ignore[arg-type]


@pytest.mark.parametrize("percent", [0, -1, 100.001, math.nan, math.inf])
def test_percent_outside_of_its_range(percent: float) -> None:
    with pytest.raises(ValueError, match="percent must be above 0 and at most 100, got"):
        percentile(Histogram.from_values([1.0]), percent)


def test_outliers_are_clipped_but_by_max() -> None:
    histogram = Histogram.from_values(values_of("with outliers"))
    assert amax(histogram, "max") == 60
    for method in ("percentile", "entropy", "mse"):
        assert 2 < amax(histogram, method) < 60, method


def test_scale() -> None:
    assert scale_of(127.0) == 1
    assert scale_of(1.0) == np.float32(1 / 127)
    assert scale_of(3.4028235e38) == np.float32(3.4028235e38 / 127)
    for safe in (0.0, 1e-45, 1.4e-36):
        assert scale_of(safe) == 1
    assert scale_of(1.5e-36) == np.float32(1.5e-36 / 127)
