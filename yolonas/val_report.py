"""What an evaluation leaves behind: the console table, JSON and CSV files, labels, curves and mosaics.

Everything is made from the journal of the run and the metrics, so that an interrupted run, the shards of a run and a
run in one piece end alike.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data.data_yaml import printable
from .errors import SourceError
from .journal import Entry, Skipped, read_entries
from .options import flag, one_of, option, text
from .records import STAGES
from .runs import UniqueStems, whole_file, write_file, write_image

if TYPE_CHECKING:
    from .metrics import DetMetrics, Evaluator

LOGGER = logging.getLogger("yolonas")

SCORED_BY = {"native": "pycocotools", "pycocotools": "pycocotools", "fast": "faster-coco-eval"}
MOSAICS, PER_MOSAIC = 3, 16
MOSAIC_CONF = 0.25  # detections below it, or below the score with the best F1, are not drawn
TILE = 640  # longest side of a picture that waits for its mosaic, pixels
_OUTPUTS = (
    *("Box*_curve.png", "confusion_matrix*.png", "val_batch[0-9]_*.jpg", "labels/*.txt", "problems.txt"),
    *("predictions.json", "annotations.json", "results.json", "classes.csv", "images.csv"),
)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Settings that `val` and `val merge` share."""

    evaluator: str = option(
        "native",
        one_of("native", "pycocotools", "fast"),
        "matching and AP: 'native' (own matching, AP by pycocotools), 'pycocotools', 'fast' (faster-coco-eval)",
    )
    plots: bool = option(True, flag, "curves, confusion matrices and pictures")
    save_json: bool = option(False, flag, "save predictions.json and annotations.json for pycocotools")
    save_txt: bool = option(False, flag, "save boxes as YOLO labels")
    save_conf: bool = option(False, flag, "save_txt: with scores")
    show_labels: bool = option(True, flag, "class names in the pictures")
    show_conf: bool = option(True, flag, "scores in the pictures")
    project: str | None = option(None, text, "folder for run folders (default: runs/detect)")
    name: str | None = option(None, text, "run folder (default: val, val-2, ...)")
    exist_ok: bool = option(False, flag, "write into an existing run folder")
    verbose: bool = option(True, flag, "print the protocol, the progress and a line per class")


@dataclass(frozen=True)
class Report:
    """An evaluation whose pictures are all done.

    Attributes:
        folder: where the files go. journals: what was recorded, with the headers of each.
        order: numbers of the pictures in the order of the mosaics.
    """

    folder: Path
    journals: Sequence[Path]
    headers: Sequence[Mapping[str, Any]]
    order: Sequence[int]

    @property
    def about(self) -> Mapping[str, Any]:
        """What the headers say of the data and the model, which is the same in all of them."""
        return self.headers[0]["about"]

    def entries(self) -> Iterator[Entry]:
        """Every evaluated picture once, in the order of the journals."""
        seen: set[int] = set()
        for path in self.journals:
            for entry in read_entries(path):
                if isinstance(entry, Entry) and entry.record.index not in seen:
                    seen.add(entry.record.index)
                    yield entry

    @cached_property
    def skipped(self) -> list[Skipped]:
        """The pictures that could not be used at any try."""
        skipped: dict[int, Skipped] = {}
        evaluated: set[int] = set()
        for path in self.journals:
            for entry in read_entries(path):
                if isinstance(entry, Skipped):
                    skipped[entry.index] = entry
                else:
                    evaluated.add(entry.record.index)
        return [skipped[index] for index in sorted(skipped.keys() - evaluated)]

    @property
    def left_out(self) -> int:
        """How many pictures are not in the numbers: missing ones, and those that could not be used."""
        return int(self.about["missing"]) + len(self.skipped)

    @property
    def problems(self) -> list[str]:
        """One line for each thing that was odd about the data."""
        return [*self.about["problems"], *(f"{one.path}: {one.reason}; picture left out" for one in self.skipped)]

    def finish(self, evaluator: Evaluator, options: ReportOptions) -> DetMetrics:
        """The metrics of an evaluator that has seen all pictures."""
        metrics = evaluator.finish()
        metrics.protocol = f"{self.about['protocol']}; scored by {SCORED_BY[options.evaluator]}"
        metrics.save_dir = self.folder
        metrics.with_sizes = options.save_json
        metrics.left_out = self.left_out
        return metrics


