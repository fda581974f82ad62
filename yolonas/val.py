"""Val: a network and a labelled data set in, mean average precision out, with tables, curves and pictures.

Every finished batch goes to a journal in the run folder, which is what an interrupted run goes on from and what the
shards of a run are joined from. What is run, how, and what it leaves behind are in `val_setup`, `val_pipeline` and
`val_report`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import SourceError
from .journal import MAX_SHARDS, RUNNING, Journal, JournalError, Skipped, check_interrupted, interrupted_run, part_name
from .options import (
    ENGINE_HELP,
    ENGINES,
    PRECISION_HELP,
    PROTOCOLS,
    TUNE_HELP,
    anything,
    build,
    class_list,
    data_split,
    flag,
    flag_or_path,
    image_size,
    one_of,
    option,
    precision,
    text,
    unit_fraction,
    whole,
    with_quantize,
)
from .preprocess import Preprocess
from .runs import project_folder, run_folder
from .val_pipeline import Pipeline
from .val_report import SCORED_BY, Report, ReportOptions, clear_old_files, print_table, write_files
from .val_setup import ValSetup, set_up

if TYPE_CHECKING:
    from .engines import Engine
    from .metrics import DetMetrics

LOGGER = logging.getLogger("yolonas")

SHOWN_PROBLEMS = 10  # of the data, on the console; all of them are in problems.txt


def _shard(name: str, value: Any) -> tuple[int, int]:
    """`(i, n)` from "i/n": part i of n, counted from 1."""
    parts = value if isinstance(value, list | tuple) else str(value).split("/")
    try:
        number, count = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be like '1/4' (part 1 of 4), got {value!r}") from None
    if not 1 <= number <= count <= MAX_SHARDS:
        raise ValueError(f"{name} must be like '1/4' (part 1 of 4, at most {MAX_SHARDS} parts), got {value!r}")
    return number, count


@dataclass(frozen=True, kw_only=True)
class ValOptions(ReportOptions):
    """Settings of `val`. None means what the checkpoint or the protocol says."""

    data: str | None = option(None, text, "data yaml, COCO json, folder, zip, or a name such as coco8.yaml")
    split: str = option("val", data_split, "which part of the data: train, val or test")
    images: str | None = option(None, text, "folder of the pictures of a COCO json (default: found beside it)")
    annotations: str | None = option(
        None,
        text,
        "COCO json of the same boxes as YOLO labels, with crowds and mask areas (default: found)",
    )
    download: bool = option(False, flag, "fetch coco8, coco128 or coco if they are not here")
    fraction: float = option(1.0, unit_fraction, "the first part of the pictures, 0..1")
    protocol: str = option(
        "sg",
        one_of(*PROTOCOLS),
        "'sg': as trained, super-gradients' thresholds; 'ultralytics': its letterbox and frames",
    )
    imgsz: tuple[int, int] | None = option(None, image_size, "input side or (height, width), multiples of 32")
    rect: bool | None = option(None, flag, "smallest frame instead of a square (default: as the protocol does)")
    batch: int = option(16, whole(1, 4096), "pictures per network call")
    conf: float | None = option(None, unit_fraction, "lowest score, 0..1 (default: 0.01, ultralytics 0.001)")
    iou: float | None = option(None, unit_fraction, "NMS drops boxes that overlap more, 0..1 (default: 0.7)")
    max_det: int = option(300, whole(1, 100_000), "detections kept per picture; raised where the labels have more")
    classes: tuple[int, ...] | None = option(None, class_list, "only these class numbers, in labels and detections")
    single_cls: bool = option(False, flag, "all classes count as one")
    agnostic_nms: bool = option(False, flag, "NMS across classes")
    device: Any = option(None, anything, "'cpu', GPU number, 'cuda:0', 'mps' (default: a GPU if there is one)")
    quantize: str | None = option(None, precision, PRECISION_HELP)
    engine: str | None = option(None, one_of(*ENGINES), ENGINE_HELP)
    tune: bool = option(False, flag, TUNE_HELP)
    workers: int | None = option(None, whole(0, 256), "threads that read pictures (default: one per core, at most 4)")
    shard: tuple[int, int] | None = option(None, _shard, "'i/n': only part i of n, to be joined by 'yolonas val merge'")
    resume: bool | str = option(False, flag_or_path, "go on with the run that was interrupted; True or its folder")
    augment: bool = option(False, flag, "no effect", ignored=True)
    visualize: bool = option(False, flag, "no effect", ignored=True)
    dnn: bool = option(False, flag, "no effect", ignored=True)
    compile: Any = option(False, anything, "no effect", ignored=True)
    channels_last: bool | None = option(None, flag, "no effect: always so", ignored=True)
    nms: bool | None = option(None, flag, "no effect: always so", ignored=True)

    @classmethod
    def of(cls, **values: Any) -> ValOptions:
        """From user values, with the names of older releases; see `options.build`."""
        return build(cls, with_quantize(values), renamed=_RENAMED, dropped=_DROPPED)


_RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {"end2end": ("nms", lambda value: value)}
_DROPPED = (
    *("task", "mode", "save_hybrid", "keras", "optimize", "save", "show", "show_boxes", "line_width", "cache", "seed"),
    *("deterministic", "save_crop", "save_frames", "vid_stride", "stream_buffer", "validator", "pretrained"),
)


def legacy_names() -> tuple[str, ...]:
    """Other names that `ValOptions.of` takes."""
    return ("precision", "half", "int8", *_RENAMED, *_DROPPED)


@dataclass
class Validator:
    """One evaluation. `run()` does it; afterwards the attributes tell how it went.

    Attributes:
        metrics: the result. save_dir: the run folder. seen: pictures evaluated, those of an earlier part included.
        skipped: pictures that could not be used. setup: what was run.
    """

    engine: Engine
    names: dict[int, str]
    preprocess: Preprocess
    weights: str  # what identifies the weights: a digest
    model: str  # for people: the file
    options: ValOptions
    on_event: Callable[[str, Validator], None] = lambda event, validator: None
    setup: ValSetup | None = None
    metrics: DetMetrics | None = None
    save_dir: Path | None = None
    seen: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def run(self) -> DetMetrics:
        """Evaluates and writes the results.

        Raises:
            ValueError: the data set cannot be used, or does not fit the model, or the model takes no such frames.
            FileNotFoundError: there is no such data set.
            SourceError: not one picture could be used.
            JournalError: `resume` names a run that is another one.
        """
        from .metrics import Evaluator

        options = self.options
        setup = self.setup = set_up(options, self.names, self.preprocess)
        if options.tune:
            from .tuning import tune

            tune(self.engine, setup.preprocess.size, options.batch, other_sizes=setup.rect)
        if self.engine.fixed_size is not None:
            from .exported_engine import check_frame

            for batch in setup.all_batches:
                check_frame(self.engine.fixed_size, batch.frame or setup.preprocess.size)
        header = self._header(setup)
        evaluator = Evaluator(setup.names, setup.dataset.category_ids, evaluator=options.evaluator)
        self.save_dir, fresh = self._folder(header)
        with closing(Journal(self.save_dir / RUNNING, header, fresh=fresh)) as journal:
            pipeline = Pipeline(setup, self.engine, journal, evaluator)
            self.skipped = pipeline.skipped
            done = 0 if fresh else pipeline.read_back()
            if options.verbose:
                self._print_start(setup, done)
            self.on_event("on_val_start", self)
            try:
                pipeline.run(lambda event: self._batch_event(event, pipeline))
            finally:
                self.seen = pipeline.seen
            if not self.seen:
                journal.path.unlink()  # there is nothing to go on with
                first = self.skipped[0]
                raise SourceError(
                    f"val: none of the {setup.planned + len(setup.unreadable)} pictures could be used; "
                    f"the first: {first.path}: {first.reason}"
                )
            shard = options.shard
            journal.finish(None if shard is None else part_name(shard))
        order = [index for batch in setup.batches for index in batch.indices]
        report = Report(self.save_dir, [journal.path], [header], order)
        self.metrics = report.finish(evaluator, options)
        if options.verbose:
            print_table(self.metrics, part=None if shard is None else f"part {shard[0]} of {shard[1]}")
        write_files(report, self.metrics, options)
        if shard is None:
            journal.path.unlink()
        elif options.verbose:
            print(f"{journal.path} holds this part; 'yolonas val merge' joins all {shard[1]}")
        self.on_event("on_val_end", self)
        return self.metrics

    def _batch_event(self, event: str, pipeline: Pipeline) -> None:
        self.seen = pipeline.seen
        self.on_event(event, self)

    def _header(self, setup: ValSetup) -> dict[str, Any]:
        """What identifies a run (`run`), and what its report needs (`about`)."""
        header = {
            "run": {
                "yolonas": __version__,
                "weights": self.weights,
                "device": self.engine.device.type,
                "engine": self.engine.name,
                **setup.fingerprint(),
            },
            "shard": list(self.options.shard or (1, 1)),
            "planned": setup.planned,
            "about": {
                "names": [setup.names[number] for number in sorted(setup.names)],
                "category_ids": list(setup.dataset.category_ids),
                "data": setup.dataset.name,
                "split": setup.dataset.split,
                "labels": setup.dataset.labels_from,
                "problems": [str(problem) for problem in setup.dataset.problems],
                "missing": sum(one.count for one in setup.dataset.problems if one.cost == "picture"),
                "model": self.model,
                "protocol": setup.protocol,
            },
        }
        return json.loads(json.dumps(header))  # as it comes back from a file

    def _folder(self, header: Mapping[str, Any]) -> tuple[Path, bool]:
        """The run folder, and whether the run begins."""
        options = self.options
        if isinstance(options.resume, str):
            return check_interrupted(Path(options.resume).expanduser(), header), False
        if options.resume:
            found = interrupted_run(project_folder(options.project) / (options.name or "val"), header)
            if found is not None:
                return found, False
        folder = run_folder(options.project, options.name, mode="val", exist_ok=options.exist_ok)
        if (folder / RUNNING).exists():
            raise JournalError(
                f"val: {folder} holds an interrupted run; go on with it by resume, or delete {RUNNING} there"
            )
        clear_old_files(folder)
        return folder, True

    def _print_start(self, setup: ValSetup, done: int) -> None:
        dataset = setup.dataset
        boxes = sum(int((~setup.truth(image, (1, 1)).crowd).sum()) for image in dataset.images)
        print(
            f"data: {dataset.name} {dataset.split}, {len(dataset.images):,} pictures, {boxes:,} boxes, "
            f"{len(setup.names)} classes; labels from {dataset.labels_from}"
        )
        print(f"protocol: {setup.protocol}; scored by {SCORED_BY[self.options.evaluator]}", flush=True)
        problems = dataset.problems
        for problem in problems[:SHOWN_PROBLEMS]:
            LOGGER.warning("%s", problem)
        more = sum(problem.count for problem in problems[SHOWN_PROBLEMS:])
        if more:
            assert self.save_dir is not None
            LOGGER.warning("and %d more, see %s", more, self.save_dir / "problems.txt")
        if done:
            print(f"going on with {self.save_dir}: {done:,} pictures are done")
