"""The network on a CPU against torch, torch.compile, ONNX Runtime, OpenVINO and ncnn: same weights, input, threads.

All sides must first give the same results. Then they take turns, each in a process of its own.

A side that is not installed is left out and named; all of them come with `python3 dev.py bench network`.

python bench/network.py [--save] [--rounds 9] [--isa avx2] [--cases s_640_1_2 ...] [--sides yolonas ncnn ...] [--reuse]
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from network_files import Case, program
from network_run import compared, in_words, measured, parser, prepare, print_ratios, print_row, save_run
from network_sides import FLOAT32

TOLERANCE = 1e-4  # of the largest value of an output
CASES = {
    case.key: case
    for case in (
        Case("s"),
        Case("m"),
        Case("l"),
        Case("s", size=320),
        Case("m", batch=8),
        Case("s", threads=1),
        Case("m", threads=1),
        Case("l", threads=1),
    )
}
# What to reach, by case: our figure over another's. Time and memory are to be smaller, images/s and speed-up larger.
BEST_TIME, OPENVINO_TIME = "time over the best peer", "time over OpenVINO"
OPENVINO_MEMORY, BEST_RATE = "peak memory over OpenVINO", "images/s over the best peer"
AIMS = {
    "s_640_1_2": {BEST_TIME: 0.70, OPENVINO_TIME: 0.66, OPENVINO_MEMORY: 0.7},
    "m_640_1_2": {BEST_TIME: 0.72, OPENVINO_TIME: 0.51},
    "l_640_1_2": {BEST_TIME: 0.75, OPENVINO_TIME: 0.50},
    "s_320_1_2": {BEST_TIME: 0.70},
    "m_640_8_2": {BEST_RATE: 1.4},
}
AIM_THREADS = 1.85
# Multiplications for a tile of 4x4 outputs, of which the direct form takes 144.
TILE_PRODUCTS = {"winograd43": 36, "winograd_s2": 81}
WORST = 10  # layers that are printed


def judge(outputs: list[np.ndarray], reference: list[np.ndarray]) -> tuple[dict[str, Any], str]:
    """The largest difference relative to the largest value of its output, and whether that is too much."""
    difference = max(
        float(np.abs(ours - right).max() / np.abs(right).max()) for ours, right in zip(outputs, reference, strict=True)
    )
    wrong = "" if difference <= TOLERANCE else f"relative difference {difference:.1e}"
    return {"difference": difference}, wrong


def ratios(key: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Our figures over the peers', beside what was to be reached."""
    times = {side: value["median_ms"] for side, value in row.get("times", {}).items()}
    peers = {side: value for side, value in times.items() if side != "yolonas"}
    if "yolonas" not in times or not peers:
        return []
    best, aims = min(peers, key=peers.__getitem__), AIMS.get(key, {})
    if CASES[key].batch > 1:
        return [compared(key, BEST_RATE, best, peers[best] / times["yolonas"], aims.get(BEST_RATE), at_least=True)]
    found = [compared(key, BEST_TIME, best, times["yolonas"] / peers[best], aims.get(BEST_TIME))]
    if "OpenVINO" in peers:
        ratio = times["yolonas"] / peers["OpenVINO"]
        found.append(compared(key, OPENVINO_TIME, "OpenVINO", ratio, aims.get(OPENVINO_TIME)))
        memory = row["peak_mb"]
        if memory["yolonas"]:
            ratio = memory["yolonas"] / memory["OpenVINO"]
            found.append(compared(key, OPENVINO_MEMORY, "OpenVINO", ratio, aims.get(OPENVINO_MEMORY)))
    return found


