"""Which world an argument comes from. Registering the torch ops is put off until a torch tensor arrives."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def is_torch(value: Any) -> bool:
    """True for torch tensors, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def torch_ops() -> Any:
    """The namespace `torch.ops.yolonas`, registered on first use."""
    import torch

    from . import _torch  # noqa: F401 - importing it registers the ops

    return torch.ops.yolonas


def class_mask(op: str, classes: Sequence[int] | None, count: int) -> np.ndarray | None:
    """`(count,)` uint8, 1 for the classes wanted; None for all. Raises ValueError for an index outside 0..count-1."""
    if classes is None:
        return None
    mask = np.zeros(count, np.uint8)
    for index in classes:
        if not 0 <= int(index) < count:
            raise ValueError(f"{op}: classes must lie in 0..{count - 1}, got {index}")
        mask[int(index)] = 1
    return mask


def check_top_k(op: str, top_k: int) -> None:
    if top_k < 1:
        raise ValueError(f"{op}: top_k must be at least 1, got {top_k}")


def check_max_det(op: str, max_det: int) -> None:
    if not 1 <= max_det <= 1_000_000:
        raise ValueError(f"{op}: max_det must lie in 1..1000000, got {max_det}")
