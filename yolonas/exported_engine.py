"""Runs exported files where other networks run in an engine: pictures in, detections out, through their own runtime."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from . import ops
from .errors import CheckpointError
from .exporting.spec import BATCH_NAMES, SUPPRESSED
from .ops._dispatch import class_mask
from .prepare import common_frame, fill_from_picture, input_shape
from .selection import select_detections

if TYPE_CHECKING:
    from .config import DetectSettings
    from .exporting.spec import ExportSpec
    from .preprocess import Geometry, Preprocess, Size
    from .sessions import Session

LOGGER = logging.getLogger("yolonas")

Call = tuple[int, list[np.ndarray]]  # how many pictures count, and the outputs


class ExportedEngine:
    """A file's session with the interface of `TorchEngine`.

    Where thresholds and NMS are in the file, those of a call can only make its results fewer; a warning says once what
    they cannot change.
    """

    torch_boxes = False
    half = False

    def __init__(self, session: Session, spec: ExportSpec):
        self.session, self.spec = session, spec
        self.name = session.name
        self.device = session.device
        self.layout: Literal["chw", "hwc"] = "hwc" if spec.nhwc else "chw"
        self._told: set[str] = set()

    @property
    def fixed_size(self) -> Size | None:
        """(height, width) of the only frame that it takes; None: it takes any."""
        return None if self.spec.dynamic_size else self.spec.preprocess.size

    def describe(self) -> str:
        """What it runs on, in words."""
        return f"{self.session.name} {self.session.version}"

    def heads(self, batch: np.ndarray) -> tuple[list[Call]]:
        """The outputs of the file, whatever they are, for `select`.

        Args:
            batch: float32 `(N, 3, H, W)` or `(N, H, W, 3)`, see `layout`, prepared as `spec.preprocess` says.

        Raises:
            ValueError: another size than the file takes. CheckpointError: the outputs are not what its metadata says.
            RuntimeError: the runtime failed.
        """
        check_frame(self.fixed_size, batch.shape[1:3] if self.layout == "hwc" else batch.shape[2:4])
        spec = self.spec
        axis = -1 if spec.nhwc else 1
        if spec.uint8:
            mean, divisor = np.float32(spec.preprocess.mean), np.float32(spec.preprocess.divisor)
            if not spec.nhwc:
                mean, divisor = mean[:, None, None], divisor[:, None, None]
            batch = np.rint(batch * divisor + mean).clip(0, 255).astype(np.uint8)
        if spec.swaps_channels:
            batch = np.flip(batch, axis)
        return (self._run(np.ascontiguousarray(batch)),)

    def select(self, calls: list[Call], settings: DetectSettings) -> list[np.ndarray]:
        """Detections of each picture; see `select_detections`."""
        choose = {"raw": self._of_scores, "deepstream": self._of_best, "heads": self._of_heads}
        if self.spec.outputs in choose:
            choice = choose[self.spec.outputs]
            return [rows for count, outputs in calls for rows in choice(outputs, settings)[:count]]
        self._tell_thresholds(settings)
        mask = class_mask("detect", settings.classes, self.spec.num_classes)
        found = [rows for count, outputs in calls for rows in rows_by_picture(outputs, self.spec, count)]
        return [_fewer(rows, settings, mask) for rows in found]

    def detect(
        self,
        pictures: Sequence[np.ndarray],
        geometries: Sequence[Geometry],
        preprocess: Preprocess,
        settings: DetectSettings,
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Detections of each picture, from its pixels; see `TorchEngine.detect`."""
        start = time.perf_counter()
        frame = common_frame(pictures, geometries)
        check_frame(self.fixed_size, frame)
        own = replace(preprocess, channels=self.spec.channels)
        if self.spec.uint8:
            own = replace(own, mean=(0.0, 0.0, 0.0), divisor=(1.0, 1.0, 1.0))
        elif self.spec.swaps_channels:
            own = replace(own, mean=own.mean[::-1], divisor=own.divisor[::-1])
        batch = np.empty((len(pictures), *input_shape(frame, self.layout)), np.float32)
        for row, picture, geometry in zip(batch, pictures, geometries, strict=True):
            fill_from_picture(row, picture, geometry, own, self.layout)
        if self.spec.uint8:
            batch = batch.astype(np.uint8)
        prepared = time.perf_counter()
        outputs = self._run(batch)
        inferred = time.perf_counter()
        rows = self.select(outputs, settings)
        return rows, np.diff((start, prepared, inferred, time.perf_counter()))

    def _run(self, x: np.ndarray) -> list[Call]:
        """In as many calls as the file's batch makes necessary; the last is filled up."""
        size = self.spec.batch or len(x)
        calls = []
        for begin in range(0, len(x), size):
            part = x[begin : begin + size]
            missing = size - len(part)
            if missing:
                part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
            calls.append((size - missing, self._checked(self.session.run(part), part.shape)))
        return calls

    def _checked(self, outputs: list[np.ndarray], shape: tuple[int, ...]) -> list[np.ndarray]:
        """The outputs for an input of this shape. Nothing says that a graph gives what its metadata says."""
        spec = self.spec
        batch, *sides = shape[:3] if spec.nhwc else (shape[0], *shape[2:])
        for name, output, axes in zip(spec.output_names, outputs, spec.output_shapes(batch, *sides), strict=True):
            dtype = np.int64 if name in (BATCH_NAMES[0], BATCH_NAMES[3]) else np.float32
            fits = output.shape == axes or (axes[0] == -1 and output.shape[1:] == axes[1:])
            if output.dtype != dtype or not fits:
                raise CheckpointError(
                    _other(f"{name} must be {np.dtype(dtype)} {axes}, got {output.dtype} {output.shape}")
                )
        return outputs

    def _of_heads(self, outputs: list[np.ndarray], settings: DetectSettings) -> list[np.ndarray]:
        levels = [np.ascontiguousarray(output) for output in outputs]
        return select_detections(levels[:3], levels[3:], settings, channels_last=False)

    def _of_scores(self, outputs: list[np.ndarray], settings: DetectSettings) -> list[np.ndarray]:
        boxes, scores = (np.ascontiguousarray(output, np.float32) for output in outputs)
        detections, counts = ops.batched_nms(
            boxes,
            scores,
            conf=settings.conf,
            iou=settings.iou,
            top_k=settings.top_k,
            max_det=settings.max_det,
            multi_label=settings.multi_label,
            agnostic=settings.agnostic,
            classes=settings.classes,
        )
        return [rows[:count].copy() for rows, count in zip(detections, counts, strict=True)]

    def _of_best(self, outputs: list[np.ndarray], settings: DetectSettings) -> list[np.ndarray]:
        """Rows of a box, the score of its best class and that class, for every anchor."""
        (rows,) = outputs
        _check_classes(rows[:, :, 5], self.spec)
        if settings.multi_label:
            self._tell("multi_label", "multi_label has no effect: the file gives the best class of a box alone")
        places = np.arange(self.spec.num_classes, dtype=np.float32)
        scores = np.where(rows[:, :, 5:6] == places, rows[:, :, 4:5], np.float32(0))
        return self._of_scores([rows[:, :, :4], scores], replace(settings, multi_label=False))

    def _tell_thresholds(self, settings: DetectSettings) -> None:
        own = self.spec.settings
        if settings.conf < own.conf:
            self._tell("conf", f"conf={settings.conf:g} has no effect: the file leaves out what is below {own.conf:g}")
        for name in ("iou", "agnostic", "multi_label"):
            if getattr(settings, name) != getattr(own, name):
                self._tell(name, f"{name} has no effect: NMS is in the file, with {name}={getattr(own, name)}")
        if settings.max_det > own.max_det:
            self._tell("max_det", f"max_det={settings.max_det} has no effect: the file gives {own.max_det} at most")

    def _tell(self, what: str, sentence: str) -> None:
        if what not in self._told:
            self._told.add(what)
            LOGGER.warning("%s; export with outputs='raw' leaves this to the caller", sentence)


