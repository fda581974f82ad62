"""Suppression against the plain twin, golden detections, edges of the IoU, and arguments that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import CUDA, DLPackArray, guarded, guarded_empty, native

from yolonas.ops import Candidates, batched_nms, decode_candidates, nms_candidates, reference


def random_boxes(
    seed: int, batch: int = 2, anchors: int = 60, classes: int = 5, side: float = 100.0
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that overlap much, and scores on a coarse grid with many ties."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, side, (batch, anchors, 2))
    size = rng.uniform(10, 60, (batch, anchors, 2))
    boxes = np.concatenate([corner, corner + size], axis=2).astype(np.float32)
    scores = (rng.integers(0, 65, (batch, anchors, classes)) / 64).astype(np.float32)
    return boxes, scores


def assert_equals_reference(boxes: np.ndarray, scores: np.ndarray, **settings: Any) -> list[int]:
    """Every row and every count, zeros beyond them included. Returns the counts."""
    detections, counts = batched_nms(boxes, scores, **settings)
    expected, expected_counts = reference.batched_nms(boxes, scores, **settings)
    assert counts.dtype == np.int64
    assert counts.tolist() == expected_counts.tolist()
    assert np.array_equal(detections, expected)
    return counts.tolist()


def suppress_two(first: list[float], second: list[float], iou: float, classes: tuple[int, int] = (0, 0)) -> int:
    """Boxes left of two with descending scores."""
    scores = np.zeros((1, 2, 2), np.float32)
    scores[0, 0, classes[0]], scores[0, 1, classes[1]] = 0.9, 0.8
    return int(batched_nms(np.float32([[first, second]]), scores, conf=0.1, iou=iou)[1][0])


# --- against the plain twin ---


@pytest.mark.parametrize("agnostic", [False, True], ids=["by class", "agnostic"])
@pytest.mark.parametrize("multi_label", [True, False], ids=["multi", "single"])
@pytest.mark.parametrize("iou", [0.0, 0.3, 0.7, 1.0])
def test_random_boxes(isa: str, iou: float, multi_label: bool, agnostic: bool) -> None:
    for seed, classes in ((0, 1), (1, 2), (2, 5)):
        boxes, scores = random_boxes(seed, anchors=40, classes=classes)
        for conf, top_k, max_det in ((0.0, 1024, 300), (0.25, 40, 300), (0.5, 1024, 7), (1.0, 5, 1)):
            assert_equals_reference(
                boxes, scores, conf=conf, iou=iou, top_k=top_k, max_det=max_det, multi_label=multi_label,
                agnostic=agnostic,
            )  # fmt: skip


def test_every_number_of_kept_boxes_near_the_vector_width(isa: str) -> None:
    for count in (1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 33):
        apart = np.arange(count, dtype=np.float32)[:, None] * 20 + np.float32([0, 0, 10, 10])
        again = apart + np.float32(1)  # IoU 81 / 119 with the box of the same place
        boxes = np.concatenate([apart, again])[None]
        scores = np.linspace(0.9, 0.3, 2 * count, dtype=np.float32).reshape(1, -1, 1)
        assert assert_equals_reference(boxes, scores, conf=0.1, iou=0.5) == [count]
        assert assert_equals_reference(boxes, scores, conf=0.1, iou=0.7) == [2 * count]
        for max_det in (1, max(1, count - 1), count, count + 1):
            assert assert_equals_reference(boxes, scores, conf=0.1, iou=0.5, max_det=max_det) == [min(max_det, count)]


def test_classes_wanted(isa: str) -> None:
    boxes, scores = random_boxes(4, classes=9)
    for multi_label in (True, False):
        for classes in ([], [3], [8, 0], range(9)):
            assert_equals_reference(boxes, scores, conf=0.3, multi_label=multi_label, classes=classes)


def test_an_anchor_whose_best_class_is_not_wanted_gives_nothing(isa: str) -> None:
    boxes, scores = np.float32([[[0, 0, 9, 9]]]), np.float32([[[0.9, 0.8]]])
    assert batched_nms(boxes, scores, multi_label=False, classes=[1])[1].tolist() == [0]
    assert batched_nms(boxes, scores, multi_label=True, classes=[1])[1].tolist() == [1]


def test_sixty_four_pictures_are_sixty_four_calls(isa: str) -> None:
    boxes, scores = random_boxes(5, batch=64, anchors=40)
    detections, counts = batched_nms(boxes, scores, conf=0.3, max_det=20)
    for picture in range(64):
        one, count = batched_nms(boxes[picture : picture + 1], scores[picture : picture + 1], conf=0.3, max_det=20)
        assert np.array_equal(detections[picture], one[0])
        assert counts[picture] == count[0]
    assert_equals_reference(boxes, scores, conf=0.3, max_det=20)


def test_more_pairs_than_one_scan_holds(isa: str) -> None:
    boxes, scores = random_boxes(6, batch=1, anchors=700, classes=11, side=900)
    scores[scores < 0.8] = 0
    assert_equals_reference(boxes, scores, conf=0.25, top_k=200)


# --- thresholds ---


def test_confidence_is_strict_with_many_labels_and_not_with_one(isa: str) -> None:
    boxes, scores = np.float32([[[0, 0, 9, 9], [20, 20, 29, 29]]]), np.float32([[[0.25, 0.1], [0.2500001, 0]]])
    assert batched_nms(boxes, scores, conf=0.25, multi_label=True)[0][0, :2, 0].tolist() == [20, 0]
    assert batched_nms(boxes, scores, conf=0.25, multi_label=False)[1].tolist() == [2]
    assert batched_nms(boxes, scores, conf=0.0, multi_label=True)[1].tolist() == [3]  # a score of 0 never passes
    zero = np.zeros((1, 2, 2), np.float32)
    assert batched_nms(boxes, zero, conf=0.0, multi_label=False)[1].tolist() == [2]
    assert batched_nms(boxes, -zero, conf=0.0, multi_label=False)[0][0, :, 4:].tolist()[:2] == [[0, 0], [0, 0]]


def test_iou_on_the_threshold_keeps_and_above_it_drops(isa: str) -> None:
    half = ([0.0, 0, 2, 1], [0.0, 0, 1, 1])  # inter 1, union 2
    assert suppress_two(*half, iou=0.5) == 2
    assert suppress_two(*half, iou=float(np.nextafter(np.float32(0.5), np.float32(0)))) == 1
    assert suppress_two(*half, iou=float(np.nextafter(np.float32(0.5), np.float32(1)))) == 2
    third = ([0.0, 0, 3, 1], [0.0, 0, 1, 1])  # 1 / 3 rounds up in float32, and so does the setting
    assert suppress_two(*third, iou=1 / 3) == 2
    same = ([5.0, 5, 9, 9], [5.0, 5, 9, 9])
    assert suppress_two(*same, iou=1.0) == 2
    assert suppress_two(*same, iou=0.999999) == 1
    touching = ([0.0, 0, 4, 4], [4.0, 0, 8, 4])
    assert suppress_two(*touching, iou=0.0) == 2
    assert suppress_two([0.0, 0, 4, 4], [3.9999998, 0, 8, 4], iou=0.0) == 1


def test_integer_boxes_with_iou_next_to_the_threshold(isa: str) -> None:
    """Widths 1..64 inside a box of 64: IoU = width / 64, exact in float32."""
    for width in range(1, 65):
        for threshold in (width - 1, width, width + 1):
            if threshold <= 64:
                left = suppress_two([0, 0, 64, 3], [0, 0, width, 3], iou=threshold / 64)
                assert left == (1 if width > threshold else 2)


def test_another_class_suppresses_only_when_agnostic(isa: str) -> None:
    box = [0.0, 0, 10, 10]
    assert suppress_two(box, box, iou=0.5, classes=(0, 1)) == 2
    assert suppress_two(box, box, iou=0.5, classes=(1, 1)) == 1
    boxes, scores = np.float32([[box, box]]), np.float32([[[0.9, 0], [0, 0.8]]])
    detections, counts = batched_nms(boxes, scores, agnostic=True)
    assert counts.tolist() == [1]
    assert detections[0, 0].tolist() == [0, 0, 10, 10, np.float32(0.9), 0]


def test_a_dropped_box_drops_nobody(isa: str) -> None:
    boxes = np.float32([[[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]])  # neighbours overlap by 6 / 14
    scores = np.float32([[[0.9], [0.8], [0.7]]])
    detections, _ = batched_nms(boxes, scores, iou=0.4)
    assert detections[0, :3, 0].tolist() == [0, 8, 0]


def test_equal_scores_keep_the_lower_anchor_then_the_lower_class(isa: str) -> None:
    boxes = np.float32([[[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]]])
    scores = np.full((1, 3, 2), 0.5, np.float32)
    detections, counts = batched_nms(boxes, scores, iou=0.5)
    assert counts.tolist() == [4]
    assert detections[0, :4, [0, 5]].T.tolist() == [[0, 0], [0, 1], [50, 0], [50, 1]]
    detections, counts = batched_nms(boxes, scores, iou=0.5, top_k=3, agnostic=True)
    assert detections[0, : counts[0], 0].tolist() == [0]


# --- boxes that are none ---


def test_empty_boxes_never_drop_each_other(isa: str) -> None:
    point, line = [5.0, 5, 5, 5], [2.0, 5, 9, 5]
    for first, second in ((point, point), (line, line), (point, line)):
        assert suppress_two(first, second, iou=0.0) == 2  # 0 / 0
    assert suppress_two([0.0, 0, 10, 10], point, iou=0.0) == 2
    turned = [10.0, 10, 0, 0]
    boxes, scores = np.float32([[turned, [0, 0, 10, 10], turned, [10, 0, 0, 10]]]), np.full((1, 4, 1), 0.5, np.float32)
    assert_equals_reference(boxes, scores, iou=0.3)


def test_boxes_that_are_not_finite_are_left_out(isa: str) -> None:
    boxes, scores = random_boxes(7)
    for at, value in enumerate((np.nan, np.inf, -np.inf)):
        boxes[0, at::7, at] = value
    for multi_label in (True, False):
        detections, counts = batched_nms(boxes, scores, conf=0.2, multi_label=multi_label)
        assert np.isfinite(detections).all()
        assert counts[0] > 0
        assert_equals_reference(boxes, scores, conf=0.2, multi_label=multi_label)
    boxes[...] = np.nan
    assert assert_equals_reference(boxes, scores, conf=0.2) == [0, 0]


def test_scores_that_are_no_probabilities(isa: str) -> None:
    boxes, scores = random_boxes(8)
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 9, scores.shape)
    for kind, value in enumerate((np.nan, np.inf, -np.inf, -1.0, 7.5, 1e-42)):
        scores[kinds == kind] = value
    scores[0, 3], scores[0, 4] = np.nan, -np.inf
    for multi_label in (True, False):
        for conf in (0.0, 0.3, 1.0):
            assert_equals_reference(boxes, scores, conf=conf, multi_label=multi_label)


def test_huge_boxes_do_not_trap(isa: str) -> None:
    boxes, scores = random_boxes(9)
    boxes *= np.float32(1e36)  # areas overflow
    assert_equals_reference(boxes, scores, conf=0.4, iou=0.5)


# --- nothing to do ---


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 0, 0), (0, 0, 0)], ids=str)
def test_empty_input_gives_empty_output(isa: str, shape: tuple[int, int, int]) -> None:
    boxes, scores = np.zeros((*shape[:2], 4), np.float32), np.zeros(shape, np.float32)
    for multi_label in (True, False):
        detections, counts = batched_nms(boxes, scores, max_det=6, multi_label=multi_label)
        assert detections.shape == (shape[0], 6, 6)
        assert not detections.any()
        assert counts.tolist() == [0] * shape[0]


def test_nothing_passes(isa: str) -> None:
    boxes, scores = random_boxes(0)
    assert assert_equals_reference(boxes, scores * 0, conf=0.1) == [0, 0]


# --- candidates ---


def test_candidates_and_their_suppression_are_the_whole(isa: str) -> None:
    rng = np.random.default_rng(1)
    cls = [rng.normal(-1, 2, (3, 4, 8, 8)).astype(np.float32)]
    reg = [rng.normal(0, 2, (3, 68, 8, 8)).astype(np.float32)]
    from yolonas.ops import decode

    boxes, scores = decode(cls, reg, [8.0])
    for agnostic in (False, True):
        found = decode_candidates(cls, reg, [8.0], conf=0.2, top_k=50)
        detections, counts = nms_candidates(found, iou=0.4, max_det=30, agnostic=agnostic)
        expected = batched_nms(boxes, scores, conf=0.2, iou=0.4, top_k=50, max_det=30, agnostic=agnostic)
        assert np.array_equal(detections, expected[0])
        assert np.array_equal(counts, expected[1])


def some_candidates() -> Candidates:
    boxes = np.float32([[[0, 0, 10, 10], [1, 0, 11, 10], [40, 0, 50, 10], [np.nan] * 4]] * 2)
    return Candidates(
        boxes, np.float32([[0.9, 0.8, 0.7, 0.1]] * 2), np.zeros((2, 4), np.int32), np.array([3, 1], np.int64)
    )


def test_candidates_beyond_the_count_are_not_read(isa: str) -> None:
    detections, counts = nms_candidates(some_candidates(), iou=0.5, max_det=5)
    assert counts.tolist() == [2, 1]
    assert detections[0, :, 0].tolist() == [0, 40, 0, 0, 0]
    assert nms_candidates(tuple(some_candidates()), iou=0.5, max_det=1)[1].tolist() == [1, 1]


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("anchors", [1, 2, 7, 8, 9, 33])
def test_nothing_beyond_the_arrays_is_touched(isa: str, anchors: int, front: bool) -> None:
    boxes, scores = random_boxes(anchors, anchors=anchors, classes=3)
    expected, expected_counts = reference.batched_nms(boxes, scores, conf=0.2, max_det=5, classes=[0, 2])
    detections = guarded_empty((2, 5, 6), np.float32, front=front)
    counts = guarded_empty((2,), np.int64, front=front)
    native().batched_nms(
        guarded(boxes, front=front), guarded(scores, front=front), conf=0.2, iou=0.7, top_k=1024, max_det=5,
        multi_label=True, agnostic=False, class_mask=guarded(np.uint8([1, 0, 1]), front=front), detections=detections,
        counts=counts,
    )  # fmt: skip
    assert np.array_equal(detections, expected)
    assert np.array_equal(counts, expected_counts)
    rows = reference.candidates(boxes, scores, conf=0.2, top_k=anchors, multi_label=True, classes=[0, 2])
    table = np.stack([np.pad(picture, ((0, anchors - len(picture)), (0, 0))) for picture in rows])
    found = (table[..., :4], table[..., 4], table[..., 5].astype(np.int32), np.array([len(r) for r in rows], np.int64))
    native().nms_candidates(
        *(guarded(value, front=front) for value in found), iou=0.7, max_det=5, agnostic=True, detections=detections,
        counts=counts,
    )  # fmt: skip
    for picture, picture_rows in enumerate(rows):
        kept = reference.suppress(picture_rows, iou_threshold=0.7, max_det=5, agnostic=True)
        assert np.array_equal(detections[picture, : counts[picture]], kept)


# --- golden values ---


def test_golden_order_of_a_few_rows(isa: str) -> None:
    """The first rows of a golden picture, their scores on a grid of 1/64, given in the wrong order."""
    rows = [  # x1, y1, x2, y2, score, class
        [296.0625, 14.8125, 357.4375, 92.125, 0.8125, 34],
        [73.875, 439.75, 174.875, 502.25, 0.765625, 66],
    ]
    boxes = np.float32([row[:4] for row in rows[::-1]])[None]
    scores = np.zeros((1, 2, 80), np.float32)
    for anchor, row in enumerate(rows[::-1]):
        scores[0, anchor, int(row[5])] = row[4]
    detections, counts = batched_nms(boxes, scores)
    assert detections[0, : counts[0]].tolist() == rows


@pytest.mark.shared
def test_golden_detections(isa: str, shared: Path) -> None:
    with np.load(shared / "reference/goldens_postprocess.npz") as golden:
        for name in golden["names"]:
            which = str(golden[f"{name}/set"])
            detections, counts = batched_nms(
                golden[f"{which}_boxes"],
                golden[f"{which}_scores"],
                conf=float(golden[f"{name}/score_threshold"]),
                iou=float(golden[f"{name}/nms_threshold"]),
                top_k=int(golden[f"{name}/nms_top_k"]),
                max_det=int(golden[f"{name}/max_predictions"]),
                multi_label=bool(golden[f"{name}/multi_label_per_box"]),
                agnostic=bool(golden[f"{name}/class_agnostic_nms"]),
            )
            for picture in range(2):
                expected, got = golden[f"{name}/out{picture}"], detections[picture, : counts[picture]]
                assert np.array_equal(got[:, 4], expected[:, 4]), name
                assert sorted(got.tolist()) == sorted(expected.tolist()), name  # equal scores may stand in any order
                assert not detections[picture, counts[picture] :].any()


# --- torch ---


def test_torch_gives_the_same(isa: str) -> None:
    boxes, scores = random_boxes(10)
    settings: dict[str, Any] = {"conf": 0.3, "iou": np.float32(0.5), "max_det": 20, "classes": [0, 2, 3]}
    detections, counts = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), **settings)
    expected, expected_counts = batched_nms(boxes, scores, **settings)
    assert np.array_equal(detections.numpy(), expected)
    assert np.array_equal(counts.numpy(), expected_counts)
    found = some_candidates()
    as_torch = Candidates(*map(torch.from_numpy, found))
    detections, counts = nms_candidates(as_torch, iou=0.5, max_det=5)
    expected, expected_counts = nms_candidates(found, iou=0.5, max_det=5)
    assert np.array_equal(detections.numpy(), expected)
    assert np.array_equal(counts.numpy(), expected_counts)


def test_torch_operators_are_registered_soundly() -> None:
    boxes, scores = map(torch.from_numpy, random_boxes(11, anchors=6, classes=2))
    batched_nms(boxes, scores)  # registers
    for classes in (None, [1]):
        arguments = (boxes, scores, 0.25, 0.7, 100, 4, True, False, classes)
        torch.library.opcheck(torch.ops.yolonas.batched_nms.default, arguments)
    arguments = (*map(torch.from_numpy, some_candidates()), 0.5, 5, False)
    torch.library.opcheck(torch.ops.yolonas.nms_candidates.default, arguments)


def test_torch_compile_traces_through() -> None:
    def detect(boxes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        detections, counts = batched_nms(boxes * 2, logits.sigmoid(), conf=0.3, iou=0.5, max_det=9, classes=[0, 1])
        return detections[..., :5].sum(1) + counts[:, None]

    boxes, scores = map(torch.from_numpy, random_boxes(12))
    compiled = torch.compile(detect, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(boxes, scores), detect(boxes, scores))


# --- arguments that do not fit ---


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"boxes": np.zeros((2, 60, 5), np.float32)},
            ValueError,
            r"boxes must have shape \(B, A, 4\) = .*\(2, 60, 5\)",
        ),
        ({"boxes": np.zeros((60, 4), np.float32)}, ValueError, r"boxes must have shape \(B, A, 4\) and scores"),
        ({"scores": np.zeros((2, 59, 5), np.float32)}, ValueError, r"\(B, A, K\) = \(2, 60, \*\), got \(2, 59, 5\)"),
        ({"scores": np.zeros((3, 60, 5), np.float32)}, ValueError, r"got \(3, 60, 5\)"),
        ({"scores": np.zeros((2, 60, 0), np.float32)}, ValueError, r"at least one class, got \(2, 60, 0\)"),
        ({"scores": np.zeros((2, 60, 5))}, TypeError, "scores must be float32, got float64"),
        ({"boxes": np.zeros((2, 60, 4), np.int64)}, TypeError, "boxes must be float32, got int64"),
        ({"boxes": np.zeros((2, 4, 60), np.float32).transpose(0, 2, 1)}, ValueError, "boxes .* must be C-contiguous"),
        ({"boxes": None}, TypeError, "boxes"),
        ({"scores": [[0.5]]}, TypeError, "scores must be a NumPy array or a torch tensor, got list"),
        ({"conf": 25}, ValueError, "conf must lie in 0..1, got 25"),
        ({"iou": 70}, ValueError, "iou must lie in 0..1, got 70"),
        ({"iou": float("nan")}, ValueError, "iou must lie in 0..1, got nan"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"max_det": 0}, ValueError, "max_det must lie in 1..1000000, got 0"),
        ({"max_det": 10**9}, ValueError, "max_det must lie in 1..1000000"),
        ({"classes": [5]}, ValueError, "classes must lie in 0..4, got 5"),
        ({"max_det": 2.5}, TypeError, "float|incompatible"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    boxes, scores = random_boxes(0)
    arguments = {"boxes": boxes, "scores": scores, **change}
    with pytest.raises(error, match=text):
        batched_nms(arguments.pop("boxes"), arguments.pop("scores"), **arguments)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"counts": np.array([5, 1], np.int64)}, ValueError, r"counts must lie in 0..4, got 5 for picture 0"),
        ({"counts": np.array([0, -1], np.int64)}, ValueError, r"counts must lie in 0..4, got -1 for picture 1"),
        ({"counts": np.array([1], np.int64)}, ValueError, r"counts must have shape \(B,\) = \(2\)"),
        ({"counts": np.array([1, 1], np.int32)}, TypeError, "counts must be int64, got int32"),
        ({"classes": np.zeros((2, 4), np.int64)}, TypeError, "classes must be int32, got int64"),
        (
            {"scores": np.zeros((2, 3), np.float32)},
            ValueError,
            r"scores must have shape \(B, N\) = \(2, 4\), got \(2, 3\)",
        ),
        ({"boxes": np.zeros((2, 4), np.float32)}, ValueError, r"boxes must have shape \(B, N, 4\)"),
        ({"boxes": None}, TypeError, "boxes must be a NumPy array or a torch tensor, got NoneType"),
    ],
)
def test_wrong_candidates_are_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        nms_candidates(some_candidates()._replace(**change))


def test_boxes_on_another_device_are_refused() -> None:
    with pytest.raises(ValueError, match="batched_nms: boxes must lie on the CPU, got device cuda:0"):
        native().batched_nms(
            DLPackArray((1, 2, 4), device=CUDA), np.zeros((1, 2, 1), np.float32), conf=0.2, iou=0.7, top_k=1, max_det=1,
            multi_label=True, agnostic=False, class_mask=None, detections=np.zeros((1, 1, 6), np.float32),
            counts=np.zeros(1, np.int64),
        )  # fmt: skip
