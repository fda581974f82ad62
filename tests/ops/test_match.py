"""Matching against pycocotools and the plain twin, the rules one by one, and arguments that do not fit."""

from __future__ import annotations

import contextlib
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from harness import CUDA, DLPackArray, guarded, guarded_empty, native

from yolonas.ops import COCO_AREA_RANGES, COCO_THRESHOLDS, Matches, match_detections, reference

CLASSES = 3
Picture = tuple[np.ndarray, ...]  # boxes, scores, classes, truth_boxes, truth_classes, truth_areas, truth_crowd


def random_picture(rng: np.random.Generator, *, detections: int = 12, truths: int = 6) -> Picture:
    """Boxes on a coarse grid: equal IoUs, equal scores, crowds, empty boxes, areas on the edges of the ranges."""
    count, true = int(rng.integers(0, detections + 1)), int(rng.integers(0, truths + 1))
    scale = rng.choice([1.0, 4.0, 30.0, 1 / 3])
    truth_boxes = np.concatenate([rng.integers(0, 8, (true, 2)), rng.integers(0, 9, (true, 2))], axis=1) * scale
    boxes = np.concatenate([rng.integers(0, 8, (count, 2)), rng.integers(0, 9, (count, 2))], axis=1) * scale
    classes, truth_classes = rng.integers(0, CLASSES, count), rng.integers(0, CLASSES, true)
    if true:
        near = np.flatnonzero(rng.random(count) < 0.7)
        source = rng.integers(0, true, len(near))
        boxes[near] = truth_boxes[source] + rng.choice([-1, 0, 0, 0, 1], (len(near), 4)) * scale
        classes[near] = truth_classes[source]
    areas = truth_boxes[:, 2] * truth_boxes[:, 3]
    odd = rng.random(true) < 0.3
    areas[odd] = rng.choice([0.0, 1024.0, 1024.5, 9216.0, 1e10, 2e10], odd.sum())
    scores = rng.integers(0, 6, count) / 5
    return boxes, scores, classes, truth_boxes, truth_classes, areas, rng.random(true) < 0.25


def assert_equals_twin(picture: Picture, **settings: Any) -> Matches:
    settings = {"thresholds": COCO_THRESHOLDS, "area_ranges": COCO_AREA_RANGES, **settings}
    matches = match_detections(*picture, **settings)
    twin = reference.match_detections(*picture, **settings)
    for name, got, expected in zip(Matches._fields, matches, twin, strict=True):
        assert np.array_equal(got, expected), name
    return matches


