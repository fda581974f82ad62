from __future__ import annotations

import copy
import csv
import io
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from yolonas import label_text, window
from yolonas.results import Boxes, Results

NAMES = {0: "person", 1: "bicycle", 2: "car"}
ROWS = np.array(
    [
        [10.0, 20.0, 50.0, 80.0, 0.9, 0],
        [0.0, 0.0, 200.0, 100.0, 0.75, 2],
        [100.5, 30.25, 160.5, 90.75, 0.5, 0],
    ],
    np.float32,
)
TRACKED = np.insert(ROWS, 4, [7, 1234567, 9], axis=1)


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)


def results(rows: Any = ROWS, **options: Any) -> Results:
    return Results(picture(), options.pop("path", "folder/street.jpg"), NAMES, rows, **options)


@pytest.fixture(params=["numpy", "torch"])
def rows(request: pytest.FixtureRequest) -> Any:
    return ROWS.copy() if request.param == "numpy" else torch.from_numpy(ROWS.copy())


def test_box_columns(rows: Any) -> None:
    boxes = Boxes(rows, (100, 200))
    assert boxes.data is rows
    expected = {
        "xyxy": ROWS[:, :4],
        "xywh": [[30, 50, 40, 60], [100, 50, 200, 100], [130.5, 60.5, 60, 60.5]],
        "xyxyn": ROWS[:, :4] / [200, 100, 200, 100],
        "xywhn": [[0.15, 0.5, 0.2, 0.6], [0.5, 0.5, 1, 1], [0.6525, 0.605, 0.3, 0.605]],
        "conf": ROWS[:, 4],
        "cls": ROWS[:, 5],
    }
    for name, values in expected.items():
        column = getattr(boxes, name)
        assert type(column) is type(rows)
        assert column.dtype == rows.dtype
        np.testing.assert_allclose(column, values, rtol=1e-6, err_msg=name)
    assert boxes.id is None
    assert not boxes.is_track
    assert boxes.shape == (3, 6)
    assert boxes.orig_shape == (100, 200)
    assert len(boxes) == 3
    np.testing.assert_array_equal(rows, ROWS)  # nothing above changed the data


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_tracked_boxes(kind: Any) -> None:
    boxes = Boxes(kind(TRACKED), (100, 200))
    assert boxes.is_track
    assert boxes.shape == (3, 7)
    np.testing.assert_array_equal(boxes.id, [7, 1234567, 9])
    np.testing.assert_array_equal(boxes.conf, ROWS[:, 4])
    np.testing.assert_array_equal(boxes.cls, ROWS[:, 5])
    np.testing.assert_array_equal(boxes.xyxy, ROWS[:, :4])


