"""The quantised network in our own files: int8 weights beside their scales, and the scales of the activations.

A convolution with a buffer `weight_scale` is stored as int8 `weight` in its own shape and float32 `weight_scale`, one
per output; everything else stays float32. What the scales are for is told by `quantized_graph`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import CheckpointError
from ..quantized_graph import INPUT_NAME, LARGEST, SMALLEST, quantized_weight
from .contents import listed
from .settings import shown
from .tensor_file import StoredTensor, brief

if TYPE_CHECKING:
    import torch

    from ..nn import YoloNAS

SCALE = ".weight_scale"  # at the end of a key, in the place of ".weight"


class Step(NamedTuple):
    """A step of the lowered network: what it runs, and on which buffers."""

    name: str
    convolutions: tuple[str, ...]  # names of modules, none for a max pool
    reads: tuple[int, ...]  # the input and, where there is one, the residual
    writes: int


@lru_cache(maxsize=3)
def lowered_steps(variant: str) -> tuple[Step, ...]:
    """The steps of `lower` for networks of this size, whatever their weights and classes."""
    import torch

    from ..lowering import lower
    from ..nn import YoloNAS

    with torch.device("meta"):
        model = YoloNAS(variant, 1, "folded")
    names = {module: name for name, module in model.to_empty(device="cpu").named_modules()}
    steps = []
    for step in lower(model).steps:
        read = [step["input"], step.get("residual")]
        convolutions = tuple(names[module] for module in step.get("modules", ()))
        reads = tuple(view.buffer for view in read if view is not None)
        steps.append(Step(step["name"], convolutions, reads, step["output"].buffer))
    return tuple(steps)


def scale_shapes(
    found: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes of a folded network and of the scales that stand beside its int8 weights, in the network's order.

    Raises:
        CheckpointError: int8 weights without scales, or scales without int8 weights.
    """
    with_scales = {}
    for key, shape in shapes.items():
        with_scales[key] = shape
        layer = key.removesuffix(".bias")
        weight, scale = found.get(f"{layer}.weight"), layer + SCALE
        if key == layer or weight is None:
            continue
        if weight.dtype == "int8":
            if scale not in found:
                raise CheckpointError(f"{layer}.weight has type int8 and must have a {scale}, which is not in the file")
            with_scales[scale] = shape
        elif scale in found:
            raise CheckpointError(f"{scale} must belong to int8 weights, got {layer}.weight of type {weight.dtype}")
    return with_scales


def dequantized(key: str, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Float32 weights, each rounded once.

    Raises:
        CheckpointError: weights of -128, or scales that are not positive or too large.
    """
    import torch

    if weight.min() < -127:
        raise CheckpointError(f"{key} must have values in -127..127, got -128")
    wrong = scale[~_are_usable(scale)]
    if len(wrong):
        raise CheckpointError(
            f"{key.removesuffix('.weight')}{SCALE} must be positive, and finite times 127, got {wrong[0].item():g}"
        )
    return torch.from_numpy(weight.numpy() * scale.numpy().reshape(along_outputs(key)))


def quantized_tensors(model: YoloNAS) -> dict[str, torch.Tensor]:
    """The tensors of a quantised network for a file.

    Raises:
        ValueError: another form or another type than float32, or scales that do not fit.
    """
    import torch

    if model.form != "folded":
        raise ValueError(f"save: a quantised network must be in folded form, got {model.form!r}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    other = next((key for key, value in tensors.items() if value.dtype != torch.float32), None)
    if other is not None:
        raise ValueError(
            f"save: a quantised network must be float32, got {tensors[other].dtype} in {other}; load or quantise it "
            "again, its scales have been rounded"
        )
    for key in [key for key in tensors if key.endswith(SCALE)]:
        weight, scale = key.removesuffix(SCALE) + ".weight", tensors[key]
        along = along_outputs(weight)
        axis = along.index(-1)
        if scale.shape != tensors[weight].shape[axis : axis + 1] or not _are_usable(scale).all():
            raise ValueError(f"save: {key} must have a positive number of usual size for each output, got others")
        tensors[weight] = torch.from_numpy(quantized_weight(tensors[weight].numpy(), scale.numpy(), axis=axis))
    return tensors


def checked_activation_scales(variant: str, quantized: Iterable[str], scales: Any) -> dict[str, float]:
    """The scales of a network's activations, as float32 numbers.

    Args:
        quantized: the names of the convolutions with a `weight_scale`.
        scales: a dict by the names of steps, "input" being one. Everything that an integer step reads needs one.

    Raises:
        ValueError: no such dict, unknown names, missing ones, or steps that write the same buffer with
            different scales.
    """
    if not isinstance(scales, dict):
        raise ValueError(f"activation_scales must be an object, got {shown(scales)}")
    for name, scale in scales.items():
        if type(scale) not in (int, float) or not SMALLEST <= scale <= LARGEST:
            raise ValueError(
                f"activation_scales must be positive float32 numbers, got {shown(scale)} for {brief(name)!r}"
            )
    scales = {name: float(np.float32(scale)) for name, scale in scales.items()}
    steps, quantized = lowered_steps(variant), set(quantized)
    if not quantized:
        raise ValueError("activation_scales must belong to a network with int8 weights, got one without")
    unknown = scales.keys() - {INPUT_NAME, *(step.name for step in steps)}
    if unknown:
        raise ValueError(f"activation_scales must be named like steps of the network, got {listed(sorted(unknown))}")
    first: dict[int, str] = {}
    for name, buffer in ((INPUT_NAME, 0), *((step.name, step.writes) for step in steps)):
        if name in scales and scales[name] != scales[first.setdefault(buffer, name)]:
            raise ValueError(
                f"activation_scales of {name!r} and {first[buffer]!r} must be the same, as both write the same buffer, "
                f"got {scales[name]!r} and {scales[first[buffer]]!r}"
            )
    missing = [name for name in written(steps, read_by_integers(steps, quantized)) if name not in scales]
    if missing:
        raise ValueError(f"activation_scales must have all that the int8 layers need, missing are {listed(missing)}")
    return scales


def read_by_integers(steps: Iterable[Step], quantized: set[str]) -> set[int]:
    """The buffers that steps read of which all convolutions are quantised."""
    return {
        buffer
        for step in steps
        if step.convolutions and quantized.issuperset(step.convolutions)
        for buffer in step.reads
    }


def written(steps: Iterable[Step], buffers: set[int]) -> dict[str, int]:
    """Who writes these buffers, by name, the input included."""
    writers = {INPUT_NAME: 0} | {step.name: step.writes for step in steps}
    return {name: buffer for name, buffer in writers.items() if buffer in buffers}


def along_outputs(key: str) -> tuple[int, ...]:
    """The shape, with -1, in which scales stand beside weights of this key: transposed ones have their inputs first."""
    return (1, -1, 1, 1) if key.endswith(".upsample.weight") else (-1, 1, 1, 1)


def _are_usable(weight_scales: torch.Tensor) -> torch.Tensor:
    return (weight_scales >= SMALLEST) & (weight_scales <= LARGEST / 127)
