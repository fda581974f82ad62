"""Checkpoints of every kind: what is read, what is assumed, what is refused, and our own files."""

from __future__ import annotations

import collections
import contextlib
import errno
import gzip
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_recipe import fill_, pattern
from hostile_pickles import Payload, write
from safetensors.torch import save_file
from torch import nn

from yolonas.checkpoint import Checkpoint, load_model, read_checkpoint, save_checkpoint
from yolonas.checkpoint import checkpoint as checkpoint_module
from yolonas.checkpoint.contents import MAX_DEPTH, find_contents, network_tensors
from yolonas.checkpoint.processing import read_processing
from yolonas.checkpoint.tensor_file import TensorFile, load_tensor
from yolonas.checkpoint.torch_zip import read_torch_zip
from yolonas.config import COCO_NAMES, DetectSettings
from yolonas.errors import CheckpointError
from yolonas.nn import YoloNAS, fuse_
from yolonas.preprocess import Preprocess

# A network of a few numbers with keys like the real one, so that a file has 3 kB and a thousand variations are quick.
TINY = {
    "backbone.stem.conv.branch_3x3.bn.running_mean": (2,),
    "backbone.stem.conv.branch_3x3.bn.running_var": (2,),
    "backbone.stem.conv.branch_3x3.bn.num_batches_tracked": (),
    "backbone.stem.conv.rbr_reparam.bias": (2,),
    "neck.neck1.conv.conv.weight": (2, 2, 1, 1),
    "heads.head1.stem.seq.conv.weight": (64, 1, 1, 1),
    "heads.head1.cls_pred.weight": (3, 2, 1, 1),
}
WIDTH, CLASSES = "heads.head1.stem.seq.conv.weight", "heads.head1.cls_pred.weight"
VARIANCE, COUNTER = list(TINY)[1:3]
NAMES = ["RBC", "WBC", "Platelets"]
PROCESSING = {
    "ComposeProcessing": {
        "processings": [
            "ReverseImageChannels",
            {"DetectionLongestMaxSizeRescale": {"output_shape": (640, 640)}},
            {"DetectionBottomRightPadding": {"output_shape": (640, 640), "pad_value": 114}},
            {"ImagePermute": {"permutation": (2, 0, 1)}},
            {"StandardizeImage": {"max_value": 255.0}},
        ]
    }
}
BGR = Preprocess(fit=(640, 640), padding="bottom_right", channels="bgr")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The state dict of the network of a few numbers, which read_checkpoint then takes for YOLO-NAS."""

    def shapes(variant: str, num_classes: int, form: str) -> dict[str, tuple[int, ...]]:
        return {**TINY, CLASSES: (num_classes, 2, 1, 1)}

    monkeypatch.setattr(checkpoint_module, "_shapes", shapes)
    return tiny_state()


def tiny_state(tag: str = "", classes: int = 3) -> dict[str, torch.Tensor]:
    shapes = {**TINY, CLASSES: (classes, 2, 1, 1)}
    return {key: torch.from_numpy(pattern(tag, key, shape)) for key, shape in shapes.items()}


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def assert_state(found: Checkpoint, tag: str = "", prefix: str = "") -> None:
    assert list(found.state_dict) == list(TINY)
    for key, tensor in found.state_dict.items():
        expected = pattern(tag, prefix + key, tuple(tensor.shape))
        assert tensor.dtype == (torch.int64 if key == COUNTER else torch.float32)
        assert torch.equal(tensor, torch.from_numpy(expected)), key


# Kinds -------------------------------------------------------------------------------------------------------------


def test_bare_state_dict(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    found = read_checkpoint(saved(tmp_path / "a.pt", collections.OrderedDict(tiny)))
    assert_state(found)
    assert (found.kind, found.variant, found.num_classes, found.form) == ("state dict", "s", 3, "training")
    assert found.names == {0: "class_0", 1: "class_1", 2: "class_2"}
    assert found.preprocess == Preprocess()
    assert (found.settings.conf, found.settings.iou, found.settings.top_k, found.settings.max_det) == (
        0.5,
        0.7,
        1024,
        300,
    )
    assert (found.settings.multi_label, found.settings.agnostic) == (True, False)
    assert found.path == tmp_path / "a.pt"
    assert len(found.notes) == 4
    assert "tensor" not in repr(found)


def test_80_classes_are_taken_for_coco(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    found = read_checkpoint(saved(tmp_path / "a.pt", tiny_state(classes=80)))
    assert list(found.names.values()) == list(COCO_NAMES)
    assert (found.settings.conf, found.settings.iou) == (0.25, 0.7)


def test_super_gradients_checkpoint(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    settings = {"class_names": NAMES, "image_processor": PROCESSING, "conf": 0.45, "iou": 0.6}
    value = {
        "net": tiny_state(tag="raw:"),
        "ema_net": tiny,
        "acc": torch.tensor(0.5),
        "epoch": 3,
        "packages": {"torch": "2.1"},
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(10)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "processing_params": settings,
    }
    found = read_checkpoint(saved(tmp_path / "a.pth", value))
    assert_state(found)
    assert found.kind == "super-gradients checkpoint"
    assert found.names == dict(enumerate(NAMES))
    assert found.preprocess == BGR
    assert (found.settings.conf, found.settings.iou) == (0.45, 0.6)
    assert found.notes == ("The averaged weights 'ema_net' are used, not 'net'.",)
    del value["ema_net"]
    assert_state(read_checkpoint(saved(tmp_path / "a.pth", value)), tag="raw:")
    value["ema_net"] = None
    assert_state(read_checkpoint(saved(tmp_path / "a.pth", value)), tag="raw:")


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "net.", "ema_model.", "_orig_mod.", "_orig_mod.module.", "model.ema.net."]
)
def test_prefixes_of_wrappers(tmp_path: Path, tiny: dict[str, torch.Tensor], prefix: str):
    state = {prefix + key: value for key, value in tiny.items()}
    found = read_checkpoint(saved(tmp_path / "a.pth", {"net": state}))
    assert_state(found)


def test_compiled_parts_within_the_network(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    state = {key.replace("heads.", "heads._orig_mod."): value for key, value in tiny.items()}
    assert_state(read_checkpoint(saved(tmp_path / "a.pth", state)))


def test_prefix_on_some_keys_only(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    state = {key if key in (COUNTER, VARIANCE) else f"module.{key}": value for key, value in tiny.items()}
    with pytest.raises(CheckpointError, match=f"1 keys are missing: {VARIANCE}"):
        read_checkpoint(saved(tmp_path / "a.pth", state))


def test_lightning(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    state = {f"model.{key}": torch.zeros_like(value) for key, value in tiny.items()}
    state |= {f"ema_model.{key}": value for key, value in tiny.items()}
    state["loss.weight"] = torch.ones(3)
    value = {"state_dict": state, "pytorch-lightning_version": "2.4", "hyper_parameters": {"class_names": NAMES}}
    found = read_checkpoint(saved(tmp_path / "a.ckpt", value))
    assert_state(found)
    assert found.kind == "lightning"
    assert found.names == dict(enumerate(NAMES))
    assert "7 keys under 'model' were ignored, 'ema_model' is used." in found.notes
    assert "1 keys outside the network were ignored: loss.weight." in found.notes


def test_modern_yolonas_trainer(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    value = {
        "epoch": 4,
        "model_state_dict": tiny_state("raw:"),
        "optimizer_state_dict": {},
        "ema": {"ema_state_dict": tiny, "decay": 0.9997, "updates": 12},
        "best_map": 0.4,
    }
    found = read_checkpoint(saved(tmp_path / "best.pt", value))
    assert_state(found)
    assert found.kind == "modern-yolonas trainer"
    value["ema"] = None
    assert_state(read_checkpoint(saved(tmp_path / "best.pt", value)), tag="raw:")


def test_safetensors_without_our_metadata(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    save_file(tiny, tmp_path / "yolo-nas-s.safetensors", metadata={"format": "pt"})
    found = read_checkpoint(tmp_path / "yolo-nas-s.safetensors")
    assert_state(found)
    assert found.kind == "safetensors"


class Tree(nn.Module):
    """A module with given parameters and buffers under dotted names."""

    def add(self, key: str, value: torch.Tensor) -> None:
        first, _, rest = key.partition(".")
        if rest:
            if first not in self._modules:
                self.add_module(first, Tree())
            self._modules[first].add(rest, value)
        elif value.is_floating_point() and not first.startswith("running"):
            self.register_parameter(first, nn.Parameter(value))
        else:
            self.register_buffer(first, value)


def module_of(state: dict[str, torch.Tensor]) -> Tree:
    root = Tree()
    for key, value in state.items():
        root.add(key, value)
    return root


def test_pickled_module(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    root = module_of(tiny)
    root._class_names, root._default_nms_conf, root._default_nms_iou = tuple(NAMES), 0.3, 0.65
    root._default_nms_top_k, root._default_max_predictions = 500, 50
    root._default_multi_label_per_box, root._default_class_agnostic_nms = False, True
    root.heads.register_buffer("proj_conv", torch.arange(17.0), persistent=False)
    root.heads.head1.grid = torch.zeros(3)
    root.neck.register_parameter("bias", None)
    found = read_checkpoint(saved(tmp_path / "a.pt", root))
    assert_state(found)
    assert found.kind == "pickled module"
    assert found.names == dict(enumerate(NAMES))
    assert (found.settings.conf, found.settings.iou, found.settings.top_k, found.settings.max_det) == (
        0.3,
        0.65,
        500,
        50,
    )
    assert (found.settings.multi_label, found.settings.agnostic) == (False, True)
    for name, value in {
        "module": {"model": root},
        "both": {"model": module_of(tiny_state("raw:")), "ema": root},
    }.items():
        found = read_checkpoint(saved(tmp_path / f"{name}.pt", value))
        assert_state(found)
        assert found.names == dict(enumerate(NAMES))
    assert_state(read_checkpoint(saved(tmp_path / "parallel.pt", nn.DataParallel(root))))


def test_scales_of_quantisation_aware_training(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    scales = {
        "neck.neck1.conv.conv._input_quantizer._amax": torch.tensor(2.5),
        "neck.neck1.conv.conv._weight_quantizer._amax": torch.tensor([0.5, 0.25]).reshape(2, 1, 1, 1),
        "backbone.stage1.blocks.bottlenecks.0.shortcut._amax": torch.tensor(1.0, dtype=torch.float16),
    }
    found = read_checkpoint(saved(tmp_path / "a.pt", {"net": {**tiny, **scales}}))
    assert_state(found)
    assert set(found.quantizer_scales) == set(scales)
    assert all(torch.equal(found.quantizer_scales[key], scales[key].float()) for key in scales)
    scales["backbone.stage1.blocks.bottlenecks.0.shortcut._amax"] = torch.tensor(float("nan"))
    with pytest.raises(CheckpointError, match=r"shortcut\._amax must have finite values"):
        read_checkpoint(saved(tmp_path / "a.pt", {"net": {**tiny, **scales}}))


# Tolerances --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_weights(tmp_path: Path, tiny: dict[str, torch.Tensor], dtype: torch.dtype):
    state = {key: value.to(dtype) for key, value in tiny.items()}  # counters too, as averaging may leave them
    found = read_checkpoint(saved(tmp_path / "a.pt", state))
    for key, value in state.items():
        assert torch.equal(found.state_dict[key], value.to(torch.int64 if key == COUNTER else torch.float32))


def test_what_nothing_computes_with_may_be_absent_or_odd(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    del tiny[COUNTER], tiny["backbone.stem.conv.rbr_reparam.bias"]
    found = read_checkpoint(saved(tmp_path / "a.pt", tiny))
    assert list(found.state_dict) == list(TINY)
    assert found.state_dict[COUNTER].item() == 0
    assert found.state_dict[COUNTER].dtype == torch.int64
    assert any(note.startswith("2 tensors that nothing computes with") for note in found.notes)
    tiny[COUNTER] = torch.tensor([7])
    tiny["backbone.stem.conv.rbr_reparam.bias"] = torch.tensor([float("nan"), 1.0])
    tiny["heads.proj_conv"] = torch.arange(17.0)
    tiny["backbone.stem.conv.id_tensor"] = torch.ones(2)
    found = read_checkpoint(saved(tmp_path / "a.pt", tiny))
    assert found.state_dict[COUNTER].shape == ()
    assert found.state_dict[COUNTER].item() == 7
    assert found.state_dict["backbone.stem.conv.rbr_reparam.bias"].tolist() == [0.0, 0.0]


def test_shared_storages(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    flat = torch.cat([value.reshape(-1).float() for value in tiny.values()])
    state, at = {}, 0
    for key, value in tiny.items():
        state[key] = flat[at : at + value.numel()].view(value.shape)
        at += value.numel()
    assert_state(read_checkpoint(saved(tmp_path / "a.pt", state)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a", "b", "c"), ["a", "b", "c"]),
        ({0: "a", 1: "b", 2: "c"}, ["a", "b", "c"]),
        ({"0": "a", "1": "b", "2": "c"}, ["a", "b", "c"]),
        (["a\x1b[31m", " b\n", "\u202e"], ["a [31m", "b", "class_2"]),
        ([1, "", "x" * 1000], ["1", "class_1", "x" * 200]),
        (["a", "b"], None),
        ({0: "a", 2: "b", 3: "c"}, None),
        (["a", "b", ["c"]], None),
        ("abc", None),
        (5, None),
        (torch.zeros(3), None),
    ],
)
def test_class_names(tmp_path: Path, tiny: dict[str, torch.Tensor], names: Any, expected: list[str] | None):
    value = {"net": tiny, "processing_params": {"class_names": names}}
    found = read_checkpoint(saved(tmp_path / "a.pt", value))
    assert list(found.names.values()) == (expected or ["class_0", "class_1", "class_2"])
    assert any("class names do not fit" in note for note in found.notes) == (expected is None)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", True, [0.5], torch.tensor(0.5), 10**400])
def test_thresholds_that_make_no_sense(tmp_path: Path, tiny: dict[str, torch.Tensor], value: Any):
    found = read_checkpoint(saved(tmp_path / "a.pt", {"net": tiny, "processing_params": {"conf": value, "iou": 0}}))
    assert (found.settings.conf, found.settings.iou) == (0.5, 0.0)
    assert any(note.startswith("The stored conf makes no sense") for note in found.notes)


# Refusals ----------------------------------------------------------------------------------------------------------


def change(key: str, value: Any) -> Any:
    return lambda state: state.update({key: value})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change(VARIANCE, torch.tensor([1.0, float("nan")])), f"{VARIANCE} must have finite float32 values"),
        (change(WIDTH, torch.full((64, 1, 1, 1), float("inf"))), f"{WIDTH} must have finite"),
        (change(WIDTH, torch.full((64, 1, 1, 1), 1e300, dtype=torch.float64)), f"{WIDTH} must have finite"),
        (change(VARIANCE, torch.tensor([1.0, -1.0])), f"{VARIANCE} must not be negative, got -1"),
        (change(VARIANCE, torch.zeros(3)), rf"{VARIANCE} must have shape \(2,\), got \(3,\)"),
        (change(VARIANCE, torch.zeros(2, dtype=torch.int64)), f"{VARIANCE} must be of type float32.*got int64"),
        (change(VARIANCE, torch.zeros(2, dtype=torch.complex64)), "got complex64"),
        (change(VARIANCE, torch.zeros(1).expand(2)), f"{VARIANCE}: claims 2 elements where 1 are stored"),
        (change(VARIANCE, "text"), f"{VARIANCE} must be dense tensors, got str"),
        (change(VARIANCE, torch.zeros(2).to_sparse()), f"{VARIANCE} must be dense tensors, got Record"),
        (change(WIDTH, torch.zeros(72, 1, 1, 1)), r"must have 64 \(S\), 96 \(M\) or 128 \(L\) outputs.*\(72,"),
        (change(WIDTH, torch.zeros(1).expand(64, 1, 1, 1)), "four dimensions"),
        (change(WIDTH, torch.zeros(64)), r"must be a weight of four dimensions, got shape \(64,\)"),
        (change(CLASSES, torch.zeros(0, 2, 1, 1)), "at least one class"),
        (change(CLASSES, torch.zeros(1).expand(10**9, 2, 1, 1)), "must be a weight of four dimensions"),
        (lambda state: state.pop(VARIANCE), f"in training form, but 1 keys are missing: {VARIANCE}"),
        (lambda state: state.pop(WIDTH), f"has no {WIDTH}"),
        (change("neck.extra.weight", torch.zeros(2)), r"1 keys do not belong to it: neck\.extra\.weight"),
        (change("loss.weight", torch.zeros(2)), r"do not belong to it: loss\.weight"),
        (change("heads.head1.pose_pred.weight", torch.zeros(2)), "YOLO-NAS-Pose network, which is not supported"),
        (change("k" * 501, torch.zeros(2)), "at most 500 characters"),
        (change(7, torch.zeros(2)), "keys that are strings"),
    ],
)  # fmt: skip
def test_weights_that_are_refused(tmp_path: Path, tiny: dict[str, torch.Tensor], damage: Any, reason: str):
    damage(tiny)
    path = saved(tmp_path / "a.pth", {"net": tiny})
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"checkpoint {path}: ")


def test_many_wrong_keys_are_counted(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    state = {key: tiny[key] for key in (WIDTH, CLASSES)} | {f"neck.x{i}": torch.zeros(1) for i in range(40)}
    with pytest.raises(CheckpointError, match=r"40 keys do not belong to it: neck\.x0, .*neck\.x4 and 35 more$"):
        read_checkpoint(saved(tmp_path / "a.pt", state))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"model.0.conv.weight": torch.zeros(1)}, r"holds no YOLO-NAS network; its keys are model\.0\.conv\.weight"),
        ({"epoch": 3, "net": {}}, "holds no weights that this library knows; its entries are epoch, net"),
        ([1, 2], "holds no weights but a list"),
        (torch.zeros(3), "holds no weights but a StoredTensor"),
        (nn.ReLU(), r"holds no network but an object of class torch\.nn\.modules\.activation\.ReLU"),
        (nn.Linear(2, 2), "holds no YOLO-NAS network; its keys are weight, bias"),
    ],
)
def test_files_without_a_network(tmp_path: Path, value: Any, reason: str):
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(saved(tmp_path / "a.pt", value))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\n  <html><head>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (gzip.compress(b"x", mtime=0), "is compressed; unpack it first"),
        (b"\x08\x07\x12\x07pytorch", "neither a zip file of torch.save nor a safetensors file"),
        (b"PK\x03\x04", "the end of the zip file is missing"),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, reason: str):
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(write(tmp_path / "a.pt", data))


def test_format_of_old_torch(tmp_path: Path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"format from before version 1\.6"):
        read_checkpoint(tmp_path / "a.pt")


def test_malicious_file(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    marker = tmp_path / "marker"
    value = {"net": tiny, "processing_params": Payload(open, str(marker), "w")}
    value["processing_params"].__class__.__reduce__  # noqa: B018 - torch.save calls it, nothing else may
    with pytest.raises(CheckpointError, match=r"checkpoint .*a\.pth: asks for \w+\.open, which no checkpoint needs"):
        read_checkpoint(saved(tmp_path / "a.pth", value))
    assert not marker.exists()


def test_modules_within_themselves(tmp_path: Path):
    root = module_of(tiny_state())
    root.heads._modules["again"] = root
    with pytest.raises(CheckpointError, match="nests them too deeply"):
        read_checkpoint(saved(tmp_path / "a.pt", root))
    double: nn.Module = nn.Linear(1, 1)
    for _ in range(MAX_DEPTH - 4):
        parent = Tree()
        parent.add_module("a", double)
        parent.add_module("b", double)
        double = parent
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="modules and tensors"):
        read_checkpoint(saved(tmp_path / "a.pt", double))
    assert time.perf_counter() - start < 5


def test_every_truncation_and_random_damage(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    generator = random.Random(4)
    settings = {"class_names": NAMES, "image_processor": PROCESSING, "conf": 0.45, "iou": 0.6}
    path = saved(tmp_path / "a.pth", {"net": tiny, "processing_params": settings})
    own = tmp_path / "a.safetensors"
    save_file(tiny, own, metadata={"yolonas": json.dumps(OWN)})
    read_checkpoint(own)
    for file in (path, own):
        whole = file.read_bytes()
        for length in range(0, len(whole), 7):
            with pytest.raises(CheckpointError):
                read_checkpoint(write(file, whole[:length]))
        for _ in range(800):
            data = bytearray(whole)
            for _ in range(generator.choice((1, 1, 3))):
                data[generator.randrange(len(data))] = generator.randrange(256)
            with contextlib.suppress(CheckpointError):
                read_checkpoint(write(file, bytes(data)))


# Our own files -----------------------------------------------------------------------------------------------------

OWN = {
    "format_version": 1,
    "yolonas_version": "0.1.0",
    "variant": "s",
    "form": "training",
    "num_classes": 3,
    "names": NAMES,
    "preprocess": BGR.to_dict(),
    "conf": 0.3,
    "iou": 0.6,
    "top_k": 900,
    "max_det": 100,
    "multi_label": False,
    "agnostic": True,
}


def test_our_metadata(tmp_path: Path, tiny: dict[str, torch.Tensor]):
    save_file(tiny, tmp_path / "a.safetensors", metadata={"yolonas": json.dumps(OWN)})
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert_state(found)
    assert found.kind == "yolonas"
    assert found.names == dict(enumerate(NAMES))
    assert found.preprocess == BGR
    assert (found.settings.conf, found.settings.iou, found.settings.top_k, found.settings.max_det) == (
        0.3,
        0.6,
        900,
        100,
    )
    assert (found.settings.multi_label, found.settings.agnostic) == (False, True)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ("", "no valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "format_version must be a positive whole number, got None"),
        ("[" * 100_000, "nested too deeply"),
        ({**OWN, "format_version": 2}, "a newer yolonas wrote this file, please update"),
        ({**OWN, "format_version": True}, "positive whole number"),
        ({**OWN, "variant": "m"}, "variant must be that of the tensors, 's', got 'm'"),
        ({**OWN, "form": ["full"]}, "form must be that of the tensors, 'training', got a list"),
        ({**OWN, "num_classes": 4}, "num_classes must be that of the tensors, 3, got 4"),
        ({**OWN, "preprocess": {"size": [1, 2]}}, "multiples of 32"),
        ({**OWN, "preprocess": []}, "preprocess must be an object"),
        ({**OWN, "secret": 1}, "unknown entries secret"),
    ],
)
def test_metadata_that_makes_no_sense(tmp_path: Path, tiny: dict[str, torch.Tensor], metadata: Any, reason: str):
    metadata = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(tiny, tmp_path / "a.safetensors", metadata={"yolonas": metadata})
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.fixture(scope="module")
def small() -> YoloNAS:
    """YOLO-NAS-S with 3 classes and the golden weights. Not to be changed."""
    with torch.device("meta"):
        model = YoloNAS("s", 3)
    return fill_(model.to_empty(device="cpu")).eval()


def test_round_trip_of_the_whole_network(tmp_path: Path, small: YoloNAS):
    path = save_checkpoint(
        tmp_path / "cells.safetensors",
        small,
        names=dict(enumerate(NAMES)),
        preprocess=BGR,
        settings=DetectSettings(conf=0.3, iou=0.6, max_det=77),
        quantizer_scales={"heads.head1.cls_pred._input_quantizer._amax": torch.tensor(3.0)},
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["cells.safetensors"]
    found = read_checkpoint(path)
    assert found.kind == "yolonas"
    assert list(found.state_dict) == list(small.state_dict())
    assert found.names == dict(enumerate(NAMES))
    assert (found.preprocess, found.settings.conf, found.settings.iou, found.settings.max_det) == (BGR, 0.3, 0.6, 77)
    assert found.quantizer_scales["heads.head1.cls_pred._input_quantizer._amax"].item() == 3.0
    model = load_model(found)
    assert not model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in small.state_dict().items())
    x = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(x), small(x), strict=True))
        before = small(x)
        for form in ("partial", "full", "folded"):
            fused = fuse_(model, form)
            save_checkpoint(
                path, fused, names=dict(enumerate(NAMES)), preprocess=BGR, settings=DetectSettings(conf=0.3, iou=0.6)
            )
            again = read_checkpoint(path)
            assert again.form == form
            model = load_model(again)
            for a, b in zip(model(x), before, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_real_networks_of_the_wrong_shape(tmp_path: Path, small: YoloNAS):
    state = small.state_dict()
    state["neck.neck1.conv.conv.weight"] = state["neck.neck1.conv.conv.weight"][:100].clone()
    with pytest.raises(
        CheckpointError, match=r"neck1\.conv\.conv\.weight must have shape \(192, 768, 1, 1\), got \(100"
    ):
        read_checkpoint(saved(tmp_path / "a.pt", state))
    state = {key: value for key, value in small.state_dict().items() if ".neck1." not in key}
    with pytest.raises(
        CheckpointError, match=r"looks like YOLO-NAS S in training form, but \d+ keys are missing: neck"
    ):
        read_checkpoint(saved(tmp_path / "a.pt", state))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": {0: "a"}}, r"names must have the keys 0\.\.2"),
        ({"settings": DetectSettings(conf=25)}, "thresholds must make sense"),
        ({"settings": DetectSettings(iou=float("nan"))}, "thresholds must make sense"),
        ({"settings": DetectSettings(max_det=0)}, "thresholds must make sense"),
        ({"path": "a.pt"}, r"path must end in \.safetensors, got 'a\.pt'"),
    ],
)
def test_save_checks_its_arguments(tmp_path: Path, small: YoloNAS, change: dict[str, Any], reason: str):
    usual = {"names": dict(enumerate(NAMES)), "preprocess": BGR, "settings": DetectSettings()}
    arguments: dict[str, Any] = {**usual, **change}
    path = tmp_path / arguments.pop("path", "a.safetensors")
    with pytest.raises(ValueError, match=reason):
        save_checkpoint(path, small, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_nan_and_leaves_the_old_file(tmp_path: Path, small: YoloNAS):
    path = write(tmp_path / "a.safetensors", b"old")
    broken = YoloNAS("s", 3)
    with torch.no_grad():
        broken.heads.head2.cls_pred.bias[1] = float("nan")
    with pytest.raises(ValueError, match=r"got NaN or infinity in heads\.head2\.cls_pred\.bias"):
        save_checkpoint(
            path, broken, names=dict(enumerate(NAMES)), preprocess=BGR, settings=DetectSettings(conf=0.3, iou=0.6)
        )
    assert path.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_checkpoint(
            tmp_path / "no" / "a.safetensors",
            small,
            names=dict(enumerate(NAMES)),
            preprocess=BGR,
            settings=DetectSettings(conf=0.3, iou=0.6),
        )


def test_save_fails_as_files_do(tmp_path: Path, small: YoloNAS, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any):
        raise OSError(errno.EROFS, "Read-only file system")

    arguments: dict[str, Any] = {"names": dict(enumerate(NAMES)), "preprocess": BGR, "settings": DetectSettings()}
    path = save_checkpoint(tmp_path / "a.safetensors", small, **arguments)
    (other := tmp_path / "other").write_bytes(b"")
    assert path.stat().st_mode == other.stat().st_mode
    before = path.read_bytes()
    for _ in range(4):
        assert save_checkpoint(tmp_path / "again.safetensors", small, **arguments).read_bytes() == before
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match="Read-only file system"):
        save_checkpoint(path, small, **arguments)
    monkeypatch.undo()
    assert path.read_bytes() == before


# Real samples ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for name in ("yolo_nas_s_pickled.pt", "yolo_nas_s_ema.pth"):
        with gzip.open(shared / "reference" / f"{name}.gz") as packed, (folder / name).open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "tag"), [("yolo_nas_s_pickled.pt", ""), ("yolo_nas_s_ema.pth", "ema:")])
def test_samples_with_a_known_pattern(shared: Path, samples: Path, name: str, tag: str):
    start = time.thread_time()
    found = read_checkpoint(samples / name)
    seconds = time.thread_time() - start  # of the processor, so that a busy machine does not matter
    manifest = json.loads((shared / "reference" / "manifest_s.json").read_text())["training"]
    assert list(found.state_dict) == [key for key, _, _ in manifest]
    for key, shape, dtype in manifest:
        expected = torch.from_numpy(pattern(tag, key, tuple(shape)))
        assert str(found.state_dict[key].dtype) == f"torch.{dtype}"
        assert torch.equal(found.state_dict[key], expected), key
    assert (found.variant, found.num_classes, found.form) == ("s", 80, "training")
    assert list(found.names.values()) == list(COCO_NAMES)
    assert found.preprocess == Preprocess()
    assert (found.settings.conf, found.settings.iou) == ((0.5, 0.65) if tag else (0.25, 0.7))
    assert seconds < 2  # usually 0.2 to 0.3
    model = load_model(found)
    assert list(model.state_dict()) == list(found.state_dict)


@pytest.mark.shared
def test_live_processing_params(shared: Path):
    path = shared / "reference" / "live_processing_params.pth"
    with TensorFile(path) as file:
        contents = find_contents(read_torch_zip(file))
        tensors = network_tensors(contents)
        assert list(tensors) == ["backbone.stem.conv.branch_1x1.bias", "heads.head1.reg_pred.bias"]
        for key, stored in tensors.items():
            assert np.array_equal(load_tensor(file, stored).numpy(), pattern("", key, stored.shape))
    assert read_processing(contents.processing) == (Preprocess(), [])
    assert contents.names == list(COCO_NAMES)
    assert (contents.conf, contents.iou) == (0.25, 0.7)
    with pytest.raises(CheckpointError, match=r"has no heads\.head1\.stem"):
        read_checkpoint(path)


@pytest.mark.shared
def test_fine_tuned_checkpoint(shared: Path):
    found = read_checkpoint(shared / "weights" / "bccd_s.pth")
    assert found.kind == "super-gradients checkpoint"
    assert (found.variant, found.num_classes, found.form) == ("s", 3, "training")
    assert found.names == dict(enumerate(NAMES))
    assert found.preprocess == Preprocess(size=(288, 288), fit=(284, 284))
    assert (found.settings.conf, found.settings.iou) == (0.25, 0.7)
    assert found.notes == ()
    with torch.no_grad():
        boxes, scores = load_model(found)(torch.zeros(1, 3, 32, 32))
    assert boxes.isfinite().all()
    assert scores.shape == (1, 21, 3)


@pytest.mark.shared
def test_damaged_samples(shared: Path, tmp_path: Path):
    generator = random.Random(5)
    whole = (shared / "weights" / "bccd_s.pth").read_bytes()
    path = tmp_path / "a.pth"
    for length in (100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(CheckpointError):
            read_checkpoint(write(path, whole[:length]))
    for _ in range(2):
        data = bytearray(whole)
        data[generator.randrange(200_000, len(data) - 200_000)] ^= 0x40
        with contextlib.suppress(CheckpointError):  # padding between tensors may change unnoticed
            read_checkpoint(write(path, bytes(data)))
    live = (shared / "reference" / "live_processing_params.pth").read_bytes()
    for length in range(0, len(live), 31):
        with pytest.raises(CheckpointError):
            read_checkpoint(write(path, live[:length]))
