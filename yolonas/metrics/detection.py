"""`DetMetrics`: what an evaluation found out, under the names that users of detection libraries know."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .coco import CocoResult
from .confusion import ConfusionMatrix
from .curves import ConfidenceCurves, confidence_curves
from .matches import MatchTable
from .table import Row, rounded, rows_to_csv, rows_to_df, rows_to_json

CURVES = ["Precision-Recall(B)", "F1-Confidence(B)", "Precision-Confidence(B)", "Recall-Confidence(B)"]
_ROW_COLUMNS = {
    **{"Class": str, "Images": int, "Instances": int},
    **dict.fromkeys(("Box-P", "Box-R", "Box-F1", "mAP50", "mAP75", "mAP50-95"), float),
}
_IMAGE_COLUMNS = {
    **{"file_name": str, "image_id": str},
    **dict.fromkeys(("instances", "detections", "tp", "fp", "fn"), int),
    **dict.fromkeys(("precision", "recall", "f1"), float),
}


class Metric:
    """The numbers of the boxes. Arrays `(C, ...)` are over the classes that have true boxes, `ap_class_index`.

    Means over no class are NaN.

    Attributes:
        nc: number of all classes.
        ap_class_index: `(C,)` int64 class numbers.
        all_ap: `(C, 10)` float64 average precision at IoU 0.50, 0.55 ... 0.95.
        p, r, f1: `(C,)` float64 precision, recall and F1 at IoU 0.5 and the confidence `threshold`.
        threshold: the confidence with the highest mean F1.
        map, map50, map75: COCO's means, as pycocotools gives them.
        px: `(1000,)` confidences of `p_curve`, `r_curve` and `f1_curve`, which are `(C, 1000)`.
        recall_points: `(101,)` of `prec_values`, `(C, 101)`, the precision at IoU 0.5.
        image_metrics: per file name `precision`, `recall`, `f1`, `tp`, `fp`, `fn` at the same point.
    """

    def __init__(self, coco: CocoResult, curves: ConfidenceCurves, image_metrics: Mapping[str, Row]) -> None:
        classes = curves.classes
        self.nc = coco.precision.shape[2]
        self.ap_class_index = classes
        self.all_ap: np.ndarray = coco.ap()[classes]
        self.map, self.map50, self.map75 = (coco.stats[name] for name in ("AP", "AP50", "AP75"))
        # the values are laid out as pycocotools' users take them, so that the mean has the same last digit
        self.ap = np.array([coco.precision[:, :, number, 0, -1].mean() for number in classes.tolist()])
        self.threshold = curves.threshold
        self.px = curves.confidence
        self.p_curve, self.r_curve, self.f1_curve = curves.precision, curves.recall, curves.f1
        self.p, self.r, self.f1 = (curve[:, curves.best] for curve in (self.p_curve, self.r_curve, self.f1_curve))
        self.recall_points = coco.recall_points
        self.prec_values = coco.precision[0, :, :, 0, -1].T[classes]
        self.image_metrics = dict(image_metrics)

    @property
    def ap50(self) -> np.ndarray:
        """`(C,)` average precision at IoU 0.5."""
        return self.all_ap[:, 0]

    @property
    def ap75(self) -> np.ndarray:
        """`(C,)` average precision at IoU 0.75."""
        return self.all_ap[:, 5]

    @property
    def mp(self) -> float:
        """Mean precision."""
        return _mean(self.p)

    @property
    def mr(self) -> float:
        """Mean recall."""
        return _mean(self.r)

    @property
    def maps(self) -> np.ndarray:
        """`(nc,)` average precision of every class; the mean for those without true boxes."""
        values = np.full(self.nc, self.map)
        values[self.ap_class_index] = self.ap
        return values

    def mean_results(self) -> list[float]:
        """Mean precision, mean recall, mAP50, mAP50-95."""
        return [self.mp, self.mr, self.map50, self.map]

    def class_result(self, i: int) -> tuple[float, float, float, float]:
        """Precision, recall, AP50 and AP50-95 of the class `ap_class_index[i]`."""
        return float(self.p[i]), float(self.r[i]), float(self.ap50[i]), float(self.ap[i])

    def fitness(self) -> float:
        """The one number to compare models by: mAP50-95."""
        return self.map

    @property
    def curves(self) -> list[str]:
        """What `curves_results` holds."""
        return list(CURVES)

    @property
    def curves_results(self) -> list[list[Any]]:
        """Per curve its x `(P,)`, its y `(C, P)`, the name of x, the name of y."""
        return [
            [self.recall_points, self.prec_values, "Recall", "Precision"],
            [self.px, self.f1_curve, "Confidence", "F1"],
            [self.px, self.p_curve, "Confidence", "Precision"],
            [self.px, self.r_curve, "Confidence", "Recall"],
        ]


class DetMetrics:
    """The result of an evaluation.

    Attributes:
        names: class names by number.
        box: the numbers, see `Metric`.
        coco: pycocotools' twelve numbers: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl. NaN where no
            true box is to be found.
        result: all that pycocotools accumulated.
        confusion_matrix: see `ConfusionMatrix`.
        speed: milliseconds per picture: read, preprocess, inference, loss (always 0), postprocess.
        evaluator: what computed the averages: native, pycocotools or fast.
        protocol: how the detections were made, in words. This and the next three are set by the evaluation.
        save_dir: the folder of its files, or None.
        left_out: pictures that could not be used.
        with_sizes: whether `results_dict` has the mAP of small, medium and large boxes too.
        seen: number of pictures.
        nt_per_class: `(nc,)` int64 true boxes per class; here and below crowds are left out.
        nt_per_image: `(nc,)` int64 pictures with such boxes.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        coco: CocoResult,
        table: MatchTable,
        confusion_matrix: ConfusionMatrix,
        *,
        speed: Mapping[str, float],
        evaluator: str,
    ) -> None:
        self.names = dict(names)
        self.result = coco
        self.coco = dict(coco.stats)
        self.confusion_matrix = confusion_matrix
        self.speed = dict(speed)
        self.evaluator = evaluator
        self.protocol = ""
        self.save_dir: Path | None = None
        self.left_out = 0
        self.with_sizes = False
        self.seen = len(table.images)
        self._table = table
        wanted = table.wanted
        classes, count = table.truth_classes[wanted], len(self.names)
        self.nt_per_class = np.bincount(classes, minlength=count)
        pairs = np.unique(np.stack((classes, table.truth_image[wanted])), axis=1)
        self.nt_per_image = np.bincount(pairs[0], minlength=count)
        curves = confidence_curves(table, np.flatnonzero(self.nt_per_class))
        self._images = _image_rows(table, curves.threshold)
        kept = ("precision", "recall", "f1", "tp", "fp", "fn")
        by_name = {row["file_name"]: {key: row[key] for key in kept} for row in self._images}
        self.box = Metric(coco, curves, by_name)

    def __repr__(self) -> str:
        numbers = ", ".join(f"{key}={value:.4g}" for key, value in self.results_dict.items())
        return f"DetMetrics({numbers})"

    @property
    def keys(self) -> list[str]:
        """The names of `mean_results`."""
        return [f"metrics/{name}(B)" for name in ("precision", "recall", "mAP50", "mAP50-95")]

    @property
    def ap_class_index(self) -> np.ndarray:
        """`(C,)` int64 numbers of the classes that have true boxes."""
        return self.box.ap_class_index

    @property
    def maps(self) -> np.ndarray:
        """`(nc,)` average precision of every class, see `Metric.maps`."""
        return self.box.maps

    @property
    def fitness(self) -> float:
        """The one number to compare models by: mAP50-95."""
        return self.box.fitness()

    @property
    def threshold(self) -> float:
        """The confidence with the highest mean F1, to which precision, recall and F1 belong."""
        return self.box.threshold

    def mean_results(self) -> list[float]:
        """Mean precision, mean recall, mAP50, mAP50-95."""
        return self.box.mean_results()

    def class_result(self, i: int) -> tuple[float, float, float, float]:
        """Precision, recall, AP50 and AP50-95 of the class `ap_class_index[i]`."""
        return self.box.class_result(i)

    @property
    def results_dict(self) -> dict[str, float]:
        """The means by their names in `keys`, and `fitness`."""
        values = dict(zip(self.keys, self.mean_results(), strict=True))
        if self.with_sizes:
            sizes = {"small": "APs", "medium": "APm", "large": "APl"}
            values |= {f"metrics/mAP_{size}(B)": self.coco[name] for size, name in sizes.items()}
        return {**values, "fitness": self.fitness}

    @property
    def curves(self) -> list[str]:
        """What `curves_results` holds."""
        return self.box.curves

    @property
    def curves_results(self) -> list[list[Any]]:
        """Per curve its x, its y per class, and their names, see `Metric.curves_results`."""
        return self.box.curves_results

    @cached_property
    def stats(self) -> dict[str, np.ndarray]:
        """All detections that count and all true boxes, ordered by class.

        tp `(N, 10)` bool per IoU threshold, conf `(N,)`, pred_cls `(N,)`; target_cls `(G,)`, target_img `(G,)` the
        place of the picture among the sorted image ids.
        """
        table, wanted = self._table, self._table.wanted
        return {
            "tp": table.right(),
            "conf": table.scores,
            "pred_cls": table.classes,
            "target_cls": table.truth_classes[wanted],
            "target_img": table.truth_image[wanted],
        }

    def summary(self, normalize: bool = True, decimals: int = 5) -> list[Row]:
        """One row per class with true boxes: Class, Images, Instances, Box-P, Box-R, Box-F1, mAP50, mAP75, mAP50-95.

        Numbers are parts of 1 and rounded to `decimals`; `normalize` changes nothing.
        """
        box = self.box
        rows = []
        for i, number in enumerate(self.ap_class_index.tolist()):
            counts = (self.names[number], int(self.nt_per_image[number]), int(self.nt_per_class[number]))
            values = (box.p[i], box.r[i], box.f1[i], box.ap50[i], box.ap75[i], box.ap[i])
            row = (*counts, *(rounded(value, decimals) for value in values))
            rows.append(dict(zip(_ROW_COLUMNS, row, strict=True)))
        return rows

    def to_df(self, normalize: bool = True, decimals: int = 5) -> Any:
        """The rows of `summary` as a `polars.DataFrame`; needs `yolonas[dataframe]`."""
        return rows_to_df(self.summary(normalize, decimals), _ROW_COLUMNS)

    def to_csv(self, normalize: bool = True, decimals: int = 5) -> str:
        """The rows of `summary` as text under a header."""
        return rows_to_csv(self.summary(normalize, decimals), _ROW_COLUMNS)

    def to_json(self, normalize: bool = True, decimals: int = 5) -> str:
        """The rows of `summary` as a JSON list."""
        return rows_to_json(self.summary(normalize, decimals))

    def images(self) -> list[Row]:
        """One row per picture, in the data set's order, at IoU 0.5 and the confidence `threshold`.

        file_name, image_id, instances, detections, tp, fp, fn, precision, recall, f1. Detections that are neither
        right nor wrong, because of a crowd, are among `detections` only. A ratio without a denominator is NaN.
        """
        return [dict(row) for row in self._images]

    def images_to_csv(self, decimals: int = 5) -> str:
        """The rows of `images` as text under a header."""
        rows = [
            {key: rounded(value, decimals) if isinstance(value, float) else value for key, value in row.items()}
            for row in self._images
        ]
        return rows_to_csv(rows, _IMAGE_COLUMNS)


def _image_rows(table: MatchTable, threshold: float) -> list[Row]:
    sure = table.scores >= threshold
    count = len(table.images)

    def per_image(mask: np.ndarray) -> list[int]:
        return np.bincount(table.image[mask], minlength=count).tolist()

    instances = np.bincount(table.truth_image[table.wanted], minlength=count).tolist()
    right, wrong = per_image(sure & table.right()[:, 0]), per_image(sure & table.wrong()[:, 0])
    rows = []
    for info, n, found, tp, fp in zip(table.images, instances, per_image(sure), right, wrong, strict=True):
        row = {
            **{"file_name": info.file_name, "image_id": info.image_id},
            **{"instances": n, "detections": found, "tp": tp, "fp": fp, "fn": n - tp},
            **{"precision": _part(tp, tp + fp), "recall": _part(tp, n), "f1": _part(2 * tp, tp + fp + n)},
        }
        rows.append((info.index, row))
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _part(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
