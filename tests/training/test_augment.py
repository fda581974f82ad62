"""Changed pictures: boxes stay on what they are drawn around, and each change does what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from yolonas.preprocess import Preprocess
from yolonas.training.augment import (
    COCO,
    FINE_TUNING,
    GREY,
    NONE,
    PRESETS,
    Augmentation,
    BoxLimits,
    Sample,
    affine_matrix,
    augment,
    clip_boxes,
    fit,
    flip_horizontal,
    flip_vertical,
    mixup,
    mosaic,
    pad,
    place,
    random_affine,
    random_colours,
    random_mixup,
    resize,
    shift_colours,
    swap_channels,
    warp,
)

SIZE = (96, 128)
BOX = (40, 30, 72, 54)  # x1, y1, x2, y2


def painted(size: tuple[int, int] = SIZE, box: tuple[int, int, int, int] = BOX, label: int = 7) -> Sample:
    """A white rectangle on black, with its box."""
    picture = np.zeros((*size, 3), np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    return Sample(picture, np.array([[label, *box]], np.float32))


def blank(size: tuple[int, int] = SIZE) -> Sample:
    return Sample(np.zeros((*size, 3), np.uint8), np.zeros((0, 5), np.float32))


def noisy(size: tuple[int, int] = SIZE, seed: int = 0, boxes: int = 4) -> Sample:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 0.6, (boxes, 2)) * (size[1], size[0])
    rows = np.column_stack([random.integers(0, 5, boxes), corner, corner + random.uniform(4, 30, (boxes, 2))])
    return Sample(random.integers(0, 256, (*size, 3), np.uint8), rows.astype(np.float32))


def assert_box_fits(sample: Sample, above: int, within: float = 1.0) -> None:
    """The one box lies around all that is brighter than `above`; no box where hardly anything is."""
    ys, xs = np.nonzero(sample.picture[..., 0] > above)
    if len(sample.boxes) == 0:
        assert len(xs) == 0 or min(np.ptp(xs), np.ptp(ys)) < within
        return
    ((_, *box),) = sample.boxes.tolist()
    if len(xs) == 0:
        assert min(box[2] - box[0], box[3] - box[1]) < within
        return
    seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert box == pytest.approx(seen, abs=within)


def assert_same(first: Sample, second: Sample) -> None:
    assert np.array_equal(first.picture, second.picture)
    assert np.array_equal(first.boxes, second.boxes)


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical, swap_channels])
def test_twice_is_the_same(flip: Callable[[Sample], Sample]) -> None:
    sample = noisy()
    sample = sample._replace(boxes=np.round(sample.boxes * 16) / 16)
    assert not np.array_equal(flip(sample).picture, sample.picture)
    assert_same(flip(flip(sample)), sample)


def test_flips() -> None:
    assert flip_horizontal(painted()).boxes.tolist() == [[7, 128 - 72, 30, 128 - 40, 54]]
    assert flip_vertical(painted()).boxes.tolist() == [[7, 40, 96 - 54, 72, 96 - 30]]
    for flip in (flip_horizontal, flip_vertical):
        assert_box_fits(flip(painted()), 128, within=0)


@pytest.mark.parametrize("size", [(96, 128), (48, 64), (61, 77), (150, 400), (96, 127), (1, 1)])
def test_resized_boxes(size: tuple[int, int]) -> None:
    sample = painted()
    resized = resize(sample, size)
    assert_same(sample, painted())
    assert resized.size == size
    assert_box_fits(resized, 127)


@pytest.mark.parametrize(
    ("offset", "box"),
    [
        ((0, 0), [7, 40, 30, 72, 54]),
        ((5, 9), [7, 49, 35, 81, 59]),
        ((-40, -50), [7, 0, 0, 22, 14]),
        ((66, 0), [7, 40, 96, 72, 100]),
        ((70, 0), None),
    ],
)
def test_placed_boxes(offset: tuple[int, int], box: list[int] | None) -> None:
    placed = place(painted(), (100, 90), offset, fill=9)
    assert placed.size == (100, 90)
    assert placed.boxes.tolist() == ([] if box is None else [box])
    assert_box_fits(placed, 128, within=0)
    outside = placed.picture[: max(0, offset[0])]
    assert (outside == 9).all()


@pytest.mark.parametrize("padding", ["center", "bottom_right"])
@pytest.mark.parametrize("size", [(96, 128), (400, 300), (4000, 6), (31, 33)])
def test_fit_and_pad_follow_the_plan(size: tuple[int, int], padding: str) -> None:
    preprocess = replace(Preprocess().with_size((128, 160)), padding=padding)  # type: ignore[arg-type]
    sample = Sample(np.full((*size, 3), 255, np.uint8), np.array([[0, 0, 0, size[1], size[0]]], np.float32))
    fitted = fit(sample, preprocess)
    assert fitted.size == preprocess.plan(*size).resized
    padded = pad(fitted, preprocess)
    assert padded.size == (128, 160)
    assert_box_fits(padded, 200, within=1e-3)
    assert padded.picture.min() == preprocess.pad_value


@pytest.mark.parametrize("seed", range(25))
def test_warped_boxes(seed: int) -> None:
    random = np.random.default_rng(seed)
    strong = Augmentation(degrees=180, shear=20, scale=(0.5, 2), translate=0.3, fill=0)
    size = (int(random.integers(60, 200)), int(random.integers(60, 200)))
    warped = random_affine(painted(), strong, size, random)
    assert warped.size == size
    assert_box_fits(warped, 50, within=1.25)  # a sharp corner fades over its last pixel


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.25, 0.0), (0.0, -0.25), (-0.5, 0.5)])
def test_whole_pixels_are_moved_exactly(shift: tuple[float, float]) -> None:
    moved = warp(painted(), affine_matrix(SIZE, SIZE, shift=shift), SIZE, fill=0)
    down, right = int(shift[0] * 96), int(shift[1] * 128)
    assert_same(moved, place(painted(), SIZE, (down, right), fill=0))


def test_quarter_turns_are_exact() -> None:
    turned = warp(painted((96, 96)), affine_matrix((96, 96), (96, 96), degrees=90), (96, 96), fill=0)
    assert np.array_equal(turned.picture, np.rot90(painted((96, 96)).picture, -1))
    assert turned.boxes[0].tolist() == pytest.approx([7, 96 - 54, 40, 96 - 30, 72], abs=1e-4)


def test_a_matrix_does_what_its_numbers_say() -> None:
    still = affine_matrix(SIZE, SIZE)
    assert np.array_equal(still, np.eye(2, 3))
    doubled = affine_matrix(SIZE, SIZE, scale=2)
    assert doubled @ [64, 48, 1] == pytest.approx([64, 48])
    assert doubled @ [65, 48, 1] == pytest.approx([66, 48])
    slanted = affine_matrix(SIZE, SIZE, shear=(45, 0))
    assert slanted @ [64, 49, 1] == pytest.approx([65, 49])
    elsewhere = affine_matrix(SIZE, (50, 60), shift=(0.1, -0.2))
    assert elsewhere @ [64, 48, 1] == pytest.approx([60 * 0.3, 50 * 0.6])


def test_the_affine_ranges() -> None:
    augmentation = Augmentation(scale=(0.5, 1.5), translate=0.25)
    centres, scales = [], []
    for seed in range(300):
        sample = Sample(np.zeros((100, 200, 3), np.uint8), np.array([[0, 98, 48, 102, 52]], np.float32))
        _, *box = random_affine(sample, augmentation, (100, 200), np.random.default_rng(seed)).boxes[0]
        centres.append(((box[0] + box[2]) / 2 / 200, (box[1] + box[3]) / 2 / 100))
        scales.append((box[2] - box[0]) / 4)
        assert box[3] - box[1] == pytest.approx(box[2] - box[0], abs=1e-3)
    low, high = np.min(centres, axis=0), np.max(centres, axis=0)
    assert low == pytest.approx([0.25, 0.25], abs=0.02)
    assert high == pytest.approx([0.75, 0.75], abs=0.02)
    assert min(low) > 0.2499
    assert max(high) < 0.7501
    assert (min(scales), max(scales)) == pytest.approx((0.5, 1.5), abs=0.02)
    assert min(scales) > 0.499
    assert max(scales) < 1.501


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("centre", [(96, 128), (48, 64), (144, 192), (60, 180)])
def test_a_mosaic_has_four_pictures_around_its_centre(number: int, centre: tuple[int, int]) -> None:
    samples = [blank((90 + place, 128 - place)) for place in range(4)]
    samples[number] = painted(samples[number].size)
    result = mosaic(samples, SIZE, centre)
    assert result.size == (192, 256)
    assert_box_fits(result, 200, within=0)
    around = [result.picture[centre[0] - 1 + dy, centre[1] - 1 + dx, 0] for dy in (0, 1) for dx in (0, 1)]
    assert around == [0, 0, 0, 0]
    assert (result.picture == GREY).any()


def test_what_a_mosaic_cuts_off_is_no_label() -> None:
    sample = painted(SIZE, (0, 0, 40, 54))
    rows = [
        len(mosaic([sample, *[blank()] * 3], SIZE, (96, x), limits=BoxLimits(min_visible=0.1)).boxes) for x in (90, 99)
    ]
    assert rows == [0, 1]


def test_mixup_has_half_of_each_and_all_boxes() -> None:
    first, second = noisy(seed=1), noisy(seed=2)
    blend = mixup(first, second)
    expected = (first.picture.astype(float) + second.picture) / 2
    assert np.abs(blend.picture - expected).max() <= 0.5
    assert np.array_equal(blend.boxes, np.concatenate([first.boxes, second.boxes]))


@pytest.mark.parametrize("size", [SIZE, (50, 70), (300, 80)])
@pytest.mark.parametrize("seed", range(12))
def test_boxes_of_the_second_picture_of_a_mixup(seed: int, size: tuple[int, int]) -> None:
    other = painted(size, (10, 12, 45, 44))
    result = random_mixup(blank(), other, np.random.default_rng(seed))
    assert result.size == SIZE
    assert_box_fits(result, 92, within=1.25)  # grey is 57 and white 128 in a blend with black


def test_where_the_second_picture_of_a_mixup_lies() -> None:
    """In the top left corner with black around it, or a random part of it."""
    white = Sample(np.full((*SIZE, 3), 255, np.uint8), np.zeros((0, 5), np.float32))
    down, across = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    other = np.stack([100 + down, 100 + abs(across - 63.5), np.full(SIZE, 255)], axis=-1).astype(np.uint8)
    corners, small = [], 0
    for seed in range(60):
        blend, _ = random_mixup(white, Sample(other, white.boxes), np.random.default_rng(seed))
        assert blend[0, 0, 2] == 255
        if blend[-1, -1, 2] != 255:
            small += 1
            assert set(np.unique(blend[..., 2])) == {128, 255}
            assert blend[0, 0, 0] in (177, 178)
        else:
            corners.append(blend[0, 0, :2].tolist())
    assert 20 < small < 40
    assert (np.ptp(corners, axis=0) > 8).all()


def test_where_pictures_of_a_mosaic_meet() -> None:
    """Anywhere in the part that is left, whose four corners are each in another picture then."""
    meeting = []
    for seed in range(200):
        colours = iter(range(1, 5))
        samples = [Sample(np.full((*SIZE, 3), next(colours), np.uint8), np.zeros((0, 5), np.float32)) for _ in range(4)]
        augmentation = Augmentation(mosaic=1.0)
        picture, _ = augment(samples[0], iter(samples[1:]).__next__, augmentation, SIZE, np.random.default_rng(seed))
        assert picture.max() <= 4
        meeting.append(((picture[:, 0, 0] < 3).sum(), (picture[0, :, 0] % 2 == 1).sum()))
    assert np.min(meeting, axis=0) == pytest.approx([0, 0], abs=3)
    assert np.max(meeting, axis=0) == pytest.approx(SIZE, abs=3)


@pytest.mark.parametrize("changes", [{"mosaic": 1.0}, {"scale": (1.1, 1.1)}, {"mixup": 1.0}])
def test_limits_hold_for_all_that_moves(changes: dict[str, object]) -> None:
    strict = Augmentation(limits=BoxLimits(min_side=500), **changes)  # type: ignore[arg-type]
    first = blank() if "mixup" in changes else painted()
    assert len(augment(first, painted, strict, SIZE, np.random.default_rng(0)).boxes) == 0
    loose = replace(strict, limits=BoxLimits())
    assert len(augment(first, painted, loose, SIZE, np.random.default_rng(0)).boxes) > 0


@pytest.mark.parametrize(("mosaic_or_mixup", "above"), [((1.0, 0.0), 185), ((0.0, 1.0), 92)])  # grey is 114 or 57
@pytest.mark.parametrize("seed", range(20))
def test_boxes_after_everything_that_moves(seed: int, mosaic_or_mixup: tuple[float, float], above: int) -> None:
    augmentation = Augmentation(
        mosaic=mosaic_or_mixup[0],
        scale=(0.5, 1.5),
        translate=0.2,
        fill=0,
        horizontal_flip=0.5,
        vertical_flip=0.5,
        mixup=mosaic_or_mixup[1],
    )
    result = augment(painted(), blank, augmentation, SIZE, np.random.default_rng(seed))
    assert result.size == SIZE
    assert_box_fits(result, above, within=1.25)


def test_limits() -> None:
    rows = [
        [1, 10, 10, 30, 30],  # inside
        [2, -15, 10, 5, 30],  # a quarter of it is inside
        [3, 10, 10, 12, 40],  # 2 pixels wide
        [4, 10, 10, 90, 14],  # 20 times as wide as high
        [5, 90, 10, 120, 30],  # half of it is left of the edge, but for its first third
        [6, 200, 10, 220, 30],  # outside
        [7, 10, 10, 10, 30],  # no area
        [8, 30, 30, 10, 10],  # turned inside out
        [9, math.nan, 10, 20, 30],
    ]
    boxes = np.array(rows, np.float32)

    def kept(limits: BoxLimits) -> list[float]:
        return clip_boxes(boxes, (60, 100), limits)[:, 0].tolist()

    assert kept(BoxLimits()) == [1, 2, 3, 4, 5]
    assert kept(BoxLimits(min_side=2)) == [1, 2, 4, 5]
    assert kept(BoxLimits(min_visible=0.25)) == [1, 3, 4, 5]
    assert kept(BoxLimits(min_visible=0.24)) == [1, 2, 3, 4, 5]
    assert kept(BoxLimits(max_aspect=20)) == [1, 2, 3, 5]
    assert kept(BoxLimits(max_aspect=20.1)) == [1, 2, 3, 4, 5]
    assert clip_boxes(boxes[[1, 4]], (60, 100)).tolist() == [[2, 0, 10, 5, 30], [5, 90, 10, 100, 30]]
    assert np.array_equal(boxes, np.array(rows, np.float32), equal_nan=True)
    assert clip_boxes(np.zeros((0, 5), np.float32), (60, 100)).shape == (0, 5)


@pytest.mark.parametrize(
    ("colour", "shifts", "expected"),
    [
        ((0, 0, 255), (60, 0, 0), (0, 255, 0)),  # a third of the circle: red, green, blue
        ((0, 0, 255), (-60, 0, 0), (255, 0, 0)),
        ((0, 0, 255), (180, 0, 0), (0, 0, 255)),
        ((100, 100, 100), (0, 0, 30), (130, 130, 130)),
        ((240, 240, 240), (0, 0, 30), (255, 255, 255)),
        ((10, 10, 10), (0, 0, -30), (0, 0, 0)),
        ((0, 0, 200), (0, -255, 0), (200, 200, 200)),
        ((90, 90, 180), (0, 255, 0), (0, 0, 180)),
    ],
)
def test_colours(colour: tuple[int, ...], shifts: tuple[int, int, int], expected: tuple[int, ...]) -> None:
    picture = np.full((5, 7, 3), colour, np.uint8)
    assert (shift_colours(picture, *shifts) == expected).all()
    assert (picture == colour).all()


def test_each_colour_change_applies_in_half_of_the_cases() -> None:
    sample = Sample(np.full((2, 2, 3), 128, np.uint8), np.zeros((0, 5), np.float32))
    values = [
        int(random_colours(sample, Augmentation(value=30), np.random.default_rng(seed)).picture[0, 0, 0])
        for seed in range(400)
    ]
    assert (min(values), max(values)) == (98, 158)
    assert 0.4 < np.mean(np.array(values) == 128) < 0.6


def test_none_changes_nothing() -> None:
    sample = noisy()
    assert augment(sample, pytest.fail, NONE, SIZE, np.random.default_rng(0)) is sample


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("seed", range(5))
def test_presets(name: str, seed: int) -> None:
    """Same generator, same result; boxes inside of it; nothing that was given is written to."""
    given = [noisy(seed=number) for number in range(5)]
    kept = [Sample(sample.picture.copy(), sample.boxes.copy()) for sample in given]
    results = []
    for _ in range(2):
        others = iter(given[1:])
        results.append(augment(given[0], others.__next__, PRESETS[name], SIZE, np.random.default_rng(seed)))
    assert_same(*results)
    picture, boxes = results[0]
    assert (picture.shape, picture.dtype, boxes.dtype) == ((*SIZE, 3), np.uint8, np.float32)
    assert picture.flags.c_contiguous
    assert (boxes[:, 1:] >= 0).all()
    assert (boxes[:, 3:] <= SIZE[::-1]).all()
    assert (boxes[:, 3:] > boxes[:, 1:3]).all()
    for before, after in zip(kept, given, strict=True):
        assert_same(before, after)


def test_how_many_others_are_asked_for() -> None:
    asked = []

    def another() -> Sample:
        asked.append(1)
        return blank()

    everything = replace(FINE_TUNING, mixup=1.0)
    augment(blank(), another, everything, SIZE, np.random.default_rng(0))
    assert len(asked) == 4
    augment(blank(), another, everything.without_mixing(), SIZE, np.random.default_rng(0))
    assert len(asked) == 4
    assert COCO.without_mixing() == replace(COCO, mixup=0.0)


@pytest.mark.parametrize(("name", "channel_swap"), [("horizontal_flip", 0.0), ("vertical_flip", 0.0), ("", 1.0)])
def test_a_probability_of_one_always_happens(name: str, channel_swap: float) -> None:
    augmentation = Augmentation(channel_swap=channel_swap, **({name: 1.0} if name else {}))
    expected = {"horizontal_flip": flip_horizontal, "vertical_flip": flip_vertical, "": swap_channels}[name](noisy())
    for seed in range(5):
        assert_same(augment(noisy(), blank, augmentation, SIZE, np.random.default_rng(seed)), expected)


def test_a_probability_of_a_half_happens_in_half_of_the_cases() -> None:
    augmentation, sample = Augmentation(horizontal_flip=0.5), noisy()
    flipped = [augment(sample, blank, augmentation, SIZE, np.random.default_rng(i)) is not sample for i in range(300)]
    assert 0.4 < np.mean(flipped) < 0.6


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"mosaic": 1.5}, r"augmentation: mosaic must lie in 0\.\.1, got 1\.5"),
        ({"mixup": -0.1}, "mixup must lie in"),
        ({"translate": math.nan}, "translate must lie in"),
        ({"degrees": 181}, r"degrees must lie in 0\.\.180"),
        ({"shear": 90}, "shear must lie in"),
        ({"fill": 256}, "fill must lie in"),
        ({"hue": 181}, "hue must lie in"),
        ({"scale": (0, 1)}, r"scale must be two ascending numbers above 0, got \(0, 1\)"),
        ({"scale": (1.5, 0.5)}, "scale must be two ascending"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Augmentation(**settings)  # type: ignore[arg-type]
