"""Runs a network by the native engine on the CPU. Needs no torch, but for making an engine from a module."""

from __future__ import annotations

import platform
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from . import __version__, _native
from .config import REG_MAX, STRIDES
from .ops._dispatch import check_max_det, class_mask
from .prepare import common_frame, detect_arguments
from .selection import select_detections

if TYPE_CHECKING:
    import torch

    from .config import DetectSettings
    from .lowering import Graph
    from .nn import YoloNAS
    from .preprocess import Geometry, Preprocess


class CpuDevice(NamedTuple):
    """What `torch.device("cpu")` says, without torch."""

    type: str = "cpu"
    index: int | None = None

    def __str__(self) -> str:
        return self.type


class NativeEngine:
    """A YoloNAS network in the native engine: see `TorchEngine`, whose interface it has.

    It copies the weights, and notices when those of the module it was made from have changed: `stands_for`. Any number
    of threads may use it at once.

    Args:
        native: a `_cpu.Engine`. num_classes: its class outputs.

    Attributes: besides those of `TorchEngine`, `native` and `num_classes`.
    """

    name = "native"
    layout: Literal["chw", "hwc"] = "hwc"
    half = False
    fixed_size = None
    device = CpuDevice()

    def __init__(self, native: Any, num_classes: int, *, torch_boxes: bool = False):
        self.native = native
        self.num_classes = num_classes
        self.torch_boxes = torch_boxes
        self._source: YoloNAS | None = None
        self._state: tuple[Any, ...] = ()

    @classmethod
    def of_module(cls, model: YoloNAS) -> NativeEngine:
        """An engine with the weights of a module, which is fused and moved to the CPU in place, as `TorchEngine` does.

        Raises:
            ValueError: weights that are not finite; a quantised network whose scales are missing, wrong or have been
                rounded to another type.
        """
        graph = graph_of_module(model.to(device="cpu"))
        engine = cls(native_of_graph(graph), model.num_classes, torch_boxes=True)
        engine._source, engine._state = model, state_of(model)
        return engine

    @classmethod
    def of_graph(cls, graph: Graph, num_classes: int) -> NativeEngine:
        """An engine of a lowered network."""
        return cls(native_of_graph(graph), num_classes)

    def stands_for(self, model: YoloNAS, device: Any, *, half: bool) -> bool:
        """Whether an engine for these arguments would be the same: the weights may have been changed since."""
        return self._source is model and device.type == "cpu" and not half and self._state == state_of(model)

    def heads(self, batch: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Class and box logits per level, channels last: float32 `(N, h, w, K)` and `(N, h, w, 68)`.

        Args:
            batch: float32 `(N, H, W, 3)`, prepared as the checkpoint's `Preprocess` says, sides multiples of 32.

        Raises:
            TypeError, ValueError: another dtype or shape.
        """
        if batch.ndim != 4:
            raise ValueError(f"engine: x must have shape (N, H, W, 3), got {batch.shape}")
        count, height, width, _ = batch.shape
        cls, reg = (
            [np.empty((count, height // stride, width // stride, channels), np.float32) for stride in STRIDES]
            for channels in (self.num_classes, 4 * (REG_MAX + 1))
        )
        self.native.run(batch, cls, reg)
        return cls, reg

    def plan(self, size: tuple[int, int]) -> list[dict[str, Any]]:
        """What is run for one picture of `size` (height, width): a dict per step with `name`, `op`, `algorithm`,
        `output` (height, width, channels), `mflop` (of the direct form), `parameters` and `tuned` (whether it runs in
        another way than the built-in table has it).
        """
        return [with_parameters(step) for step in self.native.plan(*size, 1)]

    def time_steps(self, size: tuple[int, int], rounds: int) -> list[float]:
        """Milliseconds of each step of `plan`, the median of some rounds, measured now."""
        x = np.random.default_rng(0).random((1, *size, 3), np.float32)
        return list(self.native.time_steps(x, rounds))

    def describe(self) -> str:
        """What it runs on, in words."""
        return f"{_native.cpu().isa()} kernels, {self.place()}"

    def place(self) -> str:
        """The same, shorter."""
        threads = _native.cpu().num_threads()
        return f"{threads} thread{'s' * (threads != 1)}"

    def machine(self) -> str:
        """What choices of how layers run are made for, besides the layers; see `tuning`."""
        native = _native.cpu()
        version = f"yolonas {__version__}, plan {native.Engine.plan_version}"
        return f"{processor()}, {native.isa()}, {native.num_threads()} threads, {version}"

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
        """Detections of each picture, from its pixels, in one native call; see `TorchEngine.detect`.

        The same, bit for bit, as letterbox, `heads` and `select` one after another.
        """
        check_max_det("detect", settings.max_det)
        detections = np.empty((len(pictures), settings.max_det, 6), np.float32)
        counts = np.empty(len(pictures), np.int64)
        milliseconds = self.native.detect(
            pictures,
            **detect_arguments(common_frame(pictures, geometries), geometries, preprocess, settings),
            class_mask=class_mask("detect", settings.classes, self.num_classes),
            detections=detections,
            counts=counts,
        )
        rows = [found[:count].copy() for found, count in zip(detections, counts, strict=True)]
        return rows, 1e-3 * np.array(milliseconds)


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def with_parameters(step: dict[str, Any]) -> dict[str, Any]:
    """A step of the native plan, with the number of its parameters."""
    taps = step["kernel"] ** 2 if step["op"] in ("conv", "upsample") else 0
    inputs, outputs = step["input"][2], step["output"][2]
    return {**step, "parameters": outputs * (inputs * taps + 1) if taps else 0}


def graph_of_module(model: YoloNAS) -> Graph:
    """The graph of a module, which is fused in place and stays where it is; quantised if the network is.

    Raises:
        ValueError: a quantised network whose scales are missing, wrong or have been rounded to another type.
    """
    import torch

    from .lowering import lower
    from .nn import fuse_
    from .quantized_graph import quantized_graph

    if model.activation_scales:
        other = {tensor.dtype for tensor in model.state_dict().values()} - {torch.float32}
        if other:
            raise ValueError(f"engine: a quantised network must be float32, got {other.pop()}; load it again")
    graph = lower(fuse_(model.eval()).to(dtype=torch.float32))
    return quantized_graph(graph, model.activation_scales) if model.activation_scales else graph


def native_of_graph(graph: Graph) -> Any:
    """The `_cpu.Engine` of a lowered network."""
    return _native.cpu().Engine(graph.buffers, graph.steps, graph.outputs)


def state_of(model: YoloNAS) -> tuple[Any, ...]:
    """What tells whether the weights are still the same, in much less time than it takes to read them.

    Where the tensors are, how often torch has seen them change, and the values of the short ones: `tensor.data` can be
    written to without torch noticing.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return (
        model.form,
        tuple(model.activation_scales.items()),
        *((tensor.data_ptr(), tensor.dtype, _version(tensor)) for tensor in tensors),
        *(zlib.crc32(tensor.detach().numpy()) for tensor in tensors if _is_short(tensor)),
    )


def _is_short(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 1 and str(tensor.device) == "cpu" and str(tensor.dtype) == "torch.float32"


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
