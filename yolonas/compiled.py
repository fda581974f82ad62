"""The compiled file, `.yolonas`: a network as the native engine runs it, and what it takes to use it.

Written from a fused network; read without torch, which is most of what a start costs. It holds no form that could be
trained. Everything in it is untrusted until checked.

    8 bytes   "yolonas\\n"
    4 + 4     version of this format; length of the settings
    8 + 4     length of the network; CRC-32 of settings and network
    settings  JSON, as in the metadata of our checkpoints
    network   what `_cpu.Engine.serialize` gives, which has a version of its own

All numbers are little-endian and without sign.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from . import _native
from .errors import CheckpointError

if TYPE_CHECKING:
    from .config import DetectSettings, Variant
    from .native_engine import NativeEngine
    from .preprocess import Preprocess

# What takes long to import is imported where it is used: `read_ahead` is to begin before that.

SUFFIX = ".yolonas"
MAGIC = b"yolonas\n"
FORMAT_VERSION = 1

_HEAD = struct.Struct("<8sIIQI")
_FORM = "compiled"
_MAX_SETTINGS = 1 << 24


class CompiledNetwork:
    """Stands where a `YoloNAS` module stands for other files: it can be run by its engine, and that is all."""

    form = _FORM

    def __init__(self, variant: Variant, engine: NativeEngine):
        self.variant = variant
        self.engine = engine

    @property
    def num_classes(self) -> int:
        return self.engine.num_classes

    @property
    def is_quantized(self) -> bool:
        return any(name.endswith(".quantize") for name in self.engine.native.step_names)


class CompiledFile(NamedTuple):
    """A compiled file, read and checked; it tells about itself as a `Checkpoint` does."""

    path: Path
    network: CompiledNetwork
    names: dict[int, str]  # one per class
    preprocess: Preprocess
    settings: DetectSettings
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "yolonas, compiled for the native engine" + ", INT8" * self.network.is_quantized

    @property
    def form(self) -> str:
        return self.network.form

    @property
    def variant(self) -> str:
        return self.network.variant.name

    @property
    def num_classes(self) -> int:
        return self.network.num_classes


def is_compiled(path: str | os.PathLike[str]) -> bool:
    """Whether a file of this kind is there, by its first bytes."""
    try:
        path = Path(path).expanduser()
        if not path.is_file():  # reading a pipe would wait for its writer
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError, TypeError):
        return False


def write_compiled(
    path: str | os.PathLike[str],
    engine: NativeEngine,
    variant: Variant,
    *,
    names: Mapping[int, str],
    preprocess: Preprocess,
    settings: DetectSettings,
) -> Path:
    """Writes an engine with its settings, atomically, and returns the path.

    Raises:
        ValueError: another suffix, or settings that make no sense. OSError: the file cannot be written.
    """
    from .checkpoint.settings import THRESHOLDS, own_settings

    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"save: path must end in {SUFFIX}, got {path.name!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: path must be in an existing folder, there is no folder {path.parent}")
    stated = own_settings(
        {"variant": variant.name, "form": _FORM, "num_classes": engine.num_classes},
        names=[str(names[number]) for number in range(engine.num_classes)],
        preprocess=preprocess.to_dict(),
        thresholds={key: getattr(settings, key) for key in THRESHOLDS},
    ).encode()
    network = engine.native.serialize()
    head = _HEAD.pack(MAGIC, FORMAT_VERSION, len(stated), len(network), zlib.crc32(network, zlib.crc32(stated)))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(head + stated)
            file.write(network)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_ahead(path: str | os.PathLike[str]) -> None:
    """Begins to read a compiled file and to prepare its engine, on a thread; `read_compiled` waits for it.

    For the start of a program, when the processor's other cores have nothing to do while modules are imported.
    """
    if is_compiled(path):
        ahead = _AHEAD[str(Path(path).expanduser())] = _Loading(path)
        ahead.start()


def read_compiled(path: str | os.PathLike[str]) -> CompiledFile:
    """Reads a compiled file.

    Raises:
        CheckpointError: it is none, damaged, or of another version.
    """
    path = Path(path).expanduser()
    ahead = _AHEAD.pop(str(path), None)
    try:
        settings, native = _load(path) if ahead is None else ahead.result()
        return _checked(path, settings, native)
    except (CheckpointError, OSError, MemoryError) as error:
        raise CheckpointError(f"compiled file {path}: {str(error) or 'it does not fit into the memory'}") from None


class _Loading(threading.Thread):
    """Loads a file, and goes on to pack the weights for the file's input size."""

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(name="yolonas-read-ahead")
        self._path = Path(path).expanduser()
        self._loaded = threading.Event()
        self._found: tuple[bytes, Any] | Exception

    def run(self) -> None:
        try:
            self._found = _load(self._path)
        except Exception as error:
            self._found = error
            return
        finally:
            self._loaded.set()
        settings, native = self._found
        try:
            native.plan(*json.loads(settings)["preprocess"]["size"], 1)
        except (ValueError, TypeError, KeyError):
            return  # whoever uses the file will be told

    def result(self) -> tuple[bytes, Any]:
        self._loaded.wait()
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


