"""What a training shows of itself: losses, learning rate and metrics over the epochs, and the pictures of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..preprocess import Preprocess
from .figure import (
    GRID,
    INK,
    SOFT_INK,
    TITLE_SIZE,
    Names,
    new_figure,
    save,
    set_ticks,
    style_axes,
    text_style,
    text_width,
)
from .mosaic import MOST_PICTURES, mosaic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..training.loader import TrainingBatch
    from ..training.table import EpochRow

MOST_MARKED = 30  # known values of a curve that get a dot each
SPIKE = 8.0  # times the median: from such a loss on, the axis of the losses is logarithmic

_BLUE, _ORANGE, _GREEN = "#1f5fb4", "#d9730d", "#2f8f5b"
_WIDTH, _HEIGHT = 11.0, 8.7  # inches, of all
_LEFTS, _BOTTOMS = (0.7, 6.2), (4.5, 0.65)  # inches, of the four charts
_CHART = (4.55, 2.75)  # inches
_TEXT = 9.0  # points, beside the axes and in the legends


class _Curve(NamedTuple):
    name: str
    color: str
    values: np.ndarray  # one per epoch, NaN where it is not known


def plot_training(rows: Sequence[EpochRow], path: str | os.PathLike[str]) -> None:
    """Draws four charts over the epochs: losses, mAP, learning rate, precision and recall.

    The best epoch, that with the highest mAP50-95 and of equal ones the first, is marked, and the numbers beside the
    names are of this epoch; where nothing was measured, they are of the last one.

    Args:
        rows: by ascending epoch, at least one.
        path: the file, overwritten where it exists; its suffix names the format.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("plot_training: rows must hold at least one epoch, got none")
    epochs = np.array([row.epoch for row in rows])

    def curve(name: str, color: str, field: str) -> _Curve:
        values = [getattr(row, field) for row in rows]
        return _Curve(name, color, np.array([np.nan if value is None else value for value in values], float))

    precise = curve("mAP50-95", INK, "map")
    best = int(np.nanargmax(precise.values)) if np.isfinite(precise.values).any() else None
    at = len(rows) - 1 if best is None else best
    losses = [
        curve("total", INK, "loss"),
        curve("classes", _BLUE, "cls_loss"),
        curve("IoU", _ORANGE, "iou_loss"),
        curve("DFL", _GREEN, "dfl_loss"),
    ]
    charts = (
        ("Losses of the training", losses),
        ("mAP of the validation", [precise, curve("mAP50", _BLUE, "map50")]),
        ("Learning rate", [curve("", _BLUE, "lr")]),
        ("Precision and recall", [curve("precision", _BLUE, "precision"), curve("recall", _ORANGE, "recall")]),
    )
    figure = new_figure(_WIDTH, _HEIGHT)
    for number, (title, curves) in enumerate(charts):
        left, bottom = _LEFTS[number % 2], _BOTTOMS[number // 2]
        size = (left / _WIDTH, bottom / _HEIGHT, _CHART[0] / _WIDTH, _CHART[1] / _HEIGHT)
        axes = figure.add_axes(size)
        style_axes(axes, "", "Epoch" if number > 1 else "", "")
        _draw_title(axes, title)
        _draw_curves(axes, epochs, curves, best)
        _draw_legend(axes, curves, at)
    count = rows[-1].epoch
    head = f"{count} epoch{'s' * (count > 1)} in {_duration(rows[-1].time)}"
    note = f"numbers: epoch {epochs[at]}, the last one; no epoch has an mAP"
    if best is not None:
        note = f"dotted line and numbers: epoch {epochs[at]}, the one with the highest mAP50-95"
    for text, y, style in (
        (head, 0.4, text_style(TITLE_SIZE + 1.5, bold=True)),
        (note, 0.66, text_style(9.5, SOFT_INK)),
    ):
        figure.text(_LEFTS[0] / _WIDTH, 1 - y / _HEIGHT, text, ha="left", va="baseline", **style)
    save(figure, path)


def draw_training_batch(batch: TrainingBatch, names: Names, preprocess: Preprocess) -> np.ndarray:
    """The first pictures of a batch as the network sees them, with their boxes: `(H, W, 3)` uint8 BGR, see `mosaic`.

    Args:
        batch: at least one picture; those after the 16th are left out.
        names: class names by number.
        preprocess: what the pictures were prepared with; it says the order of their channels.

    Raises:
        ValueError: the batch has no picture.
    """
    pixels = batch.pixels[:MOST_PICTURES].permute(0, 2, 3, 1).cpu().numpy()
    pictures = list(pixels[..., ::-1] if preprocess.channels == "rgb" else pixels)
    targets = batch.targets.cpu().numpy()
    rows = [targets[targets[:, 0] == number] for number in range(len(pictures))]
    captions = [Path(name).name for name in batch.names[:MOST_PICTURES]]
    return mosaic(pictures, [row[:, 2:] for row in rows], [row[:, 1] for row in rows], None, names, captions)


def _draw_curves(axes: Axes, epochs: np.ndarray, curves: Sequence[_Curve], best: int | None) -> None:
    first, last = int(epochs[0]), int(epochs[-1])
    space = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - space, last + space)
    places = _whole_ticks(first, last)
    set_ticks(axes, "x", places, [str(place) for place in places], _TEXT)
    _set_heights(axes, np.concatenate([curve.values for curve in curves]), curves[0].values)
    axes.grid(True, which="major", axis="both", color=GRID, linewidth=0.8, linestyle="-", alpha=1.0)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    known = [curve for curve in curves if np.isfinite(curve.values).any()]
    if not known:
        axes.text(
            0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", **text_style(12, SOFT_INK)
        )
        return
    if best is not None:
        axes.axvline(
            epochs[best], color=SOFT_INK, linewidth=1.0, linestyle=(0, (1.2, 1.8)), marker="", dash_capstyle="butt",
            zorder=1.9,
        )  # fmt: skip
    for curve in reversed(known):  # the first one above the others
        there = np.isfinite(curve.values)
        axes.plot(
            epochs[there], curve.values[there], color=curve.color, linewidth=1.6, linestyle="-", zorder=2.5,
            marker="o" if there.sum() <= MOST_MARKED else "", markersize=3.6, markerfacecolor=curve.color,
            markeredgewidth=0, solid_capstyle="round", solid_joinstyle="round", antialiased=True, clip_on=False,
        )  # fmt: skip
        if best is not None and there[best]:
            axes.plot(
                epochs[best], curve.values[best], color=curve.color, linestyle="", marker="o", markersize=7,
                markerfacecolor=curve.color, markeredgecolor="white", markeredgewidth=1.2, antialiased=True,
                clip_on=False, zorder=3,
            )  # fmt: skip


