"""The list of 51 awkward files: each must be read, or refused with the reason, as the list says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_files import difference
from PIL import Image

from yolonas import SourceError
from yolonas.data import read_image

Image.init()
HAS_AVIF = "AVIF" in Image.SAVE


def odd_images(shared: Path) -> tuple[Path, dict]:
    folder = shared / "data" / "odd_images"
    return folder / "images", json.loads((folder / "expected.json").read_text())["images"]


@pytest.mark.shared
def test_every_odd_file_does_what_is_expected(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, expected = odd_images(shared)
    assert len(expected) == 51
    refused = {"empty.jpg": "empty", "text.jpg": "text", "truncated_header.jpg": "truncated"}
    refused |= {"truncated.jpg": "truncated", "truncated.png": "truncated"}
    assert {name for name, facts in expected.items() if facts.get("broken") == "yes"} <= set(refused)
    for name, facts in expected.items():
        if name.endswith(".avif") and not HAS_AVIF:
            continue
        if name in refused:
            with pytest.raises(SourceError, match=f": .*{refused[name]}"):
                read_image(folder / name)
            continue
        image = read_image(folder / name)
        assert image.shape == (facts["height"], facts["width"], 3), name
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
    assert capfd.readouterr().err == ""


@pytest.mark.shared
def test_odd_files_that_show_the_same_picture(shared: Path) -> None:
    folder, _ = odd_images(shared)
    base = read_image(folder / "base.jpg")
    first = read_image(folder / "exif_1.jpg")
    for orientation in range(2, 9):
        assert difference(read_image(folder / f"exif_{orientation}.jpg"), first) < 4, orientation
    for name in ("progressive.jpg", "icc_srgb.jpg", "trailing_garbage.jpg", "UPPER.JPG", "naïve name ☃.jpg"):
        assert difference(read_image(folder / name), base) < 1, name
    for name in ("cmyk.jpg", "still.webp", "plain.jp2"):  # the last at 1.2 bits a pixel
        assert difference(read_image(folder / name), base) < 12, name
    gray = read_image(folder / "gray.png")
    for name, limit in (("gray16.png", 1), ("gray_alpha.png", 0.01), ("gray.jpg", 5)):
        assert difference(read_image(folder / name), gray) < limit, name
    # the traps: 16 bits clipped are nearly all white, a float picture is not all black
    assert 100 < read_image(folder / "gray16.png").mean() < 140
    assert 100 < read_image(folder / "float32.tif").mean() < 140
