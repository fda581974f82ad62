"""Which pictures of a data set share a network call, and in which frame: fixed before a run begins.

Which pictures are in a batch may change the last digits of what the network puts out. So batches are the same for a run
in one piece, an interrupted one and one in shards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .preprocess import STRIDE, Geometry, Preprocess, Size


@dataclass(frozen=True)
class Batch:
    """Numbers of the pictures, and their frame; None: the input size of the network."""

    indices: tuple[int, ...]
    frame: Size | None = None


def square_batches(count: int, per_batch: int) -> list[Batch]:
    """Pictures 0 to count - 1 in their order."""
    return _cut(range(count), per_batch, None)


def rect_batches(sizes: Mapping[int, Size], per_batch: int, preprocess: Preprocess) -> list[Batch]:
    """Pictures, by number and (height, width), together with those whose smallest frame is the same."""
    by_frame: dict[Size, list[int]] = {}
    for index, (height, width) in sizes.items():
        by_frame.setdefault(replace(preprocess, rect=True).plan(height, width).frame, []).append(index)
    return [batch for frame, group in sorted(by_frame.items()) for batch in _cut(group, per_batch, frame)]


def ultralytics_batches(sizes: Mapping[int, Size], per_batch: int, preprocess: Preprocess) -> list[Batch]:
    """Pictures sorted by their shape; a batch has one frame, for its tallest or widest, with half a stride around."""
    order = sorted(sizes, key=lambda index: (sizes[index][0] / sizes[index][1], index))
    batches = _cut(order, per_batch, None)
    return [replace(b, frame=_shared_frame([sizes[i] for i in b.indices], preprocess.size)) for b in batches]


def in_frame(geometry: Geometry, frame: Size | None, preprocess: Preprocess) -> Geometry:
    """The same picture in another frame, placed as the pre-processing says.

    Raises:
        ValueError: it does not fit, which means that a header lied about the picture's size.
    """
    if frame is None or frame == geometry.frame:
        return geometry
    free = (frame[0] - geometry.resized[0], frame[1] - geometry.resized[1])
    if min(free) < 0:
        height, width = geometry.original
        raise ValueError(f"the picture is {height}x{width}, its header said something else")
    top, left = (space // 2 if preprocess.padding == "center" else 0 for space in free)
    return replace(geometry, frame=frame, top=top, left=left)


def _cut(indices: Sequence[int], per_batch: int, frame: Size | None) -> list[Batch]:
    return [Batch(tuple(indices[start : start + per_batch]), frame) for start in range(0, len(indices), per_batch)]


def _shared_frame(sizes: Sequence[Size], side: Size) -> Size:
    ratios = [height / width for height, width in sizes]
    tall = max(ratios) if max(ratios) < 1 else 1.0
    wide = 1 / min(ratios) if min(ratios) > 1 else 1.0
    height, width = (
        math.ceil(share * length / STRIDE + 0.5) * STRIDE for share, length in zip((tall, wide), side, strict=True)
    )
    return height, width
