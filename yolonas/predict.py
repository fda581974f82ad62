"""Predict: pictures, videos and streams in, `Results` out, with drawing and files on the way.

Reading runs ahead on threads, the network runs on the caller's thread, and files are written behind it; each queue is
bounded, so a folder of any size needs the memory of a few pictures.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import DetectSettings
from .errors import SourceError
from .options import (
    ENGINE_HELP,
    ENGINES,
    PRECISION_HELP,
    PROTOCOLS,
    TUNE_HELP,
    anything,
    build,
    class_list,
    flag,
    image_size,
    one_of,
    option,
    precision,
    text,
    unit_fraction,
    whole,
    with_quantize,
)
from .prepare import fill_from_picture, fill_from_planes, input_shape
from .preprocess import Geometry, Preprocess

if TYPE_CHECKING:
    from .cuda_engine import CudaEngine, Submitted
    from .data.arrays import DevicePicture
    from .data.sources import Picture, Source
    from .engines import Engine
    from .results import Results
    from .writer import RunWriter

    Group = list[tuple[Picture, Geometry]]  # pictures of one network call
    Found = tuple[list[np.ndarray], np.ndarray]  # detections of each picture in its frame; seconds of three stages

LOGGER = logging.getLogger("yolonas")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Settings of `predict`. None means what the checkpoint says, or what fits the machine."""

    conf: float | None = option(
        None, unit_fraction, "lowest score, 0..1 (default: the checkpoint's, 0.25 for COCO weights)"
    )
    iou: float | None = option(
        None, unit_fraction, "NMS drops boxes that overlap more, 0..1 (default: the checkpoint's, 0.7)"
    )
    imgsz: tuple[int, int] | None = option(None, image_size, "input side or (height, width), multiples of 32")
    rect: bool | None = option(None, flag, "smallest frame instead of a square (default: as the protocol does)")
    protocol: str = option(
        "sg", one_of(*PROTOCOLS), "'sg': as trained; 'ultralytics': its letterbox and one label a box"
    )
    device: Any = option(None, anything, "'cpu', GPU number, 'cuda:0', 'mps' (default: a GPU if there is one)")
    quantize: str | None = option(None, precision, PRECISION_HELP)
    engine: str | None = option(None, one_of(*ENGINES), ENGINE_HELP)
    tune: bool = option(False, flag, TUNE_HELP)
    batch: int = option(1, whole(1, 4096), "pictures per network call, for folders, videos and lists")
    max_det: int | None = option(
        None, whole(1, 100_000), "detections kept per picture (default: the checkpoint's, 300)"
    )
    classes: tuple[int, ...] | None = option(None, class_list, "only these class numbers")
    agnostic_nms: bool | None = option(None, flag, "NMS across classes (default: the checkpoint's, False)")
    multi_label: bool | None = option(None, flag, "several classes for one box (default: as the protocol does)")
    vid_stride: int = option(1, whole(1, 100_000), "every n-th frame of videos")
    stream_buffer: bool = option(False, flag, "live streams: True every frame, False the newest one")
    stream: bool = option(False, flag, "return a generator: flat memory for long sources")
    data: str | None = option(None, text, "data yaml whose class names are used where the checkpoint has none")
    project: str | None = option(None, text, "folder for run folders (default: runs/detect)")
    name: str | None = option(None, text, "run folder (default: predict, predict-2, ...)")
    exist_ok: bool = option(False, flag, "write into an existing run folder")
    save: bool = option(False, flag, "save pictures with boxes (from the shell: True)")
    save_frames: bool = option(False, flag, "videos: save every frame as a picture")
    save_txt: bool = option(False, flag, "save boxes as YOLO labels")
    save_conf: bool = option(False, flag, "save_txt: with scores")
    save_crop: bool = option(False, flag, "save the picture inside each box")
    show: bool = option(False, flag, "show in a window")
    show_labels: bool = option(True, flag, "draw class names")
    show_conf: bool = option(True, flag, "draw scores")
    show_boxes: bool = option(True, flag, "draw boxes")
    line_width: int | None = option(None, whole(1, 1000), "line width of boxes in pixels")
    verbose: bool = option(True, flag, "a line per picture")
    embed: Any = option(None, anything, "not in this version")
    visualize: bool = option(False, flag, "no effect", ignored=True)
    augment: bool = option(False, flag, "no effect", ignored=True)
    dnn: bool = option(False, flag, "no effect", ignored=True)
    retina_masks: bool = option(False, flag, "no effect", ignored=True)
    compile: Any = option(False, anything, "no effect", ignored=True)
    channels_last: bool | None = option(None, flag, "no effect: always so", ignored=True)
    nms: bool | None = option(None, flag, "no effect: always so", ignored=True)

    def __post_init__(self) -> None:
        if self.embed is not None:
            raise NotImplementedError("embed: embeddings are not in this version; leave the argument out")

    @classmethod
    def of(cls, **values: Any) -> PredictOptions:
        """From user values, with the names of older releases; see `options.build`."""
        return build(cls, with_quantize(values), renamed=_RENAMED, dropped=_DROPPED)


_RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "hide_labels": ("show_labels", lambda value: not value),
    "hide_conf": ("show_conf", lambda value: not value),
    "boxes": ("show_boxes", lambda value: value),
    "line_thickness": ("line_width", lambda value: value),
    "end2end": ("nms", lambda value: value),
}
_DROPPED = ("show_fps", "keras", "optimize", "workers", "task", "mode", "tracker")


def legacy_names() -> tuple[str, ...]:
    """Other names that `PredictOptions.of` takes."""
    return ("precision", "half", "int8", *_RENAMED, *_DROPPED)


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be used, and why."""

    path: str
    reason: str


class Predictor:
    """One run over one source. `stream()` yields `Results` in order; afterwards the attributes tell how it went.

    Attributes: `options`, `save_dir` (Path or None), `seen` (pictures predicted), `skipped` (list of `Skipped`),
        `notes` (what was odd about videos, one sentence each), `results` (the latest batch), `speed` (mean ms per
        picture by stage).
    """

    def __init__(
        self,
        engine: Engine,
        preprocess: Preprocess,
        names: dict[int, str],
        settings: DetectSettings,
        options: PredictOptions,
        on_event: Callable[[str, Predictor], None] = lambda event, predictor: None,
    ):
        self.engine, self.preprocess, self.names, self.settings = engine, preprocess, names, settings
        self.options = options
        self.on_event = on_event
        self.save_dir: Path | None = None
        self.seen = 0
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []
        self.results: list[Results] = []
        self._spent = np.zeros(3)  # seconds in preprocess, inference, postprocess
        self._input_shape: tuple[int, ...] = ()

    @property
    def speed(self) -> dict[str, float]:
        """Mean milliseconds per picture."""
        return dict(zip(_STAGES, (1e3 * self._spent / max(self.seen, 1)).tolist(), strict=True))

    def stream(self, source: Any) -> Iterator[Results]:
        """Yields `Results` for every picture or frame. Raises SourceError if nothing of the source can be opened."""
        from .data.sources import open_source
        from .writer import RunWriter

        options = self.options
        with open_source(
            source, vid_stride=options.vid_stride, stream_buffer=options.stream_buffer, batch=options.batch
        ) as pictures:
            if options.tune:
                from .tuning import tune

                varied = self.preprocess.rect or self.preprocess.fit is None
                tune(self.engine, self.preprocess.size, options.batch, other_sizes=varied)
            writer = RunWriter(options) if _writes(options) else None
            progress = _Progress(pictures, options)
            running = self._running(self._groups(pictures, progress))
            try:
                self.on_event("on_predict_start", self)
                for group, detect in running:
                    self.on_event("on_predict_batch_start", self)
                    self.results = self._results(group, *detect())
                    self.on_event("on_predict_postprocess_end", self)
                    for (picture, _), result in zip(group, self.results, strict=True):
                        if writer is not None:
                            writer.add(picture, result)
                            self.save_dir = writer.folder
                            result.save_dir = writer.folder and str(writer.folder)
                        progress.done(picture, result, self._input_shape)
                    self.on_event("on_predict_batch_end", self)
                    yield from self.results
                if writer is not None:
                    writer.finish()
                self.on_event("on_predict_end", self)
            finally:
                running.close()
                progress.close()
                if writer is not None:
                    writer.close()
                    self.save_dir = writer.folder
                self.notes = list(pictures.notes)
        if self.seen == 0 and len(self.skipped) == 1 and pictures.total in (None, 1):
            raise SourceError(f"{self.skipped[0].path}: {self.skipped[0].reason}")
        self._report(writer)

    def _groups(self, pictures: Source, progress: _Progress) -> Iterator[Group]:
        """Pictures that can share a network call: at most `batch`, with equal frames."""
        group: Group = []
        for picture in pictures:
            geometry = self._geometry(picture, progress)
            if geometry is None:
                continue
            if group and group[0][1].frame != geometry.frame:
                yield group
                group = []
            group.append((picture, geometry))
            # Of live streams no frame waits for those of the next round.
            round_ends = picture.kind == "stream" and picture.index >= pictures.streams
            if len(group) >= self.options.batch or round_ends:
                yield group
                group = []
        if group:
            yield group

    def _running(self, groups: Iterator[Group]) -> Generator[tuple[Group, Callable[[], Found]], None, None]:
        """Each group, and what gives its detections.

        Where the engine can, the next group runs by then: reading, copying and computing overlap, and one group more is
        held in memory. If the next one fails, it does so in its turn. Frames of live streams wait for no others.
        """
        if not hasattr(self.engine, "submit"):
            for group in groups:
                yield group, partial(self._detect, group)
            return
        engine: CudaEngine = self.engine  # type: ignore[assignment]
        running: deque[tuple[Group, Submitted | None]] = deque()
        try:
            while True:
                group, failure = None, None
                try:
                    group = next(groups, None)
                    if group is not None:
                        running.append((group, self._submitted(group)))
                except Exception as error:
                    failure = error
                ahead = group is not None and failure is None and group[-1][0].kind != "stream"
                while len(running) > ahead:
                    first, submitted = running[0]
                    detect = partial(self._detect, first) if submitted is None else partial(engine.collect, submitted)
                    yield first, detect
                    running.popleft()
                if failure is not None:
                    raise failure
                if group is None:
                    return
        finally:
            for _, submitted in running:
                if submitted is not None:
                    engine.discard(submitted)

    def _submitted(self, group: Group) -> Submitted | None:
        pictures = self._pixels(group)
        if pictures is None:
            return None
        geometries = [geometry for _, geometry in group]
        return self.engine.submit(pictures, geometries, self.preprocess, self.settings)  # type: ignore[union-attr]

    def _pixels(self, group: Group) -> list[Any] | None:
        """The pictures as the engine takes them; None where one is the network's input already."""
        pixels: list[Any] = []
        for picture, _ in group:
            found = picture.on_device
            if picture.tensor is not None or (found is not None and found.is_input):
                return None
            if found is None:
                pixels.append(picture.image)
            elif _has(self.engine, found):
                pixels.append(found.tensor)
            else:
                pixels.append(found.array())
        return pixels

    def _geometry(self, picture: Picture, progress: _Progress) -> Geometry | None:
        found = picture.image if picture.on_device is None else picture.on_device
        if picture.error is None and found is not None:
            height, width = found.shape[:2]
            if picture.tensor is not None or (picture.on_device is not None and picture.on_device.is_input):
                return Geometry((height, width), (height, width), (height, width), 0, 0, (1.0, 1.0))
            try:
                return self.preprocess.plan(height, width)
            except ValueError as error:
                picture = replace(picture, error=str(error))
        self.skipped.append(Skipped(picture.path, picture.error or "no picture"))
        progress.skipped(picture)
        return None

    def _detect(self, group: Group) -> Found:
        start = time.perf_counter()
        pictures = self._pixels(group)
        if pictures is not None:
            geometries = [geometry for _, geometry in group]
            detections, spent = self.engine.detect(pictures, geometries, self.preprocess, self.settings)
        else:
            detections, spent = self._detect_with_tensors(group)
        spent[2] = time.perf_counter() - start - spent[0] - spent[1]
        return detections, spent

    def _results(self, group: Group, detections: list[np.ndarray], spent: np.ndarray) -> list[Results]:
        from .results import Results

        start = time.perf_counter()
        results = []
        for (picture, geometry), rows in zip(group, detections, strict=True):
            geometry.boxes_to_picture(rows)
            boxes = _as_tensor(rows) if self.engine.torch_boxes else rows
            image = picture.image if picture.on_device is None else picture.on_device
            results.append(Results(image, picture.path, self.names, boxes=boxes))
        spent[2] += time.perf_counter() - start
        for result in results:
            result.speed = dict(zip(_STAGES, (1e3 * spent / len(group)).tolist(), strict=True))
        self._spent += spent
        self.seen += len(group)
        self._input_shape = (len(group), 3, *group[0][1].frame)
        return results

    def _detect_with_tensors(self, group: Group) -> Found:
        """As the engine's `detect`, for pictures of which some are the network's input already."""
        start = time.perf_counter()
        there = [picture.on_device for picture, _ in group]
        if all(one is not None and one.is_input and _has(self.engine, one) for one in there):
            planes = [one.tensor for one in there if one is not None]
            return self.engine.detect_planes(planes, self.preprocess, self.settings)  # type: ignore[union-attr]
        frame, layout = group[0][1].frame, self.engine.layout
        batch = np.empty((len(group), *input_shape(frame, layout)), np.float32)
        for row, (picture, geometry) in zip(batch, group, strict=True):
            found = picture.on_device
            if picture.tensor is not None or (found is not None and found.is_input):
                planes = picture.tensor if found is None else found.host()
                assert planes is not None
                fill_from_planes(row, planes, self.preprocess, layout)
            else:
                image = picture.image if found is None else found.array()
                assert image is not None
                fill_from_picture(row, image, geometry, self.preprocess, layout)
        prepared = time.perf_counter()
        heads = self.engine.heads(batch)
        inferred = time.perf_counter()
        rows = self.engine.select(*heads, self.settings)
        return rows, np.diff((start, prepared, inferred, time.perf_counter()))

    def _report(self, writer: RunWriter | None) -> None:
        if self.skipped:
            total = self.seen + len(self.skipped)
            LOGGER.warning("%d of %d pictures could not be used (each is named above)", len(self.skipped), total)
        if self.notes:
            LOGGER.warning("videos cut short or damaged: %d (each is named above)", len(self.notes))
        if not self.options.verbose or not self.seen:
            return
        speed = self.speed
        print(
            f"Speed: {speed['preprocess']:.1f} ms preprocess, {speed['inference']:.1f} ms inference, "
            f"{speed['postprocess']:.1f} ms postprocess per image at shape {self._input_shape}"
        )
        if writer is not None and writer.folder is not None:
            print(f"Results saved to {writer.folder}")


