"""The numbers of `model_info`, and that taking them leaves the network alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from yolonas.config import VARIANTS
from yolonas.info import count_layers, model_info
from yolonas.nn import FORMS, YoloNAS, fuse_

GFLOPS = {"s": (33.88, 31.80), "m": (94.19, 87.76), "l": (128.99, 119.83)}  # 640x640: training form, fused
TRAINABLE = {"s": 12_878_304, "m": 33_861_346, "l": 44_529_448}  # training form without the placeholders
CONVOLUTIONS = {"s": 100, "m": 104, "l": 116}


def meta_network(variant: str, form: str) -> YoloNAS:
    with torch.device("meta"):
        return YoloNAS(variant, form=form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gflops_at_640(variant: str, form: str) -> None:
    _, _, _, gflops = model_info(meta_network(variant, form), verbose=False)
    assert gflops == pytest.approx(GFLOPS[variant][form != "training"], abs=0.005)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_what_is_really_trained(variant: str) -> None:
    _, parameters, gradients, _ = model_info(meta_network(variant, "training"), verbose=False, imgsz=32)
    assert gradients == TRAINABLE[variant] < parameters
    assert model_info(meta_network(variant, "folded"), verbose=False, imgsz=32)[2] == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_folded_layers_are_convolutions_and_pools(variant: str) -> None:
    layers = count_layers(meta_network(variant, "folded"), (64, 64))
    kinds = [layer.kind for layer in layers]
    assert kinds.count("Conv2d") + kinds.count("ConvTranspose2d") == CONVOLUTIONS[variant]
    assert len(kinds) == CONVOLUTIONS[variant] + 3
    assert all(layer.output for layer in layers)


def test_gflops_follow_the_size() -> None:
    network = meta_network("s", "folded")
    _, _, _, full = model_info(network, verbose=False)
    assert model_info(network, verbose=False, imgsz=320)[3] == pytest.approx(full / 4)
    assert model_info(network, verbose=False, imgsz=(320, 640))[3] == pytest.approx(full / 2)
    with pytest.raises(ValueError, match="imgsz must be multiples of 32, got 100x100"):
        model_info(network, imgsz=100)


def test_flops_of_single_layers() -> None:
    layers = {layer.name: layer for layer in count_layers(meta_network("s", "folded"), (64, 96))}
    stem = layers["backbone.stem.conv.rbr_reparam"]
    assert (stem.output, stem.parameters) == ((1, 48, 32, 48), 48 * 27 + 48)
    assert stem.flops == 2 * 48 * 32 * 48 * 27
    upsample = layers["neck.neck1.upsample"]
    assert upsample.output == (1, 192, 4, 6)
    assert upsample.flops == 2 * 192 * 192 * 4 * (2 * 3)  # four taps for each input pixel
    assert layers["backbone.context_module.m.0"].flops == 0


def test_the_placeholders_are_counted_as_unused() -> None:
    layers = count_layers(meta_network("s", "training"), (64, 64))
    unused = [layer for layer in layers if not layer.output]
    assert len(unused) == 37
    assert all(layer.name.endswith(".rbr_reparam") and layer.flops == 0 for layer in unused)


def test_summary_line(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = model_info(meta_network("s", "folded"))
    assert numbers[:3] == (103, 12_167_600, 0)
    assert capsys.readouterr().out == (
        "YOLO_NAS_S summary: 103 layers, 12,167,600 parameters, 0 gradients, 31.8 GFLOPs\n"
    )
    model_info(meta_network("s", "folded"), verbose=False, detailed=True)
    assert capsys.readouterr().out == ""


def test_detailed_lists_every_layer(capsys: pytest.CaptureFixture[str]) -> None:
    model_info(meta_network("m", "training"), detailed=True, imgsz=(64, 96))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 320 + 1
    assert lines[0].split() == ["layer", "type", "parameters", "output", "MFLOPs"]
    assert any("unused" in line for line in lines)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_alone(training: bool) -> None:
    network = YoloNAS("s", num_classes=2).train(training)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    model_info(network, verbose=False, imgsz=64)
    assert network.training == training
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_half_precision_networks_are_counted_too() -> None:
    network = fuse_(YoloNAS("s", num_classes=2).eval().half())
    assert isinstance(network.backbone.stem.conv.rbr_reparam, nn.Conv2d)
    assert model_info(network, verbose=False, imgsz=64)[3] > 0
