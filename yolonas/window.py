"""Shows a picture in a window or in a notebook; where neither is possible it says why instead of ending the process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from functools import lru_cache

import cv2
import numpy as np

_log = logging.getLogger("yolonas")


def show_image(image: np.ndarray, title: str, *, wait_ms: int = 0) -> bool:
    """Shows a BGR picture in a window, or in the notebook, and returns whether that was possible.

    `wait_ms=0` waits until a key is pressed or the window closed, and closes it; otherwise the window stays open and
    shows the next picture of the same title. Without a display a warning is logged the first time.
    """
    if _shown_in_notebook(image):
        return True
    obstacle = no_display_reason()
    if obstacle:
        _warn_once(obstacle)
        return False
    try:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        scale = min(1.0, 1600 / image.shape[1], 900 / image.shape[0])
        cv2.resizeWindow(title, max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        cv2.imshow(title, image)
        if wait_ms:
            cv2.waitKey(wait_ms)
            return True
        # in slices, so that Ctrl-C is noticed
        while cv2.waitKey(50) < 0 and cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1:
            pass
        cv2.destroyWindow(title)
    except cv2.error as error:
        _warn_once(str(error.err or error))
        return False
    return True


def no_display_reason() -> str | None:
    """Why no window can be opened here, or None. Asked before OpenCV, whose Qt ends the process without a display."""
    if not sys.platform.startswith("linux"):
        return None
    if not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")):
        return "neither DISPLAY nor WAYLAND_DISPLAY is set"
    return _window_trial(*(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")))


@lru_cache(maxsize=4)
def _window_trial(*_environment: str | None) -> str | None:
    """Opens a window in another process: with a DISPLAY that leads nowhere Qt aborts, which cannot be caught."""
    if not sys.executable:
        return None
    code = "import cv2; cv2.namedWindow('yolonas', cv2.WINDOW_NORMAL); cv2.waitKey(1); cv2.destroyAllWindows()"
    try:
        trial = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if trial.returncode == 0:
        return None
    lines = [line.strip() for line in trial.stderr.splitlines() if line.strip()]
    return lines[0] if lines else f"opening a window ended with code {trial.returncode}"


@lru_cache(maxsize=16)
def _warn_once(reason: str) -> None:
    _log.warning(
        "show: no window can be opened (%s); save the picture instead", reason
    )  # not for every frame of a video


def _shown_in_notebook(image: np.ndarray) -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if not hasattr(shell, "kernel"):
        return False
    from IPython.display import Image as NotebookImage  # type: ignore[import-not-found, unused-ignore]
    from IPython.display import display

    display(NotebookImage(data=cv2.imencode(".png", image)[1].tobytes()))
    return True
