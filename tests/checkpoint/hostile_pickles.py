"""Makes pickles opcode by opcode, and zip files like those of torch.save around them, for tests of the readers."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

STOP = b"."


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """LONG1."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    """GLOBAL, a tuple of arguments, REDUCE."""
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def entry(key: str, value: bytes) -> bytes:
    """One entry of the dict below it on the stack."""
    return text(key) + value + b"s"


def storage(key: str, numel: int, kind: str = "FloatStorage") -> bytes:
    """A persistent id as torch writes it."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(numel) + b"tQ"


def tensor(
    key: str, numel: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, **kind: str
) -> bytes:
    """A tensor as torch writes it."""
    sizes = b"(" + b"".join(map(number, shape)) + b"t"
    steps = b"(" + b"".join(map(number, stride)) + b"t"
    hooks = call("collections", "OrderedDict")
    return call(
        "torch._utils", "_rebuild_tensor_v2", storage(key, numel, **kind), number(offset), sizes, steps, b"\x89", hooks
    )


def zipped(data: bytes, storages: dict[str, bytes] | None = None, *, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file with the layout of torch.save."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("archive/data.pkl", data)
        for key, value in (storages or {}).items():
            file.writestr(f"archive/data/{key}", value)
        file.writestr("archive/version", b"3\n")
    return buffer.getvalue()


class Payload:
    """Pickles as a call of `function(*args)`: what an attacker does."""

    def __init__(self, function: Any, *args: Any):
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.args


def payload(function: Any, *args: Any, protocol: int = 2) -> bytes:
    return pickle.dumps({"net": Payload(function, *args)}, protocol=protocol)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
