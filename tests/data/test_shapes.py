"""Pictures drawn by code: the same for the same seed, with exact boxes, and folders of them that the readers take."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolonas.data import read_image, shapes
from yolonas.data.catalog import locate
from yolonas.data.dataset import open_dataset

SIZES = [(64, 64), (96, 416), (416, 416), (480, 640)]
KNOWN_NAMES = "umbrella gear gear gear star umbrella heart moon"
KNOWN_BOXES = [[120, 130, 194, 233], [1, 50, 171, 223], [66, 336, 134, 381]]
FLAT_LIGHT = shapes._Light(1.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def many() -> list[np.ndarray]:
    """Labels of 300 pictures."""
    return [shapes.draw(index)[1] for index in range(300)]


def test_what_draw_gives() -> None:
    picture, rows = shapes.draw(0, size=(96, 128))
    assert picture.shape == (96, 128, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert picture.flags.writeable
    assert rows.shape[1] == 5
    assert rows.dtype == np.float32
    assert len(set(shapes.NAMES)) == len(shapes.NAMES) == 8


@pytest.mark.parametrize("index", [0, 17, shapes.FIRST_VAL])
def test_the_same_arguments_give_the_same_bytes(index: int) -> None:
    first, second = shapes.draw(index, seed=3), shapes.draw(index, seed=3)
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


def test_other_arguments_give_other_pictures() -> None:
    pictures = [
        shapes.draw(index, size=(64, 64), seed=seed)[0].tobytes()
        for seed in (0, 1, 2**32 - 1)
        for index in (0, 1, 2, shapes.FIRST_VAL, shapes.FIRST_VAL + 1, 2**31 - 1)
    ]
    assert len(set(pictures)) == len(pictures)


def test_labels_of_a_known_picture() -> None:
    """Where this fails on purpose, `shapes.VERSION` must be raised, too."""
    rows = shapes.draw(7)[1]
    assert " ".join(shapes.NAMES[int(row[0])] for row in rows) == KNOWN_NAMES
    np.testing.assert_allclose(rows[:3, 1:], KNOWN_BOXES, atol=1)


def test_threads_share_nothing() -> None:
    expected = [shapes.draw(index)[0].tobytes() for index in range(8)]
    found: list[list[bytes]] = [[] for _ in range(4)]

    def work(into: list[bytes]) -> None:
        into.extend(shapes.draw(index)[0].tobytes() for index in range(8))

    threads = [threading.Thread(target=work, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_counts_and_classes(many: list[np.ndarray]) -> None:
    counts = np.array([len(rows) for rows in many])
    assert (counts.min(), counts.max()) == shapes.COUNTS
    assert 10 < counts.mean() < 13
    classes = np.bincount(np.concatenate(many)[:, 0].astype(int), minlength=8)
    assert len(classes) == 8
    assert classes.min() > 0.8 * classes.mean()
    assert classes.max() < 1.2 * classes.mean()


def test_sizes_span_what_is_promised(many: list[np.ndarray]) -> None:
    boxes = np.concatenate(many)[:, 1:]
    sides = np.sort(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert sides[:, 0].min() >= 6
    assert sides[:, 1].min() >= 10
    assert sides[:, 1].max() <= shapes.LENGTHS[1] + 1
    shares = np.histogram(sides[:, 1], (10, 25, 50, 100, 200, 302))[0] / len(sides)
    assert shares.min() > 0.1
    edge = (boxes[:, :2] == 0).any(axis=1) | (boxes[:, 2:] == 416).any(axis=1)
    assert 0.1 < edge.mean() < 0.35


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boxes_lie_in_pictures_of_any_size(size: tuple[int, int]) -> None:
    height, width = size
    for index in range(40):
        picture, rows = shapes.draw(index, size=size, seed=1)
        assert picture.shape == (height, width, 3)
        assert shapes.COUNTS[0] <= len(rows) <= shapes.COUNTS[1]
        assert (rows[:, 1:3] >= 0).all()
        assert (rows[:, 1:3] < rows[:, 3:5]).all()
        assert (rows[:, 3:5] <= (width, height)).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boxes_are_tight(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A thing painted alone reaches each side of its box, and not beyond."""
    things = [thing for index in range(12) for thing in shapes._scene(index, size, 0)[1]]
    monkeypatch.setattr(shapes, "_color", lambda numbers: np.array((90.0, 120.0, 150.0)))
    for thing in things:
        black, white = (np.full((*size, 3), tone, np.uint8) for tone in (0, 255))
        for ground in (black, white):
            shapes._paint(np.random.default_rng(0), ground, thing, FLAT_LIGHT)
        cover = 255 - (white.astype(int) - black).max(axis=2)  # what the ground does not show through
        columns, rows = (np.flatnonzero((cover > 128).any(axis=axis)) for axis in (0, 1))
        np.testing.assert_allclose((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), thing.box, atol=1)


