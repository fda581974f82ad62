"""The network on a CPU against torch, torch.compile, ONNX Runtime, OpenVINO and ncnn: same weights, input, threads.

All sides must first give the same results. Then they take turns, each in a process of its own.

A side that is not installed is left out and named; all of them come with `python3 dev.py bench network`.

python bench/network.py [--save] [--rounds 9] [--isa avx2] [--cases s_640_1_2 ...] [--sides yolonas ncnn ...] [--reuse]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from network_files import OUTPUTS, Case, program, write
from network_sides import AVX2, FOR_BATCHES, PACKAGES, SIDES, Worker, not_installed
from timing import ROOT, compare, machine, save, versions

TOLERANCE = 1e-4  # of the largest value of an output
CASES = {
    f"{case.variant}_{case.size}_{case.batch}_{case.threads}": case
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


def run_case(case: Case, folder: Path, sides: list[str], shim: Path | None, rounds: int) -> dict[str, Any]:
    """Times of the sides that run here and are right, and why the others are not there."""
    with np.load(case.path(folder, "reference.npz")) as file:
        reference = [file[name] for name in OUTPUTS]
    row: dict[str, Any] = {
        "case": case.name,
        "gflop": round(json.loads(case.path(folder, "json").read_text())["gflop"], 2),
        **{name: {} for name in ("about", "difference", "peak_mb", "missing")},
    }
    workers: dict[str, Worker] = {}
    try:
        for side in sides:
            try:
                worker = Worker(side, case, folder, shim)
            except RuntimeError as error:
                row["missing"][side] = str(error)
                continue
            workers[side] = worker
            difference = max(
                float(np.abs(ours - right).max() / np.abs(right).max())
                for ours, right in zip(worker.ask("read"), reference, strict=True)
            )
            row["about"][side], row["difference"][side] = worker.about, difference
            if not difference <= TOLERANCE:
                row["missing"][side] = f"wrong results: relative difference {difference:.1e}"
                workers.pop(side).close()
        if workers:
            first = next(iter(workers.values()))
            row["call_ms"] = round(compare({"nothing": lambda: first.ask("nothing")})["nothing"]["median_ms"], 3)
            row["times"] = compare({side: worker.run for side, worker in workers.items()}, rounds=rounds)
        for side, worker in workers.items():
            row["peak_mb"][side] = worker.ask("peak_mb")
        if "yolonas" in workers and case.batch == 1 and case.threads == 2:
            row["layers"] = workers["yolonas"].ask("layers")
    finally:
        for worker in workers.values():
            worker.close()
    return row


def ratios(key: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Our figures over the peers', beside what was to be reached."""
    times = {side: value["median_ms"] for side, value in row.get("times", {}).items()}
    peers = {side: value for side, value in times.items() if side != "yolonas"}
    if "yolonas" not in times or not peers:
        return []
    best = min(peers, key=peers.__getitem__)
    if CASES[key].batch > 1:
        return [compared(key, BEST_RATE, best, peers[best] / times["yolonas"])]
    found = [compared(key, BEST_TIME, best, times["yolonas"] / peers[best])]
    if "OpenVINO" in peers:
        found.append(compared(key, OPENVINO_TIME, "OpenVINO", times["yolonas"] / peers["OpenVINO"]))
        memory = row["peak_mb"]
        if memory["yolonas"]:
            found.append(compared(key, OPENVINO_MEMORY, "OpenVINO", memory["yolonas"] / memory["OpenVINO"]))
    return found


def compared(key: str, what: str, peer: str, ratio: float) -> dict[str, Any]:
    """A ratio with its aim and whether that is met, both None where nothing was aimed at."""
    aim = AIMS.get(key, {}).get(what)
    at_least = what == BEST_RATE
    met = None if aim is None else ratio >= aim if at_least else ratio <= aim
    return {
        **{"case": key, "what": what, "peer": peer, "ratio": round(ratio, 3)},
        **{"aim": aim, "at_least": at_least, "met": met},
    }


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
    print(f"\n{row['case']} ({key}): {row['gflop']:.1f} GFLOP as a direct convolution counts them")
    for side, times in row.get("times", {}).items():
        rate = row["gflop"] / times["median_ms"] * 1e3
        share = f", {rate / peak:4.0%} of peak" if peak else ""
        memory = row["peak_mb"][side]
        print(
            f"  {side:<17} {times['median_ms']:8.1f} ms ({times['min_ms']:.1f} to {times['max_ms']:.1f})"
            f" {rate:6.0f} GFLOP/s{share}   difference {row['difference'][side]:.0e}"
            f"{f'   {memory:.0f} MB' if memory else ''}   {row['about'][side]}"
        )
    for side, reason in row["missing"].items():
        print(f"  {side:<17} not timed: {reason}")
    sys.stdout.flush()


