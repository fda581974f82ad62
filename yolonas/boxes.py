"""`Boxes`: the detections of one picture as columns of one array. Torch is never imported for NumPy data."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

if TYPE_CHECKING:
    import torch

Array = Any  # np.ndarray or torch.Tensor; a union would make every caller say which one it has


class Boxes:
    """N detections of one picture, as columns of one array.

    `data` is `(N, 6)`: x1, y1, x2, y2 in pixels of the original picture, confidence 0..1, class; or `(N, 7)` with a
    track id before the confidence. A NumPy array or torch tensor, kept without a copy where it is of a float dtype.
    Properties are views or arrays of the same kind, on the same device.

    Raises:
        TypeError: `data` is neither a NumPy array nor a torch tensor, or its values are not real numbers.
        ValueError: another shape, or an `orig_shape` that is no picture's `(height, width)`.
    """

    def __init__(self, data: Array, orig_shape: Sequence[int]) -> None:
        if not isinstance(data, np.ndarray) and not _is_tensor(data):
            raise TypeError(f"Boxes: data must be a NumPy array or torch tensor, got {type(data).__name__}")
        if data.ndim == 1:
            data = data[None]
        if data.ndim != 2 or data.shape[1] not in (6, 7):
            raise ValueError(
                f"Boxes: data must have shape (N, 6), or (N, 7) with track ids, got {tuple(data.shape)}; "
                "the columns are x1 y1 x2 y2 [id] confidence class"
            )
        if len(orig_shape) < 2 or min(orig_shape[:2]) < 1:
            raise ValueError(f"Boxes: orig_shape must be (height, width), got {tuple(orig_shape)}")
        self.data: Array = _as_float(data)
        self.orig_shape: tuple[int, int] = (int(orig_shape[0]), int(orig_shape[1]))

    @property
    def is_track(self) -> bool:
        """Whether there is a column of track ids."""
        return bool(self.data.shape[1] == 7)

    @property
    def xyxy(self) -> Array:
        """`(N, 4)`: left, top, right, bottom in pixels."""
        return self.data[:, :4]

    @property
    def xywh(self) -> Array:
        """`(N, 4)`: centre x, centre y, width, height in pixels."""
        boxes = copy_array(self.xyxy)
        boxes[:, 2:] -= boxes[:, :2]
        boxes[:, :2] += boxes[:, 2:] / 2
        return boxes

    @property
    def xyxyn(self) -> Array:
        """`xyxy` in parts of the picture's width and height."""
        return self._normalized(copy_array(self.xyxy))

    @property
    def xywhn(self) -> Array:
        """`xywh` in parts of the picture's width and height."""
        return self._normalized(self.xywh)

    @property
    def conf(self) -> Array:
        """`(N,)`: confidences."""
        return self.data[:, -2]

    @property
    def cls(self) -> Array:
        """`(N,)`: class numbers, as floats."""
        return self.data[:, -1]

    @property
    def id(self) -> Array | None:
        """`(N,)`: track ids as floats, or None."""
        return self.data[:, 4] if self.is_track else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `data`."""
        return tuple(self.data.shape)

    def cpu(self) -> Boxes:
        """The same in the computer's main memory; NumPy data stays as it is."""
        return self if isinstance(self.data, np.ndarray) else Boxes(self.data.cpu(), self.orig_shape)

    def numpy(self) -> Boxes:
        """The same as a NumPy array."""
        return self if isinstance(self.data, np.ndarray) else Boxes(_to_numpy(self.data), self.orig_shape)

    def cuda(self) -> Boxes:
        """The same as a torch tensor on the current CUDA device."""
        return Boxes(_to_tensor(self.data).cuda(), self.orig_shape)

    def to(self, *args: Any, **kwargs: Any) -> Boxes:
        """The same as a torch tensor after `torch.Tensor.to` with these arguments."""
        return Boxes(_to_tensor(self.data).to(*args, **kwargs), self.orig_shape)

    def label_lines(self, *, save_conf: bool = False) -> list[str]:
        """YOLO label lines, each with its line feed: `class x y w h [confidence] [track id]`.

        x, y is the centre; all four are parts of the picture's width and height.
        """
        found = self.numpy()
        ids = [None] * len(found) if found.id is None else whole_numbers(found.id).tolist()
        columns = zip(whole_numbers(found.cls).tolist(), found.xywhn.tolist(), found.conf.tolist(), ids, strict=True)
        lines = []
        for number, box, confidence, track in columns:
            values = [*box, confidence] if save_conf else box
            tail = "" if track is None else f" {track}"
            lines.append(f"{number} {' '.join(f'{value:g}' for value in values)}{tail}\n")
        return lines

    def __len__(self) -> int:
        return int(self.data.shape[0])

    def __getitem__(self, index: Any) -> Boxes:
        """Boxes of the chosen rows: by number, slice, sequence of numbers or mask of N booleans."""
        return Boxes(self.data[_row_index(index, self.data)], self.orig_shape)

    def __iter__(self) -> Iterator[Boxes]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Boxes(shape={self.shape}, orig_shape={self.orig_shape}, data={self.data!r})"

    def _normalized(self, boxes: Array) -> Array:
        height, width = self.orig_shape
        boxes[:, 0::2] /= width
        boxes[:, 1::2] /= height
        return boxes


