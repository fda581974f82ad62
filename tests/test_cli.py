"""The command line: its grammar, its answers and its exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from recipe_checkpoint import write

import yolonas
from yolonas import __version__
from yolonas.cli import UsageError, parse

# The package under test, wherever the command runs.
ENVIRONMENT = {**os.environ, "YOLONAS_OFFLINE": "1", "PYTHONPATH": str(Path(yolonas.__file__).resolve().parents[1])}


def run(*words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "yolonas", *map(str, words)]
    environment = {**ENVIRONMENT, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("weights") / "recipe.safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in "abc":
        image = np.random.default_rng(ord(name)).integers(0, 256, (60, 80, 3), np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), image)
    return folder


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["predict", "model=a.pt", "conf=0.5"], {"model": "a.pt", "conf": 0.5}),
        (["detect", "predict", "conf", "=", "0.5"], {"conf": 0.5}),
        (["predict", "conf=", "0.5", "iou", "=0.6"], {"conf": 0.5, "iou": 0.6}),
        (["predict", "--conf=0.5,", "--save_txt"], {"conf": 0.5, "save_txt": True}),
        (["predict", "classes=[0,", "2]"], {"classes": [0, 2]}),
        (["predict", "imgsz=(384,640)"], {"imgsz": (384, 640)}),
        (["predict", "save=false", "rect=TRUE", "conf=none"], {"save": False, "rect": True, "conf": None}),
        (["predict", "name=007", "source=0", "project=1e3"], {"name": "007", "source": "0", "project": "1e3"}),
        (["mode=predict", "task=detect", "model=x"], {"model": "x"}),
        (["predict", "source=https://host/a?b=c"], {"source": "https://host/a?b=c"}),
        (["predict", "source=https://host/a?b=", "save"], {"source": "https://host/a?b=", "save": True}),
        (["predict", "source=['a.jpg','b.jpg']"], {"source": ["a.jpg", "b.jpg"]}),
        (["predict", "source=[a.jpg,", "b.jpg]"], {"source": ["a.jpg", "b.jpg"]}),
        (["predict", "source=[0,1]", "device=[0]"], {"source": [0, 1], "device": [0]}),
        (["predict", "source=[ab].jpg", "device=0"], {"source": "[ab].jpg", "device": 0}),
        (["predict", "source=[ab]"], {"source": "[ab]"}),
        (["predict", "source=img[1.jpg", "conf=.3"], {"source": "img[1.jpg", "conf": 0.3}),
        (
            ["predict", "classes=0,2", "imgsz=640,384", "device=none"],
            {"classes": (0, 2), "imgsz": (640, 384), "device": None},
        ),
    ],
)
def test_grammar(words: list[str], values: dict) -> None:
    assert parse(words) == ("predict", values)


def test_old_names_are_warned_of_once(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    words = ("predict", f"model={checkpoint}", f"source={pictures / 'a.png'}", "imgsz=64", "save=False")
    done = run(*words, "hide_labels", "augment", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("'hide_labels' is an old name") == 1
    assert done.stderr.count("'augment' has no effect") == 1


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_no_text_can_be_printed(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.png").rename(os.fsdecode(os.fsencode(pictures) + b"/bad\xff.png"))
    (pictures / "b.png").rename(pictures / "esc\x1b[31m.png")
    (pictures / "c.png").unlink()
    done = run("predict", f"model={checkpoint}", f"source={pictures}", "imgsz=64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bad?.png" in done.stdout
    assert "\x1b" not in done.stdout
    assert len(list((tmp_path / "runs" / "detect" / "predict").iterdir())) == 2


def test_wrong_sizes_of_the_info_command(checkpoint: Path, tmp_path: Path) -> None:
    for size, text in {"abc": "imgsz must be a number", "640,640,3": "one side or", "99999": "at most 16384"}.items():
        done = run("info", f"model={checkpoint}", f"imgsz={size}", cwd=tmp_path)
        assert done.returncode == 2
        assert text in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["predikt"], "unknown command 'predikt'; did you mean 'predict'"),
        (["predict", "confidence=0.5"], "unknown argument 'confidence'; did you mean"),
        (["predict", "bus.jpg"], "unknown argument 'bus.jpg'"),
        (["predict", "source="], "source= has no value"),
        (["segment", "predict"], "unknown command 'segment'"),
        (["task=pose", "predict"], "task must be 'detect'"),
        (["predict", "cfg=nowhere.yaml"], "cfg: nowhere.yaml cannot be read"),
        (["predict", "1x=3"], "must have the form name=value"),
    ],
)
def test_wrong_command_lines(words: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text.replace("(", r"\(")):
        parse(words)


def test_options_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("task: detect\nmode: val\nconf: 0.1\niou: 0.5\n")
    assert parse(["predict", f"cfg={tmp_path / 'c.yaml'}", "conf=0.2"]) == ("predict", {"conf": 0.2, "iou": 0.5})


def test_short_commands(tmp_path: Path) -> None:
    assert run("version", cwd=tmp_path).stdout == f"{__version__}\n"
    shown = run("help", cwd=tmp_path)
    assert "yolonas predict model=" in shown.stdout
    assert run(cwd=tmp_path).stdout == shown.stdout
    checked = run("checks", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "cpu kernels" in checked.stdout


@pytest.mark.parametrize("mode", ["track", "benchmark"])
def test_modes_of_later_versions_say_so(mode: str, tmp_path: Path) -> None:
    done = run(mode, "model=x.pt", "data=coco8.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert f"'{mode}' is not in this version yet" in done.stderr


def test_predict_from_the_shell(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    done = run("predict", f"model={checkpoint}", f"source={pictures}", "imgsz=64", "conf=0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "image 3/3" in done.stdout
    assert "Results saved to runs/detect/predict" in done.stdout
    assert "detections in 3 pictures" in done.stdout
    assert done.stderr == ""  # no progress bar in a pipe
    assert len(list((tmp_path / "runs" / "detect" / "predict").glob("*.jpg"))) == 3


def test_one_bad_picture_changes_the_exit_code(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    done = run("predict", f"model={checkpoint}", f"source={pictures}", "imgsz=64", "save=False", cwd=tmp_path)
    assert done.returncode == 1
    assert "bad.jpg: skipped" in done.stderr
    assert "1 of 4 pictures could not be used" in done.stderr
    assert "in 3 pictures" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("conf=25",), 2, "did you mean 0.25?"),
        (("imgsz=big",), 2, "imgsz must be a number, got 'big'"),
        (("source=nowhere",), 1, "nowhere"),
        (("device=7",), 2, "device"),
        (("quantize=int8",), 2, "needs a quantised network; make one with NAS.quantize(data=...)"),
    ],
)
def test_errors_are_one_line(words: tuple, code: int, text: str, checkpoint: Path, tmp_path: Path) -> None:
    done = run("predict", f"model={checkpoint}", *words, "verbose=False", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_weights_say_where_to_put_them(tmp_path: Path) -> None:
    done = run("predict", "model=yolo_nas_s", "source=x.jpg", cwd=tmp_path, YOLONAS_WEIGHTS=str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_info_command(checkpoint: Path, tmp_path: Path) -> None:
    done = run("info", f"model={checkpoint}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "YOLO-NAS S" in done.stdout
    assert "person, bicycle" in done.stdout
    assert "GFLOPs" in done.stdout
    assert run("info", cwd=tmp_path).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="signals are sent another way there")
def test_ctrl_c_leaves_whole_files(checkpoint: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "clip.avi")
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (160, 120))
    for _ in range(600):
        video.write(np.zeros((120, 160, 3), np.uint8))
    video.release()
    command = [sys.executable, "-m", "yolonas", "predict", f"model={checkpoint}", f"source={path}", "imgsz=320"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background is started with the signal ignored; here it is meant to arrive.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "(frame 5/600)" in line:
            break
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 20
    assert process.returncode == 130
    assert "interrupted after" in errors
    assert "Traceback" not in errors
    written = cv2.VideoCapture(str(tmp_path / "runs" / "detect" / "predict" / "clip.avi"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) >= 5
    written.release()


def test_a_video_that_is_cut_off_changes_the_exit_code(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (320, 240))
    for number in range(60):
        video.write(np.random.default_rng(number).integers(0, 256, (240, 320, 3), np.uint8))
    video.release()
    data = path.read_bytes()
    index = data.rfind(b"moov") - 4  # the frame table lies at the end: keep it, and zero the frames before
    path.write_bytes(data[:100_000] + bytes(index - 100_000) + data[index:])
    done = run("predict", f"model={checkpoint}", f"source={path}", "imgsz=32", "save=False", cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert "videos cut short or damaged: 1" in done.stderr
