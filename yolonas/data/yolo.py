"""YOLO data sets: pictures from folders and lists, labels from text files beside them.

Where a COCO json of the same split lies in `annotations` and agrees with the text files, the labels are taken from it:
it has the crowd regions and the areas of the masks, which text files have not.
"""

# Paths are text here: making a Path for each of 100,000 pictures takes seconds.
# ruff: noqa: PTH100, PTH116, PTH118, PTH119, PTH120, PTH123, PTH206
from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..records import Truth
from .coco import class_numbers, described, numbered_ids, renumbered
from .data_yaml import DataConfig, printable
from .dataset import DetectionDataset, LabelledImage, Problem, Problems, category_ids_of, relative_to
from .instances import Instances, read_instances
from .label_cache import LabelCache, stamp_of
from .label_file import MAX_LABEL_BYTES, FileLabels, parse_labels, unusable
from .pictures import IMAGES_FOLDER, file_names, find_pictures, image_ids, label_path

AGREEMENT = 1.5  # pixels by which boxes of a text file and of a json may differ

_NO_LABELS = FileLabels(np.zeros((0, 4)), np.zeros(0, np.int32))


def yolo_dataset(
    config: DataConfig, split: str, *, annotations: Path | None = None, cache: bool = True
) -> DetectionDataset:
    """The data set of a split whose entries are folders, lists and pictures.

    Args:
        annotations: COCO json that has the labels; text files are not read then.
        cache: keep the content of the text files in the user's cache folder.

    Raises:
        ValueError: no pictures, no labels, or `annotations` that do not fit them.
    """
    root = Path(os.path.abspath(config.root))
    problems = Problems()
    pictures = find_pictures(config, split, root, problems)
    if annotations is not None:
        return _of_json(config, split, root, pictures, annotations, problems)
    if config.names is None:
        raise ValueError(f"data: {config.file or config.name}: names must list the classes, the yaml has no names")
    label_files = [label_path(picture) for picture in pictures]
    sibling = _sibling_json(root, pictures, config.splits[split])
    labels = _read_labels(label_files, len(config.names), split, cache)
    if all(found is None for found in labels):
        if sibling is not None:
            return _of_json(config, split, root, pictures, sibling, problems)
        raise ValueError(
            f"data: {split} of {config.file or config.name} has no label files: none for any of its {len(pictures)} "
            f"pictures; looked for {label_files[0]} and the like"
        )
    dataset = _of_text(config, split, root, pictures, label_files, labels, problems)
    if sibling is not None:
        try:
            return _merged(dataset, sibling, root)
        except ValueError as error:
            reason = str(error).removeprefix("data: ")
            what = f"not used, the labels are those of {dataset.labels_from}: {reason}"
            dataset.problems.append(Problem(relative_to(sibling, root), what, "nothing"))
    if missing := sum(found is None for found in labels):
        what = f"{missing} of {len(pictures)} pictures have no label file and count as pictures without objects"
        dataset.problems.append(Problem(dataset.labels_from.removesuffix(" (YOLO)"), what, "nothing"))
    return dataset


def _read_labels(paths: list[str], count: int, split: str, cache: bool) -> list[FileLabels | None]:
    """The content of each label file; None where there is no such file."""
    kept = LabelCache(split, map(os.path.dirname, paths), count) if cache else None
    found = [_read_label(path, count, kept) for path in paths]
    if kept is not None:
        kept.save()
    return found


def _read_label(path: str, count: int, kept: LabelCache | None) -> FileLabels | None:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return unusable("is a folder or a device, not a file")
        if status.st_size > MAX_LABEL_BYTES:
            return unusable(f"has {status.st_size} bytes, more than the limit of {MAX_LABEL_BYTES}")
        stamp = stamp_of(status)
        labels = kept.get(path, stamp) if kept is not None else None
        if labels is None:
            with open(path, "rb") as file:
                labels = parse_labels(file.read(MAX_LABEL_BYTES), count)
            if kept is not None:
                kept.put(path, stamp, labels)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return unusable(f"cannot be read: {(error.strerror or str(error)).lower()}")
    return labels


def _of_text(
    config: DataConfig,
    split: str,
    root: Path,
    pictures: list[str],
    label_files: list[str],
    labels: list[FileLabels | None],
    problems: Problems,
) -> DetectionDataset:
    where = relative_to(_common_folder(label_files), root)
    images = []
    for picture, file, image_id, file_name, found in zip(
        pictures, label_files, image_ids(pictures, root), file_names(pictures, root), labels, strict=True
    ):
        found = found or _NO_LABELS
        if found.problems:
            shown = relative_to(file, root)
            for problem in found.problems:
                problems.add(shown, problem.what, problem.cost, place=problem.where, count=problem.count)
        if found.usable:
            truth = Truth.of(found.boxes, found.classes)
            images.append(LabelledImage(picture, image_id, file_name, None, truth, fractions=True))
    listed = problems.all()
    lost = next((problem for problem in listed if problem.cost == "label"), None)
    if not images or (lost is not None and not any(len(image.labels) for image in images)):
        first = lost or next(problem for problem in listed if problem.cost == "picture")
        raise ValueError(
            f"data: {split} of {config.file or config.name} has no usable label in {where}, "
            f"the first problem is: {first}"
        )
    names = dict(config.names or {})
    return DetectionDataset(
        config.name, split, names, category_ids_of(list(names.values())), images, listed, printable(f"{where} (YOLO)")
    )


