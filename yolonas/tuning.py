"""How the native engine computes each layer, chosen by measuring where users ask for it, and kept for later runs.

The engine's own table is for all machines. A measurement finds what this one does best, for one input size and batch:
on a processor for one instruction set and number of threads, on a GPU for that GPU. How a layer is cut over threads
never changes a bit of the results; another algorithm does, as rounding does.

What was found lies in `tuning.json` in the user's cache folder, by machine and by what a layer looks like, so that it
serves every network with such layers. The file may be deleted at any time.
"""

from __future__ import annotations

import json
import logging
import operator
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .folders import cache_folder
from .runs import write_file

if TYPE_CHECKING:
    from .cuda_engine import CudaEngine
    from .engine import TorchEngine
    from .native_engine import NativeEngine

LOGGER = logging.getLogger("yolonas")

CUTS = 6  # of each algorithm that are measured
ROUNDS = 6  # in which every alternative runs once
PAIRS = 9  # of runs as the table has it and with what was found
SECONDS = 6.0  # after which no new round or pair begins, in each of both parts
HOPELESS = 1.3  # times the best: not measured again
WINS = 0.97  # of the table's time: what is slower than that may be noise
MOST = 0.75  # of the pairs must be won too
BUSY = 1.25  # the slowest run over the fastest
MAX_CACHE_BYTES = 1 << 24

Size = tuple[int, int]
Choice = tuple[str, int, int]  # algorithm; rows, pixels or tiles of a piece, blocks of channels of a piece; on a GPU
# algorithm, parts of the depth, 0


class _Step(NamedTuple):
    layer: str  # what it looks like; equal for steps that are equally fast
    choices: list[Choice]  # the table's first


def tune(engine: TorchEngine | NativeEngine | CudaEngine, size: Size, batch: int, *, other_sizes: bool = False) -> None:
    """Makes an engine run inputs of this size as measured, now or earlier on this machine; takes seconds at first.

    It stays so for the engine's life. Other sizes and batches, such as the last one of a data set, keep the table's
    choices.

    Args:
        size: (height, width), multiples of 32. batch: pictures per call.
        other_sizes: whether inputs of other sizes are to be expected; says so.
    """
    if engine.name != "native":
        LOGGER.warning("'tune' has no effect here: it is for engine='native'")
        return
    if other_sizes:
        LOGGER.warning("'tune' is for inputs of %dx%d; others run as usual (rect=False makes all alike)", *size)
    native, path = engine.native, cache_folder() / "tuning.json"
    steps = _steps(native, size, batch)
    machine = engine.machine()
    known, damaged = _fitting(_read(path).get(machine, {}), steps)
    if damaged:
        LOGGER.warning("tuning: %d entries of %s make no sense and are measured again", damaged, path)
    if any(step.layer not in known for step in steps):
        LOGGER.info("tuning for %dx%d on %s, kept in %s", *size, engine.place(), path)
        found = _measured(native, size, batch, steps, known)
        _keep(path, machine, found)
        known |= found
    native.set_choices(*size, batch, [known[step.layer] for step in steps])


# --- measuring ---


def _steps(native: Any, size: Size, batch: int) -> list[_Step]:
    return [
        _Step(_layer(step, choices), choices)
        for step, choices in zip(native.plan(*size, batch), native.alternatives(*size, batch, CUTS), strict=True)
    ]


def _layer(step: dict[str, Any], choices: Iterable[Choice]) -> str:
    """All that its time depends on. A layer that may not take every algorithm is another one."""
    shapes = [
        "x".join(map(str, step[end])) + f"({stride})"
        for end, stride in zip(("input", "output"), step["pixel_numbers"], strict=True)
    ]
    algorithms = "|".join(sorted({choice[0] for choice in choices}))
    kind = (
        f"{step['op']} {step['kernel']}/{step['stride']}"
        + " residual" * step["residual"]
        + f" {step['dtype']}" * (step["dtype"] != "float32")
    )
    return f"{kind} {step['pictures']}x{shapes[0]} {shapes[1]} {algorithms}"


