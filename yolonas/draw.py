"""Draws boxes with readable labels into a picture. Knows arrays and texts only, nothing of results or files.

Lines and labels are drawn at whole pixels, so that they stay sharp.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from .label_text import DEFAULT_FONT, can_show, text_mask

Color = tuple[int, int, int]  # blue, green, red: as in the picture

# Twenty colours far apart in OKLab, none dark or pale, the most different ones first. Classes beyond share them.
PALETTE: tuple[Color, ...] = tuple(
    (value & 255, value >> 8 & 255, value >> 16)
    for value in (
        *(0xFF5A1F, 0x0096FF, 0x96E600, 0xF000FF, 0x00783C, 0xFFC34B, 0x6900FF, 0x00F0F0, 0xFFA5FF, 0x874B96),
        *(0xF00087, 0xB47800, 0x9678FF, 0xA53C3C, 0x00C378, 0x9600D2, 0xE17896, 0x004BF0, 0x96A500, 0xE60026),
    )
)
WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)

SMALLEST_TEXT = 8  # pixels; below this a label is shortened rather than shrunk
LONGEST_NAME = 48  # characters of a class name


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    labels: Sequence[str] | None = None,
    classes: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    line_width: float | None = None,
    font_size: float | None = None,
    font: str = DEFAULT_FONT,
    txt_color: Color = WHITE,
) -> None:
    """Draws `boxes` into `image`, in place.

    Args:
        image: `(H, W, 3)` uint8, BGR, contiguous and writable.
        boxes: `(N, 4)` xyxy in pixels; parts outside the picture are cut off, boxes with NaN or infinity left out.
        labels: N texts, drawn where they hide no other label if there is such a place, never outside the picture.
        classes: `(N,)` integers that choose the colour from `PALETTE`.
        scores: `(N,)`; higher ones are drawn over lower ones. Without them the first box is on top.
        line_width: pixels; None goes by the size of the picture.
        font_size: pixels; None goes by the size of the picture, smaller where the boxes are small. A label that would
            be wider than the picture is drawn smaller, and then shortened.
        font: file name or path of a TrueType font; where it is not found, Pillow's built-in font.
        txt_color: BGR. White stands for white or black, whichever reads better on the box's colour.
    """
    count = len(boxes)
    boxes = np.asarray(boxes, np.float64).reshape(count, 4)
    height, width = image.shape[:2]
    visible = np.isfinite(boxes).all(axis=1)
    corners = np.zeros((count, 4), np.int64)
    limit = 2.0 * (width + height)  # before the conversion: an int of 1e30 would be anything
    corners[visible, :2] = np.floor(np.minimum(boxes[visible, :2], boxes[visible, 2:]).clip(-limit, limit) + 1e-3)
    corners[visible, 2:] = np.ceil(np.maximum(boxes[visible, :2], boxes[visible, 2:]).clip(-limit, limit) - 1e-3)
    visible &= (corners[:, 0] < width) & (corners[:, 1] < height) & (corners[:, 2] > 0) & (corners[:, 3] > 0)
    order = np.arange(count) if scores is None else np.argsort(-np.asarray(scores, np.float64), kind="stable")
    order = order[visible[order]]
    if not len(order):
        return
    line = default_line_width(height, width) if line_width is None else max(1, round(line_width))
    palette = np.zeros(count, np.int64) if classes is None else np.asarray(classes, np.int64) % len(PALETTE)
    for index in order[::-1]:
        _draw_frame(image, corners[index].tolist(), line, PALETTE[palette[index]])
    if labels is None:
        return
    size = _label_size(corners[order], height, width) if font_size is None else max(1, min(round(font_size), height))
    texts = [_drawable(labels[index], 0 if classes is None else int(classes[index]), font) for index in order]
    placed = _place_labels(texts, corners[order].tolist(), line, size, font, image.shape)
    for index, (mask, left, top) in reversed(list(zip(order, placed, strict=True))):
        if mask is not None:
            background = PALETTE[palette[index]]
            ramp = _color_ramp(background, _text_color(background, txt_color))
            image[top : top + mask.shape[0], left : left + mask.shape[1]] = ramp.take(mask, axis=0)


def bgr_copy(picture: np.ndarray) -> np.ndarray:
    """A uint8 picture of shape `(H, W)` or `(H, W, 1 | 3 | 4)` as a new `(H, W, 3)` one; alpha is dropped."""
    if picture.ndim == 2:
        picture = picture[:, :, None]
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture[:, :, :3].copy(order="C")


def default_line_width(height: int, width: int) -> int:
    """Pixels: 1 in a thumbnail, 2 at 640 x 480, 3 at 1920 x 1080, 8 at 6000 x 4000."""
    return max(1, round(1 + 0.0015 * math.sqrt(height * width)))


def default_font_size(height: int, width: int) -> int:
    """Pixels: 9 in a thumbnail, 14 at 640 x 480, 24 at 1920 x 1080, 62 at 6000 x 4000."""
    return round(8 + 0.011 * math.sqrt(height * width))


def _draw_frame(image: np.ndarray, corners: list[int], line: int, color: Color) -> None:
    """Four filled bars: half of the time of one thick rectangle in OpenCV, and square at the corners."""
    height, width = image.shape[:2]
    # half of the line lies outside the box, but all of it inside the picture
    left, top = max(0, corners[0] - line // 2), max(0, corners[1] - line // 2)
    right, bottom = min(width, corners[2] + line // 2) - 1, min(height, corners[3] + line // 2) - 1
    for start, end in (
        ((left, top), (right, top + line - 1)),
        ((left, bottom - line + 1), (right, bottom)),
        ((left, top), (left + line - 1, bottom)),
        ((right - line + 1, top), (right, bottom)),
    ):
        cv2.rectangle(image, start, end, color, cv2.FILLED)


def _label_size(corners: np.ndarray, height: int, width: int) -> int:
    """The picture's font size, down to two fifths of it where most boxes are so small that labels would hide them."""
    size = default_font_size(height, width)
    sides = np.sqrt(np.maximum((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]), 1))
    return round(min(size, max(float(np.median(sides)) * 0.3, size * 0.4, SMALLEST_TEXT + 2)))


