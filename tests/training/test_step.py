"""Whole steps: against the same done by hand, in parts, in half precision, overfitting, and with ruined numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn
from training_cases import assert_same, narrow_learner, narrow_network, random_batch

from yolonas.errors import TrainingError
from yolonas.training.loss import DetectionLoss
from yolonas.training.optimizer import build_optimizer
from yolonas.training.step import Batch, Learner, StepResult, train_step

LOSS = DetectionLoss()


def step_of(learner: Learner, *batches: Batch, step: int = 0, largest_norm: float | None = None) -> StepResult:
    return train_step(learner, batches, step=step, learning_rate=1e-3, loss=LOSS, largest_norm=largest_norm)


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in learner.model.named_parameters() if value.grad is not None}


def scale_loss(learner: Learner, scale: float) -> None:
    """From the next step on; nothing happens where the precision needs no scale."""
    if learner.scaler.is_enabled():
        learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": scale})


def freeze_batch_norms(learner: Learner) -> Learner:
    """They use their running statistics, so that a picture's outputs do not depend on the others of its batch."""
    for module in learner.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return learner


def halves(batch: Batch, at: int) -> tuple[Batch, Batch]:
    """The first `at` pictures of a batch, and the others."""
    picture = batch.targets[:, 0]
    second = batch.targets[picture >= at]
    second[:, 0] -= at
    return (
        Batch(batch.pictures[:at], batch.targets[picture < at], batch.names[:at]),
        Batch(batch.pictures[at:], second, batch.names[at:]),
    )


def assert_near(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The largest error allowed is relative to the largest number of a tensor: many are sums that nearly cancel."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = 2e-5 * value.abs().max().item() + 1e-9
        assert torch.allclose(actual[name], value, rtol=0, atol=error), name


@pytest.mark.parametrize("largest_norm", [None, 0.5])
def test_step_equals_one_by_hand(largest_norm: float | None) -> None:
    learner, batch = narrow_learner(), random_batch([3, 0])
    result = step_of(learner, batch, step=4, largest_norm=largest_norm)

    model = narrow_network()
    average = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=1e-2)
    terms = LOSS(model(batch.pictures)[1], batch.targets)
    terms.total.backward()
    norm = torch.stack([value.grad.norm() for value in model.parameters() if value.grad is not None]).norm()
    if largest_norm is not None:
        # In the optimizer's order: the last bits of the norm depend on it.
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, largest_norm)
    optimizer.step()

    after = model.state_dict()
    assert_same(learner.model.state_dict(), after)
    decay = 6 / 15
    for key, value in learner.ema.model.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, decay * average[key] + (1 - decay) * after[key], rtol=1e-5, atol=1e-7), key
    assert (result.total, result.classes, result.iou, result.dfl) == tuple(term.item() for term in terms)
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    assert result.gradient_norm > 0.5
    assert not result.skipped


@pytest.mark.parametrize(("counts", "at"), [([1, 2, 9, 4], 2), ([0, 0, 5, 3], 2), ([2, 7, 0], 1), ([0, 0], 1)])
def test_parts_of_a_batch_give_its_gradients(counts: list[int], at: int) -> None:
    batch = random_batch(counts)
    whole, parts = freeze_batch_norms(narrow_learner()), freeze_batch_norms(narrow_learner())
    expected_result = step_of(whole, batch)
    result = step_of(parts, *halves(batch, at))
    expected = gradients(whole)
    assert_near(gradients(parts), expected)
    for field in ("total", "classes", "iou", "dfl", "gradient_norm"):
        assert getattr(result, field) == pytest.approx(getattr(expected_result, field), rel=1e-4, abs=1e-7)


def test_batch_norms_see_each_part_alone() -> None:
    """With them, equal parts give what one of the parts gives, and the statistics are updated once per part."""
    batch = random_batch([3, 2])
    once, twice = narrow_learner(), narrow_learner()
    step_of(once, batch)
    step_of(twice, batch, batch)
    expected = gradients(once)
    assert_near(gradients(twice), expected)
    counters = [
        {value.item() for key, value in learner.model.state_dict().items() if key.endswith("num_batches_tracked")}
        for learner in (once, twice)
    ]
    assert counters == [{1}, {2}]


def two_processes(rank: int, folder: str) -> None:
    """One of two processes that have two of four pictures each, in two parts. Writes its result and its gradients."""
    torch.set_num_threads(1)
    store = Path(folder, "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    learner = freeze_batch_norms(narrow_learner())
    learner.forward = nn.parallel.DistributedDataParallel(learner.model)
    result = step_of(learner, *halves(halves(random_batch([1, 2, 9, 4]), 2)[rank], 1))
    torch.save((result.total, result.gradient_norm, gradients(learner)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed training")
def test_two_processes_give_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(two_processes, (str(tmp_path),), nprocs=2)
    whole = freeze_batch_norms(narrow_learner())
    result = step_of(whole, random_batch([1, 2, 9, 4]))
    expected = gradients(whole)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert (parts[0][0] + parts[1][0]) / 2 == pytest.approx(result.total, rel=1e-4)
    for _, norm, actual in parts:
        assert norm == pytest.approx(result.gradient_norm, rel=1e-4)
        assert_near(actual, expected)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_overfits_one_batch(name: str) -> None:
    learner, batch = narrow_learner(name=name), random_batch([2, 3], size=96)
    rate = 3e-3 if name == "adamw" else 2e-2
    totals: list[float] = []
    while len(totals) < 60 and (not totals or totals[-1] > totals[0] / 2):
        result = train_step(learner, [batch], step=len(totals), learning_rate=rate, loss=LOSS, largest_norm=10.0)
        totals.append(result.total)
    assert totals[-1] <= totals[0] / 2, totals


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_single(precision: str) -> None:
    batches = [random_batch([3, 2]), random_batch([1, 4], seed=1)]
    single, half = narrow_learner(), narrow_learner(precision=precision)
    scale_loss(half, 64.0)
    expected, actual = step_of(single, *batches), step_of(half, *batches)
    assert not actual.skipped
    assert actual.total != expected.total
    assert actual.total == pytest.approx(expected.total, rel=0.05)
    assert actual.gradient_norm == pytest.approx(expected.gradient_norm, rel=0.3)
    assert all(value.dtype in (torch.float32, torch.int64) for value in half.model.state_dict().values())
    assert half.scaler.is_enabled() == (precision == "fp16")


def test_overflow_in_fp16_skips_the_step_and_lowers_the_scale() -> None:
    learner, batch = narrow_learner(precision="fp16"), random_batch([3, 2])
    scale_loss(learner, 2.0**100)
    before = {name: value.detach().clone() for name, value in learner.model.named_parameters()}
    result = step_of(learner, batch)
    assert result.skipped
    assert result.total > 0
    assert learner.scaler.get_scale() == 2.0**99
    assert_same(dict(learner.model.named_parameters()), before)
    scale_loss(learner, 64.0)
    assert not step_of(learner, batch, step=1).skipped
    assert any(not torch.equal(value, before[name]) for name, value in learner.model.named_parameters())


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_loss_of_nan_names_its_pictures(precision: str) -> None:
    learner = narrow_learner(precision=precision)
    bad = random_batch([1, 2], seed=7)
    bad.pictures[1, 0, 5, 5] = float("nan")
    before = dict(learner.model.named_parameters())
    before = {name: value.detach().clone() for name, value in before.items()}
    average = {key: value.clone() for key, value in learner.ema.model.state_dict().items()}
    with pytest.raises(
        TrainingError, match=r"^train_step: loss must be finite, got nan in step 3 with the pictures 7-0.jpg, 7-1.jpg; "
    ) as error:
        step_of(learner, random_batch([2], seed=1), bad, step=3)
    assert error.value.pictures == ("7-0.jpg", "7-1.jpg")
    assert isinstance(error.value, RuntimeError)
    assert_same(dict(learner.model.named_parameters()), before)
    assert_same(learner.ema.model.state_dict(), average)


def test_only_the_part_with_nan_is_named_where_it_comes_first() -> None:
    learner = narrow_learner()
    bad = random_batch([1], seed=7)
    bad.pictures[:] = float("inf")
    with pytest.raises(TrainingError) as error:
        step_of(learner, bad, random_batch([2], seed=1))
    assert error.value.pictures == ("7-0.jpg",)


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_gradients_that_stay_infinite_are_an_error(precision: str) -> None:
    learner = narrow_learner(precision=precision)
    scale_loss(learner, 1.0)
    learner.model.heads.head1.cls_pred.bias.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.detach().clone() for name, value in learner.model.named_parameters()}
    with pytest.raises(TrainingError, match=r"^train_step: gradients must be finite, got (inf|nan) in step 0") as error:
        step_of(learner, random_batch([2], seed=1), random_batch([1] * 9, seed=2))
    assert len(error.value.pictures) == 10
    assert "2-6.jpg and 2 more;" in str(error.value)
    assert_same(dict(learner.model.named_parameters()), before)


def test_wrong_calls_are_refused() -> None:
    learner = narrow_learner()
    with pytest.raises(ValueError, match=r"^train_step: batches must be at least one, got none$"):
        step_of(learner)
    batch = replace(random_batch([1]), targets=torch.tensor([[0.0, 3, 1, 1, 9, 9]]))
    with pytest.raises(ValueError, match=r"^assign: targets must name classes from 0 to 2, got 3$"):
        step_of(learner, batch)
    learner.model.eval()
    with pytest.raises(ValueError, match=r"^train_step: model must be in training mode, got eval mode"):
        step_of(learner, random_batch([1]))
    with pytest.raises(ValueError, match=r"^Learner: precision must be one of float32, bf16, fp16, got 'int8'$"):
        Learner(learner.model, learner.optimizer, precision="int8")


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_cuda_learns_as_the_cpu_does(precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    learner = narrow_learner(precision=precision, device="cuda")
    expected = step_of(narrow_learner(), random_batch([3, 2], size=96))
    batch = random_batch([3, 2], size=96, device="cuda")
    results = [step_of(learner, batch, step=step, largest_norm=10.0) for step in range(60)]
    assert results[0].total == pytest.approx(expected.total, rel=0.05)
    assert min(result.total for result in results[-5:]) < results[0].total / 2
    assert next(learner.ema.model.parameters()).is_cuda
