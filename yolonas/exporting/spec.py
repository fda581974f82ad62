"""What an exported file takes and gives: the one description that writers follow and that readers find in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import REG_MAX, STRIDES, VARIANTS, DetectSettings
from ..errors import CheckpointError
from ..preprocess import Preprocess, check_size

FORMAT_VERSION = 1
METADATA_KEY = "yolonas"  # of our JSON among a file's metadata
METADATA_FILE = "metadata.yaml"  # of formats that are folders
MOST_METADATA = 1 << 24  # bytes

PRECISIONS = ("fp32", "fp16", "int8")
OUTPUTS = ("batch", "flat", "rows", "raw", "heads", "deepstream")
SUPPRESSED = ("batch", "flat", "rows")  # outputs that thresholds and NMS have gone over
MOST_ROWS = 100  # of "rows", which takes a step of the graph for each

INPUT_NAME = "input"
# super-gradients' names, which many consumers have written into their code
BATCH_NAMES = ("graph2_num_predictions", "graph2_pred_boxes", "graph2_pred_scores", "graph2_pred_classes")
FLAT_NAMES = ("graph2_flat_predictions",)
RAW_NAMES = ("boxes", "scores")
HEADS_NAMES = tuple(f"{kind}{stride}" for kind in ("cls", "reg") for stride in STRIDES)
OUTPUT_NAMES = {
    "batch": BATCH_NAMES,
    "flat": FLAT_NAMES,
    "rows": ("detections",),
    "raw": RAW_NAMES,
    "heads": HEADS_NAMES,
    "deepstream": ("output",),
}


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """The protocol of a file.

    Attributes:
        variant: "s", "m" or "l". names: of the classes, by number.
        preprocess: how a picture becomes the input; its `size` is that of the file, or of a file of any size the one
            that it is meant for. settings: the thresholds; in the graph where `outputs` is one of `SUPPRESSED`, else
            for whoever goes over the outputs. `classes` is None.
        precision: of weights and activations; inputs and outputs are float32 in all of them.
        uint8: the input is the padded picture as bytes, which the graph scales; else float32, scaled as `preprocess`
            says. nhwc: its axes are batch, height, width, channel; else batch, channel, height, width. channels: the
            order that the caller sends, "rgb" or "bgr", whatever the network was trained with.
        batch: pictures per call; None: any. dynamic_size: whether the sides may be any multiples of 32.
        outputs, of B pictures with A anchors and K classes; boxes are xyxy in pixels of the input:
            "batch": number int64 `(B, 1)`, boxes `(B, N, 4)`, scores `(B, N)`, classes int64 `(B, N)`, best first, N =
            `settings.max_det`; unused places are -1.
            "flat": `(D, 7)` rows picture, x1, y1, x2, y2, score, class, by picture, best first.
            "rows": the same rows, N of them for each picture, unused ones -1: `(B * N, 7)`; no shape depends on data.
            "raw": boxes `(B, A, 4)`, scores `(B, A, K)`.
            "heads": class logits `(B, K, h, w)` of the three levels, then box logits `(B, 68, h, w)`.
            "deepstream": `(B, A, 6)` rows x1, y1, x2, y2, score and number of the best class.
        card: of the quantisation, as `Card.write` has it, or None.
    """

    variant: str
    names: Mapping[int, str]
    preprocess: Preprocess
    settings: DetectSettings
    precision: str = "fp32"
    uint8: bool = True
    nhwc: bool = False
    channels: str = "rgb"
    batch: int | None = 1
    dynamic_size: bool = False
    outputs: str = "batch"
    card: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def layout(self) -> str:
        """The axes of an input, as users write it."""
        return "nhwc" if self.nhwc else "nchw"

    @property
    def swaps_channels(self) -> bool:
        """Whether the graph has to reverse the order of the channels."""
        return self.channels != self.preprocess.channels

    @property
    def output_names(self) -> tuple[str, ...]:
        return OUTPUT_NAMES[self.outputs]

    def input_shape(self, batch: int | str, height: int | str, width: int | str) -> tuple[int | str, ...]:
        """The axes of an input in their order."""
        return (batch, height, width, 3) if self.nhwc else (batch, 3, height, width)

    def output_shapes(self, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        """The axes of the outputs for an input of these sides; -1: as many as there are detections."""
        cells = [(height // stride, width // stride) for stride in STRIDES]
        anchors = sum(rows * columns for rows, columns in cells)
        most, classes = self.settings.max_det, self.num_classes
        shapes: dict[str, list[tuple[int, ...]]] = {
            "batch": [(batch, 1), (batch, most, 4), (batch, most), (batch, most)],
            "flat": [(-1, 7)],
            "rows": [(batch * most, 7)],
            "raw": [(batch, anchors, 4), (batch, anchors, classes)],
            "heads": [(batch, channels, *level) for channels in (classes, 4 * (REG_MAX + 1)) for level in cells],
            "deepstream": [(batch, anchors, 6)],
        }
        return shapes[self.outputs]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the metadata under `METADATA_KEY`."""
        height, width = self.preprocess.size
        thresholds = asdict(self.settings)
        del thresholds["classes"]
        return {
            "format_version": FORMAT_VERSION,
            "yolonas_version": __version__,
            "variant": self.variant,
            "precision": self.precision,
            "num_classes": self.num_classes,
            "names": [self.names[number] for number in range(self.num_classes)],
            "preprocess": self.preprocess.to_dict(),
            **thresholds,
            "input": {
                "name": INPUT_NAME,
                "dtype": "uint8" if self.uint8 else "float32",
                "layout": self.layout,
                "channels": self.channels,
                "batch": self.batch,
                "height": None if self.dynamic_size else height,
                "width": None if self.dynamic_size else width,
            },
            "outputs": {"format": self.outputs, "names": list(self.output_names)},
            "card": self.card,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: Any) -> ExportSpec:
        """Inverse of `to_json`.

        Raises:
            CheckpointError: the text is something else, or of a newer version.
        """
        try:
            stated = json.loads(text)
            version = stated["format_version"]
            if type(version) is not int or version < 1 or version > FORMAT_VERSION:
                raise CheckpointError(
                    f"metadata: format_version must be in 1..{FORMAT_VERSION}, got {version!r:.40}; "
                    "a newer yolonas wrote this file, please update"
                )
            return cls._from_dict(stated)
        except (KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
            raise CheckpointError(f"metadata: {METADATA_KEY!r} cannot be used: {error!r:.200}") from None

    @classmethod
    def _from_dict(cls, stated: Mapping[str, Any]) -> ExportSpec:
        from ..checkpoint.contents import Contents
        from ..checkpoint.processing import preprocess_from_metadata
        from ..checkpoint.settings import THRESHOLDS, read_names, read_thresholds

        entry, count, notes = stated["input"], stated["num_classes"], []
        if type(count) is not int or not 1 <= count <= 100_000:
            raise ValueError(f"num_classes must be a whole number in 1..100000, got {count!r:.40}")
        names = read_names(stated["names"], count, notes)
        settings = read_thresholds(Contents("export", {}, **{key: stated[key] for key in THRESHOLDS}), count, notes)
        if notes:
            raise ValueError(notes[0])
        values = {
            "variant": (stated["variant"], tuple(VARIANTS)),
            "precision": (stated["precision"], PRECISIONS),
            "dtype": (entry["dtype"], ("uint8", "float32")),
            "layout": (entry["layout"], ("nchw", "nhwc")),
            "channels": (entry["channels"], ("rgb", "bgr")),
            "format": (stated["outputs"]["format"], OUTPUTS),
        }
        for name, (value, known) in values.items():
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r:.40}")
        batch, preprocess = entry["batch"], preprocess_from_metadata(stated["preprocess"])
        if batch is not None and (type(batch) is not int or not 1 <= batch <= 65536):
            raise ValueError(f"batch must be a whole number or null, got {batch!r:.40}")
        dynamic = entry["height"] is None
        if not dynamic:
            check_size("input", (entry["height"], entry["width"]))
            if preprocess.size != (entry["height"], entry["width"]):
                raise ValueError("the size of the input must be that of the pre-processing")
        card = stated.get("card")
        return cls(
            variant=stated["variant"],
            names=names,
            preprocess=preprocess,
            settings=settings,
            precision=stated["precision"],
            uint8=entry["dtype"] == "uint8",
            nhwc=entry["layout"] == "nhwc",
            channels=entry["channels"],
            batch=batch,
            dynamic_size=dynamic,
            outputs=stated["outputs"]["format"],
            card=card if isinstance(card, dict) else None,
        )


