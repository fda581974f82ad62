"""Downloads one file: resumed where an earlier try broke off, checked, and only then put under its name.

The bytes grow in `<name>.part` beside the target, with a small `<name>.part.json` that remembers where they come from,
so that a later call (or the next attempt of this one) continues instead of starting over. Which file to download, and
from where, is in `weights` and `data.catalog`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import __version__

TIMEOUT = 20.0  # seconds without any byte before an attempt ends
ATTEMPTS = 4  # per address; each continues where the one before broke off
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
CHUNK = 1 << 20  # bytes
MAX_BYTES = 4 << 30  # of a file whose size is not known beforehand
WORTH_ANOTHER_TRY = (408, 416, 429, 500, 502, 503, 504)  # HTTP status; after 416 the next attempt starts over

logger = logging.getLogger("yolonas")


class DownloadError(Exception):
    """Why an address gave no usable file. `local` is true if another address would fail just the same."""

    def __init__(self, reason: str, *, local: bool = False):
        super().__init__(reason)
        self.local = local


class _BrokenOffError(Exception):
    """The connection failed in a way that another attempt may not."""


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Downloads `url` to `target`; does nothing if another process has done so meanwhile.

    A progress bar is shown on standard error where that is a terminal.

    Args:
        sha256: of the whole file, in hexadecimal; a file with another one is thrown away.
        size: of the whole file, in bytes; nothing is fetched from a server that offers more or less.
        check: called with the path of the complete file before it gets its name; raises ValueError or RuntimeError if
            it is not what was wanted, and the file is thrown away.

    Raises:
        DownloadError: all attempts failed, or the file is not the right one.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")):
            if target.exists():
                return
            _fetch(url, part, size, resumable_blindly=sha256 is not None)
            try:
                _verify(part, sha256, check)
            except DownloadError:
                _discard(part)
                raise
            part.replace(target)
            _discard(part)
    except OSError as error:
        raise DownloadError(f"{target.parent} cannot be written: {error}", local=True) from None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process at a time do what it guards, such as a download; the others wait. `path` stays behind, empty."""
    with path.open("a+b") as file:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(url: str, part: Path, size: int | None, *, resumable_blindly: bool) -> None:
    """Gets all bytes of `url` into `part`, in several attempts if need be."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_rest(url, part, size, resumable_blindly=resumable_blindly)
            return
        except urllib.error.HTTPError as error:
            error.close()
            reason, final = f"answered {error.code} {error.reason}", error.code not in WORTH_ANOTHER_TRY
        except urllib.error.URLError as error:
            reason, final = f"cannot be reached: {error.reason}", True
        except _BrokenOffError as error:
            reason, final = f"broke off: {error}", False
        if final or attempt == ATTEMPTS:
            raise DownloadError(reason)
        logger.info("%s %s; trying again", url, reason)
        time.sleep(PAUSE * 2 ** (attempt - 1))


def _fetch_rest(url: str, part: Path, size: int | None, *, resumable_blindly: bool) -> None:
    """One attempt: asks for the bytes after those in `part`, or for all of them."""
    origin = _read_origin(part)
    start, validator = 0, None
    if part.exists() and origin.get("url") == url:
        validator = origin.get("validator")
        start = part.stat().st_size if validator or resumable_blindly else 0
        if start == size and resumable_blindly:
            return  # an earlier call was stopped before it could check the file
    headers = {"User-Agent": f"yolonas/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    request = urllib.request.Request(url, headers=headers)
    try:
        response = _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after those bytes: they are not the beginning of this file
            _discard(part)
        raise
    except urllib.error.URLError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(_reason(error)) from None
    with response:
        start, total = _range(response, start)
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise DownloadError("answered with a web page instead of a file")
        if total is not None and size is not None and total != size:
            raise DownloadError(f"offers {total} bytes, expected {size}")
        if total is not None and size is None and total > MAX_BYTES:
            raise DownloadError(f"offers {total} bytes, far more than expected")
        fresh = {"url": url, "validator": _validator(response.headers)}
        part.with_name(f"{part.name}.json").write_text(json.dumps(fresh), encoding="utf-8")
        _copy(response, part, start, size if total is None else total)


def _copy(response: Any, part: Path, start: int, total: int | None) -> None:
    from tqdm import tqdm

    done = start
    bar = tqdm(
        desc=part.name.removesuffix(".part"),
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
    )
    with bar, part.open("r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        while chunk := _read(response):
            if not done and chunk.lstrip()[:1] == b"<":
                raise DownloadError("answered with a web page instead of a file")
            done += len(chunk)
            if done > (MAX_BYTES if total is None else total):
                raise DownloadError(f"sent more than {MAX_BYTES if total is None else total} bytes, which are enough")
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and done != total:
        raise _BrokenOffError(f"{done} of {total} bytes came")


def _read(response: Any) -> bytes:
    # Apart from the writing, whose errors another attempt would not cure.
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT:g} s"
    return str(error) or type(error).__name__


def _range(response: Any, start: int) -> tuple[int, int | None]:
    """Where the bytes of an answer begin, and how many the whole file has if the server says so."""
    length = response.headers.get("Content-Length", "")
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != start:
            raise DownloadError("answered with another part of the file than it was asked for")
        return start, None if match[3] == "*" else int(match[3])
    if response.status != 200:
        raise DownloadError(f"answered {response.status} {response.reason}")
    return 0, int(length) if re.fullmatch(r"\d{1,18}", length) else None


def _verify(part: Path, sha256: str | None, check: Callable[[Path], None] | None) -> None:
    if sha256 is not None and (digest := file_sha256(part)) != sha256.lower():
        raise DownloadError(f"gave a file with the SHA-256 {digest}, expected {sha256}")
    if check is not None:
        try:
            check(part)
        except (ValueError, RuntimeError) as error:
            raise DownloadError(f"gave a file that cannot be used: {error}") from None


def _validator(headers: Any) -> str | None:
    """What identifies these very bytes on the server, for If-Range; weak tags do not."""
    tag = headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return headers.get("Last-Modified")


def _read_origin(part: Path) -> dict[str, Any]:
    try:
        origin = json.loads(part.with_name(f"{part.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(origin, dict) or not isinstance(origin.get("validator"), (str, type(None))):
        return {}
    return origin


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but never from https to something less."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and scheme != urlsplit(req.full_url).scheme:
            raise DownloadError(f"redirects to {scheme}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)