def speed_ups(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One thread's time over two threads', per side."""
    found = []
    for key, row in rows.items():
        alone = rows.get(key.removesuffix("_2") + "_1") if key.endswith("_2") else None
        for side, times in row.get("times", {}).items():
            if alone is not None and side in alone.get("times", {}):
                ratio = alone["times"][side]["median_ms"] / times["median_ms"]
                aim = AIM_THREADS if side == "yolonas" else None
                met = None if aim is None else ratio >= aim
                line = {"case": key, "side": side, "ratio": round(ratio, 3), "aim": aim, "at_least": True, "met": met}
                found.append(line)
    return found


def layer_table(steps: list[dict[str, Any]], peak: float | None) -> list[dict[str, Any]]:
    """A row per step of the plan of one picture.

    `gflops` counts what a direct convolution would multiply and add, `executed_gflops` what the algorithm does, whole
    tiles at the edges included, without its transforms; `share` is the latter over the peak. Pooling has none of them.
    """
    return [layer_row(step, peak) for step in steps]


def layer_row(step: dict[str, Any], peak: float | None) -> dict[str, Any]:
    height, width, _ = step["output"]
    executed = step["mflop"]
    if step["algorithm"] in TILE_PRODUCTS:
        tiles = -(-height // 4) * -(-width // 4)
        executed *= TILE_PRODUCTS[step["algorithm"]] / 144 * tiles * 16 / (height * width)
    counted = bool(step["mflop"] and step["ms"])
    rate = executed / step["ms"] if counted else None
    return {
        **{"name": step["name"], "op": step["op"], "algorithm": step["algorithm"]},
        **{side: "x".join(map(str, step[side])) for side in ("input", "output")},
        **{"kernel": step["kernel"], "stride": step["stride"], "ms": round(step["ms"], 4)},
        "gflops": round(step["mflop"] / step["ms"], 1) if counted else None,
        "executed_gflops": round(rate, 1) if rate else None,
        "share": round(rate / peak, 3) if rate and peak else None,
    }


def worst_layers(layers: list[dict[str, Any]]) -> list[str]:
    """Names of the layers with the smallest share of the peak, the smallest first; empty where no peak was measured."""
    counted = [layer for layer in layers if layer["share"] is not None]
    return [layer["name"] for layer in sorted(counted, key=lambda layer: layer["share"])[:WORST]]


def print_case(key: str, row: dict[str, Any], peak: float | None) -> None:
    def show(side: str) -> str:
        rate = row["gflop"] / row["times"][side]["median_ms"] * 1e3
        share = f", {rate / peak:4.0%} of peak" if peak else ""
        return f"{share}   difference {row['difference'][side]:.0e}"

    print_row(key, row, show)


def print_worst(key: str, row: dict[str, Any]) -> None:
    layers = {layer["name"]: layer for layer in row["layers"]}
    print(f"\n{key}: the layers with the smallest share of the peak")
    for layer in map(layers.__getitem__, row["worst_layers"]):
        print(
            f"  {layer['name']:<45} {layer['algorithm']:<12} {layer['ms']:7.3f} ms {layer['gflops']:6.0f} GFLOP/s as"
            f" direct, {layer['executed_gflops']:5.0f} executed, {layer['share']:.0%} of peak"
        )


def print_speeds(speeds: list[dict[str, Any]]) -> None:
    for line in speeds:
        print(f"  {line['case']:<10} {line['side']}, two threads over one: {line['ratio']:.2f} x{in_words(line)}")


def fma_peaks(folder: Path, isa: str) -> dict[int, float]:
    """GFLOP/s that one and two threads can reach, by measurement; empty where the program cannot be built."""
    isa = isa.removesuffix("vnni")
    path = program("fma_peak.cpp", folder, "-pthread") if isa in ("avx2", "avx512") else None
    if path is None:
        return {}
    return {threads: float(subprocess.check_output([path, isa, str(threads)])) for threads in (1, 2)}


def main() -> None:
    arguments = parser(__doc__, CASES, FLOAT32).parse_args()
    shim = prepare(arguments)
    from yolonas import _native

    isa = _native.build_info()["cpu_isa"]
    peaks = fma_peaks(arguments.folder, isa)
    rows: dict[str, dict[str, Any]] = {}
    found: list[dict[str, Any]] = []
    for key, row in measured(arguments, CASES, shim, judge, "yolonas"):
        rows[key] = row
        print_case(key, row, peaks.get(CASES[key].threads))
        found += ratios(key, row)
    # The larger of two: a share of a peak that a disturbance made small would flatter.
    again = fma_peaks(arguments.folder, isa)
    peaks = {threads: max(value, again[threads]) for threads, value in peaks.items()}
    for key, row in rows.items():
        if row.get("layers"):
            row["layers"] = layer_table(row["layers"], peaks.get(CASES[key].threads))
            row["worst_layers"] = worst_layers(row["layers"])
            print_worst(key, row)
    speeds = speed_ups(rows)
    print_ratios(found)
    print_speeds(speeds)
    if arguments.save:
        result = {"peak_gflops": peaks, "ratios": found, "one_thread_to_two": speeds, "rows": rows}
        print(f"saved {save_run('network', arguments, shim, result)}")


if __name__ == "__main__":
    main()
