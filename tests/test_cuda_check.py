"""The check of the CUDA kernels at their first use: on a stand-in whose variants are wrong at will."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda_stand_in
import numpy as np
import pytest
import torch
from cuda_stand_in import World
from quantized_networks import narrow

from yolonas import NAS, _native
from yolonas.cuda_check import PLAIN, prove
from yolonas.cuda_engine import CudaEngine
from yolonas.errors import UnprovenError
from yolonas.native_engine import graph_of_module, native_of_graph
from yolonas.nn import YoloNAS

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
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
    without choices. Returns what is excluded, as it is.
    """

    def make(*names: str, amount: float = 1.0) -> list[list[str]]:
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
        "Stand-in (sm_90), float32: kernels that compute something else than the CPU are left out: w128x128"
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


@pytest.mark.cuda
@pytest.mark.parametrize("half", [False, True])
def test_kernels_are_right_on_a_device(
    network: YoloNAS, half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if _native.cuda() is None or not torch.cuda.is_available():
        pytest.skip("no CUDA device, or a build without yolonas._cuda")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = CudaEngine.of_module(network, torch.device("cuda:0"), half=half)
    prove(engine, lambda: native_of_graph(graph_of_module(network)))
    assert not caplog.text
