"""Precision, recall and F1 over the confidence, at IoU 0.5, and the confidence where F1 is best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .matches import MatchTable

POINTS = 1000  # confidences from 0 to 1


@dataclass(frozen=True)
class ConfidenceCurves:
    """Curves of the classes that have true boxes.

    A detection counts from its own confidence downwards. Precision is 1 above a class's highest confidence, and 0 for
    a class that was never detected.
    """

    classes: np.ndarray  # (C,) int64 class numbers
    confidence: np.ndarray  # (POINTS,) float64
    precision: np.ndarray  # (C, POINTS) float64
    recall: np.ndarray  # (C, POINTS) float64
    f1: np.ndarray  # (C, POINTS) float64
    best: int  # the point with the highest mean F1, the lowest of several

    @property
    def threshold(self) -> float:
        """The confidence with the highest mean F1."""
        return float(self.confidence[self.best])


def confidence_curves(table: MatchTable, classes: np.ndarray) -> ConfidenceCurves:
    """The curves of these classes, each of which must have a true box that is to be found."""
    confidence = np.linspace(0, 1, POINTS)
    precision, recall, f1 = (np.zeros((len(classes), POINTS)) for _ in range(3))
    for row, number in enumerate(classes.tolist()):
        part = table.of_class(number)
        counts = ~part.ignored[0, 0]
        scores = part.scores[counts]
        order = np.argsort(scores)
        found = np.append(part.matched[0, 0, counts][order][::-1].cumsum()[::-1], 0)  # of those as good or better
        first = np.searchsorted(scores[order], confidence)
        right, detections = found[first], len(scores) - first
        wanted = np.count_nonzero(~part.truth_ignored[0])
        if len(scores):
            precision[row] = np.where(detections > 0, right / np.maximum(detections, 1), 1.0)
        recall[row] = right / wanted
        f1[row] = 2 * right / (detections + wanted)
    best = int(f1.mean(axis=0).argmax()) if len(classes) else 0
    return ConfidenceCurves(classes, confidence, precision, recall, f1, best)
