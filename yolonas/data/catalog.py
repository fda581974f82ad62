"""Finds the data set that a user names: a file, a folder, a zip file, or a name such as `coco8`.

What is not here is fetched only when asked to, and only where the SHA-256 of the archive is known. What the files say
is read by `data_yaml` and `coco`; fetching is in `fetch`.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from ..config import COCO_NAMES
from ..folders import datasets_folder
from ..runs import safe_name
from .data_yaml import DataConfig, read_data_yaml, shown
from .fetch import Archive, fetch, is_filled, logger, unpack_once
from .paths import expand_home

_YAML = (".yaml", ".yml")
_RELEASES = "https://github.com/ultralytics/assets/releases/download/v0.0.0"
_COCO_BUCKET = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")
_COCO_LICENCE = "annotations CC BY 4.0 by the COCO Consortium, each photo under a Flickr licence of its own"


@dataclass(frozen=True)
class Published:
    """A data set that is known by name."""

    name: str
    splits: dict[str, list[str]]
    archives: tuple[Archive, ...]
    layout: tuple[str, ...]  # what must be in its folder, for people
    licence: str
    names: dict[int, str] | None = field(default_factory=lambda: dict(enumerate(COCO_NAMES)))  # None: in the json

    def is_in(self, folder: Path) -> bool:
        return all(archive.is_in(folder) for archive in self.archives)

    def config(self, folder: Path) -> DataConfig:
        return DataConfig(name=self.name, file=None, root=folder, splits=self.splits, names=self.names)


PUBLISHED = {
    published.name: published
    for published in (
        Published(
            name="coco8",
            splits={"train": ["images/train"], "val": ["images/val"]},
            archives=(
                Archive(
                    urls=(f"{_RELEASES}/coco8.zip", "https://ultralytics.com/assets/coco8.zip"),
                    size=443_158,
                    sha256="54c67fe9ef88313e021ec0e92b73c200167bb0a86633e8df8658d832cca828c9",
                    found_at=("images/val",),
                ),
            ),
            layout=("images/val/*.jpg", "labels/val/*.txt"),
            licence=_COCO_LICENCE,
        ),
        Published(
            name="coco128",
            splits={"train": ["images/train2017"], "val": ["images/train2017"]},  # the same pictures, as it was made
            archives=(
                Archive(
                    urls=(
                        f"{_RELEASES}/coco128.zip",
                        "https://github.com/ultralytics/yolov5/releases/download/v1.0/coco128.zip",
                        "https://ultralytics.com/assets/coco128.zip",
                    ),
                    size=6_983_030,
                    sha256="61e5e3028863d8ffc3b81d6a514603954889f0edd5e4b44c4ce60b2da99aeb8e",
                    found_at=("images/train2017",),
                ),
            ),
            layout=("images/train2017/*.jpg", "labels/train2017/*.txt"),
            licence=_COCO_LICENCE,
        ),
        Published(
            name="coco",
            splits={"val": ["annotations/instances_val2017.json"], "train": ["annotations/instances_train2017.json"]},
            archives=(
                Archive(
                    urls=tuple(f"{bucket}/annotations/annotations_trainval2017.zip" for bucket in _COCO_BUCKET),
                    size=252_907_541,
                    sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                    folder="annotations",
                    found_at=("annotations/instances_val2017.json",),
                    only=("annotations/instances_val2017.json",),
                ),
                Archive(
                    urls=tuple(f"{bucket}/zips/val2017.zip" for bucket in _COCO_BUCKET),
                    size=815_585_330,
                    sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                    folder="images/val2017",
                    found_at=("images/val2017", "val2017"),
                ),
            ),
            layout=("images/val2017/*.jpg", "annotations/instances_val2017.json"),
            licence=_COCO_LICENCE,
            names=None,
        ),
    )
}


def locate(data: str | os.PathLike[str], *, download: bool = False) -> Path | DataConfig:
    """The data yaml or COCO json that `data` stands for, or what such a yaml would say.

    An existing yaml, json or folder is taken as it is. A zip file is unpacked into `datasets_folder()`, again when it
    has changed. A bare name (`coco8`, `cells.yaml`) is looked for in the working folder, then in `datasets_folder()`.

    Args:
        download: fetch what is missing, if it is a published data set or the yaml gives an address and a SHA-256.
            Nothing is fetched where the environment variable `YOLONAS_OFFLINE` is set.

    Raises:
        FileNotFoundError: nothing of that name; the text says what to put where.
        ValueError: something is there that cannot be used, such as a damaged zip file.
        TypeError: `data` is neither a string nor a path.
    """
    text = os.fspath(data)
    if not isinstance(text, str):
        raise TypeError(f"data: data must be a string or a path, got {type(text).__name__}")
    if not text.strip() or "\0" in text:
        raise ValueError(f"data: data must be a file, a folder or one of {', '.join(PUBLISHED)}, got {shown(text)}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise ValueError(
            f"data: data must be on this machine, got {shown(text)}; download it by hand, or write a yaml with "
            "download: and sha256:"
        )
    try:
        return _locate(text, download=download)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename is not None:
            reason = f"{error.filename}: {reason}; YOLONAS_DATASETS sets another place for what is unpacked"
        raise ValueError(f"data: {text!r} cannot be used: {reason}") from None


def _locate(text: str, *, download: bool) -> Path | DataConfig:
    path = Path(os.path.expanduser(text))  # noqa: PTH111  Path's own raises for an unknown ~user
    bare = len(path.parts) == 1 and not text.endswith(("/", os.sep)) and text != ".."
    if os.path.isfile(path):  # noqa: PTH113  Path's own raises for names that are too long
        return _in_file(path, download=download)
    if os.path.isdir(path):  # noqa: PTH112
        known = _named(text) if bare else None
        if known is None or _yaml_in(path) or known.is_in(path):
            return _in_folder(path, path.resolve().name, download=download)
    elif os.path.lexists(path):
        raise ValueError(f"data: data must be a regular file or a folder, got {text!r}")
    elif not bare:
        raise FileNotFoundError(_not_found(text, path.parent))
    return _by_name(text, download=download)


def _in_file(path: Path, *, download: bool) -> Path | DataConfig:
    suffix = path.suffix.lower()
    if suffix in _YAML:
        return _in_yaml(path, download=download)
    if suffix == ".json":
        return path
    if suffix == ".zip":
        return _in_zip(path, download=download)
    raise ValueError(
        f"data: data must be a yaml, a COCO json, a folder, a .zip or one of {', '.join(PUBLISHED)}, got {str(path)!r}"
        + ("; unpack it by hand and give the folder" if suffix in (".gz", ".tgz", ".tar", ".7z", ".rar", ".xz") else "")
    )


def _in_zip(path: Path, *, download: bool) -> Path | DataConfig:
    name = safe_name(path.stem)

    def check(folder: Path) -> None:
        if _yaml_in(folder) is None and not _is_published(folder, name):
            raise ValueError(f"data: {path} {_lacks_yaml(folder)}")

    return _in_folder(unpack_once(path, name, check), name, download=download)


def _in_folder(folder: Path, name: str, *, download: bool) -> Path | DataConfig:
    """`name` is what the folder is called, or was in its archive."""
    yaml = _yaml_in(folder)
    if yaml is not None:
        return _in_yaml(yaml, download=download)
    if _is_published(folder, name):
        return PUBLISHED[name.lower()].config(folder)
    raise ValueError(f"data: {str(folder)!r} {_lacks_yaml(folder)}")


def _is_published(folder: Path, name: str) -> bool:
    published = PUBLISHED.get(name.lower())
    return published is not None and published.is_in(folder)


def _yaml_in(folder: Path) -> Path | None:
    """The only yaml of a folder, else the one called like the folder, else `data.yaml`."""
    yamls = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _YAML and path.is_file()]
    if len(yamls) == 1:
        return yamls[0]
    return next((path for stem in (folder.resolve().name, "data") for path in yamls if path.stem == stem), None)


def _lacks_yaml(folder: Path) -> str:
    """What to say of a folder without a usable yaml: `holds ...; do this`."""
    names = sorted(entry.name for entry in folder.iterdir())
    yamls = [name for name in names if name.lower().endswith(_YAML)]
    if yamls:
        return f"holds several yamls ({', '.join(yamls[:5])}); give the path of one"
    jsons = sorted(str(path.relative_to(folder)) for path in folder.glob("annotations/*.json"))
    jsons += [name for name in names if name.lower().endswith(".json")]
    if jsons:
        return f"holds no yaml, but {', '.join(jsons[:5])}; give the path of a COCO json, or write a yaml"
    listed = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "") if names else "nothing"
    return f"must hold a yaml with the keys val and names, got {listed}; write one, or give the path of another folder"


def _in_yaml(path: Path, *, download: bool) -> Path | DataConfig:
    """The yaml itself, or what it says with the folder where its pictures really are."""
    config = read_data_yaml(path)
    if _has_pictures(config):
        return path
    own = path.absolute().parent
    if config.root != own:
        name = config.root.name
    else:
        name = own.name if path.stem.lower() in ("data", "dataset") else path.stem  # every export has a data.yaml
    name = safe_name(name)
    target = datasets_folder() / name
    for root in (own, target):
        moved = replace(config, root=root)
        if _has_pictures(moved):
            logger.info("data: %s is not as %s says; using %s", config.root, path, root)
            return moved
    archive, cure = _archive_of(config, target)
    if archive is None or not download:
        raise FileNotFoundError(
            f"data: {path} names {', '.join(_entries(config)[:3])}, and nothing of it is in {config.root}; {cure}"
        )
    fetch(name, (archive,), target, download=True, instructions=f"Put its files into {target} by hand.")
    return replace(config, root=target)


def _entries(config: DataConfig) -> list[str]:
    return [entry for entries in config.splits.values() for entry in entries]


def _has_pictures(config: DataConfig) -> bool:
    return any(
        is_filled(Path(os.path.normpath(config.root / place)))
        for entry in _entries(config)
        for place in (expand_home(entry), _without_parents(entry))
    )


def _without_parents(entry: str) -> str:
    """Exports say `../val/images` and mean `val/images` beside the yaml."""
    return "/".join(part for part in Path(entry).parts if part != "..") or "."


def _archive_of(config: DataConfig, target: Path) -> tuple[Archive | None, str]:
    """What the yaml's `download` allows to fetch, and what to tell a user who has nothing."""
    by_hand = f"put the files into {target} or correct path: in the yaml"
    if config.name.lower() in PUBLISHED:
        by_hand += f" (data={config.name.lower()} without .yaml is the published data set)"
    url = config.download.strip() if isinstance(config.download, str) else None
    if config.download is None:
        return None, by_hand
    if url is None or not re.fullmatch(r"https?://\S+", url):
        return None, f"its download: is no web address, and scripts are never run; {by_hand}"
    found_at = tuple(map(_without_parents, _entries(config)))
    known = next((a for published in PUBLISHED.values() for a in published.archives if url in a.urls), None)
    if known is not None and known.folder == "":
        archive = replace(known, found_at=found_at)
    elif config.sha256 is None:
        return None, f"{url} is not fetched without a checksum: add sha256: to the yaml, or {by_hand}"
    elif not urlsplit(url).path.lower().endswith(".zip"):
        return None, f"{url} is not fetched, since only zip files are unpacked here; {by_hand}"
    else:
        archive = Archive((url,), config.sha256, found_at, config.size)
    megabytes = "" if archive.size is None else f" ({archive.size / 1e6:.1f} MB)"
    return archive, f"download=True fetches {url}{megabytes} to {target}, or {by_hand}"