def print_worst(key: str, row: dict[str, Any]) -> None:
    layers = {layer["name"]: layer for layer in row["layers"]}
    print(f"\n{key}: the layers with the smallest share of the peak")
    for layer in map(layers.__getitem__, row["worst_layers"]):
        print(
            f"  {layer['name']:<45} {layer['algorithm']:<12} {layer['ms']:7.3f} ms {layer['gflops']:6.0f} GFLOP/s as"
            f" direct, {layer['executed_gflops']:5.0f} executed, {layer['share']:.0%} of peak"
        )


def print_ratios(found: list[dict[str, Any]], speeds: list[dict[str, Any]]) -> None:
    if found or speeds:
        print()
    for line in found:
        peer = "" if line["peer"] in line["what"] else f", {line['peer']}"
        print(f"  {line['case']:<10} {line['what']}{peer}: {line['ratio']:.2f}{in_words(line)}")
    for line in speeds:
        print(f"  {line['case']:<10} {line['side']}, two threads over one: {line['ratio']:.2f} x{in_words(line)}")


def in_words(line: dict[str, Any]) -> str:
    """The aim of a ratio, and whether it is met."""
    return "" if line["aim"] is None else f", aim {line['aim']:.2f}, {'met' if line['met'] else 'not met'}"


def fma_peaks(folder: Path, isa: str) -> dict[int, float]:
    """GFLOP/s that one and two threads can reach, by measurement; empty where the program cannot be built."""
    isa = isa.removesuffix("vnni")
    path = program("fma_peak.cpp", folder, "-pthread") if isa in ("avx2", "avx512") else None
    if path is None:
        return {}
    return {threads: float(subprocess.check_output([path, isa, str(threads)])) for threads in (1, 2)}


def working_shim(folder: Path) -> Path | None:
    """The library that hides AVX-512, where this processor lets it."""
    path = program("hide_avx512.cpp", folder, "-shared", "-fPIC")
    if path is None:
        return None
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).hide_avx512())"
    return path if subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 0 else None


def _without_folder(words: list[str]) -> list[str]:
    """A command's words without the path of this machine."""
    if "--folder" not in words:
        return words
    at = words.index("--folder")
    return words[:at] + words[at + 2 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write bench/results/network.json (network_ISA.json)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--isa", choices=("avx2",), help="hold all sides to these instructions")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "network", help="for the networks' files")
    parser.add_argument("--reuse", action="store_true", help="take the peers' files of an earlier run")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    shim = None
    if arguments.isa == "avx2":
        os.environ.update(AVX2)
        shim = working_shim(folder)
        if shim is None:
            print("cannot hide AVX-512 here: ONNX Runtime, OpenVINO and ncnn use what the processor has")

    from yolonas import _native

    isa = _native.build_info()["cpu_isa"]
    peaks = fma_peaks(folder, isa)
    absent = {side: reason for side in arguments.sides if (reason := not_installed(PACKAGES.get(side, ())))}
    for side, reason in absent.items():
        print(f"{side} is left out: {reason}")
    rows: dict[str, dict[str, Any]] = {}
    found: list[dict[str, Any]] = []
    for key in arguments.cases:
        case = CASES[key]
        asked = [side for side in arguments.sides if case.batch > 1 or side not in FOR_BATCHES]
        wanted = [side for side in asked if side not in absent]
        formats = dict.fromkeys(("reference", *(name for side in wanted for name in SIDES[side][1])))
        failed = write(case, folder, formats, reuse=arguments.reuse)
        if "reference" in failed:
            sys.exit(f"cannot make the reference: {failed['reference']}")
        without = {side: failed[name] for side in wanted for name in SIDES[side][1] if name in failed}
        sides = [side for side in wanted if side not in without]
        row = rows[key] = run_case(case, folder, sides, shim, arguments.rounds)
        row["missing"] |= without | {side: absent[side] for side in asked if side in absent}
        print_case(key, row, peaks.get(case.threads))
        found += ratios(key, row)
    # The larger of two: a share of a peak that a disturbance made small would flatter.
    again = fma_peaks(folder, isa)
    peaks = {threads: max(value, again[threads]) for threads, value in peaks.items()}
    for key, row in rows.items():
        if row.get("layers"):
            row["layers"] = layer_table(row["layers"], peaks.get(CASES[key].threads))
            row["worst_layers"] = worst_layers(row["layers"])
            print_worst(key, row)
    speeds = speed_ups(rows)
    print_ratios(found, speeds)
    if arguments.save:
        result = {
            "machine": machine(),
            "versions": versions(package for side in arguments.sides for package in PACKAGES.get(side, ())),
            "rounds": arguments.rounds,
            "command": " ".join(["python", "bench/network.py", *_without_folder(sys.argv[1:])]),
            "all_sides_on": arguments.isa if shim else None,
            "peak_gflops": peaks,
            "ratios": found,
            "one_thread_to_two": speeds,
            "rows": rows,
        }
        print(f"saved {save(f'network_{arguments.isa}' if arguments.isa else 'network', result)}")


if __name__ == "__main__":
    main()
