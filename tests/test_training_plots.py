"""What a training shows: charts of any number of epochs, and batches as the network sees them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_plots import ODD_NAMES, check_texts, texts

from yolonas.draw import PALETTE
from yolonas.plots import figure, training
from yolonas.plots.training import draw_training_batch, plot_training
from yolonas.preprocess import Preprocess
from yolonas.training.loader import TrainingBatch
from yolonas.training.table import EpochRow


def rows_of(count: int, *, every: int = 1, first: int = 1) -> list[EpochRow]:
    """A training that gets better until three quarters of it; measured in every so many epochs."""
    rows = []
    for epoch in range(first, first + count):
        done = epoch / (first + count)
        value = 0.5 * (1 - abs(done - 0.75))
        metrics = {"precision": 0.9 * value, "recall": 0.8 * value, "map50": 1.5 * value, "map": value}
        rows.append(
            EpochRow(
                epoch=epoch, time=61.5 * epoch, cls_loss=2 - done, iou_loss=1.5 - done, dfl_loss=1.2 - done,
                loss=4.7 - 3 * done, lr=2e-4 * (1 - done), images_per_second=30,
                **(metrics if epoch % every == 0 else {}),
            )
        )  # fmt: skip
    return rows


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved, for looking into them."""
    kept: list[Any] = []

    def keep(drawn: Any, path: Any) -> None:
        figure.save(drawn, path)
        kept.append(drawn)

    monkeypatch.setattr(training, "save", keep)
    return kept


def curves_of(axes: Any) -> list[Any]:
    return [line for line in axes.lines if line.get_linestyle() == "-"]


def marks_of(axes: Any) -> list[Any]:
    return [line for line in axes.lines if line.get_linestyle() == "None"]


# --- charts


@pytest.mark.parametrize(
    "rows",
    [
        rows_of(1), rows_of(2), rows_of(3, every=2), rows_of(50), rows_of(300), rows_of(50, every=60),
        rows_of(100, every=10), rows_of(5, first=12345), rows_of(1, every=2),
    ],
    ids=["1", "2", "3", "50", "300", "unmeasured", "every tenth", "late", "1 unmeasured"],
)  # fmt: skip
def test_any_number_of_epochs(rows: list[EpochRow], tmp_path: Path, figures: list[Any]) -> None:
    plot_training(rows, tmp_path / "results.png")
    assert [file.name for file in tmp_path.iterdir()] == ["results.png"]
    picture = cv2.imread(str(tmp_path / "results.png"))
    assert picture.shape == (1392, 1760, 3)
    assert (picture[0] == 255).all()
    assert (picture < 60).any()
    check_texts(figures[0])
    losses, mean_ap, rate, precision = figures[0].axes
    assert [len(curves_of(axes)) for axes in (losses, rate)] == [4, 1]
    measured = any(row.map is not None for row in rows)
    assert [len(curves_of(axes)) for axes in (mean_ap, precision)] == [2 * measured] * 2
    for axes in figures[0].axes:
        low, high = axes.get_ylim()
        for line in curves_of(axes):
            assert low <= min(line.get_ydata()) <= max(line.get_ydata()) <= high
            assert (line.get_marker() == "o") == (len(line.get_xdata()) <= training.MOST_MARKED)
        places = axes.get_xticks()
        assert rows[0].epoch <= places[0] <= places[-1] <= rows[-1].epoch
        assert [int(place) for place in places] == list(places)


def test_the_curves_are_the_rows(tmp_path: Path, figures: list[Any]) -> None:
    rows = rows_of(20, every=4)
    plot_training(rows, tmp_path / "results.png")
    losses, mean_ap, rate, precision = figures[0].axes
    for axes, fields in (
        (losses, ("loss", "cls_loss", "iou_loss", "dfl_loss")),
        (mean_ap, ("map", "map50")),
        (rate, ("lr",)),
        (precision, ("precision", "recall")),
    ):
        for line, field in zip(reversed(curves_of(axes)), fields, strict=True):
            known = [(row.epoch, getattr(row, field)) for row in rows if getattr(row, field) is not None]
            assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == known
        assert len({line.get_color() for line in curves_of(axes)}) == len(fields)


