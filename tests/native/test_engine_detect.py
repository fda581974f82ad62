"""Detect of the native engine, pictures to detections in one call, beside the ops that it consists of."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_graphs import DETECTOR, GRAPH, make, outputs_for, same
from harness import (
    CUDA,
    ISAS,
    ROOT,
    DLPackArray,
    guarded,
    guarded_empty,
    hostile_values,
    native,
    run_python,
    runs_here,
    using_isa,
    using_threads,
)

from yolonas import ops
from yolonas.preprocess import Preprocess

FRAME = (64, 96)
SIZES = [(40, 50), (1, 1), (64, 96), (130, 77), (7, 300)]  # of the pictures
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
    "agnostic": {"agnostic": True},
    "some classes": {"classes": [1, 4]},
    "some classes, single-label, agnostic": {"classes": [0, 2, 3], "multi_label": False, "agnostic": True},
    "no class": {"classes": []},
    "everything": {"conf": 0.0, "iou": 1.0, "max_det": 2000, "top_k": 10**12},
    "nothing": {"conf": 1.0},
    "few": {"top_k": 7, "max_det": 3},
    "one": {"top_k": 1, "max_det": 1, "iou": 0.0},
}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    if not runs_here(request.param):
        pytest.skip(f"this processor or build cannot run {request.param}")
    with using_isa(request.param):
        yield request.param


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Large patches with noise, so that scores and boxes differ from place to place."""
    rng = np.random.default_rng([height, width, seed])
    patches = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)[:height, :width]
    return (patches // 2 + rng.integers(0, 128, (height, width, 3))).astype(np.uint8)


def pictures_of(sizes: list[tuple[int, int]] = SIZES) -> list[np.ndarray]:
    return [picture(*size) for size in sizes]


def arguments(pictures: list[np.ndarray], **changes: Any) -> dict[str, Any]:
    """Of the native call, without pictures and outputs."""
    settings = {**SETTINGS, **changes}
    classes = settings.pop("classes")
    mask = None if classes is None else np.isin(np.arange(5), classes).astype(np.uint8)
    geometries = [PREPROCESS.plan(*one.shape[:2]) for one in pictures]
    return {
        "frame": FRAME,
        "resized": [geometry.resized for geometry in geometries],
        "offsets": [(geometry.top, geometry.left) for geometry in geometries],
        "pad_value": PREPROCESS.pad_value,
        "swap_channels": True,
        "mean": PREPROCESS.mean,
        "divisor": PREPROCESS.divisor,
        "class_mask": mask,
        **settings,
    }


def detect(engine: Any, pictures: list[np.ndarray], empty: Any = np.empty, **changes: Any) -> list[np.ndarray]:
    """Detections and counts."""
    given = arguments(pictures, **changes)
    detections = empty((len(pictures), given["max_det"], 6), np.float32)
    counts = empty((len(pictures),), np.int64)
    times = engine.detect(pictures, **given, detections=detections, counts=counts)
    assert len(times) == 3
    assert all(0 <= time < 6e4 for time in times)
    return [detections, counts]


def one_after_another(engine: Any, pictures: list[np.ndarray], **changes: Any) -> list[np.ndarray]:
    """The same by the ops."""
    settings = {**SETTINGS, **changes}
    x = np.empty((len(pictures), *FRAME, 3), np.float32)
    for row, one in zip(x, pictures, strict=True):
        geometry = PREPROCESS.plan(*one.shape[:2])
        ops.letterbox(
            one,
            frame=FRAME,
            resized=geometry.resized,
            offset=(geometry.top, geometry.left),
            swap_channels=True,
            layout="hwc",
            mean=PREPROCESS.mean,
            divisor=PREPROCESS.divisor,
            out=row,
        )
    cls, reg = outputs_for(DETECTOR, x)
    engine.run(x, cls, reg)
    candidates = ops.decode_candidates(
        cls,
        reg,
        (8, 16, 32),
        conf=settings["conf"],
        top_k=settings["top_k"],
        multi_label=settings["multi_label"],
        classes=settings["classes"],
        channels_last=True,
    )
    found = ops.nms_candidates(
        candidates, iou=settings["iou"], max_det=settings["max_det"], agnostic=settings["agnostic"]
    )
    return list(found)


# --- what it computes ---


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_same_bits_as_the_ops_one_after_another(isa: str, case: str, threads: int) -> None:
    """Five pictures, so that two threads run them in parts of two, two and one."""
    engine, pictures = make(DETECTOR), pictures_of()
    pictures.append(picture(90, 120)[20:61, 30:90])  # rows that lie apart
    with using_threads(threads):
        found, expected = detect(engine, pictures, **CASES[case]), one_after_another(engine, pictures, **CASES[case])
    assert same(found, expected)
    count = int(expected[1].sum())
    assert count == 0 if case in ("no class", "nothing") else count > 0


def test_any_number_of_threads_and_any_place_in_the_batch_give_the_same_bits(isa: str) -> None:
    engine, pictures = make(DETECTOR), pictures_of()
    with using_threads(1):
        detections, counts = detect(engine, pictures)
    for threads in (2, 3, 4, 256):
        with using_threads(threads):
            assert same(detect(engine, pictures), [detections, counts]), threads
            for first, last in ((0, 1), (1, 3), (4, 5)):
                assert same(detect(engine, pictures[first:last]), [detections[first:last], counts[first:last]])


def test_one_engine_for_many_settings_frames_and_runs() -> None:
    """Memory that is kept from call to call, of larger and smaller ones, changes no result."""
    engine, pictures = make(DETECTOR), pictures_of()
    x = np.zeros((2, 128, 64, 3), np.float32)
    for turn in range(2):
        for case in [*CASES][:: 1 - 2 * turn]:
            batch = pictures[: 1 + len(case) % 5]
            assert same(detect(engine, batch, **CASES[case]), detect(make(DETECTOR), batch, **CASES[case])), case
            engine.run(x, *outputs_for(DETECTOR, x))
            given = arguments([pictures[0]])
            outputs = {"detections": np.empty((1, 30, 6), np.float32), "counts": np.empty(1, np.int64)}
            engine.detect([pictures[0]], **{**given, "frame": (96, 160)}, **outputs)


def test_no_buffer_is_left_and_nothing_unwritten_is_read(isa: str) -> None:
    """With input, heads and maps at guard pages and NaN in them, and so the caller's pictures and outputs."""
    engine, pictures = make(DETECTOR), pictures_of()
    for threads in (1, 2):
        with using_threads(threads):
            expected = detect(engine, pictures)
            engine._guard_buffers(True)
            for front in (False, True):
                found = detect(
                    engine,
                    [guarded(one, front=front) for one in pictures],
                    lambda shape, dtype, front=front: guarded_empty(shape, dtype, front=front),
                )
                assert same(found, expected)
            engine._guard_buffers(False)
            assert same(detect(engine, pictures), expected)


def test_detections_side_by_side() -> None:
    """Detections and runs of one engine on several threads, while the number of threads changes."""
    engine = make(DETECTOR)
    batches = [pictures_of(SIZES[i:] + SIZES[: i % 3]) for i in range(5)]
    x = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    cls, reg = outputs_for(DETECTOR, x)
    engine.run(x, cls, reg)
    expected = [detect(engine, batch) for batch in batches]
    start, stop = threading.Barrier(6), threading.Event()

    def caller(seed: int) -> bool:
        order = np.random.default_rng(seed).integers(0, len(batches), 20)
        start.wait()
        return all(same(detect(engine, batches[i]), expected[i]) for i in order)

    def runner() -> bool:
        start.wait()
        right = True
        while not stop.is_set():
            found = outputs_for(DETECTOR, x)
            engine.run(x, *found)
            right &= same([*found[0], *found[1]], [*cls, *reg])
        return right

    def unsettle() -> None:
        start.wait()
        while not stop.is_set():
            for count in (1, 8, 2, 5):
                native().set_num_threads(count)

    with using_threads(4), ThreadPoolExecutor(6) as pool:
        others = [pool.submit(runner), pool.submit(unsettle)]
        callers = [pool.submit(caller, seed) for seed in range(4)]
        results = [one.result() for one in callers]
        stop.set()
        assert [one.result() for one in others] == [True, None]
    assert results == [True] * 4


def interrupt() -> None:
    """A Ctrl-C ends a loop after the call that is under way, and the engine goes on."""
    engine, pictures = make(DETECTOR), pictures_of() * 4
    expected = detect(engine, pictures)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))

    def go_on() -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            detect(engine, pictures)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            go_on()
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert same(detect(engine, pictures), expected)


