"""Batches and frames: fixed before a run, each picture once."""

from __future__ import annotations

import pytest

from yolonas.preprocess import Preprocess
from yolonas.val_batches import in_frame, rect_batches, square_batches, ultralytics_batches


def test_square_batches_keep_the_order() -> None:
    batches = square_batches(7, 3)
    assert [batch.indices for batch in batches] == [(0, 1, 2), (3, 4, 5), (6,)]
    assert all(batch.frame is None for batch in batches)
    assert square_batches(0, 3) == []


def test_rect_batches_share_the_smallest_frame() -> None:
    sizes = {0: (480, 640), 1: (640, 480), 2: (960, 1280), 3: (300, 300), 5: (480, 640)}
    batches = rect_batches(sizes, 2, Preprocess())
    assert sorted(index for batch in batches for index in batch.indices) == [0, 1, 2, 3, 5]
    frames = {index: batch.frame for batch in batches for index in batch.indices}
    assert frames == {0: (512, 640), 2: (512, 640), 5: (512, 640), 1: (640, 512), 3: (640, 640)}
    assert max(len(batch.indices) for batch in batches) == 2


# Half a stride around: a square 640 becomes 672.
@pytest.mark.parametrize(
    ("sizes", "frame"),
    [
        ([(640, 640)], (672, 672)),
        ([(480, 640)], (512, 672)),
        ([(480, 640), (320, 640)], (512, 672)),
        ([(640, 480)], (672, 512)),
        ([(640, 320), (640, 480)], (672, 512)),
        ([(480, 640), (640, 480)], (672, 672)),
    ],
)
def test_frames_of_ultralytics(sizes: list[tuple[int, int]], frame: tuple[int, int]) -> None:
    (batch,) = ultralytics_batches(dict(enumerate(sizes)), 16, Preprocess().as_ultralytics())
    assert batch.frame == frame


def test_ultralytics_sorts_by_shape() -> None:
    sizes = {0: (640, 480), 1: (100, 400), 2: (640, 480), 3: (300, 400)}
    batches = ultralytics_batches(sizes, 2, Preprocess().as_ultralytics())
    assert [batch.indices for batch in batches] == [(1, 3), (0, 2)]


def test_a_picture_moves_to_another_frame() -> None:
    preprocess = Preprocess().as_ultralytics()
    geometry = preprocess.plan(480, 640)
    moved = in_frame(geometry, (512, 672), preprocess)
    assert (moved.frame, moved.top, moved.left, moved.resized) == ((512, 672), 16, 16, (480, 640))
    assert in_frame(geometry, None, preprocess) is geometry
    with pytest.raises(ValueError, match="480x640, its header said something else"):
        in_frame(geometry, (64, 64), preprocess)
