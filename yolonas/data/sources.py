"""Whatever predict takes as `source`, as one row of `Picture`s: decoded ahead on threads, in order, in flat memory.

`open_source` tells the kinds apart and refuses at once what is wrong with the argument itself. What is wrong with one
file of many is reported in the `error` of its `Picture`, and the iteration goes on. Decoding is in `images.py`,
`video.py` and `arrays.py`, the finding of files in `paths.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ..errors import SourceError
from .arrays import DevicePicture
from .items import Item, decode, items_of, reason_of
from .live import Live, live_addresses, open_live
from .readahead import Ahead, OrderedMap
from .remote import WEB_SCHEMES, fetch_picture, scheme_of, without_password
from .video import Clip, open_stream

_log = logging.getLogger("yolonas")


@dataclass
class Picture:
    """One picture or frame, or the reason why there is none."""

    image: np.ndarray | None  # (H, W, 3) uint8 BGR, C-contiguous, upright; None with an error or `on_device`
    path: str  # file, address without its password, or image0.jpg, image1.jpg, ... for what came from memory
    index: int = 1  # position of its file, array or stream in the source, from 1
    total: int | None = None  # how many of those the source has
    kind: Literal["image", "video", "stream"] = "image"
    error: str | None = None  # why it cannot be read, without the path
    frame: int | None = None  # from 1, of a video or stream; frames left out by vid_stride are counted
    frames: int | None = None  # of the whole video, as its header promises
    fps: float | None = None  # of the video or stream, where it says so
    tensor: np.ndarray | None = None  # (3, H, W) float32 RGB 0..1 for tensor input: goes into the network as it is
    on_device: DevicePicture | None = None  # in place of the two above, for what lies on a CUDA device


class Source:
    """An opened source: iterate over it for its `Picture`s. Live streams and web videos can be iterated over once.

    Attributes:
        kind: "files" (files and addresses, perhaps with others among them), "memory", "tensor" or "stream" (live).
        total: number of files, arrays or tensors; None for live streams.
        streams: how many streams are read at once. Each round gives one picture of each, in order; 1 for other kinds.
        notes: what was odd about videos that were read so far, one sentence each; also logged as warnings.
    """

    def __init__(
        self, items: list[Item], live: list[Live], *, vid_stride: int, stream_buffer: bool, batch: int
    ) -> None:
        kinds = {item.kind for item in items}
        self.kind: Literal["files", "memory", "tensor", "stream"] = "files"
        if live:
            self.kind = "stream"
        elif kinds == {"tensor"}:
            self.kind = "tensor"
        elif not kinds & {"file", "url", "clip", "error"}:
            self.kind = "memory"
        self.total = None if live else len(items)
        self.streams = max(1, len(live))
        self.notes: list[str] = []
        self._items, self._live = items, live
        self._stride, self._buffer, self._depth = vid_stride, stream_buffer, max(4, 2 * batch)
        self._readers: set[OrderedMap[int, Any] | Ahead[Any]] = set()
        self._closed = False

    def __iter__(self) -> Iterator[Picture]:
        return self._read_streams() if self._live else self._read_items()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops reading: a running iteration ends, and its threads. Allowed more than once and from any thread."""
        self._closed = True
        readers = list(self._readers)
        for reader in readers:
            reader.close()
        if not readers:  # else the reading threads release what they read
            clips = [live.clip for live in self._live] + [item.value for item in self._items if item.kind == "clip"]
            for clip in clips:
                if clip is not None:
                    clip.close()

    def _read_items(self) -> Iterator[Picture]:
        threaded = len(self._items) > 1 and any(item.kind in ("file", "url", "data") for item in self._items)
        ahead = None
        if threaded and not self._closed:
            ahead = OrderedMap(self._load, range(len(self._items)), depth=self._depth, cost=_cost)
            self._readers.add(ahead)
        try:
            for position in range(len(self._items)):
                if self._closed:
                    return
                try:
                    loaded = self._load(position) if ahead is None else ahead.get(position)
                except StopIteration:  # closed from another thread
                    return
                if isinstance(loaded, Picture):
                    yield loaded
                else:
                    yield from self._read_clip(loaded, position)
        finally:
            if ahead is not None:
                ahead.close()
                self._readers.discard(ahead)

    def _read_clip(self, open_clip: Callable[[], Clip], position: int) -> Iterator[Picture]:
        path, total = self._items[position].path, len(self._items)
        picture = partial(Picture, path=path, index=position + 1, total=total, kind="video")
        try:
            clip = open_clip()
        except Exception as error:
            yield picture(None, error=reason_of(error))
            return
        ahead = Ahead(clip.read, depth=self._depth, cost=_frame_cost)
        self._readers.add(ahead)
        try:
            while True:
                try:
                    number, image = next(ahead)
                except StopIteration:
                    break
                except Exception as error:
                    yield picture(None, error=reason_of(error), frames=clip.frames, fps=clip.fps)
                    break
                yield picture(image, frame=number, frames=clip.frames, fps=clip.fps)
            for note in clip.notes:
                self.notes.append(f"{path}: {note}")
                _log.warning("%s: %s", path, note)
        finally:
            ahead.close()
            self._readers.discard(ahead)

    def _read_streams(self) -> Iterator[Picture]:
        if self._closed:
            return
        running: dict[int, Ahead[tuple[int, np.ndarray]]] = {}
        try:
            for position, live in enumerate(self._live):
                if live.clip is not None:
                    newest = live.clip.live and not self._buffer
                    running[position] = Ahead(live.clip.read, depth=self._depth, cost=_frame_cost, newest=newest)
                    self._readers.add(running[position])
            for position, live in enumerate(self._live):
                if live.error is not None:
                    yield Picture(None, live.path, position + 1, len(self._live), "stream", live.error)
            while running:
                for position in list(running):
                    live = self._live[position]
                    picture = partial(Picture, path=live.path, index=position + 1, total=len(self._live), kind="stream")
                    try:
                        number, image = next(running[position])
                    except StopIteration:
                        self._end(running.pop(position))
                    except Exception as error:
                        self._end(running.pop(position))
                        yield picture(None, error=reason_of(error))
                    else:
                        assert live.clip is not None
                        yield picture(image, frame=number, frames=live.clip.frames, fps=live.clip.fps)
        finally:
            for reader in running.values():
                self._end(reader)

    def _end(self, reader: Ahead[Any]) -> None:
        reader.close()
        self._readers.discard(reader)

    def _load(self, position: int) -> Picture | Callable[[], Clip]:
        """Decodes one item. A video comes back as the function that opens it: when its turn comes, not ahead of it."""
        item = self._items[position]
        picture = Picture(None, item.path, position + 1, len(self._items))
        try:
            loaded = decode(item, self._stride)
        except Exception as error:
            picture.error = reason_of(error)
            return picture
        if isinstance(loaded, DevicePicture):
            picture.on_device = loaded
            return picture
        if not isinstance(loaded, np.ndarray):
            return loaded
        picture.image = loaded
        if item.kind == "tensor":
            picture.tensor = item.value
        return picture


