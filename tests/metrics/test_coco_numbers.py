"""Average precision equals that of plain pycocotools on the written files, to the last digit, by every evaluator."""

from __future__ import annotations

import builtins
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import CASES, IDS, NAMES, evaluated, perfect, plain_pycocotools, random_records, record

from yolonas.metrics import EVALUATORS, CocoResult, Evaluator, prediction_rows, truth_json
from yolonas.metrics.coco import MAX_DETS, NUMBERS
from yolonas.metrics.matches import AREAS, MAX_DET, THRESHOLDS
from yolonas.ops import COCO_AREA_RANGES, COCO_THRESHOLDS

SMALL = (1, 2, 3, 4)


def assert_same(result: CocoResult, expected: Any, evaluator: str = "native", ids: tuple[int, ...] = IDS) -> None:
    """Our classes are in the order of their numbers, pycocotools' in that of their ids."""
    columns = [sorted(ids).index(i) for i in ids]
    close(evaluator, result.precision, expected.eval["precision"][:, :, columns])
    close(evaluator, result.recall, expected.eval["recall"][:, columns])
    close(evaluator, result.scores, expected.eval["scores"][:, :, columns])
    stats = [float("nan") if value == -1 else value for value in expected.stats]
    close(evaluator, [result.stats[name] for name in NUMBERS], stats)


def close(evaluator: str, actual: Any, expected: Any) -> None:
    """Equal, but for faster-coco-eval: it adds no tiny number to the denominator of the precision."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 if evaluator == "fast" else 0)


def per_class_by_hand(expected: Any, category_id: int) -> float:
    """As pycocotools' users compute it."""
    values = expected.eval["precision"][:, :, expected.params.catIds.index(category_id), 0, -1]
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else float("nan")


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("case", CASES)
def test_hand_made_cases(case: str, evaluator: str, tmp_path: Path) -> None:
    if evaluator == "fast":
        pytest.importorskip("faster_coco_eval")
    records = CASES[case]()
    expected = plain_pycocotools(records, tmp_path)
    metrics = evaluated(records, evaluator)
    assert_same(metrics.result, expected, evaluator)
    assert metrics.evaluator == evaluator
    np.testing.assert_array_equal(metrics.box.map, metrics.coco["AP"])
    by_hand = [per_class_by_hand(expected, IDS[number]) for number in metrics.ap_class_index]
    close(evaluator, metrics.box.ap, by_hand)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("seed", range(12))
def test_random_pictures(seed: int, evaluator: str, tmp_path: Path) -> None:
    if evaluator == "fast":
        pytest.importorskip("faster_coco_eval")
    records = random_records(seed, busy=seed % 4 == 0)
    assert_same(evaluated(records, evaluator).result, plain_pycocotools(records, tmp_path), evaluator)


def test_the_cases_are_not_all_alike() -> None:
    values = {case: evaluated(make()).box.map for case, make in CASES.items()}
    assert values["right"] == pytest.approx(1.0)
    assert values["wrong_class"] == 0
    assert 0.3 < values["shifted"] < 0.5
    assert values["duplicate"] == pytest.approx(1.0)
    assert np.isnan(values["crowds_only"])
    assert values["class_never_detected"] == pytest.approx(0.5)
    assert values["score_ties_over_pictures"] != values["string_ids"], (
        "the order of the ids decides between equal scores"
    )


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_perfect_detections(evaluator: str) -> None:
    if evaluator == "fast":
        pytest.importorskip("faster_coco_eval")
    records = perfect(random_records(3, pictures=40))
    truth = [each.truth for each in records]
    assert any(each.crowd.any() for each in truth)
    assert any(len(each) == 0 for each in truth)
    # equal boxes of one class would leave it open which is which, though not how many are found
    metrics = evaluated(records, evaluator)
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
        assert metrics.coco[name] == pytest.approx(1.0, abs=1e-12), name
    assert metrics.box.mp == metrics.box.mr == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_order_of_pictures_does_not_matter(seed: int) -> None:
    records = random_records(seed)
    forward, backward = evaluated(records), evaluated(records[::-1])
    assert forward.coco == pytest.approx(backward.coco, rel=0, abs=0, nan_ok=True)
    np.testing.assert_array_equal(forward.result.scores, backward.result.scores)
    assert forward.images_to_csv() == backward.images_to_csv()
    assert forward.confusion_matrix.to_csv() == backward.confusion_matrix.to_csv()


def test_one_class(tmp_path: Path) -> None:
    records = random_records(5, classes=1)
    assert_same(evaluated(records, ids=(4,)).result, plain_pycocotools(records, tmp_path, (4,)), ids=(4,))


def test_no_pictures() -> None:
    metrics = evaluated([])
    assert all(np.isnan(value) for value in metrics.coco.values())
    assert metrics.images() == []
    assert metrics.to_json() == "[]"


def test_tables_fit_pycocotools() -> None:
    from pycocotools.cocoeval import Params

    params = Params(iouType="bbox")
    np.testing.assert_array_equal(COCO_THRESHOLDS, params.iouThrs)
    np.testing.assert_array_equal(COCO_AREA_RANGES, params.areaRng)
    assert tuple(params.areaRngLbl) == AREAS
    assert tuple(params.maxDets) == MAX_DETS
    assert (len(params.iouThrs), params.maxDets[-1]) == (THRESHOLDS, MAX_DET)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_nothing_is_printed(evaluator: str, capfd: pytest.CaptureFixture[str]) -> None:
    if evaluator == "fast":
        pytest.importorskip("faster_coco_eval")
    evaluated(random_records(0), evaluator)
    assert capfd.readouterr() == ("", "")


def test_other_threads_may_print_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    count = 0

    def talk() -> None:
        nonlocal count
        while not stop.is_set():
            print("line")
            count += 1

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        evaluated(random_records(0), "pycocotools")
    finally:
        stop.set()
        thread.join()
    assert capsys.readouterr().out == "line\n" * count


def test_fast_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("faster_coco_eval"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"faster-coco-eval is missing; pip install 'yolonas\[fast\]'"):
        Evaluator(NAMES, evaluator="fast")


def test_prediction_rows() -> None:
    found = [((1.5, 2.25, 30.125, 40), 0.87654, 2), ((0, 0, 1, 1), 0.5, 0)]
    rows = prediction_rows(record(4, [], found), IDS)
    assert json.loads(json.dumps(rows)) == [
        {"image_id": 40, "file_name": "4.jpg", "category_id": 90, "bbox": [1.5, 2.25, 30.125, 40.0], "score": 0.87654},
        {"image_id": 40, "file_name": "4.jpg", "category_id": 7, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.5},
    ]
    assert prediction_rows(record(4, [], []), IDS) == []


def test_truth_json() -> None:
    records = [record(1, [(SMALL, 1), (SMALL, 0)], [], crowd=[0, 1], areas=[5, 6.5]), record(2, [(SMALL, 2)], [])]
    assert json.loads(json.dumps(truth_json(records, NAMES, IDS))) == {
        "images": [
            {"id": 10, "file_name": "1.jpg", "height": 100, "width": 200},
            {"id": 20, "file_name": "2.jpg", "height": 100, "width": 200},
        ],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 5, "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 6.5, "iscrowd": 1},
            {"id": 3, "image_id": 20, "category_id": 90, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "bird"}],
    }