def test_ctrl_c_ends_it_after_the_call_and_the_engine_goes_on() -> None:
    """In a process of its own: it sends itself a signal."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    done = run_python(
        f"import sys; sys.path[:0] = {folders!r}; import test_engine_detect; test_engine_detect.interrupt()"
    )
    assert done.returncode == 0, done.stderr


def test_no_python_object_is_kept() -> None:
    engine, pictures = make(DETECTOR), pictures_of()
    before = [sys.getrefcount(one) for one in pictures]
    for _ in range(3):
        detect(engine, pictures)
        with pytest.raises(ValueError, match="conf must lie in"):
            detect(engine, pictures, conf=2.0)
    assert [sys.getrefcount(one) for one in pictures] == before


# --- memory ---


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library to preload that counts allocations."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the sanitizer has an allocator of its own")
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("counting allocations needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("counter") / "count_allocations.so"
    source = Path(__file__).with_name("count_allocations.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-fno-builtin", str(source), "-o", str(library), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.skip(f"the counter cannot be built with this C library: {built.stderr[:300]}")
    return str(library)


COUNTED = """
import ctypes, sys
sys.path.insert(0, {folder!r})
import numpy as np
from engine_graphs import DETECTOR, make, outputs_for
from test_engine_detect import CASES, FRAME, arguments, native, pictures_of
library = ctypes.CDLL(None)
library.allocation_calls.restype = library.allocated_bytes.restype = ctypes.c_long