def whole_numbers(values: Array) -> np.ndarray:
    """Classes or track ids as integers; NaN and infinity, which no file may hold, become -1."""
    numbers = np.asarray(values, np.float64)
    return np.where(np.abs(numbers) < 2**53, numbers, -1).astype(np.int64)


def copy_array(data: Array) -> Array:
    """The same kind of array with the same values, in memory of its own."""
    return data.copy() if isinstance(data, np.ndarray) else data.clone()


def _is_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    # nothing can be a tensor before someone has imported torch
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, getattr(module, "Tensor", ()))


def _to_numpy(data: Array) -> np.ndarray:
    if isinstance(data, np.ndarray):
        return data
    tensor = data.detach().cpu()
    return np.asarray((tensor.float() if tensor.element_size() == 2 else tensor).numpy())  # NumPy has no bfloat16


def _to_tensor(data: Array) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(data)) if isinstance(data, np.ndarray) else data


def _as_float(data: Array) -> Array:
    if isinstance(data, np.ndarray):
        if data.dtype.kind not in "fiub":
            raise TypeError(f"Boxes: data must hold real numbers, got dtype {data.dtype}")
        return data if data.dtype.kind == "f" else data.astype(np.float32)
    if data.is_complex():
        raise TypeError(f"Boxes: data must hold real numbers, got dtype {data.dtype}")
    return data if data.is_floating_point() else data.float()


def _row_index(index: Any, data: Array) -> Any:
    """What `data` is to be indexed with so that the result is two-dimensional. Raises TypeError or IndexError."""
    count = data.shape[0]
    if isinstance(index, (bool, np.bool_, tuple, str)) or index is None:
        raise TypeError(f"Boxes: index must be a number, slice, sequence or mask, got {index!r}")
    if isinstance(index, slice):
        rows = np.arange(count)[index]
        # torch takes no negative steps
        return index if isinstance(data, np.ndarray) or (index.step or 1) > 0 else rows.tolist()
    if _is_tensor(index):
        index = index.detach().cpu().numpy()
    if not isinstance(index, np.ndarray) and hasattr(index, "__index__"):
        index = np.asarray(operator.index(index))
    rows = np.asarray(index)
    if rows.size == 0 and rows.dtype.kind == "f":  # an empty list
        rows = rows.astype(np.int64)
    if rows.dtype.kind not in "biu" or rows.ndim > 1:
        raise TypeError(f"Boxes: index must be one-dimensional numbers or booleans, got {rows.dtype} {rows.shape}")
    if rows.dtype.kind == "b":
        if rows.shape != (count,):
            raise IndexError(f"Boxes: a mask must have one value per box, {count}, got shape {rows.shape}")
        rows = np.flatnonzero(rows)
    rows = rows.astype(np.int64)
    if rows.size and not (-count <= rows.min() and rows.max() < count):
        raise IndexError(f"Boxes: index must lie in -{count}..{count - 1}, got {rows.tolist()}")
    if rows.ndim == 0:
        first = int(rows) % count
        return slice(first, first + 1)
    return rows if isinstance(data, np.ndarray) else rows.tolist()
