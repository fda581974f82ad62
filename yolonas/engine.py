"""Runs a network on a batch of prepared pictures: from the input tensor to detections in its pixels.

`TorchEngine` runs the plain modules, fused, and hands the head outputs to the native decode and NMS. `native_engine`
has the other engine, with the same interface.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from .config import DetectSettings
from .cuda_memory import why_no_devices
from .nn import YoloNAS, fuse_
from .prepare import common_frame, fill_from_picture, input_shape
from .preprocess import Geometry, Preprocess
from .selection import select_detections


class TorchEngine:
    """A YoloNAS module on a torch device.

    The module is fused and moved in place when the engine is made, so no second copy of the weights exists. Only
    `half=True` runs on a copy, in float16: rounding the module's own weights could not be undone.

    Raises:
        ValueError: the network is quantised; the modules know nothing of that.

    Attributes: `name`; `layout`, the axes of a picture that `heads` takes; `torch_boxes`, whether users get boxes as
        torch tensors; `fixed_size`, the only frame that it takes, or None; `device`; `half`.
    """

    name = "torch"
    layout: Literal["chw", "hwc"] = "chw"
    torch_boxes = True
    fixed_size = None

    def __init__(self, model: YoloNAS, device: torch.device, *, half: bool = False):
        if model.activation_scales:
            raise ValueError("a quantised network runs in the native engine: engine='native'")
        self.device = device
        self.half = half
        self.dtype = torch.float16 if half else torch.float32
        self._source = fuse_(model.eval()).to(device=device, dtype=torch.float32, memory_format=torch.channels_last)
        self.model = copy.deepcopy(self._source).half() if half else self._source

    def stands_for(self, model: YoloNAS, device: torch.device, *, half: bool) -> bool:
        """Whether an engine for these arguments would be the same: the module may have been replaced or moved since."""
        weight = next(model.parameters())
        return (
            self._source is model
            and self.half == half
            and _number(self.device) == _number(device) == _number(weight.device)
            and weight.dtype == torch.float32
        )

    def heads(self, batch: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Class and box logits per level, channels last: float32 `(N, h, w, K)` and `(N, h, w, 68)`.

        Args:
            batch: float32 `(N, 3, H, W)`, prepared as the checkpoint's `Preprocess` says.
        """
        x = torch.from_numpy(batch).to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            cls, reg = self.model.forward_heads(x)
        return [_channels_last(level) for level in cls], [_channels_last(level) for level in reg]

    def select(self, cls: list[np.ndarray], reg: list[np.ndarray], settings: DetectSettings) -> list[np.ndarray]:
        """Detections of each picture from head outputs; see `select_detections`."""
        return select_detections(cls, reg, settings)

    def detect(
        self,
        pictures: Sequence[np.ndarray],
        geometries: Sequence[Geometry],
        preprocess: Preprocess,
        settings: DetectSettings,
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Detections of each picture, from its pixels: letterbox, `heads` and `select`.

        Args:
            pictures: uint8 `(H, W, 3)` BGR, pixels contiguous. geometries: where each lies in the frame that all share.

        Returns:
            Per picture float32 `(n, 6)` rows x1, y1, x2, y2, score, class in pixels of the frame, best first; and the
            seconds of pre-processing, network and selection, `(3,)`.

        Raises:
            TypeError, ValueError: pictures that are none, or whose frames differ.
        """
        start = time.perf_counter()
        batch = np.empty((len(pictures), *input_shape(common_frame(pictures, geometries), self.layout)), np.float32)
        for row, picture, geometry in zip(batch, pictures, geometries, strict=True):
            fill_from_picture(row, picture, geometry, preprocess, self.layout)
        prepared = time.perf_counter()
        heads = self.heads(batch)
        inferred = time.perf_counter()
        rows = self.select(*heads, settings)
        return rows, np.diff((start, prepared, inferred, time.perf_counter()))


def choose_device(device: Any) -> torch.device:
    """The torch device for what users write: None (a GPU if there is one), 'cpu', 0, '0', 'cuda:1', 'mps', [0].

    Raises:
        ValueError: the device does not exist here, or several are named (one process runs on one device).
    """
    if isinstance(device, torch.device):
        device = str(device)
    if isinstance(device, list | tuple):
        device = ",".join(map(str, device))
    wanted = "" if device is None else str(device).strip().lower().removesuffix(",")
    if wanted == "":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if "," in wanted:
        raise ValueError(f"device must name one device, got {wanted!r}; start one process per device")
    if wanted.isdecimal():
        wanted = f"cuda:{wanted}"
    try:
        chosen = torch.device(wanted)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu', 'cuda', a GPU number or 'mps', got {device!r}") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            why = f"they are numbered 0 to {count - 1}" if count else why_no_devices()
            raise ValueError(
                f"device {wanted!r} does not exist: torch sees {count} CUDA devices; {why}; or use device='cpu'"
            )
    elif chosen.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("device 'mps' is not available here; use device='cpu'")
    elif chosen.type != "cpu":
        raise ValueError(f"device must be 'cpu', 'cuda', a GPU number or 'mps', got {device!r}")
    return chosen


def _number(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0  # "cuda" and "cuda:0" are the same, but not equal


def _channels_last(level: torch.Tensor) -> np.ndarray:
    return level.permute(0, 2, 3, 1).float().contiguous().cpu().numpy()