def counted(call, *args, **kwargs):
    library.allocation_calls(), library.allocated_bytes()
    call(*args, **kwargs)
    return library.allocation_calls(), library.allocated_bytes()

def request(pictures, **changes):
    given = arguments(pictures, **changes)
    outputs = np.empty((len(pictures), given["max_det"], 6), np.float32), np.empty(len(pictures), np.int64)
    return dict(pictures=pictures, **given, detections=outputs[0], counts=outputs[1])

engine = make(DETECTOR)
"""


def in_counted_python(counter: str, code: str) -> list[str]:
    setting = COUNTED.format(folder=str(ROOT / "tests" / "native"))
    result = run_python(setting + code, LD_PRELOAD=counter, YOLONAS_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_second_call_of_the_same_sizes_allocates_nothing(counter: str) -> None:
    """Whatever is asked for, in parts, with the settings of all calls before."""
    code = """
requests = [request(pictures_of(), **case) for case in CASES.values()] + [request(pictures_of()[:1])]
print(counted(engine.detect, **requests[0])[0] > 0)
for one in requests:
    engine.detect(**one)
for one in requests:
    one["pictures"].reverse(), one["resized"].reverse(), one["offsets"].reverse()
    print(counted(engine.detect, **one)[0])
"""
    assert in_counted_python(counter, code) == ["True"] + ["0"] * (len(CASES) + 1)


def test_a_run_does_not_pay_for_detect(counter: str) -> None:
    """Its memory is that of the maps and workspaces, and detect needs more than that."""
    code = """
