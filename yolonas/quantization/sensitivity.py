"""What int8 costs: the noise that it adds to the outputs, by step, and which steps to keep in float for a wanted limit.

A step is one of `lowering.lower`. Nothing here knows how networks are run or scored.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ..lowering import Graph

Heads = tuple[Sequence[np.ndarray], Sequence[np.ndarray]]  # class and box logits per level, (N, h, w, channels)


class Sqnr(NamedTuple):
    """Signal-to-quantisation-noise ratios of the class and of the box logits, dB; infinite where nothing changed."""

    cls: float
    box: float

    @property
    def worst(self) -> float:
        return min(self)


@dataclass(frozen=True)
class StepLoss:
    """What quantising one step alone costs."""

    name: str
    sqnr: Sqnr
    map_drop: float | None = None  # points of mAP50-95; None without labels


class Reference:
    """The outputs of the float network on the first pictures of a run, at most `limit` of them."""

    def __init__(self, limit: int):
        self.limit = limit
        self.pictures: list[Heads] = []
        self.power: list[tuple[float, float]] = []  # of the class and of the box logits of each picture

    def record(self, heads: Heads) -> None:
        """Takes in the next batch."""
        for number in range(min(len(heads[0][0]), self.limit - len(self.pictures))):
            cls, reg = ([level[number] for level in levels] for levels in heads)
            self.pictures.append((cls, reg))
            self.power.append((sum(map(_power, cls)), sum(map(_power, reg))))


class Comparison:
    """The outputs of another network on the same pictures in the same order; batches may differ, later ones are free.

    Sums are those of single pictures in float64, so that the result does not depend on the batches.
    """

    def __init__(self, reference: Reference):
        self._reference = reference
        self._noise: list[tuple[float, float]] = []  # of the pictures so far, as `Reference.power`

    def add(self, heads: Heads) -> None:
        """Takes in the next batch."""
        begin = len(self._noise)
        for number, expected in enumerate(self._reference.pictures[begin : begin + len(heads[0][0])]):
            cls, box = (
                sum(_power(one - other[number]) for one, other in zip(levels, found, strict=True))
                for levels, found in zip(expected, heads, strict=True)
            )
            self._noise.append((cls, box))

    def sqnr(self) -> Sqnr:
        """Over all pictures so far."""
        signal, noise = (
            [math.fsum(kind) for kind in zip(*powers, strict=True)]
            for powers in (self._reference.power[: len(self._noise)], self._noise)
        )
        return Sqnr(*map(_decibels, signal, noise))


def quantised_steps(graph: Graph) -> list[str]:
    """Names of the steps that have scales for their weights, in the order of the run."""
    return [step["name"] for step in graph.steps if step.get("weight_scale") is not None]


def with_int8(graph: Graph, plain: Graph, names: Collection[str]) -> Graph:
    """The same graph with only these steps quantised; the others are those of the float network's graph."""
    pairs = zip(graph.steps, plain.steps, strict=True)
    return replace(graph, steps=[step if step["name"] in names else other for step, other in pairs])


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that a pattern fits: a name, the beginning of names up to a dot, or one with `*`, `?` and `[...]`.

    Raises:
        ValueError: a pattern fits none; the text has the nearest.
    """
    found = set()
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")}
        if not fitting:
            raise ValueError(f"float_layers: {pattern!r} must fit a layer of the network; {_nearest(pattern, names)}")
        found |= fitting
    return [name for name in names if name in found]


def ranked(losses: Sequence[StepLoss]) -> list[StepLoss]:
    """The most sensitive first: by the worse of the two ratios, which tells steps apart that mAP cannot."""
    return sorted(losses, key=lambda loss: (loss.sqnr.worst, loss.name))


def fewest_in_float(steps: int, meets: Callable[[int], bool]) -> int | None:
    """The lowest k for which `meets(k)`: that the limit is met with the k most sensitive of so many steps in float.

    Looks for it by doubling and bisection, and so takes the loss to go down as k goes up; at least one step stays in
    int8. None if even that one is too much.
    """
    low, high = -1, 0  # too few, the next try
    while not meets(high):
        if high == steps - 1:
            return None
        low, high = high, min(max(1, 2 * high), steps - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _power(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def _nearest(pattern: str, names: Sequence[str]) -> str:
    beginnings = dict.fromkeys(name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1))
    close = difflib.get_close_matches(pattern, list(beginnings), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"they are called like {names[0]!r}"
