"""TensorRT engines on the host's side: a stand-in for `tensorrt` notes what is asked of it, and runs on the CPU."""

from __future__ import annotations

import ctypes
import enum
import json
import logging
import math
import struct
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from yolonas import tensorrt_engine
from yolonas.config import DetectSettings
from yolonas.errors import CheckpointError, ExportError
from yolonas.exporting.spec import ExportSpec
from yolonas.exporting.tensorrt import MAX_METADATA_BYTES, read_engine_header, write_engine
from yolonas.preprocess import Preprocess
from yolonas.tensorrt_engine import TensorRTSession

SPEC = ExportSpec(
    variant="s",
    names={0: "red cell", 1: "weiße Zelle"},
    preprocess=Preprocess(size=(64, 96), fit=None),
    settings=DetectSettings(max_det=5),
    outputs="flat",
    batch=None,
)
PLAN = b"ftrt" + bytes(100)


class FakeTensorRT(ModuleType):
    """What of `tensorrt` is used, behaving as its documentation says. `plan` is what it builds and can load."""

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.__version__ = "10.13.2"
        self.plan: bytes | None = PLAN
        self.has_gpu = True
        self.parser_errors: list[str] = []
        self.messages: list[tuple[int, str]] = []  # that are logged while something is built or loaded
        self.asked: dict[str, Any] = {}
        self.tensors: dict[str, Any] = {}  # of a loaded plan: name to (is_input, dtype)
        self.shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((1, 3, 64, 96), (4, 3, 64, 96))
        self.compute: Callable[[np.ndarray], list[np.ndarray]] = lambda x: []
        self.ILogger, self.IOutputAllocator = _logger_class(), _allocator_class()
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Flag", {"STRONGLY_TYPED": 1})
        self.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
        self.TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
        self.nptype = lambda dtype: dtype

    def say(self, log: Any) -> None:
        assert log.initialised
        for severity, text in self.messages:
            log.log(log.Severity(severity), text)

    # --- building ---

    def Builder(self, log: Any) -> Any:
        if not self.has_gpu:
            log.log(log.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

        def build(network: Any, config: Any) -> bytes | None:
            self.say(log)
            self.asked["built"] = (network, config)
            return self.plan

        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(flags=flags),
            create_builder_config=self._config,
            create_optimization_profile=self._profile,
            build_serialized_network=build,
        )

    def _config(self) -> Any:
        config = SimpleNamespace(pools={}, profiles=[])
        config.set_memory_pool_limit = config.pools.__setitem__
        config.add_optimization_profile = config.profiles.append
        return config

    def _profile(self) -> Any:
        profile = SimpleNamespace(shapes={})
        profile.set_shape = lambda name, *shapes: profile.shapes.__setitem__(name, shapes)
        return profile

    def OnnxParser(self, network: Any, log: Any) -> Any:
        def parse(path: str) -> bool:
            assert isinstance(path, str)
            self.asked["parsed"] = path
            return not self.parser_errors

        return SimpleNamespace(
            parse_from_file=parse, num_errors=len(self.parser_errors), get_error=self.parser_errors.__getitem__
        )

    # --- running ---

    def Runtime(self, log: Any) -> Any:
        def load(plan: bytes) -> Any:
            self.say(log)
            return FakeEngine(self) if plan == self.plan else None

        return SimpleNamespace(deserialize_cuda_engine=load)


def _logger_class() -> Any:
    class ILogger:
        Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)
        initialised = False

        def __init__(self) -> None:
            self.initialised = True

    return ILogger


def _allocator_class() -> Any:
    class IOutputAllocator:
        initialised = False

        def __init__(self) -> None:
            self.initialised = True

    return IOutputAllocator


