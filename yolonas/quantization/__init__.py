"""INT8 quantisation: what a network's activations look like, and the scales that follow from it.

`calibration` runs pictures and gives a `Histogram` per layer, `calibrators` finds the range of each, `ranges` sets the
scales of a network. `equalization` before and `bias_correction` after that lose less. `reference` has the arithmetic.
"""

from __future__ import annotations

from .calibration import collect_histograms
from .calibrators import METHODS, amax, scale_of
from .histogram import Histogram
from .ranges import set_ranges

__all__ = ["METHODS", "Histogram", "amax", "collect_histograms", "scale_of", "set_ranges"]
