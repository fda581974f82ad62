"""What every data set can do: digests, fractions, and the class numbers of a model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_labels import write, yolo_set

from yolonas.config import COCO_CATEGORY_IDS, COCO_NAMES
from yolonas.data.data_yaml import DataConfig
from yolonas.data.dataset import MAX_PROBLEMS, DetectionDataset, Problem, Problems, open_dataset

LABELS = {"a": "0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n", "b": "", "c": "2 0.5 0.5 0.1 0.1\n"}


@pytest.fixture
def yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("yolonas.data.label_cache.cache_folder", lambda: tmp_path / "cache")
    return yolo_set(tmp_path / "pets", LABELS)


def classes(dataset: DetectionDataset) -> list[list[int]]:
    return [image.labels.classes.tolist() for image in dataset.images]


def test_category_ids_of_coco() -> None:
    assert len(COCO_CATEGORY_IDS) == len(COCO_NAMES) == 80
    named = dict(zip(COCO_NAMES, COCO_CATEGORY_IDS, strict=True))
    assert [named[name] for name in ("person", "stop sign", "parking meter", "toothbrush")] == [1, 13, 14, 90]
    assert [named[name] for name in ("dining table", "toilet", "tv", "book")] == [67, 70, 72, 84]


def test_coco_names_get_coco_ids(yaml: Path) -> None:
    yaml.write_text(f"val: images/val\nnames: {list(COCO_NAMES)}\n")
    assert open_dataset(yaml).category_ids == COCO_CATEGORY_IDS


def test_digest(yaml: Path, tmp_path: Path) -> None:
    digest = open_dataset(yaml).digest()
    assert len(digest) == 64
    shutil.copytree(yaml.parent, tmp_path / "elsewhere/pets")
    assert open_dataset(tmp_path / "elsewhere/pets/pets.yaml").digest() == digest
    seen = {digest}
    folder = yaml.parent
    for change in (
        lambda: write(folder / "labels/val/a.txt", LABELS["a"].replace("0.1", "0.2", 1)),
        lambda: write(folder / "labels/val/a.txt", LABELS["a"].replace("1 0.5", "2 0.5", 1)),
        lambda: write(folder / "labels/val/b.txt", "1 0.5 0.5 0.1 0.1\n"),
        lambda: write(yaml, "val: images/val\nnames: [cat, dog, pig]\n"),
        lambda: (folder / "images/val/b.jpg").rename(folder / "images/val/b.png"),
    ):
        change()
        seen.add(open_dataset(yaml).digest())
    assert len(seen) == 6


def test_fraction(yaml: Path) -> None:
    dataset = open_dataset(yaml)
    assert [len(dataset.with_fraction(value)) for value in (1, 0.9, 2 / 3, 0.5, 1e-9)] == [3, 3, 2, 2, 1]
    many = replace(dataset, images=dataset.images[:1] * 100)
    assert [len(many.with_fraction(value)) for value in (0.07, 0.29, 0.57)] == [7, 29, 57]
    assert dataset.with_fraction(0.5).images == dataset.images[:2]
    for value in (0, -1, 1.5, float("nan"), "x", None, [1], 10**400):
        with pytest.raises(ValueError, match="fraction must be above 0 and at most 1, got"):
            dataset.with_fraction(value)


def test_for_a_model_with_the_same_names(yaml: Path) -> None:
    dataset = open_dataset(yaml)
    assert dataset.for_model({2: "cow", 0: "cat", 1: "dog"}) is dataset


def test_for_a_model_with_another_order(yaml: Path) -> None:
    dataset = open_dataset(yaml).for_model({0: "Dog", 1: "cow ", 2: "cat"})
    assert classes(dataset) == [[2, 0], [], [1]]
    assert dataset.names == {0: "Dog", 1: "cow ", 2: "cat"}
    assert dataset.category_ids == (2, 3, 1)
    assert dataset.problems == []


def test_for_a_model_that_knows_more(yaml: Path) -> None:
    dataset = open_dataset(yaml).for_model(dict(enumerate(["pig", "cow", "hen", "dog", "cat"])))
    assert classes(dataset) == [[4, 3], [], [1]]
    assert dataset.category_ids == (4, 3, 5, 2, 1)
    truth = dataset.images[0].truth((100, 100))
    assert truth.classes.tolist() == [4, 3]
    assert truth.boxes.round(6).tolist() == [[45, 45, 10, 10]] * 2


def test_for_a_model_with_other_names(yaml: Path) -> None:
    dataset = open_dataset(yaml)
    other = dataset.for_model({0: "cat", 1: "class_1", 2: "class_2"})
    assert classes(other) == classes(dataset)
    assert other.names == {0: "cat", 1: "class_1", 2: "class_2"}
    assert other.category_ids == dataset.category_ids
    assert [str(problem) for problem in other.problems] == [
        "pets: class names differ from the model's, first at 1: 'dog', the model has 'class_1'; "
        "classes are matched by number"
    ]
    assert dataset.problems == []


def test_for_a_model_that_does_not_fit(yaml: Path) -> None:
    message = (
        r"pets must have the model's classes; it has 3 \('cat', 'dog', 'cow'\), the model 4 \('a', 'b', 'c', ...\); use"
    )
    with pytest.raises(ValueError, match=message):
        open_dataset(yaml).for_model(dict(enumerate("abcd")))
    with pytest.raises(ValueError, match=r"it has 3 .* the model 2"):
        open_dataset(yaml).for_model({0: "cat", 1: "dog"})


def test_for_a_model_whose_names_are_not_printable(yaml: Path) -> None:
    yaml.write_text('val: images/val\nnames: ["c\\eat", "do\\ng", cow]\n')
    dataset = open_dataset(yaml)
    names = {0: "c\x1bat", 1: "do\ng", 2: "cow"}
    other = dataset.for_model(names)
    assert (other.names, other.problems, classes(other)) == (names, [], classes(dataset))
    assert other.for_model({0: "do\ng", 1: "cow", 2: "c\x1bat"}).category_ids == (2, 3, 1)


def test_for_a_model_with_long_names(yaml: Path) -> None:
    long = {number: f"{number}" + "x" * 10**6 for number in range(4)}
    with pytest.raises(ValueError, match="must have the model's classes") as caught:
        open_dataset(yaml).for_model(long)
    assert len(str(caught.value)) < 2000


def test_names_that_repeat(yaml: Path) -> None:
    yaml.write_text("val: images/val\nnames: [cat, cat, cow]\n")
    dataset = open_dataset(yaml)
    assert dataset.for_model({0: "cat", 1: "cat", 2: "cow"}) is dataset
    assert "first at 1" in str(dataset.for_model({0: "cat", 1: "dog", 2: "cow"}).problems[0])
    with pytest.raises(ValueError, match="must have the model's classes"):
        dataset.for_model({0: "cat", 1: "dog", 2: "cow", 3: "pig"})


def test_a_config_instead_of_a_file(yaml: Path) -> None:
    config = DataConfig("built in", None, yaml.parent, {"val": ["images/val"]}, {0: "cat", 1: "dog", 2: "cow"})
    dataset = open_dataset(config)
    assert dataset.name == "built in"
    assert dataset.digest() == open_dataset(yaml).digest()


def test_splits(yaml: Path) -> None:
    assert open_dataset(yaml, "validation").split == "val"
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'all'"):
        open_dataset(yaml, "all")
    with pytest.raises(ValueError, match=r"split must be one of val in .*pets.yaml, got 'test'"):
        open_dataset(yaml, "test")


@pytest.mark.parametrize("name", ["pets", "pets.txt", ".", ""])
def test_data_of_another_kind(name: str) -> None:
    with pytest.raises(ValueError, match="must be a data yaml or a COCO json, got"):
        open_dataset(name)


@pytest.mark.parametrize("value", [5, b"x", ["x"], 1.5])
def test_arguments_of_another_type(yaml: Path, value: object) -> None:
    with pytest.raises(ValueError, match="annotations must be a path, got "):
        open_dataset(yaml, annotations=value)
    with pytest.raises(ValueError, match="images must be a path, got "):
        open_dataset(yaml, images=value)
    with pytest.raises(ValueError, match="data must be a path, got "):
        open_dataset(value)
    with pytest.raises(ValueError, match="split must be one of"):
        open_dataset(yaml, value)


@pytest.mark.parametrize("value", ["a\0b", "x" * 10**6, "~nobody/x", "\ud800\x1b"])
def test_paths_that_no_file_has(yaml: Path, value: str) -> None:
    for opened in (
        lambda: open_dataset(f"{value}.yaml"),
        lambda: open_dataset(f"{value}.json"),
        lambda: open_dataset(value),
        lambda: open_dataset(yaml, annotations=value),
        lambda: open_dataset(yaml, annotations=value, images=value),
        lambda: open_dataset(yaml, images=value),
        lambda: open_dataset(yaml, value),
    ):
        with pytest.raises(ValueError) as caught:
            opened()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= 2001


def test_problems_are_counted() -> None:
    problems = Problems()
    for number in range(25):
        problems.add("a.txt", "is bad", "label", place=f":{number}")
    problems.add("b.txt", "is bad", "nothing")
    problems.add("a.txt", "is gone", "picture", count=3)
    found = problems.all()
    assert len(found) == 23
    assert found[20] == Problem("a.txt", "and 5 more", "label", 5)
    assert [str(problem) for problem in found[-2:]] == ["b.txt: is bad", "a.txt: is gone; picture left out"]
    assert sum(problem.count for problem in found) == 29


def test_problems_are_safe_to_print() -> None:
    assert str(Problem("a\x1b[31m\n\udce9.txt", "is bad\r", "nothing")) == "a?[31m??.txt: is bad?"


def test_problems_are_short() -> None:
    assert len(Problem("a.txt", "x" * 10**7, "nothing").what) < 600


def test_the_problems_of_many_files_are_counted() -> None:
    problems = Problems()
    for file in range(2000):
        for number in range(30):
            problems.add(f"{file}.txt", "is bad", "label", place=f":{number}")
        problems.add(f"{file}.txt", "is odd", "nothing")
    found = problems.all()
    assert MAX_PROBLEMS <= len(found) <= MAX_PROBLEMS + 100
    for cost, count in (("label", 60_000), ("nothing", 2000)):
        assert sum(problem.count for problem in found if problem.cost == cost) == count
    assert [str(problem) for problem in found[-2:]] == [
        "1952 more files: 58560 problems; label left out",
        "1953 more files: 1953 problems",
    ]
