"""Names of models become files: here, in the weights folder, or from a mirror."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_server import Site, serving

from yolonas import download as download_module
from yolonas import weights as weights_module
from yolonas.checkpoint import checkpoint as checkpoint_module
from yolonas.errors import CheckpointError, WeightsNotFoundError
from yolonas.weights import MIRRORS, SHA256, SHIPPED_FILE, Mirror, card_beside, is_shipped, resolve_weights

SHAPES = {"heads.head1.stem.seq.conv.weight": (64, 1, 1, 1), "heads.head1.cls_pred.weight": (80, 1, 1, 1)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights folder; the working directory is an empty one beside it, and nothing can be downloaded."""
    (tmp_path / "work").mkdir()
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("YOLONAS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("YOLONAS_OFFLINE", "1")
    return tmp_path / "weights"


@pytest.fixture
def shipped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that comes with the package, or would."""
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(weights_module, "SHIPPED_FOLDER", tmp_path / "models")
    return tmp_path / "models" / SHIPPED_FILE


@pytest.fixture
def mirrors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Site]]:
    """Two mirrors on the loopback interface: one with a known hash, one whose files are checked by reading."""
    monkeypatch.delenv("YOLONAS_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    monkeypatch.setattr(checkpoint_module, "_shapes", lambda *_: SHAPES)
    content = checkpoint_bytes(SHAPES)
    with serving(content) as first, serving(content) as second:
        table = (
            Mirror(f"{first.url}/yolo_nas_{{v}}_coco.pth", "yolo_nas_{v}_coco.pth"),
            Mirror(f"{second.url}/yolo_nas_{{v}}.pt", "yolo_nas_{v}.pt"),
        )
        monkeypatch.setattr(weights_module, "MIRRORS", table)
        monkeypatch.setattr(weights_module, "SHA256", {"yolo_nas_s_coco.pth": hashlib.sha256(content).hexdigest()})
        yield [first, second]


def checkpoint_bytes(shapes: dict[str, tuple[int, ...]]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"net": {key: torch.ones(shape) for key, shape in shapes.items()}}, buffer)
    return buffer.getvalue()


def not_found(name: str) -> str:
    with pytest.raises(WeightsNotFoundError) as caught:
        resolve_weights(name)
    return str(caught.value)


def touch(path: Path) -> Path:
    path.write_bytes(b"weights")
    return path


def test_existing_files_are_taken_as_they_are(folder: Path, tmp_path: Path):
    path = touch(tmp_path / "my weights.bin")
    assert resolve_weights(path) == path
    assert resolve_weights(str(path)) == path
    local = touch(Path("yolo_nas_s.pt"))
    touch(folder / "yolo_nas_s.pt")
    assert resolve_weights("yolo_nas_s.pt") == local


def test_home_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = touch(tmp_path / "a.pt")
    assert resolve_weights("~/a.pt") == path


@pytest.mark.parametrize(
    "name",
    [
        *("yolo_nas_s", "yolo-nas-s", "YOLO_NAS_S", "yolonas_s", "yolo_nas_s_coco", "yolo_nas_s.pt"),
        *("yolo_nas_s.pth", "yolo_nas_s_coco.pth", "yolo-nas-s.safetensors", "yolo_nas_s.safetensors"),
    ],
)
def test_names_of_the_same_weights(folder: Path, name: str):
    path = touch(folder / "yolo_nas_s_coco.pth")
    touch(folder / "yolo_nas_m_coco.pth")
    assert resolve_weights(name) == path


def test_order_of_places(folder: Path):
    other = touch(folder / "yolo_nas_s_coco.pth")
    assert resolve_weights("yolo_nas_s.pt") == other
    exact = touch(folder / "yolo_nas_s.pt")
    assert resolve_weights("yolo_nas_s.pt") == exact
    local = touch(Path("yolo_nas_s_coco.pth"))
    assert resolve_weights("yolo_nas_s.pt") == exact  # a name with a suffix means that file
    assert resolve_weights("yolo_nas_s") == local
    named = touch(Path("yolo_nas_s"))
    assert resolve_weights("yolo_nas_s") == named


def test_other_files_in_the_weights_folder(folder: Path):
    path = touch(folder / "cells.safetensors")
    assert resolve_weights("cells.safetensors") == path


@pytest.mark.parametrize(
    "name",
    [
        *("yolo_nas_s_shapes", "yolo_nas_s_shapes.pt", "yolo_nas_s_shapes.safetensors"),
        *("YOLO-NAS-S-shapes", "yolo_nas_s_shapes.pth"),
    ],
)
def test_the_network_in_the_package(shipped: Path, name: str):
    touch(shipped)
    assert resolve_weights(name) == shipped
    assert is_shipped(resolve_weights(name))


def test_other_files_win_over_the_one_in_the_package(shipped: Path, folder: Path):
    touch(shipped)
    kept = touch(folder / SHIPPED_FILE)
    assert resolve_weights("yolo_nas_s_shapes.pt") == kept
    assert not is_shipped(kept)
    local = touch(Path(SHIPPED_FILE))
    assert resolve_weights("yolo_nas_s_shapes.pt") == kept  # a name with a suffix means that file
    assert resolve_weights("yolo_nas_s_shapes") == local
    assert resolve_weights(SHIPPED_FILE) == local
    assert not is_shipped(local)
    named = touch(Path("yolo_nas_s_shapes"))
    assert resolve_weights("yolo_nas_s_shapes") == named


@pytest.mark.parametrize("name", ["yolo_nas_m_shapes", "yolo_nas_s_shapes_coco", "yolo_nas_s_shapes.onnx"])
def test_names_that_are_near_to_the_one_in_the_package(shipped: Path, name: str):
    touch(shipped)
    with pytest.raises(WeightsNotFoundError, match=r"did you mean .*yolo_nas_s_shapes"):
        resolve_weights(name)


def test_a_package_without_its_network(shipped: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights_module, "download", None)
    with pytest.raises(WeightsNotFoundError) as caught:
        resolve_weights("yolo_nas_s_shapes.pt")
    text = str(caught.value)
    assert "'yolo_nas_s_shapes.pt' is the network that comes with the package" in text
    assert f"there is no file {shipped}; install a release, or put {SHIPPED_FILE} into {folder}" in text
    assert "known models are yolo_nas_s, yolo_nas_m, yolo_nas_l, yolo_nas_s_shapes" in not_found("resnet.pt")


def test_what_a_user_names_in_the_package_is_a_file_of_it(shipped: Path, monkeypatch: pytest.MonkeyPatch):
    touch(shipped)
    monkeypatch.chdir(shipped.parent)
    assert is_shipped(SHIPPED_FILE)
    assert not is_shipped(f"../{SHIPPED_FILE}")


def test_a_card_lies_beside_its_weights(tmp_path: Path):
    card = {"float32": {}, "int8": {}, "evaluation": {}, "asked": {}}
    (tmp_path / "a.json").write_text(json.dumps(card))
    assert card_beside(tmp_path / "a.safetensors") == card
    assert card_beside(str(tmp_path / "a.safetensors")) == card


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "{}", '{"float32": 1, "int8": 2}', "[" * 100_000, b"\xff{"])
def test_no_card(tmp_path: Path, text: str | bytes | None):
    if text is not None:
        (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert card_beside(tmp_path / "a.safetensors") is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("yolo_nas_x", r"'yolo_nas_x' does not exist; did you mean .*yolo_nas_"),
        ("resnet.pt", "known models are yolo_nas_s, yolo_nas_m, yolo_nas_l"),
        ("yolo_nas_s.onnx", "weights files mostly end in .pt, .pth, .ckpt, .safetensors; did you mean .*yolo_nas_s"),
        ("yolo_nas_pose_s", "pose networks are not supported"),
        ("cels.pt", r"did you mean cells\.pt"),
        ("bees.yolonas", r"'bees\.yolonas' does not exist; NAS\('bees\.pt'\)\.save\('bees\.yolonas'\) makes it"),
        ("sub/cels.yolonas", r"did you mean cells\.yolonas\? NAS\('cels\.pt'\)\.save\('sub/cels\.yolonas'\) makes"),
        ("sub/cels.pt", r"'sub/cels.pt' does not exist; did you mean cells\.pt"),
        ("nowhere/a.pt", "nor does its folder nowhere"),
        ("sub", r"name must be a file, got the folder 'sub'; it holds cells\.pt"),
        ("sub/", "got the folder"),
        (".", "got the folder"),
        ("", "must be a path or one of yolo_nas_s"),
        ("a\0b", "must be a path or one of"),
    ],
)
def test_names_without_a_file(folder: Path, name: str, reason: str):
    touch(folder / "cells.pt")
    Path("sub").mkdir()
    touch(Path("sub/cells.pt"))
    touch(Path("sub/cells.yolonas"))
    with pytest.raises(WeightsNotFoundError, match=reason) as caught:
        resolve_weights(name)
    assert isinstance(caught.value, CheckpointError)
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("name", [None, 5, b"a.pt"])
def test_names_of_other_types(folder: Path, name: Any):
    with pytest.raises(TypeError):
        resolve_weights(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_is_not_opened(folder: Path):
    os.mkfifo("pipe.pt")
    with pytest.raises(WeightsNotFoundError, match="must be a regular file"):
        resolve_weights("pipe.pt")


@pytest.mark.parametrize("value", ["1", "true", "Yes"])
def test_offline(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("YOLONAS_OFFLINE", value)
    monkeypatch.setattr(weights_module, "download", None)
    with pytest.raises(WeightsNotFoundError) as caught:
        resolve_weights("yolo_nas_m")
    text = str(caught.value)
    assert "YOLONAS_OFFLINE" in text
    assert f"Put yolo_nas_m_coco.pth (or yolo_nas_m.pt, yolo_nas_m.safetensors) into {folder}" in text
    assert all(mirror.url.format(v="m") in text for mirror in MIRRORS)


def test_table_of_mirrors():
    assert all(mirror.url.startswith("https://") and "{v}" in mirror.url for mirror in MIRRORS)
    assert sorted(SHA256) == [f"yolo_nas_{v}_coco.pth" for v in "lms"]
    assert {mirror.file.format(v="s") for mirror in MIRRORS} >= {"yolo_nas_s_coco.pth", "yolo_nas_s.pt"}


def test_download(mirrors: list[Site], folder: Path):
    path = resolve_weights("yolo_nas_s.pt")
    assert path == folder / "yolo_nas_s_coco.pth"
    assert path.read_bytes() == mirrors[0].content
    assert resolve_weights("yolo_nas_s") == path
    assert len(mirrors[0].requests) == 1
    assert mirrors[1].requests == []


def test_next_mirror(mirrors: list[Site], folder: Path):
    mirrors[0].content = mirrors[0].content[:-1] + b"?"  # the hash does not match
    assert resolve_weights("yolo_nas_s") == folder / "yolo_nas_s.pt"
    assert not (folder / "yolo_nas_s_coco.pth").exists()


def test_file_without_known_hash_must_be_the_right_network(mirrors: list[Site], folder: Path):
    mirrors[0].statuses = [403]
    with pytest.raises(WeightsNotFoundError, match="it holds YOLO-NAS S, not M"):
        resolve_weights("yolo_nas_m")
    assert [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")] == []


def test_no_mirror_answers(mirrors: list[Site], folder: Path):
    mirrors[0].statuses = [403]
    mirrors[1].content = b"<html>sold</html>"
    with pytest.raises(WeightsNotFoundError) as caught:
        resolve_weights("yolo_nas_s")
    text = str(caught.value)
    assert "no mirror gave it" in text
    assert f"tried {mirrors[0].url}/yolo_nas_s_coco.pth answered 403 Forbidden" in text
    assert f"tried {mirrors[1].url}/yolo_nas_s.pt answered with a web page" in text
    assert f"into {folder}" in text


def test_weights_folder_that_cannot_be_written(mirrors: list[Site], folder: Path, monkeypatch: pytest.MonkeyPatch):
    touch(folder / "file")
    monkeypatch.setenv("YOLONAS_WEIGHTS", str(folder / "file"))
    with pytest.raises(WeightsNotFoundError, match="set YOLONAS_WEIGHTS to a folder that can be written"):
        resolve_weights("yolo_nas_s")
    assert mirrors[1].requests == []
