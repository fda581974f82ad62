"""The check of the CUDA kernels at their first use: on a stand-in whose variants are wrong at will, and with processes
that crash and hang at will.
"""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda_stand_in
import numpy as np
import pytest
import torch
from cuda_stand_in import World
from quantized_networks import narrow, sixteens

from yolonas import NAS, _native, cuda_check, cuda_memory
from yolonas.cuda_check import prove
from yolonas.cuda_comparison import PLAIN, compare
from yolonas.cuda_engine import CudaEngine
from yolonas.errors import UnprovenError
from yolonas.native_engine import graph_of_module, native_of_graph
from yolonas.nn import YoloNAS

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
COMMAND = cuda_check._command  # the stand-in has another one
VARIANTS = [PLAIN, "128x64k64", "w128x128"]


@pytest.fixture(scope="module")
def network() -> YoloNAS:
    return narrow("s")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    world = cuda_stand_in.install(monkeypatch)
    monkeypatch.delenv("YOLONAS_CUDA_CHECK")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    return world


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Gives all engines variants, of which these are wrong: "w128x128", in parts "w128x128 2". "graph": the second run
    without choices. Instead of wrong outputs they can have an error. Returns what is excluded, as it is.
    """

    def make(*names: str, amount: float = 1.0, error: Exception | None = None) -> list[list[str]]:
        excluded: list[list[str]] = []

        def start(engine: Any, *arguments: Any) -> None:
            original_start(engine, *arguments)
            engine.chosen, engine.left_out, engine.plain_runs = [], [], 0
            engine.alternatives = lambda *_: [
                [(name, splits, 0) for name in VARIANTS for splits in (1, 2)]
                if step["op"] in ("conv", "upsample")
                else [("convert", 1, 0)]
                for step in engine.native.plan(96, 64, 2)
            ]
            engine.set_choices = lambda *arguments: setattr(engine, "chosen", arguments[-1])
            engine.exclude = exclude.__get__(engine)

        def exclude(engine: Any, variants: list[str]) -> None:
            engine.left_out, engine.chosen = variants, []
            excluded.append(variants)

        def run(engine: Any, x: Any, cls: list[Any], reg: list[Any], *, stream: int) -> None:
            original_run(engine, x, cls, reg, stream=stream)
            used = {f"{choice[0]}{' 2' * (choice[1] == 2)}" for choice in engine.chosen}
            if not engine.chosen:
                engine.plain_runs += 1
                used = {"graph"} if engine.plain_runs == 2 else set()
            if used & set(names) and error is not None:
                raise error
            if used & set(names):
                engine.world.streams[stream].add(lambda: cls[1].add_(amount))

        original_start, original_run = cuda_stand_in.Engine._start, cuda_stand_in.Engine.run
        monkeypatch.setattr(cuda_stand_in.Engine, "_start", start)
        monkeypatch.setattr(cuda_stand_in.Engine, "run", run)
        return excluded

    return make


def used(network: YoloNAS, **options: Any) -> NAS:
    detector = NAS(network)
    detector.predict(PICTURE, device=0, imgsz=64, verbose=False, **options)
    return detector


def test_right_kernels_are_used_and_checked_once(network: YoloNAS, world: World, wrong: Any, tmp_path: Path) -> None:
    excluded = wrong()
    used(network)
    assert excluded == [[]]
    kept = json.loads((tmp_path / "yolonas" / "cuda_checks.json").read_text())
    assert list(kept.values()) == [[]]
    assert "Stand-in, sm_90" in next(iter(kept))
    assert "driver for CUDA 13.0, " in next(iter(kept))
    assert next(iter(kept)).endswith("float32")
    used(network)
    assert excluded == [[]]
    used(network, quantize="fp16")
    assert excluded == [[], []]


@pytest.mark.parametrize("name", ["w128x128", "w128x128 2"])
def test_a_wrong_variant_is_left_out_now_and_later(
    network: YoloNAS, world: World, wrong: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    excluded = wrong(name)
    used(network)
    assert excluded == [["w128x128"], ["w128x128"]]
    assert (
        "Stand-in (sm_90), float32: kernels that fail or compute something else than the CPU are left out: w128x128"
        in caplog.text
    )
    used(network)
    assert excluded[2:] == [["w128x128"]]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([PLAIN], "the outputs of the plain kernels differ from the CPU's by"),
        ([f"{PLAIN} 2"], "the outputs of the plain kernels, in parts, differ"),
        (["graph"], "the outputs of all steps together, not one by one, differ"),
    ],
)
def test_wrong_results_are_not_used(
    network: YoloNAS, world: World, wrong: Any, names: list[str], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong(*names)
    with pytest.raises(
        UnprovenError, match=f"engine: on Stand-in .sm_90., float32 {text}.*use engine='torch' or device="
    ):
        used(network, engine="native")
    assert "differ" not in caplog.text
    wrong(*names, amount=torch.nan)
    with pytest.raises(UnprovenError, match=r"by inf of the largest one, 0\.0001 are allowed"):
        used(network, engine="native")


def test_torch_runs_what_is_wrong(
    network: YoloNAS, world: World, wrong: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(PLAIN)
    made = []
    monkeypatch.setattr("yolonas.engines.Engines._of_torch", lambda *arguments, **_: made.append(arguments[2]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        used(network)
    assert made == [torch.device("cuda:0")]
    assert "engine 'torch' runs the network on cuda:0, not 'native': engine: on Stand-in" in caplog.text


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_cache_is_written_again(
    network: YoloNAS, world: World, wrong: Any, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "yolonas" / "cuda_checks.json"
    path.parent.mkdir()
    path.write_bytes(content)
    excluded = wrong()
    used(network)
    assert excluded == [[]]
    assert list(json.loads(path.read_text()).values()) == [[]]


def test_it_can_be_left_out(network: YoloNAS, world: World, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    excluded = wrong(PLAIN)
    monkeypatch.setenv("YOLONAS_CUDA_CHECK", "0")
    used(network)
    assert excluded == []


# --- errors in this process ---


def test_a_variant_that_cuda_refuses_is_left_out(network: YoloNAS, world: World, wrong: Any) -> None:
    excluded = wrong("w128x128 2", error=RuntimeError("conv2d: CUDA error: invalid argument"))
    used(network, engine="native")
    assert excluded == [["w128x128"], ["w128x128"]]


@pytest.mark.parametrize("name", [PLAIN, f"{PLAIN} 2", "graph"])
def test_what_cannot_be_left_out_and_fails_is_not_used(network: YoloNAS, world: World, wrong: Any, name: str) -> None:
    wrong(name, error=RuntimeError("conv2d: CUDA error: an illegal memory access was encountered"))
    text = "engine: on Stand-in .* cannot be had: conv2d: CUDA error: an illegal .*; use engine='torch' or device='cpu'"
    with pytest.raises(UnprovenError, match=text):
        used(network, engine="native")


def test_short_memory_is_no_fault_of_a_kernel(network: YoloNAS, world: World, wrong: Any) -> None:
    excluded = wrong(VARIANTS[1], error=MemoryError("engine: needs 1 GiB"))
    with pytest.raises(MemoryError, match="needs 1 GiB"):
        used(network)
    assert excluded == []


@pytest.mark.parametrize(
    ("text", "kind"), [("CUDA error: out of memory", MemoryError), ("CUDA error: misaligned address", RuntimeError)]
)
def test_a_failed_kernel_is_not_taken_for_short_memory(
    text: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked of a device next says that a kernel has failed."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(text)

    cuda = cuda_memory.Cuda(torch.device("cuda:0"))
    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(kind, match=text):
        cuda.pinned(8)


# --- in another process ---

TELLING = """
import json, os, sys, time

