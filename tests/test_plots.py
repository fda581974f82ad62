from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolonas.config import COCO_NAMES
from yolonas.draw import PALETTE
from yolonas.plots import (
    confusion,
    curves,
    figure,
    mosaic,
    plot_confidence_curve,
    plot_confusion_matrix,
    plot_pr_curve,
    plot_sensitivity,
    sensitivity,
)

ODD_NAMES = [
    "$x^2$ and $", "_hidden", "\u65e5\u672c\u8a9e", "a\nb\tc", "W" * 60, "", "caf\u00e9", "x" * 10**6, "\udcff bad",
    "\\frac{1}{2}", "\U0001f996", "%s {0}",
]  # fmt: skip


def names_of(count: int) -> list[str]:
    return list(COCO_NAMES[:count]) if count <= 80 else [f"thing {number}" for number in range(count)]


def some_curves(count: int, points: int = 101) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.linspace(0, 1, points)
    height = np.linspace(0.3, 0.9, count)
    y = np.minimum.accumulate(height[:, None] * (1 - x**3) * (x < height[:, None]), axis=1)
    return x, y, y.mean(axis=1)


def some_matrix(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    matrix = rng.poisson(1, (count + 1, count + 1)) + np.diag(rng.poisson(90, count + 1))
    matrix[-1, -1] = 0
    return matrix


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved, for looking into them."""
    kept: list[Any] = []

    def keep(drawn: Any, path: Any) -> None:
        figure.save(drawn, path)
        kept.append(drawn)

    monkeypatch.setattr(curves, "save", keep)
    monkeypatch.setattr(confusion, "save", keep)
    monkeypatch.setattr(sensitivity, "save", keep)
    return kept


def texts(drawn: Any) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in drawn.findobj(Text) if text.get_visible() and text.get_text()]


def curve_lines(drawn: Any) -> list[Any]:
    return [line for line in drawn.axes[0].lines if line.get_linestyle() != "None"]


def after(found: list[str], name: str) -> str:
    """The number that stands beside a name."""
    return found[found.index(name) + 1]


def check_texts(drawn: Any) -> None:
    """Every text lies inside the canvas, and no two on each other."""
    from matplotlib.text import Text

    renderer = drawn.canvas.get_renderer()
    shown = [text for text in drawn.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = np.array([text.get_window_extent(renderer).extents for text in shown])
    width, height = drawn.canvas.get_width_height()
    for text, (x1, y1, x2, y2) in zip(shown, boxes, strict=True):
        assert x1 >= 0, text
        assert y1 >= 0, text
        assert x2 <= width, text
        assert y2 <= height, text
    boxes += [1.5, 3, -1.5, -3]  # the line height reserves more than letters fill
    for index, box in enumerate(boxes):
        others = boxes[index + 1 :]
        overlap = np.minimum(box[2:], others[:, 2:]) > np.maximum(box[:2], others[:, :2])
        hits = np.flatnonzero(overlap.all(axis=1))
        assert not len(hits), f"{shown[index]} lies on {shown[index + 1 + hits[0]]}"


# --- curves


@pytest.mark.parametrize("count", [1, 2, 3, 20, 21, 80, 300])
def test_curves_of_any_number_of_classes(count: int, tmp_path: Path, figures: list[Any]) -> None:
    x, y, ap = some_curves(count)
    plot_pr_curve(tmp_path / "BoxPR_curve.png", x, y, ap, names_of(count))
    plot_confidence_curve(tmp_path / "BoxF1_curve.png", x, y, names_of(count), ylabel="F1", best=True)
    plot_confidence_curve(tmp_path / "BoxP_curve.png", x, y, names_of(count), ylabel="Precision", threshold=0.7)
    plot_confidence_curve(tmp_path / "BoxR_curve.png", x, y, names_of(count), ylabel="Recall")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "BoxF1_curve.png", "BoxPR_curve.png", "BoxP_curve.png", "BoxR_curve.png",
    ]  # fmt: skip
    for file in tmp_path.iterdir():
        picture = cv2.imread(str(file))
        assert picture.shape == (960, 1440, 3)
        assert (picture[0] == 255).all()
        assert (picture < 60).any()
    for drawn in figures:
        check_texts(drawn)


def test_pr_curve_names_each_class_and_the_mean(tmp_path: Path, figures: list[Any]) -> None:
    x, y, _ = some_curves(3)
    plot_pr_curve(tmp_path / "a.png", x, y, np.array([0.861, 0.2, 0.5204]), ["Platelets", "RBC", "WBC"])
    found = texts(figures[0])
    assert after(found, "all classes (mAP)") == "0.527"
    assert [after(found, name) for name in ("Platelets", "RBC", "WBC")] == ["0.861", "0.200", "0.520"]
    assert {"AP@0.5", "Recall", "Precision", "Precision-recall curve, IoU 0.5"} <= set(found)
    *per_class, mean = curve_lines(figures[0])
    assert len(per_class) == 3
    np.testing.assert_allclose(mean.get_ydata(), y.mean(axis=0))
    assert mean.get_linewidth() > 1.5 * per_class[0].get_linewidth()
    assert len({line.get_color() for line in (*per_class, mean)}) == 4


def test_a_curve_stops_where_it_comes_down_to_zero(tmp_path: Path, figures: list[Any]) -> None:
    y = np.array([[0.9, 0.5, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.4, 0.4], [0.0] * 5])
    plot_pr_curve(tmp_path / "a.png", np.linspace(0, 1, 5), y, y.mean(axis=1), ["a", "b", "c"])
    drawn = np.array([line.get_ydata() for line in curve_lines(figures[0])[:3]])
    nan = np.nan
    np.testing.assert_array_equal(drawn, [[0.9, 0.5, 0, nan, nan], y[1], [0, nan, nan, nan, nan]])


def test_one_class_needs_no_mean(tmp_path: Path, figures: list[Any]) -> None:
    x, y, ap = some_curves(1)
    plot_pr_curve(tmp_path / "a.png", x, y, ap, ["helmet"])
    assert "helmet" in texts(figures[0])
    assert "all classes (mAP)" not in texts(figures[0])
    assert len(curve_lines(figures[0])) == 1


def test_many_classes_name_the_best_and_the_worst(tmp_path: Path, figures: list[Any]) -> None:
    x, y, _ = some_curves(80)
    ap = np.linspace(0.1, 0.89, 80)[::-1].copy()
    ap[5], y[6] = np.nan, np.nan
    plot_pr_curve(tmp_path / "a.png", x, y, ap, names_of(80))
    found = texts(figures[0])
    best, worst = found.index("best 3"), found.index("worst 3")
    assert found[best + 1 : best + 7 : 2] == list(COCO_NAMES[:3])
    assert found[worst + 1 : worst + 7 : 2] == list(COCO_NAMES[77:])
    assert "73 others" in found
    assert after(found, "all classes (mAP)") == f"{np.nanmean(ap):.3f}"
    assert len(curve_lines(figures[0])) == 7
    assert len(figures[0].axes[0].collections[0].get_segments()) == 79


def test_of_many_classes_with_few_known_those_are_named(tmp_path: Path, figures: list[Any]) -> None:
    x, y, ap = some_curves(80)
    y[4:], ap[4:] = np.nan, np.nan
    plot_pr_curve(tmp_path / "a.png", x, y, ap, names_of(80))
    found = texts(figures[0])
    assert set(COCO_NAMES[:4]) <= set(found)
    assert not {"best 3", COCO_NAMES[4]} & set(found)
    assert len(curve_lines(figures[0])) == 5


def test_best_marks_the_highest_mean(tmp_path: Path, figures: list[Any]) -> None:
    conf = np.linspace(0, 1, 1001)
    values = np.stack([np.full(1001, 0.6), np.zeros(1001)])
    values[0, 423], values[1, 423] = 0.7, 0.52
    plot_confidence_curve(tmp_path / "a.png", conf, values, ["a", "b"], ylabel="F1", best=True)
    found = texts(figures[0])
    assert "max F1 0.61 at 0.423" in found
    assert "F1 at 0.423" in found
    assert [after(found, name) for name in ("all classes", "a", "b")] == ["0.610", "0.700", "0.520"]
    check_texts(figures[0])


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.75, 1.0])
def test_threshold_is_marked(threshold: float, tmp_path: Path, figures: list[Any]) -> None:
    conf = np.linspace(0, 1, 101)
    plot_confidence_curve(
        tmp_path / "a.png", conf, np.stack([conf, conf]), ["a", "b"], ylabel="Precision", threshold=threshold
    )
    assert f"Precision {threshold:.2f} at {threshold:.3f}" in texts(figures[0])
    check_texts(figures[0])


def test_without_a_mark_the_numbers_are_means(tmp_path: Path, figures: list[Any]) -> None:
    conf = np.linspace(0, 1, 101)
    plot_confidence_curve(tmp_path / "a.png", conf, np.stack([conf, conf / 2]), ["a", "b"], ylabel="Recall")
    found = texts(figures[0])
    assert "mean Recall" in found
    assert [after(found, name) for name in ("all classes", "a", "b")] == ["0.375", "0.500", "0.250"]


def test_what_is_not_known_is_left_out(tmp_path: Path, figures: list[Any]) -> None:
    x, y, ap = some_curves(3)
    y[1], ap[1], y[2, 50:] = np.nan, np.nan, np.inf
    plot_pr_curve(tmp_path / "a.png", x, y, ap, ["a", "b", "c"])
    found = texts(figures[0])
    assert after(found, "b") == "\N{EN DASH}"
    assert after(found, "all classes (mAP)") == f"{np.nanmean(ap):.3f}"
    lines = curve_lines(figures[0])
    assert len(lines) == 3
    np.testing.assert_allclose(lines[-1].get_ydata()[:50], (y[0] + y[2])[:50] / 2)
    np.testing.assert_allclose(lines[-1].get_ydata()[50:], y[0, 50:])


@pytest.mark.parametrize(
    ("values", "names"),
    [(np.zeros((0, 5)), []), (np.full((2, 5), np.nan), ["a", "b"]), (np.full((50, 5), np.nan), names_of(50))],
    ids=["no class", "all NaN", "many NaN"],
)
def test_nothing_to_show(values: np.ndarray, names: list[str], tmp_path: Path, figures: list[Any]) -> None:
    x = np.linspace(0, 1, 5)
    plot_pr_curve(tmp_path / "a.png", x, values, np.full(len(names), np.nan), names)
    plot_confidence_curve(tmp_path / "b.png", x, values, names, ylabel="F1", best=True)
    plot_confidence_curve(tmp_path / "c.png", x[:0], values[:, :0], names, ylabel="F1", best=True, threshold=0.5)
    assert all("nothing to show" in texts(drawn) for drawn in figures)
    assert len(figures) == len(list(tmp_path.iterdir())) == 3


def test_shapes_are_checked(tmp_path: Path) -> None:
    x, y, ap = some_curves(3)
    with pytest.raises(ValueError, match=r"plot_pr_curve: precision must have shape \(2, 101\), got \(3, 101\)"):
        plot_pr_curve(tmp_path / "a.png", x, y, ap, ["a", "b"])
    with pytest.raises(ValueError, match=r"plot_pr_curve: ap50 must have shape \(3,\), got \(2,\)"):
        plot_pr_curve(tmp_path / "a.png", x, y, ap[:2], ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"plot_confidence_curve: conf must have shape \(P,\), got \(1, 101\)"):
        plot_confidence_curve(tmp_path / "a.png", x[None], y, ["a", "b", "c"], ylabel="F1")
    with pytest.raises(ValueError, match="conf must be finite"):
        plot_confidence_curve(tmp_path / "a.png", x * np.nan, y, ["a", "b", "c"], ylabel="F1")
    with pytest.raises(ValueError, match=r"matrix must have shape \(4, 4\), got \(3, 4\)"):
        plot_confusion_matrix(tmp_path / "a.png", np.zeros((3, 4)), ["a", "b", "c"], normalize=True)
    assert not list(tmp_path.iterdir())


# --- names


def test_odd_names(tmp_path: Path, figures: list[Any]) -> None:
    count = len(ODD_NAMES)
    x, y, ap = some_curves(count)
    plot_pr_curve(tmp_path / "a.png", x, y, ap, dict(enumerate(ODD_NAMES, 30)))
    plot_confusion_matrix(tmp_path / "b.png", some_matrix(count), ODD_NAMES, normalize=False, note="$a_b$")
    found = texts(figures[0])
    assert {"$x^2$ and $", "_hidden", "class 32", "a b c", "class 35", "caf\u00e9", "bad", "class 40"} <= set(found)
    assert any(text.startswith("WWWW") and text.endswith("W..") for text in found)
    assert {"$x^2$ and $", "class 2", "$a_b$"} <= set(texts(figures[1]))
    for drawn in figures:
        check_texts(drawn)


def test_colors_follow_the_class_number_and_are_never_pale(tmp_path: Path, figures: list[Any]) -> None:
    x, y, ap = some_curves(2)
    plot_pr_curve(tmp_path / "a.png", x, y, ap, {0: "a", 6: "b"})
    first, second, _ = curve_lines(figures[0])
    assert (
        (first.get_color(), second.get_color())
        == (figure.line_color(0), figure.line_color(6))
        == ("#ff5a1f", "#6900ff")
    )
    for number in range(len(PALETTE)):
        red, green, blue = (int(figure.line_color(number)[at : at + 2], 16) for at in (1, 3, 5))
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 152


# --- confusion matrix


@pytest.mark.parametrize("count", [0, 1, 3, 20, 30, 31, 80, 250])
@pytest.mark.parametrize("normalize", [False, True])
def test_confusion_matrix_of_any_size(count: int, normalize: bool, tmp_path: Path, figures: list[Any]) -> None:
    matrix = some_matrix(count)
    plot_confusion_matrix(tmp_path / "c.png", matrix, names_of(count), normalize=normalize, note="confidence 0.25")
    drawn, found = figures[0], texts(figures[0])
    assert {"True", "Predicted", "background", "confidence 0.25", *names_of(count)[:1]} <= set(found)
    assert len(drawn.axes[0].texts) - 2 == (np.count_nonzero(matrix) if count <= 30 else 0)
    assert max(cv2.imread(str(tmp_path / "c.png")).shape) < 2400
    check_texts(drawn)


def test_confusion_matrix_shows_shares_of_columns(tmp_path: Path, figures: list[Any]) -> None:
    matrix = np.array([[6, 0, 3], [2, 0, 0], [0, 0, 0]])  # rows predicted, columns true; no true "b"
    plot_confusion_matrix(tmp_path / "c.png", matrix, ["a", "b"], normalize=True)
    plot_confusion_matrix(tmp_path / "d.png", matrix, ["a", "b"], normalize=False)
    shares, counts = (drawn.axes[0] for drawn in figures)
    shown = shares.images[0].get_array()
    np.testing.assert_allclose(shown.filled(0), [[0.75, 0, 1], [0.25, 0, 0], [0, 0, 0]])
    assert shown.mask[:, 1].all()
    assert shares.get_ylim() == (2.5, -0.5)  # the first class on top
    cells = {text.get_position(): text.get_text() for text in counts.texts if not hasattr(text, "xyann")}
    assert cells == {(0, 0): "6", (2, 0): "3", (0, 1): "2"}
    cells = {text.get_position(): text.get_text() for text in shares.texts if not hasattr(text, "xyann")}
    assert cells == {(0, 0): "0.75", (2, 0): "1.00", (0, 1): "0.25"}
    assert [label.get_text() for label in counts.get_xticklabels()] == ["a", "b", "background"]
    picture = cv2.imread(str(tmp_path / "c.png"))
    box = shares.get_window_extent()
    middle = picture[int(picture.shape[0] - (box.y0 + box.y1) / 2), int((box.x0 + box.x1) / 2)]
    assert middle.tolist() == [255, 255, 255]  # the empty column is white


def test_confusion_matrix_takes_bad_and_large_counts(tmp_path: Path, figures: list[Any]) -> None:
    matrix = np.array([[np.nan, -3, 123456], [4.4e7, np.inf, 12], [0, 0, 0]])
    for normalize in (False, True):
        plot_confusion_matrix(tmp_path / "c.png", matrix, ["a", "b"], normalize=normalize)
    assert {"123k", "44M", "12"} <= set(texts(figures[0]))
    for drawn in figures:
        check_texts(drawn)
    plot_confusion_matrix(tmp_path / "c.png", np.zeros((3, 3)), ["a", "b"], normalize=False)


# --- all charts


def draw_all(folder: Path) -> list[np.ndarray]:
    x, y, ap = some_curves(12)
    plot_pr_curve(folder / "a.png", x, y, ap, names_of(12))
    plot_confidence_curve(folder / "b.png", x, y, names_of(12), ylabel="F1", best=True)
    plot_confidence_curve(folder / "c.png", *some_curves(40)[:2], names_of(40), ylabel="F1", best=True)
    plot_confusion_matrix(folder / "d.png", some_matrix(5), names_of(5), normalize=False, note="note")
    plot_confusion_matrix(folder / "e.png", some_matrix(5), names_of(5), normalize=True)
    plot_sensitivity(folder / "f.png", *some_losses(9), {"layer 2"})
    return [cv2.imread(str(folder / f"{name}.png")) for name in "abcdef"]


# --- what quantising costs


def some_losses(count: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    cls = np.sort(rng.uniform(15, 60, count))
    names = [f"layer {number}" for number in range(count)]
    return names, cls, cls + rng.uniform(-1, 9, count), rng.normal(0, 0.3, count)


@pytest.mark.parametrize("count", [1, 2, 39, 40, 41, 300])
def test_losses_of_any_number_of_layers(count: int, tmp_path: Path, figures: list[Any]) -> None:
    names, cls, box, drops = some_losses(count)
    plot_sensitivity(tmp_path / "a.png", names, cls, box, drops, names[1:3], note="64 pictures of cells val")
    plot_sensitivity(tmp_path / "b.png", names, cls, box)
    for drawn in figures:
        check_texts(drawn)
        found = texts(drawn)
        assert ("layer 40" in found) is False
        assert [f"layer {number}" in found for number in range(min(count, 40))] == [True] * min(count, 40)
        assert any(text.startswith(f"the 40 most sensitive of {count} layers") for text in found) == (count > 40)
    with_drops, without = map(texts, figures)
    assert ("stays in float" in with_drops) == (count > 1)
    assert "mAP50-95" in with_drops
    assert "mAP50-95" not in without
    for number in range(min(count, 5)):
        shown = f"{-drops[number]:+.2f}"
        assert (shown if abs(drops[number]) >= 0.005 else "0.00") in with_drops


def test_losses_that_are_extreme_or_oddly_named(tmp_path: Path, figures: list[Any]) -> None:
    names = ["a" * 300, "$x$", "heads.head1.cls_convs+reg_convs", "b", "c"]
    box = [np.inf, -np.inf, np.nan, 30.0, np.inf]
    plot_sensitivity(tmp_path / "a.png", names, [20.0, -np.inf, 25.0, np.inf, np.inf], box, [50.0, -9.0, np.nan, 0, 0])
    plot_sensitivity(tmp_path / "b.png", names[:1], [np.inf], [np.inf], [0.0])
    for drawn in figures:
        check_texts(drawn)
    assert "-50.00" in texts(figures[0])


def test_losses_check_their_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have 2 values"):
        plot_sensitivity(tmp_path / "a.png", ["a", "b"], [1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least one"):
        plot_sensitivity(tmp_path / "a.png", [], [], [])


def test_the_callers_style_changes_nothing(tmp_path: Path) -> None:
    import matplotlib
    import matplotlib.style

    expected = draw_all(tmp_path)
    with matplotlib.rc_context():
        matplotlib.style.use(["dark_background", "ggplot"])
        matplotlib.rcParams.update(
            {
                "text.usetex": True, "font.size": 30, "font.family": "serif", "text.color": "red", "axes.grid": True,
                "axes.grid.which": "both", "xtick.minor.visible": True, "xtick.top": True, "ytick.right": True,
                "xtick.direction": "in", "xtick.labelsize": 30, "xtick.alignment": "right", "ytick.alignment": "top",
                "xtick.labelbottom": False, "axes.spines.left": False, "axes.labelpad": 30, "axes.linewidth": 5,
                "lines.linestyle": ":", "lines.marker": "o", "lines.dash_capstyle": "round", "image.origin": "lower",
                "image.cmap": "jet", "figure.dpi": 30, "savefig.dpi": 50, "figure.autolayout": True,
                "axes.formatter.use_locale": True, "xaxis.labellocation": "left",
            }
        )  # fmt: skip
        before = dict(matplotlib.rcParams)
        got = draw_all(tmp_path)
        assert dict(matplotlib.rcParams) == before
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_array_equal(one, other)


def test_threads_draw_the_same(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        expected, *others = pool.map(draw_all, folders)
    for other in others:
        for one, two in zip(expected, other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_matplotlib_is_loaded_late_and_pyplot_never(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, yolonas.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.plot_confusion_matrix({str(tmp_path / 'a.png')!r}, np.eye(2), ['a'], normalize=True)\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


# --- mosaic


def flat(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_mosaic_lays_pictures_and_boxes_out() -> None:
    pictures = [flat(480, 640, 40 * k + 40) for k in range(4)]
    boxes = [np.array([[160, 120, 480, 360]]), *[np.zeros((0, 4))] * 3]
    classes = [np.array([1]), *[np.zeros(0)] * 3]
    canvas = mosaic(pictures, boxes, classes, None, ["a", "b"], list("abcd"), show_labels=False)
    assert canvas.dtype == np.uint8
    height, width = canvas.shape[:2]
    assert height <= 1920
    assert width <= 1920
    for k, (y, x) in enumerate([(0.3, 0.05), (0.3, 0.95), (0.7, 0.05), (0.7, 0.95)]):
        assert canvas[int(y * height), int(x * width)].tolist() == [40 * k + 40] * 3
    rows, columns = np.nonzero((canvas == PALETTE[1]).all(axis=2))
    left, top, right, bottom = columns.min(), rows.min(), columns.max(), rows.max()
    assert (right - left) / (bottom - top) == pytest.approx(4 / 3, abs=0.02)
    assert (right - left) / width == pytest.approx(0.25, abs=0.01)
    assert (left + right) / 2 / width == pytest.approx(0.25, abs=0.01)


def test_mosaics_of_truth_and_detections_have_one_layout() -> None:
    pictures = [flat(300 + 20 * k, 500 - 30 * k, 100) for k in range(5)]
    empty = [np.zeros((0, 4))] * 5
    plain = mosaic(pictures, empty, [[]] * 5, None, ["a"], ["x"] * 5)
    boxes, scores = [np.array([[50.0, 60, 200, 220], [10, 10, 40, 40]])] * 5, [np.array([0.9, 0.4])] * 5
    full = mosaic(pictures, boxes, [[0, 0]] * 5, scores, ["a"], ["x"] * 5)
    assert plain.shape == full.shape
    inside = (plain == 100).all(axis=2)
    changed = (plain != full).any(axis=2)
    assert changed[inside].any()
    captions = ~inside & changed  # only the counts of boxes in the captions differ
    assert captions.sum() < 0.01 * changed.size
    for picture in pictures:
        assert (picture == 100).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 16, 20])
@pytest.mark.parametrize("side", [320, 1000, 1920])
def test_mosaic_fits_its_side(count: int, side: int) -> None:
    rng = np.random.default_rng(count)
    pictures = [flat(*rng.integers(1, 900, 2).tolist(), 128) for _ in range(count)]
    canvas = mosaic(pictures, [[]] * count, [[]] * count, None, {}, ["x"] * count, side=side)
    assert max(canvas.shape[:2]) <= side
    assert (canvas == 128).all(axis=2).sum() > 50 * min(count, 16)


def test_thumbnails_are_enlarged_but_not_to_the_whole_canvas() -> None:
    assert mosaic([flat(32, 32, 9)], [[]], [[]], None, [], ["x"]).shape == (276, 252, 3)
    assert mosaic([flat(400, 400, 9)], [[]], [[]], None, [], ["x"]).shape == (836, 812, 3)


def test_mosaic_takes_any_picture_and_any_box() -> None:
    pictures = [
        np.full((50, 80), 90, np.uint8), np.full((50, 80, 1), 90, np.uint8), np.full((50, 80, 4), 90, np.uint8),
        flat(1, 2000, 90), flat(2000, 1, 90), flat(1, 1, 90), flat(60, 90, 90)[:, ::-1],
    ]  # fmt: skip
    boxes = [np.array([[np.nan, 1, 5, 5], [-1e30, 0, 1e30, 5], [3, 3, 3, 3], [20, 10, 40, 30]])] * 7
    classes = [np.array([0, -1, 10**9, 2])] * 7
    canvas = mosaic(pictures, boxes, classes, [np.array([0.5, np.nan, 1, 0])] * 7, {2: "cat"}, ["name"] * 7)
    assert max(canvas.shape) <= 1920


def test_labels_and_scores_can_be_switched_off() -> None:
    def ink(**options: bool) -> int:
        canvas = mosaic(
            [flat(200, 300, 90)], [np.array([[20, 60, 250, 190]])], [[0]], [np.array([0.5])], ["cat"], [""], **options
        )
        return int((canvas != 90).any(axis=2).sum())

    neither = ink(show_labels=False, show_conf=False)
    assert (
        neither < min(ink(show_labels=False), ink(show_conf=False)) <= max(ink(show_labels=False), ink(show_conf=False))
    )
    assert max(ink(show_labels=False), ink(show_conf=False)) < ink()


def test_captions_keep_their_end() -> None:
    def caption(text: str) -> np.ndarray:
        return mosaic([flat(200, 300, 90)] * 4, [[]] * 4, [[]] * 4, None, [], [text, *[""] * 3], side=400)[:28]

    long = "folder/" * 50
    assert (caption(long + "a.jpg") != caption(long + "b.jpg")).any()
    np.testing.assert_array_equal(caption(long + "a.jpg"), caption("other/" + long + "a.jpg"))
    for odd in ("a\nb\0c.jpg", "\udcff.jpg", "\ud800", "\u65e5\u672c.jpg", "$x$", "W" * 10**6):
        assert (caption(odd) < 128).any()


def test_mosaic_checks_its_arguments() -> None:
    picture = flat(20, 20, 90)
    with pytest.raises(ValueError, match="mosaic: pictures must hold at least one picture, got none"):
        mosaic([], [], [], None, [], [])
    with pytest.raises(ValueError, match="mosaic: captions must hold one entry per picture, 1, got 0"):
        mosaic([picture], [[]], [[]], None, [], [])
    with pytest.raises(ValueError, match="mosaic: scores must hold one entry per picture, 1, got 2"):
        mosaic([picture], [[]], [[]], [[], []], [], ["x"])
    with pytest.raises(ValueError, match="mosaic: pictures must not be empty"):
        mosaic([picture[:0]], [[]], [[]], None, [], ["x"])
    with pytest.raises(ValueError, match="mosaic: side must leave each of 1 pictures at least 16 pixels, got 30"):
        mosaic([picture], [[]], [[]], None, [], ["x"], side=30)
