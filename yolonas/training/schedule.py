"""The learning rate of every step of a training, as a function of the step: nothing to keep, nothing to restore."""

from __future__ import annotations

import math


def learning_rate(
    step: int,
    total_steps: int,
    *,
    peak: float = 2e-4,
    warmup_steps: int = 0,
    warmup_start: float = 1e-6,
    final_factor: float = 0.1,
) -> float:
    """The learning rate of one of the steps 0 to `total_steps - 1`.

    It rises linearly from `warmup_start` at step 0 to `peak` at step `warmup_steps`, then falls along half a cosine to
    `peak * final_factor` at the last step. A training that ends before its warm-up does stays below `peak`.

    Raises:
        ValueError: the step is none of these, or there are no steps.
    """
    if total_steps < 1:
        raise ValueError(f"learning_rate: total_steps must be at least 1, got {total_steps}")
    if not 0 <= step < total_steps:
        raise ValueError(f"learning_rate: step must be from 0 to {total_steps - 1}, got {step}")
    if warmup_steps < 0:
        raise ValueError(f"learning_rate: warmup_steps must be at least 0, got {warmup_steps}")
    if step < warmup_steps:
        return warmup_start + (peak - warmup_start) * step / warmup_steps
    last = max(1, total_steps - 1 - warmup_steps)  # with a single step after the warm-up, that one has the peak
    cosine = (1 + math.cos(math.pi * (step - warmup_steps) / last)) / 2
    return peak * (final_factor + (1 - final_factor) * cosine)