@pytest.mark.parametrize(
    ("index", "chosen"),
    [
        (1, [1]),
        (-1, [2]),
        (np.int64(2), [2]),
        (torch.tensor(0), [0]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        (slice(5, 9), []),
        ([2, 0, 0], [2, 0, 0]),
        ([], []),
        (range(2), [0, 1]),
        (np.array([2, -3]), [2, 0]),
        (np.array([True, False, True]), [0, 2]),
        ([False, False, False], []),
        (torch.tensor([False, True, True]), [1, 2]),
        (torch.tensor([1]), [1]),
        (np.array(1, np.uint8), [1]),
    ],
    ids=str,
)
def test_indexing(rows: Any, index: Any, chosen: list[int]) -> None:
    boxes = Boxes(rows, (100, 200))[index]
    assert type(boxes.data) is type(rows)
    assert boxes.shape == (len(chosen), 6)
    assert boxes.orig_shape == (100, 200)
    np.testing.assert_array_equal(boxes.data, ROWS[chosen])
    part = results(rows)[index]
    np.testing.assert_array_equal(part.boxes.data, ROWS[chosen])
    assert len(part) == len(chosen)


def test_indexing_with_the_boxes_own_mask(rows: Any) -> None:
    found = results(rows)
    np.testing.assert_array_equal(found[found.boxes.conf > 0.6].boxes.data, ROWS[:2])
    np.testing.assert_array_equal(found.boxes[found.boxes.cls == 0].data, ROWS[[0, 2]])


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        (3, IndexError, r"must lie in -3\.\.2, got 3"),
        (-4, IndexError, "got -4"),
        ([0, 9], IndexError, "must lie in"),
        (np.array([True, False]), IndexError, r"one value per box, 3, got shape \(2,\)"),
        (True, TypeError, "must be a number, slice"),
        (None, TypeError, "must be a number, slice"),
        ((0, 1), TypeError, "must be a number, slice"),
        ("0", TypeError, "must be a number, slice"),
        (1.0, TypeError, "one-dimensional numbers"),
        (np.array([[0]]), TypeError, r"got int64 \(1, 1\)"),
    ],
)
def test_refused_indices(rows: Any, index: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Boxes(rows, (100, 200))[index]


def test_iteration(rows: Any) -> None:
    boxes = list(Boxes(rows, (100, 200)))
    assert [float(box.conf[0]) for box in boxes] == [float(value) for value in ROWS[:, 4]]
    assert [part.verbose() for part in results(rows)] == ["1 person, ", "1 car, ", "1 person, "]


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        ([[1, 2, 3, 4, 0.5, 0]], TypeError, "must be a NumPy array or torch tensor, got list"),
        (np.zeros((2, 5)), ValueError, r"must have shape \(N, 6\).*got \(2, 5\)"),
        (np.zeros((2, 8)), ValueError, r"got \(2, 8\)"),
        (np.zeros((1, 2, 6)), ValueError, r"got \(1, 2, 6\)"),
        (np.zeros(4), ValueError, r"got \(1, 4\)"),
        (np.zeros((2, 6), complex), TypeError, "real numbers, got dtype complex128"),
        (np.zeros((2, 6), object), TypeError, "got dtype object"),
        (torch.zeros((2, 6), dtype=torch.complex64), TypeError, r"got dtype torch\.complex64"),
        (torch.zeros(2, 9), ValueError, r"got \(2, 9\)"),
    ],
)
def test_refused_data(data: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Boxes(data, (100, 200))


@pytest.mark.parametrize("shape", [(), (5,), (0, 5), (5, -1)])
def test_refused_original_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"orig_shape must be \(height, width\)"):
        Boxes(ROWS, shape)


def test_one_row_and_whole_numbers_are_taken() -> None:
    assert Boxes(ROWS[0], (100, 200)).shape == (1, 6)
    assert Boxes(ROWS.astype(int), (100, 200)).data.dtype == np.float32
    assert Boxes(torch.zeros((2, 6), dtype=torch.int64), (100, 200)).data.dtype == torch.float32
    assert Boxes(ROWS.astype(np.float64), (100, 200)).data.dtype == np.float64


def test_conversions() -> None:
    arrays, tensors = Boxes(ROWS, (100, 200)), Boxes(torch.from_numpy(ROWS), (100, 200))
    assert isinstance(tensors.numpy().data, np.ndarray)
    assert isinstance(tensors.cpu().data, torch.Tensor)
    assert arrays.numpy() is arrays
    assert arrays.cpu() is arrays
    assert arrays.to(torch.float64).data.dtype == torch.float64
    assert tensors.to("cpu", dtype=torch.float16).data.dtype == torch.float16
    for boxes in (tensors.numpy(), arrays.to("cpu"), tensors.to(torch.float64)):
        np.testing.assert_array_equal(boxes.data, ROWS)
    half = tensors.to(torch.bfloat16).numpy()
    assert half.data.dtype == np.float32
    with_gradient = Boxes(torch.from_numpy(ROWS.copy()).requires_grad_(), (100, 200))
    np.testing.assert_array_equal(with_gradient.numpy().data, ROWS)


