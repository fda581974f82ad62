"""`NAS.quantize`: what is tried, measured, kept, written and refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from golden_recipe import fill_
from harness import using_threads
from quantized_networks import narrow
from val_data import NAMES, write_data

from yolonas import NAS, QuantizationError, SourceError
from yolonas.config import VARIANTS
from yolonas.lowering import lower
from yolonas.nn import YoloNAS
from yolonas.quantization.sensitivity import quantised_steps
from yolonas.quantize import QuantizeOptions
from yolonas.quantize_setup import is_data_set

QUICK: dict[str, Any] = {"imgsz": 64, "method": "max", "equalize": False, "correct_bias": False, "verbose": False}


@pytest.fixture(scope="module")
def model() -> NAS:
    """As deep as the S, much narrower."""
    return NAS(narrow("s"), names=NAMES)


@pytest.fixture(scope="module")
def data(model: NAS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pictures, labelled with what the network finds in them."""
    return write_data(tmp_path_factory.mktemp("cells", numbered=False), model, pictures=36)


@pytest.fixture(autouse=True)
def in_a_folder(model: NAS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VARIANTS, "narrow", model.model.variant)  # so that files of it can be written and read


def scales_of(nas: NAS) -> tuple[dict[str, float], dict[str, list[float]]]:
    steps = lower(nas.model).steps
    weights = {step["name"]: step["weight_scale"].tolist() for step in steps if step.get("weight_scale") is not None}
    return nas.model.activation_scales, weights


def state_of(nas: NAS) -> dict[str, np.ndarray]:
    return {key: value.numpy().copy() for key, value in nas.model.state_dict().items()}


