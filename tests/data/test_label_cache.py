"""The label cache: quick the second time, and never older than the files."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from made_labels import yolo_set

from yolonas.data import label_cache, label_file, yolo
from yolonas.data.dataset import DetectionDataset, open_dataset
from yolonas.runs import write_file

LINE = "0 0.5 0.5 0.1 0.1\n"


@pytest.fixture
def parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is parsed, in order. The cache is in `tmp_path/cache`, and files may be kept at once."""
    seen: list[bytes] = []

    def parse(data: bytes, count: int) -> label_file.FileLabels:
        seen.append(data)
        return label_file.parse_labels(data, count)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(label_cache, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(label_cache, "SETTLED_NS", -(2**62))
    monkeypatch.setattr(yolo, "parse_labels", parse)
    return seen


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    bad = LINE + "".join(f"9 0.5 0.5 0.1 0.{i + 1:02d}\n" for i in range(30))
    return yolo_set(tmp_path / "pets", {"a": LINE, "b": bad, "c": "", "d": None, "é\n": "\0"})


def opened(yaml: Path, parsed: list[bytes]) -> tuple[DetectionDataset, int]:
    parsed.clear()
    return open_dataset(yaml), len(parsed)


def test_the_second_time_nothing_is_parsed(yaml: Path, parsed: list[bytes]) -> None:
    first, count = opened(yaml, parsed)
    assert count == 4
    second, count = opened(yaml, parsed)
    assert count == 0
    assert second.digest() == first.digest() == open_dataset(yaml, cache=False).digest()
    assert second.problems == first.problems
    assert len(first.problems) == 23  # 20 lines, "and 10 more", a binary file and a missing one
    for one, other in zip(first.images, second.images, strict=True):
        assert one.labels.boxes.tobytes() == other.labels.boxes.tobytes()
        assert one.labels.classes.dtype == other.labels.classes.dtype == np.int32


def test_changes_are_noticed(yaml: Path, parsed: list[bytes]) -> None:
    folder = yaml.parent / "labels/val"
    opened(yaml, parsed)

    file = folder / "a.txt"
    before = file.stat()
    file.write_text(LINE.replace("0 0.5", "1 0.5"))  # of the same size, and with the old time
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    dataset, count = opened(yaml, parsed)
    assert (count, dataset.images[0].labels.classes.tolist()) == (1, [1])

    (folder / "d.txt").write_text(LINE)
    dataset, count = opened(yaml, parsed)
    assert (count, len(dataset.images[3].labels)) == (1, 1)

    file.unlink()
    dataset, count = opened(yaml, parsed)
    assert (count, len(dataset.images[0].labels)) == (0, 0)

    replacement = folder / "new"  # moved over another file
    replacement.write_text(LINE)
    replacement.replace(folder / "c.txt")
    assert opened(yaml, parsed)[1] == 1
    assert opened(yaml, parsed)[1] == 0


def test_another_class_count_is_another_content(yaml: Path, parsed: list[bytes]) -> None:
    opened(yaml, parsed)
    yaml.write_text("val: images/val\nnc: 10\n")
    dataset, count = opened(yaml, parsed)
    assert count == 4
    assert len(dataset.images[1].labels) == 31


def test_fresh_files_are_not_kept(yaml: Path, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_cache, "SETTLED_NS", 3600 * 10**9)
    opened(yaml, parsed)
    assert opened(yaml, parsed)[1] == 4


def test_broken_caches_are_replaced(yaml: Path, parsed: list[bytes], tmp_path: Path) -> None:
    opened(yaml, parsed)
    (file,) = (tmp_path / "cache/labels").glob("*.labels")
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"nonsense", whole[: len(whole) // 2], whole[:-1]]
    for _ in range(30):
        data = bytearray(whole)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(data))
    expected = open_dataset(yaml, cache=False)
    for data in damaged:
        file.write_bytes(data)
        assert open_dataset(yaml).digest() == expected.digest()
    file.write_bytes(b"nonsense")
    opened(yaml, parsed)
    assert opened(yaml, parsed)[1] == 0


def kept_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache/labels").glob("*.labels")
    return file


def forged(data: bytes, start: int, change: bytes) -> bytes:
    """A cache with other bytes from `start` on, counted behind the checksum, which is right."""
    body = bytearray(data[48:])
    body[start : start + len(change)] = change
    return data[:16] + hashlib.sha256(body).digest() + bytes(body)


FILES, BOXES = 4, 2  # in the cache of `yaml`
STAMPS_AT, COUNTS_AT = 48, 48 + 32 * FILES
BOXES_AT = COUNTS_AT + 8 * FILES
CLASSES_AT = BOXES_AT + 32 * BOXES
NAMES_AT = CLASSES_AT + 4 * BOXES


@pytest.mark.parametrize(
    ("start", "change"),
    [
        (BOXES_AT, np.full(8, 2.0)),
        (BOXES_AT, np.full(8, np.nan)),
        (CLASSES_AT, np.array([0, 3], np.int32)),
        (CLASSES_AT, np.array([0, -1], np.int32)),
        (COUNTS_AT, np.array([1, 3, -2, 0])),
        (COUNTS_AT, np.array([2**62, 2**62, 2**62, 2**62 + 2])),
        (COUNTS_AT, np.array([1, 2, 0, 0])),
        (NAMES_AT, np.zeros(1, np.uint8)),
        (0, np.array([2])),  # another format
        (8, np.array([4])),  # for another number of classes
        (16, np.array([2**40])),
        (16, np.array([2**61])),  # times 32 it is 0 again where numbers have 64 bits
        (16, np.array([-1])),
        (24, np.array([3])),
        (32, np.array([-(2**62)])),
        (40, np.array([2**62])),
    ],
)
def test_caches_with_a_wrong_content(
    yaml: Path, parsed: list[bytes], tmp_path: Path, start: int, change: np.ndarray
) -> None:
    first, _ = opened(yaml, parsed)
    file = kept_file(tmp_path)
    whole = file.read_bytes()
    assert forged(whole, 0, b"") == whole
    assert np.frombuffer(whole[48:96], np.int64)[:4].tolist() == [label_cache.FORMAT, 3, FILES, BOXES]
    file.write_bytes(forged(whole, start, change.tobytes()))
    dataset, count = opened(yaml, parsed)
    assert count == 4
    assert dataset.digest() == first.digest()


@pytest.mark.parametrize(
    "text", ["[", '{"0": [[1, 2, 3, 4]]}', '{"0": 5}', "[]", '{"0": [["", "", "much", 1]]}', "[" * 99]
)
def test_caches_with_wrong_problems(yaml: Path, parsed: list[bytes], tmp_path: Path, text: str) -> None:
    first, _ = opened(yaml, parsed)
    file = kept_file(tmp_path)
    whole = file.read_bytes()
    length = int(np.frombuffer(whole[88:96], np.int64)[0])
    file.write_bytes(forged(whole, len(whole) - 48 - length, text.encode().ljust(length)))
    dataset, count = opened(yaml, parsed)
    assert count == 4
    assert dataset.problems == first.problems


@pytest.mark.parametrize("kind", ["fifo", "folder", "sparse", "link"])
def test_things_in_the_place_of_the_cache(yaml: Path, parsed: list[bytes], tmp_path: Path, kind: str) -> None:
    opened(yaml, parsed)
    file = kept_file(tmp_path)
    head = file.read_bytes()[:96]
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to("/dev/zero")
    else:
        file.write_bytes(head)
        os.truncate(file, 2**40)
    start = time.perf_counter()
    assert opened(yaml, parsed)[1] == 4
    assert time.perf_counter() - start < 5
    assert opened(yaml, parsed)[1] == (4 if kind == "folder" else 0)


def test_a_folder_that_cannot_be_written(yaml: Path, parsed: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert opened(yaml, parsed)[1] == opened(yaml, parsed)[1] == 4


def test_nothing_is_written_again_without_need(
    yaml: Path, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(path: Path, data: bytes) -> None:
        written.append(path)
        write_file(path, data)

    monkeypatch.setattr(label_cache, "write_file", write)
    for _ in range(3):
        opened(yaml, parsed)
    assert len(written) == 1
