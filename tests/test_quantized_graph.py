"""Mixed graphs of integer and float steps: what reads and writes which buffer, and the numbers of the reference."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from quantized_networks import narrow, picture, quantize_

from yolonas.config import VARIANTS
from yolonas.lowering import INPUT, Buffer, Graph, View, lower
from yolonas.native_engine import NativeEngine, native_of_graph
from yolonas.nn import YoloNAS
from yolonas.quantization.reference import (
    at,
    fake_quantized_step,
    integer_step,
    run_fake_quantized,
    run_integer,
)
from yolonas.quantized_graph import quantized_graph, quantized_weight

X = picture(1, 32, 64)


@pytest.fixture(scope="module", params=VARIANTS)
def network(request: pytest.FixtureRequest) -> YoloNAS:
    return narrow(request.param)


def mixed(network: YoloNAS, kept: Callable[[str], bool] = lambda name: False) -> Graph:
    quantized = quantize_(copy.deepcopy(network), X, kept)
    return quantized_graph(lower(quantized), quantized.activation_scales)


def random_choice(network: YoloNAS, seed: int) -> tuple[set[str], Graph]:
    """Some steps in float, few to most of them."""
    choose = random.Random(seed)
    share = choose.choice([0.02, 0.1, 0.5, 0.9])
    kept = {step["name"] for step in lower(network).steps if choose.random() < share}
    return kept, mixed(network, kept.__contains__)


def channels(view: View) -> set[int]:
    return set(range(view.offset, view.offset + view.channels))


def reads(step: dict[str, Any]) -> list[View]:
    return [view for view in (step["input"], step.get("residual")) if view is not None]


def assert_sound(graph: Graph) -> None:
    """Every channel is written before it is read, once but for what happens in place, and every type is right."""
    written: list[set[int]] = [set() for _ in graph.buffers]
    written[INPUT] = {0, 1, 2}
    assert graph.buffers[INPUT] == Buffer(0, 3)
    seen: dict[int, list[dict[str, Any]]] = {}
    for step in graph.steps:
        name, op, out = step["name"], step["op"], step["output"]
        for view in reads(step):
            assert written[view.buffer] >= channels(view), f"{name} reads what nothing has written"
            assert op == "max_pool5" or view == step.get("residual") or view.buffer != out.buffer
        in_place = out == step.get("residual")
        assert op == "quantize" or in_place or not written[out.buffer] & channels(out), f"{name} overwrites"
        written[out.buffer] |= channels(out)

        scales = [graph.buffers[view.buffer].scale for view in reads(step)]
        to = graph.buffers[out.buffer].scale
        if op == "quantize":
            assert scales == [0]
            assert to > 0
        elif op == "dequantize":
            assert scales[0] > 0
            assert to == 0
        elif op == "max_pool5":
            assert step["input"].buffer == out.buffer
        elif step["weight_scale"] is None:
            assert scales == [0] * len(scales)
            assert to == 0
            assert step["weight"].dtype == step["bias"].dtype == np.float32
        else:
            assert min(scales) > 0
            assert [step[key].dtype for key in ("weight", "weight_scale", "bias")] == [np.int8, np.float32, np.float32]
            assert abs(step["weight"].astype(int)).max() == 127
        for view in reads(step):
            seen.setdefault(view.buffer, []).append(step)
    assert [len(found) for found in written] == [buffer.channels for buffer in graph.buffers]
    for number, buffer in enumerate(graph.buffers):
        integers = [step for step in seen.get(number, ()) if step.get("weight_scale") is not None]
        assert bool(integers) == (buffer.scale > 0), "int8 is what an integer step reads"
    for level in graph.outputs:
        assert graph.buffers[level["cls"].buffer].scale == graph.buffers[level["reg"].buffer].scale == 0
    assert len({step["name"] for step in graph.steps}) == len(graph.steps)


def conversions(graph: Graph) -> list[str]:
    return [step["name"] for step in graph.steps if step["op"] in ("quantize", "dequantize")]


# --- structure ---


def test_all_integer(network: YoloNAS) -> None:
    graph = mixed(network)
    assert_sound(graph)
    assert conversions(graph) == ["input.quantize"]
    first, stem = graph.steps[:2]
    assert first["output"].channels == stem["input"].channels == stem["weight"].shape[1] == 4
    assert not stem["weight"][:, 3].any()
    assert [step["name"] for step in graph.steps[1:]] == [step["name"] for step in lower(network).steps]
    floats = {number for number, buffer in enumerate(graph.buffers) if not buffer.scale}
    assert floats == {INPUT} | {level[kind].buffer for level in graph.outputs for kind in ("cls", "reg")}


def test_all_float(network: YoloNAS) -> None:
    """The graph stays the very same, and so do its numbers."""
    graph, plain = mixed(network, lambda name: True), lower(network)
    assert_sound(graph)
    assert graph.buffers == plain.buffers
    assert graph.outputs == plain.outputs
    for step, other in zip(graph.steps, plain.steps, strict=True):
        assert step.keys() == other.keys()
        assert all(np.array_equal(step[key], other[key]) for key in without_modules(step))
    for found, expected in zip(run_integer(graph, X).values(), run_fake_quantized(plain, X).values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_any_steps_in_float(network: YoloNAS, seed: int) -> None:
    kept, graph = random_choice(network, seed)
    assert_sound(graph)
    for step in graph.steps:
        if step["op"] in ("conv", "upsample"):
            assert (step["weight_scale"] is None) == (step["name"] in kept)


@pytest.mark.parametrize("csp", ["backbone.stage1.blocks", "neck.neck2.blocks"])
@pytest.mark.parametrize(
    "part", ["conv1+conv2", "bottlenecks.0.cv1", "bottlenecks.0.cv2", "bottlenecks.1.cv2", "conv3"]
)
def test_one_float_step_in_a_csp_layer(network: YoloNAS, csp: str, part: str) -> None:
    name = f"{csp}.{part}"
    graph = mixed(network, name.__eq__)
    assert_sound(graph)
    # What only this step reads is float32 already.
    first = {"conv1+conv2": [], "cv2": [f"{name}.residual.dequantize"]}.get(part.split(".")[-1], [f"{name}.dequantize"])
    assert conversions(graph) == ["input.quantize", *first, f"{name}.quantize"]
    if part.endswith("cv2") and csp.startswith("neck"):  # which works in place
        steps = {step["name"]: step for step in graph.steps}
        assert steps[f"{name}.quantize"]["output"] == steps[f"{name}.residual.dequantize"]["input"]


def test_float_stem(network: YoloNAS) -> None:
    graph = mixed(network, "backbone.stem.conv".__eq__)
    assert_sound(graph)
    assert conversions(graph) == ["backbone.stem.conv.quantize"]


def test_neighbours_in_float_need_no_int8(network: YoloNAS) -> None:
    graph = mixed(network, lambda name: name.startswith("heads."))
    assert_sound(graph)
    # The neck reads the first two maps itself.
    assert conversions(graph)[1:] == [f"heads.head{level}.stem.dequantize" for level in (1, 2)]


def test_pyramid_pooling_takes_the_type_of_its_buffer(network: YoloNAS) -> None:
    spp = "backbone.context_module"
    for kept, is_int8 in (([], True), ([f"{spp}.cv1"], True), ([f"{spp}.cv2"], False)):
        graph = mixed(network, kept.__contains__)
        pools = [step for step in graph.steps if step["op"] == "max_pool5"]
        assert [graph.buffers[step["input"].buffer].scale > 0 for step in pools] == [is_int8] * 3


def test_buffers_have_the_scale_of_their_writers(network: YoloNAS) -> None:
    quantized = quantize_(copy.deepcopy(network), X)
    graph = quantized_graph(lower(quantized), quantized.activation_scales)
    for step in graph.steps[1:]:
        scale = graph.buffers[step["output"].buffer].scale
        assert scale in (0, quantized.activation_scales[step["name"]])
    assert graph.buffers[graph.steps[0]["output"].buffer].scale == quantized.activation_scales["input"]


def test_the_lowered_graph_stays_as_it_is(network: YoloNAS) -> None:
    quantized = quantize_(copy.deepcopy(network), X)
    graph = lower(quantized)
    before = copy.deepcopy([[graph.buffers], [without_modules(step) for step in graph.steps]])
    quantized_graph(graph, quantized.activation_scales)
    assert [graph.buffers] == before[0]
    for step, other in zip(graph.steps, before[1], strict=True):
        assert all(np.array_equal(step[key], other[key]) for key in other)


def without_modules(step: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key != "modules"}


def test_weights_that_were_rounded_give_the_same_integers(network: YoloNAS) -> None:
    """As they are after a quantised network was stored and read."""
    quantized = quantize_(copy.deepcopy(network), X)
    before = quantized_graph(lower(quantized), quantized.activation_scales)
    for step in lower(quantized).steps:
        for module in step.get("modules", ()):
            shape = (1, -1, 1, 1) if step["op"] == "upsample" else (-1, 1, 1, 1)
            scale = module.weight_scale.reshape(shape)
            module.weight.data = torch.clamp(torch.round(module.weight / scale), -127, 127) * scale
    after = quantized_graph(lower(quantized), quantized.activation_scales)
    for step, other in zip(before.steps, after.steps, strict=True):
        assert np.array_equal(step.get("weight"), other.get("weight"))


def test_quantized_weight() -> None:
    weight = np.array([[0.5, 1.5, -2.5, 200], [-200, 126.6, 0.4, -0.6]], np.float32).reshape(2, 4, 1, 1)
    one = np.ones(2, np.float32)
    assert quantized_weight(weight, one).reshape(2, 4).tolist() == [[0, 2, -2, 127], [-127, 127, 0, -1]]
    halves = quantized_weight(weight, np.array([1, 0.5], np.float32)).reshape(2, 4)
    assert halves.tolist() == [[0, 2, -2, 127], [-127, 127, 1, -1]]
    turned = quantized_weight(weight.transpose(1, 0, 2, 3), np.array([1, 0.5], np.float32), axis=1)
    assert np.array_equal(turned.reshape(4, 2).T, halves)


# --- numbers ---


def test_integers_and_real_numbers_agree_within_a_step(network: YoloNAS) -> None:
    """Each step from the same input: they differ by how float32 rounds, which a tie can turn into one step of int8."""
    for seed in range(4):
        _, graph = random_choice(network, seed)
        x = picture(1, 32, 32, seed=seed)
        integers = [
            np.zeros((1, 32 >> one.downscale, 32 >> one.downscale, one.channels), np.int8 if one.scale else np.float32)
            for one in graph.buffers
        ]
        integers[INPUT][...] = x
        for step in graph.steps:
            real = [array * (one.scale or 1.0) for array, one in zip(integers, graph.buffers, strict=True)]
            found, expected = integer_step(graph, step, integers), fake_quantized_step(graph, step, real)
            if scale := graph.buffers[step["output"].buffer].scale:
                difference = abs(found - np.rint(expected / scale))
                assert found.dtype == np.int8
                assert difference.max() <= 1
                assert np.count_nonzero(difference) <= 0.002 * difference.size
            else:
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
            at(integers, step["output"])[...] = found


def test_quantised_networks_stay_close_to_the_float_one() -> None:
    network = narrow("m")
    graph = mixed(network)
    expected, found, real = run_fake_quantized(lower(network), X), run_integer(graph, X), run_fake_quantized(graph, X)
    for step in graph.steps[1:]:
        name = step["name"]
        scale = graph.buffers[step["output"].buffer].scale or 1.0
        for one in (found[name] * scale, real[name]):
            error = np.sqrt(np.mean((one - expected[name]) ** 2)) / np.sqrt(np.mean(expected[name] ** 2))
            assert error < 0.2, name


def test_the_native_engine_runs_any_mixture(network: YoloNAS) -> None:
    """It is held to the last bit elsewhere; float steps round in another way, and int8 can turn that into a step."""
    for seed in range(3):
        _, graph = random_choice(network, seed)
        expected = run_integer(graph, X)
        found = NativeEngine(native_of_graph(graph), network.num_classes).heads(X)
        for kind, levels in zip(("cls", "reg"), found, strict=True):
            for number, level in enumerate(levels, start=1):
                other = expected[f"heads.head{number}.{kind}_pred"]
                assert np.sqrt(np.mean((level - other) ** 2)) < 0.05 * np.sqrt(np.mean(other**2))


def test_quantize_rounds_to_even_and_saturates() -> None:
    graph = Graph()
    x, q, back = graph.buffer(0, 3), graph.buffer(0, 4, 0.5), graph.buffer(0, 4)
    graph.steps = [
        {"op": "quantize", "name": "q", "input": x, "output": q},
        {"op": "dequantize", "name": "d", "input": q, "output": back},
    ]
    values = np.array([0.25, 0.75, -0.25, 63.75, 64, -64.25, -65, 1e30, -math.inf, math.nan, 0, -0.0], np.float32)
    found = run_integer(graph, values.reshape(1, 2, 2, 3))
    integers = [[0, 2, 0, 0], [127, 127, -128, 0], [-128, 127, -128, 0], [-128, 0, 0, 0]]
    assert found["q"].reshape(4, 4).tolist() == integers
    assert np.array_equal(found["d"], found["q"] * np.float32(0.5))


# --- wrong scales ---


@pytest.fixture(scope="module")
def small() -> YoloNAS:
    return quantize_(narrow("s"), X)


@pytest.mark.parametrize("wrong", [None, 0, 0.0, -1.0, math.nan, math.inf, 1e-45, 1e39, "1", [1.0], {}], ids=repr)
@pytest.mark.parametrize("name", ["input", "backbone.stem.conv", "backbone.context_module.m.1", "heads.head3.stem"])
def test_wrong_scales_are_named(small: YoloNAS, name: str, wrong: Any) -> None:
    scales = {**small.activation_scales, name: wrong}
    with pytest.raises(ValueError, match=f"quantize: scale of '{name}' must be a positive number, got "):
        quantized_graph(lower(small), scales)


def test_missing_scales_are_named(small: YoloNAS) -> None:
    for name in small.activation_scales:
        scales = {other: scale for other, scale in small.activation_scales.items() if other != name}
        if name.endswith("_pred"):  # the outputs are float32
            quantized_graph(lower(small), scales)
        else:
            with pytest.raises(ValueError, match=r"scale of .* must be a positive number, got None") as caught:
                quantized_graph(lower(small), scales)
            assert repr(name) in str(caught.value)


def test_scales_of_one_buffer_must_be_one(small: YoloNAS) -> None:
    name = "neck.neck4.conv"
    scales = {**small.activation_scales, name: 2 * small.activation_scales[name]}
    with pytest.raises(
        ValueError, match=rf"scale of '{name}' must be that of 'neck.neck1.conv', .* got {scales[name]!r}"
    ):
        quantized_graph(lower(small), scales)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf, 1e-45])
def test_wrong_weight_scales_are_named(small: YoloNAS, wrong: float) -> None:
    network = copy.deepcopy(small)
    network.heads.head1.reg_convs[0].seq.conv.weight_scale[3] = wrong
    with pytest.raises(
        ValueError, match=r"weight_scale of 'heads.head1.cls_convs\+reg_convs' must be positive, got .* 11"
    ):
        quantized_graph(lower(network), network.activation_scales)


def test_weight_scales_of_another_shape_are_named(small: YoloNAS) -> None:
    network = copy.deepcopy(small)
    network.neck.neck2.upsample.weight_scale = torch.ones(3)
    with pytest.raises(
        ValueError, match=r"weight_scale of 'neck.neck2.upsample' must be float32 \(12,\), got float32 \(3,\)"
    ):
        quantized_graph(lower(network), network.activation_scales)
