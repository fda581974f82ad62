"""Predict from end to end: real cells with a real checkpoint, and every path of the driver with a made-up network."""

from __future__ import annotations

import json
import logging
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from golden_recipe import fill_
from PIL import Image

from yolonas import NAS, SourceError
from yolonas import writer as writers
from yolonas.engine import TorchEngine
from yolonas.nn import YoloNAS
from yolonas.ops import batched_nms
from yolonas.writer import RunWriter


@pytest.fixture(scope="module")
def recipe() -> NAS:
    """The real network of size S with 80 classes and weights by recipe: many boxes, all meaningless."""
    return NAS(fill_(YoloNAS("s").eval()))


@pytest.fixture(scope="module")
def cells(shared: Path) -> NAS:
    return NAS(shared / "weights" / "bccd_s.pth")


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def coco_map(results: list[tuple[int, Any]], annotations: Path) -> tuple[float, float]:
    """mAP50-95 and mAP50 of `(image id, Results)` pairs by pycocotools; classes 0..2 are categories 1..3."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = []
    for image_id, result in results:
        for x1, y1, x2, y2, score, label in result.boxes.data.tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": image_id, "category_id": int(label) + 1, "bbox": box, "score": score})
    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0], evaluation.stats[1]


# The settings of the measurement in the weights' card: recipes' validation thresholds.
VALIDATION = {"conf": 0.01, "iou": 0.7, "max_det": 300, "verbose": False}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("swap", "expected"), [(False, 0.5274), (True, 0.3054)], ids=["bgr-picture", "channels-swapped"]
)
def test_real_cells_reach_the_published_accuracy(
    cells: NAS, shared: Path, monkeypatch: pytest.MonkeyPatch, swap: bool, expected: float
) -> None:
    """Arrays are BGR, as OpenCV reads them; a swapped picture must score as badly as the card says."""
    annotations = shared / "data" / "bccd" / "annotations" / "instances_val.json"
    images = json.loads(annotations.read_text())["images"]
    folder = shared / "data" / "bccd" / "images" / "val"
    monkeypatch.setattr(cells, "settings", replace(cells.settings, top_k=1000))
    results = []
    for image in images:
        array = cv2.imread(str(folder / image["file_name"]))
        array = np.ascontiguousarray(array[:, :, ::-1]) if swap else array
        results.append((image["id"], cells.predict(array, **VALIDATION)[0]))
    value, value50 = coco_map(results, annotations)
    assert value == pytest.approx(expected, abs=0.002)
    assert value50 == pytest.approx(0.5666 if swap else 0.8406, abs=0.002)


@pytest.mark.shared
def test_real_cells_are_found_and_drawn(cells: NAS, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "data" / "bccd" / "images" / "val"
    results = cells.predict(folder, conf=0.5, save=True, save_txt=True)
    found = Counter(result.names[int(label)] for result in results for label in result.boxes.cls)
    assert len(results) == 87
    # The labels hold 967 RBC, 87 WBC and 83 platelets; these are the detector's own counts, kept to notice a change.
    for name, count in {"RBC": 1004, "WBC": 88, "Platelets": 74}.items():
        assert found[name] == pytest.approx(count, abs=2)
    out = capsys.readouterr().out
    assert "image 1/87" in out
    assert "Speed:" in out
    saved = Path(results[0].save_dir)
    assert len(list(saved.glob("*.jpg"))) == 87
    assert len(list((saved / "labels").glob("*.txt"))) == 87
    assert "Results saved to" in out


@pytest.mark.shared
def test_the_checkpoint_says_how_to_prepare_the_picture(cells: NAS) -> None:
    assert cells.preprocess.size == (288, 288)
    assert cells.preprocess.fit == (284, 284)
    assert cells.names == {0: "RBC", 1: "WBC", 2: "Platelets"}
    assert (cells.settings.conf, cells.settings.iou) == (0.25, 0.7)


def test_detections_are_those_of_the_network(recipe: NAS, picture: np.ndarray) -> None:
    """Against the plain modules: letterbox by OpenCV, forward, dense NMS, boxes mapped back."""
    result = recipe.predict(picture, imgsz=64, conf=0.5, verbose=False)[0]
    resized = cv2.resize(picture, (60, 45), interpolation=cv2.INTER_LINEAR)
    padded = cv2.copyMakeBorder(resized, 9, 10, 2, 2, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    x = torch.from_numpy(padded[:, :, ::-1].astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.inference_mode():
        boxes, scores = recipe.model(x.contiguous())
    rows, counts = batched_nms(boxes.contiguous(), scores.contiguous(), conf=0.5)
    expected = rows[0, : counts[0]].numpy()
    expected[:, :4] = (expected[:, :4] - np.array([2, 9, 2, 9], np.float32)) * 2
    expected[:, 0:4:2] = expected[:, 0:4:2].clip(0, 120)
    expected[:, 1:4:2] = expected[:, 1:4:2].clip(0, 90)
    assert len(expected) > 5
    assert len(result) == len(expected)
    order, other = (np.lexsort(np.round(rows[:, [5, 4]], 4).T) for rows in (result.boxes.data.numpy(), expected))
    np.testing.assert_allclose(result.boxes.data.numpy()[order], expected[other], atol=2e-2)


def test_results_are_torch_tensors_inside_the_picture(recipe: NAS, picture: np.ndarray) -> None:
    result = recipe(picture, imgsz=64, conf=0.5, verbose=False)[0]
    assert isinstance(result.boxes.data, torch.Tensor)
    assert result.orig_shape == (90, 120)
    xyxy = result.boxes.xyxy
    assert (xyxy >= 0).all()
    assert (xyxy[:, 2] <= 120).all()
    assert (xyxy[:, 3] <= 90).all()
    assert set(result.speed) == {"preprocess", "inference", "postprocess"}
    assert (result.boxes.conf.diff() <= 0).all()


def test_batches_give_what_single_pictures_give(recipe: NAS) -> None:
    pictures = list(np.random.default_rng(1).integers(0, 256, (5, 70, 50, 3), np.uint8))
    single = recipe.predict(pictures, imgsz=64, conf=0.5, verbose=False)
    batched = recipe.predict(pictures, imgsz=64, conf=0.5, batch=3, verbose=False)
    assert len(single) == len(batched) == 5
    for one, other in zip(single, batched, strict=True):
        assert len(one) == len(other)
        np.testing.assert_allclose(one.boxes.data.numpy(), other.boxes.data.numpy(), atol=1e-2)


def test_rect_groups_only_equal_frames(recipe: NAS) -> None:
    shapes = [(60, 120), (60, 120), (120, 60), (60, 120)]
    pictures = [np.full((*shape, 3), 90, np.uint8) for shape in shapes]
    results = recipe.predict(pictures, imgsz=128, rect=True, batch=4, verbose=False)
    assert [result.orig_shape for result in results] == shapes


def test_options_reach_the_result(recipe: NAS, picture: np.ndarray) -> None:
    base = recipe.predict(picture, imgsz=64, conf=0.5, verbose=False)[0]
    some = int(base.boxes.cls[0])
    only = recipe.predict(picture, imgsz=64, conf=0.5, classes=[some], verbose=False)[0]
    assert set(only.boxes.cls.tolist()) == {some}
    assert len(recipe.predict(picture, imgsz=64, conf=0.5, max_det=2, verbose=False)[0]) == 2
    assert len(recipe.predict(picture, imgsz=64, conf=0.5, agnostic_nms=True, verbose=False)[0]) <= len(base)
    assert (recipe.predict(picture, imgsz=64, conf=0.9, verbose=False)[0].boxes.conf > 0.9).all()
    single = recipe.predict(picture, imgsz=64, conf=0.5, protocol="ultralytics", verbose=False)[0]
    assert len(single) > 0


def test_classes_out_of_range_are_refused(recipe: NAS, picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"classes must lie in 0\.\.79, got 80"):
        recipe.predict(picture, imgsz=64, classes=[80], verbose=False)


def test_tensor_input_goes_into_the_network_as_it_is(recipe: NAS) -> None:
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    results = recipe.predict(x, conf=0.5, verbose=False)
    with torch.inference_mode():
        boxes, scores = recipe.model(x)
    rows, counts = batched_nms(boxes.contiguous(), scores.contiguous(), conf=0.5)
    assert [len(result) for result in results] == counts.tolist()
    np.testing.assert_allclose(results[1].boxes.conf.numpy(), rows[1, : counts[1], 4].numpy(), atol=1e-5)
    assert results[0].orig_shape == (64, 96)


def test_every_way_to_give_a_picture_gives_the_same(recipe: NAS, picture: np.ndarray, tmp_path: Path) -> None:
    """File, PIL (RGB), encoded bytes and array (BGR) are the same picture to the network."""
    path = tmp_path / "p.png"
    cv2.imwrite(str(path), picture)
    (tmp_path / "list.txt").write_text("p.png\n")
    sources = [path, str(path), path.read_bytes(), Image.open(path), [picture], str(tmp_path / "*.png"), "list.txt"]
    expected = recipe.predict(picture, imgsz=64, conf=0.5, verbose=False)[0].boxes.data
    assert len(expected) > 5
    for source in sources:
        (result,) = recipe.predict(source, imgsz=64, conf=0.5, verbose=False)
        assert torch.equal(result.boxes.data, expected), source
    swapped = recipe.predict(picture[:, :, ::-1], imgsz=64, conf=0.5, verbose=False)[0].boxes.data
    assert swapped.shape != expected.shape or not torch.allclose(swapped, expected, atol=1e-2)


def test_memory_stays_flat_over_a_stream(recipe: NAS) -> None:
    """Results of a generator are let go: of 40 big pictures only a few may be alive at once."""
    alive: list[weakref.ref] = []
    most = 0
    for result in recipe.predict([np.zeros((500, 400, 3), np.uint8)] * 40, stream=True, imgsz=32, verbose=False):
        alive.append(weakref.ref(result))
        most = max(most, sum(reference() is not None for reference in alive))
    assert most <= 3


def test_stream_is_a_generator(recipe: NAS, picture: np.ndarray) -> None:
    results = recipe.predict([picture] * 3, stream=True, imgsz=64, verbose=False)
    assert iter(results) is results
    next(results)
    assert recipe.predictor is not None
    assert recipe.predictor.seen == 1
    results.close()  # ends the readers


def test_bad_pictures_are_skipped_and_named(
    recipe: NAS, picture: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"good{number}.png"), picture)
    (tmp_path / "bad.jpg").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "yolonas"):
        results = recipe.predict(tmp_path, imgsz=64, verbose=False)
    assert len(results) == 3
    assert [Path(skipped.path).name for skipped in recipe.predictor.skipped] == ["bad.jpg"]
    assert "bad.jpg: skipped, " in caplog.text
    assert "1 of 4 pictures could not be used" in caplog.text


def test_a_single_bad_picture_is_an_error(recipe: NAS, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    with pytest.raises(SourceError, match=r"bad\.jpg"):
        recipe.predict(tmp_path / "bad.jpg", imgsz=64, verbose=False)
    with pytest.raises(SourceError, match=r"nowhere\.jpg"):
        recipe.predict(tmp_path / "nowhere.jpg", imgsz=64, verbose=False)


def test_no_source_draws_a_scene(recipe: NAS, caplog: pytest.LogCaptureFixture) -> None:
    results = recipe.predict(imgsz=64, verbose=False)
    assert results[0].orig_shape == (480, 640)
    assert "no source given" in caplog.text


def test_run_files(recipe: NAS, picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "b").mkdir(parents=True)
    for path in ("in/a.png", "in/b/a.png"):
        cv2.imwrite(str(tmp_path / path), picture)
    paths = [str(tmp_path / "in" / "a.png"), str(tmp_path / "in" / "b" / "a.png")]
    options = {"imgsz": 64, "conf": 0.5, "save": True, "save_txt": True, "save_conf": True, "save_crop": True}
    recipe.predict(paths, **options)
    folder = tmp_path / "runs" / "detect" / "predict"
    assert sorted(path.name for path in folder.glob("*.jpg")) == ["a-2.jpg", "a.jpg"]
    lines = (folder / "labels" / "a-2.txt").read_text().splitlines()
    assert len(lines) > 5
    assert all(len(line.split()) == 6 for line in lines)
    assert list((folder / "crops").glob("*/*.jpg"))
    assert not list(folder.rglob("*.tmp"))
    assert "Results saved to runs/detect/predict" in capsys.readouterr().out
    recipe.predict(paths[0], **options)
    assert (tmp_path / "runs" / "detect" / "predict-2" / "a.jpg").exists()
    recipe.predict(paths[0], **options, name="predict", exist_ok=True)
    assert (folder / "labels" / "a.txt").read_text().splitlines() == lines


def test_a_video_keeps_its_frames(recipe: NAS, picture: np.ndarray, tmp_path: Path) -> None:
    path = str(tmp_path / "clip.avi")
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (120, 90))
    for _ in range(7):
        video.write(picture)
    video.release()
    results = recipe.predict(path, imgsz=64, vid_stride=2, save=True, save_frames=True, save_txt=True, verbose=False)
    assert len(results) == 4
    folder = tmp_path / "runs" / "detect" / "predict"
    written = cv2.VideoCapture(str(folder / "clip.avi"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert written.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    written.release()
    assert len(list((folder / "clip_frames").glob("*.jpg"))) == 4
    assert not list(folder.glob(".*"))


def test_an_interrupted_video_is_complete_up_to_there(recipe: NAS, picture: np.ndarray, tmp_path: Path) -> None:
    path = str(tmp_path / "clip.avi")
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (120, 90))
    for _ in range(9):
        video.write(picture)
    video.release()
    results = recipe.predict(path, stream=True, imgsz=64, save=True, verbose=False)
    for _ in range(3):
        next(results)
    results.close()
    written = cv2.VideoCapture(str(tmp_path / "runs" / "detect" / "predict" / "clip.avi"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    written.release()


@pytest.mark.parametrize("promised", [3, 9])
def test_a_video_may_have_other_frames_than_its_header_says(
    recipe: NAS, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promised: int
) -> None:
    from yolonas.data import video as videos

    for name in ("a.avi", "b.avi"):
        video = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter_fourcc(*"MJPG"), 10, (120, 90))
        for _ in range(5):
            video.write(picture)
        video.release()
    as_it_is = videos._clip

    def lying(*arguments: Any) -> Any:
        clip = as_it_is(*arguments)
        clip.frames = promised
        return clip

    monkeypatch.setattr(videos, "_clip", lying)
    open_videos = []
    finish = RunWriter._finish_videos
    monkeypatch.setattr(RunWriter, "_finish_videos", lambda self: (open_videos.append(len(self._videos)), finish(self)))
    recipe.predict([str(tmp_path / "a.avi"), str(tmp_path / "b.avi")], imgsz=64, save=True, verbose=False)
    for name in ("a.avi", "b.avi"):
        written = cv2.VideoCapture(str(tmp_path / "runs" / "detect" / "predict" / name))
        assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 5
        written.release()
    assert max(open_videos) == 1  # a folder of videos does not keep them all open


def test_save_frames_is_for_videos(recipe: NAS, picture: np.ndarray, tmp_path: Path) -> None:
    recipe.predict(picture, imgsz=64, save_frames=True, verbose=False)
    assert not list(tmp_path.rglob("*.jpg"))


def test_showing_alone_has_no_folder(recipe: NAS, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolonas.results.Results.show", lambda *_, **__: None)
    assert recipe.predict(picture, imgsz=64, show=True, verbose=False)[0].save_dir is None


def test_closing_early_still_tells_of_a_full_disk(
    recipe: NAS, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("yolonas.writer.write_image", full)
    results = recipe.predict([picture] * 3, stream=True, imgsz=64, save=True, verbose=False)
    next(results)
    with pytest.raises(OSError, match="No space left"):
        results.close()


def test_a_module_that_was_replaced_or_changed_is_the_one_that_predicts(picture: np.ndarray) -> None:
    detector = NAS(fill_(YoloNAS("s").eval()))
    options = {"imgsz": 64, "conf": 0.5, "verbose": False}
    first = detector.predict(picture, **options)[0]
    detector.model.half()
    assert len(detector.predict(picture, **options)[0]) > 0
    detector.model = YoloNAS("s").eval()
    assert len(detector.predict(picture, **options)[0]) != len(first)
    assert detector.model.form == "folded"


def test_half_precision_leaves_the_module_as_it_is(recipe: NAS) -> None:
    engine = TorchEngine(recipe.model, torch.device("cpu"), half=True)
    assert next(engine.model.parameters()).dtype == torch.float16
    assert {parameter.dtype for parameter in recipe.model.parameters()} == {torch.float32}
    assert engine.stands_for(recipe.model, torch.device("cpu"), half=True)
    assert not engine.stands_for(recipe.model, torch.device("cpu"), half=False)


def test_a_full_disk_ends_the_run_with_its_reason(
    recipe: NAS, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("yolonas.writer.write_image", full)
    with pytest.raises(OSError, match="No space left"):
        recipe.predict([picture] * 30, imgsz=64, save=True, verbose=False)


def test_a_video_with_missing_frames_gets_no_name(
    recipe: NAS, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV's writer says nothing when the disk is full; the file is looked at before it gets its name."""
    path = str(tmp_path / "clip.avi")
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (120, 90))
    for _ in range(4):
        video.write(picture)
    video.release()
    write = writers._Video.write

    def lossy(self: Any, frame: np.ndarray) -> None:
        if self.frames < 2:
            write(self, frame)
        else:
            self.frames += 1

    monkeypatch.setattr(writers._Video, "write", lossy)
    with pytest.raises(OSError, match=r"clip\.avi could not be written whole: 2 of 4 frames"):
        recipe.predict(path, imgsz=64, save=True, verbose=False)
    assert not (tmp_path / "runs" / "detect" / "predict" / "clip.avi").exists()


