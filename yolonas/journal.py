"""The journal of an evaluation: one line of JSON per picture, appended while it runs.

It is what `resume` goes on from, what the shards of a run hand to `merge`, and what the files at the end are made from,
so that no run keeps its detections in memory. A process that is killed leaves whole lines and at most one torn one,
which readers drop.
"""

from __future__ import annotations

import glob
import json
import logging
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .records import STAGES, ImageRecord, Truth

LOGGER = logging.getLogger("yolonas")

FORMAT = 1
RUNNING = "progress.ndjson"  # the name in the run folder until the run has ended
PARTS = "partial-*-of-*.ndjson"  # what the shards of a run leave
MAX_SHARDS = 100_000


def part_name(shard: Sequence[int]) -> str:
    """The name of the journal of a shard that has ended."""
    return f"partial-{shard[0]}-of-{shard[1]}.ndjson"


class JournalError(RuntimeError):
    """A journal that cannot be used: the text names the file, the reason and the cure."""


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be evaluated."""

    index: int
    path: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """One line: a picture that was evaluated, with the path it was read from."""

    record: ImageRecord
    path: str


class Journal:
    """A journal that is being written. Two processes cannot write to one: the file is locked.

    Args:
        path: a new file, or one to go on with.
        header: what identifies the run; written to a new file.
        fresh: True empties a file that is there.

    Raises:
        JournalError: another process writes to it.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, fresh: bool = True):
        self.path = path
        self._file = path.open("a+b")
        try:
            _lock(self._file, path)
            if fresh:
                self._file.truncate(0)
            self._drop_torn_line()
            if self._file.seek(0, os.SEEK_END) == 0:
                self._append([{"format": FORMAT, **header}])
        except BaseException:
            self.close()
            raise

    def add(self, entries: Sequence[Entry | Skipped]) -> None:
        """Appends the pictures of one batch; they are with the operating system when it returns."""
        self._append([_line_of(entry) for entry in entries])

    def finish(self, name: str | None = None) -> Path:
        """Marks the journal as complete, renames it where a name is given, and closes it."""
        self._append([{"done": True}])
        self.close()
        if name is not None:
            self.path = self.path.replace(self.path.with_name(name))
        return self.path

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, which was told before
            self._file.close()

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=True) + "\n" for line in lines)
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise JournalError(
                f"journal: {self.path} cannot be written: {error.strerror or error}; what is done so far is kept, "
                "the same command with resume goes on"
            ) from error

    def _drop_torn_line(self) -> None:
        """Cuts the file after its last whole line."""
        size = self._file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - (1 << 16))
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)


def read_header(path: Path) -> dict[str, Any]:
    """What identifies the run of a journal. Raises JournalError if the file is none."""
    first = next(_lines(path), None)
    if not isinstance(first, dict) or "format" not in first:
        raise JournalError(f"journal: {path} does not begin with the header of an evaluation")
    if first["format"] != FORMAT:
        raise JournalError(
            f"journal: {path} has format {first['format']!r}, this version of yolonas reads format {FORMAT}; "
            "run the evaluation again"
        )
    if not _is_header(first):
        raise JournalError(f"journal: {path} has a damaged header; run the evaluation again")
    return first


def read_entries(path: Path) -> Iterator[Entry | Skipped]:
    """The pictures of a journal, in the order in which they were written; those written twice come twice.

    Raises:
        JournalError: a line cannot be understood.
    """
    read_header(path)
    for number, line in enumerate(_lines(path), 1):
        if number == 1 or (isinstance(line, dict) and "done" in line):
            continue
        try:
            yield _entry_of(line)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise JournalError(f"journal: {path}:{number} is damaged ({error}); run the evaluation again") from error


