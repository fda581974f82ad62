"""Files for super-gradients: what is in them, that they read back to the last bit, and what cannot be written."""

from __future__ import annotations

import errno
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from golden_recipe import fill_
from quantized_networks import narrow

from yolonas.checkpoint import load_model, read_checkpoint, save_super_gradients
from yolonas.checkpoint.processing import read_processing
from yolonas.config import DetectSettings
from yolonas.nn import YoloNAS, fuse_
from yolonas.preprocess import Preprocess

NAMES = {0: "RBC", 1: "WBC", 2: "Plättchen"}
CELLS = Preprocess(size=(288, 320), fit=(284, 300))
USUAL: dict[str, Any] = {"names": NAMES, "preprocess": CELLS, "settings": DetectSettings(conf=0.3, iou=0.6)}


@pytest.fixture(scope="module")
def network() -> YoloNAS:
    """YOLO-NAS-S with 3 classes and the golden weights. Not to be changed."""
    with torch.device("meta"):
        model = YoloNAS("s", 3)
    return fill_(model.to_empty(device="cpu")).eval()


@pytest.fixture(scope="module")
def narrow_network() -> YoloNAS:
    """A file of it is small; `read_checkpoint` knows no such network. Not to be changed."""
    return YoloNAS(narrow("s").variant, 3)


def plain(value: Any) -> bool:
    """Whether there is nothing but builtin types and tensors in it."""
    if type(value) is dict:
        return all(map(plain, value)) and all(map(plain, value.values()))
    if type(value) in (list, tuple):
        return all(map(plain, value))
    return type(value) in (str, int, float, bool, torch.Tensor)


def loaded(path: Path) -> dict[str, Any]:
    """By a reader that takes no code."""
    return torch.load(path, weights_only=True)


# What is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["training", "partial", "full"])
def test_round_trip_to_the_last_bit(tmp_path: Path, network: YoloNAS, form: str) -> None:
    with torch.device("meta"):
        model = YoloNAS("s", 3)
    model.load_state_dict({key: value.clone() for key, value in network.state_dict().items()}, assign=True)
    state = fuse_(model.eval(), form).state_dict()
    settings = DetectSettings(conf=0.35, iou=0.6, top_k=500, max_det=77, multi_label=False, agnostic=True)
    path = save_super_gradients(
        tmp_path / "cells.pth", model, names=NAMES, preprocess=CELLS, settings=settings, epoch=7, accuracy=0.5
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["cells.pth"]
    found = read_checkpoint(path)
    assert (found.kind, found.variant, found.form) == ("super-gradients checkpoint", "s", form)
    assert (found.names, found.preprocess, found.settings) == (NAMES, CELLS, settings)
    assert found.notes == ()
    again = load_model(found).state_dict()
    assert list(again) == list(state)
    assert all(torch.equal(value, again[key]) for key, value in state.items())


def test_what_is_in_the_file(tmp_path: Path, narrow_network: YoloNAS) -> None:
    path = save_super_gradients(
        tmp_path / "a.pth", narrow_network, **USUAL, epoch=np.int64(7), accuracy=np.float32(0.5)
    )
    entries = loaded(path)
    assert plain(entries)
    net = entries.pop("net")
    assert list(net) == list(narrow_network.state_dict())
    assert any(key.endswith("rbr_reparam.weight") for key in net)
    assert entries == {
        "epoch": 7,
        "acc": 0.5,
        "processing_params": {
            "class_names": ["RBC", "WBC", "Plättchen"],
            "conf": 0.3,
            "iou": 0.6,
            "image_processor": {
                "ComposeProcessing": {
                    "processings": [
                        {"DetectionLongestMaxSizeRescale": {"output_shape": (284, 300)}},
                        {"DetectionCenterPadding": {"output_shape": (288, 320), "pad_value": 114}},
                        {"StandardizeImage": {"max_value": 255.0}},
                        {"ImagePermute": {"permutation": (2, 0, 1)}},
                    ]
                }
            },
        },
    }
    assert loaded(save_super_gradients(tmp_path / "a.pt", narrow_network, **USUAL)).keys() == {
        "net",
        "processing_params",
    }
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
    assert b"yolonas" not in pickled
    assert b"numpy" not in pickled


def test_settings_that_old_versions_do_not_know_are_written_where_they_differ(
    tmp_path: Path, narrow_network: YoloNAS
) -> None:
    """One entry too many, and those take neither names nor processing."""
    usual = loaded(save_super_gradients(tmp_path / "a.pth", narrow_network, **USUAL))["processing_params"]
    assert set(usual) == {"class_names", "image_processor", "conf", "iou"}
    settings = replace(USUAL["settings"], max_det=100, agnostic=True, classes=(1,))
    path = save_super_gradients(tmp_path / "b.pth", narrow_network, **{**USUAL, "settings": settings})
    assert loaded(path)["processing_params"] == {**usual, "max_predictions": 100, "class_agnostic_nms": True}


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(),
        Preprocess(fit=(640, 640), padding="bottom_right", channels="bgr", pad_value=0),
        Preprocess(size=(320, 640), fit=(300, 640), keep_ratio=False),
        Preprocess(fit=None, padding="bottom_right"),
        Preprocess(mean=(123.675, 116.28, 103.53), divisor=(58.395, 57.12, 57.375), channels="bgr"),
        Preprocess(mean=(0.1, 0.1, 0.1), divisor=(1.0, 1.0, 1.0)),
        Preprocess(divisor=(255.0, 255.0, 256.0)),
        Preprocess(divisor=(1.0, 1.0, 1.0)),
        Preprocess(size=(np.int64(64), 64), fit=(64, np.int32(60)), pad_value=np.uint8(9), mean=tuple(np.ones(3))),
    ],
    ids=lambda preprocess: "-".join(map(str, preprocess.to_dict().values())),
)
def test_processing_reads_back(tmp_path: Path, narrow_network: YoloNAS, preprocess: Preprocess) -> None:
    path = save_super_gradients(tmp_path / "a.pth", narrow_network, **{**USUAL, "preprocess": preprocess})
    entries = loaded(path)
    assert plain(entries)
    assert read_processing(entries["processing_params"]["image_processor"]) == (preprocess, [])


