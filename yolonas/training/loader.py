"""Reads, changes and batches the pictures of a training set, ahead of the network on threads.

What an epoch's batches hold follows from the seed and the epoch alone, not from the number of threads: each place in an
epoch has a random generator of its own.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import DetectionDataset, LabelledImage
from ..data.images import read_image
from ..data.items import reason_of
from ..data.readahead import OrderedMap
from ..errors import SourceError
from ..preprocess import Preprocess
from .augment import Augmentation, Sample, augment, clip_boxes, fit, pad, swap_channels

LOGGER = logging.getLogger("yolonas")

MAX_TRIES = 100  # random pictures in place of one that cannot be read
MAX_WORKERS = 16  # where the caller does not say how many


class TrainingBatch(NamedTuple):
    """N pictures as the network sees them, before they are scaled, and their boxes."""

    pixels: Tensor  # (N, 3, H, W) uint8, channels last in memory, in the order that the network was trained with
    targets: Tensor  # (M, 6) float32 on the CPU: picture 0..N-1, class, x1, y1, x2, y2 in pixels of the input
    names: tuple[str, ...]  # of the files: the main one where several were mixed, the one taken for an unreadable one


def scaled(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """`(N, 3, H, W)` uint8 to the float32 that the network takes, on the same device and in the same memory order.

    Batches travel as uint8, a quarter of the bytes.
    """
    values = pixels.float()
    if len(set(preprocess.mean)) == len(set(preprocess.divisor)) == 1:
        return values.sub_(preprocess.mean[0]).div_(preprocess.divisor[0])
    # By channel and with plain numbers: tensors of them would have to be copied to the device.
    for channel, (mean, divisor) in enumerate(zip(preprocess.mean, preprocess.divisor, strict=True)):
        values[:, channel].sub_(mean).div_(divisor)
    return values


class TrainingLoader:
    """The batches of one epoch after another, in a random order that differs by epoch: `set_epoch`, then iterate.

    With several processes, each gets its part of every step, of the same size; together the parts are the batch that
    one process would have with `batch * world` pictures. Pictures that cannot be read are replaced by random others,
    with one warning each. Threads live while an iteration does; leaving it ends them.

    Args:
        dataset: crowd regions and boxes without an area inside the picture are not labels.
        preprocess: how pictures are fitted, padded and ordered; it must resize and have one frame for all.
        augmentation: what happens between fitting and padding.
        batch: pictures per step and process.
        seed: not negative.
        epochs: of the whole training.
        plain_epochs: how many epochs, the last ones, have neither mosaic nor mixup.
        min_samples: a smaller data set is gone through more than once per epoch.
        drop_last: leave out the pictures that do not fill a step; otherwise the last step is smaller, and repeats
            pictures where the processes would get different numbers of them.
        workers: threads; None: this process's share of the usable cores, at most 16.
        rank, world: number of this process and of all.
        pin_memory: put pictures where they can be copied to a CUDA device meanwhile.

    Raises:
        ValueError: an argument is out of range, or an epoch has not one step. While iterating, `SourceError`: hardly
            any picture can be read.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        preprocess: Preprocess,
        augmentation: Augmentation,
        *,
        batch: int,
        seed: int = 0,
        epochs: int = 1,
        plain_epochs: int = 0,
        min_samples: int = 0,
        drop_last: bool = True,
        workers: int | None = None,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> None:
        lowest = {"batch": 1, "seed": 0, "epochs": 1, "plain_epochs": 0, "min_samples": 0, "workers": 1, "world": 1}
        values = (batch, seed, epochs, plain_epochs, min_samples, workers, world)
        for (name, least), value in zip(lowest.items(), values, strict=True):
            if value is not None and value < least:
                raise ValueError(f"training: {name} must be at least {least}, got {value}")
        if not 0 <= rank < world:
            raise ValueError(f"training: rank must lie in 0..{world - 1}, got {rank}")
        if preprocess.fit is None or preprocess.rect:
            raise ValueError(
                f"training: preprocess must resize pictures into one frame, got fit={preprocess.fit} and "
                f"rect={preprocess.rect}; use dataclasses.replace(preprocess, fit=preprocess.size, rect=False)"
            )
        if len(dataset) == 0:
            raise ValueError(f"training: {dataset.name} must have pictures, its split {dataset.split} has none")
        self.dataset, self.preprocess, self.augmentation = dataset, preprocess, augmentation
        self.batch, self.seed, self.drop_last, self.pin_memory = batch, seed, drop_last, pin_memory
        self.rank, self.world = rank, world
        self.workers = workers or default_workers(world)
        self.samples = max(len(dataset), min_samples)  # per epoch, of all processes
        self._plain_from = epochs - plain_epochs
        self._fit = preprocess.fit
        self._epoch = 0
        self._unreadable: set[int] = set()
        self._lock = threading.Lock()
        if len(self) == 0:
            raise ValueError(
                f"training: batch * world must be at most {self.samples}, the pictures in an epoch of {dataset.name}, "
                f"got {batch} * {world}; lower batch or raise min_samples"
            )

    def __len__(self) -> int:
        """Steps per epoch, the same for all processes."""
        whole, rest = divmod(self.samples, self.batch * self.world)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch, from 0, the next iteration gives. One that is under way goes on with its own."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self._batches(self._epoch)

    def _batches(self, epoch: int) -> Iterator[TrainingBatch]:
        steps = self._steps()
        places = [place for step in steps for place in step]
        make = partial(self._make, epoch, self._order(epoch))
        ahead = OrderedMap(make, places, depth=2 * self.batch + self.workers, cost=_cost, threads=self.workers)
        taken = 0
        try:
            for step in steps:
                pixels = torch.empty(
                    (len(step), *self.preprocess.size, 3), dtype=torch.uint8, pin_memory=self.pin_memory
                )
                targets, names = [], []
                for number, picture in enumerate(pixels.numpy()):
                    sample, name = ahead.get(taken)
                    taken += 1
                    picture[:] = sample.picture
                    targets.append(np.insert(sample.boxes, 0, number, axis=1))
                    names.append(name)
                boxes = torch.from_numpy(np.concatenate(targets))
                yield TrainingBatch(pixels.permute(0, 3, 1, 2), boxes, tuple(names))
        finally:
            ahead.close()

    def _order(self, epoch: int) -> np.ndarray:
        """Numbers of the pictures at each place of an epoch, and perhaps at a few more."""
        random = self._generator(epoch, 0)
        rounds = -(-self.samples // len(self.dataset))
        return np.concatenate([random.permutation(len(self.dataset)) for _ in range(rounds)])

    def _steps(self) -> list[list[int]]:
        """For each step the places in the epoch that are this process's."""
        together = self.batch * self.world
        steps = []
        for step in range(len(self)):
            places = np.arange(step * together, min(self.samples, (step + 1) * together))
            again = np.arange(-len(places) % self.world) % self.samples
            steps.append(np.concatenate([places, again]).reshape(self.world, -1)[self.rank].tolist())
        return steps

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, stream))

    def _make(self, epoch: int, order: np.ndarray, place: int) -> tuple[Sample, str]:
        """The picture at a place of an epoch as the network sees it, its boxes, and the path of its file."""
        random = self._generator(epoch, place + 1)

        def another() -> Sample:
            return self._load(int(random.integers(len(self.dataset))), random)[0]

        augmentation = self.augmentation if epoch < self._plain_from else self.augmentation.without_mixing()
        sample, path = self._load(int(order[place]), random)
        sample = pad(augment(sample, another, augmentation, self._fit, random), self.preprocess)
        return (swap_channels(sample) if self.preprocess.channels == "rgb" else sample), path

    def _load(self, index: int, random: np.random.Generator) -> tuple[Sample, str]:
        """A picture of the data set, fitted, and its path, or of random others until one can be read."""
        for _ in range(MAX_TRIES):
            path = self.dataset.images[index].path
            if index not in self._unreadable:
                try:
                    return fit(_read(self.dataset.images[index]), self.preprocess), path
                except (SourceError, MemoryError) as error:
                    self._report(index, error)
            index = int(random.integers(len(self.dataset)))
        raise SourceError(
            f"training: pictures of {self.dataset.name} must be readable, {MAX_TRIES} random ones were not, "
            f"such as {path}"
        )

    def _report(self, index: int, error: Exception) -> None:
        with self._lock:
            if index in self._unreadable:
                return
            self._unreadable.add(index)
        path = self.dataset.images[index].path
        LOGGER.warning("training: %s left out: %s", path, reason_of(error).removeprefix(f"{path}: "))


def default_workers(world: int = 1) -> int:
    """Threads for one of `world` processes on this machine: its share of the usable cores, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, usable // world))


def _read(image: LabelledImage) -> Sample:
    picture = read_image(image.path)
    height, width = picture.shape[:2]
    truth = image.truth((height, width))
    truth = truth[~truth.crowd]
    corners = np.concatenate([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], axis=1)
    boxes = np.column_stack([truth.classes, corners]).astype(np.float32)
    return Sample(picture, clip_boxes(boxes, (height, width)))


def _cost(made: tuple[Sample, str]) -> int:
    return made[0].picture.nbytes