class FakeEngine:
    """An engine and its execution context. Device memory is that of the host."""

    def __init__(self, trt: FakeTensorRT):
        self.trt = trt
        self.num_io_tensors = len(trt.tensors)
        self.allocators: dict[str, Any] = {}
        self.fails = False

    def get_tensor_name(self, number: int) -> str:
        return list(self.trt.tensors)[number]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if self.trt.tensors[name][0] else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.tensors[name][1]

    def get_tensor_shape(self, name: str) -> list[int]:
        low, high = self.trt.shapes
        return [a if a == b else -1 for a, b in zip(low, high, strict=True)]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        low, high = self.trt.shapes
        return [low, high, high]

    def create_execution_context(self) -> FakeEngine:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
        low, high = self.trt.shapes
        self.shape = shape
        return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> None:
        self.address = address

    def set_output_allocator(self, name: str, allocator: Any) -> None:
        assert allocator.initialised
        self.allocators[name] = allocator

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        dtype = np.dtype(next(dtype for is_input, dtype in self.trt.tensors.values() if is_input))
        size = math.prod(self.shape) * dtype.itemsize
        x = np.frombuffer(ctypes.string_at(self.address, size), dtype).reshape(self.shape)
        for name, output in zip(self.allocators, self.trt.compute(x), strict=True):
            # The first guess is smaller than what is wanted in the end.
            assert self.allocators[name].reallocate_output(name, 0, 0, 256) != 0
            pointer = self.allocators[name].reallocate_output_async(name, 0, output.nbytes, 256, stream)
            if not pointer:
                return False
            ctypes.memmove(pointer, np.ascontiguousarray(output).ctypes.data, output.nbytes)
            self.allocators[name].notify_shape(name, list(output.shape))
        return not self.trt.asked.get("fail")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


# --- writing ---


def test_engine_is_built_and_written(trt: FakeTensorRT, tmp_path: Path) -> None:
    file = tmp_path / "m.engine"
    write_engine(file, tmp_path / "m.onnx", SPEC, workspace_gib=0.5, max_batch=8)
    network, config = trt.asked["built"]
    assert trt.asked["parsed"] == str(tmp_path / "m.onnx")
    assert network.flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert config.pools == {trt.MemoryPoolType.WORKSPACE: 1 << 29}
    (profile,) = config.profiles
    assert profile.shapes == {"input": ((1, 3, 64, 96), (8, 3, 64, 96), (8, 3, 64, 96))}
    spec, offset = read_engine_header(file)
    assert spec == SPEC
    data = file.read_bytes()
    assert struct.unpack("<I", data[:4]) == (offset - 4,)
    assert data[4:offset].decode() == SPEC.to_json()
    assert data[offset:] == PLAN


def test_fixed_input_needs_no_profile(trt: FakeTensorRT, tmp_path: Path) -> None:
    write_engine(tmp_path / "m.engine", "m.onnx", replace(SPEC, batch=1))
    _, config = trt.asked["built"]
    assert config.profiles == []
    assert config.pools == {}


def test_without_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ImportError, match=r"tensorrt: pip install tensorrt; the ONNX file and the trtexec line"):
        write_engine(tmp_path / "m.engine", "m.onnx", SPEC)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "unknown"])
def test_old_tensorrt(trt: FakeTensorRT, version: str, tmp_path: Path) -> None:
    trt.__version__ = version
    with pytest.raises(ImportError, match=f"need tensorrt 10 or newer, got {version}: pip install -U tensorrt"):
        write_engine(tmp_path / "m.engine", "m.onnx", SPEC)