@pytest.mark.parametrize("kind", range(8), ids=shapes.NAMES)
def test_silhouettes_are_as_large_as_their_curves(kind: int) -> None:
    """The mask against the extent of the warped points, computed apart. Tips narrower than a pixel may be missing."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        outline, warp = shapes._KINDS[kind](random), shapes._warp(random)
        mask = shapes._mask(outline, warp, 150.0)
        points = np.concatenate(outline.parts)
        points = np.column_stack((points, np.ones(len(points)))) @ np.column_stack((warp, (0, 0, 1))).T
        sides = np.ptp(points[:, :2] / points[:, 2:], axis=0)
        expected = sides * 150 / sides.max()
        h, w = mask.core.shape
        assert mask.alpha.shape == (h, w)
        assert -6 < w - expected[0] <= 1
        assert -6 < h - expected[1] <= 1
        assert mask.area == np.count_nonzero(mask.alpha > 128) == np.count_nonzero(mask.core)
        filled = mask.area / (w * h)
        assert 0.08 < filled < 0.85  # no kind is a plain box


def test_enough_of_each_thing_is_in_sight() -> None:
    for index in range(60):
        things = shapes._scene(index, (416, 416), 0)[1]
        top = np.full((416, 416), -1)
        for number, thing in enumerate(things):
            h, w = thing.mask.core.shape
            canvas = np.zeros((416 + 2 * 320, 416 + 2 * 320), bool)
            canvas[thing.y + 320 : thing.y + 320 + h, thing.x + 320 : thing.x + 320 + w] = thing.mask.core > 0
            top[canvas[320:-320, 320:-320]] = number
        for number, thing in enumerate(things):
            assert (top == number).sum() >= shapes.SEEN * thing.mask.area


def test_colors_do_not_tell_the_classes() -> None:
    """Mean colours within the silhouettes: no class is far from the others, compared with how they scatter."""
    means = np.zeros((0, 3))
    labels: list[int] = []
    for index in range(60):
        picture, things = shapes._scene(index, (416, 416), 0)
        for thing in things:
            x1, y1, x2, y2 = thing.box
            core = thing.mask.core[y1 - thing.y : y2 - thing.y, x1 - thing.x : x2 - thing.x]
            means = np.vstack((means, cv2.mean(picture[y1:y2, x1:x2], core)[:3]))
            labels.append(thing.label)
    centres = np.array([means[np.array(labels) == label].mean(axis=0) for label in range(8)])
    assert means.std(axis=0).min() > 25
    assert np.abs(centres - means.mean(axis=0)).max() < 20


def test_pictures_differ_in_quality() -> None:
    """Some are clean and some are blurred or noisy, which a fine second difference shows."""
    grain = []
    for index in range(60):
        gray = cv2.cvtColor(shapes.draw(index, size=(128, 128))[0], cv2.COLOR_BGR2GRAY).astype(np.float32)
        grain.append(np.median(np.abs(gray[:, 2:] - 2 * gray[:, 1:-1] + gray[:, :-2])))
    assert np.percentile(grain, 10) < 4
    assert np.percentile(grain, 90) > 8


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The yaml of a small set."""
    folder = tmp_path_factory.mktemp("sets") / "made"
    return shapes.write(folder, train=5, val=3, size=(96, 128), seed=2, verbose=False)


def test_the_folder(written: Path) -> None:
    folder = written.parent
    assert written.name == "shapes.yaml"
    assert [path.name for path in folder.parent.iterdir()] == ["made"]  # nothing temporary is left
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [f"train/{number:06}" for number in range(5)] + [f"val/{number:06}" for number in range(3)]
    assert files == sorted(
        [f"images/{name}.jpg" for name in names] + [f"labels/{name}.txt" for name in names] + ["shapes.yaml"]
    )


@pytest.mark.parametrize(("split", "count", "first"), [("train", 5, 0), ("val", 3, shapes.FIRST_VAL)])
def test_the_readers_take_the_folder(written: Path, split: str, count: int, first: int) -> None:
    dataset = open_dataset(written, split, cache=False)
    assert dataset.names == dict(enumerate(shapes.NAMES))
    assert dataset.problems == []
    assert len(dataset) == count
    for number, image in enumerate(dataset.images):
        picture, rows = shapes.draw(first + number, size=(96, 128), seed=2)
        found = read_image(image.path)
        assert found.shape == picture.shape
        assert np.abs(found.astype(int) - picture).mean() < 12
        truth = image.truth((96, 128))
        assert truth.classes.tolist() == rows[:, 0].tolist()
        corners = np.concatenate((truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]), axis=1)
        np.testing.assert_allclose(corners, rows[:, 1:], atol=2e-3)


def test_the_folder_is_found_as_data(written: Path) -> None:
    assert locate(str(written.parent)) == written


def test_splits_share_no_picture(written: Path) -> None:
    pictures = [path.read_bytes() for path in written.parent.rglob("*.jpg")]
    assert len(set(pictures)) == 8


