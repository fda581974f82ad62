"""Choices by measuring: what is measured, what is kept where, files that are broken, and what the results are."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_recipe import fill_
from harness import bits, using_isa, using_threads
from val_data import NAMES, write_data

from yolonas import NAS, native_engine, tuning
from yolonas.cli import main
from yolonas.engine import TorchEngine
from yolonas.native_engine import NativeEngine
from yolonas.nn import YoloNAS, fuse_
from yolonas.tuning import tune

SIZE = (64, 96)
QUICK: dict[str, Any] = {"imgsz": SIZE, "conf": 0.5, "verbose": False}


@pytest.fixture(scope="module")
def network() -> YoloNAS:
    return fuse_(fill_(YoloNAS("s", num_classes=3)).eval())


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the file with what was measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    return tmp_path / "cache" / "yolonas" / "tuning.json"


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8)


class Spy:
    """A native engine whose clock is a function of the choice; it counts runs."""

    def __init__(self, native: Any, ms: Callable[[int, tuple[str, int, int]], float]):
        self.native, self.ms, self.runs = native, ms, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def time_choices(self, *arguments: Any) -> list[list[float]]:
        *_, runs = arguments
        self.runs += len(runs)
        return [[self.ms(index, choice) for index, choice in enumerate(run)] for run in runs]


def spied(network: YoloNAS, ms: Callable[..., float] = lambda index, choice: 1.0) -> tuple[NativeEngine, Spy]:
    engine = NativeEngine.of_module(network)
    engine.native = Spy(engine.native, ms)
    return engine, engine.native


def prefers(wanted: Callable[[int, tuple[str, int, int]], bool], time: float = 0.5) -> Callable[..., float]:
    return lambda index, choice: time if wanted(index, choice) else 1.0


def state(engine: NativeEngine, size: tuple[int, int] = SIZE) -> list[tuple[str, int, int]]:
    return [(step["algorithm"], *step["cut"]) for step in engine.native.plan(*size, 1)]


def heads(engine: NativeEngine, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    cls, reg = engine.heads(np.random.default_rng(0).random((1, *size, 3), np.float32))
    return [*cls, *reg]


# --- what is chosen ---


def test_the_fastest_choice_of_each_layer_is_used_and_kept(network: YoloNAS, path: Path) -> None:
    engine, spy = spied(network)
    ways = engine.native.alternatives(*SIZE, 1, tuning.CUTS)
    last = [step[-1] for step in ways]
    spy.ms = prefers(lambda index, choice: choice == last[index])
    usual = state(engine)
    tune(engine, SIZE, 1)
    assert state(engine) == last
    tuned = [step["tuned"] for step in engine.plan(SIZE)]
    assert tuned == [one != other for one, other in zip(last, usual, strict=True)]
    assert sum(tuned) > len(tuned) / 2
    assert spy.runs > 0

    # Another checkpoint of that shape measures nothing.
    again, other = spied(fuse_(YoloNAS("s", num_classes=3).eval()))
    tune(again, SIZE, 1)
    assert other.runs == 0
    assert state(again) == last
    assert [file.name for file in path.parent.iterdir()] == ["tuning.json"]


@pytest.mark.parametrize(("time", "wins"), [(0.98, False), (0.95, True)])
def test_a_choice_must_win_by_more_than_noise(network: YoloNAS, time: float, wins: bool) -> None:
    engine, spy = spied(network)
    usual = state(engine)
    spy.ms = prefers(lambda index, choice: choice != usual[index], time)
    tune(engine, SIZE, 1)
    assert (state(engine) != usual) == wins


def test_a_choice_that_was_only_lucky_is_dropped(network: YoloNAS) -> None:
    """Fast in the first rounds and slow when it is compared again."""
    engine, spy = spied(network)
    usual = state(engine)
    first: set[Any] = set()

    def ms(index: int, choice: Any) -> float:
        lucky = (index, choice) not in first and choice != usual[index]
        first.add((index, choice))
        return 0.5 if lucky else 1.0

    spy.ms = ms
    tune(engine, SIZE, 1)
    assert state(engine) == usual


def test_only_layers_that_are_not_known_are_measured(network: YoloNAS, path: Path) -> None:
    engine, spy = spied(network)
    tune(engine, SIZE, 1)
    whole = json.loads(path.read_text())
    (machine,) = whole
    removed = [layer for layer in whole[machine] if layer.startswith("max_pool5")]
    assert removed
    for layer in removed:
        del whole[machine][layer]
    path.write_text(json.dumps(whole))
    usual, varied = state(engine), set()

    def ms(index: int, choice: Any) -> float:
        if choice != usual[index]:
            varied.add(engine.plan(SIZE)[index]["op"])
        return 1.0

    again, spy = spied(network, ms)
    tune(again, SIZE, 1)
    assert spy.runs > 0
    assert varied <= {"max_pool5"}
    assert json.loads(path.read_text()).keys() == {machine}
    assert set(json.loads(path.read_text())[machine]) >= set(removed)


def test_sizes_threads_and_instruction_sets_are_measured_apart(network: YoloNAS, path: Path) -> None:
    engine, spy = spied(network)

    def measures(size: tuple[int, int] = SIZE, batch: int = 1) -> bool:
        before = spy.runs
        tune(engine, size, batch)
        return spy.runs > before

    with using_threads(2):
        assert measures()
        assert not measures()
        assert measures((64, 64))
        assert measures(batch=2)
        assert not measures(batch=16)  # two of them run side by side, as before
        with using_threads(1):
            assert measures()
            assert not measures(batch=4)
        with using_isa("generic"):
            assert measures()
        assert not measures()
    assert len(json.loads(path.read_text())) == 3


def test_other_versions_and_machines_are_not_used(
    network: YoloNAS, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, spy = spied(network)
    for change in (
        lambda: None,
        lambda: monkeypatch.setattr(native_engine, "__version__", "9.9.9"),
        lambda: monkeypatch.setattr(native_engine, "processor", lambda: "Another processor"),
    ):
        change()
        before = spy.runs
        tune(engine, SIZE, 1)
        assert spy.runs > before
    assert len(json.loads(path.read_text())) == 3


# --- results ---


def test_measured_on_the_real_clock(network: YoloNAS, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = NativeEngine.of_module(network)
    expected = heads(engine)
    with caplog.at_level(logging.INFO, "yolonas"), using_threads(2):
        tune(engine, SIZE, 1)
        assert f"tuning for 64x96 on 2 threads, kept in {path}" in caplog.text
        assert "steps run in another way" in caplog.text
        for one, other in zip(heads(engine), expected, strict=True):
            assert np.abs(one - other).max() < 1e-4 * np.abs(other).max()
        caplog.clear()
        tune(engine, SIZE, 1)
        assert caplog.text == ""


def test_other_algorithms_stay_within_the_tolerance_and_cuts_change_no_bit(network: YoloNAS) -> None:
    usual = state(NativeEngine.of_module(network))
    for changes_algorithm in (True, False):
        engine, spy = spied(network)
        expected = heads(engine)
        spy.ms = prefers(
            lambda index, choice, changes=changes_algorithm: (
                choice != usual[index] and (choice[0] != usual[index][0]) == changes
            )
        )
        tune(engine, SIZE, 1)
        changed = [one[0] != other[0] for one, other in zip(state(engine), usual, strict=True)]
        assert any(changed) == changes_algorithm
        assert sum(step["tuned"] for step in engine.plan(SIZE)) > 20
        found = heads(engine)
        if changes_algorithm:
            for one, other in zip(found, expected, strict=True):
                assert np.abs(one - other).max() < 1e-4 * np.abs(other).max()
        else:
            assert all(np.array_equal(bits(one), bits(other)) for one, other in zip(found, expected, strict=True))
        (tuning.cache_folder() / "tuning.json").unlink()


def test_layers_that_winograd_is_too_inexact_for_stay_direct(path: Path) -> None:
    """Also where the file says otherwise for layers of the same shape."""
    network = fuse_(fill_(YoloNAS("s", num_classes=3)).eval())
    name = "backbone.stage1.blocks.bottlenecks.0.cv1"

    def algorithms(engine: NativeEngine) -> dict[str, str]:
        return {step["name"]: step["algorithm"] for step in engine.native.plan(640, 640, 1)}

    fast = prefers(lambda index, choice: choice[0] == "winograd43", 0.1)
    engine, _ = spied(network, fast)
    tune(engine, (640, 640), 1)
    assert algorithms(engine)[name] == "winograd43"
    weight = network.backbone.stage1.blocks.bottlenecks[0].cv1.rbr_reparam.weight
    with torch.no_grad():
        weight *= 1e31
    engine, _ = spied(network, fast)
    tune(engine, (640, 640), 1)
    found = algorithms(engine)
    assert found[name] == "direct"
    assert found[name.replace("cv1", "cv2")] == "winograd43"


# --- the file ---

BROKEN = {
    "empty": b"",
    "no json": b"{",
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"1",
    "no objects inside": b'{"machine": 1}',
    "deep": b"[" * 200_000,
    "nan": b"NaN",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_measured_again(
    network: YoloNAS, path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(BROKEN[case])
    engine, spy = spied(network)
    tune(engine, SIZE, 1)
    assert spy.runs > 0
    assert caplog.text.count(f"tuning: {path} cannot be used, its content is measured again: ") == 1
    caplog.clear()
    again, spy = spied(network)
    tune(again, SIZE, 1)
    assert spy.runs == 0
    assert caplog.text == ""


@pytest.mark.parametrize(
    "entry",
    [
        *(None, 1, "direct", [], {}, ["direct"], ["direct", 1], ["other", 1, 1]),
        *(["direct", 10**30, 1], ["direct", -1, 0], ["direct", "1", 1], ["direct", 1.5, 1]),
        *([["direct"], 1, 1], ["direct", True, float("nan")]),
    ],
    ids=str,
)
def test_broken_entries_are_measured_again(
    network: YoloNAS, path: Path, entry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine, _ = spied(network)
    tune(engine, SIZE, 1)
    whole = json.loads(path.read_text())
    ((machine, layers),) = whole.items()
    good = dict(layers)
    for layer in list(layers)[:3]:
        layers[layer] = entry
    path.write_text(json.dumps(whole))
    again, spy = spied(network)
    tune(again, SIZE, 1)
    assert spy.runs > 0
    assert f"tuning: 3 entries of {path} make no sense and are measured again" in caplog.text
    assert json.loads(path.read_text())[machine] == good


def test_a_file_that_is_too_large_is_not_read(
    network: YoloNAS, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, spy = spied(network)
    tune(engine, SIZE, 1)
    before = spy.runs
    monkeypatch.setattr(tuning, "MAX_CACHE_BYTES", 100)
    tune(engine, SIZE, 1)
    assert spy.runs > before
    assert "it is no file of a possible size" in caplog.text


def test_a_place_that_cannot_be_written_to_does_not_end_the_run(
    network: YoloNAS, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.parent.write_text("a file where the folder should be")
    engine, spy = spied(network)
    usual = state(engine)
    spy.ms = prefers(lambda index, choice: choice != usual[index])
    tune(engine, SIZE, 1)
    assert state(engine) != usual
    assert f"tuning: the result cannot be kept in {path}: " in caplog.text


def test_processes_that_write_at_once_leave_a_whole_file(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from yolonas import tuning\n"
        "for number in range(30): "
        "tuning._keep(Path(sys.argv[1]), sys.argv[2], {f'layer {number}': ('direct', number + 1, 1)})"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(tuning.__file__).parents[1])}
    commands = [[sys.executable, "-c", code, str(path), f"machine {number}"] for number in range(3)]
    writers = [subprocess.Popen(command, env=environment) for command in commands]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            json.loads(path.read_text())
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    content = json.loads(path.read_text())
    assert content
    assert all(len(layers) <= 30 for layers in content.values())
    assert [file.name for file in path.parent.iterdir()] == ["tuning.json"]


# --- the drivers ---


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Sizes and batches that were tuned for."""
    seen: list[Any] = []

    def record(native: Any, size: Any, batch: int, *rest: Any) -> Any:
        seen.append((size, batch))
        steps = rest[0]
        return {step.layer: step.choices[-1] for step in steps}

    monkeypatch.setattr(tuning, "_measured", record)
    return seen


