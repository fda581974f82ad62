"""The pictures of a YOLO data set: those of folders and lists, their ids and names, and where their labels are.

Nothing is opened but list files.
"""

# Paths are text here: making a Path for each of 100,000 pictures takes seconds.
# ruff: noqa: PTH110, PTH112, PTH113, PTH118, PTH119, PTH120, PTH122
from __future__ import annotations

import os
from pathlib import Path

from ..errors import SourceError
from .data_yaml import DataConfig, shortened, shown
from .dataset import Problems, relative_to
from .images import IMAGE_SUFFIXES
from .paths import expand_home, read_list

IMAGES_FOLDER, LABELS_FOLDER = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"

_LARGEST_ID = 2**53 - 1  # beyond it JSON readers differ


def find_pictures(config: DataConfig, split: str, root: Path, problems: Problems) -> list[str]:
    """Absolute paths of the pictures of a split, in the order of its entries. Folders are sorted, with sub-folders."""
    found: dict[str, None] = {}
    for entry in config.splits[split]:
        path = _entry_path(config, split, entry, root)
        where = relative_to(path, root)
        if os.path.isdir(path):
            members = [(picture, "", fault) for picture, fault in _folder(path)]
        elif path.lower().endswith((".txt", ".csv")):
            members = _list(path, root)
        elif Path(path).suffix.lower() in IMAGE_SUFFIXES:
            members = [(path, "", None)]
        else:
            raise ValueError(
                f"data: {config.file or config.name}: {split} must be a folder, a .txt list, a COCO .json or a "
                f"picture, got {shown(entry)}"
            )
        for picture, place, fault in members:
            if fault is None and picture in found:
                fault = f"picture {relative_to(picture, root)} is there twice"
            if fault is None:
                found[picture] = None
            else:
                problems.add(where, fault, "picture", place=place)
    if not found:
        first = next((f"; the first problem is: {problem}" for problem in problems.all()), "")
        raise ValueError(
            f"data: {split} of {config.file or config.name} must have pictures, "
            f"{shortened(', '.join(config.splits[split]))} in {root} has none{first}"
        )
    return list(found)


def label_path(picture: str) -> str:
    """Where the labels of a picture are: the last folder `images` of its path becomes `labels`, the suffix `.txt`."""
    head, found, tail = picture.rpartition(IMAGES_FOLDER)
    return os.path.splitext(head + (LABELS_FOLDER if found else "") + tail)[0] + ".txt"


def _entry_path(config: DataConfig, split: str, entry: str, root: Path) -> str:
    places = []
    for path in map(expand_home, _spellings(entry)):
        places.append(root / path)
        rest = [part for part in path.parts if part != ".."]
        if not path.is_absolute() and len(rest) < len(path.parts):
            places.append(root.joinpath(*rest))  # as exports write it that mean the yaml's own folder by ../train
    for place in places:
        plain = os.path.normpath(place)
        for text in (plain, str(place)):  # they differ where a folder before .. is a link
            if os.path.exists(text):
                return text
    looked = " and ".join(shortened(str(place)) for place in places)
    raise ValueError(
        f"data: {config.file or config.name}: {split} must be a folder or file that exists, got {shown(entry)}; "
        f"looked for {looked}; put the data there or set path in the yaml"
    )


def _spellings(path: str) -> list[str]:
    """The path as written, and with forward slashes if it may come from Windows."""
    return [path, path.replace("\\", "/")] if "\\" in path else [path]


def _folder(folder: str) -> list[tuple[str, str | None]]:
    """Pictures below a folder, sorted by path, each with what is wrong with it. Links to folders are not followed."""
    found: list[tuple[str, str | None]] = []
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as listing:
                entries = list(listing)
        except OSError as error:
            found.append((current, f"folder {current} cannot be opened: {(error.strerror or str(error)).lower()}"))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not os.path.isdir(entry.path):
                what = "a link to nothing" if entry.is_symlink() else "no regular file"
                found.append((entry.path, None if os.path.isfile(entry.path) else f"picture {entry.name} is {what}"))
    return sorted(found, key=lambda pair: pair[0])


def _list(path: str, root: Path) -> list[tuple[str, str, str | None]]:
    """Pictures of a list file with `:line` and what is wrong with each."""
    try:
        lines = read_list(Path(path))
    except SourceError as error:
        raise ValueError(str(error).replace("source:", "data:", 1)) from error
    own = os.path.dirname(path)
    found: list[tuple[str, str, str | None]] = []
    for number, line in lines:
        places = [own, str(root)] if line.startswith("./") else [str(root), own]
        texts = [os.path.normpath(os.path.join(place, name)) for name in _spellings(line) for place in places]
        text = next((text for text in texts if os.path.isfile(text)), None)
        fault = None if text else f"picture {line} is missing"
        if os.path.splitext(line)[1].lower() not in IMAGE_SUFFIXES:
            text, fault = None, f"{line} must be a picture, its suffix is that of none"
        found.append((text or texts[0], f":{number}", fault))
    return found


def image_ids(pictures: list[str], root: Path) -> list[int | str]:
    """Number in the file name where all have one, else the name without suffix, else the path from `root`."""
    stems = [os.path.splitext(os.path.basename(picture))[0] for picture in pictures]
    if all(stem.isascii() and stem.isdecimal() and len(stem) < 40 for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers) and max(numbers) <= _LARGEST_ID:
            return list(numbers)
    if len(set(stems)) == len(stems):
        return list(stems)
    paths = [_from_root(picture, root) for picture in pictures]
    short = [os.path.splitext(path)[0] for path in paths]
    return list(short if len(set(short)) == len(short) else paths)


def file_names(pictures: list[str], root: Path) -> list[str]:
    """Names of the pictures, or paths from `root` where names repeat."""
    names = [os.path.basename(picture) for picture in pictures]
    return names if len(set(names)) == len(names) else [_from_root(picture, root) for picture in pictures]


def _from_root(picture: str, root: Path) -> str:
    return os.path.relpath(picture, root).replace(os.sep, "/")