def test_conversion_of_arrays_with_negative_strides() -> None:
    np.testing.assert_array_equal(Boxes(ROWS[::-1], (100, 200)).to("cpu").data, ROWS[::-1])


@pytest.mark.cuda
def test_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = results().cuda()
    assert found.boxes.data.device.type == "cuda"
    np.testing.assert_array_equal(found[found.boxes.conf > 0.6].numpy().boxes.data, ROWS[:2])
    assert found.cpu().boxes.data.device.type == "cpu"
    assert found.plot().shape == (100, 200, 3)


def test_result_conversions(rows: Any) -> None:
    found = results(rows, speed={"preprocess": 1.0, "inference": 2.0, "postprocess": 3.0})
    found.save_dir = "somewhere"
    for other in (found.cpu(), found.numpy(), found.to("cpu"), found[:2], found.new()):
        assert other is not found
        assert other.orig_img is found.orig_img
        assert (other.path, other.names, other.speed, other.save_dir) == (
            found.path,
            NAMES,
            {"preprocess": 1.0, "inference": 2.0, "postprocess": 3.0},
            "somewhere",
        )
        assert other.speed is not found.speed
    assert isinstance(found.to("cpu").boxes.data, torch.Tensor)
    assert isinstance(found.numpy().boxes.data, np.ndarray)
    assert len(found.new()) == 0
    assert len(found) == 3


def test_result_attributes() -> None:
    found = results()
    assert found.orig_shape == (100, 200)
    assert found.path == "folder/street.jpg"
    assert found.names == NAMES
    assert found.speed == {"preprocess": None, "inference": None, "postprocess": None}
    assert found.save_dir is None
    assert found.masks is found.probs is found.keypoints is found.obb is None
    assert repr(found) == "Results(path='folder/street.jpg', orig_shape=(100, 200), 2 persons, 1 car)"
    assert Results(picture(), Path("a/b.jpg"), ["x", "y"]).names == {0: "x", 1: "y"}


def test_copies_and_pickles(rows: Any) -> None:
    for other in (copy.deepcopy(results(rows)), pickle.loads(pickle.dumps(results(rows)))):
        np.testing.assert_array_equal(other.boxes.data, ROWS)
        assert other.summary() == results(rows).summary()


def test_boxes_objects_are_taken_when_they_fit() -> None:
    boxes = Boxes(ROWS, (100, 200))
    assert results(boxes).boxes is boxes
    with pytest.raises(ValueError, match=r"of a picture of \(100, 200\), got \(50, 60\)"):
        results(Boxes(ROWS, (50, 60)))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"orig_img": None}, TypeError, "orig_img must be a NumPy array, got NoneType"),
        ({"orig_img": torch.zeros(3, 5, 5)}, TypeError, "orig_img must be a NumPy array, got Tensor"),
        ({"orig_img": np.zeros((5, 5, 3))}, TypeError, "orig_img must be uint8, got float64"),
        ({"orig_img": np.zeros((3, 50, 50), np.uint8)}, ValueError, r"must have shape .* got \(3, 50, 50\)"),
        ({"orig_img": np.zeros((0, 50, 3), np.uint8)}, ValueError, r"got \(0, 50, 3\)"),
        ({"names": "person"}, TypeError, "names must be a mapping or a list, got str"),
        ({"names": None}, TypeError, "names must be a mapping or a list, got NoneType"),
        ({"path": None}, TypeError, "NoneType"),
        ({"boxes": [[1, 2]]}, TypeError, "Boxes: data must be"),
    ],
)
def test_refused_arguments(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Results(**{"orig_img": picture(), "path": "x.jpg", "names": NAMES, **options})


def test_update_limits_boxes_to_the_picture(rows: Any) -> None:
    found = results(None)
    wide = rows * 1
    wide[:, :4] = wide[:, :4] * 3 - 50
    found.update(boxes=wide)
    np.testing.assert_array_equal(found.boxes.xyxy[0], [0, 10, 100, 100])
    np.testing.assert_array_equal(found.boxes.conf, ROWS[:, 4])
    assert float(wide[0, 0]) == -20  # the caller's array is left alone
    found.update()
    assert len(found) == 3


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([], "(no detections), "),
        ([0], "1 person, "),
        ([2, 0, 0, 2, 2], "2 persons, 3 cars, "),
        ([17, 17], "2 17s, "),
        ([np.nan], "1 -1, "),
    ],
)
def test_verbose(classes: list[float], expected: str) -> None:
    rows = np.zeros((len(classes), 6), np.float32)
    rows[:, 5] = classes
    assert results(rows).verbose() == expected
    assert results(torch.from_numpy(rows)).verbose() == expected


def test_verbose_adds_no_second_s() -> None:
    rows = np.zeros((2, 6), np.float32)
    assert Results(picture(), "a.jpg", {0: "Platelets"}, rows).verbose() == "2 Platelets, "


def test_verbose_shows_no_escape_codes() -> None:
    found = Results(picture(), "x", ["evil\x1b[2J\n"], ROWS[:1])
    assert found.verbose() == "1 evil [2J , "


def test_save_txt_appends(rows: Any, tmp_path: Path) -> None:
    target = tmp_path / "labels" / "street é.txt"
    assert results(rows).save_txt(target) == str(target)
    results(rows[1:2]).save_txt(str(target), save_conf=True)
    assert target.read_text().splitlines() == [
        "0 0.15 0.5 0.2 0.6",
        "2 0.5 0.5 1 1",
        "0 0.6525 0.605 0.3 0.605",
        "2 0.5 0.5 1 1 0.75",
    ]


def test_save_txt_with_tracks(tmp_path: Path) -> None:
    results(TRACKED).save_txt(tmp_path / "a.txt", save_conf=True)
    assert (tmp_path / "a.txt").read_text().splitlines()[:2] == [
        "0 0.15 0.5 0.2 0.6 0.9 7",
        "2 0.5 0.5 1 1 0.75 1234567",
    ]


def test_save_txt_of_nothing_makes_no_file(tmp_path: Path) -> None:
    assert results(None).save_txt(tmp_path / "new" / "a.txt") == str(tmp_path / "new" / "a.txt")
    assert not list(tmp_path.iterdir())


def test_save_txt_from_many_threads(tmp_path: Path) -> None:
    found = results(np.tile(ROWS, (200, 1)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: found.save_txt(tmp_path / "a.txt"), range(16)))
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert len(lines) == 16 * 600
    assert len(set(lines)) == 3


def test_save_crop(rows: Any, tmp_path: Path) -> None:
    found = results(rows)
    written = found.save_crop(tmp_path, "street.v2.jpg")
    assert written == [
        str(tmp_path / "person" / "street.v2.jpg"),
        str(tmp_path / "car" / "street.v2.jpg"),
        str(tmp_path / "person" / "street.v2-2.jpg"),
    ]
    shapes = [cv2.imread(path).shape for path in written]
    assert shapes == [(60, 40, 3), (100, 200, 3), (61, 61, 3)]
    crop = cv2.imread(written[0]).astype(int)
    np.testing.assert_allclose(crop.mean(), found.orig_img[20:80, 10:50].mean(), atol=3)


def test_save_crop_default_name_and_gray(tmp_path: Path) -> None:
    found = Results(picture()[:, :, 0], "x", NAMES, ROWS[:1])
    assert found.save_crop(tmp_path) == [str(tmp_path / "person" / "im.jpg")]


@pytest.mark.parametrize("file_name", ["street", "street.jpg", Path("a/street.JPG"), "../../street.png"])
def test_save_crop_file_names(file_name: Any, tmp_path: Path) -> None:
    (written,) = results(ROWS[:1]).save_crop(tmp_path / "in", file_name)
    assert written == str(tmp_path / "in" / "person" / "street.jpg")


