"""Fusing: folding branches and batch norms into convolutions, without changing what the network computes.

All arithmetic is in float64 and rounded once to the weights' dtype. The module changes in place, block by block: the
old tensors of a block are let go before the next block is touched, so the extra memory is that of one block.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import FORMS
from .blocks import ConvUnit, QARepVGG
from .network import YoloNAS


def fuse_(model: YoloNAS, form: str = "folded") -> YoloNAS:
    """Brings a network in eval mode into a later form of `FORMS`, in place, and returns it.

    Fusing to the form that the network already has changes nothing. Forms "full" and "folded" no longer take gradients.

    Raises:
        ValueError: unknown form; a form before the current one (fusing cannot be undone); a network in training mode,
            whose batch statistics the fused convolutions could not reproduce.
    """
    if form not in FORMS:
        raise ValueError(f"fuse_: form must be one of {', '.join(FORMS)}, got {form!r}")
    if FORMS.index(form) < FORMS.index(model.form):
        raise ValueError(f"fuse_: form must not be before the model's form {model.form!r}, got {form!r}; load it again")
    if form == model.form:
        return model
    if any(module.training for module in model.modules()):
        raise ValueError("fuse_: model must be in eval mode, got training mode; call model.eval() first")
    for module in model.modules():
        if isinstance(module, QARepVGG):
            fuse_block_(module, form)
        elif isinstance(module, ConvUnit) and form == "folded":
            fold_unit_(module)
    if form in ("full", "folded"):
        model.requires_grad_(False)
    model.form = form
    return model


def fuse_block_(block: QARepVGG, form: str) -> None:
    """Brings one QARepVGG block into a later form, in place; "folded" is the same as "full" for it."""
    if FORMS.index(form) <= FORMS.index(block.form):
        return
    conv = block.rbr_reparam
    if block.form == "training":
        weight, bias = merge_branches(block)
        block.branch_3x3 = block.branch_1x1 = block.alpha = None
    else:
        weight, bias = _double(conv.weight), _double(conv.bias)
    if form != "partial" and block.post_bn is not None:
        weight, bias = fold_bn(weight, bias, block.post_bn)
        block.post_bn = None
    _set(conv, weight, bias)
    conv.requires_grad_(form == "partial")
    block.form = form


def fold_unit_(unit: ConvUnit) -> None:
    """Folds the batch norm of one plain convolution unit into its convolution, which gains a bias."""
    if unit.bn is None:
        return
    weight, bias = fold_bn(unit.conv.weight, None, unit.bn)
    unit.bn = None
    unit.conv.bias = nn.Parameter(torch.empty_like(unit.conv.weight[:, 0, 0, 0]))
    _set(unit.conv, weight, bias)


def merge_branches(block: QARepVGG) -> tuple[Tensor, Tensor]:
    """The one 3x3 kernel and bias that equal a training-form block's branches, in float64 on the CPU.

    kernel = A * W3 + alpha * pad(W1) + I and bias = B + alpha * b1, with the 3x3 branch's batch norm as `A x + B`.
    """
    weight, bias = fold_bn(block.branch_3x3.conv.weight, None, block.branch_3x3.bn)
    alpha = 1.0 if block.alpha is None else _double(block.alpha)
    weight += alpha * F.pad(_double(block.branch_1x1.weight), (1, 1, 1, 1))
    if block.branch_1x1.bias is not None:
        bias += alpha * _double(block.branch_1x1.bias)
    if block.identity:
        outputs = torch.arange(weight.shape[0])
        # With groups, a kernel counts its input channels from the first of its group.
        weight[outputs, outputs % weight.shape[1], 1, 1] += 1.0
    return weight, bias


def fold_bn(weight: Tensor, bias: Tensor | None, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution followed by a batch norm with its running statistics, in float64 on the CPU."""
    scale = _double(bn.weight) / torch.sqrt(_double(bn.running_var) + bn.eps)
    shift = _double(bn.bias) - scale * _double(bn.running_mean)
    folded = scale[:, None, None, None] * _double(weight)
    return folded, shift if bias is None else scale * _double(bias) + shift


def state_dict_form(keys: Iterable[str]) -> str:
    """The form, one of `FORMS`, of a network whose state dict has these keys. Nothing else marks it."""
    parts = {part for key in keys for part in key.split(".")}
    if "branch_3x3" in parts:
        return "training"
    if "post_bn" in parts:
        return "partial"
    return "full" if "bn" in parts else "folded"


def _double(tensor: Tensor) -> Tensor:
    # Always on the CPU: some accelerators have no float64.
    return tensor.detach().to(device="cpu", dtype=torch.float64)


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
