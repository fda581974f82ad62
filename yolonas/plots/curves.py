"""Precision, recall and F1 as curves: a line per class, or of many the best and worst in colour and the rest in gray.

The numbers come from the caller. NaN means "not known": such places of a curve are left out, and so are such classes
from the mean.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from .figure import (
    GRID,
    INK,
    SOFT_INK,
    Names,
    line_color,
    new_figure,
    numbered,
    plain_name,
    save,
    set_ticks,
    style_axes,
    text_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED = 20  # classes that get a line and a name each
ENDS = 3  # how many of the best and of the worst are named where there are more
LONGEST_NAME = 10.5  # times the font's size; what fits beside the chart

_WIDTH, _HEIGHT = 9.0, 6.0  # inches
_PLOT = (0.075, 0.095, 0.625, 0.83)  # left, bottom, width, height as shares of the figure
_LIST_LEFT, _LIST_RIGHT, _ROW = 6.6, 8.85, 0.235  # inches
_BEST, _WORST = ("#0a7d3c", "#22a7a0", "#5f8f00"), ("#c4122f", "#e8590c", "#b0289c")

_DASHES: dict[str, str | tuple[int, tuple[float, ...]]] = {"-": "-", "--": (0, (4.0, 1.6)), ":": (0, (1.0, 1.5))}
_UNKNOWN = "\N{EN DASH}"

Row = tuple[str, str, str, bool, str]  # name, number, colour of its line or "", bold, how its line is drawn


def plot_pr_curve(
    path: str | os.PathLike[str], recall: np.ndarray, precision: np.ndarray, ap50: np.ndarray, names: Names
) -> None:
    """Draws precision over recall at IoU 0.5.

    Args:
        path: the file, overwritten where it exists; its suffix names the format.
        recall: `(P,)`, ascending, 0 to 1.
        precision: `(C, P)`, a row per class; NaN where there is none.
        ap50: `(C,)` the average precision that stands beside each name; the mean is taken over those not NaN.
        names: C names in the order of the rows; a mapping also gives the class numbers, which choose the colours.

    Raises:
        ValueError: the shapes do not fit together.
    """
    recall, precision, rows = _checked("plot_pr_curve", "recall", recall, "precision", precision, names)
    ap50 = np.asarray(ap50, np.float64)
    if ap50.shape != (len(rows),):
        raise ValueError(f"plot_pr_curve: ap50 must have shape ({len(rows)},), got {ap50.shape}")
    figure, axes = _chart("Precision-recall curve, IoU 0.5", "Recall", "Precision")
    _draw_lines(figure, axes, recall, precision, ap50, rows, "AP@0.5", "all classes (mAP)")
    save(figure, path)


def plot_confidence_curve(
    path: str | os.PathLike[str],
    conf: np.ndarray,
    values: np.ndarray,
    names: Names,
    *,
    ylabel: str,
    best: bool = False,
    threshold: float | None = None,
) -> None:
    """Draws precision, recall or F1 over the confidence from which detections count.

    Args:
        path: the file, overwritten where it exists; its suffix names the format.
        conf: `(P,)`, ascending, 0 to 1.
        values: `(C, P)`, a row per class; NaN where there is none.
        names: C names in the order of the rows; a mapping also gives the class numbers, which choose the colours.
        ylabel: what `values` are, such as `F1`.
        best: mark the highest mean.
        threshold: mark the mean at this confidence. The numbers beside the names are those at the marked confidence;
            without a mark, each is the mean over all confidences.

    Raises:
        ValueError: the shapes do not fit together.
    """
    conf, values, rows = _checked("plot_confidence_curve", "conf", conf, "values", values, names)
    figure, axes = _chart(f"{ylabel}-confidence curve", "Confidence", ylabel)
    mean = _mean(values)
    at: int | None = None
    if np.isfinite(mean).any():
        if threshold is not None and np.isfinite(threshold):
            at = int(np.nanargmin(np.abs(conf - threshold)))
        elif best:
            at = int(np.nanargmax(mean))
    if at is None:
        _draw_lines(figure, axes, conf, values, _mean(values.T), rows, f"mean {ylabel}", "all classes")
    else:
        shown = conf[at] if threshold is None else threshold
        _draw_lines(figure, axes, conf, values, values[:, at], rows, f"{ylabel} at {shown:.3f}", "all classes")
        _mark(axes, float(shown), float(mean[at]), f"{'max ' if best else ''}{ylabel} {mean[at]:.2f} at {shown:.3f}")
    save(figure, path)


def _checked(
    caller: str, x_name: str, x: np.ndarray, y_name: str, y: np.ndarray, names: Names
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    rows = numbered(names)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1:
        raise ValueError(f"{caller}: {x_name} must have shape (P,), got {x.shape}")
    if y.shape != (len(rows), len(x)):
        raise ValueError(f"{caller}: {y_name} must have shape {(len(rows), len(x))}, got {y.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{caller}: {x_name} must be finite, got NaN or infinity")
    return x, np.where(np.isfinite(y), y, np.nan), rows


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the rows `(C, P)`, NaN left out; `(P,)`, NaN where nothing else is."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _after_last(values: np.ndarray) -> np.ndarray:
    """`(C, P)` bool: the zeros after a curve has come down to 0, where many would lie on each other."""
    nothing = ~(np.nan_to_num(values) > 0)
    rest = np.logical_and.accumulate(nothing[:, ::-1], axis=1)[:, ::-1]
    rest[:, 1:] &= rest[:, :-1].copy()
    rest[:, :1] = False
    return rest


def _chart(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.add_axes(_PLOT)
    style_axes(axes, title, x_label, y_label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(True, which="major", axis="both", color=GRID, linewidth=0.8, linestyle="-", alpha=1.0)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    places = np.linspace(0, 1, 6)
    for axis in ("x", "y"):
        set_ticks(axes, axis, places, [f"{place:.1f}" for place in places], 9.5)
    return figure, axes


def _draw_lines(
    figure: Figure,
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    numbers: np.ndarray,
    rows: list[tuple[int, str]],
    heading: str,
    mean_name: str,
) -> None:
    """The curves `(C, P)` and, right of them, the list of names and `numbers` `(C,)`."""
    has_line = np.isfinite(y).any(axis=1) if len(x) else np.zeros(len(rows), bool)
    if not has_line.any():
        axes.text(0.5, 0.5, "nothing to show", ha="center", va="center", **text_style(12, SOFT_INK))
        return
    curves = np.where(_after_last(y), np.nan, y)
    listed: list[Row] = [(mean_name, _number(_mean(numbers[:, None])[0]), INK, True, "-")]
    known = np.flatnonzero(has_line & np.isfinite(numbers))
    if len(rows) <= MOST_NAMED or len(known) <= MOST_NAMED:
        for row in range(len(rows)) if len(rows) <= MOST_NAMED else known:
            number, name = rows[row]
            color, dash = (line_color(number), "-" if row < 10 else "--") if has_line[row] else ("", "-")
            if color:
                _line(axes, x, curves[row], color, 1.4, dash)
            listed.append((plain_name(name, number, LONGEST_NAME), _number(numbers[row]), color, False, dash))
    else:
        from matplotlib.collections import LineCollection

        gray = LineCollection(
            [np.column_stack([x, row]) for row in curves[has_line]], colors="#c3c3c3", linewidths=0.6, linestyles="-"
        )
        axes.add_collection(gray, autolim=False)
        order = known[np.argsort(-numbers[known], kind="stable")]
        for title, chosen, colors in ((f"best {ENDS}", order[:ENDS], _BEST), (f"worst {ENDS}", order[-ENDS:], _WORST)):
            listed.append((title, "", "", False, ""))
            for row, color in zip(chosen, colors, strict=False):
                _line(axes, x, curves[row], color, 1.2, "-")
                name = plain_name(rows[row][1], rows[row][0], LONGEST_NAME)
                listed.append((name, _number(numbers[row]), color, False, "-"))
        listed.append((f"{has_line.sum() - 2 * ENDS} others", "", "#b4b4b4", False, "-"))
    if len(rows) > 1:
        _line(axes, x, _mean(y), INK, 2.8, "-")
    else:
        del listed[0]
    _write_list(figure, heading, listed)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, color: str, width: float, dash: str) -> None:
    from matplotlib.lines import Line2D

    # added by itself: a line at 0 or 1 keeps its full width, and the axes' own colour cycle is not asked
    axes.add_line(
        Line2D(
            x, y, color=color, linewidth=width, linestyle=_DASHES[dash], marker="", antialiased=True, clip_on=False,
            solid_capstyle="round", solid_joinstyle="round", dash_capstyle="butt", zorder=3 if width > 2 else 2,
        )
    )  # fmt: skip


def _mark(axes: Axes, x: float, y: float, text: str) -> None:
    """A dot on the mean, a dotted line down to the axis, and `text` at its foot, where curves seldom are."""
    from matplotlib.lines import Line2D

    axes.add_line(
        Line2D(
            [x, x], [0, y], color=INK, linewidth=1.2, linestyle=_DASHES[":"], marker="", dash_capstyle="butt", zorder=4
        )
    )
    axes.add_line(
        Line2D(
            [x], [y], color=INK, linestyle="", marker="o", markersize=8, markerfacecolor=INK, markeredgecolor="white",
            markeredgewidth=1.5, clip_on=False, zorder=5,
        )
    )  # fmt: skip
    right = x > 0.6
    axes.text(
        x + (-0.015 if right else 0.015), 0.045, text, ha="right" if right else "left", va="center", zorder=6,
        bbox={"boxstyle": "square,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        **text_style(bold=True),
    )  # fmt: skip


def _write_list(figure: Figure, heading: str, listed: list[Row]) -> None:
    """The legend, by hand: names to the left and numbers in one column, which matplotlib's own cannot do."""
    from matplotlib.lines import Line2D

    def place(x: float, y: float) -> tuple[float, float]:
        return x / _WIDTH, y / _HEIGHT

    y = (_PLOT[1] + _PLOT[3]) * _HEIGHT - 0.08
    figure.text(*place(_LIST_RIGHT, y), heading, ha="right", va="center", **text_style(9, SOFT_INK))
    for name, number, color, bold, dash in listed:
        if not dash:  # a heading between the rows
            y -= 1.5 * _ROW
            figure.text(*place(_LIST_LEFT, y), name, ha="left", va="center", **text_style(9, SOFT_INK))
            continue
        y -= _ROW
        if color:
            ends = place(_LIST_LEFT, y), place(_LIST_LEFT + 0.24, y)
            figure.add_artist(
                Line2D(
                    *zip(*ends, strict=True), color=color, linewidth=2.8 if bold else 1.8, linestyle=_DASHES[dash],
                    marker="", transform=figure.transFigure, solid_capstyle="butt", dash_capstyle="butt",
                )
            )  # fmt: skip
        style = text_style(9.5, INK if number != _UNKNOWN else SOFT_INK, bold=bold)
        figure.text(*place(_LIST_LEFT + 0.33, y), name, ha="left", va="center", **style)
        figure.text(*place(_LIST_RIGHT, y), number, ha="right", va="center", **style)


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else _UNKNOWN
