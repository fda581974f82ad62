"""Runs an evaluation: reading, letterbox, network, NMS and matching overlap, and no queue between them is long.

Reading threads decode and letterbox ahead of the network, one thread behind it selects detections, matches them and
writes the journal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .background import Background
from .errors import SourceError
from .journal import Entry, Journal, JournalError, Skipped, read_entries
from .prepare import fill_from_picture, input_shape
from .preprocess import Geometry, Size
from .progress import Progress
from .records import ImageRecord, rounded_detections
from .val_batches import in_frame

if TYPE_CHECKING:
    from .engines import Engine
    from .metrics import DetMetrics, Evaluator
    from .val_setup import ValSetup

LOGGER = logging.getLogger("yolonas")


@dataclass
class _Prepared:
    """A picture on its way to the network."""

    index: int
    path: str
    pixels: np.ndarray | None = None  # (3, H, W) or (H, W, 3) float32, or the picture itself: as the engine wants it
    geometry: Geometry | None = None
    error: str | None = None
    ms: tuple[float, float] = (0.0, 0.0)  # reading, letterbox

    def cost(self) -> int:
        return 0 if self.pixels is None else self.pixels.nbytes


class Pipeline:
    """Takes the pictures of a setup from their files into an evaluator, and into a journal where there is one.

    Attributes:
        seen: pictures in the evaluator and the journal, which follow the network by up to three batches.
        skipped: those that could not be used.
    """

    def __init__(
        self,
        setup: ValSetup,
        engine: Engine,
        journal: Journal | None,
        evaluator: Evaluator,
    ):
        self.seen = 0
        self.skipped: list[Skipped] = []
        self._setup, self._engine, self._journal, self._evaluator = setup, engine, journal, evaluator
        self._done: set[int] = set()  # numbers of the pictures that the evaluator has
        self._submits = hasattr(engine, "submit")  # takes pictures, and runs behind

    def read_back(self) -> int:
        """Takes over what an interrupted run has written to the journal; returns how many pictures that are."""
        assert self._journal is not None
        for entry in read_entries(self._journal.path):
            if isinstance(entry, Entry):
                try:
                    self._take(entry.record)
                except ValueError as error:
                    raise JournalError(f"journal: {self._journal.path}: {error}; run the evaluation again") from error
        return self.seen

    def run(self, on_event: Callable[[str], None]) -> None:
        """Evaluates the pictures that are not done. `on_event` is called at the beginning and end of each batch."""
        from .data.readahead import OrderedMap

        setup, options = self._setup, self._setup.options
        # A batch that was cut off runs again as a whole: its other pictures decide the last digits too.
        batches = [batch for batch in setup.batches if not self._done.issuperset(batch.indices)]
        order = [(index, batch.frame) for batch in batches for index in batch.indices]
        for skipped in setup.unreadable:
            self._leave_out(skipped)
        if self._journal is not None:
            self._journal.add(setup.unreadable)
        if not order:
            return
        ahead = OrderedMap(
            self._read,
            order,
            depth=max(4, 2 * options.batch),
            cost=_Prepared.cost,
            threads=None if options.workers is None else max(1, options.workers),
        )
        behind = Background("yolonas-val")
        progress = Progress("val", setup.planned, setup.planned - len(order), verbose=options.verbose)
        position = 0
        try:
            for batch in batches:
                on_event("on_val_batch_start")
                prepared = [ahead.get(position + offset) for offset in range(len(batch.indices))]
                position += len(batch.indices)
                usable = [item for item in prepared if item.pixels is not None]
                start = time.perf_counter()
                heads: Any = None
                if usable and self._submits:
                    heads = self._submitted(usable)
                elif usable:
                    heads = self._engine.heads(np.stack([item.pixels for item in usable]))
                spent = 1e3 * (time.perf_counter() - start) / max(1, len(usable))
                for item in prepared:
                    item.pixels = None
                behind.run(self._keep, prepared, heads, spent)
                on_event("on_val_batch_end")
                progress.advance(len(batch.indices))
        except BaseException:
            behind.close(quiet=True)
            raise
        finally:
            progress.close()
            ahead.close()
        behind.close()

    def _read(self, item: tuple[int, Size | None]) -> _Prepared:
        """One picture from its file to the network's input, on a reading thread."""
        from .data.images import decode_image, read_file

        index, frame = item
        preprocess = self._setup.preprocess
        result = _Prepared(index, self._setup.dataset.images[index].path)
        start = time.perf_counter()
        try:
            picture = decode_image(read_file(result.path))
            read = time.perf_counter()
            _check_size(picture.shape[:2], self._setup.dataset.images[index].size)
            result.geometry = in_frame(preprocess.plan(*picture.shape[:2]), frame, preprocess)
            pixels = picture
            if not self._submits:
                layout = self._engine.layout
                pixels = np.empty(input_shape(result.geometry.frame, layout), np.float32)
                fill_from_picture(pixels, picture, result.geometry, preprocess, layout)
        except (SourceError, ValueError, MemoryError) as error:
            result.error = str(error) or type(error).__name__
            return result
        result.pixels = pixels
        result.ms = (1e3 * (read - start), 1e3 * (time.perf_counter() - read))
        return result

    def _submitted(self, usable: list[_Prepared]) -> Any:
        """What `_keep` collects."""
        pictures, geometries = [item.pixels for item in usable], [item.geometry for item in usable]
        setup = self._setup
        return self._engine.submit(pictures, geometries, setup.preprocess, setup.settings)  # type: ignore

    def _keep(self, prepared: list[_Prepared], heads: Any, ms: float) -> None:
        """From head outputs to the journal and the evaluator, behind the network."""
        start = time.perf_counter()
        found: list[np.ndarray] = []
        before = 0.0
        usable = sum(item.error is None for item in prepared)
        if heads is None:
            after = 0.0
        elif self._submits:
            found, spent = self._engine.collect(heads)  # type: ignore[union-attr]
            before, ms, after = (1e3 * spent / usable).tolist()
        else:
            found = self._engine.select(*heads, self._setup.settings)
            after = 1e3 * (time.perf_counter() - start) / usable
        rows = iter(found)
        entries: list[Entry | Skipped] = []
        for item in prepared:
            if item.error is not None:
                entries.append(Skipped(item.index, item.path, item.error))
            else:
                times = (item.ms[0], item.ms[1] + before, ms, after)
                entries.append(Entry(self._record(item, next(rows), times), item.path))
        if self._journal is not None:
            self._journal.add(entries)
        for entry in entries:
            if isinstance(entry, Skipped):
                self._leave_out(entry)
            else:
                self._take(entry.record)

    def _record(self, item: _Prepared, detections: np.ndarray, ms: tuple[float, ...]) -> ImageRecord:
        assert item.geometry is not None
        image, size = self._setup.dataset.images[item.index], item.geometry.original
        item.geometry.boxes_to_picture(detections)
        found = rounded_detections(detections)
        if self._setup.options.single_cls:
            found[:, 5] = 0
        truth = self._setup.truth(image, size)
        return ImageRecord(item.index, image.image_id, image.file_name, size, truth, found, ms)

    def _take(self, record: ImageRecord) -> None:
        if record.index not in self._done:
            self._evaluator.add(record)
            self._done.add(record.index)
            self.seen += 1

    def _leave_out(self, skipped: Skipped) -> None:
        LOGGER.warning("%s: left out, %s", skipped.path, skipped.reason)
        self.skipped.append(skipped)


