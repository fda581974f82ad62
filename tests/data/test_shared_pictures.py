"""Pictures that two parts of a data set have in common: by links, by bytes, and what is not opened for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from yolonas.data import shared_pictures as module
from yolonas.data.shared_pictures import CHUNK, SAMPLE, shared_pictures


def made(folder: Path, **contents: bytes) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return [str(folder / name) for name in contents]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are looked into, as often as they are."""
    names: list[str] = []

    def noted(real: Callable[[str], bytes], path: str) -> bytes:
        names.append(Path(path).name)
        return real(path)

    for name in ("_sample", "_digest"):
        monkeypatch.setattr(module, name, partial(noted, getattr(module, name)))
    return names


def test_nothing_is_shared_and_nothing_is_opened(tmp_path: Path, opened: list[str]) -> None:
    train = made(tmp_path / "train", a=b"1", b=b"22", c=b"22")
    val = made(tmp_path / "val", a=b"333", b=b"4444", c=b"333")
    assert shared_pictures(train, val) == []
    assert opened == []
    assert shared_pictures([], val) == shared_pictures(train, []) == shared_pictures([], []) == []


def test_the_same_bytes_under_another_name(tmp_path: Path, opened: list[str]) -> None:
    train = made(tmp_path / "train", a=b"1", b=b"22", c=b"55555", d=b"22")
    val = made(tmp_path / "val", e=b"33", f=b"22", g=b"1", h=b"666", i=b"22")
    assert shared_pictures(train, val) == [(train[1], val[1]), (train[0], val[2]), (train[1], val[4])]
    assert not {"c", "h"} & set(opened)


def test_the_same_file(tmp_path: Path, opened: list[str]) -> None:
    train = made(tmp_path / "train", a=b"11", b=b"22", c=b"33")
    val = tmp_path / "val"
    val.mkdir()
    (val / "link").symlink_to(train[1])
    os.link(train[2], val / "hard")
    (tmp_path / "folder").symlink_to(tmp_path / "train", target_is_directory=True)
    paths = [*map(str, (val / "link", val / "hard", tmp_path / "folder" / "a", tmp_path / "val/../train/a")), train[1]]
    pairs = shared_pictures(train, paths)
    assert pairs == [
        (train[1], paths[0]),
        (train[2], paths[1]),
        (train[0], paths[2]),
        (train[0], paths[3]),
        (train[1],) * 2,
    ]
    assert opened == []


def test_links_in_both_parts(tmp_path: Path) -> None:
    (first,) = made(tmp_path, a=b"11")
    for name in ("b", "c"):
        (tmp_path / name).symlink_to(first)
    assert shared_pictures([str(tmp_path / "b")], [tmp_path / "c"]) == [(str(tmp_path / "b"), str(tmp_path / "c"))]


def test_a_path_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    (train,) = made(tmp_path / "train", a=b"11")
    (val,) = made(tmp_path / "val", a=b"11")
    assert shared_pictures([train, train], [val, train, val]) == [(train, val), (train, train)]


def test_file_systems_that_number_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def without_number(path: str) -> os.stat_result:
        status = list(real(path))
        status[1] = 0
        return os.stat_result(status)

    train = made(tmp_path / "train", a=b"11", b=b"22")
    val = made(tmp_path / "val", a=b"33", b=b"22")
    (tmp_path / "link").symlink_to(train[0])
    monkeypatch.setattr(module.os, "stat", without_number)
    pairs = shared_pictures(train, [*val, str(tmp_path / "link")])
    monkeypatch.undo()
    assert pairs == [(train[1], val[1]), (train[0], str(tmp_path / "link"))]


@pytest.mark.parametrize("at", [0, SAMPLE, 3 * CHUNK // 2, 3 * CHUNK + 1], ids=["first", "early", "middle", "last"])
def test_large_files_that_differ_in_one_byte(tmp_path: Path, opened: list[str], at: int) -> None:
    data = bytes(3 * CHUNK + 2)
    other = bytearray(data)
    other[at] = 1
    train = made(tmp_path / "train", a=data)
    val = made(tmp_path / "val", b=bytes(other), c=data)
    assert shared_pictures(train, val) == [(train[0], val[1])]
    # The middle tells b from the others, so that it is not read to its end.
    times = 1 if at == 3 * CHUNK // 2 else 2
    assert sorted(opened) == ["a", "a", *["b"] * times, "c", "c"]


def test_what_cannot_be_read_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = made(tmp_path / "train", a=b"11", b=b"22", c=b"33", empty=b"")
    val = made(tmp_path / "val", a=b"11", b=b"22", c=b"33", empty=b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    others = [
        str(tmp_path / "missing"),
        str(tmp_path),
        str(tmp_path / "loop"),
        "a\0b",
        "http://host/a.jpg",
        "",
        "x" * 5000,
    ]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        others.append(str(tmp_path / "pipe"))
    real = module._digest

    def digest(path: str) -> bytes:
        if path in (train[0], val[1]):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(module, "_digest", digest)
    assert shared_pictures([*others, *train], [*others, *val]) == [(train[2], val[2])]


@pytest.mark.shared
def test_real_parts(shared: Path) -> None:
    train, val = (sorted((shared / "data/bccd").glob(f"images/{part}/*")) for part in ("train", "val"))
    if not train or not val:
        pytest.skip("no data/bccd with images/train and images/val")
    assert shared_pictures(train, val) == []
    assert shared_pictures(train, [*val, train[5]]) == [(str(train[5]), str(train[5]))]
