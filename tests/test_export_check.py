"""What counts as the same detections in two precisions, on lists made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from yolonas.config import DetectSettings
from yolonas.export_check import AnchorDifference, add_up, difference
from yolonas.exporting.spec import ExportSpec
from yolonas.preprocess import Preprocess

CONF = 0.3


def spec_of(precision: str = "fp32", **settings: object) -> ExportSpec:
    return ExportSpec(
        variant="s",
        names={0: "a", 1: "b"},
        preprocess=Preprocess(size=(320, 640), fit=None),
        settings=replace(DetectSettings(conf=CONF, iou=0.5, max_det=4), **settings),  # type: ignore[arg-type]
        precision=precision,
    )


def rows(*values: tuple[float, ...]) -> np.ndarray:
    """x, score, class of boxes of 100x100."""
    return np.array([(x, 0, x + 100, 100, score, label) for x, score, label in values], np.float32).reshape(-1, 6)


def check(expected: np.ndarray, found: np.ndarray, spec: ExportSpec) -> tuple[int, int, bool]:
    one = difference(expected, found, spec, CONF)
    return one.missing, one.edge, one.lies_within(spec)


def test_the_same_in_another_order() -> None:
    left = rows((0, 0.9, 0), (200, 0.8, 1))
    one = difference(left, left[::-1], spec_of(), CONF)
    assert (one.detections, one.missing, one.box, one.score) == (2, 0, 0, 0)
    assert one.lies_within(spec_of())


def test_nothing_on_either_side() -> None:
    one = difference(rows(), rows(), spec_of(), CONF)
    assert (one.detections, one.missing) == (0, 0)
    assert one.lies_within(spec_of())
    assert str(one) == "no detections on 1 picture, on either side"


@pytest.mark.parametrize(
    ("precision", "apart", "fits"), [("fp32", 0.05, True), ("fp32", 0.1, False), ("fp16", 6, True)]
)
def test_boxes_that_have_moved(precision: str, apart: float, fits: bool) -> None:
    spec = spec_of(precision)
    assert check(rows((0, 0.9, 0)), rows((apart, 0.9, 0)), spec)[2] == fits


def test_another_class_is_another_detection() -> None:
    assert check(rows((0, 0.9, 0)), rows((0, 0.9, 1)), spec_of()) == (2, 0, False)


def test_at_the_threshold() -> None:
    assert check(rows((0, 0.9, 0), (200, CONF + 5e-5, 0)), rows((0, 0.9, 0)), spec_of()) == (1, 1, True)
    assert check(rows((0, 0.9, 0), (200, CONF + 5e-3, 0)), rows((0, 0.9, 0)), spec_of()) == (1, 0, False)


def test_at_the_end_of_a_full_list() -> None:
    full = rows((0, 0.9, 0), (150, 0.8, 0), (300, 0.7, 0), (450, 0.6, 0))
    other = rows((0, 0.9, 0), (150, 0.8, 0), (300, 0.7, 0), (450, 0.6, 1))
    assert check(full, other, spec_of()) == (2, 2, True)
    assert check(full[:3], other[[0, 1, 3]], spec_of()) == (2, 0, False)


def test_an_overlap_that_is_just_allowed() -> None:
    """IoU 0.5 of boxes of 100 that lie 33.3 apart."""
    assert check(rows((0, 0.9, 0), (33.33, 0.8, 0)), rows((0, 0.9, 0)), spec_of()) == (1, 1, True)
    assert check(rows((0, 0.9, 0), (60, 0.8, 0)), rows((0, 0.9, 0)), spec_of()) == (1, 0, False)
    assert check(rows((0, 0.9, 1), (33.33, 0.8, 0)), rows((0, 0.9, 1)), spec_of()) == (1, 0, False)
    across = spec_of(agnostic=True)
    assert check(rows((0, 0.9, 1), (33.33, 0.8, 0)), rows((0, 0.9, 1)), across) == (1, 1, True)


def test_two_of_one_score_of_which_either_stays() -> None:
    assert check(rows((0, 0.9, 0)), rows((20, 0.90005, 0)), spec_of()) == (2, 2, True)
    assert check(rows((0, 0.9, 0)), rows((20, 0.91, 0)), spec_of()) == (2, 0, False)
    assert check(rows((0, 0.9, 0)), rows((80, 0.90005, 0)), spec_of()) == (2, 0, False)


def test_int8_asks_for_about_the_same_boxes() -> None:
    spec = spec_of("int8")
    assert check(rows((0, 0.9, 0)), rows((10, 0.7, 0)), spec) == (0, 0, True)
    assert not check(rows((0, 0.9, 0)), rows(), spec)[2]
    assert check(rows((0, CONF + 0.1, 0)), rows(), spec)[2]  # not one of which there could be no doubt


def test_pictures_add_up() -> None:
    total = add_up(
        [
            difference(rows((0, 0.9, 0)), rows((0.01, 0.9, 0)), spec_of(), CONF),
            difference(rows((0, 0.9, 0)), rows(), spec_of(), CONF),
        ]
    )
    assert (total.pictures, total.detections, total.missing) == (2, 2, 1)
    assert total.box == pytest.approx(0.01, abs=1e-5)
    assert str(total).startswith("2 detections on 2 pictures, 1 of them on one side only; boxes within 0.01 px")


@pytest.mark.parametrize(
    ("precision", "values", "fits"),
    [
        ("fp32", (0.05, 5e-5, 1, 1), True),
        ("fp32", (0.05, 2e-4, 0, 0), False),
        ("fp16", (50, 0.5, 1, 1e-3), True),
        ("fp16", (50, 0.5, 1, 0.02), False),
        ("int8", (300, 0.9, 20, 0.04), True),
        ("int8", (300, 0.9, 40, 0.04), False),
    ],
)
def test_all_anchors(precision: str, values: tuple[float, ...], fits: bool) -> None:
    assert AnchorDifference(100, *values).lies_within(spec_of(precision)) == fits
