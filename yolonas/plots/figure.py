"""What all charts share: canvas, fonts, colours, names that can be shown, and how a chart becomes a file.

Neither pyplot nor matplotlib's settings are used: everything that shows is set here, so that a chart looks the same
whatever style the caller's program has chosen, and may be drawn in any thread.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..draw import PALETTE
from ..runs import write_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Names = Sequence[str] | Mapping[int, str]

DPI = 160
INK, SOFT_INK, FRAME, GRID, PAPER = "#1c1c1c", "#5c5c5c", "#9a9a9a", "#e4e4e4", "#ffffff"
TEXT_SIZE, TITLE_SIZE = 10.0, 12.5  # points


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=DPI, facecolor=PAPER, edgecolor=PAPER, frameon=True, layout="none")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Draws the figure and writes it in the format that the suffix of `path` names."""
    canvas: Any = figure.canvas
    canvas.draw()
    write_image(Path(path), np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, 2::-1]))


def text_style(size: float = TEXT_SIZE, color: str = INK, *, bold: bool = False) -> dict[str, Any]:
    """Arguments for any text: names from files are never formulas, whatever they hold."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(fname=_font_file(bold), size=size)
    return {"fontproperties": font, "color": color, "usetex": False, "parse_math": False}


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Inches."""
    from PIL import ImageFont

    return float(ImageFont.truetype(_font_file(bold), 100).getlength(text)) / 100 * size / 72


def style_axes(axes: Axes, title: str, x_label: str, y_label: str, note: str = "") -> None:
    """Thin gray frame, ticks and texts, nothing left to matplotlib's settings; `note` stands under the title."""
    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    axes.minorticks_off()
    axes.grid(False, which="both")
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.8, zorder=1.8, visible=True)
    axes.tick_params(
        which="both", direction="out", length=3, width=0.8, pad=3, color=FRAME, labelcolor=INK, labelrotation=0,
        bottom=True, left=True, top=False, right=False, labelbottom=True, labelleft=True, labeltop=False,
        labelright=False,
    )  # fmt: skip
    for text, points, style in (
        (title, 23 if note else 9, text_style(TITLE_SIZE, bold=True)),
        (note, 8, text_style(9, SOFT_INK)),
    ):
        if text:
            axes.annotate(
                text,
                (0, 1),
                xycoords="axes fraction",
                xytext=(0, points),
                textcoords="offset points",
                ha="left",
                va="baseline",
                **style,
            )
    axes.set_xlabel(x_label, loc="center", labelpad=6, **text_style())
    axes.set_ylabel(y_label, loc="center", labelpad=6, **text_style())


def set_ticks(
    axes: Axes, axis: str, places: Sequence[float], labels: Sequence[str], size: float, *, upright: bool = False
) -> None:
    """Ticks of the axis "x" or "y" at `places` with one text each; `upright` texts read upwards."""
    which: Any = axes.xaxis if axis == "x" else axes.yaxis
    align = {"ha": "center", "va": "top"} if axis == "x" else {"ha": "right", "va": "center_baseline"}
    which.set_ticks(list(places), labels=list(labels), rotation=90 if upright else 0, **align, **text_style(size))


def line_color(number: int) -> str:
    """The colour of a class's boxes, darker where it would be pale on white."""
    blue, green, red = PALETTE[number % len(PALETTE)]
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    share = min(1.0, 150.0 / light)
    return f"#{round(red * share):02x}{round(green * share):02x}{round(blue * share):02x}"


def numbered(names: Names) -> list[tuple[int, str]]:
    """(class number, name) per row; a list is numbered from 0."""
    return [(int(k), str(name)) for k, name in (names.items() if isinstance(names, Mapping) else enumerate(names))]


def plain_name(name: str, number: int, longest: float) -> str:
    """A class name on one line, at most `longest` times the font's size wide; "class 3" if the font lacks letters."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in name[:300]).split())
    if not all(map(_has_letter, text)):
        bare = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
        text = bare if all(map(_has_letter, bare)) else ""
    if (width := text_width(text, 72)) > longest:
        keep = int(len(text) * longest / width) + 2
        while keep > 1 and text_width(f"{text[:keep].rstrip()}..", 72) > longest:
            keep -= 1
        text = f"{text[:keep].rstrip()}.."
    return text or f"class {number}"


@lru_cache(maxsize=2)
def _font_file(bold: bool) -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))


@lru_cache(maxsize=8192)
def _has_letter(letter: str) -> bool:
    from matplotlib.font_manager import get_font

    return all(get_font(_font_file(bold)).get_char_index(ord(letter)) for bold in (False, True))
