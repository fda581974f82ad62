"""Where the files of a run go: its folder, names that no two inputs share, and writing that leaves whole files only.

What is written, and when, is the business of the callers. Nothing here keeps state between runs.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np

RUNS = Path("runs", "detect")  # relative to the current folder
LONGEST_NAME = 180  # bytes; file systems take 255, and callers add numbers and suffixes

_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # device names on Windows


def run_folder(
    project: str | os.PathLike[str] | None = None,
    name: str | os.PathLike[str] | None = None,
    *,
    mode: str = "predict",
    exist_ok: bool = False,
) -> Path:
    """Creates and returns the folder of a new run: `runs/detect/predict`, then `predict-2`, `predict-3` and so on.

    A relative `project` stands under `runs/detect`, unless it begins with `runs`, `.` or `..`: then, like an absolute
    one, it is taken as it is. `name` replaces `mode` as the last part. `exist_ok=True` uses the folder that is there.
    Two processes that ask at the same moment get two folders.

    Raises:
        ValueError: `name` is empty or only dots.
        NotADirectoryError: a file stands where the folder should be and `exist_ok` is true.
        OSError: the folder cannot be created.
    """
    last = mode if name is None else os.fspath(name)
    if not last.strip(" ./\\"):
        raise ValueError(f"run_folder: name must be the name of a folder, got {last!r}")
    folder = project_folder(project) / last
    if exist_ok:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"run_folder: {folder} is a file; give another name or move it away")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    number, free = 1, folder
    while True:
        try:
            free.mkdir()
        except FileExistsError:
            number += 1
            free = folder.with_name(f"{folder.name}-{number}")
        else:
            return free


def project_folder(project: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds the run folders of a project; see `run_folder`."""
    if project is None or not os.fspath(project).strip():
        return RUNS
    text = os.fspath(project)
    folder = Path(text).expanduser()
    first = re.split(r"[/\\]", text, maxsplit=1)[0]
    return folder if folder.is_absolute() or first in (".", "..", RUNS.parts[0]) else RUNS / folder


class UniqueStems:
    """Stems for the output files of one run: the second input called `a` gets `a-2`. Safe to use from many threads.

    The result has no suffix, and may hold dots: add `".jpg"` to the text rather than using `Path.with_suffix`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: dict[str, int] = {}  # a name that is taken -> the number to try when it is asked for again

    def claim(self, stem: str) -> str:
        """Returns `stem`, or `stem-2`, `stem-3` ... where it was given out before. Unusable ones are made safe."""
        if not is_plain_name(stem):
            stem = safe_name(stem)
        with self._lock:
            number = self._next.get(os.path.normcase(stem), 1)
            chosen = stem if number == 1 else f"{stem}-{number}"
            while os.path.normcase(chosen) in self._next:
                number += 1
                chosen = f"{stem}-{number}"
            self._next[os.path.normcase(stem)] = number + 1
            self._next.setdefault(os.path.normcase(chosen), 2)
            return chosen


def is_plain_name(name: str) -> bool:
    """True where `name` can be one part of a path as it is: no separator, NUL, `.` or `..`, not too long."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        return False
    if os.name == "nt":
        return safe_name(name) == name
    try:
        return len(os.fsencode(name)) <= LONGEST_NAME
    except UnicodeEncodeError:
        return False


def safe_name(name: str) -> str:
    """Turns any text into one part of a path that every file system takes and that cannot leave its folder.

    Separators, control characters and the marks that Windows refuses become `_`; the rest, also non-ASCII text, stays.
    """
    name = _UNSAFE.sub("_", name).rstrip(" .").lstrip(" ")
    if len(name.encode()) > LONGEST_NAME:
        name = name.encode()[:LONGEST_NAME].decode(errors="ignore").rstrip(" .")
    if not name or _RESERVED.match(name):
        name = f"_{name}"
    return name


def write_file(path: str | os.PathLike[str], data: bytes | np.ndarray) -> None:
    """Writes `data` to `path`, replacing what was there. A reader sees the old file or the new one, never a part."""
    with whole_file(path) as file:
        file.write(memoryview(data))  # type: ignore[arg-type, unused-ignore]


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to that becomes `path`, replacing what was there, when the block ends without an exception.

    What the system says without the name of a file, as where a disk is full, gets that of `path`.
    """
    path = Path(path)
    with _temporary_beside(path) as temporary:
        try:
            with temporary.open("xb") as file:
                yield file
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = os.fspath(path)
            raise
        temporary.replace(path)


def write_new_file(path: str | os.PathLike[str], data: bytes | np.ndarray) -> Path:
    """Writes `data` to `path`, or to the next free of `stem-2.suffix`, `stem-3.suffix` ..., and returns the path taken.

    Existing files are never touched, whoever else writes to the folder.
    """
    path = Path(path)
    with _temporary_beside(path) as finished:
        finished.write_bytes(memoryview(data))
        target = path
        while True:
            try:
                _take_name(finished, target)
            except FileExistsError:
                target = _numbered(path, _free_number(lambda number: os.path.lexists(_numbered(path, number))))
            else:
                return target


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Encodes a `(H, W, 3)` BGR or `(H, W)` gray uint8 picture by the path's suffix and writes it as `write_file` does.

    Raises:
        ValueError: no encoder for the suffix, or the format cannot hold a picture of this size.
    """
    write_file(path, encode_image(image, Path(path).suffix))


def encode_image(image: np.ndarray, suffix: str) -> np.ndarray:
    """Returns the bytes of a picture file as a uint8 array; `suffix` such as `.jpg` names the format."""
    import cv2

    if not can_write_image(suffix):
        raise ValueError(f"encode_image: suffix must be one that can be written, got {suffix!r}; use .jpg or .png")
    try:
        done, data = cv2.imencode(suffix, image)
    except cv2.error as error:
        done, reason = False, f": {error.err or error}"
    else:
        reason = ""
    if not done:
        raise ValueError(f"encode_image: a picture of shape {image.shape} cannot be written as {suffix}{reason}")
    return data


def can_write_image(suffix: str) -> bool:
    """Whether pictures can be written in the format that this suffix, such as `.jpg`, names."""
    import cv2

    # OpenCV looks at the beginning only: it would take .jpg_large, and nothing could show that file
    return suffix.isascii() and suffix[1:].isalnum() and bool(cv2.haveImageWriter(f"picture{suffix}"))


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """A free name in the folder of `path`; what has it at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"  # its length does not grow with the target's name
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _take_name(finished: Path, target: Path) -> None:
    """Gives a finished file the name `target`, or raises FileExistsError."""
    try:
        os.link(finished, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name, then replace the empty file
        target.open("xb").close()
        finished.replace(target)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _free_number(taken: Callable[[int], bool]) -> int:
    """A number from 2 for which `taken` is false, in O(log n) looks: a video leaves very many files of one stem."""
    high = 2
    while taken(high):
        high *= 2
    low = high // 2  # taken, or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) else (low, middle)
    return high
