"""New class layers: their distribution, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from training_cases import narrow_network, random_batch

from yolonas.nn import YoloNAS
from yolonas.nn.head import PRIOR
from yolonas.training.classes import replace_classes_


def class_layers(model: YoloNAS) -> list[torch.nn.Conv2d]:
    return [head.cls_pred for head in (model.heads.head1, model.heads.head2, model.heads.head3)]


def test_only_the_class_layers_change() -> None:
    model = narrow_network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert replace_classes_(model, 7) is model
    assert model.num_classes == 7
    after = model.state_dict()
    assert list(after) == list(before)
    for key, value in before.items():
        if "cls_pred" in key:
            assert after[key].shape == (7, *value.shape[1:])
        else:
            assert torch.equal(after[key], value), key
    _, raw = model(random_batch([1, 1]).pictures)
    assert raw[0].shape[2] == 7
    assert YoloNAS(model.variant, 7).load_state_dict(after)


def test_numbers_are_distributed_as_before() -> None:
    model = narrow_network()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in class_layers(model):
            layer.weight.normal_(-0.3, 0.2, generator=generator)
            layer.bias.copy_(torch.tensor([-6.0, -5.0, -4.0]))
    torch.manual_seed(0)
    replace_classes_(model, 2000)
    for layer in class_layers(model):
        assert layer.weight.mean().item() == pytest.approx(-0.3, abs=0.05)
        assert layer.weight.std().item() == pytest.approx(0.2, abs=0.05)
        assert layer.bias.mean().item() == pytest.approx(-5, abs=0.1)
        assert layer.bias.std().item() == pytest.approx((2 / 3) ** 0.5, abs=0.1)
        assert layer.weight.requires_grad


def test_untrained_layers_keep_their_prior() -> None:
    model = replace_classes_(narrow_network(), 1)  # and a network of one class can be replaced again
    for layer in class_layers(replace_classes_(model, 5)):
        torch.testing.assert_close(layer.bias.sigmoid(), torch.full((5,), PRIOR))


def test_type_mode_and_seed() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(replace_classes_(narrow_network().double().eval(), 4))
    for first, second in zip(*map(class_layers, models), strict=True):
        assert first.weight.dtype == torch.float64
        assert not first.training
        assert torch.equal(first.weight, second.weight)


def test_refused() -> None:
    model = narrow_network()
    with pytest.raises(ValueError, match=r"^replace_classes_: num_classes must be at least 1, got 0$"):
        replace_classes_(model, 0)
    model.activation_scales = {"input": 1.0}
    with pytest.raises(ValueError, match=r"^replace_classes_: model must be in floating point, got a quantised one"):
        replace_classes_(model, 2)
