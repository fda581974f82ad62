"""Precision, recall and F1 over the confidence against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from made_records import BOX, SHIFTED, evaluated, random_records, record

FAR = (120, 10, 40, 40)


def test_one_right_one_wrong() -> None:
    metrics = evaluated([record(1, [(BOX, 0), (FAR, 0)], [(BOX, 0.8, 0), ((60, 60, 9, 9), 0.4, 0)])])
    box = metrics.box
    at = np.searchsorted(box.px, [0.2, 0.6, 0.9])
    np.testing.assert_allclose(box.p_curve[0, at], [0.5, 1.0, 1.0])
    np.testing.assert_allclose(box.r_curve[0, at], [0.5, 0.5, 0.0])
    np.testing.assert_allclose(box.f1_curve[0, at], [0.5, 2 / 3, 0.0])
    assert 0.4 < metrics.threshold <= 0.4 + 1 / 999, "the lowest confidence that leaves the wrong one out"
    assert (box.p[0], box.r[0], box.f1[0]) == pytest.approx((1.0, 0.5, 2 / 3))


def test_a_detection_counts_at_its_own_confidence() -> None:
    metrics = evaluated([record(1, [(BOX, 0)], [(BOX, 1.0, 0)])])
    np.testing.assert_array_equal(metrics.box.r_curve, np.ones((1, 1000)))
    metrics = evaluated([record(1, [(BOX, 0)], [(BOX, 0.0, 0)])])
    assert metrics.box.r_curve[0].tolist() == [1.0] + [0.0] * 999


def test_overlap_of_half_is_enough() -> None:
    assert evaluated([record(1, [(BOX, 0)], [(SHIFTED, 0.9, 0)])]).box.r[0] == 1.0
    assert evaluated([record(1, [(BOX, 0)], [((31, 10, 40, 40), 0.9, 0)])]).box.r[0] == 0.0


def test_crowds_count_neither_way() -> None:
    truth = [(BOX, 0), ((0, 0, 100, 100), 0)]
    found = [(BOX, 0.9, 0), ((60, 60, 20, 20), 0.95, 0), ((70, 60, 20, 20), 0.93, 0)]
    box = evaluated([record(1, truth, found, crowd=[0, 1])]).box
    assert (box.p[0], box.r[0]) == (1.0, 1.0)


def test_a_class_that_was_never_detected() -> None:
    box = evaluated([record(1, [(BOX, 0), (FAR, 2)], [(BOX, 0.9, 0), (BOX, 0.8, 1)])]).box
    assert box.ap_class_index.tolist() == [0, 2], "a class without true boxes has no curve"
    assert box.p_curve[1].max() == box.r_curve[1].max() == box.f1_curve[1].max() == 0
    assert (box.mp, box.mr) == (0.5, 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_against_counting(seed: int) -> None:
    """Every point again from `stats`, which is made from the same matches by other code."""
    records = random_records(seed)
    metrics = evaluated(records)
    stats, box = metrics.stats, metrics.box
    wrong = metrics._table.wrong()[:, 0]
    for row, number in enumerate(box.ap_class_index.tolist()):
        mine = stats["pred_cls"] == number
        for point in (0, 1, 249, 250, 251, 500, 949, 950, 951, 999):
            sure = mine & (stats["conf"] >= box.px[point])
            tp, fp = np.count_nonzero(sure & stats["tp"][:, 0]), np.count_nonzero(sure & wrong)
            assert box.r_curve[row, point] == tp / metrics.nt_per_class[number]
            assert box.p_curve[row, point] == (tp / (tp + fp) if tp + fp else 1.0)
    assert box.f1_curve.mean(axis=0).max() == pytest.approx(box.f1.mean(), abs=1e-15)
    p, r = np.maximum(box.p_curve, 1e-300), np.maximum(box.r_curve, 1e-300)
    np.testing.assert_allclose(box.f1_curve, 2 * p * r / (p + r), atol=1e-12)
