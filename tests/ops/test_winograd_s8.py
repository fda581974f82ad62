"""The Winograd convolution of int8: the same bits as plain NumPy and as the direct kernel, for all sizes and cuts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from harness import bits, guarded, guarded_empty, native

from yolonas.ops import reference

# Height, width, input and output channels. A tile is 4x4 outputs, four tiles of a row are worked on together, vectors
# are 8 or 16 output channels and 16 or 32 input channels, and these go in fours.
LAYERS = (
    (1, 1, 1, 1),
    (1, 1, 37, 5),
    (1, 2, 4, 8),
    (2, 1, 16, 16),
    (3, 3, 3, 17),
    (4, 4, 32, 32),
    (5, 7, 15, 33),
    (7, 16, 17, 40),
    (6, 33, 31, 9),
    (9, 10, 65, 48),
    (20, 20, 6, 72),
    (64, 66, 12, 10),  # more than one chunk of tiles
    (3, 5, 400, 20),  # weights in more than one part
    (30, 31, 260, 35),  # both
)
Layer = tuple[int, int, int, int]
MOST_WEIGHT_SUM = 262143  # of an output channel, in magnitudes


def random_layer(layer: Layer, seed: int = 0) -> tuple[np.ndarray, ...]:
    """x, weight, multiplier, offset, residual; most int8 results lie within the range, some beyond both ends."""
    rng = np.random.default_rng(seed)
    height, width, in_c, out_c = layer
    x = rng.integers(-128, 128, (height, width, in_c), np.int8)
    weight = rng.integers(-127, 128, (out_c, 3, 3, in_c), np.int8)
    multiplier = (70 / (73 * 73 * np.sqrt(9 * in_c)) * rng.uniform(0.5, 1.5, out_c)).astype(np.float32)
    offset = rng.normal(0, 20, out_c).astype(np.float32)
    return x, weight, multiplier, offset, rng.integers(-128, 128, (height, width, out_c), np.int8)


def winograd(
    x: Any, weight: Any, multiplier: Any, offset: Any, residual: Any = None, out: Any = None, **settings: Any
) -> np.ndarray:
    """Runs in a workspace of exactly the size that the kernel asks for, between pages that nobody may touch."""
    settings = {"relu": True, "residual_multiplier": 1.0, "tiles": 1 << 30, "blocks": 99, "front": False} | settings
    front, dtype = settings.pop("front"), settings.pop("dtype", np.int8)
    if out is None:
        out = np.full((*x.shape[:2], weight.shape[0]), 99, dtype)
    arguments = (x, weight, multiplier, offset, residual, out)
    floats = native()._run_conv2d_winograd43_s8(*arguments, **settings, workspace=None)
    workspace = guarded_empty((floats,), np.float32, front=front)
    native()._run_conv2d_winograd43_s8(*arguments, **settings, workspace=workspace)
    return out


def plain(x: Any, weight: Any, multiplier: Any, offset: Any, residual: Any = None, **settings: Any) -> np.ndarray:
    residual = None if residual is None else residual[None]
    arguments = (np.ascontiguousarray(x)[None], weight, multiplier, offset)
    return reference.conv2d_s8(*arguments, residual=residual, padding=1, **settings)[0]


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.array_equal(bits(found), bits(expected))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_with_all_that_is_fused(isa: str, layer: Layer) -> None:
    *arguments, residual = random_layer(layer)
    for relu in (False, True):
        for added, factor in ((None, 1.0), (residual, 0.37), (residual, -1.5)):
            for dtype in (np.int8, np.float32):
                settings: dict[str, Any] = {"relu": relu, "residual_multiplier": factor, "dtype": dtype}
                expected = plain(*arguments, added, **settings)
                assert_same(winograd(*arguments, added, **settings), expected)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_same_bits_as_the_direct_kernel(isa: str, layer: Layer) -> None:
    *arguments, residual = random_layer(layer, 1)
    for dtype in (np.int8, np.float32):
        direct = np.empty(residual.shape, dtype)
        native()._run_conv2d_s8(
            "direct", *arguments, residual, direct, stride=1, padding=1, relu=True, residual_multiplier=0.7,
            unsigned_input=False, rows=99, blocks=9,
        )  # fmt: skip
        assert_same(winograd(*arguments, residual, residual_multiplier=0.7, dtype=dtype), direct)


def test_every_size_near_the_tile(isa: str) -> None:
    for height, width in itertools.product(range(1, 10), range(1, 38)):
        *arguments, _ = random_layer((height, width, 5, 17), 64 * height + width)
        assert_same(winograd(*arguments), plain(*arguments))


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_every_number_of_channels(isa: str, dtype: Any) -> None:
    for in_c, out_c in [(8, channels) for channels in range(1, 67)] + [(channels, 9) for channels in range(1, 70)]:
        *arguments, residual = random_layer((3, 5, in_c, out_c), in_c)
        settings: dict[str, Any] = {"residual_multiplier": 0.5, "dtype": dtype}
        assert_same(winograd(*arguments, residual, **settings), plain(*arguments, residual, **settings))


INPUTS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
WEIGHTS = np.array([[6, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 6]])


def worst_signs(transform: np.ndarray) -> np.ndarray:
    """For each of the 36 points the signs that make what is transformed as large as it can be there."""
    signs = np.einsum("ya,xb->yxab", transform, transform).reshape(36, transform.shape[1], transform.shape[1])
    return np.where(signs < 0, -1, 1)


def worst_pictures(channels: int) -> np.ndarray:
    """Tiles side by side whose inputs are the largest at any point, and others of one value."""
    tiles = np.concatenate([worst_signs(INPUTS), np.ones((1, 6, 6), int), -np.ones((1, 6, 6), int)])
    picture = np.full((9, 8 * len(tiles) + 1), -128, np.int8)
    for i, tile in enumerate(tiles):
        picture[3:, 8 * i + 3 : 8 * i + 9] = np.where(tile > 0, 127, -128)
    return picture[:, :, None].repeat(channels, 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 64, 229, 230, 700])
def test_the_largest_sums_are_exact(isa: str, channels: int) -> None:
    """Up to the largest weights that are allowed no output wraps around, though sums on the way to it do."""
    total, count = min(MOST_WEIGHT_SUM, 9 * 127 * channels), 9 * channels
    magnitude = (total // count + (np.arange(count) < total % count)).reshape(3, 3, channels)
    weight = (worst_signs(WEIGHTS)[:, :, :, None] * magnitude).astype(np.int8)
    ones, zeros = np.ones(36, np.float32), np.zeros(36, np.float32)
    settings: dict[str, Any] = {"relu": False, "dtype": np.float32}
    x = worst_pictures(channels)
    expected = plain(x, weight, ones, zeros, **settings)
    assert abs(expected).max() == 128 * total
    assert_same(winograd(x, weight, ones, zeros, **settings), expected)


def test_all_values_at_every_tap(isa: str) -> None:
    """Every input value by the extreme weights at each tap, next to the worst neighbours."""
    values = np.arange(-128, 128).astype(np.int8)
    for neighbour, factor in itertools.product((-128, 127), (-127, 127)):
        for tap in range(9):
            weight = np.full((9, 3, 3, 2), -factor, np.int8)
            weight.reshape(9, 9, 2)[:, tap, 0] = factor
            x = np.full((16, 16, 2), neighbour, np.int8)
            x[..., 0] = values.reshape(16, 16)
            ones, zeros = np.ones(9, np.float32), np.zeros(9, np.float32)
            settings: dict[str, Any] = {"relu": False, "dtype": np.float32}
            assert_same(winograd(x, weight, ones, zeros, **settings), plain(x, weight, ones, zeros, **settings))


# --- memory ---


def within(array: np.ndarray, wider: int, *, front: bool) -> tuple[np.ndarray, np.ndarray]:
    """A buffer with `wider` more channels that borders on a guard page, and `array` in the channels at that border."""
    height, width, channels = array.shape
    buffer = guarded_empty((height, width, channels + wider), array.dtype, front=front)
    view = buffer[:, :, :channels] if front else buffer[:, :, wider:]
    view[...] = array
    return buffer, view


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_nothing_beyond_the_arrays_is_touched(isa: str, layer: Layer, dtype: Any, front: bool) -> None:
    *arguments, residual = (guarded(value, front=front) for value in random_layer(layer))
    out = guarded_empty(residual.shape, dtype, front=front)
    expected = plain(*arguments, residual, dtype=dtype)
    assert_same(winograd(*arguments, residual, out, front=front), expected)


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("layer", LAYERS[:11], ids=str)
def test_channel_ranges_of_wider_buffers(isa: str, layer: Layer, dtype: Any, front: bool) -> None:
    x, *others, residual = random_layer(layer)
    settings: dict[str, Any] = {"residual_multiplier": 0.625}
    expected = plain(x, *others, residual, dtype=dtype, **settings)
    x_buffer, x_view = within(x, 5, front=front)
    out_buffer, out = within(np.full(expected.shape, 55, dtype), 3, front=front)
    before = x_buffer.copy(), out_buffer.copy()
    added = within(residual, 11, front=front)[1]
    winograd(x_view, *others, added, out, **settings)
    assert_same(np.ascontiguousarray(out), expected)
    out[...] = 55
    assert np.array_equal(bits(out_buffer), bits(before[1])), "channels of others were written"
    assert np.array_equal(bits(x_buffer), bits(before[0]))
    if dtype == np.int8:
        out[...] = residual
        winograd(x_view, *others, out, out, **settings)  # the residual in place
        assert_same(np.ascontiguousarray(out), expected)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_cuts_do_not_change_a_bit(isa: str, layer: Layer) -> None:
    *arguments, residual = random_layer(layer)
    expected = plain(*arguments, residual)
    for tiles, blocks in ((1, 1), (2, 9), (3, 2), (13, 1), (100, 1)):
        out = np.full(expected.shape, 99, np.int8)
        assert_same(winograd(*arguments, residual, out, tiles=tiles, blocks=blocks), expected)


def test_workspace_does_not_grow_beyond_some_number_of_tiles(isa: str) -> None:
    def floats(height: int, tiles: int) -> int:
        arguments = (*random_layer((height, 64, 24, 8))[:4], None, np.empty((height, 64, 8), np.int8))
        settings: dict[str, Any] = {"relu": True, "residual_multiplier": 1.0, "blocks": 1, "workspace": None}
        return native()._run_conv2d_winograd43_s8(*arguments, tiles=tiles, **settings)

    sizes = [floats(64, tiles) for tiles in range(1, 1025)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == sizes[-100] == floats(256, 4096)


# --- arguments that do not fit ---


def test_wrong_arguments_are_named() -> None:
    x, weight, multiplier, offset, _ = random_layer((4, 5, 3, 6))

    def refused(error: type[Exception], text: str, **changes: Any) -> None:
        given: dict[str, Any] = {"x": x, "weight": weight, "multiplier": multiplier, "offset": offset}
        given |= {"residual": None, "out": np.empty((4, 5, 6), np.int8), "relu": True, "residual_multiplier": 1.0}
        given |= {"tiles": 9, "blocks": 9, "workspace": None} | changes
        with pytest.raises(error, match=text):
            native()._run_conv2d_winograd43_s8(**given)

    heavy = np.full((6, 3, 3, 230), 127, np.int8), np.zeros((4, 5, 230), np.int8)
    heavy[0].reshape(6, -1)[:5, :6] = 0
    text = "weight must have magnitudes that add up to at most 262143 in every output channel, got 262890 in channel 5"
    refused(ValueError, text, weight=heavy[0], x=heavy[1])
    refused(ValueError, "weight must have a kernel of 3x3, got 2x3", weight=weight[:, :2].copy())
    refused(ValueError, "out must be as high and wide as x, got 3x5 for 4x5", out=np.empty((3, 5, 6), np.int8))
    refused(ValueError, "tiles and blocks must be positive, got 0 and 9", tiles=0)
    refused(ValueError, "x must be int8", x=x.astype(np.float32))
    refused(ValueError, "workspace must have shape", workspace=np.empty(5, np.float32))
