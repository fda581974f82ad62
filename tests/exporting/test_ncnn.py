"""Files for ncnn: what ncnn makes of them, what stands in them, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from quantized_networks import narrow, picture, quantize_

from yolonas import NAS
from yolonas.config import DetectSettings
from yolonas.errors import CheckpointError
from yolonas.exporting.dataflow import dataflow
from yolonas.exporting.ncnn import BIN_FILE, PARAM_FILE, write_ncnn
from yolonas.exporting.spec import METADATA_FILE, METADATA_KEY, ExportSpec, read_metadata
from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS
from yolonas.preprocess import Preprocess
from yolonas.sessions import NcnnSession

LIMITS = {"fp32": 1e-4, "fp16": 1e-2}  # of the largest error, relative to the largest magnitude


def spec_of(variant: str = "s", **changes: object) -> ExportSpec:
    spec = ExportSpec(
        variant=variant,
        names={0: "red cell", 1: "weiße Zelle", 2: "cell: 3"},
        preprocess=Preprocess(size=(96, 160), fit=None),
        settings=DetectSettings(),
        uint8=False,
        outputs="heads",
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def check_run(folder: Path, model: YoloNAS, x: np.ndarray, limit: float, *, swapped: bool = False) -> None:
    """Runs files on a picture (H, W, 3) and compares with the engine."""
    pytest.importorskip("ncnn")
    cls, reg = NativeEngine.of_module(model).heads(x[None])
    spec = ExportSpec.from_json(read_metadata(folder)[METADATA_KEY])
    outputs = NcnnSession(folder, spec).run((x[..., ::-1] if swapped else x).transpose(2, 0, 1)[None])
    for (output,), (expected,) in zip(outputs, [*cls, *reg], strict=True):
        assert output.dtype == np.float32
        assert output.shape == expected.transpose(2, 0, 1).shape
        assert np.abs(output.transpose(1, 2, 0) - expected).max() <= limit * np.abs(expected).max()


def layers_of(folder: Path) -> list[list[str]]:
    """The words of each layer, after a check of the counts."""
    magic, counts, *lines = (folder / PARAM_FILE).read_text(encoding="utf-8").splitlines()
    layers = [line.split(" ") for line in lines]
    assert magic == "7767517"
    assert counts == f"{len(layers)} {sum(int(layer[3]) for layer in layers)}"
    return layers


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["s", "m", "l"])
def test_files_give_what_the_engine_gives(name: str, precision: str, tmp_path: Path) -> None:
    model = narrow(name)
    write_ncnn(tmp_path, model, spec_of(name, precision=precision))
    for size in ((96, 160), (32, 32), (224, 64)):
        check_run(tmp_path, model, picture(*size), LIMITS[precision])


def test_channels_of_the_caller_are_turned_round(tmp_path: Path) -> None:
    model = narrow("s")
    write_ncnn(tmp_path, model, spec_of(channels="bgr"))
    check_run(tmp_path, model, picture(96, 160), LIMITS["fp32"], swapped=True)


@pytest.mark.shared
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_real_weights_and_picture(precision: str, shared: Path, tmp_path: Path) -> None:
    model = NAS(shared / "weights" / "bccd_s.pth").fuse().model
    file = min((shared / "data" / "bccd" / "images" / "val").glob("*.jpg"))
    x = cv2.resize(cv2.imread(str(file)), (320, 256)).astype(np.float32) / 255
    write_ncnn(tmp_path, model, spec_of(precision=precision))
    check_run(tmp_path, model, x, LIMITS[precision])


@pytest.mark.parametrize("name", ["s", "m", "l"])
def test_every_blob_is_written_and_read_once(name: str, tmp_path: Path) -> None:
    write_ncnn(tmp_path, narrow(name), spec_of(name))
    layers = layers_of(tmp_path)
    assert layers[0] == ["Input", "input", "0", "1", "input", "0=160", "1=96", "2=3"]
    written: list[str] = []
    read: list[str] = []
    for _, _, inputs, outputs, *words in layers:
        new = words[: int(inputs)]
        assert set(new) <= set(written)
        read += new
        written += words[int(inputs) : int(inputs) + int(outputs)]
    assert len(set(written)) == len(written)
    assert len(set(read)) == len(read)
    assert set(written) - set(read) == set(spec_of().output_names)
    names = [layer[1] for layer in layers]
    assert len(set(names)) == len(names)
    assert max(map(len, names + written)) <= 255
    assert {layer[0] for layer in layers} == {
        *("Input", "Split", "Convolution", "Deconvolution", "Concat", "Eltwise", "Pooling")
    }


def test_numbers_are_short_enough_for_the_parser(tmp_path: Path) -> None:
    """Of more than 15 characters it would take the rest for something else."""
    model = narrow("s")
    model.backbone.stage1.blocks.bottlenecks[0].alpha.data.fill_(-(2.0**-70))
    write_ncnn(tmp_path, model, spec_of())
    values = [word.partition("=")[2] for layer in layers_of(tmp_path) for word in layer if "=" in word]
    numbers = [number for value in values for number in value.split(",")]
    assert "-8.47032947e-22" in numbers
    assert max(map(len, numbers)) == 15


@pytest.mark.parametrize(("precision", "tag", "dtype"), [("fp32", 0, "<f4"), ("fp16", 0x01306B47, "<f2")])
def test_binary_file_holds_tagged_weights_and_biases(precision: str, tag: int, dtype: str, tmp_path: Path) -> None:
    model = narrow("s")
    write_ncnn(tmp_path, model, spec_of(precision=precision))
    content = (tmp_path / BIN_FILE).read_bytes()
    at = 0

    def take(count: int, kind: str) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(content, kind, count, at)
        at += values.nbytes + -values.nbytes % 4
        return values

    for op in dataflow(model, input_name="input").ops:
        if op.weight is not None and op.bias is not None:
            assert take(1, "<u4") == tag
            weight = op.weight.swapaxes(0, 1) if op.kind == "deconv" else op.weight
            np.testing.assert_array_equal(take(weight.size, dtype), weight.ravel().astype(dtype))
            np.testing.assert_array_equal(take(op.bias.size, "<f4"), op.bias)
    assert at == len(content)


def test_metadata_is_for_other_loaders_and_for_ours(tmp_path: Path) -> None:
    spec = spec_of(dynamic_size=True)
    write_ncnn(tmp_path, narrow("s"), spec)
    assert layers_of(tmp_path)[0] == ["Input", "input", "0", "1", "input"]
    metadata = yaml.safe_load((tmp_path / METADATA_FILE).read_text(encoding="utf-8"))
    assert ExportSpec.from_json(metadata.pop(METADATA_KEY)) == spec
    known = {"task": "detect", "stride": 32, "batch": 1, "imgsz": [96, 160], "names": spec.names, "channels": 3}
    assert {key: metadata[key] for key in known} == known
    assert metadata["args"]["dynamic"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"outputs": "batch"}, "outputs must be 'heads' for format='ncnn', got 'batch'; yolonas.hpp"),
        ({"uint8": True}, "preprocess must be False .*, got True; ncnn reads float32"),
        ({"nhwc": True}, "layout must be 'nchw' .*, got 'nhwc'"),
        ({"batch": 2}, "batch must be 1 .*, got 2; ncnn has no batches"),
        ({"batch": None}, "batch must be 1 .*, got None"),
        ({"precision": "int8"}, "got 'int8'; 'onnx' and 'openvino' take int8"),
    ],
)
def test_refuses_what_ncnn_does_not_have(changes: dict[str, object], text: str, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=text):
        write_ncnn(tmp_path, narrow("s"), spec_of(**changes))
    assert not list(tmp_path.iterdir())


def test_refuses_a_quantised_network(tmp_path: Path) -> None:
    model = quantize_(narrow("s"), picture(1, 32, 32))
    with pytest.raises(NotImplementedError, match="got a quantised network"):
        write_ncnn(tmp_path, model, spec_of())


@pytest.mark.parametrize(("precision", "value"), [("fp16", 1e5), ("fp32", float("nan"))])
def test_refuses_weights_that_have_no_number(precision: str, value: float, tmp_path: Path) -> None:
    model = narrow("s")
    model.heads.head1.cls_pred.weight.data[0, 0] = value
    with pytest.raises(ValueError, match=f"'heads.head1.cls_pred' must lie within .* precision='{precision}', got"):
        write_ncnn(tmp_path, model, spec_of(precision=precision))


def test_a_run_says_what_ncnn_cannot_read(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    write_ncnn(tmp_path, narrow("s"), spec_of())
    (tmp_path / PARAM_FILE).write_text("nothing\n")
    with pytest.raises(CheckpointError, match="cannot use it"):
        NcnnSession(tmp_path, spec_of())


def test_a_run_names_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(ImportError, match=r"pip install 'yolonas\[ncnn\]'"):
        NcnnSession(tmp_path, spec_of())
