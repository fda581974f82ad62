"""The learning rate at the edges of warm-up and training, and its shape between."""

from __future__ import annotations

import itertools

import pytest

from yolonas.training.schedule import learning_rate


def test_edges() -> None:
    rates = [learning_rate(step, 5000, peak=2e-4, warmup_steps=1000) for step in range(5000)]
    assert rates[0] == 1e-6
    assert rates[500] == pytest.approx((1e-6 + 2e-4) / 2)
    assert rates[999] == pytest.approx(2e-4 - (2e-4 - 1e-6) / 1000)
    assert rates[1000] == max(rates) == 2e-4
    assert rates[-1] == pytest.approx(2e-5)
    assert learning_rate(3000, 5001, peak=2e-4, warmup_steps=1000) == pytest.approx(2e-4 * 0.55)  # halfway down
    assert all(before < after for before, after in itertools.pairwise(rates[:1001]))
    assert all(before > after for before, after in itertools.pairwise(rates[1000:]))


def test_no_warmup_starts_at_the_peak() -> None:
    rates = [learning_rate(step, 10, peak=0.01, final_factor=0.01) for step in range(10)]
    assert rates[0] == 0.01
    assert rates[-1] == pytest.approx(0.0001)


def test_warmup_of_the_only_epoch() -> None:
    rates = [learning_rate(step, 50, peak=1e-3, warmup_steps=50, warmup_start=0.0) for step in range(50)]
    assert rates == pytest.approx([1e-3 * step / 50 for step in range(50)])
    assert learning_rate(49, 50, peak=1e-3, warmup_steps=1000, warmup_start=0.0) == pytest.approx(1e-3 * 49 / 1000)


def test_very_short_trainings() -> None:
    assert learning_rate(0, 1, peak=1e-3) == 1e-3
    assert learning_rate(0, 1, peak=1e-3, warmup_steps=1) == 1e-6
    assert [learning_rate(step, 2, peak=1e-3) for step in range(2)] == pytest.approx([1e-3, 1e-4])
    assert learning_rate(4, 5, peak=1e-3, warmup_steps=4) == 1e-3  # the single step after the warm-up


def test_constant_learning_rate() -> None:
    rates = {learning_rate(step, 7, peak=1e-3, final_factor=1.0) for step in range(7)}
    assert rates == {1e-3}


@pytest.mark.parametrize(
    ("step", "total", "warmup", "message"),
    [
        (-1, 10, 0, "step must be from 0 to 9, got -1"),
        (10, 10, 0, "step must be from 0 to 9, got 10"),
        (0, 0, 0, "total_steps must be at least 1, got 0"),
        (0, 10, -1, "warmup_steps must be at least 0, got -1"),
    ],
)
def test_steps_that_are_not(step: int, total: int, warmup: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^learning_rate: {message}$"):
        learning_rate(step, total, warmup_steps=warmup)
