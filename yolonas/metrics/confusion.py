"""The confusion matrix: which class was detected where which class was to be found, at one confidence and one IoU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..records import Truth
from .table import Row, rows_to_csv, rows_to_df, rows_to_json

BACKGROUND = "background"


class ConfusionMatrix:
    """Counts of detections and true boxes, picture by picture.

    A detection and a true box are paired where they overlap by more than `iou`, whatever their classes: the pair with
    the highest IoU first, of equal ones that of one class, then that with the better detection. What is left over is
    counted against the background: a true box as missed, a detection as wrong, unless it lies in a crowd of its class.

    Args:
        names: class names by number, from 0.
        conf: lowest confidence that counts, 0..1.
        iou: overlap above which boxes are paired, 0..1.

    Attributes:
        matrix: `(classes + 1, classes + 1)` int64: rows are what was detected, columns what is true, the last of both
            is the background.
    """

    def __init__(self, names: Mapping[int, str], conf: float = 0.25, iou: float = 0.45) -> None:
        for argument, value in (("conf", conf), ("iou", iou)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"ConfusionMatrix: {argument} must be a number of 0..1, got {value!r}")
        self.names = dict(names)
        self.conf = conf
        self.iou = iou
        self.matrix = np.zeros((len(names) + 1, len(names) + 1), np.int64)

    @property
    def nc(self) -> int:
        """Number of classes, the background left out."""
        return len(self.names)

    def add(self, detections: np.ndarray, truth: Truth) -> None:
        """Counts one picture.

        Args:
            detections: `(D, 6)` x, y, width, height, score, class number; best first.
            truth: the true boxes.
        """
        detections = detections[detections[:, 4] >= self.conf]
        classes = detections[:, 5].astype(np.int64)
        wanted = truth[~truth.crowd] if truth.crowd.any() else truth
        free_detection, free_truth = np.ones(len(classes), bool), np.ones(len(wanted), bool)
        if len(classes) and len(wanted):
            overlap = overlaps(detections[:, :4], wanted.boxes)
            row, column = np.nonzero(overlap > self.iou)
            order = np.lexsort((column, row, classes[row] != wanted.classes[column], -overlap[row, column]))
            for d, g in zip(row[order].tolist(), column[order].tolist(), strict=True):
                if free_detection[d] and free_truth[g]:
                    free_detection[d] = free_truth[g] = False
                    self.matrix[classes[d], wanted.classes[g]] += 1
        if len(wanted) < len(truth):
            crowds = truth[truth.crowd]
            inside = overlaps(detections[:, :4], crowds.boxes, of_boxes=True) > self.iou
            free_detection &= ~(inside & (classes[:, None] == crowds.classes)).any(axis=1)
        np.add.at(self.matrix, (classes[free_detection], self.nc), 1)
        np.add.at(self.matrix, (self.nc, wanted.classes[free_truth]), 1)

    def tp_fp(self) -> tuple[np.ndarray, np.ndarray]:
        """`(classes,)` int64 each: detections of a class that are right, and those that are not."""
        right = self.matrix.diagonal()[:-1].copy()
        return right, self.matrix.sum(axis=1)[:-1] - right

    def normalized(self) -> np.ndarray:
        """`(classes + 1, classes + 1)` float64: parts of the columns, which are 0 where a class has no boxes."""
        return _ratio(self.matrix, self.matrix.sum(axis=0, keepdims=True))

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[Row]:
        """One row per detected class, the background last: `Predicted`, then a value per true class."""
        labels = self._labels()
        values = self.normalized().round(decimals) if normalize else self.matrix
        rows = zip(labels, values.tolist(), strict=True)
        return [{"Predicted": label, **dict(zip(labels, row, strict=True))} for label, row in rows]

    def to_df(self, normalize: bool = False, decimals: int = 5) -> Any:
        """The rows of `summary` as a `polars.DataFrame`; needs `yolonas[dataframe]`."""
        return rows_to_df(self.summary(normalize, decimals), self._columns(normalize))

    def to_csv(self, normalize: bool = False, decimals: int = 5) -> str:
        """The rows of `summary` as text under a header."""
        return rows_to_csv(self.summary(normalize, decimals), self._columns(normalize))

    def to_json(self, normalize: bool = False, decimals: int = 5) -> str:
        """The rows of `summary` as a JSON list."""
        return rows_to_json(self.summary(normalize, decimals))

    def _columns(self, normalize: bool) -> dict[str, type]:
        return {"Predicted": str, **dict.fromkeys(self._labels(), float if normalize else int)}

    def _labels(self) -> list[str]:
        """The names of the classes and the background; one that is there already gets its number."""
        labels = ["Predicted"]
        for number, name in [*sorted(self.names.items()), (self.nc, BACKGROUND)]:
            label = name
            while label in labels:
                label = f"{label} ({number})"
            labels.append(label)
        return labels[1:]


def overlaps(boxes: np.ndarray, others: np.ndarray, *, of_boxes: bool = False) -> np.ndarray:
    """`(N, M)` IoU of boxes x, y, width, height, or with `of_boxes` the part of the N boxes that is shared.

    0 for boxes without area; NaN, which is above no limit, where an area is beyond all numbers.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        low = np.maximum(boxes[:, None, :2], others[None, :, :2])
        high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (others[:, :2] + others[:, 2:])[None])
        shared = (high - low).clip(0).prod(axis=2)
        area, other_area = boxes[:, 2, None] * boxes[:, 3, None], others[:, 2] * others[:, 3]
        return _ratio(shared, area if of_boxes else area + other_area - shared)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`(N, M)` float64, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)
