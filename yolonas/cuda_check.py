"""Lets the kernels of the CUDA engine prove themselves on a device before its first use there.

A GPU, driver or build that nobody has tried yet may compute something else. So when an engine is made on a device for
the first time, every variant of its convolutions runs the network on a small input, and the head outputs are compared
with those of the CPU engine. Variants that differ are left out from then on; if what is left differs too, the engine is
not used. What was found is kept in `cuda_checks.json` in the user's cache folder, which may be deleted at any time.
`YOLONAS_CUDA_CHECK=0` leaves the check out.
"""

from __future__ import annotations

import json
import logging
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native
from .config import REG_MAX, STRIDES
from .errors import UnprovenError
from .folders import cache_folder
from .runs import write_file

if TYPE_CHECKING:
    from .cuda_engine import CudaEngine

LOGGER = logging.getLogger("yolonas")

PLAIN = "64x64k128"  # the variant that all are measured by
SIZE = (96, 64)  # of the input: every step has more than one tile, and maps of odd sizes
BATCH = 2
CUTS = 16  # numbers of splits that are asked for, of each variant
MAX_CACHE_BYTES = 1 << 20

# Largest difference of a head output from the CPU's, as part of the largest output. float16 rounds every map to 11
# bits; int8 maps are equal bit for bit, and one number that is not would change the outputs by more. Where layers in
# float32 lie among them, a number next to a half may be rounded to its neighbour.
TOLERANCES = {"float32": 1e-4, "float16": 3e-2, "int8": 1e-5, "int8 among float32": 3e-2}


def prove(engine: CudaEngine, reference: Callable[[], Any]) -> None:
    """Checks an engine where its kind is new on this machine, and leaves the variants out that are wrong.

    Args:
        reference: makes a `_cpu.Engine` of the same network; called only if it is needed.

    Raises:
        UnprovenError: no choice of variants gives the CPU's results.
    """
    if os.environ.get("YOLONAS_CUDA_CHECK", "").strip() == "0":
        return
    path, key = cache_folder() / "cuda_checks.json", f"{engine.machine()}, {_build()}, {_kind(engine)}"
    excluded = _kept(path).get(key)
    if excluded is None:
        excluded = _check(engine, reference())
        _keep(path, key, excluded)
    if excluded:
        LOGGER.warning(
            "%s: kernels that compute something else than the CPU are left out: %s; please report this with the output "
            "of nvidia-smi",
            *(engine.describe(), ", ".join(excluded)),
        )
        engine.native.exclude(excluded)


def _check(engine: CudaEngine, cpu: Any) -> list[str]:
    """Names of the variants that are wrong."""
    x = np.random.default_rng(0).random((BATCH, *SIZE, 3), np.float32)
    wanted = _heads_of(cpu, x)
    native, place, limit = engine.native, (*SIZE, BATCH), TOLERANCES[_kind(engine)]
    steps = native.alternatives(*place, CUTS)
    plain = [_choice(step, PLAIN, min) or step[0] for step in steps]

    def error(choices: list[Any]) -> float:
        native.set_choices(*place, choices)
        return _difference(engine.heads(x), wanted)

    if (found := error(plain)) > limit:
        raise UnprovenError(_text(engine, "the outputs of the plain kernels", found, limit))
    wrong = []
    for name in sorted({choice[0] for step in steps for choice in step}):
        for pick in (min, max):
            choices = [_choice(step, name, pick) or usual for step, usual in zip(steps, plain, strict=True)]
            if choices == plain or (found := error(choices)) <= limit:
                continue
            if name == PLAIN:
                raise UnprovenError(_text(engine, "the outputs of the plain kernels, in parts,", found, limit))
            wrong.append(name)
            break
    native.exclude(wrong)  # and forgets the choices
    for _ in range(2):  # step by step, then as one graph
        if (found := _difference(engine.heads(x), wanted)) > limit:
            raise UnprovenError(_text(engine, "the outputs of all steps together, not one by one,", found, limit))
    return wrong


def _kind(engine: CudaEngine) -> str:
    kind, steps = engine.kind(), engine.native.plan(*SIZE, BATCH)
    mixed = any(step["op"] in ("conv", "upsample") and step["dtype"] != "int8" for step in steps)
    return "int8 among float32" if kind == "int8" and mixed else kind


def _text(engine: CudaEngine, what: str, found: float, limit: float) -> str:
    return (
        f"engine: on {engine.describe()} {what} differ from the CPU's by {found:.2g} of the largest one, {limit:g} are "
        "allowed; use engine='torch' or device='cpu', and please report this with the output of nvidia-smi"
    )


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


# --- keeping ---


def _build() -> str:
    """What tells two builds of the module apart."""
    try:
        status = Path(_native.cuda().__file__).stat()  # type: ignore[union-attr, arg-type]
    except (AttributeError, OSError, TypeError):
        return "built in memory"
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


def _kept(path: Path) -> dict[str, list[str]]:
    try:
        if path.stat().st_size > MAX_CACHE_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        key: names
        for key, names in content.items()
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }


def _keep(path: Path, key: str, excluded: list[str]) -> None:
    try:
        write_file(path, json.dumps({**_kept(path), key: excluded}, indent=1).encode())
    except OSError as error:
        LOGGER.warning("the check of the GPU's kernels cannot be kept in %s: %s", path, error.strerror or error)