EXCLUDED = json.loads(sys.argv[1])

def tell(**message):
    print(json.dumps(message), flush=True)

def trying(name, variant=None):
    tell(trying="the outputs of " + name, variant=variant)

trying("the plain kernels")
"""


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Puts a script in the place of the process that compares. Returns what each such process is told to leave out."""

    def use(script: str, *, start: str = TELLING) -> list[list[str]]:
        told: list[list[str]] = []

        def command(engine: CudaEngine, network: Path, excluded: list[str]) -> list[str]:
            assert network.stat().st_size > 1000
            told.append(list(excluded))
            return [sys.executable, "-S", "-c", start + script, json.dumps(excluded)]

        monkeypatch.setattr(cuda_check, "_command", command)
        return told

    return use


def kept_in(folder: Path) -> list[list[str]]:
    path = folder / "yolonas" / "cuda_checks.json"
    return list(json.loads(path.read_text()).values()) if path.exists() else []


def test_what_another_process_finds_is_left_out(
    network: YoloNAS, world: World, wrong: Any, child: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    excluded = wrong(PLAIN)  # here nothing is tried
    told = child("trying('x', 'w128x128'); tell(wrong='w128x128'); trying('all'); tell(done=True); time.sleep(60)")
    start = time.monotonic()
    used(network)
    used(network)
    assert time.monotonic() - start < 30
    assert told == [[]]
    assert excluded == [["w128x128"], ["w128x128"]]
    assert kept_in(tmp_path) == [["w128x128"]]
    assert "float32: kernels that fail or compute something else than the CPU are left out: w128x128" in caplog.text


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        ("print('terminate called', file=sys.stderr, flush=True); os.abort()", "signal 6, Aborted: terminate called"),
        ("raise ValueError('strange')", "its process ended with code 1: ValueError: strange"),
        ("tell(failed='conv2d: CUDA error: misaligned address'); time.sleep(60)", "conv2d: CUDA error: misaligned"),
        ("time.sleep(60)", "nothing has come within 2 s"),
        ("os.close(1); os.close(2); time.sleep(60)", "its process"),
    ],
)
def test_a_variant_that_ends_the_process_is_left_out(
    network: YoloNAS,
    world: World,
    wrong: Any,
    child: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    end: str,
    cause: str,
) -> None:
    monkeypatch.setattr(cuda_check, "SECONDS", 2.0)
    monkeypatch.setattr(cuda_check, "LAST_SECONDS", 1.0)
    excluded = wrong(PLAIN)
    script = f"""
if "64x32k128" not in EXCLUDED:
    trying("the kernels 64x32k128", "64x32k128")
    tell(wrong="64x32k128")
if "w128x128" not in EXCLUDED:
    trying("the kernels w128x128", "w128x128")
    {end}
trying("all"); tell(done=True)
"""
    told = child(script)
    used(network)
    assert told == [[], ["64x32k128", "w128x128"]]
    assert excluded == [["64x32k128", "w128x128"]]
    assert kept_in(tmp_path) == [["64x32k128", "w128x128"]]
    assert "the outputs of the kernels w128x128 cannot be had (" in caplog.text
    assert cause in caplog.text


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("os.abort()", "the outputs of the plain kernels cannot be had: its process ended with signal 6"),
        ("time.sleep(60)", "the outputs of the plain kernels cannot be had: nothing has come within 2 s"),
        ("trying('all'); tell(failed='CUDA error: x')", "the outputs of all cannot be had: CUDA error: x"),
        ("tell(unproven='engine: on a GPU they differ; use engine=' + repr('torch'))", "engine: on a GPU they differ"),
        # As many variants fail as there are.
        ("trying('a', str(len(EXCLUDED))); os.abort()", "the outputs of a cannot be had: .*signal 6"),
        # After a failure nothing is tried in this process.
        (
            "trying('a', 'a'); tell(failed='sticky')",
            "the outputs of a cannot be had: sticky; then: .*the device is lost",
        ),
    ],
)
def test_failures_that_end_the_engine(
    network: YoloNAS, world: World, wrong: Any, child: Any, monkeypatch: pytest.MonkeyPatch, script: str, text: str
) -> None:
    if "sleep" in script:
        monkeypatch.setattr(cuda_check, "START_SECONDS", 2.0)
    excluded = wrong()
    lost = "import json, sys\nif 'a' in json.loads(sys.argv[1]): sys.exit('the device is lost')\n"
    told = child(script, start=lost + TELLING)
    with pytest.raises(UnprovenError, match=f"{text}.*; use engine='torch'"):
        used(network, engine="native")
    assert excluded == []
    assert len(told) == (8 if "EXCLUDED" in script else 2 if "sticky" in script else 1)


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("import sys; sys.exit('no such device')", "its process ended with code 1: no such device"),
        ("import os; os.abort()", "signal 6"),
        ("import time; time.sleep(60)", "nothing has come within 2 s"),
        (
            "import os\nfor text in (b'', b'a warning', b'[1]', b'5', b'null', b'{', b'{}', b'\\xff', b'[' * 9999):"
            "\n    os.write(1, text + b'\\n')",
            "its process ended with code 0",
        ),
        (TELLING + "tell(no_room=True)", "no room for the network twice"),
        (TELLING + "trying('a', 'a'); os.kill(os.getpid(), 9)", "the process for it was ended by signal 9"),
    ],
)
def test_without_another_process_it_is_done_here(
    network: YoloNAS,
    world: World,
    wrong: Any,
    child: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: str,
    cause: str,
) -> None:
    if "sleep" in script:
        monkeypatch.setattr(cuda_check, "START_SECONDS", 2.0)
    excluded, told = wrong("w128x128"), child(script, start="")
    with caplog.at_level(logging.INFO, "yolonas"):
        used(network)
    assert told == [[]]
    assert excluded == [["w128x128"], ["w128x128"]]
    assert "the GPU's kernels are checked in this process: " in caplog.text
    assert cause in caplog.text


