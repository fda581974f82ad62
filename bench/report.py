"""Prints the README's tables from saved results: `python bench/report.py`."""

from __future__ import annotations

import json

from timing import ROOT


def main() -> None:
    result = json.loads((ROOT / "bench" / "results" / "ops.json").read_text())
    machine = result["machine"]
    print("| op | yolonas | peer | ratio |\n|---|---|---|---|")
    for row in result["rows"]:
        ours, peer = (row["times"][side]["median_ms"] for side in ("yolonas", "peer"))
        print(f"| {row['case']} | {ours:.2f} ms | {peer:.2f} ms ({row['peer']}) | {row['ratio']:.1f} x |")
    print(
        f"\n{machine['processor']}, {machine['cores']} cores, {machine['cpu_isa']} kernels, torch {machine['torch']}, "
        f"OpenCV {machine['opencv']}, commit {machine['commit']}."
    )


if __name__ == "__main__":
    main()
