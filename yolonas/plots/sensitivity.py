"""What quantising each layer alone costs, as a chart: the noise of the outputs, and the mAP where it is known."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure import (
    FRAME,
    GRID,
    SOFT_INK,
    new_figure,
    plain_name,
    save,
    set_ticks,
    style_axes,
    text_style,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LAYERS = 40  # rows; of more layers, the first
LONGEST_NAME = 34.0  # times the font's size

_CLASSES, _BOXES, _LOSS, _GAIN, _KEPT = "#1f5fb4", "#d9730d", "#b3282d", "#2f8f5b", "#fdf1d3"
_ROW, _TEXT = 0.205, 8.5  # inches, points
_LEGEND_WIDTH = 2.35  # inches, left of the axes
_NOISE_WIDTH, _DROP_WIDTH, _GAP = 4.2, 2.6, 0.3  # inches
_TOP, _BOTTOM, _RIGHT = 0.72, 0.62, 0.25  # inches


def plot_sensitivity(
    path: str | os.PathLike[str],
    names: Sequence[str],
    cls_db: Sequence[float],
    box_db: Sequence[float],
    map_drops: Sequence[float] | None = None,
    in_float: Collection[str] = (),
    *,
    note: str = "",
) -> None:
    """Draws a row per layer, the first at the top.

    Args:
        path: the file, overwritten where it exists; its suffix names the format.
        names: of the layers, the most sensitive first; the first `MOST_LAYERS` are drawn.
        cls_db, box_db: signal-to-noise ratios of the class and box outputs, dB; infinite ones stand at the right edge.
        map_drops: points of mAP50-95 that each costs, or None.
        in_float: layers that stay in float, which are marked.
        note: a few words that stand under the title.

    Raises:
        ValueError: no layers, or lengths that differ.
    """
    rows = len(names)
    if rows == 0 or {len(cls_db), len(box_db), rows if map_drops is None else len(map_drops)} != {rows}:
        raise ValueError(f"plot_sensitivity: cls_db, box_db and map_drops must have {rows} values, at least one")
    shown = min(rows, MOST_LAYERS)
    labels = [plain_name(name, number, LONGEST_NAME) for number, name in enumerate(names[:shown])]
    left = max(_LEGEND_WIDTH, 0.25 + max(text_width(label, _TEXT, bold=True) for label in labels))
    with_drops = map_drops is not None
    width = left + _NOISE_WIDTH + (_GAP + _DROP_WIDTH) * with_drops + _RIGHT
    rows_height = max(shown, 4) * _ROW
    height = _TOP + rows_height + _BOTTOM
    figure = new_figure(width, height)
    axes = figure.add_axes((left / width, _BOTTOM / height, _NOISE_WIDTH / width, rows_height / height))
    if rows > shown:
        note = f"the {shown} most sensitive of {rows} layers" + f"; {note}" * bool(note)
    style_axes(axes, "Each layer alone in int8", "signal-to-noise ratio of the outputs, dB", "", note or "all layers")
    _rows(axes, shown, [name in in_float for name in names[:shown]])
    _draw_noise(axes, np.array([cls_db[:shown], box_db[:shown]], np.float64))
    _draw_legend(axes, marked=any(name in in_float for name in names[:shown]))
    set_ticks(axes, "y", range(shown), labels, _TEXT)
    for label, name in zip(axes.get_yticklabels(), names, strict=False):
        if name in in_float:
            label.set(**text_style(_TEXT, bold=True))
    if map_drops is not None:
        start = (left + _NOISE_WIDTH + _GAP) / width
        beside = figure.add_axes((start, _BOTTOM / height, _DROP_WIDTH / width, rows_height / height))
        style_axes(beside, "mAP50-95", "change in points", "", "on the same pictures")
        _rows(beside, shown, [name in in_float for name in names[:shown]])
        _draw_drops(beside, -np.array(map_drops[:shown], np.float64))
        set_ticks(beside, "y", [], [], _TEXT)
    save(figure, path)


def _rows(axes: Axes, count: int, marked: Sequence[bool]) -> None:
    axes.set_ylim(count - 0.4, -0.6)
    for row, is_marked in enumerate(marked):
        if is_marked:
            axes.axhspan(row - 0.5, row + 0.5, color=_KEPT, linewidth=0, zorder=0)
        axes.axhline(row, color=GRID, linewidth=0.6, linestyle="-", marker="", zorder=0.5)


def _draw_noise(axes: Axes, ratios: np.ndarray) -> None:
    """`ratios` (2, rows): a dot for classes and one for boxes, with a line between them."""
    finite = ratios[np.isfinite(ratios)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    space = max(1.0, 0.06 * (high - low))
    low, high = low - space, high + space
    placed = np.clip(np.nan_to_num(ratios, nan=low, posinf=high, neginf=low), low, high)
    axes.set_xlim(low, high)
    y = np.arange(placed.shape[1])
    axes.hlines(y, placed.min(axis=0), placed.max(axis=0), colors="#b9b9b9", linewidth=1.4, linestyles="-", zorder=2)
    for values, color in zip(placed, (_CLASSES, _BOXES), strict=True):
        axes.plot(values, y, "o", color=color, markersize=4.8, markeredgewidth=0, zorder=3, clip_on=False)
    _number_ticks(axes, low, high)


def _draw_legend(axes: Axes, *, marked: bool) -> None:
    """Below the names, where nothing else stands: from the right to the left."""
    entries = [(_CLASSES, "classes"), (_BOXES, "boxes")] + [(None, "stays in float")] * marked
    right = -6.0  # points from the left edge of the axes
    for color, label in reversed(entries):
        box = {"facecolor": _KEPT, "edgecolor": FRAME, "linewidth": 0.6, "pad": 1.5} if color is None else None
        _beside(axes, right, label, bbox=box, **text_style(_TEXT))
        right -= 72 * text_width(label, _TEXT) + 3
        if color is not None:
            _beside(axes, right, "\N{BLACK CIRCLE}", **text_style(_TEXT, color))
            right -= 72 * text_width("\N{BLACK CIRCLE}", _TEXT)
        right -= 9


def _beside(axes: Axes, right: float, text: str, **style: Any) -> None:
    axes.annotate(
        text,
        (0, 0),
        xycoords="axes fraction",
        xytext=(right, -15),
        textcoords="offset points",
        ha="right",
        va="baseline",
        **style,
    )


def _draw_drops(axes: Axes, changes: np.ndarray) -> None:
    known = np.nan_to_num(changes)
    low, high = min(float(known.min()), 0.0), max(float(known.max()), 0.0)
    space = 0.27 * max(0.05, high - low)  # for the numbers beside the bars
    low, high = low - space, high + space
    axes.set_xlim(low, high)
    axes.axvline(0, color=SOFT_INK, linewidth=0.8, linestyle="-", marker="", zorder=1)
    colors = [_LOSS if value < 0 else _GAIN for value in known]
    axes.barh(np.arange(len(known)), known, height=0.62, color=colors, linewidth=0, zorder=2)
    pad = 0.02 * (high - low)
    for row, value in enumerate(changes):
        text = f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"
        at, align = (value - pad, "right") if value < 0 else (value + pad, "left")
        if np.isfinite(value):
            axes.text(at, row, text, ha=align, va="center_baseline", zorder=3, **text_style(7.5, SOFT_INK))
    _number_ticks(axes, low, high)


def _number_ticks(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import MaxNLocator

    ticks = [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    set_ticks(axes, "x", ticks, [f"{tick:g}" for tick in ticks], 9)
