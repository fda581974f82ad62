"""Random changes of training pictures and of the boxes on them: what may change how much, and the arithmetic of it.

A box side lies on the edges of pixels: a box over a whole picture is 0, 0, width, height. Whatever is random is drawn
from the generator that is passed in; the functions without one do the same each time. None changes what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from ..preprocess import Preprocess, Size

GREY = 114  # uint8, around the pictures of a mosaic and the second one of a mixup
MIXUP_SCALES = (0.5, 1.5)  # of the second picture, times the size at which it fits the first
HUES = 180  # OpenCV's hues are 0..179

_IDENTITY = np.eye(2, 3)


class Sample(NamedTuple):
    """A picture and its labelled boxes."""

    picture: np.ndarray  # (H, W, 3) uint8 BGR
    boxes: np.ndarray  # (n, 5) float32: class, x1, y1, x2, y2 in pixels of the picture

    @property
    def size(self) -> Size:
        """(height, width) of the picture."""
        height, width = self.picture.shape[:2]
        return height, width


@dataclass(frozen=True)
class BoxLimits:
    """Which boxes are still labels after a picture was moved or cut. By default all that have an area."""

    min_side: float = 0.0  # pixels; both sides must be larger
    min_visible: float = 0.0  # share of a box's area, 0..1; more of it must lie inside the picture
    max_aspect: float = math.inf  # longer side / shorter side must be less


@dataclass(frozen=True)
class Augmentation:
    """How strongly training pictures are changed, in the order in which it is done. The defaults change nothing."""

    mosaic: float = 0.0  # probability that three other pictures are put beside this one
    degrees: float = 0.0  # degrees: largest rotation, either way
    shear: float = 0.0  # degrees: largest slant of either axis, either way
    scale: tuple[float, float] = (1.0, 1.0)  # smallest and largest magnification
    translate: float = 0.0  # share of the picture's sides: how far its centre moves at most
    fill: int = GREY  # uint8, where a picture has moved away
    limits: BoxLimits = BoxLimits()  # for all that moves or cuts
    channel_swap: float = 0.0  # probability that blue and red change places
    colours: float = 0.0  # probability that the next three apply; then each does in half of the cases
    hue: int = 0  # of 180: largest turn of the colour circle, either way
    saturation: int = 0  # of 255: largest change, either way
    value: int = 0  # of 255: largest change, either way
    horizontal_flip: float = 0.0  # probability that left and right change places
    vertical_flip: float = 0.0  # probability that top and bottom change places
    mixup: float = 0.0  # probability that another picture is blended in

    def __post_init__(self) -> None:
        probabilities = ("mosaic", "channel_swap", "colours", "horizontal_flip", "vertical_flip", "mixup")
        highest = dict.fromkeys((*probabilities, "translate"), 1)
        highest |= {"degrees": 180, "shear": 80, "fill": 255, "hue": HUES, "saturation": 255, "value": 255}
        for name, most in highest.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"augmentation: {name} must lie in 0..{most}, got {getattr(self, name)}")
        smallest, largest = self.scale
        if not 0 < smallest <= largest < math.inf:
            raise ValueError(f"augmentation: scale must be two ascending numbers above 0, got {self.scale}")

    def without_mixing(self) -> Augmentation:
        """The same for pictures that stay alone: no mosaic, no mixup."""
        return replace(self, mosaic=0.0, mixup=0.0)


NONE = Augmentation()

# Training on COCO from random weights, as published for the S variant.
COCO = Augmentation(
    scale=(0.5, 1.5),
    translate=0.25,
    limits=BoxLimits(min_side=2.0, min_visible=0.1, max_aspect=20.0),
    channel_swap=0.5,
    colours=0.5,
    hue=18,
    saturation=30,
    value=30,
    horizontal_flip=0.5,
    mixup=0.5,
)

# Fine-tuning COCO weights on small data sets, as published for Roboflow 100.
FINE_TUNING = Augmentation(
    mosaic=1.0,
    scale=(0.5, 1.5),
    translate=0.1,
    fill=128,
    colours=1.0,
    hue=5,
    saturation=30,
    value=30,
    horizontal_flip=0.5,
)

PRESETS = {"none": NONE, "coco": COCO, "fine-tuning": FINE_TUNING}


def augment(
    sample: Sample, another: Callable[[], Sample], augmentation: Augmentation, size: Size, random: np.random.Generator
) -> Sample:
    """Changes a picture as `augmentation` says.

    Args:
        sample: a picture that fits into `size`.
        another: gives some other such picture; called three times for a mosaic and once for a mixup.
        size: (height, width) of the result of a mosaic; a picture that stays alone keeps its own size.
    """
    if _happens(augmentation.mosaic, random):
        down, right = (int(random.integers(side // 2, side + side // 2 + 1)) for side in size)
        sample = mosaic([sample, another(), another(), another()], size, (down, right), limits=augmentation.limits)
    else:
        size = sample.size
    sample = random_affine(sample, augmentation, size, random)
    if _happens(augmentation.channel_swap, random):
        sample = swap_channels(sample)
    if _happens(augmentation.colours, random):
        sample = random_colours(sample, augmentation, random)
    if _happens(augmentation.horizontal_flip, random):
        sample = flip_horizontal(sample)
    if _happens(augmentation.vertical_flip, random):
        sample = flip_vertical(sample)
    if _happens(augmentation.mixup, random):
        sample = random_mixup(sample, another(), random, limits=augmentation.limits)
    return sample


def resize(sample: Sample, size: Size) -> Sample:
    """The picture at `size` (height, width), by OpenCV's bilinear interpolation."""
    if size == sample.size:
        return sample
    (height, width), (old_height, old_width) = size, sample.size
    ratio = (width / old_width, height / old_height)
    boxes = sample.boxes.copy()
    boxes[:, 1:] *= np.array(ratio * 2, np.float32)
    return Sample(cv2.resize(sample.picture, (width, height), interpolation=cv2.INTER_LINEAR), boxes)


