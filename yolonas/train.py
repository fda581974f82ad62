"""Train: pictures with boxes in, a network that finds them out, with a table, curves and everything a resume needs.

What is trained on what is in `train_setup`, what a run leaves behind in `train_files`, and the steps in `training`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import load_model, read_checkpoint
from .config import DetectSettings
from .engine import choose_device
from .errors import CheckpointError
from .native_engine import NativeEngine
from .nn import YoloNAS
from .options import (
    as_list,
    between,
    build,
    data_split,
    flag,
    flag_or_path,
    image_size,
    one_of,
    option,
    text,
    unit_fraction,
    whole,
)
from .preprocess import Preprocess
from .runs import run_folder
from .train_files import STATE, WEIGHTS, TrainFiles, check_pth, find_interrupted
from .train_loop import LOSSES, Loop, seed_everything
from .train_setup import TrainSetup, quantized_network, set_up
from .training.augment import PRESETS
from .training.optimizer import OPTIMIZERS
from .training.processes import Processes
from .training.recipes import RECIPES
from .training.state import Progress as Done
from .training.state import TrainingState, restore_
from .training.step import PRECISIONS
from .training.table import EpochRow
from .val_pipeline import evaluate

if TYPE_CHECKING:
    import torch

    from .metrics import DetMetrics

LOGGER = logging.getLogger("yolonas")

SHOWN_BATCHES = 3  # of which pictures are kept


def _average(name: str, value: Any) -> float:
    """A decay, or False for none."""
    return 0.0 if value is False else between(0, 0.999999)(name, value)


def _parts(name: str, value: Any) -> tuple[str, ...]:
    value = as_list(value)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(one, str) and one for one in value):
        raise ValueError(f"{name} must name parts of the network such as backbone,neck, got {value!r}")
    return tuple(value)


def _device(name: str, value: Any) -> Any:
    """What `choose_device` takes, as what a resume can keep: a torch.device becomes its name."""
    return value if isinstance(value, int | str | list | tuple) else str(value)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Settings of `train`. None means what the recipe or the checkpoint says."""

    data: str | None = option(None, text, "data yaml with train and val, folder, zip, or a name such as coco8.yaml")
    recipe: str | None = option(
        None, one_of(*RECIPES), f"published settings: {', '.join(RECIPES)} (default: by what the weights are)"
    )
    epochs: int | None = option(None, whole(1, 1_000_000), "times through the pictures (recipe: 300, 100, 10)")
    batch: int | None = option(None, whole(1, 65_536), "pictures per network call and process (recipe: 32, 16, 16)")
    accumulate: int = option(1, whole(1, 65_536), "network calls per step of the optimizer")
    imgsz: tuple[int, int] | None = option(None, image_size, "input side or (height, width) (default: the model's)")
    pretrained: bool = option(True, flag, "False: begin with random weights")
    freeze: tuple[str, ...] | None = option(None, _parts, "parts that stay as they are: backbone,neck trains the heads")
    optimizer: str = option("adamw", one_of(*OPTIMIZERS), f"{', '.join(OPTIMIZERS)}")
    lr0: float | None = option(None, between(1e-12, 100), "highest learning rate (recipe: 2e-4, 5e-4, 5e-6)")
    lrf: float | None = option(None, between(0, 1), "share of it that is left at the end (recipe: 0.1, 0.1, 0.01)")
    momentum: float = option(0.9, between(0, 0.9999), "of sgd")
    weight_decay: float | None = option(None, between(0, 100), "of kernels (recipe: 1e-5, 1e-4, 1e-6)")
    warmup_epochs: float | None = option(None, between(0, 1e6), "until the highest learning rate (recipe: 1, 3, 1)")
    ema: float | None = option(
        None, _average, "largest decay of the average of weights, False: none (recipe: 0.9997, 0.9)"
    )
    clip: float | None = option(None, between(1e-9, 1e9), "largest norm of gradients (default: not limited)")
    cls: float = option(1.0, between(0, 1e6), "weight of the loss of classes")
    box: float = option(2.5, between(0, 1e6), "weight of the loss of boxes")
    dfl: float = option(0.5, between(0, 1e6), "weight of the loss of distances")
    weight_bits: int = option(8, whole(4, 8), "of a quantised network: train weights that are this coarse")
    augment: str | None = option(
        None, one_of(*PRESETS), f"changes of pictures: {', '.join(PRESETS)} (default: the recipe's)"
    )
    degrees: float | None = option(None, between(0, 180), "largest rotation")
    shear: float | None = option(None, between(0, 80), "largest slant, degrees")
    scale: float | None = option(None, between(0, 0.99), "largest change of size: 0.5 is 0.5 to 1.5 times")
    translate: float | None = option(None, unit_fraction, "largest shift, share of the sides")
    fliplr: float | None = option(None, unit_fraction, "probability of left-right flips")
    flipud: float | None = option(None, unit_fraction, "probability of up-down flips")
    hsv_h: float | None = option(None, between(0, 1), "largest change of hue, share of the circle")
    hsv_s: float | None = option(None, between(0, 1), "largest change of saturation, share of its range")
    hsv_v: float | None = option(None, between(0, 1), "largest change of value, share of its range")
    bgr: float | None = option(None, unit_fraction, "probability that red and blue change places")
    mosaic: float | None = option(None, unit_fraction, "probability of four pictures in one")
    mixup: float | None = option(None, unit_fraction, "probability of another picture blended in")
    close_mosaic: int | None = option(None, whole(0, 1_000_000), "last epochs, without mosaic and mixup")
    min_samples: int | None = option(None, whole(0, 1 << 30), "pictures per epoch at least (recipe: 0, 512, 512)")
    fraction: float = option(1.0, unit_fraction, "train on the first part of the pictures, 0..1")
    single_cls: bool = option(False, flag, "all classes count as one")
    split: str = option("val", data_split, "part of the data that is measured on")
    val: bool = option(True, flag, "measure after each epoch, and keep the best")
    val_batch: int | None = option(None, whole(1, 4096), "pictures per network call when measuring (default: batch)")
    patience: int = option(100, whole(0, 1_000_000), "epochs without a better mAP50-95 until the end; 0: never")
    seed: int = option(0, whole(0, 2**31 - 1), "of all that is random: the same one gives the same run on one machine")
    deterministic: bool = option(True, flag, "the same numbers each time on GPUs too, if slower")
    amp: bool = option(True, flag, "mixed precision on GPUs: bf16 where it exists, else fp16")
    precision: str | None = option(None, one_of(*PRECISIONS), f"{', '.join(PRECISIONS)} (default: by amp and device)")
    sync_bn: bool = option(True, flag, "several GPUs: batch norms see the pictures of all")
    device: Any = option(None, _device, "'cpu', GPU number, 'cuda:0' (default: a GPU if there is one)")
    workers: int | None = option(None, whole(0, 256), "threads that read pictures (default: one per core, at most 16)")
    save_period: int = option(0, whole(0, 1_000_000), "keep the weights of every so many epochs too; 0: of none")
    save_pth: bool = option(False, flag, "write best and last as super-gradients' .pth as well")
    plots: bool = option(True, flag, "draw curves and the first batches")
    resume: bool | str = option(
        False, flag_or_path, "go on with an interrupted run: True for the latest, or its folder"
    )
    download: bool = option(False, flag, "fetch coco8, coco128 or coco if they are not here")
    project: str | None = option(None, text, "folder for run folders (default: runs/detect)")
    name: str | None = option(None, text, "run folder (default: train, train-2, ...)")
    exist_ok: bool = option(False, flag, "write into an existing run folder")
    verbose: bool = option(True, flag, "print progress and the table of classes")

    def __post_init__(self) -> None:
        if not self.resume and (self.data is None or not self.data.strip()):
            raise ValueError("train: data must name a data yaml, such as data=cells.yaml")
        if self.optimizer == "sgd" and self.lr0 is None and not self.resume:
            raise ValueError("train: lr0 must be given with optimizer='sgd', as the recipes are for adamw")
        if self.fraction == 0:
            raise ValueError("fraction must be above 0 and at most 1, got 0")

    @classmethod
    def of(cls, /, **values: Any) -> TrainOptions:
        """From user values, with the names of other libraries; see `options.build`."""
        return build(cls, values, renamed=_RENAMED, dropped=_DROPPED)


