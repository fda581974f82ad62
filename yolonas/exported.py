"""Exported files, read back: which kind one is, what it says about itself, and the engine that runs it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import VARIANTS
from .errors import CheckpointError, WeightsNotFoundError, missing_package
from .exporting.spec import METADATA_FILE, METADATA_KEY, ExportSpec, read_metadata

if TYPE_CHECKING:
    from .config import Variant
    from .exported_engine import ExportedEngine

_FORM = "exported"

# What is never loaded: reading such a file can run code that is in it.
EXECUTED = {".torchscript": "TorchScript", ".pt2": "torch.export"}


class ExportedNetwork:
    """Stands where a `YoloNAS` module stands for other files. The runtime loads the file when it is first needed."""

    form = _FORM

    def __init__(self, path: Path, spec: ExportSpec):
        self.path, self.spec = path, spec
        self._engine: ExportedEngine | None = None

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.spec.variant]

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes

    @property
    def is_quantized(self) -> bool:
        return self.spec.precision == "int8"

    def digest(self) -> str:
        """What tells this file from others: the SHA-256 of its files."""
        files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        if self.path.suffix == ".xml":  # whose weights are in another file
            files.append(self.path.with_suffix(".bin"))
        digest = hashlib.sha256()
        for file in files:
            if file.is_file():
                digest.update(file.read_bytes())
        return digest.hexdigest()

    def engine(self, device: Any = None) -> ExportedEngine:
        """What runs it.

        Args:
            device: as users write it; ONNX and OpenVINO files run on the CPU, TensorRT engines on a GPU.

        Raises:
            ValueError: the runtime does not use that device. ImportError: it is not installed.
            CheckpointError: it cannot use the file.
        """
        wanted = "" if device is None else str(device).strip().lower()
        if kind_of(self.path) == "engine":
            if wanted == "cpu":
                raise ValueError("device must be a GPU for a TensorRT engine, got 'cpu'")
            if wanted:
                from .engine import choose_device

                device = choose_device(device)
                if self._engine is not None and (self._engine.device.index or 0) != (device.index or 0):
                    self._engine = None
        elif wanted not in ("", "cpu"):
            raise ValueError(f"device must be 'cpu' for this file, got {device!r}; load the checkpoint for a GPU")
        if self._engine is None:
            from .exported_engine import ExportedEngine

            self._engine = ExportedEngine(_session(self.path, self.spec, device), self.spec)
        return self._engine


def kind_of(path: str | os.PathLike[str]) -> str:
    """ "onnx", "openvino", "ncnn", "engine", or "" for what is no exported file. By name; a folder by what is in it."""
    try:
        path = Path(path).expanduser()
        if path.suffix in (".onnx", ".engine"):
            return path.suffix[1:]
        if path.suffix == ".xml":
            return "openvino"
        if path.is_dir() and (path / METADATA_FILE).is_file():
            return "openvino" if any(path.glob("*.xml")) else "ncnn" if any(path.glob("*.param")) else ""
    except (OSError, ValueError, TypeError):
        pass
    return ""


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether `read_exported` takes it. Raises CheckpointError for a format that is not loaded, with the reason."""
    executed = EXECUTED.get(Path(path).suffix)
    if executed is not None:
        raise CheckpointError(
            f"{path}: {executed} files are programs and are not loaded; load the checkpoint that it was made from"
        )
    return bool(kind_of(path))


def read_exported(path: str | os.PathLike[str]) -> ExportedNetwork:
    """Reads what an exported file says about itself; nothing else of it.

    Raises:
        WeightsNotFoundError: there is no such file. CheckpointError: it does not describe itself as ours do.
        ImportError: see `read_stated`.
    """
    path = Path(path).expanduser()
    stated = read_stated(path)
    if METADATA_KEY not in stated:
        raise CheckpointError(
            f"{path}: has no metadata {METADATA_KEY!r}, so that it was not exported by yolonas (or has lost it since); "
            "export the checkpoint again"
        )
    try:
        spec = ExportSpec.from_json(stated[METADATA_KEY])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return ExportedNetwork(path, spec)


def read_stated(path: Path) -> Mapping[str, str]:
    """The metadata of a file as texts.

    Raises:
        WeightsNotFoundError: there is no such file. CheckpointError: it is damaged. ImportError: a package that reads
            it is missing.
    """
    kind = kind_of(path)
    if not path.exists():
        raise WeightsNotFoundError(
            f"{path}: there is no such file; 'yolonas export model=...' makes one of a checkpoint"
        )
    if kind in ("onnx", "engine") and not path.is_file():  # reading a pipe would wait for its writer
        raise CheckpointError(f"{path}: must be a file")
    if kind == "onnx":
        return _of_onnx(path)
    if kind == "engine":
        from .exporting.tensorrt import read_engine_header

        return {METADATA_KEY: read_engine_header(path)[0].to_json()}
    if kind:
        return read_metadata(path.parent if path.is_file() else path)
    raise CheckpointError(f"{path}: is no file that export writes")


def _of_onnx(path: Path) -> Mapping[str, str]:
    try:
        import onnx
    except ImportError:
        return _of_onnx_by_runtime(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's have no base that could be named without it
        raise CheckpointError(f"{path}: is no ONNX file, or is damaged ({str(error)[:200]})") from None
    if not model.HasField("graph"):
        raise CheckpointError(f"{path}: is no ONNX file, or is damaged")
    return {one.key: one.value for one in model.metadata_props}


def _of_onnx_by_runtime(path: Path) -> Mapping[str, str]:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("reading ONNX files", "onnx", "onnx") from error
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path}: is no ONNX file, or is damaged ({str(error)[:200]})") from None
    return dict(session.get_modelmeta().custom_metadata_map)


def _session(path: Path, spec: ExportSpec, device: Any) -> Any:
    from . import sessions

    kind = kind_of(path)
    if kind == "engine":
        from .tensorrt_engine import TensorRTSession

        return TensorRTSession(path, device=device)
    if kind == "onnx":
        return sessions.OnnxSession(path, spec)
    if kind == "openvino":
        graphs = [path] if path.is_file() else sorted(path.glob("*.xml"))
        return sessions.OpenVINOSession(graphs[0], spec)
    return sessions.NcnnSession(path, spec)
