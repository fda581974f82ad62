"""Data yamls: where the pictures of a data set are and what its classes are called.

Only the yaml is read here: no picture, list or label is opened, and what stands under `download` is never run. Every
scalar is taken as the text that was written, so that a class called `no` stays `no`.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..folders import datasets_folder

MAX_YAML_BYTES = 16 * 2**20
MAX_YAML_EVENTS = 250_000  # keys, values and brackets; as many names as are allowed need 200,000
MAX_CLASSES = 100_000
SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}

_MAX_PATH = 4096  # characters
_MAX_DIRECTIVES = 100  # lines with % at the start; libyaml compares each with all before it
_MAX_DEPTH = 100  # libyaml's loader overruns the stack of the process long before Python would notice
_DECIMAL = re.compile(r"[0-9]{1,18}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_PERCENT = re.compile(r"(?:^|[\n\r\x85\u2028\u2029])%")
_NAMELESS = ("data", "dataset", "_annotations", "_annotations.coco")  # what exports call the file of any data set
_NOTHING = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class DataConfig:
    """What a data yaml says."""

    name: str  # "coco8"
    file: Path | None  # the yaml; None for what is built in
    root: Path  # folder that relative entries start from; may not exist
    splits: dict[str, list[str]]  # "train", "val", "test" -> folders, .txt lists, .json files, pictures, as written
    names: dict[int, str] | None = None  # None: the annotation file has them
    images: dict[str, str] = field(default_factory=dict)  # picture folder per split, for entries that are COCO json
    download: Any = None  # as written; never run
    sha256: str | None = None  # of the download, hexadecimal
    size: int | None = None  # of the download, bytes


def read_data_yaml(path: str | os.PathLike[str]) -> DataConfig:
    """Reads a data yaml. A relative `path` is looked for beside the yaml, in the data sets' folder, and here.

    Raises:
        ValueError: the file cannot be read, is no yaml, or an entry is wrong; the text names the file and the entry.
    """
    file = Path(path)
    content = _load(file)
    if not isinstance(content, Mapping):
        raise ValueError(f"data: {file} must be a mapping with train, val and names, got {shown(content)}")
    splits = {}
    for split, keys in SPLITS.items():
        key = next((key for key in keys if not _absent(content.get(key))), None)
        if key is not None:
            splits[split] = _entries(file, key, content[key])
    if not splits:
        raise ValueError(f"data: {file} must have train, val or test, got the keys {shown(list(content))}")
    return DataConfig(
        name=name_of_file(file),
        file=file,
        root=_root(file, content.get("path")),
        splits=splits,
        names=_names(file, content.get("names"), content.get("nc")),
        images=_image_folders(file, content.get("images"), splits),
        download=None if _absent(content.get("download")) else content["download"],
        sha256=_matching(file, "sha256", content.get("sha256"), _SHA256, "64 hexadecimal digits"),
        size=_whole(file, "size", content.get("size"), 0, 2**63 - 1),
    )


def names_of_yaml(path: str | os.PathLike[str], count: int) -> dict[int, str]:
    """Class names from a data yaml: `names` as list or dict. Raises ValueError naming the file and what is wrong."""
    content = _load(Path(path))
    names = content.get("names") if isinstance(content, Mapping) else None
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, Mapping) or sorted(names) != sorted(map(str, range(count))):
        found = len(names) if isinstance(names, Mapping) else "none"
        raise ValueError(f"data: {path} must have names for the model's {count} classes, got {found}")
    return {int(key): _name(Path(path), key, value) for key, value in names.items()}


def name_of_file(file: Path) -> str:
    """What to call the data of a yaml or json: the file's name, or its folder's where all such files are called so."""
    folder = os.path.basename(os.path.dirname(os.path.abspath(file)))  # noqa: PTH100, PTH119, PTH120  solves ..
    return printable(folder if folder and file.stem.lower() in _NAMELESS else file.stem)


def printable(text: str) -> str:
    """The text on one line, without codes that a terminal would obey and without what cannot be encoded."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text).strip()


def shortened(text: str, limit: int = 500) -> str:
    """The text, or both ends of one that is too long for a message."""
    half = limit // 2 - 1
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


