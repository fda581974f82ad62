"""What tests of native code share: instruction sets, tolerances, guarded memory, awkward sizes, hostile values."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolonas import _native

ROOT = Path(__file__).resolve().parents[1]
# Every table there is; those that cannot run here are skipped, visibly.
ISAS = ("generic", "avx2", "avx512", "avx512vnni")

# Lengths around the vector widths (8 and 16 floats, 32 per scan step), primes, and one that spans several pieces.
LENGTHS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 61, 64, 65, 127, 2047, 2048, 2049, 5003)

# (height, width) of level sizes, from one cell to several blocks of 64 with a rest.
LEVEL_SIZES = ((1, 1), (1, 2), (2, 1), (1, 7), (3, 3), (1, 8), (8, 1), (3, 5), (4, 4), (5, 13), (8, 8), (9, 16))

# Convolutions: x (N, H, W, C), weight (K, kh, kw), stride, padding. Tiles are 6 columns by 16 channels.
CONVOLUTIONS = (
    ((1, 1, 1, 1), (1, 1, 1), 1, 0),
    ((1, 5, 6, 3), (16, 3, 3), 1, 1),
    ((1, 5, 7, 3), (15, 3, 3), 2, 1),
    ((2, 6, 5, 5), (17, 3, 3), 1, 1),
    ((1, 7, 11, 17), (33, 3, 3), 1, 1),
    ((1, 7, 13, 17), (16, 3, 3), 2, 1),
    ((1, 4, 12, 16), (16, 1, 1), 1, 0),
    ((3, 3, 19, 5), (33, 1, 1), 1, 0),
    ((1, 8, 8, 3), (16, 2, 2), 2, 0),
    ((1, 9, 9, 2), (8, 5, 5), 1, 2),
    ((1, 6, 6, 4), (7, 5, 5), 3, 4),
    ((1, 4, 4, 3), (4, 2, 3), 1, 1),
    ((1, 1, 1, 3), (5, 3, 3), 1, 1),
    ((1, 2, 40, 7), (24, 3, 3), 2, 1),
    ((1, 3, 3, 1), (1, 5, 1), 1, 2),
    ((0, 4, 4, 3), (5, 3, 3), 1, 1),
    ((1, 0, 4, 3), (5, 3, 3), 1, 2),
    ((1, 12, 10, 64), (64, 3, 3), 1, 1),
)

ROUNDOFF = 2.0**-24  # of float32: largest relative error of one rounding

# Largest relative error of the float32 kernels against float64; integers and comparisons are exact and not listed.
SIGMOID_RTOL = 6 * ROUNDOFF  # 3 ulp
SIGMOID_ATOL = 2.0**-125  # logits below -87 have score 0
DISTANCE_ATOL = 16 * 32 * ROUNDOFF  # DFL expectation, in strides: 17 weighted terms of at most 16 and their sum


def box_tolerance(boxes: np.ndarray, stride: float | np.ndarray) -> np.ndarray:
    """Bound for decoded boxes `(..., 4)`: the distance's error times the stride, and two roundings of the result."""
    return DISTANCE_ATOL * stride + 4 * ROUNDOFF * (np.abs(boxes) + 32 * stride)


def dot_tolerance(magnitude: np.ndarray, depth: int) -> np.ndarray:
    """Bound for a float32 sum of `depth` products whose absolute values sum to `magnitude`, in any order."""
    return (depth + 4) * ROUNDOFF * magnitude + 1e-37


def native() -> Any:
    return _native.cpu()


def runs_here(isa: str) -> bool:
    return isa in native().available_isas().split(", ")


@contextlib.contextmanager
def using_isa(isa: str) -> Iterator[None]:
    """The named kernel table for the time of the block."""
    before = native().isa()
    native()._use_isa(isa)
    try:
        assert native().isa() == isa
        yield
    finally:
        native()._use_isa(before)


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    before = native().num_threads()
    native().set_num_threads(count)
    try:
        yield
    finally:
        native().set_num_threads(before)