def clear_old_files(folder: Path) -> None:
    """Removes what an earlier run in the same folder left, so that nothing stale stands beside new numbers."""
    for pattern in _OUTPUTS:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def print_table(metrics: DetMetrics, *, part: str | None = None) -> None:
    """The table that users know: all classes, then each class that the labels have."""
    if part is not None:
        print(f"{part}: the numbers below are of these pictures alone")
    name_width = 22
    print(f"{'Class':>{name_width}}{'Images':>11}{'Instances':>11}{'Box(P':>11}{'R':>11}{'mAP50':>11}{'mAP50-95)':>11}")

    def row(name: str, images: int, instances: int, values: Sequence[float]) -> None:
        shown = "".join(f"{value:>11.3g}" for value in values)
        print(f"{printable(name)[-name_width:]:>{name_width}}{images:>11}{instances:>11}{shown}")

    rows = metrics.summary()
    row("all", metrics.seen, int(sum(metrics.nt_per_class)), metrics.mean_results())
    if len(rows) > 1:
        for index, values in enumerate(rows):
            row(str(values["Class"]), int(values["Images"]), int(values["Instances"]), metrics.class_result(index))
    print(f"P and R at a score of {metrics.threshold:.3f}, where the mean F1 is highest ({_mean(metrics.box.f1):.3f})")
    coco = {name: _shown(value) for name, value in metrics.coco.items()}
    print(
        f"AP by size: small {coco['APs']}, medium {coco['APm']}, large {coco['APl']}; mAP75 {coco['AP75']}; "
        f"recall with 1, 10, 100 boxes a picture: {coco['AR1']}, {coco['AR10']}, {coco['AR100']}"
    )
    stages = ", ".join(f"{metrics.speed[name]:.1f} ms {name}" for name in STAGES)
    print(f"Speed: {stages} per image (the stages overlap)")


def write_files(report: Report, metrics: DetMetrics, options: ReportOptions) -> None:
    """Writes everything that the options ask for into the run folder."""
    folder, about = report.folder, report.about
    if report.problems:
        lines = "".join(f"{printable(line)}\n" for line in report.problems)
        write_file(folder / "problems.txt", lines.encode())
    results = {
        "protocol": metrics.protocol,
        "evaluator": metrics.evaluator,
        "model": about["model"],
        "data": about["data"],
        "split": about["split"],
        "labels": about["labels"],
        "pictures": metrics.seen,
        "left_out": report.left_out,
        "problems": len(report.problems),
        "threshold": metrics.threshold,
        "metrics": metrics.results_dict,
        "coco": metrics.coco,
        "classes": metrics.summary(),
        "speed_ms": metrics.speed,
        "run": report.headers[0]["run"],
    }
    # Names of files need not be UTF-8: JSON gets such bytes as escapes, the tables get them as they are.
    write_file(folder / "results.json", (json.dumps(_finite(results), indent=1) + "\n").encode())
    write_file(folder / "classes.csv", metrics.to_csv().encode(errors="surrogateescape"))
    write_file(folder / "images.csv", metrics.images_to_csv().encode(errors="surrogateescape"))
    if options.save_json:
        _write_coco_files(report)
    if options.save_txt:
        _write_labels(report, save_conf=options.save_conf)
    if options.plots:
        _draw_curves(folder, metrics)
        _draw_mosaics(report, options, max(MOSAIC_CONF, metrics.threshold))
    if options.verbose:
        if report.left_out:
            LOGGER.warning("%d picture%s left out", report.left_out, "s" * (report.left_out > 1))
        if report.problems:
            LOGGER.warning("problems are listed in %s", folder / "problems.txt")
        print(f"Results saved to {folder}")


def _write_coco_files(report: Report) -> None:
    from .metrics import prediction_rows, truth_json

    about = report.about
    ids = about["category_ids"]
    with whole_file(report.folder / "predictions.json") as file:
        separator = "["
        for entry in report.entries():
            for row in prediction_rows(entry.record, ids):
                file.write((separator + json.dumps(row)).encode())
                separator = ",\n"
        file.write(b"[]\n" if separator == "[" else b"]\n")
    truth = truth_json((entry.record for entry in report.entries()), dict(enumerate(about["names"])), ids)
    write_file(report.folder / "annotations.json", json.dumps(truth).encode())


