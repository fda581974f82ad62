"""A data set to evaluate on: pictures with their true boxes, class names, and what is wrong with any of it.

`open_dataset` reads the labels of one split. Pictures are not opened here: those that cannot be decoded are found by
whoever reads them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..config import COCO_CATEGORY_IDS, COCO_NAMES
from ..records import Truth
from .data_yaml import SPLITS, DataConfig, read_data_yaml

Cost = Literal["picture", "label", "nothing"]

SHOWN_PROBLEMS = 20  # of one file and cost; the others are counted

_LEFT_OUT = {"picture": "; picture left out", "label": "; label left out", "nothing": ""}


@dataclass(frozen=True)
class Problem:
    """Something odd in the data."""

    where: str  # "labels/val/a.txt:3", "annotations/instances_val.json: annotation 17"
    what: str
    cost: Cost  # what is left out because of it
    count: int = 1  # how many times: more than 1 where a file has too many to list

    def __str__(self) -> str:
        # A file's name may hold escape codes for the terminal, or bytes that are no text and cannot be printed.
        text = f"{self.where}: {self.what}{_LEFT_OUT[self.cost]}"
        return "".join(letter if letter.isprintable() else "?" for letter in text)


class Problems:
    """Collects problems in order, and only counts those of a file after the first `SHOWN_PROBLEMS` of each cost."""

    def __init__(self) -> None:
        self._by_file: dict[tuple[str, Cost], list[Problem]] = {}
        self._more: dict[tuple[str, Cost], int] = {}

    def add(self, file: str, what: str, cost: Cost, *, place: str = "", count: int = 1) -> None:
        """`place` is put behind the file: `:3` for a line."""
        found = self._by_file.setdefault((file, cost), [])
        if len(found) < SHOWN_PROBLEMS:
            found.append(Problem(f"{file}{place}", what, cost, count))
        else:
            self._more[file, cost] = self._more.get((file, cost), 0) + count

    def all(self) -> list[Problem]:
        """What was collected, with one problem "and N more" for each file that has too many."""
        listed = []
        for key, found in self._by_file.items():
            listed += found
            if more := self._more.get(key):
                listed.append(Problem(key[0], f"and {more} more", key[1], more))
        return listed


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """A picture and its true boxes."""

    path: str
    image_id: int | str
    file_name: str
    size: tuple[int, int] | None  # (height, width) where the annotation file says so
    labels: Truth  # boxes in pixels, or in fractions of the picture's width and height
    fractions: bool = False

    def truth(self, size: tuple[int, int]) -> Truth:
        """The true boxes in pixels of a picture of `size` (height, width). COCO's are in pixels already."""
        if not self.fractions:
            return self.labels
        height, width = size
        return Truth.of(self.labels.boxes * np.array((width, height, width, height), np.float64), self.labels.classes)


