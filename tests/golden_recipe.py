"""Weights and inputs of the golden files, made from a seed and a key, the same on every platform and NumPy version.

`make_tensor` fills whole networks for numerical comparison; `pattern` fills the sample checkpoints with values that are
exact in half precision.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def make_tensor(seed: int, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 value (int64 for `num_batches_tracked`) of one training-form state-dict entry."""
    shape = tuple(int(side) for side in shape)
    leaf = key.rsplit(".", 1)[-1]
    half = 0.1 * math.sqrt(3.0)
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_mean":
        values = _span(seed, key, shape, -half, half)
    elif leaf == "running_var":
        values = _span(seed, key, shape, 0.75, 1.25)
    elif leaf == "alpha":
        values = _span(seed, key, shape, 0.5, 0.9)
    elif leaf == "bias":
        middle = -2.0 if key.endswith("cls_pred.bias") else 0.0
        values = _span(seed, key, shape, middle - half, middle + half)
    elif leaf == "weight" and len(shape) == 1:  # the scale of a batch norm
        low, high = (0.35, 0.65) if ".post_bn." in key else (0.75, 1.25)
        values = _span(seed, key, shape, low, high)
    elif leaf == "weight":
        fan = shape[0] if key.endswith("upsample.weight") else shape[1] * shape[2] * shape[3]
        limit = _conv_gain(key) * math.sqrt(6.0 / fan)
        values = _span(seed, key, shape, -limit, limit)
    else:
        raise KeyError(key)
    return values.astype(np.float32)


def make_input(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 input `(1, 3, H, W)` with values in 0..1."""
    return _span(seed, "input:" + "x".join(map(str, shape)), shape, 0.0, 1.0).astype(np.float32)


def pattern(tag: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of one entry of the sample checkpoints; `tag` tells the weights in one file apart ("" or "ema:")."""
    checksum = zlib.crc32((tag + key).encode("utf-8"))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.asarray(checksum % 1000, dtype=np.int64)
    index = np.arange(math.prod(shape), dtype=np.int64)
    step = (29 * (index + (checksum >> 8) % 64)) % 64
    base = (step + 1) if leaf == "running_var" else (step - 32)
    return (base / 64.0 * ((1 + checksum % 31) / 32.0)).astype(np.float32).reshape(shape)


def fill_(module: torch.nn.Module, prefix: str = "", seed: int = 0) -> torch.nn.Module:
    """Gives a module in training form the golden weights, in place, in its own dtype; keys get the prefix in front."""
    import torch

    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            tensor.copy_(torch.from_numpy(make_tensor(seed, prefix + key, tuple(tensor.shape))))
    return module


def _stream(seed: int, name: str, count: int) -> np.ndarray:
    """`count` doubles in [0, 1)."""
    key = np.array([seed, zlib.crc32(name.encode("utf-8"))], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _span(seed: int, name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    return (low + (high - low) * _stream(seed, name, math.prod(shape))).reshape(shape)


def _conv_gain(key: str) -> float:
    if "branch_3x3" in key or "branch_1x1" in key or "rbr_reparam" in key:
        return 0.8
    if key.endswith("cls_pred.weight"):
        return 3.0
    if key.endswith("reg_pred.weight"):
        return 4.0
    if key.startswith("neck."):
        return 0.6 if (".cv1.conv." in key or ".cv2.conv." in key) else 0.75
    return 1.0
