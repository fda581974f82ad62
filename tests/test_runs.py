from __future__ import annotations

import errno
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolonas.runs import (
    LONGEST_NAME,
    RUNS,
    UniqueStems,
    can_write_image,
    run_folder,
    safe_name,
    whole_file,
    write_file,
    write_image,
    write_new_file,
)

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_second_run_gets_a_number() -> None:
    assert [run_folder().as_posix() for _ in range(3)] == [
        "runs/detect/predict",
        "runs/detect/predict-2",
        "runs/detect/predict-3",
    ]
    assert run_folder(mode="val") == RUNS / "val"
    assert Path("runs/detect/predict-3").is_dir()


def test_a_gap_is_filled() -> None:
    for name in ("predict", "predict-3"):
        (RUNS / name).mkdir(parents=True)
    assert run_folder() == RUNS / "predict-2"


def test_exist_ok_uses_the_folder_again() -> None:
    first = run_folder(exist_ok=True)
    (first / "a.txt").write_text("kept")
    assert run_folder(exist_ok=True) == first
    assert (first / "a.txt").read_text() == "kept"


def test_a_file_in_the_way() -> None:
    RUNS.mkdir(parents=True)
    (RUNS / "predict").write_text("a file")
    assert run_folder() == RUNS / "predict-2"
    with pytest.raises(NotADirectoryError, match="is a file"):
        run_folder(exist_ok=True)


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        (None, "runs/detect/x"),
        ("", "runs/detect/x"),
        ("out", "runs/detect/out/x"),
        ("out/deep", "runs/detect/out/deep/x"),
        ("runs/mine", "runs/mine/x"),
        ("./out", "out/x"),
        (".", "x"),
    ],
)
def test_project(project: str | None, expected: str) -> None:
    assert run_folder(project, "x").as_posix() == expected
    assert Path(expected).is_dir()


def test_absolute_project(tmp_path: Path) -> None:
    assert run_folder(tmp_path / "Ergebnisse é", "x") == tmp_path / "Ergebnisse é" / "x"


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../.."])
def test_refused_run_names(name: str) -> None:
    with pytest.raises(ValueError, match="name must be the name of a folder"):
        run_folder(name=name)


def test_many_at_once_get_folders_of_their_own() -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: run_folder(), range(64)))
    assert len(set(folders)) == 64
    assert {folder.name for folder in folders} == {"predict", *(f"predict-{n}" for n in range(2, 65))}


def test_same_stems_get_numbers() -> None:
    stems = UniqueStems()
    assert [stems.claim(stem) for stem in ("a", "b", "a", "a", "a-2", "a", "a-2")] == [
        *("a", "b", "a-2", "a-3", "a-2-2", "a-4", "a-2-3")
    ]


def test_number_taken_by_another_input() -> None:
    stems = UniqueStems()
    assert [stems.claim(stem) for stem in ("a-2", "a", "a", "a")] == ["a-2", "a", "a-3", "a-4"]


def test_stems_keep_what_files_may_be_called() -> None:
    stems = UniqueStems()
    names = ["im.v1.2", "红细胞 é", "a:b?", ".hidden", "tail. ", "two\nlines"]
    expected = names if sys.platform != "win32" else [safe_name(name) for name in names]
    assert [stems.claim(name) for name in names] == expected


@pytest.mark.parametrize("stem", ["../../etc/passwd", "/abs", "..", "", "a\0b", "x" * 300, "\ud800"])
def test_unusable_stems_are_made_safe(stem: str, tmp_path: Path) -> None:
    claimed = UniqueStems().claim(stem)
    target = tmp_path / f"{claimed}.jpg"
    write_file(target, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_stems_from_many_threads() -> None:
    stems = UniqueStems()
    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(lambda number: stems.claim(f"s{number % 3}"), range(3000)))
    assert len(set(claimed)) == 3000
    assert {f"s{k}" for k in range(3)} < set(claimed)
    assert "s0-1000" in claimed


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("person", "person"),
        ("红细胞", "红细胞"),
        ("a/b\\c", "a_b_c"),
        ("../../up", ".._.._up"),
        ("..", "_"),
        (".", "_"),
        ("", "_"),
        ("   ", "_"),
        ("nul", "_nul"),
        ("COM1.txt", "_COM1.txt"),
        ("company", "company"),
        ('<>:"|?*', "_______"),
        ("tab\tnew\nline\0nul\x7f", "tab_new_line_nul_"),
        ("dots...", "dots"),
        ("\ud800x", "_x"),
    ],
)
def test_safe_name(name: str, expected: str) -> None:
    assert safe_name(name) == expected


@pytest.mark.parametrize("letter", ["x", "é", "红", "🙂"])
def test_safe_name_is_short_enough(letter: str, tmp_path: Path) -> None:
    name = safe_name(letter * 1000)
    assert LONGEST_NAME - 4 < len(name.encode()) <= LONGEST_NAME
    (tmp_path / name).mkdir()


def test_write_file_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "ä.bin"
    write_file(target, b"first")
    write_file(target, b"second")
    assert target.read_bytes() == b"second"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_write_file_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_file(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_interrupted_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*a.bin'"), whole_file(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_write_new_file_never_overwrites(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError("this file system has no hard links")

        monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "im.v1.jpg"
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda number: write_new_file(target, str(number).encode()), range(40)))
    assert len(set(written)) == 40
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {str(number).encode() for number in range(40)}
    assert {target, tmp_path / "im.v1-2.jpg"} < set(written)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".PNG"])
def test_write_image_round_trip(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"Bild 红 é{suffix}"
    write_image(target, PICTURE)
    read = cv2.imdecode(np.frombuffer(target.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read, PICTURE)


def test_write_image_takes_gray(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", PICTURE[:, :, 0])
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["picture", "picture.", "picture.xyz", "picture.mp4", "picture.红"])
def test_write_image_refuses_unknown_suffixes(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix must be one that can be written, got .*; use \.jpg or \.png"):
        write_image(tmp_path / name, PICTURE)
    assert not list(tmp_path.iterdir())


def test_write_image_too_large_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 70000, 3\) cannot be written as \.jpg"):
        write_image(tmp_path / "wide.jpg", np.zeros((1, 70000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_can_write_image() -> None:
    assert can_write_image(".jpg")
    assert can_write_image(".JPEG")
    assert not can_write_image("")
    assert not can_write_image(".mp4")
