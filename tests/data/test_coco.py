"""Data sets from a COCO json: where the pictures are, and which class its categories are."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_labels import annotation, instances, touch, write, write_json

from yolonas.data.dataset import DetectionDataset, open_dataset

BOXES = [annotation(2, 11, [0, 0, 10, 10]), annotation(1, 3, [1, 1, 5, 5])]
PICTURES = {2: "b.jpg", 1: "a.jpg"}


def texts(dataset: DetectionDataset) -> list[str]:
    return [str(problem) for problem in dataset.problems]


def pictures(folder: Path, *names: str) -> None:
    for name in names or PICTURES.values():
        touch(folder / name)


@pytest.mark.parametrize("folder", ["images/val2017", "val2017", "images", ".", "annotations"])
def test_the_folder_of_the_pictures_is_guessed(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "annotations/instances_val2017.json", instances(PICTURES, BOXES))
    pictures(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("annotations/instances_val2017.json")
    assert [image.image_id for image in dataset.images] == [1, 2]
    assert all(Path(image.path).samefile(tmp_path / folder / image.file_name) for image in dataset.images)
    assert dataset.labels_from == "annotations/instances_val2017.json (COCO)"
    assert (dataset.name, dataset.names) == ("instances_val2017", {0: "cat", 1: "dog", 2: "cow"})
    assert dataset.category_ids == (3, 7, 11)
    assert dataset.images[0].truth((999, 999)).boxes.tolist() == [[1, 1, 5, 5]]
    assert dataset.problems == []


def test_file_names_with_folders(tmp_path: Path) -> None:
    file = write_json(tmp_path / "annotations/instances_val.json", instances({1: "val/a.jpg", 2: "val/b.jpg"}, BOXES))
    pictures(tmp_path / "images/val")
    dataset = open_dataset(file)
    assert [image.file_name for image in dataset.images] == ["val/a.jpg", "val/b.jpg"]


def test_missing_pictures_are_left_out(tmp_path: Path) -> None:
    file = write_json(tmp_path / "instances_val.json", instances(PICTURES, BOXES))
    pictures(tmp_path / "images", "b.jpg")
    dataset = open_dataset(file)
    assert [image.image_id for image in dataset.images] == [2]
    assert texts(dataset) == ["images: picture a.jpg is missing; picture left out"]


def test_no_pictures(tmp_path: Path) -> None:
    file = write_json(tmp_path / "annotations/instances_val.json", instances(PICTURES, BOXES))
    with pytest.raises(
        ValueError, match=r"pictures of .* not found, such as 'a.jpg'; looked in .*images/val, .*give their"
    ):
        open_dataset(file)
    with pytest.raises(
        ValueError, match=r"none of the 2 pictures of .* is in .*elsewhere; give their folder as images"
    ):
        open_dataset(file, images=tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["a" * 5000, "\ud800.jpg", "../../x.jpg", "/nowhere/x.jpg"])
def test_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    file = write_json(tmp_path / "instances_val.json", instances({1: "a.jpg", 2: name}, BOXES))
    pictures(tmp_path, "a.jpg")
    assert len(open_dataset(file)) == 1


def test_names_of_any_length(tmp_path: Path) -> None:
    file = write_json(tmp_path / "instances_val.json", instances({1: "a.jpg", 2: "b" * 10**6}, BOXES))
    with pytest.raises(ValueError, match=r"pictures of .* not found") as caught:
        open_dataset(file)
    pictures(tmp_path, "a.jpg")
    (text,) = texts(open_dataset(file))
    assert len(text) < 600
    long = [{"id": key, "name": str(key) + "x" * 10**6} for key in (3, 11)]
    write_json(file, instances(PICTURES, BOXES, categories=long))
    write(tmp_path / "pets.yaml", "val: instances_val.json\nnames: [" + "y" * 10**6 + "]\n")
    with pytest.raises(ValueError, match="must have the categories that the yaml names") as other:
        open_dataset(tmp_path / "pets.yaml")
    assert max(len(str(caught.value)), len(str(other.value))) < 2000


def test_a_name_from_the_folder(tmp_path: Path) -> None:
    file = write_json(tmp_path / "pets/_annotations.coco.json", instances(PICTURES, BOXES))
    pictures(tmp_path / "pets")
    assert open_dataset(file).name == "pets"


def test_a_json_in_a_yaml(tmp_path: Path) -> None:
    write_json(tmp_path / "annotations/instances_val.json", instances(PICTURES, BOXES))
    pictures(tmp_path / "pics")
    yaml = write(tmp_path / "pets.yaml", "val: annotations/instances_val.json\nimages: {val: pics}\n")
    dataset = open_dataset(yaml)
    assert (dataset.name, dataset.split, len(dataset)) == ("pets", "val", 2)
    assert dataset.names == {0: "cat", 1: "dog", 2: "cow"}
    pictures(tmp_path / "more", "a.jpg")
    assert len(open_dataset(yaml, images=tmp_path / "more")) == 1
    yaml.write_text("val: [annotations/instances_val.json, x]\n")
    with pytest.raises(ValueError, match=r"val of .* must be one json alone"):
        open_dataset(yaml)


def test_names_of_the_yaml_give_the_numbers(tmp_path: Path) -> None:
    write_json(tmp_path / "instances_val.json", instances(PICTURES, BOXES))
    pictures(tmp_path)

    def opened(names: str) -> DetectionDataset:
        return open_dataset(write(tmp_path / "pets.yaml", f"val: instances_val.json\nnames: {names}\n"))

    dataset = opened("[cow, dog, cat]")
    assert dataset.category_ids == (11, 7, 3)
    assert [image.labels.classes.tolist() for image in dataset.images] == [[2], [0]]

    dataset = opened("[horse, cow, dog, cat, pig]")  # more than the json has
    assert dataset.category_ids == (1, 11, 7, 3, 2)
    assert [image.labels.classes.tolist() for image in dataset.images] == [[3], [1]]

    dataset = opened("[cow, cat]")  # the json has no dogs
    assert dataset.category_ids == (11, 3)
    assert [image.labels.classes.tolist() for image in dataset.images] == [[1], [0]]

    dataset = opened("[Katze, Hund, Kuh]")
    assert dataset.category_ids == (3, 7, 11)
    assert texts(dataset) == [
        "instances_val.json: category names differ from the class names, first at 0: 'cat' and 'Katze'; "
        "categories are matched by rank of their id"
    ]
    with pytest.raises(
        ValueError, match=r"must have the categories that the yaml names; it has 3 \('cat', 'dog', 'cow'"
    ):
        opened("[Katze, Hund]")


def test_json_and_annotations(tmp_path: Path) -> None:
    file = write_json(tmp_path / "instances_val.json", instances(PICTURES, BOXES))
    with pytest.raises(ValueError, match="annotations must be left out where data is a json"):
        open_dataset(file, annotations=file)


def test_annotations_and_images_of_a_yaml(tmp_path: Path) -> None:
    write_json(tmp_path / "mine.json", instances(PICTURES, BOXES))
    pictures(tmp_path / "pics")
    yaml = write(tmp_path / "pets.yaml", "val: nowhere\nnames: [cow, dog, cat]\n")
    dataset = open_dataset(yaml, images="pics", annotations="mine.json")
    assert [image.labels.classes.tolist() for image in dataset.images] == [[2], [0]]


@pytest.mark.shared
def test_real_files(shared: Path) -> None:
    for name, split, count, crowds in (("coco128", "train2017", 128, 10), ("bccd", "val", 87, 0)):
        by_json = open_dataset(shared / f"data/{name}/annotations/instances_{split}.json")
        by_yaml = open_dataset(shared / f"data/{name}/{name}.yaml")
        assert len(by_json) == len(by_yaml) == count
        assert sum(int(image.labels.crowd.sum()) for image in by_json.images) == crowds
        assert by_json.names == by_yaml.names
        assert by_json.digest() == by_yaml.digest()
