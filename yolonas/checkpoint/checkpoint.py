"""Reads the weights files of YOLO-NAS in every form they come in, checks them, and writes our own.

Size, form, class count, class names, pre-processing and thresholds are read from the file; nothing in it is executed.
Everything is untrusted until checked: a file that cannot be used ends in a `CheckpointError` that names the file and
the key. Finding a file by a model's name is in `weights`; the formats are in `torch_zip` and `safetensors_file`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import DetectSettings, variant_by_head_width
from ..errors import CheckpointError
from ..preprocess import Preprocess
from ..runs import whole_file
from .contents import Contents, find_contents, listed, network_tensors
from .processing import preprocess_from_metadata, read_processing
from .quantized import SCALE, checked_activation_scales, dequantized, quantized_tensors, scale_shapes
from .quantizers import RANGE, TRAINED_FORM, check_ranges, quantize_as_trained_, ranges_note
from .safetensors_file import looks_like_safetensors, read_safetensors
from .settings import (
    METADATA_KEY,
    THRESHOLDS,
    own_settings,
    read_names,
    read_own_settings,
    read_thresholds,
    shown,
)
from .tensor_file import StoredTensor, TensorFile, brief, load_tensor
from .torch_zip import MAGIC, read_torch_zip

if TYPE_CHECKING:
    import torch

    from ..nn import YoloNAS

SUFFIX = ".safetensors"  # of the files that we write

_FLOATS = ("float32", "float16", "bfloat16", "float64")
_WIDTH_KEY = "heads.head1.stem.seq.conv.weight"
_CLASSES_KEY = "heads.head1.cls_pred.weight"
_COUNTER = "num_batches_tracked"  # used by no computation here; absent or reshaped in some files
_UNUSED = ("id_tensor", "proj_conv", "anchor_points", "stride_tensor")  # constants that the network makes itself


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A weights file, read and checked."""

    path: Path
    kind: str  # who wrote it, in words
    # In the network's order; float32 on the CPU, counters int64. Int8 weights of our own files are dequantised.
    state_dict: dict[str, torch.Tensor] = field(repr=False)
    variant: str  # "s", "m" or "l"
    num_classes: int
    form: str  # one of config.FORMS
    names: dict[int, str]  # one per class
    preprocess: Preprocess
    settings: DetectSettings  # its thresholds
    activation_scales: dict[str, float] = field(repr=False)  # of a network that we quantised, else empty
    quantizer_scales: dict[str, torch.Tensor] = field(repr=False)  # `_amax` ranges of quantisation-aware training
    notes: tuple[str, ...]  # what was assumed or ignored, one sentence each


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint of super-gradients, ultralytics, modern-yolonas, Lightning or this library.

    Only the network's own tensors are loaded, the averaged (EMA) ones where there are two sets.

    Raises:
        CheckpointError: not a checkpoint, damaged, malicious, of another network, or with weights that are not finite.
    """
    path = Path(path)
    try:
        with TensorFile(path) as file:
            return _read(file, path)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None


def load_model(checkpoint: Checkpoint) -> YoloNAS:
    """The network with the checkpoint's weights, in eval mode on the CPU, in the checkpoint's form.

    The network takes the tensors over without copying them: fusing or training it changes `checkpoint.state_dict`.
    After quantisation-aware training it is a copy instead, folded and quantised with the ranges in the file.
    """
    import torch

    from ..nn import YoloNAS

    state_dict = checkpoint.state_dict
    trained = checkpoint.form == TRAINED_FORM and bool(checkpoint.quantizer_scales)
    if trained:
        state_dict = {key: value.clone() for key, value in state_dict.items()}
    with torch.device("meta"):
        model = YoloNAS(checkpoint.variant, checkpoint.num_classes, checkpoint.form)
    for key in state_dict:
        if key.endswith(SCALE):
            model.get_submodule(key.removesuffix(SCALE)).register_buffer("weight_scale", state_dict[key])
    try:
        model.load_state_dict(state_dict, strict=True, assign=True)
    except RuntimeError as error:  # only for a Checkpoint that was not made by read_checkpoint
        raise CheckpointError(f"checkpoint {checkpoint.path}: {error}") from None
    model.activation_scales = dict(checkpoint.activation_scales)
    model.eval()
    return quantize_as_trained_(model, checkpoint.quantizer_scales) if trained else model


def save_checkpoint(
    path: str | os.PathLike[str],
    model: YoloNAS,
    *,
    names: Mapping[int, str],
    preprocess: Preprocess,
    settings: DetectSettings,
    quantizer_scales: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes weights, form and settings as one `.safetensors` file, atomically, and returns its path.

    A network with `activation_scales` is written with int8 weights, see `quantized`; of any other, scales of weights
    are left out.

    Raises:
        ValueError: another suffix, names that do not match the classes, weights that are not finite, or a quantised
            network whose scales do not fit it.
        OSError: no such folder, or the file cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: path must be in an existing folder, there is no folder {path.parent}")
    if path.suffix != SUFFIX:
        raise ValueError(f"save: path must end in {SUFFIX}, got {path.name!r}")
    if sorted(names) != list(range(model.num_classes)):
        raise ValueError(f"save: names must have the keys 0..{model.num_classes - 1}, got {listed(names)}")
    state_dict = model.state_dict()
    for key, value in state_dict.items():
        if not _is_unused(key, model.form) and not _is_finite(value.detach().cpu()):
            raise ValueError(f"save: model must have finite weights, got NaN or infinity in {key}")
    network: dict[str, Any] = {"variant": model.variant.name, "form": model.form, "num_classes": model.num_classes}
    if model.activation_scales:
        tensors = quantized_tensors(model)
        quantized = [key.removesuffix(SCALE) for key in tensors if key.endswith(SCALE)]
        scales = {name: float(scale) for name, scale in model.activation_scales.items()}
        try:
            network["activation_scales"] = checked_activation_scales(model.variant.name, quantized, scales)
        except ValueError as error:
            raise ValueError(f"save: {error}") from None
    else:
        kept = {key: value for key, value in state_dict.items() if not key.endswith(SCALE)}
        tensors = {key: value.detach().cpu().contiguous() for key, value in kept.items()}
    tensors.update({key: value.detach().cpu().contiguous() for key, value in (quantizer_scales or {}).items()})
    metadata = own_settings(
        network,
        names=[str(names[i]) for i in range(model.num_classes)],
        preprocess=preprocess.to_dict(),
        thresholds={key: getattr(settings, key) for key in THRESHOLDS},
    )
    # Not `save_file`: its errors are no OSError, and nobody but the owner may read its files.
    data = memoryview(save(tensors, {"format": "pt", METADATA_KEY: metadata}))
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:size]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # by chance otherwise: one network, one file
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(data[size:])
    return path


def _read(file: TensorFile, path: Path) -> Checkpoint:
    head = file.read(0, min(64, file.size))
    ours: dict[str, Any] = {}
    if head.startswith(MAGIC):
        contents = find_contents(read_torch_zip(file))
    elif looks_like_safetensors(head):
        tensors, metadata = read_safetensors(file)
        contents = Contents("safetensors", dict(tensors))
        if METADATA_KEY in metadata:
            ours = read_own_settings(metadata[METADATA_KEY], contents)
    else:
        raise CheckpointError(_what_else(head, file.size))
    found = network_tensors(contents)
    ranges = {key: found.pop(key) for key in list(found) if key.endswith(RANGE)}
    found = {key: value for key, value in found.items() if "_quantizer." not in key and not key.endswith(_UNUSED)}
    variant, num_classes, form = _identify(found)
    for key, value in (("variant", variant), ("num_classes", num_classes), ("form", form)):
        if ours.get(key, value) != value:
            raise CheckpointError(f"metadata: {key} must be that of the tensors, {value!r}, got {shown(ours[key])}")
    notes = contents.notes
    shapes = _shapes(variant, num_classes, form)
    activation_scales = {}
    if "activation_scales" in ours:
        if form != "folded":
            raise CheckpointError(f"metadata: a network with activation_scales must be in folded form, got {form}")
        shapes = scale_shapes(found, shapes)
        quantized = [key.removesuffix(SCALE) for key in shapes if key.endswith(SCALE)]
        try:
            activation_scales = checked_activation_scales(variant, quantized, ours["activation_scales"])
        except ValueError as error:
            raise CheckpointError(f"metadata: {error}") from None
        contents.kind = "yolonas, INT8"
    if ranges:
        if form == TRAINED_FORM:
            check_ranges(ranges, shapes)
        notes.append(ranges_note(variant, form, ranges))
    state_dict = _load(file, found, variant, form, shapes, notes)
    if ours:
        preprocess: Preprocess | None = preprocess_from_metadata(ours.get("preprocess", {}))
    else:
        preprocess, left_out = read_processing(contents.processing)
        notes.extend(left_out)
    if preprocess is None:
        preprocess = Preprocess()
        notes.append("The file has no pre-processing; that of the COCO weights is assumed (RGB, 636 in 640, centred).")
    names = read_names(contents.names, num_classes, notes)
    settings = read_thresholds(contents, num_classes, notes)
    return Checkpoint(
        path=path,
        kind=contents.kind,
        state_dict=state_dict,
        variant=variant,
        num_classes=num_classes,
        form=form,
        names=names,
        preprocess=preprocess,
        settings=settings,
        activation_scales=activation_scales,
        quantizer_scales=_load_ranges(file, ranges),
        notes=tuple(notes),
    )


def _what_else(head: bytes, size: int) -> str:
    start = head.lstrip()[:20].lower()
    if not size:
        return "is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the weights; fetch them with 'git lfs pull'"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")):
        return "is compressed; unpack it first"
    if head[:1] == b"\x80" and b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in head:
        return "is in torch's format from before version 1.6; load it with torch and save it again"
    return "is neither a zip file of torch.save nor a safetensors file, or its beginning is damaged"


def _identify(found: dict[str, StoredTensor]) -> tuple[str, int, str]:
    """Size, number of classes and form, from the shapes and keys."""
    for key in (_WIDTH_KEY, _CLASSES_KEY):
        if key not in found:
            raise CheckpointError(f"has no {key}, which tells the size of a network; its keys are {listed(found)}")
        if len(found[key].shape) != 4 or found[key].overlaps_itself:
            raise CheckpointError(f"{key} must be a weight of four dimensions, got shape {brief(found[key].shape)}")
    num_classes = found[_CLASSES_KEY].shape[0]
    if num_classes < 1:
        raise CheckpointError(f"{_CLASSES_KEY} must have at least one class, got {brief(found[_CLASSES_KEY].shape)}")
    try:
        variant = variant_by_head_width(found[_WIDTH_KEY].shape[0])
    except ValueError:
        raise CheckpointError(
            f"{_WIDTH_KEY} must have 64 (S), 96 (M) or 128 (L) outputs, got shape {brief(found[_WIDTH_KEY].shape)}"
        ) from None
    from ..nn import state_dict_form

    return variant.name, num_classes, state_dict_form(found)


@lru_cache(maxsize=16)
def _shapes(variant: str, num_classes: int, form: str) -> dict[str, tuple[int, ...]]:
    """Keys of the network in its own order, and their shapes."""
    import torch

    from ..nn import YoloNAS

    with torch.device("meta"):
        model = YoloNAS(variant, num_classes, form)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _load(
    file: TensorFile,
    found: dict[str, StoredTensor],
    variant: str,
    form: str,
    shapes: dict[str, tuple[int, ...]],
    notes: list[str],
) -> dict[str, torch.Tensor]:
    """The network's tensors, checked and converted. Every shape is checked before anything is read.

    Weights beside which `shapes` has a scale are int8 in the file, see `scale_shapes`.
    """
    import torch

    absent = [key for key in shapes if key not in found]
    missing = [key for key in absent if not key.endswith(_COUNTER) and not _is_unused(key, form)]
    extra = [key for key in found if key not in shapes]
    if missing or extra:
        parts = [f"{len(missing)} keys are missing: {listed(missing)}"] if missing else []
        parts += [f"{len(extra)} keys do not belong to it: {listed(extra)}"] if extra else []
        raise CheckpointError(f"looks like YOLO-NAS {variant.upper()} in {form} form, but {'; '.join(parts)}")
    quantized = {key.removesuffix(SCALE) + ".weight" for key in shapes if key.endswith(SCALE)}
    for key, stored in found.items():
        counter = key.endswith(_COUNTER)
        if stored.shape != shapes[key] and not (counter and stored.numel == 1):
            raise CheckpointError(f"{key} must have shape {shapes[key]}, got {brief(stored.shape)}")
        if key.endswith(SCALE) and stored.dtype != "float32":
            raise CheckpointError(f"{key} must be of type float32, got {stored.dtype}")
        integer = (counter and "int" in stored.dtype) or (key in quantized and stored.dtype == "int8")
        if stored.dtype not in _FLOATS and not integer:
            raise CheckpointError(f"{key} must be of type {', '.join(_FLOATS)}, got {stored.dtype}")
    state_dict: dict[str, torch.Tensor] = {}
    reset = 0
    for key, shape in shapes.items():
        dtype = torch.int64 if key.endswith(_COUNTER) else torch.float32
        if key not in found:
            state_dict[key] = torch.zeros(shape, dtype=dtype)
            continue
        tensor = _load_one(file, key, found[key])
        if key.endswith(_COUNTER):
            state_dict[key] = tensor.nan_to_num(0.0, 0.0, 0.0).to(dtype).reshape(shape)
            continue
        if key in quantized:
            state_dict[key] = tensor
            continue
        tensor = _float32(tensor)
        if not _is_finite(tensor):
            if not _is_unused(key, form):
                raise CheckpointError(f"{key} must have finite float32 values, got NaN or infinity")
            tensor = torch.zeros(shape)
            reset += 1
        if key.endswith("running_var") and tensor.min() < 0:
            raise CheckpointError(f"{key} must not be negative, got {tensor.min().item():g}")
        state_dict[key] = tensor
    for key in quantized:
        state_dict[key] = dequantized(key, state_dict[key], state_dict[key.removesuffix(".weight") + SCALE])
    if absent:
        notes.append(f"{len(absent)} tensors that nothing computes with are not in the file and were set to 0.")
    if reset:
        notes.append(f"{reset} tensors that nothing computes with held NaN or infinity and were set to 0.")
    return state_dict


def _load_ranges(file: TensorFile, ranges: dict[str, StoredTensor]) -> dict[str, torch.Tensor]:
    loaded = {}
    for key, stored in ranges.items():
        if stored.dtype not in _FLOATS:
            raise CheckpointError(f"{key} must be of type {', '.join(_FLOATS)}, got {stored.dtype}")
        tensor = _float32(_load_one(file, key, stored))
        if not _is_finite(tensor) or (tensor.numel() and tensor.min() < 0):
            raise CheckpointError(f"{key} must have finite values from 0, got others")
        loaded[key] = tensor
    return loaded


def _load_one(file: TensorFile, key: str, stored: StoredTensor) -> torch.Tensor:
    try:
        return load_tensor(file, stored)
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from None


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    import numpy as np
    import torch

    if tensor.dtype in (torch.float16, torch.float64):
        # NumPy converts on this thread; torch's threads wait for each other, for seconds where others use the cores.
        with np.errstate(all="ignore"):
            tensor = torch.from_numpy(tensor.numpy().astype(np.float32))
    return tensor.to(torch.float32).contiguous()


def _is_unused(key: str, form: str) -> bool:
    # In training form the fused convolution is there but holds whatever it was initialised with.
    return form == "training" and ".rbr_reparam." in key


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    # Minimum and maximum are NaN if any element is: a sixth of the time of isfinite().all(), and on one thread.
    values = tensor.float().numpy()
    return math.isfinite(values.min()) and math.isfinite(values.max())
