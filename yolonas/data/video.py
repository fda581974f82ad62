"""Moving pictures as a `Clip`: video files, animated GIFs, live streams, webcams and the screen.

A clip is opened at once, so that what cannot be opened fails here, and read by a generator that owns the decoder and
releases it. Nothing here reads ahead or drops frames: `readahead.py` does.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SourceError
from .arrays import bgr_from_array, bgr_from_pil
from .headers import HEAD_BYTES, sniff
from .images import check_pixels, quiet_opencv, read_file

# Lower case; only for picking files out of a folder.
VIDEO_SUFFIXES = frozenset(
    (".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
)

STREAM_TIMEOUT_MS = 10_000  # for opening a live stream, and for each of its frames
RECONNECTS = 3  # tries in a row before a live stream that broke off counts as ended
RECONNECT_SECONDS = 1.0  # pause before each of them

Numbered = tuple[int, np.ndarray]  # frame number from 1, and (H, W, 3) uint8 BGR

_log = logging.getLogger("yolonas")


@dataclass
class Clip:
    """An opened video or stream."""

    read: Callable[[threading.Event], Iterator[Numbered]]  # once; ends soon after the event is set; raises SourceError
    close: Callable[[], None] = lambda: None  # for a clip that was never read
    frames: int | None = None  # as promised by the file; None where it does not say and for live streams
    fps: float | None = None
    live: bool = False  # frames come at their own pace and are lost when nobody takes them
    notes: list[str] = field(default_factory=list)  # what was odd, known after reading


def open_video(path: str, *, stride: int = 1) -> Clip:
    """A video file. Of each `stride` frames the first is read.

    Raises SourceError, whose text is the reason alone.
    """
    _check_container(path)
    capture = _capture(
        str(Path(path).absolute()), "not a video that can be opened: damaged, cut off or of an unknown kind"
    )
    return _clip(capture, stride)


def open_gif(data: bytes, *, stride: int = 1) -> Clip | None:
    """An animated GIF, None for a GIF of one picture. Raises SourceError."""
    import io

    from PIL import Image

    check_pixels(int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little"))
    try:
        image = Image.open(io.BytesIO(data), formats=["GIF"])
        frames = image.n_frames
    except Exception as error:
        raise SourceError(f"the GIF is damaged: {error}") from error
    if frames < 2:
        return None
    milliseconds = image.info.get("duration", 0)
    clip = Clip(read=lambda stop: iter(()), close=image.close, frames=frames)
    clip.fps = 1000.0 / milliseconds if milliseconds else None
    clip.read = lambda stop: _gif_frames(image, frames, stride, stop, clip.notes)
    return clip


def open_stream(address: str | int, *, stride: int = 1) -> Clip:
    """A webcam by its number, or whatever OpenCV's FFmpeg opens by its address.

    A finite video behind a web address comes back as a clip that is not `live`. Raises SourceError, the reason alone.
    """
    reason = "the stream cannot be opened: nothing answers there, or nothing that is a video"
    if isinstance(address, int):
        reason = f"webcam {address} cannot be opened; is it there, and free for this user?"
    capture = _capture(address, reason, live=True)
    clip = _clip(capture, stride)
    if clip.frames is None or isinstance(address, int) or not address.lower().startswith("http"):
        clip.frames = None
        clip.live = True
        clip.read = lambda stop: _live_frames(capture, lambda: _capture(address, reason, live=True), stride, stop)
    return clip


def open_screen(text: str, *, stride: int = 1) -> Clip:
    """The screen: "screen", "screen N", "screen left top width height" or "screen N left top width height".

    N counts from 0; pixels are physical ones. Raises SourceError for another text, or where mss is not installed.
    """
    try:
        numbers = [int(word) for word in text.split()[1:]]
    except ValueError:
        numbers = [0] * 9
    if len(numbers) not in (0, 1, 4, 5) or (len(numbers) >= 4 and min(numbers[-2:]) < 1):
        raise SourceError(f"'screen' takes [number] [left top width height] in pixels, got {text!r}")
    try:
        import mss
    except ImportError as error:
        raise SourceError("reading the screen needs mss: pip install mss") from error
    number = numbers[0] if len(numbers) in (1, 5) else 0
    area = numbers[-4:] if len(numbers) >= 4 else None
    return Clip(read=lambda stop: _screen_frames(mss, number, area, stride, stop), live=True)


def _check_container(path: str) -> None:
    """FFmpeg follows playlists to other files and hosts, so a text file must not reach it under a video's name."""
    head = read_file(path, HEAD_BYTES)
    kind = sniff(head)
    if kind == "empty":
        raise SourceError("the file is empty")
    if kind == "text":
        raise SourceError(f"this is text, not a video: it starts with {head[:24]!r}")


def _capture(address: str | int, reason: str, *, live: bool = False) -> Any:
    # Must be set before OpenCV's first video; FFmpeg would write to the console what our errors say better.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    backends = cv2.videoio_registry.getStreamBackends()
    with quiet_opencv():
        try:
            if isinstance(address, int) or cv2.CAP_FFMPEG not in backends:
                capture = cv2.VideoCapture(address)
            elif live:
                limits = [
                    cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                    STREAM_TIMEOUT_MS,
                    cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                    STREAM_TIMEOUT_MS,
                ]
                capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
            else:  # not the image-sequence backend, which takes a "%" in a name for a pattern
                capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG)
        except (cv2.error, UnicodeError) as error:
            raise SourceError(reason) from error
    if not capture.isOpened():
        raise SourceError(reason)
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if width > 0 and height > 0:
        check_pixels(int(width), int(height))
    return capture


def _clip(capture: Any, stride: int) -> Clip:
    import cv2

    frames, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    clip = Clip(read=lambda stop: iter(()), close=capture.release)
    clip.frames = int(frames) if math.isfinite(frames) and 0 < frames < 2**31 else None
    clip.fps = float(fps) if math.isfinite(fps) and 0 < fps <= 1000 else None
    clip.read = lambda stop: _file_frames(capture, clip.frames, stride, stop, clip.notes)
    return clip


def _file_frames(
    capture: Any, promised: int | None, stride: int, stop: threading.Event, notes: list[str]
) -> Iterator[Numbered]:
    number = given = 0
    try:
        while not stop.is_set():
            if not capture.grab():
                break
            number += 1
            if (number - 1) % stride:
                continue
            found, image = capture.retrieve()
            if found and image is not None:
                given += 1
                yield number, bgr_from_array(image)
    finally:
        capture.release()
    if stop.is_set():
        return
    if given == 0:
        raise SourceError("the video has no frame that can be decoded")
    _note_missing(number, promised, notes)


def _note_missing(number: int, promised: int | None, notes: list[str]) -> None:
    """Counts in headers are often off by a few; a tenth is more than that."""
    if promised is not None and number < 0.9 * promised - 1:
        notes.append(
            f"only {number} of {promised} promised frames could be read; the file is probably cut off or damaged"
        )


def _gif_frames(image: Any, frames: int, stride: int, stop: threading.Event, notes: list[str]) -> Iterator[Numbered]:
    given = 0
    with image:
        for index in range(frames):
            if stop.is_set():
                return
            try:
                image.seek(index)
                pixels = None if index % stride else bgr_from_pil(image)
            except Exception as error:
                if given == 0:
                    raise SourceError(f"the GIF is damaged: {error}") from error
                notes.append(f"only {index} of {frames} frames could be read: {error}")
                return
            if pixels is not None:
                given += 1
                yield index + 1, pixels


def _live_frames(capture: Any, reopen: Callable[[], Any], stride: int, stop: threading.Event) -> Iterator[Numbered]:
    """Frames until the stream breaks off and cannot be opened again. Their numbers go on after a reconnection."""
    number = 0
    failures = 0
    try:
        while not stop.is_set():
            if capture is None or not capture.grab():
                if capture is not None:
                    capture.release()
                    capture = None
                if failures == RECONNECTS:
                    raise SourceError("the stream broke off" if number else "the stream gives no frames")
                failures += 1
                if stop.wait(RECONNECT_SECONDS):
                    return
                _log.warning("stream broke off after %d frames, opening it again (%d/%d)", number, failures, RECONNECTS)
                try:
                    capture = reopen()
                except SourceError:
                    capture = None
                continue
            failures = 0
            number += 1
            if (number - 1) % stride:
                continue
            found, image = capture.retrieve()
            if found and image is not None:
                yield number, bgr_from_array(image)
    finally:
        if capture is not None:
            capture.release()


def _screen_frames(
    mss: Any, number: int, area: list[int] | None, stride: int, stop: threading.Event
) -> Iterator[Numbered]:
    try:
        with mss.mss() as screen:  # belongs to the thread that made it
            if number < 0 or number + 1 >= len(screen.monitors):
                raise SourceError(f"there is no screen {number}, only {len(screen.monitors) - 1}")
            monitor = dict(screen.monitors[number + 1])  # 0 is all of them together
            if area is not None:
                left, top, width, height = area
                monitor = {
                    "left": monitor["left"] + left,
                    "top": monitor["top"] + top,
                    "width": width,
                    "height": height,
                }
            count = 0
            while not stop.is_set():
                pixels = np.asarray(screen.grab(monitor))
                count += 1
                if (count - 1) % stride == 0:
                    yield count, bgr_from_array(pixels)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"the screen cannot be read: {error}") from error
