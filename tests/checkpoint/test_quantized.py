"""Quantised networks in our own files: what is written, that it comes back, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_recipe import fill_, pattern
from hostile_pickles import write
from quantized_networks import picture, quantize_
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from yolonas import NAS
from yolonas.checkpoint import checkpoint as checkpoint_module
from yolonas.checkpoint import load_model, quantized, read_checkpoint, save_checkpoint
from yolonas.checkpoint.quantized import Step
from yolonas.config import VARIANTS, DetectSettings
from yolonas.engine import TorchEngine
from yolonas.engines import Engines
from yolonas.errors import CheckpointError
from yolonas.info import model_info
from yolonas.lowering import lower
from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS, fuse_
from yolonas.preprocess import Preprocess
from yolonas.quantized_graph import quantized_graph

STEM, UPSAMPLE = "backbone.stem.conv.rbr_reparam", "neck.neck2.upsample"
FLOAT_LAYERS = ("heads.head1.cls_pred", "neck.neck3.conv.conv")


def folded(variant: str = "s", num_classes: int = 3) -> YoloNAS:
    return fuse_(fill_(YoloNAS(variant, num_classes)).eval())


def save(path: Path, model: YoloNAS) -> Path:
    names = {index: f"class_{index}" for index in range(model.num_classes)}
    return save_checkpoint(path, model, names=names, preprocess=Preprocess(), settings=DetectSettings())


@pytest.fixture(scope="module")
def network() -> YoloNAS:
    """A quantised YOLO-NAS-S with two layers in float. Not to be changed."""
    return quantize_(folded(), picture(1, 32, 32), lambda name: name in ("heads.head1.cls_pred", "neck.neck3.conv"))


@pytest.fixture(scope="module")
def file(network: YoloNAS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("quantized") / "s.safetensors", network)


def test_what_is_in_the_file(network: YoloNAS, file: Path) -> None:
    tensors, state = load_file(file), network.state_dict()
    assert tensors.keys() == state.keys()
    for key, tensor in tensors.items():
        scale = state.get(key.removesuffix(".weight") + ".weight_scale")
        if not key.endswith(".weight") or scale is None:
            assert torch.equal(tensor, state[key])
            continue
        assert tensor.dtype == torch.int8
        along = (1, -1, 1, 1) if "upsample" in key else (-1, 1, 1, 1)
        expected = torch.round(state[key] / scale.reshape(along)).clamp(-127, 127)
        assert torch.equal(tensor, expected.to(torch.int8)), key
        assert tensor.abs().max() == 127
    assert all(tensors[f"{name}.weight"].dtype == torch.float32 for name in FLOAT_LAYERS)
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["yolonas"])["activation_scales"] == network.activation_scales


def test_what_was_saved_comes_back(network: YoloNAS, file: Path, tmp_path: Path) -> None:
    found = read_checkpoint(file)
    assert (found.kind, found.form, found.notes) == ("yolonas, INT8", "folded", ())
    assert found.activation_scales == network.activation_scales
    again = load_model(found)
    assert list(again.state_dict()) == list(found.state_dict) == list(network.state_dict())
    assert all(tensor.dtype == torch.float32 for tensor in again.state_dict().values())
    one, other = (quantized_graph(lower(model), model.activation_scales) for model in (network, again))
    assert one.buffers == other.buffers
    for step, expected in zip(other.steps, one.steps, strict=True):
        for key in ("weight", "weight_scale", "bias"):
            if key in expected and expected[key] is not None:
                assert step[key].dtype == expected[key].dtype
                assert np.array_equal(step[key], expected[key]), (step["name"], key)
    twice, once = load_file(save(tmp_path / "again.safetensors", again)), load_file(file)
    assert all(torch.equal(once[key], twice[key]) for key in once)
    assert [path.name for path in tmp_path.iterdir()] == ["again.safetensors"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_quarter_of_the_size(variant: str, tmp_path: Path) -> None:
    model = folded(variant, num_classes=80)
    whole = save(tmp_path / "float.safetensors", model).stat().st_size
    assert save(tmp_path / "int8.safetensors", quantize_(model, picture(1, 32, 32))).stat().st_size <= 0.27 * whole


def test_a_network_whose_activations_have_no_scales_is_saved_in_float(tmp_path: Path) -> None:
    model = folded()
    before = load_file(save(tmp_path / "a.safetensors", model))
    quantize_(model, picture(1, 32, 32)).activation_scales = {}
    after = load_file(save(tmp_path / "b.safetensors", model))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_module_stays_a_module(network: YoloNAS, capsys: pytest.CaptureFixture[str]) -> None:
    model = copy.deepcopy(network)
    assert fuse_(model) is model
    assert model.activation_scales == network.activation_scales
    plain = folded()
    assert model_info(model, imgsz=64)[:3] == model_info(plain, verbose=False, imgsz=64)[:3]
    assert capsys.readouterr().out.endswith(" GFLOPs, INT8 in 98 of 100 layers\n")
    assert repr(NAS(model)) == "NAS(yolo_nas_s, 3 classes, 640x640, folded, INT8 in 98 of 100 layers)"
    digests = {NAS(one)._weights_digest() for one in (plain, model)}
    model.activation_scales["input"] *= 2
    assert len({NAS(model)._weights_digest(), *digests}) == 3


def test_engines_that_do_not_run_it(network: YoloNAS) -> None:
    for half in (False, True):
        with pytest.raises(ValueError, match="a quantised network runs in the native engine"):
            TorchEngine(network, torch.device("cpu"), half=half)
    with pytest.raises(ValueError, match=r"runs in the native engine, on a CPU or a CUDA device.* got engine='torch'"):
        Engines().choose(network, "cpu", half=False, name="torch")
    with pytest.raises(ValueError, match=r"must be float32, got torch\.float16; load it again"):
        NativeEngine.of_module(copy.deepcopy(network).half())
    assert Engines().choose(copy.deepcopy(network), None, half=False, name=None).name == "native"


# What save refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.half(), r"must be float32, got torch\.float16 in backbone\.stem.*quantise it again"),
        (lambda model: model.activation_scales.pop("input"), "all that the int8 layers need, missing are input"),
        (lambda model: model.activation_scales.update(x=1.0), "must be named like steps of the network, got x"),
        (lambda model: model.activation_scales.update(input=0.0), "be positive float32 numbers, got 0.0 for"),
        (lambda model: model.get_submodule(STEM).weight_scale.zero_(), "rbr_reparam.weight_scale must have a positive"),
        (lambda model: model.get_submodule(STEM).register_buffer("weight_scale", torch.ones(1)), "for each output"),
        (lambda model: model.get_submodule(STEM).weight_scale.fill_(torch.nan), "got NaN or infinity in backbone.stem"),
    ],
)
def test_what_save_refuses(network: YoloNAS, tmp_path: Path, change: Callable[[YoloNAS], Any], reason: str) -> None:
    model = copy.deepcopy(network)
    change(model)
    with pytest.raises(ValueError, match=f"save: .*{reason}"):
        save(tmp_path / "a.safetensors", model)
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_other_forms(tmp_path: Path) -> None:
    model = YoloNAS("s", 3)
    model.activation_scales = {"input": 1.0}
    with pytest.raises(ValueError, match="save: a quantised network must be in folded form, got 'training'"):
        save(tmp_path / "a.safetensors", model)


# What read refuses -------------------------------------------------------------------------------------------------

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors, dict[str, Any]], Any]


def tensor(key: str, value: torch.Tensor | None) -> Change:
    return lambda tensors, _: tensors.pop(key) if value is None else tensors.update({key: value})


def filled(key: str, number: float) -> Change:
    return lambda tensors, _: tensors[key].view(-1)[:1].fill_(number)


def scales(**changed: Any) -> Change:
    return lambda _, settings: settings["activation_scales"].update(changed)


JOINED = "backbone.stage1.blocks.bottlenecks.0.cv2"  # writes where conv1 has written
DAMAGE: dict[str, tuple[Change, str]] = {
    "no scale": (tensor(f"{STEM}.weight_scale", None), "has type int8 and must have a .*weight_scale"),
    "float weights": (tensor(f"{STEM}.weight", torch.zeros(48, 3, 3, 3)), "must belong to int8 weights, got.*float32"),
    "stray scale": (tensor("neck.neck1.weight_scale", torch.ones(2)), r"1 keys do not belong to it: neck\.neck1"),
    "-128": (filled(f"{STEM}.weight", -128), rf"{STEM}\.weight must have values in -127\.\.127, got -128"),
    "-128 of a transposed one": (filled(f"{UPSAMPLE}.weight", -128), r"upsample\.weight must have values in"),
    "scale 0": (filled(f"{STEM}.weight_scale", 0), r"rbr_reparam\.weight_scale must be positive, and .*got 0"),
    "scale below 0": (filled(f"{STEM}.weight_scale", -1), "must be positive, and finite times 127, got -1"),
    "subnormal scale": (filled(f"{STEM}.weight_scale", 1e-40), "must be positive, and finite times 127, got 9.9"),
    "nan": (filled(f"{STEM}.weight_scale", float("nan")), "weight_scale must have finite float32 values"),
    "infinity": (filled(f"{STEM}.weight_scale", float("inf")), "weight_scale must have finite float32 values"),
    "overflow": (tensor(f"{STEM}.weight_scale", torch.full((48,), 3e36)), r"127, got 3e\+36"),
    "scale shape": (tensor(f"{STEM}.weight_scale", torch.ones(1)), r"must have shape \(48,\), got \(1,\)"),
    "scale type": (tensor(f"{STEM}.weight_scale", torch.ones(48).half()), "must be of type float32, got float16"),
    "weight shape": (tensor(f"{STEM}.weight", torch.zeros(48, 3, 1, 1, dtype=torch.int8)), "must have shape"),
    "int16": (tensor(f"{STEM}.weight", torch.zeros(48, 3, 3, 3, dtype=torch.int16)), "int8 weights.*int16"),
    "int8 bias": (tensor(f"{STEM}.bias", torch.zeros(48, dtype=torch.int8)), "bias must be of type float32.*got int8"),
    "no bias": (tensor(f"{STEM}.bias", None), rf"1 keys are missing: {STEM}\.bias"),
    "no table": (lambda _, settings: settings.update(activation_scales=[1]), "must be an object, got a list"),
    "null": (lambda _, settings: settings.update(activation_scales=None), "must be an object, got None"),
    "empty": (lambda _, settings: settings.update(activation_scales={}), r"missing are input, backbone\.stem.*more"),
    "none": (lambda _, settings: settings.pop("activation_scales"), "do not belong to it: .*weight_scale"),
    "unknown name": (scales(other=1.0), "metadata: activation_scales must be named like steps.*got other"),
    "text": (scales(input="1"), "be positive float32 numbers, got '1' for 'input'"),
    "true": (scales(input=True), "be positive float32 numbers, got True"),
    "nothing": (scales(input=None), "be positive float32 numbers, got None"),
    "zero": (scales(input=0), "be positive float32 numbers, got 0 "),
    "negative": (scales(input=-0.5), "be positive float32 numbers, got -0.5"),
    "underflow": (scales(input=1e-60), "be positive float32 numbers, got 1e-60"),
    "too large": (scales(input=1e39), r"be positive float32 numbers, got 1e\+39"),
    "long": (scales(input=10**90), "be positive float32 numbers, got 1000"),
    "huge": (scales(input=float("1e308") * 10), "Infinity is no number of JSON"),
    "disagreement": (scales(**{JOINED: 0.5}), r"must be the same, as both write the same buffer"),
    "missing": (lambda _, settings: settings["activation_scales"].pop(JOINED), f"missing are {JOINED}$"),
    "form": (lambda _, settings: settings.update(form="full"), "form must be that of the tensors, 'folded'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_what_read_refuses(file: Path, tmp_path: Path, case: str) -> None:
    change, reason = DAMAGE[case]
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        settings = json.loads(opened.metadata()["yolonas"])
    change(tensors, settings)
    save_file(tensors, tmp_path / "a.safetensors", metadata={"yolonas": json.dumps(settings)})
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(tmp_path / "a.safetensors")
    assert str(caught.value).startswith(f"checkpoint {tmp_path / 'a.safetensors'}: ")


def test_activation_scales_without_int8_weights(tmp_path: Path) -> None:
    model = folded()
    path = save(tmp_path / "a.safetensors", model)
    with safe_open(path, "pt") as opened:
        settings = json.loads(opened.metadata()["yolonas"])
    for form, text in (
        ("folded", "must belong to a network with int8 weights"),
        ("training", "must be in folded form"),
    ):
        tensors = model.state_dict() if form == "folded" else fill_(YoloNAS("s", 3)).state_dict()
        stated = {**settings, "form": form, "activation_scales": {"input": 1.0}}
        save_file(tensors, path, metadata={"yolonas": json.dumps(stated)})
        with pytest.raises(CheckpointError, match=text):
            read_checkpoint(path)


def test_int8_in_other_peoples_files(file: Path, tmp_path: Path) -> None:
    save_file(load_file(file), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="keys do not belong to it"):
        read_checkpoint(tmp_path / "a.safetensors")
    tensors = {key: value for key, value in load_file(file).items() if not key.endswith("weight_scale")}
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="must be of type float32, float16, bfloat16, float64, got int8"):
        read_checkpoint(tmp_path / "a.pt")


# A network of a few numbers, so that a thousand variations of a file are quick.
TINY = {
    "neck.neck1.upsample.weight": (2, 3, 2, 2),
    "neck.neck1.upsample.bias": (3,),
    "heads.head1.stem.seq.conv.weight": (64, 1, 1, 1),
    "heads.head1.stem.seq.conv.bias": (64,),
    "heads.head1.cls_pred.weight": (3, 2, 1, 1),
    "heads.head1.cls_pred.bias": (3,),
}


def test_every_truncation_and_random_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (Step("up", ("neck.neck1.upsample",), (0,), 1), Step("stem", ("heads.head1.stem.seq.conv",), (1,), 2))
    monkeypatch.setattr(checkpoint_module, "_shapes", lambda *_: TINY)
    monkeypatch.setattr(quantized, "lowered_steps", lambda _: steps)
    tensors = {key: torch.from_numpy(pattern("", key, shape)) for key, shape in TINY.items()}
    for key in list(TINY)[:4:2]:
        outputs = TINY[key.replace("weight", "bias")]
        tensors[key] = torch.arange(np.prod(TINY[key])).reshape(TINY[key]).to(torch.int8)
        tensors[key.replace("weight", "weight_scale")] = torch.full(outputs, 0.1)
    settings = {"format_version": 1, "form": "folded", "activation_scales": {"input": 0.5, "up": 0.25, "stem": 1e-3}}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata={"yolonas": json.dumps(settings)})
    found = read_checkpoint(path)
    assert torch.equal(found.state_dict["neck.neck1.upsample.weight"], torch.arange(24).reshape(2, 3, 2, 2) * 0.1)
    assert list(found.activation_scales) == ["input", "up", "stem"]
    whole, generator, accepted = path.read_bytes(), random.Random(8), 0
    for length in range(0, len(whole), 3):
        with pytest.raises(CheckpointError):
            read_checkpoint(write(path, whole[:length]))
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 1, 3))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        with contextlib.suppress(CheckpointError):
            found = read_checkpoint(write(path, bytes(data)))
            accepted += 1
            assert all(tensor.isfinite().all() for tensor in found.state_dict.values())
            assert all(0 < scale < 4e38 for scale in found.activation_scales.values())
    assert 100 < accepted < 900
