"""Reads the zip files that torch.save writes: the directory, the pickle inside, and its references to stored tensors.

Nothing is unpacked: torch stores its members as they are, so a tensor is a range of the file. Compressed, encrypted or
overlapping members are refused. Only what a tensor claims and the file really holds is ever read.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .pickle_names import storage_dtype
from .pickle_reader import MAX_PICKLE_BYTES, read_pickle
from .tensor_file import ITEM_SIZES, Storage, TensorFile, TypedStorage, brief, is_size

MAGIC = b"PK\x03\x04"
MAX_MEMBERS = 200_000
MAX_DIRECTORY_BYTES = 64 << 20

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DAMAGED = "is damaged or cut short:"


@dataclass(frozen=True)
class _Member:
    name: str
    header: int  # bytes from the start of the file to the local header
    size: int  # bytes
    crc: int | None  # None: not recorded


def read_torch_zip(file: TensorFile) -> Any:
    """The saved object: plain values, `Global`s, `Record`s and, for tensors, `StoredTensor`s.

    Raises CheckpointError; its text does not name the file.
    """
    members, directory_start = _read_directory(file)
    pickles = [name for name in members if name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)]
    if len(pickles) != 1:
        raise CheckpointError("is a zip file, but not one of torch.save: it holds no data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise CheckpointError("is a TorchScript program, which would have to be executed; give the weights themselves")
    order = members.get(f"{folder}byteorder")
    if order is not None and _read(file, order, directory_start)[:6] != b"little":
        raise CheckpointError("was written on a big-endian machine, which is not supported")
    storages: dict[str, Storage] = {}

    def load_storage(reference: Any) -> TypedStorage:
        # ("storage", class, key, device, number of elements); devices mean nothing here
        if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
            raise CheckpointError(f"{_DAMAGED} it refers to something that is no storage")
        dtype, key, numel = storage_dtype(reference[1]), reference[2], reference[4]
        if type(key) is not str or not is_size(numel):
            raise CheckpointError(f"{_DAMAGED} a storage has no proper name or size")
        if key not in storages:
            member = members.get(f"{folder}data/{key}")
            if member is None:
                raise CheckpointError(f"{_DAMAGED} the storage data/{brief(key)} is missing")
            storages[key] = _storage(file, member, directory_start)
        storage = storages[key]
        if numel * ITEM_SIZES[dtype or "uint8"] > storage.size:
            raise CheckpointError(
                f"{_DAMAGED} {storage.name} claims {numel} elements of {dtype or 'uint8'}, it has {storage.size} bytes"
            )
        return TypedStorage(storage, dtype, numel)

    return read_pickle(_read(file, members[pickles[0]], directory_start), load_storage)


def _read_directory(file: TensorFile) -> tuple[dict[str, _Member], int]:
    """Members by name, and the directory's first byte, before which all data lie."""
    count, size, start = _find_directory(file)
    if count > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES or size < count * _ENTRY.size:
        raise CheckpointError(f"{_DAMAGED} its directory claims {count} members in {size} bytes")
    data = file.read(start, size)
    members: dict[str, _Member] = {}
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > size:
            raise CheckpointError(f"{_DAMAGED} its directory breaks off")
        signature, _, _, flags, method, _, _, crc, packed, unpacked, *rest = _ENTRY.unpack_from(data, at)
        name_size, extra_size, comment_size, _, _, _, header = rest
        at += _ENTRY.size
        name = data[at : at + name_size].decode("utf-8", "replace")
        extra = data[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        if signature != b"PK\x01\x02" or at > size or name in members:
            raise CheckpointError(f"{_DAMAGED} its directory makes no sense at {brief(name)!r}")
        unpacked, packed, header = _wide_sizes(extra, unpacked, packed, header)
        if method != 0 or packed != unpacked or flags & 1:
            raise CheckpointError(
                f"is not of torch.save: {brief(name)!r} is compressed or encrypted ({packed} of {unpacked} bytes)"
            )
        members[name] = _Member(name, header, unpacked, crc or None)  # torch can be told not to write checksums: 0
    end = 0
    for member in sorted(members.values(), key=lambda member: member.header):
        if member.header < end:
            raise CheckpointError(f"is not a file of torch.save: {brief(member.name)!r} overlaps the member before it")
        end = member.header + _LOCAL.size + len(member.name.encode("utf-8", "replace")) + member.size
    if end > start:
        raise CheckpointError(f"{_DAMAGED} its members reach into its directory")
    return members, start


def _find_directory(file: TensorFile) -> tuple[int, int, int]:
    """Number of members, bytes and position of the directory, from the record at the end of the file."""
    tail_start = max(0, file.size - _END.size - 0xFFFF)
    tail = file.read(tail_start, file.size - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise CheckpointError(f"{_DAMAGED} the end of the zip file is missing")
    _, _, _, _, count, size, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise CheckpointError(f"{_DAMAGED} the end of the zip file is not at the end")
    end = tail_start + at
    if at >= _LOCATOR_64.size and tail.startswith(b"PK\x06\x07", at - _LOCATOR_64.size):
        _, _, end, _ = _LOCATOR_64.unpack_from(tail, at - _LOCATOR_64.size)
        signature, *_, count, size, start = _END_64.unpack(file.read(end, _END_64.size))
        if signature != b"PK\x06\x06":
            raise CheckpointError(f"{_DAMAGED} the end of the zip file makes no sense")
    if start + size > end:
        raise CheckpointError(f"{_DAMAGED} the zip file's directory is not where it should be")
    return count, size, start


def _wide_sizes(extra: bytes, *values: int) -> list[int]:
    """Sizes and positions beyond 4 GB, which stand in an extra field; the others as they are."""
    wide = list(values)
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + size]
            for i, value in enumerate(values):
                if value == 0xFFFFFFFF and len(field) >= 8:
                    wide[i] = int.from_bytes(field[:8], "little")
                    field = field[8:]
        at += 4 + size
    return wide


def _read(file: TensorFile, member: _Member, directory_start: int) -> bytes:
    """The bytes of a small member."""
    where = _storage(file, member, directory_start)
    if where.size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"has {brief(where.name)} of {where.size} bytes; at most {MAX_PICKLE_BYTES} are read")
    data = file.read(where.offset, where.size)
    if where.crc is not None and zlib.crc32(data) != where.crc:
        raise CheckpointError(f"{_DAMAGED} the checksum of {brief(where.name)} does not match its bytes")
    return data


def _storage(file: TensorFile, member: _Member, directory_start: int) -> Storage:
    """Where a member's bytes are: behind its local header, whose length only the header itself tells."""
    header = file.read(member.header, _LOCAL.size)
    signature, *_, name_size, extra_size = _LOCAL.unpack(header)
    offset = member.header + _LOCAL.size + name_size + extra_size
    if signature != MAGIC or offset + member.size > directory_start:
        raise CheckpointError(f"{_DAMAGED} {brief(member.name)!r} is not where the directory says")
    return Storage(brief(member.name), offset, member.size, member.crc)
