"""The benchmark on a GPU, without one: what it derives from times, its time limit, its programs and its script.

Engines and clocks are stand-ins here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from harness import guarded, run_python

import yolonas
from yolonas import _native

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports modules of the folder bench/."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    monkeypatch.syspath_prepend(ROOT / "tests" / "native")
    from importlib import import_module

    return import_module


class ScriptedClock:
    """Calls functions and says that a call took so long as its script has it, by the function's name."""

    def __init__(self, script: dict[str, list[float]]):
        self.script, self.order, self.current = script, [], ""

    def side(self, name: str) -> Callable[[], None]:
        def run() -> None:
            self.current = name

        return run

    def measure(self, function: Callable[[], object], calls: int) -> float:
        function()
        self.order.append((self.current, calls))
        times = self.script[self.current]
        return times.pop(0) if len(times) > 1 else times[0]

    def measure_apart(self, function: Callable[[], object], calls: int) -> list[float]:
        function()
        return [self.script[self.current][-1] * 2] * calls

    def works(self) -> bool:
        return True


# --- timing ---


def test_sides_take_turns_and_the_median_counts(bench: Callable[[str], ModuleType]) -> None:
    timer = bench("gpu_timer")
    clock = ScriptedClock({"a": [9.0, 1.0, 5.0, 1.0, 3.0], "b": [9.0, 10.0, 10.0]})
    found = timer.compare({name: clock.side(name) for name in "ab"}, clock, rounds=3, seconds=0.02)
    assert found["a"] == {"median_ms": 3.0, "min_ms": 1.0, "max_ms": 5.0, "calls": 20}
    assert found["b"]["median_ms"] == 10.0
    assert [name for name, _ in clock.order] == ["a", "a", "b", "b", *"ab", *"ba", *"ab"]


def test_number_of_calls(bench: Callable[[str], ModuleType]) -> None:
    timer = bench("gpu_timer")
    assert [timer.calls_for(ms, 0.03) for ms in (0.5, 1000.0, 0.0)] == [60, timer.LEAST_CALLS, timer.MOST_CALLS]


def test_inputs_rotate(bench: Callable[[str], ModuleType]) -> None:
    seen: list[int] = []
    run = bench("gpu_timer").in_turn(seen.append, 3)
    for _ in range(5):
        run()
    assert seen == [0, 1, 2, 0, 1]


