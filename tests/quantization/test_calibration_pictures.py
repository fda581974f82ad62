"""The pictures of a calibration on their way to the network."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolonas.data.items import items_of
from yolonas.ops import letterbox
from yolonas.preprocess import Preprocess
from yolonas.quantization.pictures import Reading, evenly, read_batches

PREPROCESS = Preprocess(size=(64, 96), fit=(60, 92))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_evenly() -> None:
    assert evenly(10, 3) == [0, 3, 6]
    assert evenly(3, 10) == [0, 1, 2]
    assert evenly(205, 128)[:4] == [0, 1, 3, 4]
    assert len(set(evenly(205, 128))) == 128
    assert max(evenly(205, 128)) < 205


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_batches_are_as_predict_prepares_them(batch: int) -> None:
    pictures = [noise(50, 40, 1), noise(120, 200, 2), noise(64, 96, 3)]
    items = items_of(pictures[0], 0, alone=False)
    for picture in pictures[1:]:
        items += items_of(picture, len(items), alone=False)
    reading = Reading()
    batches = list(read_batches(items, PREPROCESS, batch, reading, threads=2))
    assert [len(one) for one in batches] == {1: [1, 1, 1], 2: [2, 1]}.get(batch, [3])
    assert reading == Reading(seen=3)
    for planes, picture in zip(np.concatenate(batches), pictures, strict=True):
        plan = PREPROCESS.plan(*picture.shape[:2])
        expected = letterbox(
            picture, frame=(64, 96), resized=plan.resized, offset=(plan.top, plan.left), pad_value=114,
            swap_channels=True, mean=(0, 0, 0), divisor=(255, 255, 255), layout="hwc",
        )  # fmt: skip
        assert planes.dtype == np.float32
        assert np.array_equal(planes, expected)


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), noise(40, 40))
    (tmp_path / "b.png").write_bytes(b"nothing")
    cv2.imwrite(str(tmp_path / "c.png"), np.zeros((40, 40, 3), np.uint8))
    video = cv2.VideoWriter(str(tmp_path / "d.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    video.write(noise(48, 64))
    video.release()
    items = items_of(str(tmp_path), 0, alone=True)
    reading = Reading()
    (batch,) = read_batches(items, PREPROCESS, 4, reading)
    assert len(batch) == reading.seen == 2
    assert [Path(path).name for path in reading.blank] == ["c.png"]
    assert [Path(item.path).name for item, _ in reading.left_out] == ["b.png", "d.avi"]
    assert reading.left_out[1][1] == "must be a picture, this is a video"


def test_pictures_that_are_not_resized_keep_their_frames() -> None:
    items = []
    for height in (32, 30, 64, 32):
        items += items_of(noise(height, 32), len(items), alone=False)
    batches = list(read_batches(items, Preprocess(fit=None), 8, Reading()))
    assert [one.shape for one in batches] == [(2, 32, 32, 3), (1, 64, 32, 3), (1, 32, 32, 3)]
