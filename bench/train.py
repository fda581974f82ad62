"""Steps of a training on the CPU, S by default at 320 pixels: ours against plain torch, and where the time goes.

Both sides start with the same weights, make steps with the same batch in one process, in turn, and must find the same
loss first. The other side is `train_by_hand.py`: what one would write with plain torch modules.

python bench/train.py [--save NAME] [--size 320] [--batch 8] [--threads N] [--rounds 9] [--bf16]

The pictures are drawn, changed as in a training on COCO, and labelled with the first of the network's 80 classes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from timing import compare, machine, save, versions
from train_by_hand import Trainer

from yolonas.data import shapes
from yolonas.data.dataset import open_dataset
from yolonas.nn import YoloNAS
from yolonas.nn.network import STRIDE
from yolonas.preprocess import Preprocess
from yolonas.training.assigner import assign
from yolonas.training.augment import COCO
from yolonas.training.ema import Ema
from yolonas.training.loader import TrainingLoader, scaled
from yolonas.training.loss import DetectionLoss
from yolonas.training.optimizer import build_optimizer, clip_gradients_
from yolonas.training.step import Batch, Learner, train_step

CLASSES = 80
PICTURES = 48  # drawn at least, of this size:
PICTURE_SIZE = (480, 640)
LEARNING_RATE = 1e-6  # so low that the steps of both sides stay alike
CLOSE = 1e-4  # of the loss, between both sides
OURS, OURS_BF16, BY_HAND, LOADER = "yolonas", "yolonas, bf16", "plain torch", "loader"

Side = Callable[[], Any]


class Training:
    """A batch, and our side of a step with it."""

    def __init__(self, pictures: torch.Tensor, targets: torch.Tensor, seed: int = 0, precision: str = "float32"):
        """Pictures and targets as `train_step` takes them; the initial weights follow from the seed.

        Pictures and weights lie channels last, as in `yolonas train`.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = YoloNAS("s", CLASSES).to(memory_format=torch.channels_last).train()
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        self.batch = Batch(pictures, targets, tuple(str(number) for number in range(len(pictures))))
        self.loss = DetectionLoss()
        self.learner = Learner(
            self.model,
            build_optimizer(self.model, learning_rate=LEARNING_RATE),
            ema=Ema(self.model),
            precision=precision,
        )
        self.steps = 0

    def step(self) -> float:
        """One step; the loss before it."""
        done = train_step(self.learner, [self.batch], step=self.steps, learning_rate=LEARNING_RATE, loss=self.loss)
        self.steps += 1
        return done.total

    def stages(self) -> dict[str, Side]:
        """What `train_step` does, one by one, each of them any number of times. A step must have been made before."""
        learner, optimizer = self.learner, self.learner.optimizer
        assert learner.ema is not None
        # Of a copy, since the optimizer changes weights that going backward needs again.
        model = copy.deepcopy(self.model)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        _, raw = model(self.batch.pictures)
        assignment = assign(raw, self.batch.targets)
        total = self.loss.of_assignment(raw, assignment).total

        def backward() -> None:
            model.zero_grad()
            total.backward(retain_graph=True, inputs=parameters)

        return {
            "forward": partial(learner.forward, self.batch.pictures),
            "assignment": partial(assign, raw, self.batch.targets),
            "loss": partial(self.loss.of_assignment, raw, assignment),
            "backward": backward,
            "norm of the gradients": partial(clip_gradients_, optimizer, None),
            "optimizer": optimizer.step,
            "average": partial(learner.ema.update, self.model, self.steps + 1),
        }


