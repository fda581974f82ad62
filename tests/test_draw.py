from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from yolonas import draw, label_text, window
from yolonas.draw import BLACK, PALETTE, WHITE, bgr_copy, default_font_size, default_line_width, draw_boxes

NO_FONT = "no-such-font.ttf"  # the tests must not depend on whether this machine has Arial


@pytest.fixture(autouse=True)
def _same_font_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_text, "_wanted_face", lambda font: None if font in ("Arial.ttf", NO_FONT) else font)
    for cached in (
        label_text._kept_mask,
        label_text._face_for,
        label_text._warn_of_missing,
        window._warn_once,
    ):
        cached.cache_clear()


def blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def drawn(image: np.ndarray) -> np.ndarray:
    return (image != 90).any(axis=2)


def test_palette_colors_are_distinct_and_never_gray() -> None:
    colors = np.array(PALETTE, np.float64)
    assert colors.shape == (20, 3)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e9 * np.eye(20)
    assert distances.min() > 50
    assert (colors.max(axis=1) - colors.min(axis=1)).min() > 50


def test_frame_lies_on_the_box() -> None:
    image = blank(100, 120)
    draw_boxes(image, np.array([[20, 30, 80, 70]]), line_width=1)
    rows, columns = np.nonzero(drawn(image))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 30, 79, 69)
    assert drawn(image).sum() == 2 * (60 + 40) - 4
    assert {tuple(color) for color in image[drawn(image)]} == {PALETTE[0]}


def test_frame_of_the_whole_picture_is_not_cut() -> None:
    image = blank(100, 120)
    draw_boxes(image, np.array([[0, 0, 120, 100]]), line_width=4)
    assert drawn(image)[:4].all()
    assert drawn(image)[-4:].all()
    assert drawn(image)[:, :4].all()
    assert drawn(image)[:, -4:].all()
    assert not drawn(image)[4:-4, 4:-4].any()


def test_colors_by_class_wrap_and_take_any_number() -> None:
    image = blank(20, 120)
    classes = np.array([1, 21, -1, 10**12])
    draw_boxes(image, np.array([[k * 30, 2, k * 30 + 20, 18] for k in range(4)]), classes=classes, line_width=1)
    assert [tuple(image[2, k * 30 + 5]) for k in range(4)] == [PALETTE[1], PALETTE[1], PALETTE[19], PALETTE[0]]


@pytest.mark.parametrize(
    "box",
    [
        [np.nan, 1, 5, 5],
        [1, 1, np.inf, 5],
        [-50, -50, -1, -1],
        [200, 1, 300, 5],
        [1, 90, 5, 95],
    ],
)
def test_boxes_that_cannot_be_seen_are_left_out(box: list[float]) -> None:
    image = blank(60, 80)
    draw_boxes(image, np.array([box], np.float32), labels=["x 0.50"])
    assert not drawn(image).any()


@pytest.mark.parametrize(
    "box",
    [[-1e30, -1e30, 1e30, 1e30], [50, 40, 10, 5], [30, 30, 30, 30], [79.5, 59.5, 80, 60], [-5, -5, 0.5, 0.5]],
    ids=["huge", "inverted", "point", "corner", "outer corner"],
)
@pytest.mark.parametrize("line_width", [1, 2, 3, 500])
def test_awkward_boxes_are_drawn(box: list[float], line_width: int) -> None:
    image = blank(60, 80)
    draw_boxes(image, np.array([box], np.float32), labels=["x 0.50"], line_width=line_width)
    assert drawn(image).any()


def test_no_boxes() -> None:
    image = blank(10, 10)
    draw_boxes(image, np.zeros((0, 4)), labels=[], classes=np.zeros(0), scores=np.zeros(0))
    assert not drawn(image).any()


def test_better_boxes_are_on_top() -> None:
    boxes = np.array([[10, 10, 50, 50], [10, 10, 50, 50]])
    for scores, expected in (([0.9, 0.5], 0), ([0.5, 0.9], 1), ([0.5, 0.5], 0)):
        image = blank(60, 60)
        draw_boxes(image, boxes, classes=np.array([0, 1]), scores=np.array(scores))
        assert tuple(image[10, 20]) == PALETTE[expected]


