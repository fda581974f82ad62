"""One case of the benchmark on a GPU: its sides are judged, timed in turn, judged again, and printed."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import gpu_aims as aims
import numpy as np
from gpu_aims import GpuCase
from gpu_process import DeadError, Doing
from gpu_timer import Clock, compare, in_turn

if TYPE_CHECKING:
    from gpu_sides import Side

# Inputs by number; the last is the one that results are compared with. An engine runs step by step the first time and
# makes its graph the second time; the input before the last differs, so that nothing right is left over from it.
FIRST, AGAIN = (1, 1, 0, 1, 0), (1, 0)

# Says why a side's results are wrong, or "", and what to note about them.
Judge = Callable[[str, list[np.ndarray]], tuple[str, dict[str, float]]]


def first_line(error: BaseException) -> str:
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0]


def run_case(
    case: GpuCase,
    makers: Mapping[str, Callable[[], Side]],
    judge: Judge,
    clock: Clock,
    *,
    inputs: Mapping[str, int],
    rounds: int,
    apart: tuple[str, ...] = (),
    lost: Mapping[str, str] | None = None,
    doing: Doing | None = None,
) -> dict[str, Any]:
    """Times of the sides that run here, in turn, and what is wrong with the others.

    Args:
        inputs: how many inputs each side has. apart: sides that are also timed call by call with empty caches.
        lost: sides that are left out, and why. doing: gets the name of the side that runs.

    Raises:
        DeadError: a side, the last that `doing` got, has made the device fail before anything was timed.
    """
    doing = doing or Doing()
    row: dict[str, Any] = {"case": case.name}
    row |= {name: {} for name in ("about", "missing", "wrong", "found", "apart_ms", "times", "engine")}
    sides: dict[str, Side] = {}

    def leave_out(name: str, error: Exception) -> None:
        traceback.print_exc()
        row["missing"][name] = first_line(error)
        if not clock.works():
            raise DeadError(first_line(error)) from error

    for name, make in makers.items():
        if lost and name in lost:
            row["missing"][name] = lost[name]
            continue
        doing(name)
        try:
            side = make()
            text, row["found"][name] = judge(name, outputs_after(side, FIRST))
        except Exception as error:
            leave_out(name, error)
            continue
        if text:
            row["wrong"][name] = text
        row["about"][name] = side.about
        sides[name] = side

    runs = {name: in_turn(side.run, inputs[name]) for name, side in sides.items()}
    while sides and not row["times"]:
        try:
            row["times"] = compare(runs, clock, rounds=rounds, before=doing)
        except Exception as error:
            leave_out(doing.name, error)
            del sides[doing.name], runs[doing.name]
    for name, side in sides.items():
        doing(name)
        try:
            if name in apart:
                row["apart_ms"][name] = float(np.median(clock.measure_apart(runs[name], 50)))
            text, _ = judge(name, outputs_after(side, AGAIN))
            row["engine"] |= {name: side.notes()} if side.notes else {}
        except Exception as error:  # what was timed stays
            traceback.print_exc()
            text = first_line(error)
        if text:
            row["wrong"].setdefault(name, f"after the timing: {text}")
    return row


def outputs_after(side: Side, numbers: tuple[int, ...]) -> list[np.ndarray]:
    """The results of the last of these runs."""
    for number in numbers:
        side.run(number)
    return side.read()


def judge_heads(
    name: str, outputs: list[np.ndarray], single: list[np.ndarray], integer: list[np.ndarray] | None
) -> Any:
    """A side's logits against the CPU engine's: float32, or int8 bit for bit."""
    noted = {"difference": aims.difference(outputs, single), "sqnr_db": aims.sqnr_db(outputs, single)}
    if name != aims.INT8:
        limit = aims.TOLERANCE[aims.FP32 if "fp32" in name else aims.FP16]
        fine = noted["difference"] <= limit
        return "" if fine else f"differs by {noted['difference']:.1e} of the largest value, at most {limit:.0e}", noted
    assert integer is not None
    exact = all(map(np.array_equal, outputs, integer))
    noted["equal_to_cpu"] = float(exact)
    if not exact:
        return f"not the bits of the CPU engine: differs by {aims.difference(outputs, integer):.1e}", noted
    return "" if noted["sqnr_db"] >= aims.LEAST_SQNR else f"{noted['sqnr_db']:.1f} dB", noted


def judge_boxes(found: np.ndarray, expected: np.ndarray) -> tuple[str, dict[str, float]]:
    share = aims.matched(found, expected, pixels=2.0, score=2e-2)
    noted = {"boxes": float(len(found)), "cpu_boxes": float(len(expected)), "matched": share}
    return "" if share >= 0.9 else f"only {share:.0%} of the boxes are those of the CPU engine", noted


# --- printing ---


def print_case(key: str, row: Mapping[str, Any], ceilings: Mapping[str, float]) -> None:
    print(f"\n{row['case']} ({key}): {row.get('gflop', 0.0):.1f} GFLOP as a direct convolution counts them")
    width = max(map(len, [*row["about"], *row["missing"]]), default=0)
    for side, times in row["times"].items():
        rate = row.get("gflop", 0.0) / times["median_ms"]
        ceiling = ceilings.get("int8_tops" if "int8" in side else "fp32_tflops" if "fp32" in side else "fp16_tflops")
        share = f" ({rate / ceiling:4.0%} of the ceiling)" if ceiling and "boxes" not in side else ""
        apart = f", apart {row['apart_ms'][side]:.3f}" if side in row["apart_ms"] else ""
        noted = ", ".join(f"{name} {value:.3g}" for name, value in row["found"][side].items())
        print(
            f"  {side:<{width}} {times['median_ms']:8.3f} ms ({times['min_ms']:.3f} to {times['max_ms']:.3f}{apart})"
            f" {rate:6.1f} TFLOP/s{share}   {noted}"
        )
    for side, notes in row["engine"].items():
        if notes["graphs"] == 0 or notes["capture_failure"]:
            print(f"  {side:<{width}} {notes['graphs']} graphs; failed capture: {notes['capture_failure'] or 'none'}")
    for side, reason in row["wrong"].items():
        print(f"  {side:<{width}} WRONG: {reason}")
    for side, reason in row["missing"].items():
        print(f"  {side:<{width}} not timed: {reason}")
    sys.stdout.flush()


def print_ratios(found: list[dict[str, Any]], title: str = "What was aimed at:") -> None:
    print(f"\n{title}" if title else "")
    for line in found:
        peer = f", {line['peer']}" if line["peer"] and line["peer"] not in line["what"] else ""
        value = "" if line["ratio"] is None else f" {line['ratio']:.3f}"
        print(f"  {line['case']:<9} {line['what']}{peer}:{value}   {aims.reached(line)}".rstrip(), flush=True)
