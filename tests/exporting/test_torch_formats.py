"""TorchScript and pt2 files against the native engine and its selection, and suppression as a graph against the op."""

from __future__ import annotations

import copy
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_recipe import fill_
from quantized_networks import narrow

from yolonas import ops
from yolonas.config import STRIDES, DetectSettings
from yolonas.exporting.spec import ExportSpec
from yolonas.exporting.torch_formats import read_pt2, read_torchscript, write_pt2, write_torchscript
from yolonas.exporting.torch_module import MOST_CANDIDATES, Deployed, choose, suppress
from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS
from yolonas.ops.reference import decode, iou
from yolonas.preprocess import Preprocess
from yolonas.selection import select_detections

SIZE = (96, 160)
FORMATS = {"torchscript": (write_torchscript, read_torchscript), "pt2": (write_pt2, read_pt2)}
SETTINGS = DetectSettings(conf=0.12, iou=0.5, top_k=200, max_det=12)
SPEC = ExportSpec(
    variant="s",
    names={0: "cat", 1: "dog", 2: "maßkrug"},
    preprocess=Preprocess(size=SIZE, fit=None, mean=(10.0, 20.0, 30.0), divisor=(200.0, 220.0, 255.0)),
    settings=SETTINGS,
)
Heads = tuple[list[np.ndarray], list[np.ndarray]]  # channels last


@pytest.fixture(scope="module")
def model() -> YoloNAS:
    return narrow("s")


@pytest.fixture(scope="module")
def engine(model: YoloNAS) -> NativeEngine:
    return NativeEngine.of_module(copy.deepcopy(model))


