"""`NAS.export`: what is written and checked, what is refused, and what is left when something goes wrong."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from quantized_networks import narrow, picture, quantize_
from val_data import NAMES, write_data

from yolonas import NAS, export, export_check
from yolonas.config import VARIANTS, DetectSettings
from yolonas.data.images import read_image
from yolonas.errors import ExportError, SourceError
from yolonas.export import Exporter, ExportOptions
from yolonas.export_setup import destinations, make_spec
from yolonas.exported import read_exported
from yolonas.exporting import ncnn, tensorrt
from yolonas.exporting.onnx_file import write_onnx
from yolonas.exporting.spec import ExportSpec
from yolonas.inspection import inspect_lines
from yolonas.nn import YoloNAS
from yolonas.preprocess import Preprocess

SIZE = (64, 96)
STEM = "yolo_nas_narrow"
FIRST = "backbone.stem.conv.rbr_reparam.weight"

# What each kind of export leaves, and what runs it in the check.
FORMATS: dict[str, tuple[list[str], str]] = {
    "onnx": ([f"{STEM}.onnx"], "onnxruntime"),
    "openvino": (
        [f"{STEM}_openvino_model/{name}" for name in ("metadata.yaml", f"{STEM}.bin", f"{STEM}.xml")],
        "openvino",
    ),
    "engine": ([f"{STEM}-tensorrt.onnx"], "onnxruntime"),
    "torchscript": ([f"{STEM}.torchscript"], "torch"),
    "pt2": ([f"{STEM}.pt2"], "torch"),
    "ncnn": ([f"{STEM}_ncnn_model/{name}" for name in ("metadata.yaml", "model.ncnn.bin", "model.ncnn.param")], "ncnn"),
}
TARGETS: dict[str, list[str]] = {
    "frigate": [f"{STEM}-frigate-labels.txt", f"{STEM}-frigate.onnx"],
    "triton": [f"{STEM}_triton/{STEM}/{name}" for name in ("1/model.onnx", "config.pbtxt", "labels.txt")],
    "deepstream": [f"{STEM}_deepstream/{name}" for name in ("config_infer_primary.txt", "labels.txt", f"{STEM}.onnx")],
}


@pytest.fixture(scope="module")
def network() -> Iterator[YoloNAS]:
    """As deep as the S, much narrower. It is not to be changed."""
    model = narrow("s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "narrow", model.variant)  # so that files of it can be written and read
        yield model


@pytest.fixture
def nas(network: YoloNAS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NAS:
    """That network as `NAS`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return of(network)