@pytest.mark.parametrize(
    "name", ["../../up", "/etc/passwd", "..", "", "a\0b", "C:\\x", "x" * 5000, "\ud800", "con", "红/é"]
)
def test_save_crop_with_hostile_class_names_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "crops"
    (written,) = Results(picture(), "x", [name], ROWS[:1]).save_crop(folder, "y")
    assert Path(written).resolve().parent.parent == folder.resolve()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [Path(written)]


def test_save_crop_leaves_out_what_has_no_pixels(tmp_path: Path) -> None:
    rows = np.array(
        [
            [10, 10, 10, 50, 0.9, 0],
            [300, 10, 400, 50, 0.9, 0],
            [np.nan, 1, 2, 3, 0.9, 0],
            [50, 50, 10, 10, 0.9, 0],
            [-20, -20, 5, 5, 0.9, 0],
        ]
    )
    (written,) = results(rows).save_crop(tmp_path)
    assert cv2.imread(written).shape == (5, 5, 3)


def test_summary(rows: Any) -> None:
    assert results(rows).summary() == [
        {"name": "person", "class": 0, "confidence": 0.9, "box": {"x1": 10.0, "y1": 20.0, "x2": 50.0, "y2": 80.0}},
        {"name": "car", "class": 2, "confidence": 0.75, "box": {"x1": 0.0, "y1": 0.0, "x2": 200.0, "y2": 100.0}},
        {"name": "person", "class": 0, "confidence": 0.5, "box": {"x1": 100.5, "y1": 30.25, "x2": 160.5, "y2": 90.75}},
    ]


def test_summary_normalized_and_rounded() -> None:
    row = results(TRACKED).summary(normalize=True, decimals=2)[2]
    assert row == {
        "name": "person",
        "class": 0,
        "confidence": 0.5,
        "box": {"x1": 0.5, "y1": 0.3, "x2": 0.8, "y2": 0.91},
        "track_id": 9,
    }


def test_summary_of_nothing() -> None:
    assert results(None).summary() == []
    assert results(None).to_json() == "[]"
    assert results(None).to_csv() == "name,class,confidence,x1,y1,x2,y2\n"


def test_json_is_json_even_with_values_that_json_lacks() -> None:
    rows = np.full((1, 6), np.nan, np.float32)
    rows[0, 5] = 1
    assert json.loads(results(rows).to_json()) == [
        {"name": "bicycle", "class": 1, "confidence": None, "box": dict.fromkeys(("x1", "y1", "x2", "y2"))}
    ]


def test_json(rows: Any) -> None:
    assert json.loads(results(rows).to_json()) == results(rows).summary()
    assert results(rows).tojson(normalize=True) == results(rows).to_json(normalize=True)
    assert "红" in Results(picture(), "x", ["红"], rows[:1]).to_json()


def test_csv() -> None:
    found = Results(picture(), "x", ['a,"b"\nc'], TRACKED[:1])
    assert list(csv.DictReader(io.StringIO(found.to_csv()))) == [
        {
            "name": 'a,"b"\nc',
            "class": "0",
            "confidence": "0.9",
            "x1": "10.0",
            "y1": "20.0",
            "x2": "50.0",
            "y2": "80.0",
            "track_id": "7",
        }
    ]


@pytest.mark.parametrize("data", [ROWS, TRACKED, ROWS[:0]], ids=["boxes", "tracks", "nothing"])
def test_dataframe(data: np.ndarray) -> None:
    polars = pytest.importorskip("polars")
    frame = results(data).to_df()
    assert isinstance(frame, polars.DataFrame)
    assert frame.columns == ["name", "class", "confidence", "box", *["track_id"] * (data.shape[1] == 7)]
    assert frame.to_dicts() == results(data).summary()


