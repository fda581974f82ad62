"""Exported files as models: what `NAS` makes of each kind, against the network itself, and of files that are none."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from exported_networks import NAMES, assert_same, lively, pictures, widest_gap
from quantized_networks import picture as noise
from quantized_networks import quantize_
from val_data import write_data

from yolonas import NAS, CheckpointError, tensorrt_engine
from yolonas.config import VARIANTS
from yolonas.errors import WeightsNotFoundError
from yolonas.exported import is_exported, kind_of, read_exported
from yolonas.exporting.spec import METADATA_FILE, METADATA_KEY, OUTPUTS, ExportSpec
from yolonas.native_engine import CpuDevice
from yolonas.preprocess import Preprocess
from yolonas.val import ValOptions
from yolonas.val_pipeline import evaluate
from yolonas.val_setup import set_up

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = (64, 96)
FILES: dict[str, str] = {  # what users pass, by what was exported
    "onnx": "m.onnx",
    "openvino": "m_openvino_model",
    "openvino xml": "m_openvino_model",
    "ncnn": "m_ncnn_model",
    "frigate": "m-frigate.onnx",
    "triton": "m_triton",
    "deepstream": "m_deepstream",
}
QUIET: dict[str, Any] = {"verbose": False}
EXPORT: dict[str, Any] = {"check": False, "verbose": False}


@pytest.fixture(scope="module")
def detector() -> NAS:
    """Its threshold lies in a gap of the scores of the test pictures."""
    detector = NAS(lively(), names=NAMES)
    detector.preprocess = detector.preprocess.with_size(SIZE)
    detector.settings = replace(detector.settings, iou=0.6, top_k=300, max_det=20)
    low = detector.predict(pictures(7), conf=0.02, iou=1.0, max_det=5000, engine="native", **QUIET)
    scores = np.concatenate([result.boxes.conf.numpy() for result in low])
    detector.settings = replace(detector.settings, conf=widest_gap(scores, 0.4))
    return detector


@pytest.fixture(scope="module")
def folder(detector: NAS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    for kind, name in FILES.items():
        if kind in ("onnx", "openvino", "ncnn"):
            pytest.importorskip(kind)
            detector.export(format=kind, save=folder / name, **EXPORT)
        elif kind != "openvino xml":
            detector.export(target=kind, save=folder / name, imgsz=SIZE if kind != "frigate" else 128, **EXPORT)
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def file_of(kind: str, folder: Path) -> Path:
    inner = {"openvino xml": "*.xml", "triton": "*/1/model.onnx", "deepstream": "*.onnx"}.get(kind)
    return folder / FILES[kind] if inner is None else next((folder / FILES[kind]).glob(inner))


def options_of(kind: str) -> dict[str, Any]:
    """With which the network itself does what a file of this kind does."""
    others: dict[str, dict[str, Any]] = {
        "frigate": {"imgsz": 128, "conf": 0.4},
        "deepstream": {"multi_label": False},
    }
    return {"engine": "native", "verbose": False, **others.get(kind, {})}


def same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one.boxes.data, np.ndarray)
        assert (one.orig_shape, one.names) == (other.orig_shape, other.names)
        assert_same(one.boxes.data, other.boxes.data, side=max(one.orig_shape))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- what is in a file ---


@pytest.mark.parametrize("kind", FILES)
def test_a_file_says_what_it_is(kind: str, detector: NAS, folder: Path) -> None:
    path = file_of(kind, folder)
    nas = NAS(str(path))
    size = (128, 128) if kind == "frigate" else SIZE
    assert nas.names == dict(enumerate(NAMES))
    assert nas.preprocess == replace(detector.preprocess.with_size(size), rect=False)
    changes = {"frigate": {"conf": 0.4, "top_k": 300, "max_det": 20}, "deepstream": {"multi_label": False}}
    assert nas.settings == replace(detector.settings, **changes.get(kind, {}))
    assert nas.ckpt_path == path
    assert repr(nas) == f"NAS(yolo_nas_s, 3 classes, {size[0]}x{size[1]}, exported)"
    assert (nas.model.form, nas.model.num_classes, nas.model.is_quantized) == ("exported", 3, False)
    assert nas.model.variant is VARIANTS["s"]
    assert nas.device == CpuDevice()
    assert str(nas.device) == "cpu"
    assert nas.fuse().cpu().to("cpu") is nas
    assert nas.card is None


def test_info_is_that_of_the_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nas = NAS(folder / "m.onnx")
    layers, parameters, gradients, gflops = nas.info()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"YOLO_NAS_S summary: {layers} layers, {parameters:,} parameters, exported, ")
    assert line.endswith(" GFLOPs")
    assert gradients == 0
    assert nas.info(imgsz=(128, 96), verbose=False) == (layers, parameters, 0, pytest.approx(2 * gflops))
    assert capsys.readouterr().out == ""
    NAS(folder / "m.onnx", verbose=True)
    assert "exported" in capsys.readouterr().out
    for options in ({"plan": True}, {"tune": True}):
        with pytest.raises(ValueError, match="plan is of the native engine, which does not run exported files"):
            nas.info(**options)


@pytest.mark.parametrize("kind", FILES)
def test_pictures_give_what_the_network_gives(
    kind: str, detector: NAS, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nas, images = NAS(file_of(kind, folder)), pictures(4)
    found = [nas(image, **QUIET)[0] for image in images]
    assert messages(caplog) == []
    expected = [detector(image, **options_of(kind))[0] for image in images]
    assert sum(map(len, expected)) > 10
    same(found, expected)
    assert all(set(one.speed) == {"preprocess", "inference", "postprocess"} for one in found)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["onnx", "openvino", "ncnn", "triton"])
def test_batches_need_not_be_those_of_the_file(kind: str, batch: int, detector: NAS, folder: Path) -> None:
    images = pictures(7)
    expected = detector.predict(images, engine="native", **QUIET)
    same(NAS(file_of(kind, folder)).predict(images, batch=batch, **QUIET), expected)


@pytest.mark.parametrize("kind", ["onnx", "openvino", "ncnn"])
def test_files_folders_videos_and_streams(kind: str, detector: NAS, folder: Path, work: Path) -> None:
    nas, images = NAS(file_of(kind, folder)), pictures(4)
    (work / "in").mkdir()
    for number, image in enumerate(images):
        cv2.imwrite(str(work / "in" / f"{number}.png"), image)
    (work / "in" / "4.png").write_bytes(b"no picture")
    video = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for image in images:
        video.write(cv2.resize(image, (96, 64)))
    video.release()
    expected = detector.predict(images, engine="native", **QUIET)
    same(nas.predict("in/0.png", **QUIET), expected[:1])
    same(nas.predict((work / "in" / "1.png").read_bytes(), **QUIET), expected[1:2])
    same(nas.predict("in", batch=3, **QUIET), expected)
    assert [Path(one.path).name for one in nas.predictor.skipped] == ["4.png"]
    same(list(nas.predict("in/*.png", stream=True, **QUIET)), expected)
    frames = detector.predict("clip.avi", engine="native", **QUIET)
    assert len(frames) == 4
    same(nas.predict("clip.avi", batch=3, stream=False, **QUIET), frames)
    saved = nas.predict("in/0.png", save=True, save_txt=True, save_crop=True, **QUIET)
    assert {path.name for path in Path(saved[0].save_dir).iterdir()} == {"0.jpg", "labels", "crops"}


@pytest.mark.parametrize("kind", ["onnx", "openvino", "ncnn", "deepstream"])
def test_tensors_are_in_the_frame_already(kind: str, detector: NAS, folder: Path) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (3, 3, *SIZE), np.uint8)
    x = torch.from_numpy(pixels.astype(np.float32) / 255)
    nas, options = NAS(file_of(kind, folder)), options_of(kind)
    same(nas.predict(x, **QUIET), detector.predict(x, **options))
    same(nas.predict(x, batch=3, **QUIET), detector.predict(x, **options))
    with pytest.raises(ValueError, match="imgsz must be 64x96, which this file was exported for, got 64x64"):
        nas.predict(x[..., :64], **QUIET)


def test_a_network_trained_with_other_values(work: Path) -> None:
    other = NAS(lively(), names=NAMES)
    other.preprocess = Preprocess(
        size=SIZE, fit=(60, 92), padding="bottom_right", channels="bgr", mean=(99, 110, 120), divisor=(60, 250, -70)
    )
    images = pictures(3)
    x = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (2, 3, *SIZE), np.uint8).astype(np.float32) / 255)
    for sent in ("rgb", "bgr"):
        for scaled in (False, True):
            file = other.export(save="m.onnx", preprocess=not scaled, channels=sent, outputs="raw", **EXPORT)
            nas = NAS(file)
            assert nas.preprocess == other.preprocess
            for source in (images, x):
                same(nas.predict(source, **QUIET), other.predict(source, engine="native", **QUIET))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("onnx", {"outputs": "raw"}), ("openvino", {"outputs": "heads"}), ("ncnn", {"dynamic": "size"})],
)
def test_a_file_of_any_size(
    kind: str, options: dict[str, Any], detector: NAS, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nas = NAS(detector.export(format=kind, save=FILES[kind], **{"dynamic": True, **options}, **EXPORT))
    images = pictures(5)
    for chosen in (
        {"imgsz": 128, "batch": 4},
        {"imgsz": (32, 64)},
        {"rect": True, "batch": 2},
        {"protocol": "ultralytics", "imgsz": 96},
    ):
        expected = detector.predict(images, engine="native", **chosen, **QUIET)
        same(nas.predict(images, **chosen, **QUIET), expected)
    assert messages(caplog) == []


def test_a_quantised_network(detector: NAS, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantized = NAS(quantize_(lively(), noise(1, *SIZE)), names=NAMES)
    quantized.preprocess, quantized.settings = detector.preprocess, detector.settings
    nas = NAS(quantized.export(save="m.onnx", **EXPORT))
    assert repr(nas) == "NAS(yolo_nas_s, 3 classes, 64x96, exported, INT8)"
    assert nas.model.is_quantized
    nas.info()
    assert capsys.readouterr().out.endswith(" GFLOPs, INT8\n")
    images = pictures(3)
    assert sum(map(len, nas.predict(images, quantize="int8", **QUIET))) > 3


# --- val ---


@pytest.fixture(scope="module")
def data(detector: NAS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), detector, pictures=7)


def val_options(detector: NAS, data: Path) -> dict[str, Any]:
    settings = detector.settings
    thresholds = {"conf": settings.conf, "iou": settings.iou, "max_det": 50}
    return {"data": str(data), "batch": 4, "plots": False, "verbose": False, **thresholds}


@pytest.mark.parametrize("outputs", [one for one in OUTPUTS if one != "deepstream"])
def test_val_gives_what_the_network_gives(outputs: str, detector: NAS, data: Path, work: Path) -> None:
    nas = NAS(detector.export(save="m.onnx", outputs=outputs, batch=3, max_det=50, **EXPORT))
    options = val_options(detector, data)
    expected = detector.val(engine="native", **options)
    found = nas.val(**options)
    assert nas.metrics is found
    assert found.box.map == pytest.approx(expected.box.map, abs=1e-6)
    assert found.box.map50 == pytest.approx(expected.box.map50, abs=1e-6)
    assert expected.box.map50 > 0.05


def test_val_of_the_best_class_alone(detector: NAS, data: Path, work: Path, caplog: pytest.LogCaptureFixture) -> None:
    nas = NAS(detector.export(save="m.onnx", outputs="deepstream", batch=3, max_det=50, **EXPORT))
    options = val_options(detector, data)
    setup = set_up(ValOptions.of(**options), detector.names, detector.preprocess)
    setup = replace(setup, settings=replace(setup.settings, multi_label=False))
    expected, _ = evaluate("test", setup, detector._engine_for("cpu", half=False, name="native"), lambda count: None)
    caplog.clear()
    assert nas.val(**options).box.map == pytest.approx(expected.box.map, abs=1e-6)
    assert [text for text in messages(caplog) if "no effect" in text] == [
        "multi_label has no effect: the file gives the best class of a box alone; export with outputs='raw' leaves "
        "this to the caller"
    ]


@pytest.mark.parametrize("kind", ["openvino", "openvino xml", "ncnn"])
def test_val_of_other_kinds(
    kind: str, detector: NAS, folder: Path, data: Path, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**val_options(detector, data), "max_det": 20}
    expected = detector.val(engine="native", **options)
    caplog.clear()
    assert NAS(file_of(kind, folder)).val(**options).box.map == pytest.approx(expected.box.map, abs=1e-6)
    assert [text for text in messages(caplog) if "no effect" in text] == []


def test_val_says_what_its_thresholds_cannot_change(
    folder: Path, data: Path, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    NAS(folder / "m.onnx").val(data=str(data), batch=2, plots=False, **QUIET)
    found = [text.split(":")[0] for text in messages(caplog)]
    assert found == ["conf=0.01 has no effect", "iou has no effect", "max_det=300 has no effect"]


def test_runs_are_of_the_weights(detector: NAS, folder: Path, work: Path) -> None:
    """What val goes on from has to be of the same file."""
    for kind in FILES:
        copied = work / kind
        source = folder / FILES[kind]
        shutil.copytree(source, copied / source.name) if source.is_dir() else shutil.copytree(folder, copied)
        network = NAS(file_of(kind, copied)).model
        digest = network.digest()
        assert digest == NAS(file_of(kind, folder)).model.digest()
        weights = network.path
        if kind.startswith("openvino"):
            (weights,) = (copied / source.name).glob("*.bin")
        elif kind == "ncnn":
            weights /= "model.ncnn.bin"
        damaged = bytearray(weights.read_bytes())
        damaged[-1] ^= 1
        weights.write_bytes(damaged)
        assert network.digest() != digest


# --- what a file cannot do ---


def test_sizes_that_the_file_does_not_take(folder: Path, data: Path, work: Path) -> None:
    nas, (image, *_) = NAS(folder / "m.onnx"), pictures(1)
    message = "imgsz must be 64x96, which this file was exported for, got {}; leave imgsz out and set rect=False, or"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"imgsz": 96}, "96x96"),
        ({"imgsz": (96, 64)}, "96x64"),
        ({"rect": True}, "64x64|64x96"),
        ({"protocol": "ultralytics", "imgsz": 32}, "32x32"),
    ]
    narrow = cv2.resize(image, (60, 60))
    for options, got in cases:
        with pytest.raises(ValueError, match=message.format(f"({got})")):
            nas.predict(narrow, **options, **QUIET)
        val: dict[str, Any] = {"data": str(data), "plots": False, **options, **QUIET}
        if options.get("protocol") == "ultralytics":
            got = r"\d+x\d+"
        with pytest.raises(ValueError, match=message.format(rf"(\d+x\d+|{got})")):
            nas.val(**val)
    with pytest.raises(
        ValueError, match=r"imgsz must be one side with protocol='ultralytics', got 64x96; or rect=False"
    ):
        nas.val(data=str(data), plots=False, protocol="ultralytics", **QUIET)
    assert len(nas.predict(narrow, imgsz=SIZE, rect=False, **QUIET)) == 1


def test_another_protocol_in_the_files_frame(
    detector: NAS, data: Path, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nas, images = NAS(detector.export(save="m.onnx", outputs="heads", **EXPORT)), pictures(3)
    options: dict[str, Any] = {"protocol": "ultralytics", "rect": False, **QUIET}
    same(nas.predict(images, **options), detector.predict(images, engine="native", **options))
    options |= {"data": str(data), "plots": False, "batch": 3}
    expected = detector.val(engine="native", **options)
    assert nas.val(**options).box.map == pytest.approx(expected.box.map, abs=1e-6)
    assert messages(caplog) == []


def test_thresholds_of_a_call(detector: NAS, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    nas, images = NAS(folder / "m.onnx"), pictures(4)
    scores = np.concatenate([result.boxes.conf for result in nas.predict(images, **QUIET)])
    high = widest_gap(scores, 0.55)
    for options in ({"conf": high}, {"classes": [0, 2]}, {"max_det": 2}, {"conf": high, "classes": 1, "max_det": 1}):
        same(nas.predict(images, **options, **QUIET), detector.predict(images, engine="native", **options, **QUIET))
    assert messages(caplog) == []
    with pytest.raises(ValueError, match=r"classes must lie in 0\.\.2, got 3"):
        nas.predict(images, classes=[3], **QUIET)
    usual = nas.predict(images, **QUIET)
    for _ in range(2):
        found = nas.predict(images, conf=0.01, iou=0.9, max_det=300, agnostic_nms=True, multi_label=False, **QUIET)
        same(found, usual)
    own = f"{detector.settings.conf:g}"
    cure = "; export with outputs='raw' leaves this to the caller"
    assert messages(caplog) == [
        f"conf=0.01 has no effect: the file leaves out what is below {own}{cure}",
        f"iou has no effect: NMS is in the file, with iou=0.6{cure}",
        f"agnostic has no effect: NMS is in the file, with agnostic=False{cure}",
        f"multi_label has no effect: NMS is in the file, with multi_label=True{cure}",
        f"max_det=300 has no effect: the file gives 20 at most{cure}",
    ]


@pytest.mark.parametrize("kind", FILES)
def test_engines_and_devices_are_the_files_own(kind: str, folder: Path, data: Path, work: Path) -> None:
    nas, (image, *_) = NAS(file_of(kind, folder)), pictures(1)
    for engine in ("native", "torch"):
        for run in (lambda **options: nas.predict(image, **options), lambda **options: nas.val(data=data, **options)):
            with pytest.raises(ValueError, match=f"engine must be left out for an exported file.*, got '{engine}'"):
                run(engine=engine, **QUIET)
    for device in (0, "0", "cuda", "cuda:1", "mps", [0]):
        with pytest.raises(ValueError, match=r"device must be 'cpu' for this file, got .*; load the checkpoint"):
            nas.predict(image, device=device, **QUIET)
    with pytest.raises(ValueError, match="device must be 'cpu' for this file, got 'cuda:0'"):
        nas.cuda()
    for device in ("cpu", "CPU", torch.device("cpu"), "", None):
        assert len(nas.predict(image, device=device, **QUIET)) == 1


def test_precisions_are_the_files_own(
    detector: NAS, folder: Path, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nas, images = NAS(folder / "m.onnx"), pictures(2)
    half = NAS(detector.export(save="h.onnx", quantize=16, **EXPORT))
    usual = nas.predict(images, **QUIET)
    for value in ("fp32", 32, None):
        same(nas.predict(images, quantize=value, **QUIET), usual)
    assert half.predict(images, quantize="fp16", **QUIET)
    assert messages(caplog) == []
    same(nas.predict(images, quantize="fp16", **QUIET), usual)
    assert half.predict(images, quantize=32, **QUIET)
    assert messages(caplog) == [
        "quantize='fp16' has no effect: the file runs in fp32",
        "quantize='fp32' has no effect: the file runs in fp16",
    ]
    for one in (nas, half):
        with pytest.raises(ValueError, match="quantize='int8' needs a quantised network"):
            one.predict(images, quantize="int8", **QUIET)


def test_tuning_is_for_the_native_engine(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(NAS(folder / "m.onnx").predict(pictures(1), tune=True, **QUIET)) == 1
    assert messages(caplog) == ["'tune' has no effect here: it is for engine='native'"]


@pytest.mark.parametrize("kind", FILES)
def test_there_are_no_weights_to_work_with(kind: str, folder: Path, work: Path) -> None:
    nas = NAS(file_of(kind, folder))
    for path in ("m.safetensors", "m.yolonas", "m.pt"):
        with pytest.raises(ValueError, match="an exported file has no weights to save; load the checkpoint"):
            nas.save(path)
    with pytest.raises(ValueError, match="export: model must be a checkpoint, got an exported or compiled file"):
        nas.export(format="onnx")
    with pytest.raises(ValueError, match="quantize: model must be a checkpoint, got a compiled or exported file"):
        nas.quantize(data="coco8.yaml")
    with pytest.raises(ValueError, match="names are for a module"):
        NAS(file_of(kind, folder), names=NAMES)
    assert list(work.iterdir()) == []


def test_one_object_may_load_one_after_another(detector: NAS, folder: Path, work: Path) -> None:
    checkpoint = NAS(lively(), names=["a", "b", "c"]).save("m.yolonas")
    nas, images = NAS(checkpoint), pictures(2)
    assert nas.load(folder / "m.onnx") is nas
    expected = detector.predict(images, engine="native", **QUIET)
    same(nas.predict(images, **QUIET), expected)
    with pytest.raises(CheckpointError, match="no such file"):
        nas.load("gone.onnx")
    same(nas.predict(images, **QUIET), expected)
    same(nas.load(folder / "m_ncnn_model").predict(images, **QUIET), expected)
    nas.load(checkpoint)
    assert (nas.names[0], nas.model.form, nas.preprocess) == ("a", "compiled", Preprocess())


def test_two_threads_may_predict_with_one_object(folder: Path) -> None:
    images = pictures(4)
    alone = [NAS(folder / "m.onnx").predict(image, **QUIET)[0].boxes.data for image in images]
    nas = NAS(folder / "m.onnx")  # whose session is made by whoever comes first
    found: dict[int, list[np.ndarray]] = {number: [] for number in range(len(images))}

    def work(number: int) -> None:
        for _ in range(10):
            found[number] += [result.boxes.data for result in nas.predict(images[number], **QUIET)]

    threads = [threading.Thread(target=work, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, rows in enumerate(alone):
        assert len(found[number]) == 10
        assert all(np.array_equal(rows, other) for other in found[number])


# --- files that are none ---


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """The ONNX file as a message."""
    return onnx.load(folder / "m.onnx")


def with_metadata(model: Any, path: Path, change: Callable[[dict[str, Any]], Any] | str | None) -> Path:
    """The same graph with other metadata: text, changed values, or none."""
    model = copy.deepcopy(model)
    texts = {one.key: one.value for one in model.metadata_props}
    if change is None:
        del texts[METADATA_KEY]
    elif isinstance(change, str):
        texts[METADATA_KEY] = change
    else:
        stated = json.loads(texts[METADATA_KEY])
        change(stated)
        texts[METADATA_KEY] = json.dumps(stated)
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, texts)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("name", ["gone.onnx", "gone.engine", "gone.xml", "gone/gone.onnx"])
def test_a_file_that_is_not_there(name: str, work: Path) -> None:
    for path in (name, work / name):
        with pytest.raises(WeightsNotFoundError, match=r"gone\..*: there is no such file; 'yolonas export"):
            NAS(path)


@pytest.mark.parametrize("name", ["gone_openvino_model", "gone_ncnn_model", "empty_openvino_model"])
def test_a_folder_that_is_not_there(name: str, work: Path) -> None:
    (work / "empty_openvino_model").mkdir()
    with pytest.raises(WeightsNotFoundError, match=name):
        NAS(name)


@pytest.mark.parametrize(("name", "kind"), [("m.torchscript", "TorchScript"), ("m.pt2", "torch.export")])
def test_programs_are_not_loaded(name: str, kind: str, work: Path) -> None:
    for path in (name, work / "gone" / name):
        with pytest.raises(CheckpointError, match=f"{kind} files are programs and are not loaded; load the checkpoint"):
            NAS(path)


def test_programs_that_export_wrote_are_not_loaded(detector: NAS, work: Path) -> None:
    path = detector.export(format="torchscript", save="m.torchscript", **EXPORT)
    with pytest.raises(CheckpointError, match="TorchScript files are programs and are not loaded"):
        NAS(path)


@pytest.mark.parametrize("content", [b"", b"\0", b"no graph", b"\x08", bytes(5000)])
@pytest.mark.parametrize("suffix", [".onnx", ".engine"])
def test_no_graph_at_all(content: bytes, suffix: str, work: Path) -> None:
    Path(f"m{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.(onnx: is no ONNX file, or is damaged|engine: has no metadata)"):
        NAS(f"m{suffix}")


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(seed: int, work: Path) -> None:
    Path("m.onnx").write_bytes(np.random.default_rng(seed).bytes(10 ** (seed % 5)))
    with pytest.raises(CheckpointError, match=r"m\.onnx: (is no ONNX file, or is damaged|has no metadata)"):
        NAS("m.onnx")


def test_a_file_that_was_cut_off(folder: Path, work: Path) -> None:
    content = (folder / "m.onnx").read_bytes()
    for length in [*range(1, 2000, 97), *(len(content) - cut for cut in (1, 2, 100, 10_000, len(content) // 2))]:
        Path("m.onnx").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"m\.onnx: is no ONNX file, or is damaged"):
            NAS("m.onnx")


@pytest.mark.parametrize("seed", range(3))
def test_bytes_that_have_changed(seed: int, folder: Path, work: Path) -> None:
    """In the metadata, where nothing says that they have."""
    content, random = (folder / "m.onnx").read_bytes(), np.random.default_rng(seed)
    image, refused = pictures(1), 0
    for _ in range(12):
        damaged = np.frombuffer(content, np.uint8).copy()
        places = random.integers(0, content.index(b"input_float"), 3)  # before the nodes
        damaged[places] = random.integers(0, 256, 3, np.uint8)
        Path("m.onnx").write_bytes(damaged)
        try:
            NAS("m.onnx").predict(image, **QUIET)
        except (RuntimeError, ValueError):
            refused += 1
    assert refused > 3


@pytest.mark.parametrize("name", ["m.onnx", "m.engine"])
def test_what_is_no_file(name: str, work: Path) -> None:
    Path(name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: must be a file"):
        NAS(name)
    if hasattr(os, "mkfifo"):
        Path(name).rmdir()
        os.mkfifo(name)  # reading it would wait for a writer
        with pytest.raises(CheckpointError, match=f"{name}: must be a file"):
            NAS(name)


def test_a_graph_without_our_metadata(plain: Any, work: Path) -> None:
    for change in (None, lambda stated: stated.clear()):
        path = with_metadata(plain, work / "m.onnx", change)
        with pytest.raises(CheckpointError, match=r"m\.onnx: (has no metadata 'yolonas'|metadata: 'yolonas' cannot)"):
            NAS(path)
    model = copy.deepcopy(plain)
    model.ClearField("metadata_props")
    Path("m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="has no metadata 'yolonas', so that it was not exported by yolonas"):
        NAS("m.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be used"),
        ("{'names': 1}", "cannot be used"),
        ("[" * 100_000, "cannot be used"),
        ("[]", "cannot be used"),
        ('{"format_version": 2}', "format_version must be in 1..1, got 2; a newer yolonas wrote this file"),
        ('{"format_version": 1}', "cannot be used"),
        ('{"format_version": "' + "x" * 1_000_000 + '"}', "format_version must be"),
    ],
)
def test_metadata_that_is_something_else(text: str, message: str, plain: Any, work: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.onnx: metadata: .*{message}") as error:
        NAS(with_metadata(plain, work / "m.onnx", text))
    assert len(str(error.value)) < 500


def test_values_that_make_no_sense(plain: Any, work: Path) -> None:
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda stated: stated.update(conf=float("nan")),
        lambda stated: stated.update(variant="xl"),
        lambda stated: stated["preprocess"].update(size=[1 << 40, 32]),
        lambda stated: stated["preprocess"].update(divisor=[0, 0, 0]),
        lambda stated: stated["input"].update(batch=-1),
        lambda stated: stated.update(names="abc"),
    ]
    for change in changes:
        with pytest.raises(CheckpointError, match=r"m\.onnx: metadata: "):
            NAS(with_metadata(plain, work / "m.onnx", change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stated: stated["outputs"].update(format="raw"), "the graph must have the input input and the outputs"),
        (lambda stated: stated["outputs"].update(format="flat"), "and the outputs graph2_flat_predictions, as its"),
        (
            lambda stated: stated.update(max_det=5),
            r"graph2_pred_boxes must be float32 \(1, 5, 4\), got float32 \(1, 20",
        ),
        (lambda stated: stated.update(max_det=9999), "graph2_pred_boxes must be float32"),
        (lambda stated: stated.update(num_classes=1, names=["a"]), r"classes must be numbers in 0\.\.0, got"),
        (lambda stated: stated["input"].update(dtype="float32"), "ONNX Runtime .* failed: .*input data type"),
        (lambda stated: stated["input"].update(layout="nhwc"), "ONNX Runtime .* failed: .*Got: 64 Expected: 3"),
        (lambda stated: stated["input"].update(batch=3), "ONNX Runtime .* failed: .*Got: 3 Expected: 1"),
        (
            lambda stated: (stated["input"].update(height=96), stated["preprocess"].update(size=[96, 96])),
            "ONNX Runtime .* failed: .*Got: 96 Expected: 64",
        ),
    ],
)
def test_metadata_of_another_graph(change: Any, message: str, plain: Any, work: Path) -> None:
    nas = NAS(with_metadata(plain, work / "m.onnx", change))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message) as error:
            nas.predict(pictures(1), **QUIET)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("outputs", ["raw", "heads"])
def test_more_classes_than_the_graph_has(outputs: str, detector: NAS, data: Path, work: Path) -> None:
    model = onnx.load(detector.export(save="m.onnx", outputs=outputs, **EXPORT))
    for names in (NAMES[:2], [*NAMES, "cow"]):
        path = with_metadata(
            model, work / "m.onnx", lambda s, names=names: s.update(num_classes=len(names), names=names)
        )
        nas = NAS(path)
        message = "the graph gives something else than its metadata says: (scores|cls8) must be float32"
        with pytest.raises(CheckpointError, match=message):
            nas.predict(pictures(1), **QUIET)


def test_other_inputs_and_outputs(plain: Any, work: Path) -> None:
    for kind in ("input", "output"):
        model = copy.deepcopy(plain)
        (getattr(model.graph, kind))[0].name = "images"
        for node in model.graph.node:
            node.input[:] = ["images" if (kind, name) == ("input", "input") else name for name in node.input]
            node.output[:] = [
                "images" if kind == "output" and name == "graph2_num_predictions" else name for name in node.output
            ]
        Path("m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(CheckpointError, match=r"m\.onnx: the graph must have the input .*, got .*images.*; export"):
            NAS("m.onnx").predict(pictures(1), **QUIET)


def test_a_graph_that_fails_when_it_runs(plain: Any, work: Path) -> None:
    model = copy.deepcopy(plain)
    (last,) = (node for node in model.graph.node if node.output[0] == "graph2_pred_scores")
    place = onnx.numpy_helper.from_array(np.full(20, 1 << 40), "nowhere")
    model.graph.initializer.append(place)
    node = onnx.helper.make_node("Gather", [last.input[0], "nowhere"], ["graph2_pred_scores"], axis=1)
    last.CopyFrom(node)
    Path("m.onnx").write_bytes(model.SerializeToString())
    nas = NAS("m.onnx")
    with pytest.raises(RuntimeError, match=r"ONNX Runtime \S+ failed: .*indices") as error:
        nas.predict(pictures(1), **QUIET)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["../outside.bin", "/etc/passwd", "link.bin", "gone.bin", ""])
def test_weights_that_lie_elsewhere(where: str, plain: Any, work: Path) -> None:
    model = copy.deepcopy(plain)
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    (work / "outside.bin").write_bytes(tensor.raw_data)
    (work / "inner").mkdir()
    (work / "inner" / "link.bin").symlink_to(work / "outside.bin")
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", where), ("offset", "0"), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = work / "inner" / "m.onnx"
    path.write_bytes(model.SerializeToString())
    nas = NAS(path)
    with pytest.raises(CheckpointError, match=r"m\.onnx: ONNX Runtime \S+ cannot use it: .*[Ee]xternal data"):
        nas.predict(pictures(1), **QUIET)


@pytest.mark.parametrize("kind", ["openvino", "ncnn"])
@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_folders(kind: str, content: bytes | None, folder: Path, work: Path) -> None:
    source = folder / FILES[kind]
    weights = {".bin"} if kind == "ncnn" else {".xml", ".bin"}
    for file in source.iterdir():
        if file.name == METADATA_FILE or (content is None and file.suffix not in weights - {".xml"}):
            continue
        damaged = work / f"without{file.suffix}"
        shutil.copytree(source, damaged)
        (damaged / file.name).write_bytes(content) if content is not None else (damaged / file.name).unlink()
        with pytest.raises(CheckpointError, match=r"without.*: (OpenVINO|ncnn) \S+ cannot use it"):
            NAS(damaged).predict(pictures(1), **QUIET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold names and values"),
        ("[", "cannot be read"),
        ("!!int ''", "cannot be read"),
        ("task: detect", "has no metadata 'yolonas'"),
        ("yolonas: 5", "metadata: 'yolonas' cannot be used"),
        ("a: &a [x, x]\nyolonas: [*a, *a]", "metadata: 'yolonas' cannot be used"),
    ],
)
@pytest.mark.parametrize("kind", ["openvino", "openvino xml", "ncnn"])
def test_folders_with_other_metadata(kind: str, text: str, message: str, folder: Path, work: Path) -> None:
    shutil.copytree(folder / FILES[kind], work / FILES[kind])
    (work / FILES[kind] / METADATA_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        NAS(file_of(kind, work))


def test_folders_without_metadata(folder: Path, work: Path) -> None:
    shutil.copytree(folder / FILES["openvino"], "m")
    Path("m", METADATA_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"{METADATA_FILE}: cannot be read: .*No such file"):
        NAS(next(Path("m").glob("*.xml")))
    with pytest.raises(WeightsNotFoundError, match="name must be a file, got the folder 'm'"):
        NAS("m")


def test_kinds(folder: Path, work: Path) -> None:
    kinds = {"frigate": "onnx", "triton": "onnx", "deepstream": "onnx", "openvino xml": "openvino"}
    for kind in FILES:
        assert kind_of(file_of(kind, folder)) == kinds.get(kind, kind)
        assert is_exported(str(file_of(kind, folder)))
        assert read_exported(file_of(kind, folder)).spec.names == dict(enumerate(NAMES))
    Path(METADATA_FILE).write_text("{}")
    for path in (work, "m.pt", "m.yolonas", "m", "", "a\0b", ".onnx", "yolo_nas_s"):
        assert kind_of(path) == ""
        assert not is_exported(path)
    with pytest.raises(CheckpointError, match="is no file that export writes"):
        read_exported(work)


def test_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    for name in ("~/m.onnx", "~/m_ncnn_model", "~/m_ncnn_model/"):
        assert NAS(name).names == dict(enumerate(NAMES))


# --- packages ---


@pytest.mark.parametrize(
    ("kind", "package", "message"),
    [
        ("onnx", "onnxruntime", r"running ONNX files need the package onnxruntime: pip install 'yolonas\[onnx\]'"),
        (
            "openvino",
            "openvino",
            r"running OpenVINO files need the package openvino: pip install 'yolonas\[openvino\]'",
        ),
        ("ncnn", "ncnn", r"running ncnn files need the package ncnn: pip install 'yolonas\[ncnn\]'"),
    ],
)
def test_a_runtime_that_is_missing(
    kind: str, package: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    nas = NAS(file_of(kind, folder))
    assert repr(nas) == "NAS(yolo_nas_s, 3 classes, 64x96, exported)"
    for run in (lambda: nas.predict(pictures(1), **QUIET), lambda: nas.device, lambda: nas.to("cpu")):
        with pytest.raises(ImportError, match=message):
            run()


def test_the_runtime_reads_metadata_too(
    detector: NAS, folder: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    nas, images = NAS(folder / "m.onnx"), pictures(2)
    same(nas.predict(images, **QUIET), detector.predict(images, engine="native", **QUIET))
    Path("m.onnx").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"m\.onnx: is no ONNX file, or is damaged"):
        NAS("m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"reading ONNX files need the package onnx: pip install 'yolonas\[onnx\]'"):
        NAS(folder / "m.onnx")


# --- TensorRT ---


@pytest.fixture
def engine_file(work: Path, detector: NAS) -> Path:
    spec = ExportSpec(
        variant="s", names=dict(enumerate(NAMES)), preprocess=detector.preprocess, settings=detector.settings
    )
    stated = replace(spec, outputs="raw").to_json().encode()
    path = work / "m.engine"
    path.write_bytes(len(stated).to_bytes(4, "little") + stated + b"ftrt plan")
    return path


def test_an_engine_without_tensorrt(engine_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    nas = NAS(engine_file)
    assert repr(nas) == "NAS(yolo_nas_s, 3 classes, 64x96, exported)"
    with pytest.raises(ImportError, match="the package tensorrt: pip install tensorrt"):
        nas.predict(pictures(1), **QUIET)
    for device in ("cpu", torch.device("cpu")):
        with pytest.raises(ValueError, match="device must be a GPU for a TensorRT engine, got 'cpu'"):
            nas.predict(pictures(1), device=device, **QUIET)
    with pytest.raises(ValueError, match="engine must be left out for an exported file"):
        nas.predict(pictures(1), engine="native", **QUIET)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices of the sessions that were made, with a stand-in for TensorRT and two GPUs."""
    made: list[torch.device] = []

    class Session:
        name, version = "tensorrt", "10"

        def __init__(self, path: Path, *, device: Any = None):
            self.device = torch.device("cuda", torch.device("cuda" if device is None else device).index or 0)
            made.append(self.device)

        def run(self, x: np.ndarray) -> list[np.ndarray]:
            return [np.zeros((1, 126, 4), np.float32), np.zeros((1, 126, 3), np.float32)]

    monkeypatch.setattr(tensorrt_engine, "TensorRTSession", Session)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return made


def test_an_engine_runs_on_the_gpu_that_is_asked_for(engine_file: Path, made: list[torch.device]) -> None:
    nas, images = NAS(engine_file), pictures(1)
    for device in (None, 0, "0", "cuda", "cuda:0", torch.device("cuda:0")):
        assert len(nas.predict(images, device=device, **QUIET)) == 1
    assert made == [torch.device("cuda:0")]
    for device in (1, "1", None, "cuda:1"):
        nas.predict(images, device=device, **QUIET)
    assert made == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert nas.cuda(0) is nas
    assert str(nas.device) == "cuda:0"
    with pytest.raises(ValueError, match="device 'cuda:2' does not exist: torch sees 2 CUDA devices"):
        nas.predict(images, device=2, **QUIET)
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda', a GPU number or 'mps', got 'gpu'"):
        nas.predict(images, device="gpu", **QUIET)


def test_an_engine_that_was_cut_off(engine_file: Path) -> None:
    content = engine_file.read_bytes()
    for length in (0, 3, 4, 100, len(content) - 9):
        engine_file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"m\.engine: has no metadata before the plan"):
            NAS(engine_file)
