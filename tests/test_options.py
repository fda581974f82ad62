"""Options: what users type, old names, wrong names, wrong values."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from yolonas.options import unknown_name
from yolonas.predict import PredictOptions


def test_defaults() -> None:
    options = PredictOptions.of()
    assert (options.conf, options.iou, options.imgsz, options.max_det, options.batch) == (None, None, None, None, 1)
    assert options.save is False
    assert options.verbose is True


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("conf", 25, r"conf must lie in 0\.\.1, got 25; did you mean 0\.25\?"),
        ("conf", -0.1, "conf must lie in 0..1, got -0.1"),
        ("conf", float("nan"), "conf must be finite"),
        ("conf", "high", "conf must be a number, got 'high'"),
        ("iou", 1.5, "iou must lie in 0..1"),
        ("imgsz", 20_000, "imgsz must be at most 16384"),
        ("imgsz", (640, 640, 3), "one side or"),
        ("imgsz", 10**9, "imgsz must be a whole number in"),
        ("batch", 0, r"batch must be a whole number in 1\.\.4096, got 0"),
        ("max_det", 2.5, "max_det must be a whole number"),
        ("classes", [-1], "classes must be a whole number"),
        ("save", "yes", "save must be True or False, got 'yes'"),
        ("protocol", "yolo", "protocol must be one of 'sg', 'ultralytics'"),
        ("quantize", 4, "quantize must be one of"),
    ],
)
def test_wrong_values_say_what_is_right(name: str, value: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PredictOptions.of(**{name: value})


@pytest.mark.parametrize(("wrong", "right"), [("confidence", "conf"), ("img_sz", "imgsz"), ("save_text", "save_txt")])
def test_unknown_names_get_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown argument '{wrong}'; did you mean .*'{right}'"):
        PredictOptions.of(**{wrong: 1})
    assert right in unknown_name("argument", wrong, PredictOptions.__dataclass_fields__)


def test_old_names_are_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "yolonas"):
        options = PredictOptions.of(hide_labels=True, hide_conf=False, line_thickness=3, half=True, show_fps=True)
    assert (options.show_labels, options.show_conf, options.line_width, options.quantize) == (False, True, 3, "fp16")
    for text in ("'hide_labels' is an old name, use 'show_labels'", "quantize='fp16'", "'show_fps' has no meaning"):
        assert text in caplog.text


def test_a_new_name_wins_over_its_old_one() -> None:
    assert PredictOptions.of(hide_labels=True, show_labels=True).show_labels is True


def test_options_without_effect_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "yolonas"):
        PredictOptions.of(augment=True, dnn=False)
    assert "'augment' has no effect" in caplog.text
    assert "dnn" not in caplog.text


def test_int8_wins_over_half() -> None:
    assert PredictOptions.of(half=True, int8=True).quantize == "int8"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        *[(32, "fp32"), ("fp32", "fp32"), (16, "fp16"), ("W16A16", "fp16")],
        *[(8, "int8"), ("8", "int8"), ("INT8", "int8"), ("w8a16", "int8")],
    ],
)
def test_precisions(value: object, kept: str) -> None:
    assert PredictOptions.of(quantize=value).quantize == kept


@pytest.mark.parametrize(("quantize", "kept"), [(None, "fp16"), (32, "fp32")])
def test_an_old_precision_gives_way_only_to_a_new_one(quantize: object, kept: str) -> None:
    assert PredictOptions.of(half=True, quantize=quantize).quantize == kept


def test_sizes_go_up_to_the_stride(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "yolonas"):
        assert PredictOptions.of(imgsz=(650, 640)).imgsz == (672, 640)
    assert "imgsz 650x640 is not a multiple of 32, using 672x640" in caplog.text


def test_none_is_the_default() -> None:
    assert PredictOptions.of(**dict.fromkeys(PredictOptions.__dataclass_fields__)) == PredictOptions()


def test_sizes_and_classes() -> None:
    assert PredictOptions.of(imgsz=320).imgsz == (320, 320)
    assert PredictOptions.of(imgsz=[384, 640]).imgsz == (384, 640)
    assert PredictOptions.of(classes=3).classes == (3,)
    assert PredictOptions.of(classes=[1, 2]).classes == (1, 2)
    assert PredictOptions.of(classes=np.array([1, 2])).classes == (1, 2)
    assert PredictOptions.of(classes=np.int64(1)).classes == (1,)