def test_drawing_is_deterministic_and_the_same_from_many_threads() -> None:
    random = np.random.default_rng(0)
    boxes = random.uniform(0, 300, (40, 2))
    boxes = np.concatenate([boxes, boxes + random.uniform(5, 90, (40, 2))], axis=1)
    labels = [f"name {k} {k / 40:.2f}" for k in range(40)]

    def picture(_: int) -> bytes:
        image = blank(300, 400)
        draw_boxes(image, boxes, labels=labels, classes=np.arange(40), scores=np.linspace(0, 1, 40))
        return image.tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(picture, range(24)))) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (6, 400), (400, 6), (20, 20), (60, 60), (64, 1000)])
@pytest.mark.parametrize(
    "label", ["person 0.87", "a very long name of a class " * 9 + "0.99", "0.50", "x", "", " \n\t"]
)
@pytest.mark.parametrize("font_size", [None, 1, 13.4, 300])
def test_any_picture_size(size: tuple[int, int], label: str, font_size: float | None) -> None:
    image = blank(*size)
    draw_boxes(image, np.array([[0, 0, size[1], size[0]]], np.float32), labels=[label], font_size=font_size)
    assert drawn(image).any()


def label_area(
    label: str, box: tuple[float, float, float, float], size: tuple[int, int], **options: object
) -> np.ndarray:
    """left, top, right, bottom of what a label adds to the picture."""
    with_label, without = blank(*size), blank(*size)
    draw_boxes(with_label, np.array([box]), labels=[label], **options)
    draw_boxes(without, np.array([box]), **options)
    rows, columns = np.nonzero((with_label != without).any(axis=2))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize(
    "box", [(200, 200, 300, 300), (0, 0, 100, 100), (390, 100, 400, 300), (100, 0, 390, 400), (350, 380, 400, 400)]
)
def test_label_lies_wholly_inside_the_picture(box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = label_area("person 0.87", box, (400, 400))
    expected = draw._compose_label("person 0.87", draw._label_size(np.array([box]), 400, 400), NO_FONT)
    lines = 2 * default_line_width(400, 400)  # the label may lie over its own frame
    assert 0 <= expected.shape[1] - (right - left) <= lines
    assert 0 <= expected.shape[0] - (bottom - top) <= lines


def test_label_stands_on_the_box_where_there_is_room() -> None:
    left, _, _, bottom = label_area("cat 0.50", (100, 100, 200, 200), (300, 300), line_width=2)
    assert (left, bottom) == (99, 99)


def test_label_inside_at_the_upper_edge() -> None:
    _, top, _, bottom = label_area("cat 0.50", (100, 0, 250, 200), (300, 300), line_width=1)
    assert top <= 1
    assert bottom < 40


def test_labels_avoid_each_other() -> None:
    boxes = [[100 + 3 * k, 100 + 3 * k, 220 + 3 * k, 220 + 3 * k] for k in range(3)]
    placed = draw._place_labels(["one 0.91", "two 0.82", "three 0.73"], boxes, 2, 14, NO_FONT, (400, 400, 3))
    canvas = np.zeros((400, 400), int)
    for mask, left, top in placed:
        assert mask is not None
        canvas[top : top + mask.shape[0], left : left + mask.shape[1]] += 1
    assert canvas.max() == 1


def test_labels_leave_small_boxes_free() -> None:
    boxes = [[100, 100, 200, 200], [100, 85, 110, 97]]
    (mask, left, top), _ = draw._place_labels(["big 0.91", "small 0.82"], boxes, 1, 14, NO_FONT, (400, 400, 3))
    assert mask is not None
    assert top >= 97 or left >= 110


def test_label_size_follows_the_picture() -> None:
    sizes = [(60, 60), (480, 640), (1080, 1920), (4000, 6000)]
    assert [default_line_width(*size) for size in sizes] == [1, 2, 3, 8]
    assert [default_font_size(*size) for size in sizes] == [9, 14, 24, 62]
    small_boxes = np.array([[0, 0, 40, 60]] * 9)
    assert draw._label_size(small_boxes, 4000, 6000) == 25
    assert draw._label_size(small_boxes * 30, 4000, 6000) == 62


@pytest.mark.parametrize("color", PALETTE)
def test_text_reads_well_on_every_color(color: tuple[int, int, int]) -> None:
    def luminance(bgr: tuple[int, ...]) -> float:
        linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in bgr]
        return 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]

    first, second = sorted((luminance(color), luminance(draw._text_color(color, WHITE))))
    assert (second + 0.05) / (first + 0.05) > 3.4


