"""COCO instances files: their pictures, boxes, crowd regions and categories.

Only boxes are read. Masks are not opened, but their `area` is kept, which decides what counts as a small object.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..records import Truth
from .data_yaml import printable, shown
from .dataset import Problem, Problems

MAX_JSON_BYTES = 4 * 2**30

_MAX_NUMBER = 2**53 - 1  # ids above are not the same in every reader of JSON
_MAX_COORDINATE = 1e7  # pixels
_MAX_AREA = 1e14
_NO_BOXES = Truth.of()


@dataclass(frozen=True, eq=False)
class Instances:
    """The usable content of an instances file. Class numbers are the places of the categories, by ascending id."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: list[tuple[int | str, str, tuple[int, int] | None]]  # id, file name, (height, width); by id
    truths: list[Truth]  # of each picture, in pixels
    problems: list[Problem]


def read_instances(file: Path, where: str | None = None) -> Instances:
    """Reads an instances file; `where` is what problems call it.

    Raises:
        ValueError: no JSON, or without pictures, categories or usable annotations; the text names the file.
    """
    where = where or str(file)
    content = _load(file)
    problems = Problems()
    ids, names = _categories(file, where, content["categories"], problems)
    images, skipped = _images(where, content["images"], problems)
    if not images:
        raise ValueError(f"data: {file} must list pictures with an id and a file_name, none of its entries is usable")
    truths = _truths(where, content["annotations"], images, skipped, ids, problems)
    if content["annotations"] and not any(map(len, truths)):
        raise ValueError(
            f"data: {file}: none of its {len(content['annotations'])} annotations is usable, "
            f"the first problem is: {problems.all()[0]}"
        )
    return Instances(names, ids, images, truths, problems.all())


def _load(file: Path) -> dict[str, list[Any]]:
    try:
        if not file.is_file():
            raise ValueError("no such file" if not file.exists() else "this is a folder or a device, not a file")
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has {file.stat().st_size} bytes, more than the limit of {MAX_JSON_BYTES}")
        content = json.loads(file.read_bytes())
    except RecursionError as error:
        raise ValueError(f"data: {file} cannot be read as COCO json: it is nested too deeply") from error
    except MemoryError as error:
        raise ValueError(f"data: {file} cannot be read as COCO json: not enough memory") from error
    except (OSError, ValueError) as error:  # what json and the decoding of text raise are ValueErrors
        raise ValueError(f"data: {file} cannot be read as COCO json: {error}") from error
    if isinstance(content, list):
        raise ValueError(f"data: {file} must be a COCO instances file, got a list; that is what predictions look like")
    for key in ("images", "annotations", "categories"):
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, list):
            raise ValueError(f"data: {file} must be a COCO instances file with a list {key!r}, got {shown(value)}")
    return content