def check_frame(fixed: Size | None, frame: Sequence[int]) -> None:
    """Raises ValueError for a frame that an engine with this `fixed_size` does not take."""
    if fixed is not None and tuple(frame) != fixed:
        raise ValueError(
            f"imgsz must be {fixed[0]}x{fixed[1]}, which this file was exported for, got {frame[0]}x{frame[1]}; "
            "leave imgsz out and set rect=False, or export it with dynamic=True for all sizes"
        )


def rows_by_picture(outputs: list[np.ndarray], spec: ExportSpec, count: int) -> list[np.ndarray]:
    """Of the first `count` pictures float32 `(n, 6)` rows x1, y1, x2, y2, score, class; of outputs in `SUPPRESSED`."""
    assert spec.outputs in SUPPRESSED
    if spec.outputs == "batch":
        counts, boxes, scores, classes = outputs
        if counts.min() < 0 or counts.max() > spec.settings.max_det:
            raise CheckpointError(
                _other(f"{BATCH_NAMES[0]} must be at most {spec.settings.max_det}, got {counts.max()}")
            )
        table = np.concatenate([boxes, scores[..., None], classes[..., None]], axis=2, dtype=np.float32)
        by_picture = [table[number, : counts[number, 0]] for number in range(count)]
    else:
        (found,) = outputs
        by_picture = [found[found[:, 0] == number][:, 1:] for number in range(count)]
    for rows in by_picture:
        _check_classes(rows[:, 5], spec)
    return by_picture


def _check_classes(classes: np.ndarray, spec: ExportSpec) -> None:
    wrong = classes[~np.isin(classes, np.arange(spec.num_classes))]
    if len(wrong):
        raise CheckpointError(_other(f"classes must be numbers in 0..{spec.num_classes - 1}, got {wrong[0]:g}"))


def _other(what: str) -> str:
    return f"the graph gives something else than its metadata says: {what}; export it again"


def _fewer(rows: np.ndarray, settings: DetectSettings, mask: np.ndarray | None) -> np.ndarray:
    """The rows that these thresholds leave; `mask`: whether each class is wanted."""
    kept = rows[:, 4] > settings.conf if settings.multi_label else rows[:, 4] >= settings.conf
    kept &= np.isfinite(rows[:, :4]).all(axis=1)
    if mask is not None:
        kept &= mask[rows[:, 5].astype(int)] > 0
    return np.ascontiguousarray(rows[kept][: settings.max_det])
