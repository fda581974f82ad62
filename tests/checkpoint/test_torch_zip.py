"""Files of torch.save: tensors come out as they went in; damaged and hostile files are refused."""

from __future__ import annotations

import contextlib
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_pickles import STOP, call, entry, name, number, storage, tensor, text, write, zipped

from yolonas.checkpoint.pickle_reader import MAX_PICKLE_BYTES
from yolonas.checkpoint.tensor_file import StoredTensor, TensorFile, load_tensor
from yolonas.checkpoint.torch_zip import read_torch_zip
from yolonas.errors import CheckpointError

ONES = struct.pack("<4f", 1, 1, 1, 1)


def read(path: Path) -> Any:
    """The tree with its tensors loaded, as torch.load(weights_only=True) would give it (dicts of tensors only)."""
    with TensorFile(path) as file:
        tree = read_torch_zip(file)
        if isinstance(tree, dict):
            return {k: load_tensor(file, v) if isinstance(v, StoredTensor) else v for k, v in tree.items()}
        return tree


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("protocol", range(2, 6))
def test_tensors_equal_those_saved(tmp_path: Path, protocol: int):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16)
    tensors = {str(dtype): (base % 7).to(dtype) for dtype in (*floats, *integers, torch.float8_e4m3fn)}
    tensors |= {
        "transposed": base.transpose(0, 2),
        "slice": base[1:, ::2, 1],
        "shared": base,
        "one": base[2, 3, 4],
        "empty": base[:, :0],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base[0].clone()),
    }
    path = saved(tmp_path / "t.pt", tensors, pickle_protocol=protocol)
    ours = read(path)
    assert list(ours) == list(tensors)
    for key, value in tensors.items():
        assert ours[key].dtype == value.dtype, key
        assert ours[key].shape == value.shape
        assert torch.equal(ours[key].to(torch.float64), value.to(torch.float64)), key


def test_loaded_tensors_have_memory_of_their_own(tmp_path: Path):
    path = saved(tmp_path / "t.pt", {"a": torch.ones(4)})
    value = read(path)["a"]
    path.write_bytes(b"overwritten")
    value += 1
    assert value.tolist() == [2.0] * 4


def test_modules_keep_their_classes_as_names(tmp_path: Path):
    tree = read(saved(tmp_path / "m.pt", torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU())))
    assert tree.class_name == "Sequential"
    assert [child.class_name for child in tree.attributes["_modules"].values()] == ["Conv2d", "ReLU"]


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="this torch always writes checksums")
def test_files_without_checksums(tmp_path: Path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "t.pt", {"a": torch.arange(5)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(path)["a"].tolist() == [0, 1, 2, 3, 4]


def test_damage_in_a_tensor_is_found_by_its_checksum(tmp_path: Path):
    path = saved(tmp_path / "t.pt", {"a": torch.full((1000,), 0.5)})
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 0.5) * 10) + 400] ^= 1
    with pytest.raises(CheckpointError, match=r"checksum of t/data/0 does not match"):
        read(write(path, bytes(data)))


def test_handmade_file(tmp_path: Path):
    data = b"}" + entry("a", tensor("0", 4, (2, 2), (2, 1))) + STOP
    assert torch.equal(read(write(tmp_path / "a.pt", zipped(data, {"0": ONES})))["a"], torch.ones(2, 2))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (tensor("0", 10**10, (10**10,), (1,)), "claims 10000000000 elements of float32, it has 16 bytes"),
        (tensor("0", 4, (2_500_000_000,), (1,)), "needs more than the 16 bytes"),
        (tensor("0", 4, (50_000, 50_000), (1, 1)), "needs more than the 16 bytes"),
        (tensor("0", 4, (2_500_000_000,), (0,)), "claims 2500000000 elements where 1 are stored"),
        (tensor("0", 4, (3, 2), (1, 1)), "claims 6 elements where 4 are stored"),
        (tensor("1", 4, (4,), (1,)), "storage .*data/1 is missing"),
        (tensor("../version", 1, (1,), (1,)), "is missing"),
        (tensor("0", 5, (4,), (1,)), "claims 5 elements"),
        (tensor("0", 2, (4,), (1,), kind="DoubleStorage"), "needs more than the 16 bytes"),
        (tensor("0", 4, (4,), (1,), kind="UnheardStorage"), "unknown class"),
        (call("torch._utils", "_rebuild_tensor_v2", b"N", number(0), b")", b")", b"\x89", b"N"), "without a storage"),
        (b"(" + text("module") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ", "no storage"),
        (b"NQ", "no storage"),
        (storage("0", -1), "no proper name or size"),
    ],
)
def test_tensor_claims(tmp_path: Path, value: bytes, reason: str):
    path = write(tmp_path / "a.pt", zipped(b"}" + entry("a", value) + STOP, {"0": ONES}))
    with pytest.raises(CheckpointError, match=reason):
        read(path)


