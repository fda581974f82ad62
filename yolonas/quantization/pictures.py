"""Reads the pictures of a calibration into batches for the network, ahead on threads, as `predict` and `val` do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.items import Item, decode, reason_of
from ..data.readahead import OrderedMap
from ..errors import SourceError
from ..prepare import fill_from_picture, input_shape
from ..preprocess import Preprocess

LAYOUT = "hwc"  # as the native engine takes it


@dataclass
class Reading:
    """How it went: pictures given out, those of one colour, and those left out with the reason."""

    seen: int = 0
    blank: list[str] = field(default_factory=list)
    left_out: list[tuple[Item, str]] = field(default_factory=list)


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` numbers of 0..count-1, evenly spaced from 0 on and ascending: all of them if there are no more."""
    wanted = min(count, wanted)
    return [place * count // wanted for place in range(wanted)]


def read_batches(
    items: Sequence[Item], preprocess: Preprocess, batch: int, reading: Reading, *, threads: int | None = None
) -> Iterator[np.ndarray]:
    """Batches float32 `(N, H, W, 3)` of the pictures in order, N at most `batch`, prepared as `preprocess` says.

    Pictures share a batch if they follow each other and have the same frame. What cannot be read is left out.
    """

    def read(item: Item) -> tuple[np.ndarray | None, bool, str]:
        try:
            picture = decode(item, 1)
            if not isinstance(picture, np.ndarray):
                raise SourceError("must be a picture, this is a video")
            geometry = preprocess.plan(*picture.shape[:2])
            planes = np.empty(input_shape(geometry.frame, LAYOUT), np.float32)
            fill_from_picture(planes, picture, geometry, preprocess, LAYOUT)
        except Exception as error:
            return None, False, reason_of(error)
        return planes, bool((picture == picture[:1, :1]).all()), ""

    ahead = OrderedMap(read, items, depth=max(4, 2 * batch), cost=_cost, threads=threads)
    waiting: list[np.ndarray] = []
    try:
        for position, item in enumerate(items):
            planes, is_blank, error = ahead.get(position)
            if planes is None:
                reading.left_out.append((item, error))
                continue
            if is_blank:
                reading.blank.append(item.path)
            if waiting and (len(waiting) == batch or waiting[0].shape != planes.shape):
                reading.seen += len(waiting)
                yield np.stack(waiting)
                waiting = []
            waiting.append(planes)
    finally:
        ahead.close()
    if waiting:
        reading.seen += len(waiting)
        yield np.stack(waiting)


def _cost(loaded: tuple[np.ndarray | None, bool, str]) -> int:
    return 0 if loaded[0] is None else loaded[0].nbytes
