"""The loop of a training: what happens in an epoch, on the pictures that are trained on and on those measured on."""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from .engine import TorchEngine
from .errors import SourceError
from .native_engine import NativeEngine
from .progress import Progress
from .train_setup import TrainSetup, frozen_parts, warmup_steps
from .training.ema import Ema
from .training.fake_quant import finish
from .training.loader import TrainingBatch, TrainingLoader, scaled
from .training.loss import DetectionLoss
from .training.memory import OVERHEAD, bytes_per_picture, fitting_batch, free_bytes
from .training.optimizer import build_optimizer
from .training.schedule import learning_rate
from .training.step import PRECISIONS, Batch, Learner, StepResult, train_step
from .val_pipeline import Pipeline

if TYPE_CHECKING:
    from .metrics import DetMetrics
    from .nn import YoloNAS
    from .records import ImageRecord
    from .train import TrainOptions
    from .training.processes import Processes

LOGGER = logging.getLogger("yolonas")

LOSSES = ("loss", "cls_loss", "iou_loss", "dfl_loss")  # what an epoch tells, see `StepResult`


@dataclass(frozen=True)
class EpochResult:
    """What an epoch's steps gave, over all processes."""

    losses: tuple[float, ...]  # means, see `LOSSES`
    learning_rate: float  # of the last step
    images_per_second: float


