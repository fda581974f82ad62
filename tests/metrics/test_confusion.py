"""The confusion matrix: which pairs are made, what counts against the background, crowds, the table forms."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from made_records import BOX, NAMES, SHIFTED, Found, True_, record

from yolonas.metrics import ConfusionMatrix

CAT, DOG, BIRD, NONE = 0, 1, 2, 3
FAR = (120, 10, 40, 40)


def matrix_of(truth: True_, found: Found, crowd: list[int] | None = None, **options: float) -> ConfusionMatrix:
    matrix = ConfusionMatrix(NAMES, **options)
    picture = record(1, truth, sorted(found, key=lambda row: -row[1]), crowd=crowd)
    matrix.add(picture.detections, picture.truth)
    return matrix


@pytest.mark.parametrize(
    ("truth", "found", "cells"),
    [
        ([(BOX, CAT)], [(BOX, 0.9, CAT)], {(CAT, CAT): 1}),
        ([(BOX, CAT)], [(BOX, 0.9, DOG)], {(DOG, CAT): 1}),
        ([(BOX, CAT)], [(FAR, 0.9, CAT)], {(CAT, NONE): 1, (NONE, CAT): 1}),
        ([(BOX, CAT)], [(BOX, 0.24, CAT)], {(NONE, CAT): 1}),
        ([(BOX, CAT)], [(BOX, 0.25, CAT)], {(CAT, CAT): 1}),
        ([(BOX, CAT)], [], {(NONE, CAT): 1}),
        ([], [(BOX, 0.9, BIRD)], {(BIRD, NONE): 1}),
        ([], [], {}),
        # one to one: the duplicate is wrong
        ([(BOX, CAT)], [(BOX, 0.9, CAT), (BOX, 0.8, CAT)], {(CAT, CAT): 1, (CAT, NONE): 1}),
        # the highest overlap first, not the highest score
        ([(BOX, CAT)], [(SHIFTED, 0.9, DOG), (BOX, 0.5, CAT)], {(CAT, CAT): 1, (DOG, NONE): 1}),
        # of equal overlaps that of one class, though its score is lower
        ([(BOX, CAT)], [(BOX, 0.9, DOG), (BOX, 0.5, CAT)], {(CAT, CAT): 1, (DOG, NONE): 1}),
        # two true boxes of one place, two detections
        ([(BOX, CAT), (BOX, DOG)], [(BOX, 0.9, DOG), (BOX, 0.5, CAT)], {(CAT, CAT): 1, (DOG, DOG): 1}),
        # a detection that loses its best box takes the next
        ([(BOX, CAT), (SHIFTED, CAT)], [(BOX, 0.9, CAT), (BOX, 0.8, CAT)], {(CAT, CAT): 2}),
        # boxes without area overlap nothing
        ([((5, 5, 0, 0), CAT)], [((5, 5, 0, 0), 0.9, CAT)], {(CAT, NONE): 1, (NONE, CAT): 1}),
    ],
)
def test_pairs(truth: True_, found: Found, cells: dict[tuple[int, int], int]) -> None:
    expected = np.zeros((4, 4), int)
    for cell, count in cells.items():
        expected[cell] = count
    np.testing.assert_array_equal(matrix_of(truth, found).matrix, expected)


def test_overlap_must_be_above_iou() -> None:
    truth, found = [((0, 0, 10, 10), CAT)], [((0, 0, 10, 5), 0.9, CAT)]
    assert matrix_of(truth, found, iou=0.49).matrix[CAT, CAT] == 1
    assert matrix_of(truth, found, iou=0.5).matrix[CAT, CAT] == 0


def test_crowds() -> None:
    crowd = ((0, 0, 100, 100), CAT)
    inside = [((10, 10, 20, 20), 0.9, CAT), ((50, 50, 20, 20), 0.8, CAT)]
    assert matrix_of([crowd], inside, [1]).matrix.sum() == 0, "neither found nor missed nor wrong"
    assert matrix_of([crowd], [((10, 10, 20, 20), 0.9, DOG)], [1]).matrix[DOG, NONE] == 1, "a crowd of another class"
    half_out = [((80, 0, 40, 20), 0.9, CAT)]
    assert matrix_of([crowd], half_out, [1]).matrix.sum() == 0
    assert matrix_of([crowd], half_out, [1], iou=0.5).matrix[CAT, NONE] == 1
    both = matrix_of([crowd, (BOX, CAT)], [(BOX, 0.9, CAT)], [1, 0])
    assert both.matrix[CAT, CAT] == 1, "a true box in the crowd is still to be found"


def test_counts_add_up() -> None:
    rng = np.random.default_rng(0)
    matrix = ConfusionMatrix(NAMES)
    true_count, sure_count = 0, 0
    for index in range(50):
        draw = [rng.integers((0, 0, 5, 5), 65).tolist() for _ in range(rng.integers(0, 20))]
        truth = [(box, int(rng.integers(0, 3))) for box in draw[::2]]
        found = [(box, float(rng.random()), int(rng.integers(0, 3))) for box in draw[1::2] + draw[:4]]
        picture = record(index, truth, sorted(found, key=lambda row: -row[1]))
        matrix.add(picture.detections, picture.truth)
        true_count += len(truth)
        sure_count += sum(row[1] >= 0.25 for row in found)
    assert matrix.matrix[:, :3].sum() == true_count
    assert matrix.matrix[:3].sum() == sure_count
    assert matrix.matrix[NONE, NONE] == 0
    right, wrong = matrix.tp_fp()
    np.testing.assert_array_equal(right, np.diag(matrix.matrix)[:3])
    assert right.sum() + wrong.sum() == sure_count


def test_table_forms() -> None:
    matrix = matrix_of([(BOX, CAT), (FAR, CAT)], [(BOX, 0.9, CAT), ((60, 60, 5, 5), 0.9, DOG)])
    rows = matrix.summary()
    assert rows[0] == {"Predicted": "cat", "cat": 1, "dog": 0, "bird": 0, "background": 0}
    assert rows[3] == {"Predicted": "background", "cat": 1, "dog": 0, "bird": 0, "background": 0}
    assert json.loads(matrix.to_json()) == rows
    assert next(iter(csv.reader(io.StringIO(matrix.to_csv())))) == ["Predicted", "cat", "dog", "bird", "background"]
    assert matrix.summary(normalize=True)[0]["cat"] == 0.5
    assert matrix.summary(normalize=True)[0]["bird"] == 0.0
    columns = matrix.normalized().sum(axis=0)
    np.testing.assert_allclose(columns, [1, 0, 0, 1])
    third = matrix_of([(BOX, CAT)] * 3, [(BOX, 0.9, CAT)])
    assert third.summary(normalize=True, decimals=2)[0]["cat"] == 0.33


def test_data_frame() -> None:
    polars = pytest.importorskip("polars")
    frame = matrix_of([(BOX, CAT)], [(BOX, 0.9, CAT)]).to_df()
    assert frame.columns == ["Predicted", "cat", "dog", "bird", "background"]
    assert frame["cat"].dtype == polars.Int64
    assert matrix_of([], []).to_df(normalize=True)["cat"].dtype == polars.Float64


def test_names_that_come_twice() -> None:
    matrix = ConfusionMatrix({0: "cell", 1: "cell", 2: "background", 3: "Predicted"})
    assert list(matrix.summary()[0]) == [
        "Predicted",
        "cell",
        "cell (1)",
        "background",
        "Predicted (3)",
        "background (4)",
    ]


@pytest.mark.parametrize(("argument", "value"), [("conf", -0.1), ("conf", 25), ("iou", float("nan")), ("iou", "half")])
def test_arguments_out_of_range(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"ConfusionMatrix: {argument} must be a number of 0..1, got"):
        ConfusionMatrix(NAMES, **{argument: value})
