"""The loss against golden values, values computed by hand, numerical gradients, and whole training steps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_recipe import fill_
from loss_cases import (
    ASSIGNED_BOXES,
    ASSIGNED_CLASSES,
    ASSIGNED_SCORES,
    BOX_GRADIENTS,
    BOX_LOGITS,
    CLASS_GRADIENTS,
    CLASS_LOGITS,
    CLASSES,
    POINTS,
    SCORE_SUM,
    STRIDES,
    golden_assignment,
    golden_file,
    golden_raw,
    golden_targets,
    random_raw,
    random_targets,
    table,
)
from quantized_networks import narrow
from torch import multiprocessing

from yolonas.nn import YoloNAS
from yolonas.nn.head import Raw, decode_boxes
from yolonas.training.assigner import Assignment, assign, pairwise_iou
from yolonas.training.loss import (
    DetectionLoss,
    LossTerms,
    class_loss,
    distribution_focal_loss,
    generalized_iou,
)


def gradients(raw: Raw, terms: LossTerms) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.autograd.grad(terms.total, raw[:2])


def few_anchors(raw: Raw, anchors: list[int]) -> Raw:
    """The same outputs with only these anchors, whose logits are leaves again."""
    logits = [value[:, anchors].detach().requires_grad_() for value in raw[:2]]
    return (*logits, raw[2][anchors], raw[3][anchors], [], raw[5][anchors])  # type: ignore[return-value]


@pytest.mark.shared
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["tal", "tal_seq", "tal_focal", "atss", "empty"])
def test_loss_and_gradients_equal_golden(name: str, dtype: torch.dtype, shared: Path) -> None:
    golden = golden_file(shared)
    raw, loss = golden_raw(golden, dtype), DetectionLoss(varifocal=name != "tal_focal")
    if name == "atss":  # another assigner, whose assignment the file holds; the loss of it is the same function
        terms = loss.of_assignment(raw, golden_assignment(golden, name, dtype))
    else:
        terms = loss(raw, golden_targets(golden)[: 0 if name == "empty" else None])
    actual = torch.stack([terms.classes, terms.iou, terms.dfl, terms.total])
    torch.testing.assert_close(actual.float(), golden[f"{name}/losses"], rtol=1e-6, atol=0)

    class_gradients, box_gradients = gradients(raw, terms)
    if name == "empty":
        assert class_gradients.isfinite().all()
        assert not box_gradients.any()
        return
    torch.testing.assert_close(class_gradients.float(), golden[f"{name}/grad_cls"], rtol=1e-5, atol=1e-7)
    rows = golden[f"{name}/grad_reg_nonzero_rows"]
    assert torch.equal(box_gradients.any(dim=-1).nonzero(), rows)
    actual = box_gradients[rows[:, 0], rows[:, 1]]
    torch.testing.assert_close(actual.float(), golden[f"{name}/grad_reg_rows"], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(actual.abs().sum().float(), golden[f"{name}/grad_reg_abssum"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_golden_numbers(dtype: torch.dtype) -> None:
    logits = [table(text).to(dtype).reshape(1, 3, -1).requires_grad_() for text in (CLASS_LOGITS, BOX_LOGITS)]
    points, strides = torch.tensor(POINTS, dtype=dtype), torch.tensor(STRIDES, dtype=dtype)
    raw: Raw = (*logits, torch.zeros(3, 4), points, [2, 1, 0], strides)  # type: ignore[assignment]
    boxes, scores = (torch.tensor([values], dtype=dtype) for values in (ASSIGNED_BOXES, ASSIGNED_SCORES))
    terms = DetectionLoss().of_assignment(raw, Assignment(torch.tensor([ASSIGNED_CLASSES]), boxes, scores))
    # Three scores add up to less than 1, so the divisor is 1 here.
    for actual, text in zip(gradients(raw, terms), (CLASS_GRADIENTS, BOX_GRADIENTS), strict=True):
        expected = table(text).reshape(actual.shape) * SCORE_SUM
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("box", "other", "expected"),
    [
        pytest.param([0, 0, 4, 4], [0, 0, 4, 4], 1.0, id="equal"),
        pytest.param([0, 0, 4, 4], [1, 1, 3, 3], 0.25, id="nested"),
        pytest.param([0, 0, 4, 4], [2, 2, 6, 6], 4 / 28 - 8 / 36, id="overlapping"),
        pytest.param([0, 0, 2, 2], [2, 0, 4, 2], 0.0, id="touching"),
        pytest.param([0, 0, 1, 1], [9, 0, 10, 1], -0.8, id="apart"),
        pytest.param([0, 0, 1, 1], [999, 999, 1000, 1000], -1 + 2e-6, id="far apart"),
        pytest.param([0, 0, 4, 4], [2, 2, 2, 2], 0.0, id="a point in a box"),
        pytest.param([3, 3, 3, 3], [3, 3, 3, 3], 0.0, id="a point twice"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_generalized_iou(box: list[float], other: list[float], expected: float, dtype: torch.dtype) -> None:
    a, b = (torch.tensor(value, dtype=dtype, requires_grad=True) for value in (box, other))
    result = generalized_iou(a, b)
    assert result.item() == pytest.approx(expected, abs=1e-6)
    assert generalized_iou(b, a).item() == result.item()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(result, (a, b)))


def test_distribution_focal_loss_by_hand() -> None:
    logits = torch.arange(68, dtype=torch.float64).sin()
    probabilities = logits.reshape(4, 17).softmax(dim=-1).tolist()
    left, top, right, bottom = probabilities
    sides = [  # 3.25 lies between bins 3 and 4; a whole distance has one bin; the others are clipped to 0 and 15.99
        0.75 * math.log(left[3]) + 0.25 * math.log(left[4]),
        math.log(top[5]),
        math.log(right[0]),
        0.01 * math.log(bottom[15]) + 0.99 * math.log(bottom[16]),
    ]
    actual = distribution_focal_loss(logits, torch.tensor([3.25, 5.0, -2.0, 40.0], dtype=torch.float64))
    assert actual.item() == pytest.approx(-sum(sides) / 4, rel=1e-12)


@pytest.mark.parametrize("varifocal", [True, False])
def test_class_loss_by_hand(varifocal: bool) -> None:
    cases = [(0.7, 0.4, True), (-2.0, 0.0, True), (-3.0, 0.0, False), (5.0, 0.0, False)]
    expected = []
    for logit, wanted, is_class in cases:
        p = 1 / (1 + math.exp(-logit))
        weight = (wanted if is_class else 0.75 * p * p) if varifocal else (p - wanted) ** 2
        expected.append(-weight * (wanted * math.log(p) + (1 - wanted) * math.log(1 - p)))
    logits, wanted, is_class = (torch.tensor(values) for values in zip(*cases, strict=True))
    actual = class_loss(logits.double(), wanted.double(), is_class, varifocal=varifocal)
    assert actual.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("varifocal", [True, False])
def test_gradients_equal_numerical_ones(varifocal: bool) -> None:
    raw = random_raw(1, seed=1)
    targets = torch.tensor([[0, 1, 3.0, 2.0, 61.0, 55.0], [0, 2, 30.0, 10.0, 90.0, 60.0]])
    whole = assign(raw, targets)
    anchors = [0, *(whole.classes[0] >= 0).nonzero()[:, 0].tolist()[:4]]
    # The assignment is a constant to the loss, as it must be to the numerical gradients.
    assignment = Assignment(whole.classes[:, anchors], whole.boxes[:, anchors], whole.scores[:, anchors] * 10)
    assert assignment.scores.sum() > 1
    raw, loss = few_anchors(raw, anchors), DetectionLoss(varifocal=varifocal)

    def total(class_logits: torch.Tensor, box_logits: torch.Tensor) -> torch.Tensor:
        return loss.of_assignment((class_logits, box_logits, *raw[2:]), assignment).total

    assert torch.autograd.gradcheck(total, raw[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "targets",
    [
        pytest.param(torch.zeros(0, 6), id="no boxes at all"),
        pytest.param(random_targets([0, 5]), id="a picture without"),
        pytest.param(torch.tensor([[0.0, 0, 20, 20, 20, 20], [1, 1, 10, 4, 40, 4]]), id="empty boxes"),
        pytest.param(torch.tensor([[0.0, 0, 40, 40, 10, 10]]), id="corners swapped"),
        pytest.param(torch.tensor([[0.0, 0, -500, -500, -400, -400]]), id="outside"),
        pytest.param(torch.tensor([[0.0, 0, -1e4, -1e4, 1e4, 1e4]]), id="huge"),
        pytest.param(torch.tensor([[0.0, 0, 10, 10, 50, 50]]).repeat(40, 1), id="one box 40 times"),
        pytest.param(random_targets([300, 1]), id="very many boxes"),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 100.0])  # 100: distributions of one bin, boxes without area, scores of 0 and 1
def test_loss_and_gradients_are_finite(scale: float, targets: torch.Tensor, dtype: torch.dtype) -> None:
    raw = random_raw(2, dtype=dtype)
    raw = (*((value * scale).detach().requires_grad_() for value in raw[:2]), *raw[2:])  # type: ignore[assignment]
    terms = DetectionLoss()(raw, targets)
    assert all(term.isfinite() and term >= 0 for term in terms)
    assert all(gradient.isfinite().all() for gradient in gradients(raw, terms))


def test_without_boxes_only_the_classes_count() -> None:
    raw = random_raw(2)
    terms = DetectionLoss()(raw, torch.zeros(0, 6))
    assert terms.total == terms.classes > 0
    assert terms.iou == terms.dfl == 0
    class_gradients, box_gradients = gradients(raw, terms)  # those of the boxes exist, and are zero
    assert (class_gradients > 0).all()
    assert not box_gradients.any()


def test_terms_are_weighted_and_only_the_total_has_gradients() -> None:
    raw, targets = random_raw(2), random_targets([3, 4])
    plain = DetectionLoss(class_weight=1, iou_weight=1, dfl_weight=1)(raw, targets)
    terms = DetectionLoss(class_weight=3, iou_weight=5, dfl_weight=7)(raw, targets)
    expected = [3 * plain.classes, 5 * plain.iou, 7 * plain.dfl]
    torch.testing.assert_close([*terms[1:]], expected)
    torch.testing.assert_close(terms.total.detach(), sum(expected))
    assert [term.requires_grad for term in terms] == [True, False, False, False]
    assert DetectionLoss() == DetectionLoss(class_weight=1.0, iou_weight=2.5, dfl_weight=0.5, varifocal=True)


def test_the_divisor_is_the_sum_of_scores_or_one() -> None:
    raw = random_raw(1)
    whole = assign(raw, random_targets([3]))
    scale = 1 / whole.scores.sum()

    def iou(factor: float) -> torch.Tensor:
        return DetectionLoss().of_assignment(raw, replace(whole, scores=whole.scores * scale * factor)).iou

    torch.testing.assert_close(iou(0.5), iou(1.0) / 2)
    torch.testing.assert_close(iou(4.0), iou(1.0))


def test_the_order_of_boxes_and_of_pictures_does_not_matter() -> None:
    raw, targets = random_raw(3), random_targets([3, 0, 6])
    expected = DetectionLoss()(raw, targets)
    expected_gradients = gradients(raw, expected)
    order = torch.tensor([1, 2, 0])
    moved = targets.flip(0)
    moved[:, 0] = order.argsort()[moved[:, 0].long()].float()
    for rows, other in ((torch.arange(3), targets.flip(0)), (order, moved)):
        actual_raw = (*(value.detach()[rows].requires_grad_() for value in raw[:2]), *raw[2:])
        actual = DetectionLoss()(actual_raw, other)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
        for gradient, wanted in zip(gradients(actual_raw, actual), expected_gradients, strict=True):
            torch.testing.assert_close(gradient, wanted[rows], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    raw, targets = random_raw(2, dtype=torch.float32), random_targets([3, 5])
    half = (*(value.detach().to(dtype).requires_grad_() for value in raw[:2]), *raw[2:])
    same = (*(value.detach().float().requires_grad_() for value in half[:2]), *raw[2:])
    with torch.autocast("cpu", torch.bfloat16):
        actual = DetectionLoss()(half, targets)
    expected = DetectionLoss()(same, targets)
    assert all(term.dtype == torch.float32 for term in actual)
    assert torch.equal(torch.stack(actual), torch.stack(expected))
    for gradient, wanted in zip(gradients(half, actual), gradients(same, expected), strict=True):
        assert torch.equal(gradient, wanted.to(dtype))


def test_nothing_waits_for_the_device() -> None:
    # Meta tensors have no numbers: whatever reads one, or makes shapes of them, raises.
    raw = random_raw(2)
    meta = [value.detach().to("meta").requires_grad_() for value in raw[:2]]
    anchors, points, strides = (raw[index].to("meta") for index in (2, 3, 5))
    terms = DetectionLoss()((*meta, anchors, points, raw[4], strides), random_targets([3, 5]))
    terms.total.backward()
    assert all(value.grad.shape == value.shape for value in meta)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_cuda_equals_cpu_and_does_not_wait() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    raw, targets = random_raw(3), random_targets([3, 0, 9])
    expected = DetectionLoss()(raw, targets)
    logits = [value.detach().cuda().requires_grad_() for value in raw[:2]]
    other = (*logits, raw[2].cuda(), raw[3].cuda(), raw[4], raw[5].cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = DetectionLoss()(other, targets)
        actual.total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(torch.stack(actual).cpu(), torch.stack(expected))
    for value, gradient in zip(logits, gradients(raw, expected), strict=True):
        torch.testing.assert_close(value.grad.cpu(), gradient)


def two_processes(rank: int, folder: str) -> None:
    """One of two processes that have a picture of a batch each. Writes its loss and gradients."""
    torch.set_num_threads(1)
    store = Path(folder, "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    raw, targets = random_raw(2), random_targets([9, 12])
    own = (*(value.detach()[rank : rank + 1].requires_grad_() for value in raw[:2]), *raw[2:])
    rows = targets[targets[:, 0] == rank]
    rows[:, 0] = 0
    terms = DetectionLoss()(own, rows)
    torch.save((torch.stack(terms).detach(), gradients(own, terms)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed training")
def test_two_processes_give_the_loss_of_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(two_processes, (str(tmp_path),), nprocs=2)
    raw, targets = random_raw(2), random_targets([9, 12])
    assert assign(raw, targets).scores.sum() > 2  # so that no divisor is 1
    terms = DetectionLoss()(raw, targets)
    expected = gradients(raw, terms)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, torch.stack(terms).detach())
    for kind in range(2):
        # Each process has the gradients of its own picture; what they share, the weights, gets the mean.
        actual = torch.cat([part[1][kind] for part in parts]) / 2
        torch.testing.assert_close(actual, expected[kind])


def test_descending_finds_the_boxes() -> None:
    raw = random_raw(2, dtype=torch.float32)
    targets = torch.tensor([[0.0, 1, 10, 12, 42, 50], [0, 2, 50, 5, 90, 30], [1, 0, 30, 20, 70, 44]])
    optimizer = torch.optim.Adam(raw[:2], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        DetectionLoss()(raw, targets).total.backward()
        optimizer.step()
    boxes = decode_boxes(raw[1], raw[3] / raw[5], raw[5]).detach()
    scores = raw[0].sigmoid()
    for picture, label, *corners in targets.tolist():
        picture_scores = scores[int(picture), :, int(label)]
        best = int(picture_scores.argmax())
        assert picture_scores[best] > 0.8
        assert pairwise_iou(boxes[None, None, int(picture), best], torch.tensor([[corners]])).item() > 0.9


def test_a_network_takes_a_step() -> None:
    variant = narrow("s").variant
    network = fill_(YoloNAS(variant, num_classes=CLASSES)).train()
    generator = torch.Generator().manual_seed(0)
    _, raw = network(torch.rand(2, 3, 64, 96, generator=generator))
    DetectionLoss()(raw, random_targets([2, 3])).total.backward()
    for name, parameter in network.named_parameters():
        if "rbr_reparam" not in name:  # those wait for fusion
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or parameter.grad.numel() < 3, name


def test_wrong_targets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^assign: targets must have shape \(M, 6\), got \(3, 5\)"):
        DetectionLoss()(random_raw(1), torch.zeros(3, 5))
