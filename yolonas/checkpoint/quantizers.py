"""Makes a quantised network of what quantisation-aware training in super-gradients leaves in a checkpoint.

Ranges stand beside the weights of a network in partial form: `<conv>._input_quantizer._amax` (one number),
`<conv>._weight_quantizer._amax` (one per output, or one), `<bottleneck>.shortcut._amax` (one number, of the residual
before its factor). The training saw `rint(x * 127 / amax)`, clipped, of weights before the batch norm is folded in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CheckpointError
from ..quantized_graph import quantized_weight
from .quantized import Step, along_outputs, lowered_steps, read_by_integers, written
from .tensor_file import StoredTensor, brief

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..nn import YoloNAS

RANGE = "._amax"  # at the end of the keys
TRAINED_FORM = "partial"  # of the networks that have them

_OF_INPUT, _OF_WEIGHT, _OF_RESIDUAL = "._input_quantizer._amax", "._weight_quantizer._amax", ".shortcut._amax"
_TINY = np.finfo(np.float32).tiny


def check_ranges(ranges: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError for ranges that do not have the shape that their layer needs."""
    for key, stored in ranges.items():
        weight = shapes.get(key.removesuffix(_OF_WEIGHT) + ".weight", ())
        rows = weight[0] if key.endswith(_OF_WEIGHT) and weight else 1
        if stored.numel not in (1, rows):
            raise CheckpointError(f"{key} must have {rows} numbers, got shape {brief(stored.shape)}")


def trained_steps(variant: str, keys: Collection[str]) -> list[Step]:
    """The steps that can run on integers: those with ranges for all that they read and for their weights."""
    steps = lowered_steps(variant)
    buffers = {buffer for step in steps for buffer, key in _ranges_read(step) if key in keys}
    return [
        step
        for step in steps
        if step.convolutions
        and buffers.issuperset(step.reads)
        and all(f"{name}{end}" in keys for name in step.convolutions for end in (_OF_INPUT, _OF_WEIGHT))
    ]


def ranges_note(variant: str, form: str, keys: Collection[str]) -> str:
    """What `load_model` makes of ranges with these keys, in words."""
    unused = "The ranges of quantisation-aware training are not used: "
    if form != TRAINED_FORM:
        return f"{unused}they fit a network in {TRAINED_FORM} form, not in {form}."
    quantized = [name for step in trained_steps(variant, keys) for name in step.convolutions]
    if not quantized:
        return f"{unused}no layer has all of its own."
    total = sum(len(step.convolutions) for step in lowered_steps(variant))
    text = (
        f"The ranges of quantisation-aware training are used: {len(quantized)} of {total} layers run in INT8, and the "
        "network is loaded in folded form, which cannot be trained on."
    )
    if any(name.endswith(".upsample") for name in quantized):
        text += " The ranges of transposed convolutions are per input; those per output are taken from their weights."
    return text


def quantize_as_trained_(model: YoloNAS, ranges: Mapping[str, torch.Tensor]) -> YoloNAS:
    """Folds a network in partial form and gives it the integers of its training, in place; layers without stay float.

    The scale of what a step reads is that of the widest range of all that read the same buffer.
    """
    import torch

    from ..nn import fuse_

    integer = trained_steps(model.variant.name, ranges)
    if not integer:
        return model
    quantized = {
        name: _integers_and_scale(model, name, ranges[name + _OF_WEIGHT])
        for step in integer
        for name in step.convolutions
    }
    fuse_(model.eval())
    for name, (integers, scale) in quantized.items():
        layer = model.get_submodule(name)
        layer.register_buffer("weight_scale", torch.from_numpy(scale))
        layer.weight.copy_(torch.from_numpy(integers * scale.reshape(along_outputs(f"{name}.weight"))))
    steps = lowered_steps(model.variant.name)
    widest: dict[int, float] = {}
    for step in steps:
        for buffer, key in _ranges_read(step):
            if key in ranges:
                widest[buffer] = max(widest.get(buffer, 0.0), ranges[key].item())
    written_by = written(steps, read_by_integers(integer, set(quantized)))
    model.activation_scales = {name: _scale_of(widest[buffer]) for name, buffer in written_by.items()}
    return model


def _ranges_read(step: Step) -> list[tuple[int, str]]:
    """The buffers that a step reads, each with the key of a range of it."""
    found = [(step.reads[0], name + _OF_INPUT) for name in step.convolutions]
    if len(step.reads) > 1:
        found.append((step.reads[1], step.name.removesuffix(".cv2") + _OF_RESIDUAL))
    return found


def _integers_and_scale(model: YoloNAS, name: str, amax: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Int8 weights in the layer's shape, and for each output the float32 scale that they will have once folded."""
    layer = model.get_submodule(name)
    weight = layer.weight.detach().double().numpy()
    along = along_outputs(f"{name}.weight")
    if layer.transposed:
        limits = np.abs(weight).max(axis=(0, 2, 3))
    else:
        limits = np.broadcast_to(amax.double().numpy().reshape(-1), weight.shape[:1])
    folding = _folding(model, name)
    with np.errstate(over="ignore"):  # an infinite scale is refused by whoever runs the network
        scale = (limits / 127 * np.abs(folding)).astype(np.float32)
    # Rows whose numbers all vanish, as with a range of 0.
    empty = scale < _TINY
    scale[empty] = 1.0
    integers = quantized_weight(weight, np.where(empty, 1.0, limits / 127), axis=along.index(-1))
    integers *= np.where(empty, 0, np.sign(folding)).astype(np.int8).reshape(along)
    return integers, scale


def _folding(model: YoloNAS, name: str) -> np.ndarray:
    """What folding multiplies each output of a layer with, float64."""
    import torch

    from ..nn.blocks import ConvUnit, QARepVGG
    from ..nn.fuse import fold_bn

    block = model.get_submodule(name.rpartition(".")[0])
    norm: nn.BatchNorm2d | None = None
    if isinstance(block, QARepVGG):
        norm = block.post_bn
    elif isinstance(block, ConvUnit):
        norm = block.bn
    ones = torch.ones(model.get_submodule(name).out_channels, 1, 1, 1)
    return (ones if norm is None else fold_bn(ones, None, norm)[0]).double().flatten().numpy()


def _scale_of(amax: float) -> float:
    """The step of an int8 tensor of this range, a float32 number; 1 where that would vanish."""
    scale = np.float32(amax / 127)
    return float(scale) if scale >= _TINY else 1.0