def is_complete(path: Path) -> bool:
    """Whether the run of a journal has come to its end."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 64))
        return file.read().endswith(b'\n{"done":true}\n')


def interrupted_run(folder: Path, header: Mapping[str, Any]) -> Path | None:
    """The latest run in `folder`, `folder-2` ... that did not come to its end and is the one of `header`.

    A shard that has ended counts too: its files are made again, nothing is evaluated twice.

    Returns:
        Its run folder; None where there is none, and a warning says so.
    """
    reasons = []
    for path in _by_age(folder, (RUNNING, part_name(header["shard"]))):
        reason = _other_run(path, header)
        if reason is None:
            path.replace(path.with_name(RUNNING))
            return path.parent
        reasons.append(f"{path.parent} is another run: {reason}")
    told = f" ({'; '.join(reasons[:3])})" if reasons else ""
    LOGGER.warning("resume: no interrupted run of this kind in %s, starting anew%s", folder, told)
    return None


def _by_age(folder: Path, names: Sequence[str]) -> list[Path]:
    """Files of these names in `folder` and its numbered successors, the youngest first."""
    places = [folder, *folder.parent.glob(f"{glob.escape(folder.name)}-*")]
    found = []
    for path in (place / name for place in places for name in names):
        with suppress(OSError):  # another process may have ended meanwhile
            if stat.S_ISREG((status := path.stat()).st_mode):
                found.append((-status.st_mtime, path))
    return [path for _, path in sorted(found)]


def check_interrupted(folder: Path, header: Mapping[str, Any]) -> Path:
    """`folder`, if the run in it did not come to its end and is the one of `header`. Raises JournalError otherwise."""
    path = folder / RUNNING
    if not path.is_file():
        raise JournalError(f"resume: {folder} holds no interrupted run (no file {RUNNING})")
    reason = _other_run(path, header)
    if reason is not None:
        raise JournalError(f"resume: {folder} is another run: {reason}")
    return folder


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """What tells two runs apart, from the `run` part of their headers, in words; None where nothing does."""
    before, after = _flat(old), _flat(new)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return ", ".join(f"{key} was {before.get(key)!s:.40}, is {after.get(key)!s:.40}" for key in keys[:3]) or None


def _other_run(path: Path, header: Mapping[str, Any]) -> str | None:
    """Why a journal is not that of `header`; None where it is."""
    try:
        old = read_header(path)
    except JournalError as error:
        return str(error)
    return difference({**old["run"], "shard": old["shard"]}, {**header["run"], "shard": header["shard"]})


def _is_header(first: Mapping[str, Any]) -> bool:
    """Whether all is there that readers need, of the right kind."""
    about, shard = first.get("about"), first.get("shard")
    if not isinstance(first.get("run"), dict) or not isinstance(about, dict) or not isinstance(shard, list):
        return False
    numbers = [*shard, first.get("planned"), first["run"].get("pictures"), about.get("missing")]
    names, ids, problems = (about.get(name) for name in ("names", "category_ids", "problems"))
    texts = [about.get(name) for name in ("data", "split", "labels", "model", "protocol")]
    return (
        len(shard) == 2
        and all(type(number) is int for number in numbers)
        and 1 <= shard[0] <= shard[1] <= MAX_SHARDS
        and all(isinstance(some, list) for some in (names, ids, problems))
        and all(isinstance(text, str) for text in (*texts, *names, *problems))
        and all(type(number) is int for number in ids)
        and 1 <= len(names) == len(ids) == len(set(ids))
    )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value) if isinstance(value, Mapping) else {key: value})
    return flat


def _lines(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return  # torn
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise JournalError(f"journal: {path}:{number} is not a line of JSON: {error}") from error
    except OSError as error:
        raise JournalError(f"journal: {path} cannot be read: {error.strerror or error}") from error


def _line_of(entry: Entry | Skipped) -> dict[str, Any]:
    if isinstance(entry, Skipped):
        return {"index": entry.index, "path": entry.path, "skipped": entry.reason}
    record, truth = entry.record, entry.record.truth
    return {
        "index": record.index,
        "path": entry.path,
        "image_id": record.image_id,
        "file_name": record.file_name,
        "size": list(record.size),
        "truth": {
            "boxes": truth.boxes.tolist(),
            "classes": truth.classes.tolist(),
            "areas": truth.areas.tolist(),
            "crowd": truth.crowd.astype(int).tolist(),
        },
        "detections": record.detections.tolist(),
        "ms": [round(value, 3) for value in record.ms],
    }


def _entry_of(line: Any) -> Entry | Skipped:
    index, path = int(line["index"]), str(line["path"])
    if "skipped" in line:
        return Skipped(index, path, str(line["skipped"]))
    truth = line["truth"]
    detections = np.asarray(line["detections"], np.float64).reshape(-1, 6)
    height, width = line["size"]
    image_id = line["image_id"]
    if type(image_id) not in (int, str) or not np.isfinite(detections).all() or min(height, width) < 1:
        raise ValueError("values out of range")
    record = ImageRecord(
        index,
        image_id,
        str(line["file_name"]),
        (int(height), int(width)),
        Truth.of(truth["boxes"], truth["classes"], truth["areas"], truth["crowd"]),
        detections,
        tuple(float(value) for value in line["ms"]),
    )
    finite = all(map(math.isfinite, record.ms)) and np.isfinite(record.truth.boxes).all()
    finite = finite and np.isfinite(record.truth.areas).all()
    if len(record.ms) != len(STAGES) or not finite:
        raise ValueError("values out of range")
    return Entry(record, path)


def _lock(file: Any, path: Path) -> None:
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise JournalError(f"journal: {path} is being written by another process; wait for its end") from error
    except OSError as error:  # some network file systems have no locks
        LOGGER.debug("journal: %s cannot be locked: %s", path, error)