def open_source(source: Any, *, vid_stride: int = 1, stream_buffer: bool = False, batch: int = 1) -> Source:
    """Opens whatever the user named as a source.

    - A path (str or Path): picture, video, folder, glob (`**` for sub-folders), `.txt` or `.csv` with one path per
      line, `.streams` with one stream per line.
    - An address: http(s) of a picture, video or stream; rtsp, rtmp, tcp, udp; "screen"; a webcam number (int or "0").
    - Pixels: uint8 array `(H, W[, C])` or `(N, H, W, C)` in BGR order, Pillow image, uint8 torch tensor
      `([N,] H, W, 3)` in BGR order, floating one `([N,] 3, H, W)` in RGB order 0..1 with sides that are multiples of
      32, or what has `__dlpack__` and is like one of these. They are not copied unless they must be converted.
    - An encoded picture: bytes, bytearray, memoryview, or an open binary file.
    - A list or tuple of these, mixed; or only of live streams, which are then read at the same time.

    Args:
        vid_stride: of each `vid_stride` frames of a video or stream the first is given.
        stream_buffer: True gives every frame of a live stream, False always the newest.
        batch: how many pictures the caller takes at a time; sets how far is read ahead.

    Raises:
        TypeError: an argument of a kind or dtype that cannot be a source.
        ValueError: an array or tensor of a wrong shape or range, an empty list.
        SourceError: a path or address that is not there (a list reports it in the picture instead), an empty folder.
    """
    for name, value in (("vid_stride", vid_stride), ("batch", batch)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ValueError(f"source: {name} must be a whole number of at least 1, got {value!r}")
    options: dict[str, Any] = {"vid_stride": int(vid_stride), "stream_buffer": bool(stream_buffer), "batch": int(batch)}
    addresses = live_addresses(source)
    if addresses is not None:
        return Source([], open_live(addresses, int(vid_stride)), **options)
    if isinstance(source, str) and scheme_of(source) in WEB_SCHEMES:
        return _open_web(source, options)
    members = list(source) if isinstance(source, (list, tuple)) else [source]
    if not members:
        raise ValueError("source: list must have at least one member, got an empty one")
    items: list[Item] = []
    for member in members:
        items += items_of(member, len(items), alone=not isinstance(source, (list, tuple)))
    return Source(items, [], **options)


def _open_web(address: str, options: dict[str, Any]) -> Source:
    path = without_password(address)
    try:
        data = fetch_picture(address)
        if data is not None:
            return Source([Item("data", path, data)], [], **options)
        clip = open_stream(address, stride=options["vid_stride"])
    except SourceError as error:
        raise SourceError(f"source: {path}: {error}") from error
    if clip.live:
        return Source([], [Live(path, clip)], **options)
    return Source([Item("clip", path, clip)], [], **options)


def _cost(loaded: Picture | Callable[[], Clip]) -> int:
    return loaded.image.nbytes if isinstance(loaded, Picture) and loaded.image is not None else 0


def _frame_cost(numbered: tuple[int, np.ndarray]) -> int:
    return numbered[1].nbytes