def test_sparse_tensors_are_not_read(tmp_path: Path):
    data = b"}" + entry("a", tensor("0", 100_000, (2,), (99_999,))) + STOP
    with pytest.raises(CheckpointError, match="spreads 2 elements over 100000"):
        read(write(tmp_path / "a.pt", zipped(data, {"0": bytes(400_000)})))


def test_zip_bomb(tmp_path: Path):
    data = b"}" + entry("a", tensor("0", 25_000_000, (25_000_000,), (1,))) + STOP
    bomb = zipped(data, {"0": bytes(100_000_000)}, method=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 200_000
    with pytest.raises(CheckpointError, match="is compressed or encrypted"):
        read(write(tmp_path / "bomb.pt", bomb))


def test_large_pickle(tmp_path: Path):
    path = write(tmp_path / "a.pt", zipped(b"N0" * (MAX_PICKLE_BYTES // 2) + b"N."))
    with pytest.raises(CheckpointError, match="at most"):
        read(path)


def test_members_that_overlap(tmp_path: Path):
    good = zipped(b"}" + entry("a", tensor("0", 4, (4,), (1,))) + STOP, {"0": ONES, "1": ONES})
    positions = [at for at in range(len(good)) if good.startswith(b"PK\x01\x02", at)]
    data = bytearray(good)
    data[positions[2] + 42 : positions[2] + 46] = data[positions[1] + 42 : positions[1] + 46]  # header of 1 = that of 0
    with pytest.raises(CheckpointError, match="overlaps"):
        read(write(tmp_path / "a.pt", bytes(data)))


def test_same_name_twice(tmp_path: Path):
    good = zipped(b"}.", {"0": ONES, "1": ONES})
    with pytest.raises(CheckpointError, match="makes no sense"):
        read(write(tmp_path / "a.pt", good.replace(b"archive/data/1", b"archive/data/0")))


def test_other_zip_files(tmp_path: Path):
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        read(tmp_path / "a.npz")
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as file:
        for member in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            file.writestr(f"script/{member}", b"N.")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"N.")
        file.writestr("a/byteorder", b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read(path)


def test_archive_with_64_bit_records(tmp_path: Path):
    path = tmp_path / "a.pt"
    data = b"}" + entry("a", tensor("0", 4, (4,), (1,))) + STOP
    with zipfile.ZipFile(path, "w") as file:
        for member, value in {"archive/data.pkl": data, "archive/data/0": ONES}.items():
            with file.open(member, "w", force_zip64=True) as stream:
                stream.write(value)
    assert read(path)["a"].tolist() == [1.0] * 4


def test_every_truncation(tmp_path: Path):
    path = saved(tmp_path / "t.pt", {"a": torch.arange(8.0), "b": torch.arange(3)})
    whole = path.read_bytes()
    for length in [*range(0, 600, 5), *range(600, len(whole), 3)]:
        with pytest.raises(CheckpointError):
            read(write(path, whole[:length]))


def test_random_damage_never_escapes(tmp_path: Path):
    generator = random.Random(1)
    path = saved(tmp_path / "t.pt", {"a": torch.arange(8.0), "b": torch.arange(3, dtype=torch.int16)})
    whole = path.read_bytes()
    headers = [at for at in range(len(whole)) if whole.startswith((b"PK",), at)]
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 2, 5))):
            # Half of the damage goes where the structure is.
            at = generator.choice(headers) + generator.randrange(60) if generator.random() < 0.5 else len(data)
            data[at if at < len(data) else generator.randrange(len(data))] = generator.randrange(256)
        with contextlib.suppress(CheckpointError):
            read(write(path, bytes(data)))


def test_random_damage_with_right_checksums(tmp_path: Path):
    # As an attacker would do it: the pickle is changed and its checksum corrected.
    generator = random.Random(2)
    data = b"}" + entry("a", tensor("0", 4, (2, 2), (2, 1))) + entry("b", tensor("0", 4, (4,), (1,))) + STOP
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(generator.choice((1, 1, 3))):
            changed[generator.randrange(len(data))] = generator.randrange(256)
        with contextlib.suppress(CheckpointError):
            read(write(tmp_path / "a.pt", zipped(bytes(changed), {"0": ONES})))


def test_file_that_shrinks_while_it_is_read(tmp_path: Path):
    path = saved(tmp_path / "t.pt", {"a": torch.zeros(100_000)})
    with TensorFile(path) as file:
        tree = read_torch_zip(file)
        with path.open("r+b") as other:
            other.truncate(2000)
        with pytest.raises(CheckpointError, match="ends at byte"):
            load_tensor(file, tree["a"])


@pytest.mark.parametrize("name", ["missing.pt", ".", "a\0b"])
def test_paths_that_are_no_files(tmp_path: Path, name: str):
    with pytest.raises(CheckpointError, match=r"does not exist|is a folder|cannot be opened"):
        TensorFile(tmp_path / name)
