"""Which files a path stands for: a file, a folder, a glob or a list file. Nothing is opened but list files.

Folders and globs are sorted by name, leave out hidden files, and keep only names with the suffix of a picture or video.
Sub-folders are searched only where a glob says so (`**`).
"""

from __future__ import annotations

import csv
import difflib
import glob
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import SourceError
from .headers import HEAD_BYTES, sniff
from .images import IMAGE_SUFFIXES, read_file
from .remote import LIVE_SCHEMES, WEB_SCHEMES, scheme_of, without_password
from .video import VIDEO_SUFFIXES

LIST_SUFFIXES = frozenset((".txt", ".csv"))
MAX_LIST_BYTES = 256 * 2**20

_CSV_TITLES = frozenset(("path", "file", "filename", "file_name", "image", "image_path", "source", "url"))
_HINT_NAMES = 10_000  # names of a folder that are compared with a wrong one


@dataclass(frozen=True)
class Entry:
    """One file or address. `error` says why it cannot be had, where that is known already."""

    path: str
    error: str | None = None


def find_files(text: str, *, hint: bool = True) -> list[Entry]:
    """The files that `text` stands for.

    Raises:
        SourceError: nothing is there (with `hint`, names the nearest that is), an empty folder, or a list file without
            entries.
    """
    if not text.strip() or "\0" in text:
        raise SourceError(f"source: path must not be empty or hold null bytes, got {text!r}")
    if scheme_of(text) == "file":
        text = unquote(urlsplit(text).path)
    elif scheme_of(text):
        raise SourceError(f"source: {unknown_scheme(text)}")
    path = expand_home(text)
    try:
        if path.is_dir():
            return _folder(path)
        if path.exists():
            return _list_file(path) if _is_list(path) else [Entry(str(path))]
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise SourceError(
            f"source: {text[:200]!r} cannot be opened: {(error.strerror or str(error)).lower()}"
        ) from error
    if glob.has_magic(text):
        return _glob(str(path))
    raise SourceError(_missing(path, hint))


def expand_home(text: str | os.PathLike[str]) -> Path:
    """The path with a leading `~` replaced, or as it is where there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def unknown_scheme(address: str) -> str:
    """What to say of an address that no reader takes."""
    known = ", ".join((*WEB_SCHEMES, *LIVE_SCHEMES, "file"))
    return f"address must start with one of {known}, got {without_password(address)[:200]!r}"


def read_list(path: Path) -> list[tuple[int, str]]:
    """Line numbers and texts of a list file, without blank lines and comments (`#`). Of a .csv the first column.

    Raises SourceError for a file that is not text, is too large, or has no entries.
    """
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise SourceError(
                f"source: list {path} must have at most {MAX_LIST_BYTES} bytes, got {path.stat().st_size}"
            )
        # Names that are not UTF-8 survive as the file system gives them.
        text = read_file(str(path)).decode("utf-8-sig", "surrogateescape")
    except SourceError as error:
        raise SourceError(str(error) if str(error).startswith("source") else f"source: list {path}: {error}") from error
    if "\0" in text:
        raise SourceError(f"source: list {path} must be a text file with one path per line")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    if path.suffix.lower() == ".csv":
        lines = [(number, _first_cell(line)) for number, line in lines]
        if lines and lines[0][1].lower() in _CSV_TITLES:
            del lines[0]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise SourceError(f"source: list {path} must have at least one path, all its lines are blank or comments")
    return lines


def _is_list(path: Path) -> bool:
    # A picture named .txt is still a picture.
    if path.suffix.lower() not in LIST_SUFFIXES:
        return False
    try:
        return sniff(read_file(str(path), HEAD_BYTES)) in ("text", "empty", None)
    except SourceError as error:
        raise SourceError(f"source: list {path}: {error}") from error


def _first_cell(line: str) -> str:
    return next(iter(next(csv.reader([line]), [])), "").strip()


def _is_media(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


def _folder(path: Path) -> list[Entry]:
    with os.scandir(path) as entries:
        # A link to nowhere stays in, to be reported.
        names = sorted(entry.name for entry in entries if _is_media(entry.name) and not entry.is_dir())
    if not names:
        folders = sum(1 for child in path.iterdir() if child.is_dir())
        cure = f"; it has {folders} sub-folders, '{path}/**/*' reads those" if folders else ""
        raise SourceError(f"source: folder {path} must hold pictures or videos, none has a known suffix{cure}")
    return [Entry(str(path / name)) for name in names]


def _glob(pattern: str) -> list[Entry]:
    # Path.glob takes no absolute pattern and finds hidden files.
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    files = [name for name in found if _is_media(Path(name).name) and not Path(name).is_dir()]
    if not files:
        what = f"matches {len(found)} names, none with the suffix of one" if found else "matches nothing"
        raise SourceError(f"source: pattern {pattern!r} must match pictures or videos, it {what}")
    return [Entry(name) for name in files]


def _list_file(path: Path) -> list[Entry]:
    entries = []
    for number, line in read_list(path):
        if scheme_of(line):
            known = scheme_of(line) in WEB_SCHEMES + LIVE_SCHEMES
            entries.append(Entry(line, None if known else f"{unknown_scheme(line)} (line {number} of {path})"))
            continue
        name = expand_home(line)
        # Relative names are looked for beside the list first, then in the working directory.
        places = [name] if name.is_absolute() else [path.parent / name, name]
        try:
            found = next((place for place in places if place.exists()), None)
        except (OSError, ValueError):
            found = None
        if found is None:
            entries.append(Entry(line, f"no such file (line {number} of {path})"))
        else:
            entries.append(Entry(str(found)))
    return entries


def _missing(path: Path, hint: bool) -> str:
    """The text for a path that is not there: its first part that is missing, and the nearest name beside that."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    text = f"source: {path} does not exist"
    if missing != path:
        text += f" (there is no folder {missing})"
    if not hint:
        return text
    try:
        with os.scandir(missing.parent) as entries:
            names = sorted(entry.name for entry, _ in zip(entries, range(_HINT_NAMES), strict=False))
    except OSError:
        return text
    near = [name for name in names if Path(name).stem.lower() == missing.stem.lower()]
    near = near or difflib.get_close_matches(missing.name, names, 1)
    return f"{text}; did you mean {missing.parent / near[0]}?" if near else text
