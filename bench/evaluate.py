"""Average precision of a set as large as COCO's val2017, without a network: ours against pycocotools, in one run.

Detections and true boxes come from a generator: 5,000 pictures, about 36,000 boxes of 80 classes, 300 detections a
picture, most of them unsure. Both sides must agree to the last digit first.

python bench/evaluate.py [--save] [--pictures 5000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from timing import compare, machine, save

from yolonas.config import COCO_NAMES
from yolonas.metrics import DetMetrics, Evaluator, prediction_rows, truth_json
from yolonas.records import ImageRecord, Truth, rounded_detections

NAMES = dict(enumerate(COCO_NAMES))
IDS = tuple(range(1, len(NAMES) + 1))
SIZE = (480, 640)
DETECTIONS = 300  # per picture
AIM = 1.2  # times pycocotools' accumulate alone


def pictures(count: int, seed: int = 0) -> list[ImageRecord]:
    """Pictures with 7.2 true boxes on average, of classes as uneven as COCO's, and what a network might say of them."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(3, len(NAMES) + 3)
    share /= share.sum()
    return [picture(index, rng, share) for index in range(count)]


def picture(index: int, rng: np.random.Generator, share: np.ndarray) -> ImageRecord:
    count = int(rng.negative_binomial(1, 1 / 8.2))
    likely = rng.choice(len(NAMES), 12, p=share)  # a scene has few classes
    truth = boxes(rng, count)
    classes = rng.choice(likely, count)
    crowd = rng.random(count) < 0.01
    areas = truth[:, 2] * truth[:, 3] * rng.uniform(0.5, 0.9, count)
    # a good and a few poorer ones for each true box, one in ten of another class; elsewhere unsure ones
    near = np.repeat(np.arange(count), 4)[: DETECTIONS // 2]
    shake = rng.normal(0, np.where(np.arange(len(near)) % 4 == 0, 0.04, 0.25)[:, None], (len(near), 4))
    nearby = truth[near] + shake * np.tile(truth[near, 2:], 2)
    elsewhere = boxes(rng, DETECTIONS - len(near))
    sure = rng.beta(2, 2, len(near)) ** np.where(np.arange(len(near)) % 4 == 0, 1, 4)
    other = rng.random(len(near)) < 0.1
    found = np.concatenate((nearby, elsewhere))
    found[:, 2:] = np.maximum(found[:, 2:], 1)
    scores = np.concatenate((sure, 0.001 + rng.exponential(0.02, len(elsewhere)))).clip(0.001, 1)
    numbers = np.concatenate(
        (np.where(other, rng.choice(likely, len(near)), classes[near]), rng.choice(80, len(elsewhere)))
    )
    corners = np.concatenate((found[:, :2], found[:, :2] + found[:, 2:]), 1)
    rows = np.column_stack((corners, scores, numbers))[np.argsort(-scores, kind="stable")]
    return ImageRecord(
        index, index + 1, f"{index}.jpg", SIZE, Truth.of(truth, classes, areas, crowd), rounded_detections(rows)
    )


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """`(count, 4)` x, y, width, height; about 4 of 10 small, 3 of 10 large, as in COCO."""
    height, width = SIZE
    side = np.exp(rng.normal(np.log(45), 1.0, (count, 1)) + rng.normal(0, 0.3, (count, 2))).clip(2, height - 1)
    corner = rng.random((count, 2)) * (np.array((width, height)) - side)
    return np.concatenate((corner, side), 1).round(2)


def ours(records: list[ImageRecord], evaluator: str = "native") -> DetMetrics:
    collected = Evaluator(NAMES, IDS, evaluator=evaluator)
    for record in records:
        collected.add(record)
    return collected.finish()


def pycocotools(records: list[ImageRecord]) -> tuple[Any, float]:
    """A `COCOeval` that has evaluated, and how many seconds it took."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = truth_json(records, NAMES, IDS)
    truth.createIndex()
    found = truth.loadRes([row for record in records for row in prediction_rows(record, IDS)])
    evaluation = COCOeval(truth, found, "bbox")
    start = time.perf_counter()
    evaluation.evaluate()
    return evaluation, time.perf_counter() - start


def peak_mb() -> float:
    """The most memory that this process has had, in MB; on Linux."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write bench/results/evaluate.json")
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    records = pictures(arguments.pictures)
    truths = sum(len(record.truth) for record in records)
    print(f"{len(records)} pictures, {truths} true boxes, {DETECTIONS * len(records)} detections")
    before = peak_mb()
    metrics = ours(records)
    memory = peak_mb() - before
    silence = contextlib.redirect_stdout(io.StringIO())
    with silence:
        evaluation, evaluate_s = pycocotools(records)
        evaluation.accumulate()
        evaluation.summarize()
    np.testing.assert_array_equal(list(metrics.coco.values()), evaluation.stats)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(metrics.result, name), evaluation.eval[name])
    print(f"equal to the last digit: mAP50-95 {metrics.box.map:.4f}, mAP50 {metrics.box.map50:.4f}")

    sides: dict[str, Callable[[], Any]] = {
        "yolonas": lambda: ours(records),
        "pycocotools accumulate": evaluation.accumulate,
    }
    with silence:
        times = compare(sides, rounds=arguments.rounds, repeats=1)
    own, accumulate = (times[side]["median_ms"] / 1e3 for side in sides)
    ratio = own / accumulate
    print(f"yolonas, matching to metrics        {own:7.2f} s   {ratio:.2f} x accumulate alone, aim {AIM} x")
    print(f"pycocotools, accumulate alone       {accumulate:7.2f} s")
    print(f"pycocotools, evaluate + accumulate  {evaluate_s + accumulate:7.2f} s")
    print(f"yolonas, memory                     {memory:7.0f} MB at its peak, detections and true boxes not counted")
    if arguments.save:
        row = {
            **{"ratio": round(ratio, 3), "aim": AIM, "times": times},
            **{"pycocotools_evaluate_s": round(evaluate_s, 2), "peak_memory_mb": round(memory)},
        }
        size = {"pictures": len(records), "true_boxes": truths, "detections": DETECTIONS * len(records)}
        print(f"saved {save('evaluate', {'machine': machine(), **size, **row})}")


if __name__ == "__main__":
    main()
