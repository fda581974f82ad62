"""open_source: which files a source stands for, mixed lists, errors, order, flat memory and a prompt end."""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from made_files import encode, gif, picture, reader_threads, write_video

from yolonas import SourceError
from yolonas.data import Picture, open_source, sources
from yolonas.data.images import IMAGE_SUFFIXES
from yolonas.data.video import VIDEO_SUFFIXES


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture(seed=seed)))
    return path


def names(source: object) -> list[str]:
    """Names of the files that the source stands for; the read ones must be readable."""
    result = []
    for p in open_source(source):
        assert p.error is None, p
        if not result or result[-1] != Path(p.path).name:
            result.append(Path(p.path).name)
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for number, name in enumerate(
        ("b.png", "a.JPG", "c.tiff", ".hidden.png", "sub/d.png", "sub/deep/e.png", "sub/.x.png")
    ):
        save(folder / name, number)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "no_suffix").write_bytes(encode(picture()))
    (folder / "folder.png").mkdir()
    write_video(folder / "v.avi", 3)
    (folder / "g.gif").write_bytes(gif(2))
    return folder


def test_the_suffixes_are_those_of_the_contract() -> None:
    assert " ".join(sorted(IMAGE_SUFFIXES)) == (
        ".avif .bmp .dng .heic .heif .jp2 .jpeg .jpg .mpo .png .tif .tiff .webp"
    )
    assert " ".join(sorted(VIDEO_SUFFIXES)) == ".asf .avi .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv"


def test_file(folder: Path) -> None:
    for source in (folder / "b.png", str(folder / "b.png"), folder / "no_suffix", [folder / "b.png"]):
        (p,) = list(open_source(source))
        np.testing.assert_array_equal(p.image, picture())
        assert (p.index, p.total, p.kind, p.error, p.frame, p.frames, p.fps, p.tensor) == (1, 1, "image", *[None] * 5)
    opened = open_source(folder / "b.png")
    assert (opened.kind, opened.total, opened.streams) == ("files", 1, 1)
    (p,) = list(open_source((folder / "b.png").as_uri()))
    assert p.path == str(folder / "b.png")


def test_folder_is_sorted_and_not_searched_further(folder: Path) -> None:
    assert names(folder) == ["a.JPG", "b.png", "c.tiff", "g.gif", "v.avi"]
    assert open_source(folder).total == 5
    pictures = list(open_source(str(folder) + "/"))
    assert [p.index for p in pictures] == [1, 2, 3, 4, 4, 5, 5, 5]
    assert {p.total for p in pictures} == {5}
    assert [p.path for p in pictures][:2] == [str(folder / "a.JPG"), str(folder / "b.png")]


def test_globs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(f"{folder}/*.png") == ["b.png"]
    assert names(f"{folder}/**/*.png") == ["b.png", "d.png", "e.png"]
    assert names(folder / "**" / "*") == ["a.JPG", "b.png", "c.tiff", "g.gif", "d.png", "e.png", "v.avi"]
    assert names(f"{folder}/[ab].*") == ["a.JPG", "b.png"]
    save(folder / "odd[1]?.png")
    assert names(folder / "odd[1]?.png") == ["odd[1]?.png"]  # a name that exists is no pattern
    monkeypatch.chdir(folder)
    assert names("*.tiff") == ["c.tiff"]
    with pytest.raises(SourceError, match="must match pictures or videos, it matches nothing"):
        open_source("*.bmp")
    with pytest.raises(SourceError, match="it matches 1 names, none with the suffix of one"):
        open_source("*.txt")


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert names("~/b.png") == ["b.png"]
    assert names("~/*.png") == ["b.png"]
    with pytest.raises(SourceError, match="does not exist"):
        open_source("~nobody-of-this-name/b.png")


def test_links(folder: Path) -> None:
    (folder / "d.png").symlink_to(folder / "b.png")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    pictures = {Path(p.path).name: p.error for p in open_source(folder)}
    assert pictures["d.png"] is None
    assert pictures["nowhere.png"] == "no such file"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pictures/bb.png", r"pictures/bb.png does not exist; did you mean .*pictures/b.png\?"),
        ("pictures/a.jpg", r"did you mean .*a.JPG\?"),
        ("pictures/no_such_thing_at_all", r"no_such_thing_at_all does not exist$"),
        ("picture", r"did you mean .*pictures\?"),
        ("picturs/sub/d.png", r"d.png does not exist \(there is no folder .*picturs\); did you mean .*pictures\?"),
        ("x" * 300, "cannot be opened: file name too long"),
        ("a\0b", "must not be empty or hold null bytes"),
    ],
)
def test_missing_paths_get_a_hint(folder: Path, name: str, text: str) -> None:
    for source in (str(folder.parent / name), folder.parent / name):
        with pytest.raises(SourceError, match=text):
            open_source(source)


