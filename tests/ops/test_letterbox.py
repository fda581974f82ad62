"""Letterbox against OpenCV, the plain twin and golden pictures; views, edges of memory, arguments that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from harness import guarded, guarded_empty, native

from yolonas.ops import letterbox, reference
from yolonas.preprocess import Preprocess

SIZES = (  # source, resized: (height, width) each
    ((1, 1), (1, 1)),
    ((1, 1), (9, 33)),
    ((1, 7), (5, 1)),
    ((7, 1), (13, 40)),
    ((1, 640), (1, 636)),
    ((2, 2), (64, 64)),
    ((3, 5), (3, 5)),
    ((33, 47), (33, 47)),
    ((64, 96), (32, 48)),  # halves, where OpenCV changes to its area version
    ((65, 97), (32, 48)),
    ((32, 48), (64, 96)),
    ((100, 100), (1, 1)),
    ((3, 300), (200, 4)),
    ((480, 640), (477, 636)),
    ((123, 457), (171, 636)),
)


def random_picture(seed: int, height: int, width: int) -> np.ndarray:
    """Noise with full-black and full-white areas: the corners of the integer arithmetic."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture[rng.random((height, width)) < 0.2] = 255
    picture[rng.random((height, width)) < 0.1] = 0
    return picture


def resized_only(image: np.ndarray, size: tuple[int, int], layout: str = "hwc") -> np.ndarray:
    """The letterbox's resampling by itself, in uint8 units."""
    return letterbox(image, frame=size, resized=size, layout=layout, divisor=(1.0, 1.0, 1.0))


# --- resampling ---


@pytest.mark.parametrize(("source", "resized"), SIZES)
def test_resampling_is_that_of_opencv(isa: str, source: tuple[int, int], resized: tuple[int, int]) -> None:
    image = random_picture(1, *source)
    expected = cv2.resize(image, resized[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(reference.resize_bilinear(image, resized), expected)
    assert np.array_equal(resized_only(image, resized), expected)
    assert np.array_equal(resized_only(image, resized, "chw"), expected.transpose(2, 0, 1))


def test_resampling_of_random_sizes_is_that_of_opencv(isa: str) -> None:
    rng = np.random.default_rng(7)
    for seed in range(150):
        high = 40 if seed % 3 else 400
        h, w, to_h, to_w = (int(side) for side in rng.integers(1, high, 4))
        image = random_picture(seed, h, w)
        expected = cv2.resize(image, (to_w, to_h), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(resized_only(image, (to_h, to_w)), expected), (h, w, to_h, to_w)


def test_every_width_near_the_vector_width(isa: str) -> None:
    for width in range(1, 40):
        for to_width in (1, 7, 8, 9, 15, 16, 17, 31, 33):
            image = random_picture(width, 3, width)
            expected = reference.resize_bilinear(image, (4, to_width))
            assert np.array_equal(resized_only(image, (4, to_width)), expected), (width, to_width)


def test_a_row_longer_than_any_picture(isa: str) -> None:
    image = random_picture(3, 2, 70_001)
    assert np.array_equal(resized_only(image, (1, 636)), reference.resize_bilinear(image, (1, 636)))
    narrow = np.ascontiguousarray(image.transpose(1, 0, 2))
    assert np.array_equal(resized_only(narrow, (636, 1)), reference.resize_bilinear(narrow, (636, 1)))


# --- the whole pass ---


@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("frame", "resized", "offset"),
    [
        ((64, 96), (60, 92), (2, 2)),
        ((40, 40), (17, 33), (0, 7)),
        ((33, 35), (33, 1), (0, 34)),
        ((33, 35), (1, 35), (32, 0)),
        ((5, 6), (5, 6), (0, 0)),
        ((64, 64), (3, 5), (61, 59)),
    ],
)
def test_frame_padding_order_and_scale(
    isa: str, layout: str, swap: bool, frame: tuple[int, int], resized: tuple[int, int], offset: tuple[int, int]
) -> None:
    image = random_picture(5, 29, 43)
    settings: dict[str, Any] = {
        "frame": frame,
        "resized": resized,
        "offset": offset,
        "pad_value": 77,
        "swap_channels": swap,
        "layout": layout,
        "mean": (123.675, 116.28, 103.53),
        "divisor": (58.395, 57.12, -57.375),
    }
    assert np.array_equal(letterbox(image, **settings), reference.letterbox(image, **settings))
    plain = {**settings, "mean": (0.0, 0.0, 0.0), "divisor": (255.0, 255.0, 255.0)}
    assert np.array_equal(letterbox(image, **plain), reference.letterbox(image, **plain))


def test_random_frames(isa: str) -> None:
    rng = np.random.default_rng(11)
    for seed in range(80):
        resized = tuple(int(side) for side in rng.integers(1, 70, 2))
        offset = tuple(int(side) for side in rng.integers(0, 70, 2) * rng.integers(0, 2, 2))
        frame = tuple(int(side) for side in np.add(resized, offset) + rng.integers(0, 70, 2) * rng.integers(0, 2, 2))
        settings: dict[str, Any] = {
            "frame": frame,
            "resized": resized,
            "offset": offset,
            "pad_value": int(rng.integers(0, 256)),
            "swap_channels": bool(seed & 1),
            "layout": ("chw", "hwc")[seed >> 1 & 1],
            "mean": (1.0, 2.0, 3.0),
        }
        image = random_picture(seed, *(int(side) for side in rng.integers(1, 70, 2)))
        expected = reference.letterbox(image, **settings)
        out = guarded_empty(expected.shape, np.float32)
        assert np.array_equal(letterbox(guarded(image), out=out, **settings), expected), settings


def test_scaling_equals_a_division_in_float64_for_every_grey() -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 256, 1), 3, axis=2)
    expected = (np.arange(256, dtype=np.float64) / 255.0).astype(np.float32)
    out = letterbox(image, frame=(1, 256), resized=(1, 256), layout="hwc")
    assert np.array_equal(out[0, :, 1], expected)


