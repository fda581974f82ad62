"""The engine on a CUDA device: on a device where there is one, and everywhere through the emulator.

The emulator runs the nodes of a captured graph in any order that their dependencies allow, and ends every allocation
at a page that nobody may touch: a missing dependency between streams, or one element too far, shows. It says nothing
about speed.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import engine_graphs
import harness
import int8_graphs
import numpy as np
import pytest
from cuda_graphs import DETECTOR, DETECTOR_INT8, GRAPH, INT8, INTEGERS
from emulated_cuda import FakeCudaTensor, live_allocations, spoil_captures
from engine_graphs import SIXTEENS, Graph, conv, outputs_for, picture, same
from engine_graphs import graph as float_graph
from golden_recipe import fill_
from int8_graphs import convert
from quantized_networks import quantize_

from yolonas import _native
from yolonas.lowering import lower
from yolonas.nn import YoloNAS, fuse_
from yolonas.preprocess import Preprocess
from yolonas.quantization.histogram import BINS, EDGES, FINITE, Histogram
from yolonas.quantized_graph import quantized_graph

pytestmark = pytest.mark.slow


class Emulated:
    """Engines of the emulator, and arrays "on the device" between guard pages."""

    overlaps = True

    def __init__(self, module: ModuleType):
        self.module = module

    def make(self, graph: Graph, **options: Any) -> Any:
        return self.module.Engine(*graph, **options)

    def run(self, engine: Any, graph: Graph, x: np.ndarray) -> list[np.ndarray]:
        cls, reg = outputs_for(graph, x, harness.guarded_empty)
        sent = [[FakeCudaTensor(one) for one in level] for level in (cls, reg)]
        engine.run(FakeCudaTensor(harness.guarded(x)), *sent, stream=0)
        return [level for pair in zip(cls, reg, strict=True) for level in pair]

    def count(self, name: str, engine: Any, x: np.ndarray, *totals: np.ndarray) -> list[np.ndarray]:
        """The totals after `observe` or `channel_sums`, by its name."""
        counted = [harness.guarded(one) for one in totals]
        getattr(engine, name)(FakeCudaTensor(harness.guarded(x)), *map(FakeCudaTensor, counted), stream=0)
        return counted

    def detect(self, engine: Any, pictures: list[np.ndarray], **changes: Any) -> list[np.ndarray]:
        given = detect_arguments(pictures, **changes)
        mask = given["class_mask"]
        detections = harness.guarded_empty((len(pictures), given["max_det"], 6), np.float32)
        counts = harness.guarded_empty((len(pictures),), np.int64)
        given["class_mask"] = None if mask is None else FakeCudaTensor(harness.guarded(mask))
        engine.detect(
            [FakeCudaTensor(one if one.base is not None else harness.guarded(one)) for one in pictures],
            **given,
            detections=FakeCudaTensor(detections),
            counts=FakeCudaTensor(counts),
            stream=0,
        )
        return [detections, counts]


class OnDevice:
    """The same on a real device."""

    def __init__(self) -> None:
        self.torch = pytest.importorskip("torch")
        if _native.cuda() is None or not self.torch.cuda.is_available():
            pytest.skip("no CUDA device, or a build without yolonas._cuda")
        self.module = _native.cuda()
        self.overlaps = self.torch.cuda.get_device_capability() >= (9, 0)
        self.make = Emulated.make.__get__(self)

    def stream(self) -> int:
        return int(self.torch.cuda.current_stream().cuda_stream)

    def sent(self, array: np.ndarray) -> Any:
        if array.flags.c_contiguous or not isinstance(array.base, np.ndarray):
            return self.torch.from_numpy(np.ascontiguousarray(array)).cuda()
        # Rows that lie apart do so there too; alone they would be moved as a contiguous tensor.
        first = (array.ctypes.data - array.base.ctypes.data) // array.itemsize
        strides = [stride // array.itemsize for stride in array.strides]
        return self.torch.from_numpy(array.base).cuda().as_strided(array.shape, strides, first)

    def run(self, engine: Any, graph: Graph, x: np.ndarray) -> list[np.ndarray]:
        cls, reg = outputs_for(graph, x, lambda shape, _: self.torch.full(shape, np.nan, device="cuda"))
        engine.run(self.sent(x), cls, reg, stream=self.stream())
        return [level.cpu().numpy() for pair in zip(cls, reg, strict=True) for level in pair]

    def count(self, name: str, engine: Any, x: np.ndarray, *totals: np.ndarray) -> list[np.ndarray]:
        counted = [self.sent(one) for one in totals]
        getattr(engine, name)(self.sent(x), *counted, stream=self.stream())
        return [one.cpu().numpy() for one in counted]

    def detect(self, engine: Any, pictures: list[np.ndarray], **changes: Any) -> list[np.ndarray]:
        given = detect_arguments(pictures, **changes)
        mask = given["class_mask"]
        given["class_mask"] = None if mask is None else self.sent(mask)
        detections = self.torch.empty((len(pictures), given["max_det"], 6), device="cuda")
        counts = self.torch.empty(len(pictures), dtype=self.torch.int64, device="cuda")
        outputs = {"detections": detections, "counts": counts}
        engine.detect([self.sent(one) for one in pictures], **given, **outputs, stream=self.stream())
        return [detections.cpu().numpy(), counts.cpu().numpy()]


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.cuda)])
def cuda(request: pytest.FixtureRequest) -> Any:
    return OnDevice() if request.param == "device" else Emulated(request.getfixturevalue("emulated"))


@pytest.fixture
def emulator(emulated: ModuleType) -> Emulated:
    return Emulated(emulated)


TOLERANCE = {False: 2e-5, True: 1e-2}  # of the largest output; float16 rounds every map


def names_of(graph: Graph) -> list[str]:
    """Steps without a name are called by their number."""
    return [step.get("name", str(number)) for number, step in enumerate(graph[1])]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], *, half: bool = False) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE[half] * np.abs(other).max())


def assert_close_integers(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Where float steps lie between, a number that is next to a half may become its neighbour."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0.02 * np.abs(other).max())
        assert np.mean(np.abs(one - other) > 1e-5 * np.abs(other).max()) < 0.02


def on_cpu(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
    cls, reg = outputs_for(graph, x)
    harness.native().Engine(*graph).run(x, cls, reg)
    return [level for pair in zip(cls, reg, strict=True) for level in pair]


# --- what it computes ---


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 48, 32)], ids=str)
def test_floats_against_float64(cuda: Any, shape: tuple[int, int, int], half: bool) -> None:
    """Three times: step by step, captured, and replayed."""
    x = picture(*shape)
    engine = cuda.make(GRAPH, half=half)
    assert (engine.half, engine.device) == (half, 0)
    first = cuda.run(engine, GRAPH, x)
    assert_close(first, engine_graphs.interpret(GRAPH, x), half=half)
    assert engine.graph_count == 0
    for _ in range(2):
        assert same(cuda.run(engine, GRAPH, x), first)
        assert engine.graph_count == 1


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 32, 48)], ids=str)
def test_integers_have_the_bits_of_the_cpu(cuda: Any, shape: tuple[int, int, int]) -> None:
    x = picture(*shape)
    expected = on_cpu(INTEGERS, x)
    assert same(expected, int8_graphs.interpret(INTEGERS, x)[0])
    engine = cuda.make(INTEGERS)
    for _ in range(3):
        assert same(cuda.run(engine, INTEGERS, x), expected)


def test_float_steps_among_integers(cuda: Any) -> None:
    x = picture(1, 32, 32)
    assert_close_integers(cuda.run(cuda.make(INT8), INT8, x), int8_graphs.interpret(INT8, x)[0])


def shared_input() -> Graph:
    scale = 0.02
    steps = [
        convert("quantize", "in", (0, 0, 3), (1, 0, 4)),
        int8_graphs.integer(conv("integer", (1, 0, 4), (2, 0, 16), 3, 2)),
        conv("float", (0, 0, 3), (3, 0, 16), 3, 2),
    ]
    outputs = [{"cls": (2, 0, 16), "reg": (3, 0, 16), "stride": 2}]
    return [(0, 3), (0, 4, scale), (1, 16), (1, 16)], steps, outputs


def test_an_input_that_several_steps_read(cuda: Any) -> None:
    """Then it is kept as float32, and quantised by a step."""
    graph, x = shared_input(), picture(2, 6, 8)
    found, expected = cuda.run(cuda.make(graph), graph, x), on_cpu(graph, x)
    assert same(found[:1], expected[:1])
    assert_close(found[1:], expected[1:])


def test_any_place_in_the_batch_gives_the_same_bits(cuda: Any) -> None:
    x = picture(3, 32, 16)
    for graph, half in ((GRAPH, True), (INTEGERS, False)):
        engine = cuda.make(graph, half=half)
        choices = [step[0] for step in engine.alternatives(32, 16, 1, 1)]
        for batch in (1, 3):  # sums of floats have the order of the variant, which is chosen by the size
            engine.set_choices(32, 16, batch, choices)
        expected = cuda.run(engine, graph, x)
        for i in range(3):
            assert same(cuda.run(engine, graph, x[i : i + 1].copy()), [level[i : i + 1] for level in expected])


def test_every_variant_and_split(cuda: Any) -> None:
    x = picture(1, 16, 16)
    for graph, half in ((GRAPH, False), (GRAPH, True), (INTEGERS, False)):
        engine = cuda.make(graph, half=half)
        expected = on_cpu(graph, x)
        all_choices = engine.alternatives(16, 16, 1, 2)
        most = max(map(len, all_choices))
        assert most > 4 or not half
        for run in range(most):
            choices = [step[(run + i) % len(step)] for i, step in enumerate(all_choices)]
            engine.set_choices(16, 16, 1, choices)
            plan = engine.plan(16, 16, 1)
            assert [(step["algorithm"], step["splits"], 0) for step in plan] == choices
            found = cuda.run(engine, graph, x)
            if graph is INTEGERS:
                assert same(found, expected)
            else:
                assert_close(found, expected, half=half)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_a_whole_network(cuda: Any, kind: str) -> None:
    """All layers of the smallest one."""
    x = picture(1, 64, 64)
    model = fuse_(fill_(YoloNAS("s", num_classes=7)).eval())
    if kind == "int8":
        quantize_(model, x)
    lowered = lower(model)
    network = quantized_graph(lowered, model.activation_scales) if kind == "int8" else lowered
    whole = (network.buffers, network.steps, network.outputs)
    expected = on_cpu(whole, x)
    engine = cuda.make(whole, half=kind == "float16")
    first = cuda.run(engine, whole, x)
    if kind == "int8":
        assert same(first, expected)
    else:
        assert_close(first, expected, half=kind == "float16")
    assert same(cuda.run(engine, whole, x), first)


# --- what it counts ---


def no_values(graph: Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = 1 + len(graph[1])
    return np.zeros((rows, BINS), np.int64), np.zeros(rows, np.float32), np.zeros(rows, np.int64)


def assert_counted(found: list[np.ndarray], values: list[np.ndarray], tolerance: float) -> None:
    """Each count up to the edge of a bin is one of values that are nearly these, those of the input are exact."""
    counts, largest, negatives = found
    assert len(counts) == len(values)
    assert np.array_equal(counts[0], Histogram.from_values(values[0]).counts)
    for row, one in enumerate(values):
        magnitudes = np.sort(np.abs(one.astype(np.float64)), axis=None)
        near = tolerance * magnitudes[-1] if row else 0.0
        below = np.cumsum(counts[row][:FINITE])
        assert counts[row].sum() == below[-1] == one.size
        assert (below >= np.searchsorted(magnitudes, EDGES[1:] - near)).all(), row
        assert (below <= np.searchsorted(magnitudes, EDGES[1:] + near)).all(), row
        assert abs(largest[row] - magnitudes[-1]) <= near
        assert np.count_nonzero(one < -near) <= negatives[row] <= np.count_nonzero(one < near), row


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 48, 32)], ids=str)
def test_values_of_every_step_are_counted(cuda: Any, shape: tuple[int, int, int], half: bool) -> None:
    x = picture(*shape)
    values = engine_graphs.values_of_steps(GRAPH, x)
    engine = cuda.make(GRAPH, half=half)
    found = cuda.count("observe", engine, x, *no_values(GRAPH))
    assert_counted(found, values, TOLERANCE[half])
    twice = cuda.count("observe", engine, x, *found)
    for one, other, factor in zip(twice, found, (2, 1, 2), strict=True):
        assert np.array_equal(one, factor * other)
    engine._guard_buffers(True)
    assert same(cuda.count("observe", engine, x, *no_values(GRAPH)), found)


def test_counts_are_the_same_however_pictures_come_in_batches(cuda: Any) -> None:
    x, totals, engine = picture(3, 32, 16), no_values(GRAPH), cuda.make(GRAPH)
    whole = cuda.count("observe", engine, x, *totals)
    for one in (x[2:], x[:2]):
        totals = cuda.count("observe", engine, one.copy(), *totals)
    assert same(totals, whole)


def test_counting_and_running_in_turn(cuda: Any) -> None:
    """The same bits as alone, whatever was captured before."""
    x, other = picture(1, 32, 16), picture(2, 16, 16, seed=3)
    engine = cuda.make(GRAPH)
    outputs, counted = cuda.run(engine, GRAPH, x), cuda.count("observe", engine, x, *no_values(GRAPH))
    for _ in range(2):
        cuda.count("observe", engine, other, *no_values(GRAPH))
        assert same(cuda.run(engine, GRAPH, x), outputs)
        assert same(cuda.count("observe", engine, x, *no_values(GRAPH)), counted)
    assert engine.graph_count == 1


def test_values_that_are_not_finite_are_counted(cuda: Any) -> None:
    x = picture(1, 16, 16)
    x[0, 3, 4] = [np.nan, np.inf, -np.inf]
    counts, largest, negatives = cuda.count("observe", cuda.make(GRAPH), x, *no_values(GRAPH))
    expected = Histogram.from_values(x)
    assert np.array_equal(counts[0], expected.counts)
    assert counts[0, FINITE:].sum() == 3
    assert (largest[0], negatives[0]) == (np.float32(expected.largest), expected.negatives)
    assert counts[1, FINITE:].sum() > 0


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 48, 32)], ids=str)
def test_channel_sums(cuda: Any, shape: tuple[int, int, int]) -> None:
    x = picture(*shape)
    _, written = int8_graphs.interpret(INTEGERS, x)
    expected = [
        level.sum(axis=(0, 1, 2), dtype=np.int64) if level.dtype == np.int8 else np.zeros(level.shape[-1], np.int64)
        for level in written
    ]
    assert any((one < 0).any() for one in expected)
    sums = np.ones(sum(map(len, expected)), np.int64)
    engine = cuda.make(INTEGERS)
    for turn in (1, 2):
        (sums,) = cuda.count("channel_sums", engine, x, sums)
        assert np.array_equal(sums, 1 + turn * np.concatenate(expected))


def test_channel_sums_of_an_input_that_several_steps_read(cuda: Any) -> None:
    graph, x = shared_input(), picture(2, 6, 8)
    expected = np.zeros(36, np.int64)
    harness.native().Engine(*graph).channel_sums(x, expected)
    (found,) = cuda.count("channel_sums", cuda.make(graph), x, np.zeros(36, np.int64))
    assert np.array_equal(found, expected)
    assert expected[:3].all()
    assert not expected[3:].any()  # float outputs, and the channel that fills up


def test_counts_that_do_not_fit(emulator: Emulated) -> None:
    x = FakeCudaTensor(picture(1, 16, 16))
    engine, good = emulator.make(GRAPH), list(map(FakeCudaTensor, no_values(GRAPH)))
    counts, largest, negatives = good
    for arguments, error, text in (
        ((picture(1, 16, 16), *good), ValueError, "observe: x must lie on a CUDA device, got cpu"),
        ((x, no_values(GRAPH)[0], largest, negatives), ValueError, "observe: counts must lie on a CUDA device"),
        ((FakeCudaTensor(picture(1, 16, 8)), *good), ValueError, "observe: .* multiples of 16"),
        ((x, FakeCudaTensor(counts.array[1:]), largest, negatives), ValueError, "observe: counts must have shape"),
        ((x, counts, negatives, negatives), TypeError, "observe: largest must be float32, got int64"),
        ((x, counts, largest, FakeCudaTensor(counts.array[0, : len(largest.array)])), ValueError, "must not overlap"),
    ):
        with pytest.raises(error, match=text):
            engine.observe(*arguments, stream=0)
    moved = [FakeCudaTensor(one, device=1) for one in (picture(1, 16, 16), *no_values(GRAPH))]
    with pytest.raises(ValueError, match="observe: tensors must lie on the engine's device, cuda:0, got cuda:1"):
        engine.observe(*moved, stream=0)
    with pytest.raises(ValueError, match="observe: the network must compute with floats only, got one with int8"):
        emulator.make(INT8).observe(x, *good, stream=0)
    integers = emulator.make(INTEGERS)
    for total, error, text in (
        (np.zeros(3, np.int64), ValueError, r"channel_sums: sums must have shape \(total,\)"),
        (np.zeros(3, np.int32), TypeError, "channel_sums: sums must be int64"),
    ):
        with pytest.raises(error, match=text):
            integers.channel_sums(x, FakeCudaTensor(total), stream=0)


# --- memory and graphs ---


def test_no_buffer_is_left_and_nothing_unwritten_is_read(cuda: Any) -> None:
    x = picture(2, 32, 16)
    for graph, half in ((GRAPH, False), (GRAPH, True), (INTEGERS, False)):
        engine = cuda.make(graph, half=half)
        expected = cuda.run(engine, graph, x)
        engine._guard_buffers(True)
        for _ in range(2):
            assert same(cuda.run(engine, graph, x), expected)
        engine._guard_buffers(False)
        assert same(cuda.run(engine, graph, x), expected)


@pytest.mark.parametrize("seed", range(6))
def test_branches_may_run_in_any_order(emulator: Emulated, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    x = picture(1, 16, 32)
    for graph, half in ((GRAPH, True), (INTEGERS, False)):
        engine = emulator.make(graph, half=half)
        expected = emulator.run(engine, graph, x)
        monkeypatch.setenv("YOLONAS_EMULATOR_GRAPH", f"random:{seed}")
        monkeypatch.setenv("YOLONAS_EMULATOR_ORDER", f"random:{seed}")
        for _ in range(3):
            assert same(emulator.run(engine, graph, x), expected)


def test_many_sizes_in_turn_and_again(cuda: Any) -> None:
    """The arena grows in between, so that graphs are captured anew; of more than 32 sizes the oldest are let go."""
    engine = cuda.make(INTEGERS)
    sizes = [(n, 16 * i, 16 * j) for n, i, j in itertools.product((1, 2, 3), (1, 2, 3), (1, 2, 3, 4))]
    first = [cuda.run(engine, INTEGERS, picture(*size)) for size in sizes]
    for turn in (sizes[::-2], sizes[:2] * 3):
        for size in turn:
            assert same(cuda.run(engine, INTEGERS, picture(*size)), first[sizes.index(size)])
    assert 2 <= engine.graph_count <= 32


def test_runs_side_by_side(cuda: Any) -> None:
    """Calls of several threads, of two sizes, queue one after another."""
    engine = cuda.make(INTEGERS)
    pictures = [picture(1, 16 + 16 * (i % 2), 32, seed=i) for i in range(4)]
    expected = [on_cpu(INTEGERS, x) for x in pictures]

    def caller(seed: int) -> bool:
        order = np.random.default_rng(seed).integers(0, len(pictures), 6)
        return all(same(cuda.run(engine, INTEGERS, pictures[i]), expected[i]) for i in order)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(caller, range(4))) == [True] * 4


@pytest.mark.cuda
def test_calls_on_several_streams() -> None:
    """They share the engine's memory, and so wait for each other."""
    device = OnDevice()
    torch = device.torch
    engine, pictures = device.make(INTEGERS), [picture(1, 128, 128, seed=i) for i in range(6)]
    expected = [on_cpu(INTEGERS, x) for x in pictures]
    streams = [torch.cuda.Stream() for _ in range(3)]
    found = []
    for number, x in enumerate(pictures * 5):
        with torch.cuda.stream(streams[number % 3]):
            cls, reg = outputs_for(INTEGERS, x, lambda shape, _: torch.empty(shape, device="cuda"))
            engine.run(device.sent(x), cls, reg, stream=device.stream())
            found.append([level for pair in zip(cls, reg, strict=True) for level in pair])
    torch.cuda.synchronize()
    for number, levels in enumerate(found):
        assert same([level.cpu().numpy() for level in levels], expected[number % 6])


