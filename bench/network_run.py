"""What the benchmarks of networks share: their arguments, the cases one after another, the ratios with their aims."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from network_files import OUTPUTS, Case, program, write
from network_sides import AVX2, FOR_BATCHES, PACKAGES, SIDES, Worker, not_installed
from timing import ROOT, compare, machine, save, versions

# From a side's outputs and the right ones, as `OUTPUTS`: figures to note by name, and why they are wrong, or "".
Judge = Callable[[list[np.ndarray], list[np.ndarray]], tuple[dict[str, Any], str]]


def parser(about: str | None, cases: Mapping[str, Case], sides: tuple[str, ...]) -> argparse.ArgumentParser:
    """The options of a benchmark of networks."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--save", action="store_true", help="write bench/results/NAME.json (NAME_ISA.json)")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--isa", choices=("avx2",), help="hold all sides to these instructions")
    options.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    options.add_argument("--sides", nargs="+", choices=sides, default=list(sides))
    options.add_argument("--folder", type=Path, default=ROOT / "build" / "network", help="for the networks' files")
    options.add_argument("--reuse", action="store_true", help="take the peers' files of an earlier run")
    return options


def prepare(arguments: argparse.Namespace) -> Path | None:
    """Makes the folder and holds what this process starts to `--isa`; returns the library that hides AVX-512, if any.

    To be called before the native module is loaded.
    """
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(arguments.folder / "inductor"))
    if arguments.isa != "avx2":
        return None
    os.environ.update(AVX2)
    shim = working_shim(arguments.folder)
    if shim is None:
        print("cannot hide AVX-512 here: ONNX Runtime, OpenVINO and ncnn use what the processor has")
    return shim


def working_shim(folder: Path) -> Path | None:
    """The library that hides AVX-512, where this processor lets it."""
    path = program("hide_avx512.cpp", folder, "-shared", "-fPIC")
    if path is None:
        return None
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).hide_avx512())"
    return path if subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 0 else None


def measured(
    arguments: argparse.Namespace, cases: Mapping[str, Case], shim: Path | None, judge: Judge, layers_of: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The cases asked for, one after another: key and row. Sides that are not installed are named and left out.

    Args:
        layers_of: the side whose layers are timed too, for one picture with two threads.
    """
    absent = {side: reason for side in arguments.sides if (reason := not_installed(PACKAGES.get(side, ())))}
    for side, reason in absent.items():
        print(f"{side} is left out: {reason}")
    for key in arguments.cases:
        case = cases[key]
        asked = [side for side in arguments.sides if case.batch > 1 or side not in FOR_BATCHES]
        wanted = [side for side in asked if side not in absent]
        formats = dict.fromkeys(("reference", *(name for side in wanted for name in SIDES[side][1])))
        failed = write(case, arguments.folder, formats, reuse=arguments.reuse)
        if "reference" in failed:
            sys.exit(f"cannot make the reference: {failed['reference']}")
        without = {side: failed[name] for side in wanted for name in SIDES[side][1] if name in failed}
        sides = [side for side in wanted if side not in without]
        row = run_case(case, arguments.folder, sides, shim, arguments.rounds, judge, layers_of)
        row["missing"] |= without | {side: absent[side] for side in asked if side in absent}
        yield key, row


def run_case(
    case: Case, folder: Path, sides: list[str], shim: Path | None, rounds: int, judge: Judge, layers_of: str
) -> dict[str, Any]:
    """Times of the sides that run here and are right, and why the others are not there."""
    with np.load(case.path(folder, "reference.npz")) as file:
        reference = [file[name] for name in OUTPUTS]
    row: dict[str, Any] = {
        "case": case.name,
        "gflop": round(json.loads(case.path(folder, "json").read_text())["gflop"], 2),
        **{name: {} for name in ("about", "peak_mb", "missing")},
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
            noted, wrong = judge(worker.ask("read"), reference)
            for name, value in {"about": worker.about, **noted}.items():
                row.setdefault(name, {})[side] = value
            if wrong:
                row["missing"][side] = f"wrong results: {wrong}"
                workers.pop(side).close()
        if workers:
            first = next(iter(workers.values()))
            row["call_ms"] = round(compare({"nothing": lambda: first.ask("nothing")})["nothing"]["median_ms"], 3)
            row["times"] = compare({side: worker.run for side, worker in workers.items()}, rounds=rounds)
        for side, worker in workers.items():
            row["peak_mb"][side] = worker.ask("peak_mb")
        if layers_of in workers and case.batch == 1 and case.threads == 2:
            row["layers"] = workers[layers_of].ask("layers")
    finally:
        for worker in workers.values():
            worker.close()
    return row


def compared(
    case: str, what: str, peer: str, ratio: float, aim: float | None, *, at_least: bool = False
) -> dict[str, Any]:
    """A ratio with its aim and whether that is met, both None where nothing was aimed at."""
    met = None if aim is None else ratio >= aim if at_least else ratio <= aim
    line = {"case": case, "what": what, "peer": peer, "ratio": round(ratio, 3)}
    return {**line, "aim": aim, "at_least": at_least, "met": met}


def print_row(key: str, row: dict[str, Any], show: Callable[[str], str]) -> None:
    """A case's times, and why sides are missing.

    Args:
        show: what is to be said of a side after its time.
    """
    print(f"\n{row['case']} ({key}): {row['gflop']:.1f} GFLOP as a direct convolution counts them")
    width = max(map(len, [*row["about"], *row["missing"]]), default=0)
    for side, times in row.get("times", {}).items():
        rate = row["gflop"] / times["median_ms"] * 1e3
        memory = row["peak_mb"][side]
        print(
            f"  {side:<{width}} {times['median_ms']:8.1f} ms ({times['min_ms']:.1f} to {times['max_ms']:.1f})"
            f" {rate:6.0f} GFLOP/s{show(side)}{f'   {memory:.0f} MB' if memory else ''}   {row['about'][side]}"
        )
    for side, reason in row["missing"].items():
        print(f"  {side:<{width}} not timed: {reason}")
    sys.stdout.flush()


def print_ratios(found: list[dict[str, Any]]) -> None:
    if found:
        print()
    for line in found:
        peer = "" if line["peer"] in line["what"] else f", {line['peer']}"
        print(f"  {line['case']:<10} {line['what']}{peer}: {line['ratio']:.2f}{in_words(line)}")


def in_words(line: dict[str, Any]) -> str:
    """The aim of a ratio, and whether it is met."""
    return "" if line["aim"] is None else f", aim {line['aim']:.2f}, {'met' if line['met'] else 'not met'}"


def save_run(name: str, arguments: argparse.Namespace, shim: Path | None, result: dict[str, Any]) -> Path:
    """Writes `bench/results/<name>.json` (`<name>_<isa>.json`): a result, and where and how it was taken."""
    about = {
        "machine": machine(),
        "versions": versions(package for side in arguments.sides for package in PACKAGES.get(side, ())),
        "rounds": arguments.rounds,
        "command": " ".join(["python", f"bench/{name}.py", *_without_folder(sys.argv[1:])]),
        "all_sides_on": arguments.isa if shim else None,
    }
    return save(f"{name}_{arguments.isa}" if arguments.isa else name, about | result)


def _without_folder(words: list[str]) -> list[str]:
    """A command's words without the path of this machine."""
    if "--folder" not in words:
        return words
    at = words.index("--folder")
    return words[:at] + words[at + 2 :]