@pytest.fixture(scope="module")
def data(network: YoloNAS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "cells"
    folder.mkdir()
    return write_data(folder, NAS(network, names=NAMES), pictures=8)


def of(network: YoloNAS, **preprocess: Any) -> NAS:
    model = NAS(network, names=NAMES)
    model.preprocess = replace(model.preprocess.with_size(SIZE), **preprocess)
    return model


def left(folder: Path = Path()) -> list[str]:
    """All files, and folders without any, hidden ones too."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or not any(path.iterdir())
    )


def run_of(nas: NAS, **options: Any) -> Exporter:
    """The driver of an export, after it."""
    runs: list[Exporter] = []
    nas.add_callback("on_export_end", runs.append)
    nas.export(**{"verbose": False, **options})
    return runs[0]


def spec_of(nas: NAS, **options: Any) -> ExportSpec:
    """What a file would take and give."""
    return make_spec(
        ExportOptions.of(**options),
        variant="s",
        names=nas.names,
        preprocess=nas.preprocess,
        settings=nas.settings,
        quantized=False,
        card=None,
    )


def changed(network: YoloNAS, key: str, change: Callable[[torch.Tensor], object]) -> YoloNAS:
    network = copy.deepcopy(network)
    with torch.no_grad():
        change(network.state_dict()[key])
    return network


def worse(network: YoloNAS) -> YoloNAS:
    """One that finds much less."""
    for level in (1, 2, 3):
        network = changed(network, f"heads.head{level}.cls_pred.bias", lambda bias: bias.sub_(1))
    return network


# --- what there is afterwards ---


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_every_format(format: str, nas: NAS, capsys: pytest.CaptureFixture[str]) -> None:
    files, runtime = FORMATS[format]
    path = nas.export(format=format)
    assert type(path) is str
    assert path == Path(files[0]).parts[0]
    assert left() == files
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{STEM}.pt -> {path} (")
    (checked,) = (line for line in told if line.startswith("checked "))
    assert re.fullmatch(
        rf"checked +{runtime} [\w.+]+ against the network: \d+ detections on 1 picture; "
        r"boxes within [\de.-]+ px, scores within [\de.-]+",
        checked,
    )
    said = inspect_lines(path)
    assert said[0] == f"file        {path} ({'onnx' if format == 'engine' else format})"
    assert set(said[1:]) <= set(told)
    # The next export may replace it.
    options = ExportOptions.of(format=format)
    assert destinations(options, Path(f"{STEM}.pt"), builds_engine=False) == [Path(path)]


@pytest.mark.parametrize("target", TARGETS)
def test_files_of_every_target(target: str, nas: NAS, capsys: pytest.CaptureFixture[str]) -> None:
    path = nas.export(target=target, imgsz=64)
    assert left() == TARGETS[target]
    told = capsys.readouterr().out
    shown = {
        "frigate": [f"beside it   {STEM}-frigate-labels.txt", "model_type: yolonas", f"/config/{STEM}-frigate-labels"],
        "triton": [f"tritonserver --model-repository={Path.cwd()}/{STEM}_triton\n"],
        "deepstream": [f"config-file-path={Path.cwd()}/{STEM}_deepstream/config_infer_primary.txt\n"],
    }
    for text in (*shown[target], "checked     onnxruntime"):
        assert text in told
    said = inspect_lines(path)
    assert said[0].endswith(f"/{STEM}.onnx (onnx)" if target == "deepstream" else ".onnx (onnx)")
    assert set(said[1:]) <= set(told.splitlines())
    before = {file: Path(file).read_bytes() for file in TARGETS[target]}
    assert nas.export(target=target, imgsz=64, conf=0.31, verbose=False) == path
    assert left() == TARGETS[target]
    assert any(Path(file).read_bytes() != content for file, content in before.items())


def test_presets_of_targets_and_what_overrides_them(nas: NAS) -> None:
    frigate = spec_of(nas, target="frigate")
    assert frigate.preprocess.size == (320, 320)
    assert frigate.preprocess.fit == (316, 316)
    assert (frigate.channels, frigate.outputs, frigate.batch) == ("bgr", "rows", 1)
    assert (frigate.settings.conf, frigate.settings.top_k, frigate.settings.max_det) == (0.4, 300, 20)
    own = spec_of(nas, target="frigate", imgsz=96, conf=0.3, channels="rgb", outputs="flat", max_det=10)
    assert (own.preprocess.size, own.channels, own.outputs) == ((96, 96), "rgb", "flat")
    assert (own.settings.conf, own.settings.top_k, own.settings.max_det) == (0.3, 300, 10)
    assert spec_of(nas, target="triton", nms=False).outputs == "raw"
    triton = run_of(nas, target="triton", batch=4).spec
    assert triton is not None
    assert (triton.batch, triton.outputs, triton.preprocess.size) == (None, "batch", SIZE)
    assert "max_batch_size: 4\n" in Path(f"{STEM}_triton/{STEM}/config.pbtxt").read_text()
    deepstream = run_of(of(nas.model), target="deepstream", batch=3).spec
    assert deepstream is not None
    assert (deepstream.batch, deepstream.uint8, deepstream.settings.multi_label) == (None, False, False)
    assert "batch-size=3\n" in Path(f"{STEM}_deepstream/config_infer_primary.txt").read_text()


def test_the_settings_are_those_of_the_checkpoint_or_of_the_call(nas: NAS) -> None:
    nas.settings = DetectSettings(conf=0.11, iou=0.6, top_k=500, max_det=77, multi_label=False, agnostic=True)
    nas.export(verbose=False)
    assert read_exported(f"{STEM}.onnx").spec.settings == nas.settings
    nas.export(verbose=False, conf=0.2, iou=0.5, top_k=400, max_det=60, multi_label=True, agnostic_nms=False)
    spec = read_exported(f"{STEM}.onnx").spec
    assert spec.settings == DetectSettings(conf=0.2, iou=0.5, top_k=400, max_det=60, multi_label=True, agnostic=False)
    assert (spec.names, spec.preprocess, spec.precision) == (nas.names, nas.preprocess, "fp32")
    nas.export(verbose=False, imgsz=(96, 32), max_det=600)  # more than there were candidates
    spec = read_exported(f"{STEM}.onnx").spec
    assert spec.preprocess == nas.preprocess.with_size((96, 32))
    assert (spec.settings.top_k, spec.settings.max_det) == (600, 600)


def test_outputs_and_nms(nas: NAS) -> None:
    def outputs_of(**options: Any) -> str:
        return spec_of(nas, **options).outputs

    assert outputs_of() == outputs_of(nms=True) == outputs_of(end2end=True) == "batch"
    assert outputs_of(nms=False) == outputs_of(nms=False, outputs="raw") == "raw"
    assert outputs_of(nms=False, outputs="heads") == "heads"
    assert outputs_of(nms=True, outputs="flat") == "flat"
    assert outputs_of(format="ncnn") == outputs_of(format="ncnn", nms=False) == "heads"
    assert outputs_of(format="torchscript") == outputs_of(format="torchscript", nms=False) == "raw"
    assert outputs_of(format="torchscript", nms=True, max_det=5) == "batch"


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"dynamic": True}, [["batch", 3, "height", "width"], None, True]),
        ({"dynamic": "batch", "batch": 4}, [["batch", 3, 64, 96], None, False]),
        ({"dynamic": "size", "batch": 2}, [[2, 3, "height", "width"], 2, True]),
        ({"batch": 3, "layout": "nhwc"}, [[3, 64, 96, 3], 3, False]),
    ],
)
def test_shapes(options: dict[str, Any], shape: list[Any], nas: NAS) -> None:
    import onnx

    spec = run_of(nas, **options).spec
    assert spec is not None
    (x,) = onnx.load(f"{STEM}.onnx").graph.input
    axes = [axis.dim_param or axis.dim_value for axis in x.type.tensor_type.shape.dim]
    assert [axes, spec.batch, spec.dynamic_size] == shape


def test_beside_the_weights(network: YoloNAS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("weights", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    of(network).save(tmp_path / "weights" / "cells.v2.safetensors")
    loaded = NAS(tmp_path / "weights" / "cells.v2.safetensors")
    assert loaded.export(verbose=False) == str(tmp_path / "weights" / "cells.v2.onnx")
    assert left() == []
    path = loaded.export(verbose=False, save="mine.onnx")
    assert path == "mine.onnx"
    assert left() == ["mine.onnx"]
    assert left(tmp_path / "weights") == ["cells.v2.onnx", "cells.v2.safetensors"]
    monkeypatch.setenv("HOME", str(tmp_path / "weights"))
    assert loaded.export(verbose=False, save="~/of_user.onnx") == str(tmp_path / "weights" / "of_user.onnx")


def test_an_engine_and_its_graph(nas: NAS, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def build(path: Path, graph: Path, spec: Any, **options: Any) -> None:
        assert graph.stat().st_size > 1_000_000
        assert (options["max_batch"], options["workspace_gib"]) == (8, 2.5)
        metadata = spec.to_json().encode()
        path.write_bytes(len(metadata).to_bytes(4, "little") + metadata + b"plan")

    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.9"))  # type: ignore[arg-type]
    monkeypatch.setattr(tensorrt, "write_engine", build)
    options = {"format": "engine", "dynamic": "batch", "batch": 8, "workspace": 2.5, "check": False}
    for _ in range(2):
        assert nas.export(**options) == f"{STEM}.engine"
        assert left() == [f"{STEM}-tensorrt.onnx", f"{STEM}.engine"]
    told = capsys.readouterr().out
    assert f"beside it   {STEM}-tensorrt.onnx" in told
    assert "trtexec" not in told
    assert "YOLO-NAS NARROW, fp32" in inspect_lines(f"{STEM}.engine")[1]
    Path(f"{STEM}-tensorrt.onnx").write_text("of somebody else")
    with pytest.raises(FileExistsError, match=r"-tensorrt\.onnx exists and was not written by export"):
        nas.export(**options)


# --- pre-processing and precision ---


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("bytes_in", [True, False])
@pytest.mark.parametrize("sent", ["rgb", "bgr"])
@pytest.mark.parametrize("trained", ["rgb", "bgr"])
def test_the_graph_prepares_its_input(
    trained: str,
    sent: str,
    bytes_in: bool,
    layout: str,
    network: YoloNAS,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    mean, divisor = (103.0, 116.0, 124.0), (57.0, 58.5, 250.0)
    nas = of(network, channels=trained, mean=mean, divisor=divisor, fit=None)
    monkeypatch.chdir(tmp_path)
    run = run_of(nas, outputs="raw", channels=sent, preprocess=bytes_in, layout=layout)
    assert run.difference is not None
    assert run.difference.detections > 3
    session = onnxruntime.InferenceSession(run.path, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).integers(0, 256, (1, *SIZE, 3), np.uint8)  # as the network was trained
    scaled = ((pixels - np.array(mean)) / np.array(divisor)).astype(np.float32)
    x = pixels if bytes_in else scaled
    x = x if trained == sent else x[..., ::-1]
    x = x if layout == "nhwc" else x.transpose(0, 3, 1, 2)
    found = session.run(None, {"input": np.ascontiguousarray(x)})
    with torch.inference_mode():
        expected = network(torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy()))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("format", ["onnx", "torchscript", "ncnn"])
def test_other_preprocessing_passes_the_check(format: str, network: YoloNAS, nas: NAS) -> None:
    conventions: list[dict[str, Any]] = [
        {"channels": "bgr", "padding": "bottom_right", "pad_value": 127},
        {"channels": "bgr", "mean": (103.0, 116.0, 124.0), "divisor": (57.0, 58.5, 250.0), "fit": None},
        {"keep_ratio": False, "rect": True},
    ]
    for convention in conventions[: 1 if format == "torchscript" else None]:
        run = run_of(of(network, **convention), format=format)
        assert run.difference is not None
        assert run.difference.detections > 3
        assert run.difference.missing == 0
        assert run.spec is not None
        assert run.spec.preprocess == Preprocess(
            **{**nas.preprocess.to_dict(), **convention, "rect": False}  # frames of a file are of its size
        )


def test_deepstream_has_one_divisor(network: YoloNAS, nas: NAS) -> None:
    with pytest.raises(ValueError, match="deepstream: divisor must be the same for all channels"):
        of(network, divisor=(57.0, 58.0, 250.0)).export(target="deepstream")
    of(network, mean=(1.0, 2.0, 3.0)).export(target="deepstream", channels="bgr", verbose=False)
    assert "offsets=3.0;2.0;1.0\n" in Path(f"{STEM}_deepstream/config_infer_primary.txt").read_text()


@pytest.mark.parametrize("format", ["onnx", "openvino", "ncnn"])
def test_half_precision(format: str, nas: NAS) -> None:
    run = run_of(nas, format=format, quantize=16)
    assert run.spec is not None
    assert run.spec.precision == "fp16"
    assert run.difference is not None
    assert 0 < run.difference.score < 1e-2
    files, _ = FORMATS[format]
    assert max(Path(file).stat().st_size for file in files) < 900_000


@pytest.mark.parametrize("format", ["onnx", "engine", "openvino", "torchscript", "pt2", "ncnn"])
def test_weights_that_are_no_numbers_of_the_precision(format: str, network: YoloNAS, nas: NAS) -> None:
    key = "heads.head2.reg_pred.weight"
    large = of(changed(network, key, lambda weight: weight[3, 0].fill_(1e6)))
    with pytest.raises(ValueError, match=r"weights of 'heads.head2.reg_pred' must lie within 65504"):
        large.export(format=format, quantize="fp16")
    for value in (float("nan"), float("inf")):
        broken = of(changed(network, key, lambda weight, value=value: weight[3, 0].fill_(value)))
        with pytest.raises(ValueError, match=r"heads\.head2\.reg_pred"):
            broken.export(format=format)
    assert left() == []


# --- quantised networks ---


@pytest.fixture(scope="module")
def quantized() -> YoloNAS:
    """With its heads in float."""
    return quantize_(narrow("s"), picture(2, *SIZE), kept=lambda name: name.startswith("heads."))


@pytest.mark.parametrize(
    "options", [{}, {"format": "openvino"}, {"format": "engine"}, {"target": "frigate", "imgsz": 64}]
)
def test_a_quantised_network(options: dict[str, Any], quantized: YoloNAS, nas: NAS) -> None:
    run = run_of(of(quantized), **options)
    assert run.spec is not None
    assert run.spec.precision == "int8"
    assert run.difference is not None
    assert run.difference.pictures == 1
    assert any("YOLO-NAS NARROW, int8" in line for line in inspect_lines(run.path or ""))
    assert run_of(of(quantized), **options, quantize=8, exist_ok=True).spec == run.spec


def test_int8_has_its_formats(network: YoloNAS, quantized: YoloNAS, nas: NAS) -> None:
    for asked in ("fp16", 32):
        with pytest.raises(ValueError, match="quantize must be 'int8' for a quantised network, got 'fp"):
            of(quantized).export(quantize=asked)
    for format in ("torchscript", "pt2", "ncnn"):
        with pytest.raises(
            NotImplementedError, match=rf"format '{format}' has no int8; 'onnx', 'openvino', 'engine' have"
        ):
            of(quantized).export(format=format)
        # Before the network is quantised, which takes long.
        with pytest.raises(NotImplementedError, match=rf"format '{format}' has no int8"):
            nas.export(format=format, quantize="int8", data="nowhere.yaml")
    with pytest.raises(
        ValueError, match=r"quantize='int8' needs a quantised network: 'yolonas quantize model=\.\.\. data="
    ):
        nas.export(quantize="int8")
    assert left() == []


CARD = {
    "float32": {"scores": {"map": 0.5274, "map50": 0.8406}},
    "int8": {"scores": {"map": 0.5256, "map50": 0.8405}},
    "evaluation": {"pictures": 87, "source": "cells val"},
    "in_float": {"heads.head1.stem": "asked for"},
    "trials": [{"long": "table"}],
    "sensitivity": [],
}


def test_the_card_is_in_the_file(quantized: YoloNAS, nas: NAS) -> None:
    int8 = of(quantized)
    int8.ckpt_path = Path("cells-int8.safetensors")
    Path("cells-int8.json").write_text(json.dumps(CARD))
    path = int8.export(verbose=False)
    assert path == "cells-int8.onnx"
    assert read_exported(path).spec.card == {key: CARD[key] for key in ("float32", "int8", "evaluation", "in_float")}
    assert inspect_lines(path)[-4:] == [
        "float32     mAP50-95 0.5274, mAP50 0.8406",
        "int8        mAP50-95 0.5256, mAP50 0.8405",
        "measured on 87 pictures of cells val",
        "in float    heads.head1.stem",
    ]
    for other in ("nothing", "[1]", '{"float32": 1}', "[" * 100_000):
        Path("cells-int8.json").write_text(other)
        int8.export(verbose=False)
        assert read_exported(path).spec.card is None
    Path("yolo_nas_narrow.json").write_text(json.dumps(CARD))
    nas.export(verbose=False)  # whose card this would be is not quantised
    assert read_exported(f"{STEM}.onnx").spec.card is None


def test_quantised_on_the_way(
    nas: NAS, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = partialmethod(NAS.quantize, method="max", equalize=False, correct_bias=False)
    monkeypatch.setattr(NAS, "quantize", quick)
    path = nas.export(quantize="int8", data=str(data), imgsz=64, max_map_drop=100)
    assert nas.model.activation_scales == {}
    told = capsys.readouterr().out
    assert f"-> {path} (" in told
    assert re.search(r"\nyolonas +0\.\d{4} +0\.\d{4}\nonnxruntime +0\.\d{4} +0\.\d{4}\n", told)
    spec = read_exported(path).spec
    assert spec.precision == "int8"
    assert spec.card is not None
    assert spec.card["evaluation"]["pictures"] == 8
    assert path == f"{STEM}-int8.onnx"


# --- the check ---


def test_what_the_check_measured(nas: NAS) -> None:
    run = run_of(nas)
    assert run.runtime.startswith("onnxruntime ")
    assert run.difference is not None
    assert run.difference.pictures == 1
    assert run.difference.detections > 3
    assert run.difference.missing == 0
    assert 0 < run.difference.box < 1e-3
    assert run.scores is None


def test_no_check(nas: NAS, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # type: ignore[arg-type]
    assert nas.export(check=False) == f"{STEM}.onnx"
    assert "checked     no\n" in capsys.readouterr().out


def test_silence(nas: NAS, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    nas.export(verbose=False)
    assert capsys.readouterr() == ("", "")
    assert caplog.text == ""


@pytest.mark.parametrize("fault", ["weights", "channels", "graph"])
@pytest.mark.parametrize("save", [f"{STEM}.onnx", f"{STEM}_triton"])
def test_a_file_that_computes_something_else(
    fault: str, save: str, network: YoloNAS, nas: NAS, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"target": "triton"} if save.endswith("_triton") else {}
    nas.export(verbose=False, **options)
    files = {file: Path(file).read_bytes() for file in left()}

    def wrong(path: Path, model: YoloNAS, spec: Any, **options: Any) -> None:
        write_onnx(path, worse(model) if fault == "weights" else model, spec, **options)
        if fault == "graph":
            path.write_bytes(path.read_bytes().replace(b"graph2_pred_boxes", b"graph3_pred_boxes"))
        elif fault == "channels":
            write_onnx(path, changed(model, FIRST, lambda weight: weight.copy_(weight.flip(1))), spec, **options)

    monkeypatch.setattr(export, "write_onnx", wrong)
    text = (
        "does not run: .* graph must have"
        if fault == "graph"
        else "onnxruntime .* does not give what the network gives"
    )
    with pytest.raises(ExportError, match=rf"{text}.*; nothing was kept"):
        nas.export(conf=0.2, **options)
    assert {file: Path(file).read_bytes() for file in left()} == files


def test_a_runtime_that_fails(nas: NAS, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"nothing")

    monkeypatch.setattr(export, "write_onnx", no_file)
    with pytest.raises(ExportError, match=r"the file does not run: .* ONNX Runtime .* cannot use it"):
        nas.export()
    assert left() == []


def test_pictures_to_compare_on(nas: NAS, data: Path) -> None:
    def pictures_of(**options: Any) -> int:
        difference = run_of(of(nas.model), **options).difference
        assert difference is not None
        return difference.pictures

    file = data.parent / "images/val/000.png"
    assert pictures_of(source=str(file)) == pictures_of(source=file) == pictures_of(source=read_image(file)) == 1
    assert pictures_of(source=np.zeros((3, 40, 50, 3), np.uint8)) == 3
    assert pictures_of(source=np.zeros((40, 50), np.uint8)) == 1
    assert pictures_of(data=str(data), imgsz=64, max_map_drop=100) == export.SAMPLES


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("nowhere.jpg", SourceError, "source: nowhere.jpg: no such file"),
        ("garbage.png", SourceError, "source: garbage.png: "),
        (np.zeros((8, 8, 3)), TypeError, "source: array must have dtype uint8, got float64"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, "source: array must have shape .* channels come last"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "source: array must have at least one pixel"),
    ],
)
def test_sources_that_are_none(
    source: Any, error: type[Exception], text: str, nas: NAS, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("garbage.png").write_bytes(b"nothing")
    monkeypatch.setattr(export, "write_onnx", unreachable)
    with pytest.raises(error, match=text):
        nas.export(source=source)
    assert left() == ["garbage.png"]


def unreachable(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing should have been written yet")


def test_nothing_found_is_told(nas: NAS, capsys: pytest.CaptureFixture[str]) -> None:
    nas.export(conf=0.99)
    told = capsys.readouterr().out
    assert re.search(
        r"no detections on 1 picture, on either side\n {12}all \d.* anchors: .*\n {12}source=PICTURE or", told
    )


# --- the check with data ---


@pytest.mark.parametrize("outputs", ["batch", "raw"])
def test_map_of_both(outputs: str, nas: NAS, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(nas, data=str(data), imgsz=64, outputs=outputs, verbose=True)
    assert run.scores is not None
    chosen = {"conf": 0.25} if outputs == "batch" else {}
    metrics = nas.val(data=str(data), imgsz=64, plots=False, verbose=False, **chosen)
    assert run.scores.before == (metrics.box.map, metrics.box.map50)
    assert metrics.box.map > 0.05
    assert run.scores.drop <= 0.1
    assert run.scores.pictures == 8
    lines = capsys.readouterr().out.splitlines()
    at = lines.index(f"{'':<14}  mAP50-95     mAP50   8 pictures of cells val")
    assert lines[at + 1] == f"yolonas           {metrics.box.map:.4f}    {metrics.box.map50:.4f}"
    assert re.fullmatch(r"onnxruntime +0\.\d{4} +0\.\d{4}", lines[at + 2])


def test_a_part_of_the_data(nas: NAS, data: Path) -> None:
    run = run_of(nas, data=str(data), imgsz=64, fraction=0.5, split="train")
    assert run.scores is not None
    assert run.scores.pictures == 4
    assert run.scores.source == "cells train"


def test_too_much_is_lost(nas: NAS, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = export_check.Difference(4, 9, 0.0, 0.0, 0, 0, 0, 0)
    monkeypatch.setattr(export_check, "compare", lambda *_: same)
    monkeypatch.setattr(export_check, "compare_all", lambda *_: None)
    monkeypatch.setattr(
        export, "write_onnx", lambda path, model, spec, **options: write_onnx(path, worse(model), spec, **options)
    )
    with pytest.raises(
        ExportError, match=r"the file loses \d.* points of mAP50-95, 0\.\d.*; max_map_drop=1 allows no more"
    ):
        nas.export(data=str(data), imgsz=64, verbose=False)
    assert left() == []
    run = run_of(nas, data=str(data), imgsz=64, max_map_drop=100)
    assert run.scores is not None
    assert run.scores.drop > 1


def test_a_head_that_finds_nothing_is_compared_too(nas: NAS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing passes the threshold on either side: what lies below it tells."""

    def damaged(path: Path, model: YoloNAS, spec: ExportSpec, **options: Any) -> None:
        model = copy.deepcopy(model)
        with torch.no_grad():
            model.heads.head1.cls_pred.bias += 0.01
        write_onnx(path, model, spec, **options)

    monkeypatch.setattr(export, "write_onnx", damaged)
    with pytest.raises(ExportError, match="no detections on 1 picture, on either side; all 84 anchors: boxes within"):
        nas.export(imgsz=64, conf=0.99)
    assert left() == []


def test_data_that_cannot_be_used(nas: NAS, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "write_onnx", unreachable)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        nas.export(data="nowhere.yaml")
    with pytest.raises(ValueError, match="check must be True with data"):
        nas.export(data=str(data), check=False)
    with pytest.raises(ValueError, match="max_map_drop must be points of mAP"):
        nas.export(data=str(data), max_map_drop=-0.5)
    assert left() == []


def test_data_with_damaged_pictures(nas: NAS, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    copied = Path(shutil.copytree(data.parent, "cells")) / "data.yaml"
    pictures = sorted((copied.parent / "images/val").iterdir())
    pictures[0].write_bytes(b"nothing")
    run = run_of(nas, data=str(copied), imgsz=64)
    assert run.difference is not None
    assert run.difference.pictures == 4
    assert run.scores is not None
    assert run.scores.pictures == 7
    assert "000.png" in caplog.text
    for one in pictures:
        one.write_bytes(b"nothing")
    before = left()
    with pytest.raises(SourceError, match=r"not one picture of cells/data\.yaml could be read"):
        nas.export(data=str(copied), imgsz=64)
    assert left() == before


# --- names that are taken ---


FOREIGN: dict[str, Any] = {
    "onnx": f"{STEM}.onnx",
    "torchscript": f"{STEM}.torchscript",
    "openvino": f"{STEM}_openvino_model/notes.md",
    "ncnn": f"{STEM}_ncnn_model/metadata.yaml",
}


@pytest.mark.parametrize("format", FOREIGN)
def test_what_no_export_has_written_stays(format: str, nas: NAS, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(FOREIGN[format])
    file.parent.mkdir(exist_ok=True)
    file.write_text("of somebody else")
    with monkeypatch.context() as patch:
        for writer in ("write_onnx", "NativeEngine"):
            patch.setattr(export, writer, unreachable)
        with pytest.raises(
            FileExistsError, match=r"exists and was not written by export, .*; exist_ok=True replaces it, save="
        ):
            nas.export(format=format)
    assert left() == [str(file)]
    assert file.read_text() == "of somebody else"
    nas.export(format=format, exist_ok=True, verbose=False)
    assert left() == FORMATS[format][0]


def test_other_things_by_that_name(nas: NAS) -> None:
    Path(f"{STEM}.onnx").mkdir()
    Path(f"{STEM}.onnx/picture.jpg").touch()
    Path(f"{STEM}_ncnn_model").touch()
    Path(f"{STEM}-frigate.onnx").symlink_to("nowhere")
    for options in ({"format": "onnx"}, {"format": "ncnn"}, {"target": "frigate", "imgsz": 64}):
        with pytest.raises(FileExistsError, match="was not written by export"):
            nas.export(**options)
        nas.export(**options, exist_ok=True, verbose=False)
    assert left() == sorted(["yolo_nas_narrow.onnx", *FORMATS["ncnn"][0], *TARGETS["frigate"]])
    assert not Path(f"{STEM}-frigate.onnx").is_symlink()


def test_a_folder_with_other_files_is_not_thrown_away(nas: NAS) -> None:
    """One export in it does not make a folder ours."""
    nas.export(target="deepstream", verbose=False)
    mine = Path(f"{STEM}_deepstream/app.py")
    mine.touch()
    with pytest.raises(FileExistsError, match="or has other files in it"):
        nas.export(target="deepstream")
    mine.unlink()
    Path(f"{STEM}_deepstream/model_b1_gpu0_fp32.engine").touch()  # nvinfer's, of the file that goes
    nas.export(target="deepstream", verbose=False)
    assert left() == TARGETS["deepstream"]

    nas.export(target="triton", verbose=False)
    shutil.copytree(f"{STEM}_triton/{STEM}", f"{STEM}_triton/another")  # a repository holds several models
    with pytest.raises(FileExistsError, match="or has other files in it"):
        nas.export(target="triton")


def test_labels_of_somebody_else(nas: NAS) -> None:
    labels = Path(f"{STEM}-frigate-labels.txt")
    labels.write_text("mine")
    with pytest.raises(FileExistsError, match=r"frigate-labels\.txt exists"):
        nas.export(target="frigate", imgsz=64)
    assert labels.read_text() == "mine"
    nas.export(target="frigate", imgsz=64, exist_ok=True, verbose=False)
    assert labels.read_text() == "0 cat\n1 dog\n2 bird\n"


def test_an_engine_that_trtexec_built_is_in_nobodys_way(nas: NAS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # type: ignore[arg-type]
    Path(f"{STEM}.engine").write_bytes(b"plan")
    for _ in range(2):
        assert nas.export(format="engine", verbose=False) == f"{STEM}-tensorrt.onnx"
    assert Path(f"{STEM}.engine").read_bytes() == b"plan"


# --- interrupts and errors in the middle ---


KINDS: dict[str, dict[str, Any]] = {"file": {}, "folder": {"format": "ncnn"}, "tree": {"target": "triton"}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
@pytest.mark.parametrize("stage", ["write", "check", "rename"])
def test_stopped_in_the_middle(
    stage: str, error: BaseException, kind: str, nas: NAS, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = KINDS[kind]

    def stop(*_: Any, **__: Any) -> None:
        assert any(path.name.startswith(".yolo_nas_narrow") for path in Path().iterdir())
        raise error

    def half(path: Path, *_: Any, **__: Any) -> None:
        (path / "half" if path.is_dir() else path).write_bytes(b"half")
        stop()

    for before in (False, True):
        files = {file: Path(file).read_bytes() for file in left()}
        assert bool(files) == before
        with monkeypatch.context() as patch:
            if stage == "write":
                patch.setattr(export, "write_onnx", half)
                patch.setattr(ncnn, "write_ncnn", half)
            elif stage == "check":
                patch.setattr(export_check, "compare", stop)
            else:
                patch.setattr(Path, "replace", stop)
            with pytest.raises(type(error)):
                nas.export(**options, conf=0.2)
        assert {file: Path(file).read_bytes() for file in left()} == files
        if not before:
            nas.export(**options, verbose=False)


@pytest.mark.skipif(sys.platform == "win32", reason="has other permissions")
def test_others_may_read_it(nas: NAS) -> None:
    """Although the folder in which it is made is for nobody else."""
    Path("folder").mkdir()
    Path("folder/file").touch()
    nas.export(target="triton", verbose=False)
    nas.export(verbose=False)
    for made, plain in (
        (f"{STEM}_triton", "folder"),
        (f"{STEM}_triton/{STEM}/1", "folder"),
        (f"{STEM}.onnx", "folder/file"),
    ):
        assert Path(made).stat().st_mode == Path(plain).stat().st_mode


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
@pytest.mark.parametrize("format", ["onnx", "openvino", "torchscript", "pt2", "ncnn"])
def test_a_full_disk(format: str, nas: NAS) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1_000, 300_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                nas.export(format=format, verbose=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert left() == []


def test_folders_that_cannot_be_written(nas: NAS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "NativeEngine", unreachable)
    for save in ("nowhere/x.onnx", f"{__file__}/x.onnx"):
        with pytest.raises(FileNotFoundError, match="save must be in an existing folder, there is no folder"):
            nas.export(save=save)
    for save, format in (("x.pt", "onnx"), (".", "onnx"), ("x.xml", "openvino"), ("x.onnx", "engine")):
        with pytest.raises(ValueError, match="save must end in "):
            nas.export(save=save, format=format)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(PermissionError, match=r"must be a folder that can be written to; save=\.\.\. names another"):
        nas.export()
    assert left() == []


# --- packages that are missing ---


@pytest.mark.parametrize(
    ("format", "package", "text"),
    [
        ("onnx", "onnx", r"export: ONNX files need the package onnx: pip install 'yolonas\[onnx\]'"),
        ("engine", "onnx", r"export: ONNX files need the package onnx: pip install 'yolonas\[onnx\]'"),
        ("openvino", "onnx", r"export: ONNX files need the package onnx: pip install 'yolonas\[onnx\]'"),
        (
            "openvino",
            "openvino",
            r"export: OpenVINO files need the package openvino: pip install 'yolonas\[openvino\]'",
        ),
    ],
)
def test_nothing_without_what_writes_it(
    format: str, package: str, text: str, nas: NAS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=text):
        nas.export(format=format)
    assert left() == []


@pytest.mark.parametrize(("format", "package", "extra"), [("onnx", "onnxruntime", "onnx"), ("ncnn", "ncnn", "ncnn")])
def test_no_check_without_what_runs_it(
    format: str,
    package: str,
    extra: str,
    nas: NAS,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    nas.export(format=format)
    assert left() == FORMATS[format][0]
    assert "export: the file was not compared with the network: " in caplog.text
    assert f"the package {package}: pip install 'yolonas[{extra}]'" in caplog.text
    assert "checked     no\n" in capsys.readouterr().out
    with pytest.raises(ImportError, match=rf"the package {package}"):  # data is there to measure the file
        nas.export(format=format, data=str(data), imgsz=64, save=f"other{Path(FORMATS[format][0][0]).parts[0][15:]}")
    assert left() == FORMATS[format][0]


@pytest.mark.parametrize("installed", [None, SimpleNamespace(__version__="8.6.1")])
def test_an_engine_without_tensorrt_is_a_graph_and_a_command(
    installed: Any,
    nas: NAS,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", installed)
    path = nas.export(format="engine", dynamic="batch", batch=4, workspace=2, save="cells.engine")
    assert path == "cells-tensorrt.onnx"
    assert left() == [path]
    assert re.search(r"export: TensorRT engines need .*tensorrt.*; writing the ONNX file for it", caplog.text)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split() == [
        *("trtexec", "--onnx=cells-tensorrt.onnx", "--saveEngine=cells.engine", "--stronglyTyped", "--skipInference"),
        *("--minShapes=input:1x3x64x96", "--optShapes=input:4x3x64x96", "--maxShapes=input:4x3x64x96"),
        "--memPoolSize=workspace:2048",
    ]


# --- options ---


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"format": "coreml"},
            ValueError,
            "format must be one of 'onnx', 'openvino', 'engine', 'torchscript', 'pt2', 'ncnn', got",
        ),
        ({"target": "jetson"}, ValueError, "target must be one of 'frigate', 'triton', 'deepstream', got 'jetson'"),
        ({"formt": "onnx"}, ValueError, "unknown argument 'formt'; did you mean 'format'?"),
        ({"outputs": "boxes"}, ValueError, "outputs must be one of 'batch', 'flat', 'rows', 'raw', 'heads'"),
        ({"quantize": 4}, ValueError, "quantize must be one of .*int8.*, got 4"),
        ({"dynamic": "yes"}, ValueError, "dynamic must be True or False, got 'yes'"),
        ({"opset": 12}, ValueError, r"opset must be a whole number in 13\.\.21, got 12"),
        ({"workspace": 0}, ValueError, "workspace must be a positive number of GiB"),
        ({"workspace": float("nan")}, ValueError, "workspace must be a positive number of GiB"),
        ({"conf": 25}, ValueError, "did you mean 0.25"),
        ({"iou": -1}, ValueError, r"iou must lie in 0\.\.1"),
        ({"batch": 0}, ValueError, "batch must be a whole number in 1"),
        ({"max_det": 0}, ValueError, "max_det must be a whole number in 1"),
        ({"imgsz": (1, 2, 3)}, ValueError, r"imgsz must be one side or \(height, width\)"),
        ({"layout": "hwc"}, ValueError, "layout must be one of 'nchw', 'nhwc'"),
        ({"channels": "gray"}, ValueError, "channels must be one of 'rgb', 'bgr'"),
        ({"check": "no"}, ValueError, "check must be True or False"),
        (
            {"nms": False, "outputs": "batch"},
            ValueError,
            "nms must be True for outputs='batch', got False; leave one out",
        ),
        ({"nms": True, "outputs": "raw"}, ValueError, "nms must be False for outputs='raw', got True; leave one out"),
        ({"top_k": 10}, ValueError, "max_det must be at most top_k, 10, got 300"),
        (
            {"outputs": "rows"},
            ValueError,
            "max_det must be at most 100 for outputs='rows'.*, got 300; such as max_det=20",
        ),
        (
            {"format": "torchscript", "nms": True},
            ValueError,
            "max_det must be at most 100 for outputs='batch' in format",
        ),
        (
            {"format": "pt2", "outputs": "flat"},
            NotImplementedError,
            "outputs must be one of .*'rows' has the same rows",
        ),
        ({"format": "ncnn", "nms": True}, NotImplementedError, "outputs must be 'heads' for format='ncnn'"),
        ({"format": "ncnn", "dynamic": True}, NotImplementedError, "ncnn has no batches"),
        ({"format": "ncnn", "preprocess": True}, NotImplementedError, "ncnn reads float32"),
        ({"format": "ncnn", "layout": "nhwc"}, NotImplementedError, "ncnn reads channel by channel"),
        ({"target": "frigate"}, None, ""),
        ({"target": "frigate", "imgsz": SIZE}, ValueError, "frigate: size must be square, got 64x96"),
        ({"target": "frigate", "dynamic": True}, ValueError, "Frigate sends one picture at a time"),
        ({"target": "frigate", "dynamic": "size"}, ValueError, "Frigate sends pictures of one size"),
        ({"target": "frigate", "batch": 2}, ValueError, "frigate: batch must be 1, got 2"),
        ({"target": "frigate", "outputs": "raw"}, ValueError, "frigate: outputs must be 'rows' or 'flat', got 'raw'"),
        ({"target": "frigate", "nms": False}, ValueError, "frigate: outputs must be 'rows' or 'flat', got 'raw'"),
        ({"target": "frigate", "preprocess": False}, ValueError, "Frigate sends bytes"),
        ({"target": "frigate", "layout": "nhwc"}, ValueError, "takes batch, channel, height, width"),
        ({"target": "frigate", "format": "openvino"}, ValueError, "format must be 'onnx' for target='frigate'"),
        ({"target": "frigate", "max_det": 200}, ValueError, "max_det must be at most 100 for outputs='rows'"),
        ({"target": "deepstream", "outputs": "batch"}, ValueError, "deepstream: outputs must be 'deepstream'"),
        ({"target": "deepstream", "nms": True}, ValueError, "deepstream: outputs must be 'deepstream'"),
        ({"target": "deepstream", "dynamic": "size"}, ValueError, "nvinfer sends pictures of one size"),
        ({"target": "deepstream", "preprocess": True}, ValueError, "nvinfer sends float32"),
        (
            {"target": "deepstream", "multi_label": True},
            ValueError,
            "multi_label must be False for outputs='deepstream'",
        ),
        ({"target": "triton", "format": "engine"}, ValueError, "format must be 'onnx' for target='triton'"),
    ],
    ids=str,
)
def test_options_that_do_not_go(
    options: dict[str, Any], error: type[Exception] | None, text: str, nas: NAS, monkeypatch: pytest.MonkeyPatch
) -> None:
    if error is None:  # so that it is not the target alone that is refused
        nas.export(**options, imgsz=64, check=False, verbose=False)
        return
    monkeypatch.setattr(export, "NativeEngine", unreachable)
    with pytest.raises(error, match=text):
        nas.export(**options)
    assert left() == []


def test_a_name_that_triton_does_not_take(nas: NAS) -> None:
    nas.ckpt_path = Path("best (1).pth")
    with pytest.raises(ValueError, match=r"triton: name must be letters, digits, .*, got 'best \(1\)'"):
        nas.export(target="triton")
    assert left() == []
    assert nas.export(verbose=False) == "best (1).onnx"


def test_files_are_no_models_to_export(nas: NAS) -> None:
    path = nas.export(verbose=False)
    nas.save("cells.yolonas")
    for file in (path, "cells.yolonas"):
        with pytest.raises(ValueError, match="export: model must be a checkpoint, got an exported or compiled file"):
            NAS(file).export()


def test_names_of_other_libraries(nas: NAS, caplog: pytest.LogCaptureFixture) -> None:
    assert ExportOptions.of(half=True) == ExportOptions(quantize="fp16")
    assert ExportOptions.of(half=True, int8=True) == ExportOptions(quantize="int8")
    assert ExportOptions.of(half=False, int8=False, nms=None, opset=None, data=None) == ExportOptions()
    assert ExportOptions.of(half=True, quantize=32) == ExportOptions(quantize="fp32")
    caplog.clear()
    run = run_of(
        nas,
        num_pre_nms_predictions=200,
        max_predictions_per_image=20,
        confidence_threshold=0.4,
        nms_threshold=0.5,
        output_predictions_format="flat",
        input_image_shape=(96, 64),
        batch_size=2,
        end2end=True,
    )
    assert run.spec is not None
    settings = DetectSettings(conf=0.4, iou=0.5, top_k=200, max_det=20)
    assert run.spec.settings == settings
    assert (run.spec.outputs, run.spec.preprocess.size, run.spec.batch) == ("flat", (96, 64), 2)
    assert caplog.text.count("is an old name, use '") == 8
    caplog.clear()
    harmless = {"simplify": False, "optimize": True, "device": 0, "name": "x", "task": "detect", "mode": "export"}
    assert run_of(of(nas.model), **harmless, keras=False).spec == run_of(of(nas.model)).spec
    assert [name for name in (*harmless, "keras") if f"'{name}' has" not in caplog.text] == []
    assert set(export.legacy_names()) >= {"half", "int8", "num_pre_nms_predictions", "end2end", "keras", "task"}


def test_callbacks(nas: NAS) -> None:
    told: list[tuple[str, Path | None, bool]] = []

    def note(event: str) -> Callable[[Any], None]:
        return lambda run: told.append((event, run.path, Path(f"{STEM}.onnx").exists()))

    for event in ("on_export_start", "on_export_end"):
        nas.add_callback(event, note(event))
    nas.export(verbose=False)
    path = Path(f"{STEM}.onnx")
    assert told == [("on_export_start", None, False), ("on_export_end", path, True)]
    path.unlink()

    def refuse(run: Exporter) -> None:
        raise LookupError(run.options.format)

    nas.add_callback("on_export_start", refuse)
    with pytest.raises(LookupError, match="onnx"):
        nas.export()
    assert left() == []


def test_the_network_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by what swaps channels or rounds weights."""
    monkeypatch.chdir(tmp_path)
    model = narrow("s")
    monkeypatch.setitem(VARIANTS, "narrow", model.variant)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    nas = of(model, channels="bgr")
    for format in ("onnx", "torchscript", "ncnn"):
        nas.export(format=format, quantize=16, channels="rgb", verbose=False)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {value.dtype for value in after.values()} == {torch.float32}
