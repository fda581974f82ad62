"""Labelled pictures drawn by code: eight kinds of things strewn over cluttered grounds, for training and for trials.

A picture is a function of its index, the seed and the size; nothing is kept between calls, so any number of threads and
processes may draw. Pictures to train with are those from index 0 on, pictures to validate with those from `FIRST_VAL`
on. The same versions of NumPy and OpenCV give the same pictures, on another kind of processor but for rounding.

Every thing of the eight kinds that is drawn has a box: the smallest one around those pixels of the picture that its
silhouette covers more than half, seen or hidden by other things. A thing that would be less than `SEEN` in sight,
beyond the picture's edge or below what is drawn later, is drawn elsewhere, smaller or not at all; so is one whose box
would be less than 10 pixels long or less than 6 wide. Letters, rings, arrows, plain polygons and the like lie among the
things and belong to no class.
"""

# More than 600 lines, half of them a table in code: the outlines of eight kinds and of a dozen others.
from __future__ import annotations

import colorsys
import math
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from ..options import whole
from ..progress import Progress
from .data_yaml import shown

NAMES = ("star", "heart", "moon", "gear", "nut", "key", "mug", "umbrella")
FIRST_VAL = 1 << 30  # index of the first picture to validate with
VERSION = 1  # raised when the same arguments begin to give other pictures

COUNTS = (3, 20)  # things in a picture
LENGTHS = (12.0, 300.0)  # pixels, the longer side of a thing
SEEN = 0.4  # the least visible part of a silhouette

_SIDES = (64, 4096)  # pixels of a picture
_LAST_SEED = 2**32 - 1
_LEAST_LONG, _LEAST_SHORT = 10, 6  # pixels of a box
_TRIES = 12  # places for one thing

_T = TypeVar("_T")
_Points = np.ndarray  # (N, 2) float64 x, y


