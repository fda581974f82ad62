"""A CUDA device that is none: streams whose work is put off for as long as the rules allow, and a `_cuda` that computes
by the CPU engine. What is read too early holds garbage, what is overwritten too early has the wrong pixels.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from yolonas import _native, cuda_check, cuda_memory

GARBAGE = 0xA5


class World:
    """All devices of a test.

    Attributes:
        eager: work is done when it is queued, as far as it may be. waits: how often the host has waited.
        in_flight, most_in_flight: calls of `detect` that are queued and not done, now and at most.
        short: how many allocations of the engine fail from now on. released: how often memory was given back.
        made: the engines. capturing: whether the caller captures the current stream.
    """

    def __init__(self) -> None:
        self.eager = False
        self.waits = self.in_flight = self.most_in_flight = self.short = self.released = 0
        self.made: list[Engine] = []
        self.capturing = False
        self.streams: dict[int, Stream] = {}
        self.current = Stream(self)
        self.storages: set[int] = set()
        self.kept: list[torch.Tensor] = []  # no address is used twice
        self.devices, self.architecture = 2, 90

    def put(self, array: np.ndarray | torch.Tensor) -> torch.Tensor:
        """A tensor "on the device"."""
        tensor = torch.as_tensor(array).clone()
        self.kept.append(tensor)
        self.storages.add(tensor.untyped_storage().data_ptr())
        return tensor

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.storages


class Mark:
    def __init__(self, stream: Stream):
        self.stream, self.done = stream, False

    def run(self) -> None:
        while not self.done:
            self.stream.step()


class Stream:
    numbers = itertools.count(1000)

    def __init__(self, world: World):
        self.world, self.queue = world, deque[Any]()
        self.cuda_stream = next(Stream.numbers)
        world.streams[self.cuda_stream] = self

    def add(self, work: Callable[[], None] | Mark) -> None:
        self.queue.append(work)
        if self.world.eager:
            self.run()

    def step(self) -> None:
        work = self.queue.popleft()
        if isinstance(work, Mark) and work.stream is self:
            work.done = True
        elif isinstance(work, Mark):
            work.run()
        else:
            work()

    def run(self) -> None:
        while self.queue:
            self.step()

    def wait_event(self, event: Event) -> None:
        assert event.mark is not None, "an event is waited for before it is recorded"
        if event.mark.stream is not self:
            self.add(event.mark)

    def synchronize(self) -> None:
        self.world.waits += 1
        self.run()


class Event:
    def __init__(self, world: World):
        self.world = world
        self.mark: Mark | None = None

    def record(self, stream: Stream) -> None:
        self.mark = Mark(stream)
        stream.add(self.mark)

    def query(self) -> bool:
        return self.mark is None or self.mark.done

    def synchronize(self) -> None:
        self.world.waits += 1
        if self.mark is not None:
            self.mark.run()

    def elapsed_time(self, later: Event) -> float:
        assert self.query()
        assert later.query()
        return 2.0


class Cuda:
    """Has the shape of `cuda_memory.Cuda`."""

    world: World

    def __init__(self, device: torch.device):
        self.index = device.index or 0
        self.device = torch.device("cuda", self.index)

    def describe(self) -> tuple[str, str]:
        return "Stand-in", f"sm_{self.world.architecture}"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        yield

    def current_stream(self) -> Stream:
        return self.world.current

    def new_stream(self) -> Stream:
        return Stream(self.world)

    def new_event(self, *, timed: bool = False) -> Event:
        return Event(self.world)

    def empty(self, shape: Any, dtype: torch.dtype, stream: Any = None) -> torch.Tensor:
        size = int(np.prod(shape)) * dtype.itemsize
        return self.world.put(np.full(size, GARBAGE, np.uint8)).view(dtype).view(tuple(shape))

    def pinned(self, size: int) -> torch.Tensor:
        return torch.from_numpy(np.full(size, GARBAGE, np.uint8))

    def copy(self, to: torch.Tensor, source: torch.Tensor, stream: Stream) -> None:
        assert to.shape == source.shape
        assert to.dtype == source.dtype
        stream.add(lambda: to.copy_(source))

    def constant(self, values: Any, dtype: torch.dtype, stream: Stream) -> torch.Tensor:
        value = torch.tensor(values, dtype=dtype)
        there = self.world.put(torch.full_like(value, GARBAGE))
        stream.add(lambda: there.copy_(value))
        return there

    def is_capturing(self) -> bool:
        return self.world.capturing

    def release(self) -> None:
        self.world.released += 1

    def holds(self, tensor: torch.Tensor) -> bool:
        return self.world.holds(tensor)


class Engine:
    """Has the shape of `_cuda.Engine`."""

    plan_version = 7
    world: World

    def __init__(self, *graph: Any, device: int, half: bool):
        self._start(_native.cpu().Engine(*graph), device, half)

    @classmethod
    def deserialize(cls, data: bytes, *, device: int, half: bool) -> Engine:
        engine = cls.__new__(cls)
        engine._start(_native.cpu().Engine.deserialize(data), device, half)
        return engine

    def _start(self, native: Any, device: int, half: bool) -> None:
        self._room()
        self.native, self.device, self.half = native, device, half
        self.step_names, self.num_classes = native.step_names, native.num_classes
        self.plan, self.alternatives = native.plan, native.alternatives
        self.time_choices, self.set_choices = native.time_choices, native.set_choices
        self.world.made.append(self)

    def _room(self) -> None:
        if self.world.short > 0:
            self.world.short -= 1
            raise MemoryError("engine: 2 x 64 x 64 needs 1.23 GiB on cuda:0, 0.50 GiB are free; use a smaller batch")

    def time_steps(self, height: int, width: int, batch: int, rounds: int) -> list[float]:
        return [0.5] * len(self.native.plan(height, width, batch))

    def run(self, x: Any, cls: list[Any], reg: list[Any], *, stream: int) -> None:
        self._room()
        assert all(self.world.holds(tensor) for tensor in (*cls, *reg))
        queue = self.world.streams[stream]
        queue.add(lambda: self.native.run(x.numpy(), [one.numpy() for one in cls], [one.numpy() for one in reg]))

    def observe(self, x: Any, *totals: Any, stream: int) -> None:
        self._count("observe", x, totals, stream)

    def channel_sums(self, x: Any, *totals: Any, stream: int) -> None:
        self._count("channel_sums", x, totals, stream)

    def _count(self, name: str, x: Any, totals: tuple[Any, ...], stream: int) -> None:
        self._room()
        assert all(self.world.holds(tensor) for tensor in (x, *totals))
        self.world.streams[stream].add(lambda: getattr(self.native, name)(x.numpy(), *(one.numpy() for one in totals)))

    def detect(
        self, pictures: list[Any], *, detections: Any, counts: Any, class_mask: Any, stream: int, **settings: Any
    ) -> None:
        self._room()
        world, queue = self.world, self.world.streams[stream]
        on_device = [*pictures, detections, counts, *([] if class_mask is None else [class_mask])]
        assert all(world.holds(tensor) for tensor in on_device)
        world.in_flight += 1
        world.most_in_flight = max(world.most_in_flight, world.in_flight)

        def work() -> None:
            world.in_flight -= 1
            self.native.detect(
                [picture.numpy() for picture in pictures],
                detections=detections.numpy(),
                counts=counts.numpy(),
                class_mask=None if class_mask is None else class_mask.numpy(),
                **settings,
            )

        queue.add(work)


class Emulated:
    """An engine of the CUDA emulator on the stand-in's streams and memory; see `native/emulated_cuda.py`."""

    world: World
    module: Any
    plan_version = 7

    def __init__(self, *graph: Any, device: int, half: bool):
        self.native = self.module.Engine(*graph, device=device, half=half)

    @classmethod
    def deserialize(cls, data: bytes, *, device: int, half: bool) -> Emulated:
        engine = cls.__new__(cls)
        engine.native = cls.module.Engine.deserialize(data, device=device, half=half)
        return engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def run(self, x: Any, cls: list[Any], reg: list[Any], *, stream: int) -> None:
        from emulated_cuda import FakeCudaTensor

        # torch's own work made x
        given = FakeCudaTensor(x.numpy()), [self._there(one) for one in cls], [self._there(one) for one in reg]
        self.world.streams[stream].add(lambda: self.native.run(*given, stream=0))

    def observe(self, *tensors: Any, stream: int) -> None:
        given = [self._there(tensor) for tensor in tensors]
        self.world.streams[stream].add(lambda: self.native.observe(*given, stream=0))

    def channel_sums(self, *tensors: Any, stream: int) -> None:
        given = [self._there(tensor) for tensor in tensors]
        self.world.streams[stream].add(lambda: self.native.channel_sums(*given, stream=0))

    def detect(
        self, pictures: list[Any], *, detections: Any, counts: Any, class_mask: Any, stream: int, **settings: Any
    ) -> None:
        given = {"detections": self._there(detections), "counts": self._there(counts)}
        given["class_mask"] = None if class_mask is None else self._there(class_mask)
        on_device = [self._there(picture) for picture in pictures]
        self.world.streams[stream].add(lambda: self.native.detect(on_device, **given, **settings, stream=0))

    def _there(self, tensor: Any) -> Any:
        from emulated_cuda import FakeCudaTensor

        assert self.world.holds(tensor)
        return FakeCudaTensor(tensor.numpy())


