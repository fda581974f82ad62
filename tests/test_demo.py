"""The demonstration: its picture, what it prints and writes, and the command that starts it from a checkout."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from golden_recipe import fill_
from quantized_networks import picture, quantize_

import yolonas
from yolonas import NAS, weights
from yolonas.data import shapes
from yolonas.demo import SCENE, SHOWN_BOXES, DemoOptions, DemoResult, draw_scene, run_demo
from yolonas.nn import YoloNAS, fuse_

ROOT = Path(__file__).resolve().parent.parent
SCORES = {"map": 0.71239, "map50": 0.9}
CARD = {
    "float32": {"scores": {"map": 0.75, "map50": 0.92}},
    "int8": {"scores": SCORES},
    "evaluation": {"pictures": 1400},
}


@pytest.fixture(scope="module")
def stand_in() -> NAS:
    """A quantised network for the drawn things, with weights by recipe."""
    network = fuse_(fill_(YoloNAS("s", num_classes=len(shapes.NAMES))).eval())
    detector = NAS(quantize_(network, picture(1, 32, 32)), names=shapes.NAMES)  # type: ignore[arg-type]
    detector.preprocess = detector.preprocess.with_size((64, 64))
    return detector


@pytest.fixture(scope="module")
def models(stand_in: NAS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package for its network, with the stand-in, its card, and a compiled form."""
    folder = tmp_path_factory.mktemp("models")
    stand_in.save(folder / weights.SHIPPED_FILE)
    stand_in.save(folder / "compiled.yolonas")
    (folder / f"{weights.SHIPPED}.json").write_text(json.dumps(CARD))
    return folder


