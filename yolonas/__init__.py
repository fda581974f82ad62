"""YOLO-NAS S, M and L: load, predict, fuse and save. `from yolonas import NAS` is the way in.

Importing this package starts nothing: torch, OpenCV and the native extension are loaded when they are first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, QuantizationError, SourceError, WeightsNotFoundError

if TYPE_CHECKING:
    from .model import NAS
    from .results import Boxes, Results

__version__ = "0.1.0"
__all__ = [
    "NAS",
    "Boxes",
    "CheckpointError",
    "QuantizationError",
    "Results",
    "SourceError",
    "WeightsNotFoundError",
    "__version__",
]

_LAZY = {"NAS": "model", "Boxes": "results", "Results": "results"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'yolonas' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
