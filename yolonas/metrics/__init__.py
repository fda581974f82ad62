"""Scores of an evaluation: COCO's average precision by pycocotools, curves over the confidence, the confusion matrix.

Pictures go into an `Evaluator` one by one; `finish` gives `DetMetrics`. Nothing here reads or writes files.
"""

from __future__ import annotations

from .coco import EVALUATORS, CocoResult, prediction_rows, truth_json
from .confusion import ConfusionMatrix
from .detection import DetMetrics, Metric
from .evaluator import Evaluator

__all__ = [
    "EVALUATORS",
    "CocoResult",
    "ConfusionMatrix",
    "DetMetrics",
    "Evaluator",
    "Metric",
    "prediction_rows",
    "truth_json",
]