x = np.zeros((2, *FRAME, 3), np.float32)
outputs = outputs_for(DETECTOR, x)
use = engine.memory(*FRAME, 2)
_, run = counted(engine.run, x, *outputs)
_, detect = counted(engine.detect, **request(pictures_of()[:2]))
print(run - use["arena"] - use["workspaces"] < 10_000, detect >= x.nbytes)
"""
    assert in_counted_python(counter, code) == ["True", "True"]


# --- calls that do not fit ---


def test_wrong_pictures_are_named() -> None:
    engine, good = make(DETECTOR), picture(40, 50)
    for wrong, error, text in (
        (good.astype(np.float32), TypeError, r"detect: pictures\[1\] must be uint8, got float32"),
        (good[..., 0], ValueError, r"detect: pictures\[1\] must have shape \(H, W, 3\), got \(40, 50\)"),
        (good[None], ValueError, r"detect: pictures\[1\] must have shape \(H, W, 3\), got \(1, 40, 50, 3\)"),
        (np.zeros((40, 50, 4), np.uint8), ValueError, r"must have shape \(H, W, 3\), got \(40, 50, 4\)"),
        (good[:0], ValueError, r"pictures\[1\] must have at least one pixel"),
        (good[:, ::2], ValueError, r"pictures\[1\] of shape \(40, 25, 3\) must have contiguous pixels; pass a cont"),
        (good[..., ::-1], ValueError, r"must have contiguous pixels"),
        (good[::-1], ValueError, r"pictures\[1\] rows must not overlap or run backwards"),
        ("picture.jpg", TypeError, r"detect: picture must be an array \(buffer protocol or DLPack\), got str"),
        (DLPackArray((40, 50, 3), device=CUDA), ValueError, "detect: picture must lie on the CPU, got device cuda:0"),
    ):
        given = {**arguments([good, good]), "detections": np.empty((2, 30, 6), np.float32), "counts": np.empty(2, int)}
        with pytest.raises(error, match=text):
            engine.detect([good, wrong], **given)


def test_wrong_arguments_are_named() -> None:
    engine, pictures = make(DETECTOR), pictures_of()[:2]
    detections, counts = np.full((2, 30, 6), 7, np.float32), np.full(2, 7, np.int64)
    given = {**arguments(pictures), "detections": detections, "counts": counts}
    frozen = detections.copy()
    frozen.flags.writeable = False
    for change, error, text in (
        ({"frame": (60, 96)}, ValueError, "detect: height and width must be multiples of 32, got 60 x 96"),
        ({"frame": (0, 96)}, ValueError, "detect: height and width must be multiples of 32, got 0 x 96"),
        ({"frame": (2**40, 96)}, ValueError, "detect: input must have at most 65536 pixels a side"),
        ({"frame": (32, 32)}, ValueError, "detect: a picture of .* must lie inside the frame of 32x32"),
        ({"resized": [(10, 10)]}, ValueError, "resized and offsets must have one pair per picture, 2, got 1 and 2"),
        ({"resized": [(0, 10)] * 2}, ValueError, "detect: a picture of 0x10 at row .* must lie inside the frame"),
        ({"offsets": [(0, 0), (-1, 0)]}, ValueError, "at row -1, column 0 must lie inside the frame of 64x96"),
        ({"pad_value": 256}, ValueError, r"detect: pad_value must lie in 0\.\.255, got 256"),
        ({"mean": (0, np.nan, 0)}, ValueError, "detect: mean and divisor must be finite"),
        ({"divisor": (1, 0, 1)}, ValueError, "detect: mean and divisor must be finite and divisor not zero"),
        ({"divisor": (1, 1, 1e-38)}, ValueError, r"must give finite values for pixels of 0\.\.255, got mean 30"),
        ({"conf": 1.5}, ValueError, r"detect: conf must lie in 0\.\.1, got 1\.5"),
        ({"conf": np.nan}, ValueError, r"detect: conf must lie in 0\.\.1, got nan"),
        ({"iou": -0.5}, ValueError, r"detect: iou must lie in 0\.\.1, got -0\.5"),
        ({"top_k": 0}, ValueError, "detect: top_k must be at least 1, got 0"),
        ({"max_det": 0}, ValueError, r"detect: max_det must lie in 1\.\.1000000, got 0"),
        ({"max_det": 31}, ValueError, r"detections must have shape \(N, max_det, 6\) = \(2, 31, 6\), got \(2, 30, 6\)"),
        ({"class_mask": np.ones(4, np.uint8)}, ValueError, r"class_mask must have shape \(K,\) = \(5\), got \(4,\)"),
        ({"class_mask": np.ones(5, bool)}, TypeError, "class_mask must be uint8, got bool"),
        ({"detections": detections[:1]}, ValueError, r"\(2, 30, 6\), got \(1, 30, 6\)"),
        ({"detections": detections.astype(float)}, TypeError, "detections must be float32, got float64"),
        ({"detections": frozen}, ValueError, "detections is written to and must not be read-only"),
        ({"counts": counts[:1]}, ValueError, r"counts must have shape \(N,\) = \(2\), got \(1,\)"),
        ({"counts": counts.astype(np.int32)}, TypeError, "counts must be int64, got int32"),
        ({"counts": detections.view(np.int64).ravel()[:2]}, ValueError, "detections and counts must not overlap"),
        ({"class_mask": counts.view(np.uint8)[:5]}, ValueError, "must not overlap each other, a picture or class_mask"),
    ):
        with pytest.raises(error, match=text):
            engine.detect(pictures, **{**given, **change})
    with pytest.raises(ValueError, match="detect: pictures must hold at least one picture, got none"):
        engine.detect([], **{**given, "resized": [], "offsets": []})
    inside = detections.view(np.uint8).reshape(-1)[: 40 * 12].reshape(40, 4, 3)
    with pytest.raises(ValueError, match="must not overlap each other, a picture or class_mask"):
        engine.detect([pictures[0], inside], **given)
    assert (detections == 7).all()
    assert (counts == 7).all()
    engine.detect(pictures, **given)


def test_networks_without_the_heads_of_a_detector_are_refused() -> None:
    with pytest.raises(ValueError, match="detect: the network must have equally many class outputs and 68 box outputs"):
        detect(make(GRAPH), pictures_of()[:1])


# Which some of the values are meant for, or can stand for: an array of the number 1, None, 1.5.
FITTING = {"multi_label", "agnostic", "swap_channels", "class_mask", "conf", "iou", "pad_value", "top_k"}


@pytest.mark.parametrize("kind", list(hostile_values()))
def test_hostile_values_in_a_call(kind: str) -> None:
    engine, value, pictures = make(DETECTOR), hostile_values()[kind], pictures_of()[:1]
    given = {**arguments(pictures), "detections": np.empty((1, 30, 6), np.float32), "counts": np.empty(1, np.int64)}
    expected = detect(engine, pictures)
    with pytest.raises((TypeError, ValueError)):
        engine.detect(value, **given)
    with pytest.raises((TypeError, ValueError)):
        engine.detect([value], **given)
    for name in given:
        try:
            engine.detect(pictures, **{**given, name: value})
        except (TypeError, ValueError):
            continue
        assert name in FITTING, name
    assert same(detect(engine, pictures), expected)