def place(
    sample: Sample, size: Size, offset: tuple[int, int], *, fill: int = GREY, limits: BoxLimits = BoxLimits()
) -> Sample:
    """The picture, `offset` (top, left) pixels into a frame of `size` filled with `fill`, and cut at its edges."""
    frame = np.full((*size, 3), fill, np.uint8)
    _paste(frame, sample.picture, offset)
    return Sample(frame, clip_boxes(_shifted(sample.boxes, offset), size, limits))


def fit(sample: Sample, preprocess: Preprocess) -> Sample:
    """The picture resized as for the network, without padding."""
    return resize(sample, preprocess.plan(*sample.size).resized)


def pad(sample: Sample, preprocess: Preprocess) -> Sample:
    """A picture of `fit` placed in the frame of the network."""
    geometry = preprocess.plan(*sample.size)
    return place(sample, geometry.frame, (geometry.top, geometry.left), fill=preprocess.pad_value)


def flip_horizontal(sample: Sample) -> Sample:
    """Left and right change places."""
    boxes = sample.boxes.copy()
    boxes[:, [1, 3]] = sample.size[1] - sample.boxes[:, [3, 1]]
    return Sample(cv2.flip(sample.picture, 1), boxes)


def flip_vertical(sample: Sample) -> Sample:
    """Top and bottom change places."""
    boxes = sample.boxes.copy()
    boxes[:, [2, 4]] = sample.size[0] - sample.boxes[:, [4, 2]]
    return Sample(cv2.flip(sample.picture, 0), boxes)


def swap_channels(sample: Sample) -> Sample:
    """Blue and red change places."""
    return Sample(cv2.cvtColor(sample.picture, cv2.COLOR_BGR2RGB), sample.boxes)


def shift_colours(picture: np.ndarray, hue: int, saturation: int, value: int) -> np.ndarray:
    """A `(H, W, 3)` uint8 BGR picture, the colour circle turned and the other two changed, limited to 0..255.

    `hue` is in OpenCV's unit, of 180 to the circle.
    """
    levels = np.arange(256)
    table = np.stack(
        [(levels + hue) % HUES, (levels + saturation).clip(0, 255), (levels + value).clip(0, 255)], axis=-1
    )
    hsv = cv2.cvtColor(picture, cv2.COLOR_BGR2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8)[None]), cv2.COLOR_HSV2BGR)


def random_colours(sample: Sample, augmentation: Augmentation, random: np.random.Generator) -> Sample:
    """Changes each of hue, saturation and value by a random whole number, or in half of the cases not."""
    largest = np.array([augmentation.hue, augmentation.saturation, augmentation.value])
    shifts = random.integers(-largest, largest + 1) * random.integers(0, 2, 3)
    if not shifts.any():
        return sample
    return Sample(shift_colours(sample.picture, *shifts.tolist()), sample.boxes)


