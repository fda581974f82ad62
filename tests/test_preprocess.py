"""Geometry of the input: sizes, rounding, padding, and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from yolonas.preprocess import Preprocess


@pytest.mark.parametrize(
    ("height", "width", "resized", "offset"),
    [
        (480, 640, (477, 636), (81, 2)),
        (1080, 1920, (358, 636), (141, 2)),
        (5, 1272, (2, 636), (319, 2)),  # 2.5 rounds to the even 2
        (636, 400, (636, 400), (2, 120)),  # fits exactly: no resampling
        (1, 1, (636, 636), (2, 2)),
        (6, 4000, (1, 636), (319, 2)),
        (1, 100_000, (1, 636), (319, 2)),  # never less than one pixel
    ],
)
def test_the_published_convention(height: int, width: int, resized: tuple, offset: tuple) -> None:
    g = Preprocess().plan(height, width)
    assert g.frame == (640, 640)
    assert g.resized == resized
    assert (g.top, g.left) == offset


def test_other_sizes_keep_the_border() -> None:
    assert Preprocess().with_size((320, 320)).fit == (316, 316)
    assert Preprocess(size=(288, 288), fit=(284, 284)).with_size((640, 640)).fit == (636, 636)
    assert Preprocess(size=(640, 640), fit=(640, 640)).with_size((320, 480)).fit == (320, 480)


def test_ultralytics_letterbox() -> None:
    square = Preprocess().as_ultralytics()
    g = square.plan(1080, 810)
    assert (g.resized, g.top, g.left) == ((640, 480), 0, 80)
    rect = Preprocess(rect=True).as_ultralytics()
    assert rect.plan(1080, 810).frame == (640, 480)
    assert rect.plan(720, 1280).frame == (384, 640)
    assert (rect.plan(720, 1280).top, rect.plan(720, 1280).left) == (12, 0)


def test_rect_keeps_the_border() -> None:
    g = Preprocess(rect=True).plan(480, 640)
    assert g.frame == (512, 640)
    assert (g.resized, g.top, g.left) == ((477, 636), 17, 2)


def test_without_resizing_the_frame_grows_to_the_stride() -> None:
    g = Preprocess(fit=None, padding="bottom_right", pad_value=0).plan(37, 501)
    assert (g.frame, g.resized, g.top, g.left, g.scale) == ((64, 512), (37, 501), 0, 0, (1.0, 1.0))


def test_bottom_right_padding_and_stretching() -> None:
    assert Preprocess(fit=(640, 640), padding="bottom_right").plan(480, 640).top == 0
    g = Preprocess(fit=(640, 640), keep_ratio=False).plan(100, 200)
    assert g.resized == (640, 640)
    assert g.scale == (6.4, 3.2)


def test_small_pictures_stay_small_without_enlarging() -> None:
    assert Preprocess(enlarge=False).plan(100, 50).resized == (100, 50)


@pytest.mark.parametrize("clip", [True, False])
def test_boxes_go_back(clip: bool) -> None:
    g = Preprocess().plan(480, 640)
    there = np.array([[0, 0, 640, 480], [100, 50, 200, 300]], np.float32)
    inside = there * np.float32(636 / 640) + np.array([2, 81, 2, 81], np.float32)
    inside[0] += [-5, -5, 5, 5]
    back = g.boxes_to_picture(inside.copy(), clip=clip)
    np.testing.assert_allclose(back[1], there[1], atol=1e-3)
    if clip:
        np.testing.assert_array_equal(back[0], [0, 0, 640, 480])
    else:
        assert back[0, 0] < -4


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"size": (650, 640)}, "size must be multiples of 32, got 650x640; the next size up is 672x640"),
        ({"size": (0, 0)}, "multiples of 32"),
        ({"size": (32, 1 << 20)}, "at most 16384"),
        ({"fit": (700, 640)}, "fit must lie between"),
        ({"fit": (0, 5)}, "fit must lie between"),
        ({"padding": "left"}, "padding must be"),
        ({"channels": "grb"}, "channels must be"),
        ({"pad_value": 300}, "pad_value"),
        ({"divisor": (255.0, 0.0, 255.0)}, "divisor not zero"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "finite"),
        ({"mean": (0.0,)}, "three values"),
    ],
)
def test_wrong_conventions_are_refused(values: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Preprocess(**values)


def test_empty_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel, got 0x5"):
        Preprocess().plan(0, 5)


def test_metadata_round_trip() -> None:
    original = Preprocess(size=(320, 416), fit=(300, 400), channels="bgr", mean=(1.0, 2.0, 3.0), padding="bottom_right")
    assert Preprocess.from_dict(original.to_dict()) == original
    with pytest.raises(ValueError, match="unknown keys"):
        Preprocess.from_dict({"sizes": 3})
