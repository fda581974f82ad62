"""Optimizers for the networks: which parameters are decayed, and clipping. The learning rate is set at every step."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

OPTIMIZERS = ("adamw", "sgd")


def build_optimizer(
    model: nn.Module,
    name: str = "adamw",
    *,
    learning_rate: float = 2e-4,
    weight_decay: float = 1e-5,
    momentum: float = 0.9,
) -> Optimizer:
    """An optimizer for the parameters that take gradients, see `parameter_groups`.

    Args:
        name: one of `OPTIMIZERS`.
        momentum: of "sgd"; "adamw" has betas of 0.9 and 0.999.

    Raises:
        ValueError: an unknown name, a number out of range, or no parameter that takes gradients.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"build_optimizer: name must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"build_optimizer: learning_rate must be positive and finite, got {learning_rate}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"build_optimizer: weight_decay must be at least 0 and finite, got {weight_decay}")
    if not 0 <= momentum < 1:
        raise ValueError(f"build_optimizer: momentum must be at least 0 and less than 1, got {momentum}")
    groups = parameter_groups(model, weight_decay)
    if not groups:
        raise ValueError("build_optimizer: model must have parameters that take gradients, got none")
    if name == "adamw":
        return AdamW(groups, lr=learning_rate, fused=True)
    return SGD(groups, lr=learning_rate, momentum=momentum)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters that take gradients, those that are decayed and the others, as optimizers want them.

    Kernels of convolutions are decayed. Biases, the parameters of batch norms and the `alpha` of bottlenecks are not:
    all that have one dimension.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def trained_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters of an optimizer, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_learning_rate_(optimizer: Optimizer, learning_rate: float) -> None:
    """Gives all groups this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradients_(optimizer: Optimizer, largest: float | None) -> Tensor:
    """Scales all gradients down, in place, so that their common Euclidean norm is at most `largest`; None: never.

    Returns:
        The norm before that, a scalar on the device: reading it waits for the device.
    """
    return nn.utils.clip_grad_norm_(trained_parameters(optimizer), math.inf if largest is None else largest)
