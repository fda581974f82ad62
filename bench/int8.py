"""The network on a CPU in int8: ours against OpenVINO with NNCF, ONNX Runtime, and the float32 of the first two.

All sides have the same weights, and take their ranges from the same pictures. Rounding differs from side to side, so
results are not compared one by one: each side's signal-to-noise ratio against float64 is noted. Then they take turns,
each in a process of its own.

python bench/int8.py [--save] [--rounds 9] [--isa avx2] [--cases s_640_1_2 ...] [--sides "yolonas int8" ...] [--reuse]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from network_files import OUTPUTS, Case
from network_run import compared, measured, parser, prepare, print_ratios, print_row, save_run
from network_sides import INT8
from report import titled

CASES = {case.key: case for case in (Case("s"), Case("m"), Case("l"), Case("s", size=320))}
OURS, FLOAT32 = "yolonas int8", "yolonas"
# Our time over another side's: what to reach, and what was hoped for beyond it.
AIMS = {"OpenVINO int8": 0.88, FLOAT32: 0.80}
HOPES = {"OpenVINO int8": 0.78}
LEAST_DB = 15.0  # with less a side has not quantised the network but lost it
WORST = 10  # layers that are printed


def judge(outputs: list[np.ndarray], reference: list[np.ndarray]) -> tuple[dict[str, Any], str]:
    """Signal-to-noise ratios of the class and box logits, and which of them is too small."""
    decibels = {kind: round(noise_ratio(kind, outputs, reference), 2) for kind in ("cls", "reg")}
    lost = [f"signal to noise of {kind} is {value} dB" for kind, value in decibels.items() if not value >= LEAST_DB]
    return {"sqnr_db": decibels}, " and ".join(lost)


def noise_ratio(kind: str, outputs: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """Decibels of one kind of outputs, all levels together. The signal is what differs from its mean."""
    pairs = [pair for name, *pair in zip(OUTPUTS, outputs, reference, strict=True) if name.startswith(kind)]
    right = np.concatenate([level.ravel() for _, level in pairs])
    noise = np.concatenate([ours.ravel() for ours, _ in pairs]) - right
    return float(10 * np.log10(right.var() / np.square(noise).mean()))


def ratios(key: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Our time over that of every other int8 side and of our float32."""
    times = {side: value["median_ms"] for side, value in row.get("times", {}).items()}
    if OURS not in times:
        return []
    others = [side for side in times if side not in (OURS, "OpenVINO")]
    return [
        compared(key, f"time over {titled(side)}", side, times[OURS] / times[side], AIMS.get(side)) | hoped(side)
        for side in others
    ]


def hoped(side: str) -> dict[str, Any]:
    return {"hoped": HOPES[side]} if side in HOPES else {}


def layer_table(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per step of the plan of one picture; `gops` are those of the direct form over the time."""
    return [
        {
            **{name: step[name] for name in ("name", "op", "algorithm", "kernel", "stride")},
            **{side: "x".join(map(str, step[side])) for side in ("input", "output")},
            "ms": round(step["ms"], 4),
            "gops": round(step["mflop"] / step["ms"], 1) if step["mflop"] and step["ms"] else None,
        }
        for step in steps
    ]


def print_case(key: str, row: dict[str, Any]) -> None:
    def show(side: str) -> str:
        return "   signal to noise {cls:.0f}, {reg:.0f} dB".format(**row["sqnr_db"][side])

    print_row(key, row, show)


def print_layers(key: str, layers: list[dict[str, Any]]) -> None:
    """Those that take the longest."""
    total = sum(layer["ms"] for layer in layers)
    print(f"\n{key}: the layers one by one take {total:.1f} ms; the slowest")
    for layer in sorted(layers, key=lambda layer: -layer["ms"])[:WORST]:
        rate = "" if layer["gops"] is None else f" {layer['gops']:6.0f} GOP/s as direct"
        print(f"  {layer['name']:<45} {layer['algorithm']:<14} {layer['ms']:7.3f} ms {layer['ms'] / total:4.0%}{rate}")
    sys.stdout.flush()


def main() -> None:
    arguments = parser(__doc__, CASES, INT8).parse_args()
    shim = prepare(arguments)
    rows: dict[str, dict[str, Any]] = {}
    found: list[dict[str, Any]] = []
    for key, row in measured(arguments, CASES, shim, judge, OURS):
        rows[key] = row
        print_case(key, row)
        if row.get("layers"):
            row["layers"] = layer_table(row["layers"])
            print_layers(key, row["layers"])
        found += ratios(key, row)
    print_ratios(found)
    if arguments.save:
        print(f"saved {save_run('int8', arguments, shim, {'ratios': found, 'rows': rows})}")


if __name__ == "__main__":
    main()
