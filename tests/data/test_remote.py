"""Pictures, videos and streams behind http addresses, from a server of our own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from made_files import encode, gif, picture, write_video

from yolonas import SourceError
from yolonas.data import open_source, remote, video


class Handler(BaseHTTPRequestHandler):
    """Replies with (status, headers, body) by path; "/mjpeg" sends a stream of pictures."""

    replies: ClassVar[dict[str, tuple[int, dict[str, str], bytes]]] = {}
    seen: ClassVar[list[tuple[str, dict[str, str]]]] = []
    streams: ClassVar[int] = 0

    def do_GET(self) -> None:
        Handler.seen.append((self.path, dict(self.headers)))
        try:
            if self.path.startswith("/mjpeg"):
                self.send_stream()
            elif self.path == "/slow.png":
                self.send_response(200)
                self.end_headers()
                time.sleep(2)
            else:
                status, headers, body = Handler.replies.get(self.path.partition("?")[0], (404, {}, b""))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
        except OSError:  # the reader had enough
            self.close_connection = True

    def send_stream(self) -> None:
        if Handler.streams == 0:
            self.send_error(503)
            return
        Handler.streams -= 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(12):
            data = encode(np.full((48, 64, 3), 10 * (number + 1), np.uint8), ".jpg")
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data))
            self.wfile.write(data + b"\r\n")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def replies() -> Iterator[dict]:
    Handler.seen.clear()
    Handler.replies.clear()
    png = encode(picture())
    Handler.replies |= {
        "/a.png": (200, {"Content-Type": "image/png"}, png),
        "/photo": (200, {"Content-Type": "image/png"}, png),
        "/raw": (200, {"Content-Type": "application/octet-stream"}, png),
        "/untyped": (200, {}, png),
        "/b%20%C3%A4.png": (200, {"Content-Type": "image/png"}, png),
        "/a.gif": (200, {"Content-Type": "image/gif"}, gif(3)),
        "/page": (200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>"),
        "/page.jpg": (200, {"Content-Type": "text/html"}, b"<html>"),
        "/moved": (302, {"Location": "/a.png"}, b""),
        "/short.png": (200, {"Content-Type": "image/png", "Content-Length": str(len(png) + 50)}, png),
        "/claim.png": (200, {"Content-Type": "image/png", "Content-Length": str(10**12)}, png),
        "/broken.png": (200, {"Content-Type": "image/png"}, png[:100]),
    }
    return Handler.replies


@pytest.mark.parametrize("path", ["/a.png", "/photo", "/raw", "/untyped", "/b ä.png", "/moved", "/a.png?size=1&b=ä"])
def test_picture(server: str, path: str) -> None:
    source = open_source(server + path)
    (p,) = list(source)
    np.testing.assert_array_equal(p.image, picture())
    assert (p.path, p.kind, source.total) == (server + path, "image", 1)


def test_gif(server: str) -> None:
    assert [p.frame for p in open_source(server + "/a.gif")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none.png", "the server replied 404"),
        ("/none", "the server replied 404"),
        ("/page", "the server replied with a web page"),
        ("/page.jpg", "the server replied with a web page"),
        ("/short.png", "the reply broke off"),
        ("/claim.png", "the reply has 1000000000000 bytes, more than the limit"),
        ("/none.mp4", "the stream cannot be opened"),
    ],
)
def test_bad_replies(server: str, path: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as caught:
        open_source(server + path)
    assert str(caught.value).startswith(f"source: {server}{path}: ")
    good, bad = open_source([server + "/a.png", server + path])
    assert good.error is None
    assert reason in bad.error
    assert bad.path == server + path


def test_a_damaged_picture_is_reported_in_the_picture(server: str) -> None:
    (p,) = list(open_source(server + "/broken.png"))
    assert "truncated" in p.error


def test_limits_of_size_and_time(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_REPLY_BYTES", 50)
    with pytest.raises(SourceError, match="longer than the limit of 50 bytes"):
        open_source(server + "/a.png")
    monkeypatch.setattr(remote, "SOCKET_SECONDS", 0.2)
    with pytest.raises(SourceError, match=r"the server was silent for 0\.2 seconds"):
        open_source(server + "/slow.png")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:9/a.png", "no answer: .*refused"),
        ("http://", "no host given|not a valid address|no answer"),
        ("http://[::1", "not a valid address"),
        ("http://127.0.0.1:port/a.png", "not a valid address"),
        ("https://www.youtube.com/watch?v=abc", "YouTube pages are not read; fetch the clip"),
        ("https://youtu.be/abc", "YouTube pages are not read"),
    ],
)
def test_bad_addresses(address: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        open_source(address)


def test_password_goes_to_the_server_and_not_into_names_and_errors(server: str) -> None:
    address = server.replace("http://", "http://me:p%40ss@")
    (p,) = list(open_source(address + "/a.png"))
    assert p.error is None
    assert p.path == address.replace("p%40ss", "***") + "/a.png"
    assert Handler.seen[-1][1]["Authorization"] == "Basic bWU6cEBzcw=="
    list(open_source(address + "/moved"))
    assert "Authorization" not in Handler.seen[-1][1]  # not handed on to where the server points
    with pytest.raises(SourceError) as caught:
        open_source(address + "/none.png")
    assert "p%40ss" not in str(caught.value)


def test_lists_read_addresses_lazily(server: str, tmp_path: Path) -> None:
    source = open_source([server + "/a.png", server + "/none.png", server + "/photo"])
    assert Handler.seen == []
    assert [p.error for p in source] == [None, "the server replied 404 Not Found", None]
    (tmp_path / "list.txt").write_text(f"{server}/a.png\n{server}/photo\n")
    assert [p.error for p in open_source(tmp_path / "list.txt")] == [None, None]


def test_video_behind_an_address(server: str, tmp_path: Path, replies: dict) -> None:
    data = write_video(tmp_path / "clip.avi", 6).read_bytes()
    size = {"Content-Length": str(len(data))}
    replies["/clip.avi"] = (200, {"Content-Type": "video/x-msvideo", **size}, data)
    replies["/clip"] = (200, {"Content-Type": "video/x-msvideo", **size}, data)
    for path in ("/clip.avi", "/clip"):
        pictures = list(open_source(server + path))
        assert [p.error for p in pictures] == [None] * 6
        assert [(p.frame, p.kind) for p in pictures] == [(n, "video") for n in range(1, 7)]
    assert len(list(open_source([server + "/clip.avi", server + "/a.png"]))) == 7


def test_stream_behind_an_address(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "RECONNECT_SECONDS", 0.01)
    Handler.streams = 2  # one for the look at its type, one for reading
    source = open_source(server + "/mjpeg", stream_buffer=True)
    assert (source.kind, source.total) == ("stream", None)
    pictures = list(source)
    assert pictures[-1].error == "the stream broke off"
    assert [p.frame for p in pictures[:-1]] == list(range(1, len(pictures)))
    assert len(pictures) > 10
    assert {p.kind for p in pictures} == {"stream"}
    Handler.streams = 2
    (tmp_path / "two.streams").write_text(f"{server}/mjpeg?1\n{server}/mjpeg?2\n")
    pictures = [p for p in open_source(tmp_path / "two.streams", stream_buffer=True) if p.error is None]
    assert [(p.index, p.frame) for p in pictures][:4] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    Handler.streams = 2
    good, bad = open_source([server + "/a.png", server + "/mjpeg"])
    assert good.error is None
    assert "a live stream among pictures" in bad.error
