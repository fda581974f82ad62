"""Unpacks zip files from strangers: all of one or nothing, never outside its folder, never more than was announced.

Only plain files and folders come out, with the permissions that any new file gets. Other kinds of archives are left to
the user's own tools. Which archives there are, and where they go, is in `catalog`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runs import safe_name

MAX_FILES = 2_000_000
MAX_DIRECTORY = 128 << 20  # bytes of the list of files, which is held in memory
MAX_BYTES = 1 << 40
ANY_RATIO = 1 << 30  # bytes; what unpacks to less may be packed as tightly as it likes
MAX_RATIO = 100  # unpacked bytes per byte of the archive; pictures have 1, labels 3 to 10

# The others unpack to any size in one step.
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_DAMAGES = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError, ValueError)
_DROPPED = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|Thumbs\.db$)")  # what desktops add


def unpack(
    archive: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    only: Callable[[str], bool] | None = None,
    check: Callable[[Path], None] | None = None,
    replace: bool = False,
) -> None:
    """Unpacks a zip file to the new folder `target`. Where one folder holds all of it, that one becomes `target`.

    The files appear under a temporary name beside `target`, which is renamed at the end: whatever goes wrong, also
    Ctrl-C, leaves nothing behind.

    Args:
        target: must not exist, or be an empty folder, unless `replace` is true.
        only: called with each file's name in the archive; files for which it is false stay packed.
        check: called with the unpacked folder before it gets its name; raises ValueError if it is not what was wanted.
        replace: delete what `target` holds, once all is unpacked.

    Raises:
        ValueError: no zip file, or one that is damaged, encrypted, far larger than it looks, or that names files
            outside its folder, links, or one file twice.
        FileExistsError: something is in `target`.
        OSError: `archive` cannot be read or the folder of `target` cannot be written.
    """
    archive, target = Path(archive), Path(target)
    if not replace:
        _must_be_free(target)
    with _opened(archive) as opened:
        members = _checked_members(archive, opened, only)
        target.parent.mkdir(parents=True, exist_ok=True)
        _must_have_room(archive, target.parent, sum(info.file_size for info in members.values()))
        temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
        old = temporary.with_suffix(".old")
        try:
            temporary.mkdir()
            for name, info in members.items():
                _extract(archive, opened, info, name, temporary)
            folder = _inner_folder(temporary)
            if check is not None:
                check(folder)
            if replace and os.path.lexists(target):
                target.rename(old)
            try:
                folder.rename(target)
            except OSError:
                _must_be_free(target)  # somebody else was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    if not archive.is_file():
        raise FileNotFoundError(f"unpack: archive must be a zip file, got {str(archive)!r}, which is no regular file")
    with archive.open("rb") as file:
        try:
            opened = zipfile.ZipFile(_BoundedReads(file))
        except (*_DAMAGES, NotImplementedError) as error:
            raise ValueError(f"unpack: {archive} is no whole zip file: {error}") from None
        with opened:
            yield opened


class _BoundedReads:
    """A file of which nothing larger than a sane list of files is read at once, and nothing before its beginning."""

    def __init__(self, file: object) -> None:
        self._file = file

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset < 0:
            raise ValueError("it points to a place before its beginning")
        return self._file.seek(offset, whence)  # type: ignore[attr-defined, no-any-return]

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise ValueError(f"its list of files has {size} bytes, at most {MAX_DIRECTORY} are read")
        return self._file.read(size)  # type: ignore[attr-defined, no-any-return]


def _checked_members(
    archive: Path, opened: zipfile.ZipFile, only: Callable[[str], bool] | None
) -> dict[str, zipfile.ZipInfo]:
    """The files to unpack, by relative path with `/`. Folders come with their files; empty ones are left out."""
    infos = opened.infolist()
    if len(infos) > MAX_FILES:
        raise ValueError(f"unpack: {archive} holds {len(infos)} files; at most {MAX_FILES} are unpacked")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = _safe_path(archive, info)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"unpack: {archive} holds {name!r}, a link or device; only files and folders are unpacked")
        if kind == stat.S_IFDIR or info.filename.endswith(("/", "\\")) or _DROPPED.search(name):
            continue
        if only is not None and not only(name):
            continue
        if info.flag_bits & 0x1:
            raise ValueError(f"unpack: {archive} is encrypted; unpack it by hand and give the folder")
        if info.compress_type not in _METHODS:
            raise ValueError(
                f"unpack: {archive} is packed with method {info.compress_type}, which is not known here; "
                "unpack it by hand and give the folder"
            )
        if name in members:
            raise ValueError(f"unpack: {archive} holds {name!r} twice")
        members[name] = info
    _must_be_sane_in_size(archive, list(members.values()))
    if not members:
        raise ValueError(f"unpack: {archive} holds no files")
    return members


def _safe_path(archive: Path, info: zipfile.ZipInfo) -> str:
    name = info.filename.replace("\\", "/")  # some Windows tools write these
    parts = [part for part in name.split("/") if part not in ("", ".")]
    unsafe = (
        name.startswith("/")
        or re.match(r"[A-Za-z]:", name)
        or ".." in parts
        or "\0" in info.orig_filename
        or any(ord(letter) < 32 or ord(letter) == 127 or 0xD800 <= ord(letter) < 0xE000 for letter in name)
        or (os.name == "nt" and any(safe_name(part) != part for part in parts))
    )
    if unsafe or not (parts or name.endswith("/")):
        raise ValueError(
            f"unpack: {archive} holds the name {info.orig_filename[:200]!r}, which is not safe to put below a folder"
        )
    return "/".join(parts)


def _must_be_sane_in_size(archive: Path, infos: list[zipfile.ZipInfo]) -> None:
    size = archive.stat().st_size
    packed = sum(info.compress_size for info in infos)
    total = sum(info.file_size for info in infos)
    if packed > size:
        raise ValueError(f"unpack: {archive} has {size} bytes, but its files are said to have {packed} even packed")
    if total > MAX_BYTES or (total > ANY_RATIO and total > MAX_RATIO * size):
        raise ValueError(
            f"unpack: {archive} has {size} bytes and would unpack to {total}, as no data set does; "
            "if it is right, unpack it by hand and give the folder"
        )


def _must_have_room(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"unpack: {archive} needs {needed / 1e6:.0f} MB in {folder}, where {free / 1e6:.0f} MB are free",
        )


def _must_be_free(target: Path) -> None:
    if os.path.lexists(target) and not (target.is_dir() and not target.is_symlink() and not any(target.iterdir())):
        raise FileExistsError(f"unpack: {target} exists already; move it away or use what is in it")


def _extract(archive: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, folder: Path) -> None:
    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        output = path.open("xb")
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"unpack: {archive} holds {name!r} twice, or as a file and as a folder") from None
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            raise
        raise ValueError(f"unpack: {archive} holds {name[:200]!r}, which cannot be stored: {error.strerror}") from None
    with output:
        try:
            with opened.open(info) as packed:
                shutil.copyfileobj(packed, output, 1 << 20)  # gives at most the announced size, and checks the CRC
        except (*_DAMAGES, RuntimeError) as error:
            raise ValueError(f"unpack: {archive} is damaged at {name!r}: {error or 'its end is missing'}") from None
    if path.stat().st_size != info.file_size:
        raise ValueError(f"unpack: {archive} is damaged at {name!r}: {path.stat().st_size} of {info.file_size} bytes")


def _inner_folder(folder: Path) -> Path:
    """The folder that holds all the rest, if there is one."""
    entries = list(folder.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder
