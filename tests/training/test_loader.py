"""Batches for training: the right pictures and boxes, the same ones however many threads make them."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from yolonas import ops
from yolonas.data.dataset import DetectionDataset, LabelledImage, open_dataset
from yolonas.data.images import read_image
from yolonas.errors import SourceError
from yolonas.preprocess import Preprocess
from yolonas.records import Truth
from yolonas.training import loader as loader_module
from yolonas.training.assigner import pad_targets
from yolonas.training.augment import COCO, FINE_TUNING, NONE, Augmentation
from yolonas.training.loader import TrainingBatch, TrainingLoader, default_workers, scaled

INPUT = Preprocess().with_size((64, 96))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert_no_reader()


def assert_no_reader() -> None:
    end = time.monotonic() + 5
    while readers() and time.monotonic() < end:
        time.sleep(0.01)
    assert readers() == []


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("yolonas-")]


def made_dataset(folder: Path, count: int = 11) -> DetectionDataset:
    """Pictures of noise in four sizes. Each has one box, of a class of its own, over its middle."""
    random = np.random.default_rng(3)
    images = []
    for number in range(count):
        height, width = [(50, 80), (90, 60), (64, 96), (33, 120)][number % 4]
        path = folder / f"{number:02}.png"
        cv2.imwrite(str(path), random.integers(0, 256, (height, width, 3), np.uint8))
        truth = Truth.of([(0.25, 0.25, 0.5, 0.5)], [number])
        images.append(LabelledImage(str(path), number, path.name, None, truth, fractions=True))
    return DetectionDataset("made", "train", dict(enumerate(map(str, range(count)))), (), images, [], "nowhere")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    return made_dataset(tmp_path_factory.mktemp("pictures"))


def classes_of(batches: list[TrainingBatch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.targets[:, 1]]


def assert_same_batches(first: list[TrainingBatch], second: list[TrainingBatch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.targets, other.targets)
        assert one.names == other.names


@pytest.mark.parametrize(
    "preprocess",
    [
        INPUT,
        replace(INPUT, channels="bgr", padding="bottom_right", fit=(64, 96)),
        replace(INPUT, mean=(103.5, 116.0, 124.0), divisor=(57.0, 58.0, 59.0), pad_value=20),
        replace(INPUT, keep_ratio=False),
    ],
    ids=["published", "bgr, bottom right", "mean and divisor", "stretched"],
)
def test_without_changes_it_is_what_predict_sees(dataset: DetectionDataset, preprocess: Preprocess) -> None:
    (batch,) = TrainingLoader(dataset, preprocess, NONE, batch=11)
    assert batch.pixels.shape == (11, 3, 64, 96)
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    values = scaled(batch.pixels, preprocess)
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.dtype == torch.float32
    assert batch.targets[:, 0].tolist() == list(range(11))
    assert sorted(classes_of([batch])) == list(range(11))
    assert all(type(name) is str for name in batch.names)
    for number, label, *box in batch.targets.tolist():
        assert batch.names[int(number)] == dataset.images[int(label)].path
        picture = read_image(dataset.images[int(label)].path)
        geometry = preprocess.plan(*picture.shape[:2])
        expected = ops.letterbox(
            picture,
            frame=geometry.frame,
            resized=geometry.resized,
            offset=(geometry.top, geometry.left),
            pad_value=preprocess.pad_value,
            swap_channels=preprocess.channels == "rgb",
            mean=preprocess.mean,
            divisor=preprocess.divisor,
        )
        assert torch.equal(values[int(number)], torch.from_numpy(expected))
        (top, left), (height, width) = (geometry.top, geometry.left), geometry.resized
        quarters = (left + width / 4, top + height / 4, left + width * 3 / 4, top + height * 3 / 4)
        assert box == pytest.approx(quarters, abs=1e-4)


def test_the_loss_takes_the_targets(dataset: DetectionDataset) -> None:
    for batch in TrainingLoader(dataset, INPUT, FINE_TUNING, batch=4):
        pad_targets(batch.targets, 4, 11)


@pytest.mark.parametrize("augmentation", [COCO, FINE_TUNING], ids=["coco", "fine-tuning"])
def test_the_same_batches_for_any_number_of_threads(dataset: DetectionDataset, augmentation: Augmentation) -> None:
    settings = {"batch": 3, "seed": 5, "epochs": 3, "min_samples": 20}
    alone = TrainingLoader(dataset, INPUT, augmentation, workers=1, **settings)
    several = TrainingLoader(dataset, INPUT, augmentation, workers=5, **settings)
    epochs = []
    for epoch in range(2):
        alone.set_epoch(epoch)
        several.set_epoch(epoch)
        epochs.append(list(alone))
        assert_same_batches(epochs[-1], list(several))
    assert not torch.equal(epochs[0][0].pixels, epochs[1][0].pixels)
    several.set_epoch(0)
    assert_same_batches(list(several), epochs[0])
    other = TrainingLoader(dataset, INPUT, augmentation, **{**settings, "seed": 6})
    assert not torch.equal(next(iter(other)).pixels, epochs[0][0].pixels)


def test_pictures_come_in_another_order_each_epoch(dataset: DetectionDataset) -> None:
    loader = TrainingLoader(dataset, INPUT, NONE, batch=11)
    orders = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        orders.append(classes_of(list(loader)))
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_one_picture_is_changed_anew_each_time(tmp_path: Path) -> None:
    loader = TrainingLoader(made_dataset(tmp_path, 1), INPUT, Augmentation(translate=0.3), batch=8, min_samples=16)
    boxes = {tuple(row) for batch in loader for row in batch.targets[:, 2:].tolist()}
    assert len(boxes) == 16


def test_an_iteration_keeps_its_epoch(dataset: DetectionDataset) -> None:
    loader = TrainingLoader(dataset, INPUT, NONE, batch=3)
    expected = list(loader)
    batches = iter(loader)
    loader.set_epoch(1)
    assert_same_batches(list(batches), expected)


@pytest.mark.parametrize(
    ("batch", "min_samples", "drop_last", "sizes"),
    [
        (4, 0, True, [4, 4]),
        (4, 0, False, [4, 4, 3]),
        (11, 0, True, [11]),
        (20, 0, False, [11]),
        (20, 40, True, [20, 20]),
        (10, 25, False, [10, 10, 5]),
        (4, 5, True, [4, 4]),
    ],
)
def test_steps(dataset: DetectionDataset, batch: int, min_samples: int, drop_last: bool, sizes: list[int]) -> None:
    loader = TrainingLoader(dataset, INPUT, NONE, batch=batch, min_samples=min_samples, drop_last=drop_last)
    assert len(loader) == len(sizes)
    batches = list(loader)
    assert [len(batch.pixels) for batch in batches] == sizes
    times = np.bincount(classes_of(batches), minlength=11)
    assert times.max() - times.min() <= 1


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world", [2, 3])
def test_shards_of_several_processes(dataset: DetectionDataset, world: int, drop_last: bool) -> None:
    """Step by step, what one process would have with a batch as large as all of theirs."""
    whole = list(TrainingLoader(dataset, INPUT, COCO, batch=2 * world, drop_last=drop_last))
    parts = [
        list(TrainingLoader(dataset, INPUT, COCO, batch=2, drop_last=drop_last, rank=rank, world=world))
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        shares = [part[step].pixels for part in parts]
        names = [name for part in parts for name in part[step].names]
        assert tuple(names[: len(batch.names)]) == batch.names
        assert len({len(share) for share in shares}) == 1
        together = torch.cat(shares)
        if step < len(whole) - 1:
            assert len(together) == len(batch.pixels)
        assert torch.equal(together[: len(batch.pixels)], batch.pixels)
        assert len(together) - len(batch.pixels) < world
    assert {len(part) for part in parts} == {len(whole)}


def test_fewer_pictures_than_processes(tmp_path: Path) -> None:
    small = made_dataset(tmp_path, 2)
    for rank in range(5):
        (batch,) = TrainingLoader(small, INPUT, NONE, batch=3, drop_last=False, rank=rank, world=5)
        assert len(batch.pixels) == 1


def test_the_last_epochs_mix_no_pictures(dataset: DetectionDataset) -> None:
    mixing = Augmentation(mosaic=1.0, mixup=1.0)
    loader = TrainingLoader(dataset, INPUT, mixing, batch=11, epochs=4, plain_epochs=2)
    most = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        (batch,) = loader
        assert sorted(batch.names) == [image.path for image in dataset.images]  # the main ones
        most.append(int(batch.targets[:, 0].long().bincount().max()))
    assert min(most[:2]) > 1
    assert most[2:] == [1, 1]


def test_what_is_no_label(tmp_path: Path) -> None:
    (image, *_) = made_dataset(tmp_path, 1).images
    boxes = [(10, 10, 20, 20), (10, 10, 20, 20), (-10, 20, 30, 500), (200, 10, 20, 20), (10, 10, 0, 20)]
    truth = Truth.of(boxes, [0, 1, 2, 3, 4], crowd=[False, True, False, False, False])
    images = [replace(image, labels=truth, fractions=False), replace(image, labels=Truth.of())]
    dataset = DetectionDataset("made", "train", {}, (), images, [], "nowhere")
    preprocess = Preprocess(size=(64, 96), fit=(64, 96), enlarge=False, padding="bottom_right")
    (batch,) = TrainingLoader(dataset, preprocess, NONE, batch=2)  # the picture has 50 x 80 pixels and keeps them
    rows = batch.targets[:, 1:].tolist()
    assert rows == [[0, 10, 10, 30, 30], [2, 0, 20, 20, 50]]
    assert len(batch.targets[:, 0].unique()) == 1


def test_no_labels_at_all(tmp_path: Path) -> None:
    images = [replace(image, labels=Truth.of()) for image in made_dataset(tmp_path, 4).images]
    dataset = DetectionDataset("made", "train", {0: "a"}, (), images, [], "nowhere")
    (batch,) = TrainingLoader(dataset, INPUT, FINE_TUNING, batch=4)
    assert batch.targets.shape == (0, 6)
    assert batch.targets.dtype == torch.float32


def test_pictures_that_cannot_be_read_are_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = made_dataset(tmp_path)
    Path(dataset.images[4].path).write_bytes(b"no picture")
    Path(dataset.images[7].path).unlink()
    results = []
    for workers in (1, 4):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="yolonas"):
            loader = TrainingLoader(dataset, INPUT, NONE, batch=11, workers=workers)
            batches = list(loader)
            loader.set_epoch(1)
            batches += list(loader)
        texts = sorted(record.message for record in caplog.records)
        assert len(texts) == 2
        assert texts[0].startswith(f"training: {tmp_path / '04.png'} left out: ")
        assert texts[0].count("04.png") == 1
        assert texts[1] == f"training: {tmp_path / '07.png'} left out: no such file"
        assert all(len(batch.pixels) == 11 for batch in batches)
        assert set(classes_of(batches)) == set(range(11)) - {4, 7}
        for batch in batches:
            assert batch.names == tuple(dataset.images[label].path for label in classes_of([batch]))
        results.append(batches)
    assert_same_batches(*results)


def test_a_picture_that_cannot_be_read_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made_dataset(tmp_path, 3)
    Path(dataset.images[1].path).unlink()
    tried = []

    def counted(path: str) -> np.ndarray:
        tried.append(path)
        return read_image(path)

    monkeypatch.setattr(loader_module, "read_image", counted)
    loader = TrainingLoader(dataset, INPUT, NONE, batch=3, workers=1)
    for epoch in range(3):
        loader.set_epoch(epoch)
        list(loader)
    assert tried.count(dataset.images[1].path) == 1
    assert len(tried) == 10


def test_no_picture_can_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = made_dataset(tmp_path, 3)
    for image in dataset.images:
        Path(image.path).write_bytes(b"no picture")
    with pytest.raises(
        SourceError, match=r"pictures of made must be readable, 100 random ones were not, such as .*png"
    ):
        next(iter(TrainingLoader(dataset, INPUT, NONE, batch=1)))
    assert 1 <= len(caplog.records) <= 3


def test_leaving_an_iteration_ends_its_threads(dataset: DetectionDataset) -> None:
    loader = TrainingLoader(dataset, INPUT, NONE, batch=2, workers=3, min_samples=1000)
    for _ in loader:
        assert readers()
        break
    gc.collect()
    assert_no_reader()
    batches = iter(loader)
    assert not readers()
    next(batches)
    del batches
    assert_no_reader()


def test_an_error_in_a_thread_reaches_the_caller(dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("once")

    monkeypatch.setattr(loader_module, "augment", broken)
    with pytest.raises(ZeroDivisionError, match="once"):
        list(TrainingLoader(dataset, INPUT, NONE, batch=2, workers=2))
    assert_no_reader()


def test_it_reads_only_so_far_ahead(dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = loader_module.augment

    def counted(*arguments: object) -> object:
        made.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loader_module, "augment", counted)
    batches = iter(TrainingLoader(dataset, INPUT, NONE, batch=4, workers=3, min_samples=1000))
    next(batches)
    time.sleep(0.3)
    assert len(made) <= 4 + (2 * 4 + 3)
    del batches


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch": 0}, "training: batch must be at least 1, got 0"),
        ({"seed": -1}, "training: seed must be at least 0, got -1"),
        ({"epochs": 0}, "training: epochs must be at least 1"),
        ({"plain_epochs": -1}, "training: plain_epochs must be at least 0"),
        ({"min_samples": -1}, "training: min_samples must be at least 0"),
        ({"workers": 0}, "training: workers must be at least 1, got 0"),
        ({"world": 0}, "training: world must be at least 1"),
        ({"rank": 2, "world": 2}, r"training: rank must lie in 0\.\.1, got 2"),
        ({"batch": 12}, r"batch \* world must be at most 11, .* of made, got 12 \* 1; lower batch or"),
        ({"batch": 6, "world": 2}, r"batch \* world must be at most 11, .* got 6 \* 2"),
    ],
)
def test_settings_out_of_range(dataset: DetectionDataset, settings: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TrainingLoader(dataset, INPUT, NONE, **{"batch": 2, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"fit": None}, {"rect": True}])
def test_pictures_must_get_one_frame(dataset: DetectionDataset, change: dict[str, bool | None]) -> None:
    with pytest.raises(ValueError, match=r"must resize pictures into one frame, got .*; use dataclasses"):
        TrainingLoader(dataset, replace(INPUT, **change), NONE, batch=2)  # type: ignore[arg-type]


def test_an_empty_data_set(dataset: DetectionDataset) -> None:
    with pytest.raises(ValueError, match="made must have pictures, its split train has none"):
        TrainingLoader(replace(dataset, images=[]), INPUT, NONE, batch=1)


def test_threads_of_several_processes_share_the_cores() -> None:
    assert 1 <= default_workers(2) <= default_workers() <= 16
    assert default_workers(10_000) == 1


@pytest.mark.shared
@pytest.mark.parametrize("augmentation", [COCO, FINE_TUNING], ids=["coco", "fine-tuning"])
def test_real_pictures(shared: Path, augmentation: Augmentation) -> None:
    dataset = open_dataset(shared / "data/coco128/coco128.yaml", "train", cache=False).with_fraction(0.25)
    loader = TrainingLoader(dataset, Preprocess().with_size((320, 320)), augmentation, batch=16)
    labels = 0
    for pixels, targets, names in loader:
        assert len(names) == 16
        assert pixels.shape == (16, 3, 320, 320)
        assert pixels.float().std() > 30
        assert (targets[:, 2:] >= 0).all()
        assert (targets[:, 2:] <= 320).all()
        labels += len(targets)
    assert labels > sum(len(image.labels) for image in dataset.images) / 2
