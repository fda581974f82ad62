"""A narrow network whose detections depend on the picture, and what tests of exported files compare them by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from quantized_networks import narrow

from yolonas.nn import YoloNAS

NAMES = ["cat", "dog", "bird"]
SIZES = [(90, 120), (64, 96), (50, 40), (30, 200), (1, 7), (61, 93), (200, 30)]


def lively() -> YoloNAS:
    """In the recipe's networks biases decide nearly all; in this one pixels do."""
    model = narrow("s")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "backbone.stem.conv.rbr_reparam.weight":
                parameter *= 10
            elif name.endswith("bias") and "_pred" not in name:
                parameter *= 0.3
    model.variant = replace(model.variant, name="s")  # files are of sizes that there are
    return model


def pictures(count: int) -> list[np.ndarray]:
    """Coloured blocks of many sizes, uint8 `(H, W, 3)` BGR."""
    random, found = np.random.default_rng(7), []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        blocks = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        found.append(np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width]))
    return found


def widest_gap(values: np.ndarray, near: float) -> float:
    """The middle of the widest gap of values that lies near a number, so that rounding decides nothing."""
    values = np.unique(values[np.abs(values - near) < 0.1])
    values = np.concatenate([[near - 0.1], values, [near + 0.1]])
    at = int(np.diff(values).argmax())
    assert values[at + 1] - values[at] > 1e-4
    return float(values[at] + values[at + 1]) / 2


def assert_same(found: np.ndarray, expected: np.ndarray, limit: float = 1e-4, side: float = 100.0) -> None:
    """The same rows x1, y1, x2, y2, score, class, best first; the order of nearly equal scores is open.

    Args:
        limit: of scores, and of boxes as a share of `side`.
    """
    found, expected = (np.asarray(rows, np.float64) for rows in (found, expected))
    assert found.shape == expected.shape
    assert (np.diff(found[:, 4]) <= 0).all()
    np.testing.assert_allclose(found[:, 4], expected[:, 4], rtol=0, atol=limit)
    scale = np.array([side] * 4 + [1.0, 1e-9])
    for row in expected:
        assert (np.abs(found - row) / scale).max(1).min() <= limit
