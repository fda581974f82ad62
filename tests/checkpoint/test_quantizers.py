"""Checkpoints of quantisation-aware training: the loaded network has the integers and the ranges that were trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_recipe import fill_
from quantized_networks import picture
from torch import Tensor, nn

from yolonas import NAS
from yolonas.checkpoint import load_model, read_checkpoint
from yolonas.errors import CheckpointError
from yolonas.lowering import lower
from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS, fuse_
from yolonas.nn.blocks import Bottleneck
from yolonas.quantization.reference import run_fake_quantized
from yolonas.quantized_graph import quantized_graph

Ranges = dict[str, Tensor]
CSP = "backbone.stage2.blocks"
INPUT, WEIGHT = "_input_quantizer._amax", "_weight_quantizer._amax"


def convolutions(model: YoloNAS) -> dict[str, nn.Module]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }


@pytest.fixture(scope="module")
def trained() -> tuple[YoloNAS, Ranges]:
    """YOLO-NAS-S in partial form, as such a training has it, with made-up ranges. Not to be changed.

    Ranges of weights are of the rows that the training sees, those of axis 0; some of them clip.
    """
    model = fuse_(fill_(YoloNAS("s", 3)).eval(), "partial")
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::5] *= -1
    ranges = {}
    for name, module in convolutions(model).items():
        rows = module.weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
        ranges[f"{name}.{WEIGHT}"] = rows * (0.7 + 0.4 * torch.rand(rows.shape, generator=random))
        ranges[f"{name}.{INPUT}"] = 1 + 5 * torch.rand((), generator=random)
    for name, module in model.named_modules():
        if isinstance(module, Bottleneck):
            ranges[f"{name}.shortcut._amax"] = 1 + 5 * torch.rand((), generator=random)
    assert len(ranges) == 220
    return model, ranges


def save(path: Path, model: YoloNAS, ranges: Ranges) -> Path:
    torch.save({"net": {**model.state_dict(), **ranges}}, path)
    return path


@pytest.fixture(scope="module")
def file(trained: tuple[YoloNAS, Ranges], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("trained") / "qat.pth", *trained)


def fake_quantize_(model: YoloNAS, ranges: Ranges) -> YoloNAS:
    """Rounds the weights as the training does, transposed convolutions per output."""
    with torch.no_grad():
        for name, module in convolutions(model).items():
            amax = ranges[f"{name}.{WEIGHT}"].double()
            if module.transposed:
                amax = module.weight.double().abs().amax(dim=(0, 2, 3), keepdim=True)
            integers = torch.round(module.weight.double() * 127 / amax).clamp(-127, 127)
            module.weight.copy_(integers * amax / 127)
    return model


def test_the_weights_are_those_of_the_training(trained: tuple[YoloNAS, Ranges], file: Path) -> None:
    found = read_checkpoint(file)
    assert (found.kind, found.form) == ("super-gradients checkpoint", "partial")
    assert found.notes[0] == (
        "The ranges of quantisation-aware training are used: 100 of 100 layers run in INT8, and the network is loaded "
        "in folded form, which cannot be trained on. The ranges of transposed convolutions are per input; those per "
        "output are taken from their weights."
    )
    model, again = load_model(found), load_model(found)
    assert model.form == "folded"
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    expected = fake_quantize_(copy.deepcopy(trained[0]), trained[1])
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.forward_heads(x), expected.forward_heads(x), rtol=1e-3, atol=1e-4)
    fuse_(expected)
    for (name, layer), other in zip(convolutions(model).items(), convolutions(expected).values(), strict=True):
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-6, atol=0, msg=name)
        assert torch.equal(layer.bias, other.bias)


def test_it_computes_what_the_training_saw(trained: tuple[YoloNAS, Ranges], tmp_path: Path) -> None:
    """With one range for all activations, where the training rounds what is read and the engine what is written."""
    model = copy.deepcopy(trained[0])
    ranges = {key: value if key.endswith(WEIGHT) else torch.tensor(6.0) for key, value in trained[1].items()}
    loaded = load_model(read_checkpoint(save(tmp_path / "a.pth", model, ranges)))
    fake_quantize_(model, ranges).double()

    def rounded(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return torch.round(inputs[0] * 127 / 6).clamp(-128, 127) * 6 / 127

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | Bottleneck):
            module.register_forward_pre_hook(rounded)
    deepest: list[Tensor] = []
    model.backbone.register_forward_hook(lambda _, __, maps: deepest.append(maps[-1]))
    x = picture(1, 64, 96)
    with torch.no_grad():
        cls, reg = model.forward_heads(torch.from_numpy(x).double().permute(0, 3, 1, 2))
    found = run_fake_quantized(quantized_graph(lower(loaded), loaded.activation_scales), x)

    def differences(name: str, expected: Tensor) -> np.ndarray:
        return np.abs(found[name] - expected.permute(0, 2, 3, 1).numpy())

    deepest = [rounded(model, tuple(deepest))]
    assert (differences("backbone.context_module.cv2", deepest[0]) > 1e-3).mean() < 0.01
    for level in range(3):
        # A number that lies between two steps tips over now and then, and shifts all that follow.
        assert differences(f"heads.head{level + 1}.cls_pred", cls[level]).mean() < 0.1 * cls[level].std()
        assert differences(f"heads.head{level + 1}.reg_pred", reg[level]).mean() < 0.1 * reg[level].std()


def test_scales_by_hand(trained: tuple[YoloNAS, Ranges], file: Path) -> None:
    model, ranges = load_model(read_checkpoint(file)), trained[1]

    def widest(*keys: str) -> float:
        return float(np.float32(max(ranges[key].item() for key in keys) / 127))

    scales = model.activation_scales
    assert scales["input"] == widest(f"backbone.stem.conv.rbr_reparam.{INPUT}")
    assert scales["backbone.stem.conv"] == widest(f"backbone.stage1.downsample.rbr_reparam.{INPUT}")
    # Both read what the stage's downsampling writes.
    assert scales["backbone.stage2.downsample"] == widest(f"{CSP}.conv1.conv.{INPUT}", f"{CSP}.conv2.conv.{INPUT}")
    # The bottlenecks work in place: all of them and the join read one buffer.
    inside = [f"{CSP}.bottlenecks.{i}" for i in range(3)]
    join = widest(
        f"{CSP}.conv3.conv.{INPUT}",
        *(f"{name}.{key}" for name in inside for key in (f"cv1.rbr_reparam.{INPUT}", "shortcut._amax")),
    )
    assert scales[f"{CSP}.conv1+conv2"] == join
    assert all(scales[f"{name}.cv2"] == join for name in inside)
    assert scales[f"{inside[0]}.cv1"] == widest(f"{inside[0]}.cv2.rbr_reparam.{INPUT}")
    assert scales["backbone.context_module.m.0"] == widest(f"backbone.context_module.cv2.conv.{INPUT}")
    assert "heads.head1.cls_pred" not in scales

    name = f"{CSP}.conv1.conv"
    norm = trained[0].get_submodule(f"{CSP}.conv1.bn")
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    expected = ranges[f"{name}.{WEIGHT}"].double().flatten() / 127 * factor.abs()
    assert (factor < 0).any()
    assert torch.equal(model.get_submodule(name).weight_scale, expected.float())
    plain = "heads.head2.reg_pred"
    expected = ranges[f"{plain}.{WEIGHT}"].double().flatten() / 127
    assert torch.equal(model.get_submodule(plain).weight_scale, expected.float())


def test_it_runs_on_integers_and_is_saved_as_such(file: Path, tmp_path: Path) -> None:
    detector = NAS(file)
    assert repr(detector) == "NAS(yolo_nas_s, 3 classes, 640x640, folded, INT8 in 100 of 100 layers)"
    graph = quantized_graph(lower(detector.model), detector.model.activation_scales)
    assert all(step["weight"].dtype == np.int8 for step in graph.steps if "weight" in step)
    results = detector.predict(np.full((64, 64, 3), 90, np.uint8), imgsz=64, conf=0.1, verbose=False)
    assert len(results[0])
    plan = NativeEngine.of_module(detector.model).plan((64, 64))
    assert {step["dtype"] for step in plan if step["parameters"]} == {"int8"}
    path = detector.save(tmp_path / "a.safetensors")
    assert path.stat().st_size < 0.27 * file.stat().st_size
    again = NAS(path).model
    assert again.activation_scales == detector.model.activation_scales
    state = detector.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


def without(*parts: str) -> Callable[[str], bool]:
    return lambda key: any(part in key for part in parts)


@pytest.mark.parametrize(
    ("left_out", "floats"),
    [
        (without("backbone.stem"), {"backbone.stem.conv.rbr_reparam"}),
        (without(f"{CSP}.conv2.conv._weight"), {f"{CSP}.conv1.conv", f"{CSP}.conv2.conv"}),
        (without(f"heads.head3.cls_pred.{INPUT}"), {"heads.head3.cls_pred"}),
        (without("shortcut"), set()),  # others read the same
        # Nothing says how wide the residual of the first one is.
        (
            without(
                f"{CSP}.conv3", *(f"{CSP}.bottlenecks.{i}.{part}" for i in range(3) for part in ("cv1", "shortcut"))
            ),
            {f"{CSP}.conv3.conv", *(f"{CSP}.bottlenecks.{i}.cv{j}.rbr_reparam" for i in range(3) for j in (1, 2))},
        ),
        (without(".upsample."), {"neck.neck1.upsample", "neck.neck2.upsample"}),
    ],
)
def test_layers_without_ranges_stay_in_float(
    trained: tuple[YoloNAS, Ranges], tmp_path: Path, left_out: Callable[[str], bool], floats: set[str]
) -> None:
    model, ranges = trained
    ranges = {key: value for key, value in ranges.items() if not left_out(key)}
    found = read_checkpoint(save(tmp_path / "a.pth", model, ranges))
    assert f"{100 - len(floats)} of 100 layers run in INT8" in found.notes[0]
    assert ("transposed" in found.notes[0]) == ("neck.neck1.upsample" not in floats)
    loaded = load_model(found)
    plain = fuse_(copy.deepcopy(model))
    for name, layer in convolutions(loaded).items():
        assert hasattr(layer, "weight_scale") == (name not in floats), name
        assert torch.equal(layer.weight, plain.get_submodule(name).weight) == (name in floats), name
    steps = quantized_graph(lower(loaded), loaded.activation_scales).steps  # finds the scales that it needs
    assert any(step["op"] == "quantize" for step in steps)
    NAS(loaded).save(tmp_path / "a.safetensors")
    assert load_model(read_checkpoint(tmp_path / "a.safetensors")).activation_scales == loaded.activation_scales


def test_ranges_of_nothing_and_for_all_outputs(trained: tuple[YoloNAS, Ranges], tmp_path: Path) -> None:
    model, ranges = trained
    name, other = f"{CSP}.conv1.conv", "heads.head1.stem.seq.conv"
    rows = ranges[f"{name}.{WEIGHT}"].clone()
    rows[3] = 0
    changed = {
        f"{name}.{WEIGHT}": rows,
        f"{name}.{INPUT}": torch.tensor(0.0),
        f"{CSP}.conv2.conv.{INPUT}": torch.zeros(1),
    }
    changed[f"{other}.{WEIGHT}"] = torch.tensor(0.5)
    loaded = load_model(read_checkpoint(save(tmp_path / "a.pth", model, {**ranges, **changed})))
    layer = loaded.get_submodule(name)
    assert not layer.weight[3].any()
    assert layer.weight_scale[3] == 1
    assert loaded.activation_scales["backbone.stage2.downsample"] == 1
    scale = loaded.get_submodule(other).weight_scale
    norm = trained[0].get_submodule("heads.head1.stem.seq.bn")
    torch.testing.assert_close(scale, 0.5 / 127 * (norm.weight / (norm.running_var + norm.eps).sqrt()).abs())
    assert quantized_graph(lower(loaded), loaded.activation_scales).steps


@pytest.mark.parametrize("form", ["training", "full", "folded"])
def test_ranges_beside_other_forms_are_not_used(trained: tuple[YoloNAS, Ranges], tmp_path: Path, form: str) -> None:
    model = YoloNAS("s", 3, form)
    found = read_checkpoint(save(tmp_path / "a.pth", model, trained[1]))
    assert found.notes[0] == (
        f"The ranges of quantisation-aware training are not used: they fit a network in partial form, not in {form}."
    )
    assert (load_model(found).form, load_model(found).activation_scales) == (form, {})


def test_ranges_that_fit_no_layer(trained: tuple[YoloNAS, Ranges], tmp_path: Path) -> None:
    ranges = {"backbone.other._input_quantizer._amax": torch.tensor(1.0)}
    found = read_checkpoint(save(tmp_path / "a.pth", trained[0], ranges))
    assert found.notes[0] == "The ranges of quantisation-aware training are not used: no layer has all of its own."
    assert load_model(found).form == "partial"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (f"{CSP}.conv1.conv.{WEIGHT}", torch.ones(7, 1, 1, 1), r"must have 64 numbers, got shape \(7, 1, 1, 1\)"),
        (f"{CSP}.conv1.conv.{WEIGHT}", torch.ones(0), "must have 64 numbers"),
        (f"{CSP}.conv1.conv.{INPUT}", torch.ones(64), r"must have 1 numbers, got shape \(64,\)"),
        (f"{CSP}.bottlenecks.0.shortcut._amax", torch.ones(2), "must have 1 numbers"),
        (f"{CSP}.conv1.conv.{INPUT}", torch.tensor(float("inf")), "must have finite values from 0"),
        (f"{CSP}.conv1.conv.{INPUT}", torch.tensor(-1.0), "must have finite values from 0"),
        (f"{CSP}.conv1.conv.{INPUT}", torch.tensor(1), "must be of type float32"),
    ],
)
def test_ranges_that_are_refused(
    trained: tuple[YoloNAS, Ranges], tmp_path: Path, key: str, value: Any, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(save(tmp_path / "a.pth", trained[0], {**trained[1], key: value}))