def _write_labels(report: Report, *, save_conf: bool) -> None:
    from .boxes import Boxes

    stems = UniqueStems()
    for entry in report.entries():
        stem = stems.claim(Path(entry.record.file_name).stem)
        lines = Boxes(_corners(entry.record.detections), entry.record.size).label_lines(save_conf=save_conf)
        write_file(report.folder / "labels" / f"{stem}.txt", "".join(lines).encode())


def _draw_curves(folder: Path, metrics: DetMetrics) -> None:
    from .plots import plot_confidence_curve, plot_confusion_matrix, plot_pr_curve

    box = metrics.box
    if len(box.ap_class_index) == 0:
        LOGGER.warning("val: no curves, the labels have no boxes")
        return
    names = {number: metrics.names[number] for number in box.ap_class_index.tolist()}
    (recall, precision), (conf, f1), (_, p), (_, r) = (curve[:2] for curve in metrics.curves_results)
    plot_pr_curve(folder / "BoxPR_curve.png", recall, precision, box.ap50, names)
    for short, values, label in (("F1", f1, "F1"), ("P", p, "Precision"), ("R", r, "Recall")):
        plot_confidence_curve(
            folder / f"Box{short}_curve.png",
            conf,
            values,
            names,
            ylabel=label,
            best=short == "F1",
            threshold=metrics.threshold,
        )
    confusion = metrics.confusion_matrix
    note = f"confidence at least {confusion.conf:g}, IoU above {confusion.iou:g}"
    for suffix, normalize in (("", False), ("_normalized", True)):
        path = folder / f"confusion_matrix{suffix}.png"
        plot_confusion_matrix(path, confusion.matrix, metrics.names, normalize=normalize, note=note)


def _draw_mosaics(report: Report, options: ReportOptions, conf: float) -> None:
    """The first pictures of the run with their labels, and the same ones with what was detected above `conf`."""
    from .data.images import read_image
    from .plots import mosaic

    order = report.order[: MOSAICS * PER_MOSAIC]
    wanted = set(order)
    found: dict[int, Entry] = {}
    for entry in report.entries():
        if entry.record.index in wanted:
            found[entry.record.index] = entry
        if len(found) == len(wanted):
            break
    names = report.about["names"]
    for number in range(MOSAICS):
        pictures, captions, kept = [], [], []
        for index in order[number * PER_MOSAIC : (number + 1) * PER_MOSAIC]:
            if index not in found:
                continue
            try:
                picture = read_image(found[index].path)
            except SourceError:  # a part of a run that ran elsewhere
                continue
            pictures.append(_shrunk(picture))
            captions.append(found[index].record.file_name)
            kept.append((found[index].record, pictures[-1].shape[0] / picture.shape[0]))
        if not pictures:
            continue
        style = {"show_labels": options.show_labels, "show_conf": options.show_conf}
        truths = [(_xyxy(record.truth.boxes) * scale, record.truth.classes) for record, scale in kept]
        boxes, classes = [box for box, _ in truths], [label for _, label in truths]
        drawn = mosaic(pictures, boxes, classes, None, names, captions, **style)
        write_image(report.folder / f"val_batch{number}_labels.jpg", drawn)
        shown = [(record.detections[record.detections[:, 4] >= conf], scale) for record, scale in kept]
        boxes = [_xyxy(rows[:, :4]) * scale for rows, scale in shown]
        classes = [rows[:, 5].astype(np.int64) for rows, _ in shown]
        drawn = mosaic(pictures, boxes, classes, [rows[:, 4] for rows, _ in shown], names, captions, **style)
        write_image(report.folder / f"val_batch{number}_pred.jpg", drawn)


def _shrunk(picture: np.ndarray) -> np.ndarray:
    import cv2

    scale = TILE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _xyxy(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], axis=1)


def _corners(detections: np.ndarray) -> np.ndarray:
    """Rows x1, y1, x2, y2, score, class."""
    return np.concatenate([_xyxy(detections[:, :4]), detections[:, 4:]], axis=1)


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have; NumPy numbers become plain ones."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _shown(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) and value >= 0 else "-"
