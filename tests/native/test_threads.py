"""Threads: the same bits for any number of them, calls from several at once, forks, and the setting itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from harness import bits, native, run_python, using_threads

from yolonas import ops


def workloads() -> dict[str, Callable[[], tuple[Any, ...]]]:
    """Calls that are large enough to be split, by the name of the op."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (211, 307, 3), dtype=np.uint8)
    cls = [rng.normal(-2, 2, (5, 9, side, side)).astype(np.float32) for side in (20, 10, 5)]
    reg = [rng.normal(0, 2, (5, 68, side, side)).astype(np.float32) for side in (20, 10, 5)]
    boxes, scores = ops.decode(cls, reg)
    x = rng.normal(0, 1, (3, 40, 33, 24)).astype(np.float32)
    weight, bias = rng.normal(0, 1, (40, 3, 3, 24)).astype(np.float32), rng.normal(0, 1, 40).astype(np.float32)
    values = rng.normal(0, 5, (64, 3000)).astype(np.float32)
    scale = rng.uniform(0.01, 0.1, 64).astype(np.float32)

    def candidates() -> tuple[Any, ...]:
        found = ops.decode_candidates(cls, reg, conf=0.3, top_k=50)
        assert (found.counts == 50).all()
        return tuple(found)

    return {
        "letterbox": lambda: (ops.letterbox(image, frame=(320, 320), resized=(219, 318), offset=(50, 1)),),
        "letterbox of few rows": lambda: (ops.letterbox(image, frame=(5, 320), resized=(5, 318)),),
        "decode": lambda: ops.decode(cls, reg),
        "decode_candidates": candidates,
        "batched_nms": lambda: ops.batched_nms(boxes, scores, conf=0.2, iou=0.5),
        "conv2d_bias_act": lambda: (ops.conv2d_bias_act(x, weight, bias, padding=1),),
        "fake_quantize": lambda: (ops.fake_quantize(values, 0.05),),
        "fake_quantize per channel": lambda: (ops.fake_quantize(values, scale, axis=0),),
    }


WORKLOADS = workloads()


