"""The table of architectures, and the class names."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from yolonas.config import COCO_NAMES, VARIANTS, variant_by_head_width


def test_variants_are_keyed_by_their_names() -> None:
    assert {name: variant.model_name for name, variant in VARIANTS.items()} == {
        "s": "yolo_nas_s",
        "m": "yolo_nas_m",
        "l": "yolo_nas_l",
    }


def test_the_head_width_tells_the_size() -> None:
    assert [variant_by_head_width(width).name for width in (64, 96, 128)] == ["s", "m", "l"]
    with pytest.raises(ValueError, match=r"must be one of 64 \(s\), 96 \(m\), 128 \(l\), got 80"):
        variant_by_head_width(80)


def test_only_deep_stages_differ_in_concat() -> None:
    concat = {name: [stage.concat for stage in variant.backbone] for name, variant in VARIANTS.items()}
    assert concat == {"s": [False] * 4, "m": [True, True, True, False], "l": [True] * 4}


def test_variants_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        VARIANTS["s"].name = "m"  # type: ignore[misc]


def test_coco_names_are_the_eighty_in_order() -> None:
    assert len(COCO_NAMES) == len(set(COCO_NAMES)) == 80
    assert (COCO_NAMES[0], COCO_NAMES[56], COCO_NAMES[79]) == ("person", "chair", "toothbrush")


def test_config_does_not_need_torch() -> None:
    code = "import sys, yolonas.config; print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
