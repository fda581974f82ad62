"""Zip files from strangers: what is in them comes out whole below its folder, or nothing does."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolonas.data import unpack as unpack_module
from yolonas.data.unpack import unpack

FILES = {
    "set/images/val/a.jpg": b"picture" * 1000,
    "set/labels/val/a.txt": b"0 0.5 0.5 0.1 0.1\n",
    "set/data.yaml": b"x",
}


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for what is unpacked; nothing temporary may stay in it."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    assert [entry.name for entry in folder.iterdir() if entry.name.startswith(".")] == []


def test_whole_archive(tmp_path: Path, place: Path):
    unpack(make_zip(tmp_path / "a.zip", FILES), place / "new" / "set")
    assert tree(place / "new" / "set") == {name.removeprefix("set/"): data for name, data in FILES.items()}


def test_files_without_a_common_folder(tmp_path: Path, place: Path):
    files = {"images/a.jpg": b"1", "b.yaml": b"2"}
    unpack(make_zip(tmp_path / "a.zip", files, zipfile.ZIP_STORED), place / "set")
    assert tree(place / "set") == files


def test_names_as_other_systems_write_them(tmp_path: Path, place: Path):
    files = {"images\\val\\a.jpg": b"1", "./b//c.txt": b"2", "é/ü 日本.txt": b"3", "images\\": b""}
    unpack(make_zip(tmp_path / "a.zip", files), place / "set")
    assert tree(place / "set") == {"images/val/a.jpg": b"1", "b/c.txt": b"2", "é/ü 日本.txt": b"3"}


def test_what_desktops_add_is_dropped(tmp_path: Path, place: Path):
    files = {**FILES, "__MACOSX/set/._a.jpg": b"x", "set/.DS_Store": b"x", "set/images/Thumbs.db": b"x"}
    unpack(make_zip(tmp_path / "a.zip", files), place / "set")
    assert sorted(tree(place / "set")) == ["data.yaml", "images/val/a.jpg", "labels/val/a.txt"]


def test_only_some_files(tmp_path: Path, place: Path):
    unpack(make_zip(tmp_path / "a.zip", FILES), place / "set", only=lambda name: name.endswith(".txt"))
    assert list(tree(place / "set")) == ["labels/val/a.txt"]
    with pytest.raises(ValueError, match="holds no files"):
        unpack(tmp_path / "a.zip", place / "other", only=lambda name: False)


def test_permissions_are_those_of_new_files(tmp_path: Path, place: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("run.sh")
        info.external_attr = (stat.S_IFREG | 0o6777) << 16
        archive.writestr(info, b"x")
    unpack(tmp_path / "a.zip", place / "set")
    (place / "plain").write_bytes(b"")
    assert (place / "set" / "run.sh").stat().st_mode == (place / "plain").stat().st_mode
    (place / "plain").unlink()


@pytest.mark.parametrize(
    "name",
    [
        "../a.txt",
        "x/../../a.txt",
        "/etc/a.txt",
        "C:/a.txt",
        "c:\\a.txt",
        "..\\a.txt",
        "\\\\host\\a.txt",
        "a\x1b[2J.txt",
        "",
    ],
)
def test_unsafe_names(tmp_path: Path, place: Path, name: str):
    make_zip(tmp_path / "a.zip", {"fine.txt": b"1", name: b"2"})
    with pytest.raises(ValueError, match=r"a\.zip holds the name .*, which is not safe to put below a folder"):
        unpack(tmp_path / "a.zip", place / "set")
    assert list(place.iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.zip", "place"]


def test_name_with_a_zero_byte(tmp_path: Path, place: Path):
    data = make_zip(tmp_path / "a.zip", {"a.txt_b": b"1"}).read_bytes().replace(b"a.txt_b", b"a.txt\0b")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ValueError, match="not safe"):
        unpack(tmp_path / "a.zip", place / "set")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices(tmp_path: Path, place: Path, kind: int):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("set/link")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("set/link/x", b"through the link")
    with pytest.raises(ValueError, match="holds 'set/link', a link or device; only files and folders"):
        unpack(tmp_path / "a.zip", place / "set")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("names", [("a.txt", "a.txt"), ("a.txt", "./a.txt"), ("a", "a/b"), ("a/b", "a")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice(tmp_path: Path, place: Path, names: tuple[str, str]):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, name)
    with pytest.raises(ValueError, match=r"a\.zip holds '.*' twice"):
        unpack(tmp_path / "a.zip", place / "set")
    assert list(place.iterdir()) == []


def test_name_that_no_file_system_takes(tmp_path: Path, place: Path):
    make_zip(tmp_path / "a.zip", {"x" * 5000: b"1"})
    with pytest.raises(ValueError, match="cannot be stored"):
        unpack(tmp_path / "a.zip", place / "set")
    assert list(place.iterdir()) == []


def test_encrypted(tmp_path: Path, place: Path):
    data = bytearray(make_zip(tmp_path / "a.zip", {"a.txt": b"1"}).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ValueError, match="is encrypted; unpack it by hand"):
        unpack(tmp_path / "a.zip", place / "set")


def test_other_ways_of_packing(tmp_path: Path, place: Path):
    make_zip(tmp_path / "a.zip", FILES, zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="packed with method 14, which is not known here; unpack it by hand"):
        unpack(tmp_path / "a.zip", place / "set")


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"not a zip" * 1000, b"PK\5\6" + bytes(18), b"\x1f\x8b" + bytes(99)])
def test_no_zip_file(tmp_path: Path, place: Path, data: bytes):
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.zip (is no whole zip file|holds no files)"):
        unpack(tmp_path / "a.zip", place / "set")


def test_no_file(tmp_path: Path, place: Path):
    for path in (tmp_path / "missing.zip", tmp_path):
        with pytest.raises(FileNotFoundError, match="archive must be a zip file"):
            unpack(path, place / "set")


def test_every_truncation_and_many_damages(tmp_path: Path, place: Path):
    whole = make_zip(
        tmp_path / "a.zip", {"s/a.txt": b"0 0.5 0.5 0.25 0.25\n" * 9, "s/b": bytes(range(50))}
    ).read_bytes()
    variants = [whole[:end] for end in range(len(whole))]
    for position in range(len(whole)):
        variants += [
            whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :] for flip in (1, 0x80, 0xFF)
        ]
    right, refused = 0, []
    for data in variants:
        (tmp_path / "a.zip").write_bytes(data)
        try:
            unpack(tmp_path / "a.zip", place / "set")
        except ValueError as error:
            refused.append(str(error))
            assert list(place.iterdir()) == []
        else:  # a byte that nobody reads, such as a time of day, or one of a name
            right += 1
            assert len(tree(place / "set")) in (1, 2)
            for path in place.rglob("*"):
                assert path.resolve().is_relative_to(place.resolve())
            (place / "set").rename(tmp_path / f"done-{right}")
    assert all("a.zip" in text for text in refused)
    assert len(refused) > len(variants) / 2


def test_announced_size_that_is_wrong(tmp_path: Path, place: Path):
    data = bytearray(make_zip(tmp_path / "a.zip", {"a": bytes(1000)}).read_bytes())
    central = data.index(b"PK\1\2")
    for size in (999, 1001, 10):
        data[central + 24 : central + 28] = struct.pack("<I", size)
        (tmp_path / "a.zip").write_bytes(data)
        with pytest.raises(ValueError, match="is damaged at 'a'"):
            unpack(tmp_path / "a.zip", place / "set")
        assert list(place.iterdir()) == []


def test_bomb(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    make_zip(tmp_path / "a.zip", {"a": bytes(3_000_000)})
    unpack(tmp_path / "a.zip", place / "fine")
    monkeypatch.setattr(unpack_module, "ANY_RATIO", 1 << 20)
    with pytest.raises(ValueError, match="would unpack to 3000000, as no data set does"):
        unpack(tmp_path / "a.zip", place / "set")
    monkeypatch.setattr(unpack_module, "MAX_RATIO", 10_000)
    unpack(tmp_path / "a.zip", place / "set")
    monkeypatch.setattr(unpack_module, "MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="would unpack to 3000000"):
        unpack(tmp_path / "a.zip", place / "other")


def test_bomb_of_files_that_share_their_bytes(tmp_path: Path, place: Path):
    data = make_zip(tmp_path / "a.zip", {"a": os.urandom(5000)}).read_bytes()
    start = data.index(b"PK\1\2")
    entry = data[start : data.index(b"PK\5\6")]
    count = 20
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, count * len(entry), start, 0)
    (tmp_path / "a.zip").write_bytes(data[:start] + entry * count + end)
    with pytest.raises(ValueError, match=r"twice|even packed"):
        unpack(tmp_path / "a.zip", place / "set")


def test_too_many_files(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    make_zip(tmp_path / "a.zip", {str(number): b"" for number in range(50)})
    monkeypatch.setattr(unpack_module, "MAX_FILES", 49)
    with pytest.raises(ValueError, match="holds 50 files; at most 49"):
        unpack(tmp_path / "a.zip", place / "set")
    monkeypatch.setattr(unpack_module, "MAX_DIRECTORY", 1000)
    with pytest.raises(ValueError, match=r"its list of files has .* bytes, at most 1000 are read"):
        unpack(tmp_path / "a.zip", place / "set")


def test_disk_without_room(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    make_zip(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(unpack_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"needs 0 MB in .*, where 0 MB are free"):
        unpack(tmp_path / "a.zip", place / "set")


def test_existing_folder_is_kept(tmp_path: Path, place: Path):
    make_zip(tmp_path / "a.zip", FILES)
    (place / "set").mkdir()
    unpack(tmp_path / "a.zip", place / "set")  # empty: nothing is lost
    (place / "set" / "data.yaml").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="set exists already"):
        unpack(tmp_path / "a.zip", place / "set")
    assert (place / "set" / "data.yaml").read_bytes() == b"mine"
    (place / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        unpack(tmp_path / "a.zip", place / "link")
    unpack(tmp_path / "a.zip", place / "set", replace=True)
    assert (place / "set" / "data.yaml").read_bytes() == b"x"


def test_replacing_fails_without_loss(tmp_path: Path, place: Path):
    unpack(make_zip(tmp_path / "a.zip", FILES), place / "set")
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-10])
    with pytest.raises(ValueError, match="no whole zip file"):
        unpack(tmp_path / "a.zip", place / "set", replace=True)
    assert len(tree(place / "set")) == 3


def test_check_of_the_folder(tmp_path: Path, place: Path):
    def refuse(folder: Path) -> None:
        assert (folder / "data.yaml").is_file()
        raise ValueError("no pictures in it")

    with pytest.raises(ValueError, match="no pictures in it"):
        unpack(make_zip(tmp_path / "a.zip", FILES), place / "set", check=refuse)
    assert list(place.iterdir()) == []


def test_interrupted(tmp_path: Path, place: Path):
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(make_zip(tmp_path / "a.zip", FILES), place / "set", check=interrupt)
    assert list(place.iterdir()) == []


def test_somebody_else_was_faster(tmp_path: Path, place: Path):
    def slow(folder: Path) -> None:
        (place / "set").mkdir()
        (place / "set" / "theirs").write_bytes(b"x")

    with pytest.raises(FileExistsError, match="exists already"):
        unpack(make_zip(tmp_path / "a.zip", FILES), place / "set", check=slow)
    assert list(tree(place / "set")) == ["theirs"]
