"""Fake quantisation, bit for bit as torch's, its gradient, and arguments that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from harness import CUDA, LENGTHS, DLPackArray, bits, guarded, guarded_empty, native

from yolonas.ops import fake_quantize, reference

SPECIAL = np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-42, -1e-42, 0.0, -0.0, 4194304.5, 8388609.0, 2**31])


def some_values(seed: int, shape: tuple[int, ...], scale: float = 0.05) -> np.ndarray:
    """Values inside and outside the range, exact ties and special ones."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 80 * scale, shape).astype(np.float32)
    ties = rng.random(shape) < 0.3
    x[ties] = ((rng.integers(-140, 140, shape) + 0.5) * np.float32(scale)).astype(np.float32)[ties]
    special = rng.random(shape) < 0.2
    x[special] = rng.choice(SPECIAL, shape)[special]
    return x


def torch_result(x: np.ndarray, scale: Any, axis: int | None, low: int = -128, high: int = 127) -> np.ndarray:
    tensor = torch.from_numpy(x)
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(tensor, float(np.float32(scale)), 0, low, high).numpy()
    scales = torch.from_numpy(np.float32(scale))
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(tensor, scales, zeros, axis, low, high).numpy()


def tame(x: np.ndarray) -> np.ndarray:
    """Without the values for which torch's per-channel form overflows."""
    return np.where(np.isfinite(x) & (np.abs(x) < 1e9), x, np.float32(0)).astype(np.float32)


# --- values ---


@pytest.mark.parametrize("scale", [0.05, 1.0, 0.3, 2**-126, 1e30, 1e-39])
def test_one_scale_is_torch_bit_for_bit(isa: str, scale: float) -> None:
    for length in LENGTHS:
        x = some_values(length, (length,), scale)
        out = fake_quantize(x, scale)
        assert out.shape == x.shape
        assert np.array_equal(bits(out), bits(reference.fake_quantize(x, scale)))
        assert np.array_equal(bits(out), bits(torch_result(x, scale, None)))


