"""What else is worth knowing of S in fp16 with one picture: what graphs and overlapping launches give, and whether
they change a bit of the results.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from gpu_aims import CASES
from gpu_timer import compare, in_turn

CASE = CASES["s_640_1"]
REPLAYS, REPLAYED_INPUTS = 1000, 8
GRAPH, OVERLAP = "YOLONAS_CUDA_GRAPH", "YOLONAS_CUDA_OVERLAP"


@contextlib.contextmanager
def off(*variables: str) -> Iterator[None]:
    """Engines that are made in the block do without these."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(dict.fromkeys(variables, "0"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


def without(variable: str, bench: Any) -> None:
    """Times as it is and without something, in turn."""
    inputs = bench.sides.Inputs(CASE)
    engines = {"as it is": new_engine(bench)}
    with off(variable):
        engines[f"{variable}=0"] = new_engine(bench)
    sides = {name: bench.sides.ours(engine, inputs) for name, engine in engines.items()}
    runs = {name: in_turn(side.run, inputs.count) for name, side in sides.items()}
    times = compare(runs, bench.clock, rounds=bench.arguments.rounds, before=bench.doing)
    found = {"times": times, "engine": {name: side.notes() for name, side in sides.items()}}
    bench.result["experiments"][f"{variable}=0"] = found
    shown = ", ".join(f"{name} {value['median_ms']:.3f} ms" for name, value in times.items())
    print(f"\nexperiment, {CASE.name}: {shown}", flush=True)


def replays(bench: Any) -> None:
    """Many replays of graphs, with changing inputs, against the bits of runs step by step."""
    torch = bench.torch
    inputs = bench.sides.Inputs(CASE)
    numbers = range(min(REPLAYED_INPUTS, inputs.count))
    engines = {"graph": new_engine(bench)}
    with off(OVERLAP):
        engines["graph, no overlap"] = new_engine(bench)
    with off(OVERLAP, GRAPH):
        steps = new_engine(bench)

    outputs: list[Any] = []
    for part in bench.sides.head_outputs(CASE, steps.num_classes, bench.sides.on_device):
        outputs += part
    cls, reg = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]

    def bits(engine: Any, number: int) -> list[Any]:
        engine.run(inputs.hwc[number], cls, reg, stream=bench.sides.stream())
        return [level.view(torch.int32) for level in outputs]

    expected = [[level.clone() for level in bits(steps, number)] for number in numbers]
    differ = {name: torch.zeros((), dtype=torch.int64, device=bench.sides.DEVICE) for name in engines}
    for turn in range(REPLAYS):
        for name, engine in engines.items():
            number = turn % len(numbers)
            wrong = [(one != right).any() for one, right in zip(bits(engine, number), expected[number], strict=True)]
            differ[name] += torch.stack(wrong).any()
    found: dict[str, Any] = {"replays": REPLAYS, "differ": {name: int(count) for name, count in differ.items()}}
    found["engine"] = {name: bench.sides.notes_of(engine, *(CASE.size,) * 2, 1) for name, engine in engines.items()}
    bad = {name: count for name, count in found["differ"].items() if count}
    found["wrong"] = ", ".join(f"{count} of {REPLAYS} runs differ, {name}" for name, count in bad.items())
    bench.result["experiments"]["replays"] = found
    print(f"\nexperiment, {CASE.name}, {REPLAYS} replays: {found['wrong'] or 'all have the bits of steps one by one'}")


def new_engine(bench: Any) -> Any:
    graph = bench.sides.graph_of(bench.model(CASE.variant))
    return bench.sides.native_engine(graph, half=True)


EXPERIMENTS: dict[str, Callable[[Any], None]] = {
    f"experiment: {OVERLAP}=0": lambda bench: without(OVERLAP, bench),
    f"experiment: {GRAPH}=0": lambda bench: without(GRAPH, bench),
    "experiment: replays": replays,
}
