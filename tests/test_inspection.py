"""`inspect`: what files say about themselves, and that hostile ones can say nothing but text."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from quantized_networks import narrow

import yolonas
from yolonas import NAS, CheckpointError
from yolonas.config import DetectSettings
from yolonas.exporting import torch_formats
from yolonas.exporting.onnx_file import write_onnx
from yolonas.exporting.spec import MOST_METADATA, ExportSpec, write_metadata
from yolonas.inspection import inspect_lines, protocol_lines
from yolonas.preprocess import Preprocess

SPEC = ExportSpec(
    variant="s",
    names={0: "red cell", 1: "weiße Zelle", 2: "platelet"},
    preprocess=Preprocess(size=(64, 96), fit=(60, 92)),
    settings=DetectSettings(conf=0.3, iou=0.6, top_k=50, max_det=5),
)
CARD = {
    "float32": {"scores": {"map": 0.5, "map50": 0.75}},
    "int8": {"scores": {"map": 0.49, "map50": 0.74}},
    "evaluation": {"pictures": 87, "source": "cells val"},
    "in_float": {"heads.head1.stem": "asked for"},
}


def lines_of(spec: ExportSpec) -> dict[str, str]:
    lines = protocol_lines(spec)
    assert all(line[11] == " " for line in lines)
    return {line[:11].strip(): line[12:] for line in lines}


def archive(path: Path, text: str | bytes) -> Path:
    """As torch writes it, without a program."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"nothing")
        file.writestr("archive/extra/config.txt", text)
    return path


def foreign_onnx(path: Path, **stated: str) -> Path:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "other", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, stated)
    onnx.save(model, path)
    return path


