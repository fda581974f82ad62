"""Bias correction against means written out on the values themselves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from harness import using_threads
from quantized_networks import narrow, picture, quantize_

from yolonas.lowering import lower
from yolonas.nn import YoloNAS
from yolonas.quantization.bias_correction import correct_bias_
from yolonas.quantization.reference import at, run_integer
from yolonas.quantized_graph import quantized_graph

X = picture(3, 64, 32)


@pytest.fixture(scope="module", params=["s", "m"])
def network(request: pytest.FixtureRequest) -> YoloNAS:
    return quantize_(narrow(request.param), X)


def biases(model: YoloNAS) -> dict[str, np.ndarray]:
    return {step["name"]: step["bias"].astype(np.float64) for step in lower(model).steps if "bias" in step}


def outputs(model: YoloNAS, x: np.ndarray = X) -> dict[str, np.ndarray]:
    return run_integer(quantized_graph(lower(model), model.activation_scales), x)


def test_it_takes_the_mean_error_of_the_weights_out(network: YoloNAS) -> None:
    corrected = correct_bias_(copy.deepcopy(network), [X])
    graph, plain = quantized_graph(lower(network), network.activation_scales), lower(network)
    written = outputs(network)
    buffers = [np.zeros((3, 64 >> one.downscale, 32 >> one.downscale, one.channels)) for one in graph.buffers]
    before, after, weights = (
        biases(network),
        biases(corrected),
        {step["name"]: step.get("weight") for step in plain.steps},
    )
    changed = 0
    for step in graph.steps:
        name, out = step["name"], step["output"]
        if "weight" in step:
            mean = at(buffers, step["input"]).mean(axis=(0, 1, 2))[: weights[name].shape[step["op"] != "upsample"]]
            taps = "ckhw,c->k" if step["op"] == "upsample" else "kchw,c->k"
            scale = step["weight_scale"].astype(np.float64).reshape([-1, 1, 1] if taps[0] == "c" else [-1, 1, 1, 1])
            rounded = step["weight"][:, : len(mean)] if taps[0] == "k" else step["weight"]
            expected = -np.einsum(taps, rounded * scale - weights[name], mean) / (4 if taps[0] == "c" else 1)
            np.testing.assert_allclose(after[name] - before[name], expected, atol=1e-6 * np.abs(before[name]).max())
            changed += np.count_nonzero(expected)
        scale = graph.buffers[out.buffer].scale
        at(buffers, out)[...] = written[name] * (scale or 1.0)
    assert changed > 500


def test_pixels_are_what_counts(network: YoloNAS) -> None:
    """Not how they come: in batches, in another order, by more threads. Sizes may differ."""
    expected = biases(correct_bias_(copy.deepcopy(network), [X, X[:1, :32]]))
    with using_threads(3):
        found = biases(correct_bias_(copy.deepcopy(network), iter([X[2:], X[:1, :32], X[:2]])))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_means_come_closer(network: YoloNAS) -> None:
    """Of the layers' outputs: to those of the float network."""
    whole = copy.deepcopy(network)
    whole.activation_scales = {}
    for module in whole.modules():
        if hasattr(module, "weight_scale"):
            del module.weight_scale
    expected = run_integer(lower(whole), X)
    names = [f"heads.head{level}.{kind}_pred" for level in (1, 2, 3) for kind in ("cls", "reg")]

    def error(model: YoloNAS) -> float:
        found = outputs(model)
        return sum(float(np.abs((found[name] - expected[name]).mean(axis=(0, 1, 2))).mean()) for name in names)

    assert error(correct_bias_(copy.deepcopy(network), [X])) < error(network)


def test_rounded_weights_need_none(network: YoloNAS) -> None:
    rounded = copy.deepcopy(network)
    for step in lower(rounded).steps:
        for module in step.get("modules", ()):
            shape = (1, -1, 1, 1) if step["op"] == "upsample" else (-1, 1, 1, 1)
            scale = module.weight_scale.reshape(shape)
            module.weight.data = (module.weight / scale).round().clamp(-127, 127) * scale
    before = biases(rounded)
    after = biases(correct_bias_(rounded, [X]))
    assert all(np.allclose(after[name], before[name], rtol=1e-6, atol=1e-6) for name in before)


def test_layers_in_float_stay_as_they_are() -> None:
    network = quantize_(narrow("s"), X, lambda name: name.startswith("neck."))
    before = biases(network)
    told: list[int] = []
    after = biases(correct_bias_(network, [X[:2], X], progress=told.append))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("neck.")}
    assert told == [2, 3]


def test_no_pictures(network: YoloNAS) -> None:
    with pytest.raises(ValueError, match="bias correction: pictures must be at least one, got none"):
        correct_bias_(copy.deepcopy(network), [])