def test_callbacks(recipe: NAS, picture: np.ndarray) -> None:
    seen: list[str] = []
    for event in ("on_predict_start", "on_predict_batch_start", "on_predict_postprocess_end", "on_predict_batch_end"):
        recipe.add_callback(event, lambda predictor, event=event: seen.append(f"{event} {predictor.seen}"))
    recipe.add_callback("on_predict_end", lambda predictor: seen.append("end"))
    recipe.predict(picture, imgsz=64, verbose=False)
    recipe.reset_callbacks()
    assert seen == [
        "on_predict_start 0",
        "on_predict_batch_start 0",
        "on_predict_postprocess_end 1",
        "on_predict_batch_end 1",
        "end",
    ]
    with pytest.raises(ValueError, match="event must be one of"):
        recipe.add_callback("on_lunch", print)


def test_names_from_a_data_yaml(picture: np.ndarray, tmp_path: Path) -> None:
    detector = NAS(fill_(YoloNAS("s", num_classes=2).eval()))
    assert detector.names == {0: "class_0", 1: "class_1"}
    (tmp_path / "two.yaml").write_text("names: [cat, dog]\n")
    assert detector.predict(picture, data="two.yaml", imgsz=64, verbose=False)[0].names == {0: "cat", 1: "dog"}
    (tmp_path / "one.yaml").write_text("names: [cat]\n")
    detector.names = {0: "a", 1: "b"}  # known names stay, whatever the file has
    assert detector.predict(picture, data="one.yaml", imgsz=64, verbose=False)[0].names == {0: "a", 1: "b"}
    detector.names = {0: "class_0", 1: "class_1"}
    with pytest.raises(ValueError, match="must have names for the model's 2 classes, got 1"):
        detector.predict(picture, data="one.yaml", imgsz=64, verbose=False)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "0", [0, 1], "xpu"])
def test_devices_that_are_not_there(recipe: NAS, picture: np.ndarray, device: object) -> None:
    if torch.cuda.is_available() and device == "0":
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="device"):
        recipe.predict(picture, device=device, imgsz=64, verbose=False)


def test_half_on_the_cpu_runs_in_float(recipe: NAS, picture: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    assert recipe.predict(picture, quantize=16, device="cpu", imgsz=64, verbose=False)
    assert "running in fp32 on the CPU" in caplog.text


def test_int8_needs_a_quantised_network(recipe: NAS, picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"quantize='int8' needs a quantised network; make one with NAS.quantize"):
        recipe.predict(picture, quantize=8, imgsz=64, verbose=False)


def test_what_is_not_there_yet_says_so(recipe: NAS) -> None:
    for name in ("benchmark", "track", "embed"):
        with pytest.raises(NotImplementedError, match=f"{name} is not in this version"):
            getattr(recipe, name)()
    with pytest.raises(NotImplementedError, match="embeddings"):
        recipe.predict(embed=[3])
