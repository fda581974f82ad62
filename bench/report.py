"""Prints the README's tables from saved results: `python bench/report.py`."""

from __future__ import annotations

import json
from typing import Any

from timing import ROOT


def main() -> None:
    accuracy = read("accuracy_bccd")
    titles = ("protocol", "mAP50-95", "mAP50", "mAP75", "small", "medium", "large", "P", "R")
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for row in accuracy["rows"]:
        coco = row["coco"]
        numbers = [coco[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        shown = " | ".join(f"{value:.4f}" for value in (*numbers, row["precision"], row["recall"]))
        print(f"| {row['name']} | {shown} |")
    print()

    evaluate = read("evaluate")
    own, accumulate = (row["median_ms"] / 1e3 for row in evaluate["times"].values())
    print(f"| {evaluate['pictures']:,} pictures, {evaluate['detections']:,} detections | seconds |\n|---|---|")
    print(f"| yolonas: matching, averages, curves, confusion matrix | {own:.1f} |")
    print(f"| pycocotools: `accumulate()` alone | {accumulate:.1f} |")
    print(f"| pycocotools: `evaluate()` and `accumulate()` | {accumulate + evaluate['pycocotools_evaluate_s']:.1f} |\n")

    ops = read("ops")
    print("| op | yolonas | peer | ratio |\n|---|---|---|---|")
    for row in ops["rows"]:
        ours, peer = (row["times"][side]["median_ms"] for side in ("yolonas", "peer"))
        print(f"| {row['case']} | {ours:.2f} ms | {peer:.2f} ms ({row['peer']}) | {row['ratio']:.1f} x |")
    machine = ops["machine"]
    print(
        f"\n{machine['processor']}, {machine['cores']} cores, {machine['cpu_isa']} kernels, torch {machine['torch']}, "
        f"OpenCV {machine['opencv']}, commit {machine['commit']}."
    )


def read(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())


if __name__ == "__main__":
    main()
