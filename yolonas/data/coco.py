"""The data set of a COCO instances file: where its pictures are, and which class its categories are."""

# Making a Path for each of 100,000 pictures takes seconds.
# ruff: noqa: PTH113, PTH118
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..records import Truth
from .data_yaml import name_of_file, printable, shown
from .dataset import (
    DetectionDataset,
    LabelledImage,
    Problem,
    Problems,
    filled_ids,
    numbers_by_name,
    relative_to,
    some,
)
from .instances import Instances, read_instances

_LOOKED_AT = 20  # pictures that are tried in each folder that could hold them


def coco_dataset(
    file: Path,
    split: str,
    *,
    images: Path | None = None,
    names: Mapping[int, str] | None = None,
    name: str | None = None,
    root: Path | None = None,
) -> DetectionDataset:
    """The data set of an instances file. Missing pictures are left out, each with a problem.

    Args:
        images: folder of the pictures (default: guessed from the place of the file).
        names: class names whose numbers are wanted (default: the file's, by category id).
        root: folder that paths are shown from (default: the one above `annotations`).

    Raises:
        ValueError: the file or all of the pictures cannot be used, or `names` are not those of the file.
    """
    file = file.absolute()
    root = (root or _base(file)).absolute()
    where = relative_to(file, root)
    instances = read_instances(file, where)
    folder = images if images is not None else _image_folder(file, instances)
    problems = Problems()
    numbers = None
    if names is not None:
        numbers, odd = class_numbers(instances, list(names.values()), where)
        if odd is not None:
            problems.add(odd.where, odd.what, odd.cost)
    shown_folder = relative_to(folder.absolute(), root)
    found = []
    for (image_id, file_name, size), truth in zip(instances.images, instances.truths, strict=True):
        path = os.path.join(folder, file_name)
        if not os.path.isfile(path):
            problems.add(shown_folder, f"picture {file_name} is missing", "picture")
            continue
        found.append(LabelledImage(path, image_id, file_name, size, renumbered(truth, numbers)))
    if not found:
        raise ValueError(
            f"data: none of the {len(instances.images)} pictures of {file} is in {folder}; give their folder as images"
        )
    names = dict(enumerate(instances.names)) if names is None else dict(names)
    return DetectionDataset(
        name=name or name_of_file(file),
        split=split,
        names=names,
        category_ids=instances.category_ids if numbers is None else numbered_ids(instances, numbers, len(names)),
        images=found,
        problems=instances.problems + problems.all(),
        labels_from=described(where, sum(int(image.labels.crowd.sum()) for image in found)),
    )


def described(where: str, crowds: int) -> str:
    """What a console line says of labels from a COCO json."""
    regions = f", {crowds} crowd region{'s' * (crowds != 1)}" if crowds else ""
    return printable(f"{where} (COCO{regions})")


def class_numbers(instances: Instances, names: list[str], where: str) -> tuple[list[int], Problem | None]:
    """The class number in `names` of each category, -1 for those without boxes that `names` lacks.

    Categories are matched by name, else by rank of their id where there are as many; a problem says so then.

    Raises:
        ValueError: they do not fit.
    """
    used = np.zeros(len(instances.names), bool)
    for truth in instances.truths:
        used[truth.classes] = True
    kept = [number for number in range(len(used)) if used[number]]
    everywhere = numbers_by_name(instances.names, names)
    if everywhere is not None:
        return everywhere, None
    if list(instances.names) == names:  # with names that differ in case only
        return list(range(len(names))), None
    if len(names) == len(instances.names):
        first = next(i for i in range(len(names)) if instances.names[i] != names[i])
        what = (
            f"category names differ from the class names, first at {first}: {shown(instances.names[first])} and "
            f"{shown(names[first])}; categories are matched by rank of their id"
        )
        return list(range(len(names))), Problem(where, what, "nothing")
    by_name = numbers_by_name([instances.names[number] for number in kept], names)
    if by_name is None:
        raise ValueError(
            f"data: {where} must have the categories that the yaml names; it has {len(instances.names)} "
            f"({some(instances.names)}), the yaml {len(names)} ({some(names)})"
        )
    numbers = [-1] * len(instances.names)
    for number, own in zip(kept, by_name, strict=True):
        numbers[number] = own
    return numbers, None


def numbered_ids(instances: Instances, numbers: list[int], count: int) -> tuple[int, ...]:
    """The category id of each of `count` classes, by the `numbers` that `class_numbers` gave the categories."""
    ids: list[int | None] = [None] * count
    for category_id, number in zip(instances.category_ids, numbers, strict=True):
        if number >= 0:
            ids[number] = category_id
    return filled_ids(ids)


def renumbered(truth: Truth, numbers: list[int] | None) -> Truth:
    """Boxes with the class numbers that `class_numbers` gave the categories."""
    if numbers is None or not len(truth):
        return truth
    return Truth(truth.boxes, np.array(numbers, np.int32)[truth.classes], truth.areas, truth.crowd)


def _base(file: Path) -> Path:
    """The data set's folder: the one above `annotations`, else the file's own."""
    own = file.parent
    return own.parent if own.name == "annotations" else own


def _image_folder(file: Path, instances: Instances) -> Path:
    """Where the first pictures are: `instances_X.json` has them in images/X, X or images, or the folder itself."""
    base, split = _base(file), file.stem.removeprefix("instances_")
    tried = list(dict.fromkeys([base / "images" / split, base / split, base / "images", base, file.parent]))
    for _, file_name, _ in instances.images[:_LOOKED_AT]:
        for folder in tried:
            if os.path.isfile(os.path.join(folder, file_name)):
                return folder
    raise ValueError(
        f"data: pictures of {file} not found, such as {shown(instances.images[0][1])}; looked in "
        f"{', '.join(map(str, tried))}; give their folder as images"
    )
