"""The moving average against a loop over single numbers' formula, and its decay."""

from __future__ import annotations

import pytest
import torch
from training_cases import narrow_network

from yolonas.training.ema import Ema, ema_decay


def test_decay_rises_to_the_largest() -> None:
    assert ema_decay(1) == 2 / 11
    assert ema_decay(2) == 3 / 12
    assert ema_decay(29_989) == pytest.approx(29_990 / 29_999)
    assert ema_decay(29_989) < ema_decay(29_991) == ema_decay(10**9) == 0.9997
    assert ema_decay(1000, largest=0.9) == 0.9
    assert [ema_decay(step, largest=0.0) for step in (1, 50)] == [0, 0]


def test_average_equals_a_loop() -> None:
    model = narrow_network()
    ema = Ema(model, largest_decay=0.4)
    expected = {key: value.double() for key, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 8):
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    value += torch.randn(value.shape, generator=generator)
                else:
                    value += step
                    expected[key] = value.double()
        ema.update(model, step)
        decay = min(0.4, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                expected[key] = decay * expected[key] + (1 - decay) * value.double()
    average = ema.model.state_dict()
    assert average.keys() == expected.keys()
    assert any("running_var" in key for key in average)
    for key, value in expected.items():
        assert torch.allclose(average[key].double(), value, rtol=1e-5, atol=1e-5), key


def test_average_is_a_network_of_its_own() -> None:
    model = narrow_network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ema = Ema(model)
    assert not ema.model.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert any(parameter.requires_grad for parameter in model.parameters())
    ema.update(model, 1)
    for key, value in ema.model.state_dict().items():
        assert torch.equal(value, before[key]), key  # the average of equal numbers, to the last bit
    with torch.no_grad():
        for parameter in ema.model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_impossible_decays_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"^Ema: largest_decay must be at least 0 and less than 1, got"):
        Ema(narrow_network(), largest_decay=decay)
