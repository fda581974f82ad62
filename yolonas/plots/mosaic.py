"""Several pictures with their boxes on one canvas. Where each picture stands depends on the pictures only.

So the mosaic of the true boxes and that of the detections can be laid side by side and compared cell by cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from ..draw import bgr_copy, draw_boxes
from ..label_text import DEFAULT_FONT, can_show, text_mask
from .figure import Names

MOST_PICTURES = 16
LARGEST_SIDE = 1920  # pixels of the canvas

_PAPER, _BACKGROUND, _EDGE, _INK, _SOFT_INK = 255, 236, 150, 30, 110  # gray values
_GAP = 6  # pixels between cells
_CAPTION = 24  # pixels above each picture
_TEXT_SIZE = 13


def mosaic(
    pictures: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    classes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None,
    names: Names,
    captions: Sequence[str],
    *,
    side: int = LARGEST_SIDE,
    show_labels: bool = True,
    show_conf: bool = True,
) -> np.ndarray:
    """Returns a `(H, W, 3)` uint8 BGR canvas with at most 16 pictures; what comes after the 16th is left out.

    Args:
        pictures: uint8, `(H, W)` or `(H, W, 1 | 3 | 4)` of any sizes, BGR; not changed.
        boxes: per picture `(N, 4)` xyxy in its pixels.
        classes: per picture `(N,)` class numbers.
        scores: per picture `(N,)`; None for true boxes.
        names: class names by number; a class without one is called "class 7".
        captions: per picture the text above it, such as its file name.
        side: pixels; neither width nor height of the canvas is larger.
        show_labels: draw class names.
        show_conf: draw scores, where there are any.

    Raises:
        ValueError: no or an empty picture, lists of different lengths, or a `side` too small.
    """
    counts = {
        "boxes": boxes,
        "classes": classes,
        "captions": captions,
        **({} if scores is None else {"scores": scores}),
    }
    if not pictures:
        raise ValueError("mosaic: pictures must hold at least one picture, got none")
    for name, values in counts.items():
        if len(values) != len(pictures):
            raise ValueError(f"mosaic: {name} must hold one entry per picture, {len(pictures)}, got {len(values)}")
    sizes = [picture.shape[:2] for picture in pictures[:MOST_PICTURES]]
    if min(min(size) for size in sizes) == 0:
        raise ValueError(f"mosaic: pictures must not be empty, got sizes {sizes}")
    columns, rows, cell_height, cell_width = _grid(sizes, side)
    step_y, step_x = cell_height + _CAPTION + _GAP, cell_width + _GAP
    canvas = np.full((rows * step_y + _GAP, columns * step_x + _GAP, 3), _PAPER, np.uint8)
    for index, (height, width) in enumerate(sizes):
        left, top = _GAP + index % columns * step_x, _GAP + index // columns * step_y
        count = len(boxes[index])
        _write_caption(canvas[top : top + _CAPTION, left : left + cell_width], captions[index], count)
        top += _CAPTION
        scale = min(cell_height / height, cell_width / width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        tile = cv2.resize(
            bgr_copy(pictures[index]), (wide, tall), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        numbers = np.asarray(classes[index]).reshape(count).astype(np.int64)
        score = None if scores is None else np.asarray(scores[index], np.float64).reshape(count)
        draw_boxes(
            tile,
            np.asarray(boxes[index], np.float64).reshape(count, 4) * ([wide / width, tall / height] * 2),
            labels=_labels(numbers, score if show_conf else None, names, show_labels),
            classes=numbers,
            scores=score,
        )
        cell = canvas[top : top + cell_height, left : left + cell_width]
        cell[:] = _BACKGROUND
        y, x = (cell_height - tall) // 2, (cell_width - wide) // 2
        cell[y : y + tall, x : x + wide] = tile
        cv2.rectangle(canvas, (left - 1, top - 1), (left + cell_width, top + cell_height), (_EDGE,) * 3, 1)
    return canvas


def _grid(sizes: Sequence[tuple[int, ...]], side: int) -> tuple[int, int, int, int]:
    """(columns, rows, height and width of a cell): about as many columns as rows, cells shaped like most pictures."""
    columns = math.ceil(math.sqrt(len(sizes)))
    rows = math.ceil(len(sizes) / columns)
    shape = float(np.clip(np.median([width / height for height, width in sizes]), 0.5, 2.0))
    free_x = (side - _GAP) // columns - _GAP
    free_y = (side - _GAP) // rows - _GAP - _CAPTION
    if min(free_x, free_y) < 16:
        raise ValueError(f"mosaic: side must leave each of {len(sizes)} pictures at least 16 pixels, got {side}")
    # pictures are enlarged to twice their size at most, thumbnails to the size of a readable label
    largest = max(240.0, 2 * max(max(height, width) for height, width in sizes))
    cell_width = min(free_x, free_y * shape, largest, largest * shape)
    return columns, rows, max(16, int(cell_width / shape)), max(16, int(cell_width))


def _labels(classes: np.ndarray, scores: np.ndarray | None, names: Names, show_names: bool) -> list[str] | None:
    if not show_names and scores is None:
        return None
    parts = []
    for index, number in enumerate(classes.tolist()):
        name = ""
        if show_names:
            known = number in names if isinstance(names, Mapping) else 0 <= number < len(names)
            name = str(names[number]) if known else f"class {number}"
        parts.append(name if scores is None else f"{name} {scores[index]:.2f}".strip())
    return parts


def _write_caption(strip: np.ndarray, caption: str, count: int) -> None:
    """The caption on the left, its beginning cut where it is too long, and the number of boxes on the right."""
    width = strip.shape[1]
    number = _text(f"{count} box" if count == 1 else f"{count} boxes")
    room = width - 4 - number[0].shape[1] - 10
    if room < width // 2:
        room = width - 4
    else:
        _put(strip, number, width - 2 - number[0].shape[1], _SOFT_INK)
    text = caption[-1000:].encode(errors="replace").decode()  # names of files may not be UTF-8
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if not text.isascii() and not can_show(text, DEFAULT_FONT):
        text = text.encode("ascii", "replace").decode()
    mask = _text(text)
    while mask[0].shape[1] > room and len(text) > 3:
        keep = min(len(text) - 1, max(1, len(text) * room // mask[0].shape[1]))
        text = text[-keep:]
        mask = _text(f"..{text}")
    if mask[0].shape[1] <= room:
        _put(strip, mask, 2, _INK)


def _text(text: str) -> tuple[np.ndarray, int]:
    return text_mask(text or " ", _TEXT_SIZE, DEFAULT_FONT)


def _put(strip: np.ndarray, text: tuple[np.ndarray, int], left: int, ink: int) -> None:
    mask, baseline = text
    top = max(0, round(_CAPTION * 0.7) - baseline)
    target = strip[top : top + mask.shape[0], left : left + mask.shape[1]]
    share = mask[: target.shape[0], : target.shape[1], None] / 255.0
    target[:] = np.rint(_PAPER + (ink - _PAPER) * share).astype(np.uint8)
