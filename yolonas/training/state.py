"""The file that a training goes on from: everything that the next step depends on, so that it gives the same weights.

A safetensors file with JSON in its metadata; nothing in it is executed. What is read is checked against its checksum
and against the network and the optimizer that it is for, before any of these is changed.
"""

from __future__ import annotations

import json
import math
import os
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..checkpoint.safetensors_file import looks_like_safetensors, parse_json, read_safetensors
from ..checkpoint.settings import shown
from ..checkpoint.tensor_file import TensorFile, brief, is_size, load_tensor
from ..errors import CheckpointError
from ..runs import whole_file
from .optimizer import trained_parameters
from .step import Learner

FORMAT_VERSION = 1
METADATA_KEY = "yolonas_training"
CHECKSUM_KEY = "crc32"

DTYPES = (torch.float32, torch.float64, torch.int64, torch.uint8)
_DTYPE_NAMES = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
# What an optimizer keeps per parameter, by the name of its class.
SLOTS = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "SGD": ("momentum_buffer",)}
SCALER_FIELDS = {
    "scale": float,
    "growth_factor": float,
    "backoff_factor": float,
    "growth_interval": int,
    "_growth_tracker": int,
}

_ENTRIES = {
    **{"step": int, "epoch": int, "best_score": (int, float, type(None))},
    **{"network": dict, "optimizer": str, "scaler": dict, "generators": dict, "settings": dict},
}


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    step: int  # steps made
    epoch: int  # epochs finished
    best_score: float | None = None  # of the epochs so far; None: none was measured

    def __post_init__(self) -> None:
        for name in ("step", "epoch"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"Progress: {name} must be a whole number of at least 0, got {value!r}")
        score = self.best_score
        if score is not None and not (type(score) in (int, float) and math.isfinite(score)):
            raise ValueError(f"Progress: best_score must be a finite number or None, got {score!r}")


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A file that `save_state` wrote, read and checked. `restore_` puts it to use."""

    path: Path
    progress: Progress
    settings: dict[str, Any]  # what the caller gave to `save_state`; tuples have become lists
    network: dict[str, Any]  # variant, form and num_classes
    optimizer: str  # the name of its class
    scaler: dict[str, Any]  # empty unless the precision was fp16
    generators: dict[str, Any]  # states of the global generators of Python and NumPy; torch's are in `tensors`
    tensors: dict[str, Tensor]  # on the CPU: "model.*", "ema.*", "optimizer.<slot>.*", "generator.torch", ".cuda"


def save_state(
    path: str | os.PathLike[str], learner: Learner, progress: Progress, settings: Mapping[str, Any] | None = None
) -> Path:
    """Writes weights, average, optimizer, scale of the loss, progress and all global random generators as one file.

    A reader sees the old file or the new one, after a loss of power too.

    Args:
        settings: anything that JSON can hold, to be given back by `read_state`.

    Raises:
        ValueError: numbers that are not finite, weights of half precision, or an optimizer of an unknown class.
        TypeError: settings that JSON cannot hold.
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    kind = type(learner.optimizer).__name__
    if kind not in SLOTS:
        raise ValueError(f"save_state: optimizer must be one of {', '.join(SLOTS)}, got {kind}")
    tensors = {name: value.detach().cpu().contiguous() for name, value in _tensors(learner).items()}
    wrong = _unusable(tensors)
    if wrong is not None:
        raise ValueError(f"save_state: learner must have finite numbers of {_DTYPE_NAMES}, got others in {wrong}")
    text = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "yolonas_version": __version__,
            "step": progress.step,
            "epoch": progress.epoch,
            "best_score": progress.best_score,
            "network": _network(learner),
            "optimizer": kind,
            "scaler": learner.scaler.state_dict(),
            "generators": _generators(),
            "settings": dict(settings or {}),
        },
        allow_nan=False,
    )
    data = save(tensors, {METADATA_KEY: text, CHECKSUM_KEY: str(_checksum(text, tensors))})
    path = Path(path)
    with whole_file(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def read_state(path: str | os.PathLike[str]) -> TrainingState:
    """Reads a file of `save_state`.

    Raises:
        CheckpointError: no such file, another kind of file, a damaged one, or one of a newer version.
    """
    path = Path(path)
    try:
        with TensorFile(path) as file:
            return _read(file, path)
    except CheckpointError as error:
        raise CheckpointError(f"training state {path}: {error}") from None


def restore_(state: TrainingState, learner: Learner) -> None:
    """Sets a learner and all global random generators to what they were, in place.

    The learner is made as it was: for a network of the same size, form and classes, with the same class of optimizer,
    and with an average if it had one. Learning rate, weight decay and such are those of its own optimizer. Where the
    precision differs, or the device, the training goes on all the same but not to the same bits.

    Raises:
        CheckpointError: the state belongs to another network or optimizer; nothing was changed.
    """
    try:
        _check_fits(state, learner)
        slots = _optimizer_slots(state, learner)
    except CheckpointError as error:
        raise CheckpointError(f"training state {state.path}: {error}") from None
    learner.model.load_state_dict(_part(state.tensors, "model."))
    if learner.ema is not None:
        learner.ema.model.load_state_dict(_part(state.tensors, "ema."))
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    if learner.scaler.is_enabled() and state.scaler:
        learner.scaler.load_state_dict(state.scaler)
    random.setstate(_python_state(state.generators))
    np.random.set_state(_numpy_state(state.generators))  # noqa: NPY002 - the state of exactly this one is meant
    torch.set_rng_state(state.tensors["generator.torch"])
    if learner.device.type == "cuda" and "generator.cuda" in state.tensors:
        torch.cuda.set_rng_state(state.tensors["generator.cuda"], learner.device)


def _tensors(learner: Learner) -> dict[str, Tensor]:
    """All tensors of a state by their names in the file; nothing is copied but the states of generators."""
    tensors = {f"model.{key}": value for key, value in learner.model.state_dict().items()}
    if learner.ema is not None:
        tensors |= {f"ema.{key}": value for key, value in learner.ema.model.state_dict().items()}
    for name, parameter in learner.model.named_parameters():
        for slot, value in learner.optimizer.state.get(parameter, {}).items():
            if value is not None:  # as it is for SGD without momentum
                tensors[f"optimizer.{slot}.{name}"] = value
    tensors["generator.torch"] = torch.get_rng_state()
    if learner.device.type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(learner.device)
    return tensors


def _network(learner: Learner) -> dict[str, Any]:
    model = learner.model
    return {"variant": model.variant.name, "form": model.form, "num_classes": model.num_classes}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _unusable(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor of another type than `DTYPES`, or with NaN or infinity."""
    return next((k for k, value in tensors.items() if value.dtype not in DTYPES or not value.isfinite().all()), None)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the metadata and of all tensors with their names, whatever their order in the file."""
    value = zlib.crc32(text.encode("utf-8", "replace"))
    for name in sorted(tensors):
        value = zlib.crc32(name.encode("utf-8", "replace"), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), value)
    return value


def _generators() -> dict[str, Any]:
    _, words, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - as in restore_
    version, numbers, python_gauss = random.getstate()
    return {
        "python": [version, list(numbers), python_gauss],
        "numpy": [words.tolist(), position, has_gauss, gauss],
    }


def _python_state(generators: Mapping[str, Any]) -> tuple[Any, ...]:
    version, numbers, gauss = generators["python"]
    return version, tuple(numbers), gauss


def _numpy_state(generators: Mapping[str, Any]) -> tuple[Any, ...]:
    words, position, has_gauss, gauss = generators["numpy"]
    return "MT19937", np.array(words, np.uint32), position, has_gauss, gauss


def _read(file: TensorFile, path: Path) -> TrainingState:
    if not looks_like_safetensors(file.read(0, min(9, file.size))):
        raise CheckpointError("is no safetensors file, or its beginning is damaged")
    stored, metadata = read_safetensors(file)
    if METADATA_KEY not in metadata:
        raise CheckpointError("has weights but no state of a training; to start from these weights, name them as model")
    text = metadata[METADATA_KEY]
    table = parse_json(text.encode("utf-8", "replace"), "state")
    version = table.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise CheckpointError(f"has format_version {version}, at most {FORMAT_VERSION} is known; please update yolonas")
    tensors = {name: load_tensor(file, tensor) for name, tensor in stored.items()}
    if metadata.get(CHECKSUM_KEY) != str(_checksum(text, tensors)):
        raise CheckpointError("is damaged: its checksum does not match what is in it")
    wrong = _unusable(tensors)
    if wrong is not None:
        raise CheckpointError(f"must have finite numbers of {_DTYPE_NAMES}, got others in {brief(wrong)}")
    wrong_kind = any(not isinstance(table.get(key), kind) for key, kind in _ENTRIES.items())
    if version != FORMAT_VERSION or wrong_kind or table["optimizer"] not in SLOTS:
        raise CheckpointError("is damaged: entries of its state are missing or of another kind")
    try:
        progress = Progress(table["step"], table["epoch"], table.get("best_score"))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    state = TrainingState(
        path=path,
        progress=progress,
        settings=table["settings"],
        network=table["network"],
        optimizer=table["optimizer"],
        scaler=table["scaler"],
        generators=table["generators"],
        tensors=tensors,
    )
    _check_scaler(state.scaler)
    _check_generators(state)
    return state


def _check_scaler(scaler: Mapping[str, Any]) -> None:
    usable = all(type(scaler.get(key)) is kind and 0 <= scaler[key] < math.inf for key, kind in SCALER_FIELDS.items())
    if scaler and (scaler.keys() != SCALER_FIELDS.keys() or not usable or scaler["scale"] == 0):
        raise CheckpointError("has an unusable scale of the loss")


def _check_generators(state: TrainingState) -> None:
    """Tries the states on generators that nobody uses."""
    try:
        random.Random().setstate(_python_state(state.generators))
        words, position = state.generators["numpy"][:2]
        if len(words) != 624 or not all(is_size(word) for word in words) or not is_size(position) or position > 624:
            raise ValueError("NumPy itself would not look")
        np.random.RandomState().set_state(_numpy_state(state.generators))
        torch.Generator().set_state(state.tensors["generator.torch"])
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError):
        raise CheckpointError("has unusable states of random generators") from None


