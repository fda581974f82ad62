"""The confusion matrix as a picture: true classes from left to right, predicted ones from top to bottom."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure import (
    FRAME,
    INK,
    PAPER,
    TITLE_SIZE,
    Names,
    new_figure,
    numbered,
    plain_name,
    save,
    set_ticks,
    style_axes,
    text_style,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERED = 30  # classes for which each cell has its number
LONGEST_NAME = 12.0  # times the font's size
MOST_TICKS = 110  # names beside the matrix; of more classes, every second, third ... is named

# The colour follows a root: rare mix-ups stay visible, and so do rare classes, whose counts are far below the others'.
_GAMMA_COUNT, _GAMMA_SHARE = 0.5, 0.65
_DARK = 0.66  # from this share of the colour scale on, white text reads better
_RIGHT = 0.95  # inches right of the matrix, for the colour scale


def plot_confusion_matrix(
    path: str | os.PathLike[str], matrix: np.ndarray, names: Names, *, normalize: bool, note: str = ""
) -> None:
    """Draws how often each true class was detected as each class.

    Args:
        path: the file, overwritten where it exists; its suffix names the format.
        matrix: `(n + 1, n + 1)` counts, rows predicted, columns true; the last row is what was missed, the last column
            what was detected where nothing is.
        names: n class names.
        normalize: show each cell as a share of its column; columns that sum to 0 stay white.
        note: a few words that stand under the title, such as the thresholds.

    Raises:
        ValueError: the shape does not fit the names.
    """
    rows = numbered(names)
    cells = len(rows) + 1
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != (cells, cells):
        raise ValueError(f"plot_confusion_matrix: matrix must have shape {(cells, cells)}, got {matrix.shape}")
    counts = np.where(np.isfinite(matrix), matrix, 0.0).clip(0)
    shown = counts / np.where(counts.sum(axis=0) != 0, counts.sum(axis=0), 1.0) if normalize else counts
    labels = [*(plain_name(name, number, LONGEST_NAME) for number, name in rows), "background"]

    cell = min(1.1, 0.25 + 2.6 / cells) if cells <= MOST_NUMBERED + 1 else max(11.0 / cells, 0.01)  # inches
    side = max(3.0, cell * cells)
    points = float(np.clip(0.62 * side / cells * 72, 6.5, 10))
    step = -(-cells // MOST_TICKS)
    places = [*range(0, cells - 1 if step == 1 else max(1, cells - step), step), cells - 1]
    widths = [text_width(labels[place], points) for place in places]
    upright = max(widths) > 0.92 * side / cells * step
    left, bottom = 0.5 + max(widths), 0.5 + (max(widths) if upright else points / 72)
    title = "Confusion matrix, share of each true class" if normalize else "Confusion matrix, number of boxes"
    right = max(_RIGHT, text_width(title, TITLE_SIZE, bold=True) - side + 0.15, text_width(note, 9) - side + 0.15)
    width, height = left + side + right, bottom + side + (0.62 if note else 0.42)
    figure = new_figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    style_axes(axes, title, "True", "Predicted", note)
    _draw_cells(figure, axes, shown, normalize, (left + side + 0.15) / width, bottom / height, side / height, width)
    names_shown = [labels[place] for place in places]
    set_ticks(axes, "x", places, names_shown, points, upright=upright)
    set_ticks(axes, "y", places, names_shown, points)
    if cells <= MOST_NUMBERED + 1:
        _write_numbers(axes, shown, normalize, side / cells)
    save(figure, path)


def _draw_cells(
    figure: Figure, axes: Axes, shown: np.ndarray, normalize: bool, scale_left: float, bottom: float, height: float,
    width: float,
) -> None:  # fmt: skip
    """Coloured cells, thin lines between them, and the colour scale on the right."""
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    cells = len(shown)
    highest = 1.0 if normalize else max(1.0, float(shown.max(initial=0)))
    norm = PowerNorm(_GAMMA_SHARE if normalize else _GAMMA_COUNT, 0, highest)
    image = axes.imshow(
        np.ma.masked_equal(shown, 0), cmap=colormaps["Blues"].with_extremes(bad=PAPER), norm=norm, aspect="auto",
        interpolation="nearest", origin="upper", resample=False,
    )  # fmt: skip
    edges = np.arange(1, cells) - 0.5
    thin = 0.6 if cells <= MOST_NUMBERED + 1 else 0.25
    for lines in (axes.hlines, axes.vlines):
        if cells <= MOST_TICKS:  # more would hide the cells
            lines(edges[:-1], -0.5, cells - 0.5, colors="#d5d5d5", linewidth=thin, linestyles="-")
        lines(edges[-1:], -0.5, cells - 0.5, colors=FRAME, linewidth=1.0, linestyles="-")
    axes.set_xlim(-0.5, cells - 0.5)
    axes.set_ylim(cells - 0.5, -0.5)
    scale = figure.add_axes((scale_left, bottom, 0.16 / width, height))
    bar: Any = figure.colorbar(image, cax=scale)
    bar.outline.set(color=FRAME, linewidth=0.8)
    ticks = np.linspace(0, 1, 6) if normalize else _round_steps(highest)
    bar.set_ticks(
        ticks,
        labels=[f"{tick:.1f}" if normalize else _cell_text(tick, False) for tick in ticks],
        va="center_baseline",
        **text_style(8.5),
    )
    scale.minorticks_off()
    scale.grid(False, which="both")
    scale.tick_params(direction="out", length=3, width=0.8, pad=3, color=FRAME, right=True, left=False)


def _round_steps(highest: float) -> list[float]:
    """Numbers for the scale of counts, evenly spread over its root: 0, about 1/16, 1/4, 9/16 and all of `highest`."""
    steps = []
    for share in (1 / 16, 1 / 4, 9 / 16):
        value = share * highest
        unit = 10.0 ** max(0.0, np.floor(np.log10(max(value, 1.0))))
        steps.append(float(round(value / unit) * unit))
    return sorted({0.0, *(step for step in steps if 0 < step < highest), float(np.floor(highest))})


def _write_numbers(axes: Axes, shown: np.ndarray, normalize: bool, cell: float) -> None:
    """Each cell's number, in the largest size that fits all; zeros are left out."""
    texts = {
        (row, column): text
        for row, column in zip(*np.nonzero(shown), strict=True)
        if (text := _cell_text(shown[row, column], normalize))
    }
    if not texts:
        return
    widest = text_width(max(texts.values(), key=len), 1.0)  # all digits are equally wide
    size = float(np.clip(0.74 * cell / widest, 4.5, 12))
    dark = _DARK ** (1 / _GAMMA_SHARE) if normalize else _DARK ** (1 / _GAMMA_COUNT) * float(shown.max())
    on_dark, on_light = text_style(size, PAPER), text_style(size, INK)
    for (row, column), text in texts.items():
        style = on_dark if shown[row, column] > dark else on_light
        axes.text(column, row, text, ha="center", va="center_baseline", **style)


def _cell_text(value: float, normalize: bool) -> str:
    if normalize:
        return f"{value:.2f}" if value >= 0.005 else ""
    return f"{value:.0f}" if value < 1e5 else f"{value / 1e3:.0f}k" if value < 1e7 else f"{value / 1e6:.0f}M"