def test_weights_keep_their_type_and_bring_nothing_along(tmp_path: Path, narrow_network: YoloNAS) -> None:
    model = YoloNAS(narrow_network.variant, 3).half().to(memory_format=torch.channels_last)
    weight = model.heads.head1.cls_pred.weight
    large = torch.zeros(100_000, dtype=torch.float16)
    weight.data = large[: weight.numel()].view_as(weight)
    model.heads.head2.cls_pred.bias.data = model.heads.head1.cls_pred.bias.data
    with torch.no_grad():
        model.backbone.stem.conv.rbr_reparam.bias[3] = float("nan")  # nothing computes with it
    path = save_super_gradients(tmp_path / "a.pth", model, **USUAL)
    net = loaded(path)["net"]
    for key, value in model.state_dict().items():
        expected = torch.zeros_like(value) if key == "backbone.stem.conv.rbr_reparam.bias" else value
        assert net[key].dtype == value.dtype
        assert torch.equal(net[key], expected)
        assert net[key].is_contiguous()
        assert net[key].untyped_storage().nbytes() == value.nbytes
        assert not net[key].requires_grad
    assert torch.isnan(model.backbone.stem.conv.rbr_reparam.bias[3])
    assert path.read_bytes() == save_super_gradients(tmp_path / "b.pth", model, **USUAL).read_bytes()


