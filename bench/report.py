"""Prints the README's tables from saved results: `python bench/report.py [--write]`.

`--write` puts them into the README, between `<!-- bench/report.py: NAME -->` and `<!-- end -->`, and writes
`results/network_layers.md`. Where a benchmark has not been saved, its table is empty.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from layer_limits import limit
from timing import ROOT

Result = dict[str, Any]  # what a benchmark has saved
RESULTS = ROOT / "bench" / "results"
LAYERS = "network_layers.md"
CARD = ROOT / "yolonas" / "models" / "yolo_nas_s_shapes.json"


def accuracy(saved: dict[str, Result]) -> list[str]:
    titles = ("protocol", "mAP50-95", "mAP50", "mAP75", "small", "medium", "large", "P", "R")
    rows = []
    for row in saved["accuracy_bccd"]["rows"]:
        numbers = [row["coco"][name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        rows.append((row["name"], *(f"{value:.4f}" for value in (*numbers, row["precision"], row["recall"]))))
    return table(titles, rows)


def evaluate(saved: dict[str, Result]) -> list[str]:
    result = saved["evaluate"]
    own, accumulate = (row["median_ms"] / 1e3 for row in result["times"].values())
    return table(
        (f"{result['pictures']:,} pictures, {result['detections']:,} detections", "seconds"),
        (
            ("yolonas: matching, averages, curves, confusion matrix", f"{own:.1f}"),
            ("pycocotools: `accumulate()` alone", f"{accumulate:.1f}"),
            (
                "pycocotools: `evaluate()` and `accumulate()`",
                f"{accumulate + result['pycocotools_evaluate_s']:.1f}",
            ),
        ),
    )


def ops(saved: dict[str, Result]) -> list[str]:
    rows = []
    for row in saved["ops"]["rows"]:
        ours, peer = (row["times"][side]["median_ms"] for side in ("yolonas", "peer"))
        rows.append((row["case"], f"{ours:.2f} ms", f"{peer:.2f} ms ({row['peer']})", f"{row['ratio']:.1f} x"))
    machine = saved["ops"]["machine"]
    versions = f"torch {machine['torch']}, OpenCV {machine['opencv']}"
    return [
        *table(("op", "yolonas", "peer", "ratio"), rows),
        "",
        f"{on(machine)}, {versions}, commit {machine['commit']}.",
    ]


def network(saved: dict[str, Result]) -> list[str]:
    """The network alone; below it the same held to AVX2, where that was saved."""
    if "network" not in saved:
        return []
    lines = [
        *("## Speed of the network", ""),
        "The network alone, without letterbox, decoding and NMS: the same weights, input and number of threads for all",
        "sides, each in a process of its own, results compared first. Milliseconds, of a batch for all its pictures;",
        "with ratios below 1 `yolonas` is faster.",
        *("", *network_tables(saved["network"])),
    ]
    if "network_avx2" in saved:
        lines += held_to_avx2(saved["network_avx2"], "ONNX Runtime, OpenVINO and ncnn", network_tables)
    return lines


def held_to_avx2(result: Result, others: str, tables: Callable[[Result], list[str]]) -> list[str]:
    """The same tables of a run whose sides were held to AVX2, but perhaps for those that have no switch for it."""
    held = "All sides held to AVX2:"
    if result["all_sides_on"] is None:
        held = f"Held to AVX2, but for {others}, which use what the processor has:"
    return ["", held, "", *tables(result)]


def network_tables(result: Result) -> list[str]:
    """Times, aims, and what they were taken on."""
    rows = result["rows"]
    sides = list(dict.fromkeys(side for row in rows.values() for side in row.get("times", {})))
    best: dict[str, float] = {}
    openvino: dict[str, float] = {}
    for line in result["ratios"]:
        if line["what"] == "time over OpenVINO":
            openvino[line["case"]] = line["ratio"]
        elif line["what"].endswith("over the best peer"):
            best[line["case"]] = 1 / line["ratio"] if line["at_least"] else line["ratio"]
    body = []
    for key, row in rows.items():
        times = row.get("times", {})
        shown = [f"{times[side]['median_ms']:.1f}" if side in times else "" for side in sides]
        body.append((row["case"], *shown, *(f"{found[key]:.2f}" if key in found else "" for found in (best, openvino))))
    lines = table(("network, float32", *sides, "over the best peer", "over OpenVINO"), body)

    speeds = [{"what": "speed-up of two threads", "peer": "", **line} for line in result["one_thread_to_two"]]
    lines += aims(rows, [*result["ratios"], *speeds])
    lines += ["", *taken_on(result)]
    if any(row.get("layers") for row in rows.values()):
        lines.append(f"Every layer: [{LAYERS}](bench/results/{LAYERS}).")
    return lines


def aims(rows: dict[str, Any], ratios: list[dict[str, Any]]) -> list[str]:
    """What was aimed at, beside what was measured; empty without an aim."""
    body = []
    for line in ratios:
        if line["aim"] is None:
            continue
        what = line["what"] if line["peer"] in line["what"] else f"{line['what']}, {line['peer']}"
        hoped = f", hoped for {line['hoped']:.2f}" if "hoped" in line else ""
        aim = f"at {'least' if line['at_least'] else 'most'} {line['aim']:.2f}{hoped}"
        value = "" if line["ratio"] is None else f"{line['ratio']:.3f}"
        said = verdict(line["met"]) + (f", without {line['without']}" if "without" in line else "")
        body.append((f"{rows.get(line['case'], line)['case']}: {what}", value, aim, said))
    if not body:
        return []
    met = sum(line["met"] is True for line in ratios)
    return ["", f"Aims met: {met} of {len(body)}.", "", *table(("figure", "measured", "aim", ""), body)]


def int8(saved: dict[str, Result]) -> list[str]:
    """The network alone in int8; below it the same held to AVX2, where that was saved."""
    if "int8" not in saved:
        return []
    lines = [
        *("## Speed in int8", ""),
        "The network alone as above, in int8, with float32 beside it: the same weights, which a recipe makes, and the",
        "same pictures for the ranges. OpenVINO's int8 is NNCF's. Milliseconds; with ratios below 1 `yolonas int8` is",
        "faster. Decibels are signal-to-noise ratios against float64.",
        *("", *int8_tables(saved["int8"])),
    ]
    if "int8_avx2" in saved:
        lines += held_to_avx2(saved["int8_avx2"], "ONNX Runtime and OpenVINO", int8_tables)
    return lines


def int8_tables(result: Result) -> list[str]:
    """Times, noise, aims, what OpenVINO ran, and what they were taken on."""
    rows = result["rows"]
    sides = list(dict.fromkeys(side for row in rows.values() for side in row.get("times", {})))
    peers = list(dict.fromkeys(line["peer"] for line in result["ratios"]))
    ratios = {(line["case"], line["peer"]): f"{line['ratio']:.2f}" for line in result["ratios"]}
    body = []
    for key, row in rows.items():
        times = row.get("times", {})
        shown = [f"{times[side]['median_ms']:.1f}" if side in times else "" for side in sides]
        body.append((row["case"], *shown, *(ratios.get((key, peer), "") for peer in peers)))
    titles = list(map(titled, sides))
    lines = table(("network", *titles, *(f"over {titled(peer)}" for peer in peers)), body)
    body = []
    for row in rows.values():
        shown = [row["sqnr_db"][side] if side in row.get("times", {}) else None for side in sides]
        body.append((row["case"], *(f"{ratio['cls']:.0f}, {ratio['reg']:.0f}" if ratio else "" for ratio in shown)))
    lines += ["", *table(("dB of class and box logits", *titles), body)]
    lines += aims(rows, result["ratios"])
    ran: dict[str, list[str]] = {}
    for row in rows.values():
        if "OpenVINO int8" in row.get("times", {}):
            ran.setdefault(row["about"]["OpenVINO int8"], []).append(row["case"])
    shown = [f"OpenVINO int8 ({'; '.join(cases)}): {about}." for about, cases in ran.items()]
    return [*lines, "", *shown, *taken_on(result)]


def titled(side: str) -> str:
    """The name of a side among int8 ones: with what its numbers are."""
    return side if "int8" in side else f"{side} float32"


def int8_accuracy(saved: dict[str, Result]) -> list[str]:
    """What int8 costs a fine-tuned network."""
    if "int8_accuracy_bccd" not in saved:
        return []
    result = saved["int8_accuracy_bccd"]
    names = ("AP", "AP50", "AP75")
    rows = [(row["side"], *(f"{row['coco'][name]:.4f}" for name in names)) for row in result["rows"]]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    times = {name: value["median_ms"] for name, value in result.get("calibration_times", {}).items()}
    ratio = times["calibration"] / times["network"] if times else 0.0
    return [
        f"Accuracy of {result['model']} on {result['pictures']} pictures of {result['data']}. Pictures to calibrate",
        f"with ({result['calibration']}), preparation, selection and evaluation are the same for all:",
        *("", *table(("network", "mAP50-95", "mAP50", "mAP75"), rows), ""),
        *([f"Finding ranges takes {ratio:.2f} times the float network on those pictures."] if times else []),
        f"{on(result['machine'])}, {versions}, commit {result['machine']['commit']}.",
    ]


def export(saved: dict[str, Result]) -> list[str]:
    """What exported files give: mAP, and the largest differences over all networks."""
    if "export" not in saved:
        return []
    result = saved["export"]
    rows = []
    for row in result["accuracy"]:
        own = row["own"] or ("", "")
        rows.append((row["network"], *(f"{value:.4f}" for value in row["map"]), f"{own[0]:.4f}" if row["own"] else ""))
    data = f"{result['pictures']} pictures of {result['data'].removesuffix('.yaml')}"
    lines = [
        f'mAP of {result["model"]} on {data} through exported files with `outputs="raw"`:',
        *("", *table(("file", "mAP50-95", "mAP50", "mAP50-95 of the network itself"), rows)),
    ]
    body = []
    for key, group in _by_precision(result["rows"]).items():
        names = ("detections", "missing", "edge", "sure", "sure_missing")
        sums = {name: sum(row[name] for row in group) for name in names}
        box, score = (max(row[name] for row in group) for name in ("box", "score"))
        alone = f"{sums['missing']}, {sums['edge']} of them at a threshold" if sums["missing"] else "0"
        moved = (f"{box:.2g} px", f"{score:.2g}")
        if key[0] == "int8":  # boxes of one class that overlap by half are the same
            alone, moved = f"{sums['sure_missing']} of {sums['sure']:,} sure ones", ("", f"{score:.2g}")
        body.append((", ".join(key), f"{sums['detections']:,}", *moved, alone))
    sides = ", ".join(f"{height}x{width}" for height, width in result["sizes"])
    lines += [
        *("", "S, M and L, with NMS in the graph and without, of fixed size and of any"),
        f"({sides}; batches of {', '.join(map(str, result['batches']))}), against the library's own detections:",
        *("", *table(("files", "detections", "boxes within", "scores within", "on one side only"), body), ""),
    ]
    write, check = result["cost"]["write"], result["cost"]["check"]
    lines += [
        f"Writing S takes {write['seconds']:.1f} s and {write['bytes'] / write['weights']:.1f} times the memory of its "
        f"weights besides them; with the comparison {check['seconds']:.1f} s.",
        f"{on(result['machine'])}, "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f", commit {result['machine']['commit']}.",
    ]
    return lines


def _by_precision(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["precision"], row["runtime"]), []).append(row)
    return groups


def taken_on(result: Result) -> list[str]:
    """Machine, versions, and what is missing."""
    machine = result["machine"]
    versions = {"torch": machine["torch"], **result["versions"]}
    lines = [
        f"{on(machine)}{peaks(result)}, commit {machine['commit']}; median of {result['rounds']} rounds.",
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.",
    ]
    reasons: dict[str, list[str]] = {}
    for row in result["rows"].values():
        for side, reason in row["missing"].items():
            reasons.setdefault(f"{side}: {reason}", []).append(row["case"])
    return [*lines, *(f"Not timed ({'; '.join(cases)}): {what}." for what, cases in reasons.items())]


def peaks(result: Result) -> str:
    """The measured multiply-add peaks, to be put after the machine; empty without any."""
    measured = result.get("peak_gflops", {})
    shown = [f"{peak:.0f} with {count} thread{'s' * (count != '1')}" for count, peak in measured.items()]
    return f", peak GFLOP/s {' and '.join(shown)}" if shown else ""


def verdict(met: bool | None) -> str:
    return {None: "not measured", True: "met", False: "**not met**"}[met]


def predict(saved: dict[str, Result]) -> list[str]:
    """From a picture file to drawn boxes."""
    if "predict" not in saved:
        return []
    result = saved["predict"]
    times = {side: value["median_ms"] for side, value in result["times"].items()}
    alone = times[result["network"]]
    title = f"{result['model']} at {result['size']}, {result['picture']}, {result['boxes']} boxes"
    rows = [(side, f"{ms:.1f}", f"{ms / alone:.2f}") for side, ms in times.items()]
    machine = result["machine"]
    version = "".join(f", OpenVINO {version}" for version in result["versions"].values())
    return [
        *("## Speed of predict", ""),
        *table((title, "ms", "over the network alone"), rows),
        "",
        f"{result['measured']}: {result['ratio']:.2f} times the network alone, aim at most {result['aim']:.2f}: "
        f"{verdict(result['met'])}.",
        *(f"Not timed: {side}: {reason}." for side, reason in result["missing"].items()),
        f"{on(machine)}, OpenCV {machine['opencv']}{version}, commit {machine['commit']}; weights {result['weights']}; "
        f"median of {result['rounds']} rounds.",
    ]


def layers(result: Result) -> str:
    """The text of `network_layers.md`: per case every layer of ours, and what limits the worst ones."""
    lines = [
        "# The network's layers",
        "",
        "Written by `python bench/report.py --write` from `network.json`; what limits a layer is said in",
        "`bench/layer_limits.py`.",
        "",
        "GFLOP/s are counted as a direct convolution would need them, and as the algorithm executes them: the Winograd",
        "forms multiply less, but compute whole tiles; their transforms are not counted. The share is that of the",
        "executed ones in the peak that was measured with the same number of threads.",
        "",
        f"{on(result['machine'])}{peaks(result)}, commit {result['machine']['commit']}.",
    ]
    for key, row in result["rows"].items():
        if not row.get("layers"):
            continue
        by_name = {layer["name"]: layer for layer in row["layers"]}
        worst = row["worst_layers"]
        total = sum(layer["ms"] for layer in by_name.values())
        titles = (
            "layer",
            "algorithm",
            "kernel, stride",
            "input",
            "output",
            "ms",
            "GFLOP/s direct",
            "executed",
            "of peak",
        )
        lines += [
            "",
            f"## {row['case']}",
            "",
            f"The layers one by one take {total:.1f} ms, the network {row['times']['yolonas']['median_ms']:.1f} ms.",
            "",
        ]
        if worst:
            lines += [f"The {len(worst)} layers with the smallest share of the peak:", ""]
            lines += table((*titles, "what limits it"), [(*cells(by_name[name]), limit(key, name)) for name in worst])
            lines += ["", "All:", ""]
        lines += table(titles, map(cells, row["layers"]))
    return "\n".join(lines) + "\n"


def cells(layer: dict[str, Any]) -> tuple[str, ...]:
    """A row of the tables of layers."""
    numbers = [layer[name] for name in ("gflops", "executed_gflops")]
    share = "" if layer["share"] is None else f"{layer['share']:.0%}"
    return (
        *(layer["name"], layer["algorithm"], f"{layer['kernel']}, {layer['stride']}", layer["input"], layer["output"]),
        *(f"{layer['ms']:.3f}", *("" if number is None else f"{number:.0f}" for number in numbers), share),
    )


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    titles = list(titles)
    body = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(titles)} |", f"{'|---' * len(titles)}|", *body]


def shipped(_: dict[str, Result]) -> list[str]:
    """The card of the network that comes with the package."""
    if not CARD.exists():
        return []
    card = json.loads(CARD.read_text(encoding="utf-8"))
    rows = []
    for name, side in (("float32", card["float32"]), ("INT8, as shipped", card["int8"])):
        scores = side["scores"]
        rows.append((name, f"{scores['map']:.4f}", f"{scores['map50']:.4f}", f"{side['bytes'] / 1e6:.1f} MB"))
    return [
        f"{card['network']}, measured on {card['evaluation']['pictures']} drawn pictures that it has not seen:",
        *("", *table(("network", "mAP50-95", "mAP50", "file"), rows)),
    ]


def train_accuracy(saved: dict[str, Result]) -> list[str]:
    """What trainings on a real data set give."""
    if "train_bccd" not in saved:
        return []
    result = saved["train_bccd"]
    parts, rows = result["parts"], []
    if "scratch" in parts:
        rows.append(_training("S from random weights", parts["scratch"], None))
    if "tuned" in parts:
        rows.append(_training(f"{result['checkpoint']}, trained further", parts["tuned"], parts["tuned"]["before"]))
    if "quantised" in parts:
        bits = parts["quantised"]["settings"]["weight_bits"]
        name = f"{result['checkpoint']} in int8 with weights of {bits} bits"
        rows.append(_training(name, parts["quantised"], parts["quantised"]["before"]))
    titles = ("training", "epochs", "size", "batch", "lr", "minutes", "mAP50-95 before", "after", "mAP50 after")
    sizes = {part["size"][0] for part in parts.values()}
    lines = [
        f"On {result['data']}, measured on its val part at {', '.join(map(str, sorted(sizes)))} px:",
        *("", *table(titles, rows), ""),
    ]
    if "quantised" in parts:
        part = parts["quantised"]
        lines += [
            f"In float32 the last one's checkpoint has {part['float32']['map']:.4f}, with weights of 8 bits "
            f"{part['int8']['map']:.4f}.",
        ]
    commits = ", ".join(dict.fromkeys(part["commit"] for part in parts.values()))
    return [*lines, f"{on(result['machine'])}, torch {result['machine']['torch']}, commit {commits}."]


def _training(name: str, part: Result, before: Result | None) -> tuple[str, ...]:
    settings, used = part["settings"], part["settings"]["used"]
    if settings["precision"] not in (None, "float32"):
        name += f" ({settings['precision']})"
    size = part["size"][0] if settings["imgsz"] is None else settings["imgsz"][0]
    shown = (f"{used['epochs']}", f"{size}", f"{used['batch']}", f"{used['learning_rate']:g}")
    first = "" if before is None else f"{before['map']:.4f}"
    after = part["after"]
    return (name, *shown, f"{part['seconds'] / 60:.0f}", first, f"{after['map']:.4f}", f"{after['map50']:.4f}")


def train(saved: dict[str, Result]) -> list[str]:
    """How long a step of a training takes, and what in it."""
    if "train" not in saved:
        return []
    result = saved["train"]
    names = {
        "yolonas": "`yolonas`",
        "yolonas, bf16": "`yolonas`, `precision=bf16`",
        "plain torch": "plain torch modules",
    }
    peer = result["times"]["plain torch"]["median_ms"]
    rows = [
        (
            names[side],
            f"{value['median_ms']:,.0f} ms",
            f"{result['images_per_second'][side]:.1f}",
            f"{value['median_ms'] / peer:.2f}",
        )
        for side, value in result["times"].items()
    ]
    step = result["times"]["yolonas"]["median_ms"]
    shares = ", ".join(f"{name} {ms / step:.0%}" for name, ms in result["stages_ms"].items() if ms >= 0.005 * step)
    return [
        f"A step of S at {result['size']}, batch {result['batch']}, {result['threads']} threads:",
        *("", *table(("side", "step", "images/s", "of plain torch"), rows), ""),
        f"Where the time of the first goes: {shares}.",
        f"One reading thread gives {result['images_per_second']['loader']:.0f} changed pictures a second.",
        f"{on(result['machine'])}, torch {result['versions']['torch']}, commit {result['machine']['commit']}.",
    ]


def gpu(saved: dict[str, Result]) -> list[str]:
    """The network on a GPU: times, aims, what tuning gives, accuracy, and what they were taken on."""
    if "gpu" not in saved:
        return []
    result = saved["gpu"]
    rows = result["rows"]
    sides = list(dict.fromkeys(side for row in rows.values() for side in row["times"]))
    best = {
        line["case"]: 1 / line["ratio"] if line["at_least"] else line["ratio"]
        for line in result["ratios"]
        if line["what"].endswith("over the best peer") and line["ratio"]
    }
    body = []
    for key, row in rows.items():
        shown = [
            f"{row['times'][side]['median_ms']:.3f}{' (wrong)' * (side in row['wrong'])}"
            if side in row["times"]
            else ""
            for side in sides
        ]
        body.append((row["case"], *shown, f"{best[key]:.2f}" if key in best else ""))
    lines = [
        *("## Speed on a GPU", ""),
        "Milliseconds of the network alone, of a batch for all its pictures; the last column is our fp16 over the best",
        "of torch in fp16. Results are compared with the CPU engine first.",
        *("", *table(("network", *sides, "over the best peer"), body)),
        *aims(rows, result["ratios"]),
    ]
    if result["tuning"]:
        tuned = [(rows[key]["case"] if key in rows else key) for key in result["tuning"]]
        times = [
            (*(f"{one['times'][name]['median_ms']:.3f}" for name in ("as it is", "tuned")), f"{one['changed_steps']}")
            for one in result["tuning"].values()
        ]
        body = [(name, *shown) for name, shown in zip(tuned, times, strict=True)]
        lines += ["", *table(("network, yolonas fp16", "as it is", "tuned", "steps changed"), body)]
    if result["accuracy"]:
        body = [
            (side, *(f"{coco[name]:.4f}" for name in ("AP", "AP50", "AP75")))
            for side, coco in result["accuracy"].items()
        ]
        lines += ["", *table(("bccd_s.pth", "mAP50-95", "mAP50", "mAP75"), body)]
    lines += gpu_experiments(result.get("experiments", {}))
    gone = {
        f"{row['case']}, {side}: {reason}" for row in rows.values() for side, reason in row.get("missing", {}).items()
    }
    if gone:
        lines += ["", f"Not timed: {'; '.join(sorted(gone))}."]
    units = {
        "fp16_tflops": "TFLOP/s fp16",
        "fp32_tflops": "TFLOP/s fp32",
        "int8_tops": "TOP/s int8",
        "copy_gbs": "GB/s",
    }
    ceilings = ", ".join(f"{value:,.0f} {units.get(name, name)}" for name, value in result["ceilings"].items())
    clocks = ", ".join(result["clocks"].get("busy", {}).values())
    return [
        *lines,
        "",
        *gpu_engines(rows),
        f"{result['device']}, driver {result['gpu'].get('driver_version', 'unknown')}, torch "
        f"{result['versions']['torch']}, CUDA {result['versions']['cuda']}, commit {result['machine']['commit']}; "
        f"median of {result['rounds']} rounds.",
        f"Measured ceilings: {ceilings}. While it ran: {clocks}. Caches: {result['caches']}.",
    ]


def gpu_experiments(found: dict[str, Any]) -> list[str]:
    """What graphs and overlapping launches give, and what they change."""
    body = [
        (f"S at 640, batch 1: {name}", *(f"{value['median_ms']:.3f}" for value in one["times"].values()))
        for name, one in found.items()
        if "times" in one
    ]
    lines = ["", *table(("experiment", "as it is", "so"), body)] if body else []
    if "replays" in found:
        one = found["replays"]
        differ = one["wrong"] or "all have the bits of the network run step by step"
        lines += ["", f"{one['replays']:,} replays, with and without overlapping launches: {differ}."]
    return lines


def gpu_engines(rows: dict[str, Any]) -> list[str]:
    """Engines that ran without a graph, or whose launches do not overlap; nothing if there are none."""
    found = []
    for row in rows.values():
        for side, notes in row.get("engine", {}).items():
            lacks = ["a graph"] * (not notes["graphs"]) + ["overlapping launches"] * (not notes["overlap"])
            if lacks:
                reason = f" ({notes['capture_failure']})" if notes["capture_failure"] else ""
                found.append(f"{row['case']}, {side}: {' and '.join(lacks)}{reason}")
    return [f"Without: {'; '.join(found)}.", ""] if found else []


def on(machine: dict[str, Any]) -> str:
    return f"{machine['processor']}, {machine['cores']} cores, {machine['cpu_isa']} kernels"


SECTIONS: dict[str, Callable[[dict[str, Result]], list[str]]] = {
    "accuracy": accuracy,
    "evaluate": evaluate,
    "network": network,
    "int8": int8,
    "int8_accuracy": int8_accuracy,
    "export": export,
    "shipped": shipped,
    "train_accuracy": train_accuracy,
    "train": train,
    "predict": predict,
    "ops": ops,
}

# Sections that have no place in the README: printed only.
PRINTED: dict[str, Callable[[dict[str, Result]], list[str]]] = {"gpu": gpu}


def read(folder: Path = RESULTS) -> dict[str, Result]:
    """What is saved in a folder, by the file's name without its end."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def filled(text: str, saved: dict[str, Result]) -> str:
    """The text with every section between its marks as it is now."""

    def section(match: re.Match[str]) -> str:
        lines = SECTIONS[match[2]](saved)
        return "\n".join((match[1], "", *lines, "", match[3])) if lines else f"{match[1]}\n{match[3]}"

    return re.sub(r"(<!-- bench/report\.py: (\w+) -->)\n.*?(<!-- end -->)", section, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write README.md and bench/results/network_layers.md")
    arguments = parser.parse_args()
    saved = read()
    if arguments.write:
        if "network" in saved:
            (RESULTS / LAYERS).write_text(layers(saved["network"]), encoding="utf-8")
        readme = ROOT / "README.md"
        readme.write_text(filled(readme.read_text(encoding="utf-8"), saved), encoding="utf-8")
    for section in (*SECTIONS.values(), *PRINTED.values()):
        if lines := section(saved):
            print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
