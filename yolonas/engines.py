"""Which engine runs a network, for what users say about engine, device and precision."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .errors import UnprovenError

if TYPE_CHECKING:
    from .compiled import CompiledNetwork
    from .cuda_engine import CudaEngine
    from .engine import TorchEngine
    from .exported import ExportedNetwork
    from .exported_engine import ExportedEngine
    from .native_engine import NativeEngine
    from .nn import YoloNAS

    Engine = TorchEngine | NativeEngine | CudaEngine | ExportedEngine

LOGGER = logging.getLogger("yolonas")

NATIVE = ("cpu", "cuda")  # kinds of devices that the native engine runs on: there it is the default


class Engines:
    """The engines of one model: made when they are first needed, and again when the weights have changed.

    Attributes:
        device: of the latest run, or None.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], Any] = {}  # by name and kind of device
        self.device: Any = None
        self._told = False  # why the native engine is not used

    def choose(
        self, model: YoloNAS | CompiledNetwork | ExportedNetwork, device: Any, *, half: bool, name: str | None
    ) -> Engine:
        """The engine for a run.

        Args:
            device: as users write it; None: that of the latest run, at first a GPU if there is one that the engine runs
                on. Compiled files run on the CPU unless another device is named.
            half: run in float16; on the CPU that is refused with a warning.
            name: one of `options.ENGINES`; None: the native one, where it runs on the device.

        Raises:
            ValueError: there is no such device, or the engine does not run on it. MemoryError: it does not fit there.
            UnprovenError: the engine was asked for and computes something else there than on the CPU.
        """
        if model.form == "exported":
            if name is not None:
                raise ValueError(f"engine must be left out for an exported file, which has its own, got {name!r}")
            return model.engine(device)
        if model.form == "compiled":
            if name == "torch":
                raise ValueError(
                    "engine must be 'native' for a compiled file, got 'torch'; load the checkpoint instead"
                )
            name = "native"
            if device is None or str(device).strip().lower() in ("", "cpu"):
                if half:
                    _warn_of_half()
                return self.native(model)
        from .engine import choose_device

        only_native = model.form == "compiled" or bool(model.activation_scales)
        if only_native and name == "torch":
            raise ValueError(
                "a quantised network runs in the native engine, on a CPU or a CUDA device: engine='native', "
                "got engine='torch'"
            )
        named = device is not None
        chosen = choose_device(device if named else self.device)
        why_not = self._why_not_native(chosen)
        if why_not is not None and not named and (name == "native" or only_native):
            if chosen.type in NATIVE:
                self._tell(f"the network runs on the CPU, not on {chosen}", why_not)
            chosen, why_not = choose_device("cpu"), None
        if why_not is not None:
            if name == "native" or only_native:
                cure = "use device='cpu'" + " or engine='torch'" * (not only_native)
                raise ValueError(f"engine 'native' does not run on device {chosen}: {why_not}; or {cure}")
            if name is None and chosen.type in NATIVE:
                self._tell(f"engine 'torch' runs the network on {chosen}, not 'native'", why_not)
        optional = name is None and not only_native
        name = name or ("native" if why_not is None else "torch")
        if half and chosen.type == "cpu":
            _warn_of_half()
            half = False
        engine = self._made_for(model, chosen, half=half, name=name, or_torch=optional)
        self.device = chosen if chosen.type != "cuda" else engine.device  # with its number
        return engine

    def native(self, model: YoloNAS | CompiledNetwork) -> NativeEngine:
        """The native engine on the CPU, with the present weights. A module that lies elsewhere is there afterwards."""
        if model.form == "compiled":
            return model.engine
        from .native_engine import CpuDevice, NativeEngine

        engine = self._made.get(("native", "cpu"))
        if engine is None or not engine.stands_for(model, CpuDevice(), half=False):
            engine = self._made["native", "cpu"] = NativeEngine.of_module(model)
        return engine

    def _made_for(
        self, model: YoloNAS | CompiledNetwork, device: Any, *, half: bool, name: str, or_torch: bool
    ) -> Engine:
        if name == "native" and device.type == "cpu":
            return self.native(model)
        if name == "native":
            try:
                return self._on_cuda(model, device, half=half)
            # A network of other widths than those of S, M and L; or kernels that are wrong on this device.
            except (NotImplementedError, UnprovenError) as error:
                if not or_torch:
                    raise
                self._tell(f"engine 'torch' runs the network on {device}, not 'native'", str(error))
        return self._of_torch(model, device, half=half)

    def _of_torch(self, model: YoloNAS, device: Any, *, half: bool) -> TorchEngine:
        from .engine import TorchEngine

        engine = self._made.get(("torch", ""))
        if engine is None or not engine.stands_for(model, device, half=half):
            engine = self._made["torch", ""] = TorchEngine(model, device, half=half)
        return engine

    def _on_cuda(self, model: YoloNAS | CompiledNetwork, device: Any, *, half: bool) -> CudaEngine:
        from .cuda_check import prove
        from .cuda_engine import CudaEngine

        engine = self._made.get(("native", "cuda"))
        if engine is None or not engine.stands_for(model, device, half=half):
            engine = None
            self._made.pop(("native", "cuda"), None)  # its memory is free before the new one is made
            make = CudaEngine.of_compiled if model.form == "compiled" else CudaEngine.of_module
            engine = make(model, device, half=half)
            prove(engine, lambda: _cpu_engine(model))
            self._made["native", "cuda"] = engine
        return engine

    def _tell(self, what: str, why: str) -> None:
        if not self._told:
            self._told = True
            LOGGER.warning("%s: %s", what, why)

    def _why_not_native(self, device: Any) -> str | None:
        if device.type == "cpu":
            return None
        if device.type != "cuda":
            return "it is for CPUs and CUDA devices"
        from .cuda_engine import why_not

        return why_not(device)


def _cpu_engine(model: YoloNAS | CompiledNetwork) -> Any:
    """A `_cpu.Engine` for the network, which stays where it is."""
    if model.form == "compiled":
        return model.engine.native
    from .native_engine import graph_of_module, native_of_graph

    return native_of_graph(graph_of_module(model))


def _warn_of_half() -> None:
    LOGGER.warning("quantize='fp16' is for GPUs; running in fp32 on the CPU")