def pycocotools_evaluation(pictures: list[Picture], **parameters: Any) -> Any:
    """COCOeval after evaluate(). Ids of true boxes and detections count from 1 over all pictures."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truths, found = [], []
    for image, (boxes, scores, classes, truth_boxes, truth_classes, areas, crowd) in enumerate(pictures):
        truths += [
            {"id": len(truths) + 1 + g, "image_id": image, "category_id": int(truth_classes[g]),
             "bbox": truth_boxes[g].tolist(), "area": float(areas[g]), "iscrowd": int(crowd[g])}
            for g in range(len(truth_boxes))
        ]  # fmt: skip
        found += [
            {"image_id": image, "category_id": int(classes[d]), "bbox": boxes[d].tolist(), "score": float(scores[d])}
            for d in range(len(boxes))
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        images, categories = [{"id": i} for i in range(len(pictures))], [{"id": k} for k in range(CLASSES)]
        truth.dataset = {"images": images, "categories": categories, "annotations": truths}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        for name, value in parameters.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
    return evaluation


def assert_equals_pycocotools(pictures: list[Picture], evaluation: Any, results: list[Matches]) -> int:
    """Every match, ignore flag and order. Returns how many matches there are."""
    areas, seen = len(evaluation.params.areaRng), 0
    first_detection = np.cumsum([1] + [len(picture[0]) for picture in pictures])
    first_truth = np.cumsum([1] + [len(picture[3]) for picture in pictures])
    for label in range(CLASSES):
        for a in range(areas):
            for image, (picture, got) in enumerate(zip(pictures, results, strict=True)):
                expected = evaluation.evalImgs[(label * areas + a) * len(pictures) + image]
                own, true = np.flatnonzero(picture[2][got.order] == label), picture[4] == label
                if expected is None:
                    assert len(own) == 0
                    assert not true.any()
                    continue
                rows = np.array(expected["dtIds"], np.int64) - first_detection[image]
                assert got.order[own].tolist() == rows.tolist()
                assert got.rank[own].tolist() == list(range(len(own)))
                partner = expected["dtMatches"].astype(np.int64) - first_truth[image]
                assert np.array_equal(got.matched[a][:, own], expected["dtMatches"] > 0)
                assert np.array_equal(got.truth[a][:, own], np.where(expected["dtMatches"] > 0, partner, -1))
                assert np.array_equal(got.ignored[a][:, own], expected["dtIgnore"])
                truth_rows = np.array(expected["gtIds"], np.int64) - first_truth[image]
                assert got.truth_ignored[a][truth_rows].tolist() == [bool(flag) for flag in expected["gtIgnore"]]
                seen += int(got.matched[a][:, own].sum())
    return seen


# --- against pycocotools and the plain twin ---


@pytest.mark.parametrize("seed", range(4))
def test_random_pictures_match_as_in_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng) for _ in range(250)]
    results = [match_detections(*picture) for picture in pictures]
    assert assert_equals_pycocotools(pictures, pycocotools_evaluation(pictures), results) > 5000


def test_crowded_pictures_and_fractions_match_as_in_pycocotools() -> None:
    rng = np.random.default_rng(7)
    pictures = []
    for _ in range(20):
        boxes, scores, classes, truth_boxes, *rest = random_picture(rng, detections=300, truths=60)
        boxes, truth_boxes = boxes + rng.normal(0, 0.1, boxes.shape), truth_boxes + rng.random(truth_boxes.shape)
        pictures.append((boxes.round(3), scores, classes, truth_boxes, *rest))
    results = [match_detections(*picture, max_det=30) for picture in pictures]
    assert any(len(result.order) < len(picture[0]) for result, picture in zip(results, pictures, strict=True))
    evaluation = pycocotools_evaluation(pictures, maxDets=[1, 30])
    assert assert_equals_pycocotools(pictures, evaluation, results) > 5000


def test_other_thresholds_and_areas_match_as_in_pycocotools() -> None:
    rng = np.random.default_rng(8)
    pictures = [random_picture(rng) for _ in range(200)]
    thresholds, ranges = np.array([0.9, 0.0, 1.0, 1 / 3]), [[0, 40], [40, 40], [16, 1e9]]
    evaluation = pycocotools_evaluation(
        pictures, iouThrs=thresholds, areaRng=ranges, areaRngLbl=["all", "b", "c"], maxDets=[2]
    )
    results = [match_detections(*p, thresholds=thresholds, area_ranges=ranges, max_det=2) for p in pictures]
    assert assert_equals_pycocotools(pictures, evaluation, results) > 1000


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e16, 1e160, 1e300])
def test_numbers_at_the_ends_of_float64_match_as_in_pycocotools(scale: float) -> None:
    """Products vanish or overflow, IoUs are NaN, negative or infinite."""
    rng = np.random.default_rng(9)
    pictures = []
    for _ in range(100):
        boxes, scores, classes, truth_boxes, truth_classes, _, crowd = random_picture(rng)
        boxes, truth_boxes = boxes * scale, truth_boxes * scale + rng.integers(0, 2, truth_boxes.shape)
        areas = rng.choice([0.0, 50.0, 1e300], len(truth_boxes))
        pictures.append((boxes, scores, classes, truth_boxes, truth_classes, areas, crowd))
        pictures.append((boxes, scores, classes, boxes[:4], classes[:4], np.zeros(4)[: len(boxes)], classes[:4] > 1))
    results = [match_detections(*picture) for picture in pictures]
    assert_equals_pycocotools(pictures, pycocotools_evaluation(pictures), results)


@pytest.mark.parametrize("seed", range(3))
def test_random_pictures_match_as_in_the_twin(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    for _ in range(15):
        assert_equals_twin(random_picture(rng))
        assert_equals_twin(random_picture(rng), thresholds=[0.5], area_ranges=[[0, np.inf], [30, 50]], max_det=3)


def test_coco_settings_are_those_of_pycocotools() -> None:
    from pycocotools.cocoeval import Params

    parameters = Params("bbox")
    assert parameters.iouThrs.tolist() == COCO_THRESHOLDS.tolist()
    assert np.array_equal(parameters.areaRng, COCO_AREA_RANGES)
    with pytest.raises(ValueError, match="read-only"):
        COCO_THRESHOLDS[0] = 0.4


# --- the rules one by one ---


def match(
    boxes: list[list[float]],
    truth_boxes: list[list[float]],
    *,
    scores: list[float] | None = None,
    areas: list[float] | None = None,
    crowd: list[bool] | None = None,
    **settings: Any,
) -> Matches:
    """One class; scores descend unless given. One threshold, 0.5, and one area range unless given."""
    scores = scores or list(np.linspace(0.9, 0.1, len(boxes)))
    areas = areas or [box[2] * box[3] for box in truth_boxes]
    crowd = crowd or [False] * len(truth_boxes)
    picture = (boxes, scores, [7] * len(boxes), truth_boxes, [7] * len(truth_boxes), areas, crowd)
    settings = {"thresholds": [0.5], "area_ranges": [[0, 1e10]], **settings}
    return assert_equals_twin(tuple(np.array(part) for part in picture), **settings)


BOX = [0.0, 0, 10, 10]
FAR = [500.0, 500, 10, 10]


def test_the_threshold_itself_is_enough() -> None:
    half = [0.0, 0, 10, 5]  # IoU 0.5
    result = match([half], [BOX], thresholds=[0.5, np.nextafter(0.5, 1), 0.55])
    assert result.matched[0, :, 0].tolist() == [True, False, False]
    assert match([BOX], [BOX], thresholds=[1.0]).matched.all()
    assert match([FAR], [BOX], thresholds=[0.0]).matched.all()


def test_the_best_detection_takes_first_and_each_box_is_taken_once() -> None:
    result = match([BOX, BOX, BOX], [BOX], scores=[0.3, 0.9, 0.3])
    assert result.order.tolist() == [1, 0, 2]
    assert result.rank.tolist() == [0, 1, 2]
    assert result.truth[0, 0].tolist() == [0, -1, -1]
    assert not result.ignored.any()


def test_of_equal_boxes_the_last_is_taken() -> None:
    assert match([BOX, BOX, BOX], [BOX, BOX, FAR]).truth[0, 0].tolist() == [1, 0, -1]


def test_a_detection_takes_the_better_box_and_leaves_the_other() -> None:
    right = [1.0, 0, 10, 10]
    assert match([BOX, right], [right, BOX]).truth[0, 0].tolist() == [1, 0]


def test_a_crowd_is_taken_by_many_and_they_are_ignored() -> None:
    region = [0.0, 0, 100, 100]
    result = match([BOX, BOX, FAR], [region], crowd=[True])
    assert result.truth[0, 0].tolist() == [0, 0, -1]
    assert result.ignored[0, 0].tolist() == [True, True, False]
    assert result.truth_ignored.tolist() == [[True]]
    assert match([[-6.0, 0, 10, 10]], [region], crowd=[True]).truth[0, 0].tolist() == [-1]  # 0.4 of it lies inside


def test_a_box_that_counts_comes_before_a_crowd_that_fits_better() -> None:
    result = match([BOX, BOX], [[0.0, 0, 50, 50], [0.0, 0, 10, 6]], crowd=[True, False])
    assert result.truth[0, 0].tolist() == [1, 0]
    assert result.ignored[0, 0].tolist() == [False, True]


def test_areas_on_the_edges_of_a_range_count_and_others_are_ignored() -> None:
    ranges = [[0, 99], [0, 100], [100, 100], [100, 1000], [101, 1000]]
    taken = match([BOX], [BOX], area_ranges=ranges)
    assert taken.truth_ignored[:, 0].tolist() == taken.ignored[:, 0, 0].tolist() == [True, False, False, False, True]
    assert taken.matched.all()
    left = match([BOX], [FAR], area_ranges=ranges)
    assert left.ignored[:, 0, 0].tolist() == [True, False, False, False, True]
    by_mask = match([BOX], [BOX], areas=[40.0], area_ranges=ranges)  # of the true box the given area counts
    assert by_mask.truth_ignored[:, 0].tolist() == [False, False, True, True, True]


def test_an_ignored_box_that_is_no_crowd_is_taken_once() -> None:
    result = match([BOX, BOX], [BOX], area_ranges=[[500, 1000]])
    assert result.truth[0, 0].tolist() == [0, -1]
    assert result.ignored.all()  # the second because of its own area


def test_classes_are_apart_and_each_has_its_limit() -> None:
    boxes, scores = np.array([BOX] * 6), np.array([0.1, 0.9, 0.5, 0.5, 0.2, 0.9])
    classes = np.array([2**40, -3, 2**40, 2**40, 5, -3])
    truth = (np.array([BOX, BOX]), np.array([5, 2**40]), np.array([100.0, 100.0]), np.zeros(2, bool))
    result = assert_equals_twin((boxes, scores, classes, *truth), max_det=2)
    assert result.order.tolist() == [1, 5, 4, 2, 3]
    assert result.rank.tolist() == [0, 1, 0, 0, 1]
    assert result.truth[0, 0].tolist() == [-1, -1, 0, 1, -1]


def test_nothing_detected_and_nothing_there() -> None:
    truth = (np.array([BOX]), [1], [100.0], [False])
    none = match_detections([], [], [], *truth)
    assert [array.shape for array in none] == [(0,), (0,), (4, 10, 0), (4, 10, 0), (4, 10, 0), (4, 1)]
    assert none.truth_ignored[:, 0].tolist() == [False, False, True, True]
    alone = match_detections([BOX], [0.5], [1], [], [], [], [])
    assert alone.truth_ignored.shape == (4, 0)
    assert not alone.matched.any()
    assert alone.ignored[:, 0, 0].tolist() == [False, False, True, True]
    assert match_detections([], [], [], np.zeros((0, 4)), [], [], []).matched.shape == (4, 10, 0)


# --- what goes in and comes out ---


def test_dtypes_of_the_result() -> None:
    result = match([BOX], [BOX])
    assert [array.dtype.name for array in result] == ["int64", "int32", "bool", "bool", "int32", "bool"]
    assert all(array.base is None and array.flags.c_contiguous for array in result)  # nothing larger is held


def test_other_dtypes_and_layouts_give_the_same() -> None:
    import torch

    boxes, scores, classes, truth_boxes, truth_classes, areas, crowd = random_picture(np.random.default_rng(5))
    expected = match_detections(boxes, scores, classes, truth_boxes, truth_classes, areas, crowd)
    others = (
        (np.asfortranarray(boxes), scores[::-1][::-1], classes.astype(np.uint8), truth_boxes.astype(">f8"),
         truth_classes.astype(np.int32), areas.tolist(), crowd.astype(np.int8)),
        (torch.tensor(boxes), torch.tensor(scores), classes.tolist(), truth_boxes.tolist(), truth_classes,
         torch.tensor(areas), crowd.tolist()),
    )  # fmt: skip
    for arguments in others:
        for got, wanted in zip(match_detections(*arguments), expected, strict=True):
            assert np.array_equal(got, wanted)


@pytest.mark.parametrize("front", [False, True], ids=["back", "front"])
def test_nothing_outside_the_arrays_is_touched(front: bool) -> None:
    rng = np.random.default_rng(11)
    for max_det in (1, 3, 100):
        picture = random_picture(rng, detections=40, truths=20)
        boxes, scores, classes, *truth = (guarded(part, front=front) for part in picture)
        order, rank = (guarded_empty((len(boxes),), dtype, front=front) for dtype in (np.int64, np.int32))
        count = native().match_order(scores, classes, max_det=max_det, order=order, rank=rank)
        order = guarded(order[:count], front=front)
        matched, ignored = (guarded_empty((4, 10, count), bool, front=front) for _ in range(2))
        partner = guarded_empty((4, 10, count), np.int32, front=front)
        truth_ignored = guarded_empty((4, len(truth[0])), bool, front=front)
        native().match_detections(
            boxes, classes, order, *truth, thresholds=guarded(COCO_THRESHOLDS, front=front),
            area_ranges=guarded(COCO_AREA_RANGES, front=front), matched=matched, ignored=ignored, truth=partner,
            truth_ignored=truth_ignored,
        )  # fmt: skip
        expected = assert_equals_twin(picture, max_det=max_det)
        got = (order, rank[:count], matched, ignored, partner, truth_ignored)
        for name, array, wanted in zip(Matches._fields, got, expected, strict=True):
            assert np.array_equal(array.view(np.uint8), np.ascontiguousarray(wanted).view(np.uint8)), name


def test_many_threads_at_once_give_the_same() -> None:
    rng = np.random.default_rng(12)
    pictures = [random_picture(rng, detections=60, truths=20) for _ in range(50)]
    alone = [match_detections(*picture) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda picture: match_detections(*picture), pictures * 4))
    for number, result in enumerate(together):
        assert all(np.array_equal(one, other) for one, other in zip(result, alone[number % 50], strict=True))


def test_many_boxes_of_one_class_need_little_memory() -> None:
    """20,000 by 20,000 pairs would be 3 GB."""
    count = 20_000
    boxes = np.full((count, 4), 10.0)
    boxes[:, 0] = np.arange(count) * 20
    ones = np.ones(count)
    result = match_detections(boxes, ones, ones.astype(int), boxes, ones.astype(int), ones * 100, ones == 0, max_det=50)
    assert result.truth[0, -1].tolist() == list(range(50))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"boxes": [[0, 0, np.nan, 1]] * 2}, ValueError, "boxes must be finite, got nan in row 0"),
        ({"boxes": [[0, 0, 1, 1], [0, np.inf, 1, 1]]}, ValueError, "boxes must be finite, got inf in row 1"),
        ({"truth_boxes": [[0, 0, 1, -np.inf]]}, ValueError, "truth_boxes must be finite, got -inf in row 0"),
        ({"truth_areas": [np.nan]}, ValueError, "truth_areas must be finite, got nan in row 0"),
        ({"scores": [0.5, np.nan]}, ValueError, "scores must be finite, got nan in row 1"),
        ({"scores": [0.5, 0.5, 0.5]}, ValueError, r"classes must have shape \(D,\) = \(3\), got \(2,\)"),
        ({"boxes": np.zeros((3, 4))}, ValueError, r"classes must have shape \(D,\) = \(3\), got \(2,\)"),
        ({"boxes": np.zeros((2, 5))}, ValueError, r"boxes must have shape \(D, 4\) = \(\*, 4\), got \(2, 5\)"),
        ({"boxes": [0.0, 0, 1, 1]}, ValueError, r"boxes must have 2 axes, got shape \(4,\)"),
        ({"truth_crowd": [False, True]}, ValueError, r"truth_crowd must have shape \(G,\) = \(1\), got \(2,\)"),
        ({"truth_classes": []}, ValueError, r"truth_classes must have shape \(G,\) = \(1\), got \(0,\)"),
        ({"classes": [0.0, 1.0]}, TypeError, "classes must hold int64 numbers, got float64"),
        ({"classes": np.array([0, 2**63], np.uint64)}, TypeError, "classes must hold int64 numbers, got uint64"),
        ({"truth_crowd": [np.nan]}, TypeError, "truth_crowd must hold bool numbers, got float64"),
        ({"boxes": np.zeros((2, 4), complex)}, TypeError, "boxes must hold float64 numbers, got complex128"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, 1]]}, TypeError, "boxes must be an array on the CPU, got list"),
        ({"scores": None}, TypeError, "scores"),
        ({"max_det": 0}, ValueError, "max_det must be at least 1, got 0"),
        ({"max_det": 2.5}, TypeError, "float|incompatible"),
        ({"thresholds": [0.5, 1.5]}, ValueError, "thresholds must lie in 0..1, got 1.5"),
        ({"thresholds": [np.nan]}, ValueError, "thresholds must lie in 0..1, got nan"),
        ({"thresholds": []}, ValueError, r"thresholds must have 1..1024 values, got 0"),
        ({"area_ranges": [[5, 1]]}, ValueError, "area_ranges must be rows of smallest and largest area, got 5 and 1"),
        ({"area_ranges": np.zeros((65, 2))}, ValueError, r"area_ranges must have 1..64 rows, got 65"),
        ({"area_ranges": [[0, np.nan]]}, ValueError, "area_ranges must be rows of .* got 0 and nan in row 0"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = {
        "boxes": [BOX, FAR], "scores": [0.5, 0.4], "classes": [0, 1], "truth_boxes": [BOX], "truth_classes": [0],
        "truth_areas": [100.0], "truth_crowd": [False],
    }  # fmt: skip
    match_detections(**arguments)
    with pytest.raises(error, match=text) as raised:
        match_detections(**{**arguments, **change})
    assert "match" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"order": np.array([0, 2])}, ValueError, "order must hold rows of boxes, 0..1, got 2"),
        ({"order": np.array([-1, 0])}, ValueError, "order must hold rows of boxes, 0..1, got -1"),
        ({"order": np.array([0])}, ValueError, r"matched must have shape \(A, T, N\) = \(4, 10, 1\)"),
        ({"matched": np.zeros((4, 10, 2), np.uint8)}, TypeError, "matched must be bool, got uint8"),
        ({"truth": np.frombuffer(bytes(320), np.int32).reshape(4, 10, 2)}, ValueError, "must not be read-only"),
        ({"truth_ignored": np.zeros((4, 2), bool)}, ValueError, r"truth_ignored must have shape \(A, G\) = \(4, 1\)"),
        ({"boxes": DLPackArray((2, 4), device=CUDA)}, ValueError, "boxes must lie on the CPU, got device cuda:0"),
    ],
)
def test_wrong_native_arguments_are_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    one = (4, 10, 2)
    arguments = {
        "boxes": np.array([BOX, FAR]), "classes": np.array([0, 1]), "order": np.array([0, 1]),
        "truth_boxes": np.array([BOX]), "truth_classes": np.array([0]), "truth_areas": np.array([1.0]),
        "truth_crowd": np.array([False]), "thresholds": COCO_THRESHOLDS, "area_ranges": COCO_AREA_RANGES,
        "matched": np.zeros(one, bool), "ignored": np.zeros(one, bool), "truth": np.zeros(one, np.int32),
        "truth_ignored": np.zeros((4, 1), bool),
    }  # fmt: skip
    native().match_detections(**arguments)
    with pytest.raises(error, match=text):
        native().match_detections(**{**arguments, **change})


def test_an_order_that_mixes_classes_is_harmless() -> None:
    """Only the memory: a class that comes again starts anew."""
    shape = (4, 10, 3)
    native().match_detections(
        np.array([BOX] * 2), np.array([0, 1]), np.array([0, 1, 0]), np.array([BOX]), np.array([0]), np.array([1.0]),
        np.array([False]), thresholds=COCO_THRESHOLDS, area_ranges=COCO_AREA_RANGES, matched=np.zeros(shape, bool),
        ignored=np.zeros(shape, bool), truth=np.zeros(shape, np.int32), truth_ignored=np.zeros((4, 1), bool),
    )  # fmt: skip
