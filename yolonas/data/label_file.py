"""One YOLO label file: lines of a class number and a box, or a polygon, in fractions of the picture's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .data_yaml import shown
from .dataset import Problem, Problems

MAX_LABEL_BYTES = 16 * 2**20
OVERHANG = 1e-3  # of the picture's size: what rounding may put outside

_MOST, _LEAST = 1 + OVERHANG, -OVERHANG


@dataclass(frozen=True, eq=False)
class FileLabels:
    """The usable lines of a label file. The problems' `where` is what follows the file's name, such as `:3`."""

    boxes: np.ndarray  # (G, 4) float64 x, y, width, height, left and top corner, fractions of the picture, within 0..1
    classes: np.ndarray  # (G,) int32
    problems: tuple[Problem, ...] = ()

    @property
    def usable(self) -> bool:
        """False where the file could not be read: what is in the picture is not known then."""
        return all(problem.cost != "picture" for problem in self.problems)


def parse_labels(data: bytes, count: int) -> FileLabels:
    """The boxes of a label file for `count` classes.

    A line is `class cx cy width height`, or `class x y x y x y ...`, a polygon, which becomes the box around it. What
    hangs over the picture's edge is cut off. Lines that are wrong or repeat another are left out with a problem.
    """
    if b"\0" in data:
        return unusable("is not a text file")
    problems = Problems()
    boxes: list[tuple[float, float, float, float]] = []
    classes: list[int] = []
    seen = set()
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        place = f":{number}"
        try:
            if b"_" in line:  # Python reads 1_0 as 10
                raise ValueError
            values = tuple(map(float, parts))
        except ValueError:
            text = line[:80].decode("utf-8", "replace")
            problems.add("", f"must be numbers, got {shown(text)}", "label", place=place)
            continue
        corners = _corners(values)
        fault = _fault(values, corners, count)
        if fault is None and values in seen:
            fault = "repeats another line"
        if fault is not None or corners is None:
            problems.add("", fault or "", "label", place=place)
            continue
        seen.add(values)
        x1, y1, x2, y2 = corners
        if x1 < 0 or y1 < 0 or x2 > 1 or y2 > 1:
            over = max(-x1, -y1, x2 - 1, y2 - 1)
            if over > OVERHANG:
                problems.add("", f"box reaches {over:.3g} out of the picture and is cut off", "nothing", place=place)
            x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, 1.0), min(y2, 1.0)
            boxes.append((x1, y1, x2 - x1, y2 - y1))
        elif len(values) == 5:
            boxes.append((x1, y1, values[3], values[4]))
        else:
            boxes.append((x1, y1, x2 - x1, y2 - y1))
        classes.append(int(values[0]))
    return FileLabels(np.array(boxes, np.float64).reshape(-1, 4), np.array(classes, np.int32), tuple(problems.all()))


def unusable(reason: str) -> FileLabels:
    """What a label file that cannot be read amounts to."""
    return FileLabels(np.zeros((0, 4)), np.zeros(0, np.int32), (Problem("", reason, "picture"),))


def _corners(values: tuple[float, ...]) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom, not cut off; None for a line with a wrong count of numbers."""
    if len(values) == 5:
        _, cx, cy, w, h = values
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    if len(values) >= 7 and len(values) % 2 == 1:
        xs, ys = values[1::2], values[2::2]
        return min(xs), min(ys), max(xs), max(ys)
    return None


def _fault(values: tuple[float, ...], corners: tuple[float, float, float, float] | None, count: int) -> str | None:
    if corners is None:
        return f"must have 5 numbers (class cx cy width height) or a polygon of at least 3 points, got {len(values)}"
    number = values[0]
    if not 0 <= number < count or number % 1:
        return f"class must be a whole number of 0 to {count - 1}, got {number:g}"
    for value in values[1:]:
        if not _LEAST <= value <= _MOST:  # also NaN
            return f"numbers must be fractions of the picture's size, 0 to 1, got {value:g}"
    if len(values) == 5 and (values[3] <= 0 or values[4] <= 0):
        return f"box must have a width and a height above 0, got {values[3]:g} {values[4]:g}"
    if min(corners[2], 1) <= max(corners[0], 0) or min(corners[3], 1) <= max(corners[1], 0):
        return "box must have an area in the picture, got none"
    return None
