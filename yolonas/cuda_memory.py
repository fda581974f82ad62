"""Memory, streams and events of one CUDA device, by torch: all that the engine there needs of it besides `_cuda`.

Tests put a stand-in of the same shape in the place of `Cuda`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Cuda:
    """One device.

    Streams and events are torch's: `stream.cuda_stream`, `stream.wait_event(event)`, `event.record(stream)`,
    `event.synchronize()`, `event.query()`, `event.elapsed_time(later)`.

    Args:
        device: a CUDA device; without a number the current one.
    """

    def __init__(self, device: torch.device):
        import torch

        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self.index: int = index

    def describe(self) -> tuple[str, str]:
        """Name and architecture: ("NVIDIA H100 80GB HBM3", "sm_90")."""
        import torch

        major, minor = torch.cuda.get_device_capability(self.index)
        return torch.cuda.get_device_name(self.index), f"sm_{major}{minor}"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes the device current for a block: torch hands out a tensor's memory only then."""
        import torch

        with torch.cuda.device(self.index):
            yield

    def current_stream(self) -> Any:
        """The stream that the caller's work is queued on."""
        import torch

        return torch.cuda.current_stream(self.index)

    def new_stream(self) -> Any:
        import torch

        return torch.cuda.Stream(self.index)

    def new_event(self, *, timed: bool = False) -> Any:
        import torch

        return torch.cuda.Event(enable_timing=timed)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, stream: Any = None) -> torch.Tensor:
        """Memory of the device, which belongs to a stream, by default the current one.

        Raises:
            MemoryError: there is too little.
        """
        import torch

        try:
            with torch.cuda.stream(stream):
                return torch.empty(tuple(shape), dtype=dtype, device=self.device)
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryError(f"{self.device} is full, use a smaller batch: {error}") from None

    def pinned(self, size: int) -> torch.Tensor:
        """`size` bytes of the host's memory that the device copies from and to without the processor: uint8.

        Raises:
            MemoryError: there is too little. RuntimeError: the device has failed.
        """
        import torch

        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            if "out of memory" not in str(error):  # but of a kernel that ran before
                raise
            raise MemoryError(f"the host gives no {size} bytes that a GPU can read: {error}") from None

    def copy(self, to: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        """Queues a copy between the device and pinned memory, or on the device. Does not wait."""
        import torch

        with torch.cuda.stream(stream):
            to.copy_(source, non_blocking=True)

    def constant(self, values: Any, dtype: torch.dtype, stream: Any) -> torch.Tensor:
        """Numbers on the device, copied there by a stream. Does not wait."""
        import torch

        with torch.cuda.stream(stream):
            return torch.tensor(values, dtype=dtype).pin_memory().to(self.device, non_blocking=True)

    def is_capturing(self) -> bool:
        """Whether the caller is capturing the current stream."""
        import torch

        return bool(torch.cuda.is_current_stream_capturing())

    def release(self) -> None:
        """Gives back what torch keeps for later: others may need it."""
        import torch

        torch.cuda.empty_cache()

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies on this device."""
        return tensor.device == self.device


def is_on_device(tensor: Any) -> bool:
    """Whether a torch tensor lies on a CUDA device."""
    return bool(tensor.is_cuda)


def is_torch(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def as_tensor(value: Any) -> torch.Tensor | None:
    """A torch tensor, or one on the same memory for what has `__dlpack__` (CuPy, JAX, ...); None for anything else.

    The current stream waits for what the other library has queued, where that tells its streams.
    """
    import torch

    if is_torch(value):
        return value.detach()
    return torch.from_dlpack(value) if hasattr(value, "__dlpack__") else None


def device_architecture(index: int) -> int:
    """10 * major + minor compute capability of a device that torch sees."""
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def why_no_devices() -> str:
    """What is missing where torch sees no CUDA device, and the cure."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install one for CUDA (pip install torch)"
    return (
        "no NVIDIA driver or device is found; look at what nvidia-smi says, and whether CUDA_VISIBLE_DEVICES hides them"
    )
