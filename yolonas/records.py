"""One picture of an evaluation: its true boxes and what was detected. What data sets, metrics and journals exchange.

Boxes are `x, y, width, height` (left and top corner) in pixels of the upright picture, as COCO writes them. Numbers are
float64, rounded as `predictions.json` writes them, so that what is scored is what is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BOX_DECIMALS = 3  # of detected boxes, pixels
SCORE_DECIMALS = 5
STAGES = ("read", "preprocess", "inference", "postprocess")


@dataclass(frozen=True)
class Truth:
    """The true boxes of one picture."""

    boxes: np.ndarray  # (G, 4) float64 x, y, width, height in pixels
    classes: np.ndarray  # (G,) int32 class numbers
    areas: np.ndarray  # (G,) float64 square pixels: COCO's area (of a mask, where there is one), else width * height
    crowd: np.ndarray  # (G,) bool: a region of many objects, where detections are neither right nor wrong

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: np.ndarray) -> Truth:
        """The chosen boxes, by mask or numbers."""
        return Truth(self.boxes[index], self.classes[index], self.areas[index], self.crowd[index])

    @classmethod
    def of(cls, boxes: object = (), classes: object = (), areas: object = None, crowd: object = None) -> Truth:
        """From anything array-like; `areas` default to those of the boxes, `crowd` to none."""
        box_array = np.asarray(boxes, np.float64).reshape(-1, 4)
        count = len(box_array)
        return cls(
            box_array,
            np.asarray(classes, np.int32).reshape(count),
            box_array[:, 2] * box_array[:, 3] if areas is None else np.asarray(areas, np.float64).reshape(count),
            np.zeros(count, bool) if crowd is None else np.asarray(crowd, bool).reshape(count),
        )


@dataclass(frozen=True)
class ImageRecord:
    """One evaluated picture."""

    index: int  # position in the data set
    image_id: int | str  # as in the COCO file, or made from the file's name
    file_name: str
    size: tuple[int, int]  # (height, width) pixels, upright
    truth: Truth
    detections: np.ndarray  # (D, 6) float64 x, y, width, height, score, class number; best first
    ms: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # of the stages, see STAGES; they overlap with those of other pictures


def rounded_detections(rows: np.ndarray) -> np.ndarray:
    """Rows x1, y1, x2, y2, score, class as `(D, 6)` x, y, width, height, score, class, rounded as they are written."""
    result = np.asarray(rows, np.float64).reshape(-1, 6).copy()
    result[:, 2:4] -= result[:, 0:2]
    result[:, :4] = result[:, :4].round(BOX_DECIMALS)
    result[:, 4] = result[:, 4].round(SCORE_DECIMALS)
    return result
