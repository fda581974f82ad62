"""Whether an exported file gives what the network gives: detections on pictures, and mAP on a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .exporting.spec import SUPPRESSED
from .ops import decode
from .prepare import fill_from_picture, input_shape
from .progress import Progress
from .val import ValOptions
from .val_pipeline import evaluate
from .val_setup import set_up

if TYPE_CHECKING:
    from .exported_engine import ExportedEngine
    from .exporting.spec import ExportSpec
    from .native_engine import NativeEngine

LOW_CONF = 0.05  # of comparisons where the thresholds are not in the file
# Largest differences: of scores, and of boxes as a share of the input's longer side. Those of int8 are not bounded:
# values that lie between two steps go up here and down there, so boxes only have to be about the same.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
INT8_RMS = 0.05  # the same for the root mean square over all anchors
MOVED = 0.95  # IoU from which on a box is the same that has moved, and not another
SAME_BOX = 0.5  # IoU, in int8
SURE = 0.15  # a score so far above the threshold should not be missed in int8
MOST_MISSED = 0.2  # share of sure detections, in int8


@dataclass(frozen=True)
class Difference:
    """Between the detections of two networks on the same pictures.

    Attributes:
        pictures, detections: how many were compared.
        box, score: the largest differences of those that are on both sides, in pixels of the input and in 0..1.
        missing: how many are on one side only; edge: of these those so close to a threshold that rounding decides.
        sure, sure_missing: of both sides together, those well above the threshold, and how many of them are missing.
    """

    pictures: int
    detections: int
    box: float
    score: float
    missing: int
    edge: int
    sure: int
    sure_missing: int

    def lies_within(self, spec: ExportSpec) -> bool:
        """Whether it is as small as the precision allows."""
        if spec.precision == "int8":
            return self.sure_missing <= MOST_MISSED * self.sure
        limit = TOLERANCES[spec.precision]
        return self.missing == self.edge and self.score <= limit and self.box <= limit * max(spec.preprocess.size)

    def __str__(self) -> str:
        where = f"{self.pictures} picture{'s' * (self.pictures != 1)}"
        if not self.detections:
            return f"no detections on {where}, on either side"
        text = f"{self.detections} detection{'s' * (self.detections != 1)} on {where}"
        if self.missing:
            text += f", {self.missing} of them on one side only"
            text += f" ({self.edge} at a threshold)" if self.edge else ""
        return f"{text}; boxes within {self.box:.2g} px, scores within {self.score:.2g}"


def compare(
    native: NativeEngine, exported: ExportedEngine, pictures: Sequence[np.ndarray], spec: ExportSpec
) -> Difference:
    """The detections of both on pictures, uint8 `(H, W, 3)` BGR, with the thresholds of the file."""
    settings = spec.settings
    if spec.outputs not in SUPPRESSED:
        settings = replace(settings, conf=min(settings.conf, LOW_CONF))
    ones = []
    for picture in pictures:
        picture = _fitting(picture, spec)
        geometry = spec.preprocess.plan(*picture.shape[:2])
        sides = [engine.detect([picture], [geometry], spec.preprocess, settings)[0][0] for engine in (native, exported)]
        ones.append(difference(*sides, spec, settings.conf))
    return add_up(ones)


def add_up(differences: Sequence[Difference]) -> Difference:
    """That of all their pictures."""
    largest = {name: max(getattr(one, name) for one in differences) for name in ("box", "score")}
    sums = ("pictures", "detections", "missing", "edge", "sure", "sure_missing")
    return Difference(**largest, **{name: sum(getattr(one, name) for one in differences) for name in sums})


def difference(expected: np.ndarray, found: np.ndarray, spec: ExportSpec, conf: float) -> Difference:
    """Between two lists of detections of one picture, rows x1, y1, x2, y2, score, class, best first."""
    integers = spec.precision == "int8"
    limit = TOLERANCES.get(spec.precision, 0.05)
    side = max(spec.preprocess.size)
    pairs = _pairs_by_overlap(expected, found) if integers else _pairs_by_value(expected, found, side, limit)
    left, right = ([pair[which] for pair in pairs] for which in (0, 1))
    apart = np.abs(expected[left] - found[right]).max(0, initial=0.0)
    alone = np.concatenate([np.delete(expected, left, 0), np.delete(found, right, 0)])
    sides = np.repeat([0, 1], [len(expected) - len(left), len(found) - len(right)])
    rows = (expected, found)
    edge = sum(
        _at_edge(row, rows[which], rows[1 - which], spec, conf, limit) for which, row in zip(sides, alone, strict=True)
    )
    return Difference(
        pictures=1,
        detections=len(pairs) + len(alone),
        box=float(apart[:4].max()),
        score=float(apart[4]),
        missing=len(alone),
        edge=edge,
        sure=sum(int((rows[:, 4] > conf + SURE).sum()) for rows in (expected, found)),
        sure_missing=int((alone[:, 4] > conf + SURE).sum()),
    )


def _pairs_by_value(expected: np.ndarray, found: np.ndarray, side: int, limit: float) -> list[tuple[int, int]]:
    """Rows that are the same: each with the nearest of its class, if that is near."""
    free, pairs = np.ones(len(found), bool), []
    for number, row in enumerate(expected):
        apart = np.maximum(np.abs(found[:, :4] - row[:4]).max(1, initial=0) / side, np.abs(found[:, 4] - row[4]))
        apart = np.where(free & (found[:, 5] == row[5]), apart, np.inf)
        if len(apart) and apart.min() <= limit:
            pairs.append((number, int(apart.argmin())))
            free[apart.argmin()] = False
    return pairs


def _pairs_by_overlap(expected: np.ndarray, found: np.ndarray) -> list[tuple[int, int]]:
    """Rows that are about the same: each, best first, with the one of its class that it overlaps most."""
    free, pairs = np.ones(len(found), bool), []
    for number, row in enumerate(expected):
        overlap = np.where(free & (found[:, 5] == row[5]), _iou(row, found), 0.0)
        if len(overlap) and overlap.max() >= SAME_BOX:
            pairs.append((number, int(overlap.argmax())))
            free[overlap.argmax()] = False
    return pairs


def _at_edge(row: np.ndarray, own: np.ndarray, other: np.ndarray, spec: ExportSpec, conf: float, limit: float) -> bool:
    """Whether rounding decides that a detection is on its own side and not on the other: its score is at the threshold
    or at the end of a full list, its overlap with a better one is what NMS allows, or one with the same score, which it
    suppresses here, suppresses it there.
    """
    settings = spec.settings
    if abs(row[4] - conf) <= limit:
        return True
    if len(own) >= settings.max_det and row[4] <= own[-1, 4] + limit:
        return True
    if not settings.agnostic:
        own, other = (rows[rows[:, 5] == row[5]] for rows in (own, other))
    better = own[own[:, 4] >= row[4] - limit]
    if (np.abs(_iou(row, better) - settings.iou) <= 10 * limit).any():
        return True
    overlap = _iou(row, other[np.abs(other[:, 4] - row[4]) <= limit])
    return bool(((overlap > settings.iou - 10 * limit) & (overlap < MOVED)).any())


def _iou(row: np.ndarray, rows: np.ndarray) -> np.ndarray:
    low, high = np.maximum(row[:2], rows[:, :2]), np.minimum(row[2:4], rows[:, 2:4])
    common = (high - low).clip(0).prod(1)
    areas = (rows[:, 2:4] - rows[:, :2]).prod(1) + (row[2:4] - row[:2]).prod() - common
    return np.where(areas > 0, common / np.where(areas > 0, areas, 1), 0.0)


@dataclass(frozen=True)
class AnchorDifference:
    """Between boxes and scores of all anchors of two networks, before any threshold, on the same pictures.

    Attributes:
        anchors: how many. box, score: the largest differences, in pixels of the input and in 0..1; box_rms, score_rms:
            their root mean squares.
    """

    anchors: int
    box: float
    score: float
    box_rms: float
    score_rms: float

    def lies_within(self, spec: ExportSpec) -> bool:
        """Whether it is as small as the precision allows; coarser ones are judged by the root mean square."""
        box, score = (self.box, self.score) if spec.precision == "fp32" else (self.box_rms, self.score_rms)
        limit = TOLERANCES.get(spec.precision, INT8_RMS)
        return score <= limit and box <= limit * max(spec.preprocess.size)

    def __str__(self) -> str:
        return (
            f"all {self.anchors:,} anchors: boxes within {self.box:.2g} px (rms {self.box_rms:.2g}), scores within "
            f"{self.score:.2g} (rms {self.score_rms:.2g})"
        )


def compare_all(
    native: NativeEngine, exported: ExportedEngine | None, pictures: Sequence[np.ndarray]
) -> AnchorDifference | None:
    """Boxes and scores of all anchors of both, where the file gives them."""
    if exported is None or exported.spec.outputs not in ("raw", "heads"):
        return None
    spec = exported.spec
    batches = [_prepared(_fitting(picture, spec), spec) for picture in pictures]
    differences: list[list[np.ndarray]] = [[], []]
    for batch in batches:
        wanted = decode(*native.heads(batch), channels_last=True)
        ((_, outputs),) = exported.heads(batch if spec.nhwc else np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))[0]
        levels = [output[:1] for output in outputs]
        found = levels if spec.outputs == "raw" else decode(levels[:3], levels[3:])
        for differs, one, other in zip(differences, found, wanted, strict=True):
            differs.append(np.abs(one - other).ravel())
    box, score = (np.concatenate(differs) for differs in differences)
    rms = [float(np.sqrt(np.square(differs, dtype=np.float64).mean())) for differs in (box, score)]
    return AnchorDifference(len(box) // 4, float(box.max()), float(score.max()), *rms)


def _prepared(picture: np.ndarray, spec: ExportSpec) -> np.ndarray:
    """A picture as the network sees it, float32 `(1, H, W, 3)`."""
    geometry = spec.preprocess.plan(*picture.shape[:2])
    batch = np.empty((1, *input_shape(geometry.frame, "hwc")), np.float32)
    fill_from_picture(batch[0], picture, geometry, spec.preprocess, "hwc")
    return batch


def _fitting(picture: np.ndarray, spec: ExportSpec) -> np.ndarray:
    """The picture, or where pictures come in the size of the input, one of that size."""
    if spec.preprocess.fit is not None:
        return picture
    import cv2

    return cv2.resize(picture, spec.preprocess.size[::-1])


@dataclass(frozen=True)
class MapCheck:
    """mAP of the network and of the file, under the same thresholds, on the same pictures.

    Attributes:
        source: of the pictures. pictures: how many could be used.
        before, after: mAP50-95 and mAP50, 0..1, of the network and of the file.
    """

    source: str
    pictures: int
    before: tuple[float, float]
    after: tuple[float, float]

    @property
    def drop(self) -> float:
        """Points of mAP50-95 that the file loses."""
        return round(100 * (self.before[0] - self.after[0]), 6)


def measure(
    native: NativeEngine,
    exported: ExportedEngine,
    spec: ExportSpec,
    *,
    data: str,
    split: str,
    fraction: float,
    verbose: bool,
) -> MapCheck:
    """Scores both on a labelled data set, as `val` does; with the thresholds of the file, if they are in it.

    Raises:
        ValueError, FileNotFoundError: the data cannot be used. SourceError: not one picture could be used.
    """
    settings, chosen = spec.settings, {}
    if spec.outputs in SUPPRESSED:
        chosen = {"conf": settings.conf, "iou": settings.iou, "max_det": settings.max_det}
        chosen["agnostic_nms"] = settings.agnostic
    options = ValOptions.of(data=data, split=split, fraction=fraction, plots=False, verbose=False, **chosen)
    setup = set_up(options, spec.names, spec.preprocess)
    setup = replace(setup, settings=replace(setup.settings, multi_label=settings.multi_label))
    scores: list[tuple[float, float]] = []
    seen = 0
    for engine in (native, exported):
        progress = Progress(f"mAP, {engine.name}", setup.planned, verbose=verbose)
        try:
            metrics, pipeline = evaluate("export", setup, engine, progress.advance)
        finally:
            progress.close()
        seen = pipeline.seen
        values: Any = (metrics.box.map, metrics.box.map50)
        scores.append(tuple(float(value) if math.isfinite(value) else 0.0 for value in values))  # type: ignore[arg-type]
    return MapCheck(f"{setup.dataset.name} {setup.dataset.split}", seen, scores[0], scores[1])
