"""COCO's average precision and recall, by pycocotools' own code, and the JSON forms that it reads.

Where our matching is used (`evaluate_matches`), pycocotools still accumulates and summarises: the numbers are those
that it gives on the same files, to the last digit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np

from ..records import ImageRecord
from .matches import AREAS, ClassMatches, MatchTable

EVALUATORS = ("native", "pycocotools", "fast")
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MAX_DETS = (1, 10, 100)  # detections per picture and class


@dataclass(frozen=True)
class CocoResult:
    """What pycocotools accumulates, the classes by number. -1 stands where no true box is to be found."""

    precision: np.ndarray  # (T, R, K, A, M) float64: thresholds, recall points, classes, areas, numbers of detections
    recall: np.ndarray  # (T, K, A, M) float64: the highest
    scores: np.ndarray  # (T, R, K, A, M) float64: the confidence at each recall point
    recall_points: np.ndarray  # (R,) float64
    stats: dict[str, float]  # the twelve numbers by NUMBERS; NaN where no true box is to be found

    def ap(self) -> np.ndarray:
        """`(K, T)` average precision per class and threshold, over all areas; NaN for classes without true boxes."""
        values = self.precision[:, :, :, 0, -1].mean(axis=1).T
        return np.where(values > -1, values, np.nan)


def evaluate_matches(table: MatchTable, category_ids: Sequence[int]) -> CocoResult:
    """From our matches.

    pycocotools gets the pictures of a class as one, which it would join anyway. What it cannot see a difference in is
    left out or done once: detections that are ignored at every threshold, and a limit that cuts off nothing.
    """
    from pycocotools.cocoeval import COCOeval, Params

    order = np.argsort(category_ids)  # pycocotools takes the mean over classes in this order
    evaluation = _silent(COCOeval)(iouType="bbox")
    params = Params(iouType="bbox")
    shape = (len(params.iouThrs), len(params.recThrs), len(order), len(AREAS), len(MAX_DETS))
    precision, scores = np.full(shape, -1.0), np.full(shape, -1.0)
    recall = np.full(shape[:1] + shape[2:], -1.0)
    for place, number in enumerate(order.tolist()):
        part = table.of_class(number)
        for m in reversed(range(len(MAX_DETS))):
            if m + 1 < len(MAX_DETS) and (part.rank < MAX_DETS[m]).all():
                for array in (precision, scores, recall):
                    array[..., place, :, m] = array[..., place, :, m + 1]
                continue
            evaluation.evalImgs = [_one_picture(part, area, MAX_DETS[m]) for area in range(len(AREAS))]
            evaluation.params.imgIds = evaluation.params.catIds = [0]
            evaluation.params.maxDets = [max(1, len(part.scores))]
            evaluation._paramsEval = evaluation.params
            evaluation.accumulate()
            precision[:, :, place, :, m] = evaluation.eval["precision"][:, :, 0, :, 0]
            scores[:, :, place, :, m] = evaluation.eval["scores"][:, :, 0, :, 0]
            recall[:, place, :, m] = evaluation.eval["recall"][:, 0, :, 0]
    evaluation.params = params
    evaluation.eval = {"precision": precision, "recall": recall, "scores": scores}
    evaluation.summarize()
    return _result(evaluation, category_ids)


def _one_picture(part: ClassMatches, area: int, max_det: int) -> dict[str, Any]:
    """What `COCOeval.evaluateImg` would say of all pictures joined to one."""
    keep = (part.rank < max_det) & ~part.ignored[area].all(axis=0)
    if len(keep):
        keep[np.argmax(part.scores)] = True  # names the confidence at recall 0; the first of its picture, so not cut
    return {
        "dtScores": part.scores[keep],
        "dtMatches": part.matched[area][:, keep],
        "dtIgnore": part.ignored[area][:, keep],
        "gtIgnore": part.truth_ignored[area],
    }


def evaluate_records(
    records: Sequence[ImageRecord], names: Mapping[int, str], category_ids: Sequence[int], evaluator: str
) -> CocoResult:
    """All by pycocotools or faster-coco-eval, from the JSON forms of the pictures. Their image ids must differ.

    Raises:
        ImportError: faster-coco-eval is missing.
    """
    check_evaluator(evaluator)
    if evaluator == "fast":
        from faster_coco_eval import COCO, COCOeval_faster

        coco, evaluate = COCO, COCOeval_faster
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        coco, evaluate = _silent(COCO), _silent(COCOeval)
    truth = coco()
    truth.dataset = truth_json(records, names, category_ids)
    truth.createIndex()
    rows = [row for record in records for row in prediction_rows(record, category_ids)]
    if rows:
        found = truth.loadRes(rows)
    else:  # which loadRes does not take
        found = coco()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
    evaluation = evaluate(truth, found, iouType="bbox")
    if evaluator == "fast":
        evaluation.print_function = _nothing
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return _result(evaluation, category_ids)


def check_evaluator(evaluator: str) -> None:
    """Raises ValueError for an unknown name, ImportError where its package is missing."""
    if evaluator not in EVALUATORS:
        raise ValueError(f"evaluator must be one of {', '.join(EVALUATORS)}, got {evaluator!r}")
    if evaluator == "fast":
        try:
            import faster_coco_eval  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "evaluator='fast': faster-coco-eval is missing; pip install 'yolonas[fast]', or take evaluator='native'"
            ) from error


def prediction_rows(record: ImageRecord, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One row of `predictions.json` per detection: image_id, file_name, category_id, bbox (x, y, width, height), score.

    Numbers are those of the record, which `rounded_detections` has rounded.
    """
    return [
        {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "category_id": int(category_ids[int(number)]),
            "bbox": box,
            "score": score,
        }
        for *box, score, number in record.detections.tolist()
    ]


