"""Pictures of an evaluation: curves, confusion matrices, mosaics. Arrays in, files or arrays out; no metrics."""

from __future__ import annotations

from .confusion import plot_confusion_matrix
from .curves import plot_confidence_curve, plot_pr_curve
from .mosaic import mosaic

__all__ = ["mosaic", "plot_confidence_curve", "plot_confusion_matrix", "plot_pr_curve"]
