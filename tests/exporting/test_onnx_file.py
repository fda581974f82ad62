"""ONNX files: valid by the standard's own checks, and the library's detections in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_networks import narrow, quantize_

from yolonas import NAS
from yolonas.config import DetectSettings
from yolonas.exported_engine import ExportedEngine
from yolonas.exporting.onnx_builder import IR_VERSIONS, _varint
from yolonas.exporting.onnx_file import write_onnx
from yolonas.exporting.spec import OUTPUTS, SUPPRESSED, ExportSpec
from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS
from yolonas.preprocess import Preprocess
from yolonas.sessions import OnnxSession, OpenVINOSession

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = (64, 96)
CONF = 0.35  # tests move it into a gap between scores


def pictures(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """uint8 (N, H, W, 3) RGB, in the size of the input."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def spec_of(variant: str = "s", classes: int = 3, **changes: Any) -> ExportSpec:
    spec = ExportSpec(
        variant=variant,
        names={number: f"class {number}" for number in range(classes)},
        preprocess=Preprocess(size=SIZE, fit=None),
        settings=DetectSettings(conf=CONF, iou=0.5, top_k=100, max_det=30),
    )
    return replace(spec, **changes)


def checked(path: Path) -> Any:
    """The model, after all of the standard's checks."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return model


def expected(model: YoloNAS, x: np.ndarray, spec: ExportSpec) -> tuple[list[np.ndarray], DetectSettings]:
    """The library's detections on pictures, with a threshold that no score is near, and the settings with it."""
    engine = NativeEngine.of_module(model)
    preprocess = spec.preprocess
    prepared = x.astype(np.float32) if preprocess.channels == "rgb" else x[..., ::-1].astype(np.float32)
    prepared = (prepared - np.float32(preprocess.mean)) / np.float32(preprocess.divisor)
    heads = engine.heads(prepared)
    low = engine.select(*heads, replace(spec.settings, conf=0.02, iou=1.0, top_k=5000, max_det=5000, agnostic=False))
    scores = np.unique(np.concatenate([rows[:, 4] for rows in low]))
    near = np.searchsorted(scores, spec.settings.conf).clip(1, len(scores) - 2)
    window = slice(max(0, near - 40), near + 40)
    gaps = np.diff(scores[window])
    at = int(gaps.argmax())
    conf = float(scores[window][at] + scores[window][at + 1]) / 2
    settings = replace(spec.settings, conf=conf)
    wanted = engine.select(*heads, settings)
    assert sum(map(len, wanted)) > 0
    return wanted, settings


def same(found: list[np.ndarray], wanted: list[np.ndarray], limit: float = 1e-4) -> None:
    """The same detections in the same order, but for equal scores."""
    assert [len(rows) for rows in found] == [len(rows) for rows in wanted]
    for rows, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(rows[:, 4], other[:, 4], atol=limit)
        for row in other:  # where scores are equal to within the limit their order is open
            apart = np.abs(rows[:, :4] - row[:4]).max(1) / max(SIZE) + np.abs(rows[:, 4] - row[4])
            apart += rows[:, 5] != row[5]
            assert apart.min() <= 2 * limit


def run(session: Any, spec: ExportSpec, x: np.ndarray, settings: DetectSettings) -> list[np.ndarray]:
    """Detections of RGB pictures that are in the size of the input already."""
    engine = ExportedEngine(session, spec)
    batch = x if spec.channels == "rgb" else x[..., ::-1]
    if not spec.uint8:
        mean, divisor = np.float32(spec.preprocess.mean), np.float32(spec.preprocess.divisor)
        if spec.preprocess.channels == "bgr":
            mean, divisor = mean[::-1], divisor[::-1]  # now of RGB
        if spec.channels == "bgr":
            mean, divisor = mean[::-1], divisor[::-1]
        batch = (batch.astype(np.float32) - mean) / divisor
    batch = np.ascontiguousarray(batch if spec.nhwc else batch.transpose(0, 3, 1, 2))
    return engine.select(engine._run(batch), settings)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("variant", ["s", "m", "l"])
