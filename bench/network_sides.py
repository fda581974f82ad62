"""The sides of the benchmarks of networks. Each runs in a process of its own: thread pools that spin, settings read
from the environment and memory stay apart.
"""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from network_files import OUTPUTS, Case, network

AVX2 = {  # what the libraries read themselves; `hide_avx512` is for the others
    "YOLONAS_CPU_ISA": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


class Side(NamedTuple):
    """A network that is ready."""

    run: Callable[[], object]
    read: Callable[[], list[np.ndarray]]  # the outputs of the last run, as `OUTPUTS`
    about: str  # version and settings that matter
    layers: Callable[[int], list[dict[str, Any]]] | None = None  # steps with their times, from that many rounds


def yolonas(case: Case, folder: Path, x: np.ndarray, *, suffix: str = "engine") -> Side:
    from yolonas import __version__, _native

    engine = _native.cpu().Engine.deserialize(case.path(folder, suffix).read_bytes())
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))  # as letterbox writes it
    levels = [(case.batch, case.size // stride, case.size // stride) for stride in (8, 16, 32)]
    cls = [np.empty((*level, 80), np.float32) for level in levels]
    reg = [np.empty((*level, 68), np.float32) for level in levels]

    plan = engine.plan(case.size, case.size, case.batch)

    def layers(rounds: int) -> list[dict[str, Any]]:
        return [{**step, "ms": ms} for step, ms in zip(plan, engine.time_steps(x, rounds), strict=True)]

    return Side(
        lambda: engine.run(x, cls, reg),
        lambda: [level.transpose(0, 3, 1, 2) for level in (*cls, *reg)],
        f"{__version__}, {_native.build_info()['cpu_isa']} kernels, convolutions: "
        + counted(f"{step['algorithm']} {step['dtype']}" for step in plan if step["op"] == "conv"),
        layers,
    )


def counted(kinds: Iterable[str]) -> str:
    """How many there are of each kind."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).items())


def torch_eager(case: Case, folder: Path, x: np.ndarray, *, compiled: bool = False) -> Side:
    import torch

    torch.set_num_threads(case.threads)
    module = network(case.variant).to(memory_format=torch.channels_last)
    about = f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, channels_last"
    if compiled:
        import torch._inductor.config as settings

        settings.freezing = True  # weights are constants: packed once, as the other sides do
        module = torch.compile(module)
        about += ", freezing"
    tensor = torch.from_numpy(x).to(memory_format=torch.channels_last)
    outputs: list[torch.Tensor] = []

    def run() -> None:
        # not inference_mode, with which freezing does not work
        with torch.no_grad():
            outputs[:] = module(tensor)

    return Side(run, lambda: [y.numpy() for y in outputs], about)


def torch_compile(case: Case, folder: Path, x: np.ndarray) -> Side:
    return torch_eager(case, folder, x, compiled=True)


def onnx_runtime(case: Case, folder: Path, x: np.ndarray, *, suffix: str = "onnx") -> Side:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    session = onnxruntime.InferenceSession(case.path(folder, suffix), options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = []

    def run() -> None:
        outputs[:] = session.run(list(OUTPUTS), {"x": x})

    return Side(run, lambda: outputs, onnxruntime.__version__)


def openvino_model(case: Case, folder: Path, hint: str, suffix: str = "xml") -> tuple[Any, str]:
    """The compiled model and what to say about it; with the hint THROUGHPUT it takes one picture at a time."""
    import openvino

    settings = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": case.threads, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    model = core.read_model(case.path(folder, suffix))
    if hint == "THROUGHPUT":
        model.reshape([1, 3, case.size, case.size])
        settings["NUM_STREAMS"] = case.threads
    model = core.compile_model(model, "CPU", settings)
    nodes = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    kernels = counted(node["primitiveType"].value for node in nodes if node["layerType"].value == "Convolution")
    return model, f"{openvino.__version__.split('-')[0]}, {hint.lower()} hint, convolutions: {kernels}"


def openvino(case: Case, folder: Path, x: np.ndarray, *, suffix: str = "xml") -> Side:
    model, about = openvino_model(case, folder, "LATENCY", suffix)
    request = model.create_infer_request()
    return Side(
        lambda: request.infer({"x": x}, share_inputs=True, share_outputs=True),
        lambda: [request.get_tensor(name).data for name in OUTPUTS],
        about,
    )


def openvino_streams(case: Case, folder: Path, x: np.ndarray) -> Side:
    """For batches: one stream per thread, pictures side by side."""
    model, about = openvino_model(case, folder, "THROUGHPUT")
    requests = [model.create_infer_request() for _ in x]

    def run() -> None:
        for request, one in zip(requests, x, strict=True):
            request.start_async({"x": one[None]}, share_inputs=True)
        for request in requests:
            request.wait()

    return Side(run, lambda: [np.concatenate([r.get_tensor(name).data for r in requests]) for name in OUTPUTS], about)


def ncnn(case: Case, folder: Path, x: np.ndarray) -> Side:
    """It has no batch: pictures run one after another."""
    import ncnn

    net = ncnn.Net()
    for name in dir(net.opt):
        if any(kind in name for kind in ("fp16", "bf16", "int8")):
            setattr(net.opt, name, False)
    net.opt.num_threads = case.threads
    path = str(case.path(folder, "ncnn"))
    if net.load_param(f"{path}.param") or net.load_model(f"{path}.bin"):
        raise OSError(f"ncnn cannot load {path}.param and .bin")
    pictures = [ncnn.Mat(one).clone() for one in x]
    outputs: list[list[Any]] = []

    def run() -> None:
        outputs.clear()
        for one in pictures:
            extractor = net.create_extractor()
            extractor.input("in0", one)
            outputs.append([extractor.extract(f"out{i}")[1] for i in range(len(OUTPUTS))])

    return Side(
        run,
        lambda: [np.stack([np.array(level) for level in levels]) for levels in zip(*outputs, strict=True)],
        f"{ncnn.__version__}, fp16, bf16 and int8 options off",
    )


# Name, what makes it, the file formats it needs.
SIDES: dict[str, tuple[Callable[[Case, Path, np.ndarray], Side], tuple[str, ...]]] = {
    "yolonas": (yolonas, ("yolonas",)),
    "torch": (torch_eager, ()),
    "torch.compile": (torch_compile, ()),
    "ONNX Runtime": (onnx_runtime, ("onnx",)),
    "OpenVINO": (openvino, ("onnx", "openvino")),
    "OpenVINO, streams": (openvino_streams, ("onnx", "openvino")),
    "ncnn": (ncnn, ("ncnn",)),
    "yolonas int8": (partial(yolonas, suffix="int8.engine"), ("yolonas int8",)),
    "OpenVINO int8": (partial(openvino, suffix="int8.xml"), ("onnx", "openvino", "nncf")),
    "OpenVINO int8, mixed preset": (partial(openvino, suffix="mixed.xml"), ("onnx", "openvino", "nncf mixed")),
    "ONNX Runtime int8": (partial(onnx_runtime, suffix="int8.onnx"), ("onnx", "onnx int8")),
}
FLOAT32 = ("yolonas", "torch", "torch.compile", "ONNX Runtime", "OpenVINO", "OpenVINO, streams", "ncnn")
INT8 = (*("yolonas int8", "OpenVINO int8", "OpenVINO int8, mixed preset", "ONNX Runtime int8"), "yolonas", "OpenVINO")
FOR_BATCHES = ("OpenVINO, streams",)
# What a side imports to write its files and to run; together the extra `bench`.
PACKAGES: dict[str, tuple[str, ...]] = {
    "ONNX Runtime": ("onnx", "onnxscript", "onnxruntime"),
    "OpenVINO": ("onnx", "onnxscript", "openvino"),
    "OpenVINO, streams": ("onnx", "onnxscript", "openvino"),
    "ncnn": ("ncnn", "pnnx"),
    "OpenVINO int8": ("nncf", "onnx", "onnxscript", "openvino"),
    "OpenVINO int8, mixed preset": ("nncf", "onnx", "onnxscript", "openvino"),
    "ONNX Runtime int8": ("onnx", "onnxscript", "onnxruntime"),
}


def not_installed(packages: Iterable[str]) -> str:
    """What is missing of some packages and how to get it; empty where all are there."""
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} not installed; pip install 'yolonas[bench]'" if absent else ""


class Worker:
    """A process that holds one side ready."""

    def __init__(self, side: str, case: Case, folder: Path, shim: Path | None):
        """Starts it, and runs the network twice.

        Args:
            shim: the compiled `hide_avx512.cpp`, or None to leave the processor as it is.

        Raises:
            RuntimeError: the side cannot run here.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, side, case, folder, shim), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.about = self.ask("about")
            for _ in range(2):  # buffers, plans, compiled code
                self.run()
        except RuntimeError:
            self.close()
            raise

    def run(self) -> None:
        self.ask("run")

    def ask(self, what: str) -> Any:
        """What `serve` answers to "run", "read", "about", "layers", "peak_mb" or "nothing"."""
        try:
            self._pipe.send(what)
            fine, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(f"the process ended with code {self._process.exitcode}") from None
        if not fine:
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        self._pipe.close()  # which ends the process
        self._process.join(10)
        self._process.kill()


def serve(pipe: Connection, name: str, case: Case, folder: Path, shim: Path | None) -> None:
    """Makes the side, then answers until the pipe closes."""
    os.environ["OMP_NUM_THREADS"] = os.environ["YOLONAS_NUM_THREADS"] = str(case.threads)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # libraries talk
    try:
        if shim is not None and ctypes.CDLL(str(shim)).hide_avx512():
            raise RuntimeError("CPUID cannot be made to trap here")
        side = SIDES[name][0](case, folder, np.load(case.path(folder, "input.npy")))
    except Exception as error:
        pipe.recv()
        pipe.send((False, f"{type(error).__name__}: {error}".splitlines()[0]))
        return

    def run() -> None:
        side.run()

    answers: dict[str, Callable[[], Any]] = {
        "run": run,
        "read": side.read,
        "about": lambda: side.about,
        "layers": lambda: side.layers(9) if side.layers else None,
        "peak_mb": peak_mb,
        "nothing": lambda: None,
    }
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, answers[what]())
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}".splitlines()[0])
        pipe.send(answer)


def peak_mb() -> float | None:
    """The most memory that this program has had; `getrusage` would count what its parent had when it forked."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
