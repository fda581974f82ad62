"""The moving average of a network's weights, which is what is measured and kept at the end of a training."""

from __future__ import annotations

import copy

import torch

from ..nn import YoloNAS

LARGEST_DECAY = 0.9997


def ema_decay(step: int, largest: float = LARGEST_DECAY) -> float:
    """The share of the old average that step 1, 2, ... keeps: `(1 + step) / (10 + step)`, and at most `largest`.

    The first steps thus forget the initial weights quickly.
    """
    return min(largest, (1 + step) / (10 + step))


class Ema:
    """The exponential moving average of all floating-point entries of a network's state dict: weights and buffers.

    Whole numbers, the counters of batch norms, are copied.

    Attributes: `model`, the averaged network: a copy in eval mode, on the same device, that takes no gradients.
    """

    def __init__(self, model: YoloNAS, largest_decay: float = LARGEST_DECAY):
        """Starts with the present weights.

        Raises:
            ValueError: `largest_decay` is not in 0..1, 1 excluded.
        """
        if not 0 <= largest_decay < 1:
            raise ValueError(f"Ema: largest_decay must be at least 0 and less than 1, got {largest_decay}")
        self.largest_decay = largest_decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: YoloNAS, step: int) -> None:
        """Takes in the weights that step 1, 2, ... has left in `model`."""
        averages, values = [], []
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - ema_decay(step, self.largest_decay))
