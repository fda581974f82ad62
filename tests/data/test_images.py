"""read_image: formats, depths, orientation, limits, and what is refused."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_files import difference, encode, gif, picture
from PIL import Image

from yolonas import SourceError
from yolonas.data import images, read_image
from yolonas.data.headers import sniff

Image.init()
HAS_AVIF = "AVIF" in Image.SAVE


def pil_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of the given chunks, with right checksums."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_lossless_formats_give_the_exact_pixels(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "any.name"  # the name says nothing
    path.write_bytes(encode(picture(), suffix))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        image = read_image(source)
        np.testing.assert_array_equal(image, picture())
        assert image.flags.c_contiguous
        assert image.dtype == np.uint8


@pytest.mark.parametrize(("suffix", "limit"), [(".jpg", 4.0), (".webp", 4.0), (".jp2", 4.0)])
def test_lossy_formats_come_close(suffix: str, limit: float) -> None:
    assert difference(read_image(encode(picture(), suffix)), picture()) < limit


def test_jpeg_equals_opencv_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(picture(), ".jpg"))
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)))


@pytest.mark.skipif(not HAS_AVIF, reason="this Pillow has no AVIF")
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_avif_is_read_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = pil_bytes(Image.fromarray(picture()[..., ::-1]), "AVIF", quality=95, exif=exif)
    upright = {1: picture(), 3: np.rot90(picture(), 2), 6: np.rot90(picture(), 3)}[orientation]
    assert difference(read_image(data), np.ascontiguousarray(upright)) < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = picture()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = pil_bytes(Image.fromarray(np.ascontiguousarray(stored[..., ::-1])), kind, exif=exif, **options)
    assert difference(read_image(data), upright) < (2 if kind == "JPEG" else 0.01)


def test_16_bit_samples_are_scaled_and_rounded() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(deep / 257.0).astype(np.uint8)
    for suffix in (".png", ".tif"):
        image = read_image(encode(deep, suffix))
        np.testing.assert_array_equal(image, np.repeat(expected[..., None], 3, axis=-1))
    colours = np.stack([deep, deep[::-1], deep.T], axis=-1)
    for suffix in (".png", ".tif"):
        np.testing.assert_array_equal(read_image(encode(colours, suffix)), np.rint(colours / 257.0).astype(np.uint8))
    four = np.dstack([colours, np.full_like(deep, 300)])
    np.testing.assert_array_equal(read_image(encode(four)), np.rint(colours / 257.0).astype(np.uint8))


def test_float_tiff() -> None:
    unit = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    expected = np.repeat(np.rint(unit * 255).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_image(encode(unit, ".tif")), expected)
    np.testing.assert_array_equal(read_image(encode(unit * 255, ".tif")), expected)
    with pytest.raises(SourceError, match=r"range 0..1 or 0..255, these are of -2..1"):
        read_image(encode(unit * 3 - 2, ".tif"))
    unit[3, 5] = np.nan
    with pytest.raises(SourceError, match="range"):
        read_image(encode(unit, ".tif"))


def test_gray_palette_bilevel_and_alpha_become_three_channels() -> None:
    gray = picture()[..., 0]
    three = np.repeat(gray[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_image(encode(gray)), three)
    assert difference(read_image(encode(gray, ".jpg")), three) < 4
    np.testing.assert_array_equal(read_image(pil_bytes(Image.fromarray(gray).convert("LA"), "PNG")), three)
    ones = Image.fromarray(gray).convert("1")
    np.testing.assert_array_equal(read_image(pil_bytes(ones, "PNG"))[..., 1], np.asarray(ones) * np.uint8(255))
    palette = Image.fromarray(picture()[..., ::-1]).quantize(64)
    expected = np.asarray(palette.convert("RGB"))[..., ::-1]
    np.testing.assert_array_equal(read_image(pil_bytes(palette, "PNG")), expected)
    np.testing.assert_array_equal(read_image(pil_bytes(palette, "PNG", transparency=3)), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped_and_the_colours_below_it_stay(kind: str) -> None:
    image = Image.fromarray(picture()[..., ::-1]).convert("RGBA")
    image.putalpha(0)
    data = pil_bytes(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(read_image(data), picture())


def test_cmyk_jpeg() -> None:
    cmyk = Image.fromarray(picture()[..., ::-1]).convert("CMYK")
    assert difference(read_image(pil_bytes(cmyk, "JPEG", quality=98, subsampling=0)), picture()) < 4


def test_first_picture_of_an_animation() -> None:
    np.testing.assert_array_equal(read_image(gif(3)), np.full((48, 64, 3), 10, np.uint8))
    frames = [Image.new("RGB", (20, 10), (10 * n, 0, 0)) for n in range(1, 4)]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = pil_bytes(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(read_image(data), np.full((10, 20, 3), (0, 0, 10), np.uint8))


def test_colour_profiles_and_texts_of_a_png_are_not_shown_to_libpng(capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(picture()[..., 0])
    header, rest = data[: 8 + 25], data[8 + 25 :]
    profile = b"x\0\0" + zlib.compress(b"no profile at all")
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile + struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    image = read_image(header + chunk + rest)
    np.testing.assert_array_equal(image[..., 0], picture()[..., 0])
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the tags of a TIFF that is cut off
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF", "progressive", "lzw"]
)
def test_cut_files_are_refused(kind: str, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    if kind == "AVIF" and not HAS_AVIF:
        pytest.skip("this Pillow has no AVIF")
    noise = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    options = {"progressive": ("JPEG", {"progressive": True}), "lzw": ("TIFF", {"compression": "tiff_lzw"})}
    name, keywords = options.get(kind, (kind, {}))
    data = pil_bytes(Image.fromarray(noise), name, **keywords)
    assert read_image(data).shape == noise.shape
    with pytest.raises(SourceError):
        read_image(data[: int(len(data) * share)])
    assert "ERROR" not in capfd.readouterr().err


def test_a_jpeg_with_anything_behind_it_is_fine_and_one_without_its_end_is_not() -> None:
    data = encode(picture(), ".jpg")
    np.testing.assert_array_equal(read_image(data + b"\0" * 700), read_image(data))
    with pytest.raises(SourceError, match="truncated: a JPEG without its end marker"):
        read_image(data[:-2])
    with pytest.raises(SourceError, match="truncated"):
        read_image(data[: len(data) // 2] + bytes(len(data) // 2))  # a download that was reserved and never filled
    # the end marker of a thumbnail in the header does not count
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 10) + b"thumb\xff\xd9end"
    with pytest.raises(SourceError, match="end marker"):
        read_image(data[:2] + thumbnail + data[2:-2])
    assert read_image(data[:2] + thumbnail + data[2:]).shape == (48, 64, 3)


def test_damaged_png_is_refused_by_its_checksum(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encode(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(SourceError, match="damaged: wrong checksum of its PNG chunk IDAT"):
        read_image(bytes(data))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is not an image\n", "this is text, not a picture"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xe0\x00", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"GIF89a", "truncated"),
        (b"BM" + bytes(12) + struct.pack("<I", 40) + bytes(8), "empty|cannot|truncated"),
        (b"RIFF\x10\0\0\0WEBPVP8X", "truncated"),
        (b"II*\0\xff\xff\xff\x7f", "truncated"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "cannot|damaged|truncated"),
        (b"\0\0\0\x18ftypavif" + bytes(12), "AVIF"),
        (b"\0\0\0\x18ftypisom" + bytes(12), "a video, not a picture"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "a video, not a picture"),
        (bytes(range(256)) * 8, "not a picture in a format that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "text"),
        (png((b"IDAT", b"")), "does not start with its header"),
        (png(png_header(4, 4)), "truncated"),
        (png(png_header(0, 4), (b"IEND", b"")), "empty"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(SourceError, match=reason):
        read_image(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_never_raises_anything_but_source_errors() -> None:
    random = np.random.default_rng(7)
    originals = [encode(picture(48, 64), suffix) for suffix in (".png", ".bmp", ".tif", ".webp", ".jp2")]
    originals += [gif(2, 12, 16), pil_bytes(Image.new("RGB", (16, 12)), "TIFF", compression="tiff_lzw")]
    refused = 0
    for data in originals:
        for _ in range(30):
            damaged = np.frombuffer(data, np.uint8).copy()
            places = random.integers(0, min(len(damaged), 200), 4)
            damaged[places] = random.integers(0, 256, 4)
            try:
                image = read_image(damaged.tobytes())
            except SourceError:
                refused += 1
            else:
                assert image.ndim == 3
                assert image.shape[2] == 3
    assert refused > 20


def test_pixel_limit_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png(png_header(60000, 60000), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    with pytest.raises(
        SourceError, match=r"60000x60000 pixels, more than the limit of 250000000; set YOLONAS_MAX_PIXELS"
    ):
        read_image(bomb)
    jpeg = bytearray(encode(picture(), ".jpg"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(SourceError, match="65000x65000 pixels"):
        read_image(bytes(jpeg))
    for suffix in (".bmp", ".tif", ".webp", ".jp2", ".jpg", ".png", ".ppm"):
        data = encode(picture(), suffix)
        monkeypatch.setenv("YOLONAS_MAX_PIXELS", str(48 * 64))
        assert read_image(data).shape == (48, 64, 3)
        monkeypatch.setenv("YOLONAS_MAX_PIXELS", str(48 * 64 - 1))
        with pytest.raises(SourceError, match="more than the limit"):
            read_image(data)
    with pytest.raises(SourceError, match="more than the limit"):
        read_image(gif(1))
    monkeypatch.setenv("YOLONAS_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="YOLONAS_MAX_PIXELS must be a positive whole number, got 'many'"):
        read_image(data)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(SourceError, match="a folder, not a file"):
        read_image(tmp_path)
    with pytest.raises(SourceError, match="no valid file name"):
        read_image("a\0b.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(SourceError, match="not a regular file"):
        read_image(tmp_path / "pipe.jpg")


def test_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(SourceError, match="more than a picture may have"):
        read_image(path)


def test_formats_that_need_an_extra_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    raw = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 50706, 1, 4, 1) + bytes(8)
    with pytest.raises(SourceError, match="DNG raw photographs needs rawpy: pip install rawpy"):
        read_image(raw)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    if "HEIF" not in Image.OPEN:
        with pytest.raises(SourceError, match="needs pillow-heif: pip install pillow-heif"):
            read_image(b"\0\0\0\x18ftypheic" + bytes(40))


def test_dng_is_developed_where_rawpy_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raw:
        sizes = type("Sizes", (), {"width": 64, "height": 48})

        def __enter__(self) -> Raw:
            return self

        def __exit__(self, *_: object) -> None: ...

        def postprocess(self) -> np.ndarray:
            return picture()[..., ::-1]

    fake = type(sys)("rawpy")
    fake.imread = lambda stream: Raw()
    fake.LibRawError = RuntimeError
    monkeypatch.setitem(sys.modules, "rawpy", fake)
    raw = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 50706, 1, 4, 1) + bytes(8)
    np.testing.assert_array_equal(read_image(raw), picture())


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "avif"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heif"),
        (b"\0\0\0\x14ftypqt  ", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"RIFF\0\0\0\0WAVEfmt ", None),
        (b"G" + bytes(187) + b"G" + bytes(187), "video"),
        (b"P6 640 480 255\n", "other"),
        (b"PATH=1\n", "text"),
        (b"MM\0*", "tiff"),
        (b"BM, said the text", "text"),
    ],
)
def test_sniff(head: bytes, kind: str | None) -> None:
    assert sniff(head) == kind


def test_opencv_is_quiet_and_its_log_level_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    before = log.getLogLevel()
    tiff = encode(picture(), ".tif")
    with pytest.raises(SourceError):
        read_image(tiff[:10] + bytes(len(tiff) - 10))
    assert log.getLogLevel() == before
    assert "WARN" not in capfd.readouterr().err


def test_importing_the_package_loads_no_decoder() -> None:
    code = "import sys, yolonas.data; print([m for m in ('cv2', 'PIL', 'torch', 'urllib.request') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