def test_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    detections = results(TRACKED).to_supervision()
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_array_equal(detections.xyxy, ROWS[:, :4])
    np.testing.assert_array_equal(detections.class_id, [0, 2, 0])
    np.testing.assert_array_equal(detections.tracker_id, [7, 1234567, 9])
    np.testing.assert_array_equal(detections["class_name"], ["person", "car", "person"])
    assert len(results(None).to_supervision()) == 0


def test_supervision_arguments(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=dict))
    detections = results(rows).to_supervision()
    assert detections["tracker_id"] is None
    assert detections["xyxy"].shape == (3, 4)
    assert detections["class_id"].dtype.kind == "i"
    assert detections["data"]["class_name"].tolist() == ["person", "car", "person"]


@pytest.mark.parametrize(
    ("method", "module", "extra"), [("to_df", "polars", "dataframe"), ("to_supervision", "supervision", "supervision")]
)
def test_missing_extras_are_named(method: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} is missing; pip install 'yolonas\[{extra}\]'"):
        getattr(results(), method)()


def test_plot_draws_on_a_copy(rows: Any) -> None:
    found = results(rows)
    before = found.orig_img.copy()
    plotted = found.plot()
    assert plotted.dtype == np.uint8
    assert plotted.shape == (100, 200, 3)
    assert plotted.flags.c_contiguous
    np.testing.assert_array_equal(found.orig_img, before)
    assert (plotted != before).any()


def test_plot_switches() -> None:
    found = results(ROWS[:1])
    pictures = {
        "all": found.plot(),
        "no score": found.plot(conf=False),
        "no label": found.plot(labels=False),
        "wide": found.plot(line_width=5),
        "large": found.plot(font_size=30),
        "dark": found.plot(txt_color=(80, 0, 0)),
        "none": found.plot(boxes=False),
    }
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)
    np.testing.assert_array_equal(pictures["none"], found.orig_img)
    np.testing.assert_array_equal(results(None).plot(), found.orig_img)
    same = found.plot(kpt_radius=9, kpt_line=False, masks=False, probs=False)
    np.testing.assert_array_equal(same, pictures["all"])


def test_plot_colors_by_instance() -> None:
    rows = np.array([[10, 30, 40, 60, 0.5, 0], [60, 30, 90, 60, 0.5, 0]])
    by_class, by_instance = results(rows).plot(labels=False), results(rows).plot(labels=False, color_mode="instance")
    assert (by_class[30, 20] == by_class[30, 70]).all()
    assert (by_instance[30, 20] != by_instance[30, 70]).any()


def test_plot_labels_name_the_track(monkeypatch: pytest.MonkeyPatch) -> None:
    from yolonas import draw

    seen = []
    monkeypatch.setattr(draw, "draw_boxes", lambda image, boxes, **options: seen.append(options["labels"]))
    results(TRACKED).plot()
    results(TRACKED).plot(conf=False)
    results(ROWS).plot()
    results(ROWS).plot(labels=False)
    assert [labels[0] if labels else None for labels in seen] == [
        "id:7 person 0.90",
        "id:7 person",
        "person 0.90",
        None,
    ]


def test_plot_on_another_picture() -> None:
    other = np.zeros((100, 200, 3), np.uint8)
    plotted = results().plot(img=other)
    assert (plotted == 0).mean() > 0.5
    assert not other.any()
    with pytest.raises(ValueError, match=r"img must have the picture's size \(100, 200\), got \(50, 50\)"):
        results().plot(img=np.zeros((50, 50, 3), np.uint8))


@pytest.mark.parametrize("shape", [(100, 200), (100, 200, 1), (100, 200, 4)])
def test_plot_of_gray_and_alpha(shape: tuple[int, ...]) -> None:
    assert Results(np.zeros(shape, np.uint8), "x", NAMES, ROWS).plot().shape == (100, 200, 3)


def test_plot_as_pillow_picture() -> None:
    from PIL import Image

    plotted = results().plot(pil=True)
    assert isinstance(plotted, Image.Image)
    assert plotted.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(plotted)[:, :, ::-1], results().plot())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"color_mode": "rainbow"}, "color_mode must be 'class' or 'instance', got 'rainbow'"),
        ({"line_width": 0}, "line_width must be a number of pixels above 0, got 0"),
        ({"line_width": "3"}, "line_width must be"),
        ({"font_size": -2}, "font_size must be"),
        ({"font_size": float("nan")}, "font_size must be"),
        ({"txt_color": (1, 2)}, "txt_color must be three values"),
        ({"txt_color": (0, 0, 300)}, "txt_color must be three values"),
    ],
)
def test_plot_refuses(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        results().plot(**options)


def test_save_default_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = {
        "folder/street.jpg": "results_street.jpg",
        "/x/红细胞 é.png": "results_红细胞 é.png",
        "clip.mp4": "results_clip.jpg",
        "photo.heic": "results_photo.jpg",
        "image0": "results_image0.jpg",
        "rtsp://user@host:554/cam": "results_cam.jpg",
        "http://host/a.jpg?size=large/": "results_a.jpg",
        "": "results_image.jpg",
    }
    for path, name in expected.items():
        assert results(path=path).save() == name
        assert cv2.imdecode(np.fromfile(name, np.uint8), cv2.IMREAD_COLOR).shape == (100, 200, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(expected.values())


def test_save_to_a_name(tmp_path: Path) -> None:
    target = tmp_path / "new" / "红 é.png"
    assert results().save(target, conf=False, line_width=3) == str(target)
    read = cv2.imdecode(np.fromfile(target, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read, results().plot(conf=False, line_width=3))
    with pytest.raises(ValueError, match=r"got '\.pdf'; use \.jpg or \.png"):
        results().save(tmp_path / "a.pdf")


def test_plot_saves_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(window, "show_image", lambda image, title: shown.append((image.shape, title)))
    results().plot(save=True, filename=tmp_path / "a.png", show=True)
    results().show(conf=False)
    assert (tmp_path / "a.png").exists()
    assert shown == [((100, 200, 3), "folder/street.jpg")] * 2


def test_thousands_of_boxes() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(-20, 200, (3000, 2))
    rows = np.concatenate([corners, corners + 15, random.uniform(size=(3000, 1)), np.zeros((3000, 1))], axis=1)
    assert results(rows).plot().shape == (100, 200, 3)


def test_numpy_data_needs_neither_torch_nor_opencv() -> None:
    code = """
import sys
import numpy as np
from yolonas.results import Boxes, Results
heavy = {"torch", "cv2", "PIL.Image", "matplotlib", "polars"}
found = Results(np.zeros((40, 40, 3), np.uint8), "x.jpg", {0: "a"}, np.array([[1, 2, 30, 30, .5, 0]]))
found[0].summary(), found.to_csv(), found.to_json(), found.verbose(), found.cpu().numpy(), found.boxes.xywhn
assert not heavy & set(sys.modules), heavy & set(sys.modules)
found.plot()
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.shared
def test_labels_of_real_pictures_survive_the_round_trip(shared: Path, tmp_path: Path) -> None:
    label_text._kept_mask.cache_clear()
    for label in sorted((shared / "data/bccd/labels/val").glob("*.txt"))[:5]:
        image = cv2.imread(str(shared / "data/bccd/images/val" / f"{label.stem}.jpg"))
        height, width = image.shape[:2]
        truth = np.loadtxt(label, ndmin=2)
        centre, size = truth[:, 1:3] * [width, height], truth[:, 3:5] * [width, height]
        rows = np.concatenate([centre - size / 2, centre + size / 2, np.ones((len(truth), 1)), truth[:, :1]], axis=1)
        found = Results(image, label.stem, ["RBC", "WBC", "Platelets"], rows)
        found.save_txt(tmp_path / label.name)
        np.testing.assert_allclose(np.loadtxt(tmp_path / label.name, ndmin=2), truth, atol=2e-6)
        assert (found.plot() != image).any()
