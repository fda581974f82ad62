"""Single label files: boxes, polygons and every kind of bad line."""

from __future__ import annotations

import time

import numpy as np
import pytest

from yolonas.data.label_file import parse_labels


def test_boxes() -> None:
    labels = parse_labels(b"\xef\xbb\xbf0 0.5 0.5 0.2 0.4\r\n\n\t2.0\t.25  0.75 5e-1 0.5 \n", 3)
    assert labels.classes.tolist() == [0, 2]
    assert np.allclose(labels.boxes, [[0.4, 0.3, 0.2, 0.4], [0, 0.5, 0.5, 0.5]])
    assert labels.problems == ()
    assert labels.boxes.dtype == np.float64
    assert labels.classes.dtype == np.int32


def test_an_empty_file() -> None:
    labels = parse_labels(b" \n", 3)
    assert labels.boxes.shape == (0, 4)
    assert labels.usable
    assert labels.problems == ()


def test_polygons_become_boxes() -> None:
    labels = parse_labels(b"1 0.1 0.2 0.5 0.3 0.3 0.9\n1 0 0 1 0 1 1 0 1\n", 3)
    assert np.allclose(labels.boxes, [[0.1, 0.2, 0.4, 0.7], [0, 0, 1, 1]])


def test_a_small_excess_is_cut_off_silently() -> None:
    labels = parse_labels(b"0 0.0005 0.5 0.002 1.0008\n0 0.999 0.5 0.003 0.5", 3)
    assert labels.problems == ()
    assert np.allclose(labels.boxes, [[0, 0, 0.0015, 1], [0.9975, 0.25, 0.0025, 0.5]])


def test_a_box_over_the_edge_is_cut_off() -> None:
    labels = parse_labels(b"0 0.9 0.5 0.4 0.5\n", 3)
    assert np.allclose(labels.boxes, [[0.7, 0.25, 0.3, 0.5]])
    assert [str(problem) for problem in labels.problems] == [":1: box reaches 0.1 out of the picture and is cut off"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("0 0.5 0.5 0.1", "must have 5 numbers .* got 4"),
        ("0 0.5 0.5 0.1 0.1 0.9", "must have 5 numbers .* got 6"),
        ("0", "must have 5 numbers .* got 1"),
        ("cat 0.5 0.5 0.1 0.1", "must be numbers, got 'cat 0.5 0.5 0.1 0.1'"),
        ("0,0.5,0.5,0.1,0.1", "must be numbers"),
        ("0 0.5 0.5 0.1 0.1 # cat", "must be numbers"),
        ("1_0 0.5 0.5 0.1 0.1", "must be numbers"),
        ("x" * 10_000, "must be numbers"),
        ("3 0.5 0.5 0.1 0.1", "class must be a whole number of 0 to 2, got 3"),
        ("-1 0.5 0.5 0.1 0.1", "class must be a whole number of 0 to 2, got -1"),
        ("0.5 0.5 0.5 0.1 0.1", "class must be a whole number of 0 to 2, got 0.5"),
        ("nan 0.5 0.5 0.1 0.1", "class must be a whole number of 0 to 2, got nan"),
        ("inf 0.5 0.5 0.1 0.1", "class must be"),
        ("0 nan 0.5 0.1 0.1", "must be fractions of the picture's size, 0 to 1, got nan"),
        ("0 0.5 0.5 1e999 0.1", "must be fractions .* got inf"),
        ("0 0.5 0.5 0.1 1.002", "must be fractions .* got 1.002"),
        ("0 -0.002 0.5 0.1 0.1", "must be fractions .* got -0.002"),
        ("0 320 240 64 48", "must be fractions .* got 320"),
        ("0 0.5 0.5 0 0.1", "width and a height above 0, got 0 0.1"),
        ("0 0.5 0.5 0.1 -0.0005", "width and a height above 0"),
        ("0 1.0005 0.5 0.0001 0.1", "must have an area in the picture"),
        ("0 0.1 0.1 0.1 0.2 0.1 0.3", "must have an area in the picture"),
    ],
)
def test_bad_lines(line: str, what: str) -> None:
    labels = parse_labels(f"1 0.5 0.5 0.1 0.1\n{line}\n2 0.5 0.5 0.1 0.1".encode(), 3)
    assert labels.classes.tolist() == [1, 2]
    (problem,) = labels.problems
    assert (problem.where, problem.cost, problem.count) == (":2", "label", 1)
    with pytest.raises(ValueError, match=what):
        raise ValueError(problem.what)
    assert len(problem.what) < 200
    assert labels.usable


def test_repeated_lines() -> None:
    labels = parse_labels(b"0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n0.0 0.50 0.5 0.1 0.1\n", 3)
    assert labels.classes.tolist() == [0, 1]
    assert [(problem.where, problem.what) for problem in labels.problems] == [(":3", "repeats another line")]


@pytest.mark.parametrize("line", [b"0 2 2 2 2\n", b"\xff\n", b"0 0.5 0.5 0.1 0.1\n", b"0 0.9 0.5 0.4 0.5\n"])
def test_a_million_bad_lines_are_counted(line: bytes) -> None:
    start = time.perf_counter()
    labels = parse_labels(line * 300_000, 3)
    assert time.perf_counter() - start < 10
    found = [problem for problem in labels.problems if problem.cost == "label"]
    assert len(found) == 21
    assert sum(problem.count for problem in found) == 300_000 - len(labels.boxes)
    assert "and 2999" in found[-1].what


def test_binary_files() -> None:
    labels = parse_labels(b"\x89PNG\x00\x00\n" * 1000, 3)
    assert not labels.usable
    assert [str(problem) for problem in labels.problems] == [": is not a text file; picture left out"]
    assert not parse_labels("0 0.5 0.5 0.1 0.1\n".encode("utf-16"), 3).usable