@pytest.mark.parametrize(
    "shape", [(1,), (17,), (3, 5), (4, 1), (1, 9), (2, 3, 5), (3, 2, 4, 7), (5, 8, 1, 1), (2, 1, 3)]
)
def test_a_scale_per_channel_of_every_axis_is_torch_bit_for_bit(isa: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    for axis in range(-len(shape), len(shape)):
        scale = rng.uniform(0.01, 0.2, shape[axis]).astype(np.float32)
        x = some_values(7, shape)
        out = fake_quantize(x, scale, axis=axis)
        assert np.array_equal(bits(out), bits(reference.fake_quantize(x, scale, axis=axis)))
        if axis >= 0:
            x = tame(x)
            assert np.array_equal(bits(fake_quantize(x, scale, axis=axis)), bits(torch_result(x, scale, axis)))


def test_channels_side_by_side(isa: str) -> None:
    """Last axis: every vector holds several scales."""
    for channels in range(1, 18):
        scale = np.linspace(0.01, 0.3, channels, dtype=np.float32)
        x = tame(some_values(channels, (6, channels)))
        assert np.array_equal(bits(fake_quantize(x, scale, axis=1)), bits(torch_result(x, scale, 1)))
        x = tame(some_values(channels, (channels, 5)))
        assert np.array_equal(bits(fake_quantize(x, scale, axis=0)), bits(torch_result(x, scale, 0)))


def test_large_tensors_cross_the_pieces_of_threads(isa: str) -> None:
    for shape, axis in (
        ((70_001,), None),
        ((3, 40_000), 0),
        ((40_000, 3), 1),
        ((2, 33_000, 2), 1),
        ((64, 3, 3, 64), 0),
    ):
        x = tame(some_values(1, shape))
        scale = 0.05 if axis is None else np.linspace(0.01, 0.2, shape[axis], dtype=np.float32)
        assert np.array_equal(bits(fake_quantize(x, scale, axis=axis)), bits(torch_result(x, scale, axis)))


@pytest.mark.parametrize("limits", [(-127, 127), (0, 255), (-8, 7), (-32768, 32767), (0, 1)], ids=str)
def test_other_ranges(isa: str, limits: tuple[int, int]) -> None:
    x = some_values(3, (257,))
    out = fake_quantize(x, 0.05, quant_min=limits[0], quant_max=limits[1])
    assert np.array_equal(bits(out), bits(torch_result(x, 0.05, None, *limits)))


def test_ties_go_to_even_and_ends_saturate(isa: str) -> None:
    x = np.float32(
        [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, 1000, -127.5, -128.5, -1000, np.nan, np.inf, -np.inf]
    )
    expected = [0, 2, 2, 0, -2, -2, 126, 127, 127, -128, -128, -128, -128, 127, -128]
    assert fake_quantize(x, 1.0).tolist() == expected
    assert not np.signbit(fake_quantize(np.float32([-0.0, -0.3]), 1.0)).any()


def test_quantising_twice_changes_nothing(isa: str) -> None:
    once = fake_quantize(some_values(5, (1000,)), 0.05)
    assert np.array_equal(bits(fake_quantize(once, 0.05)), bits(once))


@pytest.mark.parametrize(
    ("shape", "axis"), [((0,), None), ((0,), 0), ((0, 5), 0), ((0, 5), 1), ((5, 0), 0), ((5, 0), 1), ((2, 0, 3), 1)]
)
def test_nothing_to_do(isa: str, shape: tuple[int, ...], axis: int | None) -> None:
    scale = np.ones(1 if axis is None else shape[axis], np.float32)
    assert fake_quantize(np.zeros(shape, np.float32), scale, axis=axis).shape == shape


def test_a_single_number(isa: str) -> None:
    assert fake_quantize(np.array(0.26, np.float32), 0.1) == np.float32(3) * np.float32(0.1)


@pytest.mark.parametrize("front", [False, True])
def test_nothing_beyond_the_arrays_is_touched(isa: str, front: bool) -> None:
    for shape, axis in (((1,), -1), ((7,), -1), ((9,), -1), ((33,), -1), ((3, 9), 1), ((3, 9), 0), ((5, 1), 0)):
        x = guarded(some_values(2, shape), front=front)
        scale = guarded(np.full(1 if axis < 0 else shape[axis], 0.05, np.float32), front=front)
        out, grad = guarded_empty(shape, np.float32, front=front), guarded(np.ones(shape, np.float32), front=front)
        native().fake_quantize(x, scale, out, axis=axis, quant_min=-128, quant_max=127)
        assert np.array_equal(bits(out), bits(reference.fake_quantize(x, 0.05)))
        native().fake_quantize_backward(grad, x, scale, out, axis=axis, quant_min=-128, quant_max=127)
        assert np.array_equal(out, reference.fake_quantize_backward(grad, x, 0.05))


def test_in_place(isa: str) -> None:
    x = some_values(8, (100,))
    expected, scale = fake_quantize(x, 0.05), np.float32([0.05])
    native().fake_quantize(x, scale, x, axis=-1, quant_min=-128, quant_max=127)
    assert np.array_equal(bits(x), bits(expected))


# --- torch and its gradient ---


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_gradient_is_that_of_torch(isa: str, axis: int | None) -> None:
    x = tame(some_values(9, (4, 5, 6)))
    scale = np.float32([0.05]) if axis is None else np.linspace(0.02, 0.1, x.shape[axis], dtype=np.float32)
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 1, x.shape).astype(np.float32))
    ours, theirs = (torch.from_numpy(x.copy()).requires_grad_() for _ in range(2))
    out = fake_quantize(ours, torch.from_numpy(scale), axis=axis)
    (out * weight).sum().backward()
    if axis is None:
        expected = torch.fake_quantize_per_tensor_affine(theirs, float(scale[0]), 0, -128, 127)
    else:
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(theirs, torch.from_numpy(scale), zeros, axis, -128, 127)
    (expected * weight).sum().backward()
    assert torch.equal(out, expected)
    assert torch.equal(ours.grad, theirs.grad)
    assert 0 < int((ours.grad == 0).sum()) < x.size


def test_gradient_is_one_inside_and_nothing_outside(isa: str) -> None:
    x = torch.tensor([-129.0, -128.6, -128.4, 0.0, 0.5, 127.4, 127.6, 500.0, float("nan"), float("inf")])
    x.requires_grad_()
    fake_quantize(x, 1.0).sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]


def test_gradient_arrives_from_a_view_that_is_not_contiguous(isa: str) -> None:
    x = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
    fake_quantize(x, 0.05).t().square().sum().backward()
    assert torch.allclose(x.grad, 2 * fake_quantize(x.detach(), 0.05))


def test_scale_gets_no_gradient() -> None:
    x, scale = torch.ones(3, requires_grad=True), torch.tensor([0.1], requires_grad=True)
    fake_quantize(x, scale).sum().backward()
    assert scale.grad is None


