"""Scales of weights and of buffers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from quantized_networks import narrow, picture

from yolonas.lowering import lower
from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS
from yolonas.quantization import METHODS, Histogram, amax, collect_histograms, scale_of
from yolonas.quantization.calibrators import percentile
from yolonas.quantization.ranges import set_ranges, weight_scales
from yolonas.quantization.reference import run_integer
from yolonas.quantized_graph import quantized_graph

X = picture(2, 64, 32)


@pytest.fixture(scope="module")
def network() -> YoloNAS:
    return narrow("m")


@pytest.fixture(scope="module")
def histograms(network: YoloNAS) -> dict[str, Histogram]:
    return collect_histograms(NativeEngine.of_module(network), [X])


# --- weights ---


def test_no_weight_is_clipped() -> None:
    weight = np.random.default_rng(0).normal(0, 1, (16, 8, 3, 3)).astype(np.float32)
    scale = weight_scales(weight)
    assert scale.dtype == np.float32
    assert np.array_equal(scale, np.abs(weight).max(axis=(1, 2, 3)) / np.float32(127))
    assert np.abs(np.rint(weight / scale[:, None, None, None])).max() == 127


def test_channels_of_zeros() -> None:
    weight = np.zeros((3, 2, 1, 1), np.float32)
    weight[1] = 1e-45
    weight[2] = -2.54
    assert weight_scales(weight).tolist() == [1, 1, np.float32(2.54) / np.float32(127)]


# --- a network ---


@pytest.mark.parametrize("method", [*METHODS, "percentile 99.9"])
def test_scales_of_a_network(network: YoloNAS, histograms: dict[str, Histogram], method: str) -> None:
    model = copy.deepcopy(network)
    name, _, percent = method.partition(" ")
    set_ranges(model, histograms, name, *([float(percent)] if percent else []))
    graph = lower(model)
    assert set(model.activation_scales) == {"input", *(step["name"] for step in graph.steps)}
    find = (lambda one: percentile(one, float(percent))) if percent else (lambda one: amax(one, name))
    widest: dict[int, float] = {}
    for step in graph.steps:
        number = step["output"].buffer
        widest[number] = max(widest.get(number, 0.0), find(histograms[step["name"]]))
        for module in step.get("modules", ()):
            outputs = module.weight.transpose(0, 1) if step["op"] == "upsample" else module.weight
            assert torch.equal(module.weight_scale, outputs.abs().amax((1, 2, 3)) / 127)
    for step in graph.steps:
        assert model.activation_scales[step["name"]] == scale_of(widest[step["output"].buffer])
    assert model.activation_scales["input"] == scale_of(histograms["input"].largest)  # not clipped


def test_the_quantised_network_runs(network: YoloNAS, histograms: dict[str, Histogram]) -> None:
    """In integers, as the reference does, and not far from the float network."""
    model = copy.deepcopy(network)
    set_ranges(model, histograms, "max")
    found, plain = NativeEngine.of_module(model).heads(X), NativeEngine.of_module(network).heads(X)
    graph = quantized_graph(lower(model), model.activation_scales)
    expected = run_integer(graph, X)
    for kind, levels, plain_levels in zip(("cls", "reg"), found, plain, strict=True):
        for number, (level, other) in enumerate(zip(levels, plain_levels, strict=True), start=1):
            assert np.array_equal(level, expected[f"heads.head{number}.{kind}_pred"])
            assert np.sqrt(np.mean((level - other) ** 2)) < 0.2 * np.sqrt(np.mean(other**2))


def test_layers_of_zeros_have_a_scale_of_1() -> None:
    model = narrow("s")
    conv = model.backbone.stage2.downsample.rbr_reparam
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.fill_(-1.0)
    set_ranges(model, collect_histograms(NativeEngine.of_module(model), [X]))
    assert model.activation_scales["backbone.stage2.downsample"] == 1
    assert (conv.weight_scale == 1).all()
    cls, reg = NativeEngine.of_module(model).heads(X)
    assert all(np.isfinite(level).all() for level in [*cls, *reg])


def test_wrong_histograms_and_methods_are_named(network: YoloNAS, histograms: dict[str, Any]) -> None:
    few = {name: one for name, one in histograms.items() if name != "neck.neck1.upsample"}
    with pytest.raises(ValueError, match=r"histograms must be of this network, got none of 'neck.neck1.upsample'"):
        set_ranges(copy.deepcopy(network), few)
    with pytest.raises(ValueError, match="method must be one of max, percentile, entropy, mse, got 'best'"):
        set_ranges(copy.deepcopy(network), histograms, "best")
    with pytest.raises(ValueError, match="percent must be above 0 and at most 100, got 0"):
        set_ranges(copy.deepcopy(network), histograms, "percentile", 0)