def _check_fits(state: TrainingState, learner: Learner) -> None:
    for key, value in _network(learner).items():
        if state.network.get(key) != value:
            raise CheckpointError(f"is for a network with {key} {shown(state.network.get(key))}, got {value!r}")
    kind = type(learner.optimizer).__name__
    if state.optimizer != kind:
        raise CheckpointError(f"is for the optimizer {state.optimizer}, got {kind}")
    own = _tensors(learner)
    different = sorted(name for name in own.keys() ^ state.tensors.keys() if name.startswith(("model.", "ema.")))
    if different:
        raise CheckpointError(f"must have the tensors of the network and its average, differs in {brief(different)}")
    for name, value in own.items():
        if name.startswith(("model.", "ema.")) or (name == "generator.cuda" and name in state.tensors):
            _check_like(name, state.tensors[name], value.shape, value.dtype)


def _check_like(name: str, tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise CheckpointError(
            f"{brief(name)} must be of {dtype} and shape {tuple(shape)}, got {tensor.dtype} and {tuple(tensor.shape)}"
        )


def _optimizer_slots(state: TrainingState, learner: Learner) -> dict[int, dict[str, Tensor]]:
    """What the optimizer keeps, by the number that it gives each parameter: copies, as it may take them over."""
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    found = _part(state.tensors, "optimizer.")
    slots: dict[int, dict[str, Tensor]] = {}
    for number, parameter in enumerate(trained_parameters(learner.optimizer)):
        own = {slot: found.pop(f"{slot}.{names[parameter]}", None) for slot in SLOTS[state.optimizer]}
        if all(value is None for value in own.values()):
            continue  # it has had no gradient so far
        for slot, value in own.items():
            name = f"optimizer.{slot}.{names[parameter]}"
            if value is None:
                raise CheckpointError(f"must have {name}, as it has others of this parameter")
            _check_like(name, value, torch.Size() if slot == "step" else parameter.shape, parameter.dtype)
        # In the memory order of the parameter: fused optimizers go through both as they lie there.
        slots[number] = {
            slot: value.clone() if slot == "step" else torch.empty_like(parameter).copy_(value)  # type: ignore
            for slot, value in own.items()
        }
    if found:
        raise CheckpointError(f"has what no parameter of the optimizer needs: {brief(sorted(found))}")
    return slots
