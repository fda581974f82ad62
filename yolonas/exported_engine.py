"""Runs exported files where other networks run in an engine: pictures in, detections out, through their own runtime."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import ops
from .exporting.spec import SUPPRESSED
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

    def describe(self) -> str:
        """What it runs on, in words."""
        return f"{self.session.name} {self.session.version}"

    def heads(self, batch: np.ndarray) -> tuple[list[Call]]:
        """The outputs of the file, whatever they are, for `select`.

        Args:
            batch: float32 `(N, 3, H, W)` or `(N, H, W, 3)`, see `layout`, prepared as `spec.preprocess` says.

        Raises:
            ValueError: another size than the file takes.
        """
        self._check_frame(batch.shape[1:3] if self.layout == "hwc" else batch.shape[2:4])
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
        found = [rows for count, outputs in calls for rows in rows_by_picture(outputs, self.spec, count)]
        return [_fewer(rows, settings) for rows in found]

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
        self._check_frame(frame)
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

    def stands_for(self, *_: Any, **__: Any) -> bool:
        return True

    def _run(self, x: np.ndarray) -> list[Call]:
        """In as many calls as the file's batch makes necessary; the last is filled up."""
        size = self.spec.batch or len(x)
        calls = []
        for begin in range(0, len(x), size):
            part = x[begin : begin + size]
            missing = size - len(part)
            if missing:
                part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
            calls.append((size - missing, self.session.run(part)))
        return calls

    def _check_frame(self, frame: Sequence[int]) -> None:
        size: Size = self.spec.preprocess.size
        if not self.spec.dynamic_size and tuple(frame) != size:
            raise ValueError(
                f"imgsz must be {size[0]}x{size[1]}, which this file was exported for, got {frame[0]}x{frame[1]}; "
                "export it with dynamic=True for all sizes"
            )

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


def rows_by_picture(outputs: list[np.ndarray], spec: ExportSpec, count: int) -> list[np.ndarray]:
    """Of the first `count` pictures float32 `(n, 6)` rows x1, y1, x2, y2, score, class; of outputs in `SUPPRESSED`."""
    assert spec.outputs in SUPPRESSED
    if spec.outputs == "batch":
        counts, boxes, scores, classes = outputs
        rows = np.concatenate([boxes, scores[..., None], classes[..., None]], axis=2, dtype=np.float32)
        return [rows[number, : counts[number, 0]] for number in range(count)]
    (found,) = outputs
    return [found[found[:, 0] == number][:, 1:] for number in range(count)]


def _fewer(rows: np.ndarray, settings: DetectSettings) -> np.ndarray:
    """The rows that these thresholds leave."""
    kept = rows[:, 4] > settings.conf if settings.multi_label else rows[:, 4] >= settings.conf
    if settings.classes is not None:
        kept &= np.isin(rows[:, 5], settings.classes)
    return np.ascontiguousarray(rows[kept][: settings.max_det])