def test_budget(bench: Callable[[str], ModuleType]) -> None:
    now = [0.0]
    budget = bench("gpu_timer").Budget(100.0, lambda: now[0])
    assert budget.allows("first", 60.0)
    now[0] = 70.0
    assert not budget.allows("second", 60.0)
    assert budget.allows("third", 30.0)
    now[0] = 120.0
    assert not budget.allows("fourth", 1.0)
    assert budget.left_out == {
        "second": "needs about 60 s, 30 s were left",
        "fourth": "needs about 1 s, 0 s were left",
    }


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_a_block_is_limited() -> None:
    """In a process of its own: it sends itself signals."""
    code = f"""
import signal, sys, time
sys.path.insert(0, {str(ROOT / "bench")!r})
from gpu_timer import limited
before = signal.getsignal(signal.SIGALRM)
try:
    with limited(0.05, "sleeping"):
        time.sleep(10)
except TimeoutError as error:
    print(error)
with limited(0.05, "nothing"):
    pass
time.sleep(0.1)  # a bell that still rang would end the program
assert signal.getsignal(signal.SIGALRM) is before
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "sleeping took more than 0.05 s" in done.stdout


def test_what_nvidia_smi_says(bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    timer = bench("gpu_timer")
    fields = ("name", "clocks.sm", "power.draw")
    assert timer.parse_query("NVIDIA H200, 1980 MHz, 112.30 W\n", fields) == {
        "name": "NVIDIA H200",
        "clocks.sm": "1980 MHz",
        "power.draw": "112.30 W",
    }
    assert timer.parse_query("", fields) == timer.parse_query("No devices were found", fields) == {}
    monkeypatch.setenv("PATH", "")
    assert timer.query() == {}


# --- aims ---


def row(**values: Any) -> dict[str, Any]:
    return {"times": {side: {"median_ms": ms} for side, ms in values.pop("times").items()}, "gflop": 100.0, **values}


def test_ratios_of_one_picture(bench: Callable[[str], ModuleType]) -> None:
    aims = bench("gpu_aims")
    times = {aims.FP16: 0.4, aims.INT8: 0.28, aims.DETECT: 0.45, aims.EAGER: 5.0, aims.GRAPH: 1.0, aims.COMPILED: 0.9}
    found = aims.ratios(aims.GpuCase("s"), row(times=times), {"fp16_tflops": 700.0})
    assert [(line["what"], line["peer"], line["ratio"], line["aim"], line["met"]) for line in found] == [
        (aims.OVER_PEER, aims.COMPILED, 0.444, 0.5, True),
        (aims.MILLISECONDS, "", 0.4, 0.45, True),
        (aims.OVER_FP16, aims.FP16, 0.7, 0.75, True),
        (aims.OVER_NETWORK, aims.FP16, 1.125, 1.1, False),
    ]
    assert [aims.reached(line) for line in found[2:]] == ["aim at most 0.75: reached", "aim at most 1.10: NOT REACHED"]
    limits = {key: aims.ratios(aims.CASES[key], row(times={aims.FP16: 0.8}), {})[1] for key in ("m_640_1", "l_640_1")}
    assert [(line["aim"], line["met"]) for line in limits.values()] == [(0.75, False), (1.0, True)]


def test_ratios_of_a_batch(bench: Callable[[str], ModuleType]) -> None:
    aims = bench("gpu_aims")
    data = row(times={aims.FP16: 8.0, aims.GRAPH: 12.0}) | {"gflop": 2800.0}
    rate, share = aims.ratios(aims.GpuCase("m", 32), data, {"fp16_tflops": 700.0})
    assert (rate["ratio"], rate["aim"], rate["at_least"], rate["met"]) == (1.5, 1.3, True, True)
    assert (share["ratio"], share["aim"], share["met"]) == (0.5, 0.45, True)
    assert [line["met"] for line in aims.ratios(aims.GpuCase("s", 32), data, {"fp16_tflops": 700.0})] == [None, None]


def test_wrong_results_reach_nothing(bench: Callable[[str], ModuleType]) -> None:
    aims = bench("gpu_aims")
    times = {aims.FP16: 0.1, aims.INT8: 0.05, aims.GRAPH: 1.0, aims.EAGER: 0.5}
    found = aims.ratios(aims.GpuCase("s"), row(times=times, wrong={aims.FP16: "differs", aims.EAGER: "differs"}), {})
    assert [(line["what"], line["peer"], line["met"]) for line in found] == [
        (aims.OVER_PEER, aims.GRAPH, False),
        (aims.MILLISECONDS, "", False),
        (aims.OVER_FP16, aims.FP16, False),
        (aims.OVER_NETWORK, aims.FP16, None),
    ]


@pytest.mark.parametrize("times", [{}, {"yolonas int8": 1.0}, {"torch fp16, eager": 1.0}])
def test_aims_that_are_not_measured_are_named(bench: Callable[[str], ModuleType], times: dict[str, float]) -> None:
    aims = bench("gpu_aims")
    found = aims.ratios(aims.GpuCase("s"), row(times=times), {})
    assert [line["what"] for line in found] == [aims.OVER_PEER, aims.MILLISECONDS, aims.OVER_FP16, aims.OVER_NETWORK]
    assert {(line["ratio"], line["met"], aims.reached(line).rpartition(": ")[2]) for line in found} == {
        (None, None, "NOT MEASURED")
    }
    assert [line["what"] for line in aims.ratios(aims.CASES["m_640_32"], {}, {})] == [aims.RATE, aims.SHARE]
    assert aims.ratios(aims.CASES["s_640_32"], {}, {}) == []


def test_an_aim_without_torch_compile_says_so(bench: Callable[[str], ModuleType]) -> None:
    aims = bench("gpu_aims")
    times = {aims.FP16: 0.4, aims.GRAPH: 1.0, aims.COMPILED: 0.9}
    lines = [
        aims.ratios(aims.GpuCase("s"), row(times=times, wrong=wrong), {})[0]
        for wrong in ({}, {aims.COMPILED: "differs"})
    ]
    assert [aims.reached(line) for line in lines] == [
        "aim at most 0.50: reached",
        f"aim at most 0.50: reached (without {aims.COMPILED})",
    ]


def step(**values: Any) -> dict[str, Any]:
    usual = {"name": "a", "op": "conv", "algorithm": "64x64k64", "kernel": 3, "stride": 1, "dtype": "float16"}
    shapes = {"input": (80, 80, 64), "output": (80, 80, 64), "weight_bytes": 73728, "residual": False, "ms": 0.01}
    return {**usual, **shapes, **values}


def test_floors_of_steps(bench: Callable[[str], ModuleType]) -> None:
    aims = bench("gpu_aims")
    ceilings = {"fp16_tflops": 500.0, "int8_tops": 1000.0, "copy_gbs": 4000.0}
    rows = aims.floors(
        [
            step(name="wide", input=(20, 20, 1024), output=(20, 20, 1024)),
            step(name="thin", kernel=1, residual=True),
            step(name="up", op="upsample", output=(160, 160, 64)),
            step(name="pool", op="max_pool5", weight_bytes=0, kernel=5),
            step(name="integer", dtype="int8", splits=2, stream=1),
        ],
        ceilings,
        1,
    )
    flop = 2 * 400 * 1024 * 1024 * 9
    assert rows[0]["floor_ms"] == pytest.approx(flop / 500e12 * 1e3, abs=1e-5)
    assert (rows[0]["bound"], rows[0]["tflops"]) == ("arithmetic", round(flop / 1e-5 / 1e12, 1))
    moved = 3 * 80 * 80 * 64 * 2 + 73728
    assert (rows[1]["bound"], rows[1]["floor_ms"]) == ("bytes", round(moved / 4e12 * 1e3, 5))
    assert aims.flop(step(op="upsample", output=(160, 160, 64))) == 2 * 160 * 160 * 64 * 64
    assert (rows[3]["tflops"], rows[3]["bound"]) == (None, "bytes")
    assert (rows[4]["splits"], rows[4]["stream"]) == (2, 1)
    assert [line["name"] for line in aims.slowest(rows, 2)] == ["pool", "integer"]
    assert all(line["floor_ms"] == 0.0 for line in aims.floors([step()], {}, 1))


def test_differences(bench: Callable[[str], ModuleType]) -> None:
    aims = bench("gpu_aims")
    right = [np.array([1.0, -4.0], np.float32), np.array([10.0], np.float32)]
    assert aims.difference([right[0] + 0.04, right[1]], right) == pytest.approx(0.01, rel=1e-3)
    assert aims.difference([right[0] * np.nan, right[1]], right) == aims.NOT_FINITE
    assert aims.difference([right[0][:1], right[1]], right) == aims.NOT_FINITE
    assert aims.sqnr_db(right, right) == aims.NO_NOISE
    assert aims.sqnr_db([right[0], right[1] * 1.1], right) == pytest.approx(20.0, abs=1e-3)


def test_matched_boxes(bench: Callable[[str], ModuleType]) -> None:
    matched = bench("gpu_aims").matched
    boxes = np.array([[0, 0, 9, 9, 0.9, 1], [5, 5, 20, 20, 0.8, 2]], np.float32)
    moved = boxes + np.array([1, 0, 0, 0, 0.01, 0], np.float32)
    assert matched(moved, boxes, pixels=2.0, score=0.02) == 1.0
    assert matched(moved[:1], boxes, pixels=2.0, score=0.02) == pytest.approx(2 / 3)
    assert matched(boxes, boxes[:, [0, 1, 2, 3, 4, 4]], pixels=2.0, score=0.02) == 0.0
    assert matched(boxes[:0], boxes[:0], pixels=2.0, score=0.02) == 1.0
    assert matched(boxes[:0], boxes, pixels=2.0, score=0.02) == 0.0


# --- one case ---


def test_a_case_goes_on_without_a_side(bench: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    gpu, aims, sides, one = bench("gpu"), bench("gpu_aims"), bench("gpu_sides"), bench("gpu_case")
    clock = ScriptedClock({aims.FP16: [0.5], aims.GRAPH: [1.0], aims.INT8: [0.25]})

    def side(name: str) -> Callable[[], Any]:
        notes = {"graphs": 0, "overlap": False, "capture_failure": "not permitted"} if name == aims.FP16 else None
        return lambda: sides.Side(
            lambda number: clock.side(name)(), lambda: [np.ones(3)], "as it is", (lambda: notes) if notes else None
        )

    def broken() -> Any:
        raise RuntimeError("CUDA error: out of memory\nmore")

    makers = {aims.FP16: side(aims.FP16), aims.INT8: side(aims.INT8), aims.EAGER: broken, aims.GRAPH: side(aims.GRAPH)}
    case = aims.GpuCase("s")
    found = one.run_case(
        case,
        makers,
        lambda name, outputs: ("too far off" if name == aims.INT8 else "", {"difference": 0.001}),
        clock,
        inputs=dict.fromkeys(makers, 2),
        rounds=3,
        apart=(aims.FP16, aims.EAGER),
    )
    assert found["missing"] == {aims.EAGER: "RuntimeError: CUDA error: out of memory"}
    assert found["wrong"] == {aims.INT8: "too far off"}
    assert list(found["times"]) == [aims.FP16, aims.INT8, aims.GRAPH]
    assert found["apart_ms"] == {aims.FP16: 1.0}
    found["gflop"] = 31.8
    one.print_case(case.key, found, {"fp16_tflops": 636.0})
    text = capsys.readouterr().out
    assert re.search(r"yolonas fp16 +0\.500 ms \(0\.500 to 0\.500, apart 1\.000\) +63\.6 TFLOP/s \( 10% of", text)
    assert "yolonas int8           WRONG: too far off" in text
    assert "yolonas fp16           0 graphs; failed capture: not permitted" in text
    assert "torch fp16, eager      not timed: RuntimeError: CUDA error: out of memory" in text
    one.print_ratios(aims.ratios(case, found, {}))
    text = capsys.readouterr().out
    assert "s_640_1   time over the best peer, torch fp16, CUDA graph: 0.500   aim at most 0.50: reached" in text
    assert "s_640_1   1080p to boxes over the network, yolonas fp16:   aim at most 1.10: NOT MEASURED" in text
    result = {"failed": {"accuracy": "ValueError: x"}, "rows": {case.key: found}}
    result |= {"lost": {"m_640_1": {"yolonas fp16": "hung"}}, "experiments": {"replays": {"wrong": "1 of 9 differ"}}}
    result["tuning"] = {"s_640_1": {"difference": 1e-3}, "m_640_1": {"difference": 0.5}}
    assert gpu.failures(result) == [
        "accuracy: ValueError: x",
        "tuning of m_640_1: outputs differ by 5.0e-01",
        "replays: 1 of 9 differ",
        "m_640_1, yolonas fp16: hung",
        "s_640_1, yolonas int8: too far off",
    ]


class ReplayingSide:
    """The first run of an engine is step by step, the second makes a graph, later ones replay it."""

    def __init__(self, fault: str):
        self.fault, self.runs, self.output = fault, 0, np.zeros(3)

    def run(self, number: int) -> None:
        self.runs += 1
        right = np.full(3, 1.0 + number)
        if self.runs > 1 and self.fault == "graph writes nothing":
            return
        if self.runs > 1 and self.fault == "graph is wrong":
            right = right * 99
        if self.runs > 2 and self.fault == "graph keeps its input":
            right = self.output
        if self.runs > 8 and self.fault == "later runs are wrong":
            right = right + 1
        self.output = right.copy()


@pytest.mark.parametrize(
    "fault", ["graph writes nothing", "graph is wrong", "graph keeps its input", "later runs are wrong", ""]
)
def test_what_is_judged_is_what_is_timed(bench: Callable[[str], ModuleType], fault: str) -> None:
    one, aims, sides = bench("gpu_case"), bench("gpu_aims"), bench("gpu_sides")
    side = ReplayingSide(fault)

    def judge(name: str, outputs: list[np.ndarray]) -> tuple[str, dict[str, float]]:
        return "" if (outputs[0] == 1.0).all() else "differs", {}

    found = one.run_case(
        aims.GpuCase("s"),
        {aims.FP16: lambda: sides.Side(side.run, lambda: [side.output], "")},
        judge,
        HostClock(),
        inputs={aims.FP16: 2},
        rounds=3,
    )
    expected = {"": {}, "later runs are wrong": {aims.FP16: "after the timing: differs"}}
    assert found["wrong"] == expected.get(fault, {aims.FP16: "differs"})


@pytest.mark.parametrize("where", ["made", "timed", "judged again"])
@pytest.mark.parametrize("dead", [False, True])
def test_a_side_that_fails(bench: Callable[[str], ModuleType], where: str, dead: bool) -> None:
    """The device may do nothing any more after that."""
    one, aims, sides, process = (bench(name) for name in ("gpu_case", "gpu_aims", "gpu_sides", "gpu_process"))
    runs = {aims.FP16: 0, aims.INT8: 0}
    failed = []
    at = {"made": 2, "timed": 7, "judged again": 11}[where]

    def side(name: str) -> Any:
        def run(number: int) -> None:
            runs[name] += 1
            if (failed and dead) or (name == aims.INT8 and runs[name] >= at):
                failed.append(name)
                raise RuntimeError("CUDA error: an illegal memory access\nmore")

        return sides.Side(run, lambda: [np.ones(3)], "")

    class Clock(HostClock):
        def works(self) -> bool:
            return not (failed and dead)

    doing = process.Doing()
    lost = {aims.DETECT: "hung"}

    def go() -> Any:
        return one.run_case(
            aims.GpuCase("s"),
            {name: lambda name=name: side(name) for name in (aims.INT8, aims.FP16, aims.DETECT)},
            lambda name, outputs: ("", {}),
            Clock(),
            inputs=dict.fromkeys(runs, 2),
            rounds=3,
            lost=lost,
            doing=doing,
        )

    text = "RuntimeError: CUDA error: an illegal memory access"
    if dead and where != "judged again":
        with pytest.raises(process.DeadError, match="an illegal memory access"):
            go()
        assert doing.name == aims.INT8
        return
    found = go()
    assert aims.FP16 in found["times"]
    if where == "judged again":
        assert found["wrong"][aims.INT8] == f"after the timing: {text}"
        assert (aims.FP16 in found["wrong"]) == dead
    else:
        assert found["missing"] == {**lost, aims.INT8: text}
        assert list(found["times"]) == [aims.FP16]


def test_verdicts_on_results(bench: Callable[[str], ModuleType]) -> None:
    gpu, aims = bench("gpu_case"), bench("gpu_aims")
    right = [np.linspace(-4, 4, 99, dtype=np.float32)]
    near = [right[0] + np.float32(0.01)]
    assert gpu.judge_heads(aims.FP16, [right[0] + np.float32(0.04)], right, None)[0].startswith("differs by 1.0e-02")
    assert gpu.judge_heads(aims.FP16, near, right, None)[0] == ""
    assert gpu.judge_heads(aims.FP32, near, right, None)[0].startswith("differs by 2.5e-03 of the largest value")
    wrong, noted = gpu.judge_heads(aims.INT8, near, right, near)
    assert (wrong, noted["equal_to_cpu"]) == ("", 1.0)
    assert gpu.judge_heads(aims.INT8, near, right, right)[0].startswith("not the bits of the CPU engine")
    noise = [right[0][::-1].copy()]
    assert gpu.judge_heads(aims.INT8, noise, right, noise)[0] == "-6.0 dB"
    boxes = np.array([[0, 0, 9, 9, 0.9, 1]], np.float32)
    assert gpu.judge_boxes(boxes, boxes) == ("", {"boxes": 1.0, "cpu_boxes": 1.0, "matched": 1.0})
    assert gpu.judge_boxes(boxes[:0], boxes)[0] == "only 0% of the boxes are those of the CPU engine"


def test_parts_fail_alone_and_are_saved(
    bench: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = bench("gpu")
    made = object.__new__(gpu.Bench)

    def empty_cache() -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    made.torch = SimpleNamespace(cuda=SimpleNamespace(empty_cache=empty_cache))
    made.doing, made.clock = bench("gpu_process").Doing(), HostClock()
    made.arguments = SimpleNamespace(output=tmp_path / "gpu.json")
    made.budget = bench("gpu_timer").Budget(10.0, lambda: 0.0)
    made.result = {"failed": {}, "left_out": {}, "lost": {"s_640_1": {"gone": "hung"}}, "done": 0}

    def fails() -> None:
        raise ValueError("no such thing")

    def works() -> None:
        made.result["done"] += 1

    for name, seconds, function in (
        ("bad", 1.0, fails),
        ("good", 1.0, works),
        ("long", 11.0, works),
        ("gone", 1.0, works),
    ):
        made.part(name, seconds, function)
    saved = json.loads((tmp_path / "gpu.json").read_text())
    assert saved == {
        "failed": {"bad": "ValueError: no such thing", "gone": "hung"},
        "left_out": {"long": "needs about 11 s, 10 s were left"},
        "lost": {"s_640_1": {"gone": "hung"}},
        "done": 1,
    }
    monkeypatch.setattr(made.clock, "works", lambda: False)
    with pytest.raises(bench("gpu_process").DeadError, match="no such thing"):
        made.part("last", 1.0, fails)
    assert "last" not in json.loads((tmp_path / "gpu.json").read_text())["failed"]  # whoever has started it notes that


class HostEngine:
    """The CPU's engine with the interface of the CUDA one, on torch tensors of the CPU."""

    def __init__(self, graph: Any):
        from yolonas.native_engine import native_of_graph

        self.native = native_of_graph(graph)
        self.num_classes = self.native.num_classes
        self.plan = self.native.plan

    def run(self, x: Any, cls: list[Any], reg: list[Any], *, stream: int) -> None:
        self.native.run(x.numpy(), [one.numpy() for one in cls], [one.numpy() for one in reg])

    def detect(self, pictures: list[Any], *, stream: int, detections: Any, counts: Any, **settings: Any) -> None:
        found = {"detections": detections.numpy(), "counts": counts.numpy()}
        self.native.detect([one.numpy() for one in pictures], **settings, **found)

    def time_steps(self, height: int, width: int, batch: int, rounds: int) -> list[float]:
        return [0.01] * len(self.plan(height, width, batch))


