"""Pictures that are already in memory: NumPy arrays, Pillow images and torch tensors, as BGR uint8 pixels.

Neither torch nor Pillow is imported here unless the caller has done so already. Nothing is guessed: an array whose kind
or range of values does not say what it means is refused with the cure.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .. import cuda_memory
from ..errors import SourceError
from ..preprocess import STRIDE


class DevicePicture:
    """A picture in the memory of a CUDA device, which is copied to the host when somebody wants to see it.

    Args:
        tensor: uint8 `(H, W, 3)` BGR, or float32 `(3, H, W)` RGB in 0..1, which goes into the network as it is.

    Attributes: `tensor`; `is_input`, whether it is the latter; `shape`, that of `array()`.
    """

    def __init__(self, tensor: Any):
        self.tensor = tensor
        self.is_input: bool = tensor.is_floating_point()
        height, width = tensor.shape[1:] if self.is_input else tensor.shape[:2]
        self.shape = (int(height), int(width), 3)
        self._array: np.ndarray | None = None

    def array(self) -> np.ndarray:
        """uint8 `(H, W, 3)` BGR."""
        if self._array is None:
            values = self.host()
            self._array = bgr_from_planes(values) if self.is_input else np.ascontiguousarray(values)
        return self._array

    def host(self) -> np.ndarray:
        """A copy of the tensor's values; waits for the current stream."""
        return self.tensor.cpu().numpy()


def is_pil(value: Any) -> bool:
    """Whether `value` is a Pillow image; False when Pillow was never imported."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor; False when torch was never imported."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, module.Tensor)


def tensor_of(value: Any) -> Any:
    """A torch tensor on the memory of what has `__dlpack__` (CuPy, JAX, ...); None for anything else."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        return None
    if is_tensor(value):
        return value
    try:
        return cuda_memory.as_tensor(value)
    except Exception as error:  # whatever the other library says
        raise TypeError(
            f"source: {type(value).__name__} cannot be read by torch.from_dlpack ({error}); convert it to an array"
        ) from error


def pictures_from_tensor(tensor: Any) -> list[np.ndarray | DevicePicture] | None:
    """The pictures in a uint8 tensor `(H, W, 3)` or `(N, H, W, 3)` BGR, where they lie; None for other tensors."""
    shape = tuple(tensor.shape)
    if str(tensor.dtype) != "torch.uint8" or len(shape) not in (3, 4) or shape[-1] != 3:
        return None
    if 0 in shape:
        raise ValueError(f"source: tensor must have at least one pixel, got shape {shape}")
    tensor = tensor.detach()
    if not cuda_memory.is_on_device(tensor):
        return list(check_array(tensor.cpu().numpy()))
    return [DevicePicture(one) for one in (tensor if len(shape) == 4 else tensor[None]).unbind()]


def check_array(array: np.ndarray) -> list[np.ndarray]:
    """The pictures in an array: `(H, W)`, `(H, W, 1)`, `(H, W, 3)` BGR, `(H, W, 4)` BGRA, or `(N, H, W, C)` of those.

    Raises:
        TypeError: samples that are not uint8.
        ValueError: another shape, or no pixels.
    """
    if array.dtype != np.uint8:
        cure = "scale it to 0..255 and convert it: (255 * a).round().astype(np.uint8) for a of range 0..1"
        if array.dtype == np.uint16:
            cure = "convert it: (a / 257).round().astype(np.uint8)"
        elif array.dtype == np.bool_:
            cure = "convert it: a.astype(np.uint8) * 255"
        raise TypeError(f"source: array must have dtype uint8, got {array.dtype}; {cure}")
    if array.size == 0:
        raise ValueError(f"source: array must have at least one pixel, got shape {array.shape}")
    if array.ndim == 4 and array.shape[-1] in (1, 3, 4):
        return list(array)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4)):
        return [array]
    cure = ""
    if array.ndim >= 3 and array.shape[-3] in (1, 3):
        cure = f"; channels come last: a.transpose({'1, 2, 0' if array.ndim == 3 else '0, 2, 3, 1'})"
    raise ValueError(
        f"source: array must have shape (H, W), (H, W, C) or (N, H, W, C), C 1, 3 or 4, got {array.shape}{cure}"
    )


def bgr_from_array(array: np.ndarray) -> np.ndarray:
    """One uint8 picture of `check_array` as `(H, W, 3)` BGR, C-contiguous. No copy where it is that already."""
    import cv2

    array = np.ascontiguousarray(array)
    if array.ndim == 2 or array.shape[-1] == 1:
        return cv2.cvtColor(array, cv2.COLOR_GRAY2BGR)
    return array if array.shape[-1] == 3 else cv2.cvtColor(array, cv2.COLOR_BGRA2BGR)