def test_torch_and_numpy_give_the_same_for_scales_of_any_kind(isa: str) -> None:
    x = some_values(10, (3, 8))
    expected = fake_quantize(x, np.float32([0.1, 0.2, 0.3]), axis=0)
    for scale in ([0.1, 0.2, 0.3], (0.1, 0.2, 0.3), torch.tensor([0.1, 0.2, 0.3])):
        assert np.array_equal(bits(fake_quantize(torch.from_numpy(x), scale, axis=0)), bits(expected))
    assert np.array_equal(bits(fake_quantize(x, [0.1, 0.2, 0.3], axis=-2)), bits(expected))
    assert np.array_equal(bits(fake_quantize(torch.from_numpy(x), torch.tensor(0.1))), bits(fake_quantize(x, 0.1)))


@pytest.mark.parametrize("axis", [-1, 1])
def test_torch_operators_are_registered_soundly(axis: int) -> None:
    x = torch.linspace(-20, 20, 12).reshape(3, 4)
    scale = torch.full((1 if axis < 0 else 4,), 0.1)
    fake_quantize(x, 0.1)  # registers
    torch.library.opcheck(torch.ops.yolonas.fake_quantize.default, (x, scale, axis, -128, 127))
    grad_input = x.clone().requires_grad_()
    torch.library.opcheck(torch.ops.yolonas.fake_quantize.default, (grad_input, scale, axis, -128, 127))
    arguments = (torch.ones_like(x), x, scale, axis, -128, 127)
    torch.library.opcheck(torch.ops.yolonas.fake_quantize_backward.default, arguments)


def test_torch_compile_traces_forward_and_backward() -> None:
    def layer(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.relu(fake_quantize(x, 0.05) @ fake_quantize(weight, scale, axis=0).t())

    x, weight, scale = torch.randn(4, 6).requires_grad_(), torch.randn(5, 6).requires_grad_(), torch.full((5,), 0.02)
    expected = torch.autograd.grad(layer(x, weight, scale).sum(), (x, weight))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(x, weight, scale).sum(), (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --- arguments that do not fit ---

X = np.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("x", "scale", "settings", "error", "text"),
    [
        (X.astype(np.float64), 0.1, {}, TypeError, "x must be float32, got float64"),
        (X.astype(np.float16), 0.1, {}, TypeError, "x must be float32, got float16"),
        (X.transpose(2, 0, 1), 0.1, {}, ValueError, r"x of shape \(4, 2, 3\) must be C-contiguous"),
        (X, 0.0, {}, ValueError, "scale must be positive and finite, got 0 for channel 0"),
        (X, -0.1, {}, ValueError, "scale must be positive and finite, got -0.1"),
        (X, [0.1, float("nan"), 0.2], {"axis": 1}, ValueError, "got nan for channel 1"),
        (X, [0.1, float("inf"), 0.2], {"axis": 1}, ValueError, "got inf for channel 1"),
        (X, [0.1, 0.2], {}, ValueError, r"scale must have shape \(channels,\) = \(1\), got \(2,\)"),
        (X, [0.1, 0.2], {"axis": 1}, ValueError, r"scale must have shape \(channels,\) = \(3\), got \(2,\)"),
        (X, 0.1, {"axis": 3}, ValueError, r"axis must name an axis of x \(2, 3, 4\), got 3"),
        (X, 0.1, {"axis": -4}, ValueError, "got -4"),
        (X, 0.1, {"quant_min": 5, "quant_max": 5}, ValueError, "quant_min must be below quant_max"),
        (X, 0.1, {"quant_max": 40_000}, ValueError, "both within 16 bits, got -128 and 40000"),
        ([0.5], 0.1, {}, TypeError, "x must be a NumPy array or a torch tensor, got list"),
        (None, 0.1, {}, TypeError, "got NoneType"),
        (X, "wide", {}, TypeError, "scale must be an array or real numbers, got str"),
        (X, None, {}, TypeError, "scale must be an array or real numbers, got NoneType"),
        (X, ["wide"], {}, TypeError, "scale must be an array of real numbers, got <U4"),
    ],
)
def test_wrong_arguments_are_named(
    x: Any, scale: Any, settings: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        fake_quantize(x, scale, **settings)
    if isinstance(x, np.ndarray) and "numbers" not in text:
        with pytest.raises(error, match=text):
            fake_quantize(torch.from_numpy(x), torch.tensor(scale), **settings)


def test_numpy_and_torch_do_not_mix() -> None:
    for x, scale in ((X, torch.ones(1)), (torch.from_numpy(X), np.ones(1, np.float32))):
        with pytest.raises(TypeError, match="scale must be of the same kind"):
            fake_quantize(x, scale)


def test_an_array_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="fake_quantize: x must lie on the CPU, got device cuda:0"):
        native().fake_quantize(
            DLPackArray((2,), device=CUDA), np.ones(1, np.float32), np.zeros(2, np.float32), axis=-1, quant_min=-128,
            quant_max=127,
        )  # fmt: skip
