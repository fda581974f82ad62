"""Where things from outside are kept between runs, and whether they may be fetched. The environment is read late."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def weights_folder() -> Path:
    """Where weights are kept: `YOLONAS_WEIGHTS` if set, else `yolonas/weights` in the user's cache folder."""
    return _chosen("YOLONAS_WEIGHTS") or cache_folder() / "weights"


def datasets_folder() -> Path:
    """Where data sets are kept: `YOLONAS_DATASETS` if set, else `yolonas/datasets` in the user's cache folder."""
    return _chosen("YOLONAS_DATASETS") or cache_folder() / "datasets"


def cache_folder() -> Path:
    """`yolonas` in the user's cache folder: what is in it can be had again."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "yolonas"


def is_offline() -> bool:
    """Whether the environment variable `YOLONAS_OFFLINE` forbids downloads."""
    return os.environ.get("YOLONAS_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def _chosen(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None