@pytest.mark.parametrize(
    ("executable", "frozen"), [("", False), (None, False), ("/usr/bin/uwsgi", False), (sys.executable, True)]
)
def test_programs_with_python_inside_are_not_started(
    network: YoloNAS, world: World, monkeypatch: pytest.MonkeyPatch, executable: str | None, frozen: bool
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    engine = CudaEngine.of_module(network, torch.device("cuda:0"))
    with pytest.raises(cuda_check._NoChildError, match=r"there is no Python to start, sys\.executable is "):
        COMMAND(engine, Path("network"), [])


def test_an_interrupt_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", "import time; print(5, flush=True); time.sleep(60)"]
    started = cuda_check._started(command, tmp_path / "errors")
    process, lines = started.__enter__()
    assert lines.get(timeout=30) == b"5\n"
    assert not started.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert process.returncode == -9


def test_the_process_ends_with_its_parent() -> None:
    program = "import time; from yolonas import cuda_comparison as it; import threading; "
    program += "threading.Thread(target=it._end_with_parent, daemon=True).start(); print(5, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"5\n"
        process.stdin.close()
        assert process.wait(30) == 1


STAND_IN = """
import importlib.util, json, os, sys
sys.path[:] = {path!r}
import cuda_stand_in, pytest
from cuda_stand_in import Emulated
from yolonas import cuda_comparison
from yolonas.cuda_check import prove

spec = importlib.util.spec_from_file_location("_cuda", {library!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
cuda_stand_in.install(pytest.MonkeyPatch(), module)

def set_choices(engine, *arguments):
    engine.native.set_choices(*arguments)
    if any(choice[0] == {crashing!r} for choice in arguments[-1]):
        os.abort()

def alternatives(engine, *arguments):
    steps = engine.native.alternatives(*arguments)
    kept = [[choice for choice in step if choice[0] in {kept!r}] for step in steps]
    return [few or step for few, step in zip(kept, steps)]

Emulated.set_choices, Emulated.alternatives = set_choices, alternatives
print("printed by others", flush=True)
given = json.loads(sys.argv[1])
print(given, file=open({log!r}, "a"))
cuda_comparison.main(**given)
"""


@pytest.mark.slow
def test_the_program_in_the_emulator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All variants are right there; one is made to end the process. It is slow, and tries few."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "native")
    from emulated_cuda import build

    module, crashing, log = build(tmp_path), "32x32k128", tmp_path / "log"
    kept = {PLAIN, crashing, "w64x64"}
    cuda_stand_in.install(monkeypatch, module)
    monkeypatch.delenv("YOLONAS_CUDA_CHECK")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(cuda_check, "compare", None)  # not here
    monkeypatch.setattr(cuda_check, "SECONDS", 600.0)
    monkeypatch.setattr(cuda_check, "START_SECONDS", 600.0)
    program = STAND_IN.format(path=sys.path, library=module.__file__, crashing=crashing, kept=kept, log=str(log))

    def command(*arguments: Any) -> list[str]:
        python, option, _, given = COMMAND(*arguments)
        return [python, option, program, given]

    monkeypatch.setattr(cuda_check, "_command", command)
    model = narrow("s", width=sixteens)
    engine = CudaEngine.of_module(model, torch.device("cuda:0"), half=True)
    prove(engine, lambda: native_of_graph(graph_of_module(model)))
    assert kept_in(tmp_path) == [[crashing]]
    assert (
        f"the outputs of the kernels {crashing} cannot be had (its process ended with signal 6, Aborted" in caplog.text
    )
    first, second = map(ast.literal_eval, log.read_text().splitlines())
    assert first["excluded"] == []
    assert second["excluded"] == [crashing]
    steps = engine.native.alternatives(96, 64, 2, 1)
    assert crashing not in {choice[0] for step in steps for choice in step}


@pytest.mark.cuda
@pytest.mark.parametrize("half", [False, True])
def test_kernels_are_right_on_a_device(
    network: YoloNAS, half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if _native.cuda() is None or not torch.cuda.is_available():
        pytest.skip("no CUDA device, or a build without yolonas._cuda")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu, compared = native_of_graph(graph_of_module(network)), []
    monkeypatch.setattr(cuda_check, "compare", lambda *arguments: compared.append(compare(*arguments)))
    engine = CudaEngine.of_module(network, torch.device("cuda:0"), half=half)
    prove(engine, lambda: cpu)
    assert not caplog.text
    assert not compared, "it was to be done in another process"
    assert compare(engine, cpu) == []
