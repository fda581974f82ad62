"""A small program that runs every kind of kernel once, for compute-sanitizer: narrow networks and the ops.

Results are compared with the CPU's. Every tensor is an allocation of its own, as far as torch lets it, and so is every
buffer of the engines: a checker of memory sees what goes beyond them. Needs a GPU; says so and ends with 3 elsewhere.

python bench/gpu_check.py

compute-sanitizer --tool memcheck python bench/gpu_check.py
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from timing import ROOT

sys.path.append(str(ROOT / "tests"))  # the recipe

CLASSES = 3
SIZES = ((1, 64, 96), (2, 64, 64), (1, 64, 96))  # batch, height, width: the first comes back after another
CUTS, TURNS, STRIDE = 3, 4, 5  # of the choices that the engine offers; runs with them; how far the next run goes on
PICTURES = ((37, 53), (150, 61))  # height, width


class Memory(Protocol):
    """Where tensors lie that the module takes."""

    stream: int

    def put(self, array: np.ndarray) -> Any:
        """A copy of an array, as a tensor."""

    def get(self, tensor: Any) -> np.ndarray:
        """The array of a tensor, after all that was queued."""


class TorchMemory:
    """That of the first CUDA device. Only copies, no kernels of torch."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self.stream = int(torch.cuda.current_stream().cuda_stream)

    def put(self, array: np.ndarray) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).cuda()

    def get(self, tensor: Any) -> np.ndarray:
        return tensor.cpu().numpy()


