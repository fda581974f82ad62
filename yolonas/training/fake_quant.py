"""Quantisation-aware training: a quantised network as modules that do what the integer engine does, with gradients.

Weights and activations are rounded in the forward pass where the engine rounds them, and gradients pass straight
through (Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference"). What is trained is the folded network, whose convolutions hold their batch norms already: these are the
weights that the engine runs, after equalisation and bias correction, and so the training begins at the quantised
network itself. `prepare` comes before the training, `finish` after it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _native
from ..lowering import INPUT, lower
from ..nn import YoloNAS
from ..nn.blocks import Bottleneck, ConvUnit, QARepVGG
from ..ops import fake_quantize
from ..quantized_graph import INPUT_NAME, SMALLEST, quantized_graph

WEIGHT_BITS = (4, 5, 6, 7, 8)
LOWEST, HIGHEST = -128, 127  # of activations

# Integers are divided by it before they are added up, so that sums stay within float16: 3456 products at most. A power
# of two, so that nothing is rounded.
SHRINK = 2048.0


class EngineConv(nn.Module):
    """A convolution as a step of the engine: from values in units of one scale to values in units of another.

    Weights are rounded per output, the largest magnitude being the largest integer. The state dict is that of the plain
    convolution, as the scales of the weights follow from them.

    Attributes: `input_scale` and `output_scale`, of the buffers, 1 where they are float; `weight_bits`, 0 for a
        convolution that the engine runs in float.
    """

    weight: Tensor
    bias: Tensor
    transposed: bool
    stride: tuple[int, int]
    padding: tuple[int, int]
    input_scale = output_scale = 1.0
    weight_bits = 0

    @property
    def largest(self) -> int:
        """The largest integer among the weights, 127 for 8 bits; the lowest is its negative."""
        return 2 ** (self.weight_bits - 1) - 1

    @property
    def weight_scale(self) -> Tensor | None:
        """The present scales of the weights, float32 `(outputs,)`, 1 for zeros; None in float."""
        if self.weight_bits == 0:
            return None
        largest = self.weight.detach().abs().amax((0, 2, 3) if self.transposed else (1, 2, 3))
        scale = largest / largest.new_full((), self.largest)  # plain numbers may be multiplied by their inverse
        return torch.where(scale >= SMALLEST, scale, 1.0)

    def integer_weight(self, scale: Tensor) -> Tensor:
        """The weights in units of these scales, float32 integers."""
        return _integers(self.weight / _along_outputs(scale, self.transposed), -self.largest, self.largest)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight_scale
        if scale is None:
            return self._convolved(x * self.input_scale, self.weight, self.bias).float() * (1 / self.output_scale)
        # The engine's arithmetic: sums are exact, and each operation after them is rounded to float32.
        sums = self._convolved(x, self.integer_weight(scale) / SHRINK, None).float() * SHRINK
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # which MPS does not have
        multiplier = (self.input_scale * scale.to(wide) / self.output_scale).float()
        offset = (self.bias.to(wide) / self.output_scale).float()
        return sums * multiplier[:, None, None] + offset[:, None, None]

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.transposed:
            return F.conv_transpose2d(x, weight, bias, self.stride)
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class EngineConv2d(EngineConv, nn.Conv2d):
    """An `EngineConv` with the parameters of a convolution."""


class EngineUpsample(EngineConv, nn.ConvTranspose2d):
    """An `EngineConv` with the parameters of a transposed convolution."""


def prepare(quantized: YoloNAS, *, weight_bits: int = 8) -> YoloNAS:
    """A copy of a quantised network for training, in training mode, all of whose parameters take gradients.

    It computes what the native engine does with the quantised network, in training mode as in eval mode: in float32 on
    the CPU to the last bit, as long as sums stay below 2^24, no layer is in float, and the scales of weights are those
    of the largest magnitudes, as `NAS.quantize` and `finish` make them; other ones become those. On other devices, in
    half precision and beside layers in float, values may differ that lie near the middle between two integers, and
    what follows from them. Scales of activations stay as they were calibrated, those of weights follow the weights.

    The copy has the state dict of a folded network, and works with `train_step`, `Ema` and `save_state`, and with
    `NativeEngine.of_module`, which runs the integer network of the present weights. `save_checkpoint` wants what
    `finish` makes of it. Within the network, activations are in units of their scales.

    Args:
        quantized: of `NAS.quantize` or of its file. It stays as it is.
        weight_bits: one of `WEIGHT_BITS`. Integers of fewer than 8 bits are int8 values of a smaller range, with a
            larger scale, and so the engine and files take them too. Activations have 8 bits.

    Raises:
        ValueError: another number of bits; a network that is not quantised, is prepared already, or has wrong scales.
    """
    if type(weight_bits) is not int or weight_bits not in WEIGHT_BITS:
        raise ValueError(f"prepare: weight_bits must be one of {', '.join(map(str, WEIGHT_BITS))}, got {weight_bits!r}")
    if not quantized.activation_scales:
        raise ValueError("prepare: model must be quantised, got one in float; make one with NAS.quantize(data=...)")
    if any(isinstance(module, EngineConv) for module in quantized.modules()):
        raise ValueError("prepare: model must not be prepared, got one that is; call finish(model) first")
    model = copy.deepcopy(quantized)
    graph = lower(model)
    buffers = quantized_graph(graph, model.activation_scales).buffers  # those of `graph`, now with scales, and others
    names, blocks = {module: name for name, module in model.named_modules()}, _blocks(model)
    for step in graph.steps:
        x, y, residual = step["input"].buffer, step["output"].buffer, step.get("residual")
        assert residual is None or residual.buffer == y  # a bottleneck adds up values in units of one scale
        for conv in step.get("modules", ()):
            in_integers = step["weight_scale"] is not None
            made = _engine_conv(conv, weight_bits if in_integers else 0)
            parent, _, name = names[conv].rpartition(".")
            setattr(model.get_submodule(parent), name, made)
            made.input_scale, made.output_scale = (buffers[number].scale or 1.0 for number in (x, y))
            if in_integers and x == INPUT:
                made.input_scale = float(np.float32(model.activation_scales[INPUT_NAME]))
                made.register_forward_pre_hook(_round_input)
            if buffers[y].scale > 0:
                blocks.get(conv, made).register_forward_hook(_round_output)
    return model.train().requires_grad_(True)


def finish(trained: YoloNAS) -> YoloNAS:
    """The quantised network of a prepared one with its present weights, in eval mode on the CPU; the other stays.

    It is what `save_checkpoint` writes, and the native engine runs it as `prepare` says. Its weights are those that the
    integers stand for, as they are when a file is read: `prepare` goes on from it as from the file.

    Raises:
        ValueError: the network was not prepared, or a weight is not finite.
    """
    convs = {name: module for name, module in trained.named_modules() if isinstance(module, EngineConv)}
    if not convs:
        raise ValueError("finish: model must come from prepare, got another one")
    state = {key: value.detach().cpu().clone() for key, value in trained.state_dict().items()}
    wrong = next((key for key, value in state.items() if not value.isfinite().all()), None)
    if wrong is not None:  # rounding would hide it
        raise ValueError(f"finish: model must have finite weights, got NaN or infinity in {wrong}; train it again")
    with torch.device("meta"):
        model = YoloNAS(trained.variant, trained.num_classes, trained.form)
    for name, conv in convs.items():
        scale = conv.weight_scale
        if scale is None:
            continue
        weight = conv.integer_weight(scale).detach() * _along_outputs(scale, conv.transposed)
        state |= {f"{name}.weight": weight.cpu(), f"{name}.weight_scale": scale.cpu()}
        model.get_submodule(name).register_buffer("weight_scale", scale.cpu())
    model.load_state_dict(state, assign=True)
    model.activation_scales = dict(trained.activation_scales)
    return model.eval()


def _blocks(model: YoloNAS) -> dict[nn.Module, nn.Module]:
    """The block in whose output a convolution's step ends, for those convolutions that are in one."""
    blocks: dict[nn.Module, nn.Module] = {}
    for block in model.modules():  # the outer ones first
        unit = block.cv2 if isinstance(block, Bottleneck) else block
        if isinstance(unit, QARepVGG | ConvUnit):
            blocks.setdefault(unit.rbr_reparam if isinstance(unit, QARepVGG) else unit.conv, block)
    return blocks


