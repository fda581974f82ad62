"""The table of epochs: what is written comes back, and what is damaged is told with its line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolonas.metrics import DetMetrics
from yolonas.training import table
from yolonas.training.table import EpochRow, read_table, write_table

HEADER = (
    "epoch,time,train/cls_loss,train/iou_loss,train/dfl_loss,train/loss,metrics/precision(B),metrics/recall(B),"
    "metrics/mAP50(B),metrics/mAP50-95(B),lr,images_per_second"
)
PLAIN = EpochRow(
    epoch=1, time=12.3456, cls_loss=1.234567, iou_loss=0.7, dfl_loss=1234567.0, loss=1e-9, precision=0.123456,
    recall=1 / 3, map50=1, map=0.0, lr=0.0001234567, images_per_second=31.41592,
)  # fmt: skip
LINE = "1,12.346,1.2346,0.7,1.2346e+06,1e-09,0.12346,0.33333,1.00000,0.00000,0.000123457,31.416"
UNMEASURED = "2,20.000,1.2346,0.7,1.2346e+06,1e-09,,,,,0.000123457,31.416"


def rows_of(count: int) -> list[EpochRow]:
    unmeasured = {"precision": None, "recall": None, "map50": None, "map": None}
    rows = [replace(PLAIN, epoch=epoch, time=12.5 * epoch) for epoch in range(1, count + 1)]
    return [row if row.epoch % 2 else replace(row, **unmeasured) for row in rows]


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "results.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_table(path, [PLAIN, replace(rows_of(2)[1], time=20)])
    assert path.read_bytes().decode() == f"{HEADER}\n{LINE}\n{UNMEASURED}\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_round_trip(count: int, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_table(path, rows_of(count))
    rows = read_table(path)
    assert [row.epoch for row in rows] == list(range(1, count + 1))
    for row, original in zip(rows, rows_of(count), strict=True):
        for column, (field, _) in table.COLUMNS.items():
            value, wanted = getattr(row, field), getattr(original, field)
            assert value is None if wanted is None else value == pytest.approx(wanted, rel=5e-5, abs=5e-6), column
    before = path.read_bytes()
    write_table(path, rows)
    assert path.read_bytes() == before


def test_a_resume_drops_later_rows(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_table(path, rows_of(9))
    kept = [row for row in read_table(path) if row.epoch <= 4]
    write_table(path, [*kept, replace(kept[0], epoch=5, time=99)])
    assert [row.epoch for row in read_table(path)] == [1, 2, 3, 4, 5]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.csv"
    write_table(path, rows_of(3))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"write_table: epoch must ascend, got 2 after 2"):
        write_table(path, [rows_of(2)[1], rows_of(2)[1]])
    with pytest.raises(ValueError, match=r"write_table: time must not go back, got 1.000 after 12.500 s"):
        write_table(path, [rows_of(1)[0], replace(PLAIN, epoch=2, time=1)])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(path, rows_of(4))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_metrics_have_their_usual_names() -> None:
    metrics = [column for column in table.COLUMNS if column.startswith("metrics/")]
    assert metrics == DetMetrics.keys.fget(None)  # type: ignore[attr-defined]


def test_numbers_of_other_kinds(tmp_path: Path) -> None:
    row = replace(PLAIN, cls_loss=np.float32(0.5), loss=np.int64(3), time=2, map=math.nan, recall=np.float32("nan"))
    assert (row.cls_loss, row.loss, row.time, row.map, row.recall) == (0.5, 3.0, 2.0, None, None)
    assert type(row.cls_loss) is type(row.loss) is type(row.time) is float
    write_table(tmp_path / "a.csv", [row])
    assert read_table(tmp_path / "a.csv") == [read_table(tmp_path / "a.csv")[0]]
    assert read_table(tmp_path / "a.csv")[0].map is None


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"epoch": 0}, "epoch must be a whole number of at least 1, got 0"),
        ({"epoch": 2.0}, "epoch must be a whole number of at least 1, got 2.0"),
        ({"epoch": True}, "epoch must be a whole number of at least 1, got True"),
        ({"time": -1.0}, "time must not be negative, got -1.0"),
        ({"lr": -1e-9}, "lr must not be negative, got -1e-09"),
        ({"loss": math.nan}, "loss must be a finite number, got nan"),
        ({"iou_loss": math.inf}, "iou_loss must be a finite number, got inf"),
        ({"dfl_loss": None}, "dfl_loss must be a finite number, got None"),
        ({"cls_loss": "x" * 1000}, "cls_loss must be a finite number, got 'xxx"),
        ({"map": 1.01}, r"map must lie in 0..1 or be None, got 1.01"),
        ({"recall": -0.1}, r"recall must lie in 0..1 or be None, got -0.1"),
        ({"precision": math.inf}, "precision must be a finite number, got inf"),
        ({"map50": "0.5"}, "map50 must be a finite number, got '0.5'"),
    ],
)
def test_rows_check_their_values(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"EpochRow: {text}"):
        replace(PLAIN, **values)


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    """At every byte: either the whole lines before it are read, or the error names the line."""
    whole = f"{HEADER}\n{LINE}\n{UNMEASURED}\n"
    for length in range(len(whole)):
        path = written(tmp_path, whole[:length])
        if whole[:length].endswith("\n"):
            assert len(read_table(path)) == whole[:length].count("\n") - 1
        else:
            number = whole[:length].count("\n") + 1
            with pytest.raises(ValueError, match=rf"results\.csv, line {number}: "):
                read_table(path)


@pytest.mark.parametrize(
    ("old", "new", "number", "text"),
    [
        ("epoch", "Epoch", 1, r"must be epoch,time,.*is this the table of a training\?"),
        ("lr,", "", 1, "must be epoch,time"),
        (LINE, "", 2, "must have 12 cells, got 1"),
        (LINE, LINE + ",5", 2, "must have 12 cells, got 13"),
        (LINE, f"{LINE}\n{LINE}", 3, "epoch must ascend, got 1 after 1"),
        ("2,20.000", "2,12.0", 3, "time must not go back, got 12.000 after 12.346 s"),
        ("1,12.346", "one,12.346", 2, "epoch must be a whole number, got 'one'"),
        ("1,12.346", "1.0,12.346", 2, "epoch must be a whole number, got '1.0'"),
        ("1,12.346", "-1,12.346", 2, "epoch must be a whole number"),
        ("1,12.346", "0,12.346", 2, "epoch must be a whole number of at least 1, got 0"),
        ("1,12.346", f"{'9' * 10000},12.346", 2, "epoch must be a whole number"),
        ("12.346", "nan", 2, "time must be a number, got 'nan'"),
        ("12.346", "", 2, "time must be a number, got ''"),
        ("12.346", "1e999", 2, "time must be a finite number, got inf"),
        ("12.346", "1_0", 2, "time must be a number, got '1_0'"),
        ("12.346", " 1", 2, "time must be a number, got ' 1'"),
        ("12.346", "\u0661", 2, "time must be a number"),
        ("12.346", "=cmd()", 2, r"time must be a number, got '=cmd\(\)'"),
        ("12.346", "9" * 100000, 2, "time must be a finite number, got inf"),
        ("0.12346", "1.5", 2, r"precision must lie in 0\.\.1"),
        ("0.12346", "nan", 2, r"metrics/precision\(B\) must be a number, got 'nan'"),
        ("0.12346", '"0.12346"', 2, r"metrics/precision\(B\) must be a number"),
        ("0.7", "\0", 2, r"train/iou_loss must be a number, got '\\x00'"),
        ("0.7", "\x1b[31m0.7", 2, r"train/iou_loss must be a number, got '\\x1b\[31m0.7'"),
        ("31.416\n2", "31.416\n\n2", 3, "must have 12 cells, got 1"),
    ],
)
def test_a_damaged_file(old: str, new: str, number: int, text: str, tmp_path: Path) -> None:
    whole = f"{HEADER}\n{LINE}\n{UNMEASURED}\n"
    assert old in whole
    path = written(tmp_path, whole.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"read_table: .*results\.csv, line {number}: {text}") as caught:
        read_table(path)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1: must be epoch"):
        read_table(written(tmp_path, bytes(range(256)) * 100))
    with pytest.raises(ValueError, match=r"line 2: train/iou_loss must be a number"):
        read_table(written(tmp_path, f"{HEADER}\n{LINE}\n".encode().replace(b"0.7", b"\xff")))


def test_what_editors_add_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbf" + f"{HEADER}\r\n{LINE}\r\n".encode())
    assert [row.epoch for row in read_table(path)] == [1]


def test_what_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="must be a file, got a folder or a device"):
        read_table(tmp_path)
    with pytest.raises(ValueError, match="line 1: must be epoch"):
        read_table(written(tmp_path, ""))
    monkeypatch.setattr(table, "MAX_TABLE_BYTES", 100)
    with pytest.raises(ValueError, match=r"results\.csv must have at most 100 bytes, got more"):
        read_table(written(tmp_path, "x" * 101))
