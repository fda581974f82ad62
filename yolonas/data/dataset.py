"""A data set to evaluate on: pictures with their true boxes, class names, and what is wrong with any of it.

`open_dataset` reads the labels of one split. Pictures are not opened here: those that cannot be decoded are found by
whoever reads them.
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ..config import COCO_CATEGORY_IDS, COCO_NAMES
from ..records import Truth
from .data_yaml import SPLITS, DataConfig, printable, read_data_yaml, shortened, shown
from .paths import expand_home

Cost = Literal["picture", "label", "nothing"]

SHOWN_PROBLEMS = 20  # of one file and cost; the others are counted
MAX_PROBLEMS = 1000  # of all files; the others are counted

_LEFT_OUT = {"picture": "; picture left out", "label": "; label left out", "nothing": ""}


@dataclass(frozen=True)
class Problem:
    """Something odd in the data."""

    where: str  # "labels/val/a.txt:3", "annotations/instances_val.json: annotation 17"
    what: str
    cost: Cost  # what is left out because of it
    count: int = 1  # how many times: more than 1 where a file has too many to list

    def __post_init__(self) -> None:
        object.__setattr__(self, "what", shortened(self.what))

    def __str__(self) -> str:
        # A file's name may hold escape codes for the terminal, or bytes that are no text and cannot be printed.
        text = f"{self.where}: {self.what}{_LEFT_OUT[self.cost]}"
        return "".join(letter if letter.isprintable() else "?" for letter in text)


class Problems:
    """Collects problems in order: `SHOWN_PROBLEMS` of a file and cost, `MAX_PROBLEMS` in all. The rest is counted."""

    def __init__(self) -> None:
        self._by_file: dict[tuple[str, Cost], list[Problem]] = {}
        self._more: dict[tuple[str, Cost], int] = {}
        self._kept = 0

    def add(self, file: str, what: str, cost: Cost, *, place: str = "", count: int = 1) -> None:
        """`place` is put behind the file: `:3` for a line."""
        found = self._by_file.get((file, cost), [])
        if len(found) < SHOWN_PROBLEMS and self._kept < MAX_PROBLEMS:
            self._by_file[file, cost] = [*found, Problem(f"{file}{place}", what, cost, count)]
            self._kept += 1
        else:
            self._more[file, cost] = self._more.get((file, cost), 0) + count

    def all(self) -> list[Problem]:
        """What was collected, with one problem "and N more" for each file that has too many, and one for the others."""
        listed = []
        for key, found in self._by_file.items():
            listed += found
            if more := self._more.get(key):
                listed.append(Problem(key[0], f"and {more} more", key[1], more))
        for cost in get_args(Cost):
            others = [more for key, more in self._more.items() if key[1] == cost and key not in self._by_file]
            if others:
                total = sum(others)
                listed.append(Problem(f"{len(others)} more files", f"{total} problems", cost, total))
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
        if not isinstance(fraction, numbers.Real) or not 0 < fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {shown(fraction)}")
        # 0.07 * 100 is a little more than 7.
        count = max(1, math.ceil(fraction * len(self.images) * (1 - 1e-12)))
        return replace(self, images=self.images[:count])

    def for_model(self, names: Mapping[int, str]) -> DetectionDataset:
        """The data set with the class numbers and names of a model that knows `names`.

        Classes are matched by name. Where there are as many of them with other names, they are matched by number, and
        a problem says so.

        Raises:
            ValueError: the classes do not fit; the text has both counts.
        """
        own, known = list(self.names.values()), [names[number] for number in sorted(names)]
        if own == known:
            return self
        plain = [printable(name) for name in known]  # as the names of data sets are
        if own == plain:
            return replace(self, names=dict(enumerate(known)))
        numbers = numbers_by_name(own, known)
        if numbers is None and len(own) == len(known):
            first = next(i for i in range(len(own)) if own[i] != plain[i])
            what = (
                f"class names differ from the model's, first at {first}: {shown(own[first])}, the model has "
                f"{shown(plain[first])}; classes are matched by number"
            )
            problems = [*self.problems, Problem(self.name, what, "nothing")]
            return replace(self, names=dict(enumerate(known)), problems=problems)
        if numbers is None:
            raise ValueError(
                f"data: {self.name} must have the model's classes; it has {len(own)} ({some(own)}), "
                f"the model {len(known)} ({some(plain)}); use weights that were trained for these classes"
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
    if not isinstance(split, str) or split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {shown(split)}")
    if not isinstance(data, DataConfig):
        data = _path("data", data)
    try:
        return _opened(
            data,
            split,
            images=None if images is None else _path("images", images),
            annotations=None if annotations is None else _path("annotations", annotations),
            cache=cache,
        )
    except ValueError as error:  # its text may hold names of files and whatever stands in the data
        text = shortened(printable(str(error)), 2000)
        if text == str(error):
            raise
        raise ValueError(text) from None


def _opened(
    data: Path | DataConfig, split: str, *, images: Path | None, annotations: Path | None, cache: bool
) -> DetectionDataset:
    from .coco import coco_dataset
    from .yolo import yolo_dataset

    if not isinstance(data, DataConfig):
        if data.suffix.lower() == ".json":
            if annotations is not None:
                raise ValueError(f"annotations must be left out where data is a json, got {shown(str(annotations))}")
            return coco_dataset(data, split, images=images)
        if data.suffix.lower() not in (".yaml", ".yml"):
            raise ValueError(f"data: must be a data yaml or a COCO json, got {shown(str(data))}")
        data = read_data_yaml(data)
    entries = data.splits.get(split)
    if not entries:
        raise ValueError(
            f"data: split must be one of {', '.join(data.splits)} in {data.file or data.name}, got {split!r}"
        )
    is_json = any(entry.lower().endswith(".json") for entry in entries)
    if is_json and (len(entries) > 1 or annotations is not None):
        raise ValueError(
            f"data: {split} of {data.file or data.name} must be one json alone, got {shown(entries)} "
            f"and annotations={annotations if annotations is None else shown(str(annotations))}"
        )
    json_file = None
    if is_json:
        json_file = data.root / entries[0]
    elif annotations is not None:
        json_file = _given(data, annotations)
    if json_file is None and images is not None:
        raise ValueError(f"images must be left out where {split} is a folder or a list, got {shown(str(images))}")
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
    places = {printable(name).strip().casefold(): number for number, name in enumerate(known)}
    found = [places.get(printable(name).strip().casefold()) for name in names]
    if None in found or len(set(found)) < len(names) or len(places) < len(known):
        return None
    return [number for number in found if number is not None]


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


def some(names: Sequence[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")


def _path(argument: str, value: object) -> Path:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{argument} must be a path, got {shown(value)}")
    return Path(value)


def _given(data: DataConfig, path: Path) -> Path:
    """A path from the caller: relative to the working folder, else to the root of the data."""
    place = expand_home(path)
    return place if os.path.exists(place) else data.root / place  # noqa: PTH110  Path's own raises for long names
