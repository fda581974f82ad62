"""Compiled files: what is in them comes back, they run without torch, and damage is named."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from golden_recipe import fill_
from quantized_networks import picture as noise
from quantized_networks import quantize_
from recipe_checkpoint import write
from val_data import NAMES, write_data

import yolonas
from yolonas import NAS, CheckpointError
from yolonas.compiled import is_compiled, read_compiled
from yolonas.nn import YoloNAS, fuse_

QUICK: dict[str, Any] = {"imgsz": 64, "conf": 0.5, "verbose": False}
ENVIRONMENT = {**os.environ, "YOLONAS_OFFLINE": "1", "PYTHONPATH": str(Path(yolonas.__file__).resolve().parents[1])}


@pytest.fixture(scope="module")
def detector() -> NAS:
    detector = NAS(fill_(YoloNAS("s", num_classes=3)).eval(), names=NAMES)
    detector.preprocess = detector.preprocess.with_size((320, 416))
    detector.settings = replace(detector.settings, conf=0.3, multi_label=False)
    return detector


@pytest.fixture(scope="module")
def compiled(detector: NAS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector.save(tmp_path_factory.mktemp("compiled") / "s.yolonas")


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8)


def run(code: str, *arguments: object, cwd: Path | None = None) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_was_saved_comes_back(detector: NAS, compiled: Path, picture: np.ndarray) -> None:
    again = NAS(compiled)
    assert (again.names, again.preprocess) == (detector.names, detector.preprocess)
    assert again.settings == detector.settings
    assert again.ckpt_path == compiled
    assert again.model.variant is detector.model.variant
    assert repr(again) == "NAS(yolo_nas_s, 3 classes, 320x416, compiled)"
    assert str(again.device) == "cpu"
    assert again.fuse().cpu() is again
    found, expected = (one.predict(picture, engine="native", **QUICK)[0] for one in (again, detector))
    assert isinstance(found.boxes.data, np.ndarray)
    assert len(found) > 5
    assert np.array_equal(found.boxes.data, expected.boxes.data.numpy())


def test_a_compiled_file_is_known_by_its_content(compiled: Path, tmp_path: Path) -> None:
    other = tmp_path / "weights.bin"
    other.write_bytes(compiled.read_bytes())
    assert is_compiled(other)
    assert NAS(other).model.form == "compiled"
    for path in (tmp_path, tmp_path / "none", "a\0b", None):
        assert not is_compiled(path)  # type: ignore[arg-type]


def test_saving_again_gives_the_same_file(compiled: Path, tmp_path: Path) -> None:
    assert NAS(compiled).save(tmp_path / "copy.yolonas").read_bytes() == compiled.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["copy.yolonas"]


def test_info_needs_no_modules(detector: NAS, compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, parameters, gradients, gflops = NAS(compiled).info(imgsz=64)
    assert "YOLO_NAS_S summary" in capsys.readouterr().out
    detector.fuse()
    expected = detector.info(imgsz=64, verbose=False)
    assert parameters == expected[1] - sum(name.endswith("alpha") for name, _ in detector.model.named_parameters())
    assert gradients == 0
    assert gflops == pytest.approx(expected[3], rel=1e-6)


def test_val_takes_a_compiled_file(
    detector: NAS, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yaml = write_data(tmp_path / "data", detector, pictures=4)
    options: dict[str, Any] = {"data": str(yaml), "imgsz": 64, "batch": 2, "plots": False, "verbose": False}
    found, expected = NAS(compiled).val(**options), detector.val(engine="native", **options)
    assert found.box.map == expected.box.map > 0


def test_what_a_compiled_file_cannot_do(compiled: Path, picture: np.ndarray, tmp_path: Path) -> None:
    detector = NAS(compiled)
    with pytest.raises(ValueError, match=r"path must end in \.yolonas for a compiled network, got"):
        detector.save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="device 'cuda:99' does not exist: torch sees"):
        detector.to("cuda:99")
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda', a GPU number or 'mps', got 'gpu'"):
        detector.predict(picture, device="gpu", **QUICK)
    with pytest.raises(ValueError, match="engine must be 'native' for a compiled file, got 'torch'"):
        detector.predict(picture, engine="torch", **QUICK)
    assert detector.predict(picture, device="cpu", quantize=16, **QUICK)
    with pytest.raises(ValueError, match="names are for a module"):
        NAS(compiled, names=NAMES)


def test_saving_to_a_place_that_is_not_there(detector: NAS, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        detector.save(tmp_path / "none" / "m.yolonas")


def test_a_quantised_network(tmp_path: Path, picture: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    model = fuse_(fill_(YoloNAS("s", num_classes=3)).eval())
    whole = NAS(model).save(tmp_path / "float.yolonas").stat().st_size
    detector = NAS(quantize_(model, noise(1, 64, 64), kept=lambda name: name == "heads.head2.cls_pred"), names=NAMES)
    checkpoint, compiled = (detector.save(tmp_path / f"m{suffix}") for suffix in (".safetensors", ".yolonas"))
    assert compiled.stat().st_size < 0.27 * whole
    first, *others = (one.predict(picture, **QUICK)[0] for one in (detector, NAS(checkpoint), NAS(compiled)))
    assert len(first) > 5
    assert all(np.array_equal(np.asarray(other.boxes.data), first.boxes.data.numpy()) for other in others)
    again = NAS(compiled)
    assert repr(again) == "NAS(yolo_nas_s, 3 classes, 640x640, compiled, INT8)"
    assert read_compiled(compiled).kind == "yolonas, compiled for the native engine, INT8"
    assert again.save(tmp_path / "copy.yolonas").read_bytes() == compiled.read_bytes()
    again.info(imgsz=64)
    assert capsys.readouterr().out.endswith(" GFLOPs, INT8 in 88 of 89 layers\n")


# --- damage ---


HEAD = struct.Struct("<8sIIQI")


def rebuilt(content: bytes, settings: bytes | None = None, network: bytes | None = None, version: int = 1) -> bytes:
    """The same file with other parts, and a head that fits them."""
    import zlib

    _, _, length, _, _ = HEAD.unpack_from(content)
    settings = content[HEAD.size : HEAD.size + length] if settings is None else settings
    network = content[HEAD.size + length :] if network is None else network
    checksum = zlib.crc32(settings + network)
    return HEAD.pack(b"yolonas\n", version, len(settings), len(network), checksum) + settings + network


def damaged(content: bytes) -> dict[str, tuple[bytes, str]]:
    length = HEAD.unpack_from(content)[2]
    settings, network = content[HEAD.size : HEAD.size + length], content[HEAD.size + length :]
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {
        "head only": (content[: HEAD.size], "cut off"),
        "cut head": (content[:20], "cut off"),
        "cut settings": (content[: HEAD.size + 5], "cut off"),
        "cut network": (content[:-1], "cut off"),
        "too long": (content + b"\0", "its head says"),
        "one bit": (bytes(flipped), "damaged"),
        "newer": (rebuilt(content, version=2), "has version 2"),
        "no json": (rebuilt(content, settings=b"{"), "JSON"),
        "no object": (rebuilt(content, settings=b"[]"), ""),
        "empty settings": (rebuilt(content, settings=b"{}"), "format_version"),
        "variant": (rebuilt(content, settings=settings.replace(b'"s"', b'"x"')), "variant must be one of s, m, l"),
        "classes": (rebuilt(content, settings=settings.replace(b'"num_classes": 3', b'"num_classes": 0')), "num_class"),
        "preprocess": (rebuilt(content, settings=settings.replace(b"[320, 416]", b"[320, -1]")), "size"),
        "empty network": (rebuilt(content, network=b""), ""),
        "cut inside": (rebuilt(content, network=network[: len(network) // 2]), ""),
        "other network": (rebuilt(content, network=b"\xff" * 1000), ""),
    }


def test_damage_is_named(compiled: Path, tmp_path: Path) -> None:
    for case, (content, text) in damaged(compiled.read_bytes()).items():
        path = tmp_path / "damaged.yolonas"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"damaged\.yolonas: .*{re.escape(text)}"):
            NAS(path)
        assert case


def test_another_number_of_classes_is_noticed(compiled: Path, tmp_path: Path) -> None:
    content = compiled.read_bytes()
    length = HEAD.unpack_from(content)[2]
    settings = content[HEAD.size : HEAD.size + length].replace(b'"num_classes": 3', b'"num_classes": 2')
    (tmp_path / "two.yolonas").write_bytes(rebuilt(content, settings=settings))
    with pytest.raises(CheckpointError, match=r"two\.yolonas: num_classes must be 3 as in its network, got 2"):
        NAS(tmp_path / "two.yolonas")


def test_a_damaged_file_keeps_its_settings_to_itself(compiled: Path) -> None:
    found = read_compiled(compiled)
    assert (found.kind, found.variant, found.form, found.num_classes) == (
        "yolonas, compiled for the native engine",
        "s",
        "compiled",
        3,
    )


# --- without torch ---


def test_python_needs_no_torch(compiled: Path, tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from yolonas import NAS; "
        "detector = NAS(sys.argv[1]); detector.info(); "
        "results = detector.predict(np.full((60, 80, 3), 90, np.uint8), conf=0.1, save=True); "
        "print(type(results[0].boxes.data).__name__, 'torch' in sys.modules)"
    )
    assert run(code, compiled, cwd=tmp_path).splitlines()[-1] == "ndarray False"


def test_the_command_line_needs_no_torch(compiled: Path, picture: np.ndarray, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "p.jpg"), picture)
    code = (
        "import os, sys; from yolonas.cli import main; os.environ['XDG_CACHE_HOME'] = os.getcwd(); "
        "assert main(['predict', f'model={sys.argv[1]}', 'source=p.jpg', 'conf=0.5']) == 0; "
        "assert main(['predict', f'model={sys.argv[1]}', 'source=p.jpg', 'imgsz=64', 'tune']) == 0; "
        "assert main(['info', f'model={sys.argv[1]}', 'plan', 'imgsz=64']) == 0; print('torch' in sys.modules)"
    )
    out = run(code, compiled, cwd=tmp_path)
    assert out.splitlines()[-1] == "False"
    assert "kind        yolonas, compiled for the native engine" in out
    assert "GFLOP/s" in out
    assert (tmp_path / "runs" / "detect" / "predict" / "p.jpg").exists()
    assert (tmp_path / "yolonas" / "tuning.json").exists()


def test_an_instruction_set_that_is_none_is_not_the_files_fault(compiled: Path) -> None:
    command = [sys.executable, "-m", "yolonas", "info", f"model={compiled}"]
    environment = {**ENVIRONMENT, "YOLONAS_CPU_ISA": "none"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    assert done.stderr.strip().startswith("yolonas: YOLONAS_CPU_ISA: must be one of ")


@pytest.mark.slow
def test_a_start_takes_less_than_importing_torch(tmp_path: Path, picture: np.ndarray) -> None:
    """From the shell to boxes in a file, at 640. Half a second here; the bound is wide for busy machines."""
    checkpoint = write(tmp_path / "s.safetensors")
    NAS(checkpoint).save(tmp_path / "s.yolonas")
    cv2.imwrite(str(tmp_path / "p.jpg"), picture)
    command = [sys.executable, "-m", "yolonas", "predict", "model=s.yolonas", "source=p.jpg", "conf=0.8", "max_det=9"]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=ENVIRONMENT)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(times) < 2.0
