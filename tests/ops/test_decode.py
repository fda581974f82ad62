"""Decoding against float64, and the fused form against decoding everything and filtering."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from harness import (
    CUDA,
    LENGTHS,
    LEVEL_SIZES,
    ROUNDOFF,
    SIGMOID_ATOL,
    SIGMOID_RTOL,
    DLPackArray,
    bits,
    box_tolerance,
    guarded,
    guarded_empty,
    native,
)

from yolonas.ops import Candidates, decode, decode_candidates, reference

STRIDES = (8.0, 16.0, 32.0)
Heads = tuple[list[np.ndarray], list[np.ndarray]]


def random_heads(
    seed: int,
    sizes: Sequence[tuple[int, int]] = ((4, 6), (2, 3), (1, 2)),
    classes: int = 5,
    batch: int = 2,
    spread: float = 3.0,
) -> Heads:
    """Class logits `(B, K, h, w)` and box logits `(B, 68, h, w)` per level."""
    rng = np.random.default_rng(seed)
    cls = [rng.normal(-1, spread, (batch, classes, *size)).astype(np.float32) for size in sizes]
    reg = [rng.normal(0, 3, (batch, 68, *size)).astype(np.float32) for size in sizes]
    return cls, reg


def channels_last(levels: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.ascontiguousarray(level.transpose(0, 2, 3, 1)) for level in levels]


def rows(candidates: Candidates) -> list[np.ndarray]:
    """Per picture the filled rows x1, y1, x2, y2, score, class."""
    table = np.concatenate(
        [candidates.boxes, candidates.scores[..., None], candidates.classes[..., None].astype(np.float32)], axis=2
    )
    return [picture[:count] for picture, count in zip(table, candidates.counts, strict=True)]


def assert_equals_filtered_decode(heads: Heads, strides: Sequence[float] = STRIDES, **settings: Any) -> list[int]:
    """Fused candidates must be those of the decoded whole, bit for bit, in both layouts. Returns the counts."""
    settings = {"conf": 0.25, "top_k": 1024, "multi_label": True, "classes": None, **settings}
    expected = reference.candidates(*decode(*heads, strides), **settings)
    for last in (False, True):
        cls, reg = (channels_last(levels) if last else levels for levels in heads)
        found = rows(decode_candidates(cls, reg, strides, channels_last=last, **settings))
        assert [len(picture) for picture in found] == [len(picture) for picture in expected]
        for got, wanted in zip(found, expected, strict=True):
            assert np.array_equal(got, wanted)
    return [len(picture) for picture in expected]


# --- all anchors ---


@pytest.mark.parametrize("size", LEVEL_SIZES, ids=str)
def test_boxes_and_scores_of_one_level(isa: str, size: tuple[int, int]) -> None:
    for classes, batch, stride in ((1, 3, 8.0), (2, 1, 16.0), (17, 2, 32.0), (80, 1, 8.0)):
        cls, reg = random_heads(classes, [size], classes, batch)
        boxes, scores = decode(cls, reg, [stride])
        expected_boxes, expected_scores = reference.decode(cls, reg, [stride])
        assert boxes.shape == (batch, size[0] * size[1], 4)
        assert scores.shape == (batch, size[0] * size[1], classes)
        assert (np.abs(boxes - expected_boxes) <= box_tolerance(expected_boxes, stride)).all()
        np.testing.assert_allclose(scores, expected_scores, SIGMOID_RTOL, SIGMOID_ATOL)
        last_boxes, last_scores = decode(channels_last(cls), channels_last(reg), [stride], channels_last=True)
        assert np.array_equal(last_boxes, boxes)
        assert np.array_equal(last_scores, scores)


def test_levels_follow_each_other(isa: str) -> None:
    cls, reg = random_heads(0, [(5, 9), (0, 4), (3, 4), (1, 2)], 3)
    strides = (8.0, 16.0, 32.0, 6.5)
    boxes, scores = decode(cls, reg, strides)
    at = 0
    for level, stride in enumerate(strides):
        level_boxes, level_scores = decode(cls[level : level + 1], reg[level : level + 1], [stride])
        count = level_boxes.shape[1]
        assert np.array_equal(boxes[:, at : at + count], level_boxes)
        assert np.array_equal(scores[:, at : at + count], level_scores)
        at += count
    assert at == boxes.shape[1] == 45 + 12 + 2


def test_certain_bins_give_whole_distances(isa: str) -> None:
    reg = np.full((1, 68, 2, 3), -1000.0, np.float32)
    for side, distance in enumerate((0, 3, 16, 7)):
        reg[0, side * 17 + distance] = 1000.0
    boxes, scores = decode([np.zeros((1, 1, 2, 3), np.float32)], [reg], [8.0])
    assert boxes[0, 5].tolist() == [(2.5 - 0) * 8, (1.5 - 3) * 8, (2.5 + 16) * 8, (1.5 + 7) * 8]
    assert (scores == 0.5).all()
    boxes, _ = decode([np.zeros((1, 1, 1, 1), np.float32)], [np.zeros((1, 68, 1, 1), np.float32)], [32.0])
    assert boxes.tolist() == [[[-240.0, -240.0, 272.0, 272.0]]]  # equal bins: the middle, 8


def test_sigmoid_over_its_whole_range(isa: str) -> None:
    rng = np.random.default_rng(0)
    logits = np.concatenate(
        [
            np.linspace(-130, 130, 20_001),
            rng.normal(0, 4, 20_000),
            [0.0, -0.0, 1e-30, -1e-30, 1e-7, 16.6, 17.0, -86.99, -87.0, 3e38, -3e38],
            np.nextafter(np.float32(-87), np.float32([-100, 0])),
        ]
    ).astype(np.float32)
    cls = logits.reshape(1, 1, 1, -1)
    _, scores = decode([cls], [np.zeros((1, 68, 1, logits.size), np.float32)], [8.0])
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(scores[0, :, 0], expected, SIGMOID_RTOL, SIGMOID_ATOL)
    assert (scores[0, logits < -87, 0] == 0).all()
    assert (scores[0, logits > 18, 0] == 1).all()


def test_expectation_is_exact_to_rounding_for_extreme_bins(isa: str) -> None:
    rng = np.random.default_rng(1)
    for spread in (1e-3, 1.0, 30.0, 300.0, 1e6, 1e37):
        reg = (rng.normal(0, 1, (1, 68, 5, 13)) * spread).astype(np.float32)
        cls = np.zeros((1, 1, 5, 13), np.float32)
        boxes, _ = decode([cls], [reg], [8.0])
        expected, _ = reference.decode([cls], [reg], [8.0])
        # The bins' difference is rounded before exp: with |x - top| < 100 that is an error of 100 * 2^-24.
        assert (np.abs(boxes - expected) <= box_tolerance(expected, 8.0) + 8.0 * 16 * 100 * ROUNDOFF).all()


def test_not_a_number_stays_where_it_is(isa: str) -> None:
    cls, reg = random_heads(3, [(4, 9)], 2, 1)
    cls[0][0, 1, 2, 3] = np.nan
    cls[0][0, 0, 0, 0], cls[0][0, 1, 0, 0] = np.inf, -np.inf
    reg[0][0, 40, 1, 1] = np.nan  # side 2
    reg[0][0, 5, 3, 8] = np.inf  # side 0: infinity less infinity
    reg[0][0, 5, 3, 7] = -np.inf  # no weight at all
    boxes, scores = decode(cls, reg, [8.0])
    assert np.argwhere(np.isnan(scores)).tolist() == [[0, 2 * 9 + 3, 1]]
    assert scores[0, 0].tolist() == [1.0, 0.0]
    assert np.argwhere(np.isnan(boxes)).tolist() == [[0, 10, 2], [0, 35, 0]]
    assert np.isfinite(boxes[0, 34]).all()
    last = decode(channels_last(cls), channels_last(reg), [8.0], channels_last=True)
    assert np.array_equal(last[0], boxes, equal_nan=True)
    assert np.array_equal(last[1], scores, equal_nan=True)


# --- candidates ---


@pytest.mark.parametrize("multi_label", [True, False], ids=["multi", "single"])
@pytest.mark.parametrize("conf", [0.0, 1e-30, 0.01, 0.25, 0.5, 0.9, 0.9999999, 1.0])
def test_candidates_are_the_filtered_whole(isa: str, multi_label: bool, conf: float) -> None:
    for classes, sizes in ((1, ((3, 5),)), (5, ((4, 6), (2, 3), (1, 2))), (17, ((9, 16), (1, 1), (5, 5)))):
        heads = random_heads(classes, sizes, classes, 3)
        strides = STRIDES[: len(sizes)]
        assert_equals_filtered_decode(heads, strides, conf=conf, multi_label=multi_label)
        assert_equals_filtered_decode(heads, strides, conf=conf, multi_label=multi_label, classes=[0, classes - 1])


@pytest.mark.parametrize("multi_label", [True, False], ids=["multi", "single"])
def test_logits_next_to_the_threshold(isa: str, multi_label: bool) -> None:
    """The scan compares logits, the contract scores: every logit around the threshold must fall on the right side."""
    rng = np.random.default_rng(2)
    for conf in (1e-37, 1e-9, 0.01, 0.1, 0.25, 0.3, 0.5, 0.7, 0.999, 0.9999, 1 - 1e-5, 1 - 1e-6, 1 - 2**-24):
        p = float(np.float32(conf))
        centre = np.float32(np.log(p / (1 - p)))
        steps = rng.integers(-40, 41, (1, 2, 8, 8))
        cls = (centre + steps * np.spacing(np.abs(centre) + np.float32(1e-6))).astype(np.float32)
        cls[0, :, 0] = (centre + rng.normal(0, 1e-6 / (1 - p), (2, 8))).astype(np.float32)
        reg = np.zeros((1, 68, 8, 8), np.float32)
        assert_equals_filtered_decode(([cls], [reg]), [8.0], conf=conf, multi_label=multi_label)


@pytest.mark.parametrize("multi_label", [True, False], ids=["multi", "single"])
def test_ties_and_the_cut_to_top_k(isa: str, multi_label: bool) -> None:
    cls, reg = random_heads(4, ((5, 7), (3, 4), (1, 1)), 6)
    cls = [np.round(level) for level in cls]  # a handful of different scores
    for top_k in (1, 2, 3, 10, 17, 100, 10_000):
        counts = assert_equals_filtered_decode((cls, reg), conf=0.1, top_k=top_k, multi_label=multi_label)
        assert max(counts) <= top_k


def test_equal_scores_stand_by_anchor_then_class(isa: str) -> None:
    cls = [np.zeros((1, 2, 1, 2), np.float32), np.zeros((1, 2, 1, 1), np.float32)]
    reg = [np.zeros((1, 68, 1, 2), np.float32), np.zeros((1, 68, 1, 1), np.float32)]
    found = decode_candidates(cls, reg, (8.0, 16.0), conf=0.3, top_k=5)
    assert found.counts.tolist() == [5]
    assert found.classes.tolist() == [[0, 1, 0, 1, 0]]
    assert found.boxes[0, :, 0].tolist() == [-60.0, -60.0, -52.0, -52.0, -120.0]


def test_logits_that_share_a_score_give_the_lowest_class(isa: str) -> None:
    """Sigmoid is 1 for all of these logits: the best class is the first, as for the decoded scores."""
    cls = np.float32([3, 20, 25, 40, np.inf]).reshape(1, 5, 1, 1)
    reg = np.zeros((1, 68, 1, 1), np.float32)
    found = decode_candidates([cls], [reg], [8.0], conf=0.5, multi_label=False)
    assert (found.counts[0], found.classes[0, 0], found.scores[0, 0]) == (1, 1, 1.0)
    rng = np.random.default_rng(3)
    for centre in (-90.0, -87.0, -20.0, 0.0, 1.0, 5.0, 10.0, 15.0, 16.5, 17.0):
        spacing = np.spacing(np.float32(abs(centre) + 1e-3))
        cls = (centre + rng.integers(-3, 4, (1, 9, 8, 8)) * spacing).astype(np.float32)
        assert_equals_filtered_decode(([cls], [np.zeros((1, 68, 8, 8), np.float32)]), [8.0], conf=0, multi_label=False)


@pytest.mark.parametrize("multi_label", [True, False], ids=["multi", "single"])
@pytest.mark.parametrize("conf", [0.0, 0.25, 1.0])
def test_candidates_of_nan_and_infinity(isa: str, multi_label: bool, conf: float) -> None:
    rng = np.random.default_rng(5)
    cls, reg = random_heads(5, ((5, 13), (3, 3)), 4, 3)
    for level in cls:
        kinds = rng.integers(0, 8, level.shape)
        for kind, value in enumerate((np.nan, np.inf, -np.inf, -1000.0, 1000.0)):
            level[kinds == kind] = value
        level[0, :, 0, :2] = np.nan  # an anchor of NaNs alone
        level[0, :, 1, :2] = -np.inf
        level[0, 1:, 2, :2], level[0, 0, 2, :2] = -np.inf, np.nan
    for level in reg:
        level[rng.random(level.shape) < 0.004] = np.nan
        level[rng.random(level.shape) < 0.004] = np.inf
    counts = assert_equals_filtered_decode((cls, reg), STRIDES[:2], conf=conf, multi_label=multi_label)
    assert min(counts) > 0 or conf == 1.0


def test_classes_wanted(isa: str) -> None:
    heads = random_heads(6, classes=7)
    for multi_label in (True, False):
        for classes in ([], [3], [6, 0, 0], range(7), np.array([1, 2])):
            assert_equals_filtered_decode(heads, conf=0.1, multi_label=multi_label, classes=classes)
    assert decode_candidates(*heads, conf=0.0, classes=[]).counts.tolist() == [0, 0]


def test_scan_lengths(isa: str) -> None:
    for length in LENGTHS:
        cls, reg = random_heads(length, ((1, length),), 1, 1)
        assert_equals_filtered_decode((cls, reg), [8.0], conf=0.2, top_k=40)
        assert_equals_filtered_decode((cls, reg), [8.0], conf=0.2, top_k=40, multi_label=False)


def test_sixty_four_pictures_are_sixty_four_calls(isa: str) -> None:
    cls, reg = random_heads(8, ((8, 8), (4, 4), (2, 2)), 20, 64)
    whole = decode_candidates(cls, reg, conf=0.2, top_k=100)
    boxes, scores = decode(cls, reg)
    for picture in range(64):
        one = ([level[picture : picture + 1] for level in levels] for levels in (cls, reg))
        single = decode_candidates(*one, conf=0.2, top_k=100)
        assert np.array_equal(rows(whole)[picture], rows(single)[0])
    assert (whole.counts == 100).all()
    assert_equals_filtered_decode((cls, reg), conf=0.2, top_k=100)
    assert boxes.shape == (64, 84, 4)
    assert scores.shape == (64, 84, 20)


def test_many_anchors_cross_every_block(isa: str) -> None:
    cls, reg = random_heads(9, ((80, 80), (40, 40), (20, 20)), 2, 1)
    counts = assert_equals_filtered_decode((cls, reg), conf=0.6, top_k=300)
    assert counts == [300]


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 3), (3, 3), (1, 9), (5, 13)], ids=str)
def test_nothing_beyond_the_arrays_is_touched(isa: str, front: bool, last: bool, size: tuple[int, int]) -> None:
    cls, reg = random_heads(10, [size], 3)
    expected = decode(cls, reg, [8.0])
    cls, reg = (
        [guarded(level, front=front) for level in (channels_last(levels) if last else levels)] for levels in (cls, reg)
    )
    anchors = size[0] * size[1]
    boxes = guarded_empty((2, anchors, 4), np.float32, front=front)
    scores = guarded_empty((2, anchors, 3), np.float32, front=front)
    native().decode(cls, reg, [8.0], channels_last=last, boxes=boxes, scores=scores)
    assert np.array_equal(boxes, expected[0])
    assert np.array_equal(scores, expected[1])
    for multi_label, top_k in itertools.product((True, False), (1, 2, anchors)):
        found = Candidates(
            guarded_empty((2, top_k, 4), np.float32, front=front),
            guarded_empty((2, top_k), np.float32, front=front),
            guarded_empty((2, top_k), np.int32, front=front),
            guarded_empty((2,), np.int64, front=front),
        )
        native().decode_candidates(
            cls, reg, [8.0], channels_last=last, conf=0.1, top_k=top_k, multi_label=multi_label,
            class_mask=guarded(np.uint8([1, 0, 1]), front=front), **found._asdict(),
        )  # fmt: skip
        settings = {"conf": 0.1, "top_k": top_k, "multi_label": multi_label, "classes": [0, 2]}
        for got, wanted in zip(rows(found), reference.candidates(*expected, **settings), strict=True):
            assert np.array_equal(got, wanted)
        for picture, count in enumerate(found.counts):  # rows beyond the count stay as they were
            assert (bits(found.boxes[picture, count:]) == 0xA5).all()
            assert (bits(found.scores[picture, count:]) == 0xA5).all()


# --- nothing to do ---


def test_no_pictures_and_no_anchors(isa: str) -> None:
    cls, reg = random_heads(0, batch=0)
    boxes, scores = decode(cls, reg)
    assert (boxes.shape, scores.shape) == ((0, 32, 4), (0, 32, 5))
    assert decode_candidates(cls, reg, conf=0.2).counts.shape == (0,)
    cls, reg = random_heads(0, [(0, 5)])
    boxes, scores = decode(cls, reg, [8.0])
    assert (boxes.shape, scores.shape) == ((2, 0, 4), (2, 0, 5))
    for multi_label in (True, False):
        assert decode_candidates(cls, reg, [8.0], conf=0.0, multi_label=multi_label).counts.tolist() == [0, 0]


def test_nothing_passes(isa: str) -> None:
    cls, reg = random_heads(0)
    for level in cls:
        level[...] = -5
    found = decode_candidates(cls, reg, conf=0.25)
    assert found.counts.tolist() == [0, 0]
    assert found.boxes.shape == (2, 160, 4)  # never more rows than pairs


# --- torch ---


def as_torch(levels: Sequence[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(level) for level in levels]


def test_torch_gives_the_same(isa: str) -> None:
    cls, reg = random_heads(11)
    for last in (False, True):
        heads = (channels_last(cls), channels_last(reg)) if last else (cls, reg)
        numpy_result = decode(*heads, channels_last=last)
        torch_result = decode(*map(as_torch, heads), channels_last=last)
        for got, wanted in zip(torch_result, numpy_result, strict=True):
            assert np.array_equal(got.numpy(), wanted)
        settings: dict[str, Any] = {"conf": 0.2, "top_k": 9, "classes": [1, 3, 4], "channels_last": last}
        found = decode_candidates(*map(as_torch, heads), **settings)
        assert all(isinstance(value, torch.Tensor) for value in found)
        expected = decode_candidates(*heads, **settings)
        assert found.counts.tolist() == expected.counts.tolist()
        numpy_found = Candidates(*(value.numpy() for value in found))
        for got, wanted in zip(rows(numpy_found), rows(expected), strict=True):
            assert np.array_equal(got, wanted)


def test_torch_agrees_with_softmax_and_sigmoid() -> None:
    cls, reg = random_heads(12, ((8, 8),), 80, 1)
    boxes, scores = decode(as_torch(cls), as_torch(reg), [8.0])
    torch.testing.assert_close(scores[0], torch.from_numpy(cls[0])[0].flatten(1).T.sigmoid())
    sides = torch.from_numpy(reg[0])[0].reshape(4, 17, 64).softmax(1).mul(torch.arange(17.0)[None, :, None]).sum(1)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    centre = torch.stack([x.flatten(), y.flatten()], 1) + 0.5
    torch.testing.assert_close(
        boxes[0], torch.cat([centre - sides[:2].T, centre + sides[2:].T], 1) * 8, atol=1e-3, rtol=0
    )


def test_torch_operators_are_registered_soundly() -> None:
    cls, reg = (as_torch(levels) for levels in random_heads(13, ((2, 2), (1, 1)), 2))
    decode(cls, reg, (8.0, 16.0))  # registers
    for last in (False, True):
        if last:
            cls, reg = ([level.permute(0, 2, 3, 1).contiguous() for level in levels] for levels in (cls, reg))
        torch.library.opcheck(torch.ops.yolonas.decode.default, (cls, reg, [8.0, 16.0], last))
        # top_k no larger than the number of pairs that pass: rows beyond the count are undefined
        arguments = (cls, reg, [8.0, 16.0], 0.0, 3, True, None, last)
        torch.library.opcheck(torch.ops.yolonas.decode_candidates.default, arguments)


def test_logits_that_require_grad_are_taken() -> None:
    cls, reg = (as_torch(levels) for levels in random_heads(14))
    expected = decode(cls, reg)
    for level in (*cls, *reg):
        level.requires_grad_()
    assert all(torch.equal(got, wanted) for got, wanted in zip(decode(cls, reg), expected, strict=True))


# --- arguments that do not fit ---


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"cls": []}, ValueError, "cls must have at least one level, got an empty list"),
        ({"cls": None}, TypeError, "cls must be a list of arrays, one per level, got NoneType"),
        ({"reg": "heads"}, TypeError, "reg must be a list of arrays, one per level, got str"),
        ({"cls": np.zeros((1, 5, 2, 2), np.float32)}, TypeError, "cls must be a list of arrays"),
        ({"cls": [[1.0]]}, TypeError, r"cls\[0\] must be a NumPy array or a torch tensor, got list"),
        ({"reg": [None] * 3}, ValueError, "lists of the same length"),
        ({"strides": (8.0, 16.0)}, ValueError, "lists of the same length >= 1, got 3, 3 and 2"),
        ({"strides": (8.0, 16.0, 0.0)}, ValueError, "strides must be positive, got 0"),
        ({"strides": (8.0, float("nan"), 32.0)}, ValueError, "strides must be positive, got nan"),
        ({"strides": None}, TypeError, "NoneType"),
    ],
)
def test_wrong_lists_are_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    cls, reg = random_heads(0)
    arguments = {"cls": cls, "reg": reg, "strides": STRIDES, **change}
    if change.get("reg") == [None] * 3:
        arguments["reg"] = reg[:2]
    for op in (decode, lambda **values: decode_candidates(conf=0.2, **values)):
        with pytest.raises(error, match=text):
            op(**arguments)


@pytest.mark.parametrize(
    ("where", "value", "error", "text"),
    [
        ("cls", np.zeros((2, 5, 4, 6)), TypeError, "class output must be float32, got float64"),
        ("reg", np.zeros((2, 68, 4, 6), np.float16), TypeError, "box output must be float32, got float16"),
        ("reg", np.zeros((2, 64, 4, 6), np.float32), ValueError, r"\(B, 68, h, w\) = \(2, 68, 4, 6\), got \(2, 64, 4"),
        ("reg", np.zeros((2, 68, 6, 4), np.float32), ValueError, r"= \(2, 68, 4, 6\), got \(2, 68, 6, 4\)"),
        ("reg", np.zeros((1, 68, 4, 6), np.float32), ValueError, r"got \(1, 68, 4, 6\)"),
        ("reg", np.zeros((2, 4, 6, 68), np.float32).transpose(0, 3, 1, 2), ValueError, "must be C-contiguous; pass"),
        (
            "cls",
            np.zeros((2, 5, 24), np.float32),
            ValueError,
            r"class outputs must have four axes, got shapes",
        ),
        ("cls", np.zeros((2, 0, 4, 6), np.float32), ValueError, "number of classes must lie in 1..1048576, got 0"),
        ("cls", np.zeros((1, 5, 4, 6), np.float32), ValueError, r"= \(1, 68, 4, 6\), got \(2, 68, 4, 6\)"),
        ("cls", np.zeros((2, 5, 4, 12), np.float32)[..., ::2], ValueError, "class output .* must be C-contiguous"),
    ],
)
def test_wrong_levels_are_named(where: str, value: np.ndarray, error: type[Exception], text: str) -> None:
    cls, reg = random_heads(0)
    (cls if where == "cls" else reg)[0] = value
    for op in (decode, lambda *values: decode_candidates(*values, conf=0.2)):
        with pytest.raises(error, match=text):
            op(cls, reg)
        with pytest.raises(error, match=text):
            op(as_torch(cls), as_torch(reg))


def test_levels_must_agree() -> None:
    cls, reg = random_heads(0)
    for shape in ((2, 4, 2, 3), (1, 5, 2, 3)):
        text = r"class output 1 must have the batch and classes of the first, \(2, 5, 4, 6\), got"
        with pytest.raises(ValueError, match=text):
            decode([cls[0], np.zeros(shape, np.float32), cls[2]], reg)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"conf": 25}, ValueError, "conf must lie in 0..1, got 25"),
        ({"conf": -0.1}, ValueError, "conf must lie in 0..1, got -0.1"),
        ({"conf": float("nan")}, ValueError, "conf must lie in 0..1, got nan"),
        ({"conf": None}, TypeError, "NoneType|incompatible"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": "all"}, TypeError, "str"),
        ({"classes": [5]}, ValueError, r"classes must lie in 0..4, got 5"),
        ({"classes": [-1]}, ValueError, r"classes must lie in 0..4, got -1"),
        ({"classes": [1.5]}, TypeError, "float"),
        ({"classes": 3}, TypeError, "not iterable"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    cls, reg = random_heads(0)
    for heads in ((cls, reg), (as_torch(cls), as_torch(reg))):
        with pytest.raises(error, match=text):
            decode_candidates(*heads, **{"conf": 0.2, **change})


def test_numpy_and_torch_do_not_mix() -> None:
    cls, reg = random_heads(0)
    with pytest.raises(TypeError, match=r"reg\[0\] must be of the same kind"):
        decode(cls, as_torch(reg))


def test_levels_on_another_device_are_refused() -> None:
    boxes, scores = np.zeros((2, 6, 4), np.float32), np.zeros((2, 6, 5), np.float32)
    cls, reg = [DLPackArray((2, 5, 2, 3), device=CUDA)], [np.zeros((2, 68, 2, 3), np.float32)]
    with pytest.raises(ValueError, match="decode: class output must lie on the CPU, got device cuda:0"):
        native().decode(cls, reg, [8.0], channels_last=False, boxes=boxes, scores=scores)
    cls, reg = [np.zeros((2, 5, 2, 3), np.float32)], [DLPackArray((2, 68, 2, 3), device=CUDA)]
    with pytest.raises(ValueError, match="decode: box output must lie on the CPU, got device cuda:0"):
        native().decode(cls, reg, [8.0], channels_last=False, boxes=boxes, scores=scores)
