"""Pictures of results: curves, confusion matrices, mosaics, costs of quantising. Arrays in, files or arrays out."""

from __future__ import annotations

from .confusion import plot_confusion_matrix
from .curves import plot_confidence_curve, plot_pr_curve
from .mosaic import mosaic
from .sensitivity import plot_sensitivity
from .training import draw_training_batch, plot_training

__all__ = [
    "draw_training_batch",
    "mosaic",
    "plot_confidence_curve",
    "plot_confusion_matrix",
    "plot_pr_curve",
    "plot_sensitivity",
    "plot_training",
]
