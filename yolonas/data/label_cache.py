"""The content of label files, kept in the user's cache folder so that a data set opens quickly the next time.

A file counts as unchanged while size, both times and inode are. The cache can be deleted at any time; one that is
broken or cannot be written only costs time.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
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
        self.path = cache_folder() / "labels" / f"{hashlib.sha256(os.fsencode(text)).hexdigest()[:32]}.npz"
        self._count = count
        self._old: dict[str, tuple[Stamp, FileLabels]] = {}
        self._new: dict[str, tuple[Stamp, FileLabels]] = {}
        self._changed = False
        try:
            self._old = _unpacked(self.path, count)
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever a damaged file makes numpy and zipfile raise
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
    stream = io.BytesIO()
    np.savez(
        stream,
        head=np.array((FORMAT, count), np.int64),
        names=np.frombuffer(b"\0".join(os.fsencode(path) for path in content), np.uint8),
        stamps=np.array([stamp for stamp, _ in content.values()], np.int64).reshape(-1, 4),
        counts=np.array([len(found.boxes) for found in labels], np.int64),
        boxes=np.concatenate([np.zeros((0, 4)), *(found.boxes for found in labels)]),
        classes=np.concatenate([np.zeros(0, np.int32), *(found.classes for found in labels)]),
        problems=np.frombuffer(json.dumps(problems).encode(), np.uint8),
    )
    return stream.getvalue()


def _unpacked(path: Path, count: int) -> dict[str, tuple[Stamp, FileLabels]]:
    """Raises any Exception for a file that is not as `_packed` writes it."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if arrays["head"].tolist() != [FORMAT, count]:
            return {}
        names = arrays["names"].tobytes().split(b"\0") if len(arrays["names"]) else []
        stamps, counts, boxes, classes = (arrays[key] for key in ("stamps", "counts", "boxes", "classes"))
        problems = json.loads(arrays["problems"].tobytes())
    if stamps.shape != (len(names), 4) or counts.shape != (len(names),) or (counts < 0).any():
        raise ValueError("wrong counts of files")
    total = int(counts.sum())
    for array, shape, dtype in ((boxes, (total, 4), np.float64), (classes, (total,), np.int32)):
        if array.shape != shape or array.dtype != dtype:
            raise ValueError("wrong arrays")
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