@dataclass
class DetectionDataset:
    """One split of a data set."""

    name: str
    split: str
    names: dict[int, str]  # class names by number
    category_ids: tuple[int, ...]  # per class number: the category id in json files
    images: list[LabelledImage]  # of a COCO json by id, else by path
    problems: list[Problem]
    labels_from: str  # "labels/val (YOLO)", "annotations/instances_val.json (COCO, 8 crowd regions)"

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """sha256 over class names, file names, ids and labels: the same wherever the data set lies."""
        sha = hashlib.sha256(json.dumps([list(self.names.items()), self.category_ids]).encode())
        for image in self.images:
            labels = image.labels
            head = [image.file_name, image.image_id, image.fractions, len(labels)]
            sha.update(json.dumps(head).encode())
            for array, dtype in ((labels.boxes, "<f8"), (labels.classes, "<i4"), (labels.areas, "<f8")):
                sha.update(np.ascontiguousarray(array, dtype).tobytes())
            sha.update(labels.crowd.tobytes())
        return sha.hexdigest()

    def with_fraction(self, fraction: float) -> DetectionDataset:
        """The first `fraction * n` pictures, rounded up, at least one.

        Raises:
            ValueError: `fraction` is not above 0 and at most 1.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {fraction!r}")
        # 0.07 * 100 is a little more than 7.
        count = max(1, math.ceil(fraction * len(self.images) * (1 - 1e-12)))
        return replace(self, images=self.images[:count])

    def for_model(self, names: Mapping[int, str]) -> DetectionDataset:
        """The data set with the class numbers of a model that knows `names`.

        Classes are matched by name. Where there are as many of them with other names, they are matched by number, and
        a problem says so.

        Raises:
            ValueError: the classes do not fit; the text has both counts.
        """
        own, known = list(self.names.values()), [names[number] for number in sorted(names)]
        if own == known:
            return self
        numbers = numbers_by_name(own, known)
        if numbers is None and len(own) == len(known):
            first = next(i for i in range(len(own)) if own[i] != known[i])
            what = (
                f"class names differ from the model's, first at {first}: {own[first]!r}, the model has "
                f"{known[first]!r}; classes are matched by number"
            )
            return replace(self, problems=[*self.problems, Problem(self.name, what, "nothing")])
        if numbers is None:
            raise ValueError(
                f"data: {self.name} must have the model's classes; it has {len(own)} ({_some(own)}), "
                f"the model {len(known)} ({_some(known)}); use weights that were trained for these classes"
            )
        table = np.array(numbers, np.int32)
        images = []
        for image in self.images:
            labels = image.labels
            renumbered = Truth(labels.boxes, table[labels.classes], labels.areas, labels.crowd)
            images.append(replace(image, labels=renumbered))
        ids: list[int | None] = [None] * len(known)
        for number, category_id in zip(numbers, self.category_ids, strict=True):
            ids[number] = category_id
        return replace(self, names=dict(enumerate(known)), category_ids=filled_ids(ids), images=images)


def open_dataset(
    data: str | os.PathLike[str] | DataConfig,
    split: str = "val",
    *,
    images: str | os.PathLike[str] | None = None,
    annotations: str | os.PathLike[str] | None = None,
    cache: bool = True,
) -> DetectionDataset:
    """Reads the labels of one split of a data yaml, or a COCO json.

    Args:
        split: "train", "val" or "test".
        images: folder of the pictures of a COCO json (default: as the yaml says, else guessed from the json's place).
        annotations: COCO json with the labels, instead of label files beside the pictures.
        cache: keep the content of label files in the user's cache folder.

    Raises:
        ValueError: the data cannot be used at all; the text names the file and what is missing.
    """
    split = next((name for name, aliases in SPLITS.items() if split in aliases), split)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    from .coco import coco_dataset
    from .yolo import yolo_dataset

    if not isinstance(data, DataConfig):
        path = Path(data)
        if path.suffix.lower() == ".json":
            if annotations is not None:
                raise ValueError(f"annotations must be left out where data is a json, got {os.fspath(annotations)!r}")
            return coco_dataset(path, split, images=None if images is None else Path(images))
        if path.suffix.lower() not in (".yaml", ".yml"):
            raise ValueError(f"data: must be a data yaml or a COCO json, got {str(path)!r}")
        data = read_data_yaml(path)
    entries = data.splits.get(split)
    if not entries:
        raise ValueError(
            f"data: split must be one of {', '.join(data.splits)} in {data.file or data.name}, got {split!r}"
        )
    is_json = any(entry.lower().endswith(".json") for entry in entries)
    if is_json and (len(entries) > 1 or annotations is not None):
        raise ValueError(
            f"data: {split} of {data.file or data.name} must be one json alone, got {entries} "
            f"and annotations={annotations!r}"
        )
    json_file = None
    if is_json:
        json_file = data.root / entries[0]
    elif annotations is not None:
        json_file = _given(data, annotations)
    if json_file is None and images is not None:
        raise ValueError(f"images must be left out where {split} is a folder or a list, got {os.fspath(images)!r}")
    if json_file is None or (images is None and not is_json):
        return yolo_dataset(data, split, annotations=json_file, cache=cache)
    folder = None
    if images is not None:
        folder = _given(data, images)
    elif split in data.images:
        folder = data.root / data.images[split]
    return coco_dataset(json_file, split, images=folder, names=data.names, name=data.name, root=data.root)


def numbers_by_name(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """For each of `names` its place in `known`; None where one is unknown or a name stands for several."""
    places = {name.strip().casefold(): number for number, name in enumerate(known)}
    numbers = [places.get(name.strip().casefold()) for name in names]
    if None in numbers or len(set(numbers)) < len(names) or len(places) < len(known):
        return None
    return [number for number in numbers if number is not None]


def category_ids_of(names: Sequence[str]) -> tuple[int, ...]:
    """Category ids for data without a COCO json: COCO's for its classes, else the class number + 1."""
    return COCO_CATEGORY_IDS if tuple(names) == COCO_NAMES else tuple(range(1, len(names) + 1))


def filled_ids(ids: Sequence[int | None]) -> tuple[int, ...]:
    """Gives classes without a category id the lowest free ones from 1."""
    used = {number for number in ids if number is not None}
    free = iter(number for number in range(1, 2 * len(ids) + 1) if number not in used)
    return tuple(next(free) if number is None else number for number in ids)


def relative_to(path: str | os.PathLike[str], root: Path) -> str:
    """`path` as seen from `root` with forward slashes, or as it is where it lies elsewhere."""
    try:
        return Path(path).relative_to(root).as_posix()
    except ValueError:
        return os.fspath(path)


def _given(data: DataConfig, path: str | os.PathLike[str]) -> Path:
    """A path from the caller: relative to the working folder, else to the root of the data."""
    try:
        place = Path(path).expanduser()
    except RuntimeError:
        place = Path(path)
    return place if place.exists() else data.root / place


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
