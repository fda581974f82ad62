"""Rows of numbers as a data frame, CSV or JSON. A number that does not exist is NaN, an empty field, or null."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def rounded(value: float, decimals: int) -> float:
    """NaN stays NaN."""
    return round(float(value), decimals)


def rows_to_df(rows: Sequence[Row], columns: Mapping[str, type]) -> Any:
    """A `polars.DataFrame` with these columns of str, int or float; needs `yolonas[dataframe]`."""
    try:
        import polars
    except ImportError as error:
        raise ImportError("to_df: polars is missing; pip install 'yolonas[dataframe]'") from error

    types = {str: polars.String, int: polars.Int64, float: polars.Float64}
    return polars.DataFrame(rows, schema={name: types[kind] for name, kind in columns.items()})


def rows_to_csv(rows: Sequence[Row], columns: Mapping[str, type]) -> str:
    """Text with a header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if _is_nan(value) else value for name, value in row.items()} for row in rows)
    return text.getvalue()


def rows_to_json(rows: Sequence[Row]) -> str:
    """A JSON list with an object per row."""
    plain = [{name: None if _is_nan(value) else value for name, value in row.items()} for row in rows]
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