def pixels(batch: int, height: int, width: int) -> np.ndarray:
    """Pictures of coloured blocks, uint8 `(B, H, W, 3)` in the network's order of channels."""
    coarse = np.random.default_rng(batch * height + width).integers(0, 256, (batch, height // 16, width // 16, 3))
    return coarse.astype(np.uint8).repeat(16, axis=1).repeat(16, axis=2)


def prepared(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32) - np.float32(SPEC.preprocess.mean)) / np.float32(SPEC.preprocess.divisor)


def file_input(values: np.ndarray, spec: ExportSpec) -> torch.Tensor:
    """What a caller sends to the file."""
    x = values if spec.uint8 else prepared(values)
    x = x[..., ::-1] if spec.channels == "bgr" else x
    return torch.from_numpy(np.ascontiguousarray(x if spec.nhwc else x.transpose(0, 3, 1, 2)))


def heads_of(outputs: Any) -> Heads:
    levels = [np.ascontiguousarray(level.numpy().transpose(0, 2, 3, 1)) for level in outputs]
    return levels[:3], levels[3:]


def chained(heads: Heads) -> list[np.ndarray]:
    return [*heads[0], *heads[1]]


def reference_heads(engine: NativeEngine, model: YoloNAS, spec: ExportSpec, values: np.ndarray) -> Heads:
    if spec.precision == "fp16":  # there is no other network in half precision on a CPU
        return heads_of(Deployed(model, replace(spec, outputs="heads"))(file_input(values, spec)))
    return engine.heads(prepared(values))


def clear_of(values: np.ndarray, near: float) -> float:
    """The number near another one with the widest gap around it, so that rounding decides nothing."""
    values = np.sort(values[np.abs(values - near) < 0.02])
    values = np.concatenate([[near - 0.02], values, [near + 0.02]])
    widest = np.diff(values).argmax()
    assert values[widest + 1] - values[widest] > 2e-5
    return float(values[widest] + values[widest + 1]) / 2


def clear_settings(heads: list[Heads], settings: DetectSettings) -> DetectSettings:
    """Settings like these for some batches, clear of all their scores and overlaps."""
    decoded = [decode(*batch, STRIDES, channels_last=True) for batch in heads]
    conf = clear_of(np.concatenate([scores.ravel() for _, scores in decoded]), settings.conf)
    overlaps = []
    for boxes, scores in decoded:
        for picture, score in zip(boxes, scores, strict=True):
            likely = picture[(score > conf).any(axis=1)]
            overlaps += [iou(one, other) for i, one in enumerate(likely) for other in likely[:i]]
    return replace(settings, conf=conf, iou=clear_of(np.array(overlaps), settings.iou))


def rows_of(outputs: Any, spec: ExportSpec) -> list[np.ndarray]:
    """Per picture the used rows of "batch" or "rows", after checking the unused ones."""
    most = spec.settings.max_det
    if spec.outputs == "rows":
        table = outputs.reshape(-1, most, 7).numpy()
        counts = (table[..., 6] >= 0).sum(axis=1)
        for number, (picture, count) in enumerate(zip(table, counts, strict=True)):
            assert (picture[:count, 0] == number).all()
            assert (picture[count:] == -1).all()
        return [picture[:count, 1:] for picture, count in zip(table, counts, strict=True)]
    number, boxes, scores, classes = outputs
    assert number.dtype == classes.dtype == torch.int64
    assert number.shape == (len(boxes), 1)
    assert boxes.shape[1:] == (most, 4)
    assert scores.shape[1:] == classes.shape[1:] == (most,)
    table = torch.cat([boxes, scores[..., None], classes[..., None].float()], dim=2).numpy()
    assert all((picture[count:] == -1).all() for picture, count in zip(table, number, strict=True))
    return [picture[:count] for picture, count in zip(table, number, strict=True)]


def assert_same_detections(found: list[np.ndarray], expected: list[np.ndarray], size: tuple[int, int]) -> None:
    assert [len(rows) for rows in found] == [len(rows) for rows in expected]
    assert any(len(rows) > 3 for rows in expected)
    for rows, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(rows[:, 4], others[:, 4], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(rows[:, 5], others[:, 5])
        np.testing.assert_allclose(rows[:, :4], others[:, :4], rtol=0, atol=1e-4 * max(size))


def assert_outputs(outputs: Any, heads: Heads, spec: ExportSpec, size: tuple[int, int]) -> None:
    """What a file gave for a picture against what the library makes of the head outputs."""
    tensors = outputs if isinstance(outputs, tuple) else (outputs,)
    assert all(tensor.is_contiguous() for tensor in tensors)
    assert len(tensors) == len(spec.output_names)
    if spec.outputs == "heads":
        for level, other in zip(chained(heads_of(outputs)), chained(heads), strict=True):
            np.testing.assert_allclose(level, other, rtol=0, atol=1e-4 * np.abs(other).max())
    elif spec.outputs == "raw":
        boxes, scores = decode(*heads, STRIDES, channels_last=True)
        np.testing.assert_allclose(outputs[0], boxes, rtol=0, atol=1e-4 * max(size))
        np.testing.assert_allclose(outputs[1], scores, rtol=0, atol=1e-4)
    else:
        assert_same_detections(rows_of(outputs, spec), select_detections(*heads, spec.settings), size)


def case(format: str, outputs: str, **changes: Any) -> Any:
    thresholds = {key: changes.pop(key) for key in ("multi_label", "agnostic", "top_k") if key in changes}
    spec = replace(SPEC, outputs=outputs, settings=replace(SETTINGS, **thresholds), **changes)
    named = "-".join(f"{key}={value}" for key, value in {**changes, **thresholds}.items())
    return pytest.param(format, spec, id=f"{format}-{outputs}-{named}")


CASES = [
    case("torchscript", "batch"),
    case("torchscript", "batch", uint8=False, nhwc=True, multi_label=False),
    case("torchscript", "batch", channels="bgr", batch=3, agnostic=True),
    case("torchscript", "batch", precision="fp16", nhwc=True, channels="bgr"),
    case("torchscript", "rows", batch=3, top_k=40),
    case("torchscript", "rows", precision="fp16", uint8=False, multi_label=False, agnostic=True),
    case("torchscript", "raw", uint8=False, channels="bgr"),
    case("torchscript", "raw", precision="fp16", nhwc=True),
    case("torchscript", "heads", nhwc=True, channels="bgr"),
    case("torchscript", "heads", precision="fp16", uint8=False, batch=3),
    case("pt2", "batch", batch=3, channels="bgr", agnostic=True),
    case("pt2", "batch", precision="fp16", uint8=False, multi_label=False),
    case("pt2", "rows", nhwc=True, channels="bgr", top_k=40),
    case("pt2", "raw", uint8=False, nhwc=True),
    case("pt2", "heads", precision="fp16", channels="bgr"),
]


@pytest.mark.parametrize(("format", "spec"), CASES)
def test_file_gives_what_the_library_gives(
    format: str, spec: ExportSpec, model: YoloNAS, engine: NativeEngine, tmp_path: Path
) -> None:
    write, read = FORMATS[format]
    values = pixels(spec.batch or 1, *SIZE)
    heads = reference_heads(engine, model, spec, values)
    if spec.outputs in ("batch", "rows"):
        spec = replace(spec, settings=clear_settings([heads], spec.settings))
    write(tmp_path / "file", model, spec)
    module, stated = read(tmp_path / "file")
    assert stated == spec
    assert_outputs(module(file_input(values, spec)), heads, spec, SIZE)


@pytest.mark.parametrize(
    ("format", "outputs"),
    [
        ("torchscript", "batch"),
        ("torchscript", "rows"),
        ("torchscript", "raw"),
        pytest.param("pt2", "rows", marks=pytest.mark.slow),
    ],
)
def test_any_batch_and_size(format: str, outputs: str, model: YoloNAS, engine: NativeEngine, tmp_path: Path) -> None:
    """From sizes with fewer anchors than candidates that are kept to such with more."""
    write, read = FORMATS[format]
    spec = replace(SPEC, outputs=outputs, batch=None, dynamic_size=True, nhwc=outputs == "rows")
    shapes = [(1, 64, 64), (3, 64, 96), (1, 128, 64), (2, 160, 160)] + [(1, 32, 32)] * (format == "torchscript")
    inputs = [pixels(*shape) for shape in shapes]
    heads = [engine.heads(prepared(values)) for values in inputs]
    spec = replace(spec, settings=clear_settings(heads, SETTINGS))
    write(tmp_path / "file", model, spec)
    module, stated = read(tmp_path / "file")
    assert stated == spec
    for values, found, shape in zip(inputs, heads, shapes, strict=True):
        assert_outputs(module(file_input(values, spec)), found, spec, shape[1:])


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_in_the_file(format: str, model: YoloNAS, tmp_path: Path) -> None:
    FORMATS[format][0](tmp_path / "file", model, replace(SPEC, precision="fp16"))
    with zipfile.ZipFile(tmp_path / "file") as archive:
        (member,) = [name for name in archive.namelist() if name.endswith("config.txt")]
        text = archive.read(member).decode()
        code = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".py"))
    stated = json.loads(text)
    assert (stated["task"], stated["stride"], stated["imgsz"], stated["batch"]) == ("detect", 32, list(SIZE), 1)
    assert stated["names"] == list(SPEC.names.values())
    # An op that names a device would bind the file to it.
    if format == "pt2":
        with (tmp_path / "file").open("rb") as file:
            assert not [node for node in torch.export.load(file).graph.nodes if "device" in node.kwargs]
    else:
        assert code
        assert b"torch.device" not in code