def _whole(value: object) -> int | None:
    """An id as int: files written by other languages have 17.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) <= _MAX_NUMBER else None


def _categories(
    file: Path, where: str, entries: list[Any], problems: Problems
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    found: dict[int, str] = {}
    for place, entry in enumerate(entries):
        category_id = _whole(entry.get("id")) if isinstance(entry, dict) else None
        if category_id is None:
            problems.add(
                where, f"id must be a whole number, got {shown(entry)}", "nothing", place=f": category {place}"
            )
        elif category_id in found:
            problems.add(where, f"id {category_id} was there before", "nothing", place=f": category {place}")
        else:
            name = entry.get("name")
            found[category_id] = printable(name).strip() if isinstance(name, str) else ""
    if not found:
        raise ValueError(f"data: {file} must have at least one category with an id, got {shown(entries)}")
    names: dict[str, int] = {}
    for category_id in sorted(found):
        name = found[category_id]
        if not name or name in names:
            what = f"is called {shown(name)} like another" if name else "has no name"
            problems.add(where, what, "nothing", place=f": category {category_id}")
            name = f"category {category_id}"
            while name in names:
                name += "'"
        names[name] = category_id
    return tuple(sorted(found)), tuple(names)


def _images(
    where: str, entries: list[Any], problems: Problems
) -> tuple[list[tuple[int | str, str, tuple[int, int] | None]], set[int | str]]:
    """The pictures by id, numbers before texts, and the ids of those that are left out."""
    found: dict[int | str, tuple[str, tuple[int, int] | None]] = {}
    skipped: set[int | str] = set()
    file_names: set[str] = set()
    for place, entry in enumerate(entries):
        fault = None
        image_id: int | str | None = None
        file_name = None
        if isinstance(entry, dict):
            value, file_name = entry.get("id"), entry.get("file_name")
            image_id = value if isinstance(value, str) else _whole(value)
        if image_id is None:
            fault = f"must have an id, a whole number or a text, got {shown(entry)}"
        elif image_id in found:
            fault = f"id {shown(image_id)} was there before"
        elif not isinstance(file_name, str) or not file_name.strip() or "\0" in file_name:
            fault = f"file_name must be the name of a picture, got {shown(file_name)}"
            skipped.add(image_id)
        elif (plain := _inside(file_name)) is None:
            fault = f"file_name must be a picture in the picture folder, got {shown(file_name)}"
            skipped.add(image_id)
        elif plain in file_names:
            fault = f"file_name {shown(file_name)} was there before"
            skipped.add(image_id)
        if fault is not None:
            problems.add(where, fault, "picture", place=f": image {place}")
            continue
        height, width = _whole(entry.get("height")), _whole(entry.get("width"))
        known = height is not None and width is not None and height > 0 and width > 0
        found[image_id] = (plain, (height, width) if known else None)
        file_names.add(plain)
    order = sorted(found, key=lambda key: (isinstance(key, str), key))
    return [(image_id, *found[image_id]) for image_id in order], skipped


def _inside(file_name: str) -> str | None:
    """A picture's path below the folder of the pictures, with forward slashes; None for one that leads elsewhere."""
    plain = posixpath.normpath(file_name.replace("\\", "/"))
    outside = plain in (".", "..") or plain.startswith(("/", "../")) or re.match("[A-Za-z]:", plain)
    return None if outside else plain


def _truths(
    where: str,
    annotations: list[Any],
    images: list[tuple[int | str, str, tuple[int, int] | None]],
    skipped: set[int | str],
    category_ids: tuple[int, ...],
    problems: Problems,
) -> list[Truth]:
    """The boxes of each picture, in the order of the file."""
    # Whole columns at once: a large file has a million annotations. Why one is bad is found out elsewhere.
    place_of = {image_id: place for place, (image_id, _, _) in enumerate(images)}
    class_of = {category_id: number for number, category_id in enumerate(category_ids)}
    sizes = np.array([size or (_MAX_COORDINATE, _MAX_COORDINATE) for _, _, size in images], np.float64)
    places = _looked_up(annotations, "image_id", place_of)
    classes = _looked_up(annotations, "category_id", class_of)
    crowds = _looked_up(annotations, "iscrowd", {0: 0, 1: 1, None: 0})
    boxes = _numbers(annotations, "bbox", 4)
    boxes[~(abs(boxes) < _MAX_COORDINATE)] = np.nan  # their sums would overflow; they fail every comparison below
    areas = _numbers(annotations, "area", 1)[:, 0]

    x, y, w, h = boxes.T
    heights, widths = sizes[places].T  # of unknown pictures, -1, those of the last one: they are out anyway
    good = (places >= 0) & (classes >= 0) & (crowds >= 0) & (w > 0) & (h > 0)
    good &= (x < widths) & (y < heights) & (x + w > 0) & (y + h > 0)
    good[np.flatnonzero(good)[_repeats(np.column_stack((places, classes, crowds, boxes))[good])]] = False
    for number in np.flatnonzero(~good).tolist():
        item = annotations[number]
        fault = _fault(item, place_of, skipped, class_of, sizes)
        if fault is not None:
            label = item.get("id") if isinstance(item, dict) else None
            place = f": annotation {number if label is None else shown(label)}"
            problems.add(where, fault, "label", place=place)

    areas = np.where((areas > 0) & (areas < _MAX_AREA), areas, w * h)
    kept = np.flatnonzero(good)
    kept = kept[np.argsort(places[kept], kind="stable")]
    places, boxes, classes, areas = places[kept], boxes[kept], classes[kept].astype(np.int32), areas[kept]
    crowd = crowds[kept] == 1
    cuts = np.searchsorted(places, np.arange(len(images) + 1)).tolist()
    truths = []
    for first, end in itertools.pairwise(cuts):
        part = slice(first, end)
        truths.append(Truth(boxes[part], classes[part], areas[part], crowd[part]) if end > first else _NO_BOXES)
    return truths