@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize(
    ("source", "resized"),
    [((1, 1), (3, 9)), ((2, 3), (7, 40)), ((9, 70), (5, 33)), ((5, 9), (5, 9)), ((40, 2), (8, 8))],
)
def test_nothing_beyond_the_arrays_is_touched(
    isa: str, layout: str, front: bool, source: tuple[int, int], resized: tuple[int, int]
) -> None:
    image = random_picture(2, *source)
    frame = (resized[0] + 1, resized[1] + 2)
    settings: dict[str, Any] = {"frame": frame, "resized": resized, "offset": (1, 1), "layout": layout}
    out = guarded_empty((*frame, 3) if layout == "hwc" else (3, *frame), np.float32, front=front)
    assert letterbox(guarded(image, front=front), out=out, **settings) is out
    assert np.array_equal(out, reference.letterbox(image, **settings))


def test_crops_views_and_read_only_arrays_are_taken(isa: str) -> None:
    whole = random_picture(9, 50, 60)
    crop = whole[7:31, 11:52]  # rows 180 bytes apart
    settings: dict[str, Any] = {"frame": (32, 32), "resized": (19, 32)}
    expected = letterbox(crop.copy(), **settings)
    assert np.array_equal(letterbox(crop, **settings), expected)
    crop.setflags(write=False)
    assert np.array_equal(letterbox(crop, **settings), expected)
    every_other_row = whole[::2]
    assert np.array_equal(letterbox(every_other_row, **settings), letterbox(every_other_row.copy(), **settings))
    from_bytes = np.frombuffer(whole.tobytes(), np.uint8).reshape(whole.shape)
    assert np.array_equal(letterbox(from_bytes, **settings), letterbox(whole, **settings))
    one_row, one_column = whole[3:4], whole[:, 5:6]
    assert np.array_equal(letterbox(one_row, **settings), letterbox(one_row.copy(), **settings))
    assert np.array_equal(letterbox(one_column, **settings), letterbox(one_column.copy(), **settings))


def test_the_last_row_of_a_crop_ends_with_the_memory(isa: str) -> None:
    whole = guarded(random_picture(4, 12, 30))
    crop = whole[3:, 9:]
    settings: dict[str, Any] = {"frame": (40, 40), "resized": (40, 40)}
    assert np.array_equal(letterbox(crop, **settings), reference.letterbox(crop, **settings))


# --- golden values ---

GEOMETRY = {  # height, width: resized, (top, bottom, left, right), scale
    (37, 501): ((47, 636), (296, 297, 2, 2), 1.2694610778443114),
    (480, 640): ((477, 636), (81, 82, 2, 2), 0.99375),
    (1, 1): ((636, 636), (2, 2, 2, 2), 636.0),
    (5, 1272): ((2, 636), (319, 319, 2, 2), 0.5),  # 2.5 rounds to 2
    (636, 400): ((636, 400), (2, 2, 120, 120), 1.0),
    (901, 333): ((636, 235), (2, 2, 202, 203), 0.7058823529411765),
}


