"""`yolonas export` and `yolonas inspect` from the shell: words, help, what is printed, exit codes, interrupts."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from golden_recipe import fill_
from quantized_networks import narrow
from val_data import NAMES, write_data

import yolonas
from yolonas import NAS, export, export_check
from yolonas.cli import UsageError, main, parse
from yolonas.config import VARIANTS
from yolonas.export import ExportOptions
from yolonas.nn import YoloNAS

# The package under test, wherever the command runs.
ENVIRONMENT = {**os.environ, "YOLONAS_OFFLINE": "1", "PYTHONPATH": str(Path(yolonas.__file__).resolve().parents[1])}
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals are sent another way there")


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of an S, for commands in a process of their own."""
    model = NAS(fill_(YoloNAS("s", num_classes=3).eval()), names=NAMES)
    return model.save(tmp_path_factory.mktemp("whole") / "cells.safetensors")


@pytest.fixture(scope="module")
def small() -> Iterator[NAS]:
    """As deep and much narrower, of 64x64."""
    model = NAS(narrow("s"), names=NAMES)
    model.preprocess = model.preprocess.with_size((64, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "narrow", model.model.variant)
        yield model


@pytest.fixture
def weights(small: NAS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its file, in the working folder, where nothing else is."""
    monkeypatch.chdir(tmp_path)
    return small.save("cells.safetensors")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command, in this process."""

    class Told(logging.Handler):  # pytest's own handlers keep main() from adding one
        def emit(self, record: logging.LogRecord) -> None:
            print(record.getMessage(), file=sys.stderr)

    logger, told = logging.getLogger("yolonas"), Told()
    level = logger.level
    logger.addHandler(told)
    monkeypatch.setenv("YOLONAS_OFFLINE", "1")

    def of(*words: object) -> Done:
        capsys.readouterr()
        code = main([*map(str, words)])
        return Done(code, *capsys.readouterr())

    yield of
    logger.removeHandler(told)
    logger.setLevel(level)


def left() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file() or not any(path.iterdir()))


# --- words ---


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["model=a.pt", "format=onnx", "dynamic"], {"model": "a.pt", "format": "onnx", "dynamic": True}),
        (
            ["format=openvino", "quantize=16", "imgsz=384,640"],
            {"format": "openvino", "quantize": 16, "imgsz": (384, 640)},
        ),
        (["dynamic=batch", "batch=8", "nms=False"], {"dynamic": "batch", "batch": 8, "nms": False}),
        (["--target=frigate,", "conf", "=", "0.4"], {"target": "frigate", "conf": 0.4}),
        (["save=1e3.onnx", "data=2024", "workspace=0.5"], {"save": "1e3.onnx", "data": "2024", "workspace": 0.5}),
        (["source=007.jpg", "opset=none", "half"], {"source": "007.jpg", "opset": None, "half": True}),
        (["num_pre_nms_predictions=300"], {"num_pre_nms_predictions": 300}),
    ],
)
def test_words(words: list[str], values: dict[str, Any]) -> None:
    assert parse(["export", *words]) == ("export", values)
    assert parse(["detect", "export", *words]) == ("export", values)


def test_words_of_inspect() -> None:
    assert parse(["inspect", "a.onnx", "b_openvino_model"]) == ("inspect", {"files": ["a.onnx", "b_openvino_model"]})
    assert parse(["inspect", "model=a=b.onnx"]) == ("inspect", {"model": "a=b.onnx", "files": []})
    for name in ("model", "detect", "export", "merge"):  # a file may be called so
        assert parse(["inspect", name]) == ("inspect", {"files": [name]})
    with pytest.raises(UsageError, match="unknown argument 'formt'; did you mean 'format'"):
        parse(["export", "formt=onnx"])
    with pytest.raises(UsageError, match="unknown argument 'openvino'"):
        parse(["export", "openvino"])
    with pytest.raises(UsageError, match="unknown argument 'imgsz'"):
        parse(["inspect", "imgsz=64"])


def test_help_lists_the_options(run: Run) -> None:
    done = run("help")
    assert done.code == 0
    assert "yolonas export  model=FILE format=onnx" in done.out
    assert "yolonas inspect FILE ..." in done.out
    listed = done.out.split("export takes:")[1]
    shown = [item for item in fields(ExportOptions) if not item.metadata["ignored"]]
    lines = {line.split()[0]: line for line in listed.splitlines() if line.strip()}
    assert [item.name for item in shown] == list(lines)
    for item in shown:
        assert item.metadata["help"] in lines[item.name]
    assert lines["format"].endswith("kind of file: onnx, openvino, engine, torchscript, pt2, ncnn [onnx]")
    assert not any("not in this version" in line and "export" in line for line in done.out.splitlines())


# --- export ---


