"""`Evaluator`: takes in pictures with their true boxes and detections, one by one, and gives the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..records import STAGES, ImageRecord
from .coco import check_evaluator, evaluate_matches, evaluate_records
from .confusion import ConfusionMatrix
from .detection import DetMetrics
from .matches import MatchLog

SPEEDS = ("read", "preprocess", "inference", "loss", "postprocess")  # loss: other libraries have one here, we do not


class Evaluator:
    """Collects what was detected and computes the metrics.

    Args:
        names: class names by number, 0 to n-1.
        category_ids: the category id of each class in JSON files; None for class number + 1. pycocotools takes means
            over classes in the order of these.
        evaluator: what computes average precision: `native` matches here and accumulates by pycocotools' code,
            `pycocotools` does all by it, `fast` by faster-coco-eval. They agree; the latter two keep all detections.
        conf: lowest confidence in the confusion matrix, 0..1.
        iou: overlap above which its boxes are paired, 0..1.

    Raises:
        ValueError: an argument is out of range.
        ImportError: faster-coco-eval is asked for and missing.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        category_ids: Sequence[int] | None = None,
        *,
        evaluator: str = "native",
        conf: float = 0.25,
        iou: float = 0.45,
    ) -> None:
        if not names or sorted(names) != list(range(len(names))):
            raise ValueError(f"Evaluator: names must have the class numbers 0 to n-1, got {sorted(names)[:20]}")
        ids = [number + 1 for number in range(len(names))] if category_ids is None else [int(i) for i in category_ids]
        if len(ids) != len(names) or len(set(ids)) != len(ids):
            raise ValueError(f"Evaluator: category_ids must be {len(names)} different numbers, got {ids[:100]}")
        check_evaluator(evaluator)
        self.names = {number: names[number] for number in range(len(names))}
        self.category_ids = tuple(ids)
        self.evaluator = evaluator
        self._confusion_matrix = ConfusionMatrix(self.names, conf, iou)
        self._matches = MatchLog()
        self._ids: set[int | str] = set()
        self._ms = np.zeros(len(STAGES))
        self._records: list[ImageRecord] = []

    def add(self, record: ImageRecord) -> None:
        """Takes in a picture; the order does not matter. Of its detections only the matches are kept.

        Raises:
            ValueError: the picture was there already, a class number is not among the names, or a number is not finite;
                nothing is changed then.
        """
        if isinstance(record.image_id, bool) or not isinstance(record.image_id, (int, str)):
            raise ValueError(f"Evaluator.add: image_id must be a number or a text, got {record.image_id!r}")
        if record.image_id in self._ids:
            raise ValueError(f"Evaluator.add: image_id must be new, got {record.image_id!r} ({record.file_name}) again")
        if record.detections.ndim != 2 or record.detections.shape[1] != 6:
            raise ValueError(f"Evaluator.add: detections must have shape (D, 6), got {record.detections.shape}")
        numbers = record.detections[:, 5]
        self._check_classes("detections", numbers)
        self._check_classes("truth.classes", record.truth.classes)
        self._matches.add(record, numbers.astype(np.int64))
        self._confusion_matrix.add(record.detections, record.truth)
        self._ids.add(record.image_id)
        self._ms += record.ms
        if self.evaluator != "native":
            self._records.append(record)

    def finish(self) -> DetMetrics:
        """The metrics of the pictures taken in so far."""
        table = self._matches.table()
        if self.evaluator == "native":
            coco = evaluate_matches(table, self.category_ids)
        else:
            numbered = {info.image_id: place for place, info in enumerate(table.images, 1)}
            records = [replace(record, image_id=numbered[record.image_id]) for record in self._records]
            coco = evaluate_records(records, self.names, self.category_ids, self.evaluator)
        mean = dict(zip(STAGES, (self._ms / max(1, len(self._ids))).tolist(), strict=True))
        speed = {key: mean.get(key, 0.0) for key in SPEEDS}
        return DetMetrics(self.names, coco, table, self._confusion_matrix, speed=speed, evaluator=self.evaluator)

    def _check_classes(self, argument: str, numbers: np.ndarray) -> None:
        whole = numbers == np.floor(numbers)  # NaN is not
        wrong = ~whole | (numbers < 0) | (numbers >= len(self.names))
        if wrong.any():
            raise ValueError(
                f"Evaluator.add: {argument} must be class numbers of 0..{len(self.names) - 1}, got {numbers[wrong][0]}"
            )
