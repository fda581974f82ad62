"""Reads the header of a safetensors file: which tensors lie where, and the metadata strings.

The safetensors package writes these files (`checkpoint.save_checkpoint`); reading is done here so that a hostile header
meets the same checks and the same errors as the other formats.
"""

from __future__ import annotations

import json
import math
from typing import Any

from ..errors import CheckpointError
from .tensor_file import (
    ITEM_SIZES,
    MAX_DIMENSIONS,
    Storage,
    StoredTensor,
    TensorFile,
    TypedStorage,
    are_sizes,
    brief,
    contiguous_strides,
    stored_tensor,
)

MAX_HEADER_BYTES = 16 << 20  # ours and the published ones have about 100 kB
MAX_TENSORS = 200_000
MAX_DIGITS = 100

_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file's first nine bytes are those of a header length and an opening brace."""
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


def read_safetensors(file: TensorFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors by name, and the metadata. Raises CheckpointError; its text does not name the file."""
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    header = parse_json(file.read(8, length), "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("is damaged: its metadata is not a table of strings")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"claims {len(header)} tensors; at most {MAX_TENSORS} are read")
    tensors = {name: _tensor(name, entry, 8 + length, file.size) for name, entry in header.items()}
    _check_layout(tensors)
    return tensors, metadata


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object from untrusted bytes. Raises CheckpointError for anything else, and for repeated keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key stands twice")
        return table

    def short_int(digits: str) -> int:
        if len(digits) > MAX_DIGITS:  # int() takes quadratic time
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_int=short_int, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON or bad UTF-8 too
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise CheckpointError(f"is damaged: its {what} is no valid JSON ({reason})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"is damaged: its {what} is not a JSON object")
    return value


def _tensor(name: str, entry: Any, data_start: int, file_size: int) -> StoredTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"is damaged: {brief(name)} has no proper dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise CheckpointError(f"has data of an unknown type in {brief(name)}, known are {', '.join(_DTYPES)}")
    if not are_sizes(shape) or not are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"is damaged: {brief(name)} must have a shape of up to {MAX_DIMENSIONS} sizes and two data_offsets"
        )
    begin, end = offsets
    if not begin <= end <= file_size - data_start:
        raise CheckpointError(f"is damaged or cut short: {brief(name)} lies beyond the end of the file")
    if math.prod(shape) * ITEM_SIZES[dtype] != end - begin:
        raise CheckpointError(
            f"is damaged or malicious: {brief(name)} of shape {brief(shape)} does not fit its {end - begin} bytes"
        )
    storage = TypedStorage(Storage(brief(name), data_start + begin, end - begin), dtype, math.prod(shape))
    return stored_tensor(storage, 0, shape, contiguous_strides(shape))


def _check_layout(tensors: dict[str, StoredTensor]) -> None:
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.storage.offset, tensor.storage.size)):
        if tensor.storage.offset < end:
            raise CheckpointError(f"is damaged or malicious: {tensor.storage.name} overlaps the tensor before it")
        end = tensor.storage.offset + tensor.storage.size
