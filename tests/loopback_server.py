"""A small HTTP server on the loopback interface that serves one file, with ranges, and misbehaves on request."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server does. Attributes may be changed while it runs."""

    content: bytes
    url: str = ""
    etag: str | None = '"one"'
    kind: str = "application/octet-stream"
    ranges: bool = True
    length: bool = True  # False: no Content-Length
    statuses: list[int] = field(default_factory=list)  # answered before anything else, one a request
    cuts: list[int] = field(default_factory=list)  # bytes of body after which the connection breaks off, one a request
    stall: float = 0.0  # seconds before the body
    redirect: str | None = None
    wrong_start: bool = False  # answers a range with another one
    requests: list[dict[str, str]] = field(default_factory=list)  # headers of each request
    served: int = 0  # bytes of bodies


@contextmanager
def serving(content: bytes) -> Iterator[Site]:
    site = Site(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(dict(self.headers))
            if site.statuses:
                self.send_error(site.statuses.pop(0))
                return
            if site.redirect:
                self.send_response(302)
                self.send_header("Location", site.redirect)
                self.end_headers()
                return
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(match[1]) if match and site.ranges and self._same_file() else 0
            if start and start >= len(site.content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", site.kind)
            if site.etag:
                self.send_header("ETag", site.etag)
            if start:
                first = start + 1 if site.wrong_start else start
                self.send_header("Content-Range", f"bytes {first}-{len(site.content) - 1}/{len(site.content)}")
            if site.length:
                self.send_header("Content-Length", str(len(site.content) - start))
            self.end_headers()
            self.wfile.flush()
            time.sleep(site.stall)
            body = site.content[start:]
            body = body[: site.cuts.pop(0)] if site.cuts else body
            self.wfile.write(body)
            site.served += len(body)

        def _same_file(self) -> bool:
            condition = self.headers.get("If-Range")
            return condition is None or condition == site.etag

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that gives up is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/weights"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