def test_an_export_and_what_it_says(run: Run, weights: Path) -> None:
    done = run("export", f"model={weights}", "format=onnx", "conf=0.2")
    assert done.code == 0
    assert done.err == ""
    assert left() == ["cells.onnx", "cells.safetensors"]
    lines = done.out.splitlines()
    assert lines[0].startswith(f"yolonas {yolonas.__version__}, Python ")
    assert re.fullmatch(r"cells\.safetensors -> cells\.onnx \(1\.\d MB, written in \d+\.\d s\)", lines[1])
    assert [line[:11].strip() for line in lines[2:]] == [
        *("network", "classes", "input", "scaling", "picture", "outputs", "", "boxes", "thresholds", "checked", ""),
    ]
    inspected = run("inspect", "cells.onnx")
    assert inspected == Done(0, "\n".join(["file        cells.onnx (onnx)", *lines[2:-2]]) + "\n", "")
    quiet = run("export", f"model={weights}", "format=onnx", "verbose=False")
    assert quiet == Done(0, "", "")


def test_what_is_left_out_is_said(run: Run, weights: Path) -> None:
    done = run("export", f"model={weights}", "check=False")
    assert done.err == "export: no format given, using format=onnx\n"
    assert "checked     no\n" in done.out
    done = run("export", f"model={weights}", "target=triton")
    assert (done.code, done.err) == (0, "")
    done = run("export", "format=onnx")
    assert done.code == 1
    told, reason, *_ = done.err.splitlines()
    assert told == "export: no model given, using model=yolo_nas_s.pt"
    assert reason.startswith("yolonas: ")


def test_options_in_a_file(run: Run, weights: Path) -> None:
    Path("mine.yaml").write_text("format: ncnn\nimgsz: 96\nmode: export\n")
    assert run("export", f"model={weights}", "cfg=mine.yaml", "imgsz=32").code == 0
    assert "float32 (1, 3, 32, 32)" in run("inspect", "cells_ncnn_model").out


def test_an_engine_without_tensorrt(run: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # type: ignore[arg-type]
    done = run("export", f"model={weights}", "format=engine")
    assert done.code == 0
    assert done.err == (
        "export: TensorRT engines need the package tensorrt: pip install tensorrt; writing the ONNX file for it\n"
    )
    assert done.out.endswith(
        "\n\nBuild the engine on the machine that runs it:\n\ntrtexec --onnx=cells-tensorrt.onnx "
        "--saveEngine=cells.engine --stronglyTyped --skipInference\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["formt=onnx"], 2, "unknown argument 'formt'; did you mean 'format'?"),
        (
            ["format=coreml"],
            2,
            "format must be one of 'onnx', 'openvino', 'engine', 'torchscript', 'pt2', 'ncnn', got 'coreml'",
        ),
        (["conf=25"], 2, "conf must lie in 0..1, got 25; did you mean 0.25?"),
        (["nms", "outputs=raw"], 2, "nms must be False for outputs='raw', got True; leave one out"),
        (["target=frigate", "imgsz=64,96"], 2, "frigate: size must be square, got 64x96"),
        (["quantize=8"], 2, "quantize='int8' needs a quantised network: 'yolonas quantize"),
        (["save=a.pt"], 2, "save must end in .onnx, got 'a.pt'"),
        (["format=ncnn", "dynamic"], 1, "batch must be 1 for format='ncnn'"),
        (
            ["format=pt2", "quantize=int8", "data=x.yaml"],
            1,
            "format 'pt2' has no int8; 'onnx', 'openvino', 'engine' have",
        ),
        (["save=nowhere/a.onnx"], 1, "save must be in an existing folder, there is no folder nowhere"),
        (["data=nowhere.yaml"], 1, "nowhere.yaml"),
        (["source=nowhere.jpg"], 1, "source: nowhere.jpg: no such file"),
        (["cfg=nowhere.yaml"], 2, "cfg: nowhere.yaml cannot be read"),
    ],
)
def test_one_line_for_each_mistake(words: list[str], code: int, text: str, run: Run, weights: Path) -> None:
    done = run("export", f"model={weights}", "format=onnx", "verbose=False", *words)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("yolonas: ")
    assert done.err.count("\n") == 1
    assert text in done.err
    assert left() == ["cells.safetensors"]


def test_models_that_cannot_be_exported(run: Run, weights: Path) -> None:
    Path("garbage.pt").write_bytes(b"garbage")
    assert run("export", f"model={weights}", "format=onnx").code == 0
    for name, code, text in (
        ("nowhere.pt", 1, "nowhere.pt"),
        ("garbage.pt", 1, "garbage.pt"),
        ("cells.onnx", 2, "export: model must be a checkpoint, got an exported or compiled file"),
    ):
        done = run("export", f"model={name}", "format=onnx", "verbose=False")
        assert (done.code, done.err.count("\n")) == (code, 1)
        assert text in done.err


def test_a_file_of_somebody_else(run: Run, weights: Path) -> None:
    Path("cells.onnx").write_text("mine")
    done = run("export", f"model={weights}", "format=onnx", "verbose=False")
    assert done.code == 1
    assert done.err == (
        "yolonas: export: cells.onnx exists and was not written by export, or has other files in it; exist_ok=True "
        "replaces it, save=... goes elsewhere\n"
    )
    assert Path("cells.onnx").read_text() == "mine"
    assert run("export", f"model={weights}", "format=onnx", "exist_ok", "verbose=False") == Done(0, "", "")


