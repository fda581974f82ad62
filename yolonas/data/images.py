"""Reads one encoded picture, from a file or from bytes, as BGR uint8 pixels the right way up.

What a picture is, is told by its content and never by its name. The pixels are those of `cv2.imread` with its default
flags, except where that is wrong or silent:

- 16-bit samples are scaled by 1/257 and rounded; float TIFFs of range 0..1 are scaled by 255, of range 0..255 taken as
  they are.
- EXIF orientation is applied for every format. Colour profiles are not: networks are trained on the stored values.
- An alpha channel is dropped and the colours below it are kept, since that is what training code sees of such files.
- The first picture of an animation or of a file with several pages is read (videos and animated GIFs: see `video.py`).
- A file that is cut off or fails its checksums is refused instead of being filled up with grey.
- A picture of more than `pixel_limit()` pixels is refused before anything is decoded.

OpenCV decodes; Pillow decodes what OpenCV cannot, and gives the reason where both fail.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SourceError
from .arrays import bgr_from_array, bgr_from_pil, uint8_from_deep
from .headers import Header, read_header

# Lower case; only for picking files out of a folder.
IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp")
)

DEFAULT_MAX_PIXELS = 250_000_000  # 750 MB as BGR
_SIZE_BYTES = 1 << 18  # of a file, in which its size is looked for: cameras put previews before it
_EXIF_ORIENTATION = 0x0112

MAX_FILE_BYTES = 2**31 - 1  # what OpenCV can take as one buffer

# Formats that OpenCV reads without their orientation, or only in some versions.
_PILLOW_FIRST = frozenset(("gif", "avif", "heif"))
# Pillow starts other programs for some formats (EPS), and takes anything for one without a mark (TGA). So only these
# are let through.
_PILLOW_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000"),
    *("MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP"),
)


def read_image(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> np.ndarray:
    """Decodes a picture file, or the bytes of one.

    Returns:
        `(H, W, 3)` uint8, BGR, C-contiguous, upright.

    Raises:
        SourceError: no such file, no picture, cut off, damaged, or too large; the text names the file and the reason.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode_image(bytes(source))
    path = os.fspath(source)
    try:
        return decode_image(read_file(path))
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """`(height, width)` of a picture file as `read_image` would give it, from its header where that is possible.

    Raises:
        SourceError: as `read_image`; the text is the reason alone.
    """
    from PIL import Image

    data = read_file(os.fspath(path), _SIZE_BYTES)
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP", "BMP"]) as image:
            width, height = image.size
            # Pillow decodes a whole PNG to find its EXIF data; few have any.
            exif = {} if image.format == "PNG" and b"eXIf" not in read_file(os.fspath(path)) else image.getexif()
            turned = exif.get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # another format, or a header that is not within the first bytes
        shape = decode_image(read_file(os.fspath(path))).shape
        return shape[0], shape[1]
    check_pixels(width, height)
    return (width, height) if turned else (height, width)


def decode_image(data: bytes) -> np.ndarray:
    """`read_image` for bytes. The text of a SourceError is the reason alone."""
    header, data = read_header(data)
    if header.width is not None and header.height is not None:
        check_pixels(header.width, header.height)
    if header.format == "dng":
        return _develop_raw(data)
    decoders = [_decode_opencv, _decode_pillow]
    if header.format in _PILLOW_FIRST or header.extended:
        decoders.reverse()
    reasons = {}
    for decode in decoders:
        try:
            return decode(data, header)
        except SourceError as error:
            reasons[decode] = str(error)
    raise SourceError(reasons[_decode_pillow])  # OpenCV does not say why


def read_file(path: str, limit: int | None = None) -> bytes:
    """Content of a regular file of at most `MAX_FILE_BYTES`, or its first `limit` bytes.

    The text of a SourceError is the reason alone.
    """
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise SourceError("this is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device could wait for ever
            raise SourceError("this is not a regular file")
        if limit is None and status.st_size > MAX_FILE_BYTES:
            raise SourceError(f"the file has {status.st_size} bytes, more than a picture may have ({MAX_FILE_BYTES})")
        with Path(path).open("rb") as file:
            return file.read() if limit is None else file.read(limit)
    except SourceError:
        raise
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise SourceError("no such file" if missing else (error.strerror or str(error)).lower()) from error
    except ValueError as error:  # a name with a null byte
        raise SourceError(f"no valid file name: {error}") from error


def pixel_limit() -> int:
    """Pixels that one picture may have: `YOLONAS_MAX_PIXELS`, else 250 million. Raises ValueError for a bad setting."""
    text = os.environ.get("YOLONAS_MAX_PIXELS", "")
    if not text:
        return DEFAULT_MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"YOLONAS_MAX_PIXELS must be a positive whole number, got {text!r}")
    return int(text)


