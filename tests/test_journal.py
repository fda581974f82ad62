"""The journal of an evaluation: what is written comes back, and what is damaged is dropped or named."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from yolonas.journal import Entry, Journal, JournalError, Skipped, is_complete, read_entries, read_header
from yolonas.records import ImageRecord, Truth, rounded_detections

ABOUT = {
    **{"names": ["a", "b"], "category_ids": [1, 2], "problems": [], "missing": 0},
    **dict.fromkeys(("data", "split", "labels", "model", "protocol"), ""),
}
HEADER = {"run": {"weights": "abc", "pictures": 4}, "shard": [1, 1], "planned": 4, "about": ABOUT}
FIRST = json.dumps({"format": 1, **HEADER}).encode() + b"\n"


def header(**changes: object) -> bytes:
    return json.dumps({"format": 1, **HEADER, **changes}).encode() + b"\n"


def entry(index: int, boxes: int = 2) -> Entry:
    random = np.random.default_rng(index)
    rows = np.concatenate([random.uniform(0, 50, (boxes, 2)), random.uniform(50, 99, (boxes, 2))], axis=1)
    rows = np.concatenate([rows, random.random((boxes, 1)), random.integers(0, 3, (boxes, 1))], axis=1)
    truth = Truth.of(random.random((3, 4)) * 77.7, [0, 2, 1], [1.5, 2.5, 1 / 3], [False, True, False])
    record = ImageRecord(
        index, f"ü{index}", f"ü {index}.jpg", (100, 90), truth, rounded_detections(rows), (1.0, 2.0, 3.25, 0.5)
    )
    return Entry(record, f"/pictures/ü {index}.jpg")


def assert_same(one: Entry | Skipped, other: Entry | Skipped) -> None:
    assert isinstance(one, Entry)
    assert isinstance(other, Entry)
    assert one.path == other.path
    a, b = one.record, other.record
    assert (a.index, a.image_id, a.file_name, a.size, a.ms) == (b.index, b.image_id, b.file_name, b.size, b.ms)
    np.testing.assert_array_equal(a.detections, b.detections, strict=True)
    for name in ("boxes", "classes", "areas", "crowd"):
        np.testing.assert_array_equal(getattr(a.truth, name), getattr(b.truth, name), strict=True)


def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "progress.ndjson"
    journal = Journal(path, HEADER)
    written = [entry(0), entry(1, boxes=0), Skipped(2, "c.jpg", "no such file"), entry(3)]
    journal.add(written[:2])
    journal.add(written[2:])
    assert not is_complete(path)
    assert journal.finish("partial-1-of-1.ndjson") == tmp_path / "partial-1-of-1.ndjson"
    read = list(read_entries(journal.path))
    assert is_complete(journal.path)
    assert read[2] == written[2]
    for index in (0, 1, 3):
        assert_same(read[index], written[index])
    assert read_header(journal.path) == {"format": 1, **HEADER}


@pytest.mark.parametrize("lost", [1, 7, 300])
def test_a_torn_line_is_dropped_and_written_over(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "progress.ndjson"
    journal = Journal(path, HEADER)
    journal.add([entry(0), entry(1)])
    journal.close()
    path.write_bytes(path.read_bytes()[:-lost])
    assert len(list(read_entries(path))) == 1
    journal = Journal(path, HEADER, fresh=False)
    journal.add([entry(1), entry(2)])
    journal.close()
    assert [item.record.index for item in read_entries(path)] == [0, 1, 2]


def test_a_torn_header_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "progress.ndjson"
    path.write_bytes(b'{"format":1,"ru')
    Journal(path, HEADER, fresh=False).close()
    assert read_header(path)["run"] == HEADER["run"]


def test_fresh_empties_the_file(tmp_path: Path) -> None:
    path = tmp_path / "progress.ndjson"
    journal = Journal(path, HEADER)
    journal.add([entry(0)])
    journal.close()
    Journal(path, HEADER).close()
    assert list(read_entries(path)) == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "does not begin with the header"),
        (b"[1]\n", "does not begin with the header"),
        (b'{"format":2}\n', "has format 2, this version of yolonas reads format 1"),
        (b"\xff\xfe\n", "not a line of JSON"),
        (b"[" * 100_000 + b"\n", "not a line of JSON"),
        (b'{"format":1,"run":[]}\n', "has a damaged header"),
        (header(shard=[1, 10**8]), "has a damaged header"),
        (header(shard=["a", "b"]), "has a damaged header"),
        (header(about={}), "has a damaged header"),
        (header(about={**ABOUT, "names": 5}), "has a damaged header"),
        (header(about={**ABOUT, "category_ids": ["a", 2]}), "has a damaged header"),
        (header(planned=True), "has a damaged header"),
        (FIRST + b'{"index":0}\n', "progress.ndjson:2 is damaged"),
        (FIRST + b"[]\n", "progress.ndjson:2 is damaged"),
        (FIRST + b'{"index":1e999,"path":"a"}\n', "progress.ndjson:2 is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "progress.ndjson"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=text):
        list(read_entries(path))


@pytest.mark.parametrize(
    "change", ['"detections":[[NaN,0,0,0,0,0]]', '"detections":[[1,2]]', '"ms":[0,0]', '"image_id":[]', '"size":[1]']
)
def test_values_out_of_range_are_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "progress.ndjson"
    journal = Journal(path, HEADER)
    journal.add([entry(0, boxes=0)])
    journal.close()
    line = path.read_text().splitlines()[1]
    path.write_text(FIRST.decode() + line[:-1] + f",{change}}}\n")  # of two values of one name the last one counts
    with pytest.raises(JournalError, match=":2 is damaged"):
        list(read_entries(path))


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_two_processes_cannot_write_to_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "progress.ndjson"
    journal = Journal(path, HEADER)
    journal.add([entry(0)])
    code = f"from pathlib import Path; from yolonas.journal import Journal; Journal(Path({str(path)!r}), {{}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is being written by another process" in done.stderr
    assert len(list(read_entries(path))) == 1
    journal.close()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    Journal(tmp_path / "a.ndjson", HEADER).close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").symlink_to("/dev/full")
    with pytest.raises(JournalError, match=r"a.ndjson cannot be written: No space left on device; .* with resume"):
        Journal(tmp_path / "a.ndjson", HEADER, fresh=False)


def test_detections_are_rounded_as_they_are_written() -> None:
    rows = np.array([[1.00049, 2.0, 11.10061, 22.0, 0.123456789, 5]], np.float32)
    np.testing.assert_array_equal(rounded_detections(rows), [[1.0, 2.0, 10.1, 20.0, 0.12346, 5.0]])
    assert rounded_detections(np.zeros((0, 6), np.float32)).shape == (0, 6)