def shown(value: object) -> str:
    """A short `repr` of anything, also of what is huge or holds itself."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    return short.repr(value)


def _load(file: Path) -> Any:
    """The content of a yaml file, with every scalar as text."""
    import yaml

    try:
        if not file.is_file():
            raise ValueError("no such file" if not file.exists() else "this is a folder or a device, not a file")
        if file.stat().st_size > MAX_YAML_BYTES:
            raise ValueError(f"it has {file.stat().st_size} bytes, more than the limit of {MAX_YAML_BYTES}")
        data = file.read_bytes()
        if b"\0" in data:  # as in UTF-16
            raise UnicodeError
        return _parsed(data.decode("utf-8-sig"))
    except UnicodeError:
        reason: object = "it is not UTF-8 text; save it as UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except MemoryError:
        reason = "not enough memory"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        reason = error.problem if mark is None else f"{error.problem} (line {mark.line + 1})"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    except (ValueError, yaml.YAMLError) as error:
        reason = error
    raise ValueError(f"data: {file} cannot be read as yaml: {shortened(printable(str(reason)))}")


def _parsed(text: str) -> Any:
    """Texts, lists and dicts, after a look at what would take libyaml or Python too long or too deep."""
    import yaml

    kind = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    if len(_PERCENT.findall(text)) > _MAX_DIRECTIVES:
        raise ValueError("it has too many directives, lines with % at the start")
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=kind)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if number >= MAX_YAML_EVENTS:
            raise ValueError(f"it has more than {MAX_YAML_EVENTS} keys and values")
    loader = kind(text)
    try:
        node = loader.get_single_node()
        _check_keys(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _check_keys(root: Any) -> None:
    """Raises ValueError for keys that repeat, where the last would count, and for merge keys, which would be text."""
    import yaml

    pending, seen = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
            continue
        keys = set()
        for key, value in node.value:
            pending += (key, value)
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = f"(line {key.start_mark.line + 1})"
            if key.value == "<<" and not key.style:
                raise ValueError(f"merge keys (<<) are not read, write them out {line}")
            if key.value in keys:
                raise ValueError(f"the key {shown(key.value)} is there twice {line}")
            keys.add(key.value)


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in _NOTHING)


def _is_path(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and len(value) <= _MAX_PATH


def _entries(file: Path, key: str, value: object) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not _is_path(entry) or not entry.strip():
            raise ValueError(f"data: {file}: {key} must be a path or a list of paths, got {shown(value)}")
    if not entries:
        raise ValueError(f"data: {file}: {key} must have at least one path, got []")
    return [entry.strip() for entry in entries]


def _root(file: Path, value: object) -> Path:
    own = file.absolute().parent
    if _absent(value):
        return own
    if not _is_path(value):
        raise ValueError(f"data: {file}: path must be the folder of the data set, got {shown(value)}")
    try:
        path = Path(value).expanduser()
    except RuntimeError:  # no such home
        path = Path(value)
    if path.is_absolute():
        return path
    # Yamls of this kind say `../datasets/coco8` for a folder that stands among the data sets.
    places = [own / path, datasets_folder() / path, datasets_folder() / path.name, Path.cwd() / path]
    if own.name == path.name:  # the yaml was put into the folder that it names
        places.append(own)
    return next((place for place in places if _is_folder(place)), places[0])


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _names(file: Path, names: object, count: object) -> dict[int, str] | None:
    """Class names by number, or None where the yaml has neither `names` nor `nc`."""
    number = _whole(file, "nc", count, 1, MAX_CLASSES)
    if isinstance(names, (list, Mapping)) and not names:
        raise ValueError(f"data: {file}: names must have at least one class, got none")
    if _absent(names):
        return None if number is None else {i: f"class_{i}" for i in range(number)}
    if isinstance(names, list):
        by_key: Mapping[Any, Any] = {str(i): name for i, name in enumerate(names)}
    elif isinstance(names, Mapping):
        by_key = names
    else:
        raise ValueError(f"data: {file}: names must be a list or a mapping of numbers to names, got {shown(names)}")
    if len(by_key) > MAX_CLASSES:
        raise ValueError(f"data: {file}: names must have at most {MAX_CLASSES} classes, got {len(by_key)}")
    if number is not None and number != len(by_key):
        raise ValueError(f"data: {file}: nc must be the number of names, {len(by_key)}, got {number}")
    numbered = {}
    for key, name in by_key.items():
        if not isinstance(key, str) or not _DECIMAL.fullmatch(key.strip()):
            raise ValueError(f"data: {file}: names must have the class numbers 0 and up as keys, got {shown(key)}")
        numbered[int(key)] = _name(file, key, name)
    missing = next((i for i in range(len(by_key)) if i not in numbered), None)
    if missing is not None:
        raise ValueError(
            f"data: {file}: names must have the class numbers 0 to {len(by_key) - 1}, each once; {missing} is missing"
        )
    return {i: numbered[i] for i in range(len(by_key))}


def _name(file: Path, key: str, name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"data: {file}: name of class {key} must be a text, got {shown(name)}")
    return printable(name)


def _image_folders(file: Path, value: object, splits: Mapping[str, list[str]]) -> dict[str, str]:
    """`images`: one folder for all splits, or a mapping of splits to folders."""
    if _absent(value):
        return {}
    if _is_path(value):
        return dict.fromkeys(splits, value)
    folders = {}
    for split, keys in SPLITS.items():
        for key in keys if isinstance(value, Mapping) else ():
            if _is_path(value.get(key)):
                folders.setdefault(split, value[key])
    if not folders:
        raise ValueError(f"data: {file}: images must be a folder or a mapping of splits to folders, got {shown(value)}")
    return folders


def _whole(file: Path, key: str, value: object, lowest: int, highest: int) -> int | None:
    what = f"a whole number from {lowest} to {highest}"
    text = _matching(file, key, value, _DECIMAL, what)
    if text is not None and not lowest <= int(text) <= highest:
        raise ValueError(f"data: {file}: {key} must be {what}, got {shown(value)}")
    return None if text is None else int(text)


def _matching(file: Path, key: str, value: object, pattern: re.Pattern[str], what: str) -> str | None:
    if _absent(value):
        return None
    if not isinstance(value, str) or not pattern.fullmatch(value.strip()):
        raise ValueError(f"data: {file}: {key} must be {what}, got {shown(value)}")
    return value.strip()
