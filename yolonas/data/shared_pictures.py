"""Finds pictures that two parts of a data set have in common, which makes a measured accuracy too good."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence

CHUNK = 1 << 20  # bytes in memory at a time
SAMPLE = 4096  # bytes from the middle of a file: the beginnings of pictures are often the same


def shared_pictures(
    train: Sequence[str | os.PathLike[str]], val: Sequence[str | os.PathLike[str]]
) -> list[tuple[str, str]]:
    """Pictures of `val` that are in `train` too: the same file, also by links, or files with the same bytes.

    Files are opened only where one of the other part has the same size. Empty ones and what cannot be read are skipped.

    Returns:
        A pair per path of `val`, in its order: the first path of `train` with that picture, and the path itself. A path
        that is listed twice counts once.
    """
    files = _files(val)
    sizes = {size for _, size in files.values()}
    by_file: dict[tuple[int, int] | str, str] = {}
    by_size: dict[int, list[str]] = {}
    for path, (file, size) in _files(train).items():
        if size in sizes:
            by_file.setdefault(file, path)
            by_size.setdefault(size, []).append(path)
    found = {path: by_file[file] for path, (file, _) in files.items() if file in by_file}
    unknown: dict[int, list[str]] = {}
    for path, (_, size) in files.items():
        if path not in found and size in by_size:
            unknown.setdefault(size, []).append(path)
    for size, paths in unknown.items():
        for some_train, some_val in _alike(by_size[size], paths, _sample):
            for (first, *_), same in _alike(some_train, some_val, _digest):
                found.update(dict.fromkeys(same, first))
    return [(found[path], path) for path in files if path in found]


def _files(paths: Sequence[str | os.PathLike[str]]) -> dict[str, tuple[tuple[int, int] | str, int]]:
    """What tells a file from all others and its size in bytes, by its path."""
    files: dict[str, tuple[tuple[int, int] | str, int]] = {}
    for path in dict.fromkeys(map(os.fspath, paths)):
        try:
            status = os.stat(path)  # noqa: PTH116 - half the time of a Path, of which there may be many
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode) and status.st_size:
            # Some file systems number no files.
            file = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
            files[path] = file, status.st_size
    return files


def _alike(
    train: Sequence[str], val: Sequence[str], key: Callable[[str], bytes]
) -> Iterator[tuple[list[str], list[str]]]:
    """The paths of both that have the same key, for each key that both have. Unreadable files are left out."""
    groups: tuple[dict[bytes, list[str]], dict[bytes, list[str]]] = ({}, {})
    for paths, group in zip((val, train), groups, strict=True):
        for path in paths:
            try:
                group.setdefault(key(path), []).append(path)
            except OSError:
                continue
    of_val, of_train = groups
    for value, paths in of_val.items():
        if value in of_train:
            yield of_train[value], paths


def _sample(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - as above
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, (size - SAMPLE) // 2))
        return file.read(SAMPLE)


def _digest(path: str) -> bytes:
    sha = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - as above
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.digest()
