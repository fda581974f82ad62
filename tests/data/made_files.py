"""Pictures and videos made on the spot, so that the tests of `yolonas.data` need no files from elsewhere."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import cv2
import numpy as np

# The package sets this when it opens a video; here the first video of the process is written, not read.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A smooth BGR picture whose four corners and three channels differ, so that turns and swaps show."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    blue = 255 * x / max(1, width - 1)
    green = 255 * y / max(1, height - 1)
    red = np.full_like(x, 40 + 10 * (seed % 20))
    return np.ascontiguousarray(np.stack([blue, green, red], axis=-1).round().astype(np.uint8))


def encode(image: np.ndarray, suffix: str = ".png", *options: int) -> bytes:
    found, data = cv2.imencode(suffix, image, options)
    assert found
    return data.tobytes()


def gif(frames: int, height: int = 48, width: int = 64, milliseconds: int = 80) -> bytes:
    """Frames of one grey each: 10, 20, 30, ..."""
    from PIL import Image

    images = [Image.new("L", (width, height), 10 * (number + 1)) for number in range(frames)]
    stream = io.BytesIO()
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return stream.getvalue()


def write_video(path: Path, frames: int, code: str = "MJPG", height: int = 48, width: int = 64) -> Path:
    """Frames of one grey each: 8, 16, 24, ... (modulo 256), at 10 frames a second."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 10.0, (width, height))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.full((height, width, 3), 8 * (number + 1) % 256, np.uint8))
    writer.release()
    return path


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two uint8 pictures of one shape."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("yolonas-")]
