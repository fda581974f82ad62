"""The table of a training, `results.csv`: a row per finished epoch. Numbers only; `plots.training` draws them."""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

from ..data.data_yaml import shown
from ..runs import write_file

MAX_TABLE_BYTES = 64 * 2**20

# The fields of `EpochRow` and how each is written, by the names that the columns have in the file.
COLUMNS = {
    "epoch": ("epoch", "d"),
    "time": ("time", ".3f"),
    "train/cls_loss": ("cls_loss", ".5g"),
    "train/iou_loss": ("iou_loss", ".5g"),
    "train/dfl_loss": ("dfl_loss", ".5g"),
    "train/loss": ("loss", ".5g"),
    "metrics/precision(B)": ("precision", ".5f"),
    "metrics/recall(B)": ("recall", ".5f"),
    "metrics/mAP50(B)": ("map50", ".5f"),
    "metrics/mAP50-95(B)": ("map", ".5f"),
    "lr": ("lr", ".6g"),
    "images_per_second": ("images_per_second", ".5g"),
}

_METRICS = ("precision", "recall", "map50", "map")
_NOT_NEGATIVE = ("time", "lr", "images_per_second")
_WHOLE = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """What one epoch of a training gave. A metric that is NaN, as of a split without boxes, becomes None.

    Raises:
        ValueError: a value is out of range.
    """

    epoch: int  # from 1
    time: float  # seconds since the start of the training, of all its parts together
    cls_loss: float  # the weighted terms, see `DetectionLoss`, and their sum: means over the epoch
    iou_loss: float
    dfl_loss: float
    loss: float
    precision: float | None = None  # 0..1; None: not measured in this epoch
    recall: float | None = None
    map50: float | None = None
    map: float | None = None  # mAP50-95
    lr: float  # of the epoch's last step
    images_per_second: float

    def __post_init__(self) -> None:
        if type(self.epoch) is not int or not 1 <= self.epoch < 10**9:
            raise ValueError(f"EpochRow: epoch must be a whole number of at least 1, got {shown(self.epoch)}")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            is_metric = field.name in _METRICS
            if is_metric and (value is None or value != value):
                number = None
            elif isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
                number = float(value)
                if is_metric and not 0 <= number <= 1:
                    raise ValueError(f"EpochRow: {field.name} must lie in 0..1 or be None, got {number}")
                if field.name in _NOT_NEGATIVE and number < 0:
                    raise ValueError(f"EpochRow: {field.name} must not be negative, got {number}")
            else:
                raise ValueError(f"EpochRow: {field.name} must be a finite number, got {shown(value)}")
            object.__setattr__(self, field.name, number)


def write_table(path: str | os.PathLike[str], rows: Sequence[EpochRow]) -> None:
    """Writes all rows, replacing what was there: also how a resume drops those after the epoch that it goes on from.

    Losses and speeds have 5 significant digits, metrics 5 decimals, learning rates 6 significant digits, and times
    milliseconds.

    Raises:
        ValueError: epochs that do not ascend, or times that go back.
    """
    for row, after in pairwise(rows):
        if reason := _disorder(row, after):
            raise ValueError(f"write_table: {reason}")
    lines = [",".join(COLUMNS), *(",".join(_cells(row)) for row in rows)]
    write_file(path, "".join(f"{line}\n" for line in lines).encode())


def read_table(path: str | os.PathLike[str]) -> list[EpochRow]:
    """Reads what `write_table` wrote.

    Raises:
        ValueError: the file is damaged or of another kind; the text names the line. OSError: it cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"read_table: {path} must be a file, got a folder or a device")
    with path.open("rb") as file:
        data = file.read(MAX_TABLE_BYTES + 1)
    if len(data) > MAX_TABLE_BYTES:
        raise ValueError(f"read_table: {path} must have at most {MAX_TABLE_BYTES} bytes, got more")
    # What is not UTF-8 becomes a mark that no cell may hold. Editors add the byte order mark and the "\r".
    header, *lines = data.decode("utf-8-sig", errors="replace").split("\n")
    if header.rstrip("\r") != ",".join(COLUMNS):
        raise _damaged(path, 1, f"must be {','.join(COLUMNS)}, got {shown(header)}", "is this the table of a training?")
    rows: list[EpochRow] = []
    for number, line in enumerate(lines, start=2):
        if number == len(lines) + 1:  # what stands after the last end of a line
            if line:
                raise _damaged(path, number, "must end with a line break, got a line that was cut off")
            break
        try:
            row = _parsed(line.rstrip("\r"))
        except ValueError as error:
            raise _damaged(path, number, f"{error}".removeprefix("EpochRow: ")) from None
        if rows and (reason := _disorder(rows[-1], row)):
            raise _damaged(path, number, reason)
        rows.append(row)
    if not lines:
        raise _damaged(path, 1, "must end with a line break, got a line that was cut off")
    return rows


def _damaged(path: Path, line: int, reason: str, cure: str = "mend it, or delete it and all after it") -> ValueError:
    return ValueError(f"read_table: {path}, line {line}: {reason}; {cure}")


def _disorder(row: EpochRow, after: EpochRow) -> str | None:
    """What is wrong with the order of two rows, if anything."""
    if after.epoch <= row.epoch:
        return f"epoch must ascend, got {after.epoch} after {row.epoch}"
    if after.time < row.time:
        return f"time must not go back, got {after.time:.3f} after {row.time:.3f} s"
    return None


def _cells(row: EpochRow) -> list[str]:
    values = [(getattr(row, field), how) for field, how in COLUMNS.values()]
    return ["" if value is None else format(value, how) for value, how in values]


def _parsed(line: str) -> EpochRow:
    cells = line.split(",")
    if len(cells) != len(COLUMNS):
        raise ValueError(f"must have {len(COLUMNS)} cells, got {len(cells)}")
    values: dict[str, float | None] = {}
    for (column, (field, how)), cell in zip(COLUMNS.items(), cells, strict=True):
        if field in _METRICS and not cell:
            values[field] = None
        elif how == "d" and _WHOLE.fullmatch(cell):
            values[field] = int(cell)
        elif how != "d" and _NUMBER.fullmatch(cell):
            values[field] = float(cell)
        else:
            raise ValueError(f"{column} must be a {'whole ' * (how == 'd')}number, got {shown(cell)}")
    return EpochRow(**values)  # type: ignore[arg-type]
