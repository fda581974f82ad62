"""Instances files: every kind of bad entry, and numbers that stay as they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_labels import annotation, instances, write, write_json

from yolonas.data import instances as instances_module
from yolonas.data.instances import Instances, read_instances

GOOD = annotation(1, 3, [10, 20, 30.5, 40])


def read(folder: Path, content: Any) -> Instances:
    return read_instances(write_json(folder / "i.json", content), "i.json")


def texts(found: Instances) -> list[str]:
    return [str(problem) for problem in found.problems]


def test_order_and_numbers(tmp_path: Path) -> None:
    crowd = annotation(9, 3, [0, 0, 1e2, 5], iscrowd=1, area=3.25)
    content = instances({9: "b.jpg", 1: "deep/a.jpg", 5: "c.jpg"}, [crowd, GOOD, annotation(9, 7, [1, 1, 2, 2])])
    content["categories"].reverse()
    found = read(tmp_path, content)
    content["categories"].reverse()
    assert found.names == ("cat", "dog", "cow")
    assert found.category_ids == (3, 7, 11)
    assert found.images == [(1, "deep/a.jpg", (100, 200)), (5, "c.jpg", (100, 200)), (9, "b.jpg", (100, 200))]
    assert [len(truth) for truth in found.truths] == [1, 0, 2]
    assert found.truths[0].boxes.tolist() == [[10, 20, 30.5, 40]]
    assert found.truths[0].areas.tolist() == [1220]
    assert found.truths[2].classes.tolist() == [0, 1]
    assert found.truths[2].crowd.tolist() == [True, False]
    assert found.truths[2].areas.tolist() == [3.25, 4]
    assert sum(int(truth.crowd.sum()) for truth in found.truths) == 1
    assert found.problems == []
    assert found.truths[0].classes.dtype == np.int32


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("text", "must be an object, got 'text'"),
        (None, "must be an object, got None"),
        ({}, "image_id must be that of a picture, got None"),
        (annotation(2, 3, [1, 1, 2, 2]), "image_id must be that of a picture, got 2"),
        (annotation([1], 3, [1, 1, 2, 2]), "image_id must be that of a picture, got [1]"),
        (annotation("1", 3, [1, 1, 2, 2]), "image_id must be that of a picture, got '1'"),
        (annotation(1, 4, [1, 1, 2, 2]), "category_id must be that of a category, got 4"),
        (annotation(1, {}, [1, 1, 2, 2]), "category_id must be that of a category, got {}"),
        (annotation(1, None, [1, 1, 2, 2]), "category_id must be that of a category, got None"),
        ({"image_id": 1, "category_id": 3}, "bbox must be 4 numbers x, y, width, height, got None"),
        (annotation(1, 3, [1, 1, 2]), "bbox must be 4 numbers x, y, width, height, got [1, 1, 2]"),
        (annotation(1, 3, []), "bbox must be 4 numbers x, y, width, height, got []"),
        (annotation(1, 3, "1234"), "bbox must be 4 numbers x, y, width, height, got '1234'"),
        (annotation(1, 3, ["1", "1", "2", "2"]), "bbox must be 4 numbers"),
        (annotation(1, 3, [[1], 1, 2, 2]), "bbox must be 4 numbers"),
        (annotation(1, 3, [1, 1, 2, None]), "bbox must be 4 numbers"),
        (annotation(1, 3, [1, 1, 2, float("nan")]), "bbox must be in pixels, got [1, 1, 2, nan]"),
        (annotation(1, 3, [1, 1, float("inf"), 2]), "bbox must be in pixels"),
        (annotation(1, 3, [1, -1e300, 2, 1e301]), "bbox must be in pixels"),
        (annotation(1, 3, [1e308, 1, 1e308, 1e308]), "bbox must be in pixels"),
        (annotation(1, 3, [1e308] * 4, area=1e308), "bbox must be in pixels, got [1e+308, 1e+308, 1e+308, 1e+308]"),
        (annotation(1, 3, [1, 1, 2, 10**400]), "bbox must be in pixels"),
        (annotation(1, 3, [1, 1, 0, 2]), "bbox must have a width and a height above 0, got [1, 1, 0, 2]"),
        (annotation(1, 3, [1, 1, 5, -2]), "bbox must have a width and a height above 0"),
        (annotation(1, 3, [200, 1, 5, 5]), "bbox must touch the picture of 200x100 pixels, got [200, 1, 5, 5]"),
        (annotation(1, 3, [-5, 1, 5, 5]), "bbox must touch the picture of 200x100 pixels"),
        (annotation(1, 3, [1, 1, 5, 5], iscrowd=2), "iscrowd must be 0 or 1, got 2"),
        (annotation(1, 3, [1, 1, 5, 5], iscrowd="0"), "iscrowd must be 0 or 1, got '0'"),
        (annotation(1, 3, [1, 1, 5, 5], iscrowd=[0]), "iscrowd must be 0 or 1, got [0]"),
        (annotation(1, 3, [1, 1, 5, 5], iscrowd={}), "iscrowd must be 0 or 1, got {}"),
        (annotation(1, 3, [1, 1, 5, 5], iscrowd=""), "iscrowd must be 0 or 1, got ''"),
        (GOOD, "repeats another annotation of the picture: category_id 3, bbox [10, 20, 30.5, 40]"),
    ],
)
def test_bad_annotations(tmp_path: Path, bad: Any, what: str) -> None:
    other = annotation(1, 7, [-0.0, 0, 5, 5])
    found = read(tmp_path, instances({1: "a.jpg"}, [GOOD, bad, other]))
    (text,) = texts(found)
    assert text.startswith("i.json: annotation 1: " + what)
    assert text.endswith("; label left out")
    assert found.truths[0].boxes.tolist() == [[10, 20, 30.5, 40], [0, 0, 5, 5]]


def test_the_annotation_is_called_by_its_id(tmp_path: Path) -> None:
    found = read(tmp_path, instances({1: "a.jpg"}, [GOOD, annotation(1, 4, [1, 1, 2, 2], id=17)]))
    assert texts(found)[0].startswith("i.json: annotation 17: category_id")


@pytest.mark.parametrize("area", [None, 0, -5, float("nan"), float("inf"), "12", [3], 10**400])
def test_areas_that_are_no_areas(tmp_path: Path, area: Any) -> None:
    found = read(tmp_path, instances({1: "a.jpg"}, [{**GOOD, "area": area}, annotation(1, 7, [1, 1, 5, 5], area=7)]))
    assert found.truths[0].areas.tolist() == [1220, 7]
    assert found.problems == []


def test_iscrowd_may_be_missing_or_null(tmp_path: Path) -> None:
    first = {key: value for key, value in GOOD.items() if key != "iscrowd"}
    found = read(tmp_path, instances({1: "a.jpg"}, [first, annotation(1, 7, [1, 1, 5, 5], iscrowd=None)]))
    assert found.truths[0].crowd.tolist() == [False, False]


def test_a_crowd_region_does_not_repeat_an_object(tmp_path: Path) -> None:
    crowd = {**GOOD, "iscrowd": 1}
    found = read(tmp_path, instances({1: "a.jpg"}, [GOOD, crowd, crowd]))
    assert found.truths[0].crowd.tolist() == [False, True]
    assert [problem.where for problem in found.problems] == ["i.json: annotation 2"]


@pytest.mark.parametrize(
    "name",
    ["/a/b.jpg", "../b.jpg", "x/../../b.jpg", "..", ".", "x/..", "C:/b.jpg", "c:b.jpg", "..\\b.jpg", "\\\\host\\b.jpg"],
)
def test_pictures_outside_the_folder(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, instances({1: "a.jpg", 2: name}, [GOOD, annotation(2, 3, [1, 1, 2, 2])]))
    assert [file_name for _, file_name, _ in found.images] == ["a.jpg"]
    (text,) = texts(found)
    assert text.startswith("i.json: image 1: file_name must be a picture in the picture folder, got ")
    assert text.endswith("; picture left out")


def test_file_names_are_normalised(tmp_path: Path) -> None:
    names = {1: "b.jpg", 2: "./b.jpg", 3: "x//../x/c.jpg", 4: "x\\c.jpg", 5: "d..jpg", 6: "..e/f.jpg"}
    found = read(tmp_path, instances(names, [GOOD]))
    assert [file_name for _, file_name, _ in found.images] == ["b.jpg", "x/c.jpg", "d..jpg", "..e/f.jpg"]
    assert texts(found) == [
        "i.json: image 1: file_name './b.jpg' was there before; picture left out",
        "i.json: image 3: file_name 'x\\\\c.jpg' was there before; picture left out",
    ]


def test_category_names_are_printable(tmp_path: Path) -> None:
    names = ["a\ud800", "\0b\x1b[1m\n", "a\udfff", "\n"]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 3)]
    found = read(tmp_path, instances({1: "a.jpg"}, [GOOD], categories=categories))
    assert found.names == ("a?", "?b?[1m", "category 5", "category 6")
    "".join(found.names).encode()


def test_a_category_that_is_called_like_a_stand_in(tmp_path: Path) -> None:
    categories = [{"id": 2, "name": "category 3"}, {"id": 3}, {"id": 4, "name": "category 3'"}]
    found = read(tmp_path, instances({1: "a.jpg"}, [GOOD], categories=categories))
    assert found.names == ("category 3", "category 3'", "category 4")


def test_bad_images(tmp_path: Path) -> None:
    content = instances({1: "a.jpg"}, [GOOD, annotation(4, 3, [1, 1, 2, 2]), annotation(6, 3, [1, 1, 2, 2])])
    content["images"] += [
        "text",
        {"file_name": "b.jpg"},
        {"id": True, "file_name": "b.jpg"},
        {"id": 2**60, "file_name": "b.jpg"},
        {"id": 1, "file_name": "c.jpg"},
        {"id": 4, "file_name": None},
        {"id": 5, "file_name": "d\0.jpg"},
        {"id": 6, "file_name": "a.jpg"},
        {"id": 7.0, "file_name": "e.jpg", "width": 0, "height": "5"},
        {"id": "x", "file_name": "f.jpg"},
    ]
    found = read(tmp_path, content)
    assert found.images == [(1, "a.jpg", (100, 200)), (7, "e.jpg", None), ("x", "f.jpg", None)]
    assert [problem.where for problem in found.problems] == [f"i.json: image {place}" for place in range(1, 9)]
    assert {problem.cost for problem in found.problems} == {"picture"}
    assert "id 1 was there before" in found.problems[4].what
    assert "file_name 'a.jpg' was there before" in found.problems[7].what


def test_bad_categories(tmp_path: Path) -> None:
    categories = [
        {"id": 5, "name": "cat"},
        {"id": 3},
        {"id": 4, "name": "cat"},
        {"id": 5, "name": "dog"},
        {"name": "cow"},
        7,
    ]
    found = read(tmp_path, instances({1: "a.jpg"}, [GOOD], categories=categories))
    assert found.category_ids == (3, 4, 5)
    assert found.names == ("category 3", "cat", "category 5")
    assert len(found.problems) == 5
    assert {problem.cost for problem in found.problems} == {"nothing"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as COCO json"),
        (b"\xff\xfe\xfd", "cannot be read as COCO json"),
        (b"[" * 200_000, "cannot be read as COCO json: it is nested too deeply"),
        (b'{"images": ' + b"9" * 5000 + b"}", "cannot be read as COCO json"),
        (b"[]", "must be a COCO instances file, got a list; that is what predictions look like"),
        (b"7", "must be a COCO instances file with a list 'images', got None"),
        (b'{"images": {}}', "with a list 'images', got {}"),
        (b'{"images": [], "categories": []}', "with a list 'annotations', got None"),
        (b'{"images": [], "annotations": []}', "with a list 'categories', got None"),
        (b'{"images": [], "annotations": [], "categories": []}', "must have at least one category with an id"),
        (b'{"images": [1], "annotations": [], "categories": [{"id": 1}]}', "must list pictures with an id"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = write(tmp_path / "i.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        read_instances(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_no_usable_annotation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of its 2 annotations is usable, the first problem is: i"):
        read(tmp_path, instances({1: "a.jpg"}, [annotation(3, 3, [1, 1, 2, 2]), 5]))
    assert read(tmp_path, instances({1: "a.jpg"}, [])).truths[0].boxes.shape == (0, 4)


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances_module, "MAX_JSON_BYTES", 10)
    with pytest.raises(ValueError, match="more than the limit of 10"):
        read(tmp_path, instances({1: "a.jpg"}, [GOOD]))


def test_many_bad_annotations_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path, instances({1: "a.jpg"}, [GOOD] * 5001 + [annotation(2, 3, [1, 1, 2, 2])] * 1000))
    assert len(found.problems) == 21
    assert str(found.problems[-1]) == "i.json: and 5980 more; label left out"
    assert len(found.truths[0]) == 1


def test_a_bad_entry_does_not_change_the_others(tmp_path: Path) -> None:
    """One odd value makes numpy columns impossible; the slow way must give the same."""
    rng = np.random.default_rng(5)
    boxes = [
        annotation(
            int(rng.integers(50)), int(rng.choice([3, 7, 11])), rng.uniform(1, 90, 4).round(2).tolist(), area=k + 1
        )
        for k in range(2000)
    ]
    pictures = {number: f"{number}.jpg" for number in range(50)}
    quick = read(tmp_path, instances(pictures, boxes))
    odd = [{}, "x", annotation([0], [0], {}, iscrowd=[], area={}), annotation(0, 3, [0, 0, 1, 10**400], area=10**400)]
    slow = read(tmp_path, instances(pictures, [*boxes, *odd]))
    assert [len(slow.problems), len(quick.problems)] == [4, 0]
    for one, other in zip(quick.truths, slow.truths, strict=True):
        for field in ("boxes", "classes", "areas", "crowd"):
            assert np.array_equal(getattr(one, field), getattr(other, field))


def test_the_same_boxes_as_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    rng = np.random.default_rng(6)
    boxes = [
        annotation(int(rng.integers(9)), 7, rng.uniform(1, 90, 4).tolist(), id=k + 1, area=9.5, iscrowd=k % 2)
        for k in range(100)
    ]
    file = write_json(tmp_path / "i.json", instances({number: f"{number}.jpg" for number in range(9)}, boxes))
    coco = COCO(str(file))
    capsys.readouterr()
    found = read_instances(file)
    assert [image_id for image_id, _, _ in found.images] == sorted(coco.getImgIds())
    for (image_id, _, _), truth in zip(found.images, found.truths, strict=True):
        expected = coco.imgToAnns[image_id]
        assert truth.boxes.tolist() == [item["bbox"] for item in expected]
        assert truth.crowd.tolist() == [bool(item["iscrowd"]) for item in expected]


@pytest.mark.shared
def test_a_real_file(shared: Path) -> None:
    file = shared / "data/coco_val78/annotations/instances_val2017.json"
    content = json.loads(file.read_bytes())
    found = read_instances(file)
    assert found.problems == []
    assert sum(map(len, found.truths)) == len(content["annotations"])
    assert float(sum(truth.areas.sum() for truth in found.truths)) == pytest.approx(
        sum(item["area"] for item in content["annotations"])
    )