def test_another_count_keeps_the_pictures(written: Path, tmp_path: Path) -> None:
    shapes.write(tmp_path / "less", train=2, val=2, size=(96, 128), seed=2, verbose=False)
    for path in (tmp_path / "less").rglob("*.jpg"):
        assert path.read_bytes() == (written.parent / path.relative_to(tmp_path / "less")).read_bytes()


def test_quality(tmp_path: Path) -> None:
    sizes = []
    for quality in (20, 95):
        yaml = shapes.write(tmp_path / str(quality), train=1, val=1, size=(64, 64), quality=quality, verbose=False)
        sizes.append(sum(path.stat().st_size for path in yaml.parent.rglob("*.jpg")))
    assert 2 * sizes[0] < sizes[1]


def test_the_same_again_is_taken_as_it_is(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "draw", None)
    assert shapes.write(written.parent, train=5, val=3, size=(96, 128), seed=2) == written


@pytest.mark.parametrize(
    "changed", [{"train": 6}, {"val": 2}, {"size": (128, 96)}, {"seed": 3}, {"quality": 91}], ids=str
)
def test_other_arguments_are_refused(written: Path, changed: dict[str, object]) -> None:
    arguments = {"train": 5, "val": 3, "size": (96, 128), "seed": 2, **changed}
    with pytest.raises(FileExistsError, match=r"write: folder must have been written with these arguments, see .*yaml"):
        shapes.write(written.parent, **arguments)


def test_another_version_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    with pytest.raises(FileExistsError, match="these arguments"):
        shapes.write(written.parent, train=5, val=3, size=(96, 128), seed=2)


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match="write: folder must be new, empty or a set of shapes"):
            shapes.write(tmp_path / name, train=1, val=1, size=(64, 64))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "notes.txt"]


def test_an_empty_folder_and_new_parents(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", str(tmp_path / "a/b/c")):
        assert shapes.write(folder, train=1, val=1, size=(64, 64), verbose=False).is_file()


def test_an_incomplete_set_is_refused(tmp_path: Path) -> None:
    shapes.write(tmp_path / "set", train=2, val=1, size=(64, 64), verbose=False)
    (tmp_path / "set/labels/train/000001.txt").unlink()
    with pytest.raises(FileExistsError, match="must have 2 files, got 1"):
        shapes.write(tmp_path / "set", train=2, val=1, size=(64, 64))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_nothing_is_left_of_a_run_that_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    draw = shapes.draw

    def failing(index: int, **others: object) -> tuple[np.ndarray, np.ndarray]:
        if index >= shapes.FIRST_VAL:
            raise error
        return draw(index, **others)

    monkeypatch.setattr(shapes, "draw", failing)
    with pytest.raises(error):
        shapes.write(tmp_path / "set", train=2, val=1, size=(64, 64), verbose=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("same", [True, False])
def test_somebody_else_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    draw, settings = shapes.draw, {"train": 1, "val": 1, "size": (64, 64), "verbose": False}

    def slow(index: int, **others: object) -> tuple[np.ndarray, np.ndarray]:
        monkeypatch.setattr(shapes, "draw", draw)
        shapes.write(tmp_path / "set", **(settings if same else {**settings, "train": 2}))
        return draw(index, **others)

    monkeypatch.setattr(shapes, "draw", slow)
    if same:
        assert shapes.write(tmp_path / "set", **settings) == tmp_path / "set/shapes.yaml"
    else:
        with pytest.raises(FileExistsError, match="these arguments"):
            shapes.write(tmp_path / "set", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"index": -1}, r"draw: index must be a whole number in 0\.\.2147483647, got -1"),
        ({"index": 2**31}, "draw: index must be"),
        ({"index": 0.5}, "draw: index must be a whole number"),
        ({"index": True}, "draw: index must be a number"),
        ({"index": 0, "seed": -1}, r"draw: seed must be a whole number in 0\.\.4294967295, got -1"),
        ({"index": 0, "seed": None}, "draw: seed must be a number, got None"),
        ({"index": 0, "size": 416}, r"draw: size must be \(height, width\), got 416"),
        ({"index": 0, "size": (64, 64, 3)}, r"draw: size must be \(height, width\)"),
        ({"index": 0, "size": (63, 64)}, r"draw: height of size must be a whole number in 64\.\.4096, got 63"),
        ({"index": 0, "size": (64, 4097)}, "draw: width of size must be"),
    ],
    ids=str,
)
def test_bad_arguments_of_draw(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        shapes.draw(**arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"train": 0}, r"write: train must be a whole number in 1\.\."),
        ({"val": -2}, "write: val must be"),
        ({"val": "many"}, "write: val must be a number, got 'many'"),
        ({"size": "big"}, r"write: size must be \(height, width\), got 'big'"),
        ({"seed": 2**32}, "write: seed must be"),
        ({"quality": 0}, r"write: quality must be a whole number in 1\.\.100, got 0"),
    ],
    ids=str,
)
def test_bad_arguments_of_write(tmp_path: Path, arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        shapes.write(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []
