"""Which parameters are decayed, clipping against its definition, and refused settings."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_cases import narrow_network

from yolonas.nn import YoloNAS
from yolonas.training.optimizer import build_optimizer, clip_gradients_, parameter_groups, set_learning_rate_


@pytest.mark.parametrize("variant", ["s", "m", "l"])
def test_groups_have_every_trained_parameter_once(variant: str) -> None:
    with torch.device("meta"):
        model = YoloNAS(variant)
    decayed, others = parameter_groups(model, 1e-5)
    assert decayed["weight_decay"] == 1e-5
    assert others["weight_decay"] == 0
    kernels, rest = set(), set()
    for module in model.modules():
        kinds = dict(module.named_parameters(recurse=False))
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.weight.requires_grad:
            kernels.add(kinds.pop("weight"))
        rest |= {parameter for parameter in kinds.values() if parameter.requires_grad}
    assert set(decayed["params"]) == kernels
    assert set(others["params"]) == rest
    assert len(decayed["params"]) + len(others["params"]) == len(kernels) + len(rest)
    names = {parameter: name for name, parameter in model.named_parameters()}
    left_out = {name for parameter, name in names.items() if parameter not in kernels | rest}
    assert left_out
    assert all(".rbr_reparam." in name for name in left_out)
    assert {names[parameter].rsplit(".", 1)[1] for parameter in rest} == {"bias", "weight", "alpha"}


def test_frozen_parts_are_left_out() -> None:
    model = narrow_network()
    model.backbone.requires_grad_(False)
    model.neck.requires_grad_(False)
    trained = {parameter for group in parameter_groups(model, 0.1) for parameter in group["params"]}
    assert trained == set(model.heads.parameters())
    only_biases = nn.Conv2d(1, 1, 1)
    only_biases.weight.requires_grad_(False)
    assert [group["weight_decay"] for group in parameter_groups(only_biases, 0.1)] == [0.0]


def test_kinds_and_their_settings() -> None:
    model = narrow_network()
    adamw = build_optimizer(model, learning_rate=5e-4, weight_decay=1e-4)
    assert type(adamw) is torch.optim.AdamW
    assert [group["weight_decay"] for group in adamw.param_groups] == [1e-4, 0.0]
    assert {group["betas"] for group in adamw.param_groups} == {(0.9, 0.999)}
    sgd = build_optimizer(model, "sgd", learning_rate=0.01, momentum=0.8)
    assert type(sgd) is torch.optim.SGD
    assert {group["momentum"] for group in sgd.param_groups} == {0.8}
    set_learning_rate_(sgd, 0.02)
    assert {group["lr"] for group in sgd.param_groups} == {0.02}


def test_only_kernels_shrink_without_gradients() -> None:
    model = narrow_network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        shrinks = parameter.ndim > 1 and parameter.requires_grad
        assert torch.allclose(parameter, before[name] * (0.95 if shrinks else 1)), name


@pytest.mark.parametrize("largest", [None, 100.0, 6.5])
def test_clipping(largest: float | None) -> None:
    model = nn.Conv2d(1, 1, 1)
    optimizer = build_optimizer(model, "sgd")
    model.weight.grad, model.bias.grad = torch.full((1, 1, 1, 1), 5.0), torch.full((1,), -12.0)
    assert clip_gradients_(optimizer, largest).item() == 13
    factor = 0.5 if largest == 6.5 else 1
    gradients = torch.stack([model.weight.grad.flatten(), model.bias.grad])
    torch.testing.assert_close(gradients, factor * torch.tensor([[5.0], [-12.0]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion"}, "name must be one of adamw, sgd, got 'lion'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"weight_decay": -1e-5}, "weight_decay must be at least 0 and finite, got -1e-05"),
        ({"momentum": 1.0}, "momentum must be at least 0 and less than 1, got 1.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^build_optimizer: {message}$"):
        build_optimizer(nn.Conv2d(1, 1, 1), **settings)  # type: ignore[arg-type]


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^build_optimizer: model must have parameters that take gradients, got none$"
    ):
        build_optimizer(narrow_network().requires_grad_(False))
