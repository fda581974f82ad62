"""Detections without the host: from pictures on a CUDA device to boxes there, for code that keeps the device busy."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from . import cuda_memory
from .preprocess import STRIDE, Geometry

if TYPE_CHECKING:
    import torch

    from .config import DetectSettings
    from .cuda_engine import CudaEngine
    from .preprocess import Preprocess, Size

TAKEN = (
    *("device", "precision", "quantize", "half", "tune", "conf", "iou", "imgsz", "rect", "protocol", "batch"),
    *("max_det", "classes", "agnostic_nms", "multi_label"),
)  # options of predict that mean something here


class OnDevice:
    """Detects in pictures that lie on a CUDA device, and leaves the detections there; `NAS.on_device` makes one.

    A call queues work on torch's current stream and returns: it never waits for the device, copies no pixels to the
    host, and does not look whether the weights have changed. What was set when the object was made stays so.

    The first call with a batch size and a frame plans it, which allocates; later ones allocate their results alone.
    `torch.cuda.stream(torch.cuda.ExternalStream(pointer))` queues on another library's stream. One thread at a time.
    A call may be captured (`torch.cuda.graph`) after the same one has been run; the graph uses the engine's memory, so
    nothing else may use the engine while it runs.

    Attributes: `engine`, `preprocess`, `settings`, `names`.
    """

    def __init__(self, engine: CudaEngine, preprocess: Preprocess, settings: DetectSettings, names: dict[int, str]):
        self.engine, self.preprocess, self.settings, self.names = engine, preprocess, settings, names
        self._geometries: dict[Size, Geometry] = {}
        self._held: deque[tuple[Any, Any]] = deque()  # memory of other libraries, until the device has read it
        self._held_for_graphs: list[Any] = []  # that the caller has captured

    def __call__(self, pictures: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Detections in pictures.

        Args:
            pictures: one or a list of uint8 `(H, W, 3)` BGR, or `(N, H, W, 3)`, which are resized and padded as the
                checkpoint says; or floating `(3, H, W)` or `(N, 3, H, W)` RGB in 0..1 with sides in multiples of 32,
                which the network sees as they are. Torch tensors on the engine's device, or what has `__dlpack__` and
                lies there (CuPy, JAX). Whether floats are within 0..1 is not looked at: that would take a wait.

        Returns:
            float32 `(N, max_det, 6)` rows x1, y1, x2, y2 in pixels of the picture, score, class, best first, zero
            beyond the count; and int64 `(N,)` counts. Both on the device.

        Raises:
            TypeError, ValueError: another dtype, shape or device, or frames of different sizes; the text has the cure.
            MemoryError: the batch does not fit.
        """
        engine = self.engine
        with engine.cuda.active():
            tensors, foreign = self._tensors(pictures)
            if tensors[0].is_floating_point():
                detections, counts = engine.detect_input(
                    engine.input_of_planes(tensors, self.preprocess), self.settings
                )
                height, width = tensors[0].shape[1:]
                geometries = [Geometry((height, width), (height, width), (height, width), 0, 0, (1.0, 1.0))]
            else:
                geometries = [self._geometry(tensor.shape[0], tensor.shape[1]) for tensor in tensors]
                detections, counts = engine.detect_on_device(tensors, geometries, self.preprocess, self.settings)
            self._to_pictures(detections[..., :4], geometries)
            if foreign:
                self._hold(foreign)
        return detections, counts

    def _tensors(self, pictures: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """A tensor per picture, and those whose memory is another library's."""
        members = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
        if not members:
            raise ValueError("on_device: pictures must be one or more, got an empty list")
        tensors: list[torch.Tensor] = []
        foreign: list[torch.Tensor] = []
        device = self.engine.device
        for number, member in enumerate(members):
            what = f"on_device: pictures[{number}]"
            tensor = None if isinstance(member, np.ndarray) else cuda_memory.as_tensor(member)
            if tensor is None:
                raise TypeError(
                    f"{what} must be a tensor on {device}, got {type(member).__name__}; move it there: "
                    f"torch.from_numpy(a).to({str(device)!r}), or use predict, which does that"
                )
            if not self.engine.cuda.holds(tensor):
                raise ValueError(
                    f"{what} must lie on {device}, got {tensor.device}; move it there: t.to({str(device)!r}), or use "
                    "predict, which does that"
                )
            if not cuda_memory.is_torch(member):
                foreign.append(tensor)
            tensors += _pictures_of(what, tensor)
        if len({tensor.is_floating_point() for tensor in tensors}) > 1:
            raise TypeError("on_device: pictures must be all uint8 or all floating, got both")
        return tensors, foreign

    def _geometry(self, height: int, width: int) -> Geometry:
        found = self._geometries.get((height, width))
        if found is None:
            if len(self._geometries) >= 1024:
                self._geometries = {}
            found = self._geometries[height, width] = self.preprocess.plan(height, width)
        return found

    def _to_pictures(self, boxes: torch.Tensor, geometries: list[Geometry]) -> None:
        """As `Geometry.boxes_to_picture`, of `(N, max_det, 4)` in place; one geometry may stand for all."""
        constant = self.engine.constant
        if len(set(geometries)) == 1:
            geometries = geometries[:1]
        boxes -= constant(tuple(((one.left, one.top) * 2,) for one in geometries))
        boxes *= constant(tuple(((1.0 / one.scale[1], 1.0 / one.scale[0]) * 2,) for one in geometries))
        limit = constant(tuple(((one.original[1], one.original[0]) * 2,) for one in geometries))
        boxes.clamp_(constant(((0.0,),)), limit)

    def _hold(self, tensors: list[torch.Tensor]) -> None:
        if self.engine.cuda.is_capturing():
            self._held_for_graphs.append(tensors)
            return
        while self._held and self._held[0][0].query():
            self._held.popleft()
        done = self.engine.cuda.new_event()
        done.record(self.engine.cuda.current_stream())
        self._held.append((done, tensors))


def _pictures_of(what: str, tensor: torch.Tensor) -> list[torch.Tensor]:
    """The pictures in a tensor on the device: uint8 `(H, W, 3)` or floating `(3, H, W)`."""
    shape = tuple(tensor.shape)
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind == "uint8":
        if len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape:
            cure = "; channels come last: t.permute(1, 2, 0)" if len(shape) == 3 and shape[0] == 3 else ""
            raise ValueError(f"{what} of uint8 must have shape (H, W, 3) or (N, H, W, 3), got {shape}{cure}")
        return [tensor] if len(shape) == 3 else list(tensor.unbind())
    if not tensor.is_floating_point():
        raise TypeError(
            f"{what} must be uint8 (H, W, 3) BGR or floating (3, H, W) RGB in 0..1, got {kind}; convert it: "
            "t.to(torch.uint8)"
        )
    if len(shape) not in (3, 4) or shape[-3] != 3 or 0 in shape:
        cure = "; channels come first: t.permute(2, 0, 1)" if len(shape) == 3 and shape[-1] == 3 else ""
        raise ValueError(f"{what} of {kind} must have shape (3, H, W) or (N, 3, H, W), got {shape}{cure}")
    if shape[-2] % STRIDE or shape[-1] % STRIDE:
        raise ValueError(
            f"{what} of {kind} must have sides that are multiples of {STRIDE}, got {shape[-2]}x{shape[-1]}; uint8 "
            "pictures of any size are resized"
        )
    return [tensor] if len(shape) == 3 else list(tensor.unbind())
