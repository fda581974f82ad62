"""Live streams, one or several at once: which sources are such, and how they are opened together."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SourceError
from .items import reason_of
from .paths import expand_home, read_list, unknown_scheme
from .remote import LIVE_SCHEMES, WEB_SCHEMES, scheme_of, without_password
from .video import Clip, open_screen, open_stream, open_video

_SCREEN = re.compile(r"screen(\s+-?\d+)*", re.IGNORECASE)


@dataclass(frozen=True)
class Live:
    """One stream: an opened clip, or why it cannot be opened."""

    path: str
    clip: Clip | None
    error: str | None = None


def live_addresses(source: Any) -> list[str | int] | None:
    """The live streams that the source consists of, None where it consists of something else."""
    if isinstance(source, (list, tuple)):
        live = [_live_address(member) for member in source]
        if not any(address is not None for address in live):
            return None
        found = [
            address if address is not None else member if _is_web(member) else None
            for address, member in zip(live, source, strict=True)
        ]
        if None in found:
            other = source[found.index(None)]
            raise ValueError(
                f"source: list must hold either live streams or pictures and videos, got both, among them "
                f"{type(other).__name__} {str(other)[:80]!r}"
            )
        return [address for address in found if address is not None]
    if isinstance(source, (str, os.PathLike)) and os.fspath(source)[-8:].lower() == ".streams":
        path = expand_home(source)
        if path.is_file():
            return [_stream_of_line(line, path) for _, line in read_list(path)]
    address = _live_address(source)
    return None if address is None else [address]


def open_live(addresses: list[str | int], stride: int) -> list[Live]:
    """Opens the streams, all at the same time. Raises SourceError with all reasons where none can be opened."""
    with ThreadPoolExecutor(min(16, len(addresses))) as pool:  # a camera that is off costs seconds
        live = list(pool.map(lambda address: _open_one(address, stride), addresses))
    if all(stream.clip is None for stream in live):
        raise SourceError("source: " + "; ".join(f"{stream.path}: {stream.error}" for stream in live))
    return live


def _stream_of_line(line: str, file: Path) -> str | int:
    """A line of a `.streams` file: address, webcam number, or a video beside the file or in the working directory."""
    address = _live_address(line)
    if address is not None or scheme_of(line):
        return line if address is None else address
    beside = file.parent / expand_home(line)
    return str(beside) if beside.exists() else line


def _live_address(source: Any) -> str | int | None:
    if isinstance(source, (int, np.integer)) and not isinstance(source, bool):
        if source < 0:
            raise ValueError(f"source: webcam number must be at least 0, got {source}")
        return int(source)
    if not isinstance(source, str):
        return None
    if source.isascii() and source.isdecimal() and len(source) < 6:
        return int(source)
    if scheme_of(source) in LIVE_SCHEMES or _SCREEN.fullmatch(source) or source.startswith("/dev/video"):
        return source
    return None


def _is_web(source: Any) -> bool:
    return isinstance(source, str) and scheme_of(source) in WEB_SCHEMES


def _open_one(address: str | int, stride: int) -> Live:
    path = str(address) if isinstance(address, int) else without_password(address)
    try:
        if isinstance(address, int) or address.startswith("/dev/video"):
            return Live(path, open_stream(address, stride=stride))
        if scheme_of(address):
            if scheme_of(address) not in WEB_SCHEMES + LIVE_SCHEMES:
                raise SourceError(unknown_scheme(address))
            return Live(path, open_stream(address, stride=stride))
        if _SCREEN.fullmatch(address):
            return Live(path, open_screen(address, stride=stride))
        return Live(path, open_video(address, stride=stride))
    except Exception as error:
        return Live(path, None, reason_of(error))