@pytest.fixture
def folder(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, on a machine without weights of its own and without a network."""
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(weights, "SHIPPED_FOLDER", models)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("YOLONAS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("YOLONAS_OFFLINE", "1")
    return tmp_path / "work"


def run(model: NAS, **options: object) -> DemoResult:
    return run_demo(model, DemoOptions.of(**{"pictures": 2, **options}))


def test_the_scene_is_drawn_the_same_each_time() -> None:
    scene = draw_scene()
    assert scene.shape == (480, 640, 3)
    assert scene.dtype == np.uint8
    np.testing.assert_array_equal(scene, draw_scene())
    assert draw_scene(96, 70).shape == (96, 70, 3)
    assert (draw_scene(96, 70) != draw_scene(96, 70, number=1)).any()


def test_the_scene_is_none_to_train_with() -> None:
    np.testing.assert_array_equal(draw_scene(number=3), shapes.draw(shapes.FIRST_VAL + 3, size=(480, 640))[0])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"number": -1}, r"number must be a whole number in 0\.\."),
        ({"number": shapes.FIRST_VAL}, r"number must be a whole number in 0\.\."),
        ({"height": 63}, "height of size must be"),
        ({"width": 5000}, "width of size must be"),
    ],
)
def test_scenes_that_cannot_be_drawn(arguments: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        draw_scene(**arguments)


def test_the_network_of_the_package_runs_by_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = NAS("yolo_nas_s_shapes")
    result = run(model)
    lines = capsys.readouterr().out.splitlines()
    found = result.found.boxes.numpy()
    assert lines[0].startswith(
        f"a drawn picture of 640x480 with 11 things: {len(found)} boxes with scores from 0.4 on, "
    )
    assert lines[1].split() == ["name", "score", "x1", "y1", "x2", "y2"]
    row = [shapes.NAMES[int(found.cls[0])], f"{found.conf[0]:.2f}", *(f"{value:.1f}" for value in found.xyxy[0])]
    assert lines[2].split() == row
    shown = lines[2 : 2 + SHOWN_BOXES]
    assert [float(line.split()[1]) for line in shown] == [round(float(score), 2) for score in found.conf[:SHOWN_BOXES]]
    assert lines[2 + SHOWN_BOXES] == f"  ... {len(found) - SHOWN_BOXES} more"
    rest = lines[3 + SHOWN_BOXES :]
    things = sum(len(shapes.draw(shapes.FIRST_VAL + number, seed=1)[1]) for number in range(2))
    assert rest[0] == f"2 other pictures with {things} things, drawn for this run:"
    assert [line.split() for line in rest[1:5]] == [
        ["mAP50-95", "mAP50", "pictures"],
        ["this", "run", f"{result.metrics.box.map:.4f}", f"{result.metrics.box.map50:.4f}", "2"],
        ["its", "card,", "INT8", "0.7124", "0.9000", "1,400"],
        ["its", "card,", "float32", "0.7500", "0.9200", "1,400"],
    ]
    assert " images/s; the network alone takes " in rest[5]
    assert rest[6:] == [f"Results saved to {Path('runs/detect/demo')}"]
    assert result.save_dir == Path("runs/detect/demo")


def test_a_network_that_finds_nothing(
    stand_in: NAS, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(yolonas.demo, "SCORE", 1.0)
    result = run(stand_in, pictures=1)
    assert len(result.found) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "with 11 things: 0 boxes with scores from 1.0 on, in " in lines[0]
    assert lines[2].startswith("1 other picture with ")
    assert result.metrics.seen == 1


def test_what_is_measured_is_what_val_says(stand_in: NAS, folder: Path, tmp_path: Path) -> None:
    result = run(stand_in, seed=5, pictures=3, save=False, verbose=False)
    data = shapes.write(tmp_path / "shapes", train=1, val=3, seed=5, verbose=False)
    metrics = stand_in.val(data=str(data), project=str(tmp_path), plots=False, verbose=False)
    assert result.metrics.seen == 3
    assert result.metrics.results_dict == metrics.results_dict
    assert result.metrics.coco == metrics.coco
    assert result.metrics.left_out == 0
    assert result.metrics.save_dir is None
    assert result.seconds > 0


def test_the_picture_shows_what_was_found_beside_what_is_there(stand_in: NAS, folder: Path) -> None:
    result = run(stand_in, verbose=False)
    labels = shapes.draw(shapes.FIRST_VAL + SCENE, size=(480, 640))[1]
    np.testing.assert_array_equal(result.truth.boxes.xyxy, labels[:, 1:])
    np.testing.assert_array_equal(result.truth.boxes.cls, labels[:, 0])
    assert (result.truth.boxes.conf == 1).all()
    both = cv2.imread(str(folder / "runs" / "detect" / "demo" / "scene.jpg")).astype(int)
    height, width = both.shape[:2]
    drawn = [result.found.plot(), result.truth.plot(conf=False), draw_scene()]
    for number, half in enumerate((both[:, : width // 2], both[:, width // 2 :])):
        inside = half[height - 6 - 480 : height - 6, 6:646]  # within the margins of a mosaic
        apart = [np.abs(inside - other).mean() for other in drawn]
        assert np.argmin(apart) == number, apart


def test_class_numbers_are_those_of_the_network(stand_in: NAS, folder: Path) -> None:
    other = NAS(stand_in.model, names=shapes.NAMES[::-1])
    other.preprocess = stand_in.preprocess
    result = run(other, save=False, verbose=False)
    labels = shapes.draw(shapes.FIRST_VAL + SCENE, size=(480, 640))[1]
    assert [result.truth.names[int(number)] for number in result.truth.boxes.cls] == [
        shapes.NAMES[int(number)] for number in labels[:, 0]
    ]


def test_runs_get_folders_of_their_own(stand_in: NAS, folder: Path) -> None:
    for options, last in (
        ({}, "demo"),
        ({}, "demo-2"),
        ({"exist_ok": True}, "demo"),
        ({"name": "shown"}, "shown"),
    ):
        result = run(stand_in, pictures=1, verbose=False, project="./kept", **options)
        assert result.save_dir == Path("kept", last)
        assert [path.name for path in result.save_dir.iterdir()] == ["scene.jpg"]
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_nothing_is_left_where_nothing_is_to_be_saved(
    stand_in: NAS, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stand_in, save=False, verbose=False).save_dir is None
    assert list(folder.iterdir()) == []
    assert list((tmp_path / "temporary").iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("card", "shown"),
    [
        (None, []),
        ("{", []),
        (json.dumps({**CARD, "evaluation": None}), [["0.7124", "0.9000", "-"], ["0.7500", "0.9200", "-"]]),
        (
            json.dumps({**CARD, "int8": {"scores": {"map": "high", "map50": True}}, "float32": 5}),
            [["-", "-", "1,400"], ["-", "-", "1,400"]],
        ),
        (
            '{"float32": {"scores": {"map": NaN, "map50": -1}}, "int8": [1], "evaluation": {"pictures": 1e99}}',
            [["-", "-", "-"], ["-", "-", "-"]],
        ),
    ],
)
def test_cards_that_are_not_as_they_should_be(
    stand_in: NAS,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    card: str | None,
    shown: list[list[str]],
) -> None:
    if card is not None:
        Path("stand_in.json").write_text(card)
    monkeypatch.setattr(stand_in, "ckpt_path", Path("stand_in.safetensors"))
    run(stand_in, pictures=1, save=False)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "its card" in line]
    assert [row[-3:] for row in rows] == shown


def test_networks_for_other_things_are_refused(folder: Path) -> None:
    other = NAS(YoloNAS("s", num_classes=3), names=["star", "dog", "bird"])
    with pytest.raises(ValueError, match=r"classes star, heart, .*, got 3 \('star', 'dog', 'bird'\); use yolo_nas_s_s"):
        run(other)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pictures": 0}, r"pictures must be a whole number in 1\.\.10000"),
        ({"pictures": 1.5}, "pictures must be a whole number"),
        ({"seed": 2**32}, r"seed must be a whole number in 0\.\.4294967295"),
        ({"save": "no"}, "save must be True or False"),
        ({"picture": 5}, "unknown argument 'picture'; did you mean 'pictures'"),
    ],
)
def test_options_that_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DemoOptions.of(**options)


def test_a_compiled_network_needs_no_torch(folder: Path, models: Path) -> None:
    code = (
        "import sys\nfrom yolonas import NAS\nfrom yolonas.demo import DemoOptions, run_demo\n"
        "result = run_demo(NAS(sys.argv[1]), DemoOptions(pictures=1, verbose=False))\n"
        "print(result.metrics.seen, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(models / "compiled.yolonas")]
    environment = {"PYTHONPATH": str(Path(yolonas.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stderr == ""
    assert done.stdout == "1 False\n"


@pytest.fixture
def dev(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """dev.py without its installing; `ran` collects the commands."""
    spec = importlib.util.spec_from_file_location("yolonas_dev", ROOT / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert Path(yolonas.__file__).parent / module.MODEL.relative_to(ROOT / "yolonas") == (
        weights.SHIPPED_FOLDER / weights.SHIPPED_FILE
    )
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "MODEL", tmp_path / "model.safetensors")
    monkeypatch.setattr(module, "environment", lambda name: str(tmp_path / "python"))
    module.ran = []
    monkeypatch.setattr(module, "run", lambda command, **options: module.ran.append((command[1:], options["cwd"])))
    return module


def test_the_first_command_runs_the_network_in_the_package(dev: ModuleType) -> None:
    dev.MODEL.touch()
    dev.demo([])
    assert dev.ran == [(["demo"], Path.cwd())]


def test_the_first_command_takes_weights_and_pictures(dev: ModuleType) -> None:
    dev.demo(["best.pth"])
    dev.demo(["best.pth", "pictures/"])
    assert [command for command, _ in dev.ran] == [
        ["predict", "model=best.pth"],
        ["predict", "model=best.pth", "source=pictures/"],
    ]


def test_the_first_command_says_that_the_network_is_missing(dev: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"without the network that comes with the package, model\.safetensors;\n"):
        dev.demo([])
    assert dev.ran == []


def test_the_network_that_comes_with_the_package(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = NAS(weights.SHIPPED)
    assert model.ckpt_path == weights.SHIPPED_FOLDER / weights.SHIPPED_FILE
    assert model.ckpt_path.stat().st_size <= 13_000_000
    card = weights.card_beside(model.ckpt_path)
    assert card is not None
    assert card["int8"]["bytes"] == model.ckpt_path.stat().st_size
    assert card["evaluation"]["pictures"] == 500
    assert "/" not in card["model"] + card["file"]

    done = run_demo(model, DemoOptions(pictures=16, project=str(tmp_path)))
    assert len(done.found) >= len(done.truth) / 2
    assert done.metrics.box.map == pytest.approx(card["int8"]["scores"]["map"], abs=0.12)  # of few pictures
    assert "its card, INT8" in capsys.readouterr().out