def truth_json(
    records: Iterable[ImageRecord], names: Mapping[int, str], category_ids: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """The true boxes of the pictures as COCO's instances: images, annotations with ids from 1, categories."""
    images, annotations = [], []
    for record in records:
        height, width = record.size
        images.append({"id": record.image_id, "file_name": record.file_name, "height": height, "width": width})
        truth = record.truth
        columns = (truth.boxes, truth.classes, truth.areas, truth.crowd)
        for box, number, area, crowd in zip(*(column.tolist() for column in columns), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": int(category_ids[number]),
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": int(category_ids[number]), "name": name} for number, name in sorted(names.items())]
    return {"images": images, "annotations": annotations, "categories": categories}


def _result(evaluation: Any, category_ids: Sequence[int]) -> CocoResult:
    place = np.argsort(np.argsort(category_ids))  # of each class among the sorted ids
    stats = [float(value) if value > -1 else float("nan") for value in evaluation.stats[: len(NUMBERS)]]
    accumulated = {name: np.asarray(evaluation.eval[name]) for name in ("precision", "recall", "scores")}
    return CocoResult(
        precision=accumulated["precision"][:, :, place],
        recall=accumulated["recall"][:, place],
        scores=accumulated["scores"][:, :, place],
        recall_points=np.asarray(evaluation.params.recThrs),
        stats=dict(zip(NUMBERS, stats, strict=True)),
    )


def _silent(kind: type) -> Any:
    """The class without its prints; the process's output stays as it is, for other threads write to it."""
    scope = {**vars(sys.modules[kind.__module__]), "print": _nothing}
    functions = {
        name: FunctionType(value.__code__, scope, name, value.__defaults__, value.__closure__)
        for name, value in vars(kind).items()
        if isinstance(value, FunctionType)
    }
    scope[kind.__name__] = type(kind.__name__, (kind,), functions)
    return scope[kind.__name__]


def _nothing(*_values: Any, **_options: Any) -> None:
    pass