_STAGES = ("preprocess", "inference", "postprocess")


def settings_of(options: PredictOptions, base: DetectSettings) -> DetectSettings:
    """Detection settings: the user's where given, else the checkpoint's."""
    multi_label = options.multi_label
    if multi_label is None:
        multi_label = base.multi_label and options.protocol == "sg"
    max_det = base.max_det if options.max_det is None else options.max_det
    return DetectSettings(
        conf=base.conf if options.conf is None else options.conf,
        iou=base.iou if options.iou is None else options.iou,
        top_k=max(base.top_k, max_det),
        max_det=max_det,
        multi_label=multi_label,
        agnostic=base.agnostic if options.agnostic_nms is None else options.agnostic_nms,
        classes=options.classes,
    )


def preprocess_of(options: PredictOptions, preprocess: Preprocess) -> Preprocess:
    """The checkpoint's pre-processing with the user's size, protocol and rect."""
    if options.imgsz is not None:
        preprocess = preprocess.with_size(options.imgsz)
    if options.protocol == "ultralytics":
        preprocess = replace(preprocess.as_ultralytics(), rect=True)
    if options.rect is not None:
        preprocess = replace(preprocess, rect=options.rect)
    return preprocess


def _has(engine: Any, picture: DevicePicture) -> bool:
    """Whether a picture lies on the device that the engine computes on."""
    return hasattr(engine, "detect_planes") and engine.cuda.holds(picture.tensor)


