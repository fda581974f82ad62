"""What a quantisation is made from and measured on: pictures to calibrate with, and pictures to score networks on."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data.items import Item, items_of
from .errors import SourceError
from .preprocess import Preprocess
from .progress import Progress
from .quantization.card import Scores
from .quantization.pictures import Reading, evenly, read_batches
from .quantization.sensitivity import Comparison, Heads, Reference
from .val import ValOptions
from .val_pipeline import evaluate
from .val_setup import ValSetup
from .val_setup import set_up as set_up_val

if TYPE_CHECKING:
    from .data.data_yaml import DataConfig
    from .quantization.counting import AnyEngine
    from .quantize import QuantizeOptions

LOGGER = logging.getLogger("yolonas")

SHOWN_PROBLEMS = 5  # of the data


@dataclass
class QuantizeSetup:
    """Which pictures are used for what.

    Attributes:
        items: to calibrate with, out of `offered` ones of `source`. val: labelled pictures to score networks on, or
            None. others: without labels, pictures to compare outputs on. names: the classes. preprocess: for all of
            them.
    """

    items: list[Item]
    source: str
    offered: int
    val: ValSetup | None
    others: list[Item]
    names: dict[int, str]
    preprocess: Preprocess
    options: QuantizeOptions
    told: set[str] = field(default_factory=set)  # pictures that cannot be used, of which was told

    @property
    def measured_on(self) -> str:
        """The pictures that networks are scored on, in words."""
        if self.val is None:
            apart = {id(item) for item in self.items}.isdisjoint(id(item) for item in self.others)
            return f"{self.source}, others than calibrated with" if apart else f"{self.source}, as calibrated with"
        return f"{self.val.dataset.name} {self.val.dataset.split}"

    def calibration_batches(self, reading: Reading) -> Iterator[np.ndarray]:
        """The pictures to calibrate with, float32 `(N, H, W, 3)`."""
        options = self.options
        return read_batches(self.items, self.preprocess, options.batch, reading, threads=options.workers)

    def usable(self, items: list[Item], reading: Reading) -> list[Item]:
        """The items that could be read; tells of the others, once. Raises SourceError if there was none."""
        if not reading.seen:
            item, reason = reading.left_out[0]
            raise SourceError(
                f"quantize: none of the {len(items)} pictures could be used; the first: {item.path}: {reason}"
            )
        for item, reason in reading.left_out:
            if item.path not in self.told:
                LOGGER.warning("%s: left out, %s", item.path, reason)
                self.told.add(item.path)
        left_out = {id(item) for item, _ in reading.left_out}
        return [item for item in items if id(item) not in left_out]


def set_up(options: QuantizeOptions, names: Mapping[int, str], preprocess: Preprocess) -> QuantizeSetup:
    """Finds the pictures.

    Raises:
        ValueError: the data cannot be used or does not fit the model. FileNotFoundError: there is no such data set.
        SourceError: no pictures.
    """
    preprocess = replace(preprocess, rect=False)
    if not is_data_set(options.data):
        if options.max_map_drop is not None:
            raise ValueError("max_map_drop needs labels to measure mAP; give a data yaml, not pictures alone")
        return _of_pictures(options, dict(names), preprocess)
    chosen = {name: getattr(options, name) for name in ("split", "images", "annotations", "download", "fraction")}
    chosen |= {"batch": options.batch, "workers": options.workers, "plots": False, "verbose": False}
    try:
        val = set_up_val(ValOptions.of(data=options.data, **chosen), names, preprocess)
    except ValueError as error:
        if "has no label files" in str(error) or "have no boxes" in str(error):
            raise ValueError(f"{error}; to quantise without measuring mAP, give the folder of pictures") from None
        raise
    for problem in val.dataset.problems[:SHOWN_PROBLEMS]:
        LOGGER.warning("%s", problem)
    if len(val.dataset.problems) > SHOWN_PROBLEMS:
        LOGGER.warning("and %d more problems, 'yolonas val' lists them", len(val.dataset.problems) - SHOWN_PROBLEMS)
    config = _data_config(options.data)
    if config is not None and config.names is not None and len(config.names) < len(val.names):
        LOGGER.warning(  # they were matched by name
            "quantize: %s has %d of the model's %d classes; mAP says nothing of the others",
            *(val.dataset.name, len(config.names), len(val.names)),
        )
    paths, source = _calibration_paths(config, val)
    items = [Item("file", paths[number], paths[number]) for number in evenly(len(paths), options.n)]
    return QuantizeSetup(items, source, len(paths), val, [], val.names, preprocess, options)


def is_data_set(data: Any) -> bool:
    """Whether `data` names a data set, as `val` takes it, rather than pictures, as `predict` does."""
    if not isinstance(data, str | os.PathLike):
        return False
    path = Path(os.fspath(data))
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml", ".json", ".zip"):
        return True
    if path.expanduser().is_dir():
        from .data.catalog import PUBLISHED

        published = PUBLISHED.get(path.name.lower())
        has_yaml = any(child.suffix.lower() in (".yaml", ".yml") for child in path.expanduser().iterdir())
        return has_yaml or (published is not None and published.is_in(path.expanduser()))
    return not suffix and len(path.parts) == 1 and not any(mark in path.name for mark in "*?[")


class Measure:
    """Scores networks on the same pictures, and compares their outputs with those of the float network on the first."""

    def __init__(self, setup: QuantizeSetup, compared: int):
        self._setup, self._val = setup, setup.val
        self._others = setup.others
        self._reference = Reference(compared)
        self._first_map: float | None = None
        self.left_out = 0
        self._verbose = setup.options.verbose

    @property
    def pictures(self) -> int:
        """That are scored."""
        return len(self._others) if self._val is None else self._val.planned

    @property
    def compared(self) -> int:
        """Of which outputs are compared; known after `float32`."""
        return len(self._reference.pictures)

    def about(self) -> dict[str, Any]:
        """What networks are scored on, for the card."""
        val = self._val
        return {
            "source": self._setup.measured_on,
            "pictures": self.pictures,
            "compared": self.compared,
            "left_out": self.left_out,
            "labels": None if val is None else val.dataset.labels_from,
            "protocol": None if val is None else val.protocol,
        }

    def float32(self, engine: AnyEngine) -> Scores:
        """Of the float network, which comes first.

        Raises:
            SourceError: not one picture could be used.
        """
        progress = Progress("float32", self.pictures, verbose=self._verbose)
        scores = self._scores(self._val, engine, self._reference.record, progress, first=True)
        self._first_map = scores.map if self.compared == self.pictures else None
        return scores

    def __call__(self, engine: AnyEngine, what: str) -> Scores:
        """Of another network, on all pictures."""
        comparison = Comparison(self._reference)
        progress = Progress(what, self.pictures, verbose=self._verbose)
        return replace(self._scores(self._val, engine, comparison.add, progress), sqnr=comparison.sqnr())

    def on_compared(self, float_engine: AnyEngine, engines: Iterable[AnyEngine], count: int) -> Iterator[Scores]:
        """Of other networks on the compared pictures alone; `map` is the difference to the float network's there."""
        val = self._val
        if val is not None:
            order = [index for batch in val.batches for index in batch.indices]
            chosen = [val.dataset.images[index] for index in sorted(order[: self.compared])]
            val = replace(val, dataset=replace(val.dataset, images=chosen))
        with_float = val is not None and self._first_map is None
        total = (count + with_float) * self.compared
        progress = Progress("sensitivity", total, verbose=self._verbose)
        try:
            if with_float:
                self._first_map = self._scores(val, float_engine, lambda heads: None, progress, close=False).map
            for engine in engines:
                comparison = Comparison(self._reference)
                scores = self._scores(val, engine, comparison.add, progress, close=False)
                known = scores.map is not None and self._first_map is not None
                change = scores.map - self._first_map if known else None  # type: ignore[operator]
                yield Scores(change, None, comparison.sqnr())
        finally:
            progress.close()

    def _scores(
        self,
        val: ValSetup | None,
        engine: AnyEngine,
        see: Callable[[Heads], None],
        progress: Progress,
        *,
        first: bool = False,
        close: bool = True,
    ) -> Scores:
        try:
            if val is None:
                self._compare(engine, see, progress, first)
                return Scores(None, None)
            return self._evaluate(val, engine, see, progress, first)
        finally:
            if close:
                progress.close()

    def _evaluate(
        self, val: ValSetup, engine: AnyEngine, see: Callable[[Heads], None], progress: Progress, first: bool
    ) -> Scores:
        watched: Any = _Watched(engine, see)
        metrics, pipeline = evaluate("quantize", val, watched, progress.advance)
        if first and pipeline.skipped:  # the pictures that cannot be used are told of once
            left_out = {skipped.index for skipped in pipeline.skipped}
            images = [image for number, image in enumerate(val.dataset.images) if number not in left_out]
            self._val = replace(val, dataset=replace(val.dataset, images=images))
            self.left_out = len(left_out)
        box = metrics.box
        return Scores(*(float(value) if math.isfinite(value) else None for value in (box.map, box.map50)))

    def _compare(self, engine: AnyEngine, see: Callable[[Heads], None], progress: Progress, first: bool) -> None:
        options, reading = self._setup.options, Reading()
        for batch in read_batches(
            self._others, self._setup.preprocess, options.batch, reading, threads=options.workers
        ):
            see(engine.heads(batch))
            progress.advance(len(batch))
        if first:
            self._others = self._setup.usable(self._others, reading)
            self.left_out = len(reading.left_out)


