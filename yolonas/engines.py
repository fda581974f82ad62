"""Which engine runs a network, for what users say about engine, device and precision."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiled import CompiledNetwork
    from .engine import TorchEngine
    from .exported import ExportedNetwork
    from .exported_engine import ExportedEngine
    from .native_engine import NativeEngine
    from .nn import YoloNAS

LOGGER = logging.getLogger("yolonas")

ON_CPU = "native"  # unless the user says so; on GPUs it is always torch


class Engines:
    """The engines of one model: made when they are first needed, and again when the weights have changed."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}  # by name
        self._device: Any = None  # of the latest run

    def choose(
        self, model: YoloNAS | CompiledNetwork | ExportedNetwork, device: Any, *, half: bool, name: str | None
    ) -> TorchEngine | NativeEngine | ExportedEngine:
        """The engine for a run.

        Args:
            device: as users write it; None: that of the latest run, at first a GPU if there is one.
            half: run in float16; on the CPU that is refused with a warning.
            name: one of `options.ENGINES`; None: what is best on the device.

        Raises:
            ValueError: there is no such device, or the engine does not run on it.
        """
        if model.form == "compiled":
            return _of_file(model, device, half=half, name=name)
        if model.form == "exported":
            if name is not None:
                raise ValueError(f"engine must be left out for an exported file, which has its own, got {name!r}")
            return model.engine(device)
        from .engine import TorchEngine, choose_device

        if model.activation_scales:
            name = name or "native"
        if device is None:
            device = "cpu" if name == "native" else self._device
        chosen = choose_device(device)
        on_cpu = chosen.type == "cpu"
        if half and on_cpu:
            _warn_of_half()
            half = False
        name = name or (ON_CPU if on_cpu else "torch")
        if model.activation_scales and (name, on_cpu) != ("native", True):
            raise ValueError(
                "a quantised network runs in the native engine on the CPU: engine='native', device='cpu', "
                f"got engine={name!r}, device={str(chosen)!r}"
            )
        if name == "native" and not on_cpu:
            raise ValueError(
                f"engine 'native' runs on the CPU, got device {chosen}; use device='cpu' or engine='torch'"
            )
        self._device = chosen
        if name == "native":
            return self.native(model)
        engine = self._made.get(name)
        if engine is None or not engine.stands_for(model, chosen, half=half):
            engine = self._made[name] = TorchEngine(model, chosen, half=half)
        return engine

    def native(self, model: YoloNAS | CompiledNetwork) -> NativeEngine:
        """The native engine with the present weights."""
        if model.form == "compiled":
            return model.engine
        from .native_engine import CpuDevice, NativeEngine

        engine = self._made.get("native")
        if engine is None or not engine.stands_for(model, CpuDevice(), half=False):
            engine = self._made["native"] = NativeEngine.of_module(model)
        return engine


def _of_file(model: CompiledNetwork, device: Any, *, half: bool, name: str | None) -> NativeEngine:
    if device is not None and str(device).strip().lower() not in ("", "cpu"):
        raise ValueError(f"device must be 'cpu' for a compiled file, got {device!r}; load the checkpoint instead")
    if name == "torch":
        raise ValueError("engine must be 'native' for a compiled file, got 'torch'; load the checkpoint instead")
    if half:
        _warn_of_half()
    return model.engine


def _warn_of_half() -> None:
    LOGGER.warning("quantize='fp16' is for GPUs; running in fp32 on the CPU")