def _looked_up(annotations: list[Any], key: str, table: Mapping[Any, int]) -> np.ndarray:
    """`(N,)` int64: what the table has for the value of `key`, -1 for nothing."""
    try:
        return np.array([table.get(item.get(key), -1) for item in annotations], np.int64)
    except (AttributeError, TypeError):  # no object, or a list as value
        values = [item.get(key) if isinstance(item, dict) else [] for item in annotations]
        return np.array([-1 if isinstance(value, (list, dict)) else table.get(value, -1) for value in values], np.int64)


def _numbers(annotations: list[Any], key: str, count: int) -> np.ndarray:
    """`(N, count)` float64: the numbers of `key`, NaN where they are anything else."""
    shape = (len(annotations), count)
    try:
        # Without a type: numpy would read texts as numbers. A huge number makes an array of objects.
        array = np.array([item[key] for item in annotations])
        if (
            array.dtype.kind in "if"
            and array.size == len(annotations) * count
            and array.ndim == (1 if count == 1 else 2)
        ):
            return array.reshape(shape).astype(np.float64)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    array = np.full(shape, np.nan)
    for row, item in zip(array, annotations, strict=True):
        value = item.get(key) if isinstance(item, dict) else None
        values = [value] if count == 1 else value
        if isinstance(values, list) and len(values) == count and all(type(part) in (int, float) for part in values):
            with contextlib.suppress(OverflowError):
                row[:] = values
    return array


def _repeats(rows: np.ndarray) -> np.ndarray:
    """Mask of the `(N, K)` float64 rows that stand above already."""
    rows = rows + 0.0  # -0.0 is 0.0
    factors = np.random.default_rng(0).integers(1, 2**63, rows.shape[1], np.uint64) * 2 + 1
    _, group, counts = np.unique((rows.view(np.uint64) * factors).sum(1), return_inverse=True, return_counts=True)
    repeats = np.zeros(len(rows), bool)
    seen = set()
    for number in np.flatnonzero(counts[group] > 1).tolist():
        row = rows[number].tobytes()
        repeats[number] = row in seen
        seen.add(row)
    return repeats


def _fault(
    item: Any,
    places: Mapping[int | str, int],
    skipped: set[int | str],
    classes: Mapping[int, int],
    sizes: np.ndarray,
) -> str | None:
    """What is wrong with an annotation; None if its picture is left out anyway."""
    if not isinstance(item, dict):
        return f"must be an object, got {shown(item)}"
    image_id, category_id, box = item.get("image_id"), item.get("category_id"), item.get("bbox")
    if isinstance(image_id, (list, dict)) or image_id not in places:
        known = not isinstance(image_id, (list, dict)) and image_id in skipped
        return None if known else f"image_id must be that of a picture, got {shown(image_id)}"
    if isinstance(category_id, (list, dict)) or category_id not in classes:
        return f"category_id must be that of a category, got {shown(category_id)}"
    if not isinstance(box, list) or len(box) != 4 or any(type(value) not in (int, float) for value in box):
        return f"bbox must be 4 numbers x, y, width, height, got {shown(box)}"
    if not all(-_MAX_COORDINATE < value < _MAX_COORDINATE for value in box):
        return f"bbox must be in pixels, got {shown(box)}"
    if box[2] <= 0 or box[3] <= 0:
        return f"bbox must have a width and a height above 0, got {shown(box)}"
    height, width = sizes[places[image_id]]
    if box[0] >= width or box[1] >= height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        return f"bbox must touch the picture of {width:.0f}x{height:.0f} pixels, got {shown(box)}"
    crowd = item.get("iscrowd")
    if isinstance(crowd, (list, dict)) or crowd not in (0, 1, None):
        return f"iscrowd must be 0 or 1, got {shown(crowd)}"
    return f"repeats another annotation of the picture: category_id {category_id}, bbox {shown(box)}"