def test_the_best_epoch_is_marked(tmp_path: Path, figures: list[Any]) -> None:
    rows = rows_of(20, every=4)
    best = max((row for row in rows if row.map is not None), key=lambda row: row.map or 0)
    rows[19] = replace(rows[19], map=best.map, map50=0.99)  # equal ones: the first
    plot_training(rows, tmp_path / "results.png")
    found = texts(figures[0])
    assert found[-2:] == [
        "20 epochs in 20 min 30 s",
        "dotted line and numbers: epoch 16, the one with the highest mAP50-95",
    ]
    for name, value in {"total": best.loss, "DFL": best.dfl_loss, "mAP50": best.map50, "recall": best.recall}.items():
        assert found[found.index(name) + 1] == f"{value:.3f}"
    assert f"{best.lr:.3g}" in found
    for axes in figures[0].axes:
        assert {float(mark.get_xdata()[0]) for mark in marks_of(axes)} == {16.0}
    assert [mark.get_ydata()[0] for mark in marks_of(figures[0].axes[1])] == [best.map50, best.map]


def test_without_metrics_the_last_epoch_counts(tmp_path: Path, figures: list[Any]) -> None:
    rows = rows_of(3, every=9)
    plot_training(rows, tmp_path / "results.png")
    found = texts(figures[0])
    assert found.count("not measured") == 2
    assert found[-1] == "numbers: epoch 3, the last one; no epoch has an mAP"
    assert found[found.index("total") + 1] == f"{rows[2].loss:.3f}"
    assert found[found.index("mAP50-95") + 1] == "\N{EN DASH}"
    assert not any(marks_of(axes) for axes in figures[0].axes)


@pytest.mark.parametrize("first", [100.0, 1e9])
def test_a_spike_does_not_flatten_the_losses(first: float, tmp_path: Path, figures: list[Any]) -> None:
    rows = rows_of(20)
    rows[0] = replace(rows[0], loss=first, cls_loss=first - 2)
    plot_training(rows, tmp_path / "results.png")
    check_texts(figures[0])
    losses, *others = figures[0].axes
    assert losses.get_yscale() == "log"
    assert {axes.get_yscale() for axes in others} == {"linear"}
    assert losses.get_ylim()[0] <= min(row.dfl_loss for row in rows)
    assert losses.get_ylim()[1] >= first
    assert 2 <= len(losses.get_yticks()) <= 12


def test_values_at_the_ends(tmp_path: Path, figures: list[Any]) -> None:
    plain = rows_of(3)
    nothing = {"cls_loss": 0.0, "iou_loss": -1e-8, "dfl_loss": 0.0, "loss": 0.0, "lr": 0.0}
    perfect = {"precision": 1.0, "recall": 1.0, "map50": 1.0, "map": 1.0}
    rows = [replace(row, **nothing, **perfect) for row in plain]
    huge = [replace(row, loss=1e30, cls_loss=1e30, lr=1e6, time=1e9) for row in plain]
    tiny = [replace(row, map=1e-5, map50=1e-5, precision=0.0, recall=0.0, lr=1e-12, time=0.5) for row in plain]
    zero = [replace(row, map=0.0, map50=0.0, precision=0.0, recall=0.0) for row in plain]
    for number, case in enumerate((rows, huge, tiny, zero)):
        plot_training(case, tmp_path / f"{number}.png")
        check_texts(figures[number])


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plot_training: rows must hold at least one epoch, got none"):
        plot_training([], tmp_path / "results.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.34, "0.3 s"),
        (9.4, "9.4 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3600, "1 h 0 min"),
        (360000, "100 h 0 min"),
    ],
)
def test_durations(seconds: float, text: str, tmp_path: Path, figures: list[Any]) -> None:
    plot_training([replace(rows_of(1)[0], time=seconds)], tmp_path / "results.png")
    assert f"1 epoch in {text}" in texts(figures[0])


