"""Pictures in memory: arrays, Pillow images, tensors."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from made_files import encode, picture
from PIL import Image

from yolonas import SourceError
from yolonas.data import open_source
from yolonas.data.arrays import bgr_from_pil


def read(source: object) -> list[np.ndarray]:
    pictures = list(open_source(source))
    assert [p.error for p in pictures] == [None] * len(pictures)
    for p in pictures:
        assert p.image.dtype == np.uint8
        assert p.image.ndim == 3
        assert p.image.shape[2] == 3
        assert p.image.flags.c_contiguous
    return [p.image for p in pictures]


def test_bgr_array_is_passed_on_without_a_copy() -> None:
    array = picture()
    (image,) = read(array)
    assert np.shares_memory(image, array)
    np.testing.assert_array_equal(image, picture())


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2, ::3],
        lambda a: a[..., ::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.asfortranarray(a),
        lambda a: a[:1, :1],
    ],
)
def test_any_strides(view: object) -> None:
    array = view(picture())
    np.testing.assert_array_equal(read(array)[0], array)


def test_gray_bgra_and_batches() -> None:
    array = picture()
    gray = array[..., 0]
    three = np.repeat(gray[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read(gray)[0], three)
    np.testing.assert_array_equal(read(gray[..., None])[0], three)
    np.testing.assert_array_equal(read(np.dstack([array, gray]))[0], array)
    batch = np.stack([array, array[::-1], array[:, ::-1]])
    for image, expected in zip(read(batch), batch, strict=True):
        np.testing.assert_array_equal(image, expected)
    assert len(read(batch[..., :1])) == 3
    read_only = array.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(read(read_only)[0], array)


@pytest.mark.parametrize(
    ("array", "error", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, r"dtype uint8, got float32; scale it to 0..255 and convert it"),
        (np.zeros((4, 4, 3), np.uint16), TypeError, r"got uint16; convert it: \(a / 257\).round\(\)"),
        (np.zeros((4, 4), np.bool_), TypeError, r"got bool; convert it: a.astype\(np.uint8\) \* 255"),
        (np.zeros((4, 4, 3), np.int64), TypeError, "got int64"),
        (np.array([object()]), TypeError, "got object"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"at least one pixel, got shape \(0, 4, 3\)"),
        (np.zeros((3, 8, 9), np.uint8), ValueError, r"got \(3, 8, 9\); channels come last: a.transpose\(1, 2, 0\)"),
        (np.zeros((2, 3, 8, 9), np.uint8), ValueError, r"channels come last: a.transpose\(0, 2, 3, 1\)"),
        (np.zeros((8, 9, 2), np.uint8), ValueError, r"C 1, 3 or 4, got \(8, 9, 2\)$"),
        (np.zeros(8, np.uint8), ValueError, r"got \(8,\)"),
        (np.zeros((1, 1, 8, 9, 3), np.uint8), ValueError, r"got \(1, 1, 8, 9, 3\)"),
    ],
)
def test_arrays_that_say_nothing_are_refused_at_once(array: np.ndarray, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        open_source(array)
    with pytest.raises(error, match=text):
        open_source([picture(), array])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "RGBa", "P", "PA"])
def test_pillow_colour_modes(mode: str) -> None:
    rgb = Image.fromarray(np.ascontiguousarray(picture()[..., ::-1]))
    if mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB")
    elif mode == "RGBa":
        image = rgb.convert("RGBA").convert("RGBa")
    elif mode == "PA":
        image = rgb.quantize(256).convert("PA")
    else:
        image = rgb.convert(mode)
    assert image.mode == mode
    limit = 20 if mode in ("P", "PA") else 4
    assert np.abs(read(image)[0].astype(int) - picture()).mean() < limit


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "I", "F", "I;16", "I;16B"])
def test_pillow_gray_modes(mode: str) -> None:
    gray = picture()[..., 0]
    image = {
        "1": lambda: Image.fromarray(gray).convert("1"),
        "La": lambda: Image.fromarray(gray).convert("LA").convert("La"),
        "I": lambda: Image.fromarray(gray.astype(np.int32) * 257),
        "F": lambda: Image.fromarray(gray.astype(np.float32) / 255),
        "I;16": lambda: Image.fromarray(gray.astype(np.uint16) * 257),
        "I;16B": lambda: Image.frombytes("I;16B", (64, 48), (gray.astype(">u2") * 257).tobytes()),
    }.get(mode, lambda: Image.fromarray(gray).convert(mode))()
    assert image.mode == mode
    expected = np.asarray(image) * np.uint8(255) if mode == "1" else gray
    np.testing.assert_array_equal(read(image)[0], np.repeat(expected[..., None], 3, axis=-1))


def test_pillow_integers_out_of_range() -> None:
    with pytest.raises(SourceError, match=r"integer samples must be of range 0..255 or 0..65535, these are of -5..0"):
        bgr_from_pil(Image.fromarray(np.array([[0, -5]], np.int32)))
    small = Image.fromarray(np.array([[0, 255]], np.int32))
    assert bgr_from_pil(small)[0, 1].tolist() == [255, 255, 255]


def test_pillow_image_is_turned_upright_and_named_after_its_file(tmp_path: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(np.rot90(picture(), 1)[..., ::-1])).save(path, exif=exif)
    with Image.open(path) as image:
        (read_picture,) = list(open_source(image))
    np.testing.assert_array_equal(read_picture.image, picture())
    assert read_picture.path == str(path)
    assert next(iter(open_source(Image.new("RGB", (8, 8))))).path == "image0.jpg"


def test_pillow_file_that_is_cut_off_becomes_an_error() -> None:
    data = encode(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    with Image.open(io.BytesIO(data[: len(data) // 2])) as image:
        (p,) = list(open_source(image))
    assert p.image is None
    assert "truncated" in p.error


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    batch = torch.rand(2, 3, 32, 64)
    pictures = list(open_source(batch))
    assert [p.path for p in pictures] == ["image0.jpg", "image1.jpg"]
    for p, expected in zip(pictures, batch, strict=True):
        assert p.tensor.dtype == np.float32
        assert p.tensor.shape == (3, 32, 64)
        np.testing.assert_array_equal(p.tensor, expected.numpy())
        drawn = np.rint(expected.numpy().transpose(1, 2, 0)[..., ::-1] * 255)
        np.testing.assert_array_equal(p.image, drawn.astype(np.uint8))
        assert p.image.flags.c_contiguous
    (single,) = list(open_source(batch[0].half().requires_grad_()))
    assert single.tensor.dtype == np.float32
    source = open_source([batch[0], batch])
    assert (source.kind, source.total) == ("tensor", 3)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda t: t.zeros(3, 33, 64), ValueError, "multiples of 32, got 33x64; pass the picture as an array"),
        (lambda t: t.zeros(1, 32, 64), ValueError, r"shape \(3, H, W\) or \(N, 3, H, W\), got \(1, 32, 64\)"),
        (lambda t: t.zeros(32, 64, 3), ValueError, r"channels come first: t.permute\(2, 0, 1\)"),
        (lambda t: t.zeros(64), ValueError, "shape"),
        (lambda t: t.zeros(0, 3, 32, 32), ValueError, "at least one pixel"),
        (lambda t: t.zeros(3, 0, 32), ValueError, "at least one pixel"),
        (lambda t: t.full((3, 32, 32), 255.0), ValueError, r"values of 0..1, got 255..255; divide it by 255"),
        (lambda t: t.full((3, 32, 32), float("nan")), ValueError, r"values of 0..1, got nan"),
        (lambda t: t.full((3, 32, 32), -1.0), ValueError, r"values of 0..1, got -1..-1$"),
        (lambda t: t.zeros(3, 32, 32, dtype=t.uint8), TypeError, r"floating, got torch.uint8; convert it: t.float"),
    ],
)
def test_tensors_that_do_not_fit(make: object, error: type, text: str) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(error, match=text):
        open_source(make(torch))


def test_arrays_do_not_import_torch_or_pillow() -> None:
    import subprocess

    code = (
        "import sys, numpy as np; from yolonas.data import open_source\n"
        "list(open_source([np.zeros((4, 4, 3), np.uint8)] * 2))\n"
        "print([m for m in ('PIL', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