def _place_labels(
    labels: Sequence[str], corners: Sequence[Sequence[int]], line: int, size: int, font: str, shape: tuple[int, ...]
) -> list[tuple[np.ndarray | None, int, int]]:
    """(mask, left, top) per label, best box first: at its box, where it hides no other label and no small box."""
    height, width = shape[:2]
    cell = max(2, size // 4)  # what is where is remembered on a grid this coarse
    labelled = np.zeros((height // cell + 1, width // cell + 1), bool)
    small = np.zeros_like(labelled)

    def cells(left: int, top: int, right: int, bottom: int) -> tuple[slice, slice]:
        return slice(max(0, top // cell), (bottom - 1) // cell + 1), slice(
            max(0, left // cell), (right - 1) // cell + 1
        )

    masks = [_label_mask(text, size, font, width, height) for text in labels]
    for mask, (x1, y1, x2, y2) in zip(masks, corners, strict=True):
        if mask is not None and (x2 - x1) * (y2 - y1) < 2 * mask.size:
            small[cells(x1, y1, x2, y2)] = True
    placed: list[tuple[np.ndarray | None, int, int]] = []
    for mask, (x1, y1, x2, y2) in zip(masks, corners, strict=True):
        if mask is None:
            placed.append((None, 0, 0))
            continue
        tall, wide = mask.shape
        left, top, right, bottom = x1 - line // 2, y1 - line // 2, x2 + line // 2, y2 + line // 2
        above, below = (left, top - tall), (left, bottom)
        inside, inside_low = (left, top), (right - wide, bottom - tall)
        roomy = (x2 - x1) * (y2 - y1) >= 2 * mask.size
        spots = [above, inside] if roomy else [above, below]
        spots += (
            [(right - wide, top - tall), below, inside_low] if roomy else [(right - wide, top - tall), (right, top)]
        )
        best: tuple[int, int] | None = None
        least = 3
        for spot_left, spot_top in spots:
            if not -line <= spot_top <= height - tall + line:
                continue
            spot_left, spot_top = min(max(spot_left, 0), width - wide), min(max(spot_top, 0), height - tall)
            area = cells(spot_left, spot_top, spot_left + wide, spot_top + tall)
            hidden = 2 * bool(labelled[area].any()) + bool(small[area].any())
            if hidden < least:
                best, least = (spot_left, spot_top), hidden
            if not hidden:
                break
        if best is None:  # taller than the room above and below
            best = min(max(left, 0), width - wide), min(max(top, 0), height - tall)
        labelled[cells(best[0], best[1], best[0] + wide, best[1] + tall)] = True
        placed.append((mask, *best))
    return placed


def _drawable(label: str, class_id: int, font: str) -> str:
    """The label on one line; of a name that no font can show, its plain letters or else the number of its class."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in label[:10000]).split())
    name, score = _split_score(text)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME].rstrip()}.."
    if not name.isascii() and not can_show(name, font):
        plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
        name = plain if plain.isascii() else f"class {class_id}"
    return f"{name} {score}".strip()


def _label_mask(text: str, size: int, font: str, width: int, height: int) -> np.ndarray | None:
    """A label of at most `(height, width)` as `(h, w)` uint8, 0 background to 255 text; None if nothing of it fits."""
    if not text:
        return None
    mask = _compose_label(text, size, font)
    smallest = max(SMALLEST_TEXT, round(0.7 * size))
    while (mask.shape[0] > height and size > SMALLEST_TEXT) or (mask.shape[1] > width and size > smallest):
        size -= max(1, size // 10)
        mask = _compose_label(text, size, font)
    if mask.shape[0] > height:
        return None
    full_name, score = _split_score(text)
    name = full_name
    while mask.shape[1] > width:  # too long even when smaller: the name loses letters, or there is no score
        if score and len(name) <= 4:
            name, score = full_name, ""
            mask = _compose_label(name or "..", size, font)
        elif len(name) > 1:
            name = name[: min(len(name) - 1, max(4 if score else 1, len(name) * width // mask.shape[1]))].rstrip()
            mask = _compose_label(f"{name}.. {score}".strip(), size, font)
        else:
            return None
    return mask


def _compose_label(text: str, size: int, font: str) -> np.ndarray:
    """The label's mask: name and score are rendered apart, since each of the two comes again far oftener than both."""
    parts = [text_mask(part, size, font) for part in _split_score(text) if part]
    gap, margin_x, margin_y = round(size * 0.3), max(1, round(size * 0.25)), max(1, round(size * 0.15))
    rise, fall = (
        max(values) for values in zip(*((baseline, len(mask) - baseline) for mask, baseline in parts), strict=True)
    )
    wide = sum(mask.shape[1] for mask, _ in parts) + gap * (len(parts) - 1)
    label = np.zeros((rise + fall + 2 * margin_y, wide + 2 * margin_x), np.uint8)
    x = margin_x
    for mask, baseline in parts:
        y = margin_y + rise - baseline
        label[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        x += mask.shape[1] + gap
    return label


def _split_score(text: str) -> tuple[str, str]:
    """("traffic light", "0.87"): a number at the end stands apart, anything else belongs to the name."""
    name, _, score = text.rpartition(" ")
    return (name, score) if score.isascii() and score.replace(".", "", 1).isdigit() else (text, "")


@lru_cache(maxsize=64)
def _color_ramp(background: Color, text: Color) -> np.ndarray:
    """`(256, 3)` uint8: from the background's colour to the text's."""
    share = np.linspace(0.0, 1.0, 256)[:, None]
    return np.rint(np.array(background) * (1 - share) + np.array(text) * share).astype(np.uint8)


def _text_color(background: Color, wanted: Color) -> Color:
    if wanted != WHITE:
        return wanted
    blue, green, red = ((value / 255) ** 2.2 for value in background)
    return BLACK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.25 else WHITE