def draw(index: int, *, size: tuple[int, int] = (416, 416), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws one picture.

    Args:
        index: 0 to 2**31 - 1; from `FIRST_VAL` on for pictures to validate with.
        size: (height, width) in pixels, 64 to 4096 each.
        seed: 0 to 2**32 - 1; another seed gives another set of pictures.

    Returns:
        The picture, `(height, width, 3)` uint8 BGR, and its 3 to 20 labels in the order of drawing, `(n, 5)` float32:
        class, x1, y1, x2, y2 in pixels from the picture's corner, so that a box of the whole picture is 0, 0, width,
        height.

    Raises:
        ValueError: an argument is out of range.
    """
    index = whole(0, 2 * FIRST_VAL - 1)("draw: index", index)
    seed = whole(0, _LAST_SEED)("draw: seed", seed)
    picture, things = _scene(index, _checked_size("draw", size), seed)
    return picture, np.array([(thing.label, *thing.box) for thing in things], np.float32)


def write(
    folder: str | os.PathLike[str],
    *,
    train: int = 2000,
    val: int = 400,
    size: tuple[int, int] = (416, 416),
    seed: int = 0,
    quality: int = 90,
    verbose: bool = True,
) -> Path:
    """Writes a YOLO data set: `images/train`, `images/val`, `labels/train`, `labels/val` and `shapes.yaml`.

    The folder gets its name when all is in it: whatever goes wrong before, also Ctrl-C, leaves nothing behind. A folder
    that this function wrote before with the same arguments is taken as it is.

    Args:
        folder: new, empty, or written before with the same arguments.
        train: pictures to train with, at least 1. val: pictures to validate with, at least 1. No picture is in both,
            and each has the pixels and boxes of `draw` for its index, but for what JPEG loses.
        size: (height, width) in pixels. seed: as in `draw`.
        quality: of the JPEG files, 1 to 100.
        verbose: tell on a long run how far it is.

    Returns:
        The path of `shapes.yaml`, to be given as `data`.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: `folder` holds something else.
    """
    counts = {name: whole(1, FIRST_VAL)(f"write: {name}", n) for name, n in (("train", train), ("val", val))}
    height, width = _checked_size("write", size)
    seed = whole(0, _LAST_SEED)("write: seed", seed)
    quality = whole(1, 100)("write: quality", quality)
    target = Path(folder)
    text = _yaml(counts, (height, width), seed, quality)
    if _is_written(target, text, counts):
        return target / "shapes.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    progress = Progress("shapes", sum(counts.values()), verbose=verbose)
    try:
        for split, first in (("train", 0), ("val", FIRST_VAL)):
            for kind in ("images", "labels"):
                (temporary / kind / split).mkdir(parents=True)
            for number in range(counts[split]):
                picture, rows = draw(first + number, size=(height, width), seed=seed)
                (temporary / "images" / split / f"{number:06}.jpg").write_bytes(_jpeg(picture, quality))
                (temporary / "labels" / split / f"{number:06}.txt").write_text(_lines(rows, height, width))
                progress.advance(1)
        (temporary / "shapes.yaml").write_text(text)
        try:
            if target.is_dir():
                target.rmdir()  # empty
            temporary.rename(target)
        except OSError:
            if not _is_written(target, text, counts):  # else somebody wrote the same and was faster
                raise
    finally:
        progress.close()
        shutil.rmtree(temporary, ignore_errors=True)
    return target / "shapes.yaml"


def _checked_size(who: str, size: object) -> tuple[int, int]:
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"{who}: size must be (height, width), got {shown(size)}")
    check = whole(*_SIDES)
    return check(f"{who}: height of size", size[0]), check(f"{who}: width of size", size[1])


def _yaml(counts: dict[str, int], size: tuple[int, int], seed: int, quality: int) -> str:
    settings = {"version": VERSION, **counts, "height": size[0], "width": size[1], "seed": seed, "quality": quality}
    return "\n".join(
        (
            "# Pictures drawn by yolonas.data.shapes.write",
            "train: images/train",
            "val: images/val",
            "names:",
            *(f"  {number}: {name}" for number, name in enumerate(NAMES)),
            "drawn:",
            *(f"  {name}: {value}" for name, value in settings.items()),
            "",
        )
    )


def _is_written(folder: Path, text: str, counts: dict[str, int]) -> bool:
    """Whether `folder` is this data set; False if it can become it. Raises FileExistsError for anything else."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    cure = "give another folder, or move this one away"
    yaml = folder / "shapes.yaml"
    if not yaml.is_file():
        raise FileExistsError(f"write: folder must be new, empty or a set of shapes, got {str(folder)!r}; {cure}")
    if yaml.read_text(encoding="utf-8", errors="replace") != text:
        raise FileExistsError(f"write: folder must have been written with these arguments, see {yaml}; {cure}")
    for split, count in counts.items():
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            found = sum(1 for _ in (folder / kind / split).glob(f"*.{suffix}"))
            if found != count:
                raise FileExistsError(f"write: {folder / kind / split} must have {count} files, got {found}; {cure}")
    return True


def _jpeg(picture: np.ndarray, quality: int) -> bytes:
    return cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()


def _lines(rows: np.ndarray, height: int, width: int) -> str:
    """The text of a label file."""
    sides = np.array((width, height), np.float64)
    centres, lengths = (rows[:, 1:3] + rows[:, 3:5]) / 2 / sides, (rows[:, 3:5] - rows[:, 1:3]) / sides
    return "".join(
        f"{int(label)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"
        for label, (x, y), (w, h) in zip(rows[:, 0], centres, lengths, strict=True)
    )


# Scenes: which things lie where.


@dataclass(frozen=True)
class _Mask:
    """A silhouette in pixels, cropped to those that it covers more than half."""

    alpha: np.ndarray  # (h, w) uint8
    details: np.ndarray | None  # (h, w) uint8: where the surface has another tint
    core: np.ndarray  # (h, w) uint8: 255 where more than half is covered, else 0
    area: int  # pixels of the core


@dataclass(frozen=True)
class _Thing:
    label: int  # class number; -1: belongs to no class
    mask: _Mask
    x: int  # of the mask's corner in the picture; may lie outside
    y: int
    box: tuple[int, int, int, int]  # xyxy of what is in the picture


@dataclass(frozen=True)
class _Light:
    """What is the same for all things of a picture."""

    x: float  # direction that the light comes from, length 1
    y: float
    relief: float  # 0..1
    shadow: float  # 0..1
    reach: float  # of shadows, part of the thing's length


def _scene(index: int, size: tuple[int, int], seed: int) -> tuple[np.ndarray, list[_Thing]]:
    """The picture and its things that have a class, in the order of drawing."""
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, index))))
    harm = random.random()  # 0: a clean picture, 1: a bad one
    angle = random.uniform(0, 2 * math.pi)
    light = _Light(
        math.cos(angle), math.sin(angle), random.random(), random.uniform(0, 0.6), random.uniform(0.02, 0.09)
    )
    picture = _ground(random, *size)
    pile = _Pile(size)
    longest = min(LENGTHS[1], 0.75 * min(size))
    wanted = int(random.integers(COUNTS[0], COUNTS[1] + 1))
    labels = [*random.integers(0, len(NAMES), wanted).tolist(), *[-1] * int(random.integers(1, 9))]
    lengths = LENGTHS[0] * (longest / LENGTHS[0]) ** random.random(len(labels))
    lengths[wanted:] = np.minimum(lengths[wanted:], 0.5 * longest)
    # Large things mostly lie below small ones, which they would hide.
    for place in np.argsort(-lengths * np.exp(random.uniform(-0.8, 0.8, len(labels)))).tolist():
        thing = pile.add(random, labels[place], lengths[place])
        if thing is not None:
            _paint(random, picture, thing, light)
    while len(pile.labelled()) < COUNTS[0]:
        thing = pile.add(random, int(random.integers(len(NAMES))), LENGTHS[0])
        if thing is not None:
            _paint(random, picture, thing, light)
    return _degraded(random, picture, harm), pile.labelled()


