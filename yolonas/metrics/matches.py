"""Which detections of a data set found a true box: taken in by picture, kept small, given out by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..ops import match_detections
from ..records import ImageRecord

AREAS = ("all", "small", "medium", "large")
THRESHOLDS = 10  # IoU 0.50, 0.55 ... 0.95
MAX_DET = 100  # detections per picture and class that count


class ImageInfo(NamedTuple):
    """What is kept of a picture itself."""

    index: int  # position in the data set
    image_id: int | str
    file_name: str


class ClassMatches(NamedTuple):
    """The detections and true boxes of one class, picture after picture, the detections of a picture best first."""

    scores: np.ndarray  # (N,) float64
    rank: np.ndarray  # (N,) uint8 place among the picture's detections of the class
    matched: np.ndarray  # (areas, thresholds, N) bool: found a true box
    ignored: np.ndarray  # (areas, thresholds, N) bool: counts neither as right nor as wrong
    truth_ignored: np.ndarray  # (areas, G) bool: need not be found


@dataclass(frozen=True)
class MatchTable:
    """All matches of a data set, ordered by class, then by image id, then best first.

    A detection takes 29 bytes: the ten thresholds are kept as bits.
    """

    images: list[ImageInfo]  # by image id, as pycocotools orders them: equal scores keep this order
    classes: np.ndarray  # (N,) int32
    image: np.ndarray  # (N,) int32 place in `images`
    scores: np.ndarray  # (N,) float64
    rank: np.ndarray  # (N,) uint8
    bits: np.ndarray  # (N, 2, areas, 2) uint8: matched and ignored, ten thresholds in two bytes
    truth_classes: np.ndarray  # (G,) int32
    truth_image: np.ndarray  # (G,) int32
    truth_ignored: np.ndarray  # (areas, G) bool

    def of_class(self, number: int) -> ClassMatches:
        """The part of one class, unpacked."""
        rows = _part(self.classes, number)
        truths = _part(self.truth_classes, number)
        matched, ignored = self._unpacked(self.bits[rows]).transpose(1, 2, 3, 0)
        return ClassMatches(self.scores[rows], self.rank[rows], matched, ignored, self.truth_ignored[:, truths])

    def right(self) -> np.ndarray:
        """`(N, thresholds)` bool: detections that found a true box that was to be found, of any area."""
        matched, ignored = self._unpacked(self.bits[:, :, :1])[:, :, 0].transpose(1, 0, 2)
        return matched & ~ignored

    def wrong(self) -> np.ndarray:
        """`(N, thresholds)` bool: detections that found nothing; crowds do not count."""
        matched, ignored = self._unpacked(self.bits[:, :, :1])[:, :, 0].transpose(1, 0, 2)
        return ~matched & ~ignored

    @property
    def wanted(self) -> np.ndarray:
        """`(G,)` bool: the true boxes that are to be found, which are those that are no crowds."""
        return ~self.truth_ignored[0]

    @staticmethod
    def _unpacked(bits: np.ndarray) -> np.ndarray:
        return np.unpackbits(bits, axis=-1, count=THRESHOLDS).view(bool)


class MatchLog:
    """Matches the pictures as they come."""

    def __init__(self) -> None:
        self._images: list[ImageInfo] = []
        self._rows: list[tuple[np.ndarray, ...]] = []

    def __len__(self) -> int:
        return len(self._images)

    def add(self, record: ImageRecord, classes: np.ndarray) -> None:
        """Takes in a picture whose detections have these class numbers `(D,)` int64."""
        truth, detections = record.truth, record.detections
        scores = np.ascontiguousarray(detections[:, 4])
        found = match_detections(
            np.ascontiguousarray(detections[:, :4]),
            scores,
            classes,
            truth.boxes,
            truth.classes,
            truth.areas,
            truth.crowd,
            max_det=MAX_DET,
        )
        bits = np.packbits(np.stack((found.matched, found.ignored)), axis=2).transpose(3, 0, 1, 2)
        self._images.append(ImageInfo(record.index, record.image_id, record.file_name))
        self._rows.append(
            (
                classes[found.order].astype(np.int32),
                scores[found.order],
                found.rank.astype(np.uint8),
                bits,
                np.asarray(truth.classes, np.int32),
                found.truth_ignored.T,
            )
        )

    def table(self) -> MatchTable:
        """Everything taken in so far."""
        order = sorted(range(len(self)), key=lambda number: _sort_key(self._images[number].image_id))
        columns = [[self._rows[number][column] for number in order] for column in range(6)]
        empty = ((0,), (0,), (0,), (0, 2, len(AREAS), 2), (0,), (0, len(AREAS)))
        kinds = (np.int32, np.float64, np.uint8, np.uint8, np.int32, bool)
        classes, scores, rank, bits, truth_classes, truth_ignored = (
            np.concatenate([np.empty(shape, kind), *column])
            for shape, kind, column in zip(empty, kinds, columns, strict=True)
        )
        rows = np.argsort(classes, kind="stable")
        truths = np.argsort(truth_classes, kind="stable")
        return MatchTable(
            images=[self._images[number] for number in order],
            classes=classes[rows],
            image=_numbered(columns[0])[rows],
            scores=scores[rows],
            rank=rank[rows],
            bits=bits[rows],
            truth_classes=truth_classes[truths],
            truth_image=_numbered(columns[4])[truths],
            truth_ignored=truth_ignored[truths].T,
        )


def _part(ordered: np.ndarray, number: int) -> slice:
    """Where a number stands in an ordered array."""
    first, end = np.searchsorted(ordered, (number, number + 1))
    return slice(int(first), int(end))


def _sort_key(image_id: int | str) -> tuple[bool, int | str]:
    return isinstance(image_id, str), image_id


def _numbered(columns: Sequence[np.ndarray]) -> np.ndarray:
    """The number of the column for each of its rows."""
    return np.repeat(np.arange(len(columns), dtype=np.int32), [len(column) for column in columns])
