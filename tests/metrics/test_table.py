"""Rows as data frame, CSV and JSON, with numbers that do not exist and names that want quoting."""

from __future__ import annotations

import builtins
import csv
import io
import json
import math
from typing import Any

import pytest

from yolonas.metrics.table import rows_to_csv, rows_to_df, rows_to_json

COLUMNS = {"name": str, "count": int, "part": float}
ROWS = [
    {"name": 'a, "b"\nc', "count": 3, "part": 0.5},
    {"name": "größe 🐈", "count": 0, "part": math.nan},
]


def test_csv() -> None:
    table = list(csv.reader(io.StringIO(rows_to_csv(ROWS, COLUMNS))))
    assert table == [["name", "count", "part"], ['a, "b"\nc', "3", "0.5"], ["größe 🐈", "0", ""]]
    assert rows_to_csv([], COLUMNS) == "name,count,part\n"


def test_json() -> None:
    assert json.loads(rows_to_json(ROWS)) == [ROWS[0], {**ROWS[1], "part": None}]
    assert "größe" in rows_to_json(ROWS)


def test_data_frame() -> None:
    polars = pytest.importorskip("polars")
    frame = rows_to_df(ROWS, COLUMNS)
    assert frame.schema == {"name": polars.String, "count": polars.Int64, "part": polars.Float64}
    assert math.isnan(frame["part"][1])


def test_without_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "polars":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"to_df: polars is missing; pip install 'yolonas\[dataframe\]'"):
        rows_to_df([], COLUMNS)