class _Pile:
    """The things of one picture, and how much of each is to be seen."""

    def __init__(self, size: tuple[int, int]):
        self._things: list[_Thing] = []
        self._top = np.full(size, 255, np.uint8)  # number of the thing on top
        self._seen = np.zeros(256, np.int64)  # pixels; the last number is the ground's
        self._seen[255] = self._top.size
        self._least = np.zeros(256, np.int64)  # pixels that must stay visible

    def labelled(self) -> list[_Thing]:
        return [thing for thing in self._things if thing.label >= 0]

    def add(self, random: np.random.Generator, label: int, length: float) -> _Thing | None:
        """Puts a thing on top where it leaves enough of the others, smaller ones if it must; None if nowhere."""
        outline = (_KINDS[label] if label >= 0 else _OTHERS[random.integers(len(_OTHERS))])(random)
        warp = _warp(random)
        for shrink in (1.0, 0.7, 0.5):
            mask = _mask(outline, warp, max(LENGTHS[0], shrink * length))
            for _ in range(_TRIES):
                thing = self._put(random, label, mask)
                if thing is not None:
                    return thing
        return None

    def _put(self, random: np.random.Generator, label: int, mask: _Mask) -> _Thing | None:
        """The thing at a random place, or None where that hides too much of it or of another."""
        height, width = self._top.shape
        h, w = mask.core.shape
        x = round((width - 0.6 * w) * random.random() - 0.2 * w)
        y = round((height - 0.6 * h) * random.random() - 0.2 * h)
        left, top, right, bottom = max(0, -x), max(0, -y), min(w, width - x), min(h, height - y)
        core = mask.core[top:bottom, left:right]
        seen = cv2.countNonZero(core)
        if seen < SEEN * mask.area:
            return None
        dx, dy, box_w, box_h = cv2.boundingRect(core)
        if min(box_w, box_h) < _LEAST_SHORT or max(box_w, box_h) < _LEAST_LONG:
            return None
        x1, y1 = x + left + dx, y + top + dy
        below = self._top[y + top : y + bottom, x + left : x + right]
        rest = self._seen - cv2.calcHist([below], [0], core, [256], [0, 256]).ravel().astype(np.int64)
        if np.any(rest < self._least):
            return None
        number = len(self._things)
        self._seen = rest
        self._seen[number] = seen
        self._least[number] = np.ceil(SEEN * mask.area) if label >= 0 else 0
        np.copyto(below, number, where=core > 0)
        self._things.append(_Thing(label, mask, x, y, (x1, y1, x1 + box_w, y1 + box_h)))
        return self._things[-1]


# Outlines. A thing is about as large as the unit disc; y points down.


@dataclass(frozen=True)
class _Outline:
    """Closed curves: `parts` are filled, then `holes` cut out; `details`, filled even-odd, have another tint."""

    parts: list[_Points]
    holes: list[_Points] = field(default_factory=list)
    details: list[_Points] = field(default_factory=list)


@lru_cache(64)
def _unit_arc(start: float, stop: float, points: int) -> _Points:
    angle = np.radians(np.linspace(start, stop, points))
    return np.stack((np.cos(angle), np.sin(angle)), axis=1)


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float, points: int = 40) -> _Points:
    """Part of an ellipse; degrees, clockwise on the screen from the right."""
    return _unit_arc(start, stop, points) * (rx, ry) + (x, y)


def _disc(x: float, y: float, r: float) -> _Points:
    return _arc(x, y, r, r, 0, 360)


def _band(x: float, y: float, r: float, width: float, start: float, stop: float) -> _Points:
    """Part of a ring of middle radius `r`."""
    outer, inner = r + width / 2, r - width / 2
    return np.concatenate((_arc(x, y, outer, outer, start, stop), _arc(x, y, inner, inner, stop, start)))


def _box(x1: float, y1: float, x2: float, y2: float) -> _Points:
    return np.array(((x1, y1), (x2, y1), (x2, y2), (x1, y2)), np.float64)


def _regular(corners: int, r: float = 1.0) -> _Points:
    return _arc(0, 0, r, r, 0, 360, corners + 1)[:-1]


def _stroke(points: Sequence[tuple[float, float]], width: float) -> list[_Points]:
    """A thick line with square ends, as one quadrangle per piece and a disc per bend."""
    line = np.array(points, np.float64)
    pieces = []
    for a, b in pairwise(line):
        along = (b - a) * (width / 2 / np.hypot(*(b - a)))
        across = np.array((-along[1], along[0]))
        pieces.append(np.stack((a + across, b + across, b - across, a - across)))
    return pieces + [_arc(*bend, width / 2, width / 2, 0, 360, 12) for bend in line[1:-1]]