def check_pixels(width: int, height: int) -> None:
    """Raises SourceError for a picture without pixels or with more than `pixel_limit()`."""
    if width < 1 or height < 1:
        raise SourceError(f"the picture is empty: its header says {width}x{height} pixels")
    if width * height > pixel_limit():
        raise SourceError(
            f"the picture has {width}x{height} pixels, more than the limit of {pixel_limit()}; "
            f"set YOLONAS_MAX_PIXELS to allow it"
        )


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_saved = 0


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Turns OpenCV's log off meanwhile: our own error says what is wrong, once, and not on the console."""
    global _quiet_users, _quiet_saved
    import cv2

    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # OpenCV 4 and 5
    with _quiet_lock:
        if _quiet_users == 0:
            _quiet_saved = log.getLogLevel()
            log.setLogLevel(0)
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0:
                log.setLogLevel(_quiet_saved)


def _decode_opencv(data: bytes, header: Header) -> np.ndarray:
    import cv2

    if header.width is None or header.height is None:
        _check_with_pillow(data, header)
    flags = cv2.IMREAD_COLOR
    if header.samples == "u16":
        flags |= cv2.IMREAD_ANYDEPTH
    elif header.samples == "float":
        flags = cv2.IMREAD_UNCHANGED
    try:
        if header.format in ("jpeg", "png"):  # checked well enough that OpenCV has nothing to complain about
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        else:
            with quiet_opencv():
                image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise SourceError(f"cannot be decoded: {error.err}") from error
    if image is None:
        raise SourceError("cannot be decoded")
    if image.dtype != np.uint8:
        image = uint8_from_deep(image)
    return bgr_from_array(image)


def _decode_pillow(data: bytes, header: Header) -> np.ndarray:
    with _pillow_open(data, header.format) as image:
        check_pixels(*image.size)
        try:
            return bgr_from_pil(image)
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(_pillow_reason(error, header.format)) from error


def _check_with_pillow(data: bytes, header: Header) -> None:
    with _pillow_open(data, header.format) as image:
        check_pixels(*image.size)


def _pillow_open(data: bytes, kind: str) -> Any:
    from PIL import Image

    Image.init()
    if kind == "heif" and "HEIF" not in Image.OPEN:
        try:
            import pillow_heif
        except ImportError as error:
            raise SourceError("reading HEIC and HEIF pictures needs pillow-heif: pip install pillow-heif") from error
        pillow_heif.register_heif_opener()
    try:
        return Image.open(io.BytesIO(data), formats=[name for name in _PILLOW_FORMATS if name in Image.OPEN])
    except Exception as error:  # the plugins raise many kinds for damaged files
        if kind == "avif" and "AVIF" not in Image.OPEN:
            raise SourceError(
                "reading AVIF pictures needs Pillow 11.3 or OpenCV 4.12: pip install -U pillow"
            ) from error
        raise SourceError(_pillow_reason(error, kind)) from error


def _pillow_reason(error: Exception, kind: str) -> str:
    from PIL import UnidentifiedImageError

    what = "file" if kind == "other" else f"{kind.upper()} file"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a format that can be read" if kind == "other" else f"the {what} is damaged"
    if "truncated" in str(error):
        return f"the {what} is truncated"
    return f"cannot be decoded: {type(error).__name__}: {error}"


def _develop_raw(data: bytes) -> np.ndarray:
    try:
        import rawpy
    except ImportError as error:
        raise SourceError("reading DNG raw photographs needs rawpy: pip install rawpy") from error
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            check_pixels(raw.sizes.width, raw.sizes.height)
            return np.ascontiguousarray(raw.postprocess()[..., ::-1])
    except rawpy.LibRawError as error:
        raise SourceError(f"cannot be decoded: {error}") from error
