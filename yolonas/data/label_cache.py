"""The content of label files, kept in the user's cache folder so that a data set opens quickly the next time.

A file counts as unchanged while size, both times and inode are. The cache can be deleted at any time; one that is
broken or cannot be written only costs time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..folders import cache_folder
from ..runs import write_file
from .dataset import Problem
from .label_file import FileLabels

LOGGER = logging.getLogger("yolonas")

Stamp = tuple[int, int, int, int]  # size, mtime and ctime in ns, inode

FORMAT = 1  # of the file; raised too when parse_labels comes to another result
MAX_CACHE_BYTES = 4 * 2**30
_MAGIC = b"yolonas labels\n\0"
_HEAD = len(_MAGIC) + 32 + 6 * 8  # with the sha256 of what follows it, and the counts of everything
# Files changed less than this before they were read are not kept: the clock of the file system may be too coarse to
# show that they were changed once more.
SETTLED_NS = 2_000_000_000


def stamp_of(status: os.stat_result) -> Stamp:
    """What tells one state of a file from another. The ctime cannot be set by a program that sets the mtime back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)


class LabelCache:
    """The label files of one split: what was kept by the last run, and what will be kept for the next."""

    def __init__(self, split: str, folders: Iterable[str], count: int):
        """`folders` hold the label files, which are for `count` classes."""
        text = "\0".join([split, *sorted(set(folders))])
        self.path = cache_folder() / "labels" / f"{hashlib.sha256(os.fsencode(text)).hexdigest()[:32]}.labels"
        self._count = count
        self._old: dict[str, tuple[Stamp, FileLabels]] = {}
        self._new: dict[str, tuple[Stamp, FileLabels]] = {}
        self._changed = False
        try:
            self._old = _unpacked(self.path, count)
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever a damaged file makes numpy and json raise
            LOGGER.debug("label cache %s is not used: %s", self.path, error)

    def get(self, path: str, stamp: Stamp) -> FileLabels | None:
        """The content of a file that has not changed since."""
        found = self._old.get(path)
        if found is None or found[0] != stamp:
            return None
        self._new[path] = found
        return found[1]

    def put(self, path: str, stamp: Stamp, labels: FileLabels) -> None:
        """Keeps the content that a file had when its stamp was taken."""
        if time.time_ns() - stamp[2] >= SETTLED_NS:
            self._new[path] = stamp, labels
            self._changed = True

    def save(self) -> None:
        """Writes what `get` gave and `put` took, if that is anything new."""
        if not self._changed and len(self._new) == len(self._old):
            return
        try:
            write_file(self.path, _packed(self._new, self._count))
        except OSError as error:
            LOGGER.debug("label cache %s cannot be written: %s", self.path, error)


def _packed(content: dict[str, tuple[Stamp, FileLabels]], count: int) -> bytes:
    labels = [found for _, found in content.values()]
    problems = {
        number: [(problem.where, problem.what, problem.cost, problem.count) for problem in found.problems]
        for number, found in enumerate(labels)
        if found.problems
    }
    texts = b"\0".join(os.fsencode(path) for path in content), json.dumps(problems).encode()
    boxes = sum(len(found.boxes) for found in labels)
    parts = [
        np.array((FORMAT, count, len(labels), boxes, *map(len, texts)), np.int64).tobytes(),
        np.array([stamp for stamp, _ in content.values()], np.int64).tobytes(),
        np.array([len(found.boxes) for found in labels], np.int64).tobytes(),
        np.concatenate([np.zeros((0, 4)), *(found.boxes for found in labels)]).tobytes(),
        np.concatenate([np.zeros(0, np.int32), *(found.classes for found in labels)]).tobytes(),
        *texts,
    ]
    body = b"".join(parts)
    return _MAGIC + hashlib.sha256(body).digest() + body


def _unpacked(path: Path, count: int) -> dict[str, tuple[Stamp, FileLabels]]:
    """Raises any Exception for a file that is not as `_packed` writes it."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or not _HEAD <= status.st_size <= MAX_CACHE_BYTES:
        raise ValueError("no file of a possible size")
    with path.open("rb") as file:
        head = file.read(_HEAD)
        form, classes_then, files, total, *text_sizes = np.frombuffer(head[-48:], np.int64).tolist()
        if not head.startswith(_MAGIC) or (form, classes_then) != (FORMAT, count):
            return {}
        sizes = [files * 32, files * 8, total * 32, total * 4, *text_sizes]
        if min(sizes) < 0 or sum(sizes) != status.st_size - _HEAD:
            raise ValueError("wrong sizes")
        body = np.fromfile(file, np.uint8)
    if hashlib.sha256(head[-48:] + body.tobytes()).digest() != head[len(_MAGIC) : -48]:
        raise ValueError("damaged")
    parts = np.split(body, np.cumsum(sizes)[:-1])
    stamps, counts = parts[0].view(np.int64).reshape(-1, 4), parts[1].view(np.int64)
    boxes, classes = parts[2].view(np.float64).reshape(-1, 4), parts[3].view(np.int32)
    names = parts[4].tobytes().split(b"\0") if files else []
    problems = json.loads(parts[5].tobytes())
    if len(names) != files or (counts < 0).any() or (counts > total).any() or int(counts.sum()) != total:
        raise ValueError("wrong counts")
    if not ((boxes >= 0) & (boxes <= 1)).all() or not ((classes >= 0) & (classes < count)).all():
        raise ValueError("numbers out of range")
    ends = counts.cumsum().tolist()
    content = {}
    for number, (name, stamp, end, size) in enumerate(zip(names, stamps.tolist(), ends, counts.tolist(), strict=True)):
        part = slice(end - size, end)
        found = tuple(_problem(*fields) for fields in problems.get(str(number), ()))
        content[os.fsdecode(name)] = tuple(stamp), FileLabels(boxes[part], classes[part], found)
    return content


def _problem(where: Any, what: Any, cost: Any, count: Any) -> Problem:
    texts = isinstance(where, str) and isinstance(what, str)
    if not texts or cost not in ("picture", "label", "nothing") or type(count) is not int:
        raise ValueError("wrong problems")
    return Problem(where, what, cost, count)
