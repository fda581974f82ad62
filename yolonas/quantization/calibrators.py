"""From a histogram of activations to amax, the magnitude that the largest int8 value stands for.

Quantisation is symmetric (int8: q = clamp(rint(x / scale), -127, 127), scale = amax / 127), so magnitudes are all that
counts; the one more step that int8 has for negative values is left out. Values lie evenly in a histogram's bin as far
as can be known, and so results differ from those on the values themselves by about the width of a bin, 1/128.

Compared by Wu et al. 2020, "Integer quantization for deep learning inference: principles and empirical evaluation".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from .histogram import EDGES, FINITE, Histogram

STEPS = 127  # of int8 on either side of 0

LINEAR_BINS = 2048  # of `entropy`, the number in TensorRT's description
LEVELS = 128

RANGES = 512  # that `mse` looks at
RANGES_PER_OCTAVE = 64
OCTAVE = 128  # bins of the histogram


def amax(histogram: Histogram, method: str) -> float:
    """The range of a tensor with this histogram, 0 if all of its values are 0.

    Args:
        method: one of `METHODS`.

    Raises:
        ValueError: another method, or a histogram with values that are not finite.
    """
    if method not in METHODS:
        raise ValueError(f"calibration: method must be one of {', '.join(METHODS)}, got {method!r}")
    if histogram.non_finite:
        raise ValueError(f"calibration: values must be finite, got {histogram.non_finite} that are NaN or infinite")
    return METHODS[method](histogram)


def scale_of(amax: float) -> float:
    """The step of an int8 tensor of this range, `amax / 127`, a float32; 1 where that would be 0 or subnormal."""
    scale = np.float32(amax / STEPS)
    return float(scale) if scale >= np.finfo(np.float32).tiny else 1.0


def full_range(histogram: Histogram) -> float:
    """`max |x|`, exact: nothing is clipped (Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient
    inference: a whitepaper").
    """
    return histogram.largest


def percentile(histogram: Histogram, percent: float = 99.99) -> float:
    """The smallest magnitude that at least `percent` % of all values do not exceed (McKinstry et al. 2019, "Discovering
    low-precision networks close to full-precision networks for efficient embedded inference").

    That is the value of rank `k = ceil(percent / 100 * n)` of n sorted magnitudes, zeros included (NumPy's
    "inverted_cdf"). The rank is exact, with `percent` as it is written in decimals; the value is known up to its bin,
    whose c values are taken to lie at (j + 1/2) / c of its width, j < c. If it is 0 though not all values are, the
    largest one is returned instead.

    Raises:
        ValueError: percent outside of (0, 100].
    """
    if not 0 < percent <= 100:
        raise ValueError(f"calibration: percent must be above 0 and at most 100, got {percent!r}")
    below = np.append(0, np.cumsum(histogram.counts[:FINITE]))
    rank = math.ceil(Fraction(str(percent)) / 100 * int(below[-1]))
    if rank <= int(below[1]):
        return histogram.largest
    at = int(np.searchsorted(below, rank)) - 1  # below[at] < rank <= below[at + 1]
    inside = (rank - int(below[at]) - 0.5) / int(below[at + 1] - below[at])
    return min(float(EDGES[at] + inside * (EDGES[at + 1] - EDGES[at])), histogram.largest)


def entropy(histogram: Histogram) -> float:
    """The range whose quantised distribution tells most about the true one (Migacz 2017, "8-bit inference with
    TensorRT", GTC).

    The magnitudes, in 2048 bins of equal width between 0 and the largest. For each range of the first i of these bins,
    i = 128..2048:

    - P: these bins, with all values beyond added to the last;
    - Q: these bins without the values beyond, in 128 levels, bin j in level floor(128 * j / i); the sum of a level is
      spread evenly over those of its bins that are not empty;
    - both made to sum to 1: KL(P, Q) = sum of P * log(P / Q), infinite where Q alone is 0.

    The result is the upper edge of bin i with the least divergence, the first of several.

    Unlike there, zeros do not count: every range represents them exactly, and after a ReLU they are so many that they
    would decide. Bins of the histogram that are wider than the linear ones (above a sixteenth of the largest value) are
    spread evenly over those that they cover, for their values are not known better.
    """
    if not histogram.counts[1:FINITE].any():
        return histogram.largest
    bins = _linear_bins(histogram)
    kept_bins = np.arange(LEVELS, LINEAR_BINS + 1)  # i
    starts = -(-kept_bins[:, None] * np.arange(LEVELS + 1) // LEVELS)  # of the levels; the last is i
    sums = np.append(0, np.cumsum(bins))
    level = np.diff(sums[starts], axis=1)
    occupied = np.diff(np.append(0, np.cumsum(bins > 0))[starts], axis=1)
    log_mean = _log(level / np.maximum(occupied, 1))

    # With p the bins of P and q those of Q before they are made to sum to 1, their sums n and `kept`:
    # KL = sum(p log p) / n - log n - sum(p log q) / n + log kept.
    last = bins[kept_bins - 1]
    total, kept = sums[-1], sums[kept_bins]
    beyond = total - kept
    p_log_p = np.append(0, np.cumsum(bins * _log(bins)))[kept_bins - 1] + (last + beyond) * _log(last + beyond)
    p_log_q = (level * log_mean).sum(axis=1) + beyond * log_mean[:, -1]
    divergence = (p_log_p - p_log_q) / total + _log(kept) - np.log(total)
    divergence[(last == 0) & (beyond > 0)] = np.inf
    return float(kept_bins[np.argmin(divergence)] / LINEAR_BINS * histogram.largest)


def mse(histogram: Histogram) -> float:
    """The range with the least mean squared error of quantisation, `E[(x - scale * q(x))^2]` (Choukroun et al. 2019,
    "Low-bit quantization of neural networks for efficient inference").

    Of 512 ranges, `largest * 2^(-k / 64)` for k = 0..511, the first with the least error. The error is that of values
    evenly spread over each bin, integrated exactly: with u = |x| / scale and n = min(rint(u), 127), the integral of
    (u - n)^2 over u is n / 12 + (u - n)^3 / 3. Values below 2^-126 do not count.
    """
    filled = np.flatnonzero(histogram.counts[OCTAVE:FINITE]) + OCTAVE
    if len(filled) == 0:
        return histogram.largest
    first, end = filled[0], filled[-1] + 1
    ranges = histogram.largest * 2.0 ** (-np.arange(RANGES) / RANGES_PER_OCTAVE)
    # To half the range a bin is what the one an octave higher is to the whole: what is integrated for one range serves
    # those 1, 2, ... octaves below it, so many octaves of bins further on.
    bins = np.arange(first, end + 1 + (RANGES // RANGES_PER_OCTAVE - 1) * OCTAVE)
    edges = np.ldexp(1 + bins % OCTAVE / OCTAVE, bins // OCTAVE - 127)
    density = histogram.counts[first:end] / np.diff(edges[: end + 1 - first])
    errors = np.empty(RANGES)
    for one in range(RANGES_PER_OCTAVE):
        of_bins = np.diff(_squared_error(edges / (ranges[one] / STEPS)))
        for octave, number in enumerate(range(one, RANGES, RANGES_PER_OCTAVE)):
            errors[number] = ranges[number] ** 3 * (density @ of_bins[octave * OCTAVE :][: end - first])
    return float(ranges[np.argmin(errors)])


METHODS: dict[str, Callable[[Histogram], float]] = {
    "max": full_range,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def _linear_bins(histogram: Histogram) -> np.ndarray:
    """How many values other than 0 lie in each of the bins between 0 and the largest: `(LINEAR_BINS,)` float64."""
    top = int(np.flatnonzero(histogram.counts[:FINITE])[-1])
    edges = np.append(EDGES[: top + 1], histogram.largest)
    sums = np.append([0, 0], np.cumsum(histogram.counts[1 : top + 1]))
    bins = np.diff(np.interp(np.linspace(0, histogram.largest, LINEAR_BINS + 1), edges, sums))
    return np.where(bins > 1e-6, bins, 0.0)  # less is rounding


def _log(values: np.ndarray) -> np.ndarray:
    """The logarithm, 0 for 0: of terms that do not count there."""
    return np.log(np.where(values > 0, values, 1.0))


def _squared_error(u: np.ndarray) -> np.ndarray:
    """The integral of the squared error from 0 to u, in steps."""
    n = np.minimum(np.rint(u), STEPS)
    rest = u - n
    return n / 12 + rest * rest * rest / 3  # NumPy's ** takes ten times as long
