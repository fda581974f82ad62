"""What an evaluation is, before it runs: the data set, the input convention, the thresholds and the batches.

Everything that the numbers depend on is here, and `fingerprint` puts it into a few words, so that an interrupted run
and the parts of a run can be told from others.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import DetectSettings
from .errors import SourceError
from .journal import Skipped
from .preprocess import Preprocess, Size
from .records import Truth
from .val_batches import Batch, rect_batches, square_batches, ultralytics_batches

if TYPE_CHECKING:
    from .data.dataset import DetectionDataset, LabelledImage
    from .val import ValOptions

LOGGER = logging.getLogger("yolonas")

CONF = {"sg": 0.01, "ultralytics": 0.001}  # lowest scores of the protocols
TOP_K = {"sg": 1000, "ultralytics": 30_000}  # pairs of anchor and class before suppression
IOU = 0.7
LOW_CONF = 0.05  # a threshold above this cuts off the low end of the precision-recall curve


@dataclass(frozen=True)
class ValSetup:
    """A data set, and how a model is run on it."""

    options: ValOptions
    dataset: DetectionDataset
    names: dict[int, str]  # class names by number
    preprocess: Preprocess
    settings: DetectSettings

    @property
    def rect(self) -> bool:
        """Whether frames are as small as the pictures allow. Pictures that are never resized have no common frame."""
        if self.preprocess.fit is None:
            return True
        return self.options.protocol == "ultralytics" if self.options.rect is None else self.options.rect

    @property
    def protocol(self) -> str:
        """How the numbers come about, in one line."""
        settings, preprocess = self.settings, self.preprocess
        frame = f"{preprocess.size[0]}x{preprocess.size[1]}"
        if self.rect:
            frame += " at most" if self.options.protocol == "sg" else " plus half a stride"
            frame += ", smallest frame"
        fit = f", picture in {preprocess.fit[0]}x{preprocess.fit[1]}" if preprocess.fit else ""
        return (
            f"{self.options.protocol}: {frame}{fit}, {preprocess.channels.upper()}; conf > {settings.conf:g}, "
            f"NMS IoU {settings.iou:g}, top {settings.top_k}, {settings.max_det} boxes a picture"
        )

    def truth(self, image: LabelledImage, size: Size) -> Truth:
        """The true boxes that count, in pixels of a picture of `size` (height, width)."""
        return _chosen(self.options, image.truth(size))

    @cached_property
    def all_batches(self) -> list[Batch]:
        """The batches of the whole data set, over all shards."""
        if not self.rect:
            return square_batches(len(self.dataset.images), self.options.batch)
        plan = rect_batches if self.options.protocol == "sg" else ultralytics_batches
        return plan(self._sizes[0], self.options.batch, self.preprocess)

    @property
    def batches(self) -> list[Batch]:
        """The batches of this run: all, or those of its shard."""
        if self.options.shard is None:
            return self.all_batches
        number, count = self.options.shard
        return self.all_batches[number - 1 :: count]

    @property
    def planned(self) -> int:
        """Pictures of this run, or of this shard."""
        return sum(len(batch.indices) for batch in self.batches)

    @property
    def unreadable(self) -> list[Skipped]:
        """Pictures that are in no batch, since not even their size can be read."""
        return self._sizes[1] if self.rect else []

    @cached_property
    def _sizes(self) -> tuple[dict[int, Size], list[Skipped]]:
        from .data.images import read_size

        sizes: dict[int, Size] = {}
        unreadable = []
        for index, image in enumerate(self.dataset.images):
            try:
                sizes[index] = read_size(image.path)
            except SourceError as error:
                unreadable.append(Skipped(index, image.path, str(error)))
        return sizes, unreadable

    def fingerprint(self) -> dict[str, Any]:
        """All that the numbers depend on, apart from the weights and the machine."""
        options = self.options
        return {
            "data": self.dataset.digest(),
            "split": options.split,
            "pictures": len(self.dataset.images),
            "protocol": options.protocol,
            "preprocess": self.preprocess.to_dict(),
            "settings": asdict(self.settings),
            "single_cls": options.single_cls,
            "rect": self.rect,
            "batch": options.batch,
            "batches": hashlib.sha256(repr(self.all_batches).encode()).hexdigest(),
            "precision": options.quantize or "fp32",
        }


def set_up(options: ValOptions, names: Mapping[int, str], preprocess: Preprocess) -> ValSetup:
    """Finds and reads the data set, and settles what the options leave open.

    Args:
        names: the model's classes. preprocess: the checkpoint's.

    Raises:
        ValueError: the data set cannot be used, or does not fit the model.
        FileNotFoundError: there is no such data set.
    """
    dataset = _open(options)
    names = dict(names)
    if all(name == f"class_{number}" for number, name in names.items()) and len(names) == len(dataset.names):
        names = dict(dataset.names)  # of a checkpoint without names
    if not options.single_cls or options.classes:
        dataset = dataset.for_model(names)
    dataset = dataset.with_fraction(options.fraction)
    if not dataset.images:
        raise ValueError(f"val: the {options.split} split of {dataset.name} has no pictures")
    unknown = [number for number in options.classes or () if number not in names]
    if unknown:
        raise ValueError(f"classes must lie in 0..{len(names) - 1}, got {unknown[0]}")
    if options.single_cls:
        names = {0: "object"}
        dataset = replace(dataset, names=names, category_ids=(1,))
    counts = [len(_chosen(options, image.truth((1, 1)))) for image in dataset.images]
    if not any(counts):
        some = "of the chosen classes " if options.classes else ""
        raise ValueError(f"val: the labels of {dataset.name} have no boxes {some}in {dataset.labels_from}")
    most = max(counts)
    if most > options.max_det:
        LOGGER.info("val: a picture has %d labels, max_det goes up from %d", most, options.max_det)
    max_det = max(most, options.max_det)
    usual = CONF[options.protocol]
    conf = usual if options.conf is None else options.conf
    if conf > LOW_CONF:
        LOGGER.warning("val: conf=%g leaves out low scores; mAP comes out lower than at %g", conf, usual)
    settings = DetectSettings(
        conf=conf,
        iou=IOU if options.iou is None else options.iou,
        top_k=max(TOP_K[options.protocol], max_det),
        max_det=max_det,
        agnostic=options.agnostic_nms or options.single_cls,
        classes=options.classes or None,
    )
    if options.imgsz is not None:
        preprocess = preprocess.with_size(options.imgsz)
    if options.protocol == "ultralytics":
        preprocess = preprocess.as_ultralytics()
    setup = ValSetup(options, dataset, names, replace(preprocess, rect=False), settings)
    if options.protocol == "ultralytics" and setup.rect and preprocess.size[0] != preprocess.size[1]:
        height, width = preprocess.size
        raise ValueError(f"imgsz must be one side with protocol='ultralytics', got {height}x{width}; or rect=False")
    _check_shard(setup)
    return setup


def _check_shard(setup: ValSetup) -> None:
    batches, shard = len(setup.all_batches), setup.options.shard
    if not batches:
        first = setup.unreadable[0]
        raise SourceError(
            f"val: none of the {len(setup.unreadable)} pictures could be used; the first: {first.path}: {first.reason}"
        )
    if shard is not None and batches < shard[1]:
        raise ValueError(
            f"shard: {shard[1]} parts are too many for {batches} batches of {setup.options.batch}; "
            "use fewer, or a smaller batch"
        )


def _open(options: ValOptions) -> DetectionDataset:
    from .data.catalog import locate
    from .data.dataset import open_dataset

    data = options.data
    if data is None:
        data = "coco8.yaml"
        LOGGER.warning("val: no data given, using data=%s", data)
    found = locate(data, download=options.download)
    return open_dataset(found, options.split, images=options.images, annotations=options.annotations)


def _chosen(options: ValOptions, truth: Truth) -> Truth:
    if options.classes:
        truth = truth[np.isin(truth.classes, options.classes)]
    if options.single_cls:
        truth = replace(truth, classes=np.zeros_like(truth.classes))
    return truth