def test_no_gpu_to_build_for(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.has_gpu = False
    with pytest.raises(ExportError, match=r"needs an NVIDIA GPU and its driver:\n  CUDA initialization failure"):
        write_engine(tmp_path / "m.engine", "m.onnx", SPEC)


def test_errors_of_the_parser(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.parser_errors = ["In node 3: INVALID_NODE", "In node 9: UNSUPPORTED_NODE"]
    with pytest.raises(ExportError, match=r"10\.13\.2 cannot read m\.onnx:\n  In node 3.*\n  In node 9: UNSUPPORTED"):
        write_engine(tmp_path / "m.engine", "m.onnx", SPEC)
    assert not list(tmp_path.iterdir())


def test_errors_of_the_builder(trt: FakeTensorRT, tmp_path: Path) -> None:
    trt.plan = None
    trt.messages = [(1, f"error {number}") for number in range(12)]
    with pytest.raises(ExportError, match=r"could not build m\.onnx:\n  error 2\n(  error \d+\n){8}  error 11$"):
        write_engine(tmp_path / "m.engine", "m.onnx", SPEC)
    trt.messages = []
    with pytest.raises(ExportError, match=r"could not build m\.onnx$"):
        write_engine(tmp_path / "m.engine", "m.onnx", SPEC)


@pytest.mark.parametrize("verbose", [False, True])
def test_what_tensorrt_says(trt: FakeTensorRT, verbose: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trt.messages = [(2, "slow"), (3, "layer 1"), (4, "tactic 1")]
    with caplog.at_level(logging.DEBUG, "yolonas"):
        write_engine(tmp_path / "m.engine", "m.onnx", SPEC, verbose=verbose)
    expected = [("WARNING", "TensorRT: slow"), ("INFO", "TensorRT: layer 1")]
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == expected[: 1 + verbose]


# --- reading ---


def engine_file(folder: Path, spec: ExportSpec = SPEC, plan: bytes = PLAN) -> Path:
    metadata = spec.to_json().encode()
    file = folder / "m.engine"
    file.write_bytes(struct.pack("<I", len(metadata)) + metadata + plan)
    return file


NO_METADATA = "has no metadata before the plan; a plan alone, as trtexec writes it"
GOOD = SPEC.to_json().encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", NO_METADATA),
        (b"\x01", NO_METADATA),
        (PLAN, NO_METADATA),
        (struct.pack("<I", 0) + PLAN, NO_METADATA),
        (struct.pack("<I", 0xFFFFFFFF) + GOOD + PLAN, NO_METADATA),
        (struct.pack("<I", MAX_METADATA_BYTES + 1) + bytes(MAX_METADATA_BYTES + 2), NO_METADATA),
        (struct.pack("<I", len(GOOD)) + GOOD, NO_METADATA),  # and no plan
        (struct.pack("<I", len(GOOD)) + GOOD[:-5], NO_METADATA),
        (struct.pack("<I", 20) + b"ftrt" + PLAN, NO_METADATA),
        (struct.pack("<I", 4) + b'{"\xff"' + PLAN, "metadata must be UTF-8, got invalid start byte at byte 2"),
        (struct.pack("<I", 3) + b"{]}" + PLAN, "cannot be used: JSONDecodeError"),
        (struct.pack("<I", 2) + b"{}" + PLAN, r"cannot be used: KeyError\('format_version'\)"),
        (struct.pack("<I", 99_995) + b'{"a":' + b"[" * 99_990 + PLAN, "cannot be used: RecursionError"),
    ],
)
def test_files_that_are_none(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "m.engine"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_engine_header(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", 2),
        ("format_version", True),
        ("num_classes", -1),
        ("num_classes", 10**9),
        ("names", {}),
        ("conf", "high"),
        ("max_det", -1),
        ("precision", ["fp32"]),
        ("preprocess", {"size": "large"}),
        ("input", None),
        ("outputs", {"format": "boxes"}),
    ],
)
def test_metadata_that_make_no_sense(key: str, value: Any, tmp_path: Path) -> None:
    metadata = json.dumps(SPEC.to_dict() | {key: value}).encode()
    file = tmp_path / "m.engine"
    file.write_bytes(struct.pack("<I", len(metadata)) + metadata + PLAN)
    with pytest.raises(CheckpointError, match="metadata"):
        read_engine_header(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_engine_header(tmp_path / "m.engine")


# --- running ---


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host in the place of a GPU."""
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    monkeypatch.setattr(tensorrt_engine, "_checked_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")


@pytest.fixture
def flat(trt: FakeTensorRT, cuda: None) -> FakeTensorRT:
    """Rows full of the first pixel's value, as many as that is."""

    def compute(x: np.ndarray) -> list[np.ndarray]:
        return [np.full((int(x.flat[0]), 7), x.flat[0], np.float32)]

    trt.tensors = {"input": (True, np.uint8), "graph2_flat_predictions": (False, np.float32)}
    trt.compute = compute
    return trt


def picture(value: int, batch: int = 1) -> np.ndarray:
    return np.full((batch, 3, 64, 96), value, np.uint8)


def test_session_gives_shapes_that_depend_on_the_data(flat: FakeTensorRT, tmp_path: Path) -> None:
    session = TensorRTSession(engine_file(tmp_path))
    assert session.spec == SPEC
    results = [(value, *session.run(picture(value))) for value in (3, 0, 200, 1)]
    for value, rows in results:  # all of them are still what they were
        assert rows.dtype == np.float32
        assert rows.shape == (value, 7)
        assert (rows == value).all()


def test_session_takes_any_array_of_the_right_kind(flat: FakeTensorRT, tmp_path: Path) -> None:
    session = TensorRTSession(engine_file(tmp_path))
    flat.compute = lambda x: [np.float32(x.flat[:14]).reshape(2, 7)]
    x = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8).transpose(0, 3, 1, 2)
    x.flags.writeable = False
    assert (session.run(x)[0].ravel() == x.flat[:14]).all()


def test_session_orders_outputs_as_the_spec_does(trt: FakeTensorRT, cuda: None, tmp_path: Path) -> None:
    spec = replace(SPEC, outputs="batch", uint8=False)
    dtypes = (np.int64, np.float32, np.float32, np.int64)
    outputs = {name: (False, dtype) for name, dtype in zip(spec.output_names, dtypes, strict=True)}
    trt.tensors = {**dict(reversed(outputs.items())), "input": (True, np.float32)}
    expected = [
        np.int64([[2], [0]]),
        np.random.default_rng(0).random((2, 5, 4), np.float32),
        np.random.default_rng(1).random((2, 5), np.float32),
        np.arange(10).reshape(2, 5),
    ]
    trt.compute = lambda x: expected
    session = TensorRTSession(engine_file(tmp_path, spec))
    for output, wanted in zip(session.run(np.zeros((2, 3, 64, 96), np.float32)), expected, strict=True):
        assert output.dtype == wanted.dtype
        assert np.array_equal(output, wanted)


def test_session_checks_its_input(flat: FakeTensorRT, tmp_path: Path) -> None:
    session = TensorRTSession(engine_file(tmp_path))
    with pytest.raises(TypeError, match="tensorrt: x must be uint8, got float32"):
        session.run(np.zeros((1, 3, 64, 96), np.float32))
    for shape in ((5, 3, 64, 96), (1, 3, 96, 64), (3, 64, 96)):
        with pytest.raises(ValueError, match=r"a shape from \(1, 3, 64, 96\) to \(4, 3, 64, 96\), got \("):
            session.run(np.zeros(shape, np.uint8))
    flat.shapes = ((1, 3, 64, 96), (1, 3, 64, 96))
    with pytest.raises(ValueError, match=r"x must have shape \(1, 3, 64, 96\), got \(2, 3, 64, 96\)"):
        session.run(picture(1, batch=2))
    assert len(session.run(picture(1))[0]) == 1


def test_session_tells_why_it_failed(flat: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = TensorRTSession(engine_file(tmp_path))
    flat.asked["fail"] = True
    with pytest.raises(RuntimeError, match=r"tensorrt: the engine failed$"):
        session.run(picture(1))
    flat.asked["fail"] = False

    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", no_memory)
        with pytest.raises(RuntimeError, match="the engine failed") as caught:
            session.run(picture(100))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert len(session.run(picture(100))[0]) == 100  # it can go on


def test_plan_of_another_version(flat: FakeTensorRT, tmp_path: Path) -> None:
    flat.messages = [(1, "The engine plan file is not compatible with this version of TensorRT")]
    with pytest.raises(
        CheckpointError, match=r"TensorRT 10\.13\.2 on A GPU; an engine is for one.*:\n  The engine plan"
    ):
        TensorRTSession(engine_file(tmp_path, plan=b"other"))


@pytest.mark.parametrize("names", [["input"], ["input", "detections"], ["images", "graph2_flat_predictions"]])
def test_plan_of_another_network(flat: FakeTensorRT, names: list[str], tmp_path: Path) -> None:
    flat.tensors = {name: (number == 0, np.uint8) for number, name in enumerate(names)}
    with pytest.raises(CheckpointError, match="the plan is not of the network that the metadata describe"):
        TensorRTSession(engine_file(tmp_path))


def test_session_without_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ImportError, match=r"TensorRT engines need the package tensorrt: pip install tensorrt$"):
        TensorRTSession(engine_file(tmp_path))


def test_session_needs_a_gpu(flat: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # no stand-in for the GPU
    monkeypatch.setitem(sys.modules, "tensorrt", flat)
    file = engine_file(tmp_path)
    with pytest.raises(RuntimeError, match="device must be a CUDA device, got cpu"):
        TensorRTSession(file, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="engines need an NVIDIA GPU and a torch for CUDA, got torch"):
        TensorRTSession(file)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RuntimeError, match="device must be below cuda:2, got cuda:2"):
        TensorRTSession(file, device="cuda:2")
