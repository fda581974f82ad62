"""INT8 quantisation: what a network's activations look like, and the ranges that follow from it.

`calibration` runs pictures and gives a `Histogram` per layer, `calibrators` finds the range of each.
"""

from __future__ import annotations

from .calibration import collect_histograms
from .calibrators import METHODS, amax, scale_of
from .histogram import Histogram

__all__ = ["METHODS", "Histogram", "amax", "collect_histograms", "scale_of"]
