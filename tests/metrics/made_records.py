"""Pictures with true boxes and detections, made by hand or at random, and what plain pycocotools says of them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolonas.metrics import Evaluator, prediction_rows, truth_json
from yolonas.records import ImageRecord, Truth

NAMES = {0: "cat", 1: "dog", 2: "bird"}
IDS = (7, 3, 90)  # with gaps, and not in the order of the class numbers
BOX = (10, 10, 40, 40)  # of a medium area

Found = Sequence[tuple[Sequence[float], float, int]]  # box, score, class
True_ = Sequence[tuple[Sequence[float], int]]  # box, class


def record(
    index: int, truth: True_, found: Found, *, crowd: Any = None, areas: Any = None, **changes: Any
) -> ImageRecord:
    """A picture of 100 x 200 pixels whose id is 10 x its index."""
    fields = {
        "index": index,
        "image_id": 10 * index,
        "file_name": f"{index}.jpg",
        "size": (100, 200),
        "truth": Truth.of([box for box, _ in truth], [number for _, number in truth], areas, crowd),
        "detections": np.array([[*box, score, number] for box, score, number in found], np.float64).reshape(-1, 6),
    }
    return ImageRecord(**{**fields, **changes})


def perfect(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """The same pictures with one detection per true box that is no crowd, all of different scores."""
    result, score = [], 1.0
    for each in records:
        truth = each.truth[~each.truth.crowd]
        rows = []
        for box, number in zip(truth.boxes.tolist(), truth.classes.tolist(), strict=True):
            score -= 1e-5
            rows.append((box, round(score, 5), number))
        kept = zip(each.truth.boxes.tolist(), each.truth.classes.tolist(), strict=True)
        result.append(record(each.index, list(kept), rows, crowd=each.truth.crowd, areas=each.truth.areas))
    return result


def random_records(seed: int, pictures: int = 12, classes: int = 3, busy: bool = False) -> list[ImageRecord]:
    """Overlapping boxes on a coarse grid with few different scores, so that ties and equal overlaps are common."""
    rng = np.random.default_rng(seed)
    result = []
    for index in rng.permutation(pictures).tolist():
        count = int(rng.integers(0, 8))
        boxes = np.concatenate((rng.integers(0, 12, (count, 2)) * 10, rng.integers(1, 16, (count, 2)) * 8), 1)
        labels = rng.integers(0, classes, count)
        truth = list(zip(boxes.tolist(), labels.tolist(), strict=True))
        areas = boxes[:, 2] * boxes[:, 3] * rng.choice([0.5, 1.0], count)
        extra = int(rng.integers(0, 400 if busy else 12))
        source = boxes[rng.integers(0, count, extra)] if count else rng.integers(1, 90, (extra, 4))
        near = (source + rng.integers(-3, 4, (extra, 4)) * rng.choice([0, 1, 5], (extra, 1))).clip(0)
        scores = rng.integers(1, 20, extra) / 20
        numbers = rng.integers(0, classes, extra)
        if count:
            numbers = np.where(rng.random(extra) < 0.7, labels[rng.integers(0, count, extra)], numbers)
        found = sorted(zip(near.tolist(), scores.tolist(), numbers.tolist(), strict=True), key=lambda row: -row[1])
        result.append(record(index, truth, found, crowd=rng.random(count) < 0.15, areas=areas))
    return result


def evaluated(
    records: Sequence[ImageRecord], evaluator: str = "native", ids: Sequence[int] = IDS, **options: Any
) -> Any:
    """The metrics of the pictures."""
    collected = Evaluator(dict(list(enumerate(NAMES.values()))[: len(ids)]), ids, evaluator=evaluator, **options)
    for each in records:
        collected.add(each)
    return collected.finish()


def plain_pycocotools(records: Sequence[ImageRecord], folder: Path, ids: Sequence[int] = IDS) -> Any:
    """A `COCOeval` after all its steps on the written JSON files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = dict(list(enumerate(NAMES.values()))[: len(ids)])
    (folder / "truth.json").write_text(json.dumps(truth_json(records, names, ids)))
    rows = [row for each in records for row in prediction_rows(each, ids)]
    (folder / "predictions.json").write_text(json.dumps(rows))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        if rows:
            found = truth.loadRes(str(folder / "predictions.json"))
        else:  # which loadRes does not take
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


