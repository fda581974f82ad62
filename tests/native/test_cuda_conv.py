"""The tensor-core convolutions against plain ones: on a device where there is one, and everywhere through the emulator.

The emulator delays asynchronous copies until they are waited for and runs threads in several orders, so that a missing
wait or barrier shows. It says nothing about speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from emulated_cuda import FakeCudaTensor
from harness import guarded

from yolonas import _native
from yolonas.ops import reference

Arrays = dict[str, np.ndarray]
Views = dict[str, tuple[int, int]]  # first channel and number of channels of an array
Run = Callable[..., None]  # calls `_cuda._conv`, and writes to the arrays what it wrote


@pytest.fixture(
    params=[
        *(pytest.param(order, marks=pytest.mark.slow) for order in ("forward", "backward", "random:1")),
        pytest.param("device", marks=pytest.mark.cuda),
    ]
)
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    if request.param == "device":
        return on_device
    module = request.getfixturevalue("emulated")
    monkeypatch.setenv("YOLONAS_EMULATOR_ORDER", request.param)

    def call(arrays: Arrays, views: Views, in_place: bool, **settings: Any) -> None:
        copies = {name: guarded(array) for name, array in arrays.items()}
        sent = {name: FakeCudaTensor(cut(copy, views.get(name))) for name, copy in copies.items()}
        module._conv(**arguments(sent, in_place), **settings, stream=0)
        for name, array in arrays.items():
            array[...] = copies[name]

    return call


def on_device(arrays: Arrays, views: Views, in_place: bool, **settings: Any) -> None:
    torch = pytest.importorskip("torch")
    if _native.cuda() is None or not torch.cuda.is_available():
        pytest.skip("no CUDA device, or a build without yolonas._cuda")
    copies = {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}
    sent = {name: cut(copy, views.get(name)) for name, copy in copies.items()}
    _native.cuda()._conv(**arguments(sent, in_place), **settings, stream=torch.cuda.current_stream().cuda_stream)
    for name, array in arrays.items():
        array[...] = copies[name].cpu().numpy()


def arguments(sent: dict[str, Any], in_place: bool) -> dict[str, Any]:
    return {"multiplier": None, "residual": sent["y"] if in_place else None, **sent}


def cut(array: Any, view: tuple[int, int] | None) -> Any:
    return array if view is None else array[..., view[0] : view[0] + view[1]]


class Case(NamedTuple):
    batch: int
    size: tuple[int, int]
    in_c: int
    out_c: int
    kernel: int
    stride: int = 1
    relu: bool = True
    residual: str = ""  # "", "apart", "in place"
    transposed: bool = False
    y_dtype: str = ""  # as x
    beside: int = 16  # channels of y's pixels that are not its own


CASES = {
    "one tile": Case(1, (8, 8), 64, 64, 3),
    "edges": Case(2, (9, 7), 32, 80, 3, relu=False),
    "one by one": Case(1, (11, 13), 96, 48, 1),
    "stride": Case(2, (10, 14), 48, 96, 3, 2),
    "odd stride": Case(1, (9, 5), 16, 32, 3, 2),
    "input": Case(1, (16, 12), 16, 48, 3, 2),
    "residual": Case(1, (9, 9), 32, 32, 3, residual="apart"),
    "in place": Case(2, (5, 6), 48, 64, 3, residual="in place"),
    "transposed": Case(2, (5, 4), 64, 48, 1, transposed=True, relu=False),
    "head": Case(1, (6, 5), 64, 68, 1, relu=False, y_dtype="float32"),
    "head and residual": Case(1, (6, 5), 48, 36, 3, residual="apart", y_dtype="float32"),
    "transposed head": Case(1, (3, 2), 32, 8, 1, transposed=True, relu=False, y_dtype="float32"),
    "odd head": Case(1, (6, 5), 48, 3, 3, relu=False, y_dtype="float32"),
    "odd": Case(1, (4, 5), 32, 7, 1),
    "pairs": Case(1, (5, 5), 32, 32, 1, residual="in place", beside=10),
    "scalars": Case(1, (5, 5), 32, 32, 1, residual="in place", beside=9),
    "transposed pairs": Case(1, (2, 3), 32, 20, 1, transposed=True, beside=10),
    "transposed odd": Case(1, (2, 3), 32, 5, 1, transposed=True, beside=9),
    "head of scalars": Case(1, (3, 5), 16, 68, 1, y_dtype="float32", beside=9),
    "five": Case(1, (7, 6), 16, 16, 5),
    "one pixel": Case(1, (1, 1), 32, 32, 3),
    "deep": Case(1, (3, 4), 256, 40, 3),
}


def made(case: Case, dtype: str, seed: int = 0) -> tuple[Arrays, Views, np.ndarray]:
    """Arguments of a call, which of their channels it takes, and the result wanted, in float64 or exact."""
    rng = np.random.default_rng([seed, *(ord(letter) for letter in repr(case))])
    (height, width), by = case.size, 2 if case.transposed else 1
    out = tuple(((side - 1) // case.stride + 1) * by for side in case.size)
    y_dtype = np.dtype(case.y_dtype or dtype)

    def numbers(shape: tuple[int, ...], spread: float) -> np.ndarray:
        if dtype == "int8":
            return rng.integers(-127, 128, shape, np.int8)
        return rng.normal(0, spread, shape).astype(dtype)

    x = numbers((case.batch, height, width, case.in_c + 32), 1.0)
    taps = (2, 2, case.out_c) if case.transposed else (case.out_c, case.kernel, case.kernel)
    weight = numbers((*taps, case.in_c), (case.in_c * (1 if case.transposed else case.kernel**2)) ** -0.5)
    columns = case.out_c * by * by
    arrays = {"x": x, "weight": weight, "offset": rng.normal(0, 1, columns).astype(np.float32)}
    views = {"x": (16, case.in_c), "y": (8, case.out_c)}
    if dtype == "int8":
        spread = 60 / (127**2 * weight.shape[-1] ** 0.5)
        arrays["multiplier"] = (rng.uniform(0.5, 2, columns) * spread).astype(np.float32)
        arrays["offset"] *= 20
    arrays["y"] = np.full((case.batch, *out, case.out_c + case.beside), 77, y_dtype)
    residual, scale = None, 0.75
    if case.residual == "apart":
        arrays["residual"] = numbers((case.batch, *out, case.out_c + 8), 1.0)
        views["residual"] = (8, case.out_c)
        residual = cut(arrays["residual"], views["residual"])
    elif case.residual:
        arrays["y"][...] = numbers(arrays["y"].shape, 1.0)
        residual = cut(arrays["y"], views["y"]).copy()
    return arrays, views, expected(case, arrays, cut(x, views["x"]), residual, scale, y_dtype)


def expected(
    case: Case, arrays: Arrays, x: np.ndarray, residual: np.ndarray | None, scale: float, y_dtype: np.dtype
) -> np.ndarray:
    def convolved(weight: np.ndarray, channels: slice) -> np.ndarray:
        settings: dict[str, Any] = {"stride": case.stride, "padding": case.kernel // 2, "relu": case.relu}
        if x.dtype == np.int8:
            integers = {name: arrays[name][channels] for name in ("multiplier", "offset")}
            settings |= {"residual": residual, "residual_multiplier": scale, "dtype": y_dtype.type}
            return reference.conv2d_s8(x, weight, **integers, **settings)
        y = reference.conv2d_bias_act(
            *(a.astype(np.float64) for a in (x, weight, arrays["offset"][channels])), **settings
        )
        return y if residual is None else y + scale * residual.astype(np.float64)

    if not case.transposed:
        return convolved(arrays["weight"], slice(None))
    batch, height, width, _ = x.shape
    y = np.empty((batch, height, 2, width, 2, case.out_c), y_dtype if x.dtype == np.int8 else np.float64)
    for row in range(2):
        for column in range(2):
            first = (2 * row + column) * case.out_c
            weight = arrays["weight"][row, column][:, None, None]
            y[:, :, row, :, column] = convolved(weight, slice(first, first + case.out_c))
    return y.reshape(batch, 2 * height, 2 * width, case.out_c)


def check(run: Run, case: Case, dtype: str, variant: int = 0, splits: int = 1) -> None:
    arrays, views, wanted = made(case, dtype)
    arrays["counters"] = np.zeros(4096, np.int32)
    arrays["partial"] = np.full(1 << 18, np.nan, np.float32)
    before, in_place = arrays["y"].copy(), case.residual == "in place"
    settings: dict[str, Any] = {"stride": case.stride, "transposed": case.transposed, "relu": case.relu}
    for _ in range(2):  # the second time with counters as the first left them
        arrays["y"][...] = before
        run(arrays, views, in_place, **settings, residual_scale=0.75, variant=variant, splits=splits)
        got = cut(arrays["y"], views["y"])
        if dtype == "int8":
            np.testing.assert_array_equal(got, wanted)
        else:
            tolerance = 2e-3 if got.dtype == np.float16 else 1e-5
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
        cut(arrays["y"], views["y"])[...] = cut(before, views["y"])
        np.testing.assert_array_equal(arrays["y"], before)  # nothing was written beside it
        assert not arrays["counters"].any()


VARIANTS = 20  # of which the last 8 are Hopper's alone


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_cases(run: Run, case: str, dtype: str) -> None:
    check(run, CASES[case], dtype)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("variant", range(VARIANTS))
def test_variants(run: Run, variant: int, dtype: str) -> None:
    for splits in (1, 3):
        check(run, Case(1, (17, 9), 80, 144, 3, residual="in place"), dtype, variant, splits)
    check(run, CASES["transposed"], dtype, variant)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_splits(run: Run, dtype: str) -> None:
    """More parts than there are steps, parts that do not come out even, and residuals and heads after the sum."""
    for splits in (2, 4, 5, 64):
        check(run, CASES["deep"], dtype, 1, splits)
    check(run, CASES["in place"], dtype, 3, 2)
    check(run, CASES["odd head"], dtype, 0, 3)


def test_number_of_variants() -> None:
    module = _native.cuda()
    if module is None:
        pytest.skip("this build has no yolonas._cuda")
    assert len(module._conv_variants("float16")) == len(module._conv_variants("int8")) == VARIANTS