def _whole_ticks(first: int, last: int) -> list[int]:
    """Round epochs, and the first one where there is room for it."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(7, steps=[1, 2, 5, 10], integer=True).tick_values(first, last)
    ticks = [round(tick) for tick in found if first <= tick <= last]
    if len(ticks) < 2 or ticks[0] - first > 0.6 * (ticks[1] - ticks[0]):
        ticks = sorted({first, *ticks})
    return ticks


def _set_heights(axes: Axes, values: np.ndarray, main: np.ndarray) -> None:
    """The y axis for all values: from 0, or logarithmic where a spike of the main curve would flatten the rest."""
    from matplotlib.ticker import MaxNLocator

    values, main = values[np.isfinite(values)], main[np.isfinite(main)]
    low, high = (min(0.0, float(values.min())), float(values.max())) if len(values) else (0.0, 1.0)
    if len(main) and values.min() > 0 and main.max() > SPIKE * np.median(main):
        low = float(values.min())
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
        below, above = [tick for tick in ticks if tick <= low], [tick for tick in ticks if tick >= high]
        ticks = [tick for tick in ticks if below[-1] <= tick <= above[0]]
        ticks = ticks if len(ticks) <= 8 else [tick for tick in ticks if f"{tick:e}".startswith("1")]
        axes.set_yscale("log")
        axes.set_ylim(below[-1], above[0])
        axes.minorticks_off()
        set_ticks(axes, "y", ticks, [f"{tick:g}" for tick in ticks], _TEXT)
        return
    high = high if high > low else low + 1.0
    ticks = [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    axes.set_ylim(ticks[0], ticks[-1])
    power = int(np.floor(np.log10(np.abs(ticks).max())))
    labels = [f"{tick / 10.0**power:g}e{power}" if tick and power < -2 else f"{tick:g}" for tick in ticks]
    set_ticks(axes, "y", ticks, labels, _TEXT)


def _draw_title(axes: Axes, title: str) -> None:
    style = text_style(11, bold=True)
    axes.annotate(
        title, (0, 1), xycoords="axes fraction", xytext=(0, 26), textcoords="offset points", va="baseline", **style
    )


def _draw_legend(axes: Axes, curves: Sequence[_Curve], at: int) -> None:
    """Between title and chart: from left to right a dot in the curve's colour, its name, and its number."""
    dot = "\N{BLACK CIRCLE}"
    left = 0.0  # points from the left edge of the axes
    for name, color, values in curves:
        number = _number(values[at])
        parts = [(dot, text_style(_TEXT, color)), (name, text_style(_TEXT)), (number, text_style(_TEXT, bold=True))]
        for text, style in parts:
            if not text:
                continue
            axes.annotate(
                text, (0, 1), xycoords="axes fraction", xytext=(left, 10), textcoords="offset points", ha="left",
                va="baseline", **style,
            )  # fmt: skip
            left += 72 * text_width(text, _TEXT, bold=text == number) + 3.5
        left += 9


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "\N{EN DASH}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    """As "45 s", "12 min 5 s" or "3 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