def _measured(
    native: Any, size: Size, batch: int, steps: list[_Step], known: Mapping[str, Choice]
) -> dict[str, Choice]:
    """The best choice of each layer that is not known."""
    places: dict[str, list[int]] = {}
    for index, step in enumerate(steps):
        if step.layer not in known:
            places.setdefault(step.layer, []).append(index)
    table = [known.get(step.layer, step.choices[0]) for step in steps]
    best = _fastest(native, size, batch, steps, places, table)
    chosen = [best.get(step.layer, choice) for step, choice in zip(steps, table, strict=True)]

    # What came out first among many was lucky too: it must win again, run by run against the table's.
    spent: list[tuple[list[float], list[float]]] = []
    end = time.perf_counter() + SECONDS
    while chosen != table and len(spent) < PAIRS and (not spent or time.perf_counter() < end):
        first, second, third, fourth = native.time_choices(*size, batch, [table, chosen, chosen, table])
        spent += [(first, second), (fourth, third)]
    found = {layer: table[indices[0]] for layer, indices in places.items()}
    for layer, indices in places.items() if spent else ():
        old, new = ([sum(run[index] for index in indices) for run in side] for side in zip(*spent, strict=True))
        if _is_faster(new, old):
            found[layer] = best[layer]
    changed = [index for layer, indices in places.items() for index in indices if found[layer] != table[index]]
    LOGGER.info("tuning: %d of %d steps run in another way%s", len(changed), len(steps), _saving(spent, changed))
    return found


def _is_faster(new: list[float], old: list[float]) -> bool:
    """Whether the times of runs side by side say so: by their least ones, which other programs disturb the least, and
    by most of the pairs.
    """
    return min(new) < WINS * min(old) and sum(map(operator.lt, new, old)) >= MOST * len(new)


def _saving(spent: list[tuple[list[float], list[float]]], changed: list[int]) -> str:
    """What the changed steps save, in words, and how far the times can be relied on."""
    if not changed:
        return ""
    runs = [sum(old) for old, _ in spent]
    least = [[min(run[index] for run in side) for index in changed] for side in zip(*spent, strict=True)]
    busy = "; times vary much, another program is running" if max(runs) > BUSY * min(runs) else ""
    return f", which saves {sum(least[0]) - sum(least[1]):.2f} of {min(runs):.2f} ms{busy}"


def _fastest(
    native: Any, size: Size, batch: int, steps: list[_Step], places: Mapping[str, list[int]], table: list[Choice]
) -> dict[str, Choice]:
    """Per layer the choice with the least time. All layers vary in the same runs, each in an order of its own."""
    left = {layer: list(steps[indices[0]].choices) for layer, indices in places.items()}
    least: dict[tuple[int, Choice], float] = {}
    end = time.perf_counter() + SECONDS
    for turn in range(ROUNDS):
        runs = []
        for run in range(max(map(len, left.values()))):
            choices = list(table)
            for layer, indices in places.items():
                for index in indices:
                    choices[index] = left[layer][(run + turn * index) % len(left[layer])]
            runs.append(choices)
        for choices, times in zip(runs, native.time_choices(*size, batch, runs), strict=True):
            for index, one in enumerate(zip(choices, times, strict=True)):
                least[index, one[0]] = min(one[1], least.get((index, one[0]), one[1]))
        for layer, indices in places.items():
            spent = {choice: sum(least[index, choice] for index in indices) for choice in left[layer]}
            limit = HOPELESS * min(spent.values())
            left[layer] = [choice for choice in sorted(spent, key=spent.__getitem__) if spent[choice] <= limit]
        if time.perf_counter() > end:
            break
    return {layer: choices[0] for layer, choices in left.items()}


# --- keeping ---


def _read(path: Path, *, warn: bool = True) -> dict[str, dict[str, Any]]:
    """What was kept, by machine and layer; nothing is said yet about the values."""
    try:
        if not path.exists():
            return {}
        if not path.is_file() or path.stat().st_size > MAX_CACHE_BYTES:
            raise ValueError("it is no file of a possible size")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or not all(isinstance(layers, dict) for layers in content.values()):
            raise ValueError("it must hold an object of objects")
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        if warn:
            LOGGER.warning("tuning: %s cannot be used, its content is measured again: %s", path, error)
        return {}
    return content


def _fitting(kept: Mapping[str, Any], steps: Iterable[_Step]) -> tuple[dict[str, Choice], int]:
    """The entries that are choices of their layers, and how many are not."""
    known: dict[str, Choice] = {}
    wanted = {step.layer: step.choices for step in steps if step.layer in kept}
    for layer, choices in wanted.items():
        found = next((choice for choice in choices if list(choice) == kept[layer]), None)
        if found is not None:
            known[layer] = found
    return known, len(wanted) - len(known)


def _keep(path: Path, machine: str, found: Mapping[str, Choice]) -> None:
    """Adds to the file what was found; of two processes that do so at once, one may have to measure again."""
    content = _read(path, warn=False)
    content[machine] = {**content.get(machine, {}), **found}
    try:
        write_file(path, json.dumps(content, indent=1).encode())
    except OSError as error:
        LOGGER.warning("tuning: the result cannot be kept in %s: %s", path, error.strerror or error)
