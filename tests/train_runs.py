"""What the tests of whole trainings share: a narrow S under the name of S, a few pictures, and what a run has left."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from golden_recipe import fill_
from quantized_networks import narrow
from val_data import NAMES, write_data

from yolonas import NAS, train_loop
from yolonas.checkpoint import checkpoint as reader
from yolonas.cli import main
from yolonas.config import VARIANTS
from yolonas.nn import YoloNAS

TESTS = Path(__file__).resolve().parent


@contextmanager
def narrow_s() -> Iterator[None]:
    """In the block, "s" is a narrow network of the same depth, also for files, and its memory is not counted first.

    An epoch takes half a second.
    """
    whole, count = VARIANTS["s"], train_loop.bytes_per_picture
    train_loop.bytes_per_picture = lambda model, size: 1
    VARIANTS["s"] = replace(narrow("s").variant, name="s")
    reader._shapes.cache_clear()
    try:
        yield
    finally:
        VARIANTS["s"], train_loop.bytes_per_picture = whole, count
        reader._shapes.cache_clear()


def write_trained(folder: Path, pictures: int = 8) -> tuple[Path, Path]:
    """A checkpoint of the "s" of the moment, and a data yaml of pictures that it finds something in."""
    model = NAS(fill_(YoloNAS("s", num_classes=len(NAMES)).eval()), names=NAMES)
    folder.mkdir(parents=True, exist_ok=True)
    return model.save(folder / "cells.safetensors"), write_data(folder / "data", model, pictures=pictures)


def left(folder: Path) -> dict[str, object]:
    """The files of a run but for pictures and settings: weights as bytes, and the table without times and speeds."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in (folder / "weights").iterdir()}
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return found | {
        "table": [{key: row[key] for key in row if key not in ("time", "images_per_second")} for row in rows]
    }


def assert_left_alike(folder: Path, other: Path) -> None:
    """To the last bit, without printing megabytes."""
    ours, theirs = left(folder), left(other)
    assert ours["table"] == theirs["table"]
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


if __name__ == "__main__":  # `yolonas` with `narrow_s`
    with narrow_s():
        sys.exit(main())
