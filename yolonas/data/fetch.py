"""Brings archives of data sets into the data sets' folder: checked by SHA-256, unpacked, and only then in place.

Which archives there are is in `catalog`; how bytes come over the network is in `yolonas.download`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..download import DownloadError, download, file_sha256, locked
from ..folders import datasets_folder, is_offline
from ..runs import safe_name
from .unpack import unpack

MARKER = ".unpacked.json"  # in a folder that was unpacked from a user's zip file: from which one

logger = logging.getLogger("yolonas")


@dataclass(frozen=True)
class Archive:
    """A zip file that is published somewhere."""

    urls: tuple[str, ...]  # the same file, in the order in which they are tried
    sha256: str
    found_at: tuple[str, ...]  # any of these in the data set's folder tells that it was unpacked
    size: int | None = None  # bytes
    folder: str = ""  # below the data set's, to which it is unpacked
    only: tuple[str, ...] = ()  # the files in it that are needed; empty: all

    @property
    def file_name(self) -> str:
        return safe_name(self.urls[0].rpartition("/")[2])

    def is_in(self, folder: Path) -> bool:
        return any(is_filled(folder / name) for name in self.found_at)

    def needs(self, file: str) -> bool:
        return not self.only or file in self.only

    def check(self, unpacked: Path) -> None:
        """Raises ValueError if `unpacked`, which is to become `folder`, is not as it should be."""
        start = len(self.folder)
        inside = [f".{name[start:]}" if start else name for name in self.found_at if name.startswith(self.folder)]
        if not any(is_filled(unpacked / name) for name in inside):
            raise ValueError(f"data: {self.urls[0]} must hold {' or '.join(self.found_at[:3])}, which is missing")


def is_filled(path: Path) -> bool:
    """Whether there is a file, or a folder with something in it."""
    try:
        if path.is_file():
            return True
        with os.scandir(path) as entries:
            return any(True for _ in entries)
    except (OSError, ValueError):
        return False


def fetch(
    name: str,
    archives: tuple[Archive, ...],
    folder: Path,
    *,
    download: bool,
    instructions: str,
) -> None:
    """Completes the data set in `folder` from its archives; those that lie in the data sets' folder are taken first.

    Args:
        name: of the data set, as its user calls it.
        download: whether missing archives may come over the network.
        instructions: what a user can do instead, for the text of errors.

    Raises:
        FileNotFoundError: an archive is neither here nor could be fetched.
        ValueError: an archive is not what it should be.
        FileExistsError: the place of an archive's files is taken.
        OSError: the data sets' folder cannot be written.
    """
    kept = datasets_folder()
    missing = [archive for archive in archives if not archive.is_in(folder)]
    if not missing:
        return
    absent = [archive for archive in missing if not (kept / archive.file_name).is_file()]
    if absent and (not download or is_offline()):
        raise FileNotFoundError(_refusal(name, absent, instructions, download=download))
    kept.mkdir(parents=True, exist_ok=True)
    with locked(kept / f".{name}.lock"):
        for archive in missing:
            if archive.is_in(folder):
                continue  # another process has done it meanwhile
            path = kept / archive.file_name
            was_here = path.is_file()
            if was_here:
                _must_be(archive, path)
            else:
                _download(name, archive, path, instructions)
            logger.info("data: unpacking %s to %s", path, folder / archive.folder)
            unpack(path, folder / archive.folder, only=archive.needs, check=archive.check)
            if not was_here:
                path.unlink(missing_ok=True)


def unpack_once(archive: Path, name: str, check: Callable[[Path], None]) -> Path:
    """The folder in the data sets' folder with the files of a user's zip file, unpacked again if that has changed.

    Two archives of one name get two folders. `check` is called as `unpack` does.

    Raises:
        ValueError, FileExistsError, OSError: as `unpack` does.
    """
    kept = datasets_folder()
    found = archive.stat()
    origin = {"archive": str(archive.resolve()), "size": found.st_size, "mtime_ns": found.st_mtime_ns}
    folder = kept / name
    if os.path.lexists(folder) and _origin(folder).get("archive") != origin["archive"]:
        folder = kept / f"{name}-{hashlib.sha256(os.fsencode(archive.resolve())).hexdigest()[:8]}"
    if _origin(folder) == origin:
        return folder
    kept.mkdir(parents=True, exist_ok=True)
    with locked(kept / f".{folder.name}.lock"):
        if _origin(folder) == origin:
            return folder

        def finish(unpacked: Path) -> None:
            check(unpacked)
            (unpacked / MARKER).write_text(json.dumps(origin), encoding="utf-8")

        logger.info("data: unpacking %s to %s", archive, folder)
        is_ours = _origin(folder).get("archive") == origin["archive"]
        unpack(archive, folder, check=finish, replace=is_ours)
    return folder


def _origin(folder: Path) -> dict[str, object]:
    try:
        origin = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _must_be(archive: Archive, path: Path) -> None:
    """Refuses a file that lies where the archive should, but is another."""
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        raise ValueError(
            f"data: {path} must have {archive.size} bytes, got {size}; delete it, or put the right one there"
        )
    digest = file_sha256(path)
    if digest != archive.sha256.lower():
        raise ValueError(
            f"data: {path} must have the SHA-256 {archive.sha256}, got {digest}; delete it, or put the right one there"
        )


def _download(name: str, archive: Archive, path: Path, instructions: str) -> None:
    tried = []
    for url in archive.urls:
        try:
            logger.info("data: downloading %s to %s", url, path.parent)
            download(url, path, sha256=archive.sha256, size=archive.size)
            return
        except DownloadError as error:
            logger.info("data: %s %s", url, error)
            tried.append(f"  tried {url} {error}")
            if error.local:
                break
    raise FileNotFoundError("\n".join([f"data: {name!r} could not be fetched.", *tried, instructions]))


def _refusal(name: str, archives: list[Archive], instructions: str, *, download: bool) -> str:
    cures = "downloads are off (YOLONAS_OFFLINE is set)" if download else "download=True fetches"
    lines = [f"data: {name!r} is neither in {Path.cwd()} nor in {datasets_folder()}; {cures}:"]
    for archive in archives:
        size = "" if archive.size is None else f" ({archive.size / 1e6:.1f} MB)"
        lines.append(f"  {archive.urls[0]}{size}")
    return "\n".join([*lines, instructions])
