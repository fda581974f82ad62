"""Where the networks of a quantisation run: the native engine on the CPU, or on a CUDA device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native
from .native_engine import NativeEngine, graph_of_module, native_of_graph

if TYPE_CHECKING:
    import torch

    from .cuda_engine import CudaEngine
    from .lowering import Graph
    from .nn import YoloNAS

LOGGER = logging.getLogger("yolonas")


class OnCpu:
    """Engines on the CPU."""

    def of_module(self, model: YoloNAS) -> NativeEngine:
        """Of a float or quantised network."""
        return NativeEngine.of_module(model)

    def of_graph(self, graph: Graph, num_classes: int) -> NativeEngine:
        """Of a lowered network."""
        return NativeEngine.of_graph(graph, num_classes)

    def stopwatch(self, engine: NativeEngine, picture: np.ndarray) -> Callable[[], float]:
        """What runs the network on a picture `(1, H, W, 3)` and tells the milliseconds that it took."""

        def run() -> float:
            start = time.perf_counter()
            engine.heads(picture)
            return 1e3 * (time.perf_counter() - start)

        return run

    def machine(self) -> dict[str, Any]:
        """For the card."""
        native = _native.cpu()
        return {"kernels": native.isa(), "threads": native.num_threads()}


class OnCuda:
    """Engines on a CUDA device, in float32 where networks are of floats.

    Args:
        device: one that the native engine runs on.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def of_module(self, model: YoloNAS) -> CudaEngine:
        """See `OnCpu`; of the first ones on a device the kernels are checked.

        Raises:
            NotImplementedError: widths that the kernels do not take. UnprovenError: they compute something else there
                than on the CPU. MemoryError: it does not fit.
        """
        return self.of_graph(graph_of_module(model), model.num_classes)

    def of_graph(self, graph: Graph, num_classes: int) -> CudaEngine:
        from .cuda_check import prove
        from .cuda_engine import CudaEngine

        try:
            engine = CudaEngine.of_graph(graph, num_classes, self.device)
        except NotImplementedError as error:
            raise NotImplementedError(f"quantize: {error}; use device='cpu'") from None
        prove(engine, lambda: native_of_graph(graph))
        return engine

    def stopwatch(self, engine: CudaEngine, picture: np.ndarray) -> Callable[[], float]:
        """See `OnCpu`; of the device's work alone, without the copies."""
        x = engine.put(picture)
        return lambda: engine.time_heads(x)

    def machine(self) -> dict[str, Any]:
        from . import cuda_memory

        name, architecture = cuda_memory.Cuda(self.device).describe()
        return {**OnCpu().machine(), "kernels": architecture, "device": name}


def choose(device: Any, moved_to: Any = None) -> OnCpu | OnCuda:
    """Where to run for what users write.

    Args:
        device: as users write it; None: where the model was moved to, if that is a CUDA device on which the native
            engine runs, else the CPU.
        moved_to: a device, or None.

    Raises:
        ValueError: there is no such device, or the native engine does not run on it.
    """
    named = device is not None
    wanted = device if named else moved_to
    if wanted is None or str(wanted).strip().lower() in ("", "cpu"):
        return OnCpu()
    from .engine import choose_device

    chosen = choose_device(wanted)
    if chosen.type == "cpu":
        return OnCpu()
    if chosen.type == "cuda":
        from .cuda_engine import why_not

        reason = why_not(chosen)
    else:
        reason = "the native engine is for CPUs and CUDA devices"
    if reason is None:
        return OnCuda(chosen)
    if named:
        raise ValueError(f"quantize: networks cannot run on device {chosen}: {reason}; or use device='cpu'")
    LOGGER.warning("quantize: networks run on the CPU, not on %s: %s", chosen, reason)
    return OnCpu()
