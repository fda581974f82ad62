"""Renders one line of text as a mask, in any script that some font here has. Knows nothing of boxes or colours.

Four places are asked in turn: the wanted font file, the font inside Pillow (ASCII only), the font inside OpenCV 5
(also Chinese, Cyrillic, Arabic ...), the fonts of the machine. Masks are kept, since names and scores repeat.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

DEFAULT_FONT = "Arial.ttf"
LARGEST_KEPT = 96  # pixels; masks of larger letters would fill the memory

_LINUX_FONTS = ("~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts")
_OTHER_FONTS = ("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts")
_MISSING = "\U0010ffff"  # a code point that no font has: what is drawn for it is drawn for every missing letter
# Where a font is meant by a path: the one inside Pillow, and the one inside OpenCV 5, which has far more letters.
_BUILT_IN, _OPENCV = "pillow:", "opencv:"

_log = logging.getLogger("yolonas")
_render_lock = threading.Lock()  # FreeType faces must not be used by two threads at once


def can_show(text: str, font: str) -> bool:
    """Whether some font has every letter of `text`; a warning is logged the first time that none has."""
    with _render_lock:
        return _face_for(text, font) is not None


def text_mask(text: str, size: int, font: str) -> tuple[np.ndarray, int]:
    """(mask, baseline): the ink of one line of text, as tall as the font's capitals and tails at least. Read-only."""
    return _kept_mask(text, size, font) if size <= LARGEST_KEPT else _rendered_mask(text, size, font)


@lru_cache(maxsize=1024)
def _kept_mask(text: str, size: int, font: str) -> tuple[np.ndarray, int]:
    return _rendered_mask(text, size, font)


def _rendered_mask(text: str, size: int, font: str) -> tuple[np.ndarray, int]:
    with _render_lock:
        face = _face_for(text, font) or _BUILT_IN
        mask, baseline = _render_opencv(text, size) if face == _OPENCV else _render_pillow(text, size, face)
    mask.flags.writeable = False
    return mask, baseline


def _render_pillow(text: str, size: int, face: str) -> tuple[np.ndarray, int]:
    pen = _pillow_font(face, size)
    left, top, right, bottom = (math.floor(value) for value in pen.getbbox(text, anchor="ls"))
    top, bottom = min(top, math.floor(pen.getbbox("A0", anchor="ls")[1])), max(bottom, round(size * 0.2)) + 1
    canvas = Image.new("L", (max(1, right - left + 1), max(1, bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=pen, anchor="ls")
    return np.array(canvas), -top


def _render_opencv(text: str, size: int) -> tuple[np.ndarray, int]:
    face = cv2.FontFace("sans")
    size = max(1, round(size * 0.87))  # its letters are larger than Pillow's at the same size
    rise, fall = round(size * 1.3), round(size * 0.5)
    canvas = np.zeros((rise + fall, size * (2 * len(text) + 2)), np.uint8)
    cv2.putText(canvas, text, (size // 2, rise), 255, face, size, 400)
    rows, columns = np.flatnonzero(canvas.any(axis=1)), np.flatnonzero(canvas.any(axis=0))
    top = min(rise - round(size * 0.75), rows[0] if len(rows) else rise)
    bottom = max(rise + round(size * 0.2), rows[-1] if len(rows) else rise) + 1
    left, right = (columns[0], columns[-1] + 1) if len(columns) else (0, 1)
    return canvas[top:bottom, left:right].copy(), int(rise - top)


@lru_cache(maxsize=1024)
def _face_for(text: str, font: str) -> str | None:
    """The first font that has every letter of `text`: the wanted one, Pillow's, OpenCV 5's, any on this machine."""
    letters = sorted(set(text))
    # OpenCV sets letters from left to right only and does not join them
    backward = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in letters)
    faces = _faces(font)
    for face in sorted(faces, key=_OPENCV.__eq__) if backward else faces:
        if all(_has(face, letter) for letter in letters):
            return face
    _warn_of_missing("".join(letter for letter in letters if not letter.isascii()))
    return None


@lru_cache(maxsize=1024)
def _warn_of_missing(letters: str) -> None:
    # once per set of letters: labels with track ids differ all the time
    _log.warning("draw: no font here has all of %r; install one that has, or name its file with font=...", letters)


def _faces(font: str) -> Iterator[str]:
    wanted = _wanted_face(font)
    if wanted is not None:
        yield wanted
    yield _BUILT_IN
    if hasattr(cv2, "FontFace"):
        yield _OPENCV
    yield from _system_fonts()


@lru_cache(maxsize=16)
def _wanted_face(font: str) -> str | None:
    try:
        return str(ImageFont.truetype(font, 16).path)  # Pillow also looks where the system keeps its fonts
    except (OSError, ValueError) as error:
        if font != DEFAULT_FONT:
            _log.warning("draw: font %r cannot be read (%s), the built-in one is used", font, error)
        return None


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    """Font files of this machine, plain sans-serif ones first. Looked for only when a letter is missing elsewhere."""
    folders = [Path(folder).expanduser() for folder in (*_LINUX_FONTS, *_OTHER_FONTS)]
    files = [
        Path(root, name)
        for folder in folders
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc"))
    ]
    odd = ("bold", "italic", "oblique", "mono", "serif", "light", "thin", "black", "condensed")

    def rank(file: Path) -> tuple[int, str]:
        name = file.name.lower()
        return sum(word in name for word in odd) - ("sans" in name), name

    return tuple(str(file) for file in sorted(files, key=rank)[:1000])


@lru_cache(maxsize=8192)
def _has(face: str, letter: str) -> bool:
    if letter.isspace():
        return True
    if face == _OPENCV:
        # the face draws a question mark for what it lacks
        return letter == "?" or not np.array_equal(_render_opencv(letter, 24)[0], _render_opencv("?", 24)[0])
    try:
        pen = _pillow_font(face, 24)
        drawn, missing = pen.getmask(letter), pen.getmask(_MISSING)
    except (OSError, ValueError):  # bitmap fonts, for example of emoji, have no such size
        return False
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


@lru_cache(maxsize=64)
def _pillow_font(face: str, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size) if face == _BUILT_IN else ImageFont.truetype(face, size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ImportError("draw: labels need a Pillow that was built with FreeType")
    return font
