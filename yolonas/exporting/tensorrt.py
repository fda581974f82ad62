"""TensorRT engines: built of an ONNX file by the package `tensorrt` 10 or newer, and what they are before the plan.

    4 bytes   length of the metadata, little-endian
    metadata  JSON, see `ExportSpec.to_json`
    plan      TensorRT's own, for one version of it and one kind of GPU

A plan is a program: load engines only of those whom you trust. Building has been tested with a stand-in for `tensorrt`
only, never on a GPU.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ExportError, missing_package
from .spec import INPUT_NAME, ExportSpec
from .targets import MAX_BATCH, profile_shapes

if TYPE_CHECKING:
    from types import ModuleType

LOGGER = logging.getLogger("yolonas")

OLDEST = 10  # version of TensorRT
MAX_METADATA_BYTES = 16 << 20
_LENGTH_BYTES = 4
_SHOWN_ERRORS = 10  # the last ones


def write_engine(
    path: str | os.PathLike[str],
    onnx_path: str | os.PathLike[str],
    spec: ExportSpec,
    *,
    workspace_gib: float | None = None,
    max_batch: int = MAX_BATCH,
    verbose: bool = False,
) -> None:
    """Builds an engine for the GPU of this machine, which takes minutes, and writes it over what is there.

    The types of the ONNX file are those of the engine (a "strongly typed network"), so that no precision is chosen
    here; float32 layers may use TF32, as is TensorRT's default.

    Args:
        spec: of the ONNX file. workspace_gib: scratch memory at most; None: what the GPU has. max_batch: pictures per
            call at most, for a file that takes any number. verbose: log what TensorRT says, not only its complaints.

    Raises:
        ImportError: `tensorrt` is not installed, or too old.
        ExportError: no GPU, or TensorRT cannot build the network; the text has what it said.
    """
    trt = import_tensorrt("export: TensorRT engines", "; the ONNX file and the trtexec line for it were written")
    log = tensorrt_log(trt, verbose=verbose)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # pybind's, for a constructor that gave nothing
        raise ExportError(f"export: TensorRT needs an NVIDIA GPU and its driver{log.said()}") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(os.fspath(onnx_path)):
        errors = [str(parser.get_error(number)) for number in range(parser.num_errors)]
        raise ExportError(f"export: TensorRT {trt.__version__} cannot read {onnx_path}{_listed(errors)}")
    config = builder.create_builder_config()
    if workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, round(workspace_gib * (1 << 30)))
    shapes = profile_shapes(spec, max_batch)
    if shapes is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT_NAME, *shapes)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"export: TensorRT {trt.__version__} could not build {onnx_path}{log.said()}")
    metadata = spec.to_json().encode()
    with Path(path).open("wb") as file:
        file.write(len(metadata).to_bytes(_LENGTH_BYTES, "little"))
        file.write(metadata)
        file.write(plan)


def read_engine_header(path: str | os.PathLike[str]) -> tuple[ExportSpec, int]:
    """What an engine file says about itself, and where its plan begins. Needs no `tensorrt`.

    Raises:
        CheckpointError: the file is none that `write_engine` wrote; a plan alone is one of these.
    """
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        offset = _LENGTH_BYTES + length
        if not 0 < length <= MAX_METADATA_BYTES or offset >= size:
            raise CheckpointError(_no_metadata(path))
        metadata = file.read(length)
    if not metadata.startswith(b"{"):
        raise CheckpointError(_no_metadata(path))
    try:
        return ExportSpec.from_json(metadata.decode()), offset
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: metadata must be UTF-8, got {error.reason} at byte {error.start}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def import_tensorrt(what: str, cure: str = "") -> ModuleType:
    """The package `tensorrt`.

    Raises:
        ImportError: it is not installed or too old; the text begins with `what` for, and ends with `cure`.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise ImportError(f"{missing_package(what, 'tensorrt', None)}{cure}") from error
    version = str(tensorrt.__version__)
    major = version.split(".")[0]
    if not major.isdigit() or int(major) < OLDEST:
        raise ImportError(f"{what} need tensorrt {OLDEST} or newer, got {version}: pip install -U tensorrt{cure}")
    return tensorrt


def tensorrt_log(trt: ModuleType, *, verbose: bool = False) -> Any:
    """A logger to give to TensorRT. Warnings go to our own log, with `verbose` what it does too; `said()` lists its
    errors so far, to stand behind a sentence.
    """
    severity = trt.ILogger.Severity
    levels = {severity.WARNING: logging.WARNING} | ({severity.INFO: logging.INFO} if verbose else {})

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_SHOWN_ERRORS)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message)
            elif severity in levels:
                LOGGER.log(levels[severity], "TensorRT: %s", message)

        def said(self) -> str:
            return _listed(self.errors)

    return Log()


def _listed(errors: Iterable[str]) -> str:
    text = "".join(f"\n  {error}" for error in errors)
    return f":{text}" if text else ""


def _no_metadata(path: str | os.PathLike[str]) -> str:
    return (
        f"{path}: has no metadata before the plan; a plan alone, as trtexec writes it, does not say what the network "
        "is: export with format='engine', or run the plan with TensorRT itself"
    )