@pytest.mark.parametrize("size", list(GEOMETRY))
def test_geometry_of_the_published_weights(size: tuple[int, int]) -> None:
    plan = Preprocess().plan(*size)
    resized, (top, bottom, left, right), scale = GEOMETRY[size]
    assert (plan.resized, plan.top, plan.left, plan.frame) == (resized, top, left, (640, 640))
    assert (640 - plan.top - plan.resized[0], 640 - plan.left - plan.resized[1]) == (bottom, right)
    assert plan.scale == pytest.approx((scale, scale), rel=1e-15)
    whole = np.array([[0, 0, 640, 640]], np.float32)
    back = plan.boxes_to_picture(whole, clip=False)[0]
    assert back == pytest.approx([-left / scale, -top / scale, (640 - left) / scale, (640 - top) / scale], rel=1e-6)


def test_one_red_pixel_fills_the_frame_but_for_the_border(isa: str) -> None:
    plan = Preprocess().plan(1, 1)
    red = np.array([[[0, 0, 255]]], np.uint8)  # BGR
    out = letterbox(red, frame=plan.frame, resized=plan.resized, offset=(plan.top, plan.left), swap_channels=True)
    grey = np.float32(114 / 255)
    assert out[:, 320, :8].tolist() == [[grey] * 2 + [1.0] * 6, [grey] * 2 + [0.0] * 6, [grey] * 2 + [0.0] * 6]
    assert float(out.sum(dtype=np.float64)) == pytest.approx(411341.3647542, abs=1e-6)


@pytest.mark.shared
def test_golden_pictures(isa: str, shared: Path) -> None:
    with np.load(shared / "reference/goldens_preprocess.npz") as golden:
        for name in golden["names"]:
            image = golden[f"{name}/image"]
            plan = Preprocess().plan(*image.shape[:2])
            assert plan.resized == tuple(golden[f"{name}/resized_hw"])
            assert (plan.top, plan.left) == tuple(golden[f"{name}/pad_tblr"][[0, 2]])
            assert plan.scale == tuple(golden[f"{name}/scale"])
            settings: dict[str, Any] = {"frame": plan.frame, "resized": plan.resized, "offset": (plan.top, plan.left)}
            out = letterbox(image, **settings)
            padded = golden[f"{name}/padded_u8_hwc"]
            assert np.array_equal(out, (padded.astype(np.float64) / 255).astype(np.float32).transpose(2, 0, 1)), name
            assert np.array_equal(out[:, 320, :8], golden[f"{name}/row320_first8"])
            assert float(out.sum(dtype=np.float64)) == pytest.approx(float(golden[f"{name}/sum"]), abs=1e-6)
            bgr = np.ascontiguousarray(image[:, :, ::-1])
            assert np.array_equal(letterbox(bgr, swap_channels=True, **settings), out), name
            back = plan.boxes_to_picture(golden[f"{name}/boxes_in"].copy(), clip=False)
            assert np.array_equal(back, golden[f"{name}/boxes_back"]), name


@pytest.mark.shared
def test_golden_picture_without_resizing(isa: str, shared: Path) -> None:
    with np.load(shared / "reference/goldens_preprocess.npz") as golden:
        image, padded = golden["37x501/image"], golden["37x501/skip_resize_padded_u8_hwc"]
    plan = Preprocess(fit=None, padding="bottom_right", pad_value=0, rect=True).plan(*image.shape[:2])
    assert plan.frame == padded.shape[:2]
    out = letterbox(
        image, frame=plan.frame, resized=plan.resized, offset=(plan.top, plan.left), pad_value=0, layout="hwc"
    )
    assert np.array_equal(out, padded.astype(np.float32) / np.float32(255))


# --- torch ---


def test_torch_gives_the_same(isa: str) -> None:
    image = random_picture(6, 31, 45)
    settings: dict[str, Any] = {"frame": (32, 64), "resized": (32, 46), "offset": (0, 9), "swap_channels": True}
    for layout in ("chw", "hwc"):
        out = letterbox(torch.from_numpy(image), layout=layout, **settings)
        assert isinstance(out, torch.Tensor)
        assert np.array_equal(out.numpy(), letterbox(image, layout=layout, **settings))
    crop = torch.from_numpy(image)[3:20, 5:30]
    assert np.array_equal(letterbox(crop, **settings).numpy(), letterbox(crop.numpy().copy(), **settings))


@pytest.mark.parametrize("hwc", [False, True])
def test_torch_operator_is_registered_soundly(hwc: bool) -> None:
    letterbox(torch.zeros(1, 1, 3, dtype=torch.uint8), frame=(1, 1), resized=(1, 1))  # registers
    image = torch.from_numpy(random_picture(1, 5, 7))
    arguments = (image, [8, 9], [5, 7], [1, 2], 114, True, hwc, [0.0] * 3, [255.0] * 3)
    torch.library.opcheck(torch.ops.yolonas.letterbox.default, arguments)