def test_a_quantisation(model: NAS, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(model)
    quantized = model.quantize(data=data, imgsz=64)
    assert model.model.activation_scales == {}
    assert all(np.array_equal(value, before[key]) for key, value in state_of(model).items())
    assert list(before) == list(state_of(model))
    assert quantized.model.activation_scales
    assert len(quantised_steps(lower(quantized.model))) == quantized.card.layers
    assert quantized.names == model.names

    folder = Path("runs/detect/quantize")
    assert quantized.ckpt_path == folder / "yolo_nas_narrow-int8.safetensors"
    assert {path.name for path in folder.iterdir()} == {
        "yolo_nas_narrow-int8.safetensors",
        "yolo_nas_narrow-int8.json",
    }
    card = json.loads((folder / "yolo_nas_narrow-int8.json").read_text())
    assert card["file"] == str(quantized.ckpt_path)
    assert card["int8"]["bytes"] == quantized.ckpt_path.stat().st_size
    assert card["calibration"]["pictures"] == 36
    assert card["evaluation"]["pictures"] == 36
    assert card["in_float"] == {}
    assert card["int8"]["ms"] > 0

    told = capsys.readouterr().out
    for text in (
        "calibration: 36 of 36 pictures of cells train, 64x64, mse",
        "measured on: cells val",
        "float32: mAP50-95 0.",
        "mAP50-95       mAP50    ms/image        file",
        "noise of the outputs (SQNR): classes ",
        f"int8 layers: {card['layers']} of {card['layers']}",
        "Model saved to runs/detect/quantize/yolo_nas_narrow-int8.safetensors",
        "Card saved to runs/detect/quantize/yolo_nas_narrow-int8.json",
    ):
        assert text in told


def test_the_card_has_what_val_measures(model: NAS, data: Path) -> None:
    quantized = model.quantize(data=data, **QUICK)
    for nas, side in ((model, quantized.card.float32), (quantized, quantized.card.int8)):
        metrics = nas.val(data=str(data), imgsz=64, plots=False, verbose=False)
        assert (side.scores.map, side.scores.map50) == (metrics.box.map, metrics.box.map50)
    assert quantized.card.int8.scores.map != quantized.card.float32.scores.map


def test_batches_threads_and_workers_do_not_change_the_result(model: NAS, data: Path) -> None:
    results, all_of_it = [], {**QUICK, "equalize": True, "correct_bias": True}
    before = torch.get_num_threads()
    for batch, threads, workers in ((16, 1, None), (3, 2, 1), (1, 3, 4)):
        torch.set_num_threads(threads)
        with using_threads(threads):
            quantized = model.quantize(data=data, batch=batch, workers=workers, **all_of_it)
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        results.append((scales_of(quantized), [trial.scores for trial in quantized.card.trials]))
    assert results[1:] == results[:1] * 2


@pytest.mark.parametrize("method", ["max", "percentile", "entropy", "mse"])
def test_methods(method: str, model: NAS, data: Path) -> None:
    scales, _ = scales_of(model.quantize(data=data, **{**QUICK, "method": method}))
    widest, _ = scales_of(model.quantize(data=data, **QUICK))
    assert set(scales) == set(widest)
    assert all(scales[name] <= widest[name] for name in scales)
    assert (scales == widest) == (method == "max")


def test_layers_in_float(model: NAS, data: Path) -> None:
    quantized = model.quantize(data=data, float_layers=["heads", "backbone.stem.*"], **QUICK)
    asked = {name for name in quantized.card.in_float if quantized.card.in_float[name] == "asked for"}
    assert len(asked) == 13
    assert asked == set(quantized.card.in_float)
    assert not asked & set(quantised_steps(lower(quantized.model)))
    assert quantized.card.trials[0].float_layers == 13
    with pytest.raises(ValueError, match=r"float_layers: 'head' must fit a layer .* did you mean 'heads'"):
        model.quantize(data=data, float_layers="head", **QUICK)
    with pytest.raises(ValueError, match="float_layers must leave some layer"):
        model.quantize(data=data, float_layers="*", **QUICK)


def test_the_file_is_the_network(data: Path) -> None:
    whole = NAS(fill_(YoloNAS("s", num_classes=3).eval()), names=NAMES)
    quantized = whole.quantize(data=data, float_layers="heads.*.cls_pred", **QUICK)
    assert whole.model.form == "training"
    loaded = NAS(quantized.ckpt_path)
    assert scales_of(loaded) == scales_of(quantized)
    assert loaded.preprocess == quantized.preprocess
    assert loaded.preprocess.size == (64, 64)
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    (first,), (second,) = (nas.predict(picture, conf=0.1, verbose=False) for nas in (quantized, loaded))
    assert len(first) > 0
    assert np.array_equal(first.boxes.data, second.boxes.data)
    assert quantized.card.int8.bytes < 0.27 * quantized.card.float32.bytes + 200_000
    with pytest.raises(ValueError, match="this one is quantised"):
        loaded.quantize(data=data, **QUICK)


def test_sensitivity(model: NAS, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantized = model.quantize(data=data, imgsz=64, sensitivity=True, sensitivity_n=24, float_layers="heads.head3")
    card = quantized.card
    assert len(card.sensitivity) == card.layers - 4
    ratios = [loss.sqnr.worst for loss in card.sensitivity]
    assert ratios == sorted(ratios)
    assert min(ratios) > min(card.int8.scores.sqnr) - 1
    assert any(loss.map_drop for loss in card.sensitivity)
    assert card.evaluation["compared"] == 24
    told = capsys.readouterr().out
    assert "Each layer alone in int8, 24 pictures:" in told
    assert f"... {len(ratios) - 10} more" in told
    plot = cv2.imread(str(quantized.ckpt_path.with_name("yolo_nas_narrow-int8-sensitivity.png")))
    assert plot.shape[0] > 500


def test_as_few_in_float_as_the_limit_needs(model: NAS, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    clipped = {**QUICK, "method": "percentile", "percent": 95}
    with caplog.at_level(logging.WARNING, "yolonas"):
        rough = model.quantize(data=data, **clipped)
    drop = 100 * (rough.card.float32.scores.map - rough.card.int8.scores.map)
    assert drop > 3
    assert f"int8 loses {drop:.1f} points of mAP50-95" in caplog.text
    quantized = model.quantize(data=data, max_map_drop=drop / 2, sensitivity_n=8, **clipped)
    card = quantized.card
    assert 100 * (card.float32.scores.map - card.int8.scores.map) <= drop / 2
    (kept,) = (trial for trial in card.trials if trial.kept)
    assert kept.scores == card.int8.scores
    assert 0 < kept.float_layers == len(card.in_float) < card.layers
    assert list(card.in_float.values()) == ["for the wanted mAP"] * kept.float_layers
    most_sensitive = {loss.name for loss in card.sensitivity[: kept.float_layers]}
    assert set(card.in_float) == most_sensitive
    fewer = [trial for trial in card.trials if trial.float_layers < kept.float_layers]
    assert fewer
    assert max(trial.float_layers for trial in fewer) == kept.float_layers - 1
    assert all(100 * (card.float32.scores.map - trial.scores.map) > drop / 2 for trial in fewer)
    metrics = quantized.val(data=str(data), imgsz=64, plots=False, verbose=False)
    assert metrics.box.map == card.int8.scores.map


def test_a_limit_that_is_met_at_once(model: NAS, data: Path) -> None:
    card = model.quantize(data=data, max_map_drop=100, **QUICK).card
    assert card.in_float == {}
    assert card.sensitivity == []
    assert len(card.trials) == 1


def test_a_limit_that_cannot_be_met(model: NAS, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolonas.quantize._Run.lost", lambda run, candidate: 1.25)
    with pytest.raises(QuantizationError, match=r"max_map_drop=0.5 cannot be met, the least loss was 1.25") as raised:
        model.quantize(data=data, max_map_drop=0.5, sensitivity_n=2, **QUICK)
    lines = str(raised.value).splitlines()
    assert lines[1].startswith("tried ")
    assert [line.split()[0] for line in lines[2:6]] == ["int8", "1", "2", "4"]
    assert not Path("runs").exists()


def test_pictures_without_labels(model: NAS, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data.parent / "images" / "val"
    quantized = model.quantize(data=folder, n=32, **{**QUICK, "verbose": True})
    card = quantized.card
    assert card.int8.scores.map is None
    assert card.int8.scores.sqnr.worst > 5
    assert card.evaluation["pictures"] == 4
    told = capsys.readouterr().out
    assert f"measured on: {folder}, others than calibrated with" in told
    assert "no mAP: the pictures have no labels" in told
    pictures = [cv2.imread(str(path)) for path in sorted(folder.iterdir())]
    again = model.quantize(data=pictures, n=32, **QUICK)
    assert scales_of(again) == scales_of(quantized)
    assert again.card.int8.scores == card.int8.scores
    (tmp_path / "bad.png").write_bytes(b"nothing")
    for some in ([*pictures, tmp_path / "bad.png"], pictures):  # all of them calibrate
        evaluation = model.quantize(data=some, sensitivity_n=8, **QUICK).card.evaluation
        assert evaluation["source"].endswith("pictures, as calibrated with")
    with pytest.raises(ValueError, match="max_map_drop needs labels"):
        model.quantize(data=folder, max_map_drop=1, **QUICK)


def test_few_pictures(model: NAS, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "yolonas"):
        quantized = model.quantize(data=data.parent / "images" / "val" / "000.png", **QUICK)
    assert "ranges come from 1 picture; take at least 32" in caplog.text
    assert "as calibrated with" in quantized.card.evaluation["source"]
    assert quantized.model.activation_scales


def test_no_pictures(model: NAS, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"data: folder .*empty must hold pictures"):
        model.quantize(data=tmp_path / "empty", **QUICK)
    with pytest.raises(SourceError, match="must have at least one picture"):
        model.quantize(data=[], **QUICK)
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"none of the 1 pictures could be used; the first: .*bad.png"):
        model.quantize(data=tmp_path / "bad.png", **QUICK)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.quantize(data="nowhere.yaml", **QUICK)
    with pytest.raises(ValueError, match="data must name a data yaml or pictures"):
        model.quantize(**QUICK)
    assert not Path("runs").exists()


def test_black_pictures(model: NAS, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    black = [np.zeros((64, 64, 3), np.uint8)] * 40
    with caplog.at_level(logging.WARNING, "yolonas"):
        quantized = model.quantize(data=black, **QUICK)
    assert "all 40 calibration pictures are of one colour" in caplog.text
    assert all(scale > 0 for scale in quantized.model.activation_scales.values())


def test_layers_without_a_range(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = narrow("s")
    network.neck.neck3.conv.conv.weight.data.zero_()
    network.neck.neck3.conv.conv.bias.data.fill_(-1.0)
    with caplog.at_level(logging.WARNING, "yolonas"):
        quantized = NAS(network, names=NAMES).quantize(data=data, **{**QUICK, "equalize": True})
    assert caplog.text.count("all values are 0 in neck.neck3.conv") == 1
    assert np.isfinite(quantized.card.int8.scores.sqnr.worst)


def test_activations_that_are_not_finite(data: Path) -> None:
    network = narrow("s")
    network.backbone.stage2.downsample.rbr_reparam.weight.data.fill_(3e38)
    with pytest.raises(ValueError, match=r"outputs of 'backbone.stage2.downsample' must be finite"):
        NAS(network, names=NAMES).quantize(data=data.parent / "images" / "val", **QUICK)


def test_other_classes(model: NAS, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(f"path: {data.parent}\ntrain: images/val\nval: images/val\nnames: [cat, dog, bird, fish]\n")
    with pytest.raises(ValueError, match=r"it has 4 .* the model 3"):
        model.quantize(data=other, **QUICK)
    other.write_text(f"path: {data.parent}\ntrain: images/val\nval: images/val\nnames: [cat, dog]\n")
    with caplog.at_level(logging.WARNING, "yolonas"):
        quantized = model.quantize(data=other, **QUICK)
    assert "other has 2 of the model's 3 classes; mAP says nothing of the others" in caplog.text
    assert list(quantized.names.values()) == NAMES


def test_without_a_train_part(model: NAS, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = tmp_path / "alone.yaml"
    alone.write_text(f"path: {data.parent}\nval: images/val\nnames: [cat, dog, bird]\n")
    with caplog.at_level(logging.WARNING, "yolonas"):
        quantized = model.quantize(data=alone, **QUICK)
    assert "pictures of alone val, which are scored too, for want of a train part" in caplog.text
    assert quantized.card.calibration["source"] == "alone val"


def test_without_labels_there_is_a_way(model: NAS, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data.parent / "images", tmp_path / "plain" / "images")
    yaml = tmp_path / "plain" / "data.yaml"
    yaml.write_text("val: images/val\nnames: [cat, dog, bird]\n")
    with pytest.raises(ValueError, match="to quantise without measuring mAP, give the folder of pictures"):
        model.quantize(data=yaml, **QUICK)


def test_bad_pictures_are_left_out_once(
    model: NAS, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(data.parent, tmp_path / "copy")
    (folder / "images" / "val" / "000.png").write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING, "yolonas"):
        quantized = model.quantize(data=folder, sensitivity=True, sensitivity_n=4, **QUICK)
    assert caplog.text.count("000.png: left out") == 2  # of the calibration, and of what is measured on
    assert quantized.card.evaluation["pictures"] == 35
    assert quantized.card.evaluation["left_out"] == quantized.card.calibration["left_out"] == 1


def test_where_files_go(model: NAS, data: Path, tmp_path: Path) -> None:
    chosen, chart = tmp_path / "mine.safetensors", tmp_path / "mine-sensitivity.png"
    quantized = model.quantize(data=data, save=chosen, **QUICK)
    assert quantized.ckpt_path == chosen
    assert {path.name for path in tmp_path.iterdir()} == {"mine.safetensors", "mine.json"}
    chart.write_bytes(b"of another network")
    with pytest.raises(FileExistsError, match="exist_ok=True replaces it"):
        model.quantize(data=data, save=chosen, **QUICK)
    model.quantize(data=data, save=chosen, exist_ok=True, project=".", name="x", **QUICK)
    assert not chart.exists()
    chosen.unlink()
    with pytest.raises(FileExistsError, match=r"mine.json exists; exist_ok=True replaces it"):
        model.quantize(data=data, save=chosen, **QUICK)
    with pytest.raises(FileNotFoundError, match="existing folder"):
        model.quantize(data=data, save=tmp_path / "none" / "a.safetensors", **QUICK)
    with pytest.raises(ValueError, match=r"save must end in .safetensors, got 'a.yolonas'"):
        model.quantize(data=data, save="a.yolonas", **QUICK)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("method", "best", "method must be one of 'max', 'percentile', 'entropy', 'mse'"),
        ("percent", 0, "percent must be above 0"),
        ("percent", 99.9, "percent is for method='percentile', got method='mse'"),
        ("max_map_drop", -1, "max_map_drop must be points of mAP"),
        ("n", 0, "n must be a whole number"),
        ("float_layers", "a,,b", "float_layers must be names"),
        ("float_layers", 1, "float_layers must be names"),
        ("sensitiv", True, "unknown argument 'sensitiv'; did you mean 'sensitivity'"),
    ],
)
def test_wrong_options(name: str, value: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        QuantizeOptions.of(**{"data": "cells.yaml", name: value})


def test_a_place_that_cannot_be_written_to_is_told_of_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="file must be a folder that can be written to"):
        QuantizeOptions.of(data="x", project=str(tmp_path / "file"))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError, match="must be a folder that can be written to"):
        QuantizeOptions.of(data="x", save=tmp_path / "a.safetensors")
    with pytest.raises(PermissionError, match="must be a folder that can be written to"):
        QuantizeOptions.of(data="x")


@pytest.mark.parametrize("text", ["a.*, b", "[a.*,b]", "['a.*', 'b']", ["a.*", "b"], ("a.*", "b")])
def test_lists_of_layers(text: object) -> None:
    assert QuantizeOptions.of(data="x", float_layers=text).float_layers == ("a.*", "b")


def test_kinds_of_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    for name in ("data.yaml", "coco8", "a/b.json", data.parent, ".", "cells.zip", "nothing.yml"):
        assert is_data_set(name), name
    for name in ("images/val", "images/val/*.png", "list.txt", "a.jpg", data.parent / "labels", [data], "*"):
        assert not is_data_set(name), name


def test_what_is_tried_is_kept_only_with_a_gain(model: NAS, data: Path) -> None:
    plain = model.quantize(data=data, **QUICK)
    both = {**QUICK, "equalize": True, "correct_bias": True, "float_layers": "heads.head3"}
    quantized = model.quantize(data=data, **both)
    card = quantized.card
    tried = {trial.what: trial for trial in card.trials}
    assert list(card.applied) == ["equalisation", "bias correction"]
    assert len(tried) == 3
    scores = [trial.scores for trial in card.trials]
    best = scores[0]
    for kept, found in zip(card.applied.values(), scores[1:], strict=True):
        assert kept == (found.map >= best.map and found.sqnr.worst > best.sqnr.worst)
        best = found if kept else best
    assert card.int8.scores == best
    assert plain.card.applied == {}


def test_layers_in_float_are_those_of_the_float_network(
    model: NAS, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolonas.quantize._Run._better", lambda run, best, tried, what: tried)
    monkeypatch.setattr("yolonas.quantize._Run.lost", lambda run, candidate: 1.0)
    monkeypatch.setattr("yolonas.quantize.fewest_in_float", lambda steps, meets: 5 + meets(5))
    quantized = model.quantize(data=data, max_map_drop=0.5, sensitivity_n=2, **{**QUICK, "correct_bias": True})
    changed = []
    for step, other in zip(lower(quantized.model).steps, lower(model.model).steps, strict=True):
        if "bias" in step:
            assert np.array_equal(step["weight"], other["weight"])
            same = np.array_equal(step["bias"], other["bias"])
            assert same or step["weight_scale"] is not None
            changed.append(not same)
    assert len(quantized.card.in_float) == 5
    assert sum(changed) > 70
    metrics = quantized.val(data=str(data), imgsz=64, plots=False, verbose=False)
    assert metrics.box.map == quantized.card.int8.scores.map


@pytest.mark.slow
@pytest.mark.shared
def test_real_pictures(shared: Path) -> None:
    model = NAS(shared / "weights" / "bccd_s.pth")
    quantized = model.quantize(data=shared / "data" / "bccd" / "bccd.yaml", verbose=False)
    card = quantized.card
    assert round(card.float32.scores.map, 4) == 0.5274
    assert card.int8.scores.map > card.float32.scores.map - 0.005
    assert card.calibration["source"] == "bccd train"
    assert quantized.ckpt_path.name == "bccd_s-int8.safetensors"
