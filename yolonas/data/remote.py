"""Pictures behind http and https addresses: what the server replies, with limits on its size and time.

Anything that is no picture is left to OpenCV, which reads videos and streams by their address itself.
"""

from __future__ import annotations

import base64
import time
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ..errors import SourceError
from .headers import HEAD_BYTES, sniff
from .images import IMAGE_SUFFIXES
from .video import VIDEO_SUFFIXES

WEB_SCHEMES = ("http", "https")
LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "tcp", "udp", "srt")
MAX_REPLY_BYTES = 256 * 2**20
SOCKET_SECONDS = 15.0  # without a single byte
REPLY_SECONDS = 120.0  # for the whole picture

_YOUTUBE = ("youtube.com", "youtu.be", "youtube-nocookie.com")


def scheme_of(text: str) -> str:
    """Lower-case scheme of `scheme://...`, else "" (a Windows drive is no scheme)."""
    head, separator, _ = text.partition("://")
    return head.lower() if separator and head.isalnum() else ""


def without_password(address: str) -> str:
    """The address as it may be shown: a password in it is replaced by stars."""
    head, separator, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    if not separator or ":" not in user:
        return address
    return f"{head}://{user.partition(':')[0]}:***{at}{host}{slash}{path}"


def file_name(address: str) -> str:
    """Last part of an address's path, unquoted; "" where there is none."""
    try:
        return PurePosixPath(unquote(urlsplit(address).path)).name
    except ValueError:
        return ""


def fetch_picture(address: str) -> bytes | None:
    """The bytes of the picture behind an address, None where the server replies with something else (video, stream).

    Raises:
        SourceError: no answer, an error status, a web page, or a reply that is too large, too slow or cut off. The
            reason alone.
    """
    import http.client
    import urllib.error
    import urllib.request

    suffix = PurePosixPath(file_name(address)).suffix.lower()
    try:
        host = (urlsplit(address).hostname or "").lower()
    except ValueError as error:
        raise SourceError(f"not a valid address: {error}") from error
    if any(host == name or host.endswith("." + name) for name in _YOUTUBE):
        raise SourceError("YouTube pages are not read; fetch the clip with a downloader and pass the file")
    if suffix in VIDEO_SUFFIXES - {".gif"} or suffix == ".m3u8":
        return None
    try:
        with urllib.request.urlopen(_request(address), timeout=SOCKET_SECONDS) as reply:
            kind = reply.headers.get_content_type()
            if kind == "text/html":
                raise SourceError("the server replied with a web page, not with a picture or video")
            if kind.startswith("image/") or suffix in IMAGE_SUFFIXES | {".gif"}:
                return _read(reply, b"")
            if kind.startswith(("video/", "multipart/", "audio/")):
                return None
            head = reply.read(HEAD_BYTES)
            return _read(reply, head) if sniff(head) not in (None, "video", "text", "empty") else None
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(f"the server replied {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise SourceError(f"no answer: {error.reason}") from error
    except TimeoutError as error:
        raise SourceError(f"the server was silent for {SOCKET_SECONDS:g} seconds") from error
    except http.client.InvalidURL as error:
        raise SourceError(f"not a valid address: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise SourceError(f"the reply broke off: {error}") from error
    except (ValueError, LookupError) as error:  # spaces or control characters in the address
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"not a valid address: {error}") from error


def _request(address: str) -> Any:
    from urllib.request import Request

    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~")  # people paste addresses with spaces and letters of all kinds
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    request = Request(
        urlunsplit((parts.scheme, host, path, query, "")),
        headers={"User-Agent": "yolonas", "Accept": "image/*, */*;q=0.5"},
    )
    if at:  # cameras take user:password@host; not sent on to where the server redirects
        login = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {login}")
    return request


def _read(reply: Any, head: bytes) -> bytes:
    promised = reply.headers.get("Content-Length", "")
    if promised.isdecimal() and int(promised) > MAX_REPLY_BYTES:
        raise SourceError(f"the reply has {promised} bytes, more than the limit of {MAX_REPLY_BYTES}")
    parts, size, end = [head], len(head), time.monotonic() + REPLY_SECONDS
    while part := reply.read1(1 << 20):
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY_BYTES:
            raise SourceError(f"the reply is longer than the limit of {MAX_REPLY_BYTES} bytes")
        if time.monotonic() > end:
            raise SourceError(f"the reply took longer than {REPLY_SECONDS:g} seconds")
    if promised.isdecimal() and size < int(promised):
        raise SourceError(f"the reply broke off after {size} of {promised} bytes")
    return b"".join(parts)