def _named(text: str) -> Published | None:
    return PUBLISHED.get(_stem(text).lower())


def _stem(text: str) -> str:
    return Path(text).stem if Path(text).suffix.lower() in (*_YAML, ".zip") else text


def _by_name(text: str, *, download: bool) -> Path | DataConfig:
    """A bare name that is no path from here."""
    stem = _stem(text)
    for place in (Path(), datasets_folder()):
        for name in dict.fromkeys((text, f"{stem}.yaml", f"{stem}.yml")):
            if os.path.isfile(place / name):  # noqa: PTH113
                return _in_file(place / name, download=download)
        folder = place / stem
        if os.path.isdir(folder) and (_yaml_in(folder) or _is_published(folder, stem)):  # noqa: PTH112
            return _in_folder(folder, stem, download=download)
    published = _named(text)
    if published is None:
        packed = datasets_folder() / f"{stem}.zip"
        if os.path.isfile(packed):  # noqa: PTH113
            return _in_zip(packed, download=download)
        if os.path.isdir(datasets_folder() / stem):  # noqa: PTH112
            return _in_folder(datasets_folder() / stem, stem, download=download)  # says what it lacks
        raise FileNotFoundError(_not_found(text, Path.cwd()))
    folder = datasets_folder() / published.name
    archives = " and ".join(archive.file_name for archive in published.archives)
    instructions = [
        f"Or put {archives} into {folder.parent} by hand (YOLONAS_DATASETS sets another place), or into {folder}:",
        *(f"  {line}" for line in published.layout),
        f"Licence: {published.licence}.",
    ]
    fetch(published.name, published.archives, folder, download=download, instructions="\n".join(instructions))
    return published.config(folder)


def _not_found(text: str, folder: Path) -> str:
    if not os.path.isdir(folder):  # noqa: PTH112
        return f"data: {text!r} does not exist, nor does its folder {folder}"
    places = [folder] if folder != Path.cwd() else [folder, datasets_folder()]
    known = {_stem(entry): entry for place in places for entry in _listed(place)}
    if len(places) > 1:
        suffix = Path(text).suffix if Path(text).suffix.lower() in _YAML else ""
        known = {**{name: name + suffix for name in PUBLISHED}, **known}
    close = difflib.get_close_matches(_stem(Path(text).name), known, n=3, cutoff=0.6)
    where = " or ".join(str(place) for place in places)
    if close:
        return f"data: {text!r} is not in {where}; did you mean {' or '.join(known[name] for name in close)}?"
    return f"data: {text!r} is not in {where}; give a data yaml, a COCO json or one of {', '.join(PUBLISHED)}"


def _listed(folder: Path) -> list[str]:
    """Names in a folder that may stand for data sets."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [
        entry.name
        for entry in entries
        if entry.suffix.lower() in (*_YAML, ".json", ".zip") or (entry.is_dir() and entry.name[0] != ".")
    ]
