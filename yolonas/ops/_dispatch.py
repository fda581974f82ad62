"""Which world an argument comes from, and the checks that need no native code.

Registering the torch ops is put off until a torch tensor arrives.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import index
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


def all_torch(op: str, arguments: dict[str, Any], optional: dict[str, Any] | None = None) -> bool:
    """True if the named arguments are torch tensors, False if they are NumPy arrays. Only `optional` ones may be None.

    Raises TypeError for anything else and for a mixture.
    """
    given = {argument: value for argument, value in (optional or {}).items() if value is not None}
    kinds = set()
    for argument, value in {**arguments, **given}.items():
        if not is_torch(value) and not isinstance(value, np.ndarray):
            raise TypeError(f"{op}: {argument} must be a NumPy array or a torch tensor, got {type(value).__name__}")
        kinds.add(is_torch(value))
        if len(kinds) > 1:
            raise TypeError(f"{op}: {argument} must be of the same kind, NumPy array or torch tensor, as the others")
    return True in kinds


def lists_are_torch(op: str, arguments: dict[str, Any]) -> bool:
    """The same for arguments that are lists or tuples of arrays, at least one array each."""
    for argument, value in arguments.items():
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{op}: {argument} must be a list of arrays, one per level, got {type(value).__name__}")
        if not value:
            raise ValueError(f"{op}: {argument} must have at least one level, got an empty list")
    return all_torch(op, {f"{name}[{i}]": array for name, value in arguments.items() for i, array in enumerate(value)})


def pair(op: str, argument: str, value: Any) -> tuple[int, int]:
    """Two integers, such as a (height, width). Raises TypeError or ValueError."""
    numbers = tuple(index(number) for number in value)
    if len(numbers) != 2:
        raise ValueError(f"{op}: {argument} must have two values, got {numbers}")
    return numbers[0], numbers[1]


def class_mask(op: str, classes: Sequence[int] | None, count: int) -> np.ndarray | None:
    """`(count,)` uint8, 1 for the classes wanted; None for all. Raises ValueError for an index outside 0..count-1."""
    if classes is None:
        return None
    mask = np.zeros(count, np.uint8)
    for wanted in classes:
        if not 0 <= index(wanted) < count:
            raise ValueError(f"{op}: classes must lie in 0..{count - 1}, got {wanted}")
        mask[index(wanted)] = 1
    return mask


def check_top_k(op: str, top_k: int) -> None:
    if top_k < 1:
        raise ValueError(f"{op}: top_k must be at least 1, got {top_k}")


def check_max_det(op: str, max_det: int) -> None:
    if not 1 <= max_det <= 1_000_000:
        raise ValueError(f"{op}: max_det must lie in 1..1000000, got {max_det}")