def test_model_is_left_alone(model: YoloNAS) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    Deployed(model, replace(SPEC, precision="fp16", channels="bgr"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_network_in_training_form_is_fused(model: YoloNAS) -> None:
    unfused = fill_(YoloNAS(model.variant, num_classes=3)).eval()
    spec = replace(SPEC, outputs="heads", channels="bgr")
    x = file_input(pixels(1, *SIZE), spec)
    for level, other in zip(Deployed(unfused, spec)(x), Deployed(model, spec)(x), strict=True):
        torch.testing.assert_close(level, other)
    assert unfused.form == "training"


def test_half_precision_is_near(model: YoloNAS, engine: NativeEngine) -> None:
    spec = replace(SPEC, precision="fp16", outputs="heads")
    values = pixels(1, *SIZE)
    found, expected = reference_heads(engine, model, spec, values), engine.heads(prepared(values))
    for level, other in zip(chained(found), chained(expected), strict=True):
        assert 0 < np.abs(level - other).max() < 0.01 * np.abs(other).max()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"outputs": "flat"}, NotImplementedError, "outputs must be one of batch, rows, raw, heads"),
        ({"precision": "int8"}, NotImplementedError, "onnx, openvino and engine take int8"),
        ({"settings": replace(SETTINGS, max_det=101)}, ValueError, r"max_det must lie in 1\.\.100 for .* got 101"),
        ({"settings": replace(SETTINGS, top_k=5000)}, ValueError, r"top_k must lie in 1\.\.4096 for .* got 5000"),
    ],
)
def test_what_cannot_be_written(
    format: str, changes: dict[str, Any], error: type[Exception], text: str, model: YoloNAS, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        FORMATS[format][0](tmp_path / "file", model, replace(SPEC, **changes))
    assert not (tmp_path / "file").exists()


def test_quantised_network_cannot_be_written(model: YoloNAS) -> None:
    quantised = copy.deepcopy(model)
    quantised.activation_scales = {"input": 1.0}
    with pytest.raises(NotImplementedError, match="int8"):
        Deployed(quantised, SPEC)


def test_limits_are_those_of_suppression(model: YoloNAS) -> None:
    Deployed(model, replace(SPEC, outputs="raw", settings=replace(SETTINGS, max_det=300, top_k=30000)))
    Deployed(model, replace(SPEC, settings=replace(SETTINGS, max_det=100, top_k=MOST_CANDIDATES)))


# Suppression as a graph. Boxes and scores are given, so that it must equal the op bit for bit.


def chain(count: int) -> np.ndarray:
    """Boxes that each overlap only their neighbours: IoU 1/3 with the next one."""
    left = 10.0 * np.arange(count, dtype=np.float32)
    return np.stack([left, np.zeros_like(left), left + 20, np.full_like(left, 20)], axis=1)


def crowd(count: int, seed: int) -> np.ndarray:
    corners = np.random.default_rng(seed).uniform(0, 60, (count, 4)).astype(np.float32)
    return np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)


