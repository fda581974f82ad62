"""Gives a network other classes, for training it further on other data."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import YoloNAS


@torch.no_grad()
def replace_classes_(model: YoloNAS, num_classes: int) -> YoloNAS:
    """Replaces the last layer of the class branches by a new one for `num_classes` classes, in place.

    Its weights and biases are drawn from normal distributions with mean and standard deviation of the old ones, so that
    the first scores are about as high as the old ones were: the other layers fit to that. Everything else stays. The
    numbers come from torch's global generator on the CPU and are the same whatever the device.

    Returns:
        The same module. Optimizers and averages that were made for it before must be made anew.

    Raises:
        ValueError: `num_classes` is less than 1, or the network is quantised.
    """
    if num_classes < 1:
        raise ValueError(f"replace_classes_: num_classes must be at least 1, got {num_classes}")
    if model.activation_scales:
        raise ValueError(
            "replace_classes_: model must be in floating point, got a quantised one; load its float weights"
        )
    for head in (model.heads.head1, model.heads.head2, model.heads.head3):
        old = head.cls_pred
        new = nn.Conv2d(old.in_channels, num_classes, 1, device="meta").to_empty(device="cpu")
        for value, known in ((new.weight, old.weight), (new.bias, old.bias)):
            value.normal_(known.mean().item(), known.std(correction=0).item())  # a single bias has no sample deviation
            value.requires_grad_(known.requires_grad)
        head.cls_pred = new.to(old.weight).train(old.training)
    model.num_classes = num_classes
    return model