_AHEAD: dict[str, _Loading] = {}


def _load(path: Path) -> tuple[bytes, Any]:
    """The settings, not yet looked at, and the `_cpu.Engine` of a file."""
    with path.open("rb") as file:
        settings, network = _parts(file)
    native = _native.cpu()
    native.isa()  # a wrong YOLONAS_CPU_ISA is no fault of the file
    try:
        return settings, native.Engine.deserialize(network)
    except ValueError as error:
        raise CheckpointError(f"{error}; save the checkpoint as {SUFFIX} again") from None


def _parts(file: BinaryIO) -> tuple[bytes, bytes]:
    """Settings and network of a file that is whole."""
    head = file.read(_HEAD.size)
    if not head.startswith(MAGIC) or len(head) < _HEAD.size:
        raise CheckpointError("is not a compiled file of yolonas, or is cut off")
    _, version, length, network_length, checksum = _HEAD.unpack(head)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"has version {version}, this yolonas reads version {FORMAT_VERSION}; save the checkpoint as {SUFFIX} again"
        )
    expected, size = _HEAD.size + length + network_length, os.fstat(file.fileno()).st_size
    if size != expected or length > _MAX_SETTINGS:
        raise CheckpointError(f"must have {expected} bytes, as its head says, got {size}; it may be cut off")
    settings, network = file.read(length), file.read(network_length)
    if zlib.crc32(network, zlib.crc32(settings)) != checksum:
        raise CheckpointError("is damaged: its checksum is that of another content")
    return settings, network


def _checked(path: Path, settings: bytes, native: Any) -> CompiledFile:
    from .checkpoint.contents import Contents
    from .checkpoint.processing import preprocess_from_metadata
    from .checkpoint.settings import read_names, read_own_settings, read_thresholds, shown
    from .config import VARIANTS
    from .native_engine import NativeEngine

    contents = Contents("compiled", {})
    stated = read_own_settings(settings.decode("utf-8", "replace"), contents)
    variant, num_classes = stated.get("variant"), stated.get("num_classes")
    if not isinstance(variant, str) or variant not in VARIANTS:
        raise CheckpointError(f"variant must be one of {', '.join(VARIANTS)}, got {shown(variant)}")
    if type(num_classes) is not int or num_classes < 1:
        raise CheckpointError(f"num_classes must be a positive whole number, got {shown(num_classes)}")
    if num_classes != native.num_classes:
        raise CheckpointError(f"num_classes must be {native.num_classes} as in its network, got {num_classes}")
    return CompiledFile(
        path,
        CompiledNetwork(VARIANTS[variant], NativeEngine(native, num_classes)),
        read_names(contents.names, num_classes, contents.notes),
        preprocess_from_metadata(stated.get("preprocess", {})),
        read_thresholds(contents, num_classes, contents.notes),
    )