def test_predict_tunes_for_its_frames(network: YoloNAS, picture: np.ndarray, measured: list[Any]) -> None:
    detector = NAS(network, names=NAMES)
    usual = detector.predict(picture, engine="native", **QUICK)[0]
    assert measured == []
    tuned = detector.predict(picture, engine="native", tune=True, batch=2, **QUICK)[0]
    assert measured == [(SIZE, 2)]
    torch.testing.assert_close(tuned.boxes.data, usual.boxes.data, rtol=1e-4, atol=2e-2)
    detector.predict(picture, engine="native", tune=True, batch=2, **QUICK)
    assert measured == [(SIZE, 2)]
    assert len(list(detector.predict(picture, engine="native", tune=True, stream=True, **QUICK))) == 1


def test_frames_of_many_sizes_are_named(
    network: YoloNAS, picture: np.ndarray, measured: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    detector = NAS(network, names=NAMES)
    detector.predict(picture, engine="native", tune=True, rect=True, **QUICK)
    assert "'tune' is for inputs of 64x96; others run as usual" in caplog.text


def test_val_tunes_for_its_batches(
    network: YoloNAS, tmp_path: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    detector = NAS(network, names=NAMES)
    yaml = write_data(tmp_path / "data", detector, pictures=6)
    options: dict[str, Any] = {"data": str(yaml), "imgsz": 64, "batch": 2, "plots": False, "verbose": False}
    usual, tuned = (detector.val(engine="native", tune=on, **options) for on in (False, True))
    assert measured == [((64, 64), 2)]
    assert tuned.box.map == pytest.approx(usual.box.map, abs=2e-3)


def test_info_marks_what_was_changed(
    network: YoloNAS, tmp_path: Path, measured: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    detector = NAS(network, names=NAMES)
    detector.info(imgsz=SIZE, plan=True)
    assert "tuned" not in capsys.readouterr().out
    detector.info(imgsz=SIZE, plan=True, tune=True)
    rows = capsys.readouterr().out.splitlines()[2:-1]
    steps = detector._engines.native(network).plan(SIZE)
    assert [row.endswith("  tuned") for row in rows] == [step["tuned"] for step in steps]
    assert any(step["tuned"] for step in steps)
    detector.save(tmp_path / "s.yolonas")
    assert main(["info", f"model={tmp_path / 's.yolonas'}", "plan", "tune", "imgsz=64"]) == 0
    assert "  tuned\n" in capsys.readouterr().out
    assert measured == [(SIZE, 1), ((64, 64), 1)]


def test_other_engines_say_that_it_has_no_effect(
    network: YoloNAS, picture: np.ndarray, measured: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    NAS(network, names=NAMES).predict(picture, engine="torch", tune=True, **QUICK)
    assert "'tune' has no effect here: it is for engine='native'" in caplog.text
    tune(TorchEngine(network, torch.device("cpu"), half=False), SIZE, 1)
    assert measured == []
    with pytest.raises(ValueError, match="tune must be True or False, got 'yes'"):
        NAS(network, names=NAMES).predict(picture, tune="yes")
