"""A picture drawn by code, for a first run without any file."""

from __future__ import annotations

import numpy as np


def draw_scene(height: int = 480, width: int = 640, seed: int = 0) -> np.ndarray:
    """Coloured discs and boxes on a shaded ground: uint8 `(height, width, 3)` BGR, the same for the same seed."""
    import cv2

    random = np.random.default_rng(seed)
    shade = np.linspace(90, 200, width, dtype=np.float32)[None, :, None] * np.linspace(0.7, 1.1, height)[:, None, None]
    scene = np.repeat(shade, 3, axis=2) * np.array([1.0, 0.95, 0.85])
    scene = np.clip(scene + random.normal(0, 4, scene.shape), 0, 255).astype(np.uint8)
    for _ in range(14):
        colour = tuple(int(value) for value in random.integers(20, 236, 3))
        x, y = int(random.integers(0, width)), int(random.integers(0, height))
        size = int(random.integers(height // 20, height // 6))
        if random.random() < 0.5:
            cv2.circle(scene, (x, y), size, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(scene, (x - size, y - size // 2), (x + size, y + size // 2), colour, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(scene, (3, 3), 0)
