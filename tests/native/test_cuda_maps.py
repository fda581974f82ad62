"""The CUDA kernels on feature maps against NumPy and the CPU ops, on a device and through the emulator on the CPU.

Maps are channels of wider buffers; what lies beside the channels must stay as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import harness
import numpy as np
import pytest
import torch
from emulated_cuda import FakeCudaTensor

from yolonas import _native
from yolonas.ops import _torch

BINS = 1 << 15

Array = np.ndarray


@dataclass(frozen=True)
class Channels:
    """Channels `first` to `stop` of a buffer `(N, H, W, C)`."""

    whole: Array
    first: int
    stop: int

    @property
    def array(self) -> Array:
        return self.whole[..., self.first : self.stop]


Run = Callable[..., None]  # (name of the function, its arguments as NumPy arrays, which it overwrites, its settings)


@pytest.fixture(
    params=[
        pytest.param("forward", marks=pytest.mark.slow),  # orders of the emulator's threads; compiles C++ first
        pytest.param("backward", marks=pytest.mark.slow),
        pytest.param("random:7", marks=pytest.mark.slow),
        pytest.param("device", marks=pytest.mark.cuda),
    ]
)
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    if request.param == "device":
        return device_run()
    monkeypatch.setenv("YOLONAS_EMULATOR_ORDER", request.param)
    return emulated_run(request.getfixturevalue("emulated"), front=request.param == "backward")


def device_run() -> Run:
    if _native.cuda() is None or not torch.cuda.is_available():
        pytest.skip("no CUDA device, or a build without yolonas._cuda")

    def place(array: Array, copies: list[tuple[Array, torch.Tensor]]) -> torch.Tensor:
        copies.append((array, torch.from_numpy(array).cuda()))
        return copies[-1][1]

    def call(name: str, *arguments: Any, **settings: Any) -> None:
        copies: list[tuple[Array, torch.Tensor]] = []
        placed = placed_arguments(arguments, lambda array: place(array, copies))
        getattr(_native.cuda(), name)(*placed, **settings, stream=torch.cuda.current_stream().cuda_stream)
        for array, copy in copies:
            array[...] = copy.cpu().numpy()

    return call


def emulated_run(module: ModuleType, *, front: bool) -> Run:
    """Every buffer ends, or begins (`front`), at a page that nobody may touch."""

    def place(array: Array, copies: list[tuple[Array, Array]]) -> Array:
        copies.append((array, harness.guarded(array, front=front)))
        return copies[-1][1]

    def call(name: str, *arguments: Any, **settings: Any) -> None:
        copies: list[tuple[Array, Array]] = []
        placed = placed_arguments(arguments, lambda array: place(array, copies))
        getattr(module, name)(*fakes(placed), **settings, stream=0)
        for array, copy in copies:
            array[...] = copy

    return call


def placed_arguments(arguments: Any, place: Callable[[Array], Any]) -> list[Any]:
    """Arguments that are the same buffer stay the same."""
    placed: dict[int, Any] = {}

    def one(argument: Any) -> Any:
        if isinstance(argument, list):
            return [one(item) for item in argument]
        if argument is None:
            return None
        whole = argument.whole if isinstance(argument, Channels) else argument
        if id(whole) not in placed:
            placed[id(whole)] = place(whole)
        on_device = placed[id(whole)]
        return on_device[..., argument.first : argument.stop] if isinstance(argument, Channels) else on_device

    return [one(argument) for argument in arguments]


def fakes(value: Any) -> Any:
    if isinstance(value, list):
        return [fakes(item) for item in value]
    return None if value is None else FakeCudaTensor(value)


def random(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape)
    return (values * 40).clip(-128, 127).astype(dtype) if dtype == np.int8 else values.astype(dtype)


def untouched(before: Array, channels: Channels) -> None:
    """Outside its channels a buffer is as it was."""
    after = channels.whole.copy()
    after[..., channels.first : channels.stop] = before[..., channels.first : channels.stop]
    assert np.array_equal(harness.bits(after), harness.bits(before))


def quantized(values: Array, factor: float) -> Array:
    with np.errstate(all="ignore"):
        integers = np.rint(values.astype(np.float32) * np.float32(factor))
    return np.where(np.isnan(integers), -128, integers).clip(-128, 127).astype(np.int8)


# --- letterbox ---

PICTURES = [  # source, resized, offset
    ((37, 53), (30, 37), (1, 2)),
    ((9, 200), (3, 41), (15, 0)),
    ((1, 1), (9, 9), (24, 32)),
    ((33, 41), (33, 41), (0, 0)),
]


def letterboxes(run: Run, count: int, dtype: Any, pixel: int, swap: bool, frame: tuple[int, int] = (33, 41)) -> None:
    mean, divisor, inverse_scale = [123.7, 116.3, 103.5], [58.4, 57.1, 57.4], 1 / 0.021
    images, settings = [], []
    for number in range(count):
        (height, width), resized, offset = PICTURES[number % len(PICTURES)]
        if frame != (33, 41):
            resized, offset = (frame[0] - 1, frame[1] - 2), (number % 2, number % 3)
        images.append(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))
        settings.append((resized, offset))
    out = np.full((count, *frame, pixel), 99, dtype)
    run(
        "_letterbox_batch",
        images,
        out,
        resized=[list(resized) for resized, _ in settings],
        offsets=[list(offset) for _, offset in settings],
        pad_value=114,
        swap_channels=swap,
        mean=mean,
        divisor=divisor,
        inverse_scale=inverse_scale,
    )
    for number, (resized, offset) in enumerate(settings):
        image = torch.from_numpy(images[number])
        expected = _torch.letterbox(image, frame, resized, offset, 114, swap, True, mean, divisor).numpy()
        expected = quantized(expected, inverse_scale) if dtype == np.int8 else expected.astype(dtype)
        assert np.array_equal(harness.bits(out[number, ..., :3]), harness.bits(expected))
    assert not harness.bits(out[..., 3:]).any()


@pytest.mark.parametrize(
    ("dtype", "pixel"),
    [
        *((np.float32, 3), (np.float32, 4), (np.float32, 8)),
        *((np.float16, 3), (np.float16, 5), (np.float16, 8), (np.float16, 16)),
        *((np.int8, 3), (np.int8, 16), (np.int8, 32)),
    ],
)
def test_letterbox_batch(run: Run, dtype: Any, pixel: int) -> None:
    letterboxes(run, 4, dtype, pixel, swap=pixel % 2 == 0)


def test_letterbox_of_more_pictures_than_a_launch_takes(run: Run) -> None:
    letterboxes(run, 18, np.float16, 8, swap=False, frame=(6, 9))
    letterboxes(run, 1, np.float32, 4, swap=True, frame=(40, 9))
    letterboxes(run, 0, np.float32, 4, swap=True)


# --- convert ---

# shape of pictures; channels and buffer of x; channels and buffer of y
CONVERTED = [
    ((1, 3, 5), (0, 3, 3), (0, 16, 16)),  # a network's input
    ((2, 4, 5), (0, 16, 16), (0, 16, 16)),
    ((1, 2, 3), (16, 48, 64), (32, 64, 64)),
    ((1, 3, 3), (0, 32, 48), (0, 35, 48)),
    ((1, 3, 2), (3, 20, 23), (1, 18, 21)),  # no piece is aligned
    ((1, 2, 2), (16, 33, 48), (0, 17, 32)),
    ((3, 1, 7), (0, 1, 1), (0, 1, 1)),
    ((1, 1, 3), (0, 530, 530), (0, 4200, 4200)),  # more parts than a block has threads
    ((1, 1, 2), (0, 200, 208), (2, 202, 208)),  # as many as leave threads over
    ((0, 2, 2), (0, 4, 4), (0, 4, 4)),
]


@pytest.mark.parametrize("to", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_convert_map(run: Run, dtype: Any, to: Any) -> None:
    for number, (shape, (first, stop, channels), (to_first, to_stop, to_channels)) in enumerate(CONVERTED):
        x = Channels(random(number, *shape, channels, dtype=dtype), first, stop)
        if dtype != np.int8 and x.array.size > 8:
            ties = [np.nan, np.inf, -np.inf, 1.25, 0.75, -0.75, -0.0, 60000]  # halves, times 2
            x.array[tuple(axis[:8] for axis in np.nonzero(np.ones(x.array.shape)))] = ties
        before = np.full((*shape, to_channels), 77, to)
        y = Channels(before.copy(), to_first, to_stop)
        factor = 2.0 if number % 2 == 0 else 0.37
        run("_convert_map", x, y, factor=factor)
        count = stop - first
        if to == np.int8 and dtype != np.int8:
            expected = quantized(x.array, factor)
        elif dtype == np.int8 and to != np.int8:
            expected = (x.array.astype(np.float32) * np.float32(factor)).astype(to)
        else:
            with np.errstate(over="ignore"):
                expected = x.array.astype(to)
        got = y.array[..., :count]
        assert np.array_equal(got, expected, equal_nan=to != np.int8)
        assert np.array_equal(np.signbit(got), np.signbit(expected))
        assert not harness.bits(y.array[..., count:]).any()
        untouched(before, y)


def test_convert_rounds_to_float16_as_numpy(run: Run) -> None:
    """Around the ties between neighbours, below the smallest normal number, and at the largest."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)[::37]
    step = np.spacing(halves.astype(np.float16)).astype(np.float32)
    x = np.concatenate(
        [halves, halves + step / 2, -(halves + step * np.float32(0.49)), np.float32([65519, 65520, 1e9])]
    )
    x = np.resize(x, (1, 1, len(x) // 8 + 1, 8)).astype(np.float32)
    y = np.empty(x.shape, np.float16)
    run("_convert_map", x, y, factor=1.0)
    with np.errstate(over="ignore"):
        assert np.array_equal(harness.bits(y), harness.bits(x.astype(np.float16)))


# --- max_pool5 ---

# pictures, channels and buffer of x, first channel and buffer of y
POOLED = [
    ((1, 1, 1), (0, 4, 4), (0, 4)),
    ((2, 5, 7), (16, 32, 48), (32, 64)),
    ((3, 6, 2), (3, 14, 17), (1, 12)),
    ((1, 2, 9), (0, 3, 16), (16, 19)),
    ((1, 7, 3), (0, 16, 16), (0, 16)),
    ((3, 11, 10), (0, 32, 32), (0, 32)),  # strips of rows
    ((0, 3, 3), (0, 4, 4), (0, 4)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_max_pool5(run: Run, dtype: Any) -> None:
    for number, (shape, (first, stop, channels), (to_first, to_channels)) in enumerate(POOLED):
        x = Channels(random(number, *shape, channels, dtype=dtype), first, stop)
        if dtype != np.int8:
            x.array[:, 0, 0] = -np.inf
            x.array[:, -1, -1] = np.inf
        before = np.full((*shape, to_channels), 77, dtype)
        y = Channels(before.copy(), to_first, to_first + stop - first)
        run("_max_pool5", x, y)
        lowest = -128 if dtype == np.int8 else -np.inf
        padded = np.pad(x.array, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=lowest)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
        assert np.array_equal(y.array, windows.max(axis=(-2, -1)))
        untouched(before, y)


# --- observe ---


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_observe_map(run: Run, dtype: Any) -> None:
    counts = np.zeros(BINS, np.int64)
    counts[[0, 5, BINS - 1]] = [1 << 40, 3, 1]
    largest, negatives = np.zeros(1, np.float32), np.array([10], np.int64)
    expected, least = counts.copy(), 10
    for number, (shape, (first, stop, channels)) in enumerate(
        [
            ((1, 3, 5), (0, 3, 3)),
            ((2, 9, 8), (4, 24, 32)),
            ((1, 2, 3), (0, 200, 200)),
            ((1, 1, 3), (1, 301, 303)),
            ((0, 1, 1), (0, 3, 3)),
            ((1, 1, 2), (0, 3, 4)),
        ]
    ):
        x = Channels(random(number, *shape, channels, dtype=dtype), first, stop)
        x.array[x.array > 0.5] = 0
        if number == 0:
            x.array[0, 0, :4] = [[np.nan, np.inf, -np.inf], [-0.0, 0.0, 1e-7], [-1e-7, 3, 3], [-60000, 3, 3]]
        run("_observe_map", x, counts, largest, negatives)
        values = x.array.astype(np.float32)
        expected += np.bincount(bins(values), minlength=BINS)
        least += int((values < 0).sum())
        assert np.array_equal(one_bin_of_nans(counts), one_bin_of_nans(expected))
        assert largest[0] == 60000
        assert negatives[0] == least


def bins(values: Array) -> Array:
    return (np.ascontiguousarray(values).view(np.uint32) >> 16 & 0x7FFF).reshape(-1).astype(np.int64)


def one_bin_of_nans(counts: Array) -> Array:
    """A device that converts from float16 does not keep which NaN it was."""
    infinity = 0x7F80
    return np.append(counts[: infinity + 1], counts[infinity + 1 :].sum())


# --- channel sums ---


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((1, 3, 5), (0, 3, 3)),
        ((2, 9, 8), (16, 48, 64)),
        ((1, 7, 7), (0, 304, 304)),
        ((2, 40, 33), (3, 22, 24)),
        ((1, 2, 3), (1, 600, 601)),
        ((0, 1, 1), (0, 16, 16)),
        ((1, 1, 1), (0, 1, 1)),
    ],
    ids=str,
)
def test_add_channel_sums(run: Run, shape: tuple[int, int, int], channels: tuple[int, int, int]) -> None:
    first, stop, whole = channels
    x = Channels(random(5, *shape, whole, dtype=np.int8), first, stop)
    x.array[:, ::2] = -128
    sums = np.arange(stop - first) * (1 << 33)
    expected = sums + x.array.sum(axis=(0, 1, 2), dtype=np.int64)
    run("_add_channel_sums", x, sums)
    assert np.array_equal(sums, expected)


# --- the float32 convolution ---


@dataclass(frozen=True)
class Conv:
    x: tuple[int, int, int, int]  # N, H, W, C
    out_c: int
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    relu: bool = False
    residual: str = ""  # "own", "in place"
    transposed: bool = False
    beside: tuple[int, int] = (0, 0)  # channels beside those of x and of y in their buffers


CONVS = [
    Conv((1, 1, 1, 4), 1),
    Conv((1, 5, 6, 4), 8, 3, 1, 1, relu=True),
    Conv((2, 9, 8, 12), 65, 3, 2, 1, beside=(4, 4)),
    Conv((1, 9, 15, 20), 70, 1, relu=True, residual="own", beside=(8, 2)),
    Conv((2, 4, 5, 8), 6, 3, 1, 1, relu=True, residual="in place"),
    Conv((1, 8, 9, 16), 64, 1, residual="in place", beside=(0, 8)),
    Conv((1, 7, 5, 4), 3, 5, 1, 2),
    Conv((1, 6, 7, 8), 12, 2, 2, 0),
    Conv((2, 5, 7, 8), 12, transposed=True, beside=(0, 4)),
    Conv((1, 3, 23, 8), 18, transposed=True, relu=True),
    Conv((1, 3, 3, 4), 5, transposed=True, residual="own"),
    Conv((0, 3, 3, 4), 5),
]


def convolve(run: Run, conv: Conv, x: Array, weight: Array, bias: Array, residual: Array | None) -> Channels:
    """y, channels of a buffer of ones."""
    n, h, w, channels = x.shape
    grown = 2 if conv.transposed else 1
    sides = [grown * ((side + 2 * conv.pad - conv.kernel) // conv.stride + 1) for side in (h, w)]
    first = conv.beside[0]
    source = Channels(np.ones((n, h, w, first + channels), np.float32), first, first + channels)
    source.array[...] = x
    before = np.ones((n, *sides, conv.out_c + conv.beside[1]), np.float32)
    y = Channels(before.copy(), 0, conv.out_c)
    added: Any = residual
    if conv.residual == "in place":
        y.array[...] = residual
        added = y
    run(
        "_conv",
        source,
        weight,
        None,
        bias,
        added,
        y,
        stride=conv.stride,
        pad=conv.pad,
        relu=conv.relu,
        residual_scale=0.7,
        transposed=conv.transposed,
    )
    untouched(before, y)
    return y


def inputs(conv: Conv) -> tuple[Array, Array, Array, Array | None]:
    n, h, w, channels = conv.x
    grown = 2 if conv.transposed else 1
    kernel = (2, 2, conv.out_c, channels) if conv.transposed else (conv.out_c, conv.kernel, conv.kernel, channels)
    sides = [grown * ((side + 2 * conv.pad - conv.kernel) // conv.stride + 1) for side in (h, w)]
    residual = random(4, n, *sides, conv.out_c) if conv.residual else None
    return random(1, *conv.x), random(2, *kernel), random(3, conv.out_c * grown * grown), residual


def taps(conv: Conv, x: Array, weight: Array) -> Array:
    """Products summed in float64: (N, rows, columns, columns of the product)."""
    if conv.transposed:
        return np.einsum("nhwc,yxkc->nhywxk", x, weight).reshape(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], -1)
    padded = np.pad(x, ((0, 0), (conv.pad, conv.pad), (conv.pad, conv.pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (conv.kernel, conv.kernel), axis=(1, 2))
    return np.einsum("nhwcyx,kyxc->nhwk", windows[:, :: conv.stride, :: conv.stride], weight)


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_conv_f32(run: Run, conv: Conv) -> None:
    x, weight, bias, residual = inputs(conv)
    y = convolve(run, conv, x, weight, bias, residual).array
    sums = taps(conv, x.astype(np.float64), weight.astype(np.float64))
    magnitude = taps(conv, np.abs(x.astype(np.float64)), np.abs(weight.astype(np.float64)))
    if conv.transposed:
        corners = bias.reshape(2, 2, -1)
        offset = np.tile(corners, (conv.x[1], conv.x[2], 1))
    else:
        offset = bias
    expected = sums + offset
    magnitude = magnitude + np.abs(offset)
    if conv.relu:
        expected = np.maximum(expected, 0)
    if residual is not None:
        expected = expected + np.float64(np.float32(0.7)) * residual
        magnitude = magnitude + np.abs(residual)
    assert (np.abs(y - expected) <= harness.dot_tolerance(magnitude, weight[0].size)).all()


def test_conv_f32_of_a_picture_is_the_same_in_any_batch(run: Run) -> None:
    conv = Conv((3, 5, 7, 20), 9, 3, 1, 1)
    x, weight, bias, _ = inputs(conv)
    together = convolve(run, conv, x, weight, bias, None).array
    for number in range(3):
        alone = convolve(run, conv, x[number : number + 1].copy(), weight, bias, None).array
        assert np.array_equal(harness.bits(alone[0]), harness.bits(together[number]))


def test_conv_f32_adds_up_the_depth_with_fused_products(run: Run) -> None:
    """Each product exact, each sum rounded once, one after the other: in float64 the same but for rare double rounding,
    which small numbers avoid."""
    conv = Conv((1, 4, 5, 12), 7, 3, 1, 1)
    generator = np.random.default_rng(5)
    x = (generator.integers(-(1 << 12), 1 << 12, conv.x) / 64).astype(np.float32)
    weight = (generator.integers(-(1 << 12), 1 << 12, (7, 3, 3, 12)) / 4096).astype(np.float32)
    bias = np.zeros(7, np.float32)
    y = convolve(run, conv, x, weight, bias, None).array
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    rows = windows.reshape(1, 4, 5, -1).astype(np.float64)
    sums = np.zeros((1, 4, 5, 7), np.float32)
    for depth, column in enumerate(weight.reshape(7, -1).astype(np.float64).T):
        sums = (sums.astype(np.float64) + rows[..., depth, None] * column).astype(np.float32)
    assert np.array_equal(y, sums)


def test_conv_f32_passes_nan(run: Run) -> None:
    conv = Conv((1, 2, 2, 4), 4, relu=True)
    x, weight, bias, _ = inputs(conv)
    x[0, 1, 1, 2] = np.nan
    y = convolve(run, conv, x, weight, bias, None).array
    assert np.isnan(y[0, 1, 1]).all()
    assert np.isfinite(y[0, 0]).all()


# --- errors ---


def fake(*shape: int, dtype: Any = np.float32) -> FakeCudaTensor:
    return FakeCudaTensor(np.zeros(shape, dtype))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda m: m._convert_map(fake(1, 2, 2, 4), fake(1, 2, 2, 3), factor=1.0, stream=0),
            ValueError,
            r"_convert_map: out must have the channels of x or more, got \(1, 2, 2, 3\)",
        ),
        (
            lambda m: m._convert_map(fake(2, 2, 4), fake(1, 2, 2, 4), factor=1.0, stream=0),
            ValueError,
            r"_convert_map: x must be float32, float16 or int8 of shape \(N, H, W, C\).*, got float32 \(2, 2, 4\)",
        ),
        (
            lambda m: m._max_pool5(fake(1, 2, 2, 4), fake(1, 2, 2, 4, dtype=np.int8), stream=0),
            TypeError,
            "_max_pool5: out must be float32, got int8",
        ),
        (
            lambda m: m._max_pool5(fake(1, 2, 2, 4), fake(1, 2, 3, 4), stream=0),
            ValueError,
            r"_max_pool5: out must have 1 pictures of 2x2, got \(1, 2, 3, 4\)",
        ),
    ],
    ids=["channels", "rank", "dtype", "sides"],
)
def test_errors(emulated: ModuleType, call: Callable[[ModuleType], None], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(emulated)
