"""`Results`: one picture and what was found in it, with its forms as picture, text, table and JSON.

Drawing, windows and the writing of files live elsewhere and are loaded when they are used.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .boxes import Array, Boxes, copy_array, whole_numbers
from .data.arrays import DevicePicture

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Boxes", "Results"]

_CORNERS = ("x1", "y1", "x2", "y2")
_IMAGE_SUFFIX = ".jpg"  # where a picture file is asked for and the name has no suffix that can be written


class Results:
    """What was found in one picture.

    Args:
        orig_img: the picture, `(H, W, 3)` uint8 BGR; gray `(H, W)` and BGRA are taken too. Kept without a copy. A
            `DevicePicture` is copied to the host when `orig_img` is used first.
        path: where it came from; outputs are named after it.
        names: class number to class name, as a mapping or a list.
        boxes: a `Boxes`, its `data`, or None for no detections.
        speed: milliseconds of the steps `preprocess`, `inference` and `postprocess`.

    `masks`, `probs`, `keypoints` and `obb` are always None: this is a detector. `len`, indexing and iteration go over
    the detections.
    """

    masks = probs = keypoints = obb = None

    def __init__(
        self,
        orig_img: np.ndarray | DevicePicture,
        path: str | os.PathLike[str],
        names: Mapping[int, str] | Sequence[str],
        boxes: Boxes | Array | None = None,
        speed: Mapping[str, float | None] | None = None,
    ) -> None:
        if not isinstance(orig_img, DevicePicture):
            _check_picture("orig_img", orig_img)
        self._picture: np.ndarray | DevicePicture = orig_img
        self.orig_shape: tuple[int, int] = (orig_img.shape[0], orig_img.shape[1])
        self.path = os.fspath(path)
        self.names = _names_by_number(names)
        self.speed: dict[str, float | None] = {"preprocess": None, "inference": None, "postprocess": None}
        self.speed.update(speed or {})
        self.save_dir: str | os.PathLike[str] | None = None
        self.boxes = self._own_boxes(boxes)

    @property
    def orig_img(self) -> np.ndarray:
        """The picture, `(H, W, 3)` uint8 BGR."""
        return self._picture.array() if isinstance(self._picture, DevicePicture) else self._picture

    @orig_img.setter
    def orig_img(self, picture: np.ndarray) -> None:
        self._picture = picture

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Results:
        """Results with the chosen detections: by number, slice, sequence of numbers or mask of booleans."""
        return self._with_boxes(self.boxes[index])

    def __iter__(self) -> Iterator[Results]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Results(path={self.path!r}, orig_shape={self.orig_shape}, {self.verbose().rstrip(', ')})"

    def update(self, boxes: Boxes | Array | None = None) -> None:
        """Replaces the boxes, limited to the picture; None leaves them as they are."""
        if boxes is None:
            return
        new = self._own_boxes(boxes)
        height, width = self.orig_shape
        data = copy_array(new.data)
        data[:, 0:4:2] = data[:, 0:4:2].clip(0, width)
        data[:, 1:4:2] = data[:, 1:4:2].clip(0, height)
        self.boxes = Boxes(data, self.orig_shape)

    def new(self) -> Results:
        """Results of the same picture without detections."""
        return self._with_boxes(None)

    def cpu(self) -> Results:
        """The same with the boxes in the computer's main memory."""
        return self._with_boxes(self.boxes.cpu())

    def numpy(self) -> Results:
        """The same with the boxes as a NumPy array."""
        return self._with_boxes(self.boxes.numpy())

    def cuda(self) -> Results:
        """The same with the boxes as a torch tensor on the current CUDA device."""
        return self._with_boxes(self.boxes.cuda())

    def to(self, *args: Any, **kwargs: Any) -> Results:
        """The same with the boxes as a torch tensor after `torch.Tensor.to` with these arguments."""
        return self._with_boxes(self.boxes.to(*args, **kwargs))

    def plot(
        self,
        conf: bool = True,
        line_width: float | None = None,
        font_size: float | None = None,
        font: str = "Arial.ttf",
        pil: bool = False,
        img: np.ndarray | None = None,
        kpt_radius: int = 5,
        kpt_line: bool = True,
        labels: bool = True,
        boxes: bool = True,
        masks: bool = True,
        probs: bool = True,
        show: bool = False,
        save: bool = False,
        filename: str | os.PathLike[str] | None = None,
        color_mode: str = "class",
        txt_color: Sequence[int] = (255, 255, 255),
    ) -> np.ndarray | Image:
        """Draws the boxes with labels on a copy of the picture.

        Args:
            conf: labels end with the confidence.
            line_width: of the boxes, in pixels; None goes by the size of the picture.
            font_size: of the labels, in pixels; None goes by the sizes of the picture and the boxes.
            font: TrueType file for the labels; where it is not found or lacks a letter, another is used.
            pil: return an RGB `PIL.Image.Image` instead of an array.
            img: draw on this picture of the same size instead of `orig_img`; it is copied too.
            labels: draw labels.
            boxes: draw boxes and labels at all.
            show: also open it in a window, see `show`.
            save: also write it to `filename`, or where `save` would.
            color_mode: `class` for one colour per class, `instance` for one per track or detection.
            txt_color: blue, green, red of the labels. White means white, or black where that reads better.
            kpt_radius, kpt_line, masks, probs: taken for compatibility, a detector has nothing for them.

        Returns:
            `(H, W, 3)` uint8, BGR.
        """
        _check_positive("line_width", line_width)
        _check_positive("font_size", font_size)
        if color_mode not in ("class", "instance"):
            raise ValueError(f"plot: color_mode must be 'class' or 'instance', got {color_mode!r}")
        if len(txt_color) != 3 or not all(0 <= value <= 255 for value in txt_color):
            raise ValueError(f"plot: txt_color must be three values of 0..255, got {txt_color!r}")
        if img is not None:
            _check_picture("img", img)
            if img.shape[:2] != self.orig_shape:
                raise ValueError(f"plot: img must have the picture's size {self.orig_shape}, got {img.shape[:2]}")
        from .draw import bgr_copy, draw_boxes

        picture = bgr_copy(self.orig_img if img is None else img)
        if boxes and len(self):
            found = self.boxes.numpy()
            classes = whole_numbers(found.cls)
            by_instance = np.arange(len(found)) if found.id is None else whole_numbers(found.id)
            draw_boxes(
                picture,
                found.xyxy,
                labels=self._labels(found, classes, conf) if labels else None,
                classes=classes if color_mode == "class" else by_instance,
                scores=found.conf,
                line_width=line_width,
                font_size=font_size,
                font=os.fspath(font),
                txt_color=(int(txt_color[0]), int(txt_color[1]), int(txt_color[2])),
            )
        if save:
            from .runs import write_image

            write_image(self._default_filename() if filename is None else filename, picture)
        if show:
            from .window import show_image

            show_image(picture, self.path)
        if pil:
            from PIL import Image as PillowImage

            return PillowImage.fromarray(np.ascontiguousarray(picture[:, :, ::-1]))
        return picture

    def show(self, **plot_options: Any) -> None:
        """Opens the picture with its boxes in a window until a key is pressed; takes the arguments of `plot`.

        Without a display it logs a warning the first time, and returns.
        """
        self.plot(**{**plot_options, "show": True})

    def save(self, filename: str | os.PathLike[str] | None = None, **plot_options: Any) -> str:
        """Writes the picture with its boxes and returns the file's path; takes the arguments of `plot`.

        Without a `filename` it is `results_<name of the input>` in the current folder. Missing folders are made.

        Raises:
            ValueError: the suffix names no picture format that can be written.
        """
        target = self._default_filename() if filename is None else os.fspath(filename)
        self.plot(**{**plot_options, "save": True, "filename": target})
        return target

    def verbose(self) -> str:
        """The detections in words, by class: `2 persons, 1 car, `; or `(no detections), `."""
        if not len(self):
            return "(no detections), "
        classes, counts = np.unique(whole_numbers(self.boxes.numpy().cls), return_counts=True)
        # names come from files: escape codes must not reach the terminal
        names = ["".join(c if c.isprintable() else " " for c in self._name(number)) for number in classes.tolist()]
        return "".join(
            f"{n} {name}{'s' if n > 1 and not name.endswith('s') else ''}, "
            for name, n in zip(names, counts.tolist(), strict=True)
        )

    def save_txt(self, txt_file: str | os.PathLike[str], save_conf: bool = False) -> str:
        """Appends one line per detection (see `Boxes.label_lines`) and returns the path.

        Nothing is created where there are no detections.
        """
        lines = self.boxes.label_lines(save_conf=save_conf)
        if lines:
            path = Path(txt_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:  # one write: lines of two writers do not mix
                file.write("".join(lines).encode())
        return os.fspath(txt_file)

    def save_crop(self, save_dir: str | os.PathLike[str], file_name: str | os.PathLike[str] = "im.jpg") -> list[str]:
        """Writes every detection's part of the picture to `save_dir/<class name>/<file_name>.jpg`; returns the paths.

        Where the file is there already `-2`, `-3` ... follow the name. Boxes without any pixel inside the picture are
        left out. Class names are made safe for file systems.
        """
        from .runs import encode_image, is_plain_name, safe_name, write_new_file

        stem = Path(file_name).name
        if stem.lower().endswith((".jpg", ".jpeg", ".png")):
            stem = stem.rpartition(".")[0]
        stem = stem if is_plain_name(stem) else safe_name(stem)
        picture = self.orig_img if self.orig_img.ndim == 2 else self.orig_img[:, :, : min(3, self.orig_img.shape[2])]
        height, width = self.orig_shape
        found = self.boxes.numpy()
        written = []
        for number, box in zip(whole_numbers(found.cls).tolist(), found.xyxy.astype(np.float64).tolist(), strict=True):
            if not all(map(math.isfinite, box)):
                continue
            left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
            right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
            if right <= left or bottom <= top:
                continue
            data = encode_image(np.ascontiguousarray(picture[top:bottom, left:right]), _IMAGE_SUFFIX)
            folder = Path(save_dir) / safe_name(self._name(number))
            written.append(str(write_new_file(folder / f"{stem}{_IMAGE_SUFFIX}", data)))
        return written

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[dict[str, Any]]:
        """One dict per detection: name, class, confidence, box (x1, y1, x2, y2) and, where there is one, track_id.

        `normalize` gives coordinates as parts of the picture's width and height. Numbers are rounded to `decimals`;
        NaN and infinity become None.
        """
        found = self.boxes.numpy()
        boxes = (found.xyxyn if normalize else found.xyxy).astype(np.float64)
        rows = []
        for index, number in enumerate(whole_numbers(found.cls).tolist()):
            row: dict[str, Any] = {
                "name": self._name(number),
                "class": number,
                "confidence": _rounded(float(found.conf[index]), decimals),
                "box": {
                    key: _rounded(float(value), decimals) for key, value in zip(_CORNERS, boxes[index], strict=True)
                },
            }
            if found.id is not None:
                row["track_id"] = int(whole_numbers(found.id)[index])
            rows.append(row)
        return rows

    def to_df(self, normalize: bool = False, decimals: int = 5) -> Any:
        """The rows of `summary` as a `polars.DataFrame`; needs `yolonas[dataframe]`."""
        try:
            import polars
        except ImportError as error:
            raise ImportError("to_df: polars is missing; pip install 'yolonas[dataframe]'") from error

        box = polars.Struct(dict.fromkeys(_CORNERS, polars.Float64))
        schema = {"name": polars.String, "class": polars.Int64, "confidence": polars.Float64, "box": box}
        if self.boxes.is_track:
            schema["track_id"] = polars.Int64
        return polars.DataFrame(self.summary(normalize, decimals), schema=schema)

    def to_csv(self, normalize: bool = False, decimals: int = 5) -> str:
        """The rows of `summary` as text under a header: `name,class,confidence,x1,y1,x2,y2[,track_id]`."""
        text = io.StringIO()
        columns = ["name", "class", "confidence", *_CORNERS, *["track_id"] * self.boxes.is_track]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in self.summary(normalize, decimals):
            box = row.pop("box")
            writer.writerow({**row, **box})
        return text.getvalue()

    def to_json(self, normalize: bool = False, decimals: int = 5) -> str:
        """The rows of `summary` as a JSON list."""
        return json.dumps(self.summary(normalize, decimals), ensure_ascii=False, allow_nan=False)

    def tojson(self, normalize: bool = False, decimals: int = 5) -> str:
        """The older name of `to_json`."""
        return self.to_json(normalize, decimals)

    def to_supervision(self) -> Any:
        """The detections as a `supervision.Detections`; needs `yolonas[supervision]`."""
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision: supervision is missing; pip install 'yolonas[supervision]'") from error

        found = self.boxes.numpy()
        classes = whole_numbers(found.cls)
        return supervision.Detections(
            xyxy=found.xyxy.astype(np.float32),
            confidence=found.conf.astype(np.float32),
            class_id=classes,
            tracker_id=None if found.id is None else whole_numbers(found.id),
            data={"class_name": np.array([self._name(number) for number in classes.tolist()], dtype=str)},
        )

    def _with_boxes(self, boxes: Boxes | None) -> Results:
        other = copy.copy(self)
        other.speed = dict(self.speed)
        other.boxes = self._own_boxes(boxes)
        return other

    def _own_boxes(self, boxes: Boxes | Array | None) -> Boxes:
        if boxes is None:
            return Boxes(np.zeros((0, 6), np.float32), self.orig_shape)
        if not isinstance(boxes, Boxes):
            return Boxes(boxes, self.orig_shape)
        if boxes.orig_shape != self.orig_shape:
            raise ValueError(f"Results: boxes must be of a picture of {self.orig_shape}, got {boxes.orig_shape}")
        return boxes

    def _name(self, number: int) -> str:
        return self.names.get(number, str(number))

    def _labels(self, found: Boxes, classes: np.ndarray, conf: bool) -> list[str]:
        labels = [self._name(number) for number in classes.tolist()]
        if found.id is not None:
            tracks = whole_numbers(found.id).tolist()
            labels = [f"id:{track} {label}" for track, label in zip(tracks, labels, strict=True)]
        if conf:
            labels = [f"{label} {score:.2f}" for label, score in zip(labels, found.conf.tolist(), strict=True)]
        return labels

    def _default_filename(self) -> str:
        from .runs import can_write_image, safe_name

        source = self.path.partition("?")[0] if "://" in self.path else self.path
        name = Path(source).name
        if not can_write_image(Path(name).suffix):
            name = f"{Path(name).stem or 'image'}{_IMAGE_SUFFIX}"
        return f"results_{safe_name(name)}"


def _rounded(value: float, decimals: int) -> float | None:
    return round(value, decimals) if math.isfinite(value) else None


def _names_by_number(names: Mapping[int, str] | Sequence[str]) -> dict[int, str]:
    if isinstance(names, Mapping):
        return {int(number): str(name) for number, name in names.items()}
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"Results: names must be a mapping or a list, got {type(names).__name__}")
    return {number: str(name) for number, name in enumerate(names)}


def _check_picture(argument: str, picture: Any) -> None:
    if not isinstance(picture, np.ndarray):
        raise TypeError(f"Results: {argument} must be a NumPy array, got {type(picture).__name__}")
    if picture.dtype != np.uint8:
        raise TypeError(f"Results: {argument} must be uint8, got {picture.dtype}")
    if picture.ndim not in (2, 3) or 0 in picture.shape or (picture.ndim == 3 and picture.shape[2] not in (1, 3, 4)):
        raise ValueError(f"Results: {argument} must have shape (H, W, 3), (H, W, 4) or (H, W), got {picture.shape}")


def _check_positive(argument: str, value: float | None) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < 1e5
    ):
        raise ValueError(f"plot: {argument} must be a number of pixels above 0, got {value!r}")