def test_text_color_of_the_user_is_used() -> None:
    for color in (BLACK, (0, 0, 255), (1, 2, 3)):
        image = blank(100, 200)
        draw_boxes(image, np.array([[20, 50, 150, 90]]), labels=["MMM"], font_size=30, txt_color=color)
        assert (image == color).all(axis=2).sum() > 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("traffic light 0.87", ("traffic light", "0.87")),
        ("0.87", ("", "0.87")),
        ("cat", ("cat", "")),
        ("two words", ("two words", "")),
        ("type ² 0.1", ("type ²", "0.1")),
        ("x 1.2.3", ("x 1.2.3", "")),
    ],
)
def test_split_score(text: str, expected: tuple[str, str]) -> None:
    assert draw._split_score(text) == expected


def test_too_long_names_are_shortened_and_keep_the_score() -> None:
    label = draw._drawable("very long name " * 20 + "0.75", 0, NO_FONT)
    assert label.startswith("very long name")
    assert label.endswith(".. 0.75")
    mask = draw._label_mask("refrigerator 0.75", 14, NO_FONT, 70, 100)
    assert mask is not None
    assert mask.shape[1] <= 70
    shortened = [f"{'refrigerator'[:letters]}.. 0.75" for letters in range(4, 12)]
    candidates = [draw._compose_label(text, size, NO_FONT) for text in shortened for size in range(10, 15)]
    assert any(np.array_equal(mask, candidate) for candidate in candidates)


def test_control_characters_do_not_reach_the_picture() -> None:
    assert draw._drawable("a\x1b[31m\nb\ud800 \u202e 0.5", 0, NO_FONT) == "a [31m b 0.5"


def test_built_in_font_has_ascii_only_so_others_are_asked() -> None:
    for letter in "Ag0~ ":
        assert label_text._has(label_text._BUILT_IN, letter)
    for letter in "é红й🙂":
        assert not label_text._has(label_text._BUILT_IN, letter)
    assert label_text._face_for("person", NO_FONT) == label_text._BUILT_IN


@pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV 4 has no fonts of its own")
@pytest.mark.parametrize("text", ["红细胞", "étoile Ångström", "Привет", "日本語", "한국어"])
def test_other_scripts_are_drawn(text: str) -> None:
    assert label_text.can_show(text, NO_FONT)
    mask, baseline = label_text.text_mask(text, 30, NO_FONT)
    question_marks, _ = label_text.text_mask("?" * len(text), 30, NO_FONT)
    assert mask.any()
    assert mask.shape != question_marks.shape or (mask != question_marks).any()
    assert 15 < baseline <= mask.shape[0]
    assert 15 < mask.shape[0] < 50


def test_names_that_no_font_can_show(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(label_text, "_faces", lambda font: iter([label_text._BUILT_IN]))
    with caplog.at_level(logging.WARNING, "yolonas"):
        assert draw._drawable("红细胞 0.87", 7, NO_FONT) == "class 7 0.87"
        assert draw._drawable("红细胞 0.31", 7, NO_FONT) == "class 7 0.31"
        assert draw._drawable("id:5 红细胞 0.31", 7, NO_FONT) == "class 7 0.31"
        assert draw._drawable("étoile 0.5", 7, NO_FONT) == "etoile 0.5"
    assert [record.args for record in caplog.records] == [("红细胞",), ("é",)]


def test_right_to_left_text_is_left_to_fonts_that_can_shape_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_text, "_faces", lambda font: iter(["first", label_text._OPENCV, "last"]))
    monkeypatch.setattr(label_text, "_has", lambda face, letter: face != "first")
    assert label_text._face_for("קטה", NO_FONT) == "last"
    assert label_text._face_for("кот", NO_FONT) == label_text._OPENCV


