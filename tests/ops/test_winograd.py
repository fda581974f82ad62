"""The Winograd convolutions against float64: sizes around tiles and blocks, accuracy, cuts, the estimate."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from harness import ROUNDOFF, guarded, guarded_empty, native, using_threads

from yolonas.ops import reference

STRIDES = (1, 2)
# Batch, height, width, input and output channels: a tile is 4x4 outputs, a vector 8 or 16 channels, a block two.
LAYERS = (
    (1, 1, 1, 1, 1),
    (1, 4, 4, 8, 16),
    (1, 5, 3, 3, 5),
    (2, 8, 8, 16, 32),
    (1, 7, 9, 17, 33),
    (1, 6, 13, 15, 31),
    (3, 3, 2, 24, 40),
    (1, 2, 40, 7, 48),
    (1, 17, 16, 32, 9),
    (1, 12, 20, 64, 64),
    (1, 64, 60, 5, 8),  # more than one chunk of tiles
    (1, 9, 8, 600, 3),  # deep
    (2, 20, 20, 48, 200),  # many blocks, few tiles
    (0, 4, 4, 3, 5),
)


def random_layer(layer: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    batch, height, width, in_c, out_c = layer
    x = rng.normal(0, 1, (batch, height, width, in_c)).astype(np.float32)
    weight = rng.normal(0, 1, (out_c, 3, 3, in_c)).astype(np.float32)
    return x, weight, rng.normal(0, 1, out_c).astype(np.float32)


def winograd(x: Any, weight: Any, bias: Any = None, *, residual: Any = None, out: Any = None, **settings: Any) -> Any:
    settings = {"stride": 1, "relu": False, "residual_scale": 1.0, **settings}
    if out is None:
        out = np.empty(output_shape(x, weight, settings["stride"]), np.float32)
    native().conv2d_winograd(x, weight, bias, residual, out, **settings)
    return out


def output_shape(x: np.ndarray, weight: np.ndarray, stride: int) -> tuple[int, ...]:
    batch, height, width, _ = x.shape
    return (batch, (height - 1) // stride + 1, (width - 1) // stride + 1, weight.shape[0])


def assert_close(y: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: Any = None, **settings: Any) -> None:
    """An error spreads over a tile, so the bound is one of norms: of a channel's weights and of the inputs."""
    expected = reference.conv2d_bias_act(x, weight, bias, padding=1, **settings)
    assert y.shape == expected.shape
    assert y.dtype == np.float32
    if not y.size:
        return
    norm = np.sqrt((weight.astype(np.float64) ** 2).sum((1, 2, 3)))
    bound = 64 * ROUNDOFF * np.sqrt(x.shape[3] + 8) * norm * np.abs(x).max()
    for part in (bias, settings.get("residual")):
        bound = bound + (0 if part is None else 8 * ROUNDOFF * np.abs(part).max())
    assert (np.abs(y - expected) <= bound + 4 * ROUNDOFF * np.abs(expected)).all()


