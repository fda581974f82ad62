"""Videos, animated GIFs, webcams, streams and the screen."""

from __future__ import annotations

import logging
import re
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_files import encode, gif, picture, reader_threads, write_video

from yolonas import SourceError
from yolonas.data import open_source, video


def greys(source: object, **options: object) -> list[tuple[int | None, int]]:
    """Frame numbers and mean grey values."""
    result = []
    with open_source(source, **options) as opened:
        for p in opened:
            assert p.error is None
            assert p.kind in ("video", "stream")
            result.append((p.frame, round(float(p.image.mean()))))
    return result


@pytest.mark.parametrize(("suffix", "code"), [(".avi", "MJPG"), (".mp4", "mp4v"), (".mov", "MJPG"), (".mkv", "MJPG")])
def test_every_frame_of_a_video(suffix: str, code: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"clip{suffix}", 25, code)
    pictures = list(open_source(path))
    assert [p.frame for p in pictures] == list(range(1, 26))
    assert {(p.frames, p.fps, p.path, p.index, p.total, p.kind) for p in pictures} == {
        (25, 10.0, str(path), 1, 1, "video")
    }
    for number, p in enumerate(pictures, 1):
        assert p.image.shape == (48, 64, 3)
        assert p.image.flags.c_contiguous
        assert abs(p.image.mean() - 8 * number) < 6


@pytest.mark.parametrize(("stride", "expected"), [(1, 10), (2, 5), (3, 4), (10, 1), (99, 1)])
def test_vid_stride(stride: int, expected: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", 10)
    frames = [frame for frame, _ in greys(path, vid_stride=stride)]
    assert frames == list(range(1, 11, stride))
    assert len(frames) == expected
    animation = tmp_path / "clip.gif"
    animation.write_bytes(gif(10))
    assert [frame for frame, _ in greys(animation, vid_stride=stride)] == frames


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi", 3).rename(tmp_path / "a.jpg")
    write_video(tmp_path / "clip.mp4", 3, "mp4v").rename(tmp_path / "b.unknown")
    (tmp_path / "c.mp4").write_bytes(encode(picture()))
    (tmp_path / "d.jpg").write_bytes(gif(3))
    assert len(greys(tmp_path / "a.jpg")) == 3
    assert len(greys(tmp_path / "b.unknown")) == 3
    assert len(greys(tmp_path / "d.jpg")) == 3
    (p,) = list(open_source(tmp_path / "c.mp4"))
    assert p.kind == "image"
    np.testing.assert_array_equal(p.image, picture())


def test_names_that_ffmpeg_could_take_for_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("100%d.avi", "concat:a.avi", "naïve ☃ 'clip'.avi", "-i.avi", "[1].avi"):
        write_video(tmp_path / "plain.avi", 3).rename(tmp_path / name)
        assert len(greys(name)) == 3, name


def test_animated_gif_is_a_video_and_a_still_one_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(gif(6))
    for source in (path, path.read_bytes()):
        pictures = list(open_source(source))
        assert [(p.frame, p.frames, p.fps, p.kind) for p in pictures] == [(n, 6, 12.5, "video") for n in range(1, 7)]
        assert [int(p.image.mean()) for p in pictures] == [10, 20, 30, 40, 50, 60]
    path.write_bytes(gif(1))
    (p,) = list(open_source(path))
    assert (p.kind, p.frame, p.frames) == ("image", None, None)


def test_cut_gif_gives_its_frames_and_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 48, 64), np.uint8)
    from PIL import Image

    images = [Image.fromarray(frame) for frame in noise]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: len(data) * 7 // 10])
    with caplog.at_level(logging.WARNING, "yolonas"):
        pictures = list(source := open_source(tmp_path / "a.gif"))
    good = [p for p in pictures if p.error is None]
    assert 1 <= len(good) < 5
    assert source.notes or pictures[-1].error


