"""One step of a training: forward and backward for each part of a batch, then clipping, optimizer and average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..errors import TrainingError
from ..nn import YoloNAS
from .assigner import assign
from .ema import Ema
from .loss import DetectionLoss, mean_over_processes
from .optimizer import clip_gradients_, set_learning_rate_, trained_parameters

# The type that autocast computes in, by the name of the precision. Weights and gradients stay float32.
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 1.0  # of an fp16 loss; gradients that overflow even with this one will not recover


@dataclass(frozen=True, eq=False)
class Batch:
    """N pictures that go through the network at once."""

    pictures: Tensor  # (N, 3, H, W) float32 on the network's device: see `YoloNAS.forward`
    targets: Tensor  # (M, 6) float32, best on the CPU: see `assigner.assign`
    names: tuple[str, ...]  # one per picture, for messages


@dataclass(frozen=True)
class StepResult:
    """What a step tells. The losses are those of all its pictures together, see `DetectionLoss`."""

    total: float
    classes: float
    iou: float
    dfl: float
    gradient_norm: float  # before clipping
    skipped: bool  # True: gradients overflowed in fp16, the weights are as before, and the next loss is scaled less


class Learner:
    """What steps of a training change, together: network, optimizer, average, and the scale of an fp16 loss.

    Args:
        model: in training mode and with float32 weights. Batch norms that are put into eval mode stay as they are.
        optimizer: of this network, see `optimizer.build_optimizer`.
        ema: the average of this network, None to have none.
        precision: one of `PRECISIONS`.
        wrapper: what pictures go through where it is not `model` itself: its `DistributedDataParallel`, or what
            `torch.compile` made of it.

    Raises:
        ValueError: an unknown precision.
    """

    def __init__(
        self,
        model: YoloNAS,
        optimizer: Optimizer,
        *,
        ema: Ema | None = None,
        precision: str = "float32",
        wrapper: nn.Module | None = None,
    ):
        if precision not in PRECISIONS:
            raise ValueError(f"Learner: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.model = model
        self.forward = model if wrapper is None else wrapper
        self.optimizer = optimizer
        self.ema = ema
        self.precision = precision
        self.device = next(model.parameters()).device
        self.scaler = GradScaler(self.device.type, enabled=precision == "fp16")  # does nothing if not enabled


def train_step(
    learner: Learner,
    batches: Sequence[Batch],
    *,
    step: int,
    learning_rate: float,
    loss: DetectionLoss,
    largest_norm: float | None = None,
) -> StepResult:
    """Trains on all pictures of `batches` as if they were one batch, but for the batch norms, which see each alone.

    The loss of the whole is divided by the assigned scores of the whole, not averaged over the parts. The host waits
    for the device once, in fp16 twice.

    Args:
        batches: one, or more where a batch does not fit into memory.
        step: number of steps that were made before.
        largest_norm: gradients are clipped to this norm; None: they are not.

    Raises:
        TrainingError: a loss that is not finite, or gradients that are not and will not be; the weights and the average
            are as before the step, the running statistics of batch norms may be not.
        ValueError: no batches, a network in eval mode, or targets that make no sense.
    """
    if not batches:
        raise ValueError("train_step: batches must be at least one, got none")
    if not learner.model.training:
        raise ValueError("train_step: model must be in training mode, got eval mode; call model.train()")
    optimizer, scaler, dtype = learner.optimizer, learner.scaler, PRECISIONS[learner.precision]
    set_learning_rate_(optimizer, learning_rate)
    optimizer.zero_grad()

    losses, scores = [], []
    for batch in batches:
        with torch.autocast(learner.device.type, dtype=dtype, enabled=dtype is not None):
            _, raw = learner.forward(batch.pictures)
        assignment = assign(raw, batch.targets)
        terms = loss.of_assignment(raw, assignment)
        losses.append(torch.stack(terms).detach())
        scores.append(mean_over_processes(assignment.scores.sum()))
        # In the place of its own divisor each part gets that of the first, so that parts may be added up.
        share = scores[-1].clamp(min=1) / scores[0].clamp(min=1)
        scaler.scale(terms.total * share).backward()
    part_losses, part_scores = torch.stack(losses), torch.stack(scores)  # (P, 4), (P,)
    first = part_scores[0].clamp(min=1)
    whole = part_scores.sum().clamp(min=1) / first
    scaler.unscale_(optimizer)
    if len(batches) > 1:
        gradients = [parameter.grad for parameter in trained_parameters(optimizer) if parameter.grad is not None]
        torch._foreach_div_(gradients, whole)
    norm = clip_gradients_(optimizer, largest_norm)

    terms_of_all = (part_losses * (part_scores.clamp(min=1) / first)[:, None]).sum(dim=0) / whole
    numbers = torch.cat([terms_of_all, norm.to(terms_of_all)[None], part_losses[:, 0]]).tolist()
    total, classes, iou, dfl, gradient_norm, *totals = numbers
    _check_losses(batches, totals, step)
    skipped = not math.isfinite(gradient_norm)
    if skipped and not (scaler.is_enabled() and scaler.get_scale() > SMALLEST_SCALE):
        names = [name for batch in batches for name in batch.names]
        raise _error("gradients", gradient_norm, step, names)

    if not skipped:
        scaler.step(optimizer)
    scaler.update()
    if learner.ema is not None:
        learner.ema.update(learner.model, step + 1)
    return StepResult(total, classes, iou, dfl, gradient_norm, skipped)


def _check_losses(batches: Sequence[Batch], totals: Sequence[float], step: int) -> None:
    wrong = [(batch, total) for batch, total in zip(batches, totals, strict=True) if not math.isfinite(total)]
    if wrong:
        raise _error("loss", wrong[0][1], step, [name for batch, _ in wrong for name in batch.names])


def _error(what: str, value: float, step: int, names: Sequence[str]) -> TrainingError:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return TrainingError(
        f"train_step: {what} must be finite, got {value} in step {step} with the pictures {shown}; "
        "look at their labels, lower the learning rate, or use another precision",
        names,
    )
