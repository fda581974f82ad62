"""Loads the native modules: `cpu()` is there in every proper install, `cuda()` in builds with a CUDA compiler."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

BUILD_COMMAND = "pip install --force-reinstall --no-deps ."


@functools.cache
def cpu() -> ModuleType:
    """The module `yolonas._cpu`. Raises ImportError with the build command if it is missing or broken."""
    try:
        module = importlib.import_module("yolonas._cpu")
        # Chooses the CPU variant now: a wrong YOLONAS_CPU_ISA is an error here and not in the middle of a run.
        module.isa()
    except ImportError as error:
        raise ImportError(
            f"the native module yolonas._cpu cannot be loaded ({error}); build it with `{BUILD_COMMAND}` in "
            "the source folder, or install a wheel for this Python and platform"
        ) from error
    return module


@functools.cache
def cuda() -> ModuleType | None:
    """The module `yolonas._cuda`, or None where this build has none. Importing it needs no driver."""
    try:
        return importlib.import_module("yolonas._cuda")
    except ModuleNotFoundError:
        return None


def build_info() -> dict[str, Any]:
    """What was built and chosen: CPU variant, variants that can run here, threads, compiler, CUDA architectures."""
    module = cpu()
    info = {
        "cpu_isa": module.isa(),
        "cpu_isas_available": module.available_isas(),
        "threads": module.num_threads(),
        "compiler": module.compiler(),
        "cuda_architectures": None,
    }
    cuda_module = cuda()
    if cuda_module is not None:
        info["cuda_architectures"] = cuda_module.architectures()
    return info
