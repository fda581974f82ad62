"""What an encoded file says about itself: format, size and kind of samples, read from its first bytes.

Nothing is decoded here and file names are never looked at. The readers are for hostile files: every offset is checked,
every loop is bounded, and a file that ends too early is refused with a `SourceError` that gives the reason alone, no
file name.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ..errors import SourceError

HEAD_BYTES = 512  # how much of a file `sniff` wants to see

_JPEG_END = b"\xff\xd9"
_MAX_PARTS = 100_000  # segments or chunks that one file may have before it counts as hostile
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_VIDEO_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x30\x26\xb2\x75",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"FLV\x01",
    b"OggS",
)
# Ancillary chunks that decide the pixels. The others are cut out before decoding: libpng writes complaints about colour
# profiles straight to stderr, and an animated PNG without its animation chunks is its first picture.
_PNG_KEEP = frozenset((b"tRNS", b"eXIf"))


@dataclass(frozen=True)
class Header:
    """Size in pixels as stored (before any EXIF turn), None where this module cannot tell."""

    format: str  # "jpeg", "png", "gif", "bmp", "webp", "tiff", "jp2", "avif", "heif", "dng" or "other"
    width: int | None = None
    height: int | None = None
    samples: str = "u8"  # "u16" and "float": the decoder must be asked for them, or it clips
    extended: bool = False  # WebP with EXIF or animation


def sniff(head: bytes) -> str | None:
    """Format of a file by its first bytes: a `Header.format`, "video", "text", "empty", or None where nothing fits."""
    if not head:
        return "empty"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"RIFF"):
        return {b"WEBP": "webp", b"AVI ": "video"}.get(head[8:12])
    if head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "tiff"
    if head.startswith((b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "jp2"
    if head.startswith(b"BM") and len(head) >= 26 and head[14:18] in _BMP_HEADERS:
        return "bmp"
    if head[4:8] == b"ftyp":
        return _sniff_brand(head)
    if head.startswith(_VIDEO_STARTS) or head[4:8] in (b"moov", b"mdat", b"wide", b"free"):
        return "video"
    if head[:1] == b"\x47" and len(head) > 188 and head[188:189] == b"\x47":
        return "video"  # MPEG transport stream
    if _is_text(head):
        # The pictures of the PNM family start like text: "P6 640 480 255".
        return "other" if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace() else "text"
    return None


def read_header(data: bytes) -> tuple[Header, bytes]:
    """Header of an encoded picture, and the bytes that the decoder should get (`data`, or a copy with less in it).

    Raises SourceError for a file that holds no picture, or that is cut off or damaged so that one can tell.
    """
    kind = sniff(data[:HEAD_BYTES])
    if kind == "empty":
        raise SourceError("the file is empty")
    if kind == "video":
        raise SourceError("this is a video, not a picture")
    if kind == "text":
        raise SourceError(f"this is text, not a picture: it starts with {data[:24]!r}")
    if kind == "png":
        return _png(data)
    readers = {"jpeg": _jpeg, "gif": _gif, "bmp": _bmp, "webp": _webp, "tiff": _tiff, "jp2": _jp2}
    try:
        if kind in readers:
            return readers[kind](data), data
        if kind in ("avif", "heif"):
            return _heif(data, kind), data
    except (struct.error, IndexError):
        raise SourceError("the file is truncated: it ends before the place that its header points to") from None
    return Header("other"), data


def _sniff_brand(head: bytes) -> str:
    brands = {head[8:12]} | {head[at : at + 4] for at in range(16, min(len(head), 64), 4)}
    if brands & {b"avif", b"avis"}:
        return "avif"
    return "heif" if head[8:12] in _HEIF_BRANDS else "video"


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)


def _jpeg(data: bytes) -> Header:
    at, size = 2, None
    for _ in range(_MAX_PARTS):
        if at + 2 > len(data):
            break
        if data[at] != 0xFF:
            at = data.find(b"\xff", at)  # stray bytes between segments: libjpeg skips them too
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:
            return _jpeg_scan(data, at, size)
        if marker == 0xD9:
            break
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = (height, width)
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    raise SourceError("the file is truncated: a JPEG that ends before its picture data")


def _jpeg_scan(data: bytes, scan: int, size: tuple[int, int] | None) -> Header:
    if size is None:
        raise SourceError("the file is damaged: a JPEG without a frame header")
    # In picture data every 0xFF is followed by a stuffed zero, so the end marker can be searched for. Without one the
    # decoders would fill the missing part with grey (and some report nothing).
    if not data.endswith(_JPEG_END) and data.rfind(_JPEG_END, scan) < 0:
        raise SourceError("the file is truncated: a JPEG without its end marker")
    return Header("jpeg", width=size[1], height=size[0])


def _png(data: bytes) -> tuple[Header, bytes]:
    view = memoryview(data)
    kept: list[memoryview] = [view[:8]]
    at, header, dropped = 8, None, False
    for _ in range(_MAX_PARTS):
        if at + 12 > len(data):
            raise SourceError("the file is truncated: a PNG without its end chunk")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise SourceError(f"the file is truncated: its PNG chunk {_readable(kind)} ends after the file")
        critical = not kind[0] & 0x20
        intact = False
        if critical or kind in _PNG_KEEP:
            intact = zlib.crc32(view[at + 4 : end - 4]) == struct.unpack_from(">I", data, end - 4)[0]
            if critical and not intact:
                raise SourceError(f"the file is damaged: wrong checksum of its PNG chunk {_readable(kind)}")
        if intact:
            kept.append(view[at:end])
        else:
            dropped = True
        if header is None:
            if kind != b"IHDR" or length != 13:
                raise SourceError("the file is damaged: a PNG that does not start with its header chunk")
            width, height, depth = struct.unpack_from(">IIB", data, at + 8)
            header = Header("png", width=width, height=height, samples="u16" if depth == 16 else "u8")
        if kind == b"IEND":
            return header, b"".join(kept) if dropped else data
        at = end
    raise SourceError(f"the file is damaged: a PNG of more than {_MAX_PARTS} chunks")


def _gif(data: bytes) -> Header:
    width, height = struct.unpack_from("<HH", data, 6)
    return Header("gif", width=width, height=height)


_BMP_HEADERS = frozenset(struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124))


def _bmp(data: bytes) -> Header:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)  # a negative height means rows from top to bottom
    return Header("bmp", width=abs(width), height=abs(height))


def _webp(data: bytes) -> Header:
    if 8 + struct.unpack_from("<I", data, 4)[0] > len(data) + 1:  # some writers forget the padding byte
        raise SourceError("the file is truncated: a WebP shorter than it says")
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        return Header("webp", width=width, height=height, extended=bool(data[20] & 0x0A))
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return Header("webp", width=1 + (bits & 0x3FFF), height=1 + (bits >> 14 & 0x3FFF))
    width, height = struct.unpack_from("<HH", data, 26)
    return Header("webp", width=width & 0x3FFF, height=height & 0x3FFF)


def _tiff(data: bytes) -> Header:
    order = "<" if data[:2] == b"II" else ">"
    if data[2 if order == "<" else 3] == 43:
        return Header("tiff")  # BigTIFF: Pillow reads its header
    tags = _tiff_tags(data, order)
    if 50706 in tags:
        return Header("dng")
    bits, sample_format = tags.get(258, 1), tags.get(339, 1)
    samples = "float" if sample_format == 3 else "u16" if bits == 16 and sample_format == 1 else "u8"
    return Header("tiff", width=tags.get(256), height=tags.get(257), samples=samples)


def _tiff_tags(data: bytes, order: str) -> dict[int, int]:
    """First value of each byte, short or long tag of the first directory."""
    start = struct.unpack_from(order + "I", data, 4)[0]
    count = struct.unpack_from(order + "H", data, start)[0]
    tags: dict[int, int] = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", data, entry)
        code = {1: "B", 3: "H", 4: "I"}.get(kind)
        if code is None or values == 0:
            continue
        inline = values * struct.calcsize(order + code) <= 4
        where = entry + 8 if inline else struct.unpack_from(order + "I", data, entry + 8)[0]
        tags[tag] = struct.unpack_from(order + code, data, where)[0]
    return tags


def _jp2(data: bytes) -> Header:
    width = height = 0
    box = data.find(b"ihdr", 0, 1 << 16)
    if box >= 0:
        height, width = struct.unpack_from(">II", data, box + 4)
    stream = data.find(b"\xff\x4f\xff\x51", 0, 1 << 20)  # the codestream's own size is what gets decoded
    if stream >= 0:
        right, bottom, left, top = struct.unpack_from(">IIII", data, stream + 8)
        width, height = max(width, right - left), max(height, bottom - top)
    return Header("jp2", width=width or None, height=height or None)


def _heif(data: bytes, kind: str) -> Header:
    """The largest `ispe` (image spatial extents) property: that of the whole picture where it is made of tiles."""
    width = height = 0
    at = data.find(b"ispe", 0, 1 << 20)
    for _ in range(_MAX_PARTS):
        if at < 0:
            break
        w, h = struct.unpack_from(">II", data, at + 8)
        if w * h > width * height:
            width, height = w, h
        at = data.find(b"ispe", at + 4, 1 << 20)
    return Header(kind, width=width or None, height=height or None)


def _readable(kind: bytes) -> str:
    return kind.decode("ascii", "replace") if kind.isalnum() else repr(kind)