def _engine_conv(conv: Any, weight_bits: int) -> EngineConv:
    """Takes over the parameters of a convolution, but for what int8 clips of its weights."""
    kind = EngineUpsample if conv.transposed else EngineConv2d
    made = kind(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, device="meta")
    made.weight, made.bias, made.weight_bits = conv.weight, conv.bias, weight_bits
    if weight_bits > 0:
        limit = _along_outputs(127.5 * conv.weight_scale, conv.transposed)
        made.weight.detach().clamp_(-limit, limit)
    return made


def _along_outputs(scale: Tensor, transposed: bool) -> Tensor:
    """In a shape that broadcasts over weights, of which transposed ones have their inputs first."""
    return scale[:, None, None] if transposed else scale[:, None, None, None]


def _round_input(conv: Any, inputs: tuple[Tensor]) -> Tensor:
    return _integers(inputs[0] * (1 / conv.input_scale), LOWEST, HIGHEST)


def _round_output(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return _integers(output, LOWEST, HIGHEST)


def _integers(x: Tensor, lowest: int, highest: int) -> Tensor:
    """`clamp(rint(x), lowest, highest)` in float32, with the gradient of x where nothing is clipped, else 0."""
    x = x.float()
    if x.device.type == "meta":  # which has no such operation; only shapes count there
        return x.clamp(lowest, highest)
    if x.device.type != "cpu" and (x.device.type != "cuda" or _native.cuda() is None):
        return torch.fake_quantize_per_tensor_affine(x, 1.0, 0, lowest, highest)
    one = torch.ones((), device=x.device)
    if x.is_contiguous(memory_format=torch.channels_last):  # stays so
        y = fake_quantize(x.permute(0, 2, 3, 1), one, quant_min=lowest, quant_max=highest)
        return y.permute(0, 3, 1, 2)
    return fake_quantize(x.contiguous(), one, quant_min=lowest, quant_max=highest)