def test_broken_videos_are_errors_with_a_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = write_video(tmp_path / "a.avi", 30).read_bytes()
    files = {
        "empty.mp4": (b"", "the file is empty"),
        "text.mp4": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "this is text, not a video"),
        "noise.mp4": (np.random.default_rng(0).bytes(5000), "not a video that can be opened"),
        "cut.mp4": (write_video(tmp_path / "a.mp4", 30, "mp4v").read_bytes()[:2000], "damaged, cut off"),
        "header.avi": (whole[: whole.index(b"movi") + 4], "no frame that can be decoded|opened"),
    }
    for name, (data, reason) in files.items():
        (tmp_path / name).write_bytes(data)
        (p,) = list(open_source(tmp_path / name))
        assert p.image is None
        assert p.path == str(tmp_path / name)
        assert re.search(reason, p.error), (name, p.error)
    assert capfd.readouterr().err == ""


def test_truncated_video_gives_its_frames_and_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.avi", 200, height=96, width=128)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.WARNING, "yolonas"), open_source(path) as source:
        pictures = list(source)
    assert [p.error for p in pictures] == [None] * len(pictures)
    assert 10 < len(pictures) < 180
    assert len(source.notes) == 1
    assert "of 200 promised frames could be read" in source.notes[0]
    assert source.notes[0] in caplog.text


def test_frames_are_limited_in_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLONAS_MAX_PIXELS", "100")
    (p,) = list(open_source(write_video(tmp_path / "a.avi", 3)))
    assert "64x48 pixels, more than the limit of 100" in p.error
    (p,) = list(open_source(gif(3)))
    assert "64x48 pixels" in p.error


def test_leaving_a_video_early_stops_its_thread(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 100)
    for p in open_source(path):
        assert p.frame == 1
        break
    iterator = iter(open_source(path))
    next(iterator)
    del iterator
    with open_source(path) as source:
        iterator = iter(source)
        next(iterator)
        source.close()
        assert list(iterator) == []
        assert list(source) == []


def test_a_source_can_be_read_twice(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "a.avi", 5))
    assert len(list(source)) == len(list(source)) == 5


# Live ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [99, "99", np.int64(99)])
def test_a_webcam_that_is_not_there(number: object, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match="webcam 99 cannot be opened; is it there, and free for this user"):
        open_source(number)
    assert capfd.readouterr().err == ""


def test_streams_that_do_not_answer(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match=r"rtsp://me:\*\*\*@127.0.0.1:9/x: the stream cannot be opened") as caught:
        open_source(["rtsp://me:secret@127.0.0.1:9/x", "rtmp://127.0.0.1:9/y"])
    assert "secret" not in str(caught.value)
    assert "rtmp://127.0.0.1:9/y" in str(caught.value)
    with pytest.raises(ValueError, match="webcam number must be at least 0, got -1"):
        open_source(-1)
    with pytest.raises(
        ValueError, match=r"either live streams or pictures and videos, got both, among them str 'a\.jpg'"
    ):
        open_source([0, "a.jpg"])
    with pytest.raises(TypeError, match="got bool"):
        open_source(True)
    assert capfd.readouterr().err == ""


def test_several_streams_give_one_picture_each_per_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.avi", 5)
    write_video(tmp_path / "b.avi", 3)
    lists = tmp_path / "cameras"
    lists.mkdir()
    write_video(lists / "c.avi", 4)
    (lists / "all.streams").write_text(f"# cameras\n\na.avi\n{tmp_path / 'b.avi'}\nc.avi\nrtsp://127.0.0.1:9/off\n")
    source = open_source(lists / "all.streams")
    assert (source.kind, source.streams, source.total) == ("stream", 4, None)
    pictures = list(source)
    assert [(p.index, p.frame) for p in pictures] == [
        (4, None),
        *[(i, n) for n in (1, 2, 3) for i in (1, 2, 3)],
        *[(i, 4) for i in (1, 3)],
        (1, 5),
    ]
    assert "cannot be opened" in pictures[0].error
    assert {p.kind for p in pictures} == {"stream"}
    assert {p.total for p in pictures} == {4}