SHIFTED = (18, 10, 40, 40)  # IoU 2/3 with BOX
CASES: dict[str, Callable[[], list[ImageRecord]]] = {
    "right": lambda: [record(1, [(BOX, 0)], [(BOX, 0.9, 0)])],
    "duplicate": lambda: [record(1, [(BOX, 0)], [(BOX, 0.9, 0), (BOX, 0.8, 0)])],
    "duplicate_of_one_score": lambda: [record(1, [(BOX, 0)], [(BOX, 0.9, 0), (BOX, 0.9, 0)])],
    "wrong_class": lambda: [record(1, [(BOX, 0)], [(BOX, 0.9, 1)])],
    "shifted": lambda: [record(1, [(BOX, 0)], [(SHIFTED, 0.9, 0)])],
    "better_box_comes_later": lambda: [record(1, [(BOX, 0)], [(SHIFTED, 0.9, 0), (BOX, 0.8, 0)])],
    "score_ties_over_pictures": lambda: [
        record(2, [(BOX, 0)], [(BOX, 0.5, 0)]),
        record(3, [(BOX, 0)], [((90, 10, 40, 40), 0.5, 0)]),
        record(1, [(BOX, 0)], [((90, 10, 40, 40), 0.5, 0), (BOX, 0.5, 0)]),
    ],
    "empty_pictures": lambda: [
        record(1, [], []),
        record(2, [(BOX, 0)], []),
        record(3, [], [(BOX, 0.9, 0)]),
        record(4, [(BOX, 0)], [(BOX, 0.3, 0)]),
    ],
    "class_without_truth": lambda: [record(1, [(BOX, 0), (BOX, 2)], [(BOX, 0.9, 0), (BOX, 0.8, 1)])],
    "class_never_detected": lambda: [record(1, [(BOX, 0), (BOX, 1)], [(BOX, 0.9, 0)])],
    "crowd": lambda: [
        record(
            1,
            [(BOX, 0), ((0, 0, 100, 100), 0)],
            [(BOX, 0.9, 0), ((60, 60, 20, 20), 0.95, 0), ((70, 70, 20, 20), 0.8, 0), ((150, 0, 40, 40), 0.7, 0)],
            crowd=[0, 1],
        )
    ],
    "crowds_only": lambda: [record(1, [((0, 0, 100, 100), 0)], [(BOX, 0.9, 0)], crowd=[1])],
    "area_limits": lambda: [
        record(
            1,
            [((0, 0, 32, 32), 0), ((50, 0, 96, 96), 0), ((0, 50, 20, 20), 0)],
            [((0, 0, 32, 32), 0.9, 0), ((50, 0, 96, 96), 0.8, 0), ((0, 50, 20, 20), 0.7, 0), ((100, 50, 9, 9), 0.6, 0)],
        )
    ],
    "area_of_the_mask": lambda: [record(1, [(BOX, 0)], [(BOX, 0.9, 0)], areas=[500.0])],
    "no_area": lambda: [record(1, [((10, 10, 0, 0), 0), (BOX, 0)], [((10, 10, 0, 0), 0.9, 0), (BOX, 0.5, 0)])],
    "more_than_100": lambda: [
        record(
            1,
            [(BOX, 0), ((100, 10, 40, 40), 0)],
            [((10 + n, 10, 40, 40), round(0.9 - n / 1000, 5), 0) for n in range(110)] + [((100, 10, 40, 40), 0.1, 0)],
        )
    ],
    "no_truth": lambda: [record(1, [], [(BOX, 0.9, 0)]), record(2, [], [])],
    "no_detections": lambda: [record(1, [(BOX, 0)], []), record(2, [(BOX, 1)], [])],
    "string_ids": lambda: [
        record(1, [(BOX, 0)], [(BOX, 0.5, 0)], image_id="b"),
        record(2, [(BOX, 0)], [((90, 10, 40, 40), 0.5, 0)], image_id="a10"),
        record(3, [(BOX, 0)], [((90, 10, 40, 40), 0.5, 0), (BOX, 0.5, 0)], image_id="ä"),
    ],
}