# --- arguments that do not fit ---

GOOD: dict[str, Any] = {"frame": (8, 8), "resized": (4, 6), "offset": (1, 1)}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"frame": (0, 8)}, ValueError, "frame must have at least one pixel, got 0x8"),
        ({"frame": (8,)}, ValueError, r"frame must have two values, got \(8,\)"),
        ({"frame": (8.5, 8)}, TypeError, "float"),
        ({"frame": None}, TypeError, "NoneType"),
        ({"resized": (9, 6)}, ValueError, "a picture of 9x6 at row 1, column 1 must lie inside the frame of 8x8"),
        ({"resized": (0, 6)}, ValueError, "a picture of 0x6"),
        ({"offset": (1, 3)}, ValueError, "at row 1, column 3 must lie inside the frame of 8x8"),
        ({"offset": (-1, 0)}, ValueError, "at row -1, column 0"),
        ({"offset": (2**62, 2**62)}, ValueError, "must lie inside the frame"),
        ({"pad_value": 256}, ValueError, "pad_value must lie in 0..255, got 256"),
        ({"pad_value": -1}, ValueError, "pad_value must lie in 0..255, got -1"),
        ({"layout": "nchw"}, ValueError, "layout must be 'chw' or 'hwc', got 'nchw'"),
        ({"mean": (0.0, 0.0)}, ValueError, "mean and divisor must have three values"),
        ({"divisor": (255.0, 0.0, 255.0)}, ValueError, "divisor not zero, got mean 0, divisor 0 for channel 1"),
        ({"mean": (0.0, 0.0, float("nan"))}, ValueError, "must be finite"),
        ({"divisor": (1e-60, 1.0, 1.0)}, ValueError, "divisor not zero"),  # zero in float32
        ({"out": np.zeros((3, 8, 9), np.float64)}, TypeError, "out must be float32, got float64"),
        ({"out": np.zeros((8, 8, 3), np.float32)}, ValueError, r"out must have shape \(3, H, W\)"),
        ({"out": np.zeros((3, 8, 16), np.float32)[:, :, ::2]}, ValueError, "out of shape .* must be C-contiguous"),
        ({"out": np.zeros((3, 3, 3), np.float32)}, ValueError, "must lie inside the frame of 3x3"),
        ({"out": np.broadcast_to(np.float32(0), (3, 8, 8))}, ValueError, "must be C-contiguous"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        letterbox(random_picture(0, 4, 4), **{**GOOD, **change})


def test_read_only_output_is_refused() -> None:
    out = np.zeros((3, 8, 8), np.float32)
    out.setflags(write=False)
    with pytest.raises(ValueError, match="out is written to and must not be read-only"):
        letterbox(random_picture(0, 4, 4), out=out, **GOOD)


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "image must be uint8, got float32"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"image must have shape \(H, W, 3\), got \(4, 4, 4\)"),
        (np.zeros((4, 4), np.uint8), ValueError, r"got \(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"at least one pixel, got shape \(0, 4, 3\)"),
        (np.zeros((4, 0, 3), np.uint8), ValueError, "at least one pixel"),
        (np.zeros((4, 8, 3), np.uint8)[:, ::2], ValueError, "must have contiguous pixels; pass a contiguous copy"),
        (np.zeros((4, 4, 3), np.uint8)[:, :, ::-1], ValueError, "must have contiguous pixels"),
        (np.zeros((3, 4, 4), np.uint8).transpose(1, 2, 0), ValueError, "must have contiguous pixels"),
        (np.zeros((4, 4, 3), np.uint8)[::-1], ValueError, "rows must not overlap or run backwards"),
        (np.broadcast_to(np.zeros((1, 4, 3), np.uint8), (4, 4, 3)), ValueError, "rows must not overlap"),
        ([[1, 2, 3]], TypeError, "image must be a NumPy array or a torch tensor, got list"),
        ("bus.jpg", TypeError, "got str"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_wrong_pictures_are_named(image: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        letterbox(image, **GOOD)


def test_a_picture_on_another_device_is_refused() -> None:
    from harness import CUDA, DLPackArray

    out = np.zeros((3, 8, 8), np.float32)
    with pytest.raises(ValueError, match="letterbox: image must lie on the CPU, got device cuda:0"):
        native().letterbox(
            DLPackArray((4, 4, 3), device=CUDA), out, resized_h=4, resized_w=4, top=0, left=0, pad_value=0,
            swap_channels=False, hwc=False, mean=(0, 0, 0), divisor=(1, 1, 1),
        )  # fmt: skip
