"""Noise of outputs, ranking, and the search for the layers to keep in float."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from quantized_networks import narrow, picture, quantize_

from yolonas.lowering import lower
from yolonas.native_engine import NativeEngine, native_of_graph
from yolonas.quantization.reference import run_integer
from yolonas.quantization.sensitivity import (
    Comparison,
    Reference,
    Sqnr,
    StepLoss,
    fewest_in_float,
    matching,
    quantised_steps,
    ranked,
    with_int8,
)
from yolonas.quantized_graph import quantized_graph

NAMES = ["stem.conv", "stage1.conv", "stage1.blocks.conv1+conv2", "stage10.conv", "heads.head1.cls_pred"]


def heads(count: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(seed)
    return tuple(  # type: ignore[return-value]
        [random.normal(size=(count, side, side, channels)).astype(np.float32) for side in (4, 2, 1)]
        for channels in (3, 68)
    )


def part(outputs: tuple, start: int, end: int) -> tuple:
    return tuple([level[start:end] for level in levels] for levels in outputs)


def test_the_ratios_are_those_of_the_definition() -> None:
    reference = Reference(10)
    float_outputs, outputs = heads(3, 0), heads(3, 1)
    reference.record(float_outputs)
    comparison = Comparison(reference)
    comparison.add(outputs)
    for kind in range(2):
        expected = np.concatenate([level.ravel() for level in float_outputs[kind]]).astype(np.float64)
        found = np.concatenate([level.ravel() for level in outputs[kind]]).astype(np.float64)
        ratio = 10 * math.log10((expected**2).sum() / ((expected - found) ** 2).sum())
        assert comparison.sqnr()[kind] == pytest.approx(ratio, abs=1e-5)


def test_batches_and_later_pictures_do_not_matter() -> None:
    float_outputs, outputs = heads(7, 0), heads(7, 1)
    ratios = []
    for cuts in ((0, 7), (0, 3, 7), range(8)):
        reference = Reference(5)
        for start, end in pairwise(cuts):
            reference.record(part(float_outputs, start, end))
        assert len(reference.pictures) == 5
        for other in ((0, 7), (0, 2, 4, 7)):
            comparison = Comparison(reference)
            for start, end in pairwise(other):
                comparison.add(part(outputs, start, end))
            ratios.append(comparison.sqnr())
    assert len(set(ratios)) == 1


def test_extreme_ratios() -> None:
    reference = Reference(2)
    outputs = heads(2, 0)
    reference.record(outputs)
    same, broken = Comparison(reference), Comparison(reference)
    same.add(outputs)
    broken.add(tuple([level * np.float32(np.nan) for level in levels] for levels in outputs))  # type: ignore[arg-type]
    assert same.sqnr() == Sqnr(math.inf, math.inf)
    assert broken.sqnr() == Sqnr(-math.inf, -math.inf)
    assert Sqnr(30.0, 20.0).worst == 20.0


def test_the_worse_ratio_ranks() -> None:
    losses = [
        StepLoss("a", Sqnr(40.0, 30.0)),
        StepLoss("b", Sqnr(20.0, 60.0), 0.5),
        StepLoss("c", Sqnr(math.inf, math.inf)),
        StepLoss("d", Sqnr(30.0, 30.0)),
    ]
    assert [loss.name for loss in ranked(losses)] == ["b", "a", "d", "c"]


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 89])
def test_the_fewest_in_float(steps: int) -> None:
    for needed in range(steps + 1):
        asked: list[int] = []

        def meets(count: int, needed: int = needed, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= needed

        assert fewest_in_float(steps, meets) == (needed if needed < steps else None)
        assert len(asked) == len(set(asked)) <= 2 * math.log2(steps) + 3
        assert max(asked) < steps


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ((), []),
        (("stem.conv",), [0]),
        (("stage1",), [1, 2]),
        (("stage1*",), [1, 2, 3]),
        (("*.conv1+conv2", "heads"), [2, 4]),
        (("heads", "stem"), [0, 4]),
        (("*",), [0, 1, 2, 3, 4]),
    ],
)
def test_names_of_layers(patterns: tuple[str, ...], found: list[int]) -> None:
    assert matching(NAMES, patterns) == [NAMES[number] for number in found]


def test_wrong_names_get_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'stage1.con' must fit a layer .* did you mean 'stage1.conv'"):
        matching(NAMES, ["stem", "stage1.con"])
    with pytest.raises(ValueError, match=r"they are called like 'stem.conv'"):
        matching(NAMES, ["zzz"])


def test_one_step_in_int8() -> None:
    x = picture(1, 64, 64)
    model = quantize_(narrow("s"), x)
    graph, plain = lower(model), lower(narrow("s"))
    names = quantised_steps(graph)
    assert len(names) == sum("weight" in step for step in graph.steps)
    float_outputs = NativeEngine(native_of_graph(with_int8(graph, plain, [])), 3).heads(x)
    for name in (names[0], "neck.neck1.upsample", names[-1]):
        one = with_int8(graph, plain, [name])
        assert quantised_steps(one) == [name]
        assert quantised_steps(graph) == names
        mixed = quantized_graph(one, model.activation_scales)
        integer = [step["name"] for step in mixed.steps if getattr(step.get("weight"), "dtype", None) == np.int8]
        assert integer == [name]
        found = NativeEngine(native_of_graph(mixed), 3).heads(x)
        expected = run_integer(mixed, x)["heads.head3.reg_pred"]
        assert np.abs(found[1][2] - expected).max() < 1e-3
        assert np.abs(found[1][2] - float_outputs[1][2]).max() < 1