def no_child(*_: Any) -> list[str]:
    raise cuda_check._NoChildError("the device is a stand-in")


def install(monkeypatch: pytest.MonkeyPatch, emulated: Any = None) -> World:
    """Gives this process devices; returns what they are made of.

    Args:
        emulated: a `_cuda` built against the emulator, whose engines compute in place of the CPU's.
    """
    world = World()
    for kind in (Cuda, Engine, Emulated):
        monkeypatch.setattr(kind, "world", world, raising=False)
    monkeypatch.setattr(Emulated, "module", emulated, raising=False)
    module = SimpleNamespace(
        Engine=Engine if emulated is None else Emulated,
        architectures=lambda: ["sm_80", "sm_90"],
        device_count=lambda: world.devices,
        runtime_version=lambda: "13.0",
        driver_version=lambda: "13.0",
    )
    monkeypatch.setattr(_native, "cuda", lambda: module)
    monkeypatch.setenv("YOLONAS_CUDA_CHECK", "0")
    monkeypatch.setattr(cuda_check, "_command", no_child)  # another process has no such devices
    monkeypatch.setattr(cuda_memory, "Cuda", Cuda)
    monkeypatch.setattr(cuda_memory, "is_on_device", world.holds)
    monkeypatch.setattr(cuda_memory, "device_architecture", lambda index: world.architecture)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: world.devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: world.devices)
    contiguous = torch.Tensor.contiguous

    def stays_there(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        copy = contiguous(tensor, *arguments, **options)
        return world.put(copy) if world.holds(tensor) and not world.holds(copy) else copy

    monkeypatch.setattr(torch.Tensor, "contiguous", stays_there)
    to = torch.nn.Module.to

    def stays(module: torch.nn.Module, *arguments: Any, **options: Any) -> torch.nn.Module:
        arguments = tuple(one for one in arguments if "cuda" not in str(one))
        options = {name: value for name, value in options.items() if "cuda" not in str(value)}
        return to(module, *arguments, **options) if arguments or options else module

    monkeypatch.setattr(torch.nn.Module, "to", stays)
    return world
