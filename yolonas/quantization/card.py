"""The card of a quantised network: what it was made from and with, and what it scores, for people and as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..runs import write_file
from .sensitivity import Sqnr, StepLoss

SHOWN_IN_FLOAT = 5  # names on the console; all of them are in the file


@dataclass(frozen=True)
class Scores:
    """What one network scores. mAP is None without labels, sqnr None for the float network."""

    map: float | None  # 0..1
    map50: float | None
    sqnr: Sqnr | None = None


@dataclass(frozen=True)
class Side:
    """The float or the int8 network."""

    scores: Scores
    ms: float  # of the network, for one picture
    bytes: int  # of the file


@dataclass(frozen=True)
class Trial:
    """Something that was tried: its scores, and whether it is in the result."""

    what: str
    scores: Scores
    float_layers: int
    kept: bool = False


@dataclass(kw_only=True)
class Card:
    """All that is known of a quantisation. `asked` has the options that shaped it."""

    yolonas: str
    model: str
    network: str
    file: str | None
    calibration: Mapping[str, Any]  # source, pictures, left_out, method
    evaluation: Mapping[str, Any]  # source, pictures, labels, protocol
    machine: Mapping[str, Any]  # kernels, threads; device if networks ran on a GPU
    asked: Mapping[str, Any]
    float32: Side
    int8: Side
    layers: int
    in_float: dict[str, str] = field(default_factory=dict)  # name -> why
    applied: dict[str, bool] = field(default_factory=dict)  # what was asked to be tried -> whether it is in the result
    trials: list[Trial] = field(default_factory=list)
    sensitivity: list[StepLoss] = field(default_factory=list)  # the most sensitive first

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes `to_dict` as JSON, replacing what was there."""
        path = Path(path)
        write_file(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())
        return path

    def to_dict(self) -> dict[str, Any]:
        """Plain values; infinite ratios become None."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    def lines(self) -> list[str]:
        """The table for the console."""
        left, right = self.float32, self.int8
        lines = [f"{'':<10}{'mAP50-95':>12}{'mAP50':>12}{'ms/image':>12}{'file':>12}"]
        lines += [_row("float32", left), _row("int8", right)]
        drops = [
            _points(100 * (new - old)) if old is not None and new is not None else "-"
            for old, new in (
                (left.scores.map, right.scores.map),
                (left.scores.map50, right.scores.map50),
            )
        ]
        ratios = [f"x {new / old:.2f}" for old, new in ((left.ms, right.ms), (left.bytes, right.bytes))]
        lines.append(f"{'':<10}" + "".join(f"{text:>12}" for text in (*drops, *ratios)))
        threads = self.machine["threads"]
        where = f"{self.machine['kernels']} kernels, {threads} thread{'s' * (threads != 1)}"
        if "device" in self.machine:
            where = f"{self.machine['device']} ({self.machine['kernels']})"
        lines.append(
            f"on {self.evaluation['pictures']:,} picture{'s' * (self.evaluation['pictures'] != 1)} of "
            f"{self.evaluation['source']}; {where}"
        )
        if left.scores.map is None:
            lines.append("no mAP: the pictures have no labels; give a data yaml to measure it")
        if right.scores.sqnr is not None:
            lines.append(f"noise of the outputs (SQNR): {decibels(right.scores.sqnr)}")
        lines.append(f"int8 layers: {self.layers - len(self.in_float)} of {self.layers}")
        lines += self._why_float()
        for what, is_kept in self.applied.items():
            lines.append(f"{what}: {'showed a gain, kept' if is_kept else 'showed no gain, left out'}")
        return lines

    def _why_float(self) -> list[str]:
        lines = []
        for why in dict.fromkeys(self.in_float.values()):
            names = [name for name, reason in self.in_float.items() if reason == why]
            more = f" and {len(names) - SHOWN_IN_FLOAT} more" * (len(names) > SHOWN_IN_FLOAT)
            lines.append(f"in float, {why}: {', '.join(names[:SHOWN_IN_FLOAT])}{more}")
        return lines


def trial_lines(trials: Sequence[Trial], float_map: float | None) -> list[str]:
    """A table of what was tried, from the fewest layers in float on, and what is in the result."""
    width = max([len("tried"), *(len(trial.what) for trial in trials)]) + 2
    with_map = float_map is not None
    head = f"{'mAP50-95':>12}{'mAP50':>12}{'change':>12}" if with_map else ""
    lines = [f"{'tried':<{width}}{head}{'SQNR cls':>12}{'SQNR box':>12}"]
    for trial in sorted(trials, key=lambda trial: trial.float_layers):
        scores, row = trial.scores, f"{trial.what:<{width}}"
        if with_map and scores.map is not None and scores.map50 is not None:
            row += f"{scores.map:>12.4f}{scores.map50:>12.4f}{_points(100 * (scores.map - float_map)):>12}"
        if scores.sqnr is not None:
            row += "".join(f"{_ratio(value):>12}" for value in scores.sqnr)
        lines.append(row + "  kept" * trial.kept)
    return lines


def sensitivity_lines(losses: Sequence[StepLoss], most: int = 10) -> list[str]:
    """A table of the most sensitive layers."""
    shown = losses[:most]
    width = max([len("layer"), *(len(loss.name) for loss in shown)]) + 2
    with_map = any(loss.map_drop is not None for loss in shown)
    lines = [f"{'layer':<{width}}{'SQNR cls':>12}{'SQNR box':>12}" + f"{'mAP50-95':>12}" * with_map]
    for loss in shown:
        row = f"{loss.name:<{width}}" + "".join(f"{_ratio(value):>12}" for value in loss.sqnr)
        lines.append(row + (f"{_points(-loss.map_drop):>12}" if loss.map_drop is not None else ""))
    if len(losses) > most:
        lines.append(f"... {len(losses) - most} more")
    return lines


def decibels(sqnr: Sqnr) -> str:
    """Both ratios in words."""
    return f"classes {_ratio(sqnr.cls)}, boxes {_ratio(sqnr.box)}"


def _row(name: str, side: Side) -> str:
    maps = [f"{value:.4f}" if value is not None else "-" for value in (side.scores.map, side.scores.map50)]
    return f"{name:<10}" + "".join(f"{text:>12}" for text in (*maps, f"{side.ms:.1f}", f"{side.bytes / 1e6:.1f} MB"))


def _points(value: float) -> str:
    return f"{value:+.2f} pts" if abs(value) >= 0.005 else "0.00 pts"


def _ratio(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "exact" if value > 0 else "lost"


def _plain(value: Any) -> Any:
    """The same as JSON has it: no infinities, no tuples."""
    if isinstance(value, Sqnr):
        return {"cls": _plain(value.cls), "box": _plain(value.box)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