def affine_matrix(
    source: Size,
    size: Size,
    *,
    degrees: float = 0.0,
    shear: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """`(2, 3)` float64 that takes x, y, 1 of a picture of the size `source` to x, y of one of `size`.

    The picture is slanted along x and y by the angles `shear`, turned clockwise by `degrees` and magnified about its
    centre, which goes to the centre of the result plus `shift`, (down, right) in shares of its sides.
    """
    angle = math.radians(degrees)
    along_x, along_y = (math.tan(math.radians(slant)) for slant in shear)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = scale * turn @ np.array([[1, along_x], [along_y, 1]])
    centre = np.array([source[1] / 2, source[0] / 2])
    goal = np.array([(0.5 + shift[1]) * size[1], (0.5 + shift[0]) * size[0]])
    return np.column_stack([linear, goal - linear @ centre])


def warp(
    sample: Sample, matrix: np.ndarray, size: Size, *, fill: int = GREY, limits: BoxLimits = BoxLimits()
) -> Sample:
    """The picture moved by an `affine_matrix` into a frame of `size` filled with `fill`.

    A box becomes the smallest one around its four moved corners, cut at the frame.
    """
    # OpenCV counts from the middle of the first pixel, boxes from its edge.
    by_centres = matrix.copy()
    by_centres[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    picture = cv2.warpAffine(
        sample.picture,
        by_centres,
        (size[1], size[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(fill,) * 3,
    )
    corners = sample.boxes[:, [1, 2, 3, 2, 3, 4, 1, 4]].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    moved = np.concatenate([sample.boxes[:, :1], corners.min(axis=1), corners.max(axis=1)], axis=1)
    return Sample(picture, clip_boxes(moved.astype(np.float32), size, limits))


def random_affine(sample: Sample, augmentation: Augmentation, size: Size, random: np.random.Generator) -> Sample:
    """Turns, slants, magnifies and moves a picture at random into a frame of `size`; centre on centre at rest."""
    matrix = affine_matrix(
        sample.size,
        size,
        degrees=_either_way(augmentation.degrees, random),
        shear=(_either_way(augmentation.shear, random), _either_way(augmentation.shear, random)),
        scale=random.uniform(*augmentation.scale),
        shift=(_either_way(augmentation.translate, random), _either_way(augmentation.translate, random)),
    )
    if size == sample.size and np.array_equal(matrix, _IDENTITY):
        return sample
    return warp(sample, matrix, size, fill=augmentation.fill, limits=augmentation.limits)


def mosaic(
    samples: Sequence[Sample], size: Size, centre: tuple[int, int], *, limits: BoxLimits = BoxLimits()
) -> Sample:
    """Four pictures around a point, on a grey frame of twice `size` in both directions, cut at its edges.

    Args:
        samples: top left, top right, bottom left and bottom right, each no larger than `size`.
        centre: (y, x) in the frame where their corners meet.
    """
    frame = np.full((2 * size[0], 2 * size[1], 3), GREY, np.uint8)
    boxes = []
    for number, sample in enumerate(samples):
        height, width = sample.size
        offset = (centre[0] - height * (number < 2), centre[1] - width * (number % 2 == 0))
        _paste(frame, sample.picture, offset)
        boxes.append(_shifted(sample.boxes, offset))
    return Sample(frame, clip_boxes(np.concatenate(boxes), (2 * size[0], 2 * size[1]), limits))


def mixup(sample: Sample, other: Sample) -> Sample:
    """Half of each of two pictures of the same size, with the boxes of both."""
    blend = cv2.addWeighted(sample.picture, 0.5, other.picture, 0.5, 0)
    return Sample(blend, np.concatenate([sample.boxes, other.boxes]))


def random_mixup(
    sample: Sample, other: Sample, random: np.random.Generator, *, limits: BoxLimits = BoxLimits()
) -> Sample:
    """`mixup` with another picture, fitted to the first one's size, magnified at random and perhaps flipped.

    Where it is larger then, a random part of it is taken, where it is smaller, black is put around it.
    """
    height, width = sample.size
    if _happens(0.5, random):
        other = flip_horizontal(other)
    ratio = min(height / other.size[0], width / other.size[1])
    other = resize(other, (max(1, int(other.size[0] * ratio)), max(1, int(other.size[1] * ratio))))
    factor = random.uniform(*MIXUP_SCALES)
    other = place(other, sample.size, (0, 0))
    other = resize(other, (max(1, int(height * factor)), max(1, int(width * factor))))
    beyond = (max(0, other.size[0] - height), max(0, other.size[1] - width))
    offset = (-int(random.integers(beyond[0] + 1)), -int(random.integers(beyond[1] + 1)))
    return mixup(sample, place(other, sample.size, offset, fill=0, limits=limits))


def clip_boxes(boxes: np.ndarray, size: Size, limits: BoxLimits = BoxLimits()) -> np.ndarray:
    """Boxes `(n, 5)` cut at the edges of a picture of `size`, without those that `limits` does not let pass."""
    height, width = size
    clipped = boxes.copy()
    clipped[:, 1::2] = clipped[:, 1::2].clip(0, width)
    clipped[:, 2::2] = clipped[:, 2::2].clip(0, height)
    sides, whole = clipped[:, 3:] - clipped[:, 1:3], boxes[:, 3:] - boxes[:, 1:3]
    large = (sides > limits.min_side).all(axis=1)
    clipped, sides, whole = clipped[large], sides[large], whole[large]  # each with an area: the quotients are finite
    visible = sides.prod(axis=1) / whole.prod(axis=1)
    aspect = sides.max(axis=1) / sides.min(axis=1)
    return clipped[(visible > limits.min_visible) & (aspect < limits.max_aspect)]


def _happens(probability: float, random: np.random.Generator) -> bool:
    return bool(random.random() < probability)


def _either_way(largest: float, random: np.random.Generator) -> float:
    return float(random.uniform(-largest, largest))


def _shifted(boxes: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    top, left = offset
    return boxes + np.array([0, left, top, left, top], np.float32)


def _paste(frame: np.ndarray, picture: np.ndarray, offset: tuple[int, int]) -> None:
    """Writes into `frame` the part of a picture that lies inside of it; at least one pixel of it has to."""
    top, left = offset
    bottom, right = top + picture.shape[0], left + picture.shape[1]
    inside = picture[max(0, -top) : frame.shape[0] - top, max(0, -left) : frame.shape[1] - left]
    frame[max(0, top) : bottom, max(0, left) : right] = inside