class Loop:
    """A network in training, its optimizer, its average, and the pictures.

    Args:
        setup: its network is moved to `device` and trained in place.

    Attributes:
        learner: what steps change. loader: the batches of this process. steps: per epoch. step: steps made so far.

    Raises:
        MemoryError: a step would not fit; the text says which batch would.
        ValueError: the options do not fit the network or the data.
    """

    def __init__(self, setup: TrainSetup, options: TrainOptions, device: torch.device, processes: Processes):
        self.setup, self.options, self.device, self._processes = setup, options, device, processes
        recipe = setup.recipe
        together = recipe.batch * processes.world
        self.loader = TrainingLoader(
            setup.train,
            setup.placement,
            recipe.augmentation,
            batch=recipe.batch,
            seed=options.seed,
            epochs=recipe.epochs,
            plain_epochs=recipe.plain_epochs,
            min_samples=recipe.min_samples,
            drop_last=max(len(setup.train), recipe.min_samples) >= together,
            workers=None if options.workers is None else max(1, options.workers),
            rank=processes.rank,
            world=processes.world,
            pin_memory=device.type == "cuda",
        )
        self.steps = -(-len(self.loader) // options.accumulate)
        self.step = 0
        self._val = setup.val
        self._check_memory()
        self._frozen = frozen_parts(setup.model, options.freeze) if options.freeze else []
        self.learner = self._learner()
        self._loss = DetectionLoss(class_weight=options.cls, iou_weight=options.box, dfl_weight=options.dfl)

    @property
    def averaged(self) -> YoloNAS:
        """The network that is measured and kept: the average, or without one the trained network itself."""
        return self.learner.model if self.learner.ema is None else self.learner.ema.model

    def deployed(self) -> YoloNAS:
        """`averaged`, as it is run and written to files."""
        return finish(self.averaged) if self.setup.is_quantized else self.averaged

    def train_epoch(
        self, epoch: int, see: Callable[[int, TrainingBatch], None], after: Callable[[], None]
    ) -> EpochResult:
        """Trains once through the pictures.

        Args:
            epoch: from 0. see: is called with the number of each step and the first batch of it, before it is made.
            after: is called after each step.

        Raises:
            TrainingError: a loss that is not finite. MemoryError: a step does not fit.
            SourceError: hardly any picture can be read.
        """
        recipe, options = self.setup.recipe, self.options
        self.learner.model.train()
        for part in self._frozen:
            part.eval()
        self.loader.set_epoch(epoch)
        warmup, total = warmup_steps(recipe, self.steps), self.steps * recipe.epochs
        sums, pictures, rate, first = np.zeros(4), 0, 0.0, self.step
        verbose = options.verbose and self._processes.is_first
        progress = Progress("train", len(self.loader) * self.loader.batch, verbose=verbose)
        began = time.monotonic()
        try:
            with closing(iter(self.loader)) as batches:  # type: ignore[type-var]
                for part in _parts(batches, options.accumulate):
                    see(self.step, part[0])
                    rate = learning_rate(
                        self.step,
                        total,
                        peak=recipe.learning_rate,
                        warmup_steps=warmup,
                        warmup_start=recipe.warmup_start,
                        final_factor=recipe.final_factor,
                    )
                    result = self._train_step(part, rate)
                    self.step += 1
                    sums += (result.total, result.classes, result.iou, result.dfl)
                    seen = sum(len(batch.pixels) for batch in part)
                    pictures += seen
                    progress.advance(seen, f"epoch {epoch + 1}/{recipe.epochs}, loss {result.total:.3f}, lr {rate:.2e}")
                    after()
        finally:
            progress.close()
        seconds = time.monotonic() - began
        gathered = self._processes.gathered((sums / (self.step - first), pictures))
        losses = np.mean([means for means, _ in gathered], axis=0)
        return EpochResult(tuple(losses.tolist()), rate, sum(count for _, count in gathered) / seconds)

    def measure(self) -> DetMetrics | None:
        """mAP of `averaged`, each process with its share of the pictures; None where nothing is to be measured.

        Raises:
            SourceError: not one picture could be used.
        """
        from .metrics import Evaluator

        val, processes = self._val, self._processes
        if val is None:
            return None
        processes.synchronise_(self.averaged)  # the statistics of batch norms differ between processes
        whole = copy.deepcopy(self.deployed()).eval()
        on_cpu = self.device.type == "cpu" or self.setup.is_quantized
        engine = NativeEngine.of_module(whole) if on_cpu else TorchEngine(whole, self.device)
        shard = None if processes.world == 1 else (processes.rank + 1, processes.world)
        records = _Records()
        pipeline = Pipeline(replace(val, options=replace(val.options, shard=shard)), engine, None, records)
        pipeline.run(lambda event: None)
        gathered = processes.gathered((records.found, [one.index for one in pipeline.skipped], pipeline.skipped[:1]))
        evaluator = Evaluator(val.names, val.dataset.category_ids)
        for found, _, _ in gathered:
            for record in found:
                evaluator.add(record)
        left_out = {index for _, indices, _ in gathered for index in indices}
        if not any(found for found, _, _ in gathered):
            one = next(first[0] for _, _, first in gathered if first)
            raise SourceError(f"train: no picture to measure on could be used; the first: {one.path}: {one.reason}")
        if left_out:  # told of once; the setup keeps them, as a resume compares it
            images = [image for number, image in enumerate(val.dataset.images) if number not in left_out]
            self._val = replace(val, dataset=replace(val.dataset, images=images))
        return evaluator.finish()

    def _train_step(self, part: list[TrainingBatch], rate: float) -> StepResult:
        batches = [
            Batch(
                scaled(batch.pixels.to(self.device, non_blocking=True), self.setup.preprocess),
                batch.targets,
                batch.names,
            )
            for batch in part
        ]
        try:
            return train_step(
                self.learner,
                batches,
                step=self.step,
                learning_rate=rate,
                loss=self._loss,
                largest_norm=self.options.clip,
            )
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            half = self._fitting(self._pictures // 2)
            raise MemoryError(self._memory_text("a step ran out of memory", half)) from error

    def _learner(self) -> Learner:
        options, recipe, processes = self.options, self.setup.recipe, self._processes
        model = self.setup.model.to(device=self.device, memory_format=torch.channels_last).train()
        if processes.world > 1 and options.sync_bn and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        processes.synchronise_(model)
        optimizer = build_optimizer(
            model,
            options.optimizer,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            momentum=options.momentum,
        )
        ema = None if recipe.ema_decay is None else Ema(model, recipe.ema_decay)
        wrapper = None
        if processes.world > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            wrapper = nn.parallel.DistributedDataParallel(model, device_ids=ids)
        return Learner(model, optimizer, ema=ema, precision=self.precision, wrapper=wrapper)

    @property
    def precision(self) -> str:
        """One of `step.PRECISIONS`."""
        if self.options.precision is not None:
            return self.options.precision
        if self.device.type != "cuda" or not self.options.amp:
            return "float32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"

    @property
    def _pictures(self) -> int:
        """Of the largest network call: a small data set does not fill a batch."""
        return min(self.loader.batch, -(-self.loader.samples // self._processes.world))

    def _check_memory(self) -> None:
        """Refuses a batch that cannot fit, before anything is written or the machine begins to swap."""
        free = free_bytes(self.device)
        if free is not None and self._wanted(self._pictures) > free:
            raise MemoryError(self._memory_text("a step will not fit", self._fitting(self._pictures // 2)))

    @cached_property
    def _per_picture(self) -> float:
        half = PRECISIONS[self.precision] is not None
        return bytes_per_picture(self.setup.model, self.setup.preprocess.size) / (2 if half else 1)

    def _wanted(self, batch: int) -> float:
        return OVERHEAD * self._per_picture * batch

    def _fitting(self, most: int) -> int:
        free = free_bytes(self.device)
        return most if free is None else min(most, fitting_batch(self._per_picture, free))

    def _memory_text(self, what: str, fitting: int) -> str:
        height, width = self.setup.preprocess.size
        pictures, free = self._pictures, free_bytes(self.device)
        wanted = self._wanted(pictures) / 1e9
        text = f"train: {what} with {pictures} pictures at {height}x{width}: it takes about {wanted:.1f} GB"
        if free is not None:
            text += f", {free / 1e9:.1f} GB are free on {self.device}"
        if fitting < 1:
            return f"{text}; use a smaller imgsz"
        calls = -(-pictures * self.options.accumulate // fitting)
        return f"{text}; batch={fitting} accumulate={calls} would fit and has about as many pictures per step"


class _Records:
    """Takes the place of an evaluator where others evaluate."""

    def __init__(self) -> None:
        self.found: list[ImageRecord] = []

    def add(self, record: ImageRecord) -> None:
        self.found.append(record)


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Starts all global random generators anew."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for whoever uses the global one
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = not deterministic
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


def _parts(batches: Iterator[TrainingBatch], count: int) -> Iterator[list[TrainingBatch]]:
    """The batches of each step; the last may have fewer."""
    while part := list(islice(batches, count)):
        yield part


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch has a class of its own for GPUs, and on CPUs a plain RuntimeError, whose text the system decides."""
    texts = ("can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)