def _as_tensor(rows: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(rows)


def _writes(options: PredictOptions) -> bool:
    return options.save or options.save_txt or options.save_crop or options.save_frames or options.show


class _Progress:
    """Console lines per picture, and a bar below them on a terminal when the source is long."""

    def __init__(self, pictures: Source, options: PredictOptions):
        self.verbose = options.verbose
        self.bar = None
        if options.verbose and sys.stderr.isatty() and pictures.total != 1:
            from tqdm import tqdm

            self.bar = tqdm(total=pictures.total, unit="img", leave=False)

    def done(self, picture: Picture, result: Results, shape: tuple[int, ...]) -> None:
        if self.verbose:
            height, width = shape[2:]
            line = f"{_label(picture)}: {height}x{width} {result.verbose()}{result.speed['inference']:.1f}ms"
            if self.bar is None:
                print(line, flush=True)
            else:
                self.bar.write(line, file=sys.stdout)
        self._advance(picture)

    def skipped(self, picture: Picture) -> None:
        if self.bar is not None:
            self.bar.clear()
        LOGGER.warning("%s: skipped, %s", _label(picture), picture.error)
        self._advance(picture)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _advance(self, picture: Picture) -> None:
        """The bar counts files, a video when the next file begins; of live streams it counts frames."""
        if self.bar is not None:
            running = picture.kind == "video" and picture.error is None
            self.bar.update(1 if picture.kind == "stream" else max(0, picture.index - running - self.bar.n))


def _label(picture: Picture) -> str:
    position = f"{picture.index}/{picture.total}" if picture.total else f"{picture.index}"
    # A name may hold escape codes for the terminal, or bytes that are no text and cannot be printed.
    path = "".join(letter if letter.isprintable() else "?" for letter in picture.path)
    if picture.kind == "image":
        return f"image {position} {path}"
    frame = f"{picture.frame}/{picture.frames}" if picture.frames else f"{picture.frame}"
    return f"{picture.kind} {position} (frame {frame}) {path}"
