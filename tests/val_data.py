"""A small labelled data set. Its labels are what a network with weights by recipe finds, so that AP is not zero."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from yolonas import NAS

NAMES = ["cat", "dog", "bird"]
SIZES = [(90, 120), (120, 90), (100, 100), (64, 128)]


def write_data(folder: Path, model: NAS, pictures: int = 10) -> Path:
    """Writes `images/val`, `labels/val` and `data.yaml`; returns the yaml. Each third picture has no label file."""
    random = np.random.default_rng(5)
    for part in ("images", "labels"):
        (folder / part / "val").mkdir(parents=True)
    for number in range(pictures):
        height, width = SIZES[number % len(SIZES)]
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / "val" / f"{number:03}.png"), picture)
        if number % 3 == 2:
            continue
        (result,) = model.predict(picture, imgsz=64, conf=0.3, verbose=False)
        rows = result.boxes.data.numpy()
        rows = rows[random.random(len(rows)) < 0.3][:12]
        centre = (rows[:, :2] + rows[:, 2:4]) / 2 / (width, height)
        side = (rows[:, 2:4] - rows[:, :2]) / (width, height) * random.uniform(0.8, 1.0, (len(rows), 2))
        lines = [
            f"{int(label)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"
            for label, (x, y), (w, h) in zip(rows[:, 5], centre, side, strict=True)
            if min(w, h) > 0
        ]
        (folder / "labels" / "val" / f"{number:03}.txt").write_text("".join(lines))
    yaml = folder / "data.yaml"
    yaml.write_text("train: images/val\nval: images/val\nnames: [cat, dog, bird]\n")
    return yaml