class HostClock:
    def measure(self, function: Callable[[], object], calls: int) -> float:
        function()
        return 1.0

    def measure_apart(self, function: Callable[[], object], calls: int) -> list[float]:
        return [2.0]

    def works(self) -> bool:
        return True


@pytest.fixture
def host(bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark whose device is the CPU."""
    gpu, sides = bench("gpu"), bench("gpu_sides")
    for name in ("compile_environment", "strict_fp32"):
        monkeypatch.setattr(sides, name, lambda: None)
    monkeypatch.setattr(sides, "DEVICE", "cpu")
    monkeypatch.setattr(sides, "stream", lambda: 0)
    monkeypatch.setattr(sides, "device_name", lambda: "the CPU")
    monkeypatch.setattr(sides, "captured", sides.eager)
    monkeypatch.setattr(sides, "MOST_INPUTS", 2)
    monkeypatch.setattr(sides, "native_engine", lambda graph, *, half: HostEngine(graph))
    names = ("rows", "steps", "tuning", "accuracy", "experiments", "failed", "left_out", "lost")
    result = {"ceilings": {"fp16_tflops": 700.0, "int8_tops": 1400.0, "copy_gbs": 4000.0}}
    result |= {"ratios": [], "clocks": {}}
    options = SimpleNamespace(rounds=1, seconds=900.0, output=None, doing=None)
    made = gpu.Bench(options, result | {name: {} for name in names})
    made.clock = HostClock()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_a_whole_case_on_the_cpu(
    bench: Callable[[str], ModuleType], host: Any, capsys: pytest.CaptureFixture[str], batch: int
) -> None:
    """All but the device: sides, references, verdicts, the table of steps."""
    gpu, aims = bench("gpu"), bench("gpu_aims")
    case = aims.GpuCase("s", batch, 64)
    host.case(case)
    host.steps(case)
    row = host.result["rows"][case.key]
    single = {aims.DETECT, aims.FP32, aims.GRAPH_FP32} if batch == 1 else set()
    assert set(row["times"]) == {aims.FP16, aims.INT8, aims.EAGER, aims.GRAPH, *single}
    assert row["wrong"] == {}
    assert set(row["missing"]) == ({aims.COMPILED} if batch == 1 else set())
    assert row["found"][aims.INT8]["equal_to_cpu"] == 1.0
    assert row["engine"][aims.FP16] == {"graphs": 0, "overlap": False, "capture_failure": ""}
    assert set(row["engine"]) == {aims.FP16, aims.INT8, *(single - {aims.GRAPH_FP32})}
    assert row["gflop"] == pytest.approx(31.8 * batch / 100, rel=0.02)
    assert len(host.result["steps"]) == 2
    assert "steps, one after another" in capsys.readouterr().out
    assert len(host.result["ratios"]) == (4 if batch == 1 else 3)
    assert gpu.failures(host.result) == []
    json.dumps(host.result, allow_nan=False)


@pytest.mark.slow
def test_experiments_on_the_cpu(
    bench: Callable[[str], ModuleType],
    host: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu, aims, experiments = bench("gpu"), bench("gpu_aims"), bench("gpu_experiments")
    monkeypatch.setattr(experiments, "CASE", aims.GpuCase("s", 1, 64))
    monkeypatch.setattr(experiments, "REPLAYS", 3)
    wanted = []
    for name in (experiments.GRAPH, experiments.OVERLAP):
        monkeypatch.delenv(name, raising=False)

    def engine(graph: Any, *, half: bool) -> HostEngine:
        wanted.append("".join(os.environ.get(name, "1") for name in (experiments.GRAPH, experiments.OVERLAP)))
        return HostEngine(graph)

    monkeypatch.setattr(bench("gpu_sides"), "native_engine", engine)
    for name in experiments.EXPERIMENTS:
        host.run(name)
    assert wanted == ["11", "10", "11", "01", "11", "10", "00"]
    assert experiments.GRAPH not in os.environ
    found = host.result["experiments"]
    assert list(found) == [f"{experiments.OVERLAP}=0", f"{experiments.GRAPH}=0", "replays"]
    assert list(found[f"{experiments.GRAPH}=0"]["times"]) == ["as it is", f"{experiments.GRAPH}=0"]
    assert found["replays"]["differ"] == {"graph": 0, "graph, no overlap": 0}
    assert gpu.failures(host.result) == []
    assert "3 replays: all have the bits of steps one by one" in capsys.readouterr().out

    class Unsteady(HostEngine):
        runs = 0

        def run(self, x: Any, cls: list[Any], reg: list[Any], *, stream: int) -> None:
            super().run(x, cls, reg, stream=stream)
            self.runs += 1
            if self.runs == 3:
                reg[1][0, 0, 0, 0] += 1

    monkeypatch.setattr(bench("gpu_sides"), "native_engine", lambda graph, *, half: Unsteady(graph))
    host.run("experiment: replays")
    assert gpu.failures(host.result) == ["replays: 1 of 3 runs differ, graph, 1 of 3 runs differ, graph, no overlap"]
    json.dumps(host.result, allow_nan=False)


# --- a process for each part ---


def test_a_process_is_watched(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    process = bench("gpu_process")
    doing = tmp_path / "doing"
    begin = f"import os, pathlib, sys, time; sys.path.insert(0, {str(ROOT / 'bench')!r}); import gpu_process; "
    begin += f"doing = gpu_process.Doing(pathlib.Path({str(doing)!r})); doing('a'); doing('b'); "

    def watch(code: str, seconds: float = 60.0, stalled: float = 60.0) -> Any:
        found = process.watch([sys.executable, "-c", begin + code], doing, seconds, stalled)
        return (*found, *process.last_done(doing))

    assert watch("") == (0, "", "b", "")
    assert watch("doing.failed('why'); os._exit(4)") == (4, "the process ended with 4", "b", "why")
    assert watch("time.sleep(60)", stalled=4.0) == (process.HUNG, "hung: nothing came for 4 s", "b", "")
    keeps_on = "[(doing(str(n)), time.sleep(0.2)) for n in range(300)]"
    code, why, *_ = watch(keeps_on, seconds=6.0, stalled=5.0)
    assert (code, why) == (process.LATE, "no time was left after 6 s")
    if os.name != "nt":
        code, why, name, _ = watch("os.abort()")
        assert (code, why, name) == (-signal.SIGABRT, "the process was ended by SIGABRT", "b")
    doing.unlink()
    assert process.last_done(doing) == ("", "")


def test_parts_run_in_processes(
    bench: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One side crashes, another hangs, a part has no time left: the rest is there."""
    gpu, aims, process = bench("gpu"), bench("gpu_aims"), bench("gpu_process")
    monkeypatch.setattr(gpu, "no_accuracy", lambda: "no pictures")
    monkeypatch.setattr(gpu, "query", lambda fields=(): {})
    file = tmp_path / "gpu.json"
    seen = []
    script = {
        "s_640_1": [(process.DEAD, "ended with 4", f"{aims.INT8}\nCUDA error"), (process.HUNG, "hung", aims.DETECT), 0],
        "m_640_1": [(process.DEAD, "ended with 4", "m_640_1\nCUDA error")],
        "l_640_1": [(-11, "ended by SIGSEGV", aims.FP16), (-11, "ended by SIGSEGV", aims.FP16)],
        "tuning of s_640_1": [(process.LATE, "no time was left after 9 s", "tuning of s_640_1")],
    }

    def watch(command: list[str], doing: Path, seconds: float, quiet: float) -> tuple[int, str]:
        options = dict(zip(command[2::2], command[3::2], strict=True))
        part = options["--part"]
        seen.append(part)
        assert options["--output"] == str(file)
        assert (quiet > process.STALLED) == part.startswith("tuning")
        end = script[part].pop(0) if part in script else 0
        if end:
            doing.write_text(end[2])
            return end[:2]
        result = process.read(file)
        if part in aims.CASES:
            lost = result["lost"].get(part, {})
            result["rows"][part] = {"case": part, "times": {}, "wrong": {}, "missing": lost}
        process.write(file, result)
        return 0, ""

    monkeypatch.setattr(process, "watch", watch)
    options = SimpleNamespace(rounds=9, output=file, cases=list(aims.CASES), experiments=True)
    result = gpu.all_parts(options, tmp_path, bench("gpu_timer").Budget(900.0, lambda: 0.0))
    cases = ["s_640_1"] * 3 + ["m_640_1"] + ["l_640_1"] * 2 + ["m_640_32", "s_640_32"]
    tunings = [f"tuning of {key}" for key in ("s_640_1", "m_640_1", "l_640_1")]
    assert seen == [*cases, tunings[0], *gpu.EXPERIMENTS, *tunings[1:]]
    assert result == process.read(file)
    assert result["rows"]["s_640_1"]["missing"] == {aims.INT8: "ended with 4; CUDA error", aims.DETECT: "hung"}
    assert result["failed"] == {"m_640_1": "ended with 4; CUDA error", f"l_640_1, {aims.FP16}": "ended by SIGSEGV"}
    assert result["left_out"] == {
        "accuracy": "no pictures",
        "tuning of s_640_1": "no time was left after 9 s",
    }
    assert {line["case"] for line in result["ratios"] if line["ratio"] is None} == {"m_640_1", "l_640_1"}
    assert gpu.failures(result) == [
        "m_640_1: ended with 4; CUDA error",
        f"l_640_1, {aims.FP16}: ended by SIGSEGV",
        f"l_640_1, {aims.FP16}: ended by SIGSEGV",
        f"s_640_1, {aims.INT8}: ended with 4; CUDA error",
        f"s_640_1, {aims.DETECT}: hung",
    ]


def test_clocks_are_read_while_it_works(bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    timer = bench("gpu_timer")
    runs: list[int] = []

    def query(fields: tuple[str, ...]) -> dict[str, str]:
        begin = len(runs)
        while len(runs) < begin + 3:  # a slow nvidia-smi
            pass
        return {"clocks.sm": "1980 MHz"}

    monkeypatch.setattr(timer, "query", query)
    assert timer.clocks_while_busy(lambda: runs.append(1), HostClock(), 1.0) == {"clocks.sm": "1980 MHz"}


def test_threshold_for_a_number_of_boxes(bench: Callable[[str], ModuleType]) -> None:
    logits = [np.array([3.0, -1.0, 0.5], np.float32), np.array([2.0, -5.0], np.float32)]
    score = bench("gpu_sides").score_for(logits, 2)
    best = [1 / (1 + np.exp(-value)) for value in (2.0, 0.5)]
    assert best[1] < score < best[0]


def test_detection_of_the_cpu_engine(bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments are those of the engine: the CPU's takes them."""
    sides, check = bench("gpu_sides"), bench("gpu_check")
    from yolonas.native_engine import NativeEngine

    monkeypatch.setattr(sides, "PICTURE", (216, 384))
    engine = NativeEngine.of_module(check.narrow())
    detection = sides.Detection(engine)
    assert 10 <= len(detection.expected) <= sides.BOXES
    detections, counts = np.zeros((1, 300, 6), np.float32), np.zeros(1, np.int64)
    engine.native.detect([detection.host], **detection.arguments(), detections=detections, counts=counts)
    np.testing.assert_array_equal(detections[0, : counts[0]], detection.expected)


def test_folded_networks_are_kept(
    bench: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each caller gets its own."""
    sides, check = bench("gpu_sides"), bench("gpu_check")
    made = []

    def network(variant: str) -> Any:
        made.append(variant)
        return SimpleNamespace(model=check.narrow())

    monkeypatch.setattr(sides, "network", network)
    monkeypatch.setattr(sides, "KEPT", tmp_path)
    sides._folded.cache_clear()
    first = sides.folded("s")
    sides._folded.cache_clear()  # another process
    second, third = sides.folded("s"), sides.folded("s")
    sides._folded.cache_clear()
    assert made == ["s"]
    assert second is not third
    right, kept = first.state_dict(), second.state_dict()
    assert all((right[name] == kept[name]).all() for name in right)


def test_quantised_network_of_the_benchmark(bench: Callable[[str], ModuleType]) -> None:
    sides, check = bench("gpu_sides"), bench("gpu_check")
    from yolonas.native_engine import NativeEngine

    model = sides.quantize_(check.narrow(), size=64, pictures=1)
    graph = sides.graph_of(model)
    assert any(buffer.scale for buffer in graph.buffers)
    x = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    assert [level.shape[-1] for level in sides.cpu_heads(NativeEngine.of_module(model), x)] == [3] * 3 + [68] * 3


# --- the program for checkers ---


class HostMemory:
    """Fake CUDA tensors on the CPU."""

    stream = 0

    def put(self, array: np.ndarray) -> Any:
        from emulated_cuda import FakeCudaTensor

        return FakeCudaTensor(guarded(array))

    def get(self, tensor: Any) -> np.ndarray:
        return tensor.array


class StandInEngine:
    """The CPU's engine with the interface of the CUDA one."""

    spoil = False

    def __init__(self, buffers: Any, steps: Any, outputs: Any, *, device: int, half: bool):
        self.native = _native.cpu().Engine(buffers, steps, outputs)

    def _guard_buffers(self, on: bool) -> None:
        self.native._guard_buffers(on)

    def run(self, x: Any, cls: list[Any], reg: list[Any], *, stream: int) -> None:
        self.native.run(x.array, [one.array for one in cls], [one.array for one in reg])
        if self.spoil:
            reg[1].array[0, 0, 0, 0] += 1.0

    def alternatives(self, height: int, width: int, batch: int, cuts: int) -> list[list[Any]]:
        return self.native.alternatives(height, width, batch, cuts)

    def set_choices(self, height: int, width: int, batch: int, choices: list[Any]) -> None:
        self.native.set_choices(height, width, batch, choices)

    def detect(self, pictures: list[Any], *, stream: int, **settings: Any) -> None:
        host = {name: getattr(value, "array", value) for name, value in settings.items()}
        self.native.detect([one.array for one in pictures], **host)


def test_checks_of_networks(bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    check = bench("gpu_check")
    module = SimpleNamespace(Engine=StandInEngine)
    parts = ("network", "variants", "detect")
    found = {name: run() for name, run in check.checks(module, HostMemory()) if name.startswith(parts)}
    assert found == dict.fromkeys([f"{part} {kind}" for kind in check.KINDS for part in parts], "")
    monkeypatch.setattr(StandInEngine, "spoil", True)
    found = {name: run() for name, run in check.checks(module, HostMemory()) if name.startswith("network")}
    assert all("differs by" in text for text in found.values()), found


def test_checks_name_what_fails(bench: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    check = bench("gpu_check")
    assert check.run_all(SimpleNamespace(Engine=StandInEngine), HostMemory()) == 4
    text = capsys.readouterr().out
    assert "letterbox: AttributeError" in text
    assert "network int8: ok" in text
    assert text.endswith("4 wrong\n")


@pytest.mark.slow
def test_checks_in_the_emulator(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    check = bench("gpu_check")
    from emulated_cuda import build

    module = build(tmp_path)
    found = {name: run() for name, run in check.checks(module, HostMemory())}
    assert found == dict.fromkeys(found, "")


# --- machine code ---

SASS = """
Fatbin elf code:
================
arch = sm_90

\tcode for sm_90
\t.target\tsm_90

\t\tFunction : _ZN7yolonas4cuda11conv_kernelIfLi64EEEvNS0_4ArgsE
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                    /* 0x00000a00ff017b82 */
                                                                             /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDGSTS.E.BYPASS.LTC128B.128 [R4], [R2.64] ; /* 0x0000000000027919 */
        /*0020*/                   LDSM.16.M88.4 R4, [R8] ;                  /* 0x0000000000027919 */
        /*0030*/                   HMMA.16816.F32 R4, R8, R2, R4 ;           /* 0x0000000000027919 */
        /*0040*/              @UP1 HMMA.16816.F32 R4, R8, R2, R4 ;           /* 0x0000000000027919 */
        /*12340*/                  IMMA.16832.S8.S8 R4, R8.ROW, R2.COL, R4 ; /* 0x0000000000027919 */
\t\tFunction : _Z21conv_warpgroup_kernelv
        /*0000*/                   HGMMA.64x128x16.F32 R4, gdesc[UR4] ;      /* 0x0000000000027919 */
        /*0010*/                   IGMMA.64x64x32.S8.S8 R4, gdesc[UR4] ;     /* 0x0000000000027919 */
        /*0020*/                   LDGSTS.E.BYPASS.128 [R4], [R2.64] ;       /* 0x0000000000027919 */
\t\tFunction : _Z11nms_kernelv
        /*0000*/                   STL.64 [R1], R2 ;                         /* 0x0000000000027919 */
        /*0010*/                   HFMA2.MMA R3, -RZ, RZ, 0, 0 ;             /* 0x00000000ff037435 */
"""
USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function _ZN7yolonas4cuda11conv_kernelIfLi64EEEvNS0_4ArgsE:
  REG:128 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:624 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z11nms_kernelv:
  REG:34 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:624 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_sass_is_read(bench: Callable[[str], ModuleType]) -> None:
    sass = bench("sass")
    kernels = sass.parse_sass(SASS)
    sass.add_usage(USAGE, kernels)
    conv, warpgroup, nms = kernels.values()
    assert [conv.count(name) for name in (*sass.WANTED, "HMMA", "HMMA.168")] == [2, 1, 1, 1, 2, 0]
    assert (conv.registers, conv.stack, conv.shared, conv.spills) == (128, 0, 1024, 0)
    assert [warpgroup.count(name) for name in sass.HOPPER] == [1, 1, 1]
    assert (nms.registers, nms.stack, nms.spills, nms.count("HMMA")) == (34, 16, 1, 0)
    assert sass.faults(kernels.values()) == []  # what others keep in local memory is theirs
    assert len({len(line) for line in sass.table(kernels.values())}) == 1


def test_sass_faults(bench: Callable[[str], ModuleType]) -> None:
    sass = bench("sass")
    assert sass.faults([], "sm_80") == ["no kernel is called conv_kernel"]
    assert sass.faults([])[1:] == ["no kernel is called conv_warpgroup_kernel"]
    kernels = sass.parse_sass(SASS.replace("HMMA.16816", "HMMA.1688").replace("LDSM", "LDS").replace("IGMMA", "IADD3"))
    sass.add_usage(USAGE.replace("REG:128 STACK:0", "REG:256 STACK:8"), kernels)
    found = sass.faults(kernels.values())
    assert [text.split(":")[0] for text in found] == [
        "no conv_kernel has HMMA.16816",
        "no conv_kernel has LDSM",
        "no conv_warpgroup_kernel has IGMMA",
        f"{next(iter(kernels.values())).name} keeps values in local memory",
        f"{next(iter(kernels.values())).name} needs 256 registers, more than 255",
    ]
    scalar = {"_Z11conv_kernelv": sass.Kernel("_Z11conv_kernelv")}
    found = sass.faults([*kernels.values(), *scalar.values()])
    assert "_Z11conv_kernelv has none of HMMA.16816, IMMA.16832" in found


def test_sass_names(bench: Callable[[str], ModuleType]) -> None:
    sass = bench("sass")
    text = "void yolonas::cuda::(anonymous namespace)::conv_kernel<yolonas::cuda::Half<64, 2>, true>(yolonas::Args)"
    assert sass.Kernel("_Z1", readable=text).name == "conv_kernel<Half<64, 2>, true>"
    assert sass.Kernel("_Z11nms_kernelv").name == "_Z11nms_kernelv"


def test_sass_without_what_it_needs(bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    sass = bench("sass")
    monkeypatch.setattr(sass, "find_cuobjdump", lambda: None)
    with pytest.raises(sass.CannotReadError, match="no cuobjdump here"):
        sass.read(ROOT / "README.md")
    monkeypatch.setattr(sass, "find_cuobjdump", lambda: "/bin/true")
    with pytest.raises(sass.CannotReadError, match="has no machine code for sm_90"):
        sass.read(ROOT / "README.md")
    with pytest.raises(sass.CannotReadError, match="no file"):
        sass.read(ROOT / "nothing.so")


# --- on a machine without a GPU ---


@pytest.mark.parametrize("program", ["gpu.py", "gpu_check.py", "gpu_compile.py"])
def test_without_a_gpu_a_sentence_says_so(program: str) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(yolonas.__file__).parents[1])}
    command = [sys.executable, ROOT / "bench" / program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert "no CUDA device" in done.stdout


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs gpu_all.sh with programs of the test in front of the path."""
    bash = shutil.which("bash")
    if bash is None or os.name == "nt":
        pytest.skip("no bash here")
    programs = tmp_path / "bin"
    programs.mkdir()

    def run(steps: str, **files: str) -> subprocess.CompletedProcess[str]:
        for name, text in files.items():
            path = programs / name.replace("_", "-")
            path.write_text(f"#!{bash}\n{text}\n")
            path.chmod(0o755)
        environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "YOLONAS_GPU_STEPS": steps}
        environment = {"PYTHON": sys.executable, "YOLONAS_GPU_WORK": str(tmp_path / "work"), **environment}
        environment.pop("OUT", None)
        command = [bash, str(ROOT / "bench" / "gpu_all.sh"), str(tmp_path / "out")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_the_script_without_a_gpu(script: Callable[..., Any], tmp_path: Path) -> None:
    done = script("environment check benchmark", nvidia_smi="exit 9", nvcc="echo release 1; echo made up")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "There is no GPU here" in done.stdout
    steps = {one["step"]: one for one in json.loads((tmp_path / "out" / "steps.json").read_text())}
    assert {name: one["result"] for name, one in steps.items()} == {
        "environment": "ok",
        "check": "not run",
        "benchmark": "not run",
    }
    assert steps["benchmark"]["about"] == "no GPU: nvidia-smi shows none here"
    assert "torch for CUDA" in (tmp_path / "out" / "environment.log").read_text()


def test_the_script_goes_on_after_a_failure(script: Callable[..., Any], tmp_path: Path) -> None:
    done = script("environment build", nvidia_smi="exit 9", nvcc="exit 1", cmake='echo "cannot \\"do\\" that"; exit 4')
    assert done.returncode == 1, done.stdout + done.stderr
    steps = {one["step"]: one for one in json.loads((tmp_path / "out" / "steps.json").read_text())}
    assert steps["build"]["result"] == "FAILED"
    assert steps["build"]["about"] == 'exit code 1: cannot "do" that'
    assert re.search(r"^build +FAILED", done.stdout, re.MULTILINE)


def made_module(folder: Path) -> Path:
    """What a build leaves, as far as the script looks at it."""
    module = folder / "work" / "site" / "yolonas" / "_cuda.abi.so"
    module.parent.mkdir(parents=True)
    module.touch()
    return module


PYTHON = """
echo "$@" >> "$SEEN"
case "$*" in
  *gpu_compile.py*) sleep 300 ;;
  *"-m pytest"*) echo "5 passed, 1 skipped in 0.1s" ;;
  *gpu.py*) echo "  yolonas fp16 0.400 ms (0.4 to 0.4)"; [[ $* == *--output*gpu.json* ]] ;;
  *) echo "0 wrong" ;;
esac
"""


def test_the_script_with_a_gpu(script: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step ends well; programs are made up."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("PYTHON", str(tmp_path / "bin" / "python"))
    made_module(tmp_path)
    done = script(
        "sass check tests memcheck synccheck racecheck benchmark",
        nvidia_smi="echo 9.0",
        python=PYTHON,
        compute_sanitizer='shift 6; "$@"',  # --tool T --error-exitcode N --print-limit N
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = {one["step"]: one for one in json.loads((tmp_path / "out" / "steps.json").read_text())}
    assert {one["result"] for one in steps.values()} == {"ok"}
    assert list(steps) == ["sass", "check", "tests", "memcheck", "synccheck", "racecheck", "benchmark"]
    files = sum(bool(re.search(r"mark\.cuda", path.read_text())) for path in (ROOT / "tests").rglob("test_*.py"))
    about = steps["tests"]["about"]
    assert about.endswith(f"; files that failed: 0 of {files}")
    assert {f"{5 * files} passed", f"{files} skipped"} == set(about.partition(";")[0].split(", "))
    assert "yolonas fp16 0.400 ms" in done.stdout
    seen = (tmp_path / "seen").read_text().splitlines()
    assert sum("gpu_check.py" in line for line in seen) == 4
    assert any(line.startswith(str(ROOT / "bench" / "sass.py")) and line.endswith("--arch sm_90") for line in seen)
    assert len(list((tmp_path / "out").iterdir())) <= 8


def test_the_script_names_the_files_whose_tests_fail(
    script: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One crashes, one hangs; the others count."""
    monkeypatch.setenv("PYTHON", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("YOLONAS_GPU_SECONDS", "12")
    made_module(tmp_path)
    text = """
case "$*" in
  *test_cuda_conv.py) echo "test_a FAILED"; kill -ABRT $$ ;;
  *test_loss.py) echo "test_b"; exec sleep 100 ;;
  *) echo "=== 2 passed in 0.1s ===" ;;
esac
"""
    done = script("tests", nvidia_smi="echo 9.0", python=text)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^tests +FAILED .*\d+ passed; files that failed: 2 of \d+$", done.stdout, re.MULTILINE)
    log = (tmp_path / "out" / "tests.log").read_text()
    assert "FAILED (134) native/test_cuda_conv.py: test_a FAILED" in log
    assert "too long training/test_loss.py: test_b" in log
    assert "ok native/test_cuda_ops.py:  2 passed in 0.1s" in log


def test_the_script_does_not_take_skipped_tests_for_passed_ones(
    script: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("PYTHON", str(tmp_path / "bin" / "python"))
    made_module(tmp_path)
    text = PYTHON.replace("5 passed, 1 skipped", "6 skipped")
    done = script("tests", nvidia_smi="echo 9.0", python=text)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"not one test ran: \d+ skipped", done.stdout)


def test_the_script_without_cuobjdump(
    script: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON", str(tmp_path / "bin" / "python"))
    made_module(tmp_path)
    done = script("sass", nvidia_smi="exit 9", python='echo "sass: no cuobjdump here"; exit 3')
    assert done.returncode == 3, done.stdout + done.stderr
    assert re.search(r"^sass +not run +\d+ s +sass: no cuobjdump here", done.stdout, re.MULTILINE)


def test_the_script_ends_what_it_has_started(
    script: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile works beside the build, which fails here; and the module is not there."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("PYTHON", str(tmp_path / "bin" / "python"))
    done = script("build check benchmark", nvidia_smi="echo 9.0", python=PYTHON, cmake="sleep 2; exit 4")
    assert done.returncode == 1, done.stdout + done.stderr
    steps = {one["step"]: one["result"] for one in json.loads((tmp_path / "out" / "steps.json").read_text())}
    assert steps == {"build": "FAILED", "check": "not run", "benchmark": "not run"}
    assert "gpu_compile.py s m" in (tmp_path / "seen").read_text()


def test_the_script_uses_nothing_of_an_earlier_build(
    script: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("PYTHON", str(tmp_path / "bin" / "python"))
    module = made_module(tmp_path)
    done = script("build check", nvidia_smi="echo 9.0", python=PYTHON, cmake="exit 4")
    assert done.returncode == 1, done.stdout + done.stderr
    steps = {one["step"]: one for one in json.loads((tmp_path / "out" / "steps.json").read_text())}
    assert (steps["build"]["result"], steps["check"]["result"]) == ("FAILED", "not run")
    assert not module.exists()


@pytest.mark.parametrize("says", ["echo WARNING: infoROM; echo 9.0", "echo '[N/A]'", "exit 1", "echo '9.0 '"])
def test_the_script_finds_a_gpu(
    script: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    """nvidia-smi warns, does not know or fails: torch is asked too."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("PYTHON", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PYTHONPATH", "/wheels")
    made_module(tmp_path)
    python = """
case "$*" in *get_device_capability*) echo 10.3 ;; *sass.py*) echo "$PYTHONPATH $*" ;; *) echo "0 wrong" ;; esac
"""
    done = script("sass check", nvidia_smi=says, python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "out" / "sass.log").read_text()
    assert f"\n{tmp_path / 'work' / 'site'}:/wheels " in log
    assert log.endswith(f"--arch sm_{'90' if '9.0' in says else '103'}\n")


def test_the_script_says_when_torch_compile_was_disturbed(
    script: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no time to wait for it before the checks, and it goes on beside them."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("PYTHON", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("YOLONAS_GPU_SECONDS", "330")
    done = script(
        "build check benchmark",
        nvidia_smi="echo 9.0",
        python=PYTHON.replace("sleep 300", "sleep 2"),
        cmake='[[ $1 == --install ]] && mkdir -p "$4/yolonas" && touch "$4/yolonas/_cuda.abi.so"; true',
        ninja="true",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "work" / "disturbed").exists()


def test_marks_of_compiled_cases(
    bench: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides, aims = bench("gpu_sides"), bench("gpu_aims")
    monkeypatch.setattr(sides, "COMPILE_FOLDER", tmp_path / "new")
    mark = sides.compiled_mark(aims.GpuCase("s"))
    sides.write_mark(aims.GpuCase("s"), 61.3)
    assert mark.read_text() == "61 s ahead\n"
    (tmp_path / "new" / "disturbed").touch()
    sides.write_mark(aims.GpuCase("s"), 61.3)
    assert mark.read_text() == "61 s ahead, autotuned while tests ran\n"
    (tmp_path / "new" / "disturbed").unlink()
    sides.write_mark(aims.GpuCase("s"), 9.0)  # from the caches
    assert mark.read_text() == "9 s ahead, autotuned while tests ran\n"


# --- the report ---


def test_table_of_the_report(bench: Callable[[str], ModuleType]) -> None:
    report, aims = bench("report"), bench("gpu_aims")
    assert report.gpu({}) == []
    times = {
        side: {"median_ms": ms, "min_ms": ms, "max_ms": ms}
        for side, ms in ((aims.FP16, 0.4), (aims.GRAPH, 1.0), (aims.INT8, 0.3))
    }
    data = {"case": "S at 640, batch 1", "gflop": 31.8, "times": times, "missing": {aims.EAGER: "not there"}}
    data |= {"wrong": {aims.INT8: "not the bits"}, "apart_ms": {aims.FP16: 0.5}}
    notes = {"graphs": 1, "overlap": False, "capture_failure": "not permitted"}
    data["engine"] = {aims.FP16: notes, aims.INT8: {"graphs": 1, "overlap": True, "capture_failure": ""}}
    result = {
        "device": "NVIDIA H200, sm_90, 132 SMs",
        "gpu": {"driver_version": "580.1"},
        "machine": {"commit": "abc1234"},
        "versions": {"torch": "2.11.0", "cuda": "13.0"},
        "rounds": 9,
        "caches": "weights warm",
        "clocks": {"busy": {"clocks.sm": "1980 MHz"}},
        "ceilings": {"fp16_tflops": 700.0, "copy_gbs": 4300.0},
        "rows": {"s_640_1": data},
        "ratios": aims.ratios(aims.GpuCase("s"), data, {}) + aims.ratios(aims.GpuCase("m"), {}, {}),
        "experiments": {
            "YOLONAS_CUDA_GRAPH=0": {"times": {"as it is": times[aims.FP16], "so": times[aims.GRAPH]}},
            "replays": {"replays": 1000, "wrong": "", "differ": {}},
        },
        "tuning": {"s_640_1": {"times": {"as it is": times[aims.FP16], "tuned": times[aims.INT8]}, "changed_steps": 7}},
        "accuracy": {"CPU fp32": {"AP": 0.5274, "AP50": 0.84, "AP75": 0.58}},
    }
    text = "\n".join(report.gpu({"gpu": result}))
    assert "| S at 640, batch 1 | 0.400 | 1.000 | 0.300 (wrong) | 0.40 |" in text
    assert "| S at 640, batch 1: time over the best peer, torch fp16, CUDA graph | 0.400 | at most 0.50 | met" in text
    assert f"| met, without {aims.COMPILED} |" in text
    assert "| m_640_1: milliseconds |  | at most 0.75 | not measured |" in text
    assert "Aims met: 2 of 6." in text
    assert "| S at 640, batch 1: YOLONAS_CUDA_GRAPH=0 | 0.400 | 1.000 |" in text
    assert "1,000 replays, with and without overlapping launches: all have the bits of" in text
    assert "Without: S at 640, batch 1, yolonas fp16: overlapping launches (not permitted)." in text
    assert "| S at 640, batch 1 | 0.400 | 0.300 | 7 |" in text
    assert "| CPU fp32 | 0.5274 | 0.8400 | 0.5800 |" in text
    assert "NVIDIA H200, sm_90, 132 SMs, driver 580.1" in text