class _Watched:
    """An engine whose head outputs somebody sees on their way."""

    def __init__(self, engine: AnyEngine, see: Callable[[Heads], None]):
        self._engine, self._see = engine, see
        self.layout = engine.layout
        self.select = engine.select

    def heads(self, batch: np.ndarray) -> Heads:
        found = self._engine.heads(batch)
        self._see(found)
        return found


def _of_pictures(options: QuantizeOptions, names: dict[int, str], preprocess: Preprocess) -> QuantizeSetup:
    """Pictures alone: some are for calibration, and others, or the same if there are none, for comparing outputs."""
    data = options.data
    members = list(data) if isinstance(data, list | tuple) else [data]
    items: list[Item] = []
    for member in members:
        try:
            items += items_of(member, len(items), alone=not isinstance(data, list | tuple))
        except (ValueError, TypeError) as error:  # predict calls it source
            raise type(error)(str(error).replace("source:", "data:", 1)) from None
    if not items:
        raise SourceError("quantize: data must have at least one picture, got none")
    chosen = set(evenly(len(items), options.n))
    rest = [item for number, item in enumerate(items) if number not in chosen]
    used = [items[number] for number in sorted(chosen)]
    others = [(rest or used)[number] for number in evenly(len(rest or used), options.sensitivity_n)]
    where = str(data) if isinstance(data, str | os.PathLike) else f"{len(items)} pictures"
    return QuantizeSetup(used, where, len(items), None, others, names, preprocess, options)


