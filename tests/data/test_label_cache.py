"""The label cache: quick the second time, and never older than the files."""

from __future__ import annotations

import os
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
    (file,) = (tmp_path / "cache/labels").glob("*.npz")
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


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": np.full((2, 4), 2.0)},
        {"boxes": np.full((2, 4), np.nan)},
        {"boxes": np.zeros((3, 4))},
        {"boxes": np.zeros((2, 4), np.float32)},
        {"classes": np.array([0, 3], np.int32)},
        {"classes": np.array([0, -1], np.int32)},
        {"counts": np.array([1, 3, -2, 0], np.int64)},
        {"stamps": np.zeros((2, 4), np.int64)},
        {"names": np.zeros(0, np.uint8)},
        {"problems": np.frombuffer(b'{"0": [[1, 2, 3, 4]]}', np.uint8)},
        {"problems": np.frombuffer(b"[", np.uint8)},
        {"head": np.array([0, 3])},
        {"head": np.array(["a"], object)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_caches_with_a_wrong_content(
    yaml: Path, parsed: list[bytes], tmp_path: Path, change: dict[str, np.ndarray]
) -> None:
    first, _ = opened(yaml, parsed)
    (file,) = (tmp_path / "cache/labels").glob("*.npz")
    with np.load(file) as arrays:
        content = {key: arrays[key] for key in arrays.files}
    with file.open("wb") as stream:
        np.savez(stream, **{**content, **change})
    dataset, count = opened(yaml, parsed)
    assert count == 4
    assert dataset.digest() == first.digest()


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
