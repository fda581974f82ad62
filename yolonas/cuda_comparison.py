"""Compares all variants of the CUDA engine's kernels with the CPU engine: here, or as a program that `cuda_check` runs.

That program says on its standard output what it is about to try and what it has found, one JSON object a line. A kernel
that hangs, or that ends the program, is the one that was named last.
"""

from __future__ import annotations

import functools
import json
import operator
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native
from .config import REG_MAX, STRIDES
from .errors import UnprovenError

if TYPE_CHECKING:
    from .cuda_engine import CudaEngine

PLAIN = "64x64k128"  # the variant that all are measured by
SIZE = (96, 64)  # of the input: every step has more than one tile, and maps of odd sizes
BATCH = 2
CUTS = 16  # numbers of splits that are asked for, of each variant

# Largest difference of a head output from the CPU's, as part of the largest output. float16 rounds every map to 11
# bits; int8 maps are equal bit for bit, and one number that is not would change the outputs by more. Where layers in
# float32 lie among them, a number next to a half may be rounded to its neighbour.
TOLERANCES = {"float32": 1e-4, "float16": 3e-2, "int8": 1e-5, "int8 among float32": 3e-2}


def compare(
    engine: CudaEngine, cpu: Any, excluded: Sequence[str] = (), tell: Callable[..., None] = lambda **_: None
) -> list[str]:
    """Runs every variant and returns the names of those that are wrong or that CUDA fails to run.

    Args:
        cpu: a `_cpu.Engine` of the same network. excluded: variants that are not tried.
        tell: called before each run with `trying`, in words, and `variant`, its name or None for what nothing can do
            without; then with `failed`, the error, or with `wrong`, the name.

    Raises:
        UnprovenError: no choice of variants gives the CPU's results. MemoryError: there is no room for the runs.
    """
    native, place, limit = engine.native, (*SIZE, BATCH), TOLERANCES[kind_of(engine)]
    x = np.random.default_rng(0).random((BATCH, *SIZE, 3), np.float32)
    wanted = _heads_of(cpu, x)
    if excluded:
        native.exclude(list(excluded))
    steps = native.alternatives(*place, CUTS)
    plain = [_choice(step, PLAIN, min) or step[0] for step in steps]

    def is_wrong(what: str, variant: str | None, prepare: Callable[[], None]) -> bool:
        tell(trying=what, variant=variant)
        try:
            prepare()
            if (found := _difference(engine.heads(x), wanted)) <= limit:
                return False
            problem = f"differ from the CPU's by {found:.2g} of the largest one, {limit:g} are allowed"
        except RuntimeError as error:
            tell(failed=str(error))
            problem = f"cannot be had: {error}"
        if variant is None:
            raise unproven(engine, what, problem)
        tell(wrong=variant)
        return True

    is_wrong("the outputs of the plain kernels", None, functools.partial(native.set_choices, *place, plain))
    wrong = []
    for name in sorted({choice[0] for step in steps for choice in step}):
        what, variant = f"the outputs of the kernels {name}", name
        if name == PLAIN:
            what, variant = "the outputs of the plain kernels, in parts,", None
        for pick in (min, max):
            choices = [_choice(step, name, pick) or usual for step, usual in zip(steps, plain, strict=True)]
            if choices != plain and is_wrong(what, variant, functools.partial(native.set_choices, *place, choices)):
                wrong.append(name)
                break
    # Step by step, then as one graph. To exclude forgets the choices.
    for prepare in (lambda: native.exclude([*excluded, *wrong]), lambda: None):
        is_wrong("the outputs of all steps together, not one by one,", None, prepare)
    return wrong


def unproven(engine: CudaEngine, what: str, problem: str) -> UnprovenError:
    return UnprovenError(
        f"engine: on {engine.describe()} {what} {problem}; use engine='torch' or device='cpu', and please report this "
        "with the output of nvidia-smi"
    )


def kind_of(engine: CudaEngine) -> str:
    """What it computes with, as far as tolerances are for it."""
    kind, steps = engine.kind(), engine.native.plan(*SIZE, BATCH)
    mixed = any(step["op"] in ("conv", "upsample") and step["dtype"] != "int8" for step in steps)
    return "int8 among float32" if kind == "int8" and mixed else kind


def _choice(step: list[Any], name: str, pick: Any) -> Any:
    """The choice of a step by its variant with the fewest (min) or the most (max) splits; None if it has none such."""
    return pick((choice for choice in step if choice[0] == name), key=operator.itemgetter(1), default=None)


def _heads_of(cpu: Any, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    count, height, width, _ = x.shape
    cls, reg = (
        [np.empty((count, height // stride, width // stride, channels), np.float32) for stride in STRIDES]
        for channels in (cpu.num_classes, 4 * (REG_MAX + 1))
    )
    cpu.run(x, cls, reg)
    return cls, reg


def _difference(found: Any, wanted: Any) -> float:
    """The largest difference of an output, as part of the largest one of its map; infinite for one that is NaN."""
    parts = []
    for got, want in zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True):
        largest = float(np.abs(want).max()) or 1.0
        away = float(np.abs(got.astype(np.float64) - want).max())
        parts.append(away / largest if np.isfinite(away) else np.inf)
    return max(parts)


# --- the program ---


def main(network: str, device: int, half: bool, machine: str, excluded: Sequence[str]) -> None:
    """Compares in this process, whose standard input is a pipe that its parent holds open and never writes to.

    What it prints: see `compare`. At the end there is also `unproven`, the text of the error; `no_room`; or `done`.

    Args:
        network: a file with what `_cpu.Engine.serialize` gives. device: its number.
        machine: what `CudaEngine.machine` of the parent says; if it is another one here, nothing is tried.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, and no fault of a kernel
    threading.Thread(target=_end_with_parent, daemon=True).start()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nobody else writes there

    def tell(**message: Any) -> None:
        print(json.dumps(message), file=out, flush=True)
        if "failed" in message:
            os._exit(1)  # CUDA fails for the whole life of a process once a kernel has gone astray

    import torch

    from .cuda_engine import CudaEngine

    data = Path(network).read_bytes()
    cpu = _native.cpu().Engine.deserialize(data)
    try:
        engine = CudaEngine.of_serialized(data, cpu.num_classes, torch.device("cuda", device), half=half)
        if engine.machine() != machine:
            sys.exit(f"device {device} is another one there: {engine.machine()}")
        compare(engine, cpu, excluded, tell)
    except MemoryError:
        tell(no_room=True)
    except UnprovenError as error:
        tell(unproven=str(error))
    else:
        tell(done=True)


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)