def relative_errors(y: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of every channel: root mean square of the error over that of the values."""
    return np.sqrt(((y - expected) ** 2).mean((0, 1, 2)) / (expected**2).mean((0, 1, 2)))


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_with_all_that_is_fused(isa: str, layer: tuple[int, ...], stride: int) -> None:
    x, weight, bias = random_layer(layer)
    residual = np.random.default_rng(1).normal(0, 1, output_shape(x, weight, stride)).astype(np.float32)
    for relu, use_bias, scale in ((False, False, None), (True, True, None), (True, False, 0.7), (False, True, -1.5)):
        settings: dict[str, Any] = {"stride": stride, "relu": relu}
        if scale is not None:
            settings |= {"residual": residual, "residual_scale": scale}
        y = winograd(x, weight, bias if use_bias else None, **settings)
        assert_close(y, x, weight, bias if use_bias else None, **settings)


@pytest.mark.parametrize("stride", STRIDES)
def test_every_size_near_the_tile(isa: str, stride: int) -> None:
    for height, width in itertools.product((1, 2, 3, 4, 5, 7, 8, 9, 10), range(1, 12)):
        x, weight, bias = random_layer((1, height, width, 3, 5), 16 * height + width)
        assert_close(winograd(x, weight, bias, stride=stride), x, weight, bias, stride=stride, relu=False)


@pytest.mark.parametrize("stride", STRIDES)
def test_every_number_of_channels_near_the_vector_and_the_block(isa: str, stride: int) -> None:
    near = (1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 64, 65)
    for channels in near:
        for layer in ((1, 5, 9, channels, 6), (1, 5, 9, 6, channels)):
            x, weight, bias = random_layer(layer, channels)
            residual = np.ones(output_shape(x, weight, stride), np.float32)
            settings: dict[str, Any] = {"stride": stride, "relu": True, "residual": residual, "residual_scale": 0.5}
            assert_close(winograd(x, weight, bias, **settings), x, weight, bias, **settings)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("channels", [16, 64, 256, 512])
def test_error_of_random_layers(isa: str, channels: int, stride: int) -> None:
    x, weight, _ = random_layer((1, 16, 16, channels, 32), channels)
    for inputs in (x, np.maximum(x, 0)):
        expected = reference.conv2d_bias_act(inputs, weight, stride=stride, padding=1, relu=False)
        errors = relative_errors(winograd(inputs, weight, stride=stride), expected)
        assert errors.max() < 1e-5
        assert errors.max() < native().winograd_error(weight, stride=stride) < 1e-5


# --- the estimate ---


def adversarial_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    plain = rng.normal(0, 1, (24, 3, 3, 20)).astype(np.float32)
    one_tap, one_channel, edges = plain.copy(), plain.copy(), np.zeros_like(plain)
    one_tap[:, 1, 1] *= 1e6
    one_channel[..., 3] *= 1e6
    edges[:, 0, 0] = edges[:, 2, 2] = 1
    checks = np.indices((3, 3)).sum(0) % 2 * 2 - 1
    laplace = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    return {
        "large": plain * np.float32(1e25),
        "small": plain * np.float32(1e-25),
        "one tap": one_tap,
        "one input": one_channel,
        "corners": edges,
        "alternating": plain * 0 + checks[:, :, None].astype(np.float32),
        "second derivative": plain * 0 + laplace[:, :, None].astype(np.float32),
        "unequal outputs": plain * (10.0 ** np.arange(-12, 12, dtype=np.float32))[:, None, None, None],
    }


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", adversarial_weights())
def test_the_estimate_holds_for_any_weights(isa: str, name: str, stride: int) -> None:
    weight = adversarial_weights()[name]
    x = np.random.default_rng(6).normal(0, 1, (2, 24, 24, 20)).astype(np.float32)
    expected = reference.conv2d_bias_act(x, weight, stride=stride, padding=1, relu=False)
    estimate = native().winograd_error(weight, stride=stride)
    assert relative_errors(winograd(x, weight, stride=stride), expected).max() < estimate < 2e-5


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e31, -3e38])
def test_weights_out_of_range_have_an_infinite_estimate(value: float, stride: int) -> None:
    weight = np.ones((5, 3, 3, 2), np.float32)
    weight[3, 1, 2, 1] = value
    assert native().winograd_error(weight, stride=stride) == np.inf


def test_dead_channels_do_not_count() -> None:
    assert native().winograd_error(np.zeros((5, 3, 3, 2), np.float32), stride=1) == 0
    weight = np.ones((2, 3, 3, 2), np.float32)
    weight[1] = 0
    assert native().winograd_error(weight, stride=1) == native().winograd_error(weight[:1], stride=1)


@pytest.mark.parametrize(
    ("weight", "stride", "error", "text"),
    [
        (np.zeros((5, 5, 5, 2), np.float32), 1, ValueError, r"weight must have shape \(K, 3, 3, C\).*got \(5, 5, 5, 2"),
        (np.zeros((5, 3, 3, 2)), 1, TypeError, "winograd_error: weight must be float32, got float64"),
        (np.zeros((5, 3, 3, 2), np.float32), 3, ValueError, "winograd_error: stride must be 1 or 2, got 3"),
    ],
)
def test_estimate_names_wrong_arguments(weight: Any, stride: int, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        native().winograd_error(weight, stride=stride)


# --- what a result may not depend on ---


@pytest.mark.parametrize("stride", STRIDES)
def test_neither_threads_nor_the_place_in_the_batch_change_a_bit(isa: str, stride: int) -> None:
    for layer in ((3, 50, 44, 6, 10), (2, 18, 20, 20, 150)):  # shared by tiles, and by blocks
        x, weight, bias = random_layer(layer)
        results = []
        for threads in (1, 2, 3, 7):
            with using_threads(threads):
                results.append(winograd(x, weight, bias, stride=stride))
                results.append(
                    np.concatenate([winograd(x[i : i + 1], weight, bias, stride=stride) for i in range(len(x))])
                )
        assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("stride", STRIDES)
def test_not_a_number_stays_in_the_tiles_that_read_it(isa: str, stride: int) -> None:
    x, weight, _ = random_layer((1, 12 * stride, 12 * stride, 3, 17))
    before = winograd(x, weight, stride=stride, relu=True)
    x[0, 6 * stride, 6 * stride, 1] = np.nan  # inside the middle tile
    after = winograd(x, weight, stride=stride, relu=True)
    assert np.isnan(after[0, 6, 6]).all()
    middle = np.zeros((12, 12), bool)
    middle[4:8, 4:8] = True
    assert np.array_equal(after[0, ~middle], before[0, ~middle])


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("layer", LAYERS[:9], ids=str)
def test_nothing_beyond_the_arrays_is_touched(isa: str, layer: tuple[int, ...], front: bool, stride: int) -> None:
    x, weight, bias = (guarded(value, front=front) for value in random_layer(layer))
    shape = output_shape(x, weight, stride)
    residual = guarded(np.ones(shape, np.float32), front=front)
    settings: dict[str, Any] = {"stride": stride, "relu": True, "residual": residual, "residual_scale": 0.5}
    y = winograd(x, weight, bias, out=guarded_empty(shape, np.float32, front=front), **settings)
    assert_close(y, x, weight, bias, **settings)


@pytest.mark.parametrize("stride", STRIDES)
def test_residual_in_place(isa: str, stride: int) -> None:
    x, weight, bias = random_layer((2, 10, 11, 12, 37))
    residual = np.random.default_rng(2).normal(0, 1, output_shape(x, weight, stride)).astype(np.float32)
    settings: dict[str, Any] = {"stride": stride, "relu": True, "residual_scale": 0.25}
    expected = winograd(x, weight, bias, residual=residual, **settings)
    assert np.array_equal(winograd(x, weight, bias, residual=residual, out=residual, **settings), expected)


# --- arguments that do not fit ---

X, WEIGHT = np.zeros((1, 6, 5, 3), np.float32), np.zeros((6, 3, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"weight": np.zeros((6, 1, 1, 3), np.float32), "out": np.zeros((1, 8, 7, 6), np.float32)}, ValueError, "3x3"),
        ({"stride": 3, "out": np.zeros((1, 2, 2, 6), np.float32)}, ValueError, "stride must be 1 or 2 and padding 1"),
        ({"stride": 0}, ValueError, "stride must lie in 1..1024, got 0"),
        ({"x": X.astype(np.float64)}, TypeError, "conv2d_winograd: x must be float32, got float64"),
        ({"x": X[..., :2]}, ValueError, "contiguous"),
        ({"bias": np.zeros(5, np.float32)}, ValueError, r"bias must have shape \(K,\) = \(6\), got \(5,\)"),
        ({"residual": np.zeros((1, 6, 5, 5), np.float32)}, ValueError, "residual must have shape"),
        ({"out": np.zeros((1, 6, 6, 6), np.float32)}, ValueError, "out must have shape"),
        ({"residual_scale": np.nan}, ValueError, "residual_scale must be finite"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {"x": X, "weight": WEIGHT, "out": np.zeros((1, 6, 5, 6), np.float32), **change}
    with pytest.raises(error, match=text):
        winograd(**arguments)
