"""The module `_cuda` without a GPU: its sources compiled as plain C++ against `cuda_emulator/cuda_runtime.h`.

Also a fake CUDA tensor: memory of the CPU that claims, through DLPack, to lie on a device.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from harness import ROOT, guarded

CSRC = ROOT / "csrc"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DYOLONAS_HOPPER"]
FLAGS += ["-Wall", "-Wno-unknown-pragmas"]


_BUILT: list[ModuleType] = []


def build(folder: Path) -> ModuleType:
    """Compiles it in a folder of pytest's and imports it, once in a run; skips the test where a compiler, Python's
    headers or pybind11 are missing.
    """
    if not _BUILT:
        library = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
        if "PYTEST_XDIST_WORKER" in os.environ:  # whoever comes first builds for all workers
            library = folder.parents[1] / library.name
        with library.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                _compile(folder, library)
        spec = importlib.util.spec_from_file_location("_cuda", library)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _BUILT.append(module)
    return _BUILT[0]


def _compile(folder: Path, library: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not CSRC.is_dir():
        pytest.skip("no C++ compiler or no csrc/ here")
    pybind11 = pytest.importorskip("pybind11")
    python = Path(sysconfig.get_paths()["include"])
    if not (python / "Python.h").is_file():
        pytest.skip(f"no Python.h in {python}")
    includes = [f"-I{path}" for path in (CSRC, Path(__file__).parent / "cuda_emulator", pybind11.get_include(), python)]
    sources = [CSRC / f"bindings/{name}.cpp" for name in ("module_cuda", "tensor_arg", "graph_arg")]
    sources += [path for name in ("core", "ops", "engine") for path in (CSRC / name).glob("*.cpp")]
    sources += (CSRC / "bindings").glob("cuda_*.cpp")
    sources += [*(CSRC / "cuda").glob("*.cpp"), *(CSRC / "cuda").rglob("*.cu")]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.parent.name}-{source.name}.o"
        command = [compiler, *FLAGS, *includes, "-x", "c++", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{source} does not compile:\n{done.stderr}"
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    linked = folder / f"linked-{library.name}"
    subprocess.run([compiler, "-shared", *objects, "-o", str(linked)], check=True)
    linked.replace(library)


class _Tensor(ctypes.Structure):  # dlpack_abi.h
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}


class FakeCudaTensor:
    """An array that says it lies on a CUDA device."""

    def __init__(self, array: np.ndarray, device: int = 0) -> None:
        self.array = array  # keeps the memory alive
        sides = ctypes.c_int64 * max(1, array.ndim)
        self.shape = sides(*array.shape)
        self.strides = sides(*(stride // array.itemsize for stride in array.strides))
        code, bits = TYPE_CODES[array.dtype.kind], 8 * array.itemsize
        self.managed = _Tensor(
            array.ctypes.data, 2, device, array.ndim, code, bits, 1, self.shape, self.strides, 0, None, None
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.managed.device_id

    def __dlpack__(self, **_: Any) -> Any:
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return capsule(ctypes.addressof(self.managed), b"dltensor", None)


def device_array(array: Any, *, front: bool = False) -> FakeCudaTensor:
    """A copy "on the device", between pages that nobody may touch (harness.guarded); `.array` reads it back."""
    return FakeCudaTensor(guarded(array, front=front))


def live_allocations(module: ModuleType) -> int:
    """How many allocations of device and pinned memory the emulator's cudaFree has not seen yet."""
    return _counter(module, "live_allocations")


def live_bytes(module: ModuleType) -> int:
    """How many bytes of device memory are allocated."""
    return _counter(module, "live_bytes")


def launches(module: ModuleType) -> int:
    """How many kernels have run."""
    return _counter(module, "launches")


def spoil_captures(module: ModuleType, count: int) -> None:
    """Lets the next captures fail at their end, as if another thread had waited for the device."""
    ctypes.CDLL(module.__file__).yolonas_emulator_spoil_captures(count)


def _counter(module: ModuleType, name: str) -> int:
    function = getattr(ctypes.CDLL(module.__file__), f"yolonas_emulator_{name}")
    function.restype, function.argtypes = ctypes.c_uint64, []
    return function()