# Settings that may differ when a run is resumed: nothing that its numbers depend on. Unsaid they are as they were, but
# for the first two.
_FREE = ("resume", "verbose", "device", "workers", "plots", "project", "name", "exist_ok", "download", "save_pth")

_RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "batch_size": ("batch", lambda value: value),
    "lr": ("lr0", lambda value: value),
}
_DROPPED = (
    *("task", "mode", "cache", "rect", "cos_lr", "nbs", "warmup_momentum", "warmup_bias_lr", "time", "save"),
    *("multi_scale", "overlap_mask", "mask_ratio", "dropout", "copy_paste", "copy_paste_mode", "auto_augment"),
    *("erasing", "perspective", "crop_fraction", "cutmix", "pose", "kobj", "label_smoothing", "profile", "compile"),
    *("trainer", "conf", "iou", "max_det", "half", "int8", "classes"),
)


def legacy_names() -> tuple[str, ...]:
    """Names of other libraries that `TrainOptions.of` takes."""
    return (*_RENAMED, *_DROPPED)


@dataclass
class Trainer:
    """One training. `run()` does it; afterwards the attributes tell how it went.

    Attributes:
        model: what is trained. fresh: its weights are random. names, preprocess: as the files say.
        setup: what is trained on what. loop: the training itself. rows: the table so far. epoch: that is under way,
            from 0. kept: epochs that a resume need not do again. save_dir: the run folder.
        best, last: files, None before the training has ended.
        metrics: of the best epoch that this process has seen, None where nothing was measured.
    """

    model: YoloNAS
    fresh: bool
    names: dict[int, str]
    preprocess: Preprocess
    settings: DetectSettings
    source: str  # for people: the file of the model
    options: TrainOptions
    on_event: Callable[[str, Trainer], None] = lambda event, trainer: None
    setup: TrainSetup | None = None
    loop: Loop | None = None
    rows: list[EpochRow] = field(default_factory=list)
    epoch: int = 0
    kept: int = 0
    save_dir: Path | None = None
    best: Path | None = None
    last: Path | None = None
    metrics: DetMetrics | None = None
    _processes: Processes = Processes()

    @property
    def is_kept(self) -> bool:
        """Whether there is something to resume."""
        return self.save_dir is not None and (self.save_dir / WEIGHTS / STATE).exists()

    def run(self) -> DetMetrics | None:
        """Trains, measures and writes the files; returns the metrics of the best epoch.

        Raises:
            ValueError: the data set cannot be used, or options do not fit each other, the model or the interrupted run.
            FileNotFoundError: there is no such data set, or no such run to resume.
            TrainingError: a loss that is not finite; the text has the names of the pictures.
            MemoryError: a batch does not fit; the text says which one would.
            SourceError: hardly any picture can be read.
            OSError: a file cannot be written; those that are there are whole.
        """
        self._processes = Processes.of_environment()
        state = self._take_up() if self.options.resume else None
        device = choose_device(self.options.device)
        if device.type == "cuda" and self._processes.world > 1:
            device = choose_device(self._processes.local_rank)
        with self._processes.together(device):
            return self._run(device, state)

    def _run(self, device: torch.device, state: TrainingState | None) -> DetMetrics | None:
        options, processes = self.options, self._processes
        seed_everything(options.seed, deterministic=options.deterministic)
        if state is None:
            if self.fresh or not options.pretrained:
                self.fresh, self.model = True, YoloNAS(self.model.variant, self.model.num_classes)
            options = self.options = replace(options, recipe=options.recipe or self._usual_recipe())
        with processes.first_tells():
            setup = set_up(options, self.model, self.names, self.preprocess, self.source, fresh=self.fresh)
        self.setup = setup
        self.names, self.preprocess = setup.names, setup.preprocess
        if options.save_pth:
            check_pth(setup, self.settings)
        loop = self.loop = Loop(setup, options, device, processes)
        done = Done(step=0, epoch=0)
        if state is None:
            folder = processes.from_first(self._new_folder() if processes.is_first else None)
        else:
            folder = state.path.parent.parent
            done = self._restore(state, loop)
        self.save_dir = folder
        files = TrainFiles(folder, setup, self.settings, pth=options.save_pth, plots=options.plots)
        if processes.is_first and state is None:
            files.begin(self._stated())
        if processes.is_first and options.verbose:
            self._print_start(loop, done)
        self.on_event("on_train_start", self)
        is_over = state is not None and self._is_over()  # stopped after its last epoch
        if processes.is_first and state is not None:
            files.go_on(self.rows)
        for self.epoch in range(done.epoch, done.epoch if is_over else setup.recipe.epochs):
            self._one_epoch(loop, files)
            if self._is_over():
                break
        if processes.is_first:
            files.end(self.rows)
        processes.wait()
        if self.metrics is None and setup.val is not None and processes.is_first:
            self.metrics = _measured(files.best, setup)  # that epoch was before the resume
        self.best, self.last = (path if path.exists() else None for path in (files.best, files.last))
        self.on_event("on_train_end", self)
        return self.metrics

    def _usual_recipe(self) -> str:
        """The recipe for a network with these weights."""
        return "coco" if self.fresh else "qat" if self.model.activation_scales else "fine-tuning"

    def _one_epoch(self, loop: Loop, files: TrainFiles) -> None:
        """Trains, measures, keeps and tells."""
        options, is_first = self.options, self._processes.is_first

        def see(step: int, batch: Any) -> None:
            if step < SHOWN_BATCHES and is_first:
                files.draw_batch(step, batch)
            self.on_event("on_train_batch_start", self)

        self.on_event("on_train_epoch_start", self)
        began = time.monotonic()
        trained = loop.train_epoch(self.epoch, see, lambda: self.on_event("on_train_batch_end", self))
        self.on_event("on_train_epoch_end", self)
        metrics = loop.measure()
        row = EpochRow(
            epoch=self.epoch + 1,
            time=(self.rows[-1].time if self.rows else 0.0) + time.monotonic() - began,
            **dict(zip(LOSSES, trained.losses, strict=True)),
            **_numbers(metrics),
            lr=trained.learning_rate,
            images_per_second=trained.images_per_second,
        )
        self.rows.append(row)
        is_best = best_row(self.rows) is row
        if is_best:
            self.metrics = metrics
        if is_first:
            period = options.save_period
            files.keep(
                loop.deployed(),
                loop.learner,
                self.rows,
                Done(step=loop.step, epoch=row.epoch, best_score=best_row(self.rows).map),
                self._kept_settings(loop),
                is_best=is_best,
                numbered=bool(period) and row.epoch % period == 0,
            )
            self.kept = row.epoch
            if options.verbose:
                self._print_epoch(row, is_best=is_best)
        self._processes.wait()
        self.on_event("on_fit_epoch_end", self)

    def _is_over(self) -> bool:
        """Whether to stop early: each process has the same rows, but for the times."""
        options, epoch = self.options, self.rows[-1].epoch
        best = best_row(self.rows)
        if best.map is None or not options.patience or epoch - best.epoch < options.patience:
            return False
        if options.verbose and self._processes.is_first:
            print(f"no better epoch than {best.epoch} in the last {options.patience}: the training ends here")
        return True

    def _new_folder(self) -> Path:
        options = self.options
        folder = run_folder(options.project, options.name, mode="train", exist_ok=options.exist_ok)
        if (folder / WEIGHTS / STATE).exists():
            raise FileExistsError(
                f"train: {folder} holds an interrupted training; go on with it by resume={folder}, or delete it"
            )
        return folder

    def _stated(self) -> dict[str, Any]:
        """All settings, as plain values: what was said, and what it came to."""
        assert self.setup is not None
        plain = {"model": self.source, **asdict(self.options)}
        return json.loads(json.dumps({**plain, "used": asdict(self.setup.recipe)}, default=str))

    def _kept_settings(self, loop: Loop) -> dict[str, Any]:
        """What a resume needs besides the weights and the table."""
        return {
            "options": {item.name: getattr(self.options, item.name) for item in fields(self.options)},
            "source": self.source,
            "names": [self.names[number] for number in sorted(self.names)],
            "preprocess": self.preprocess.to_dict(),
            "settings": asdict(self.settings),
            "run": self._identity(loop),
            "quantized": loop.setup.quantized_as(),
        }

    def _identity(self, loop: Loop) -> dict[str, Any]:
        """What the numbers of a run depend on, beside its options."""
        setup = loop.setup
        return {
            "train": setup.train.digest(),
            "val": None if setup.val is None else setup.val.fingerprint()["data"],
            "batch": loop.loader.batch * self._processes.world,
            "precision": loop.precision,
        }

    def _take_up(self) -> TrainingState:
        """Finds the interrupted run and becomes what it was, but for the options that its numbers do not depend on.

        Raises:
            FileNotFoundError: there is none. CheckpointError: it is damaged. ValueError: an option says something else.
        """
        asked = self.options
        state = find_interrupted(asked.resume, asked.project, asked.name)
        try:
            kept = state.settings
            options = TrainOptions.of(**{**kept["options"], "resume": True})
            names = {number: str(name) for number, name in enumerate(kept["names"])}
            preprocess = Preprocess.from_dict(kept["preprocess"])
            settings = DetectSettings(**kept["settings"])
            rows = [EpochRow(**row) for row in kept["rows"]]
            network = state.network
            about = (str(network["variant"]), int(network["num_classes"]))
            quantized, _ = kept["quantized"], dict(kept["run"])
            model = quantized_network(*about, **quantized) if quantized else YoloNAS(*about, str(network["form"]))
            self.source = str(kept["source"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"training state {state.path}: is of another version or damaged: {error}") from None
        said = {"resume": asked.resume, "verbose": asked.verbose}
        for item in fields(TrainOptions):
            value, was = getattr(asked, item.name), getattr(options, item.name)
            if item.name in _FREE and value != item.default:
                said[item.name] = value
            elif item.name not in _FREE and value not in (item.default, was):
                raise ValueError(f"resume: {item.name} must be as in the interrupted run, {was!r}, got {value!r}")
        self.options = replace(options, **said)
        self.names, self.preprocess, self.settings, self.rows = names, preprocess, settings, rows
        self.model, self.fresh = model, False
        return state

    def _restore(self, state: TrainingState, loop: Loop) -> Done:
        """Weights, average, optimizer and random generators of an interrupted run.

        Raises:
            ValueError: the pictures, the labels or the number of processes are not as they were.
        """
        was, now = state.settings["run"], json.loads(json.dumps(self._identity(loop)))
        different = [name for name in now if was.get(name) != now[name]]
        if different:
            name, world = different[0], self._processes.world
            found = {
                "train": "pictures or labels have changed",
                "val": "pictures or labels have changed",
                "batch": f"{now['batch']} pictures over {world} processes in place of {was.get('batch')}",
                "precision": f"{now['precision']} in place of {was.get('precision')}",
            }
            raise ValueError(
                f"resume: {name} must be as in the interrupted run {state.path.parent.parent}, "
                f"got {found[name]}; train anew, or change it back"
            )
        restore_(state, loop.learner)
        loop.step, self.kept = state.progress.step, state.progress.epoch
        return state.progress

    def _print_start(self, loop: Loop, done: Done) -> None:
        setup, options = loop.setup, self.options
        recipe, train = setup.recipe, setup.train
        boxes = sum(int((~image.truth((1, 1)).crowd).sum()) for image in train.images)
        height, width = setup.preprocess.size
        measured = "" if setup.val is None else f"; measured on {len(setup.val.dataset.images):,} of {options.split}"
        print(f"train: YOLO-NAS {self.model.variant.name.upper()}, {len(self.names)} classes; {setup.start}")
        print(f"data: {train.name}, {len(train.images):,} pictures, {boxes:,} boxes{measured}")
        average = "no average" if recipe.ema_decay is None else f"average {recipe.ema_decay:g}"
        processes = f" x {self._processes.world} processes" if self._processes.world > 1 else ""
        calls = f" x {options.accumulate}" if options.accumulate > 1 else ""
        print(
            f"recipe: {options.recipe}; {recipe.epochs} epochs of {loop.steps} steps, batch {loop.loader.batch}{calls}"
            f"{processes}, {height}x{width}; {options.optimizer} {recipe.learning_rate:g}, {average}; "
            f"{loop.precision} on {loop.device}"
        )
        print(f"folder: {self.save_dir}" + (f", going on after epoch {done.epoch}" if done.epoch else ""))
        print(_HEADER, flush=True)

    def _print_epoch(self, row: EpochRow, *, is_best: bool) -> None:
        assert self.setup is not None
        epochs = self.setup.recipe.epochs
        left = round((epochs - row.epoch) * row.time / row.epoch)
        metrics = [f"{value:.4f}" if value is not None else "-" for value in (row.map50, row.map)]
        print(
            f"{f'{row.epoch}/{epochs}':>9}{row.loss:>9.4f}{row.cls_loss:>9.4f}{row.iou_loss:>9.4f}{row.dfl_loss:>9.4f}"
            f"{row.lr:>10.2e}{row.images_per_second:>10.1f}{metrics[0]:>9}{metrics[1]:>10}"
            f"{f'{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}':>10}{'  best' if is_best else ''}",
            flush=True,
        )


_HEADER = (
    f"{'epoch':>9}{'loss':>9}{'classes':>9}{'boxes':>9}{'dfl':>9}{'lr':>10}{'images/s':>10}{'mAP50':>9}{'mAP50-95':>10}"
    f"{'left':>10}"
)


def best_row(rows: Sequence[EpochRow]) -> EpochRow:
    """The first of those with the highest mAP50-95; where nothing was measured, the latest."""
    measured = [row for row in rows if row.map is not None]
    return max(measured, key=lambda row: row.map) if measured else rows[-1]  # type: ignore[arg-type, return-value]


def _measured(path: Path, setup: TrainSetup) -> DetMetrics:
    """The metrics of a file that the training has kept."""
    engine = NativeEngine.of_module(load_model(read_checkpoint(path)))
    assert setup.val is not None
    return evaluate("train", setup.val, engine, lambda count: None)[0]


def _numbers(metrics: DetMetrics | None) -> dict[str, float | None]:
    if metrics is None:
        return {}
    box = metrics.box
    return {"precision": float(box.mp), "recall": float(box.mr), "map50": float(box.map50), "map": float(box.map)}
