"""Evaluator: what it takes, what it refuses, what it keeps."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_records import BOX, NAMES, evaluated, random_records, record

from yolonas.metrics import Evaluator
from yolonas.records import Truth


def test_category_ids_may_be_left_out() -> None:
    records = random_records(0)
    assert Evaluator(NAMES).category_ids == (1, 2, 3)
    assert evaluated(records, ids=(1, 2, 3)).box.map == pytest.approx(evaluated(records).box.map)


def test_metrics_so_far() -> None:
    evaluator = Evaluator(NAMES)
    evaluator.add(record(1, [(BOX, 0)], [(BOX, 0.9, 0)]))
    assert evaluator.finish().coco["AP50"] == pytest.approx(1.0)
    evaluator.add(record(2, [(BOX, 0)], []))
    assert evaluator.finish().coco["AP50"] == pytest.approx(51 / 101)


def test_speed_is_the_mean() -> None:
    evaluator = Evaluator(NAMES)
    evaluator.add(record(1, [], [], ms=(9.0, 1.0, 10.0, 2.0)))
    evaluator.add(record(2, [], [], ms=(9.0, 2.0, 20.0, 4.0)))
    expected = {"read": 9.0, "preprocess": 1.5, "inference": 15.0, "loss": 0.0, "postprocess": 3.0}
    assert evaluator.finish().speed == expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"names": {}}, "names must have the class numbers 0 to n-1"),
        ({"names": {1: "cat"}}, "names must have the class numbers 0 to n-1"),
        ({"category_ids": [1, 2]}, "category_ids must be 3 different numbers"),
        ({"category_ids": [1, 2, 2]}, "category_ids must be 3 different numbers"),
        ({"evaluator": "quick"}, "evaluator must be one of native, pycocotools, fast, got 'quick'"),
        ({"conf": 25}, "conf must be a number of 0..1, got 25"),
    ],
)
def test_arguments_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Evaluator(**{"names": NAMES, **options})


GOOD = record(1, [(BOX, 0)], [(BOX, 0.9, 0)])


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (record(2, [], [(BOX, 0.9, 3)]), r"detections must be class numbers of 0\.\.2, got 3.0"),
        (record(2, [], [(BOX, 0.9, -1)]), "detections must be class numbers"),
        (record(2, [], [(BOX, 0.9, 0.5)]), "detections must be class numbers"),
        (record(2, [], [(BOX, 0.9, float("nan"))]), "detections must be class numbers"),
        (record(2, [(BOX, 3)], []), "truth.classes must be class numbers"),
        (record(2, [], [(BOX, float("nan"), 0)]), "scores"),
        (record(2, [], [((1, 2, 3, float("inf")), 0.5, 0)]), "boxes"),
        (record(2, [((1, 2, 3, float("nan")), 0)], []), "truth_boxes"),
        (replace(GOOD, file_name="again.jpg"), r"image_id must be new, got 10 \(again.jpg\) again"),
        (replace(GOOD, image_id=2, detections=np.zeros((1, 5))), r"detections must have shape \(D, 6\), got \(1, 5\)"),
        (replace(GOOD, image_id=2, detections=np.zeros(6)), r"detections must have shape \(D, 6\), got \(6,\)"),
        (replace(GOOD, image_id=2.5), "image_id must be a number or a text, got 2.5"),
    ],
)
def test_pictures_refused(bad: Any, text: str) -> None:
    evaluator = Evaluator(NAMES)
    evaluator.add(GOOD)
    with pytest.raises(ValueError, match=text):
        evaluator.add(bad)
    metrics = evaluator.finish()
    assert (len(metrics.images()), metrics.box.map50) == (1, pytest.approx(1.0)), "it changes nothing"
    assert metrics.confusion_matrix.matrix.sum() == 1


def test_numbers_and_texts_as_ids() -> None:
    records = [
        replace(each, image_id=each.file_name if each.index % 2 else each.image_id) for each in random_records(1)
    ]
    values = [evaluated(records, evaluator).coco for evaluator in ("native", "pycocotools")]
    np.testing.assert_array_equal(list(values[0].values()), list(values[1].values()))


def test_boxes_as_large_as_numbers_go() -> None:
    huge = (0.0, 0.0, 1e300, 1e300)
    truth, found = [(huge, 0), (BOX, 0)], [(huge, 0.9, 0), (BOX, 0.8, 0)]
    metrics = evaluated([record(1, truth, found, crowd=[1, 0], areas=[1e300, 1600])])
    assert metrics.box.map50 > 0


def test_memory_per_picture_is_small() -> None:
    """Detections are not kept: 300 of them are 14 kB, their matches 9 kB."""
    rng = np.random.default_rng(0)
    rows = np.concatenate((rng.uniform(0, 100, (300, 4)), np.sort(rng.random((300, 1)), 0)[::-1]), 1)
    detections = np.column_stack((rows, rng.integers(0, 3, 300)))
    truth = Truth.of([BOX] * 7, [0] * 7)
    evaluator = Evaluator(NAMES)
    evaluator.add(replace(GOOD, truth=truth, detections=detections))
    tracemalloc.start()
    for number in range(100):
        evaluator.add(replace(GOOD, image_id=number + 100, truth=truth, detections=detections.copy()))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / 100 < 13_000


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, yolonas.metrics; print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["pycocotools", "faster_coco_eval", "matplotlib", "polars", "torch", "cv2"]
    ran = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
