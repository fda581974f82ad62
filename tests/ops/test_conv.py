"""Fused convolution against float64 within a bound from the depth of the sum, and arguments that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from harness import CONVOLUTIONS, CUDA, DLPackArray, dot_tolerance, guarded, guarded_empty, native

from yolonas.ops import conv2d_bias_act, reference

Case = tuple[tuple[int, int, int, int], tuple[int, int, int], int, int]


def random_arguments(case: Case, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x_shape, (out_c, kernel_h, kernel_w), _, _ = case
    x = rng.normal(0, 1, x_shape).astype(np.float32)
    weight = rng.normal(0, 1, (out_c, kernel_h, kernel_w, x_shape[3])).astype(np.float32)
    return x, weight, rng.normal(0, 1, out_c).astype(np.float32)


def assert_close(y: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: Any, settings: dict[str, Any]) -> None:
    expected = reference.conv2d_bias_act(x, weight, bias, **settings)
    residual = settings.get("residual")
    magnitude = reference.conv2d_bias_act(
        np.abs(x),
        np.abs(weight),
        None if bias is None else np.abs(bias),
        **{
            **settings,
            "residual": None if residual is None else np.abs(residual),
            "residual_scale": abs(settings.get("residual_scale", 1.0)),
            "relu": False,
        },
    )
    assert y.dtype == np.float32
    assert y.shape == expected.shape
    assert (np.abs(y - expected) <= dot_tolerance(magnitude, int(np.prod(weight.shape[1:])))).all()


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_shapes_kernels_strides_padding(isa: str, case: Case) -> None:
    x, weight, bias = random_arguments(case)
    settings: dict[str, Any] = {"stride": case[2], "padding": case[3]}
    assert_close(conv2d_bias_act(x, weight, bias, **settings), x, weight, bias, {**settings, "relu": True})
    for relu in (False, True):
        for residual_scale in (None, 0.7, -1.5):
            both = {**settings, "relu": relu}
            if residual_scale is not None:
                shape = reference.conv2d_bias_act(x, weight, **settings).shape
                both["residual"] = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
                both["residual_scale"] = residual_scale
            assert_close(conv2d_bias_act(x, weight, **both), x, weight, None, both)
            assert_close(conv2d_bias_act(x, weight, bias, **both), x, weight, bias, both)


def test_every_width_near_the_tile(isa: str) -> None:
    for width in range(1, 20):
        case = ((1, 3, width, 3), (17, 3, 3), 1, 1)
        x, weight, bias = random_arguments(case, width)
        for stride in (1, 2):
            settings = {"stride": stride, "padding": 1, "relu": False}
            assert_close(conv2d_bias_act(x, weight, bias, **settings), x, weight, bias, settings)


def test_every_number_of_output_channels_near_the_block(isa: str) -> None:
    for channels in (1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33):
        x, weight, bias = random_arguments(((1, 2, 7, 3), (channels, 3, 3), 1, 1), channels)
        residual = np.ones((1, 2, 7, channels), np.float32)
        settings = {"padding": 1, "residual": residual, "residual_scale": 0.5, "relu": True}
        assert_close(conv2d_bias_act(x, weight, bias, **settings), x, weight, bias, settings)


@pytest.mark.parametrize("case", CONVOLUTIONS[1:7], ids=str)
def test_the_plain_twin_is_torch(case: Case) -> None:
    x, weight, bias = random_arguments(case)
    tensors = [
        torch.from_numpy(value).double() for value in (x.transpose(0, 3, 1, 2), weight.transpose(0, 3, 1, 2), bias)
    ]
    expected = torch.nn.functional.conv2d(*tensors, stride=case[2], padding=case[3]).relu()
    found = reference.conv2d_bias_act(x, weight, bias, stride=case[2], padding=case[3])
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-12, atol=1e-12)


def test_whole_numbers_are_exact(isa: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(-9, 10, (2, 5, 8, 5)).astype(np.float32)
    weight = rng.integers(-9, 10, (18, 3, 3, 5)).astype(np.float32)
    residual = rng.integers(-99, 100, (2, 5, 8, 18)).astype(np.float32)
    settings = {"padding": 1, "residual": residual, "residual_scale": 3.0}
    assert np.array_equal(conv2d_bias_act(x, weight, **settings), reference.conv2d_bias_act(x, weight, **settings))


def test_activation_comes_before_the_residual(isa: str) -> None:
    x, weight = np.full((1, 1, 1, 1), -2.0, np.float32), np.ones((1, 1, 1, 1), np.float32)
    residual = np.full((1, 1, 1, 1), 4.0, np.float32)
    assert conv2d_bias_act(x, weight, residual=residual, residual_scale=0.5).item() == 2.0
    assert conv2d_bias_act(x, weight, residual=residual, residual_scale=0.5, relu=False).item() == 0.0
    assert conv2d_bias_act(x, weight, residual=residual, residual_scale=-1.0).item() == -4.0


def test_not_a_number_goes_through_the_activation(isa: str) -> None:
    x = np.zeros((1, 3, 9, 2), np.float32)
    x[0, 1, 4, 1] = np.nan
    x[0, 1, 0, 0] = np.inf
    weight = np.ones((17, 1, 1, 2), np.float32)
    y = conv2d_bias_act(x, weight)
    assert np.isnan(y[0, 1, 4]).all()
    assert (y[0, 1, 0] == np.inf).all()
    assert np.isfinite(np.delete(y.reshape(-1, 17), (9, 13), axis=0)).all()  # no other pixel is touched


def test_a_picture_does_not_depend_on_its_place_in_the_batch(isa: str) -> None:
    x, weight, bias = random_arguments(((5, 7, 9, 6), (20, 3, 3), 1, 1))
    whole = conv2d_bias_act(x, weight, bias, padding=1)
    for picture in range(5):
        assert np.array_equal(conv2d_bias_act(x[picture : picture + 1], weight, bias, padding=1)[0], whole[picture])


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS[:15], ids=str)
def test_nothing_beyond_the_arrays_is_touched(isa: str, front: bool, case: Case) -> None:
    x, weight, bias = (guarded(value, front=front) for value in random_arguments(case))
    settings: dict[str, Any] = {"stride": case[2], "padding": case[3], "relu": True, "residual_scale": 0.5}
    shape = reference.conv2d_bias_act(x, weight, stride=case[2], padding=case[3]).shape
    out = guarded_empty(shape, np.float32, front=front)
    residual = guarded(np.ones(shape, np.float32), front=front)
    native().conv2d_bias_act(x, weight, bias, residual, out, **settings)
    assert_close(out, x, weight, bias, {**settings, "residual": residual})


def run_native(x: np.ndarray, weight: np.ndarray, residual: Any, out: np.ndarray, **settings: Any) -> None:
    settings = {"stride": 1, "padding": 0, "relu": True, "residual_scale": 1.0, **settings}
    native().conv2d_bias_act(x, weight, None, residual, out, **settings)


def test_residual_in_place_is_allowed_and_other_overlap_refused(isa: str) -> None:
    x, weight, _ = random_arguments(((1, 6, 9, 5), (18, 1, 1), 1, 0))
    residual = np.random.default_rng(2).normal(0, 1, (1, 6, 9, 18)).astype(np.float32)
    expected = conv2d_bias_act(x, weight, residual=residual)
    out = residual.copy()
    run_native(x, weight, out, out)
    assert np.array_equal(out, expected)
    memory = np.zeros(1 + residual.size + x.size, np.float32)
    out = memory[: residual.size].reshape(residual.shape)
    shifted = memory[1 : residual.size + 1].reshape(residual.shape)
    with pytest.raises(ValueError, match="out must be residual itself or not overlap it"):
        run_native(x, weight, shifted, out)
    with pytest.raises(ValueError, match="out must not overlap x"):
        run_native(memory[residual.size - 1 :][: x.size].reshape(x.shape), weight, None, out)
    run_native(memory[residual.size :][: x.size].reshape(x.shape), weight, None, out)  # touching is no overlap


# --- torch ---


def test_torch_gives_the_same(isa: str) -> None:
    x, weight, bias = random_arguments(((2, 6, 8, 3), (17, 3, 3), 2, 1))
    residual = np.ones((2, 3, 4, 17), np.float32)
    settings: dict[str, Any] = {"stride": 2, "padding": 1, "residual_scale": np.float32(0.25)}
    expected = conv2d_bias_act(x, weight, bias, residual=residual, **settings)
    tensors = [torch.from_numpy(value) for value in (x, weight, bias)]
    found = conv2d_bias_act(*tensors, residual=torch.from_numpy(residual), **settings)
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(conv2d_bias_act(tensors[0], tensors[1]).numpy(), conv2d_bias_act(x, weight))


@pytest.mark.parametrize("everything", [False, True])
def test_torch_operator_is_registered_soundly(everything: bool) -> None:
    x, weight, bias = map(torch.from_numpy, random_arguments(((1, 4, 5, 3), (6, 3, 3), 1, 1)))
    conv2d_bias_act(x, weight)  # registers
    optional = (bias, torch.ones(1, 4, 5, 6)) if everything else (None, None)
    torch.library.opcheck(torch.ops.yolonas.conv2d_bias_act.default, (x, weight, *optional, 1, 1, True, 0.5))


# --- arguments that do not fit ---

X, WEIGHT = np.zeros((1, 4, 5, 3), np.float32), np.zeros((6, 3, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": X[0]}, ValueError, r"x must have shape \(N, H, W, C\) and weight \(K, kh, kw, C\), got \(4, 5, 3\)"),
        ({"x": X.astype(np.float64)}, TypeError, "x must be float32, got float64"),
        ({"x": X.transpose(0, 2, 1, 3)}, ValueError, r"x of shape \(1, 5, 4, 3\) must be C-contiguous"),
        (
            {"x": np.zeros((1, 3, 4, 5), np.float32)},
            ValueError,
            r"\(K, kh, kw, C\) = \(\*, \*, \*, 5\), got \(6, 3, 3, 3",
        ),
        ({"x": np.zeros((1, 2, 2, 3), np.float32)}, ValueError, "a kernel of 3x3 must fit into the padded input"),
        (
            {"x": np.zeros((1, 4, 5, 0), np.float32), "weight": np.zeros((6, 3, 3, 0), np.float32)},
            ValueError,
            "channel",
        ),
        ({"weight": WEIGHT[:0]}, ValueError, r"at least one channel and tap, got \(0, 3, 3, 3\)"),
        ({"weight": WEIGHT[:, :0]}, ValueError, r"at least one channel and tap, got \(6, 0, 3, 3\)"),
        ({"weight": WEIGHT.astype(np.float16)}, TypeError, "weight must be float32, got float16"),
        ({"weight": None}, TypeError, "weight must be a NumPy array or a torch tensor, got NoneType"),
        ({"bias": np.zeros(5, np.float32)}, ValueError, r"bias must have shape \(K,\) = \(6\), got \(5,\)"),
        ({"bias": np.zeros(6)}, TypeError, "bias must be float32, got float64"),
        ({"bias": 0.5}, TypeError, "bias must be a NumPy array or a torch tensor, got float"),
        ({"residual": np.zeros((1, 2, 3, 5), np.float32)}, ValueError, r"= \(1, 2, 3, 6\), got \(1, 2, 3, 5\)"),
        ({"stride": 0}, ValueError, "stride must lie in 1..1024 and padding in 0..1023, got 0 and 0"),
        ({"padding": -1}, ValueError, "got 1 and -1"),
        ({"padding": 10**12}, ValueError, "padding in 0..1023"),
        ({"stride": 1.5}, TypeError, "float"),
        ({"residual_scale": float("inf")}, ValueError, "residual_scale must be finite, got inf"),
        ({"x": "picture"}, TypeError, "x must be a NumPy array or a torch tensor, got str"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {"x": X, "weight": WEIGHT, **change}
    with pytest.raises(error, match=text):
        conv2d_bias_act(**arguments)


def test_an_array_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="conv2d_bias_act: weight must lie on the CPU, got device cuda:0"):
        run_native(X, DLPackArray((6, 3, 3, 3), device=CUDA), None, np.zeros((1, 2, 3, 6), np.float32))