def test_a_check_that_fails(run: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = export_check.Difference(1, 5, 3.0, 0.5, 2, 0, 4, 2)
    monkeypatch.setattr(export_check, "compare", lambda *_: far)
    monkeypatch.setattr(export_check, "compare_all", lambda *_: None)
    done = run("export", f"model={weights}", "format=onnx")
    assert done.code == 1
    assert re.fullmatch(
        r"yolonas: export: onnxruntime [\d.]+ does not give what the network gives: 5 detections on 1 picture, "
        r"2 of them on one side only; boxes within 3 px, scores within 0\.5; nothing was kept\. Please report .*\n",
        done.err,
    )
    assert left() == ["cells.safetensors"]


def test_data(run: Run, small: NAS, weights: Path) -> None:
    data = write_data(Path("data"), small, pictures=4)
    done = run("export", f"model={weights}", "format=onnx", f"data={data}")
    assert done.code == 0, done.err
    assert re.search(
        r"\n {14}  mAP50-95     mAP50   4 pictures of data val"
        r"\nyolonas +0\.\d{4} +0\.\d{4}\nonnxruntime +0\.\d{4} +0\.\d{4}\n$",
        done.out,
    )


def test_errors_with_their_traceback(run: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLONAS_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("export", f"model={weights}", "save=nowhere/a.onnx", "format=onnx")


@pytest.mark.parametrize("where", ["load", "write", "check"])
def test_interrupted(where: str, run: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    places = {"load": (NAS, "load"), "write": (export, "write_onnx"), "check": (export_check, "compare")}
    monkeypatch.setattr(*places[where], stop)
    done = run("export", f"model={weights}", "format=onnx")
    assert done.code == 130
    assert done.err == "interrupted; nothing is half-written\n"
    assert left() == ["cells.safetensors"]


# --- inspect ---


def test_several_files(run: Run, weights: Path) -> None:
    for words in (["format=onnx"], ["format=ncnn"], ["target=triton"]):
        assert run("export", f"model={weights}", *words, "verbose=False").code == 0
    files = ["cells.onnx", "cells_ncnn_model", "cells_triton"]
    single = [run("inspect", file) for file in files]
    assert [done.code for done in single] == [0, 0, 0]
    assert run("inspect", *files) == Done(0, "\n".join(done.out for done in single), "")
    assert run("inspect", "model=cells.onnx") == single[0]

    Path("garbage.onnx").write_bytes(b"garbage")
    done = run("inspect", "nowhere.onnx", files[0], "garbage.onnx", weights, files[1])
    assert done.code == 1
    assert done.out == f"{single[0].out}\n{single[1].out}"
    nowhere, garbage, checkpoint = done.err.splitlines()
    assert nowhere.startswith("yolonas: nowhere.onnx: there is no such file")
    assert garbage.startswith("yolonas: garbage.onnx: is no ONNX file, or is damaged")
    assert checkpoint == (
        "yolonas: cells.safetensors: is no file that export writes; for a checkpoint there is 'yolonas info "
        "model=cells.safetensors'"
    )


def test_inspect_without_files_or_packages(run: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("inspect") == Done(2, "", "yolonas: inspect needs files: yolonas inspect model.onnx\n")
    assert run("export", f"model={weights}", "format=onnx", "verbose=False").code == 0
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    done = run("inspect", "cells.onnx")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "pip install 'yolonas[onnx]'" in done.err


# --- in processes of their own ---


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "yolonas", *map(str, words)]


def test_from_the_shell(whole: Path, tmp_path: Path) -> None:
    words = ("export", f"model={whole}", "target=frigate", "imgsz=64", f"save={tmp_path / 'best-frigate.onnx'}")
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\nnetwork     YOLO-NAS S, fp32\n" in done.stdout
    assert "labelmap_path: /config/best-frigate-labels.txt" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-frigate-labels.txt", "best-frigate.onnx"]
    words = ("inspect", "best-frigate.onnx", "nowhere.onnx")
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 1
    assert done.stdout.startswith("file        best-frigate.onnx (onnx)\nnetwork     YOLO-NAS S, fp32\n")
    assert done.stderr.startswith("yolonas: nowhere.onnx: there is no such file")


@POSIX
@pytest.mark.parametrize("format", ["openvino", "torchscript"])
def test_ctrl_c_leaves_nothing(format: str, whole: Path, tmp_path: Path) -> None:
    weights = tmp_path / "cells.safetensors"
    weights.symlink_to(whole)
    process = subprocess.Popen(
        command("export", f"model={weights}", f"format={format}", "imgsz=640"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background is started with the signal ignored; here it is meant to arrive.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not any(path.name.startswith(".cells") for path in tmp_path.iterdir()):
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told == "interrupted; nothing is half-written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["cells.safetensors"]
