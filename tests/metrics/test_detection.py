"""DetMetrics and Metric: every attribute that users of detection libraries know, and the tables."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
from made_records import BOX, CASES, NAMES, evaluated, random_records, record

from yolonas.metrics import DetMetrics

FAR = (120, 10, 40, 40)


@pytest.fixture(scope="module")
def metrics() -> DetMetrics:
    """Two cats, one found; a bird that is found; a dog that is not there; a crowd."""
    return evaluated(
        [
            record(2, [(BOX, 0)], [(BOX, 0.9, 0), (FAR, 0.6, 1)]),
            record(1, [(BOX, 0), (FAR, 2)], [(FAR, 0.8, 2)]),
            record(3, [((0, 0, 90, 90), 2)], [(BOX, 0.95, 2)], crowd=[1]),
        ]
    )


def test_metric_shapes(metrics: DetMetrics) -> None:
    box = metrics.box
    assert box.nc == 3
    assert box.ap_class_index.tolist() == [0, 2]
    assert box.all_ap.shape == (2, 10)
    for name in ("p", "r", "f1", "ap", "ap50", "ap75"):
        assert getattr(box, name).shape == (2,), name
    np.testing.assert_allclose(box.all_ap.mean(axis=1), box.ap)
    np.testing.assert_array_equal(box.ap50, box.all_ap[:, 0])
    assert box.p_curve.shape == box.r_curve.shape == box.f1_curve.shape == (2, 1000)
    assert box.prec_values.shape == (2, 101)
    np.testing.assert_allclose(box.prec_values.mean(axis=1), box.ap50)


def test_metric_values(metrics: DetMetrics) -> None:
    box = metrics.box
    half = 51 / 101  # of the recall points, those up to 0.5
    assert box.ap == pytest.approx([half, 1.0])
    assert box.map == box.map50 == box.map75 == pytest.approx((half + 1) / 2)
    assert (box.mp, box.mr) == pytest.approx((1.0, 0.75))
    assert box.f1 == pytest.approx([2 / 3, 1.0])
    assert box.maps == pytest.approx([half, box.map, 1.0]), "a class without true boxes has the mean"
    assert box.mean_results() == [box.mp, box.mr, box.map50, box.map]
    assert box.class_result(1) == pytest.approx((1.0, 1.0, 1.0, 1.0))
    assert box.fitness() == box.map


def test_metrics_of_a_run(metrics: DetMetrics) -> None:
    assert metrics.names == NAMES
    assert metrics.keys == [
        "metrics/precision(B)",
        "metrics/recall(B)",
        "metrics/mAP50(B)",
        "metrics/mAP50-95(B)",
    ]
    assert metrics.nt_per_class.tolist() == [2, 0, 1], "without crowds"
    assert metrics.nt_per_image.tolist() == [2, 0, 1]
    assert metrics.mean_results() == metrics.box.mean_results()
    assert metrics.class_result(0) == metrics.box.class_result(0)
    np.testing.assert_array_equal(metrics.maps, metrics.box.maps)
    np.testing.assert_array_equal(metrics.ap_class_index, [0, 2])
    assert metrics.fitness == metrics.box.map
    assert metrics.threshold == metrics.box.threshold
    assert set(metrics.speed) == {"read", "preprocess", "inference", "loss", "postprocess"}
    assert (metrics.seen, metrics.left_out, metrics.save_dir, metrics.protocol) == (3, 0, None, "")
    assert list(metrics.coco) == [
        "AP",
        "AP50",
        "AP75",
        "APs",
        "APm",
        "APl",
        "AR1",
        "AR10",
        "AR100",
        "ARs",
        "ARm",
        "ARl",
    ]
    assert metrics.coco["APm"] == metrics.box.map
    assert math.isnan(metrics.coco["APs"])
    assert metrics.confusion_matrix.matrix.sum() == 4
    assert "mAP50-95(B)=0.7525" in repr(metrics)


def test_results_dict(metrics: DetMetrics) -> None:
    assert list(metrics.results_dict) == [*metrics.keys, "fitness"]
    assert metrics.results_dict["fitness"] == metrics.fitness
    assert metrics.results_dict["metrics/recall(B)"] == 0.75
    metrics.with_sizes = True
    try:
        sizes = [f"metrics/mAP_{size}(B)" for size in ("small", "medium", "large")]
        assert list(metrics.results_dict) == [*metrics.keys, *sizes, "fitness"]
        assert metrics.results_dict[sizes[1]] == metrics.coco["APm"]
    finally:
        metrics.with_sizes = False


def test_curves(metrics: DetMetrics) -> None:
    assert metrics.curves == [
        "Precision-Recall(B)",
        "F1-Confidence(B)",
        "Precision-Confidence(B)",
        "Recall-Confidence(B)",
    ]
    assert metrics.box.curves == metrics.curves
    names = [("Recall", "Precision"), ("Confidence", "F1"), ("Confidence", "Precision"), ("Confidence", "Recall")]
    for (x, y, x_name, y_name), expected in zip(metrics.curves_results, names, strict=True):
        assert (x_name, y_name) == expected
        assert y.shape == (2, len(x))
        assert (x[0], x[-1]) == (0, 1)


def test_stats(metrics: DetMetrics) -> None:
    stats = metrics.stats
    assert stats["pred_cls"].tolist() == [0, 1, 2, 2]
    assert stats["conf"].tolist() == [0.9, 0.6, 0.8, 0.95]
    assert stats["tp"].tolist() == [[True] * 10, [False] * 10, [True] * 10, [False] * 10], "one in a crowd is not right"
    assert stats["target_cls"].tolist() == [0, 0, 2]
    assert stats["target_img"].tolist() == [0, 1, 0]


def test_summary(metrics: DetMetrics) -> None:
    rows = metrics.summary(decimals=3)
    assert rows == [
        {
            **{"Class": "cat", "Images": 2, "Instances": 2, "Box-P": 1.0, "Box-R": 0.5, "Box-F1": 0.667},
            **{"mAP50": 0.505, "mAP75": 0.505, "mAP50-95": 0.505},
        },
        {
            **{"Class": "bird", "Images": 1, "Instances": 1, "Box-P": 1.0, "Box-R": 1.0, "Box-F1": 1.0},
            **{"mAP50": 1.0, "mAP75": 1.0, "mAP50-95": 1.0},
        },
    ]
    assert metrics.summary(normalize=False) == metrics.summary()
    assert json.loads(metrics.to_json(decimals=3)) == rows
    table = list(csv.DictReader(io.StringIO(metrics.to_csv(decimals=3))))
    assert list(table[0]) == list(rows[0])
    assert table[0]["Box-F1"] == "0.667"


def test_data_frame(metrics: DetMetrics) -> None:
    polars = pytest.importorskip("polars")
    frame = metrics.to_df()
    assert frame.columns == list(metrics.summary()[0])
    assert frame["Instances"].to_list() == [2, 1]
    empty = evaluated([]).to_df()
    assert empty.shape == (0, 9)
    assert empty["mAP50"].dtype == polars.Float64


def test_images(metrics: DetMetrics) -> None:
    rows = metrics.images()
    assert [row["file_name"] for row in rows] == ["1.jpg", "2.jpg", "3.jpg"], "in the data set's order"
    assert metrics.threshold < 0.6
    counts = ("image_id", "instances", "detections", "tp", "fp", "fn", "precision", "recall", "f1")
    assert [rows[0][key] for key in counts] == [10, 2, 1, 1, 0, 1, 1.0, 0.5, pytest.approx(2 / 3)]
    assert [rows[1][key] for key in counts] == [20, 1, 2, 1, 1, 0, 0.5, 1.0, pytest.approx(2 / 3)]
    assert [rows[2][key] for key in counts[:6]] == [30, 0, 1, 0, 0, 0]
    assert all(math.isnan(rows[2][key]) for key in counts[6:])
    table = list(csv.DictReader(io.StringIO(metrics.images_to_csv(decimals=2))))
    assert table[0]["f1"] == "0.67"
    assert (table[2]["precision"], table[2]["fp"]) == ("", "0")
    assert metrics.box.image_metrics["2.jpg"] == {
        key: rows[1][key] for key in ("precision", "recall", "f1", "tp", "fp", "fn")
    }


@pytest.mark.parametrize("seed", range(3))
def test_images_add_up(seed: int) -> None:
    records = random_records(seed)
    metrics = evaluated(records)
    rows = metrics.images()
    assert sum(row["instances"] for row in rows) == metrics.nt_per_class.sum()
    assert all(row["tp"] + row["fn"] == row["instances"] for row in rows)
    assert all(row["tp"] + row["fp"] <= row["detections"] for row in rows)
    box = metrics.box
    right = sum(row["tp"] for row in rows)
    assert right == pytest.approx((box.r * metrics.nt_per_class[box.ap_class_index]).sum())


@pytest.mark.parametrize("case", ["no_truth", "crowds_only"])
def test_nothing_to_find(case: str) -> None:
    metrics = evaluated(CASES[case]())
    assert all(math.isnan(value) for value in (*metrics.mean_results(), metrics.fitness, *metrics.coco.values()))
    assert metrics.summary() == []
    assert metrics.ap_class_index.shape == (0,)
    assert np.isnan(metrics.maps).all()
    assert metrics.box.all_ap.shape == (0, 10)
    assert metrics.curves_results[0][1].shape == (0, 101)
    assert metrics.threshold == 0
    assert metrics.images_to_csv()
    assert metrics.to_csv().startswith("Class,")