def _common_folder(files: list[str]) -> str:
    return os.path.commonpath({os.path.dirname(file) for file in files})


def _sibling_json(root: Path, pictures: list[str], entries: list[str]) -> Path | None:
    """`annotations/instances_<folder of the pictures>.json`, if there is one."""
    folders = {os.path.basename(os.path.dirname(picture)) for picture in pictures}
    names = [Path(entries[0]).name] if len(entries) == 1 else []
    if len(folders) == 1:
        names += folders
    bases = [root, Path(pictures[0].rpartition(IMAGES_FOLDER)[0] or root)]
    for base in bases:
        for name in names:
            file = base / "annotations" / f"instances_{name}.json"
            if file.is_file():
                return file
    return None


def _places(instances: Instances, pictures: Iterable[str]) -> list[int | None]:
    """For each picture its place in the json, by file name with as many folders as the json writes."""
    known = {os.path.normpath(file_name): place for place, (_, file_name, _) in enumerate(instances.images)}
    depth = max(name.count(os.sep) for name in known) + 1
    found: list[int | None] = []
    for picture in pictures:
        parts = picture.split(os.sep)
        tails = (os.sep.join(parts[-length:]) for length in range(min(depth, len(parts)), 0, -1))
        found.append(next((known[tail] for tail in tails if tail in known), None))
    return found


def _of_json(
    config: DataConfig, split: str, root: Path, pictures: list[str], file: Path, problems: Problems
) -> DetectionDataset:
    """The pictures of the split with the labels of the json; those that it does not know are left out."""
    where = relative_to(file, root)
    instances = read_instances(file, where)
    names = dict(enumerate(instances.names)) if config.names is None else dict(config.names)
    numbers, odd = class_numbers(instances, list(names.values()), where)
    if odd is not None:
        problems.add(odd.where, odd.what, odd.cost)
    images = []
    taken = set()
    for picture, file_name, place in zip(
        pictures, file_names(pictures, root), _places(instances, pictures), strict=True
    ):
        if place is None or place in taken:
            what = "is not among its pictures" if place is None else "has the name of another picture"
            problems.add(where, f"{relative_to(picture, root)} {what}", "picture")
            continue
        taken.add(place)
        image_id, _, size = instances.images[place]
        images.append(LabelledImage(picture, image_id, file_name, size, renumbered(instances.truths[place], numbers)))
    if not images:
        raise ValueError(f"data: {file} must know the pictures of {split}, it has none of them, such as {pictures[0]}")
    return DetectionDataset(
        config.name,
        split,
        names,
        numbered_ids(instances, numbers, len(names)),
        images,
        instances.problems + problems.all(),
        described(where, sum(int(image.labels.crowd.sum()) for image in images)),
    )


def _merged(dataset: DetectionDataset, file: Path, root: Path) -> DetectionDataset:
    """The data set with the labels of the json.

    Raises:
        ValueError: it cannot be read, lacks a picture, or does not agree with the text files.
    """
    where = relative_to(file, root)
    instances = read_instances(file, where)
    numbers, _ = class_numbers(instances, list(dataset.names.values()), where)
    places = _places(instances, [image.path for image in dataset.images])
    images = [
        _merged_image(image, place, instances, numbers) for image, place in zip(dataset.images, places, strict=True)
    ]
    if len(set(places)) < len(places):
        raise ValueError("two pictures have the same name in it")
    # A line that is left out of the text files is none in the json either: they agree.
    listed = [replace(problem, cost="nothing") if problem.cost == "label" else problem for problem in dataset.problems]
    return replace(
        dataset,
        category_ids=numbered_ids(instances, numbers, len(dataset.names)),
        images=images,
        problems=listed + instances.problems,
        labels_from=described(where, sum(int(image.labels.crowd.sum()) for image in images)),
    )


def _merged_image(image: LabelledImage, place: int | None, instances: Instances, numbers: list[int]) -> LabelledImage:
    if place is None:
        raise ValueError(f"it does not know {image.file_name}")
    image_id, _, size = instances.images[place]
    truth = renumbered(instances.truths[place], numbers)
    objects = truth[~truth.crowd]
    if size is None:
        raise ValueError(f"it has no size for {image.file_name}")
    if not agree(image.truth(size), objects):
        raise ValueError(f"its boxes differ from the label file of {image.file_name}")
    return LabelledImage(image.path, image_id, image.file_name, size, truth)


def agree(first: Truth, second: Truth) -> bool:
    """Whether two sets of boxes are the same: one partner for each, of its class, within `AGREEMENT` pixels."""
    if len(first) != len(second):
        return False
    if np.array_equal(first.classes, second.classes) and (abs(first.boxes - second.boxes) <= AGREEMENT).all():
        return True
    free = np.ones(len(second), bool)
    for box, number in zip(first.boxes, first.classes, strict=True):
        far = abs(second.boxes - box).max(1)
        far[~free | (second.classes != number)] = np.inf
        nearest = int(far.argmin())
        if far[nearest] > AGREEMENT:
            return False
        free[nearest] = False
    return True
