"""A file that holds tensors, as bytes with bounds: opening it, reading pieces, and tensors described before loading.

A `StoredTensor` says where in the file its elements lie; nothing is read until `load_tensor`. All numbers in it come
from the file and are checked against what is really stored, so that no claim can make a reader allocate more than the
file has. Formats are elsewhere: `torch_zip` and `safetensors_file` make `StoredTensor`s.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

# Bytes per element by torch dtype name. Others may occur in a file but never in a network's weights.
ITEM_SIZES = {
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2},
    **{"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1},
    **{"uint64": 8, "uint32": 4, "uint16": 2, "complex128": 16, "complex64": 8, "complex32": 4},
    **{"float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1},
    **{"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1},
}
MAX_DIMENSIONS = 16
MAX_SPREAD = 16  # stored elements per element of a strided tensor; small tensors may have MIN_SPREAD in all
MIN_SPREAD = 65_536


class TensorFile:
    """A regular file open for reading; a context manager. Reads never go beyond its end."""

    def __init__(self, path: Path):
        try:
            if not path.is_file():
                reason = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
                raise CheckpointError(reason)
            self._file = path.open("rb", buffering=0)
            self.size = self._file.seek(0, 2)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise CheckpointError(f"cannot be opened: {error}") from None

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; CheckpointError where the file has fewer."""
        self._check_range(offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills a writable buffer of bytes from `offset`."""
        # Plain reads instead of a memory map: a file that is cut short meanwhile is an error here, not a crash.
        self._check_range(offset, len(buffer))
        try:
            self._file.seek(offset)
            filled = 0
            while filled < len(buffer):
                count = self._file.readinto(buffer[filled:])
                if not count:
                    raise CheckpointError(f"ends at byte {offset + filled} while it is being read")
                filled += count
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error}") from None

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CheckpointError(
                f"is damaged or cut short: needs bytes {offset} to {offset + length}, the file has {self.size}"
            )


@dataclass(frozen=True)
class Storage:
    """A run of bytes in a file."""

    name: str
    offset: int  # bytes from the start of the file
    size: int  # bytes
    crc: int | None = None  # CRC-32 of all its bytes, where the file records one


@dataclass(frozen=True)
class TypedStorage:
    """A storage seen as elements. `dtype` None: bytes whose type the tensor tells."""

    storage: Storage
    dtype: str | None
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A strided view of a storage. Offset and strides are in elements; the last element lies inside the storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Elements from the first to the last, both included."""
        if not self.numel:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def overlaps_itself(self) -> bool:
        """True where one stored element stands for several (an expanded tensor); weights never do."""
        return self.numel > self.span


def stored_tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str | None = None) -> StoredTensor:
    """A checked `StoredTensor` from values out of a file. Raises CheckpointError if it would leave its storage."""
    if not isinstance(storage, TypedStorage):
        raise CheckpointError(f"is damaged: a tensor has no storage but a {type(storage).__name__}")
    dtype = dtype or storage.dtype or "uint8"
    name = storage.storage.name
    if not is_size(offset) or not are_sizes(shape) or not are_sizes(stride) or len(shape) != len(stride):
        raise CheckpointError(f"is damaged: the tensor over {name} has no proper offset, shape and stride")
    tensor = StoredTensor(storage.storage, dtype, offset, tuple(shape), tuple(stride))
    item = ITEM_SIZES[dtype]
    if tensor.numel and (offset + tensor.span) * item > storage.storage.size:
        raise CheckpointError(
            f"is damaged or malicious: a tensor of shape {brief(tensor.shape)} with strides {brief(tensor.stride)} "
            f"at {brief(offset)} needs more than the {storage.storage.size} bytes that {name} has"
        )
    return tensor


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_size(value: Any) -> bool:
    """A whole number from 0 to 2**62; True and False are not numbers here."""
    return type(value) is int and 0 <= value < 1 << 62


def are_sizes(values: Any) -> bool:
    """A list or tuple of at most `MAX_DIMENSIONS` sizes."""
    return isinstance(values, (tuple, list)) and len(values) <= MAX_DIMENSIONS and all(map(is_size, values))


def brief(value: Any) -> str:
    """A value for an error message, at most 80 characters and none that a terminal would obey."""
    text = str(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return "".join(c if c.isprintable() else "?" for c in text)


def load_tensor(file: TensorFile, stored: StoredTensor) -> torch.Tensor:
    """Reads one tensor: CPU, its stored dtype, memory of its own."""
    import torch

    dtype = getattr(torch, stored.dtype, None)
    if dtype is None:
        raise CheckpointError(f"has data of type {stored.dtype}, which this torch ({torch.__version__}) does not know")
    if stored.overlaps_itself:
        raise CheckpointError(f"claims {brief(stored.numel)} elements where {stored.span} are stored")
    item = ITEM_SIZES[stored.dtype]
    size = stored.span * item
    if stored.span > max(MAX_SPREAD * stored.numel, MIN_SPREAD):
        raise CheckpointError(f"spreads {stored.numel} elements over {stored.span}; weights are never that sparse")
    raw = torch.empty(size, dtype=torch.uint8)
    if size:
        buffer = memoryview(raw.numpy())
        file.read_into(stored.storage.offset + stored.offset * item, buffer)
        whole = size == stored.storage.size
        if whole and stored.storage.crc is not None and zlib.crc32(buffer) != stored.storage.crc:
            raise CheckpointError(f"is damaged: the checksum of {stored.storage.name} does not match its bytes")
    return raw.view(dtype).as_strided(stored.shape, stored.stride)