def loader_of(folder: Path, size: int, batch: int) -> TrainingLoader:
    """Batches of drawn pictures for one thread, changed as in a training on COCO."""
    pictures = -(-PICTURES // batch) * batch
    data = shapes.write(folder / "shapes", train=pictures, val=1, size=PICTURE_SIZE, verbose=False)
    dataset = open_dataset(data, "train", cache=False)
    return TrainingLoader(dataset, Preprocess().with_size((size, size)), COCO, batch=batch, workers=1)


def first_batch(loader: TrainingLoader) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures `(N, 3, H, W)` float32, channels first in memory, and their targets."""
    batch = next(iter(loader))
    return scaled(batch.pixels, loader.preprocess).contiguous(), batch.targets


@contextmanager
def opencv_threads(count: int) -> Iterator[None]:
    """As many threads of OpenCV meanwhile."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def in_turn(sides: dict[str, Side], rounds: int) -> dict[str, dict[str, float]]:
    """`timing.compare` with one call of each side a round, every other round in the opposite order."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = dict(reversed(sides.items())) if number % 2 else sides
        for name, value in compare(order, rounds=1, repeats=1).items():
            times[name].append(value["median_ms"])
    return {
        name: {"median_ms": statistics.median(values), "min_ms": min(values), "max_ms": max(values)}
        for name, values in times.items()
    }


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times, printed and as they are saved."""
    size, batch, rounds = arguments.size, arguments.batch, arguments.rounds
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    loader = loader_of(folder, size, batch)
    pictures, targets = first_batch(loader)
    ours = Training(pictures, targets)
    by_hand = Trainer(ours.model.state_dict(), size=(size, size), classes=CLASSES, learning_rate=LEARNING_RATE)
    sides: dict[str, Side] = {OURS: ours.step, BY_HAND: partial(by_hand.step, pictures, targets)}
    if arguments.bf16:
        sides[OURS_BF16] = Training(pictures, targets, precision="bf16").step
    losses = {name: side() for name, side in sides.items()}
    if not abs(losses[OURS] - losses[BY_HAND]) <= CLOSE * abs(losses[BY_HAND]):
        sys.exit(f"the losses of both sides must be within {CLOSE:g} of each other, got {losses}")
    parts = ours.stages()
    times = in_turn({**sides, **parts}, rounds)
    stages = {name: times.pop(name) for name in parts}

    def read() -> int:
        return sum(len(batch.pixels) for batch in loader)

    with opencv_threads(1):
        count = read()
        loading = in_turn({LOADER: read}, max(3, rounds // 3))[LOADER]

    step = times[OURS]["median_ms"]
    ratio = step / times[BY_HAND]["median_ms"]
    by_stage = {name: value["median_ms"] for name, value in stages.items()}
    by_stage["the rest of train_step"] = step - sum(by_stage.values())
    images = {name: round(1e3 * batch / value["median_ms"], 2) for name, value in times.items()}
    images[LOADER] = round(1e3 * count / loading["median_ms"], 1)
    info = machine()
    print(f"YOLO-NAS S, {size}x{size}, batch {batch}, {len(targets)} boxes, {torch.get_num_threads()} threads of torch")
    for name, value in times.items():
        print(f"  {name:<24} {show(value)}   {images[name]:6.2f} images/s   loss {losses[name]:.6f}")
    print(f"  {OURS} over {BY_HAND}: {ratio:.3f}\n\nthe stages of ours, each by itself:")
    for name, ms in by_stage.items():
        print(f"  {name:<24} {ms:9.2f} ms   {ms / step:6.1%} of a step")
    height, width = PICTURE_SIZE
    print(f"\nthe loader, one thread, JPEG of {width}x{height}, changes as for COCO: {images[LOADER]:.1f} images/s")
    return {
        "machine": info,
        "versions": versions(["torch"]),
        "command": " ".join(["python", "bench/train.py", *sys.argv[1:]]),
        "rounds": rounds,
        "model": ours.model.variant.model_name,
        "size": f"{size}x{size}",
        "batch": batch,
        "classes": CLASSES,
        "boxes": len(targets),
        "threads": torch.get_num_threads(),
        "times": times,
        "ratio": round(ratio, 3),
        "images_per_second": images,
        "losses": losses,
        "stages_ms": by_stage,
        "stages": {**stages, LOADER: loading},
        "loader_pictures": count,
    }


def show(times: dict[str, float]) -> str:
    return f"{times['median_ms']:9.2f} ms ({times['min_ms']:.2f} to {times['max_ms']:.2f})"


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; ends the program where a number makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    parser.add_argument("--size", type=int, default=320, help="pixels, height and width of a picture")
    parser.add_argument("--batch", type=int, default=8, help="pictures in a step")
    parser.add_argument("--threads", type=int, help="of torch; default: its own")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bf16", action="store_true", help="ours in mixed precision too, for processors that have it")
    arguments = parser.parse_args(words)
    if arguments.size < STRIDE or arguments.size % STRIDE:
        parser.error(f"--size must be a multiple of {STRIDE}, got {arguments.size}")
    for name in ("batch", "threads", "rounds"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if arguments.save is not None and Path(arguments.save).name != arguments.save:
        parser.error(f"--save must be a name without folders, got {arguments.save}")
    return arguments


def main() -> None:
    arguments = parsed()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    if arguments.save is not None:
        print(f"saved {save(arguments.save, result)}")


if __name__ == "__main__":
    main()
