"""The convolution and pooling kernels on channel ranges of wider buffers, cut in any way, at guard pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from harness import bits, dot_tolerance, guarded, guarded_empty, native

from yolonas.ops import reference

# (H, W, C), (K, kh, kw), stride, padding: around the tiles (3, 6 and 14 columns) and the vectors (8 and 16 channels).
CASES = (
    ((1, 1, 1), (1, 1, 1), 1, 0),
    ((5, 13, 3), (48, 3, 3), 2, 1),
    ((4, 29, 5), (33, 3, 3), 1, 1),
    ((6, 15, 7), (16, 3, 3), 1, 1),
    ((7, 31, 16), (40, 3, 3), 2, 1),
    ((3, 14, 12), (17, 1, 1), 1, 0),
    ((2, 43, 33), (68, 1, 1), 1, 0),
    ((5, 4, 2), (80, 5, 5), 1, 2),
    ((3, 2, 9), (7, 3, 3), 2, 1),
    ((9, 16, 4), (31, 2, 3), 3, 2),
    ((4, 5, 3), (15, 7, 7), 1, 6),  # a tap that no column of a tile reaches
)


def output_size(case: Any) -> tuple[int, int, int]:
    (height, width, _), (channels, kernel_h, kernel_w), stride, padding = case
    return (height + 2 * padding - kernel_h) // stride + 1, (width + 2 * padding - kernel_w) // stride + 1, channels


def within(array: np.ndarray, wider: int, *, front: bool) -> tuple[np.ndarray, np.ndarray]:
    """A buffer with `wider` more channels that borders on a guard page, and `array` in the channels at that border."""
    height, width, channels = array.shape
    buffer = guarded_empty((height, width, channels + wider), np.float32, front=front)
    view = buffer[:, :, :channels] if front else buffer[:, :, wider:]
    view[...] = array
    return buffer, view


def run(
    kernel: str, case: Any, arguments: Any, residual: Any, out: np.ndarray, rows: int = 99, blocks: int = 9
) -> None:
    x, weight, bias = arguments
    settings = {"stride": case[2], "padding": case[3], "relu": True, "residual_scale": 0.625}
    native()._run_conv2d(kernel, x, weight, bias, residual, out, rows=rows, blocks=blocks, **settings)


def random_arguments(case: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, case[0]).astype(np.float32)
    weight = rng.normal(0, 1, (*case[1], case[0][2])).astype(np.float32)
    return x, weight, rng.normal(0, 1, case[1][0]).astype(np.float32)


def kernels(case: Any) -> list[str]:
    return ["direct", "pointwise"] if case[1][1:] == (1, 1) else ["direct"]


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_channel_ranges_of_wider_buffers(isa: str, case: Any, front: bool) -> None:
    x, weight, bias = random_arguments(case)
    residual = np.random.default_rng(1).normal(0, 1, output_size(case)).astype(np.float32)
    settings: dict[str, Any] = {"stride": case[2], "padding": case[3], "residual_scale": 0.625}
    expected = reference.conv2d_bias_act(x[None], weight, bias, residual=residual[None], **settings)[0]
    magnitude = reference.conv2d_bias_act(
        abs(x)[None], abs(weight), abs(bias), residual=abs(residual)[None], relu=False, **settings
    )[0]
    tolerance = dot_tolerance(magnitude, weight[0].size)
    for kernel in kernels(case):
        x_buffer, x_view = within(x, 5, front=front)
        out_buffer, out = within(np.full_like(residual, np.nan), 3, front=front)
        before = bits(x_buffer).copy(), bits(out_buffer).copy()
        run(kernel, case, (x_view, weight, bias), within(residual, 11, front=front)[1], out)
        assert (abs(out - expected) <= tolerance).all()
        alone = np.ascontiguousarray(out)
        out[...] = np.nan
        assert np.array_equal(bits(out_buffer), before[1]), "channels of others were written"
        assert np.array_equal(bits(x_buffer), before[0])
        out[...] = residual
        run(kernel, case, (x_view, weight, bias), out, out)  # the residual in place
        assert np.array_equal(bits(out), bits(alone))
        run(kernel, case, (x, weight, bias), None, out)
        dense = guarded_empty(alone.shape, np.float32, front=front)
        run(kernel, case, (guarded(x, front=front), weight, bias), None, dense)
        assert np.array_equal(bits(out), bits(dense))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cuts_do_not_change_a_bit(isa: str, case: Any) -> None:
    arguments = random_arguments(case)
    shape = output_size(case)
    residual = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
    whole = np.empty(shape, np.float32)
    run("direct", case, arguments, residual, whole)
    for kernel in kernels(case):
        for rows, blocks in ((1, 1), (2, 9), (3, 2), (13, 1), (99, 1)):
            out = np.full(shape, np.nan, np.float32)
            run(kernel, case, arguments, residual, out, rows, blocks)
            assert np.array_equal(bits(out), bits(whole)), (kernel, rows, blocks)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_width(isa: str, stride: int) -> None:
    """An output is the same whatever the width of the picture makes of its tile."""
    case: Any = ((3, 61, 4), (33, 3, 3), stride, 1)
    x, weight, bias = random_arguments(case)
    widest = np.empty(output_size(case), np.float32)
    run("direct", case, (x, weight, bias), None, widest)
    for width in range(1, 61):
        narrow: Any = ((3, width, 4), *case[1:])
        out = np.empty(output_size(narrow), np.float32)
        run("direct", narrow, (np.ascontiguousarray(x[:, :width]), weight, bias), None, out)
        inside = (width - 2) // stride + 1 if width > 1 else 0  # columns whose window ends before the right edge
        assert np.array_equal(bits(out[:, :inside]), bits(widest[:, :inside])), width


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (4, 4), (5, 1), (9, 5), (20, 20), (3, 17)], ids=str)
def test_max_pool_is_torch(isa: str, size: tuple[int, int], front: bool) -> None:
    for channels in (1, 7, 8, 9, 16, 17, 40):
        x = np.random.default_rng(channels).normal(-9, 1, (*size, channels)).astype(np.float32)
        tensor = torch.from_numpy(x).permute(2, 0, 1)[None]
        expected = torch.nn.functional.max_pool2d(tensor, 5, 1, 2)[0].permute(1, 2, 0).numpy()
        for rows in (1, 3, 99):
            _, x_view = within(x, 3, front=front)
            out_buffer, out = within(np.zeros_like(x), 2, front=front)
            before = bits(out_buffer).copy()
            native()._run_max_pool5(x_view, out, rows=rows)
            assert np.array_equal(out, expected)
            out[...] = 0
            assert np.array_equal(bits(out_buffer), before), "channels of others were written"


def test_three_pools_are_one_of_thirteen(isa: str) -> None:
    x = np.random.default_rng(0).normal(0, 1, (21, 18, 24)).astype(np.float32)
    found = x
    for width in (5, 9, 13):
        step = np.empty_like(x)
        native()._run_max_pool5(found, step, rows=4)
        found = step
        tensor = torch.from_numpy(x).permute(2, 0, 1)[None]
        expected = torch.nn.functional.max_pool2d(tensor, width, 1, width // 2)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(found, expected)
