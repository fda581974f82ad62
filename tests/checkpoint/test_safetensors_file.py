"""safetensors files: the same tensors as the safetensors package reads, and hostile headers refused."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from yolonas.checkpoint.safetensors_file import MAX_HEADER_BYTES, looks_like_safetensors, parse_json, read_safetensors
from yolonas.checkpoint.tensor_file import TensorFile, load_tensor
from yolonas.errors import CheckpointError

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, header: Any, data: bytes = bytes(8)) -> Path:
    """A file with this header: bytes as they are, anything else as JSON."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with TensorFile(path) as file:
        tensors, metadata = read_safetensors(file)
        return {key: load_tensor(file, stored) for key, stored in tensors.items()}, metadata


def test_tensors_equal_those_of_the_package(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    base = torch.arange(24).reshape(2, 3, 4)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(dtype): base.to(dtype) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(5), "empty": torch.zeros(0, 3)}
    save_file(tensors, path, metadata={"format": "pt"})
    assert looks_like_safetensors(path.read_bytes()[:9])
    ours, metadata = read(path)
    assert metadata == {"format": "pt"}
    theirs = load_file(path)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        assert torch.equal(ours[key], value)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "no valid JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe{}", "no valid JSON"),
        (b'{"a": 1, "a": 2}', "a key stands twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "1000000 digits"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"a": ' * 200_000 + b"1" + b"}" * 200_000, "nested too deeply"),
        ({"__metadata__": []}, "table of strings"),
        ({"__metadata__": {"a": 1}}, "table of strings"),
        ({"a": []}, "no proper dtype"),
        ({"a": {**ONE, "more": 1}}, "no proper dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "no proper dtype"),
        ({"a": {**ONE, "dtype": "F33"}}, "unknown type"),
        ({"a": {**ONE, "dtype": ["F32"]}}, "unknown type"),
        ({"a": {**ONE, "shape": 2}}, "must have a shape"),
        ({"a": {**ONE, "shape": [-2]}}, "must have a shape"),
        ({"a": {**ONE, "shape": [2.0]}}, "must have a shape"),
        ({"a": {**ONE, "shape": [True]}}, "must have a shape"),
        ({"a": {**ONE, "shape": [1] * 17}}, "must have a shape"),
        ({"a": {**ONE, "data_offsets": [0, 8, 16]}}, "two data_offsets"),
        ({"a": {**ONE, "data_offsets": [8, 0]}}, "lies beyond the end"),
        ({"a": {**ONE, "data_offsets": [0, 9]}}, "lies beyond the end"),
        ({"a": {**ONE, "data_offsets": [0, 2**80]}}, "two data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10_000_000_000]}}, "beyond the end"),
        ({"a": {**ONE, "shape": [3]}}, "does not fit its 8 bytes"),
        ({"a": {**ONE, "shape": [2**61, 2**61]}}, "does not fit its 8 bytes"),
        ({"a": ONE, "b": ONE}, "overlaps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_headers(tmp_path: Path, header: Any, reason: str):
    with pytest.raises(CheckpointError, match=reason) as caught:
        read(write(tmp_path / "a.safetensors", header))
    assert len(str(caught.value)) < 600


def test_header_beyond_the_file(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="cut short"):
        read(path)
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="at most"):
        read(path)
    path.write_bytes(b"\x02")
    with pytest.raises(CheckpointError, match="cut short"):
        read(path)


def test_parse_json_reads_plain_objects():
    assert parse_json(b'{"a": [1, 2.5, null, "\\u00e4"]}', "text") == {"a": [1, 2.5, None, "ä"]}


def test_every_truncation_and_random_damage(tmp_path: Path):
    generator = random.Random(3)
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(8.0), "b": torch.arange(3)}, path, metadata={"format": "pt"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read(path)
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 2, 5))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(CheckpointError):
            read(path)