def falling(count: int, classes: int) -> np.ndarray:
    return np.linspace(0.95, 0.3, count * classes, dtype=np.float32).reshape(count, classes)


def scattered(count: int, classes: int, levels: int) -> np.ndarray:
    """Scores of a few values only, so that most have equals."""
    return np.random.default_rng(count).integers(0, levels + 1, (count, classes)).astype(np.float32) / levels


def broken(count: int) -> tuple[np.ndarray, np.ndarray]:
    boxes, scores = crowd(count, 3), scattered(count, 3, 50)
    boxes[::5, 1], boxes[::7, 2] = np.nan, np.inf
    scores[::3, 0], scores[1::4] = np.nan, np.nan
    return boxes, scores


SCENES = {
    "chain": (chain(30), falling(30, 1)),
    "chain from its end": (chain(30)[::-1], falling(30, 1)),
    "chain, best in the middle": (np.roll(chain(31), 15, axis=0), falling(31, 2)),
    "equal scores": (crowd(90, 0), np.full((90, 3), 0.75, np.float32)),
    "many equal scores": (crowd(90, 1), scattered(90, 3, 4)),
    "same box": (np.tile(crowd(1, 2), (40, 1)), scattered(40, 3, 1000)),
    "no area": (crowd(60, 4)[:, [0, 1, 0, 1]].repeat(2, axis=0), scattered(120, 2, 10)),
    "a line": (crowd(60, 5)[:, [0, 1, 2, 1]], scattered(60, 2, 10)),
    "not finite": broken(60),
    "none": (crowd(30, 6), np.zeros((30, 3), np.float32)),
    "one": (crowd(1, 7), np.full((1, 1), 0.9, np.float32)),
    "crowd": (crowd(400, 8), np.random.default_rng(9).random((400, 5), np.float32)),
}
RULES = {
    "usual": DetectSettings(max_det=100),
    "one label": DetectSettings(max_det=100, multi_label=False),
    "agnostic": DetectSettings(max_det=100, agnostic=True),
    "one label, agnostic": DetectSettings(max_det=100, agnostic=True, multi_label=False, iou=0.3),
    "few candidates": DetectSettings(top_k=17, max_det=100),
    "few candidates, one label": DetectSettings(top_k=17, max_det=100, multi_label=False),
    "one candidate": DetectSettings(top_k=1, max_det=3),
    "few boxes": DetectSettings(max_det=5),
    "any overlap": DetectSettings(iou=0.0, max_det=60),
    "no overlap": DetectSettings(iou=1.0, max_det=60),
    "any score": DetectSettings(conf=0.0, max_det=40),
    "any score, one label": DetectSettings(conf=0.0, max_det=40, multi_label=False),
    "on the threshold": DetectSettings(conf=0.75, max_det=40),
    "on the threshold, one label": DetectSettings(conf=0.75, max_det=40, multi_label=False),
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("rule", RULES)
def test_suppression_is_that_of_the_op(scene: str, rule: str) -> None:
    (boxes, scores), settings = SCENES[scene], RULES[rule]
    # A second picture, so that no picture sees the other one.
    both = [np.ascontiguousarray([array, array[::-1]]) for array in (boxes, scores)]
    expected, counts = ops.batched_nms(
        *both,
        conf=settings.conf,
        iou=settings.iou,
        top_k=settings.top_k,
        max_det=settings.max_det,
        multi_label=settings.multi_label,
        agnostic=settings.agnostic,
    )
    candidates = choose(*map(torch.from_numpy, both), settings, anchors=len(boxes), classes=scores.shape[1])
    found = suppress(*candidates, settings)
    for rows, others, count in zip(rows_of(found, replace(SPEC, settings=settings)), expected, counts, strict=True):
        np.testing.assert_array_equal(rows, others[:count])


def test_box_on_the_threshold_stays() -> None:
    """An overlap of exactly the threshold suppresses nothing; it does once the threshold is the next number below."""
    boxes = torch.tensor([[[0.0, 0, 20, 10], [10, 0, 20, 10]]])
    scores = torch.tensor([[[0.9], [0.8]]])
    for threshold, number in ((0.5, 2), (float(np.nextafter(np.float32(0.5), np.float32(0))), 1)):
        settings = DetectSettings(iou=threshold, max_det=5)
        assert suppress(*choose(boxes, scores, settings, anchors=2, classes=1), settings)[0].item() == number
