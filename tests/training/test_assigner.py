"""The assignment against golden values, a version written as loops, and cases made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from loss_cases import (
    ANCHORS_IN_TWO_BOXES,
    CLASSES,
    TWO_BOXES,
    golden_assignment,
    golden_file,
    golden_raw,
    golden_targets,
    random_raw,
    random_targets,
    table,
)

from yolonas.nn.head import Raw, decode_boxes
from yolonas.training.assigner import Assignment, assign, assign_task_aligned, contains, pad_targets, pairwise_iou

NONE = -1


def iou_by_hand(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / (union + 1e-9)


def assign_by_loops(raw: Raw, targets: torch.Tensor, top_k: int = 13) -> list[list[tuple[int, float]]]:
    """For every picture and anchor the row of `targets` (or `NONE`) and the score."""
    class_logits, box_logits, _, points, _, strides = raw
    boxes = decode_boxes(box_logits, points / strides, strides).tolist()
    scores = class_logits.sigmoid().tolist()
    results = []
    for picture, (predicted, picture_scores) in enumerate(zip(boxes, scores, strict=True)):
        rows = [row for row in range(len(targets)) if targets[row, 0] == picture]
        ious = {row: [iou_by_hand(targets[row, 2:].tolist(), box) for box in predicted] for row in rows}
        alignments = {
            row: [picture_scores[a][int(targets[row, 1])] * ious[row][a] ** 6 for a in range(len(predicted))]
            for row in rows
        }
        claims: dict[int, list[int]] = {}
        for row in rows:
            x1, y1, x2, y2 = targets[row, 2:].tolist()
            inside = [a for a, (x, y) in enumerate(points.tolist()) if min(x - x1, x2 - x, y - y1, y2 - y) > 1e-9]
            for a in sorted(inside, key=lambda a: -alignments[row][a])[:top_k]:
                claims.setdefault(a, []).append(row)
        owners = [NONE] * len(predicted)
        for a, claimants in claims.items():
            owners[a] = claimants[0] if len(claimants) == 1 else max(rows, key=lambda row: ious[row][a])
        result = [(NONE, 0.0)] * len(predicted)
        for row in rows:
            own = [a for a in range(len(predicted)) if owners[a] == row]
            highest = max((alignments[row][a] for a in own), default=0.0)
            scale = max((ious[row][a] for a in own), default=0.0) / (highest + 1e-9)
            for a in own:
                result[a] = (row, alignments[row][a] * scale)
        results.append(result)
    return results


def assign_one(
    scores: list[list[float]],
    boxes: list[list[float]],
    points: list[list[float]],
    classes: list[int],
    labelled: list[list[float]],
    top_k: int = 13,
) -> Assignment:
    """The assignment of one picture given as lists."""
    tensors = (torch.tensor(values, dtype=torch.float64) for values in (scores, boxes, labelled))
    predicted_scores, predicted_boxes, labelled_boxes = (values[None] for values in tensors)
    grid = torch.tensor(points, dtype=torch.float64)
    return assign_task_aligned(
        predicted_scores, predicted_boxes, grid, torch.tensor([classes]), labelled_boxes, top_k=top_k
    )


@pytest.mark.shared
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assignment_equals_golden(dtype: torch.dtype, shared: Path) -> None:
    golden = golden_file(shared)
    expected = golden_assignment(golden, "tal", dtype)
    actual = assign(golden_raw(golden, dtype), golden_targets(golden))
    assert torch.equal(actual.classes, expected.classes)
    assigned = actual.classes >= 0
    assert torch.equal(actual.boxes[assigned], expected.boxes[assigned])
    torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(actual.scores.sum().double(), golden["tal/assigned_score_sum"], rtol=1e-6, atol=0)


@pytest.mark.shared
def test_loops_equal_golden(shared: Path) -> None:
    golden = golden_file(shared)
    targets = golden_targets(golden)
    expected = golden_assignment(golden, "tal", torch.float64)
    loops = assign_by_loops(golden_raw(golden, torch.float64), targets)
    classes = [[int(targets[row, 1]) if row != NONE else NONE for row, _ in picture] for picture in loops]
    assert classes == expected.classes.tolist()
    scores = torch.tensor([[score for _, score in picture] for picture in loops], dtype=torch.float64)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assignment_equals_golden_numbers(dtype: torch.dtype) -> None:
    points, boxes, scores, owners, wanted = (
        table(ANCHORS_IN_TWO_BOXES).to(dtype).reshape(-1, 9).split((2, 4, 1, 1, 1), dim=1)
    )
    labelled = torch.tensor([TWO_BOXES], dtype=dtype)
    actual = assign_task_aligned(scores[None], boxes[None], points, torch.zeros(1, 2, dtype=torch.long), labelled)
    assigned = owners[:, 0] >= 0
    assert torch.equal(actual.classes[0] >= 0, assigned)
    assert torch.equal(actual.boxes[0, assigned], labelled[0, owners[assigned, 0].long()])
    torch.testing.assert_close(actual.scores[0], wanted[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_loops(seed: int) -> None:
    counts = torch.randint(8, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
    raw, targets = random_raw(3, seed=seed), random_targets(counts, seed=seed)
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))]
    actual = assign(raw, targets)
    for picture, expected in enumerate(assign_by_loops(raw, targets)):
        for anchor, (row, score) in enumerate(expected):
            assert actual.classes[picture, anchor] == (targets[row, 1] if row != NONE else NONE)
            assert row == NONE or actual.boxes[picture, anchor].tolist() == targets[row, 2:].tolist()
            assert math.isclose(actual.scores[picture, anchor], score, rel_tol=1e-9, abs_tol=1e-12)


def test_one_box_and_one_anchor() -> None:
    box = [0.0, 0.0, 8.0, 8.0]
    result = assign_one([[0.25, 0.5]], [[0.0, 0.0, 8.0, 4.0]], [[4.0, 4.0]], [1], [box])
    assert result.classes.tolist() == [[1]]
    assert result.boxes.tolist() == [[box]]
    # The only anchor's alignment is scaled to its IoU, whatever its score.
    assert result.scores.item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("order", "winner"), [((0, 1), 1), ((1, 0), 0)])
def test_the_box_with_more_overlap_gets_an_anchor_that_two_want(order: tuple[int, int], winner: int) -> None:
    # The first box is aligned better: its class scores higher. Overlap decides all the same.
    labelled, classes = [[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 9.0]], [0, 1]
    result = assign_one(
        [[1.0, 0.01]], [[0.0, 0.0, 10.0, 10.0]], [[5.0, 5.0]], [classes[i] for i in order], [labelled[i] for i in order]
    )
    assert result.classes.tolist() == [[classes[order[winner]]]]
    assert result.boxes.tolist() == [[labelled[1]]]
    assert result.scores.item() == pytest.approx(0.9, abs=1e-6)


def test_an_anchor_that_two_want_may_go_to_a_third() -> None:
    # The third box overlaps the prediction most, though it does not contain the point.
    labelled = [[0.0, 0.0, 10.0, 3.0], [0.0, 0.0, 10.0, 4.0], [0.0, 2.5, 10.0, 10.0]]
    result = assign_one([[0.5] * 3], [[0.0, 0.0, 10.0, 10.0]], [[5.0, 2.0]], [0, 1, 2], labelled)
    assert result.classes.tolist() == [[2]]
    # Without a conflict it does not take part.
    result = assign_one([[0.5] * 3], [[0.0, 0.0, 10.0, 10.0]], [[5.0, 2.0]], [0, 2], [labelled[0], labelled[2]])
    assert result.classes.tolist() == [[0]]


def test_the_first_of_two_equal_boxes_gets_all_anchors() -> None:
    box, points = [0.0, 0.0, 16.0, 16.0], [[4.0, 4.0], [12.0, 12.0]]
    result = assign_one([[0.5, 0.5], [0.5, 0.5]], [box, [0.0, 0.0, 8.0, 8.0]], points, [1, 0], [box, box])
    assert result.classes.tolist() == [[1, 1]]


def test_a_box_between_the_anchor_points_gets_none() -> None:
    points = [[4.0, 4.0], [12.0, 4.0]]
    predicted = [[5.0, 2.0, 11.0, 6.0]] * 2
    between = assign_one([[0.5], [0.5]], predicted, points, [0], [[5.0, 2.0, 11.0, 6.0]])
    on_the_border = assign_one([[0.5], [0.5]], predicted, points, [0], [[4.0, 2.0, 12.0, 6.0]])
    for result in (between, on_the_border):
        assert result.classes.tolist() == [[NONE, NONE]]
        assert result.scores.tolist() == [[0.0, 0.0]]


def test_only_the_best_aligned_anchors_are_candidates() -> None:
    # 16 anchors in the box, one better than the next, and one outside that is better than all.
    points = [[4.0 + 8 * x, 4.0 + 8 * y] for y in range(4) for x in range(4)] + [[40.0, 4.0]]
    scores = [[(1 + i) / 20] for i in range(17)]
    box = [0.0, 0.0, 32.0, 32.0]
    for top_k in (1, 13, 16, 17):
        result = assign_one(scores, [box] * 17, points, [0], [box], top_k=top_k)
        expected = [i >= 16 - top_k for i in range(16)] + [False]
        assert (result.classes[0] == 0).tolist() == expected
        # Alignments 1/20 .. 16/20 are scaled so that the highest becomes 1.
        wanted = [(1 + i) / 16 if is_assigned else 0.0 for i, is_assigned in enumerate(expected)]
        assert result.scores[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_the_order_of_rows_and_pictures_does_not_matter() -> None:
    raw, targets = random_raw(4), random_targets([3, 0, 6, 2])
    expected = assign(raw, targets)
    shuffled = assign(raw, targets[torch.randperm(11, generator=torch.Generator().manual_seed(0))])
    assigned = expected.classes >= 0
    assert assigned.sum() > 20
    for actual in (shuffled, assign(raw, targets.flip(0))):
        assert torch.equal(actual.classes, expected.classes)
        assert torch.equal(actual.boxes[assigned], expected.boxes[assigned])
        assert torch.equal(actual.scores, expected.scores)

    order = torch.tensor([2, 3, 0, 1])  # picture i of the new batch is picture order[i] of the old
    moved = targets.clone()
    moved[:, 0] = order.argsort()[targets[:, 0].long()].float()
    actual = assign((raw[0][order], raw[1][order], *raw[2:]), moved)
    assert torch.equal(actual.classes, expected.classes[order])
    assert torch.equal(actual.scores, expected.scores[order])


def test_a_picture_does_not_depend_on_the_padding() -> None:
    raw, targets = random_raw(2), random_targets([2, 30])
    together = assign(raw, targets)
    alone = assign((raw[0][:1], raw[1][:1], *raw[2:]), targets[:2])
    assert torch.equal(together.classes[:1], alone.classes)
    assert torch.equal(together.scores[:1], alone.scores)


def test_pictures_without_boxes_are_background() -> None:
    raw = random_raw(3)
    for result in (assign(raw, random_targets([0, 4, 0])), assign(raw, torch.zeros(0, 6))):
        assert (result.classes[[0, 2]] == NONE).all()
        assert not result.scores[[0, 2]].any()
        assert result.boxes.shape == (3, 126, 4)
    assert (result.classes == NONE).all()


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([20.0, 20.0, 20.0, 20.0], id="a point on an anchor"),
        pytest.param([10.0, 20.0, 40.0, 20.0], id="a line"),
        pytest.param([40.0, 40.0, 10.0, 10.0], id="corners swapped"),
        pytest.param([-50.0, -60.0, -10.0, -5.0], id="left of the picture"),
        pytest.param([200.0, 10.0, 300.0, 50.0], id="right of the picture"),
    ],
)
def test_boxes_without_an_anchor_point_change_nothing(box: list[float]) -> None:
    raw, targets = random_raw(1), random_targets([3])
    expected = assign(raw, targets)
    actual = assign(raw, torch.cat([torch.tensor([[0.0, 1.0, *box]]), targets]))
    assert torch.equal(actual.classes, expected.classes)
    assert torch.equal(actual.scores, expected.scores)


def test_a_box_larger_than_the_picture_gets_anchors() -> None:
    result = assign(random_raw(1), torch.tensor([[0.0, 2.0, -100.0, -100.0, 300.0, 300.0]]))
    assert (result.classes == 2).sum() == 13


def test_predictions_that_are_not_finite_do_not_stop_it() -> None:
    raw = random_raw(2)
    with torch.no_grad():
        raw[0][0, :5] = math.nan
        raw[1][0, 3:9] = math.inf
    expected = assign(random_raw(2), random_targets([4, 4]))
    actual = assign(raw, random_targets([4, 4]))
    assert torch.equal(actual.classes[1], expected.classes[1])
    assert torch.equal(actual.scores[1], expected.scores[1])


def test_half_precision_is_read_in_float32() -> None:
    raw, targets = random_raw(2, dtype=torch.float32), random_targets([3, 5])
    half = (raw[0].half(), raw[1].half(), *raw[2:])
    expected = assign((half[0].float(), half[1].float(), *raw[2:]), targets)
    with torch.autocast("cpu", torch.bfloat16):
        actual = assign(half, targets)
    assert actual.scores.dtype == actual.boxes.dtype == torch.float32
    assert torch.equal(actual.classes, expected.classes)
    assert torch.equal(actual.scores, expected.scores)


def test_no_gradients_pass_through() -> None:
    result = assign(random_raw(1), random_targets([2]))
    assert not result.scores.requires_grad
    assert not result.boxes.requires_grad


def test_pad_targets() -> None:
    rows = [[2, 1, 0, 1, 2, 3], [0, 2, 4, 5, 6, 7], [2, 0, 8, 9, 10, 11]]
    classes, boxes = pad_targets(torch.tensor(rows, dtype=torch.float32), 4, CLASSES)
    assert classes.tolist() == [[2, 0], [0, 0], [1, 0], [0, 0]]
    assert classes.dtype == torch.int64
    assert boxes.tolist() == [
        [[4, 5, 6, 7], [0, 0, 0, 0]],
        [[0, 0, 0, 0]] * 2,
        [[0, 1, 2, 3], [8, 9, 10, 11]],
        [[0, 0, 0, 0]] * 2,
    ]
    assert [value.shape for value in pad_targets(torch.zeros(0, 6), 2, CLASSES)] == [(2, 1), (2, 1, 4)]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(4, 5), r"targets must have shape \(M, 6\), got \(4, 5\); the columns are picture class x1 y1 x2"),
        (torch.zeros(6), r"targets must have shape \(M, 6\), got \(6,\)"),
        (torch.tensor([[2.0, 0, 0, 0, 8, 8]]), "targets must name pictures from 0 to 1, got 2"),
        (torch.tensor([[-1.0, 0, 0, 0, 8, 8]]), "targets must name pictures from 0 to 1, got -1"),
        (torch.tensor([[0.0, 3, 0, 0, 8, 8]]), "targets must name classes from 0 to 2, got 3"),
        (torch.tensor([[0.0, 0, 0, 0, 8, math.nan]]), r"targets must be finite, got \[0.0, 0.0, 0.0, 0.0, 8.0, nan\]"),
    ],
)
def test_wrong_targets_are_refused(targets: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^assign: {message}"):
        assign(random_raw(2), targets)


def test_pairwise_iou_and_contains() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4], [2, 2, 6, 6], [0, 0, 0, 0]]])
    others = torch.tensor([[[0.0, 0, 4, 4], [4, 0, 8, 4]]])
    torch.testing.assert_close(pairwise_iou(boxes, others), torch.tensor([[[1, 0], [4 / 28, 4 / 28], [0, 0]]]))
    points = torch.tensor([[3.0, 3.0], [4.0, 3.0], [0.0, 0.0]])
    assert contains(boxes, points).tolist() == [[[True, False, False], [True, True, False], [False] * 3]]