def bits(array: Any) -> np.ndarray:
    """The bytes of an array: equality that tells -0 from 0 and takes NaN for itself."""
    return np.ascontiguousarray(array).view(np.uint8)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a fresh interpreter, with this package and these environment variables."""
    package = Path(_native.__file__).resolve().parents[1]
    paths = os.pathsep.join([str(package), str(ROOT / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code]
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)


# --- memory that ends, or begins, at a page that nobody may touch ---


def guarded(array: Any, *, front: bool = False) -> np.ndarray:
    """A copy whose last byte (`front`: first byte) borders on an unmapped page: one element too far is a crash."""
    array = np.asarray(array)
    copy = guarded_empty(array.shape, array.dtype, front=front)
    copy[...] = array
    return copy


def guarded_empty(shape: Sequence[int], dtype: Any, *, front: bool = False) -> np.ndarray:
    """The same without a value: bytes of 0xa5, which is no small number in any dtype."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size == 0:
        return np.empty(shape, dtype)
    page = mmap.PAGESIZE
    pages = -(-size // page)
    libc = _libc()
    total = (pages + 2) * page
    address = libc.mmap(None, total, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise MemoryError("guarded_empty: mmap failed")
    for guard in (address, address + (pages + 1) * page):
        if libc.mprotect(guard, page, 0) != 0:
            raise OSError(ctypes.get_errno(), "guarded_empty: mprotect failed")
    start = address + page if front else address + (pages + 1) * page - size
    memory = (ctypes.c_uint8 * size).from_address(start)
    weakref.finalize(memory, libc.munmap, address, total)
    array = np.frombuffer(memory, np.uint8)
    array[:] = 0xA5
    return array.view(dtype).reshape(shape)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


# --- hostile values ---


class DLPackArray:
    """Exports float32 memory through DLPack, on the device and with the strides that a test wants."""

    def __init__(
        self, shape: Sequence[int], *, device: tuple[int, int] = (1, 0), code: int = 2, size: int = 32
    ) -> None:
        self.memory = np.zeros(max(1, int(np.prod(shape))), np.float32)
        rank = len(shape)
        self.shape = (ctypes.c_int64 * max(1, rank))(*shape)
        self.managed = _ManagedTensor(
            self.memory.ctypes.data, device[0], device[1], rank, code, size, 1, ctypes.addressof(self.shape), None, 0
        )

    def __dlpack__(self, **_: Any) -> Any:
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return capsule(ctypes.addressof(self.managed), b"dltensor", None)


CUDA = (2, 0)  # DLPack's device type and index


class _ManagedTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


def hostile_values() -> dict[str, Any]:
    """Things that are handed over by mistake, by name."""
    plain = np.zeros((2, 3, 4, 4), np.float32)
    return {
        "none": None,
        "text": "picture.jpg",
        "bytes": b"\x00" * 48,
        "number": 1.5,
        "huge number": 10**30,
        "negative": -1,
        "nan": float("nan"),
        "object": object(),
        "empty list": [],
        "list of numbers": [1.0, 2.0],
        "list of none": [None],
        "dict": {"a": 1},
        "float64": plain.astype(np.float64),
        "float16": plain.astype(np.float16),
        "int64": plain.astype(np.int64),
        "bool": plain.astype(bool),
        "complex": plain.astype(np.complex64),
        "big endian": plain.astype(">f4"),
        "datetime": np.zeros(3, "datetime64[s]"),
        "strings": np.array(["a", "b"]),
        "objects": np.array([None, 1], object),
        "record": np.zeros(2, [("a", "f4"), ("b", "i4")]),
        "zero-dimensional": np.array(1.0, np.float32),
        "empty": np.zeros((0,), np.float32),
        "empty 4-d": np.zeros((0, 3, 0, 4), np.float32),
        "not contiguous": plain.transpose(0, 3, 1, 2),
        "backwards": plain[:, ::-1],
        "broadcast": np.broadcast_to(np.float32(0), (2, 3, 4, 4)),
        "nine axes": np.zeros((1,) * 9, np.float32),
        "on cuda": DLPackArray((2, 3, 4, 4), device=CUDA),
        "on an unknown device": DLPackArray((2, 3, 4, 4), device=(99, 0)),
        "bfloat16": DLPackArray((2, 3, 4, 4), code=4, size=16),
        "no capsule": type("NoCapsule", (), {"__dlpack__": lambda self, **_: 7})(),
    }