def answer(path: Path) -> list[str]:
    """The lines, or the text of the error."""
    try:
        return inspect_lines(path)
    except CheckpointError as error:
        return [str(error)]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ONNX file with the metadata of `SPEC`."""
    path = tmp_path_factory.mktemp("ours") / "cells.onnx"
    write_onnx(path, narrow("s"), SPEC)
    return path


# --- the words ---


def test_a_protocol() -> None:
    assert protocol_lines(SPEC) == [
        "network     YOLO-NAS S, fp32",
        "classes     3: red cell, weiße Zelle, platelet",
        "input       uint8 (1, 3, 64, 96), RGB, by the name 'input'",
        "scaling     in the graph, which takes the bytes of a picture",
        "picture     resized to fit 60x92, padded to 64x96 with 114 on all sides",
        "outputs     graph2_num_predictions, graph2_pred_boxes, graph2_pred_scores, graph2_pred_classes",
        "            number, boxes, scores and classes, best first, unused places -1",
        "boxes       x1, y1, x2, y2 in pixels of the input",
        "thresholds  in the graph: conf 0.3, NMS of 50 candidates at IoU 0.6, 5 boxes a picture, several classes a box",
    ]


def test_inputs() -> None:
    any_of_all = lines_of(replace(SPEC, batch=None, dynamic_size=True, nhwc=True))
    assert any_of_all["input"] == "uint8 (any, any, any, 3), RGB, sides in multiples of 32, by the name 'input'"
    swapped = lines_of(replace(SPEC, channels="bgr"))
    assert swapped["input"] == "uint8 (1, 3, 64, 96), BGR, by the name 'input'"
    assert swapped["scaling"].endswith("; the graph swaps BGR to RGB")

    scaled = replace(SPEC, uint8=False)
    assert lines_of(scaled)["scaling"] == "by the caller: (value - mean) / divisor, mean 0, divisor 255"
    uneven = replace(SPEC.preprocess, mean=(1.0, 2.5, 3.0), divisor=(57.0, 58.0, 250.0), channels="bgr")
    text = "by the caller: (value - mean) / divisor, mean {}, divisor {}"
    bgr = lines_of(replace(scaled, preprocess=uneven, channels="bgr"))
    assert bgr["scaling"] == text.format("1 2.5 3", "57 58 250")
    rgb = lines_of(replace(scaled, preprocess=uneven))  # in the order that the caller sends
    assert rgb["scaling"] == text.format("3 2.5 1", "250 58 57") + "; the graph swaps RGB to BGR"


@pytest.mark.parametrize(
    ("convention", "text"),
    [
        ({"fit": None}, "not resized, padded to 64x96 with 114 on all sides"),
        ({"keep_ratio": False}, "stretched to 60x92, padded to 64x96 with 114 on all sides"),
        ({"enlarge": False, "pad_value": 0}, "if larger, resized to fit 60x92, padded to 64x96 with 0 on all sides"),
        (
            {"padding": "bottom_right", "pad_value": 127},
            "resized to fit 60x92, padded to 64x96 with 127 at the right and the bottom",
        ),
    ],
)
def test_pictures(convention: dict[str, Any], text: str) -> None:
    assert lines_of(replace(SPEC, preprocess=replace(SPEC.preprocess, **convention)))["picture"] == text


def test_outputs_and_thresholds() -> None:
    for outputs in ("batch", "flat", "rows"):
        assert lines_of(replace(SPEC, outputs=outputs))["thresholds"].startswith("in the graph: ")
    for outputs in ("raw", "heads", "deepstream"):
        assert lines_of(replace(SPEC, outputs=outputs))["thresholds"].startswith("left to the caller: ")
    assert lines_of(replace(SPEC, outputs="heads"))["boxes"] == "to be decoded by the caller"
    others = replace(SPEC.settings, agnostic=True, multi_label=False)
    assert lines_of(replace(SPEC, settings=others))["thresholds"] == (
        "in the graph: conf 0.3, NMS of 50 candidates across classes at IoU 0.6, 5 boxes a picture, one class a box"
    )


def test_many_classes() -> None:
    many = replace(SPEC, names={number: f"n{number}" for number in range(80)})
    assert lines_of(many)["classes"] == "80: n0, n1, n2, n3, n4, n5, n6, n7, ... (72 more)"


# --- kinds of files ---


def test_all_kinds_say_the_same(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "ov").mkdir()
    (tmp_path / "ov" / "net.xml").touch()
    (tmp_path / "nc").mkdir()
    (tmp_path / "nc" / "model.ncnn.param").touch()
    for folder in ("ov", "nc"):
        write_metadata(tmp_path / folder, SPEC)
    metadata = SPEC.to_json().encode()
    (tmp_path / "a.engine").write_bytes(len(metadata).to_bytes(4, "little") + metadata + b"plan")
    for name in ("a.torchscript", "a.pt2"):
        archive(tmp_path / name, metadata)
    repository = tmp_path / "repository" / "cells" / "1"
    repository.mkdir(parents=True)
    (repository / "model.onnx").write_bytes(ours.read_bytes())
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "cells.onnx").write_bytes(ours.read_bytes())
    kinds = {
        ours: (ours, "onnx"),
        tmp_path / "ov": (tmp_path / "ov", "openvino"),
        tmp_path / "ov/net.xml": (tmp_path / "ov/net.xml", "openvino"),
        tmp_path / "nc": (tmp_path / "nc", "ncnn"),
        tmp_path / "a.engine": (tmp_path / "a.engine", "engine"),
        tmp_path / "a.torchscript": (tmp_path / "a.torchscript", "torchscript"),
        tmp_path / "a.pt2": (tmp_path / "a.pt2", "pt2"),
        tmp_path / "repository": (repository / "model.onnx", "onnx"),
        tmp_path / "app": (tmp_path / "app" / "cells.onnx", "onnx"),
    }
    for path, (file, kind) in kinds.items():
        assert inspect_lines(path) == [f"file        {file} ({kind})", *protocol_lines(SPEC)]
        assert inspect_lines(str(path)) == inspect_lines(path)


def test_the_archives_are_those_of_torch(tmp_path: Path) -> None:
    """What torch itself writes; and no torch is needed to read it."""
    model = narrow("s")
    spec = replace(SPEC, outputs="raw")
    torch_formats.write_torchscript(tmp_path / "a.torchscript", model, spec)
    assert inspect_lines(tmp_path / "a.torchscript")[1:] == protocol_lines(spec)
    code = (
        "import sys; from yolonas.inspection import inspect_lines; "
        "print(*inspect_lines(sys.argv[1]), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.torchscript"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(yolonas.__file__).parents[1]), "PATH": ""},
    )
    assert "(torchscript) network" in done.stdout
    assert done.stdout.endswith(" False\n")


def test_the_card(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt2", replace(SPEC, precision="int8", card=CARD).to_json())
    assert inspect_lines(path)[-4:] == [
        "float32     mAP50-95 0.5000, mAP50 0.7500",
        "int8        mAP50-95 0.4900, mAP50 0.7400",
        "measured on 87 pictures of cells val",
        "in float    heads.head1.stem",
    ]
    unlabelled = {**CARD, "in_float": {}, **{side: {"scores": {"map": None}} for side in ("float32", "int8")}}
    archive(path, replace(SPEC, precision="int8", card=unlabelled).to_json())
    assert inspect_lines(path)[-2:] == [protocol_lines(SPEC)[-1], "measured on 87 pictures of cells val"]


def test_files_of_other_libraries(tmp_path: Path) -> None:
    stated = {"names": "{0: 'cat'}", "author": "evil\x1b[31m\nnext line", "long": "x" * 5000}
    lines = inspect_lines(foreign_onnx(tmp_path / "other.onnx", **stated))
    assert lines == [
        f"file        {tmp_path}/other.onnx (onnx)",
        "not exported by yolonas; its metadata:",
        "names       {0: 'cat'}",
        "author      evil [31m next line",
        f"long        {'x' * 300}",
    ]
    assert inspect_lines(foreign_onnx(tmp_path / "none.onnx"))[1:] == ["not exported by yolonas; its metadata:", "none"]
    other = archive(tmp_path / "other.torchscript", json.dumps({"stride": 32, "names": {"0": "cat"}}))
    assert inspect_lines(other)[2:] == ["stride      32", "names       {'0': 'cat'}"]
    with zipfile.ZipFile(tmp_path / "plain.pt2", "w") as file:
        file.writestr("archive/data.pkl", b"nothing")
    assert inspect_lines(tmp_path / "plain.pt2")[2:] == ["none"]
    folder = tmp_path / "other_openvino_model"
    folder.mkdir()
    (folder / "other.xml").touch()
    (folder / "metadata.yaml").write_text("stride: 32\nnames:\n  0: cat\n")
    assert inspect_lines(folder)[2:] == ["stride      32", "names       {0: 'cat'}"]


def test_what_is_no_exported_file(ours: Path, tmp_path: Path) -> None:
    weights = NAS(narrow("s"), names=["a", "b", "c"]).save(tmp_path / "cells.safetensors")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "picture.jpg").touch()
    for path in (weights, tmp_path / "notes.txt", tmp_path / "folder"):
        with pytest.raises(CheckpointError, match=r"is no file that export writes; .* 'yolonas info model="):
            inspect_lines(path)
    for name in ("no.onnx", "no.pt2", "no.torchscript", "no.engine", "no.xml", "no", "no/no.onnx"):
        with pytest.raises(CheckpointError, match=f"{name}: there is no such file"):
            inspect_lines(tmp_path / name)


# --- damage and malice ---


def test_damaged_files(ours: Path, tmp_path: Path) -> None:
    whole = ours.read_bytes()
    metadata = SPEC.to_json().encode()
    damaged = {
        "onnx": [b"", b"\0", b"garbage" * 100, whole[: len(whole) // 2], whole[:100]],
        "engine": [
            b"",
            b"\0",
            b"\xff" * 100,
            b"\5\0\0\0{}",
            b"\5\0\0\0{}   plan",
            len(metadata).to_bytes(4, "little") + metadata,
        ],
        "torchscript": [b"", b"garbage" * 100, b"PK\3\4" + bytes(100), b"PK\5\6" + b"\1" * 18],
        "pt2": [b"", b"PK\5\6" + b"\xff" * 18],
        "xml": [b"", b"<net/>"],
    }
    for suffix, contents in damaged.items():
        for content in contents:
            path = tmp_path / f"damaged.{suffix}"
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match=rf"damaged\.{suffix}: |metadata\.yaml: "):
                inspect_lines(path)
            path.unlink()
            path.mkdir()
            with pytest.raises((CheckpointError, OSError)):
                inspect_lines(path)
            path.rmdir()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[1]",
        "1",
        "null",
        '"text"',
        "\xff",
        "[" * 100_000,
        '{"a": ' * 50_000,
        '{"format_version": 1e999}',
        "{}{}",
    ],
    ids=lambda text: text[:12],
)
def test_metadata_that_is_none(text: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt2", text.encode("latin-1"))
    lines = answer(path)
    assert lines[1:] in ([], ["not exported by yolonas; its metadata:", "none"])
    assert str(path) in lines[0]


def test_large_metadata_is_not_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt2", b" " * (MOST_METADATA + 10) + b"{}")
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="is no pt2 file, or is damaged"):
        inspect_lines(path)


def test_encrypted_and_damaged_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.torchscript", SPEC.to_json())
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\1\2")
    content[directory + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no torchscript file, or is damaged"):
        inspect_lines(path)
    content[directory + 8] &= ~1
    content[content.index(b"config.txt") + 20] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no torchscript file, or is damaged"):
        inspect_lines(path)


def test_a_newer_version(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt2", json.dumps({**SPEC.to_dict(), "format_version": 99}))
    with pytest.raises(CheckpointError, match=r"a\.pt2: metadata: format_version .* a newer yolonas wrote this file"):
        inspect_lines(path)


WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    10**400,
    1.5,
    float("inf"),
    float("nan"),
    "x",
    "",
    "\x1b[2J\n",
    [],
    [None] * 3,
    {},
    {"a": {}},
]


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from paths_in(inner, (*path, key))


def test_every_value_may_be_another(tmp_path: Path) -> None:
    """The answer is lines of text, or a CheckpointError that names the file."""
    stated = json.loads(replace(SPEC, precision="int8", card=CARD).to_json())
    refused = 0
    for place in list(paths_in(stated))[1:]:
        for wrong in WRONG:
            changed = json.loads(json.dumps(stated))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = wrong
            path = archive(tmp_path / "a.pt2", json.dumps(changed))
            lines = answer(path)
            refused += len(lines) == 1
            assert str(path) in lines[0]
            assert all(line.isprintable() for line in lines)
            assert max(map(len, lines)) < 1000
    assert refused > 300


def test_metadata_that_grows_in_memory(tmp_path: Path) -> None:
    """Values that hold each other: a few lines that would be gigabytes as text."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    (tmp_path / "net.xml").touch()
    (tmp_path / "metadata.yaml").write_text("\n".join([*lines, f"large: 0x{'f' * 9999}", "? [a, b]\n: 1"]))
    assert max(map(len, answer(tmp_path))) < 400


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch harmed']", "- 1", "a: [", "\0", "a: 2020-99-99"]
)
def test_yaml_that_is_no_metadata(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.xml").touch()
    Path("metadata.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"metadata\.yaml: "):
        inspect_lines("net.xml")
    assert not Path("harmed").exists()


# --- packages ---


def test_without_onnx(ours: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = inspect_lines(ours)
    monkeypatch.setitem(sys.modules, "onnx", None)  # type: ignore[arg-type]
    assert inspect_lines(ours) == expected
    (tmp_path / "a.onnx").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="is no ONNX file, or is damaged"):
        inspect_lines(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=r"reading ONNX files need the package onnx: pip install 'yolonas\[onnx\]'"):
        inspect_lines(ours)
