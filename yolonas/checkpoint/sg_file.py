"""Writes the checkpoint files of super-gradients: a dict of plain values and tensors, see `save_super_gradients`.

They are read like those of any other origin, by `read_checkpoint`.
"""

from __future__ import annotations

import io
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import FORMS, DetectSettings
from ..errors import CheckpointError
from ..preprocess import Preprocess
from ..runs import write_file
from .contents import Contents, listed
from .processing import read_processing
from .quantized import SCALE
from .settings import THRESHOLDS, read_thresholds

if TYPE_CHECKING:
    from ..nn import YoloNAS

SUFFIXES = (".pth", ".pt")

_FORMS = tuple(form for form in FORMS if form != "folded")  # those that super-gradients has as well

# Fields of DetectSettings by their names in the file, where the older 3.x know only the first two.
_NAMES = {
    **{"conf": "conf", "iou": "iou", "top_k": "nms_top_k", "max_det": "max_predictions"},
    **{"multi_label": "multi_label_per_box", "agnostic": "class_agnostic_nms"},
}
_ALWAYS = ("conf", "iou")


def save_super_gradients(
    path: str | os.PathLike[str],
    model: YoloNAS,
    *,
    names: Mapping[int, str],
    preprocess: Preprocess,
    settings: DetectSettings,
    epoch: int | None = None,
    accuracy: float | None = None,
) -> Path:
    """Writes a `.pth` or `.pt` file that super-gradients 3.x loads, atomically, and returns its path.

    It has the entries `net` (the weights in their own dtype), `processing_params`, and `epoch` and `acc` where they are
    given. super-gradients loads the training form as it is, and others only into a network that it fused as far. Its
    older 3.x ignore `processing_params` with settings beyond conf and iou, so the usual values of these are left out.

    Args:
        epoch: finished ones, from 0.
        accuracy: of the epoch, in any unit.

    Raises:
        ValueError: another suffix; a quantised, compiled, exported, wrapped or folded network; names that do not match
            the classes; weights that are not finite; thresholds or an epoch out of range; or a `preprocess` that
            super-gradients has no steps for.
        OSError: no such folder, or the file cannot be written.
    """
    import torch

    _check_network(model)
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: path must be in an existing folder, there is no folder {path.parent}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"save: path must end in {' or '.join(SUFFIXES)}, got {path.name!r}")
    if names.keys() != set(range(model.num_classes)):
        raise ValueError(f"save: names must have the keys 0..{model.num_classes - 1}, got {listed(names)}")
    entries: dict[str, Any] = {}
    if epoch is not None:
        entries["epoch"] = operator.index(epoch)
        if epoch < 0:
            raise ValueError(f"save: epoch must be at least 0, got {epoch}")
    if accuracy is not None:
        entries["acc"] = float(accuracy)
        if not math.isfinite(accuracy):
            raise ValueError(f"save: accuracy must be finite, got {accuracy}")
    entries["processing_params"] = {
        "class_names": [str(names[i]) for i in range(model.num_classes)],
        **_thresholds(settings, model.num_classes),
        "image_processor": _image_processor(preprocess),
    }
    entries = {"net": _weights(model), **entries}
    data = io.BytesIO()  # not the file: of one that cannot be written torch says neither why nor that it is an OSError
    torch.save(entries, data)
    write_file(path, data.getbuffer())
    return path


def _check_network(model: Any) -> None:
    from ..nn import YoloNAS

    form = getattr(model, "form", None)
    if form in ("compiled", "exported"):
        raise ValueError(f"save: model must be a network with weights, got a file that was {form}; load what it is of")
    if not isinstance(model, YoloNAS):
        raise ValueError(f"save: model must be a YoloNAS, got {type(model).__name__}; give the network itself")
    if model.activation_scales:
        raise ValueError(
            "save: model must not be quantised, super-gradients cannot load that; "
            "save the checkpoint that it was made of, or this one as .safetensors"
        )
    if form not in _FORMS:
        raise ValueError(
            f"save: model must be in one of the forms {', '.join(_FORMS)}, super-gradients has no {form} one; "
            "load the checkpoint again and save it before it is fused"
        )


def _weights(model: YoloNAS) -> dict[str, Any]:
    """Copies on the CPU, in the network's order: a part of a larger storage would be written with all of it."""
    import torch

    tensors = {}
    for key, value in model.state_dict().items():
        if key.endswith(SCALE):
            continue
        tensor = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        unused = model.form == "training" and ".rbr_reparam." in key
        if not tensor.isfinite().all():
            if not unused:
                raise ValueError(f"save: model must have finite weights, got NaN or infinity in {key}")
            tensor.zero_()
        tensors[key] = tensor
    return tensors


def _thresholds(settings: DetectSettings, num_classes: int) -> dict[str, Any]:
    values = {key: getattr(settings, key) for key in THRESHOLDS}
    notes: list[str] = []
    checked = read_thresholds(Contents("", {}, **values), num_classes, notes)
    if notes:
        raise ValueError(f"save: thresholds must make sense, got {values}")
    usual = DetectSettings()
    return {
        name: getattr(checked, key)
        for key, name in _NAMES.items()
        if key in _ALWAYS or getattr(checked, key) != getattr(usual, key)
    }


def _image_processor(preprocess: Preprocess) -> dict[str, Any]:
    """The steps from an RGB picture to the input, as `read_processing` takes them."""
    steps: list[str | dict[str, Any]] = []
    if preprocess.channels == "bgr":
        steps.append("ReverseImageChannels")
    if preprocess.fit is not None:
        name = "DetectionLongestMaxSizeRescale" if preprocess.keep_ratio else "DetectionRescale"
        steps.append({name: {"output_shape": _whole(preprocess.fit)}})
    name = "DetectionCenterPadding" if preprocess.padding == "center" else "DetectionBottomRightPadding"
    steps.append({name: {"output_shape": _whole(preprocess.size), "pad_value": int(preprocess.pad_value)}})
    if not any(preprocess.mean) and len(set(preprocess.divisor)) == 1:
        steps.append({"StandardizeImage": {"max_value": float(preprocess.divisor[0])}})
    else:
        mean, std = (list(map(float, values)) for values in (preprocess.mean, preprocess.divisor))
        steps.append({"NormalizeImage": {"mean": mean, "std": std}})
    steps.append({"ImagePermute": {"permutation": (2, 0, 1)}})
    processor = {"ComposeProcessing": {"processings": steps}}
    try:
        found, _ = read_processing(processor)
    except CheckpointError as error:
        raise ValueError(f"save: {error}") from None
    for field in fields(Preprocess):
        wanted, possible = getattr(preprocess, field.name), getattr(found, field.name)
        if wanted != possible:
            raise ValueError(
                f"save: preprocess must have {field.name}={possible!r}, super-gradients has nothing else, got "
                f"{wanted!r}; use dataclasses.replace(preprocess, {field.name}={possible!r}), or save as .safetensors"
            )
    return processor


def _whole(size: tuple[int, int]) -> tuple[int, int]:
    return int(size[0]), int(size[1])
