"""The sides of the benchmark on a GPU: our engine, and the fused torch module eager, in a CUDA graph and compiled.

All in one process, on torch's current stream. Every side gets its inputs in the form that suits it, on the device.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_aims import GpuCase
from network_files import flat, network
from timing import ROOT

sys.path.append(str(ROOT / "tests"))  # the recipe
DEVICE = "cuda"
MOST_INPUTS, ROTATED_BYTES = 48, 160 << 20  # of float32 inputs; half of it is more than the L2 cache has
LEVELS = (8, 16, 32)
KEPT: Path | None = None  # a folder for folded networks, each of which takes seconds; processes of one run share it
# Of torch.compile's caches, and of what gpu_compile.py has done.
COMPILE_FOLDER = Path(os.environ.get("YOLONAS_GPU_WORK") or ROOT / "build" / "gpu")


class Side(NamedTuple):
    """A network that is ready."""

    run: Callable[[int], object]  # queues a run with an input, by its number
    read: Callable[[], list[np.ndarray]]  # class logits and box logits of the last run, (N, h, w, C) each
    about: str
    notes: Callable[[], dict[str, Any]] | None = None  # of our engine: how it ran in the end


def stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def device_name(index: int = 0) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.multi_processor_count} SMs"


class Inputs:
    """Pictures of a case on the device, as many sets as the L2 cache cannot hold. All sides get the same ones."""

    def __init__(self, case: GpuCase):
        self.case = case
        one = 12 * case.size * case.size * case.batch
        self.count = min(MOST_INPUTS, max(2, -(-ROTATED_BYTES // one)))
        rng = np.random.default_rng(0)
        shape = (case.batch, case.size, case.size, 3)
        self.host = rng.random(shape, np.float32)  # the first, which results are compared with
        self.hwc = [torch.from_numpy(self.host).to(DEVICE)]
        generator = torch.Generator(DEVICE).manual_seed(1)
        self.hwc += [torch.rand(shape, device=DEVICE, generator=generator) for _ in range(self.count - 1)]

    @cached_property
    def half(self) -> list[torch.Tensor]:
        """float16 (N, 3, H, W), channels last in memory."""
        return [x.permute(0, 3, 1, 2).half().contiguous(memory_format=torch.channels_last) for x in self.hwc]

    @cached_property
    def single(self) -> list[torch.Tensor]:
        """float32 (N, 3, H, W), channels last in memory."""
        return [x.permute(0, 3, 1, 2) for x in self.hwc]


def head_outputs(case: GpuCase, classes: int, empty: Callable[..., Any]) -> tuple[list[Any], list[Any]]:
    levels = [(case.batch, case.size // side, case.size // side) for side in LEVELS]
    return [empty((*level, classes)) for level in levels], [empty((*level, 68)) for level in levels]


def on_device(shape: Sequence[int]) -> torch.Tensor:
    return torch.full(tuple(shape), float("nan"), device=DEVICE)  # NaN shows what was not written


def graph_of(model: Any) -> Any:
    """The graph of a folded network, quantised where it has scales."""
    from yolonas.lowering import lower
    from yolonas.quantized_graph import quantized_graph

    graph = lower(model)
    return quantized_graph(graph, model.activation_scales) if model.activation_scales else graph


def native_engine(graph: Any, *, half: bool) -> Any:
    """A `_cuda.Engine`."""
    from yolonas import _native

    module = _native.cuda()
    assert module is not None
    return module.Engine(graph.buffers, graph.steps, graph.outputs, device=0, half=half)


def notes_of(engine: Any, height: int, width: int, batch: int) -> dict[str, Any]:
    """How an engine runs a size: its graphs, whether launches overlap, and what the last failed capture said."""
    return {
        "graphs": getattr(engine, "graph_count", 0),
        "overlap": any(step.get("overlap", False) for step in engine.plan(height, width, batch)),
        "capture_failure": getattr(engine, "capture_failure", ""),
    }


def ours(engine: Any, inputs: Inputs) -> Side:
    """Our engine: float32 (N, H, W, 3) in, float32 logits out; both conversions are in the time."""
    cls, reg = head_outputs(inputs.case, engine.num_classes, on_device)

    def run(number: int) -> None:
        engine.run(inputs.hwc[number], cls, reg, stream=stream())

    case = inputs.case
    return Side(
        run,
        lambda: [level.cpu().numpy() for level in (*cls, *reg)],
        "float32 input and logits, conversions included",
        lambda: notes_of(engine, case.size, case.size, case.batch),
    )


def torch_module(variant: str, *, half: bool) -> torch.nn.Module:
    module = flat(folded(variant)).to(DEVICE).to(memory_format=torch.channels_last)
    return module.half() if half else module


def as_arrays(outputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    return [level.float().permute(0, 2, 3, 1).cpu().numpy() for level in outputs]


def eager(module: torch.nn.Module, xs: Sequence[torch.Tensor]) -> Side:
    outputs: list[torch.Tensor] = []

    def run(number: int) -> None:
        with torch.no_grad():
            outputs[:] = module(xs[number])

    return Side(run, lambda: as_arrays(outputs), "channels_last, cudnn.benchmark")


def captured(module: torch.nn.Module, xs: Sequence[torch.Tensor]) -> Side:
    """The same in a CUDA graph, into whose input every run copies."""
    static = xs[0].clone(memory_format=torch.preserve_format)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside), torch.no_grad():
        for _ in range(3):  # cuDNN chooses its algorithms outside of the capture
            module(static)
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        outputs = module(static)

    def run(number: int) -> None:
        static.copy_(xs[number])
        graph.replay()

    return Side(run, lambda: as_arrays(outputs), "channels_last, cudnn.benchmark, input copied on the device")


def compiled(module: torch.nn.Module, xs: Sequence[torch.Tensor], about: str = "") -> Side:
    function = torch.compile(module, mode="max-autotune")
    outputs: list[torch.Tensor] = []

    def run(number: int) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            outputs[:] = function(xs[number])

    for number in range(3):  # compiles, records the graph
        run(number % len(xs))
    return Side(run, lambda: as_arrays(outputs), f"max-autotune with CUDA graphs, channels_last; {about}")


def compile_environment() -> None:
    """Lets torch.compile keep its caches in the build folder. To be called before torch compiles anything."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(COMPILE_FOLDER / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(COMPILE_FOLDER / "triton"))


