"""Runs the TensorRT engines that `exporting.tensorrt` writes, on one GPU, with torch's memory and streams.

Written against TensorRT's documented interface and tested with a stand-in for it: it has never run on a GPU.
"""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CheckpointError
from .exporting.spec import INPUT_NAME
from .exporting.tensorrt import import_tensorrt, read_engine_header, tensorrt_log

if TYPE_CHECKING:
    from types import ModuleType

    import torch


class TensorRTSession:
    """An engine that is ready to run. Any number of threads may use it; it runs for one at a time.

    A plan is a program: load engines only of those whom you trust.

    Args:
        path: an engine file, built by the same version of TensorRT and for the same kind of GPU as are here.
        device: "cuda", "cuda:1" or a `torch.device`; None: the current one.

    Attributes:
        spec: what the file takes and gives. device: the `torch.device`. name, version: of the runtime.

    Raises:
        ImportError: `tensorrt` is not installed, or too old.
        RuntimeError: no GPU that torch can use, or not that one.
        CheckpointError: the file is no engine, or one for another version of TensorRT or another GPU.
    """

    name = "tensorrt"

    def __init__(self, path: str | os.PathLike[str], *, device: Any = None):
        self.spec, offset = read_engine_header(path)
        trt = import_tensorrt("predict: TensorRT engines")
        self.version = trt.__version__
        self.device = _checked_device(device)
        self._log = tensorrt_log(trt)
        self._lock = threading.Lock()
        with Path(path).open("rb") as file:
            file.seek(offset)
            plan = file.read()
        import torch

        with torch.cuda.device(self.device):
            self._stream = torch.cuda.Stream()
            self._runtime = trt.Runtime(self._log)  # has to live as long as the engine
            engine = self._runtime.deserialize_cuda_engine(plan)
            context = None if engine is None else engine.create_execution_context()
        if context is None:
            raise CheckpointError(
                f"{path}: cannot be run by TensorRT {trt.__version__} on {torch.cuda.get_device_name(self.device)}; an "
                f"engine is for one version of TensorRT and one kind of GPU: export it here{self._log.said()}"
            )
        self._engine, self._context = engine, context
        self._check_names(path, trt)
        self._input_dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(INPUT_NAME)))
        allocator = _allocator_class(trt)
        self._allocators = {
            name: allocator(self.device, np.dtype(trt.nptype(engine.get_tensor_dtype(name))))
            for name in self.spec.output_names
        }

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """The outputs for a batch, in the order of `spec.output_names`, with the shapes and types `ExportSpec` states.

        Args:
            x: as `spec` says: uint8 or float32, `(B, 3, H, W)` or `(B, H, W, 3)`.

        Raises:
            TypeError: another dtype.
            ValueError: a shape that the engine was not built for.
            RuntimeError: TensorRT failed, or the GPU's memory is not enough; the text has what TensorRT said.
        """
        import torch

        if x.dtype != self._input_dtype:
            raise TypeError(f"tensorrt: x must be {self._input_dtype}, got {x.dtype}")
        with self._lock, torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            self._log.errors.clear()
            if not self._context.set_input_shape(INPUT_NAME, x.shape):
                raise ValueError(
                    f"tensorrt: x must have {self._input_shapes()}, got {x.shape}; others take another engine"
                )
            batch = torch.from_numpy(np.require(x, requirements="CW")).to(self.device)
            self._context.set_tensor_address(INPUT_NAME, batch.data_ptr())
            # Each output has an allocator, whether its shape depends on the data or not.
            for name, allocator in self._allocators.items():
                allocator.shape = allocator.error = None
                self._context.set_output_allocator(name, allocator)
            done = self._context.execute_async_v3(self._stream.cuda_stream)
            self._stream.synchronize()
            failed = next((one.error for one in self._allocators.values() if one.error is not None), None)
            if not done or failed is not None:
                raise RuntimeError(f"tensorrt: the engine failed{self._log.said()}") from failed
            return [self._allocators[name].array() for name in self.spec.output_names]

    def _input_shapes(self) -> str:
        """The shapes that the engine was built for, in words."""
        shape = tuple(self._engine.get_tensor_shape(INPUT_NAME))
        if -1 not in shape:
            return f"shape {shape}"
        low, _, high = self._engine.get_tensor_profile_shape(INPUT_NAME, 0)
        return f"a shape from {tuple(low)} to {tuple(high)}"

    def _check_names(self, path: str | os.PathLike[str], trt: ModuleType) -> None:
        """Raises CheckpointError unless the plan has the inputs and outputs that the metadata state."""
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        inputs = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        if inputs != {INPUT_NAME} or set(names) - inputs != set(self.spec.output_names):
            raise CheckpointError(f"{path}: the plan is not of the network that the metadata describe, it has {names}")


def _checked_device(device: Any) -> torch.device:
    import torch

    found = torch.device("cuda" if device is None else device)
    if found.type != "cuda":
        raise RuntimeError(f"tensorrt: device must be a CUDA device, got {device}; engines run on NVIDIA GPUs only")
    if not torch.cuda.is_available():
        raise RuntimeError(f"tensorrt: engines need an NVIDIA GPU and a torch for CUDA, got torch {torch.__version__}")
    index = torch.cuda.current_device() if found.index is None else found.index
    count = torch.cuda.device_count()
    if index >= count:
        raise RuntimeError(f"tensorrt: device must be below cuda:{count}, got {device}")
    return torch.device("cuda", index)


def _allocator_class(trt: ModuleType) -> Any:
    """The class of what gives TensorRT memory for an output: it has to inherit from one of TensorRT's."""
    import torch

    class Allocator(trt.IOutputAllocator):  # type: ignore[name-defined,misc]
        def __init__(self, device: torch.device, dtype: np.dtype[Any]):
            trt.IOutputAllocator.__init__(self)
            self.device, self.dtype = device, dtype
            self.memory = torch.empty(0, dtype=torch.uint8, device=device)
            self.shape: tuple[int, ...] | None = None
            self.error: Exception | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            # An address is wanted even for no bytes. Nothing may be thrown at TensorRT. Torch aligns to 512 bytes, more
            # than any alignment that is asked for.
            try:
                if self.memory.numel() < max(1, size):
                    self.memory = torch.empty(max(1, size), dtype=torch.uint8, device=self.device)
            except Exception as error:
                self.error = error
                return 0
            return self.memory.data_ptr()

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

        def array(self) -> np.ndarray:
            """A copy of the output on the host."""
            if self.shape is None or min(self.shape, default=0) < 0:
                raise RuntimeError(f"tensorrt: an output has no shape, got {self.shape}")
            used = self.memory[: math.prod(self.shape) * self.dtype.itemsize]
            return used.to("cpu", copy=True).numpy().view(self.dtype).reshape(self.shape)

    return Allocator
