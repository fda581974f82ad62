"""One member of a source: which kind it is, and how its pixels are had when its turn comes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import SourceError
from .arrays import (
    DevicePicture,
    bgr_from_array,
    bgr_from_pil,
    bgr_from_planes,
    check_array,
    is_pil,
    pictures_from_tensor,
    planes_from_tensor,
    tensor_of,
)
from .headers import HEAD_BYTES, sniff
from .images import IMAGE_SUFFIXES, decode_image, read_file
from .paths import find_files
from .remote import WEB_SCHEMES, fetch_picture, scheme_of, without_password
from .video import VIDEO_SUFFIXES, Clip, open_gif, open_stream, open_video


@dataclass(frozen=True)
class Item:
    """One picture, video or address, not decoded yet."""

    kind: Literal["file", "url", "data", "array", "pil", "tensor", "clip", "error"]
    path: str
    value: Any = None


def items_of(member: Any, number: int, *, alone: bool) -> list[Item]:
    """The items of one member, the first at position `number`. What is missing raises if the member is `alone`."""
    name = f"image{number}.jpg"
    if isinstance(member, (str, os.PathLike)):
        text = os.fspath(member)
        if not isinstance(text, str):
            raise TypeError(f"source: path must be a str or Path, got {type(member).__name__} of {type(text).__name__}")
        if scheme_of(text) in WEB_SCHEMES:
            return [Item("url", without_password(text), text)]
        try:
            entries = find_files(text, hint=alone)  # a list may have thousands that are missing
        except SourceError as error:
            if alone:
                raise
            return [Item("error", text, str(error).removeprefix("source: "))]
        return [_item_of_entry(entry.path, entry.error) for entry in entries]
    if isinstance(member, np.ndarray):
        return [Item("array", f"image{number + i}.jpg", array) for i, array in enumerate(check_array(member))]
    if is_pil(member):
        return [Item("pil", str(getattr(member, "filename", "") or name), member)]
    if isinstance(member, (bytes, bytearray, memoryview)):
        return [Item("data", name, bytes(member))]
    tensor = tensor_of(member)
    if tensor is not None:
        pictures = pictures_from_tensor(tensor)
        kind = "tensor" if pictures is None else "array"
        values = planes_from_tensor(tensor) if pictures is None else pictures
        return [Item(kind, f"image{number + i}.jpg", value) for i, value in enumerate(values)]
    if callable(getattr(member, "read", None)):
        data = member.read()
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"source: file must be open in binary mode, its read() gave {type(data).__name__}")
        file_name = getattr(member, "name", None)
        return [Item("data", file_name if isinstance(file_name, str) and file_name else name, bytes(data))]
    raise TypeError(
        f"source: must be a path, address, array, Pillow image, tensor, bytes, webcam number or a list of these, "
        f"got {type(member).__name__}"
    )


def decode(item: Item, stride: int) -> np.ndarray | DevicePicture | Callable[[], Clip]:
    """The pixels of an item, or the function that opens it as a video."""
    if item.kind == "error":
        raise SourceError(item.value)
    if isinstance(item.value, DevicePicture):
        return item.value
    if item.kind == "array":
        return bgr_from_array(item.value)
    if item.kind == "pil":
        return bgr_from_pil(item.value)
    if item.kind == "tensor":
        return bgr_from_planes(item.value)
    if item.kind == "clip":
        return lambda: item.value
    if item.kind == "data":
        return _decode_data(item.value, stride)
    if item.kind == "url":
        data = fetch_picture(item.value) if scheme_of(item.value) in WEB_SCHEMES else None
        return partial(_finite_stream, item.value, stride) if data is None else _decode_data(data, stride)
    return _decode_file(item.value, stride)


def reason_of(error: BaseException) -> str:
    """Why something cannot be read, in words for a `Picture.error`."""
    if isinstance(error, SourceError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return f"{type(error).__name__}: {error}"


def _item_of_entry(path: str, error: str | None) -> Item:
    if error is not None:
        return Item("error", path, error)
    return Item("url", without_password(path), path) if scheme_of(path) else Item("file", path, path)


def _decode_file(path: str, stride: int) -> np.ndarray | Callable[[], Clip]:
    # The content decides; the suffix only where the content has no mark that is known.
    suffix = Path(path).suffix.lower()
    kind = sniff(read_file(path, HEAD_BYTES))
    video = partial(open_video, path, stride=stride)
    if kind == "video" or (kind in (None, "text", "empty") and suffix in VIDEO_SUFFIXES):
        return video
    try:
        return _decode_data(read_file(path), stride)
    except SourceError:
        if kind is None and suffix not in IMAGE_SUFFIXES:
            return video  # a raw stream of some codec
        raise


def _decode_data(data: bytes, stride: int) -> np.ndarray | Callable[[], Clip]:
    if sniff(data[:HEAD_BYTES]) == "gif":
        clip = open_gif(data, stride=stride)
        if clip is not None:
            return lambda: clip
    return decode_image(data)


def _finite_stream(address: str, stride: int) -> Clip:
    clip = open_stream(address, stride=stride)
    if clip.live:
        clip.close()
        raise SourceError("this is a live stream among pictures and videos; pass streams alone or in a .streams file")
    return clip