def _star(random: np.random.Generator) -> _Outline:
    points = _arc(0, 0, 1, 1, -90, 270, 11)[:-1]
    points[1::2] *= random.uniform(0.4, 0.5)
    facets = [np.stack((points[i], points[i + 1], np.zeros(2))) for i in range(0, 10, 2)]
    return _Outline([points], details=facets if random.random() < 0.7 else [])


def _heart(random: np.random.Generator) -> _Outline:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    wide, y = random.uniform(0.95, 1.15), 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    points = np.stack((16 * wide * np.sin(t) ** 3, -y - 2.5), axis=1) / 16
    return _Outline([points], details=[0.8 * points, 0.65 * points] if random.random() < 0.5 else [])


def _moon(random: np.random.Generator) -> _Outline:
    shift, r = random.uniform(0.36, 0.52), random.uniform(0.76, 0.9)
    x = (1 - r * r + shift * shift) / (2 * shift)  # where the two circles meet
    y = np.sqrt(1 - x * x)
    outer, inner = np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(y, x - shift))
    points = np.concatenate((_arc(0, 0, 1, 1, outer, 360 - outer), _arc(shift, 0, r, r, 360 - inner, inner)))
    middle = (shift - r - 1) / 2
    craters = [_disc(middle, 0.1, 0.13), _disc(middle + 0.12, 0.5, 0.09), _disc(middle + 0.1, -0.42, 0.11)]
    return _Outline([points], details=craters if random.random() < 0.6 else [])


def _gear(random: np.random.Generator) -> _Outline:
    teeth, root, hole = int(random.integers(7, 13)), random.uniform(0.7, 0.8), random.uniform(0.2, 0.36)
    angle = np.arange(teeth)[:, None] * (2 * np.pi / teeth) + np.array((-0.3, -0.18, 0.18, 0.3)) * (2 * np.pi / teeth)
    r = np.array((root, 1, 1, root))
    points = np.stack((r * np.cos(angle), r * np.sin(angle)), axis=-1).reshape(-1, 2)
    if random.random() < 0.4:  # lightened by a ring of holes
        holes = [_disc(0, 0, 0.14), *(_disc(*at, 0.17) for at in _regular(int(random.integers(4, 6)), 0.44))]
        return _Outline([points], holes, [_disc(0, 0, 0.22)])
    groove = [_disc(0, 0, hole + share * (root - hole)) for share in (0.2, 0.55)]
    return _Outline([points], [_disc(0, 0, hole)], groove)


def _nut(random: np.random.Generator) -> _Outline:
    hole = random.uniform(0.42, 0.58)
    corners = _regular(6)
    points = np.stack([0.92 * corners + 0.08 * np.roll(corners, turn, axis=0) for turn in (1, -1)], axis=1)
    points = points.reshape(-1, 2)
    return _Outline([points], [_disc(0, 0, hole)], [_disc(0, 0, 0.8), _disc(0, 0, hole + 0.1)])


def _key(random: np.random.Generator) -> _Outline:
    bow, half = random.uniform(0.36, 0.44), random.uniform(0.07, 0.1)
    shaft, first = _box(-0.4, -half, 1, half), random.uniform(0.5, 0.62)
    bits = [_box(x, 0, x + 0.11, random.uniform(0.24, 0.36)) for x in (first, first + 0.18)[: random.integers(1, 3)]]
    bits.append(_box(0.87, 0, 1, 0.34))
    kind = random.integers(3)
    if kind == 0:
        heads, holes = [_disc(-0.6, 0, bow)], [_disc(-0.6, 0, 0.55 * bow)]
    elif kind == 1:  # a square with a round hole
        heads = [_box(-0.6 - bow, -bow, -0.6 + bow, bow) * np.array((1, 0.9))]
        holes = [_disc(-0.72, 0, 0.4 * bow)]
    else:  # a clover leaf
        heads = [_disc(-0.52, -0.24, 0.24), _disc(-0.52, 0.24, 0.24), _disc(-0.82, 0, 0.24), _disc(-0.58, 0, 0.2)]
        holes = [_disc(-0.82, 0, 0.11), _disc(-0.52, -0.24, 0.11), _disc(-0.52, 0.24, 0.11)]
    ornament = [_box(-0.15, -half, -0.05, half), _box(0, -0.35 * half, 0.9, 0.35 * half)]
    return _Outline([*heads, shaft, *bits], holes, ornament)


def _mug(random: np.random.Generator) -> _Outline:
    foot, tall = random.uniform(0.42, 0.58), random.uniform(0.6, 0.78)
    body = np.array(((-0.85, -tall), (0.3, -tall), (-0.275 + foot, tall), (-0.275 - foot, tall)))
    rim, base = _arc(-0.275, -tall, 0.575, 0.15, 0, 360), _arc(-0.275, tall, foot, 0.12, 0, 360)
    side = 0.3 - 0.45 * (0.575 - foot)
    handle = _arc(side - 0.05, -0.08, 0.62, 0.46, -90, 90)
    hole = _arc(side + 0.06, -0.08, 0.3, 0.26, -90, 90)
    details = [_arc(-0.275, -tall, 0.5, 0.1, 0, 360)]
    if random.random() < 0.5:
        low, high = random.uniform(0.1, 0.4), random.uniform(-0.3, -0.05)
        details.append(np.concatenate((_arc(-0.275, low, 0.6, 0.12, 0, 180), _arc(-0.275, high, 0.6, 0.12, 180, 0))))
    return _Outline([body, rim, base, handle], [hole], details)


