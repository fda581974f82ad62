"""Runs a network by the native engine on a CUDA device. Memory and streams are torch's, see `cuda_memory`.

Pictures of the host go through pinned memory and a stream of their own, so that those of one call are copied while the
call before computes. Whatever is queued on the caller's current stream comes before and after as it was queued.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from . import __version__, _native, cuda_memory
from .config import REG_MAX, STRIDES
from .native_engine import graph_of_module, state_of, with_parameters
from .ops._dispatch import check_max_det, class_mask
from .prepare import common_frame, detect_arguments
from .selection import select_detections

if TYPE_CHECKING:
    import torch

    from .compiled import CompiledNetwork
    from .config import DetectSettings
    from .lowering import Graph
    from .nn import YoloNAS
    from .preprocess import Geometry, Preprocess, Size

ALIGNMENT = 256  # bytes, of each picture and of each part of the results
SPARE_SLOTS = 4  # sets of buffers that are kept for later calls
KEPT_CONSTANTS = 256  # small tensors on the device

Result = TypeVar("Result")


@dataclass
class Submitted:
    """A call that runs on the device; `CudaEngine.collect` gives its results."""

    slot: _Slot | None  # None: done
    count: int  # pictures
    max_det: int
    seconds: float  # of the host's part

    def __del__(self) -> None:
        # The device may still use the slot's memory, which would be another tensor's.
        if self.slot is not None:
            with contextlib.suppress(Exception):
                self.slot.done.synchronize()


class CudaEngine:
    """A YoloNAS network in the native engine on one CUDA device: see `TorchEngine`, whose interface it has.

    It copies the weights, and notices when those of the module it was made from have changed: `stands_for`. Any number
    of threads may use it at once. Results do not depend on the batch or on what else runs.

    Args:
        native: a `_cuda.Engine`. num_classes: its class outputs. cuda: where it lies.

    Attributes: besides those of `TorchEngine`, `native`, `num_classes`, `cuda`.
    """

    name = "native"
    layout: Literal["chw", "hwc"] = "hwc"
    fixed_size = None
    torch_boxes = True

    def __init__(self, native: Any, num_classes: int, cuda: cuda_memory.Cuda, *, half: bool = False):
        self.native, self.num_classes, self.cuda, self.half = native, num_classes, cuda, half
        self.device = cuda.device
        self._source: YoloNAS | CompiledNetwork | None = None
        self._state: tuple[Any, ...] = ()
        self._lock = threading.Lock()
        self._free: list[_Slot] = []
        self._copies = cuda.new_stream()  # from the host to the device
        self._constants = _Constants(cuda)

    @classmethod
    def of_module(cls, model: YoloNAS, device: torch.device, *, half: bool = False) -> CudaEngine:
        """An engine with the weights of a module, which is fused in place and stays where it is.

        Args:
            half: weights and maps are float16, head outputs and what follows float32. A quantised network runs in int8.

        Raises:
            ValueError: weights that are not finite; a quantised network whose scales are missing, wrong or have been
                rounded to another type, or with `half`. MemoryError: the weights do not fit. RuntimeError: CUDA fails.
        """
        engine = cls.of_graph(graph_of_module(model), model.num_classes, device, half=half)
        engine._source, engine._state = model, state_of(model)
        return engine

    @classmethod
    def of_graph(cls, graph: Graph, num_classes: int, device: torch.device, *, half: bool = False) -> CudaEngine:
        """An engine of a lowered network; raises as `of_module` does."""
        cuda = cuda_memory.Cuda(device)
        native = _made(
            cuda,
            lambda module: module.Engine(graph.buffers, graph.steps, graph.outputs, device=cuda.index, half=half),
        )
        return cls(native, num_classes, cuda, half=half)

    @classmethod
    def of_compiled(cls, network: CompiledNetwork, device: torch.device, *, half: bool = False) -> CudaEngine:
        """An engine with the network of a compiled file; raises as `of_module` does."""
        engine = cls.of_serialized(network.engine.native.serialize(), network.num_classes, device, half=half)
        engine._source = network
        return engine

    @classmethod
    def of_serialized(cls, data: bytes, num_classes: int, device: torch.device, *, half: bool = False) -> CudaEngine:
        """An engine with the network that `_cpu.Engine.serialize` gives; raises as `of_module` does."""
        cuda = cuda_memory.Cuda(device)
        native = _made(cuda, lambda module: module.Engine.deserialize(data, device=cuda.index, half=half))
        return cls(native, num_classes, cuda, half=half)

    def stands_for(self, model: YoloNAS | CompiledNetwork, device: Any, *, half: bool) -> bool:
        """Whether an engine for these arguments would be the same: the weights may have been changed since."""
        if self._source is not model or device.type != "cuda" or self.half != half:
            return False
        if device.index is not None and device.index != self.cuda.index:
            return False
        return model.form == "compiled" or self._state == state_of(model)

    # --- the interface that all engines have ---

    def heads(self, batch: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Class and box logits per level, copied to the host: float32 `(N, h, w, K)` and `(N, h, w, 68)`.

        Args:
            batch: float32 `(N, H, W, 3)`, prepared as the checkpoint's `Preprocess` says, sides multiples of 32.

        Raises:
            TypeError, ValueError: another dtype or shape. MemoryError: the batch does not fit.
        """
        cls, reg = self.heads_on_device(self.put(batch))
        arrays = self.fetch([*cls, *reg])
        return arrays[: len(cls)], arrays[len(cls) :]

    def select(self, cls: list[np.ndarray], reg: list[np.ndarray], settings: DetectSettings) -> list[np.ndarray]:
        """Detections of each picture from head outputs; see `select_detections`."""
        return select_detections(cls, reg, settings)

    def detect(
        self,
        pictures: Sequence[np.ndarray | torch.Tensor],
        geometries: Sequence[Geometry],
        preprocess: Preprocess,
        settings: DetectSettings,
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Detections of each picture, from its pixels, with one wait at the end; see `TorchEngine.detect`.

        Args:
            pictures: uint8 `(H, W, 3)` BGR, each a NumPy array or a tensor on the engine's device.

        Returns:
            As the other engines; the seconds are the host's copying, the device's work, and the host's rest.
        """
        return self.collect(self.submit(pictures, geometries, preprocess, settings))

    def plan(self, size: Size) -> list[dict[str, Any]]:
        """What is run for one picture of `size` (height, width): see `NativeEngine.plan`. Besides, of each step the
        number of its `stream` and whether it may `overlap` the end of the step before.
        """
        with self.cuda.active():
            return [with_parameters(step) for step in self.native.plan(*size, 1)]

    def time_steps(self, size: Size, rounds: int) -> list[float]:
        """Milliseconds of each step of `plan`, each alone on the device, the median of some rounds, measured now."""
        with self.cuda.active():
            return list(self._with_room(lambda: self.native.time_steps(*size, 1, rounds)))

    def describe(self) -> str:
        """What it runs on, in words."""
        name, architecture = self.cuda.describe()
        return f"{name} ({architecture}), {self.kind()}"

    def kind(self) -> str:
        """What it computes with: "float32", "float16" or "int8"."""
        integers = any(step.endswith(".quantize") for step in self.native.step_names)
        return "int8" if integers else "float16" if self.half else "float32"

    def place(self) -> str:
        """The same, shorter."""
        return str(self.device)

    def machine(self) -> str:
        """What choices of how layers run are made for, besides the layers; see `tuning`."""
        name, architecture = self.cuda.describe()
        module = _native.cuda()
        runtime = f"CUDA {module.runtime_version()}"  # type: ignore[union-attr]
        return f"{name}, {architecture}, {runtime}, yolonas {__version__}, plan {self.native.plan_version}"

    # --- calls that overlap ---

    def submit(
        self,
        pictures: Sequence[np.ndarray | torch.Tensor],
        geometries: Sequence[Geometry],
        preprocess: Preprocess,
        settings: DetectSettings,
    ) -> Submitted:
        """Queues what `detect` does on the current stream and returns; the arrays may be changed from then on.

        Each call that is not collected has memory of its own, so let there be few.

        Raises:
            TypeError, ValueError: pictures that are none, whose frames differ, or on another device.
            MemoryError: the batch does not fit.
        """
        start = time.perf_counter()
        check_max_det("detect", settings.max_det)
        frame = common_frame(pictures, geometries)
        for number, picture in enumerate(pictures):
            self._check_picture(number, picture, geometries[number])
        with self._lock:
            slot = self._free.pop() if self._free else None
        with self.cuda.active():
            slot = slot or _Slot(self.cuda)
            stream = self.cuda.current_stream()
            try:
                on_device = slot.upload(pictures, self._copies)
                stream.wait_event(slot.uploaded)
                slot.reserve_results(len(pictures), settings.max_det, stream)
                slot.started.record(stream)
                self._queue(
                    *(on_device, frame, geometries, preprocess, settings),
                    *slot.results(len(pictures), settings.max_det),
                    stream,
                )
                slot.finished.record(stream)
                slot.download(stream)
                slot.done.record(stream)
            except BaseException:
                _settle(stream, self._copies)  # the device may still use the slot's memory
                raise
        return Submitted(slot, len(pictures), settings.max_det, time.perf_counter() - start)

    def collect(self, submitted: Submitted) -> tuple[list[np.ndarray], np.ndarray]:
        """Waits for a call and gives its results, which are `detect`'s. Calls may be collected in any order, once each.

        Raises:
            RuntimeError: the device has failed.
        """
        slot, submitted.slot = submitted.slot, None
        if slot is None:
            raise RuntimeError("collect: the results of a call can be had once")
        slot.done.synchronize()
        start = time.perf_counter()
        detections, counts = slot.arrays(submitted.count, submitted.max_det)
        rows = [found[:kept].copy() for found, kept in zip(detections, counts.tolist(), strict=True)]
        on_device = 1e-3 * slot.started.elapsed_time(slot.finished)
        self._give_back(slot)
        return rows, np.array((submitted.seconds, on_device, time.perf_counter() - start))

    def discard(self, submitted: Submitted) -> None:
        """Waits for a call whose results nobody wants; of one that was collected nothing is left to do."""
        slot, submitted.slot = submitted.slot, None
        if slot is not None:
            slot.done.synchronize()
            self._give_back(slot)

    # --- without the host ---

    def detect_on_device(
        self,
        pictures: Sequence[torch.Tensor],
        geometries: Sequence[Geometry],
        preprocess: Preprocess,
        settings: DetectSettings,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `detect`, from memory of the device to memory of the device, queued on the current stream; never waits.

        Returns:
            float32 `(N, max_det, 6)` rows x1, y1, x2, y2, score, class in pixels of the frame, zero beyond the count,
            and int64 `(N,)` counts.
        """
        import torch

        check_max_det("detect", settings.max_det)
        frame = common_frame(pictures, geometries)
        for number, picture in enumerate(pictures):
            self._check_picture(number, picture, geometries[number])
        with self.cuda.active():
            detections = self.cuda.empty((len(pictures), settings.max_det, 6), torch.float32)
            counts = self.cuda.empty((len(pictures),), torch.int64)
            stream = self.cuda.current_stream()
            pictures = [_with_whole_pixels(picture) for picture in pictures]
            self._queue(pictures, frame, geometries, preprocess, settings, detections, counts, stream)
        return detections, counts

    def detect_planes(
        self, planes: Sequence[torch.Tensor], preprocess: Preprocess, settings: DetectSettings
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """As `detect`, of `(3, H, W)` floating planes on the device, RGB in 0..1, as large as their frame."""
        start = time.perf_counter()
        with self.cuda.active():
            detections, counts = self._fetch(self.detect_input(self.input_of_planes(planes, preprocess), settings))
        rows = [found[:kept].copy() for found, kept in zip(detections, counts.tolist(), strict=True)]
        return rows, np.array((0.0, time.perf_counter() - start, 0.0))

    def input_of_planes(self, planes: Sequence[torch.Tensor], preprocess: Preprocess) -> torch.Tensor:
        """The network's input from `(3, H, W)` floating planes on the device, RGB in 0..1; see `fill_from_planes`."""
        import torch

        shapes = sorted({tuple(one.shape) for one in planes})
        if len(shapes) > 1:
            raise ValueError(f"detect: floating pictures of one call must have one size, got {shapes}")
        with self.cuda.active():
            mean, divisor = self.constant(preprocess.mean), self.constant(preprocess.divisor)
            x = torch.stack([one.float() for one in planes])
            if preprocess.channels == "bgr":
                x = x.flip(1)
            return x.permute(0, 2, 3, 1).contiguous().mul_(255).sub_(mean).div_(divisor)

    def constant(self, values: Any) -> torch.Tensor:
        """A small float32 tensor on the device, kept for the next call with these values (nested tuples).

        Raises:
            RuntimeError: the caller is capturing the current stream, and these values have not been asked for before.
        """
        import torch

        return self._constants.get(values, torch.float32)

    def detect_input(self, x: torch.Tensor, settings: DetectSettings) -> tuple[torch.Tensor, torch.Tensor]:
        """As `detect_on_device`, of the network's input: float32 `(N, H, W, 3)` on the device, see `heads`."""
        from . import ops

        cls, reg = self.heads_on_device(x)
        candidates = ops.decode_candidates(
            *(cls, reg),
            conf=settings.conf,
            top_k=settings.top_k,
            multi_label=settings.multi_label,
            classes=settings.classes,
            channels_last=True,
        )
        return ops.nms_candidates(candidates, iou=settings.iou, max_det=settings.max_det, agnostic=settings.agnostic)

    def heads_on_device(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """As `heads`, from the device to the device, queued on the current stream; never waits.

        Whether the values are finite is not looked at.
        """
        import torch

        if x.ndim != 4:
            raise ValueError(f"engine: x must have shape (N, H, W, 3), got {tuple(x.shape)}")
        x = x.detach()
        count, height, width, _ = x.shape
        with self.cuda.active():
            cls, reg = (
                [
                    self.cuda.empty((count, height // stride, width // stride, channels), torch.float32)
                    for stride in STRIDES
                ]
                for channels in (self.num_classes, 4 * (REG_MAX + 1))
            )
            stream = self.cuda.current_stream().cuda_stream
            self._with_room(lambda: self.native.run(x, cls, reg, stream=stream))
        return cls, reg

    def time_heads(self, x: torch.Tensor) -> float:
        """Milliseconds of the device for `heads_on_device`, measured now."""
        with self.cuda.active():
            stream = self.cuda.current_stream()
            start, end = self.cuda.new_event(timed=True), self.cuda.new_event(timed=True)
            start.record(stream)
            self.heads_on_device(x)
            end.record(stream)
            end.synchronize()
        return float(start.elapsed_time(end))

    # --- arrays of the host ---

    def put(self, batch: np.ndarray) -> torch.Tensor:
        """A copy of the network's input on the device, by the current stream.

        Raises:
            TypeError, ValueError: another dtype or shape than `heads` takes. MemoryError: it does not fit.
        """
        import torch

        if batch.dtype != np.float32:
            raise TypeError(f"engine: x must be float32, got {batch.dtype}")
        if batch.ndim != 4:
            raise ValueError(f"engine: x must have shape (N, H, W, 3), got {batch.shape}")
        with self.cuda.active():
            host = self.cuda.pinned(batch.nbytes).view(torch.float32).view(batch.shape)
            np.copyto(host.numpy(), batch)
            x = self.cuda.empty(batch.shape, torch.float32)
            self.cuda.copy(x, host, self.cuda.current_stream())
        return x

    def fetch(self, tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
        """Copies of tensors on the host, after a wait for the current stream."""
        with self.cuda.active():
            return self._fetch(tensors)

    # --- counts, for calibration ---

    def zeros(self, shape: Sequence[int], dtype: str) -> torch.Tensor:
        """Zeros on the device, to be counted in: int64 or float32."""
        import torch

        with self.cuda.active():
            return self.cuda.empty(shape, getattr(torch, dtype)).zero_()

    def count(self, name: str, batch: np.ndarray, *totals: torch.Tensor) -> None:
        """Runs `_cuda.Engine.observe` or `.channel_sums`, by its name, on a batch as `heads` takes it; never waits.

        Raises:
            TypeError, ValueError: another dtype or shape; a network or totals that do not fit. MemoryError: the batch
                does not fit.
        """
        x = self.put(batch)
        with self.cuda.active():
            stream = self.cuda.current_stream().cuda_stream
            self._with_room(lambda: getattr(self.native, name)(x, *totals, stream=stream))

    # --- parts ---

    def _check_picture(self, number: int, picture: Any, geometry: Geometry) -> None:
        what = f"detect: pictures[{number}]"
        if isinstance(picture, np.ndarray):
            dtype = str(picture.dtype)
        elif self.cuda.holds(picture):
            dtype = str(picture.dtype).removeprefix("torch.")
        else:
            raise ValueError(f"{what} must be a NumPy array or lie on {self.device}, got {picture.device}")
        if dtype != "uint8":
            raise TypeError(f"{what} must be uint8, got {dtype}")
        if tuple(picture.shape) != (*geometry.original, 3):
            raise ValueError(
                f"{what} must have shape {(*geometry.original, 3)}, as its geometry says, got {tuple(picture.shape)}"
            )

    def _queue(
        self,
        pictures: Sequence[torch.Tensor],
        frame: Size,
        geometries: Sequence[Geometry],
        preprocess: Preprocess,
        settings: DetectSettings,
        detections: torch.Tensor,
        counts: torch.Tensor,
        stream: Any,
    ) -> None:
        mask = self._class_mask(settings.classes)
        self._with_room(
            lambda: self.native.detect(
                pictures,
                **detect_arguments(frame, geometries, preprocess, settings),
                class_mask=mask,
                detections=detections,
                counts=counts,
                stream=stream.cuda_stream,
            )
        )

    def _class_mask(self, classes: Sequence[int] | None) -> torch.Tensor | None:
        import torch

        if classes is None:
            return None
        mask = class_mask("detect", classes, self.num_classes)
        assert mask is not None
        return self._constants.get(tuple(mask.tolist()), torch.uint8)

    def _fetch(self, tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
        """Copies of tensors on the host, after a wait for the current stream."""
        stream, copies = self.cuda.current_stream(), []
        for tensor in tensors:
            host = self.cuda.pinned(tensor.numel() * tensor.element_size()).view(tensor.dtype).view(tensor.shape)
            self.cuda.copy(host, tensor, stream)
            copies.append(host)
        done = self.cuda.new_event()
        done.record(stream)
        done.synchronize()
        return [host.numpy().copy() for host in copies]

    def _with_room(self, call: Callable[[], Result]) -> Result:
        return _with_room(self.cuda, call)

    def _give_back(self, slot: _Slot) -> None:
        with self._lock:
            if len(self._free) < SPARE_SLOTS:
                self._free.append(slot)


class _Constants:
    """Small tensors on the device that are made once and never go, for whatever stream or graph of the caller's."""

    def __init__(self, cuda: cuda_memory.Cuda):
        self._cuda = cuda
        self._lock = threading.Lock()
        self._stream = cuda.new_stream()
        self._kept: dict[Any, torch.Tensor] = {}

    def get(self, values: Any, dtype: torch.dtype) -> torch.Tensor:
        with self._lock:
            found = self._kept.get((values, dtype))
            if found is not None:
                return found
            if self._cuda.is_capturing():
                raise RuntimeError("engine: the same call must have been run once before a stream is captured with it")
            if len(self._kept) >= KEPT_CONSTANTS:
                return self._cuda.constant(values, dtype, self._cuda.current_stream())
            made = self._kept[values, dtype] = self._cuda.constant(values, dtype, self._stream)
            self._stream.synchronize()  # a few bytes, and nothing else is queued there
            return made


class _Slot:
    """The buffers and events of one call at a time; they grow. Nobody else has them until the call is collected."""

    def __init__(self, cuda: cuda_memory.Cuda):
        self.cuda = cuda
        self.uploaded, self.done = cuda.new_event(), cuda.new_event()
        self.started, self.finished = cuda.new_event(timed=True), cuda.new_event(timed=True)
        self._staging = self._pixels = self._found = self._found_host = cuda.pinned(0)

    def upload(self, pictures: Sequence[np.ndarray | torch.Tensor], copies: Any) -> list[torch.Tensor]:
        """Copies the arrays to the device on a stream, at whose end `uploaded` is; tensors stay as they are."""
        import torch

        sizes = [_aligned(picture.nbytes) if isinstance(picture, np.ndarray) else 0 for picture in pictures]
        total = sum(sizes)
        if self._pixels.numel() < total:
            self._staging = self._pixels = self.cuda.pinned(0)  # before the new ones are made
            self._staging = self.cuda.pinned(total)
            self._pixels = self.cuda.empty((total,), torch.uint8, copies)
        host, on_device, offset = self._staging.numpy(), [], 0
        for picture, size in zip(pictures, sizes, strict=True):
            if not isinstance(picture, np.ndarray):
                on_device.append(_with_whole_pixels(picture))
                continue
            part = slice(offset, offset + picture.nbytes)
            np.copyto(host[part].reshape(picture.shape), picture)
            self.cuda.copy(self._pixels[part], self._staging[part], copies)
            on_device.append(self._pixels[part].view(picture.shape))
            offset += size
        self.uploaded.record(copies)
        return on_device

    def reserve_results(self, count: int, max_det: int, stream: Any) -> None:
        import torch

        size = _aligned(8 * count) + 24 * count * max_det
        if self._found.numel() < size:
            self._found = self._found_host = self.cuda.pinned(0)
            self._found = self.cuda.empty((size,), torch.uint8, stream)
            self._found_host = self.cuda.pinned(size)
        self._used = size

    def results(self, count: int, max_det: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Detections float32 `(N, max_det, 6)` and counts int64 `(N,)` on the device."""
        import torch

        detections = self._found[_aligned(8 * count) : self._used].view(torch.float32)
        return detections.view(count, max_det, 6), self._found[: 8 * count].view(torch.int64)

    def download(self, stream: Any) -> None:
        self.cuda.copy(self._found_host[: self._used], self._found[: self._used], stream)

    def arrays(self, count: int, max_det: int) -> tuple[np.ndarray, np.ndarray]:
        """The results on the host."""
        host = self._found_host.numpy()
        detections = host[_aligned(8 * count) : self._used].view(np.float32).reshape(count, max_det, 6)
        return detections, host[: 8 * count].view(np.int64)


def why_not(device: torch.device) -> str | None:
    """Why the native engine does not run on a CUDA device that torch sees, with the cure; None if it does."""
    try:
        module = _native.cuda()
    except ImportError as error:
        return f"the module yolonas._cuda of this build cannot be loaded ({error}); build it again: {_rebuild()}"
    if module is None:
        return f"this build has no module yolonas._cuda; build it where there is a CUDA compiler: {_rebuild()}"
    if not hasattr(module, "Engine"):
        return f"the module yolonas._cuda of this build has no engine; build it again: {_rebuild()}"
    if module.device_count() == 0:
        return (
            f"yolonas._cuda is built with CUDA {module.runtime_version()} and finds no device, the driver supports "
            f"CUDA {module.driver_version() or 'none'}; update the driver, or build with an older CUDA"
        )
    own = cuda_memory.device_architecture(device.index or 0)
    built = sorted(int(name.removeprefix("sm_")) for name in module.architectures())
    # Code runs on later devices of its generation; that for the newest is there for later generations too.
    if any(one // 10 == own // 10 and one <= own for one in built) or own > built[-1]:
        return None
    names = ", ".join(f"sm_{one}" for one in built)
    return f"yolonas._cuda has code for {names}, and this device is sm_{own}; build it for that: {_rebuild(own)}"


def _rebuild(architecture: int | str = "native") -> str:
    return f"CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES={architecture} {_native.BUILD_COMMAND}"


def _made(cuda: cuda_memory.Cuda, make: Callable[[Any], Any]) -> Any:
    module = _native.cuda()
    if module is None:
        raise RuntimeError(f"engine: {why_not(cuda.device)}")
    # Current for torch, which does not open the default device when it gives way to this one.
    with cuda.active():
        return _with_room(cuda, lambda: make(module))


def _with_room(cuda: cuda_memory.Cuda, call: Callable[[], Result]) -> Result:
    """A call's result; if memory is short, of a second try without what torch keeps for later."""
    try:
        return call()
    except MemoryError:
        cuda.release()
    return call()


def _with_whole_pixels(picture: torch.Tensor) -> torch.Tensor:
    """A picture whose pixels are contiguous, as kernels take them; rows may have a distance."""
    picture = picture.detach()
    return picture if picture.stride()[1:] == (3, 1) else picture.contiguous()


def _settle(*streams: Any) -> None:
    for stream in streams:
        try:
            stream.synchronize()
        except RuntimeError:  # the device has failed: what is raised already says why
            return


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