@pytest.mark.cuda
def test_a_capture_by_the_caller() -> None:
    device = OnDevice()
    torch = device.torch
    engine, x = device.make(INTEGERS), picture(2, 64, 64)
    expected = device.run(engine, INTEGERS, x)
    sent = device.sent(x)
    cls, reg = outputs_for(INTEGERS, x, lambda shape, _: torch.empty(shape, device="cuda"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        engine.run(sent, cls, reg, stream=device.stream())
    for scale in (0.5, 1.0):
        sent.copy_(torch.from_numpy(x * np.float32(scale)))
        graph.replay()
    torch.cuda.synchronize()
    found = [level.cpu().numpy() for pair in zip(cls, reg, strict=True) for level in pair]
    assert same(found, expected)
    for height, text in ((128, "2 x 128 x 64"), (32, "2 x 32 x 64")):  # with and without room
        unseen = picture(2, height, 64)
        sent = device.sent(unseen)
        outputs = outputs_for(INTEGERS, unseen, lambda shape, _: torch.empty(shape, device="cuda"))
        text += " must have been run once before a stream is captured"
        with pytest.raises(RuntimeError, match=text), torch.cuda.graph(torch.cuda.CUDAGraph()):
            engine.run(sent, *outputs, stream=device.stream())


@pytest.mark.parametrize("spoiled", [1, 2, 3, 9, 99])
def test_a_capture_that_another_thread_ends(emulator: Emulated, spoiled: int) -> None:
    """Three tries, the last without overlap, then step by step; a graph at a later call, or never after three such."""
    engine, x = emulator.make(INTEGERS), picture(1, 16, 16)
    expected = emulator.run(engine, INTEGERS, x)
    assert not engine.capture_failure
    spoil_captures(emulator.module, spoiled)
    try:
        for _ in range(5):
            assert same(emulator.run(engine, INTEGERS, x), expected)
    finally:
        spoil_captures(emulator.module, 0)
    assert "cudaError901" in engine.capture_failure  # cudaErrorStreamCaptureInvalidated
    assert engine.graph_count == (spoiled < 9)
    # What failed twice with overlap and then went well without it is taken for a driver that refuses it.
    assert any(step["overlap"] for step in engine.plan(16, 16)) == (spoiled != 2)


def test_a_driver_that_refused_overlap_once_and_then_took_it(emulator: Emulated) -> None:
    engine, x = emulator.make(INTEGERS), picture(1, 16, 16)
    for _ in range(2):
        emulator.run(engine, INTEGERS, x)
    y = picture(1, 32, 16)
    expected = emulator.run(engine, INTEGERS, y)
    spoil_captures(emulator.module, 2)
    assert same(emulator.run(engine, INTEGERS, y), expected)
    assert engine.graph_count == 2
    assert any(step["overlap"] for step in engine.plan(16, 16))  # a graph with it was made before


def test_code_for_older_devices(emulator: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a newer device it has neither the later variants, which are empty there, nor the wait that overlap needs."""
    monkeypatch.setenv("YOLONAS_EMULATOR_CODE", "75")
    engine, x = emulator.make(INTEGERS), picture(1, 32, 32)
    names = {choice[0] for step in engine.alternatives(32, 32, 1, 4) for choice in step}
    assert {name for name in names if "k" in name} == {"64x64k128", "32x32k128", "128x64k64"}
    assert not any(step["overlap"] for step in engine.plan(32, 32))
    expected = on_cpu(INTEGERS, x)
    for _ in range(3):
        assert same(emulator.run(engine, INTEGERS, x), expected)


def test_devices_newer_than_the_code(emulator: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hopper's own kernels are for it alone; the rest is translated, its waits too."""
    assert any(
        choice[0].startswith("w")
        for step in emulator.make(GRAPH, half=True).alternatives(64, 96, 1, 4)
        for choice in step
    )
    monkeypatch.setenv("YOLONAS_EMULATOR_ARCH", "120")
    engine = emulator.make(GRAPH, half=True)
    assert not any(choice[0].startswith("w") for step in engine.alternatives(64, 96, 1, 4) for choice in step)
    assert any(step["overlap"] for step in engine.plan(64, 96))


def test_more_settings_than_are_kept(cuda: Any) -> None:
    """The memory for detections is that of the largest so far; graphs of settings that come back are made anew."""
    engine, pictures = cuda.make(DETECTOR_INT8), pictures_of(2)
    settings = [{"conf": 0.3 + 0.02 * i, "max_det": 5 + 3 * i} for i in range(18)]
    first = [cuda.detect(engine, pictures, **one) for one in settings]
    for _ in range(2):
        for one, expected in zip(settings[::-1], first[::-1], strict=True):
            assert same(cuda.detect(engine, pictures, **one), expected)
    assert engine.graph_count <= 16


@pytest.mark.parametrize("setting", ["YOLONAS_CUDA_GRAPH=0", "YOLONAS_CUDA_OVERLAP=0", "YOLONAS_CUDA_SYNC=1"])
def test_without_graphs_or_overlap(cuda: Any, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    x = picture(1, 16, 16)
    expected = cuda.run(cuda.make(INTEGERS), INTEGERS, x)
    monkeypatch.setenv(*setting.split("="))
    engine = cuda.make(INTEGERS)
    for _ in range(3):
        assert same(cuda.run(engine, INTEGERS, x), expected)
    assert engine.graph_count == ("OVERLAP" in setting)
    if "OVERLAP" in setting:
        assert not any(step["overlap"] for step in engine.plan(16, 16))


def test_too_little_memory_is_said_and_leaves_an_engine_that_runs(
    emulator: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = live_allocations(emulator.module)
    engine, x = emulator.make(INTEGERS), picture(1, 16, 16)
    expected = emulator.run(engine, INTEGERS, x)
    monkeypatch.setenv("YOLONAS_EMULATOR_MEMORY", str(3 << 20))
    with pytest.raises(
        MemoryError, match=r"engine: 4 x 256 x 256 needs 0\.\d\d GiB on cuda:0, 0\.\d\d GiB are free; use a smaller"
    ):
        emulator.run(engine, INTEGERS, picture(4, 256, 256))
    for _ in range(2):
        assert same(emulator.run(engine, INTEGERS, x), expected)
    monkeypatch.setenv("YOLONAS_EMULATOR_MEMORY", "1000")
    with pytest.raises(MemoryError, match=r"engine: the network needs 0\.00 GiB on cuda:0, 0\.00 GiB are free"):
        emulator.make(INTEGERS)
    monkeypatch.delenv("YOLONAS_EMULATOR_MEMORY")
    del engine
    assert live_allocations(emulator.module) == before


def test_no_python_object_is_kept(cuda: Any) -> None:
    buffers, steps, outputs = float_graph(SIXTEENS)
    engine, x = cuda.make((buffers, steps, outputs)), picture(1, 16, 16)
    expected = cuda.run(engine, GRAPH, x)
    for step in steps:
        for key in ("weight", "bias"):
            if key in step:
                step[key][...] = np.nan
    assert same(cuda.run(engine, GRAPH, x), expected)


# --- detect ---

FRAME = (64, 96)
SIZES = [(40, 50), (1, 1), (64, 96), (130, 77), (7, 100)]
PREPROCESS = Preprocess(size=FRAME, fit=(60, 92), mean=(10.0, 20.0, 30.0), divisor=(200.0, 255.0, 100.0))
SETTINGS: dict[str, Any] = {
    "conf": 0.5,
    "top_k": 1024,
    "multi_label": True,
    "classes": None,
    "iou": 0.7,
    "max_det": 30,
    "agnostic": False,
}
CASES: dict[str, dict[str, Any]] = {
    "multi-label": {},
    "single-label": {"multi_label": False, "conf": 0.6},
    "some classes, agnostic": {"classes": [1, 4], "agnostic": True},
    "everything": {"conf": 0.0, "iou": 1.0, "max_det": 500, "top_k": 10**12},
    "nothing": {"conf": 1.0},
}


def detect_arguments(pictures: list[np.ndarray], **changes: Any) -> dict[str, Any]:
    settings = {**SETTINGS, **changes}
    classes = settings.pop("classes")
    geometries = [PREPROCESS.plan(*one.shape[:2]) for one in pictures]
    return {
        "frame": FRAME,
        "resized": [geometry.resized for geometry in geometries],
        "offsets": [(geometry.top, geometry.left) for geometry in geometries],
        "pad_value": PREPROCESS.pad_value,
        "swap_channels": True,
        "mean": PREPROCESS.mean,
        "divisor": PREPROCESS.divisor,
        "class_mask": None if classes is None else np.isin(np.arange(5), classes).astype(np.uint8),
        **settings,
    }


def pictures_of(count: int) -> list[np.ndarray]:
    """Large patches with noise; the first has rows that lie apart."""
    pictures = []
    for height, width in SIZES[:count]:
        rng = np.random.default_rng([height, width])
        patches = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)
        noise = rng.integers(0, 128, (height, width, 3))
        pictures.append((patches[:height, :width] // 2 + noise).astype(np.uint8))
    pictures[0] = np.pad(pictures[0], ((0, 0), (3, 2), (0, 0)))[:, 3:-2]
    return pictures


def detected_on_cpu(graph: Graph, pictures: list[np.ndarray], **changes: Any) -> list[np.ndarray]:
    given = detect_arguments(pictures, **changes)
    detections = np.empty((len(pictures), given["max_det"], 6), np.float32)
    counts = np.empty(len(pictures), np.int64)
    harness.native().Engine(*graph).detect(pictures, **given, detections=detections, counts=counts)
    return [detections, counts]


def assert_same_detections(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Up to rounding: rows with nearly equal scores may change places."""
    np.testing.assert_array_equal(found[1], expected[1])
    for ours, theirs, count in zip(found[0], expected[0], expected[1], strict=True):
        assert not ours[count:].any()
        np.testing.assert_allclose(ours[:count, 4], theirs[:count, 4], rtol=0, atol=1e-5)
        for row in ours[:count]:
            near = np.abs(theirs[:count, 4] - row[4]) < 1e-5
            assert (np.abs(theirs[:count][near] - row).max(axis=1) < 1e-3).any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_detections_of_the_cpu(cuda: Any, case: str, int8: bool) -> None:
    graph, pictures = DETECTOR_INT8 if int8 else DETECTOR, pictures_of(3)
    expected = detected_on_cpu(graph, pictures, **CASES[case])
    assert bool(expected[1].sum()) == (case != "nothing")
    engine = cuda.make(graph)
    first = cuda.detect(engine, pictures, **CASES[case])
    assert_same_detections(first, expected)
    for _ in range(2):
        assert same(cuda.detect(engine, pictures, **CASES[case]), first)
    assert engine.graph_count == 1


def test_settings_and_runs_in_turn(cuda: Any) -> None:
    engine, pictures, x = cuda.make(DETECTOR, half=True), pictures_of(2), picture(2, *FRAME)
    heads = cuda.run(engine, DETECTOR, x)
    first = {case: cuda.detect(engine, pictures, **changes) for case, changes in CASES.items()}
    for case in [*CASES, *CASES][::-1]:
        assert same(cuda.detect(engine, pictures, **CASES[case]), first[case])
        assert same(cuda.run(engine, DETECTOR, x), heads)
    others = [{"classes": [i]} for i in range(5)]
    assert len({str(cuda.detect(engine, pictures, **one)) for one in others}) > 1  # one graph, another mask


def test_detections_of_pictures_beyond_one_launch(cuda: Any) -> None:
    pictures = pictures_of(5)[1:3] * 9
    found = cuda.detect(cuda.make(DETECTOR_INT8), pictures)
    assert_same_detections(found, detected_on_cpu(DETECTOR_INT8, pictures))


# --- what is known of steps ---


def test_plan_says_what_runs(cuda: Any) -> None:
    engine = cuda.make(GRAPH, half=True)
    plan = engine.plan(64, 96, 2)
    assert [step["name"] for step in plan] == engine.step_names == names_of(GRAPH)
    deeper = plan[5]
    assert (deeper["input"], deeper["output"], deeper["kernel"], deeper["stride"]) == ((16, 24, 80), (8, 12, 48), 3, 2)
    assert deeper["mflop"] == pytest.approx(2 * 2 * 8 * 12 * 9 * 80 * 48 / 1e6)
    assert deeper["pixel_numbers"] == (80, 48)
    assert {step["dtype"] for step in plan} == {"float16"}
    assert plan[0]["pixel_numbers"] == (8, 32)
    assert all(step["weight_bytes"] > 0 for step in plan if step["op"] != "max_pool5")
    assert plan[0]["stream"] == 0
    assert len({step["stream"] for step in plan}) > 1
    assert not plan[0]["overlap"]
    assert any(step["overlap"] for step in plan) or not cuda.overlaps
    assert all(not (step["overlap"] and step["waits"]) for step in plan)
    use = engine.memory(640, 960, 8)
    alone = sum(8 * (640 >> down) * (960 >> down) * channels * 2 for down, channels in GRAPH[0][1:])
    assert 0 < use["arena"] < alone  # buffers share places
    assert use["weights"] >= sum(step["weight_bytes"] for step in plan)
    engine = cuda.make(INT8)
    kinds = {step["name"]: step["dtype"] for step in engine.plan(16, 16)}
    assert (kinds["stem"], kinds["island"], kinds["pool"], kinds["island.in"]) == ("int8", "float32", "int8", "int8")
    assert engine.plan(16, 16)[0]["algorithm"] == "input"  # quantised by whoever writes the input


def test_times(cuda: Any) -> None:
    engine = cuda.make(INTEGERS)
    times = engine.time_steps(16, 16, 1, 3)
    assert len(times) == len(INTEGERS[1])
    assert all(0 <= time < 6e4 for time in times)
    choices = engine.alternatives(16, 16, 1, 1)
    first, last = [step[0] for step in choices], [step[-1] for step in choices]
    found = engine.time_choices(16, 16, 1, [first, last, [None] * len(choices)])
    assert [len(run) for run in found] == [len(choices)] * 3
    x = picture(1, 16, 16)
    assert same(cuda.run(engine, INTEGERS, x), on_cpu(INTEGERS, x))


def test_choices_that_do_not_fit(cuda: Any) -> None:
    engine = cuda.make(GRAPH, half=True)
    good = [step[0] for step in engine.alternatives(16, 16, 1, 1)]
    for index, choice, text in (
        (0, ("direct", 1, 0), "step 'stem' cannot be computed by direct"),
        (0, (good[0][0], 0, 0), "step 'stem' cannot be computed by .* in 0 splits"),
        (0, (good[0][0], 10**12, 0), "in 1000000000000 splits"),
        (7, ("64x64k128", 1, 0), "step 'pool' can only be computed by max_pool, 1, got 64x64k128, 1"),
    ):
        with pytest.raises(ValueError, match=text):
            engine.set_choices(16, 16, 1, [*good[:index], choice, *good[index + 1 :]])
    with pytest.raises(ValueError, match="there must be one per step, 18, got 1"):
        engine.set_choices(16, 16, 1, good[:1])
    assert not any(step["tuned"] for step in engine.plan(16, 16))
    engine.set_choices(16, 16, 1, [None] * len(good))


# --- calls and graphs that do not fit ---


UNFIT: dict[str, tuple[Graph, dict[str, Any], type[Exception], str]] = {
    "odd channels": (
        engine_graphs.GRAPH,
        {"half": True},
        NotImplementedError,
        "must begin at and have a multiple of 8 channels of float16 on a CUDA device, got buffer",
    ),
    "odd channels of int8": (int8_graphs.GRAPH, {}, NotImplementedError, "a multiple of 16 channels of int8"),
    "a quantised network in half": (INT8, {"half": True}, ValueError, "half must be off: a quantised network keeps"),
    "a device that is not there": (GRAPH, {"device": 7}, ValueError, "device must be one of the 1 CUDA device here, 0"),
    "a negative device": (GRAPH, {"device": -1}, ValueError, "here, 0..0, got -1"),
    "a large kernel": (
        (
            [(0, 3), (0, 16)],
            [conv("wide", (0, 0, 3), (1, 0, 16), 9)],
            [{"cls": (1, 0, 8), "reg": (1, 8, 8), "stride": 1}],
        ),
        {},
        NotImplementedError,
        "kernel of step 'wide' must be at most 7 on a CUDA device, got 9",
    ),
    "no outputs": ((*GRAPH[:2], []), {}, ValueError, "at least one output"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_named(emulator: Emulated, name: str) -> None:
    graph, options, error, text = UNFIT[name]
    before = live_allocations(emulator.module)
    with pytest.raises(error, match=text):
        emulator.make(graph, **options)
    assert live_allocations(emulator.module) == before


def test_weights_that_float16_cannot_hold(emulator: Emulated) -> None:
    buffers, steps, outputs = float_graph(SIXTEENS)
    steps[3]["weight"] = steps[3]["weight"] * np.float32(1e6)
    emulator.make((buffers, steps, outputs))
    with pytest.raises(ValueError, match=r"weight of step 'first' must lie within -65504\.\.65504 for float16, got"):
        emulator.make((buffers, steps, outputs), half=True)


def test_devices_that_are_too_old(emulator: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLONAS_EMULATOR_ARCH", "70")
    with pytest.raises(NotImplementedError, match="cuda:0 is of architecture sm_70; sm_75 or newer is needed"):
        emulator.make(GRAPH)


def test_wrong_arrays_are_named(emulator: Emulated) -> None:
    engine, x = emulator.make(GRAPH), picture(1, 16, 16)
    cls, reg = ([FakeCudaTensor(one) for one in level] for level in outputs_for(GRAPH, x))

    good = {"x": FakeCudaTensor(x), "cls": cls, "reg": reg}

    def call(**change: Any) -> None:
        engine.run(**{**good, **change}, stream=0)

    call()
    for change, error, text in (
        ({"x": x}, ValueError, "run: x must lie on a CUDA device, got cpu"),
        (
            {"x": FakeCudaTensor(x, device=1)},
            ValueError,
            "on the device of the first tensor, cuda:1, got cuda:0",
        ),
        ({"x": FakeCudaTensor(x[0])}, ValueError, "x must have shape"),
        ({"x": FakeCudaTensor(x.astype(np.float64))}, TypeError, "x must be float32, got float64"),
        ({"x": FakeCudaTensor(x[:, :8])}, ValueError, "height and width must be multiples of 16, got 8 x 16"),
        ({"x": FakeCudaTensor(x[:, :, ::-1])}, ValueError, "must be C-contiguous"),
        ({"cls": cls[:2]}, ValueError, "must have one array per level, 3, got 2 and 3"),
        ({"cls": reg}, ValueError, r"run: cls\[0\] must have shape"),
        ({"reg": cls}, ValueError, r"run: reg\[0\] must have shape"),
        ({"x": None}, TypeError, "x must be an array"),
    ):
        with pytest.raises(error, match=text):
            call(**change)
    one = engine_graphs.outputs_for(GRAPH, x)
    moved = [[FakeCudaTensor(array, device=1) for array in level] for level in one]
    with pytest.raises(ValueError, match="run: tensors must lie on the engine's device, cuda:0, got cuda:1"):
        engine.run(FakeCudaTensor(x, device=1), *moved, stream=0)


@pytest.mark.parametrize("kind", list(harness.hostile_values()))
def test_hostile_values(emulator: Emulated, kind: str) -> None:
    """An error, or a result where the value is possible; never a crash."""
    value = harness.hostile_values()[kind]
    engine, pictures = emulator.make(DETECTOR), pictures_of(1)
    given = detect_arguments(pictures)
    detections = FakeCudaTensor(np.empty((1, 30, 6), np.float32))
    arguments = {
        "pictures": [FakeCudaTensor(pictures[0])],
        **given,
        "detections": detections,
        "counts": FakeCudaTensor(np.empty(1, np.int64)),
        "stream": 0,
    }
    for name in set(arguments) - {"stream"}:  # which is an address
        if name == "max_det" and isinstance(value, int):
            continue
        try:
            engine.detect(**{**arguments, name: value})
        except (TypeError, ValueError, OverflowError, NotImplementedError, MemoryError):
            continue
    for height, width, batch in ((value, 64, 1), (64, value, 1), (64, 64, value)):
        try:
            engine.plan(height, width, batch)
        except (TypeError, ValueError, OverflowError):
            continue
