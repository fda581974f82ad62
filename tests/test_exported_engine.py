"""Exported files as engines, against the native engine: what they find, in what batches, and what a call can change."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_networks import assert_same, lively, pictures, widest_gap
from quantized_networks import narrow

from yolonas.config import DetectSettings
from yolonas.errors import CheckpointError
from yolonas.exported_engine import ExportedEngine
from yolonas.exporting.ncnn import write_ncnn
from yolonas.exporting.onnx_file import write_onnx
from yolonas.exporting.openvino import write_openvino
from yolonas.exporting.spec import OUTPUTS, SUPPRESSED, ExportSpec
from yolonas.native_engine import CpuDevice, NativeEngine
from yolonas.nn import YoloNAS
from yolonas.prepare import fill_from_picture, input_shape
from yolonas.preprocess import Geometry, Preprocess
from yolonas.sessions import NcnnSession, OnnxSession, OpenVINOSession, Session

PLAIN = Preprocess().with_size((64, 96))
ODD = Preprocess(
    size=(64, 96),
    fit=(64, 90),
    keep_ratio=False,
    padding="bottom_right",
    pad_value=20,
    channels="bgr",
    mean=(103.5, 116.3, 123.7),
    divisor=(57.4, 200.0, -58.4),
)
LOW = DetectSettings(conf=0.02, iou=1.0, top_k=5000, max_det=5000)
INPUTS = [dict(zip(("uint8", "nhwc", "channels"), one, strict=True)) for one in product(*[(0, 1)] * 2, ("rgb", "bgr"))]
FLOAT_BGR: dict[str, Any] = {"uint8": False, "nhwc": True, "channels": "bgr"}


@pytest.fixture(scope="module")
def model() -> YoloNAS:
    return lively()


@pytest.fixture(scope="module")
def native(model: YoloNAS) -> NativeEngine:
    return NativeEngine.of_module(copy.deepcopy(model))


def spec_of(settings: DetectSettings, preprocess: Preprocess = PLAIN, **changes: Any) -> ExportSpec:
    """Of a file that takes any number of pictures, with what its outputs make necessary."""
    spec = ExportSpec(
        variant="s",
        names={0: "cat", 1: "dog", 2: "bird"},
        preprocess=preprocess,
        settings=settings,
        **{"batch": None, **changes},
    )
    return replace(spec, settings=replace(settings, multi_label=False)) if spec.outputs == "deepstream" else spec


def onnx_engine(path: Path, model: YoloNAS, spec: ExportSpec) -> ExportedEngine:
    write_onnx(path, model, spec)
    return ExportedEngine(OnnxSession(path, spec), spec)


def geometries(images: Sequence[np.ndarray], preprocess: Preprocess) -> list[Geometry]:
    return [preprocess.plan(*image.shape[:2]) for image in images]


def found_by(engine: Any, images: Sequence[np.ndarray], spec: ExportSpec, settings: DetectSettings) -> list[np.ndarray]:
    preprocess = spec.preprocess
    rows, seconds = engine.detect(images, geometries(images, preprocess), preprocess, settings)
    assert seconds.shape == (3,)
    assert (seconds >= 0).all()
    return rows


def found_in_planes(
    engine: Any, images: Sequence[np.ndarray], spec: ExportSpec, settings: DetectSettings
) -> list[np.ndarray]:
    """The way of evaluations, and of tensors."""
    preprocess = spec.preprocess
    planes = np.empty((len(images), *input_shape(preprocess.size, engine.layout)), np.float32)
    for row, image, geometry in zip(planes, images, geometries(images, preprocess), strict=True):
        fill_from_picture(row, image, geometry, preprocess, engine.layout)
    return engine.select(*engine.heads(planes), settings)


def clear_settings(
    native: NativeEngine, images: Sequence[np.ndarray], preprocess: Preprocess = PLAIN, near: float = 0.4
) -> DetectSettings:
    """A threshold in a gap of the scores of these pictures."""
    rows = found_by(native, images, spec_of(LOW, preprocess), LOW)
    conf = widest_gap(np.concatenate(rows)[:, 4], near)
    return DetectSettings(conf=conf, iou=0.6, top_k=300, max_det=30)


def same(found: list[np.ndarray], expected: list[np.ndarray], limit: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for rows, others in zip(found, expected, strict=True):
        assert rows.dtype == np.float32
        assert_same(rows, others, limit)


# --- what is found ---


@pytest.mark.parametrize(
    ("outputs", "changes", "preprocess"),
    [
        *(("raw", one, preprocess) for one in INPUTS for preprocess in (PLAIN, ODD)),
        *((outputs, one, ODD) for outputs in OUTPUTS if outputs != "raw" for one in ({}, FLOAT_BGR)),
    ],
)
def test_pictures_give_what_the_network_gives(
    outputs: str, changes: dict[str, Any], preprocess: Preprocess, model: YoloNAS, native: NativeEngine, tmp_path: Path
) -> None:
    images = pictures(4)
    spec = spec_of(clear_settings(native, images, preprocess), preprocess, outputs=outputs, **changes)
    engine = onnx_engine(tmp_path / "m.onnx", model, spec)
    expected = found_by(native, images, spec, spec.settings)
    assert min(map(len, expected)) > 2
    same(found_by(engine, images, spec, spec.settings), expected)
    same(found_in_planes(engine, images, spec, spec.settings), expected)
    assert (engine.name, engine.half, engine.torch_boxes, engine.device) == ("onnxruntime", False, False, CpuDevice())
    assert engine.describe() == f"onnxruntime {engine.session.version}"
    assert engine.layout == ("hwc" if spec.nhwc else "chw")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_any_number_of_pictures_in_a_fixed_batch(
    outputs: str, batch: int, model: YoloNAS, native: NativeEngine, tmp_path: Path
) -> None:
    """In most of the pictures there is nothing, among them the first and the last."""
    images = [pictures(7)[number] for number in (4, 1, 2, 0, 3, 6, 5)]
    best = [float(rows[0, 4]) for rows in found_by(native, images, spec_of(LOW), LOW)]
    first, *rest = np.argsort(best)
    order = [first, *rest[2:], *rest[:2]]
    images, best = [images[number] for number in order], sorted(best)
    conf = (best[4] + best[5]) / 2
    assert best[5] - best[4] > 1e-4
    spec = spec_of(DetectSettings(conf=conf, iou=0.6, top_k=300, max_det=30), outputs=outputs, batch=batch)
    engine = onnx_engine(tmp_path / "m.onnx", model, spec)
    expected = found_by(native, images, spec, spec.settings)
    assert sum(len(rows) > 0 for rows in expected) == 2
    assert len(expected[0]) == len(expected[-1]) == 0
    for count in range(1, 8):
        same(found_by(engine, images[:count], spec, spec.settings), expected[:count])
    same(found_in_planes(engine, images, spec, spec.settings), expected)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_any_batch_and_size(outputs: str, model: YoloNAS, native: NativeEngine, tmp_path: Path) -> None:
    engine: ExportedEngine | None = None
    for size, count in (((64, 96), 3), ((32, 32), 1), ((96, 64), 5), ((128, 160), 2)):
        preprocess, images = PLAIN.with_size(size), pictures(count)
        spec = spec_of(replace(LOW, conf=0.35, iou=0.6), preprocess, outputs=outputs, dynamic_size=True)
        spec = replace(spec, settings=replace(spec.settings, top_k=300, max_det=30))
        engine = engine or onnx_engine(tmp_path / "m.onnx", model, spec)
        settings = replace(clear_settings(native, images, preprocess, 0.5), multi_label=spec.settings.multi_label)
        same(found_by(engine, images, spec, settings), found_by(native, images, spec, settings))


def test_pictures_that_are_never_resized(model: YoloNAS, native: NativeEngine, tmp_path: Path) -> None:
    spec = spec_of(DetectSettings(), Preprocess(size=(64, 96), fit=None))
    engine = onnx_engine(tmp_path / "m.onnx", model, spec)
    image = pictures(2)[1]
    assert image.shape == (64, 96, 3)
    settings = clear_settings(native, [image], spec.preprocess, 0.5)
    same(found_by(engine, [image], spec, settings), found_by(native, [image], spec, settings))
    with pytest.raises(ValueError, match="imgsz must be 64x96, which this file was exported for, got 96x128"):
        found_by(engine, pictures(1), spec, settings)


@pytest.mark.parametrize("outputs", ["batch", "heads"])
def test_half_precision(outputs: str, native: NativeEngine, tmp_path: Path) -> None:
    images, model = pictures(2), narrow("s")
    reference = NativeEngine.of_module(model)
    spec = spec_of(clear_settings(reference, images, near=0.25), outputs=outputs, precision="fp16")
    engine = onnx_engine(tmp_path / "m.onnx", model, spec)
    same(found_by(engine, images, spec, spec.settings), found_by(reference, images, spec, spec.settings), 1e-2)


def test_pictures_of_several_frames_are_refused(model: YoloNAS, tmp_path: Path) -> None:
    spec = spec_of(DetectSettings())
    engine = onnx_engine(tmp_path / "m.onnx", model, spec)
    image, other = pictures(2)
    two = [PLAIN.plan(*image.shape[:2]), PLAIN.with_size((32, 32)).plan(*other.shape[:2])]
    with pytest.raises(ValueError, match="frames of one size"):
        engine.detect([image, other], two, PLAIN, spec.settings)
    with pytest.raises(ValueError, match="geometries must be one per picture, 2, got 1"):
        engine.detect([image, other], two[:1], PLAIN, spec.settings)


@pytest.mark.parametrize("nhwc", [False, True])
def test_another_size_is_refused(nhwc: bool, model: YoloNAS, tmp_path: Path) -> None:
    spec = spec_of(DetectSettings(), nhwc=nhwc)
    engine = onnx_engine(tmp_path / "m.onnx", model, spec)
    for size in ((96, 64), (64, 64), (32, 96)):
        message = f"imgsz must be 64x96, which this file was exported for, got {size[0]}x{size[1]}; leave imgsz out"
        other = replace(spec, preprocess=PLAIN.with_size(size))
        for find in (found_by, found_in_planes):
            with pytest.raises(ValueError, match=message):
                find(engine, pictures(1), other, spec.settings)


# --- the thresholds of a call ---


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_thresholds_above_those_of_the_file(
    outputs: str, model: YoloNAS, native: NativeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = pictures(4)
    spec = spec_of(clear_settings(native, images, near=0.3), outputs=outputs, batch=3)
    engine = onnx_engine(tmp_path / "m.onnx", model, spec)
    high = clear_settings(native, images, near=0.45).conf
    assert high > spec.settings.conf
    for changes in ({"conf": high}, {"max_det": 2}, {"classes": (0, 2)}, {"conf": high, "classes": (1,)}):
        settings = replace(spec.settings, **changes)
        expected = found_by(native, images, spec, settings)
        assert 0 < sum(map(len, expected)) < sum(map(len, found_by(native, images, spec, spec.settings)))
        same(found_by(engine, images, spec, settings), expected)
    assert not caplog.records
    with pytest.raises(ValueError, match=r"classes must lie in 0\.\.2, got 3"):
        found_by(engine, images, spec, replace(spec.settings, classes=(0, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conf": 0.1}, "conf=0.1 has no effect: the file leaves out what is below 0.3"),
        ({"iou": 0.9}, "iou has no effect: NMS is in the file, with iou=0.6"),
        ({"iou": 0.1}, "iou has no effect: NMS is in the file, with iou=0.6"),
        ({"max_det": 31}, "max_det=31 has no effect: the file gives 30 at most"),
        ({"agnostic": True}, "agnostic has no effect: NMS is in the file, with agnostic=False"),
        ({"multi_label": False}, "multi_label has no effect: NMS is in the file, with multi_label=True"),
    ],
)
@pytest.mark.parametrize("outputs", SUPPRESSED)
def test_what_is_in_the_file_is_told_once(
    outputs: str,
    changes: dict[str, Any],
    message: str,
    model: YoloNAS,
    native: NativeEngine,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = pictures(2)
    spec = spec_of(DetectSettings(conf=0.3, iou=0.6, top_k=300, max_det=30), outputs=outputs)
    engine = onnx_engine(tmp_path / "m.onnx", model, spec)
    expected = found_by(engine, images, spec, spec.settings)
    assert not caplog.records
    for _ in range(3):
        same(found_by(engine, images, spec, replace(spec.settings, **changes)), expected)
    (record,) = caplog.records
    assert record.getMessage() == f"{message}; export with outputs='raw' leaves this to the caller"
    assert (record.name, record.levelno) == ("yolonas", logging.WARNING)


@pytest.mark.parametrize("outputs", ["raw", "heads"])
def test_outputs_without_thresholds_take_those_of_the_call(
    outputs: str, model: YoloNAS, native: NativeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = pictures(3)
    spec = spec_of(DetectSettings(conf=0.9, iou=0.2, top_k=3, max_det=1), outputs=outputs)
    engine = onnx_engine(tmp_path / "m.onnx", model, spec)
    clear = clear_settings(native, images, near=0.3)
    for changes in ({}, {"agnostic": True}, {"multi_label": False}, {"classes": (2,)}, {"iou": 0.8}, {"max_det": 300}):
        settings = replace(clear, **changes)
        expected = found_by(native, images, spec, settings)
        assert min(map(len, expected)) > 1
        same(found_by(engine, images, spec, settings), expected)
    assert not caplog.records


def test_the_best_class_alone_is_told_once(
    model: YoloNAS, native: NativeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = pictures(3)
    spec = spec_of(clear_settings(native, images, near=0.3), outputs="deepstream")
    engine = onnx_engine(tmp_path / "m.onnx", model, spec)
    for changes in ({}, {"classes": (0, 2)}, {"agnostic": True, "iou": 0.3}, {"max_det": 3}):
        settings = replace(spec.settings, **changes)
        same(found_by(engine, images, spec, settings), found_by(native, images, spec, settings))
    assert not caplog.records
    for _ in range(2):
        found = found_by(engine, images, spec, replace(spec.settings, multi_label=True))
        same(found, found_by(native, images, spec, spec.settings))
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "multi_label has no effect: the file gives the best class of a box alone"
    ]


# --- other runtimes ---


def openvino_engine(folder: Path, model: YoloNAS, spec: ExportSpec) -> ExportedEngine:
    write_onnx(folder / "m.onnx", model, spec)
    write_openvino(folder, folder / "m.onnx", spec)
    return ExportedEngine(OpenVINOSession(folder / "yolo_nas_s.xml", spec), spec)


def ncnn_engine(folder: Path, model: YoloNAS, spec: ExportSpec) -> ExportedEngine:
    write_ncnn(folder, model, spec)
    return ExportedEngine(NcnnSession(folder, spec), spec)


@pytest.mark.parametrize(("outputs", "changes"), [("batch", {"batch": 3}), ("flat", FLOAT_BGR), ("heads", {})])
def test_openvino(outputs: str, changes: dict[str, Any], model: YoloNAS, native: NativeEngine, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    images = pictures(4)
    spec = spec_of(clear_settings(native, images, ODD), ODD, outputs=outputs, **changes)
    engine = openvino_engine(tmp_path, model, spec)
    expected = found_by(native, images, spec, spec.settings)
    same(found_by(engine, images, spec, spec.settings), expected)
    same(found_in_planes(engine, images, spec, spec.settings), expected)
    assert engine.describe() == f"openvino {engine.session.version}"


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("preprocess", [PLAIN, ODD])
def test_ncnn(preprocess: Preprocess, channels: str, model: YoloNAS, native: NativeEngine, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    images = pictures(4)
    changes: dict[str, Any] = {"outputs": "heads", "uint8": False, "batch": 1, "channels": channels}
    spec = spec_of(clear_settings(native, images, preprocess), preprocess, **changes)
    engine = ncnn_engine(tmp_path, model, spec)
    expected = found_by(native, images, spec, spec.settings)
    same(found_by(engine, images, spec, spec.settings), expected)
    same(found_in_planes(engine, images, spec, spec.settings), expected)
    assert engine.describe() == f"ncnn {engine.session.version}"


MAKERS: dict[str, Callable[[Path, YoloNAS, ExportSpec], ExportedEngine]] = {
    "onnxruntime": lambda folder, model, spec: onnx_engine(folder / "m.onnx", model, spec),
    "openvino": openvino_engine,
    "ncnn": ncnn_engine,
}


@pytest.mark.parametrize("runtime", [*MAKERS])
def test_threads_may_share_an_engine(runtime: str, model: YoloNAS, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    changes: dict[str, Any] = {"outputs": "heads", "uint8": False, "batch": 1}
    spec = spec_of(DetectSettings(conf=0.3), **changes)
    engine = MAKERS[runtime](tmp_path, model, spec)
    images = pictures(4)
    alone = [found_by(engine, [image], spec, spec.settings)[0] for image in images]
    together: list[list[np.ndarray]] = [[] for _ in images]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(25):
                together[number] += found_by(engine, [images[number]], spec, spec.settings)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for rows, found in zip(alone, together, strict=True):
        assert len(rows) > 3
        assert len(found) == 25
        assert all(np.array_equal(rows, other) for other in found)


# --- outputs that are not what the metadata says ---


class Scripted(Session):
    """A session that returns what it was given."""

    name, version, device = "scripted", "1", CpuDevice()

    def __init__(self, *outputs: np.ndarray):
        self.outputs = list(outputs)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        return self.outputs


def some(*shape: int, dtype: Any = np.float32, value: float = 0) -> np.ndarray:
    return np.full(shape, value, dtype)


GOOD: dict[str, list[np.ndarray]] = {  # two pictures with 126 anchors, three classes, five places
    "batch": [some(2, 1, dtype=np.int64), some(2, 5, 4), some(2, 5), some(2, 5, dtype=np.int64)],
    "flat": [some(2, 7, value=-1)],
    "rows": [some(10, 7, value=-1)],
    "raw": [some(2, 126, 4), some(2, 126, 3)],
    "heads": [some(2, channels, 8 >> n, 12 >> n) for channels in (3, 68) for n in range(3)],
    "deepstream": [some(2, 126, 6)],
}


def wrong_outputs() -> list[Any]:
    cases = []
    for outputs, arrays in GOOD.items():
        for number, array in enumerate(arrays):
            for axis in range(array.ndim):
                if (outputs, axis) != ("flat", 0):
                    cases.append((outputs, number, array.repeat(2, axis)))
            cases.append((outputs, number, array[0]))
            cases.append((outputs, number, array[..., None]))
            cases.append((outputs, number, some()))
            cases.append((outputs, number, array.astype(np.float64)))
            cases.append((outputs, number, array.astype(np.int32)))
            cases.append((outputs, number, array[..., :0]))
    return cases


def scripted(outputs: str, arrays: Sequence[np.ndarray]) -> tuple[ExportedEngine, ExportSpec]:
    spec = spec_of(DetectSettings(conf=0.1, max_det=5), outputs=outputs)
    return ExportedEngine(Scripted(*arrays), spec), spec


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_nothing_at_all(outputs: str) -> None:
    engine, spec = scripted(outputs, GOOD[outputs])
    settings = replace(spec.settings, conf=0.9)
    assert [rows.shape for rows in found_by(engine, pictures(2), spec, settings)] == [(0, 6), (0, 6)]


@pytest.mark.parametrize(("outputs", "number", "wrong"), wrong_outputs())
def test_outputs_of_another_shape_or_type(outputs: str, number: int, wrong: np.ndarray) -> None:
    arrays = list(GOOD[outputs])
    arrays[number] = wrong
    engine, spec = scripted(outputs, arrays)
    message = f"the graph gives something else than its metadata says: {spec.output_names[number]} must be "
    for find in (found_by, found_in_planes):
        with pytest.raises(CheckpointError, match=message) as error:
            find(engine, pictures(2), spec, spec.settings)
        assert str(error.value).endswith("; export it again")


def batch_of(count: int, label: int) -> list[np.ndarray]:
    counts, boxes, scores, classes = (array.copy() for array in GOOD["batch"])
    counts[1], scores[1], classes[1] = count, 0.5, label
    boxes[1] = 1, 2, 3, 4
    return [counts, boxes, scores, classes]


@pytest.mark.parametrize("count", [-1, 6, 1 << 40, -(1 << 63)])
def test_more_detections_than_there_are_places(count: int) -> None:
    engine, spec = scripted("batch", batch_of(count, 0))
    with pytest.raises(CheckpointError, match="graph2_num_predictions must be at most 5"):
        found_by(engine, pictures(2), spec, spec.settings)


@pytest.mark.parametrize("label", [-1, 3, 1 << 40])
def test_classes_that_there_are_not(label: int) -> None:
    engine, spec = scripted("batch", batch_of(2, label))
    with pytest.raises(CheckpointError, match=r"classes must be numbers in 0\.\.2, got"):
        found_by(engine, pictures(2), spec, spec.settings)


@pytest.mark.parametrize("label", [-1, 3, 0.5, np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("outputs", ["flat", "rows", "deepstream"])
def test_rows_of_classes_that_there_are_not(outputs: str, label: float) -> None:
    (array,) = GOOD["rows" if outputs == "flat" else outputs]
    array = array.copy()
    array[..., 1, -7 if outputs != "deepstream" else 0] = 1
    array[..., 1, -1] = label
    engine, spec = scripted(outputs, [array])
    with pytest.raises(CheckpointError, match=r"classes must be numbers in 0\.\.2, got"):
        found_by(engine, pictures(2), spec, spec.settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["box", "score"])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_what_is_not_finite_is_no_detection(outputs: str, place: str, value: float) -> None:
    """As in the native engine. A logit may be infinite: its score is 0 or 1."""
    arrays = [array.copy() for array in GOOD[outputs]]
    row = np.float32([10, 10, 50, 50, 0.5, 0])
    row[1 if place == "box" else 4] = value
    if outputs == "batch":
        arrays[0][:], arrays[1][:, 0], arrays[2][:, 0] = 1, row[:4], row[4]
    elif outputs in ("flat", "rows"):
        arrays[0] = np.concatenate([np.float32([[0, *row]]), some(9, 7, value=-1)])
    elif outputs == "raw":
        arrays[0][:, 0], arrays[1][:, 0, 0] = row[:4], row[4]
    elif outputs == "deepstream":
        arrays[0][:, 0] = row
    else:
        for array in arrays[:3]:
            array[:] = -20
        arrays[0][:, 0, 0, 0] = 5 if place == "box" else value
        if place == "box":
            arrays[3][:, :, 0, 0] = value
    engine, spec = scripted(outputs, arrays)
    found = found_by(engine, pictures(2), spec, spec.settings)
    if place == "score" and value == np.inf:
        assert np.isfinite(found[0][:, :4]).all()
    else:
        assert [len(rows) for rows in found] == [0, 0]


def test_rows_of_pictures_that_were_not_asked_for_are_left_out() -> None:
    table = np.float32(
        [[number, 1, 2, 30, 40, score, 1] for number, score in ((7, 0.9), (1, 0.8), (-1, 0.7), (1, 0.6), (0.5, 0.5))]
    )
    engine, spec = scripted("flat", [table])
    first, second = found_by(engine, pictures(2), spec, spec.settings)
    assert len(first) == 0
    np.testing.assert_array_equal(second, table[[1, 3], 1:])


def test_a_runtime_that_fails(model: YoloNAS, tmp_path: Path) -> None:
    spec = spec_of(DetectSettings(), batch=1)
    write_onnx(tmp_path / "m.onnx", model, spec)
    session = OnnxSession(tmp_path / "m.onnx", spec)
    for x in (np.zeros((1, 3, 64, 96), np.float32), np.zeros((1, 3, 32, 96), np.uint8), np.zeros((96,), np.uint8)):
        with pytest.raises(RuntimeError, match=rf"^ONNX Runtime {session.version} failed: .*[Ee]xpected") as error:
            session.run(x)
        assert "\n" not in str(error.value)
