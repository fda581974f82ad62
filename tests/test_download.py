"""Downloads from a server on the loopback interface: resuming, checking, and giving up with a reason."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_server import Site, serving

from yolonas import download as download_module
from yolonas.download import DownloadError, download

CONTENT = bytes(range(256)) * 4000  # about a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    monkeypatch.setattr(download_module, "TIMEOUT", 0.5)
    monkeypatch.setattr(download_module, "CHUNK", 1 << 16)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(CONTENT) as site:
        yield site


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".lock"))


@pytest.mark.parametrize("sha256", [None, SHA256, SHA256.upper()])
def test_whole_file(tmp_path: Path, site: Site, sha256: str | None):
    target = tmp_path / "new" / "folder" / "a.pth"
    download(site.url, target, sha256=sha256)
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == ["a.pth"]
    assert site.requests[0]["User-Agent"].startswith("yolonas/")


def test_without_length(tmp_path: Path, site: Site):
    site.length = False
    download(site.url, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_continues_within_one_call(tmp_path: Path, site: Site):
    site.cuts = [100_000, 0, 300_000]
    download(site.url, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert [request.get("Range") for request in site.requests] == [None, *["bytes=100000-"] * 2, "bytes=400000-"]
    assert site.requests[1]["If-Range"] == '"one"'
    assert site.served == len(CONTENT)


def test_continues_in_a_later_call(tmp_path: Path, site: Site):
    site.cuts = [100_000, 1, 1, 1]
    with pytest.raises(DownloadError, match="broke off: 100003 of 1024000 bytes"):
        download(site.url, tmp_path / "a.pth")
    assert names(tmp_path) == ["a.pth.part", "a.pth.part.json"]
    download(site.url, tmp_path / "a.pth", sha256=SHA256)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert names(tmp_path) == ["a.pth"]
    assert site.requests[-1]["Range"] == "bytes=100003-"


def test_starts_over_if_the_file_has_changed(tmp_path: Path, site: Site):
    site.cuts = [100_000] + [0] * 3
    with pytest.raises(DownloadError):
        download(site.url, tmp_path / "a.pth")
    site.content, site.etag = CONTENT[::-1], '"two"'
    download(site.url, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT[::-1]


def test_starts_over_if_the_server_cannot_continue(tmp_path: Path, site: Site):
    site.ranges, site.cuts = False, [100_000]
    download(site.url, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_starts_over_without_validator_or_hash(tmp_path: Path, site: Site):
    site.etag, site.cuts = None, [100_000]
    download(site.url, tmp_path / "a.pth")
    assert "Range" not in site.requests[1]
    site.cuts, site.requests = [100_000], []
    download(site.url, tmp_path / "b.pth", sha256=SHA256)  # the hash tells whether the pieces fit together
    assert site.requests[1]["Range"] == "bytes=100000-"
    assert (tmp_path / "b.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
def test_part_that_is_already_complete_or_too_long(tmp_path: Path, site: Site, size: int):
    (tmp_path / "a.pth.part").write_bytes((CONTENT + b"12345")[:size])
    (tmp_path / "a.pth.part.json").write_text(f'{{"url": "{site.url}", "validator": "\\"one\\""}}')
    download(site.url, tmp_path / "a.pth", sha256=SHA256)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "origin",
    ["", "[", "[]", "{}", '{"url": "http://other", "validator": "x"}', '{"url": 5}', "[" * 100_000],
    ids=range(7),
)
def test_part_of_unknown_origin_is_not_continued(tmp_path: Path, site: Site, origin: str):
    (tmp_path / "a.pth.part").write_bytes(b"something else")
    (tmp_path / "a.pth.part.json").write_text(origin)
    download(site.url, tmp_path / "a.pth")
    assert "Range" not in site.requests[0]
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_wrong_range(tmp_path: Path, site: Site):
    site.cuts, site.wrong_start = [100_000], True
    with pytest.raises(DownloadError, match="another part of the file"):
        download(site.url, tmp_path / "a.pth")


@pytest.mark.parametrize("status", [403, 404, 410])
def test_final_answers(tmp_path: Path, site: Site, status: int):
    site.statuses = [status] * 9
    with pytest.raises(DownloadError, match=f"answered {status} "):
        download(site.url, tmp_path / "a.pth")
    assert len(site.requests) == 1
    assert names(tmp_path) == []


def test_busy_server(tmp_path: Path, site: Site):
    site.statuses = [503, 429, 500]
    download(site.url, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    site.statuses = [503] * 9
    with pytest.raises(DownloadError, match="answered 503"):
        download(site.url, tmp_path / "b.pth")


def test_silent_server(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download_module, "ATTEMPTS", 1)
    monkeypatch.setattr(download_module, "TIMEOUT", 0.1)
    site.stall = 0.6
    with pytest.raises(DownloadError, match=r"nothing came for 0\.1 s"):
        download(site.url, tmp_path / "a.pth")


def test_nobody_there(tmp_path: Path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
        with pytest.raises(DownloadError, match="cannot be reached"):
            download(url, tmp_path / "a.pth")


def test_web_pages(tmp_path: Path, site: Site):
    site.kind = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="web page"):
        download(site.url, tmp_path / "a.pth")
    site.kind, site.content = "application/octet-stream", b"\n<!DOCTYPE html>"
    with pytest.raises(DownloadError, match="web page"):
        download(site.url, tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()


def test_wrong_hash(tmp_path: Path, site: Site):
    with pytest.raises(DownloadError, match=f"SHA-256 {SHA256}, expected {'0' * 64}"):
        download(site.url, tmp_path / "a.pth", sha256="0" * 64)
    assert names(tmp_path) == []


def test_size(tmp_path: Path, site: Site):
    download(site.url, tmp_path / "a.zip", sha256=SHA256, size=len(CONTENT))
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    for size in (len(CONTENT) - 1, len(CONTENT) + 1):
        with pytest.raises(DownloadError, match=f"offers {len(CONTENT)} bytes, expected {size}"):
            download(site.url, tmp_path / "b.zip", size=size)
    assert names(tmp_path) == ["a.zip"]


def test_size_where_the_server_does_not_say_it(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download_module, "ATTEMPTS", 1)
    site.length = False
    download(site.url, tmp_path / "a.zip", size=len(CONTENT))
    with pytest.raises(DownloadError, match="sent more than 1000 bytes"):
        download(site.url, tmp_path / "b.zip", size=1000)
    with pytest.raises(DownloadError, match=f"broke off: {len(CONTENT)} of {len(CONTENT) + 1} bytes"):
        download(site.url, tmp_path / "c.zip", size=len(CONTENT) + 1)
    assert not (tmp_path / "b.zip").exists()
    assert not (tmp_path / "c.zip").exists()


def test_known_size_may_be_above_the_limit(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download_module, "MAX_BYTES", 1000)
    download(site.url, tmp_path / "a.zip", size=len(CONTENT))
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_whole_part_is_checked_and_not_fetched_again(tmp_path: Path, site: Site):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    (tmp_path / "a.zip.part.json").write_text(f'{{"url": "{site.url}"}}')
    download(site.url, tmp_path / "a.zip", sha256=SHA256, size=len(CONTENT))
    assert site.requests == []
    assert names(tmp_path) == ["a.zip"]
    (tmp_path / "b.zip.part").write_bytes(CONTENT[::-1])
    (tmp_path / "b.zip.part.json").write_text(f'{{"url": "{site.url}"}}')
    with pytest.raises(DownloadError, match="SHA-256"):
        download(site.url, tmp_path / "b.zip", sha256=SHA256, size=len(CONTENT))
    assert names(tmp_path) == ["a.zip"]


def test_check_of_the_file(tmp_path: Path, site: Site):
    def refuse(path: Path) -> None:
        assert path.read_bytes() == CONTENT
        raise ValueError("no network in it")

    with pytest.raises(DownloadError, match="cannot be used: no network in it"):
        download(site.url, tmp_path / "a.pth", check=refuse)
    assert names(tmp_path) == []


def test_too_large(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download_module, "MAX_BYTES", 1000)
    with pytest.raises(DownloadError, match="offers 1024000 bytes"):
        download(site.url, tmp_path / "a.pth")
    site.length = False
    with pytest.raises(DownloadError, match="sent more than 1000 bytes"):
        download(site.url, tmp_path / "a.pth")


def test_redirects(tmp_path: Path, site: Site):
    with serving(b"") as front:
        front.redirect = site.url
        download(front.url, tmp_path / "a.pth", sha256=SHA256)
        front.redirect = "ftp://127.0.0.1/a"
        with pytest.raises(DownloadError, match="redirects to ftp, which is not followed"):
            download(front.url, tmp_path / "b.pth")
        front.redirect = "file:///etc/passwd"
        with pytest.raises(DownloadError):
            download(front.url, tmp_path / "b.pth")


def test_several_at_once(tmp_path: Path, site: Site):
    site.stall = 0.1
    threads = [threading.Thread(target=download, args=(site.url, tmp_path / "a.pth")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    if os.name == "posix":
        assert len(site.requests) == 1


def test_folder_that_cannot_be_written(tmp_path: Path, site: Site):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written") as caught:
        download(site.url, tmp_path / "file" / "a.pth")
    assert caught.value.local


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_only_on_a_terminal(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, terminal: bool):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    download(site.url, tmp_path / "a.pth")
    assert ("a.pth" in stream.getvalue()) == terminal
