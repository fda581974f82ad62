"""Decoding and suppression as ONNX nodes, in standard operators, with the library's own rules.

What may become a detection is found before anything is decoded: anchors by their best class, then pairs of anchor and
class, best first. A pair's place in that order is all that NonMaxSuppression has to give back, since it is the order of
the result too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..config import REG_MAX, STRIDES
from .spec import BATCH_NAMES, FLAT_NAMES, RAW_NAMES

if TYPE_CHECKING:
    from .dataflow import Dataflow
    from .onnx_builder import Builder
    from .spec import ExportSpec

BINS = REG_MAX + 1
UNUSED = -1.0  # score of what is no detection


def add_outputs(b: Builder, flow: Dataflow, spec: ExportSpec) -> None:
    """From the maps of the heads to the outputs of the spec."""
    _Post(b, flow, spec).add()


class _Post:
    def __init__(self, b: Builder, flow: Dataflow, spec: ExportSpec):
        self.b, self.flow, self.spec = b, flow, spec
        self.half = spec.precision == "fp16"
        self.classes = spec.num_classes
        height, width = spec.preprocess.size
        self.cells = [(height // stride, width // stride) for stride in STRIDES]
        self.anchors = None if spec.dynamic_size else sum(rows * columns for rows, columns in self.cells)
        self.batch: int | str = "batch" if spec.batch is None else spec.batch

    def add(self) -> None:
        forms = {
            "heads": self._heads,
            "raw": self._raw,
            "deepstream": self._best,
            "batch": self._batch,
            "flat": self._flat,
            "rows": self._fixed,
        }
        forms[self.spec.outputs]()

    # --- the forms of output ---

    def _heads(self) -> None:
        maps = [*self.flow.cls, *self.flow.reg]
        for name, one in zip(self.spec.output_names, maps, strict=True):
            if self.half:
                self.b.cast(one.name, "float32", name)
            else:
                self.b.node("Identity", [one.name], name)
            stride = 1 << one.downscale
            height, width = self.spec.preprocess.size
            sides = (
                (f"height_{stride}", f"width_{stride}")
                if self.spec.dynamic_size
                else (height // stride, width // stride)
            )
            self.b.output(name, "float32", (self.batch, one.channels, *sides))

    def _raw(self) -> None:
        b, anchors = self.b, self.anchors or "anchors"
        points, strides = self._grid()
        self._decoded(self._joined("reg"), points, strides, RAW_NAMES[0])
        b.node("Sigmoid", [self._joined("cls")], RAW_NAMES[1])
        b.output(RAW_NAMES[0], "float32", (self.batch, anchors, 4))
        b.output(RAW_NAMES[1], "float32", (self.batch, anchors, self.classes))

    def _best(self) -> None:
        b = self.b
        points, strides = self._grid()
        boxes = self._decoded(self._joined("reg"), points, strides, "boxes")
        logits = self._joined("cls")
        number = b.node("ArgMax", [logits], "best_class", axis=2, keepdims=1)
        score = b.node("Sigmoid", [b.reduce("ReduceMax", logits, 2, "best_logit", keepdims=True)], "best_score")
        (name,) = self.spec.output_names
        b.node("Concat", [boxes, score, b.cast(number, "float32", "best_class_float")], name, axis=2)
        b.output(name, "float32", (self.batch, self.anchors or "anchors", 6))

    def _batch(self) -> None:
        b, most = self.b, self.spec.settings.max_det
        boxes, scores, classes, used = self._suppressed()
        number, out_boxes, out_scores, out_classes = BATCH_NAMES
        b.reduce("ReduceSum", b.cast(used, "int64", "used_int"), 1, number, keepdims=True)
        b.node("Identity", [boxes], out_boxes)
        b.node("Identity", [scores], out_scores)
        b.node("Identity", [classes], out_classes)
        b.output(number, "int64", (self.batch, 1))
        b.output(out_boxes, "float32", (self.batch, most, 4))
        b.output(out_scores, "float32", (self.batch, most))
        b.output(out_classes, "int64", (self.batch, most))

    def _flat(self) -> None:
        b = self.b
        boxes, scores, classes, used = self._suppressed()
        rows = self._rows(boxes, scores, classes, self._picture(scores))
        places = b.node("NonZero", [b.node("Reshape", [used, b.ints(-1)], "used_flat")], "used_places")
        places = b.node("Reshape", [places, b.ints(-1)], "used_rows")
        b.node("Gather", [rows, places], FLAT_NAMES[0], axis=0)
        b.output(FLAT_NAMES[0], "float32", ("detections", 7))

    def _fixed(self) -> None:
        b, most = self.b, self.spec.settings.max_det
        boxes, scores, classes, used = self._picked()
        picture = b.node("Where", [used, self._picture(scores), b.float(UNUSED)], "picture_used")
        rows = self._rows(boxes, scores, classes, picture)
        (name,) = self.spec.output_names
        b.node("Identity", [rows], name)
        count = "rows" if self.spec.batch is None else self.spec.batch * most
        b.output(name, "float32", (count, 7))

    # --- decoding ---

    def _joined(self, kind: str) -> str:
        """The logits of all levels, float32 `(B, A, channels)`."""
        b, channels = self.b, self.classes if kind == "cls" else 4 * BINS
        maps = self.flow.cls if kind == "cls" else self.flow.reg
        flat = [
            b.node("Reshape", [one.name, b.ints(0, channels, -1)], f"{kind}{stride}_flat")
            for one, stride in zip(maps, STRIDES, strict=True)
        ]
        joined = b.node("Concat", flat, f"{kind}_joined", axis=2)
        if self.half:
            joined = b.cast(joined, "float32", f"{kind}_joined_float")
        return b.node("Transpose", [joined], f"{kind}_logits", perm=[0, 2, 1])

    def _grid(self) -> tuple[str, str]:
        """Cells' centres as x, y, x, y in cells, float32 `(A, 4)`, and strides in pixels `(A, 1)`."""
        b = self.b
        if not self.spec.dynamic_size:
            points = np.concatenate([_centres(rows, columns) for rows, columns in self.cells])
            counts = [rows * columns for rows, columns in self.cells]
            strides = np.repeat(np.asarray(STRIDES, np.float32), counts)[:, None]
            return b.constant("grid_points", points), b.constant("grid_strides", strides)
        points_, strides_ = [], []
        for one, stride in zip(self.flow.cls, STRIDES, strict=True):
            name = f"grid{stride}"
            rows, columns = (b.side(one.name, axis, f"{name}_side{axis}") for axis in (2, 3))
            count = b.node("Mul", [rows, columns], f"{name}_count")
            number = b.node("Squeeze", [count, b.ints(0)], f"{name}_number")
            cell = b.node("Range", [b.int(0), number, b.int(1)], f"{name}_cell")
            y = b.node("Div", [cell, columns], f"{name}_y")
            x = b.node("Sub", [cell, b.node("Mul", [y, columns], f"{name}_before")], f"{name}_x")
            x, y = (b.node("Unsqueeze", [one, b.ints(1)], f"{one}_column") for one in (x, y))
            corner = b.cast(b.node("Concat", [x, y, x, y], f"{name}_xyxy", axis=1), "float32", f"{name}_corner")
            points_.append(b.node("Add", [corner, b.float(0.5)], f"{name}_points"))
            wide = b.node("Concat", [count, b.ints(1)], f"{name}_wide", axis=0)
            strides_.append(
                b.node("Expand", [b.shared(f"{name}_stride", [[stride]], np.float32), wide], f"{name}_strides")
            )
        return b.node("Concat", points_, "grid_points", axis=0), b.node("Concat", strides_, "grid_strides", axis=0)

    def _decoded(self, logits: str, points: str, strides: str, name: str) -> str:
        """Boxes `(B, N, 4)` of box logits `(B, N, 68)`: a side's distance is the mean of its distribution."""
        b = self.b
        sides = b.node("Reshape", [logits, b.ints(0, -1, 4, BINS)], "sides")
        shares = b.node("Softmax", [sides], "sides_distribution", axis=-1)
        # Left and top are subtracted. Multiply and sum, not a matrix product: that might run in TF32.
        signed = np.outer([-1, -1, 1, 1], np.arange(BINS)).astype(np.float32)
        weighted = b.node("Mul", [shares, b.constant("bins", signed)], "sides_weighted")
        distances = b.reduce("ReduceSum", weighted, -1, "sides_distance")
        corners = b.node("Add", [distances, points], "corners")
        return b.node("Mul", [corners, strides], name)

    # --- thresholds and suppression ---

    def _candidates(self) -> tuple[str, str, str, str, int | None]:
        """The best pairs of anchor and class, best first: boxes `(B, Q, 4)`, scores `(B, Q)`, classes int64 `(B, Q)`,
        whether each is above the threshold, and Q if it is known.
        """
        b, settings = self.b, self.spec.settings
        logits = self._joined("cls")
        best = b.reduce("ReduceMax", logits, 2, "best_logit")
        some = None if self.anchors is None else min(settings.top_k, self.anchors)
        value, anchor = b.nodes_of("TopK", [best, self._count(some, best, "anchors_kept")], ["anchor_logit", "anchor"])
        index = b.node("Unsqueeze", [anchor, b.ints(2)], "anchor_index")
        kept = b.node("GatherND", [logits, index], "kept_cls", batch_dims=1)
        points, strides = self._grid()
        boxes = self._decoded(
            b.node("GatherND", [self._joined("reg"), index], "kept_reg", batch_dims=1),
            b.node("Gather", [points, anchor], "kept_points", axis=0),
            b.node("Gather", [strides, anchor], "kept_strides", axis=0),
            "kept_boxes",
        )
        if not settings.multi_label:
            classes = b.node("ArgMax", [kept], "pair_class", axis=2, keepdims=0)
            scores = b.node("Sigmoid", [value], "pair_score")
            passes = b.node("GreaterOrEqual", [scores, b.float(settings.conf)], "pair_passes")
            return boxes, scores, classes, passes, some
        pairs = b.node("Reshape", [kept, b.ints(0, -1)], "pair_logits")
        pair_count = None if some is None else min(settings.top_k, some * self.classes)
        value, pair = b.nodes_of("TopK", [pairs, self._count(pair_count, pairs, "pairs_kept")], ["pair_logit", "pair"])
        place = b.node("Div", [pair, b.int(self.classes)], "pair_place")
        classes = b.node("Sub", [pair, b.node("Mul", [place, b.int(self.classes)], "pair_first")], "pair_class")
        index = b.node("Unsqueeze", [place, b.ints(2)], "pair_index")
        boxes = b.node("GatherND", [boxes, index], "pair_boxes", batch_dims=1)
        scores = b.node("Sigmoid", [value], "pair_score")
        passes = b.node("Greater", [scores, b.float(settings.conf)], "pair_passes")
        return boxes, scores, classes, passes, pair_count

    def _count(self, known: int | None, x: str, name: str) -> str:
        """How many of the last axis of `x` are taken: `top_k`, or all if there are fewer."""
        b = self.b
        if known is not None:
            return b.ints(known)
        return b.node("Min", [b.side(x, 1, f"{name}_size"), b.ints(self.spec.settings.top_k)], name)

    def _suppressed(self) -> tuple[str, str, str, str]:
        """Boxes `(B, N, 4)`, scores, classes and whether each place is used, `(B, N)`, by NonMaxSuppression."""
        b, settings, most = self.b, self.spec.settings, self.spec.settings.max_det
        boxes, scores, classes, passes, count = self._candidates()
        member = b.node("Unsqueeze", [passes, b.ints(1)], "member")
        if not settings.agnostic:
            every = b.shared("every_class", np.arange(self.classes).reshape(1, -1, 1), np.int64)
            own = b.node("Equal", [b.node("Unsqueeze", [classes, b.ints(1)], "class_row"), every], "own_class")
            member = b.node("And", [own, member], "member_of_class")
        by_class = b.node(
            "Where", [member, b.node("Unsqueeze", [scores, b.ints(1)], "score_row"), b.float(UNUSED)], "class_scores"
        )
        limits = [
            b.ints(most),
            b.shared("nms_iou", [settings.iou], np.float32),
            b.shared("nms_score", [UNUSED / 2], np.float32),
        ]
        chosen = b.node("NonMaxSuppression", [boxes, by_class, *limits], "chosen")  # rows: picture, class, place
        places = b.node("Gather", [chosen, b.shared("picture_and_place", [0, 2], np.int64)], "chosen_places", axis=1)
        ones = b.node("Expand", [b.float(1), b.side(places, 0, "chosen_count")], "chosen_ones")
        nothing = b.node("Expand", [b.float(0), b.node("Shape", [scores], "pair_shape")], "chosen_none")
        marks = b.node("ScatterND", [nothing, places, ones], "chosen_marks")
        kept = b.node("And", [b.node("Greater", [marks, b.float(0)], "is_chosen"), passes], "is_kept")
        ranked = b.node("Where", [kept, scores, b.float(UNUSED)], "kept_score")
        if count is None or count < most:  # there may be fewer candidates than places
            unused = b.float(UNUSED)
            ranked = b.node("Pad", [ranked, b.ints(0, 0, 0, most), unused], "kept_score_padded")
            boxes = b.node("Pad", [boxes, b.ints(0, 0, 0, 0, most, 0), unused], "pair_boxes_padded")
            classes = b.node("Pad", [classes, b.ints(0, 0, 0, most), b.int(-1)], "pair_class_padded")
        top, place = b.nodes_of("TopK", [ranked, b.ints(most)], ["top_score", "top_place"])
        return self._places(boxes, classes, top, place)

    def _picked(self) -> tuple[str, str, str, str]:
        """As `_suppressed`, in as many steps as there are places: each takes the best that is left, and what overlaps
        it goes. No shape depends on data.
        """
        b, settings = self.b, self.spec.settings
        boxes, scores, classes, passes, known = self._candidates()
        removes = self._overlaps(boxes)
        if not settings.agnostic:
            row, column = (b.node("Unsqueeze", [classes, b.ints(axis)], f"class_{axis}") for axis in (1, 2))
            removes = b.node("And", [removes, b.node("Equal", [row, column], "same_class")], "overlaps_in_class")
        if known is None:
            count = b.node("Squeeze", [b.side(scores, 1, "place_count"), b.ints(0)], "place_number")
            number = b.node("Range", [b.int(0), count, b.int(1)], "place")
        else:
            number = b.constant("place", np.arange(known))
        left = b.node("Where", [passes, scores, b.float(UNUSED)], "left0")
        scores_, places_ = [], []
        for step in range(settings.max_det):
            scores_.append(b.reduce("ReduceMax", left, 1, f"pick{step}_score", keepdims=True))
            pick = b.node("ArgMax", [left], f"pick{step}", axis=1, keepdims=1)
            places_.append(pick)
            gone = b.node("GatherND", [removes, pick], f"pick{step}_removes", batch_dims=1)
            own = b.node("Equal", [pick, number], f"pick{step}_own")  # a box without area does not overlap itself
            gone = b.node("Or", [gone, own], f"pick{step}_gone")
            left = b.node("Where", [gone, b.float(UNUSED), left], f"left{step + 1}")
        top = b.node("Concat", scores_, "top_score", axis=1)
        return self._places(boxes, classes, top, b.node("Concat", places_, "top_place", axis=1))

    def _overlaps(self, boxes: str) -> str:
        """Whether the IoU of two boxes is above the limit, bool `(B, Q, Q)`."""
        b = self.b
        names = [f"box_{side}" for side in ("x1", "y1", "x2", "y2")]
        columns = b.nodes_of("Split", [boxes, b.ints(1, 1, 1, 1)], names, axis=2)
        rows = [b.node("Transpose", [name], f"{name}_row", perm=[0, 2, 1]) for name in columns]

        def extent(low: int, high: int, of: list[str], name: str) -> str:
            return b.node("Sub", [of[high], of[low]], name)

        area = b.node("Mul", [extent(0, 2, columns, "box_width"), extent(1, 3, columns, "box_height")], "box_area")
        inside = []
        for low, high, name in ((0, 2, "width"), (1, 3, "height")):
            first = b.node("Max", [columns[low], rows[low]], f"common_{name}_begin")
            last = b.node("Min", [columns[high], rows[high]], f"common_{name}_end")
            inside.append(b.node("Relu", [b.node("Sub", [last, first], f"common_{name}_signed")], f"common_{name}"))
        common = b.node("Mul", inside, "common_area")
        both = b.node("Add", [area, b.node("Transpose", [area], "box_area_row", perm=[0, 2, 1])], "both_areas")
        union = b.node("Sub", [both, common], "union_area")
        return b.node("Greater", [b.node("Div", [common, union], "iou"), b.float(self.spec.settings.iou)], "overlaps")

    def _places(self, boxes: str, classes: str, top: str, place: str) -> tuple[str, str, str, str]:
        """What stands at `place`, `(B, N)`; -1 where the score says that the place is not used."""
        b = self.b
        used = b.node("GreaterOrEqual", [top, b.float(0)], "used")
        index = b.node("Unsqueeze", [place, b.ints(2)], "top_index")
        boxes = b.node("GatherND", [boxes, index], "top_boxes", batch_dims=1)
        wide = b.node("Unsqueeze", [used, b.ints(2)], "used_box")
        boxes = b.node("Where", [wide, boxes, b.float(UNUSED)], "result_boxes")
        classes = b.node("GatherElements", [classes, place], "top_class", axis=1)
        return boxes, top, b.node("Where", [used, classes, b.int(-1)], "result_classes"), used

    def _picture(self, scores: str) -> str:
        """The number of the picture of every place, float32 `(B, N)`."""
        b = self.b
        if self.spec.batch is not None:
            numbers = np.arange(self.spec.batch, dtype=np.float32)[:, None]
            return b.constant("picture", np.repeat(numbers, self.spec.settings.max_det, axis=1))
        count = b.node("Squeeze", [b.side(scores, 0, "pictures"), b.ints(0)], "picture_count")
        number = b.cast(b.node("Range", [b.int(0), count, b.int(1)], "picture_int"), "float32", "picture_float")
        column = b.node("Unsqueeze", [number, b.ints(1)], "picture_column")
        return b.node("Expand", [column, b.node("Shape", [scores], "place_shape")], "picture")

    def _rows(self, boxes: str, scores: str, classes: str, picture: str) -> str:
        """Rows picture, x1, y1, x2, y2, score, class of all places, `(B * N, 7)`."""
        b = self.b
        parts = [picture, scores, b.cast(classes, "float32", "result_classes_float")]
        first, score, last = (b.node("Unsqueeze", [part, b.ints(2)], f"{part}_cell") for part in parts)
        joined = b.node("Concat", [first, boxes, score, last], "rows_by_picture", axis=2)
        return b.node("Reshape", [joined, b.ints(-1, 7)], "rows")


def _centres(rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) + 0.5
    return np.stack([x, y, x, y], axis=1).astype(np.float32)