def narrow(name: str = "s") -> Any:
    """A folded network as deep as "s", with channels by sixteens, as the engine wants them."""
    from golden_recipe import fill_

    from yolonas.config import VARIANTS
    from yolonas.nn import YoloNAS, fuse_

    def width(channels: int, unit: int = 16) -> int:
        return max(unit, channels // 8 // unit * unit)

    def less(stages: Any) -> Any:  # a stage's width is halved in the neck
        return tuple(replace(one, channels=width(one.channels, 32), hidden=width(one.hidden)) for one in stages)

    whole = VARIANTS[name]
    parts = {part: less(getattr(whole, part)) for part in ("backbone", "up", "down")}
    variant = replace(whole, name="narrow", **parts, heads=tuple(map(width, whole.heads)))  # type: ignore[arg-type]
    return fuse_(fill_(YoloNAS(variant, num_classes=CLASSES)).eval())  # type: ignore[arg-type]


def networks() -> dict[str, Any]:
    """Graphs by what they are, with the CPU engine of each."""
    from quantized_networks import quantize_

    from yolonas.lowering import lower
    from yolonas.native_engine import NativeEngine, native_of_graph
    from yolonas.quantized_graph import quantized_graph

    model = narrow()
    graph = lower(model)
    quantize_(model, np.random.default_rng(7).random((1, 64, 96, 3), np.float32))
    integer = quantized_graph(lower(model), model.activation_scales)
    return {
        kind: (one, NativeEngine(native_of_graph(one), CLASSES)) for kind, one in (("float", graph), ("int8", integer))
    }


# --- the engine ---

KINDS = {"fp32": ("float", False, 1e-4), "fp16": ("float", True, 3e-2), "int8": ("int8", False, 0.0)}


def outputs_of(batch: int, height: int, width: int) -> list[np.ndarray]:
    """NaN, which shows what was not written: class logits per level, then box logits."""
    shapes = [(batch, height // side, width // side) for side in (8, 16, 32)]
    return [np.full((*shape, channels), np.nan, np.float32) for channels in (CLASSES, 68) for shape in shapes]


def check_run(engine: Any, cpu: Any, memory: Memory, tolerance: float, size: tuple[int, int, int], seed: int) -> str:
    """One run of the network alone."""
    from gpu_aims import difference

    x = np.random.default_rng(seed).random((*size, 3), np.float32)
    outputs = list(map(memory.put, outputs_of(*size)))
    engine.run(memory.put(x), outputs[:3], outputs[3:], stream=memory.stream)
    cls, reg = cpu.heads(x)
    found = difference(list(map(memory.get, outputs)), [*cls, *reg])
    fine = found <= tolerance
    return "" if fine else f"{size}: differs by {found:.1e} of the largest value, at most {tolerance:.0e}"


def check_runs(engine: Any, cpu: Any, memory: Memory, tolerance: float) -> str:
    """As the engine chooses, for two sizes and a batch."""
    found = (check_run(engine, cpu, memory, tolerance, size, seed) for seed, size in enumerate(SIZES))
    return next(filter(None, found), "")


def check_choices(engine: Any, cpu: Any, memory: Memory, tolerance: float) -> str:
    """Some runs in which the steps go through all variants of their kernels, each step beginning at another one."""
    batch, height, width = SIZES[0]
    offered = engine.alternatives(height, width, batch, CUTS)
    for turn in range(TURNS):
        places = enumerate(offered)
        choices = [choices[(turn * STRIDE + step) % len(choices)] if choices else None for step, choices in places]
        engine.set_choices(height, width, batch, choices)
        if fault := check_run(engine, cpu, memory, tolerance, SIZES[0], turn):
            return f"turn {turn}: {fault}"
    return ""


def check_detect(engine: Any, cpu: Any, memory: Memory, *, exact: bool) -> str:
    """From pixels to boxes, with both kinds of labels. Without `exact` only the scores are compared, and roughly."""
    from yolonas.config import DetectSettings
    from yolonas.prepare import detect_arguments
    from yolonas.preprocess import Preprocess

    preprocess = Preprocess(size=(64, 96), fit=(64, 96))
    rng = np.random.default_rng(5)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in PICTURES]
    geometries = [preprocess.plan(*size) for size in PICTURES]
    for multi_label in (True, False):
        settings = DetectSettings(conf=0.05, iou=0.6, top_k=200, max_det=40, multi_label=multi_label)
        expected, _ = cpu.detect(pictures, geometries, preprocess, settings)
        detections = memory.put(np.full((len(pictures), settings.max_det, 6), np.nan, np.float32))
        counts = memory.put(np.full(len(pictures), -1, np.int64))
        engine.detect(
            list(map(memory.put, pictures)),
            **detect_arguments((64, 96), geometries, preprocess, settings),
            class_mask=memory.put(np.ones(CLASSES, np.uint8)),
            detections=detections,
            counts=counts,
            stream=memory.stream,
        )
        found = [rows[:count] for rows, count in zip(memory.get(detections), memory.get(counts), strict=True)]
        for ours, right in zip(found, expected, strict=True):
            if not np.isfinite(ours).all() or (exact and len(ours) != len(right)):
                return f"{len(ours)} boxes, the CPU has {len(right)}"
            count = min(len(ours), len(right))
            apart = np.abs(ours[:count, 4] - right[:count, 4]).max(initial=0.0)
            if apart > (1e-5 if exact else 0.05):
                return f"scores differ by {apart:.1e}"
    return ""


# --- the ops ---


def check_letterbox(module: Any, memory: Memory) -> str:
    import torch

    import yolonas.ops._torch  # noqa: F401 - registers the ops

    picture = np.random.default_rng(1).integers(0, 256, (37, 53, 3), np.uint8)
    scaling = ([0.0] * 3, [255.0] * 3)
    right = torch.ops.yolonas.letterbox(
        torch.from_numpy(picture), [64, 64], [45, 60], [9, 2], 114, True, True, *scaling
    )
    out = memory.put(np.full((64, 64, 3), np.nan, np.float32))
    module.letterbox(
        memory.put(picture),
        out,
        resized_h=45,
        resized_w=60,
        top=9,
        left=2,
        pad_value=114,
        swap_channels=True,
        hwc=True,
        mean=scaling[0],
        divisor=scaling[1],
        stream=memory.stream,
    )
    return "" if np.array_equal(memory.get(out), right.numpy()) else "not the bits of the CPU"


def check_decode_and_nms(module: Any, memory: Memory) -> str:
    """Decoding, then suppression of boxes that the CPU has chosen."""
    import torch

    import yolonas.ops._torch  # noqa: F401 - registers the ops

    rng = np.random.default_rng(2)
    levels = ((5, 7), (3, 4))
    cls, reg = ([rng.normal(0, 3, (2, *level, width)).astype(np.float32) for level in levels] for width in (4, 68))
    strides, ops = [8.0, 16.0], torch.ops.yolonas
    tensors = [[torch.from_numpy(level) for level in side] for side in (cls, reg)]
    right = ops.decode(*tensors, strides, True)
    boxes, scores = (memory.put(np.full(tuple(one.shape), np.nan, np.float32)) for one in right)
    put = [list(map(memory.put, side)) for side in (cls, reg)]
    module.decode(*put, strides, channels_last=True, boxes=boxes, scores=scores, stream=memory.stream)
    for ours, theirs, close in ((boxes, right[0], 5e-4), (scores, right[1], 2e-6)):
        if not np.abs(memory.get(ours) - theirs.numpy()).max() <= close:
            return "decode differs from the CPU's"
    candidates = ops.decode_candidates(*tensors, strides, 0.3, 100, True, None, True)
    expected, counts = ops.nms_candidates(*candidates, 0.4, 30, False)
    count = candidates[0].shape[1]
    detections = memory.put(np.full(tuple(expected.shape), np.nan, np.float32))
    found = memory.put(np.full(tuple(counts.shape), -1, np.int64))
    size = 2 * int(module.nms_workspace_bytes(count))
    module.nms_candidates(
        *(memory.put(one.numpy()) for one in candidates),
        iou=0.4,
        max_det=30,
        agnostic=False,
        detections=detections,
        counts=found,
        workspace=memory.put(np.full(-(-size // 8), -1, np.int64)),
        stream=memory.stream,
    )
    same = np.array_equal(memory.get(found), counts.numpy())
    same = same and all(
        np.array_equal(ours[:n], theirs[:n])
        for ours, theirs, n in zip(memory.get(detections), expected.numpy(), counts.tolist(), strict=True)
    )
    return "" if same else "suppression differs from the CPU's"


def check_long_lists(module: Any, memory: Memory) -> str:
    """More candidates than are sorted in shared memory, and more boxes kept than it has room for. Logits are multiples
    of 1/4, so that the order of scores is the CPU's; suppression is compared with the CPU's of the same candidates.
    """
    import torch

    import yolonas.ops._torch  # noqa: F401 - registers the ops

    rng, ops = np.random.default_rng(6), torch.ops.yolonas
    levels, classes, top_k, strides = ((24, 28), (5, 5)), 8, 3000, [8.0, 16.0]
    cls = [(rng.integers(-20, 21, (1, *level, classes)) / 4).astype(np.float32) for level in levels]
    reg = [rng.uniform(-6, 6, (1, *level, 68)).astype(np.float32) for level in levels]
    settings = {"conf": 0.0, "top_k": top_k, "multi_label": True, "class_mask": None, "agnostic": False}
    needed = module._detect_workspace_bytes(levels, 1, classes, top_k=top_k, multi_label=True)
    put = [list(map(memory.put, side)) for side in (cls, reg)]
    workspace = memory.put(np.full(needed, 255, np.uint8))

    def detected(iou: float, prepared: bool) -> tuple[np.ndarray, np.ndarray]:
        rows, counts = memory.put(np.full((1, top_k, 6), np.nan, np.float32)), memory.put(np.full(1, -1, np.int64))
        outputs = {"detections": rows, "counts": counts, "workspace": workspace, "prepared": prepared}
        limits = {"iou": iou, "max_det": top_k, "stream": memory.stream}
        module._detect(*put, strides, **settings, **limits, **outputs)
        return memory.get(rows), memory.get(counts)

    tensors = [[torch.from_numpy(level) for level in side] for side in (cls, reg)]
    candidates = ops.decode_candidates(*tensors, strides, 0.0, top_k, True, None, True)
    expected, _ = ops.nms_candidates(*candidates, 1.0, top_k, False)
    rows, counts = detected(1.0, prepared=False)
    if counts[0] != top_k or not np.array_equal(rows[..., 5], expected[..., 5].numpy()):
        return f"{counts[0]} candidates, or other ones than the CPU's {top_k}"
    if not np.abs(rows - expected.numpy()).max() <= 3e-4:
        return "candidates differ from the CPU's"
    boxes, scores, labels = (torch.from_numpy(np.ascontiguousarray(rows[..., part])) for part in (slice(4), 4, 5))
    expected, count = ops.nms_candidates(boxes, scores, labels.int(), torch.from_numpy(counts), 0.7, top_k, False)
    rows, counts = detected(0.7, prepared=True)
    if not 1024 < count[0] < top_k:
        return f"{count[0]} boxes are no case for this"
    same = np.array_equal(counts, count.numpy()) and np.array_equal(rows, expected.numpy())
    return "" if same else "suppression differs from the CPU's"


def check_fake_quantize(module: Any, memory: Memory) -> str:
    x = np.random.default_rng(4).normal(0, 40, 999).astype(np.float32)
    out = memory.put(np.full(999, np.nan, np.float32))
    scale = np.full(1, 0.5, np.float32)
    settings = {"axis": -1, "quant_min": -128, "quant_max": 127, "stream": memory.stream}
    module.fake_quantize(memory.put(x), memory.put(scale), out, **settings)
    right = np.clip(np.rint(x / scale), -128, 127) * scale
    return "" if np.array_equal(memory.get(out), right) else "not what NumPy has"


def checks(module: Any, memory: Memory) -> Iterator[tuple[str, Callable[[], str]]]:
    """Names, and what says what is wrong, or ""."""
    yield "letterbox", lambda: check_letterbox(module, memory)
    yield "decode, nms_candidates", lambda: check_decode_and_nms(module, memory)
    yield "long lists of candidates", lambda: check_long_lists(module, memory)
    yield "fake_quantize", lambda: check_fake_quantize(module, memory)
    graphs = networks()
    for kind, (source, half, tolerance) in KINDS.items():
        graph, cpu = graphs[source]

        def made(graph: Any = graph, half: bool = half) -> Any:
            engine = module.Engine(graph.buffers, graph.steps, graph.outputs, device=0, half=half)
            engine._guard_buffers(True)
            return engine

        yield f"network {kind}", lambda made=made, cpu=cpu, most=tolerance: check_runs(made(), cpu, memory, most)
        yield f"variants {kind}", lambda made=made, cpu=cpu, most=tolerance: check_choices(made(), cpu, memory, most)
        exact = kind == "int8"
        yield f"detect {kind}", lambda made=made, cpu=cpu, exact=exact: check_detect(made(), cpu, memory, exact=exact)


def run_all(module: Any, memory: Memory) -> int:
    """How many checks failed; prints a line for each."""
    wrong = 0
    for name, check in checks(module, memory):
        try:
            fault = check()
        except Exception as error:
            traceback.print_exc()
            fault = f"{type(error).__name__}: {error}"
        wrong += bool(fault)
        print(f"{name}: {fault or 'ok'}", flush=True)
    print(f"{wrong} wrong")
    return wrong


def main() -> int:
    os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")  # every tensor an allocation of its own
    from gpu import missing_here

    if reason := missing_here():
        print(f"gpu_check: {reason}")
        return 3
    from yolonas import _native

    return 1 if run_all(_native.cuda(), TorchMemory()) else 0


if __name__ == "__main__":
    sys.exit(main())