def compiled_mark(case: GpuCase) -> Path:
    """The file that says that the caches hold this case's code."""
    version = torch.__version__.partition("+")[0]
    return COMPILE_FOLDER / f"compiled_{case.key}_{version}"


def write_mark(case: GpuCase, seconds: float) -> None:
    """Notes that a case is compiled, and whether something else used the GPU when it was tuned, now or earlier."""
    COMPILE_FOLDER.mkdir(parents=True, exist_ok=True)
    path, disturbed = compiled_mark(case), ", autotuned while tests ran"
    beside = (COMPILE_FOLDER / "disturbed").exists() or (path.exists() and disturbed in path.read_text())
    path.write_text(f"{seconds:.0f} s ahead{disturbed * beside}\n")


def strict_fp32() -> None:
    """No TF32 for float32, fastest algorithms for all."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


# --- from pixels to boxes ---

PICTURE, BOXES = (1080, 1920), 100  # of the picture that is detected in; that many are above the threshold
PICTURES = 24  # in turn, more than the L2 cache has


class Detection:
    """uint8 1080p pictures on the device, and what is found in the first by the CPU engine."""

    def __init__(self, cpu: Any):
        """With a `NativeEngine` in float32."""
        from yolonas.config import DetectSettings
        from yolonas.demo import draw_scene
        from yolonas.prepare import fill_from_picture
        from yolonas.preprocess import Preprocess

        self.preprocess = Preprocess()
        self.geometry = self.preprocess.plan(*PICTURE)
        self.host = draw_scene(*PICTURE)
        x = np.empty((1, *self.geometry.frame, 3), np.float32)
        fill_from_picture(x[0], self.host, self.geometry, self.preprocess, "hwc")
        cls, _ = cpu.heads(x)
        self.settings = DetectSettings(conf=score_for([level.ravel() for level in cls], BOXES))
        (self.expected,), _ = cpu.detect([self.host], [self.geometry], self.preprocess, self.settings)

    def arguments(self) -> dict[str, Any]:
        """Those of `Engine.detect`, but for pictures and results."""
        geometry, preprocess, settings = self.geometry, self.preprocess, self.settings
        return {
            "frame": geometry.frame,
            "resized": [geometry.resized],
            "offsets": [(geometry.top, geometry.left)],
            "pad_value": preprocess.pad_value,
            "swap_channels": preprocess.channels == "rgb",
            "mean": preprocess.mean,
            "divisor": preprocess.divisor,
            "conf": settings.conf,
            "top_k": settings.top_k,
            "multi_label": settings.multi_label,
            "class_mask": None,
            "iou": settings.iou,
            "max_det": settings.max_det,
            "agnostic": settings.agnostic,
        }


def score_for(logits: Sequence[np.ndarray], count: int) -> float:
    """A score that so many of the logits are above."""
    best = np.sort(np.concatenate(logits))[::-1][: count + 1].astype(np.float64)
    return float(1 / (1 + np.exp(-(best[-1] + best[-2]) / 2)))


def detector(engine: Any, detection: Detection) -> Side:
    """Letterbox, network, decoding and suppression; pictures and results stay on the device."""
    first = torch.from_numpy(detection.host).to(DEVICE)
    pictures = [torch.roll(first, 41 * number, 1).contiguous() for number in range(PICTURES)]
    settings = detection.arguments()
    detections = torch.full((1, settings["max_det"], 6), float("nan"), device=DEVICE)
    counts = torch.full((1,), -1, dtype=torch.int64, device=DEVICE)

    def run(number: int) -> None:
        engine.detect([pictures[number]], **settings, detections=detections, counts=counts, stream=stream())

    def read() -> list[np.ndarray]:
        return [detections[0, : int(counts[0])].cpu().numpy()]

    about = f"{PICTURE[1]}x{PICTURE[0]} uint8, conf {settings['conf']:.3f}"
    return Side(run, read, about, lambda: notes_of(engine, *settings["frame"], 1))


# --- references on the CPU ---


def cpu_heads(engine: Any, x: np.ndarray) -> list[np.ndarray]:
    """Logits of the CPU engine of a `NativeEngine`, class before box, (N, h, w, C) each."""
    cls, reg = engine.heads(x)
    return [*cls, *reg]


def quantize_(model: Any, size: int = 640, pictures: int = 4) -> Any:
    """Gives a folded network int8 scales from a few pictures of the recipe, in place."""
    from golden_recipe import make_input

    from yolonas.native_engine import NativeEngine
    from yolonas.quantization import collect_histograms
    from yolonas.quantization.ranges import set_ranges

    xs = (np.ascontiguousarray(make_input(1001 + i, (1, 3, size, size)).transpose(0, 2, 3, 1)) for i in range(pictures))
    set_ranges(model, collect_histograms(NativeEngine.of_module(model), xs))
    return model


def folded(variant: str) -> Any:
    """A folded network with the recipe's weights, the same as the peers'."""
    return copy.deepcopy(_folded(variant))


@cache
def _folded(variant: str) -> Any:
    path = KEPT / f"{variant}.pt" if KEPT else None
    if path and path.exists():
        return torch.load(path, weights_only=False)
    model = network(variant).model
    if path:
        part = path.with_suffix(".part")
        torch.save(model, part)
        part.replace(path)
    return model
