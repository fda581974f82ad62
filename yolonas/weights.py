"""Finds the weights file for what a user calls a model: a path, or a name such as `yolo_nas_s`.

A name is looked for here, then in the weights folder, then at the mirrors of the published COCO weights, or in the
package for the network that comes with it. Reading the file is in `checkpoint`.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import VARIANTS
from .download import DownloadError, download
from .errors import WeightsNotFoundError
from .folders import is_offline, weights_folder

logger = logging.getLogger("yolonas")

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
COMPILED_SUFFIX = ".yolonas"

# The network that comes with the package, for the things that `data.shapes` draws. Its card is the JSON beside it.
SHIPPED = "yolo_nas_s_shapes"
SHIPPED_FOLDER = Path(__file__).with_name("models")
SHIPPED_FILE = f"{SHIPPED}.safetensors"


@dataclass(frozen=True)
class Mirror:
    """An address of published weights. `{v}` stands for s, m or l."""

    url: str
    file: str  # the name under which the file is kept


# In the order in which they are tried. A file is checked by its SHA-256 where that is known, else by reading it.
# (The first address of these files, sghub.deci.ai, no longer exists.)
MIRRORS = (
    Mirror("https://d2gjn4b69gu75n.cloudfront.net/models/yolo_nas_{v}_coco.pth", "yolo_nas_{v}_coco.pth"),
    Mirror("https://sg-hub-nv.s3.amazonaws.com/models/yolo_nas_{v}_coco.pth", "yolo_nas_{v}_coco.pth"),
    Mirror("https://github.com/ultralytics/assets/releases/download/v8.3.0/yolo_nas_{v}.pt", "yolo_nas_{v}.pt"),
    Mirror(
        "https://huggingface.co/CondadosAI/detectors/resolve/main/yolo-nas-{v}.safetensors",
        "yolo_nas_{v}.safetensors",
    ),
)
SHA256 = {
    "yolo_nas_s_coco.pth": "c1b1d9148ab8ae5d5984699547e850955ff9efccaf568c67b3d605acb4bfe1cb",
    "yolo_nas_m_coco.pth": "b194fc7fa196f76161c6356558bedf04fb99a62325a74a36a4bec3ca8ba48250",
    "yolo_nas_l_coco.pth": "91a06beaa1ce1a651d6691e3198061da996eafc8890503238dedacbd4c392a32",
}

# Names under which people keep the same published weights, the ones that we download first.
_FILE_NAMES = (
    *("yolo_nas_{v}_coco.pth", "yolo_nas_{v}.pt", "yolo_nas_{v}.safetensors"),
    *("yolo_nas_{v}.pth", "yolo-nas-{v}.safetensors", "yolo_nas_{v}_coco.safetensors"),
)
_SUFFIX = rf"({'|'.join(map(re.escape, SUFFIXES))})?"
_NAME = re.compile(rf"yolo[-_]?nas[-_]?({'|'.join(VARIANTS)})([-_]coco)?{_SUFFIX}", re.IGNORECASE)
_SHIPPED_NAME = re.compile(rf"yolo[-_]?nas[-_]?s[-_]shapes{_SUFFIX}", re.IGNORECASE)


def resolve_weights(name: str | os.PathLike[str]) -> Path:
    """The weights file that a path or a model's name stands for.

    An existing file is taken whatever its name. `yolo_nas_s` (or `yolo_nas_s.pt`, `yolo_nas_s_coco.pth`, `yolo-nas-s`;
    s, m or l) is looked for in the working directory, then in `weights_folder()`, and is downloaded to there if no file
    has it, unless the environment variable `YOLONAS_OFFLINE` is set. `yolo_nas_s_shapes` is looked for in the same
    places, and else is the file in the package.

    Raises:
        WeightsNotFoundError: no such file or model, or no mirror gave it; the text says what was tried and what to do.
        TypeError: `name` is neither a string nor a path.
    """
    text = os.fspath(name)
    if not isinstance(text, str):
        raise TypeError(f"weights: name must be a string or a path, got {type(text).__name__}")
    path = Path(text).expanduser()
    if not text.strip() or "\0" in text:
        raise WeightsNotFoundError(f"weights: name must be a path or one of {_models()}, got {text!r}")
    if path.is_file():
        return path
    if path.is_dir():
        inside = _weights_files(path)
        hint = f"; it holds {', '.join(inside[:5])}" if inside else ""
        raise WeightsNotFoundError(f"weights: name must be a file, got the folder {text!r}{hint}")
    if path.exists():
        raise WeightsNotFoundError(f"weights: name must be a regular file, got {text!r}")
    if len(path.parts) > 1 or text.endswith(("/", os.sep)):
        raise WeightsNotFoundError(_not_found(text, path.parent, suggest=_weights_files(path.parent)))
    if (match := _SHIPPED_NAME.fullmatch(text)) is not None:
        found = _kept_file([SHIPPED_FILE], text, has_suffix=match[1] is not None)
        return found if found is not None else _shipped_file(text)
    match = _NAME.fullmatch(text)
    if match is None:
        kept = weights_folder() / text
        if kept.is_file():
            return kept
        raise WeightsNotFoundError(_not_found(text, Path.cwd(), suggest=_known_names()))
    variant = match[1].lower()
    file_names = [file.format(v=variant) for file in _FILE_NAMES]
    found = _kept_file(file_names, text, has_suffix=match[3] is not None)
    return found if found is not None else _download(text, variant)


def is_shipped(path: str | os.PathLike[str]) -> bool:
    """Whether a file is in the package's folder of weights, where nothing of a user's belongs."""
    return Path(path).absolute().parent == SHIPPED_FOLDER


def card_beside(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The card of a quantisation, see `quantization.card`, from the JSON beside a weights file; None without one."""
    try:
        stated = json.loads(Path(path).with_suffix(".json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return stated if isinstance(stated, dict) and {"float32", "int8", "evaluation"} <= stated.keys() else None


def _shipped_file(name: str) -> Path:
    path = SHIPPED_FOLDER / SHIPPED_FILE
    if not path.is_file():
        raise WeightsNotFoundError(
            f"weights: {name!r} is the network that comes with the package, and this copy of the package is without "
            f"it: there is no file {path}; install a release, or put {SHIPPED_FILE} into {weights_folder()}"
        )
    logger.info("weights: %s is %s", name, path)
    return path


def _kept_file(file_names: Sequence[str], name: str, *, has_suffix: bool) -> Path | None:
    """A file that is already here. A name with a suffix means that very file, except in the weights folder."""
    candidates = [] if has_suffix else [Path(file) for file in file_names]
    candidates += [weights_folder() / file for file in [name, *file_names]]
    found = next((path for path in candidates if path.is_file()), None)
    if found is not None:
        logger.info("weights: %s is %s", name, found)
    return found


def _download(name: str, variant: str) -> Path:
    folder = weights_folder()
    mirrors = [Mirror(m.url.format(v=variant), m.file.format(v=variant)) for m in MIRRORS]
    tried: list[str] = []
    if is_offline():
        reason = "downloads are off (YOLONAS_OFFLINE is set)"
    else:
        reason = "no mirror gave it"
        for mirror in mirrors:
            sha256 = SHA256.get(mirror.file)
            try:
                logger.info("weights: downloading %s to %s", mirror.url, folder)
                check = None if sha256 else _reader(variant)
                download(mirror.url, folder / mirror.file, sha256=sha256, check=check)
                return folder / mirror.file
            except DownloadError as error:
                logger.info("weights: %s %s", mirror.url, error)
                tried.append(f"{mirror.url} {error}")
                if error.local:
                    reason = "it could not be stored; set YOLONAS_WEIGHTS to a folder that can be written"
                    break
    files = list(dict.fromkeys(mirror.file for mirror in mirrors))
    lines = [
        f"weights: {name!r} is neither in {Path.cwd()} nor in {folder}, and {reason}.",
        *(f"  tried {line}" for line in tried),
        f"Put {files[0]} (or {', '.join(files[1:])}) into {folder}, or give the path of a weights file.",
        "Sources: " + " ".join(mirror.url for mirror in mirrors),
    ]
    raise WeightsNotFoundError("\n".join(lines))


def _reader(variant: str) -> Callable[[Path], None]:
    """A check for files without a known hash: they must read as a checkpoint of the right size with COCO's classes."""

    def check(path: Path) -> None:
        from .checkpoint import read_checkpoint

        found = read_checkpoint(path)
        if found.variant != variant:
            raise ValueError(f"it holds YOLO-NAS {found.variant.upper()}, not {variant.upper()}")

    return check


def _not_found(name: str, folder: Path, *, suggest: Iterable[str]) -> str:
    if not folder.is_dir():
        return f"weights: {name!r} does not exist, nor does its folder {folder}"
    if "pose" in name.lower():
        return f"weights: {name!r} does not exist, and pose networks are not supported; known models are {_models()}"
    is_compiled = Path(name).suffix.lower() == COMPILED_SUFFIX
    suggest = [other for other in suggest if other.lower().endswith(COMPILED_SUFFIX) or not is_compiled]
    close = difflib.get_close_matches(Path(name).name, suggest, n=3, cutoff=0.6)
    if is_compiled:
        other = f"did you mean {' or '.join(close)}? " if close else ""
        source = Path(name).with_suffix(".pt").name
        return f"weights: {name!r} does not exist; {other}NAS({source!r}).save({name!r}) makes it of a checkpoint"
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; known models are {_models()}"
    usual = Path(name).suffix.lower() in ("", *SUFFIXES)
    kinds = "" if usual else f", and weights files mostly end in {', '.join(SUFFIXES)}"
    return f"weights: {name!r} does not exist{kinds}{hint}"


def _known_names() -> list[str]:
    names = [f"{variant.model_name}{suffix}" for variant in VARIANTS.values() for suffix in ("", ".pt", "_coco.pth")]
    names += [SHIPPED, f"{SHIPPED}.pt", SHIPPED_FILE]
    return [*names, *_weights_files(Path.cwd()), *_weights_files(weights_folder())]


def _weights_files(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in (*SUFFIXES, COMPILED_SUFFIX))
    except OSError:
        return []


def _models() -> str:
    return ", ".join((*(variant.model_name for variant in VARIANTS.values()), SHIPPED))