# What cannot be written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": {0: "a"}}, r"^save: names must have the keys 0\.\.2, got 0$"),
        ({"names": {"0": "a", 1: "b", 2: "c"}}, r"names must have the keys 0\.\.2"),
        ({"settings": DetectSettings(conf=25)}, "thresholds must make sense"),
        ({"settings": DetectSettings(iou=float("nan"))}, "thresholds must make sense"),
        ({"settings": DetectSettings(max_det=0)}, "thresholds must make sense"),
        ({"path": "a.safetensors"}, r"^save: path must end in \.pth or \.pt, got 'a\.safetensors'$"),
        ({"epoch": -1}, "epoch must be at least 0, got -1"),
        ({"accuracy": float("nan")}, "accuracy must be finite, got nan"),
        (
            {"preprocess": replace(CELLS, enlarge=False)},
            r"preprocess must have enlarge=True, super-gradients has nothing else, got False; use dataclasses\.replace",
        ),
        ({"preprocess": replace(CELLS, rect=True)}, "preprocess must have rect=False, .* got True"),
        ({"preprocess": replace(CELLS, divisor=(1e7, 1e7, 1e7))}, "max_value must be a number of usual size"),
        ({"preprocess": replace(CELLS, mean=(0.0, 1e7, 0.0))}, "NormalizeImage.mean must be a number of usual size"),
    ],
)
def test_arguments_are_checked(tmp_path: Path, narrow_network: YoloNAS, change: dict[str, Any], reason: str) -> None:
    arguments = {**USUAL, **change}
    path = tmp_path / arguments.pop("path", "a.pth")
    with pytest.raises(ValueError, match=reason):
        save_super_gradients(path, narrow_network, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_networks_that_super_gradients_cannot_load(tmp_path: Path, narrow_network: YoloNAS) -> None:
    quantized = YoloNAS(narrow_network.variant, 3, "folded")
    folded = YoloNAS(narrow_network.variant, 3, "folded")
    quantized.activation_scales = {"input": 1 / 255}
    broken = YoloNAS(narrow_network.variant, 3)
    with torch.no_grad():
        broken.heads.head2.cls_pred.bias[1] = float("nan")
    for model, reason in [
        (quantized, "^save: model must not be quantised, .* or this one as .safetensors$"),
        (folded, "one of the forms training, partial, full, super-gradients has no folded one; load the checkpoint ag"),
        (SimpleNamespace(form="compiled"), "model must be a network with weights, got a file that was compiled; load"),
        (SimpleNamespace(form="exported"), "got a file that was exported"),
        (torch.nn.DataParallel(narrow_network), "model must be a YoloNAS, got DataParallel; give the network itself"),
        (broken, r"model must have finite weights, got NaN or infinity in heads\.head2\.cls_pred\.bias"),
    ]:
        with pytest.raises(ValueError, match=reason):
            save_super_gradients(tmp_path / "a.pth", model, **USUAL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, narrow_network: YoloNAS, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for folder in ("no", "file"):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(FileNotFoundError, match="path must be in an existing folder, there is no folder"):
            save_super_gradients(tmp_path / folder / "a.pth", narrow_network, **USUAL)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match=r"Read-only file system: '.*a\.pth'"):
        save_super_gradients(tmp_path / "a.pth", narrow_network, **USUAL)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, narrow_network: YoloNAS) -> None:
    resource = pytest.importorskip("resource", reason="no limits on this system")
    path = save_super_gradients(tmp_path / "a.pth", narrow_network, **USUAL, epoch=1)
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.pth"):
            save_super_gradients(path, narrow_network, **USUAL, epoch=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


# Real files --------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("form", ["training", "partial", "full"])
def test_keys_equal_the_manifest_in_order(shared: Path, tmp_path: Path, network: YoloNAS, form: str) -> None:
    manifest = json.loads((shared / "reference" / "manifest_s.json").read_text())
    with torch.device("meta"):
        model = YoloNAS("s", 3)
    model.load_state_dict({key: value.clone() for key, value in network.state_dict().items()}, assign=True)
    net = loaded(save_super_gradients(tmp_path / "a.pth", fuse_(model.eval(), form), **USUAL))["net"]
    expected = manifest["training" if form == "training" else f"fused_{form}"]
    assert list(net) == [key for key, _, _ in expected]
    for key, shape, dtype in expected:
        assert str(net[key].dtype) == f"torch.{dtype}"
        assert list(net[key].shape) == ([3, *shape[1:]] if ".cls_pred." in key else shape)


@pytest.mark.shared
def test_a_trained_checkpoint_and_back(shared: Path, tmp_path: Path) -> None:
    path = shared / "weights" / "bccd_s.pth"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    real = read_checkpoint(path)
    arguments: dict[str, Any] = {"names": real.names, "preprocess": real.preprocess, "settings": real.settings}
    expected = loaded(path)
    again = save_super_gradients(
        tmp_path / "a.pth", load_model(real), **arguments, epoch=expected["epoch"], accuracy=expected["acc"]
    )
    found = loaded(again)
    assert expected.keys() == found.keys()
    assert expected["processing_params"].keys() == found["processing_params"].keys()
    assert list(found["net"]) == list(expected["net"])
    for key, value in expected["net"].items():
        assert torch.equal(found["net"][key], value.to(found["net"][key].dtype))
    back = read_checkpoint(again)
    assert (back.names, back.preprocess, back.settings) == (real.names, real.preprocess, real.settings)