def _umbrella(random: np.random.Generator) -> _Outline:
    tall, gores = random.uniform(0.7, 0.85), _pick(random, (4, 6))
    edge = [_arc(1 - (2 * i + 1) / gores, 0, 1 / gores, 0.13, 0, -180, 12) for i in range(gores)]
    canopy = np.concatenate((_arc(0, 0, 1, tall, 180, 360), *edge))
    hook = _band(-0.15, 0.75, 0.15, 0.1, 0, 180)
    t = np.linspace(0, np.pi / 2, 12)
    ribs = [np.stack((u * np.sin(t), -tall * np.cos(t)), axis=1) for u in np.linspace(-1, 1, gores + 1)]
    panels = [np.concatenate((ribs[i], ribs[i + 1][::-1])) for i in range(0, gores, 2)]
    pole, tip = _box(-0.05, -0.15, 0.05, 0.76), _box(-0.035, -tall - 0.12, 0.035, -tall)
    return _Outline([canopy, pole, hook, tip], details=panels)


_KINDS = (_star, _heart, _moon, _gear, _nut, _key, _mug, _umbrella)  # in the order of NAMES

_LETTERS = (  # strokes on a grid of 2 x 2
    (((0, 2), (1, 0), (2, 2)), ((0.5, 1.2), (1.5, 1.2))),
    (((2, 0), (0, 0), (0, 2), (2, 2)), ((0, 1), (1.6, 1))),
    (((0, 0), (0, 2)), ((2, 0), (2, 2)), ((0, 1), (2, 1))),
    (((0, 0), (0, 2)), ((2, 0), (0, 1.1), (2, 2))),
    (((0, 0), (0, 2), (1.7, 2)),),
    (((0, 2), (0, 0), (2, 2), (2, 0)),),
    (((0, 2), (0, 0), (1.6, 0), (1.6, 1), (0, 1), (1.8, 2)),),
    (((0, 0), (2, 0)), ((1, 0), (1, 2))),
    (((0, 0), (2, 2)), ((2, 0), (0, 2))),
    (((0, 0), (2, 0), (0, 2), (2, 2)),),
    (((0, 0), (2, 0), (0.8, 2)),),
    (((1.5, 2), (1.5, 0), (0, 1.4), (2, 1.4)),),
)


def _letter(random: np.random.Generator) -> _Outline:
    strokes = _LETTERS[random.integers(len(_LETTERS))]
    width = random.uniform(0.25, 0.5)
    return _Outline([piece - 1 for stroke in strokes for piece in _stroke(stroke, width)])


def _blob(random: np.random.Generator) -> _Outline:
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    r = 1 + sum(random.uniform(-0.5, 0.5) / k * np.cos(k * angle + random.uniform(0, 6)) for k in (2, 3, 4, 5))
    return _Outline([np.stack((r * np.cos(angle), r * np.sin(angle)), axis=1)])


def _wave(random: np.random.Generator) -> _Outline:
    x = np.linspace(-1, 1, 32)
    y = random.uniform(0.1, 0.3) * np.sin(x * random.uniform(3, 9))
    half = random.uniform(0.03, 0.1)
    return _Outline([np.concatenate((np.stack((x, y - half), axis=1), np.stack((x, y + half), axis=1)[::-1]))])


def _arrow(random: np.random.Generator) -> _Outline:
    neck, half = random.uniform(-0.1, 0.4), random.uniform(0.12, 0.28)
    points = ((-1, -half), (neck, -half), (neck, -0.65), (1, 0), (neck, 0.65), (neck, half), (-1, half))
    return _Outline([np.array(points)])


def _polygon(random: np.random.Generator) -> _Outline:
    return _Outline([_regular(int(random.integers(3, 7)))])


def _round(random: np.random.Generator) -> _Outline:
    """A disc, a ring, or a piece of a ring."""
    kind, width = random.integers(3), random.uniform(0.2, 0.5)
    if kind == 0:
        return _Outline([_disc(0, 0, 1)], details=[_disc(0, 0, 0.7)])
    if kind == 1:
        return _Outline([_disc(0, 0, 1)], [_disc(0, 0, 1 - width)])
    return _Outline([_band(0, 0, 1 - width / 2, width, 0, random.uniform(80, 300))])


def _cross(random: np.random.Generator) -> _Outline:
    half = random.uniform(0.15, 0.35)
    return _Outline([_box(-1, -half, 1, half), _box(-half, -1, half, 1)])


