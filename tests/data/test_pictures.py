"""Pictures of YOLO data sets: folders, lists, links, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from made_labels import touch, write, yolo_set

from yolonas.data import dataset as dataset_module
from yolonas.data.dataset import DetectionDataset, open_dataset
from yolonas.data.pictures import label_path

LINE = "0 0.5 0.5 0.1 0.1\n"


@pytest.fixture(autouse=True)
def cache_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("yolonas.data.label_cache.cache_folder", lambda: folder)
    monkeypatch.setenv("YOLONAS_DATASETS", str(folder / "datasets"))


def texts(dataset: DetectionDataset) -> list[str]:
    return [str(problem) for problem in dataset.problems]


def test_sub_folders_lists_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pets"
    for name in ("x/images/a.jpg", "x/images/deep/b.PNG", "y/images/c.jpg", "lists/images/d.jpg", "y/images/e.jpg"):
        touch(root / name)
        write(Path(label_path(str(root / name))), LINE)
    write(root / "lists/val.txt", f"# a list\n./images/d.jpg\n\ny/images/c.jpg\n{root}/x/images/a.jpg\n")
    yaml = write(root / "pets.yaml", "val: [x/images, lists/val.txt, y/images/e.jpg]\nnames: [cat, dog, cow]\n")
    dataset = open_dataset(yaml)
    assert [Path(image.path).name for image in dataset.images] == ["a.jpg", "b.PNG", "d.jpg", "c.jpg", "e.jpg"]
    assert texts(dataset) == ["lists/val.txt:5: picture x/images/a.jpg is there twice; picture left out"]
    assert (root / "x/labels/deep/b.txt").exists()
    assert dataset.labels_from.endswith("(YOLO)")
    monkeypatch.chdir(root)
    assert open_dataset("pets.yaml").digest() == dataset.digest()


def test_list_lines_beside_the_list(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    touch(root / "lists/images/a.jpg")
    write(root / "lists/labels/a.txt", LINE)
    yaml = write(root / "pets.yaml", "val: lists/val.txt\nnames: [cat]\n")
    write(root / "lists/val.txt", "images/a.jpg\r\nimages/missing.jpg\r\n")
    dataset = open_dataset(yaml)
    assert len(dataset) == 1
    assert texts(dataset) == ["lists/val.txt:2: picture images/missing.jpg is missing; picture left out"]


def test_entries_that_leave_the_root(tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path / "pets", {"a": LINE})
    other = write(tmp_path / "other/o.yaml", "val: ../pets/images/val\nnames: [cat]\n")
    assert open_dataset(other).images[0].path == open_dataset(yaml).images[0].path
    # ../ that goes astray, as some exports write it, is the yaml's own folder
    yaml.write_text("val: ../images/val\nnames: [cat]\n")
    assert len(open_dataset(yaml)) == 1


def test_label_path() -> None:
    assert label_path("/d/images/val/a.b.jpg") == "/d/labels/val/a.b.txt"
    assert label_path("/images/d/images/x/images.jpg") == "/images/d/labels/x/images.txt"
    assert label_path("/d/pictures/a.jpg") == "/d/pictures/a.txt"


@pytest.mark.parametrize(
    ("stems", "ids"),
    [
        (["000000000139", "7"], [139, 7]),
        (["007", "7"], ["007", "7"]),
        (["1", "a"], ["1", "a"]),
        (["٣", "1"], ["1", "٣"]),
        (["9" * 30, "1"], ["1", "9" * 30]),
    ],
)
def test_image_ids(tmp_path: Path, stems: list[str], ids: list[int | str]) -> None:
    dataset = open_dataset(yolo_set(tmp_path / "pets", dict.fromkeys(stems, LINE)))
    assert [image.image_id for image in dataset.images] == ids


def test_names_that_collide(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for name in ("a/1.jpg", "b/1.jpg", "b/1.png"):
        touch(root / "images" / name)
        write(root / "labels" / Path(name).with_suffix(".txt"), LINE)
    yaml = write(root / "pets.yaml", "train: [images/a, images/b/1.jpg]\nval: images\nnames: [cat]\n")
    dataset = open_dataset(yaml, "train")
    assert [image.image_id for image in dataset.images] == ["images/a/1", "images/b/1"]
    assert [image.file_name for image in dataset.images] == ["images/a/1.jpg", "images/b/1.jpg"]
    dataset = open_dataset(yaml)
    assert [image.image_id for image in dataset.images] == ["images/a/1.jpg", "images/b/1.jpg", "images/b/1.png"]


def test_links_and_pipes(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    yaml = yolo_set(root, {"a": LINE, "b": LINE})
    (root / "images/val/nothing.jpg").symlink_to("gone.jpg")
    (root / "images/val/loop.jpg").symlink_to("loop.jpg")
    (root / "images/val/folder.jpg").symlink_to("..")
    (root / "images/val/up").symlink_to("..")
    os.mkfifo(root / "images/val/pipe.jpg")
    (root / "labels/val/b.txt").unlink()
    os.mkfifo(root / "labels/val/b.txt")
    dataset = open_dataset(yaml)
    assert [image.image_id for image in dataset.images] == ["a"]
    assert texts(dataset) == [
        "images/val: picture loop.jpg is a link to nothing; picture left out",
        "images/val: picture nothing.jpg is a link to nothing; picture left out",
        "images/val: picture pipe.jpg is no regular file; picture left out",
        "labels/val/b.txt: is a folder or a device, not a file; picture left out",
    ]


def test_a_folder_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = yolo_set(tmp_path / "pets", {"a": LINE})
    closed = tmp_path / "pets/images/val/closed"
    closed.mkdir()
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("yolonas.data.pictures.os.scandir", guarded)
    found = texts(open_dataset(yaml))
    monkeypatch.undo()
    assert found == [f"images/val: folder {closed} cannot be opened: permission denied; picture left out"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("images/nowhere", "val must be a folder or file that exists, got 'images/nowhere'; looked for "),
        ("../images/nowhere", "looked for .* and .*; put the data there or set path in the yaml"),
        ("empty", "must have pictures, empty in .* has none"),
        ("list.txt", "has none; the first problem is: list.txt:1: picture gone.jpg is missing; picture left out"),
        ("blank.txt", "data: list .* must have at least one path"),
        ("binary.txt", "data: list .* must be a text file"),
        ("notes.md", "must be a folder, a .txt list, a COCO .json or a picture, got 'notes.md'"),
        ("x" * 4000, "must be a folder or file that exists"),
    ],
)
def test_entries_that_are_refused(tmp_path: Path, entry: str, message: str) -> None:
    root = tmp_path / "pets"
    (root / "empty").mkdir(parents=True)
    write(root / "list.txt", "gone.jpg\n")
    write(root / "blank.txt", "\n#\n")
    write(root / "binary.txt", b"\0\n")
    touch(root / "notes.md")
    yaml = write(root / "pets.yaml", f"val: {entry}\nnames: [cat]\n")
    with pytest.raises(ValueError, match=message):
        open_dataset(yaml)


def test_many_problems_of_one_list_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    yaml = yolo_set(root, {"a": LINE}, yaml="val: list.txt\nnames: [cat]\n")
    write(root / "list.txt", "images/val/a.jpg\n" + "".join(f"gone/{i}.jpg\n" for i in range(1000)))
    dataset = open_dataset(yaml)
    assert len(dataset.problems) == dataset_module.SHOWN_PROBLEMS + 1
    assert str(dataset.problems[-1]) == "list.txt: and 980 more; picture left out"
    assert sum(problem.count for problem in dataset.problems) == 1000


def listed(root: Path, text: str | bytes) -> DetectionDataset:
    yaml = yolo_set(root, {"a": LINE, "b": LINE}, yaml="val: list.txt\nnames: [cat, dog, cow]\n")
    write(root / "list.txt", text)
    return open_dataset(yaml)


def test_lines_that_are_no_pictures(tmp_path: Path) -> None:
    lines = ["images/val/a.jpg", "labels/val/b.txt", "../../../etc/passwd", "labels/val/gone.txt", "images/val"]
    found = listed(tmp_path / "pets", "\n".join(lines))
    assert [image.file_name for image in found.images] == ["a.jpg"]
    assert texts(found) == [
        f"list.txt:{number}: {line} must be a picture, its suffix is that of none; picture left out"
        for number, line in enumerate(lines[1:], 2)
    ]
    with pytest.raises(ValueError, match=r"has none; the first problem is: list.txt:1: labels/val/b.txt must be a pic"):
        listed(tmp_path / "pets", "labels/val/b.txt\n")


def test_lines_from_windows(tmp_path: Path) -> None:
    found = listed(tmp_path / "pets", "images\\val\\a.jpg\r\n.\\images/val/b.jpg\r\nimages\\val\\c.jpg\r\n")
    assert [image.file_name for image in found.images] == ["a.jpg", "b.jpg"]
    assert texts(found) == ["list.txt:3: picture images\\val\\c.jpg is missing; picture left out"]
    found = open_dataset(write(tmp_path / "pets/pets.yaml", "val: images\\val\nnames: [cat, dog, cow]\n"))
    assert len(found) == 2
    touch(tmp_path / "pets/images/val/x\\a.jpg")  # which is a name here
    write(tmp_path / "pets/labels/val/x\\a.txt", LINE)
    assert len(listed(tmp_path / "pets", "images/val/x\\a.jpg\n")) == 1


def test_long_lines(tmp_path: Path) -> None:
    found = listed(tmp_path / "pets", "images/val/a.jpg\n" + "x" * 15_000_000 + ".jpg\n" + "y" * 10**6 + "\n")
    assert len(found) == 1
    assert [text[:14] for text in texts(found)] == ["list.txt:2: pi", "list.txt:3: yy"]
    assert max(map(len, texts(found))) < 600
    with pytest.raises(ValueError, match="the first problem is") as caught:
        listed(tmp_path / "pets", "x" * 15_000_000 + ".jpg\n")
    assert len(str(caught.value)) < 2000


def test_long_entries(tmp_path: Path) -> None:
    yaml = write(tmp_path / "pets.yaml", f"val: [{', '.join(['x' * 4000 + '/' + 'y' * 90] * 5)}]\nnames: [cat]\n")
    with pytest.raises(ValueError, match=r"must be a folder or file that exists.*set path in the yaml$") as caught:
        open_dataset(yaml)
    assert len(str(caught.value)) < 2000