def uint8_from_deep(array: np.ndarray) -> np.ndarray:
    """Samples of more than 8 bits as uint8: 16-bit ones are divided by 257, floats of range 0..1 multiplied by 255.

    Raises SourceError where the values do not say what white is.
    """
    if array.dtype == np.uint16:
        import cv2

        return cv2.convertScaleAbs(array, alpha=1 / 257)  # rounds
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 255.0):  # false for NaN too
            raise SourceError(f"float samples must be of range 0..1 or 0..255, these are of {low:g}..{high:g}")
        return np.rint(array * (255.0 if high <= 1.0 else 1.0)).astype(np.uint8)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise SourceError(f"integer samples must be of range 0..255 or 0..65535, these are of {low}..{high}")
    return array.astype(np.uint8) if high <= 255 else uint8_from_deep(array.astype(np.uint16))


def bgr_from_pil(image: Any) -> np.ndarray:
    """A Pillow image of any mode as `(H, W, 3)` BGR uint8, turned upright by its EXIF orientation. Alpha is dropped.

    Raises whatever Pillow raises for a damaged file, SourceError for sample values that do not say what white is.
    """
    import cv2
    from PIL import ImageOps

    image.load()
    if image.width < 1 or image.height < 1:
        raise SourceError(f"the picture is empty: {image.width}x{image.height} pixels")
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # EXIF data that cannot be read says nothing about the orientation
        upright = image
    if upright.mode == "F" or upright.mode.startswith("I"):
        # Pillow's convert would clip these
        return bgr_from_array(uint8_from_deep(np.asarray(upright)))
    if upright.mode == "L":
        return bgr_from_array(np.asarray(upright))
    return cv2.cvtColor(np.asarray(_to_rgb(upright)), cv2.COLOR_RGB2BGR)


def _to_rgb(image: Any) -> Any:
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    elif image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    return image.convert("RGB")


def planes_from_tensor(tensor: Any) -> list[np.ndarray | DevicePicture]:
    """The pictures in a torch tensor `(3, H, W)` or `(N, 3, H, W)`, RGB, floating, 0..1, as float32 `(3, H, W)` arrays.

    They go into the network as they are, so the sides must be multiples of 32. Those on a CUDA device stay there.

    Raises:
        TypeError: samples that are not floating.
        ValueError: another shape, other sides or another range of values.
    """
    shape = tuple(tensor.shape)
    if not tensor.is_floating_point():
        raise TypeError(
            f"source: tensor must be floating, got {tensor.dtype}; convert it: t.float() / 255 (or pass uint8 BGR "
            "pictures with their channels last)"
        )
    if len(shape) not in (3, 4) or shape[-3] != 3:
        cure = "; channels come first: t.permute(2, 0, 1)" if len(shape) == 3 and shape[-1] == 3 else ""
        raise ValueError(f"source: tensor must have shape (3, H, W) or (N, 3, H, W), got {shape}{cure}")
    height, width = shape[-2:]
    if 0 in shape or height % STRIDE or width % STRIDE:
        raise ValueError(
            f"source: tensor must have sides that are multiples of {STRIDE}, got {height}x{width}; "
            f"pass the picture as an array to have it resized"
            if 0 not in shape
            else f"source: tensor must have at least one pixel, got shape {shape}"
        )
    planes = tensor.detach().float()
    if not cuda_memory.is_on_device(planes):
        planes = planes.cpu().numpy()
    low, high = float(planes.min()), float(planes.max())
    if not (low >= -1e-3 and high <= 1.0 + 1e-3):  # false for NaN too; resizing overshoots a little
        cure = "; divide it by 255" if low >= 0.0 and 1.0 < high <= 255.0 else ""
        raise ValueError(f"source: tensor must hold values of 0..1, got {low:g}..{high:g}{cure}")
    planes = planes.reshape(-1, 3, height, width)
    if not isinstance(planes, np.ndarray):
        return [DevicePicture(one) for one in planes.unbind()]
    return list(np.ascontiguousarray(planes))


def bgr_from_planes(planes: np.ndarray) -> np.ndarray:
    """A float RGB `(3, H, W)` picture of range 0..1 as BGR uint8 `(H, W, 3)`, for drawing."""
    pixels = np.rint(planes[::-1].clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