def _bar(random: np.random.Generator) -> _Outline:
    """A plain bar, a comb or a walking stick: pieces of gears, keys and umbrellas."""
    kind, half = random.integers(3), random.uniform(0.06, 0.16)
    bar = _box(-1, -half, 1, half)
    if kind == 0:
        return _Outline([bar])
    if kind == 1:
        return _Outline([bar, *(_box(x, 0, x + 0.14, 0.45) for x in np.linspace(-1, 0.86, int(random.integers(4, 8))))])
    return _Outline([bar, _band(1, -0.3, 0.3, 2 * half, -90, 90)])


_OTHERS = (_letter, _letter, _blob, _wave, _arrow, _polygon, _polygon, _round, _round, _cross, _bar)


# From outlines to pixels.


def _warp(random: np.random.Generator) -> np.ndarray:
    """The first two columns of a homography, (3, 2): turned, perhaps mirrored, a little stretched and tilted."""
    turn, stretch, shear, mirror, *tilt = random.random(6).tolist()
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    stretch, shear, side = math.exp(0.4 * stretch - 0.2), 0.4 * shear - 0.2, 1 if mirror < 0.5 else -1
    across = (side * (stretch * cos + shear * sin), shear * cos - stretch * sin)
    down = (side * sin / stretch, cos / stretch)
    near, far = (0.36 * part - 0.18 for part in tilt)
    return np.array((across, down, (near * across[0] + far * down[0], near * across[1] + far * down[1])))


def _mask(outline: _Outline, warp: np.ndarray, length: float) -> _Mask:
    """The silhouette with its longer side `length` pixels long, longer if it would be too thin."""
    groups = (outline.parts, outline.holes, outline.details)
    curves = np.concatenate([curve for group in groups for curve in group])
    curves = curves @ warp[:2].T / (1 + curves @ warp[2])[:, None]
    outer = curves[: sum(map(len, outline.parts))]
    low = outer.min(axis=0)
    sides = outer.max(axis=0) - low
    scale = max(length / sides.max(), (_LEAST_SHORT + 1) / sides.min())
    w, h = (int(side) for side in np.ceil(sides * scale) + 2)
    finer = 4 if length < 60 else 2
    # OpenCV's polygons have their points at the centres of pixels, here in 1/16.
    points = np.round((((curves - low) * scale + 1) * finer - 0.5) * 16).astype(np.int32)
    silhouette = np.zeros((h * finer, w * finer), np.uint8)
    end = 0
    for group, level in ((outline.parts, 255), (outline.holes, 0)):
        for curve in group:
            end += len(curve)
            cv2.fillPoly(silhouette, [points[end - len(curve) : end]], level, shift=4)
    alpha, details = cv2.resize(silhouette, (w, h), interpolation=cv2.INTER_AREA), None
    core = cv2.threshold(alpha, 128, 255, cv2.THRESH_BINARY)[1]
    x, y, core_w, core_h = cv2.boundingRect(core)
    crop = np.s_[y : y + core_h, x : x + core_w]
    if outline.details:
        silhouette[:] = 0
        ends = np.cumsum([len(curve) for curve in outline.details])[:-1]
        cv2.fillPoly(silhouette, np.split(points[end:], ends), 255, shift=4)
        details = cv2.resize(silhouette, (w, h), interpolation=cv2.INTER_AREA)[crop]
    return _Mask(alpha[crop], details, core[crop], cv2.countNonZero(core))


def _pick(random: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(random.random() * len(choices))]