def test_detections_are_the_librarys(variant: str, dynamic: bool, outputs: str, tmp_path: Path) -> None:
    model, x = narrow(variant), pictures(3)
    spec = spec_of(variant, outputs=outputs, batch=None if dynamic else 3, dynamic_size=dynamic)
    if outputs == "deepstream":
        spec = replace(spec, settings=replace(spec.settings, multi_label=False))
    wanted, settings = expected(model, x, spec)
    spec = replace(spec, settings=settings)
    path = tmp_path / "model.onnx"
    write_onnx(path, model, spec)
    checked(path)
    same(run(OnnxSession(path, spec), spec, x, settings), wanted)
    if dynamic:
        session = OnnxSession(path, spec)
        for count, size in ((1, (32, 32)), (5, (96, 64)), (2, (128, 160))):
            other = pictures(count, size, seed=count)
            found = run(session, spec, other, settings)
            engine = NativeEngine.of_module(model)
            wanted = engine.select(*engine.heads(other.astype(np.float32) / 255), settings)
            same(found, wanted)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_openvino_reads_the_same_file(dynamic: bool, outputs: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model, x = narrow("s"), pictures(3)
    spec = spec_of(outputs=outputs, batch=None if dynamic else 3, dynamic_size=dynamic)
    if outputs == "deepstream":
        spec = replace(spec, settings=replace(spec.settings, multi_label=False))
    wanted, settings = expected(model, x, spec)
    spec = replace(spec, settings=settings)
    write_onnx(tmp_path / "model.onnx", model, spec)
    same(run(OpenVINOSession(tmp_path / "model.onnx", spec), spec, x, settings), wanted)


@pytest.mark.parametrize("opset", sorted(IR_VERSIONS))
@pytest.mark.parametrize("outputs", ["batch", "rows", "raw"])
def test_every_opset(opset: int, outputs: str, tmp_path: Path) -> None:
    model, x = narrow("s"), pictures(1)
    spec = spec_of(outputs=outputs, dynamic_size=outputs == "batch")
    wanted, settings = expected(model, x, spec)
    spec = replace(spec, settings=settings)
    path = tmp_path / "model.onnx"
    write_onnx(path, model, spec, opset=opset)
    written = checked(path)
    assert [one.version for one in written.opset_import] == [opset]
    assert written.ir_version == IR_VERSIONS[opset]
    same(run(OnnxSession(path, spec), spec, x, settings), wanted)


SETTINGS = {
    "single label": {"multi_label": False},
    "across classes": {"agnostic": True},
    "both": {"multi_label": False, "agnostic": True},
    "few candidates": {"top_k": 30, "max_det": 5},
    "no suppression": {"iou": 1.0},
    "all overlap": {"iou": 0.0},
    "more places than candidates": {"top_k": 100, "max_det": 100, "conf": 0.5},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("outputs", SUPPRESSED)
def test_thresholds_and_suppression(outputs: str, name: str, tmp_path: Path) -> None:
    model, x = narrow("s"), pictures(2)
    spec = spec_of(outputs=outputs, batch=2)
    spec = replace(spec, settings=replace(spec.settings, **SETTINGS[name]))
    wanted, settings = expected(model, x, spec)
    spec = replace(spec, settings=settings)
    write_onnx(tmp_path / "model.onnx", model, spec)
    checked(tmp_path / "model.onnx")
    same(run(OnnxSession(tmp_path / "model.onnx", spec), spec, x, settings), wanted)


INPUTS = {
    "bytes, nhwc": {"nhwc": True},
    "bytes, bgr": {"channels": "bgr"},
    "floats": {"uint8": False},
    "floats, nhwc, bgr": {"uint8": False, "nhwc": True, "channels": "bgr"},
}
SCALED = {"mean": (10.0, 20.0, 30.0), "divisor": (200.0, 220.0, 255.0)}


@pytest.mark.parametrize("trained_on", ["rgb", "bgr"])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("scaling", [{}, SCALED], ids=["255", "mean"])
def test_inputs(name: str, trained_on: str, scaling: dict[str, Any], tmp_path: Path) -> None:
    model, x = narrow("s"), pictures(1)
    preprocess = Preprocess(size=SIZE, fit=None, channels=trained_on, **scaling)  # type: ignore[arg-type]
    spec = spec_of(preprocess=preprocess, **INPUTS[name])
    wanted, settings = expected(model, x, spec)
    spec = replace(spec, settings=settings)
    path = tmp_path / "model.onnx"
    write_onnx(path, model, spec)
    (entry,) = checked(path).graph.input
    kind = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
    assert kind == (np.uint8 if spec.uint8 else np.float32)
    same(run(OnnxSession(path, spec), spec, x, settings), wanted)


@pytest.mark.parametrize("outputs", ["batch", "rows", "raw", "heads"])
def test_half_precision(outputs: str, tmp_path: Path) -> None:
    model, x = narrow("s"), pictures(1)
    spec = spec_of(outputs=outputs, precision="fp16")
    path = tmp_path / "model.onnx"
    write_onnx(path, model, replace(spec, precision="fp32"))
    write_onnx(tmp_path / "half.onnx", model, spec)
    written = checked(tmp_path / "half.onnx")
    assert all(
        onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type) in (np.float32, np.int64)
        for one in written.graph.output
    )
    found = OnnxSession(tmp_path / "half.onnx", spec).run(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    whole = OnnxSession(path, spec).run(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    if outputs in ("raw", "heads"):
        for half, full in zip(found, whole, strict=True):
            assert np.abs(half - full).max() <= 1e-2 * np.abs(full).max()
    weights = {one.name: one for one in written.graph.initializer if one.name.endswith(".weight")}
    assert {one.data_type for one in weights.values()} == {onnx.TensorProto.FLOAT16}


def test_names_are_those_of_the_network(tmp_path: Path) -> None:
    write_onnx(tmp_path / "a.onnx", narrow("s"), spec_of())
    graph = checked(tmp_path / "a.onnx").graph
    names = [one.name for one in graph.initializer]
    assert "backbone.stem.conv.weight" in names
    assert "heads.head3.reg_pred.bias" in names
    assert all(node.name == node.output[0] for node in graph.node)
    assert len({name for node in graph.node for name in node.output}) == sum(len(node.output) for node in graph.node)
    write_onnx(tmp_path / "b.onnx", narrow("s"), spec_of())
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_outputs_have_the_shapes_that_the_spec_states(tmp_path: Path) -> None:
    shapes = {
        "batch": [[2, 1], [2, 30, 4], [2, 30], [2, 30]],
        "flat": [["detections", 7]],
        "rows": [[60, 7]],
        "raw": [[2, 126, 4], [2, 126, 3]],
        "deepstream": [[2, 126, 6]],
    }
    for outputs, wanted in shapes.items():
        spec = spec_of(outputs=outputs, batch=2)
        write_onnx(tmp_path / "model.onnx", narrow("s"), spec)
        graph = checked(tmp_path / "model.onnx").graph
        stated = [[axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim] for one in graph.output]
        assert stated == wanted
        assert [one.name for one in graph.output] == list(spec.output_names)


def test_rows_depend_on_no_data(tmp_path: Path) -> None:
    """What a CUDA graph needs: no operator whose output's shape is known only when it has run."""
    write_onnx(tmp_path / "model.onnx", narrow("s"), spec_of(outputs="rows"))
    model = checked(tmp_path / "model.onnx")
    assert not {node.op_type for node in model.graph.node} & {"NonMaxSuppression", "NonZero", "Loop", "If", "Compress"}
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    for value in inferred.graph.value_info:
        assert all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim), value.name


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    spec = spec_of(outputs="flat", channels="bgr", card={"int8": {"bytes": 3}})
    write_onnx(tmp_path / "model.onnx", narrow("s"), spec)
    stated = {one.key: one.value for one in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert ExportSpec.from_json(stated["yolonas"]) == spec
    assert stated["names"] == "{0: 'class 0', 1: 'class 1', 2: 'class 2'}"
    assert stated["imgsz"] == "[64, 96]"
    assert stated["stride"] == "32"


def test_weights_are_streamed(tmp_path: Path) -> None:
    """The file is that of protobuf itself, however it was put together."""
    path = tmp_path / "model.onnx"
    write_onnx(path, narrow("s"), spec_of())
    data = path.read_bytes()
    model = onnx.ModelProto()
    model.ParseFromString(data)
    again = io.BytesIO()
    again.write(model.SerializeToString())
    assert len(again.getvalue()) == len(data)


@pytest.mark.parametrize(
    ("number", "data"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\1"), (1 << 32, b"\x80\x80\x80\x80\x10")]
)
def test_varint(number: int, data: bytes) -> None:
    assert _varint(number) == data


@pytest.mark.parametrize("classes", [1, 80])
@pytest.mark.parametrize("outputs", ["batch", "rows"])
def test_class_counts(classes: int, outputs: str, tmp_path: Path) -> None:
    model, x = narrow("s", classes), pictures(1)
    spec = spec_of(classes=classes, outputs=outputs)
    wanted, settings = expected(model, x, spec)
    spec = replace(spec, settings=settings)
    write_onnx(tmp_path / "model.onnx", model, spec)
    checked(tmp_path / "model.onnx")
    same(run(OnnxSession(tmp_path / "model.onnx", spec), spec, x, settings), wanted)


@pytest.mark.parametrize("runtime", [OnnxSession, OpenVINOSession])
@pytest.mark.parametrize("outputs", ["heads", "batch"])
def test_int8(outputs: str, runtime: Any, tmp_path: Path) -> None:
    """Signal to noise against the integer engine: runtimes take some steps at other places."""
    if runtime is OpenVINOSession:
        pytest.importorskip("openvino")
    x = pictures(1)
    model = quantize_(narrow("s"), x.astype(np.float32) / 255)
    spec = spec_of(outputs=outputs, precision="int8")
    path = tmp_path / "model.onnx"
    write_onnx(path, model, spec)
    checked(path)
    outputs_ = runtime(path, spec).run(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    if outputs == "batch":
        assert [one.shape for one in outputs_] == [(1, 1), (1, 30, 4), (1, 30), (1, 30)]
        return
    cls, reg = NativeEngine.of_module(model).heads(x.astype(np.float32) / 255)
    for found, wanted in zip(outputs_, [*cls, *reg], strict=True):
        noise = np.square(found.transpose(0, 2, 3, 1) - wanted).mean() / np.square(wanted).mean()
        assert 10 * np.log10(noise + 1e-30) < -25


@pytest.mark.shared
def test_a_real_network(shared: Path, tmp_path: Path) -> None:
    """288 px, real pictures: detections within 1e-4."""
    from yolonas.export_check import compare

    nas = NAS(shared / "weights" / "bccd_s.pth").fuse()
    import cv2

    files = sorted((shared / "data" / "bccd" / "images" / "val").iterdir())[:3]
    spec = ExportSpec(variant="s", names=nas.names, preprocess=nas.preprocess, settings=nas.settings, batch=None)
    write_onnx(tmp_path / "model.onnx", nas.model, spec)
    assert (tmp_path / "model.onnx").stat().st_size < 50e6
    engine = ExportedEngine(OnnxSession(tmp_path / "model.onnx", spec), spec)
    found = compare(NativeEngine.of_module(nas.model), engine, [cv2.imread(str(file)) for file in files], spec)
    assert found.detections > 50
    assert found.missing == 0
    assert found.box < 1e-3
    assert found.score < 1e-5
