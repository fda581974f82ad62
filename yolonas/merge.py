"""Joins the parts of an evaluation that ran as shards, here or on other machines, into the result of one run.

Parts hold labels and detections, so neither the pictures nor the network are needed; the mosaics are drawn where the
pictures can be read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .journal import PARTS, JournalError, difference, is_complete, read_header
from .runs import run_folder
from .val_report import Report, ReportOptions, clear_old_files, print_table, write_files

if TYPE_CHECKING:
    from .metrics import DetMetrics


def merge(parts: Sequence[str | os.PathLike[str]], options: ReportOptions | None = None) -> DetMetrics:
    """The metrics over all parts, and the files of a run, in a run folder of their own.

    Args:
        parts: the files `partial-i-of-n.ndjson` that `val(shard="i/n")` left, or folders with such files.
        options: what to write and where.

    Raises:
        JournalError: a part is missing, twice there, not complete, damaged, or of another run.
    """
    from .metrics import Evaluator

    options = options or ReportOptions()
    files = _files([parts] if isinstance(parts, str | os.PathLike) else parts)
    headers = [read_header(path) for path in files]
    _check(files, headers)
    about = headers[0]["about"]
    evaluator = Evaluator(dict(enumerate(about["names"])), about["category_ids"], evaluator=options.evaluator)
    report = Report(Path(), files, headers, [])
    order = []
    for entry in report.entries():
        try:
            evaluator.add(entry.record)
        except ValueError as error:
            raise JournalError(f"merge: {entry.path} in the parts cannot be used: {error}") from error
        order.append(entry.record.index)
    wanted = headers[0]["run"]["pictures"]
    found = len(order) + len(report.skipped)
    if found != wanted:
        raise JournalError(f"merge: the parts hold {found} of {wanted} pictures; run val with shard again")
    if not order:
        raise JournalError(f"merge: none of the {wanted} pictures could be used")
    folder = run_folder(options.project, options.name, mode="val", exist_ok=options.exist_ok)
    clear_old_files(folder)
    report = Report(folder, files, headers, sorted(order))
    metrics = report.finish(evaluator, options)
    if options.verbose:
        print(f"data: {about['data']} {about['split']}, {metrics.seen:,} pictures from {len(files)} parts")
        print(f"protocol: {metrics.protocol}")
        print_table(metrics)
    write_files(report, metrics, options)
    return metrics


def _files(parts: Sequence[str | os.PathLike[str]]) -> list[Path]:
    files: list[Path] = []
    for part in parts:
        path = Path(part).expanduser()
        if path.is_dir():
            inside = sorted(path.glob(PARTS))
            if not inside:
                raise JournalError(f"merge: {path} holds no part of an evaluation (no file {PARTS})")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise JournalError(f"merge: {path} does not exist")
    if not files:
        raise JournalError("merge: no parts given; name the run folders of the shards")
    return list(dict.fromkeys(path.resolve() for path in files))


def _check(files: Sequence[Path], headers: Sequence[dict[str, Any]]) -> None:
    by_number: dict[int, Path] = {}
    count = headers[0]["shard"][1]
    for path, header in zip(files, headers, strict=True):
        number, own_count = header["shard"]
        reason = difference(headers[0]["run"], header["run"])
        if own_count != count:
            reason = f"parts were {count}, are {own_count}"
        if reason is not None:
            raise JournalError(f"merge: {path} is of another run than {files[0]}: {reason}")
        if number in by_number:
            raise JournalError(f"merge: part {number} of {count} is there twice: {by_number[number]} and {path}")
        if not is_complete(path):
            raise JournalError(f"merge: {path} is not complete; start its run again with resume=True")
        by_number[number] = path
    missing = [number for number in range(1, count + 1) if number not in by_number]
    if missing:
        listed = ", ".join(map(str, missing[:10]))
        raise JournalError(
            f"merge: of {count} parts these are missing: {listed}; run val with shard='{missing[0]}/{count}'"
        )
