"""What is aimed at on a GPU, and what follows from times: ratios, shares of the measured ceilings, floors of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from network_run import compared

FP16, FP32, INT8 = "yolonas fp16", "yolonas fp32", "yolonas int8"
DETECT = "yolonas fp16, 1080p to boxes"
EAGER, GRAPH, COMPILED = "torch fp16, eager", "torch fp16, CUDA graph", "torch.compile fp16, max-autotune"
GRAPH_FP32 = "torch fp32, CUDA graph"
PEERS = (EAGER, GRAPH, COMPILED)  # of our fp16

OVER_PEER, MILLISECONDS = "time over the best peer", "milliseconds"
RATE, SHARE = "images/s over the best peer", "share of the matrix ceiling"
OVER_FP16, OVER_NETWORK = "int8 time over our fp16", "1080p to boxes over the network"
AIM_OVER_PEER, AIM_RATE, AIM_SHARE, AIM_OVER_FP16, AIM_OVER_NETWORK = 0.50, 1.3, 0.45, 0.75, 1.10
AIM_MS = {"s": 0.45, "m": 0.75, "l": 1.0}
LEAST_SQNR = 15.0  # dB of int8 against float32: below it a result is nonsense
NOT_FINITE, NO_NOISE = 1e30, 999.0  # figures that JSON can hold
TOLERANCE = {FP32: 1e-4, FP16: 6e-3}  # of the largest value of an output


@dataclass(frozen=True)
class GpuCase:
    """A network and how many pictures of which size it gets."""

    variant: str
    batch: int = 1
    size: int = 640

    @property
    def name(self) -> str:
        return f"{self.variant.upper()} at {self.size}, batch {self.batch}"

    @property
    def single(self) -> bool:
        return self.batch == 1

    @property
    def key(self) -> str:
        return f"{self.variant}_{self.size}_{self.batch}"


CASES = {case.key: case for case in (*map(GpuCase, "sml"), GpuCase("m", 32), GpuCase("s", 32))}


def ratios(case: GpuCase, row: Mapping[str, Any], ceilings: Mapping[str, float]) -> list[dict[str, Any]]:
    """Our figures beside what was to be reached. A side with wrong results has reached nothing, and helps no other.

    A line without its aim's figure has the ratio None; one that torch.compile is not in says so: `without`.
    """
    times = {side: value["median_ms"] for side, value in row.get("times", {}).items()}
    wrong = row.get("wrong", {})
    found = []

    def add(what: str, side: str, peer: str, value: float | None, aim: float | None, *, at_least: bool = False) -> None:
        if value is None and aim is None:
            return
        line = compared(case.key, what, peer, value or 0.0, aim, at_least=at_least)
        if value is None:
            line |= {"ratio": None, "met": None}
        elif aim is not None and (side in wrong or peer in wrong):
            line["met"] = False
        if value is not None and what in (OVER_PEER, RATE) and COMPILED not in peers and case.single:
            line["without"] = COMPILED
        found.append(line | {"side": side})

    def over(side: str, peer: str) -> float | None:
        return times[side] / times[peer] if side in times and peer in times else None

    peers = {side: times[side] for side in PEERS if side in times and side not in wrong}
    best = min(peers, key=peers.__getitem__, default="")
    goal = case.variant == "m"
    if case.single:
        add(OVER_PEER, FP16, best, over(FP16, best), AIM_OVER_PEER)
        add(MILLISECONDS, FP16, "", times.get(FP16), AIM_MS[case.variant])
    else:
        add(RATE, FP16, best, over(best, FP16), AIM_RATE if goal else None, at_least=True)
        ceiling = ceilings.get("fp16_tflops")
        share = row["gflop"] / times[FP16] / ceiling if FP16 in times and ceiling else None
        add(SHARE, FP16, "", share, AIM_SHARE if goal else None, at_least=True)
    is_first = case.variant == "s" and case.single
    add(OVER_FP16, INT8, FP16, over(INT8, FP16), AIM_OVER_FP16 if is_first else None)
    add(OVER_NETWORK, DETECT, FP16, over(DETECT, FP16), AIM_OVER_NETWORK if is_first else None)
    return found


def reached(line: Mapping[str, Any]) -> str:
    """The verdict on an aim, in words."""
    without = f" (without {line['without']})" if "without" in line else ""
    if line["aim"] is None:
        return without.strip()
    verdict = "NOT MEASURED" if line["ratio"] is None else "reached" if line["met"] else "NOT REACHED"
    return f"aim {'at least' if line['at_least'] else 'at most'} {line['aim']:.2f}: {verdict}{without}"


BYTES = {"float16": 2, "float32": 4, "int8": 1}
RATES = {"float16": "fp16_tflops", "float32": "fp32_tflops", "int8": "int8_tops"}


def flop(step: Mapping[str, Any]) -> float:
    """Multiplications and additions of a step of a plan for one picture, as a direct convolution has them."""
    (_, _, inputs), (height, width, outputs) = step["input"], step["output"]
    taps = {"conv": step["kernel"] ** 2, "upsample": 1}.get(step["op"], 0)
    return 2.0 * height * width * outputs * inputs * taps


def floors(steps: list[dict[str, Any]], ceilings: Mapping[str, float], batch: int) -> list[dict[str, Any]]:
    """A row per step of a plan with its time: what it took, and the least that the measured ceilings allow.

    `floor_ms` is the larger of the operations over the matrix ceiling of the step's type and of the bytes (input,
    residual, weights and output once each) over the bandwidth of a copy. What still lies in the L2 cache comes faster
    than the bandwidth says, so a step may take less than its floor.
    """
    rows = []
    for step in steps:
        pixels = [step[end][0] * step[end][1] * step[end][2] * batch for end in ("input", "output")]
        size = BYTES.get(step["dtype"], 4)
        moved = size * (sum(pixels) + (pixels[1] if step.get("residual") else 0)) + step.get("weight_bytes", 0)
        rate, work = ceilings.get(RATES.get(step["dtype"], "")), flop(step) * batch
        arithmetic = work / rate * 1e-9 if rate else 0.0
        memory = moved / ceilings["copy_gbs"] * 1e-6 if ceilings.get("copy_gbs") else 0.0
        floor = max(arithmetic, memory)
        rows.append(
            {
                **{
                    name: step[name]
                    for name in ("name", "op", "algorithm", "kernel", "stride", "dtype")
                    if name in step
                },
                **{name: step[name] for name in ("splits", "stream", "overlap", "tuned") if name in step},
                **{side: "x".join(map(str, step[side])) for side in ("input", "output")},
                **{"ms": round(step["ms"], 5), "floor_ms": round(floor, 5)},
                "bound": "arithmetic" if arithmetic > memory else "bytes",
                "tflops": round(work / step["ms"] * 1e-9, 1) if work and step["ms"] else None,
            }
        )
    return rows


def slowest(rows: list[dict[str, Any]], count: int = 12) -> list[dict[str, Any]]:
    """The steps that are furthest above their floors."""
    return sorted(rows, key=lambda row: row["floor_ms"] - row["ms"])[:count]


def difference(ours: list[Any], right: list[Any]) -> float:
    """The largest difference of any output relative to its largest value; `NOT_FINITE` without one."""
    import numpy as np

    worst = 0.0
    for mine, theirs in zip(ours, right, strict=True):
        mine, theirs = mine.astype(np.float64), theirs.astype(np.float64)
        if mine.shape != theirs.shape or not np.isfinite(mine).all():
            return NOT_FINITE
        worst = max(worst, float(np.abs(mine - theirs).max() / np.abs(theirs).max()))
    return worst


def sqnr_db(ours: list[Any], right: list[Any]) -> float:
    """The smallest signal-to-noise ratio of the outputs."""
    import numpy as np

    ratios = []
    for mine, theirs in zip(ours, right, strict=True):
        noise = float(((mine.astype(np.float64) - theirs) ** 2).sum())
        signal = float((theirs.astype(np.float64) ** 2).sum())
        ratios.append(10 * np.log10(signal / noise) if noise else NO_NOISE)
    return float(min(ratios))


def matched(ours: Any, right: Any, *, pixels: float, score: float) -> float:
    """The share of the boxes (n, 6) of either side that the other has too, of the same class, each side counted."""
    import numpy as np

    if not len(ours) and not len(right):
        return 1.0
    apart = np.abs(ours[:, None, :4] - right[None, :, :4]).max(axis=2, initial=0.0)
    same = (apart <= pixels) & (np.abs(ours[:, None, 4] - right[None, :, 4]) <= score)
    same &= ours[:, None, 5] == right[None, :, 5]
    return float((same.any(axis=0).sum() + same.any(axis=1).sum()) / (len(ours) + len(right)))
