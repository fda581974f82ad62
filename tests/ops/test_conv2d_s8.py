"""The convolution of int8: the same bits as plain NumPy on every instruction set, cut in any way, at guard pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import CONVOLUTIONS, bits, guarded, guarded_empty, native, using_threads

from yolonas.ops import reference

# x (N, H, W, C), weight (K, kh, kw), stride, padding. Tiles are 3, 5 and 12 columns, blocks 16 and 32 channels, and
# input channels go in fours.
CASES = (
    *CONVOLUTIONS,
    ((1, 3, 25, 4), (32, 1, 1), 1, 0),
    ((1, 2, 9, 6), (65, 1, 1), 2, 0),
    ((1, 5, 13, 8), (48, 3, 3), 2, 1),
    ((2, 7, 26, 20), (40, 5, 5), 2, 2),
    ((1, 4, 5, 3), (15, 7, 7), 1, 6),  # a tap that no column of a tile reaches
    ((1, 1, 3, 97), (96, 1, 1), 1, 0),
    ((1, 3, 3, 130), (33, 3, 3), 1, 1),
)
Case = tuple[tuple[int, int, int, int], tuple[int, int, int], int, int]


def random_arguments(case: Case, *, unsigned: bool = False, seed: int = 0) -> tuple[np.ndarray, ...]:
    """x, weight, multiplier, offset, residual; most int8 results lie within the range, some beyond both ends."""
    rng = np.random.default_rng(seed)
    (batch, height, width, in_c), (out_c, kernel_h, kernel_w), stride, padding = case
    x = rng.integers(0 if unsigned else -128, 128, (batch, height, width, in_c), np.int8)
    weight = rng.integers(-127, 128, (out_c, kernel_h, kernel_w, in_c), np.int8)
    spread = 70 / (73 * 73 * np.sqrt(kernel_h * kernel_w * in_c))
    multiplier = (spread * rng.uniform(0.5, 1.5, out_c)).astype(np.float32)
    offset = rng.normal(0, 20, out_c).astype(np.float32)
    out_h, out_w = (height + 2 * padding - kernel_h) // stride + 1, (width + 2 * padding - kernel_w) // stride + 1
    return x, weight, multiplier, offset, rng.integers(-128, 128, (batch, out_h, out_w, out_c), np.int8)


def convolve(
    x: Any, weight: Any, multiplier: Any, offset: Any, residual: Any = None, out: Any = None, **settings: Any
) -> np.ndarray:
    settings = {"stride": 1, "padding": 0, "relu": True, "residual_multiplier": 1.0, "unsigned_input": False} | settings
    dtype = settings.pop("dtype", np.int8)
    if out is None:
        sides = [(x.shape[i] + 2 * settings["padding"] - weight.shape[i]) // settings["stride"] + 1 for i in (1, 2)]
        out = np.full((x.shape[0], *sides, weight.shape[0]), 99, dtype)
    native().conv2d_s8(x, weight, multiplier, offset, residual, out, **settings)
    return out


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.array_equal(bits(found), bits(expected))


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_kernels_strides_padding(isa: str, case: Case, unsigned: bool) -> None:
    *arguments, residual = random_arguments(case, unsigned=unsigned)
    for relu in (False, True):
        for added, factor in ((None, 1.0), (residual, 0.37), (residual, -1.5)):
            for dtype in (np.int8, np.float32):
                settings: dict[str, Any] = {"stride": case[2], "padding": case[3], "relu": relu}
                settings |= {"residual_multiplier": factor, "residual": added, "dtype": dtype}
                expected = reference.conv2d_s8(*arguments, **settings)
                assert_same(convolve(*arguments, **settings, unsigned_input=unsigned), expected)


def test_the_plain_twin_is_a_convolution() -> None:
    x, weight, _, offset, _ = random_arguments(CASES[4])
    ones = np.ones_like(offset)
    sums = reference.conv2d_s8(x, weight, ones, 0 * ones, padding=1, relu=False, dtype=np.float32)
    assert np.array_equal(sums, reference.conv2d_bias_act(x, weight, padding=1, relu=False))


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_width_near_the_tile(isa: str, stride: int, unsigned: bool) -> None:
    for width in range(1, 40):
        *arguments, _ = random_arguments(((1, 3, width, 5), (17, 3, 3), stride, 1), unsigned=unsigned, seed=width)
        settings: dict[str, Any] = {"stride": stride, "padding": 1, "relu": False}
        expected = reference.conv2d_s8(*arguments, **settings)
        assert_same(convolve(*arguments, **settings, unsigned_input=unsigned), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_every_number_of_channels(isa: str, dtype: Any) -> None:
    for in_c, out_c in [(8, channels) for channels in range(1, 67)] + [(channels, 9) for channels in range(1, 22)]:
        *arguments, residual = random_arguments(((1, 2, 7, in_c), (out_c, 3, 3), 1, 1))
        settings: dict[str, Any] = {"padding": 1, "residual": residual, "residual_multiplier": 0.5, "dtype": dtype}
        assert_same(convolve(*arguments, **settings), reference.conv2d_s8(*arguments, **settings))


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        ((1, 3, 3001, 3), (17, 3, 3), 1, 1),
        ((1, 2, 25, 1001), (33, 3, 3), 2, 1),
        ((1, 1, 13, 32769), (5, 1, 1), 1, 0),
        ((1, 92, 93, 1), (3, 91, 91), 1, 1),
        ((1, 5, 40, 300), (3, 2, 2), 30, 1),
        ((1, 1, 2, 9), (4, 3, 3), 1, 40),
    ],
    ids=str,
)
def test_rows_too_long_for_one_piece(isa: str, case: Case, unsigned: bool) -> None:
    """Copies of inputs are made of 32 KiB at a time, of more only where one output reads more."""
    *arguments, _ = random_arguments(case, unsigned=unsigned)
    settings: dict[str, Any] = {"stride": case[2], "padding": case[3]}
    expected = reference.conv2d_s8(*arguments, **settings)
    assert_same(convolve(*arguments, **settings, unsigned_input=unsigned), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 64, 1536])
def test_the_largest_sums_are_exact(isa: str, depth: int) -> None:
    """No pair of products may saturate on the way; sums beyond 2^24 round once, to the nearest even float."""
    for value in (-128, 127):
        for factor in (-127, 127):
            x, weight = np.full((1, 4, 6, depth), value, np.int8), np.full((33, 3, 3, depth), factor, np.int8)
            weight[::2, :, :, ::3] *= -1
            weight[1::4, 1, 1, -1] = 1
            ones, zeros = np.ones(33, np.float32), np.zeros(33, np.float32)
            settings: dict[str, Any] = {"padding": 1, "relu": False, "dtype": np.float32}
            expected = reference.conv2d_s8(x, weight, ones, zeros, **settings)
            assert_same(convolve(x, weight, ones, zeros, **settings), expected)
            if value > 0:
                assert_same(convolve(x, weight, ones, zeros, **settings, unsigned_input=True), expected)
    assert (abs(expected).max() > 2**24) == (depth == 1536)


def test_all_pairs_of_values(isa: str) -> None:
    """Every input value by every weight, next to the worst neighbours."""
    values, factors = np.arange(-128, 128).astype(np.int8), np.arange(-127, 128).astype(np.int8)
    ones, zeros = np.ones(255, np.float32), np.zeros(255, np.float32)
    for neighbour in (-128, 127):
        for place in range(4):
            x, weight = np.full((1, 1, 256, 4), neighbour, np.int8), np.full((255, 1, 1, 4), -127, np.int8)
            x[..., place], weight[..., place] = values, factors[:, None, None]
            settings: dict[str, Any] = {"relu": False, "dtype": np.float32}
            expected = reference.conv2d_s8(x, weight, ones, zeros, **settings)
            assert_same(convolve(x, weight, ones, zeros, **settings), expected)


def test_ties_go_to_even_and_ends_are_kept(isa: str) -> None:
    x = np.arange(-128, 128).astype(np.int8).reshape(1, 4, 64, 1)
    weight = np.array([1, 1, 3, -127], np.int8).reshape(4, 1, 1, 1)
    multiplier, offset = np.float32([0.5, 1, 0.5, 1e30]), np.float32([0, 0.5, -1, 0])
    found = convolve(x, weight, multiplier, offset, relu=False)
    assert_same(found, reference.conv2d_s8(x, weight, multiplier, offset, relu=False))
    halves = dict(zip(x.ravel().tolist(), found[..., 0].ravel().tolist(), strict=True))
    assert [halves[n] for n in (-5, -3, -1, 1, 3, 5, 127)] == [-2, -2, 0, 0, 2, 2, 64]
    assert found[0, 3, 63].tolist() == [64, 127, 127, -128]
    assert found[0, 0, 0].tolist() == [-64, -128, -128, 127]


def test_products_and_sums_round_by_themselves(isa: str) -> None:
    """Fused into one rounding, neither difference would be zero."""
    ends = np.full((1, 1, 1, 1), 127, np.int8)
    multiplier = np.float32([1.0000001])
    offset = -(np.float32(127 * 127) * multiplier)
    assert convolve(ends, ends, multiplier, offset, relu=False, dtype=np.float32).item() == 0.0
    factor = np.float32([0.1])
    residual, offset = np.full((1, 1, 1, 1), 101, np.int8), -(np.float32(101) * factor)
    settings: dict[str, Any] = {"residual": residual, "residual_multiplier": factor.item(), "relu": False}
    assert convolve(ends, ends, 0 * factor, offset, dtype=np.float32, **settings).item() == 0.0


def test_activation_comes_before_the_residual(isa: str) -> None:
    x, weight, one = np.full((1, 1, 1, 1), -2, np.int8), np.ones((1, 1, 1, 1), np.int8), np.float32([1])
    residual = np.full((1, 1, 1, 1), -4, np.int8)
    assert convolve(x, weight, one, 0 * one, residual).item() == -4
    assert convolve(x, weight, one, 0 * one, residual, relu=False).item() == -6
    assert convolve(x, weight, one, 0 * one, residual, residual_multiplier=-2).item() == 8


@pytest.mark.parametrize("case", [((3, 40, 33, 24), (70, 3, 3), 1, 1), ((2, 5, 4, 48), (200, 3, 3), 2, 1)], ids=str)
def test_any_number_of_threads(isa: str, case: Case) -> None:
    *arguments, residual = random_arguments(case)
    settings: dict[str, Any] = {"stride": case[2], "padding": case[3], "residual": residual}
    expected = reference.conv2d_s8(*arguments, **settings)
    for count in (1, 2, 5):
        with using_threads(count):
            assert_same(convolve(*arguments, **settings), expected)


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("case", [case for case in CASES if 0 not in case[0]], ids=str)
def test_nothing_beyond_the_arrays_is_touched(isa: str, case: Case, dtype: Any, front: bool) -> None:
    arguments = [guarded(value, front=front) for value in random_arguments(case)]
    out = guarded_empty(arguments[-1].shape, dtype, front=front)
    settings: dict[str, Any] = {"stride": case[2], "padding": case[3]}
    *others, residual = arguments
    expected = reference.conv2d_s8(*others, **settings, residual=residual, dtype=dtype)
    assert_same(convolve(*others, residual, out, **settings), expected)


# --- single kernels, on channel ranges of wider buffers ---


def within(array: np.ndarray, wider: int, *, front: bool) -> tuple[np.ndarray, np.ndarray]:
    """A buffer with `wider` more channels that borders on a guard page, and `array` in the channels at that border."""
    height, width, channels = array.shape
    buffer = guarded_empty((height, width, channels + wider), array.dtype, front=front)
    view = buffer[:, :, :channels] if front else buffer[:, :, wider:]
    view[...] = array
    return buffer, view


def run(kernel: str, case: Case, arguments: Any, residual: Any, out: np.ndarray, **settings: Any) -> None:
    settings = {"rows": 99, "blocks": 9, "unsigned_input": False} | settings
    settings |= {"stride": case[2], "padding": case[3], "relu": True, "residual_multiplier": 0.625}
    native()._run_conv2d_s8(kernel, *arguments, residual, out, **settings)


def kernels(case: Case) -> list[str]:
    pointwise = case[1][1:] == (1, 1) and case[2:] == (1, 0)
    return ["direct", "pointwise"] if pointwise else ["direct"]


SINGLE = [case for case in CASES if case[0][0] == 1 and 0 not in case[0]]


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_channel_ranges_of_wider_buffers(isa: str, case: Case, dtype: Any, front: bool) -> None:
    x, *others, residual = random_arguments(case, unsigned=front)
    settings: dict[str, Any] = {"stride": case[2], "padding": case[3], "residual_multiplier": 0.625}
    expected = reference.conv2d_s8(x, *others, residual=residual, dtype=dtype, **settings)[0]
    for kernel in kernels(case):
        x_buffer, x_view = within(x[0], 5, front=front)
        out_buffer, out = within(np.full(expected.shape, 55, dtype), 3, front=front)
        before = x_buffer.copy(), out_buffer.copy()
        added = within(residual[0], 11, front=front)[1]
        run(kernel, case, (x_view, *others), added, out, unsigned_input=front)
        assert_same(np.ascontiguousarray(out), expected)
        out[...] = 55
        assert np.array_equal(bits(out_buffer), bits(before[1])), "channels of others were written"
        assert np.array_equal(bits(x_buffer), bits(before[0]))
        if dtype == np.int8:
            out[...] = residual[0]
            run(kernel, case, (x_view, *others), out, out)  # the residual in place
            assert_same(np.ascontiguousarray(out), expected)


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_cuts_do_not_change_a_bit(isa: str, case: Case) -> None:
    x, *others, residual = random_arguments(case)
    settings: dict[str, Any] = {"stride": case[2], "padding": case[3], "residual_multiplier": 0.625}
    expected = reference.conv2d_s8(x, *others, residual=residual, **settings)[0]
    for kernel in kernels(case):
        for rows, blocks in ((1, 1), (2, 9), (3, 2), (13, 1), (99, 1)):
            out = np.full(expected.shape, 99, np.int8)
            run(kernel, case, (x[0], *others), residual[0], out, rows=rows, blocks=blocks)
            assert_same(out, expected)


# --- arguments that do not fit ---


def test_residual_in_place_is_allowed_and_other_overlap_refused(isa: str) -> None:
    *arguments, residual = random_arguments(((1, 6, 9, 5), (18, 1, 1), 1, 0))
    expected = convolve(*arguments, residual)
    out = residual.copy()
    assert_same(convolve(*arguments, out, out), expected)
    memory = np.zeros(1 + 4 * residual.size, np.int8)
    shifted, start = memory[1 : 1 + residual.size].reshape(residual.shape), memory[: residual.size]
    with pytest.raises(ValueError, match="conv2d_s8: out must be residual itself or not overlap it"):
        convolve(*arguments, shifted, start.reshape(residual.shape))
    floats = memory[: 4 * residual.size].view(np.float32).reshape(residual.shape)
    with pytest.raises(ValueError, match="conv2d_s8: out must be residual itself or not overlap it"):
        convolve(*arguments, start.reshape(residual.shape), floats)
    x, weight, *_ = random_arguments(((1, 6, 9, 18), (18, 1, 1), 1, 0))
    with pytest.raises(ValueError, match="conv2d_s8: out must not overlap x"):
        convolve(x, weight, *arguments[2:], None, x)


def test_wrong_arguments_are_named() -> None:
    x, weight, multiplier, offset, residual = random_arguments(((1, 4, 5, 3), (6, 3, 3), 1, 1))

    def refused(error: type[Exception], text: str, **changes: Any) -> None:
        given = {"x": x, "weight": weight, "multiplier": multiplier, "offset": offset, "padding": 1, **changes}
        with pytest.raises(error, match=text):
            convolve(**given)

    refused(TypeError, "conv2d_s8: x must be int8, got uint8", x=x.view(np.uint8))
    refused(TypeError, "conv2d_s8: weight must be int8, got float32", weight=weight.astype(np.float32))
    refused(TypeError, "conv2d_s8: multiplier must be float32, got float64", multiplier=multiplier.astype(np.float64))
    refused(TypeError, "conv2d_s8: residual must be int8, got float32", residual=residual.astype(np.float32))
    refused(TypeError, "conv2d_s8: out must be int8 or float32, got int32", out=np.zeros(residual.shape, np.int32))
    refused(ValueError, r"conv2d_s8: weight must have shape \(K, kh, kw, C\)", weight=weight[..., :2].copy())
    refused(ValueError, r"conv2d_s8: multiplier must have shape \(K,\) = \(6\)", multiplier=multiplier[:5].copy())
    refused(ValueError, r"conv2d_s8: offset must have shape \(K,\) = \(6\)", offset=np.zeros(7, np.float32))
    refused(ValueError, r"conv2d_s8: residual must have shape \(N, H', W', K\)", residual=residual[:, :3].copy())
    refused(ValueError, "conv2d_s8: x of shape .* must be C-contiguous", x=x.transpose(0, 2, 1, 3))
    refused(ValueError, r"conv2d_s8: stride must lie in 1\.\.1024, got 0", stride=0, out=residual.copy())
    refused(ValueError, r"conv2d_s8: padding must lie in 0\.\.1023, got -1", padding=-1, out=residual.copy())
    refused(ValueError, "conv2d_s8: residual_multiplier must be finite, got inf", residual_multiplier=np.inf)
    not_finite = np.where(np.arange(6) == 4, np.float32(np.nan), np.float32(1))
    refused(ValueError, "conv2d_s8: multiplier must be finite, got nan for channel 4", multiplier=not_finite)
    refused(ValueError, "conv2d_s8: offset must be finite, got nan for channel 4", offset=not_finite)
    refused(ValueError, r"conv2d_s8: weight must lie within -127\.\.127, got -128", weight=np.full_like(weight, -128))
    low = np.full_like(x, -3)
    refused(ValueError, "conv2d_s8: x must not be negative with unsigned_input, got -3", x=low, unsigned_input=True)
    deep = np.zeros((1, 1, 1, 65537), np.int8)
    refused(ValueError, "conv2d_s8: kh . kw . C must be at most 65536, got 65537", x=deep, weight=deep, padding=0,
            multiplier=multiplier[:1], offset=offset[:1])  # fmt: skip