def same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    return all(np.array_equal(bits(a), bits(b)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    with using_threads(1):
        expected = WORKLOADS[name]()
    for count in (2, 3, 8, 256):
        with using_threads(count):
            assert native().num_threads() == count
            assert same(WORKLOADS[name](), expected), count


def test_calls_from_several_threads_at_once() -> None:
    """One call has the pool, the others run on their own threads; the number of threads changes meanwhile."""
    expected = {name: call() for name, call in WORKLOADS.items()}
    start, stop = threading.Barrier(7), threading.Event()

    def caller(seed: int) -> list[str]:
        names = np.random.default_rng(seed).permutation(list(WORKLOADS)).tolist()
        start.wait()
        return [name for _ in range(6) for name in names if not same(WORKLOADS[name](), expected[name])]

    def unsettle() -> None:
        start.wait()
        while not stop.is_set():
            for count in (1, 8, 2, 5):
                native().set_num_threads(count)

    with using_threads(4), ThreadPoolExecutor(7) as pool:
        unsettled = pool.submit(unsettle)
        wrong = [future.result() for future in [pool.submit(caller, seed) for seed in range(6)]]
        stop.set()
        unsettled.result()
    assert wrong == [[]] * 6


def test_pauses_of_any_length_between_calls() -> None:
    """Idle threads look out for work for some 50 microseconds, then sleep: calls before, around and after that."""
    call = WORKLOADS["fake_quantize"]
    with using_threads(4):
        expected = call()
        for pause in np.random.default_rng(0).choice([0, 2e-5, 4e-5, 6e-5, 1e-4, 2e-3], 300):
            time.sleep(pause)
            assert same(call(), expected)


def test_the_interpreter_goes_on_while_an_op_runs() -> None:
    """Ops release the GIL: two threads that wait for each other's call to start can only meet inside one."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (1, 96, 96, 64)).astype(np.float32)
    weight = rng.normal(0, 1, (128, 3, 3, 64)).astype(np.float32)
    ticks: list[int] = []
    done = threading.Event()

    def convolve() -> None:
        ops.conv2d_bias_act(x, weight, padding=1)
        done.set()

    with using_threads(1):
        thread = threading.Thread(target=convolve)
        thread.start()
        while not done.wait(1e-4):
            ticks.append(1)
        thread.join()
    assert len(ticks) > 3


# --- forks ---

FORK = """
import os, sys, threading
import numpy as np
from yolonas import _native, ops

native = _native.cpu()
native.set_num_threads(4)
x = np.random.default_rng(0).normal(0, 1, (2, 40, 40, 16)).astype(np.float32)
weight = np.ones((20, 3, 3, 16), np.float32)
{before}
expected = ops.conv2d_bias_act(x, weight, padding=1)

def works():
    return all(np.array_equal(ops.conv2d_bias_act(x, weight, padding=1), expected) for _ in range(5))

def in_child(action):
    child = os.fork()
    if child == 0:
        os._exit(0 if action() else 3)
    return os.waitpid(child, 0)[1] == 0

{body}
"""


def run_fork(body: str, before: str = "") -> None:
    run = run_python(FORK.format(body=body, before=before))
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "fine", (run.stdout, run.stderr)


def test_a_child_makes_threads_of_its_own() -> None:
    run_fork("print('fine' if in_child(works) and works() and in_child(works) else 'broken')")


def test_a_grandchild_works_too() -> None:
    run_fork("print('fine' if in_child(lambda: works() and in_child(works) and works()) and works() else 'broken')")


def test_a_fork_before_the_first_call() -> None:
    run_fork("print('fine' if works() else 'broken')", before="if os.fork() == 0: os._exit(0)")


@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="the sanitizer's allocator may be locked in a child of a process with threads",
)
def test_a_fork_while_another_thread_is_in_the_pool() -> None:
    run_fork(
        """
stop = threading.Event()
def busy():
    while not stop.is_set():
        ops.conv2d_bias_act(x, weight, padding=1)
thread = threading.Thread(target=busy)
thread.start()
fine = all([in_child(works) for _ in range(20)])
stop.set()
thread.join()
print('fine' if fine and works() else 'broken')
"""
    )


def test_the_interpreter_ends_while_threads_sleep_and_work() -> None:
    run = run_python(
        FORK.format(
            before="",
            body="""
def busy():
    while True:
        ops.conv2d_bias_act(x, weight, padding=1)
threading.Thread(target=busy, daemon=True).start()
works()
print('fine')
""",
        )
    )
    assert (run.returncode, run.stdout.strip()) == (0, "fine"), run.stderr


# --- the setting ---


@pytest.mark.parametrize("count", [0, -1, 257, 2**31 - 1])
def test_a_wrong_number_of_threads_is_refused(count: int) -> None:
    before = native().num_threads()
    with pytest.raises(ValueError, match=f"set_num_threads: count must lie in 1..256, got {count}"):
        native().set_num_threads(count)
    assert native().num_threads() == before


@pytest.mark.parametrize("count", [2**31, 1.5, "2", None])
def test_what_is_no_number_of_threads_is_refused(count: Any) -> None:
    with pytest.raises(TypeError):
        native().set_num_threads(count)


PRINT_THREADS = "from yolonas import _native; print(_native.cpu().num_threads())"


def test_the_environment_sets_the_number_of_threads() -> None:
    def threads(**environment: str) -> int:
        run = run_python(PRINT_THREADS, **{"YOLONAS_NUM_THREADS": "", "OMP_NUM_THREADS": "", **environment})
        assert run.returncode == 0, run.stderr
        return int(run.stdout)

    default = threads()
    assert 1 <= default <= 256
    assert threads(YOLONAS_NUM_THREADS="3") == 3
    assert threads(OMP_NUM_THREADS="5") == 5
    assert threads(YOLONAS_NUM_THREADS="3", OMP_NUM_THREADS="5") == 3
    for useless in ("0", "-4", "many", "9999999999999999999"):
        assert threads(YOLONAS_NUM_THREADS=useless) == default
