"""YOLO data sets: which pictures and labels belong together, and what stands in for missing and bad ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from made_labels import NAMES, annotation, instances, touch, write, write_json, yolo_set

from yolonas.data.dataset import DetectionDataset, open_dataset
from yolonas.data.yolo import agree
from yolonas.records import Truth

LINE = "0 0.5 0.5 0.1 0.1\n"


@pytest.fixture(autouse=True)
def cache_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("yolonas.data.label_cache.cache_folder", lambda: folder)
    monkeypatch.setenv("YOLONAS_DATASETS", str(folder / "datasets"))


def texts(dataset: DetectionDataset) -> list[str]:
    return [str(problem) for problem in dataset.problems]


def test_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    yaml = yolo_set(root, {"b": "1 0.5 0.5 0.5 0.5\n2 0.25 0.25 0.5 0.5\n", "a": "", "c": LINE})
    touch(root / "images/val/.hidden.jpg")
    touch(root / "images/val/notes.md")
    dataset = open_dataset(yaml)
    assert (dataset.name, dataset.split, dataset.labels_from) == ("pets", "val", "labels/val (YOLO)")
    assert dataset.names == dict(enumerate(NAMES))
    assert dataset.category_ids == (1, 2, 3)
    assert [image.file_name for image in dataset.images] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [image.image_id for image in dataset.images] == ["a", "b", "c"]
    assert dataset.problems == []
    truth = dataset.images[1].truth((100, 200))
    assert truth.boxes.tolist() == [[50, 25, 100, 50], [0, 0, 100, 50]]
    assert truth.classes.tolist() == [1, 2]
    assert truth.areas.tolist() == [5000, 5000]
    assert not truth.crowd.any()
    assert len(dataset.images[0].truth((100, 200))) == 0


def test_bad_labels_name_file_and_line(tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path / "pets", {"a": f"{LINE}7 0.5 0.5 0.1 0.1\n", "b": LINE * 2, "c": b"\0", "d": None})
    (tmp_path / "pets/labels/val/e.txt").mkdir()
    touch(tmp_path / "pets/images/val/e.jpg")
    dataset = open_dataset(yaml)
    assert texts(dataset) == [
        "labels/val/a.txt:2: class must be a whole number of 0 to 2, got 7; label left out",
        "labels/val/b.txt:2: repeats another line; label left out",
        "labels/val/c.txt: is not a text file; picture left out",
        "labels/val/e.txt: is a folder or a device, not a file; picture left out",
        "labels/val: 1 of 5 pictures have no label file and count as pictures without objects",
    ]
    assert [image.image_id for image in dataset.images] == ["a", "b", "d"]
    assert [len(image.labels) for image in dataset.images] == [1, 1, 0]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    stem = os.fsdecode(b"caf\xe9\x1b[31m")
    dataset = open_dataset(yolo_set(tmp_path / "pets", {stem: f"{LINE}bad\n"}))
    assert len(dataset) == 1
    assert str(dataset.problems[0]) == "labels/val/caf??[31m.txt:2: must be numbers, got 'bad'; label left out"
    assert len(dataset.digest()) == 64


def test_texts_are_printable(tmp_path: Path) -> None:
    stem = os.fsdecode(b"p\xe9t\x1b")
    dataset = open_dataset(yolo_set(tmp_path / "pets" / stem, {"a": LINE}))
    assert (dataset.name, dataset.labels_from) == ("p?t?", "labels/val (YOLO)")
    for folder in ("images", "labels"):
        (tmp_path / "pets" / stem / folder / "val").rename(tmp_path / "pets" / stem / folder / stem)
    yaml = write(tmp_path / f"pets/{stem}/data.yaml", "val: images\nnames: [cat]\n")
    dataset = open_dataset(yaml)
    assert (dataset.name, dataset.labels_from) == ("p?t?", "labels/p?t? (YOLO)")
    (Path(dataset.images[0].path.replace("images", "labels")).with_suffix(".txt")).unlink()
    with pytest.raises(ValueError, match="has no label files") as caught:
        open_dataset(yaml)
    assert str(caught.value).isprintable()


def test_many_bad_files_are_counted(tmp_path: Path) -> None:
    bad = "9 0.5 0.5 0.1 0.1\n" * 30
    dataset = open_dataset(yolo_set(tmp_path / "pets", {f"{i:03d}": LINE + bad + LINE for i in range(200)}))
    assert len(dataset.problems) < 1100
    assert sum(problem.count for problem in dataset.problems) == 200 * 31
    assert texts(dataset)[-1] == "150 more files: 4650 problems; label left out"


def test_all_labels_missing(tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path / "pets", {"a": None, "b": None})
    with pytest.raises(
        ValueError, match=r"has no label files: none for any of its 2 pictures; looked for .*labels/val/a"
    ):
        open_dataset(yaml)


def test_no_label_is_usable(tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path / "pets", {"a": "0 320 240 10 10\n", "b": ""})
    with pytest.raises(
        ValueError, match=r"no usable label in labels/val, the first problem is: labels/val/a.txt:1: num"
    ):
        open_dataset(yaml)
    yaml = yolo_set(tmp_path / "binary", {"a": b"\0"})
    with pytest.raises(ValueError, match=r"first problem is: labels/val/a\.txt: is not a text file"):
        open_dataset(yaml)


def test_only_empty_pictures(tmp_path: Path) -> None:
    assert [len(image.labels) for image in open_dataset(yolo_set(tmp_path / "pets", {"a": ""})).images] == [0]


def test_a_yaml_without_names(tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path / "pets", {"a": LINE}, yaml="val: images/val\n")
    with pytest.raises(ValueError, match="names must list the classes"):
        open_dataset(yaml)


# A COCO json of the same split: pictures of 200x100 pixels.
BOXES = [annotation(1, 3, [90, 45, 20, 10], area=77), annotation(2, 11, [0, 0, 100, 50])]
CROWD = annotation(2, 7, [100, 50, 50, 50], iscrowd=1)
LABELS = {"a": LINE, "b": "2 0.25 0.25 0.5 0.5\n", "c": None}


def with_json(root: Path, annotations: list, labels: dict | None = None, **others: object) -> DetectionDataset:
    yaml = yolo_set(root, LABELS if labels is None else labels)
    content = instances({1: "a.jpg", 2: "b.jpg", 5: "c.jpg"}, annotations, **others)
    write_json(root / "annotations/instances_val.json", content)
    return open_dataset(yaml)


def test_a_json_that_agrees_is_used(tmp_path: Path) -> None:
    dataset = with_json(tmp_path / "pets", [*BOXES, CROWD])
    assert dataset.labels_from == "annotations/instances_val.json (COCO, 1 crowd region)"
    assert dataset.problems == []
    assert dataset.category_ids == (3, 7, 11)
    assert [image.image_id for image in dataset.images] == [1, 2, 5]
    assert dataset.images[0].size == (100, 200)
    truth = dataset.images[1].truth((100, 200))
    assert truth.classes.tolist() == [2, 1]
    assert truth.crowd.tolist() == [False, True]
    assert dataset.images[0].truth((100, 200)).areas.tolist() == [77]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    names = [{"id": 1, "name": "Cow"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}]
    boxes = [annotation(1, 3, [90, 45, 20, 10]), annotation(2, 1, [0, 0, 100, 50])]
    dataset = with_json(tmp_path / "pets", boxes, categories=names)
    assert dataset.labels_from.endswith("(COCO)")
    assert dataset.names == {0: "cat", 1: "dog", 2: "cow"}
    assert dataset.category_ids == (3, 2, 1)


@pytest.mark.parametrize(
    ("annotations", "others", "reason"),
    [
        ([BOXES[0], annotation(2, 11, [3, 0, 100, 50])], {}, "its boxes differ from the label file of b.jpg"),
        ([BOXES[0], annotation(2, 7, [0, 0, 100, 50])], {}, "its boxes differ from the label file of b.jpg"),
        (BOXES[:1], {}, "its boxes differ from the label file of b.jpg"),
        ([*BOXES, annotation(5, 3, [1, 1, 5, 5])], {}, "its boxes differ from the label file of c.jpg"),
        (BOXES, {"images": [{"id": 1, "file_name": "a.jpg"}]}, "no size for a.jpg"),
        (BOXES, {"images": instances({1: "a.jpg", 2: "b.jpg"}, [])["images"]}, "does not know c.jpg"),
        (BOXES, {"categories": "none"}, "must be a COCO instances file with a list 'categories'"),
        (BOXES, {"categories": [{"id": 3, "name": "x"}, {"id": 11, "name": "y"}]}, "must have the categories"),
    ],
)
def test_a_json_that_disagrees_is_not_used(tmp_path: Path, annotations: list, others: dict, reason: str) -> None:
    dataset = with_json(tmp_path / "pets", annotations, **others)
    assert dataset.labels_from == "labels/val (YOLO)"
    assert [image.image_id for image in dataset.images] == ["a", "b", "c"]
    first, second = texts(dataset)
    assert first.startswith("annotations/instances_val.json: not used, the labels are those of labels/val (YOLO): ")
    assert reason in first
    assert "1 of 3 pictures have no label file" in second


def test_repeated_lines_do_not_disagree(tmp_path: Path) -> None:
    dataset = with_json(tmp_path / "pets", BOXES, {**LABELS, "a": LINE * 2})
    assert dataset.labels_from.endswith("(COCO)")
    assert texts(dataset) == ["labels/val/a.txt:2: repeats another line"]


def test_a_json_without_label_files(tmp_path: Path) -> None:
    dataset = with_json(tmp_path / "pets", BOXES, {"a": None, "b": None, "d": None})
    assert dataset.labels_from == "annotations/instances_val.json (COCO)"
    assert [image.image_id for image in dataset.images] == [1, 2]
    assert texts(dataset) == [
        "annotations/instances_val.json: images/val/d.jpg is not among its pictures; picture left out"
    ]


def test_given_annotations_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = yolo_set(tmp_path / "pets", LABELS)
    content = instances({1: "a.jpg", 2: "val/b.jpg", 9: "elsewhere.jpg"}, [annotation(1, 7, [1, 2, 3, 4])])
    file = write_json(tmp_path / "pets/mine.json", content)
    dataset = open_dataset(yaml, annotations="mine.json")  # from the root of the data
    assert [image.image_id for image in dataset.images] == [1, 2]
    assert dataset.images[0].truth((100, 200)).classes.tolist() == [1]
    assert texts(dataset) == ["mine.json: images/val/c.jpg is not among its pictures; picture left out"]
    monkeypatch.chdir(tmp_path)
    assert open_dataset(yaml, annotations="pets/mine.json").digest() == dataset.digest()
    write_json(file, instances({1: "z.jpg"}, []))
    with pytest.raises(ValueError, match="must know the pictures of val, it has none of them"):
        open_dataset(yaml, annotations=file)
    with pytest.raises(ValueError, match=r"gone\.json cannot be read as COCO json: no such file"):
        open_dataset(yaml, annotations="gone.json")
    with pytest.raises(ValueError, match="images must be left out where val is a folder or a list"):
        open_dataset(yaml, images="images/val")


def test_a_list_like_that_of_coco(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    for stem in ("000000000007", "000000000042"):
        touch(root / f"images/val2017/{stem}.jpg")
        write(root / f"labels/val2017/{stem}.txt", LINE)
    write(root / "val2017.txt", "./images/val2017/000000000042.jpg\n./images/val2017/000000000007.jpg\n")
    boxes = [annotation(7, 3, [90, 45, 20, 10]), annotation(42, 3, [90, 45, 20, 10])]
    content = instances({7: "000000000007.jpg", 42: "000000000042.jpg"}, boxes)
    write_json(root / "annotations/instances_val2017.json", content)
    dataset = open_dataset(write(root / "coco.yaml", "val: val2017.txt\nnames: [cat, dog, cow]\n"))
    assert dataset.labels_from == "annotations/instances_val2017.json (COCO)"
    assert [image.image_id for image in dataset.images] == [42, 7]


def test_agreement_does_not_ask_for_an_order() -> None:
    rng = np.random.default_rng(3)
    boxes = rng.uniform(0, 500, (60, 4))
    classes = rng.integers(0, 3, 60)
    order = rng.permutation(60)
    moved = Truth.of(boxes[order] + rng.uniform(-1.4, 1.4, (60, 4)), classes[order])
    assert agree(Truth.of(boxes, classes), moved)
    other = classes[order].copy()
    other[0] = (other[0] + 1) % 3
    assert not agree(Truth.of(boxes, classes), Truth.of(moved.boxes, other))
    assert not agree(Truth.of(boxes, classes), Truth.of(boxes + np.array([0, 0, 0, 1.6]), classes))
    assert agree(Truth.of(), Truth.of())
    # two equal boxes need two partners
    twice = Truth.of([[0, 0, 5, 5], [0, 0, 5, 5]], [0, 0])
    assert not agree(twice, Truth.of([[0, 0, 5, 5], [9, 9, 5, 5]], [0, 0]))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "split", "images", "boxes", "crowds"),
    [
        ("bccd", "train", 205, 2804, 0),
        ("bccd", "val", 87, 1137, 0),
        ("coco8", "train", 4, 13, 0),
        ("coco8", "val", 4, 17, 0),
        ("coco128", "val", 128, 929, 10),
        ("coco_val78", "train", 128, 929, 10),
        ("coco_val78", "val", 78, 652, 8),
        ("tinycoco", "train", 16, 111, 0),
        ("tinycoco", "val", 3, 77, 0),
    ],
)
def test_real_sets(shared: Path, name: str, split: str, images: int, boxes: int, crowds: int) -> None:
    yaml = shared / "data" / name / f"{name}.yaml"
    dataset = open_dataset(yaml, split)
    assert dataset.problems == []
    assert "(COCO" in dataset.labels_from
    assert len(dataset) == images
    crowd = np.concatenate([image.labels.crowd for image in dataset.images])
    assert (int((~crowd).sum()), int(crowd.sum())) == (boxes, crowds)
    assert dataset.category_ids[:3] == (1, 2, 3)
    if name != "bccd":
        assert dataset.category_ids[-1] == 90
        assert dataset.images[0].image_id == int(Path(dataset.images[0].path).stem)
