"""Pooling, quantising and dequantising of int8: the same bits as NumPy, cut in any way, at guard pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import bits, guarded_empty, native

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 130)
SIZES = ((1, 1), (1, 7), (2, 3), (4, 4), (5, 1), (9, 5), (20, 20), (3, 17))
SPECIAL = np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, 2.0**31, -(2.0**31), 2.0**33, 1e-42, -1e-42, 0.0, -0.0])


def within(array: np.ndarray, wider: int, *, front: bool) -> tuple[np.ndarray, np.ndarray]:
    """A buffer with `wider` more channels that borders on a guard page, and `array` in the channels at that border."""
    height, width, channels = array.shape
    buffer = guarded_empty((height, width, channels + wider), array.dtype, front=front)
    view = buffer[:, :, :channels] if front else buffer[:, :, wider:]
    view[...] = array
    return buffer, view


def check(run: Any, x: np.ndarray, expected: np.ndarray, *, front: bool, wider: tuple[int, int]) -> None:
    """Calls run(x, out) on channel ranges of wider buffers and compares all bytes of both."""
    x_buffer, x_view = within(x, wider[0], front=front)
    out_buffer, out = within(np.zeros_like(expected), wider[1], front=front)
    before = bits(x_buffer).copy(), bits(out_buffer).copy()
    run(x_view, out)
    assert np.array_equal(bits(out), bits(expected))
    out[...] = 0
    assert np.array_equal(bits(out_buffer), before[1]), "channels of others were written"
    assert np.array_equal(bits(x_buffer), before[0])


def pooled(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)), constant_values=-128)
    return np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (0, 1)).max((3, 4))


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_max_pool(isa: str, size: tuple[int, int], front: bool) -> None:
    for channels in CHANNELS:
        # Mostly low: with the maximum of 25 of all values a wrong window would go unnoticed.
        x = (np.random.default_rng(channels).exponential(9, (*size, channels)) - 128).astype(np.int8)
        for rows, wider in ((1, (3, 2)), (3, (0, 0)), (99, (64, 5))):
            check(lambda a, b: native()._run_max_pool5_s8(a, b, rows=rows), x, pooled(x), front=front, wider=wider)  # noqa: B023


def some_values(shape: tuple[int, ...], inv_scale: float) -> np.ndarray:
    """Values inside and outside the range, ties where inv_scale is a power of two, and special ones."""
    rng = np.random.default_rng(shape[-1])
    x = rng.normal(0, 80 / inv_scale, shape)
    ties = rng.random(shape) < 0.3
    x[ties] = ((rng.integers(-140, 140, shape) + 0.5) / inv_scale)[ties]
    x = x.astype(np.float32)
    special = rng.random(shape) < 0.2
    x[special] = rng.choice(SPECIAL, shape)[special]
    return x


def quantized(x: np.ndarray, inv_scale: float, channels: int) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = x * np.float32(inv_scale)
    whole = np.clip(np.rint(np.where(np.isnan(scaled), np.float32(-128), scaled)), -128, 127).astype(np.int8)
    return np.pad(whole, ((0, 0), (0, 0), (0, channels - x.shape[2])))


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("inv_scale", [1.0, 16.0, 3.3, 1e30])
def test_quantize(isa: str, inv_scale: float, front: bool) -> None:
    for channels in CHANNELS:
        x = some_values((3, 17, channels), inv_scale)
        for more in (0, 1, 5):
            expected = quantized(x, inv_scale, channels + more)
            for pixels, wider in ((1, (0, 0)), (5, (2, 3)), (23, (0, 0)), (999, (0, 7)), (999, (0, 0))):
                check(lambda a, b: native()._run_quantize_s8(a, b, inv_scale=inv_scale, pixels=pixels),  # noqa: B023
                      x, expected, front=front, wider=wider)  # fmt: skip


@pytest.mark.parametrize("front", [False, True])
def test_three_channels_become_four(isa: str, front: bool) -> None:
    for width in range(1, 70):
        x = some_values((1, width, 3), 8.0)
        for pixels in (width, 19):
            check(lambda a, b: native()._run_quantize_s8(a, b, inv_scale=8.0, pixels=pixels),  # noqa: B023
                  x, quantized(x, 8.0, 4), front=front, wider=(0, 0))  # fmt: skip


def test_every_tie_goes_to_even(isa: str) -> None:
    ties = (np.arange(-131, 131) + 0.5).astype(np.float32)
    steps = np.concatenate([np.nextafter(ties, -np.inf), ties, np.nextafter(ties, np.inf)]).astype(np.float32)
    x = np.concatenate([steps, SPECIAL])[None, :, None]
    out = np.full(x.shape, 99, np.int8)
    native()._run_quantize_s8(x, out, inv_scale=1.0, pixels=9999)
    assert np.array_equal(out, quantized(x, 1.0, 1))
    assert out.ravel()[-12:].tolist() == [-128, 127, -128, 127, -128, 127, -128, 127, 0, 0, 0, 0]


@pytest.mark.parametrize("front", [False, True])
def test_dequantize(isa: str, front: bool) -> None:
    for channels in CHANNELS:
        x = np.random.default_rng(channels).integers(-128, 128, (3, 17, channels), np.int8)
        for scale in (0.1, 1e-40, 3e38):
            with np.errstate(over="ignore"):
                expected = x.astype(np.float32) * np.float32(scale)
            for pixels, wider in ((1, (0, 0)), (5, (2, 3)), (999, (0, 7)), (999, (0, 0))):
                check(lambda a, b: native()._run_dequantize_s8(a, b, scale=scale, pixels=pixels),  # noqa: B023
                      x, expected, front=front, wider=wider)  # fmt: skip


def test_there_and_back(isa: str) -> None:
    x = np.arange(-128, 128).astype(np.int8).reshape(2, 16, 8)
    real, back = np.empty(x.shape, np.float32), np.empty_like(x)
    native()._run_dequantize_s8(x, real, scale=0.037, pixels=3)
    native()._run_quantize_s8(real, back, inv_scale=float(np.float32(1 / np.float64(np.float32(0.037)))), pixels=7)
    assert np.array_equal(back, x)