def test_folders_and_lists_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"must hold pictures or videos, none has a known suffix$"):
        open_source(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(SourceError, match=r"it has 1 sub-folders, '.*/\*\*/\*' reads those"):
        open_source(tmp_path)
    for text in ("", "\n\n", "# only a comment\n"):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(SourceError, match="must have at least one path"):
            open_source(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(bytes(range(256)))
    with pytest.raises(SourceError, match="must be a text file with one path per line"):
        open_source(tmp_path / "list.txt")


def test_text_list(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    save(work / "here.png")
    monkeypatch.chdir(work)
    path = folder / "list.txt"
    lines = [
        "# pictures",
        "",
        "b.png",
        "  sub/d.png  ",
        str(folder / "a.JPG"),
        "here.png",
        "gone.png",
        "v.avi",
        "s3://x/y.png",
    ]
    path.write_bytes("\r\n".join(["\ufeff" + lines[0], *lines[1:]]).encode())
    pictures = list(open_source(path))
    assert [(Path(p.path).name, p.index, p.error is None) for p in pictures] == [
        ("b.png", 1, True),
        ("d.png", 2, True),
        ("a.JPG", 3, True),
        ("here.png", 4, True),
        ("gone.png", 5, False),
        *[("v.avi", 6, True)] * 3,
        ("y.png", 7, False),
    ]
    assert pictures[4].error == f"no such file (line 7 of {path})"
    assert "address must start with one of http" in pictures[-1].error
    (folder / "picture.txt").write_bytes(encode(picture()))
    (p,) = list(open_source(folder / "picture.txt"))  # a picture, whatever its name
    assert p.error is None


def test_csv_list_reads_the_first_column(folder: Path) -> None:
    path = folder / "list.csv"
    path.write_text('path,label\nb.png,3\n"a.JPG",1\n\nc.tiff\n')
    assert names(path) == ["b.png", "a.JPG", "c.tiff"]


def test_names_that_are_not_utf8(folder: Path) -> None:
    name = os.fsdecode(b"latin-\xe4.png")
    try:
        save(folder / name)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    (folder / "list.txt").write_bytes(b"latin-\xe4.png\n")
    assert names(folder / "list.txt") == [name]
    assert name in names(folder)


def test_encoded_bytes_and_open_files(folder: Path) -> None:
    data = (folder / "b.png").read_bytes()
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), [data]):
        (p,) = list(open_source(source))
        np.testing.assert_array_equal(p.image, picture())
        assert p.path == "image0.jpg"
    with (folder / "b.png").open("rb") as file:
        (p,) = list(open_source(file))
        assert p.path == str(folder / "b.png")
    with (folder / "notes.txt").open() as file, pytest.raises(TypeError, match=r"binary mode, its read\(\) gave str"):
        open_source(file)
    (p,) = list(open_source(b"nonsense"))
    assert p.error.startswith("this is text, not a picture")
    assert open_source(data).kind == "memory"


def test_mixed_list(folder: Path) -> None:
    from PIL import Image

    array = picture(20, 30)
    source = open_source(
        [
            folder / "b.png",
            array,
            Image.fromarray(array),
            np.stack([array, array]),
            (folder / "b.png").read_bytes(),
            str(folder / "gone.png"),
            folder / "v.avi",
            f"{folder}/*.tiff",
            b"",
        ]
    )
    assert (source.kind, source.total) == ("files", 10)
    pictures = list(source)
    assert [p.index for p in pictures] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 9, 10]
    assert [p.error is None for p in pictures] == [True] * 6 + [False] + [True] * 4 + [False]
    assert pictures[1].path == "image1.jpg"
    assert pictures[4].path == "image4.jpg"
    assert pictures[6].error == f"{folder / 'gone.png'} does not exist"
    np.testing.assert_array_equal(pictures[2].image[..., ::-1], array)
    assert list(open_source((array, array)))[1].path == "image1.jpg"


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        (None, TypeError, "got NoneType"),
        ({}, TypeError, "got dict"),
        (1.5, TypeError, "got float"),
        ([["a"]], TypeError, "got list"),
        ([], ValueError, "list must have at least one member"),
        ("", SourceError, "must not be empty"),
        ("s3://bucket/a.jpg", SourceError, "address must start with one of http, https, rtsp"),
    ],
)
def test_what_cannot_be_a_source(source: object, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        open_source(source)


@pytest.mark.parametrize(
    "options", [{"vid_stride": 0}, {"vid_stride": 1.5}, {"batch": 0}, {"batch": True}, {"vid_stride": "2"}]
)
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(ValueError, match=f"source: {next(iter(options))} must be a whole number of at least 1"):
        open_source(picture(), **options)


def test_one_bad_file_among_many_does_not_stop_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        save(tmp_path / f"{number:03}.png", number)
    (tmp_path / "007.png").write_bytes(b"broken")
    (tmp_path / "030.png").write_bytes(b"")
    (tmp_path / "031.png").chmod(0)
    original = sources.decode

    def decode(item: sources.Item, stride: int) -> np.ndarray:
        if item.path.endswith("040.png"):
            raise ZeroDivisionError("a fault of ours")
        if item.path.endswith("041.png"):
            raise MemoryError
        return original(item, stride)

    monkeypatch.setattr(sources, "decode", decode)
    pictures = list(open_source(tmp_path, batch=4))
    assert [p.index for p in pictures] == list(range(1, 61))
    errors = {p.index - 1: p.error for p in pictures if p.error}
    assert set(errors) - {31} == {7, 30, 40, 41}  # root may read everything
    assert errors[40] == "ZeroDivisionError: a fault of ours"
    assert errors[41] == "not enough memory to decode it"
    for p in pictures:
        if p.error is None:
            np.testing.assert_array_equal(p.image, picture(seed=p.index - 1))


def test_a_thousand_pictures_in_flat_memory(tmp_path: Path) -> None:
    data = encode(np.zeros((480, 640, 3), np.uint8))  # 0.9 MB once decoded
    for number in range(1000):
        (tmp_path / f"{number:04}.png").write_bytes(data)
    tracemalloc.start()
    try:
        for count, p in enumerate(open_source(tmp_path, batch=4), 1):  # noqa: B007
            assert p.error is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 1000
    assert peak < 16e6  # 8 that wait, one in each thread, one here


def test_leaving_early_stops_the_threads(tmp_path: Path) -> None:
    for number in range(30):
        save(tmp_path / f"{number}.png")
    for p in open_source(tmp_path):
        assert isinstance(p, Picture)
        assert reader_threads()
        break
    assert reader_threads() == []
    iterator = iter(open_source(tmp_path))
    list(itertools.islice(iterator, 3))
    iterator.close()
    assert reader_threads() == []
    with open_source(tmp_path) as source:
        iterator = iter(source)
        next(iterator)
        begin = time.monotonic()
    assert time.monotonic() - begin < 1
    assert reader_threads() == []
    assert list(iterator) == []
    assert list(source) == []


def test_one_picture_starts_no_thread(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    for source in (path, [picture()] * 3):
        for _ in open_source(source):
            assert reader_threads() == []


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    for number in range(200):
        save(tmp_path / f"{number}.png")
    code = (
        "import sys, time\nfrom yolonas.data import open_source\n"
        "try:\n"
        "    for p in open_source(sys.argv[1]):\n"
        "        print('.', flush=True); time.sleep(0.1)\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background is started with the signal ignored; here it is meant to arrive.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == ".\n"
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    output, errors = process.communicate(timeout=20)
    assert time.monotonic() - begin < 5
    assert output.endswith("stopped\n")
    assert errors == ""
    assert process.returncode == 0


def test_python_ends_cleanly_with_an_open_source(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number}.jpg").write_bytes(encode(np.zeros((1000, 1500, 3), np.uint8), ".jpg"))
    video = write_video(tmp_path / "v.avi", 60, height=480, width=640)
    code = (
        "import sys\nfrom yolonas.data import open_source\n"
        "opened = [iter(open_source(name, batch=8)) for name in sys.argv[1:]]\n"
        "for each in opened: next(each)\n"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(video)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.shared
def test_the_folder_of_odd_files(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures = list(open_source(shared / "data" / "odd_images" / "images"))
    errors = sorted(Path(p.path).name for p in pictures if p.error)
    expected = ["empty.jpg", "text.jpg", "truncated.jpg", "truncated.png", "truncated_header.jpg"]
    assert [name for name in errors if name != "plain.avif"] == expected
    assert len({p.index for p in pictures}) == 51
    assert len(pictures) == 51 + 5  # the GIF has six frames
    assert capfd.readouterr().err == ""