def _data_config(data: Any) -> DataConfig | None:
    """What the data yaml says; None for a COCO json."""
    from .data.catalog import locate
    from .data.data_yaml import read_data_yaml

    found = locate(data)
    if not isinstance(found, Path):
        return found
    return None if found.suffix.lower() == ".json" else read_data_yaml(found)


def _calibration_paths(config: DataConfig | None, val: ValSetup) -> tuple[list[str], str]:
    """The pictures of the train part, which need no labels; where there are none, those that are scored."""
    dataset = val.dataset
    reason = "a json has one part"
    if config is not None:
        try:
            return _train_pictures(config), f"{dataset.name} train"
        except (ValueError, OSError) as error:
            reason = str(error).removeprefix("data: ")
    LOGGER.warning(
        "quantize: calibrating with the pictures of %s %s, which are scored too, for want of a train part (%s)",
        *(dataset.name, dataset.split, reason),
    )
    return [image.path for image in dataset.images], f"{dataset.name} {dataset.split}"


def _train_pictures(config: DataConfig) -> list[str]:
    from .data.dataset import Problems, open_dataset
    from .data.pictures import find_pictures

    entries = config.splits.get("train")
    if not entries:
        raise ValueError("the yaml has no train")
    if any(entry.lower().endswith(".json") for entry in entries):
        return [image.path for image in open_dataset(config, "train").images]
    return find_pictures(config, "train", Path(os.path.abspath(config.root)), Problems())  # noqa: PTH100  solves ..