def test_the_style_of_the_caller_changes_nothing(tmp_path: Path) -> None:
    import matplotlib
    import matplotlib.style

    plot_training(rows_of(20), tmp_path / "a.png")
    with matplotlib.rc_context():
        matplotlib.style.use(["dark_background", "ggplot"])
        matplotlib.rcParams.update(
            {
                "text.usetex": True, "font.size": 30, "axes.grid.which": "both", "xtick.minor.visible": True,
                "ytick.minor.visible": True, "ytick.right": True, "lines.linestyle": ":", "lines.marker": "s",
                "lines.dash_capstyle": "round", "lines.markersize": 20, "lines.markeredgecolor": "red",
                "lines.scale_dashes": False, "figure.dpi": 30, "axes.xmargin": 0.3, "axes.formatter.use_locale": True,
                "axes.autolimit_mode": "round_numbers",
            }
        )  # fmt: skip
        plot_training(rows_of(20), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_matplotlib_comes_late_and_the_training_not_at_all() -> None:
    code = (
        "import sys, yolonas.plots.training\n"
        "assert not {'matplotlib', 'torch', 'yolonas.training'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


# --- batches


def batch_of(count: int, boxes: list[list[float]], color: tuple[int, int, int] = (10, 100, 200)) -> TrainingBatch:
    """Pictures of 96 x 128 pixels in one colour, channels last in memory as the loader gives them."""
    pixels = torch.tensor(color, dtype=torch.uint8).expand(count, 96, 128, 3).contiguous().permute(0, 3, 1, 2)
    names = tuple(f"pictures/{number}.jpg" for number in range(count))
    return TrainingBatch(pixels, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6), names)


@pytest.mark.parametrize(("channels", "bgr"), [("bgr", [10, 100, 200]), ("rgb", [200, 100, 10])])
def test_pictures_and_boxes_of_a_batch(channels: Any, bgr: list[int]) -> None:
    batch = batch_of(2, [[1, 3, 32, 24, 96, 72]])
    canvas = draw_training_batch(batch, {3: "a"}, Preprocess(channels=channels))
    assert canvas.dtype == np.uint8
    assert canvas.flags.c_contiguous
    height, width = canvas.shape[:2]
    assert canvas[height // 4, width // 8].tolist() == bgr
    rows, columns = np.nonzero((canvas == PALETTE[3]).all(axis=2))
    assert columns.min() > width / 2
    (picture_rows, picture_columns) = np.nonzero((canvas == bgr).all(axis=2))
    assert picture_columns.max() > columns.max()
    box = columns.max() - columns.min(), rows.max() - rows.min()
    scale = (picture_rows.max() - picture_rows.min() + 1) / 96
    assert box == pytest.approx((64 * scale, 48 * scale), abs=2 + 26)  # the label stands above the box
    assert (batch.pixels == batch_of(2, []).pixels).all()


@pytest.mark.parametrize("count", [1, 2, 5, 16, 40])
def test_batches_of_any_size(count: int) -> None:
    boxes = [[number, 0, 8, 8, 64, 64] for number in range(count)]
    canvas = draw_training_batch(batch_of(count, boxes), ["a"], Preprocess())
    assert max(canvas.shape[:2]) <= 1920
    first = draw_training_batch(batch_of(min(count, 16), boxes[:16]), ["a"], Preprocess())
    assert canvas.shape == first.shape


def test_names_and_boxes_of_any_kind() -> None:
    boxes = [
        *([0, number, 8 * number, 8, 8 * number + 30, 40] for number in range(len(ODD_NAMES))),
        [0, 500, 0, 0, 128, 96], [1, 0, -50, -50, 500, 500], [1, 0, 20, 20, 20, 20], [1, 0, 90, 90, 5, 5],
    ]  # fmt: skip
    plain = draw_training_batch(batch_of(3, []), [], Preprocess())
    canvas = draw_training_batch(batch_of(3, boxes), ODD_NAMES, Preprocess())
    assert canvas.shape == plain.shape
    assert (canvas != plain).any()
    half = canvas.shape[1] // 2, canvas.shape[0] // 2
    np.testing.assert_array_equal(canvas[half[1] + 40 :, : half[0]], plain[half[1] + 40 :, : half[0]])


def test_pictures_have_the_names_of_their_files() -> None:
    batch = batch_of(2, [])
    plain = draw_training_batch(batch, [], Preprocess())
    for names, same in (
        (("elsewhere/0.jpg", "1.jpg"), True),
        (("0.png", "1.jpg"), False),
        (("\udcff\n\0.jpg", "W" * 10**6), False),
    ):
        other = draw_training_batch(batch._replace(names=names), [], Preprocess())
        assert np.array_equal(other, plain) == same
        assert (other[:28] < 128).any()


def test_a_batch_without_pictures() -> None:
    with pytest.raises(ValueError, match="pictures must hold at least one picture"):
        draw_training_batch(batch_of(0, []), ["a"], Preprocess())