def metadata(spec: ExportSpec) -> dict[str, Any]:
    """What a file says about itself: our JSON, and the plain values that loaders of other libraries look for."""
    return {
        "description": f"YOLO-NAS {spec.variant.upper()}, {spec.num_classes} classes, {spec.precision}",
        "author": "yolonas",
        "version": __version__,
        "license": "that of the weights, which may be another than that of yolonas",
        "task": "detect",
        "stride": max(STRIDES),
        "batch": spec.batch or 1,
        "imgsz": list(spec.preprocess.size),
        "channels": 3,
        "names": {number: spec.names[number] for number in range(spec.num_classes)},
        "end2end": spec.outputs in SUPPRESSED,
        "args": {"batch": spec.batch or 1, "half": spec.precision == "fp16", "int8": spec.precision == "int8"}
        | {"dynamic": spec.batch is None or spec.dynamic_size, "nms": spec.outputs in SUPPRESSED},
        METADATA_KEY: spec.to_json(),
    }


def metadata_texts(spec: ExportSpec) -> dict[str, str]:
    """The same for formats that have texts only: numbers, lists and dicts as Python writes them."""
    return {key: str(value) for key, value in metadata(spec).items()}


def write_metadata(folder: Path, spec: ExportSpec) -> None:
    """Writes `METADATA_FILE` into the folder of a format that is one."""
    import yaml

    text = yaml.safe_dump(metadata(spec), sort_keys=False, allow_unicode=True, width=1 << 30)
    (folder / METADATA_FILE).write_text(text, encoding="utf-8", newline="\n")


def read_metadata(folder: Path) -> dict[str, Any]:
    """What `METADATA_FILE` of a folder says.

    Raises:
        CheckpointError: there is none, or it is something else.
    """
    import yaml

    path = folder / METADATA_FILE
    try:
        if path.stat().st_size > MOST_METADATA:
            raise ValueError("it is too large for metadata")
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # of values that do not fit their tags the package raises whatever Python does
        raise CheckpointError(f"{path}: cannot be read: {(str(error).splitlines() or [''])[0]}; export again") from None
    if not isinstance(stated, dict):
        raise CheckpointError(f"{path}: must hold names and values; export again")
    return stated
