"""A first run without any file: pictures drawn by code, what a network finds in them, and how right that is.

The pictures are those of `data.shapes`, whose labels are exact. None of them is one that `shapes` gives to train with.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .options import build, flag, option, text, whole
from .runs import run_folder, write_image
from .weights import SHIPPED, card_beside

if TYPE_CHECKING:
    from .metrics import DetMetrics
    from .model import NAS
    from .results import Results

SCENE = 49  # number of the drawn picture that is shown, one that the shipped network does well on
SCORE = 0.4  # from which on boxes are shown
SCENE_SIZE = (480, 640)  # (height, width) in pixels
SHOWN_BOXES = 30  # on the console


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Settings of the demonstration."""

    pictures: int = option(64, whole(1, 10_000), "pictures to measure mAP on, drawn for this run")
    seed: int = option(1, whole(0, 2**32 - 1), "another one gives other pictures")
    project: str | None = option(None, text, "folder for run folders (default: runs/detect)")
    name: str | None = option(None, text, "run folder (default: demo, demo-2, ...)")
    exist_ok: bool = option(False, flag, "write into an existing run folder")
    save: bool = option(True, flag, "save the picture with the boxes found beside the true ones")
    verbose: bool = option(True, flag, "print the boxes and the numbers")

    @classmethod
    def of(cls, **values: Any) -> DemoOptions:
        """From user values; see `options.build`."""
        return build(cls, values, renamed={}, dropped=())


@dataclass(frozen=True)
class DemoResult:
    """What a demonstration came to.

    Attributes:
        found, truth: of the one picture that is shown; true boxes have the confidence 1.
        metrics: of the pictures that were measured on. seconds: that this took, the drawing not included.
        save_dir: the run folder, or None.
    """

    found: Results
    truth: Results
    metrics: DetMetrics
    seconds: float
    save_dir: Path | None


def draw_scene(height: int = SCENE_SIZE[0], width: int = SCENE_SIZE[1], number: int = SCENE) -> np.ndarray:
    """Things of the classes `data.shapes.NAMES` on a cluttered ground, to detect: uint8 `(height, width, 3)` BGR.

    Args:
        height, width: pixels, 64 to 4096 each. number: 0 and up; another one gives another picture.

    Raises:
        ValueError: an argument is out of range.
    """
    return _scene((height, width), number)[0]


def run_demo(model: NAS, options: DemoOptions) -> DemoResult:
    """Detects in one drawn picture and shows what was found, then measures mAP on others.

    Args:
        model: a network for the classes of `data.shapes`, such as the one that comes with the package. Where a card is
            beside its file, the figures of the card are printed with those of this run.

    Raises:
        ValueError: a network for other classes. OSError: the results cannot be written.
    """
    names = _checked_names(model)
    picture, labels = _scene(SCENE_SIZE, SCENE)
    start = time.perf_counter()
    found = model.predict(picture, conf=SCORE, verbose=False)[0]
    milliseconds = 1e3 * (time.perf_counter() - start)
    truth = _truth(found, labels, names)
    if options.verbose:
        height, width = found.orig_shape
        print(
            f"a drawn picture of {width}x{height} with {len(truth)} things: "
            f"{len(found)} boxes with scores from {SCORE} on, in {milliseconds:.0f} ms"
        )
        print("\n".join(_box_lines(found)), flush=True)
    save_dir = None
    if options.save:
        save_dir = run_folder(options.project, options.name, mode="demo", exist_ok=options.exist_ok)
        write_image(save_dir / "scene.jpg", _beside(found, truth))
    metrics, seconds = _measure(model, options)
    if options.verbose:
        print("\n".join(_score_lines(metrics, seconds, model.ckpt_path)))
        if save_dir is not None:
            print(f"Results saved to {save_dir}")
    return DemoResult(found, truth, metrics, seconds, save_dir)