def _bytes(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random numbers, `(rows, columns)` uint8, much faster than `random.bytes`."""
    words = random.bit_generator.random_raw(rows * columns // 8 + 1)
    return words.astype("<u8", copy=False).view(np.uint8)[: rows * columns].reshape(rows, columns)


def _color(numbers: np.ndarray) -> np.ndarray:
    """Blue, green, red, 0 to 255, of a painted thing or of metal, by three numbers of 0..1."""
    hue, saturation, value = numbers.tolist()
    hue = np.interp(hue, (0, 0.25, 0.5, 0.75, 1), (0.95, 1.1, 1.36, 1.58, 1.9))  # more red and yellow, less purple
    saturation = 0.4 + 0.65 * (saturation - 0.15) if saturation > 0.15 else saturation
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, 0.35 + 0.65 * value))[::-1]


def _earth(numbers: np.ndarray) -> np.ndarray:
    """As `_color`, of what things lie on: wood, sand, slate, moss, linen."""
    hue, saturation, value = numbers.tolist()
    known = (0.06, 0.09, 0.11, 0.13, 0.25, 0.4, 0.55, 0.6)
    hue = known[int(hue * len(known))] + 0.06 * (hue * len(known) % 1) - 0.03
    return 255 * np.array(colorsys.hsv_to_rgb(hue, 0.05 + 0.45 * saturation, 0.3 + 0.65 * value))[::-1]


def _blend(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`above`, (h, w, 3) or one colour, over `below`, (h, w, 3), where `alpha`, (h, w), says so."""
    if above.ndim == 1:
        part = cv2.merge([cv2.convertScaleAbs(alpha, alpha=level / 255) for level in above.clip(0, 255).tolist()])
    else:
        part = cv2.multiply(above, cv2.merge((alpha, alpha, alpha)), scale=1 / 255)
    rest = ~alpha
    return cv2.add(part, cv2.multiply(below, cv2.merge((rest, rest, rest)), scale=1 / 255))


def _gradient(colors: np.ndarray, height: int, width: int) -> np.ndarray:
    """A (rows, columns, 3) grid of colours spread over a picture."""
    return cv2.resize(np.clip(colors, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def _paint(random: np.random.Generator, picture: np.ndarray, thing: _Thing, light: _Light) -> None:
    """Draws a thing and its shadow."""
    alpha = thing.mask.alpha
    h, w = alpha.shape
    length = max(h, w)
    edge = 2 + int(0.04 * length)  # of what the surface needs to know around it
    x, y = thing.x, thing.y
    left, top, right, bottom = max(0, -x), max(0, -y), min(w, picture.shape[1] - x), min(h, picture.shape[0] - y)
    _shade(picture, alpha, x, y, light)
    target = picture[y + top : y + bottom, x + left : x + right]
    behind = np.array(cv2.mean(target)[:3])
    # Three in any case: what is drawn later must not hang on pixels.
    for color in map(_color, random.random((3, 3))):
        if np.abs(color - behind).sum() > 150:
            break

    surface = _gradient(color + random.uniform(-45, 45, (2, 2, 1)) + random.uniform(-15, 15, (2, 2, 3)), h, w)
    if length > 30 and random.random() < 0.35:
        _pattern(random, surface, _color(random.random(3)), length)
    if thing.mask.details is not None:
        tone = color * _pick(random, (0.55, 0.7, 1.35)) + random.uniform(-20, 20, 3)
        surface = _blend(surface, tone, thing.mask.details)
    around = cv2.copyMakeBorder(alpha, edge, edge, edge, edge, cv2.BORDER_CONSTANT, value=0)
    soft = cv2.blur(around, (2 * edge - 1, 2 * edge - 1))
    if light.relief > 0.25:
        dx, dy = round(light.x * edge * 0.7), round(light.y * edge * 0.7)
        lit = soft[edge - dy : edge - dy + h, edge - dx : edge - dx + w]
        dark = soft[edge + dy : edge + dy + h, edge + dx : edge + dx + w]
        up, down = cv2.subtract(lit, dark), cv2.subtract(dark, lit)
        strength = 0.9 * light.relief
        surface = cv2.scaleAdd(cv2.merge((up, up, up)), strength, surface)
        surface = cv2.subtract(surface, cv2.convertScaleAbs(cv2.merge((down, down, down)), alpha=strength))
    if random.random() < 0.35:
        rim = cv2.convertScaleAbs(cv2.subtract(225, soft[edge : edge + h, edge : edge + w]), alpha=5)
        surface = _blend(surface, color * _pick(random, (0.3, 1.6)), rim)
    crop = np.s_[top:bottom, left:right]
    target[:] = _blend(target, surface[crop], alpha[crop])


def _shade(picture: np.ndarray, alpha: np.ndarray, x: int, y: int, light: _Light) -> None:
    """Darkens the picture by the soft shadow of a silhouette whose corner is at (x, y)."""
    if light.shadow < 0.1:
        return
    h, w = alpha.shape
    reach = light.reach * max(h, w)
    soft = 2 + int(reach)
    shadow = cv2.copyMakeBorder(alpha, soft, soft, soft, soft, cv2.BORDER_CONSTANT, value=0)
    shadow = cv2.blur(cv2.blur(shadow, (soft, soft)), (soft, soft))
    x, y = round(x - light.x * (1 + reach)) - soft, round(y - light.y * (1 + reach)) - soft
    h, w = shadow.shape
    left, top, right, bottom = max(0, -x), max(0, -y), min(w, picture.shape[1] - x), min(h, picture.shape[0] - y)
    if left < right and top < bottom:
        rest = ~cv2.convertScaleAbs(shadow[top:bottom, left:right], alpha=light.shadow)
        target = picture[y + top : y + bottom, x + left : x + right]
        target[:] = cv2.multiply(target, cv2.merge((rest, rest, rest)), scale=1 / 255)


def _pattern(random: np.random.Generator, surface: np.ndarray, color: np.ndarray, length: float) -> None:
    """Stripes, checks or dots over a surface, in place."""
    h, w = surface.shape[:2]
    pitch = max(6.0, length * random.uniform(0.08, 0.25))
    kind, angle = random.integers(3), random.uniform(0, np.pi)
    along, across = np.array((np.cos(angle), np.sin(angle))), np.array((-np.sin(angle), np.cos(angle)))
    middle, reach = np.array((w, h)) / 2, 0.5 * np.hypot(w, h)
    steps = np.arange(-int(reach / pitch) - 1, int(reach / pitch) + 2) * pitch
    if kind == 2:
        grid = middle + steps[:, None, None] * along + steps[None, :, None] * across
        for at in np.round(grid.reshape(-1, 2)).astype(int).tolist():
            cv2.circle(surface, at, int(0.28 * pitch), color.tolist(), -1, cv2.LINE_AA)
        return
    thick = max(1, int(pitch * random.uniform(0.2, 0.5)))
    for direction, normal in ((along, across), (across, along))[: kind + 1]:
        for step in steps:
            ends = np.round([middle + step * normal - reach * direction, middle + step * normal + reach * direction])
            cv2.line(surface, *ends.astype(int).tolist(), color.tolist(), thick, cv2.LINE_AA)


# What is around the things: the ground they lie on, and what a camera makes of it all.


def _ground(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Wood, stone, cloth, paper ... with patterns and scraps on it."""
    stretch = np.exp(random.uniform(-1.5, 1.5))  # far from 1: brushed or grained
    total = np.zeros((height, width), np.uint8)
    share, cells = 0.5, random.uniform(2, 6)
    for _ in range(6):
        rows, columns = (int(np.clip(cells * by, 2, 256)) for by in (stretch, 1 / stretch))
        octave = cv2.resize(_bytes(random, rows, columns), (width, height), interpolation=cv2.INTER_CUBIC)
        total = cv2.addWeighted(total, 1, octave, share, 0)
        share, cells = share * random.uniform(0.45, 0.75), cells * 2
    source = _earth if random.random() < 0.7 else _color
    base, spread = source(random.random(3)), random.uniform(0.15, 0.8)
    tones = np.array([base + spread * (source(random.random(3)) - base) for _ in range(int(random.integers(2, 5)))])
    table = _gradient(tones[None], 1, 256)
    picture = cv2.LUT(cv2.merge((total, total, total)), table)
    if random.random() < 0.35:
        _pattern(random, picture, base + random.uniform(-60, 60), min(height, width))
    for _ in range(int(random.integers(0, 30))):
        _scrap(random, picture, 0.5 * (base + source(random.random(3))))
    return cv2.blur(picture, (3, 3)) if random.random() < 0.5 else picture


def _scrap(random: np.random.Generator, picture: np.ndarray, color: np.ndarray) -> None:
    """A line, a leaf or a speck on the ground, in place."""
    height, width = picture.shape[:2]
    x, y = int(random.integers(width)), int(random.integers(height))
    r = int(min(height, width) * 0.01 * 20 ** random.random())
    kind = random.integers(4)
    if kind == 0:
        ends = (int(x + random.uniform(-8, 8) * r), int(y + random.uniform(-8, 8) * r))
        cv2.line(picture, (x, y), ends, color.tolist(), max(1, r // 8), cv2.LINE_AA)
    elif kind == 1:
        angle = random.uniform(0, 360)
        cv2.ellipse(picture, (x, y), (r, max(1, r // 3)), angle, 0, 360, color.tolist(), -1, cv2.LINE_AA)
    else:
        corners = np.array((x, y)) + random.integers(-r, r + 1, (int(random.integers(3, 6)), 2))
        cv2.fillPoly(picture, [corners.astype(np.int32)], color.tolist(), cv2.LINE_AA)


def _degraded(random: np.random.Generator, picture: np.ndarray, harm: float) -> np.ndarray:
    """Uneven light, blur, noise and JPEG; `harm` 0..1 says how bad it may get."""
    height, width = picture.shape[:2]
    gains = 128 * random.uniform(1 - 0.25 * harm, 1 + 0.2 * harm)
    gains = gains * (1 + harm * random.uniform(-0.4, 0.3, (3, 3, 1)) + harm * random.uniform(-0.06, 0.06, (1, 1, 3)))
    picture = cv2.multiply(picture, _gradient(gains, height, width), scale=1 / 128)
    sigma = 1.5 * harm * random.random()
    if sigma > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    sigma = 1 + 15 * harm * random.random()
    planes = _pick(random, (1, 3))
    noise = cv2.LUT(_bytes(random, height, width * planes), _NOISE)
    noise = noise.reshape(height, width, 3) if planes == 3 else cv2.merge((noise, noise, noise))
    picture = cv2.addWeighted(picture, 1, noise, sigma / 32, -128 * sigma / 32)
    if random.random() < harm:
        packed = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, int(random.integers(25, 90))))[1]
        picture = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return picture


_LEVELS = (np.arange(256) + 0.5) / 256
# Turns bytes into bell-shaped noise of deviation 32 around 128.
_NOISE = np.clip(np.round(128 + 32 * np.sqrt(3) / np.pi * np.log(_LEVELS / (1 - _LEVELS))), 0, 255).astype(np.uint8)
