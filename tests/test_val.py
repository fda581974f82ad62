"""Val from end to end: the numbers, what goes wrong with data, interruptions, shards, and the files at the end."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from golden_recipe import fill_
from val_data import NAMES, write_data

from yolonas import NAS, SourceError
from yolonas.journal import RUNNING, JournalError
from yolonas.merge import merge
from yolonas.nn import YoloNAS
from yolonas.val_report import ReportOptions

QUICK: dict[str, Any] = {"imgsz": 64, "batch": 2, "plots": False, "verbose": False}


@pytest.fixture(scope="module")
def model() -> NAS:
    return NAS(fill_(YoloNAS("s", num_classes=3).eval()), names=NAMES)


@pytest.fixture(scope="module")
def made(model: NAS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("cells"), model)


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A copy of the data set that the test may spoil."""
    return shutil.copytree(made.parent, tmp_path / "data") / made.name


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def by_hand(folder: Path) -> list[float]:
    """pycocotools' twelve numbers of the two files that a run with `save_json` writes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "predictions.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def numbers(metrics: Any) -> dict[str, Any]:
    """All that two runs must have in common."""
    return {
        "coco": metrics.coco,
        "box": metrics.results_dict,
        "classes": metrics.summary(),
        "images": metrics.images_to_csv(),
        "confusion": metrics.confusion_matrix.matrix.tolist(),
    }


def results_of(metrics: Any) -> dict[str, Any]:
    return json.loads((metrics.save_dir / "results.json").read_text())


def assert_equal_numbers(one: Any, other: Any) -> None:
    np.testing.assert_equal(numbers(one), numbers(other))  # NaN equals NaN here


class Stop(Exception):
    """Ends a run in the middle, as a signal would."""


def stop_after(batches: int) -> Any:
    left = [batches]

    def callback(validator: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    return callback


@pytest.fixture
def interrupted(model: NAS, data: Path) -> Path:
    """The folder of a run that was interrupted after some of its batches."""
    model.add_callback("on_val_batch_start", stop_after(3))
    try:
        with pytest.raises(Stop):
            model.val(data=str(data), save_json=True, **QUICK)
    finally:
        model.reset_callbacks()
    return Path("runs/detect/val")


@pytest.mark.parametrize("evaluator", ["native", "pycocotools", "fast"])
def test_numbers_are_those_of_pycocotools_on_the_written_files(model: NAS, made: Path, evaluator: str) -> None:
    metrics = model.val(data=str(made), save_json=True, evaluator=evaluator, **QUICK)
    expected = by_hand(metrics.save_dir)
    assert expected[0] > 0.05
    assert expected[0] < 0.95
    for value, wanted in zip(metrics.coco.values(), expected, strict=True):
        assert value == wanted or (np.isnan(value) and wanted == -1), metrics.coco
    assert metrics.box.map == expected[0]
    rows = json.loads((metrics.save_dir / "predictions.json").read_text())
    assert list(rows[0]) == ["image_id", "file_name", "category_id", "bbox", "score"]
    assert {row["image_id"] for row in rows} <= set(range(10))
    assert rows[0]["file_name"] == "000.png"
    assert all(round(value, 3) == value for row in rows for value in row["bbox"])


def test_results_have_the_names_that_users_know(model: NAS, made: Path) -> None:
    metrics = model.val(data=str(made), **QUICK)
    assert model.metrics is metrics
    assert set(metrics.results_dict) == {
        *("metrics/precision(B)", "metrics/recall(B)", "metrics/mAP50(B)", "metrics/mAP50-95(B)", "fitness")
    }
    assert metrics.box.map50 >= metrics.box.map
    assert len(metrics.box.maps) == 3
    assert {"preprocess", "inference", "loss", "postprocess"} <= set(metrics.speed)
    assert metrics.speed["inference"] > 0
    assert metrics.names == dict(enumerate(NAMES))
    assert metrics.seen == 10
    assert "sg: 64x64" in metrics.protocol


def test_batch_size_and_threads_change_little(model: NAS, made: Path) -> None:
    one = model.val(data=str(made), **{**QUICK, "batch": 1, "workers": 0})
    other = model.val(data=str(made), **{**QUICK, "batch": 16, "workers": 4})
    assert one.box.map == pytest.approx(other.box.map, abs=2e-3)


def test_the_files_of_a_run(model: NAS, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = model.val(data=str(made), save_json=True, save_txt=True, save_conf=True, imgsz=64)
    folder = metrics.save_dir
    assert folder == Path("runs/detect/val")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [
            *("BoxF1_curve.png", "BoxPR_curve.png", "BoxP_curve.png", "BoxR_curve.png"),
            *(
                "confusion_matrix.png",
                "confusion_matrix_normalized.png",
                "val_batch0_labels.jpg",
                "val_batch0_pred.jpg",
            ),
            *("predictions.json", "annotations.json", "results.json", "classes.csv", "images.csv", "labels"),
            "problems.txt",  # pictures without a label file
        ]
    )
    for path in folder.glob("*.[jp][pn]g"):
        assert min(cv2.imread(str(path)).shape[:2]) > 50
    results = results_of(metrics)
    assert results["protocol"] == metrics.protocol
    assert results["metrics"]["metrics/mAP50-95(B)"] == metrics.box.map
    assert results["coco"]["APs"] is None
    assert len((folder / "images.csv").read_text().splitlines()) == 11
    lines = (folder / "labels" / "000.txt").read_text().splitlines()
    assert len(lines[0].split()) == 6
    assert all(0 <= float(value) <= 1 for value in lines[0].split()[1:])
    out = capsys.readouterr().out
    for text in (
        "Class     Images  Instances",
        "all         10",
        "cat",
        "Speed:",
        "protocol: sg",
        f"saved to {folder}",
    ):
        assert text in out
    assert model.val(data=str(made), **QUICK).save_dir == Path("runs/detect/val-2")


def test_pictures_that_cannot_be_used_are_left_out(
    model: NAS, data: Path, caplog: pytest.LogCaptureFixture, made: Path
) -> None:
    images = data.parent / "images" / "val"
    (images / "001.png").write_bytes(b"not a picture")
    (images / "003.png").write_bytes((images / "003.png").read_bytes()[:200])
    with (data.parent / "labels" / "val" / "000.txt").open("a") as file:
        file.write("0 0.5 0.5\n7 0.5 0.5 0.1 0.1\n")
    metrics = model.val(data=str(data), save_json=True, **QUICK)
    assert metrics.seen == 8
    assert metrics.left_out == 2
    assert results_of(metrics)["left_out"] == 2
    problems = (metrics.save_dir / "problems.txt").read_text()
    for text in ("001.png: ", "003.png: ", "000.txt:", "7"):
        assert text in problems
    assert "001.png: left out" in caplog.text
    assert metrics.box.map == by_hand(metrics.save_dir)[0]


def test_a_run_in_the_folder_of_another_one(model: NAS, data: Path) -> None:
    options = {**QUICK, "name": "same", "exist_ok": True}
    assert (model.val(data=str(data), save_json=True, **options).save_dir / "predictions.json").exists()
    (data.parent / "images" / "val" / "001.png").write_bytes(b"not a picture")
    assert (model.val(data=str(data), **options).save_dir / "problems.txt").exists()
    for number in (1, 2, 5, 8):
        (data.parent / "images" / "val" / f"{number:03}.png").unlink()
        (data.parent / "labels" / "val" / f"{number:03}.txt").unlink(missing_ok=True)
    metrics = model.val(data=str(data), **options)
    assert metrics.seen == 6
    assert metrics.save_dir == Path("runs/detect/same")
    assert not (metrics.save_dir / "problems.txt").exists()
    assert not (metrics.save_dir / "predictions.json").exists()
    assert results_of(metrics)["pictures"] == 6


def test_nothing_found_scores_nothing(model: NAS, made: Path) -> None:
    metrics = model.val(data=str(made), conf=1.0, save_json=True, **{**QUICK, "plots": True})
    assert metrics.box.map == 0
    assert json.loads((metrics.save_dir / "predictions.json").read_text()) == []
    assert (metrics.save_dir / "BoxPR_curve.png").exists()


def test_no_usable_picture_is_an_error(model: NAS, data: Path) -> None:
    for path in (data.parent / "images" / "val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"none of the 10 pictures could be used; the first: .*000.png"):
        model.val(data=str(data), **QUICK)


def test_no_label_at_all_is_an_error(model: NAS, data: Path) -> None:
    shutil.rmtree(data.parent / "labels")
    with pytest.raises(ValueError, match="labels"):
        model.val(data=str(data), **QUICK)


def test_classes_that_do_not_fit_are_an_error(model: NAS, data: Path) -> None:
    data.write_text("val: images/val\ntrain: images/val\nnames: [a, b, c, d]\n")
    with pytest.raises(ValueError, match="4"):
        model.val(data=str(data), **QUICK)


def test_a_model_without_names_takes_those_of_the_data(made: Path) -> None:
    nameless = NAS(fill_(YoloNAS("s", num_classes=3).eval()))
    assert nameless.val(data=str(made), **QUICK).names == dict(enumerate(NAMES))


def test_an_interrupted_run_goes_on(model: NAS, data: Path, interrupted: Path) -> None:
    assert (interrupted / RUNNING).is_file()
    calls: list[int] = []
    model.add_callback("on_val_batch_start", lambda validator: calls.append(validator.seen))
    try:
        resumed = model.val(data=str(data), save_json=True, resume=True, **QUICK)
    finally:
        model.reset_callbacks()
    assert len(calls) == 2  # of five batches three were done
    assert resumed.save_dir == interrupted
    assert not (interrupted / RUNNING).exists()
    whole = model.val(data=str(data), save_json=True, **QUICK)
    assert whole.save_dir != interrupted
    assert_equal_numbers(resumed, whole)
    for name in ("predictions.json", "annotations.json", "images.csv", "classes.csv"):
        assert (interrupted / name).read_bytes() == (whole.save_dir / name).read_bytes()


@pytest.mark.parametrize("lost", [5, 2000, 6000])
def test_a_killed_run_goes_on_from_a_torn_journal(model: NAS, data: Path, interrupted: Path, lost: int) -> None:
    journal = interrupted / RUNNING
    journal.write_bytes(journal.read_bytes()[:-lost])
    resumed = model.val(data=str(data), save_json=True, resume=True, **QUICK)
    whole = model.val(data=str(data), save_json=True, **QUICK)
    assert_equal_numbers(resumed, whole)
    rows, expected = (json.loads((metrics.save_dir / "predictions.json").read_text()) for metrics in (resumed, whole))
    assert sorted(map(str, rows)) == sorted(map(str, expected))


def test_another_run_is_not_gone_on_with(
    model: NAS, data: Path, interrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(JournalError, match=r"is another run: conf was 0.01, is 0.2"):
        model.val(data=str(data), resume=str(interrupted), **QUICK, conf=0.2)
    metrics = model.val(data=str(data), resume=True, conf=0.2, **QUICK)
    assert metrics.save_dir == Path("runs/detect/val-2")
    assert "starting anew" in caplog.text
    with pytest.raises(JournalError, match="holds no interrupted run"):
        model.val(data=str(data), resume="runs/detect/val-2", **QUICK)


def test_changed_labels_are_another_run(model: NAS, data: Path, interrupted: Path) -> None:
    with (data.parent / "labels" / "val" / "000.txt").open("a") as file:
        file.write("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(JournalError, match="data was"):
        model.val(data=str(data), resume=str(interrupted), **QUICK)


def test_shards_give_the_numbers_of_one_run(model: NAS, data: Path) -> None:
    whole = model.val(data=str(data), save_json=True, **QUICK)
    parts = [model.val(data=str(data), shard=f"{number}/3", **QUICK).save_dir for number in (3, 1, 2)]
    assert sorted(path.name for part in parts for path in part.glob("partial-*")) == [
        *("partial-1-of-3.ndjson", "partial-2-of-3.ndjson", "partial-3-of-3.ndjson")
    ]
    shutil.rmtree(data.parent / "images")  # only the parts are needed
    merged = merge(parts, ReportOptions(save_json=True, verbose=False))
    assert_equal_numbers(merged, whole)
    assert merged.protocol == whole.protocol
    rows, expected = (json.loads((m.save_dir / "predictions.json").read_text()) for m in (merged, whole))
    assert sorted(map(str, rows)) == sorted(map(str, expected))


def test_parts_that_do_not_belong_together(model: NAS, data: Path) -> None:
    one = model.val(data=str(data), shard="1/2", name="one", **QUICK).save_dir
    two = model.val(data=str(data), shard="2/2", name="two", **QUICK).save_dir
    other = model.val(data=str(data), shard="2/2", name="other", conf=0.3, **QUICK).save_dir
    with pytest.raises(JournalError, match=r"of 2 parts these are missing: 2; run val with shard='2/2'"):
        merge([one])
    with pytest.raises(JournalError, match=r"is of another run than .*: conf was 0.01, is 0.3"):
        merge([one, other])
    with pytest.raises(JournalError, match="part 1 of 2 is there twice"):
        merge([one, two, shutil.copytree(one, "copy")])
    with pytest.raises(JournalError, match="does not exist"):
        merge([one, "nothing"])
    with pytest.raises(JournalError, match="holds no part"):
        merge([data.parent])
    part = two / "partial-2-of-2.ndjson"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(JournalError, match="is not complete"):
        merge([one, two])


@pytest.mark.parametrize("options", [{"rect": True}, {"protocol": "ultralytics"}], ids=["rect", "ultralytics"])
def test_shards_with_other_frames(model: NAS, data: Path, options: dict[str, Any]) -> None:
    whole = model.val(data=str(data), **QUICK, **options)
    one = model.val(data=str(data), shard="1/2", **QUICK, **options).save_dir
    two = model.val(data=str(data), shard="2/2", **QUICK, **options).save_dir
    assert_equal_numbers(merge([one, two], ReportOptions(verbose=False)), whole)
    cv2.imwrite(str(data.parent / "images" / "val" / "000.png"), np.zeros((64, 20, 3), np.uint8))  # elsewhere
    other = model.val(data=str(data), shard="2/2", **QUICK, **options).save_dir
    with pytest.raises(JournalError, match=r"is of another run than .*: batches was"):
        merge([one, other])


def test_a_shard_that_has_ended_is_not_run_again(model: NAS, data: Path) -> None:
    first = model.val(data=str(data), shard="1/2", **QUICK)
    model.add_callback("on_val_batch_start", stop_after(0))
    try:
        again = model.val(data=str(data), shard="1/2", resume=True, **QUICK)
    finally:
        model.reset_callbacks()
    assert again.save_dir == first.save_dir
    assert_equal_numbers(again, first)
    assert [path.name for path in first.save_dir.glob("*.ndjson")] == ["partial-1-of-2.ndjson"]


def test_merged_parts_keep_what_was_odd(model: NAS, data: Path) -> None:
    (data.parent / "images" / "val" / "004.png").write_bytes(b"")
    with (data.parent / "labels" / "val" / "000.txt").open("a") as file:
        file.write("9 0.5 0.5 0.1 0.1\n")
    parts = [model.val(data=str(data), shard=f"{number}/2", **QUICK).save_dir for number in (1, 2)]
    whole = model.val(data=str(data), **QUICK)
    merged = merge(parts, ReportOptions(verbose=False, evaluator="fast"))
    assert merged.left_out == whole.left_out == 1
    assert sorted((merged.save_dir / "problems.txt").read_text().splitlines()) == sorted(
        (whole.save_dir / "problems.txt").read_text().splitlines()
    )
    assert results_of(merged)["problems"] == results_of(whole)["problems"] > 1
    assert merged.protocol.endswith("scored by faster-coco-eval")


def test_a_picture_is_not_both_seen_and_left_out(model: NAS, data: Path, interrupted: Path) -> None:
    for number in (1, 7):  # of a batch that was done, and one that was not
        (data.parent / "images" / "val" / f"{number:03}.png").write_bytes(b"")
    journal = interrupted / RUNNING
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]))  # the first batch is whole, and will be kept
    resumed = model.val(data=str(data), resume=True, **QUICK)
    assert (resumed.seen, resumed.left_out) == (9, 1)


def test_an_interrupted_run_is_not_written_over(model: NAS, data: Path, interrupted: Path) -> None:
    before = (interrupted / RUNNING).read_bytes()
    with pytest.raises(JournalError, match="holds an interrupted run; go on with it by resume, or delete"):
        model.val(data=str(data), name="val", exist_ok=True, conf=0.2, **QUICK)
    assert (interrupted / RUNNING).read_bytes() == before


def test_changed_weights_are_another_run(data: Path, interrupted: Path) -> None:
    other = NAS(fill_(YoloNAS("s", num_classes=3).eval()), names=NAMES)
    other.fuse().model.heads.head1.cls_pred.bias.data += 0.5
    with pytest.raises(JournalError, match="weights was"):
        other.val(data=str(data), resume=str(interrupted), **QUICK)


def test_missing_pictures_count_as_left_out(model: NAS, data: Path) -> None:
    (data.parent / "list.txt").write_text("images/val/000.png\nimages/val/001.png\nimages/val/nothing.png\n")
    data.write_text("train: list.txt\nval: list.txt\nnames: [cat, dog, bird]\n")
    metrics = model.val(data=str(data), **QUICK)
    assert (metrics.seen, metrics.left_out) == (2, 1)
    assert "nothing.png" in (metrics.save_dir / "problems.txt").read_text()


def test_pictures_of_another_size_than_their_labels_are_left_out(model: NAS, data: Path) -> None:
    first = model.val(data=str(data), save_json=True, **QUICK)
    instances = json.loads((first.save_dir / "annotations.json").read_text())
    instances["images"][0]["width"] += 5
    instances["images"][3].update(height=instances["images"][3]["width"], width=instances["images"][3]["height"])
    file = data.parent / "instances.json"
    file.write_text(json.dumps(instances))
    metrics = model.val(data=str(file), images=str(data.parent / "images" / "val"), **QUICK)
    assert (metrics.seen, metrics.left_out) == (8, 2)
    problems = (metrics.save_dir / "problems.txt").read_text()
    assert "000.png: the picture is 90x120, its labels are for 90x125" in problems
    assert "its EXIF tag turns it" in problems


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_not_utf8(model: NAS, data: Path) -> None:
    for part, suffix in (("images", b".png"), ("labels", b".txt")):
        folder = os.fsencode(data.parent / part / "val")
        for old, new in ((b"000", b"caf\xe9"), (b"001", b"caf\xe8")):
            os.rename(folder + b"/" + old + suffix, folder + b"/" + new + suffix)  # noqa: PTH104  bytes
    metrics = model.val(data=str(data), save_json=True, save_txt=True, **{**QUICK, "plots": True})
    assert metrics.seen == 10
    assert b"caf\xe9.png" in (metrics.save_dir / "images.csv").read_bytes()
    assert metrics.box.map == by_hand(metrics.save_dir)[0]


def test_ultralytics_frames_are_for_one_side(model: NAS, made: Path) -> None:
    with pytest.raises(ValueError, match="imgsz must be one side with protocol='ultralytics', got 64x96"):
        model.val(data=str(made), protocol="ultralytics", **{**QUICK, "imgsz": (64, 96)})


def test_labels_without_a_box_are_an_error(model: NAS, data: Path) -> None:
    for path in (data.parent / "labels" / "val").iterdir():
        path.write_text("")
    with pytest.raises(ValueError, match="have no boxes in labels/val"):
        model.val(data=str(data), **QUICK)
    assert not Path("runs").exists()


def test_one_class_of_data_with_other_classes(model: NAS, data: Path) -> None:
    data.write_text("train: images/val\nval: images/val\nnames: [a, b, c, d, e]\n")
    assert model.val(data=str(data), single_cls=True, **QUICK).box.map50 > 0


def test_options_that_others_take(model: NAS, made: Path) -> None:
    metrics = model.val(None, data=str(made), split="validation", seed=0, deterministic=True, classes=[], **QUICK)
    assert len(metrics.ap_class_index) == 3


def test_too_many_shards(model: NAS, made: Path) -> None:
    with pytest.raises(ValueError, match="6 parts are too many for 5 batches of 2"):
        model.val(data=str(made), shard="6/6", **QUICK)
    for value in ("0/2", "3/2", "1", "a/b", "1/0", "1/999999"):
        with pytest.raises(ValueError, match="shard must be"):
            model.val(data=str(made), shard=value, **QUICK)


@pytest.mark.parametrize(("options", "classes"), [({"classes": [1]}, [1]), ({"classes": 2}, [2])])
def test_only_some_classes(model: NAS, made: Path, options: dict[str, Any], classes: list[int]) -> None:
    metrics = model.val(data=str(made), **QUICK, **options)
    assert metrics.ap_class_index.tolist() == classes
    everything = model.val(data=str(made), **QUICK)
    assert metrics.box.ap50[0] == pytest.approx(everything.box.ap50[classes[0]], abs=0.02)


def test_all_classes_as_one(model: NAS, made: Path) -> None:
    metrics = model.val(data=str(made), single_cls=True, save_json=True, **QUICK)
    assert metrics.names == {0: "object"}
    assert metrics.box.map == by_hand(metrics.save_dir)[0]
    assert metrics.box.map50 > 0


def test_a_part_of_the_pictures(model: NAS, made: Path) -> None:
    assert model.val(data=str(made), fraction=0.35, **QUICK).seen == 4


def test_more_labels_than_max_det(model: NAS, made: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "yolonas"):
        metrics = model.val(data=str(made), max_det=1, **QUICK)
    most = max(row["instances"] for row in metrics.images())
    assert f"a picture has {most} labels, max_det goes up from 1" in caplog.text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"protocol": "ultralytics"}, "ultralytics: 64x64 plus half a stride"),
        ({"protocol": "ultralytics", "rect": False}, "ultralytics: 64x64, picture in 64x64"),
        ({"rect": True}, "sg: 64x64 at most, smallest frame"),
    ],
)
def test_other_frames(model: NAS, made: Path, options: dict[str, Any], text: str) -> None:
    metrics = model.val(data=str(made), save_json=True, **QUICK, **options)
    assert text in metrics.protocol
    assert metrics.seen == 10
    assert metrics.box.map == by_hand(metrics.save_dir)[0] > 0.02


def test_rect_gives_what_predict_gives(model: NAS, made: Path) -> None:
    """One picture through both drivers, in a frame that is not square."""
    metrics = model.val(data=str(made), rect=True, save_json=True, conf=0.3, **{**QUICK, "batch": 1})
    rows = json.loads((metrics.save_dir / "predictions.json").read_text())
    (result,) = model.predict(
        made.parent / "images" / "val" / "003.png", imgsz=64, rect=True, conf=0.3, iou=0.7, verbose=False
    )
    found = np.array([[*row["bbox"], row["score"]] for row in rows if row["image_id"] == 3])
    expected = result.boxes.data.numpy().astype(np.float64)
    expected[:, 2:4] -= expected[:, :2]
    np.testing.assert_allclose(found, expected[:, :5], atol=6e-4)


def test_a_high_threshold_is_remarked_on(model: NAS, made: Path, caplog: pytest.LogCaptureFixture) -> None:
    model.val(data=str(made), conf=0.25, **QUICK)
    assert "conf=0.25 leaves out low scores" in caplog.text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"conf": 25}, "conf must lie in 0..1, got 25; did you mean 0.25"),
        ({"dta": "x"}, "unknown argument 'dta'; did you mean 'data'"),
        ({"split": "dev"}, "split must be one of"),
        ({"classes": [9]}, "classes must lie in 0..2, got 9"),
        ({"evaluator": "mine"}, "evaluator must be one of 'native', 'pycocotools', 'fast'"),
    ],
)
def test_wrong_options(model: NAS, made: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        model.val(**{"data": str(made), **QUICK, **options})


def test_callbacks_and_validator(model: NAS, made: Path) -> None:
    events: list[str] = []
    for event in ("on_val_start", "on_val_batch_start", "on_val_batch_end", "on_val_end"):
        model.add_callback(event, lambda validator, event=event: events.append(event))
    try:
        model.val(data=str(made), **QUICK)
    finally:
        model.reset_callbacks()
    assert events == ["on_val_start", *["on_val_batch_start", "on_val_batch_end"] * 5, "on_val_end"]
    with pytest.raises(NotImplementedError, match="validator must be None"):
        model.val(validator=object())


def test_a_coco_json_is_a_data_set(model: NAS, made: Path) -> None:
    first = model.val(data=str(made), save_json=True, **QUICK)
    json_file = made.parent / "instances_again.json"
    shutil.copy(first.save_dir / "annotations.json", json_file)
    again = model.val(data=str(json_file), images=str(made.parent / "images" / "val"), **QUICK)
    assert again.coco == pytest.approx(first.coco, nan_ok=True)


@pytest.mark.shared
@pytest.mark.parametrize("data", ["bccd.yaml", "annotations/instances_val.json"])
def test_real_cells_score_what_their_card_says(shared: Path, data: str) -> None:
    metrics = NAS(shared / "weights" / "bccd_s.pth").val(
        data=str(shared / "data" / "bccd" / data), plots=False, save_json=True, verbose=False
    )
    assert metrics.box.map == pytest.approx(0.5274, abs=0.002)
    assert metrics.box.map50 == pytest.approx(0.8406, abs=0.002)
    assert metrics.box.map75 == pytest.approx(0.5805, abs=0.002)
    assert metrics.box.map == by_hand(metrics.save_dir)[0]
    assert metrics.nt_per_class.tolist() == [967, 87, 83]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "pictures", "boxes"),
    [("coco8", 4, 17), ("tinycoco", 3, 77), ("coco_val78", 78, 652), ("coco128", 128, 929)],
)
def test_real_data_sets_run_through(shared: Path, name: str, pictures: int, boxes: int) -> None:
    """With weights by recipe: the data is what is tried here."""
    recipe = NAS(fill_(YoloNAS("s").eval()))
    metrics = recipe.val(
        data=str(shared / "data" / name / f"{name}.yaml"), imgsz=160, conf=0.5, max_det=50, plots=False, verbose=False
    )
    assert metrics.seen == pictures
    assert int(metrics.nt_per_class.sum()) == boxes