def _scene(size: tuple[int, int], number: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its labels, see `shapes.draw`."""
    from .data.shapes import FIRST_VAL, draw

    number = whole(0, FIRST_VAL - 1)("draw_scene: number", number)
    return draw(FIRST_VAL + number, size=size)


def _checked_names(model: NAS) -> dict[str, int]:
    """Class numbers by name, of a network that knows the classes of the drawn things."""
    from .data.dataset import some
    from .data.shapes import NAMES

    known = list(model.names.values())
    if sorted(known) != sorted(NAMES):
        raise ValueError(
            f"demo: model must be for the classes {', '.join(NAMES)}, got {len(known)} ({some(known)}); use {SHIPPED}, "
            "which comes with the package"
        )
    return {name: number for number, name in model.names.items()}


def _truth(found: Results, labels: np.ndarray, names: dict[str, int]) -> Results:
    """The labels of the same picture, with the class numbers of the network."""
    from .data.shapes import NAMES
    from .results import Results

    classes = [names[NAMES[int(label)]] for label in labels[:, 0]]
    rows = np.column_stack((labels[:, 1:], np.ones(len(labels)), classes)).astype(np.float32)
    return Results(found.orig_img, found.path, found.names, boxes=rows)


def _measure(model: NAS, options: DemoOptions) -> tuple[DetMetrics, float]:
    """The metrics on new pictures, and the seconds that they took."""
    from .data.shapes import write

    with tempfile.TemporaryDirectory(prefix="yolonas-demo-") as folder:
        data = write(Path(folder, "shapes"), train=1, val=options.pictures, seed=options.seed, verbose=options.verbose)
        start = time.perf_counter()
        metrics = model.val(data=str(data), project=folder, plots=False, verbose=False)
        seconds = time.perf_counter() - start
    metrics.save_dir = None
    return metrics, seconds


def _beside(found: Results, truth: Results) -> np.ndarray:
    """The picture with the boxes found on the left, and with the true ones on the right."""
    from .plots import mosaic

    halves = []
    for result, caption in ((found, "found"), (truth, "drawn")):
        boxes = result.boxes.numpy()
        scores = None if result is truth else [boxes.conf]
        side = max(result.orig_shape) + 12  # with the margins of a mosaic: the picture keeps its size
        halves.append(
            mosaic([result.orig_img], [boxes.xyxy], [boxes.cls.astype(int)], scores, result.names, [caption], side=side)
        )
    return np.hstack(halves)


def _box_lines(found: Results) -> list[str]:
    """A table of the boxes with the best scores."""
    boxes = found.boxes.numpy()[:SHOWN_BOXES]
    names = [found.names[int(number)] for number in boxes.cls]
    width = max(map(len, ("name", *names)))
    lines = [f"  {'name':<{width}}  score" + "".join(f"{corner:>8}" for corner in ("x1", "y1", "x2", "y2"))]
    for name, score, corners in zip(names, boxes.conf, boxes.xyxy, strict=True):
        lines.append(f"  {name:<{width}}  {score:5.2f}" + "".join(f"{value:8.1f}" for value in corners))
    if len(found) > SHOWN_BOXES:
        lines.append(f"  ... {len(found) - SHOWN_BOXES} more")
    return lines


def _score_lines(metrics: DetMetrics, seconds: float, path: Path | None) -> list[str]:
    """mAP of this run and of the card, and how long it took."""
    count, things = metrics.seen, int(metrics.nt_per_class.sum())
    rows = [("this run", metrics.box.map, metrics.box.map50, count)]
    card = None if path is None else card_beside(path)
    if card is not None:
        on = _figure(card, "evaluation", "pictures")
        for side, called in (("int8", "its card, INT8"), ("float32", "its card, float32")):
            rows.append((called, *(_figure(card, side, "scores", key) for key in ("map", "map50")), on))
    lines = [
        f"{count:,} other picture{'s' * (count != 1)} with {things:,} things, drawn for this run:",
        f"  {'':<17}{'mAP50-95':>10}{'mAP50':>10}{'pictures':>10}",
    ]
    for called, *scores, on in rows:
        lines.append(
            f"  {called:<17}" + "".join(f"{_shown(value, '.4f'):>10}" for value in scores) + f"{_shown(on, ',.0f'):>10}"
        )
    network = metrics.speed["inference"]
    lines.append(f"{seconds:.1f} s, {count / seconds:.1f} images/s; the network alone takes {network:.1f} ms an image")
    return lines


def _figure(card: Any, *keys: str) -> float | None:
    """A number of a card, None where it has none."""
    for key in keys:
        card = card.get(key) if isinstance(card, dict) else None
    is_number = isinstance(card, int | float) and not isinstance(card, bool)
    return card if is_number and 0 <= card <= 1e9 else None  # false for NaN too


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
