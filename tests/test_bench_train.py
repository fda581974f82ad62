"""The benchmark of training: the network and the loss by hand are ours, and a run of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import yolonas
from yolonas.nn import YoloNAS
from yolonas.training.assigner import assign
from yolonas.training.loss import DetectionLoss

ROOT = Path(__file__).resolve().parent.parent
SIZE = 64
CLASSES = 3


def random_batch(counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures, and targets of as many boxes in each as `counts` says, some of which leave it."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(len(counts), 3, SIZE, SIZE, generator=generator)
    numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None]
    classes = torch.randint(CLASSES, numbers.shape, generator=generator)
    centres = torch.rand(len(numbers), 2, generator=generator) * SIZE
    half_sides = 2 + torch.rand(len(numbers), 2, generator=generator) * 30
    return pictures, torch.cat([numbers, classes, centres - half_sides, centres + half_sides], dim=1)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    import train

    return train


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    import train_by_hand

    return train_by_hand


@pytest.fixture(scope="module")
def network() -> YoloNAS:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return YoloNAS("s", CLASSES).double().train()


@pytest.mark.parametrize("counts", [[3, 9], [0, 2], [0, 0]], ids=["boxes", "a picture without", "no boxes"])
def test_loss_and_gradients_by_hand_are_ours(by_hand: ModuleType, network: YoloNAS, counts: list[int]) -> None:
    pictures, targets = (part.double() for part in random_batch(counts))
    network.zero_grad()
    trainer = by_hand.Trainer(network.state_dict(), size=(SIZE, SIZE), classes=CLASSES)
    theirs, theirs_loss = trainer.model.double(), trainer.loss.double()

    _, raw = network(pictures)
    class_logits, box_logits = theirs(pictures)
    torch.testing.assert_close(class_logits, raw[0])
    torch.testing.assert_close(box_logits, raw[1])
    expected = DetectionLoss()(raw, targets).total
    actual = theirs_loss(class_logits, box_logits, targets)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    expected.backward()
    actual.backward()
    ours = dict(network.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(parameter.grad, ours[name].grad, rtol=1e-5, atol=1e-7, msg=name)
    trained = {name for name, parameter in ours.items() if parameter.requires_grad}
    assert {name for name, _ in theirs.named_parameters()} == trained


def test_steps_by_hand_are_ours(bench: ModuleType, by_hand: ModuleType) -> None:
    pictures, targets = random_batch([4, 7])
    ours = bench.Training(pictures, targets)
    trainer = by_hand.Trainer(
        ours.model.state_dict(), size=(SIZE, SIZE), classes=bench.CLASSES, learning_rate=bench.LEARNING_RATE
    )
    for _ in range(3):
        assert ours.step() == pytest.approx(trainer.step(pictures, targets), rel=bench.CLOSE)
    averages = ours.learner.ema.model.state_dict()
    floats = {name: value for name, value in trainer.average.model.state_dict().items() if value.is_floating_point()}
    assert len(floats) > 500
    for name, value in floats.items():
        torch.testing.assert_close(value, averages[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_assignment_by_hand_prefers_the_largest_overlap(by_hand: ModuleType, network: YoloNAS) -> None:
    """Boxes on top of each other, where several want the same anchors."""
    targets = torch.tensor([[0, 1, 8, 8, 56, 56], [0, 2, 10, 10, 54, 58], [0, 0, 0, 0, 64, 64], [1, 2, 20, 20, 44, 44]])
    targets = targets.double()
    with torch.no_grad():
        (boxes, scores), raw = network(random_batch([0, 0])[0].double())
    expected = assign(raw, targets)
    labels, truth = by_hand.padded(targets, 2)
    positive, label, wanted, score = by_hand.assign(scores, boxes, raw[3], labels, truth)
    assert positive.sum() > 4
    assert torch.equal(torch.where(positive, label, -1), expected.classes)
    assert torch.equal(wanted[positive], expected.boxes[positive])
    torch.testing.assert_close(score, expected.scores)


def test_stages_change_no_weights_but_by_the_optimizer(bench: ModuleType) -> None:
    pictures, targets = random_batch([4, 7])
    ours = bench.Training(pictures, targets)
    ours.step()
    stages = ours.stages()
    before = [parameter.clone() for parameter in ours.model.parameters()]
    for _ in range(2):
        for name, stage in stages.items():
            if name != "optimizer":
                stage()
    assert all(map(torch.equal, before, ours.model.parameters()))
    stages["optimizer"]()
    assert not all(map(torch.equal, before, ours.model.parameters()))
    stages["backward"]()


def test_every_other_round_goes_the_other_way(bench: ModuleType) -> None:
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in ("a", "b", "c")}
    times = bench.in_turn(sides, 3)
    assert "".join(calls) == "abccbaabc"
    assert list(times) == ["a", "b", "c"]
    assert all(value["min_ms"] <= value["median_ms"] <= value["max_ms"] for value in times.values())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--size", "100"], "--size must be a multiple of 32, got 100"),
        (["--size", "0"], "--size must be a multiple of 32, got 0"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--threads", "-1"], "--threads must be at least 1, got -1"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--save", "../x"], "--save must be a name without folders, got ../x"),
    ],
)
def test_arguments_out_of_range(
    bench: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    with pytest.raises(SystemExit):
        bench.parsed(words)
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_a_run(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'bench')\n"
        "import timing\n"
        f"timing.ROOT = Path({str(tmp_path)!r})\n"
        "import train\n"
        "train.PICTURES = 2\n"
        "train.main()\n"
    )
    script = tmp_path / "small.py"
    script.write_text(program)
    (tmp_path / "bench").mkdir()
    options = ["--size", "64", "--batch", "2", "--threads", "1", "--rounds", "1", "--save", "small"]
    environment = {**os.environ, "PYTHONPATH": str(Path(yolonas.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bench" / "results" / "small.json").read_text())
    assert (result["size"], result["batch"], result["threads"], result["rounds"]) == ("64x64", 2, 1, 1)
    assert set(result["images_per_second"]) == {"yolonas", "plain torch", "loader"}
    assert result["losses"]["yolonas"] == pytest.approx(result["losses"]["plain torch"], rel=1e-4)
    total = result["times"]["yolonas"]["median_ms"]
    assert sum(result["stages_ms"].values()) == pytest.approx(total)
