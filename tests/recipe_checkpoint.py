"""Writes a checkpoint with weights from a recipe, not from training: `python recipe_checkpoint.py FILE [s|m|l]`.

It has the real network's shape and gives many boxes, all of them meaningless: for trying the chain where no trained
weights are.
"""

from __future__ import annotations

import sys
from pathlib import Path

from golden_recipe import fill_

from yolonas import NAS
from yolonas.nn import YoloNAS


def write(path: Path, variant: str = "s") -> Path:
    """A YOLO-NAS checkpoint with 80 classes in training form."""
    return NAS(fill_(YoloNAS(variant).eval())).save(path)


if __name__ == "__main__":
    write(Path(sys.argv[1]), *sys.argv[2:3])
