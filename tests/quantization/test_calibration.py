"""Histograms of a network's layers over pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden_recipe import fill_
from harness import native, using_threads

from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS
from yolonas.quantization import Histogram, amax, collect_histograms, scale_of


@pytest.fixture(scope="module")
def engine() -> NativeEngine:
    return NativeEngine.of_module(fill_(YoloNAS("s", num_classes=3)))


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((*shape, 3), np.float32)


def assert_same(first: dict[str, Histogram], second: dict[str, Histogram]) -> None:
    assert list(first) == list(second)
    for name, one in first.items():
        other = second[name]
        assert np.array_equal(one.counts, other.counts), name
        assert (one.largest, one.negatives) == (other.largest, other.negatives), name


def test_every_step_and_the_input(engine: NativeEngine) -> None:
    x = pictures(2, 64, 96)
    histograms = collect_histograms(engine, [x[:1], x[1:]])
    plan = engine.plan((64, 96))
    assert list(histograms) == ["input", *(step["name"] for step in plan)]
    for step in plan:
        assert histograms[step["name"]].counts.sum() == 2 * np.prod(step["output"]), step["name"]
    given = Histogram.from_values(x)
    assert_same({"input": histograms["input"]}, {"input": given})
    cls, reg = engine.heads(x)
    for level in range(3):
        for kind, values in (("cls", cls[level]), ("reg", reg[level])):
            name = f"heads.head{level + 1}.{kind}_pred"
            assert_same({name: histograms[name]}, {name: Histogram.from_values(values)})
    assert histograms["backbone.stem.conv"].negatives == 0  # after a ReLU
    assert histograms["heads.head1.reg_pred"].negatives > 0


def test_batches_sizes_and_threads(engine: NativeEngine) -> None:
    wide, tall = pictures(3, 32, 64), pictures(2, 96, 32, seed=1)
    expected = collect_histograms(engine, [wide, tall])
    with using_threads(3):
        found = collect_histograms(engine, (one[None] for one in [*tall, *wide]))
    assert_same(found, expected)


def test_progress(engine: NativeEngine) -> None:
    told: list[int] = []
    collect_histograms(engine, iter([pictures(3, 32, 32), pictures(1, 32, 32)]), progress=told.append)
    assert told == [3, 1]


@pytest.mark.parametrize("batches", [[], (), iter([])], ids=["list", "tuple", "iterator"])
def test_no_pictures(engine: NativeEngine, batches: Any) -> None:
    with pytest.raises(ValueError, match="calibration: pictures must be at least one, got none"):
        collect_histograms(engine, batches)


def test_wrong_pictures_are_named(engine: NativeEngine) -> None:
    x = pictures(1, 32, 32)
    for wrong, error, text in (
        (x.astype(np.float64), TypeError, "x must be float32, got float64"),
        (x[0], ValueError, r"x must have shape \(N, H, W, C\)"),
        (x[:0], ValueError, "batch must have at least one picture, got 0"),
        (x * np.float32(np.nan), ValueError, "x must be finite"),
        ("picture.jpg", TypeError, "x must be an array"),
    ):
        with pytest.raises(error, match=text):
            collect_histograms(engine, [x, wrong])


def chain(*weights: float, bias: float = 0.0) -> NativeEngine:
    """1x1 convolutions with these weights, each "layer N"; the last two are the outputs."""
    buffers = [(0, 3)] + [(0, 2)] * len(weights)
    steps = [
        {
            **{"op": "conv", "name": f"layer {at}", "input": (at, 0, 3 if at == 0 else 2), "output": (at + 1, 0, 2)},
            **{"weight": np.full((2, 3 if at == 0 else 2, 1, 1), weight, np.float32), "stride": 1, "relu": True},
            "bias": np.full(2, bias, np.float32),
        }
        for at, weight in enumerate(weights)
    ]
    outputs = [{"cls": (len(weights) - 1, 0, 2), "reg": (len(weights), 0, 2), "stride": 1}]
    return NativeEngine(native().Engine(buffers, steps, outputs), 2)


def test_layers_that_are_not_finite_are_named() -> None:
    with pytest.raises(ValueError, match=r"outputs of 'layer 2' must be finite, got 32 that are .* first 3 pictures"):
        collect_histograms(chain(1.0, 1e30, 1e30, 1.0), [1e-30 * pictures(2, 4, 4), 1 + pictures(1, 4, 4)])


def test_layers_of_zeros() -> None:
    histograms = collect_histograms(chain(1.0, -1.0, 1.0), [pictures(1, 4, 4)])
    assert [amax(one, "entropy") > 0 for one in histograms.values()] == [True, True, False, False]
    assert scale_of(amax(histograms["layer 1"], "mse")) == 1


def test_steps_of_one_name_share_a_histogram() -> None:
    pools = [
        {"op": "max_pool5", "name": "pool", "input": (0, 0, 3), "output": (1, 0, 3)},
        {"op": "max_pool5", "name": "pool", "input": (1, 0, 3), "output": (2, 0, 3)},
    ]
    outputs = [{"cls": (1, 0, 3), "reg": (2, 0, 3), "stride": 1}]
    two = NativeEngine(native().Engine([(0, 3), (0, 3), (0, 3)], pools, outputs), 3)
    x = pictures(1, 6, 6)
    histograms = collect_histograms(two, [x])
    assert list(histograms) == ["input", "pool"]
    assert histograms["pool"].counts.sum() == 2 * x.size