def evaluate(op: str, setup: ValSetup, engine: Engine, advance: Callable[[int], None]) -> tuple[DetMetrics, Pipeline]:
    """The metrics of one run that leaves nothing behind. `advance` is called with the pictures of each batch.

    Raises:
        SourceError: not one picture could be used; the text begins with `op`.
    """
    from .metrics import Evaluator

    evaluator = Evaluator(setup.names, setup.dataset.category_ids)
    pipeline = Pipeline(setup, engine, None, evaluator)
    sizes = iter([len(batch.indices) for batch in setup.batches])
    pipeline.run(lambda event: advance(next(sizes)) if event == "on_val_batch_end" else None)
    if not pipeline.seen:
        one = pipeline.skipped[0]
        raise SourceError(
            f"{op}: none of the {setup.planned} pictures could be used; the first: {one.path}: {one.reason}"
        )
    return evaluator.finish(), pipeline


def _check_size(size: Size, labelled: Size | None) -> None:
    """Raises ValueError for a picture of another size than its labels were made for: they would not fit it."""
    if labelled is None or size == labelled:
        return
    turned = "; its EXIF tag turns it" if size == labelled[::-1] else ""
    raise ValueError(f"the picture is {size[0]}x{size[1]}, its labels are for {labelled[0]}x{labelled[1]}{turned}")
