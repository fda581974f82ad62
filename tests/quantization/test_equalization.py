"""Equalised networks compute the same, and every channel inside a network is looked at."""

from __future__ import annotations

import copy

import pytest
import torch
from quantized_networks import narrow, picture

from yolonas.config import VARIANTS
from yolonas.nn import YoloNAS
from yolonas.quantization.equalization import _channel_ranges, equalize_, scale_, tied_channels


@pytest.fixture(scope="module", params=VARIANTS)
def network(request: pytest.FixtureRequest) -> YoloNAS:
    return narrow(request.param)


def heads(model: YoloNAS) -> list[torch.Tensor]:
    weight = model.heads.head1.cls_pred.weight
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    with torch.inference_mode():
        cls, reg = model.forward_heads(x)
    return [*cls, *reg]


def test_any_positive_scales_change_nothing(network: YoloNAS) -> None:
    """Powers of ten between them, in float64: a channel that is missed would be seen."""
    model = copy.deepcopy(network).double()
    expected = heads(model)
    generator = torch.Generator().manual_seed(1)
    for group in tied_channels(model):
        count = group.readers[0].channels
        scale_(group, 10 ** (4 * torch.rand(count, generator=generator).double() - 2))
    for found, level in zip(heads(model), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-9, atol=1e-9)


def test_equalised_networks_compute_the_same(network: YoloNAS) -> None:
    model = equalize_(copy.deepcopy(network), [picture(2, 64, 64), picture(1, 32, 64, seed=1)])
    for found, level in zip(heads(model), heads(network), strict=True):
        torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-4 * float(level.abs().max()))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_ranges_become_alike(network: YoloNAS) -> None:
    """Where they were made uneven before, as training can leave them."""
    x = picture(2, 64, 64)
    model = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(2)
    for group in tied_channels(model):
        scale_(group, 4 ** torch.randn(group.readers[0].channels, generator=generator))

    def spread(model: YoloNAS) -> float:
        """How far apart the ranges of channels are, mean over layers: the standard deviation of their logarithms."""
        ranges, found = _channel_ranges(model, [x], None), []
        for group in tied_channels(model):
            part = group.readers[0]
            largest = ranges[part.module][part.first : part.first + part.channels]
            found.append(largest[largest > 0].log().std())
        return float(torch.stack(found).nanmean())

    assert spread(equalize_(copy.deepcopy(model), [x])) < 0.6 * spread(model)


def test_channels_of_zeros_do_no_harm() -> None:
    model = narrow("s")
    with torch.no_grad():
        for conv in (model.heads.head1.stem.seq.conv, model.backbone.stage1.downsample.rbr_reparam):
            conv.weight[:3].zero_()
            conv.bias[:3].fill_(-1.0)
        model.backbone.stage2.downsample.rbr_reparam.weight[:, 2:5].zero_()
        model.backbone.stage3.downsample.rbr_reparam.weight.zero_()
    before = heads(model)
    equalize_(model, [picture(1, 32, 32)])
    for found, level in zip(heads(model), before, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-4 * float(level.abs().max()))


def test_wrong_networks_and_pictures_are_named() -> None:
    with pytest.raises(ValueError, match="equalize: model must be a float network in folded form, got form 'training'"):
        equalize_(YoloNAS("s").eval(), [picture(1, 32, 32)])
    model = narrow("s")
    with pytest.raises(ValueError, match="equalize: pictures must be at least one, got none"):
        equalize_(model, [])
    with pytest.raises(ValueError, match="input height and width must be multiples of 32"):
        equalize_(model, [picture(1, 30, 32)])
    model.activation_scales = {"input": 1.0}
    with pytest.raises(ValueError, match="in folded form, got a quantised one"):
        equalize_(model, [picture(1, 32, 32)])