def test_a_font_file_of_the_user_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = label_text._system_fonts()
    if not fonts:
        pytest.skip("no TrueType font on this machine")
    mine = tmp_path / "Schrift é.ttf"
    mine.write_bytes(Path(fonts[0]).read_bytes())
    monkeypatch.undo()
    if not all(label_text._has(str(mine), letter) for letter in "cat"):
        pytest.skip(f"{fonts[0]} has no Latin letters")
    wanted, _ = label_text.text_mask("cat", 40, str(mine))
    built_in, _ = label_text.text_mask("cat", 40, NO_FONT)
    assert wanted.shape != built_in.shape or (wanted != built_in).any()


def test_unreadable_font_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"not a font" * 100)
    with caplog.at_level(logging.WARNING, "yolonas"):
        for font in (str(broken), str(tmp_path / "missing.ttf")):
            label_text._wanted_face.cache_clear()
            label_text.text_mask("cat", 12, font)
    assert [record.args[0] for record in caplog.records] == [str(broken), str(tmp_path / "missing.ttf")]


def test_fonts_of_the_machine_that_are_broken_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"\0" * 50)
    assert not label_text._has(str(tmp_path / "broken.ttf"), "a")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_bgr_copy(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for view in (image, image[::-1, ::-1]):
        copy = bgr_copy(view)
        assert copy.shape == (5, 7, 3)
        assert copy.flags.c_contiguous
        assert copy.flags.owndata
        np.testing.assert_array_equal(copy[:, :, 0], view if view.ndim == 2 else view[:, :, 0])


def no_window(*_: object) -> None:
    raise AssertionError("a window was opened")


def test_show_without_display_warns(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cv2, "namedWindow", no_window)
    with caplog.at_level(logging.WARNING, "yolonas"):
        assert not window.show_image(blank(5, 5), "x")
        assert not window.show_image(blank(5, 5), "y")
    assert [record.args for record in caplog.records] == [("neither DISPLAY nor WAYLAND_DISPLAY is set",)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DISPLAY belongs to Linux")
def test_show_with_a_display_that_leads_nowhere_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DISPLAY", "127.0.0.1:4321")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("QT_QPA_PLATFORM", raising=False)
    monkeypatch.setattr(cv2, "namedWindow", no_window)
    with caplog.at_level(logging.WARNING, "yolonas"):
        assert not window.show_image(blank(5, 5), "x")
    assert "no window can be opened" in caplog.text


def test_window_trial_is_made_once_and_reports_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    window._window_trial.cache_clear()
    calls = []

    def run(*_: object, **__: object) -> SimpleNamespace:
        calls.append(1)
        return SimpleNamespace(returncode=-6, stderr="\nqt.qpa.xcb: could not connect to display :5\nmore\n")

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(3):
        assert window._window_trial(":5", None, None) == "qt.qpa.xcb: could not connect to display :5"
    assert len(calls) == 1
    window._window_trial.cache_clear()


def test_show_waits_until_the_window_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    visible = iter([1.0, 1.0, 0.0])
    monkeypatch.setattr(window, "no_display_reason", lambda: None)
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: events.append("open"))
    monkeypatch.setattr(cv2, "resizeWindow", lambda _, width, height: events.append((width, height)))
    monkeypatch.setattr(cv2, "imshow", lambda *_: events.append("show"))
    monkeypatch.setattr(cv2, "waitKey", lambda _: -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: next(visible))
    monkeypatch.setattr(cv2, "destroyWindow", lambda *_: events.append("close"))
    assert window.show_image(np.zeros((4000, 6000, 3), np.uint8), "x")
    assert events == ["open", (1350, 900), "show", "close"]
    events.clear()
    assert window.show_image(blank(5, 5), "x", wait_ms=1)
    assert events == ["open", (5, 5), "show"]


def test_show_with_an_opencv_without_windows_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(window, "no_display_reason", lambda: None)
    monkeypatch.setattr(cv2, "namedWindow", refuse)
    with caplog.at_level(logging.WARNING, "yolonas"):
        assert not window.show_image(blank(5, 5), "x")
    assert "not implemented" in caplog.text


def test_show_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    display = SimpleNamespace(display=shown.append, Image=lambda data: data)
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()), display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(cv2, "namedWindow", no_window)
    assert window.show_image(blank(5, 6), "x")
    assert cv2.imdecode(np.frombuffer(shown[0], np.uint8), cv2.IMREAD_COLOR).shape == (5, 6, 3)