class FakeCapture:
    """A camera of numbered grey frames, which breaks off after `frames` of them."""

    seconds = 0.0

    def __init__(self, frames: int) -> None:
        self.left, self.number, self.released = frames, 0, False

    def grab(self) -> bool:
        time.sleep(self.seconds)
        self.left -= 1
        self.number += 1
        return self.left >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((4, 6, 3), self.number % 256, np.uint8)

    def get(self, key: int) -> float:
        return {cv2.CAP_PROP_FRAME_WIDTH: 6, cv2.CAP_PROP_FRAME_HEIGHT: 4, cv2.CAP_PROP_FPS: 30}.get(key, -1)

    def isOpened(self) -> bool:
        return True

    def release(self) -> None:
        self.released = True


def test_a_camera_that_breaks_off_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "RECONNECT_SECONDS", 0.0)
    captures = [FakeCapture(3), FakeCapture(2)]
    used = []

    def capture(address: object, reason: str, *, live: bool = False) -> FakeCapture:
        if len(used) == len(captures):
            raise SourceError(reason)
        used.append(captures[len(used)])
        return used[-1]

    monkeypatch.setattr(video, "_capture", capture)
    source = open_source(0, stream_buffer=True)
    pictures = list(source)
    assert [p.frame for p in pictures] == [1, 2, 3, 4, 5, None]
    assert [p.fps for p in pictures[:-1]] == [30.0] * 5
    assert pictures[-1].error == "the stream broke off"
    assert (source.kind, source.total, pictures[0].path, pictures[0].kind) == ("stream", None, "0", "stream")
    assert all(c.released for c in captures)


def test_newest_frame_or_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "RECONNECT_SECONDS", 0.0)
    monkeypatch.setattr(video, "RECONNECTS", 0)
    monkeypatch.setattr(video, "_capture", lambda *_, **__: FakeCapture(300))
    assert [p.frame for p in open_source(0, stream_buffer=True)] == [*range(1, 301), None]
    assert [p.frame for p in open_source(0, stream_buffer=True, vid_stride=100)] == [1, 101, 201, None]
    monkeypatch.setattr(FakeCapture, "seconds", 0.0005)
    source = iter(open_source(0))
    assert next(source).frame < 300
    while reader_threads():
        time.sleep(0.01)  # the camera runs on while nobody looks
    assert [p.frame for p in source] == [300, None]


def test_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    grabbed = []

    class Screen:
        monitors = ({}, {"left": 0, "top": 0, "width": 8, "height": 6}, {"left": 8, "top": 0, "width": 4, "height": 2})

        def __enter__(self) -> Screen:
            return self

        def __exit__(self, *_: object) -> None: ...

        def grab(self, area: dict) -> np.ndarray:
            grabbed.append(area)
            return np.full((area["height"], area["width"], 4), 7, np.uint8)

    fake = type(sys)("mss")
    fake.mss = Screen
    monkeypatch.setitem(sys.modules, "mss", fake)
    for text, shape in (("screen", (6, 8, 3)), ("screen 1", (2, 4, 3)), ("Screen 0 1 2 3 4", (4, 3, 3))):
        with open_source(text) as source:
            p = next(iter(source))
            assert p.image.shape == shape
            assert (p.kind, p.path) == ("stream", text)
            assert p.frame >= 1
    assert grabbed[-1] == {"left": 1, "top": 2, "width": 3, "height": 4}
    with open_source("screen 5") as source:
        (p,) = list(source)
    assert p.error == "there is no screen 5, only 2"
    with pytest.raises(SourceError, match="'screen' takes"):
        open_source("screen 1 2")
    monkeypatch.setitem(sys.modules, "mss", None)
    with pytest.raises(SourceError, match="reading the screen needs mss: pip install mss"):
        open_source("screen")


@pytest.mark.shared
def test_the_real_videos(shared: Path) -> None:
    promised = {"car-detection.mp4": 377, "person-bicycle-car-detection.gif": 41, "person_40frames.mp4": 40}
    counts = {}
    with open_source(shared / "data" / "videos") as source:
        for p in source:
            assert p.error is None
            name = Path(p.path).name
            counts[name] = counts.get(name, 0) + 1
            assert (p.frame, p.frames) == (counts[name], promised[name])
    assert counts == promised
    assert source.notes == []
