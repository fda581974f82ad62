"""Every argument of every op replaced by things handed over by mistake: an exception or a result, never a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from harness import hostile_values, native

from yolonas import ops

Call = tuple[Callable[..., Any], dict[str, Any]]


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def matching() -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of `match_detections`, and its settings."""
    truth = {
        "truth_boxes": np.ones((2, 4)),
        "truth_classes": np.zeros(2, np.int64),
        "truth_areas": np.ones(2),
        "truth_crowd": np.zeros(2, bool),
    }
    return {"boxes": np.ones((3, 4)), "classes": np.zeros(3, np.int64), **truth}, {
        "thresholds": np.array([0.5, 0.75]),
        "area_ranges": np.array([[0, 1e10]]),
    }


def wrapper_calls() -> dict[str, Call]:
    """The public functions with small arguments that fit, all of them by name."""
    heads = {"cls": [f32(2, 3, 4, 4)], "reg": [f32(2, 68, 4, 4)], "strides": [8.0], "channels_last": False}
    candidates = ops.Candidates(f32(2, 3, 4), f32(2, 3), np.zeros((2, 3), np.int32), np.zeros(2, np.int64))
    return {
        "letterbox": (
            ops.letterbox,
            {
                "image": np.zeros((4, 4, 3), np.uint8),
                "frame": (8, 8),
                "resized": (4, 6),
                "offset": (1, 1),
                "pad_value": 114,
                "swap_channels": True,
                "layout": "chw",
                "mean": (0.0, 0.0, 0.0),
                "divisor": (255.0, 255.0, 255.0),
                "out": f32(3, 8, 8),
            },
        ),
        "decode": (ops.decode, heads),
        "decode_candidates": (
            ops.decode_candidates,
            {**heads, "conf": 0.2, "top_k": 5, "multi_label": True, "classes": [1]},
        ),
        "batched_nms": (
            ops.batched_nms,
            {
                "boxes": f32(2, 4, 4),
                "scores": f32(2, 4, 3),
                "conf": 0.2,
                "iou": 0.7,
                "top_k": 5,
                "max_det": 4,
                "multi_label": True,
                "agnostic": False,
                "classes": None,
            },
        ),
        "nms_candidates": (
            lambda iou, max_det, agnostic, **fields: ops.nms_candidates(
                ops.Candidates(**fields), iou=iou, max_det=max_det, agnostic=agnostic
            ),
            {**candidates._asdict(), "iou": 0.7, "max_det": 3, "agnostic": False},
        ),
        "fake_quantize": (
            ops.fake_quantize,
            {"x": f32(2, 3), "scale": np.ones(2, np.float32), "axis": 0, "quant_min": -8, "quant_max": 7},
        ),
        "conv2d_bias_act": (
            ops.conv2d_bias_act,
            {
                "x": f32(1, 4, 5, 3),
                "weight": f32(6, 3, 3, 3),
                "bias": f32(6),
                "residual": f32(1, 2, 3, 6),
                "stride": 1,
                "padding": 0,
                "relu": True,
                "residual_scale": 0.5,
            },
        ),
        "match_detections": (
            ops.match_detections,
            {**matching()[0], **matching()[1], "scores": np.ones(3), "max_det": 100},
        ),
    }


def native_calls() -> dict[str, Call]:
    """The functions of the native module, outputs included."""
    module = native()
    heads = {"cls": [f32(2, 3, 4, 4)], "reg": [f32(2, 68, 4, 4)], "strides": [8.0], "channels_last": False}
    settings = {"conf": 0.2, "top_k": 5, "multi_label": True, "class_mask": np.ones(3, np.uint8)}
    nms = {"iou": 0.7, "max_det": 4, "agnostic": False, "detections": f32(2, 4, 6), "counts": np.zeros(2, np.int64)}
    quantize = {"scale": np.ones(2, np.float32), "out": f32(2, 3), "axis": 0, "quant_min": -8, "quant_max": 7}
    return {
        "_cpu.letterbox": (
            module.letterbox,
            {
                "image": np.zeros((4, 4, 3), np.uint8),
                "out": f32(3, 8, 8),
                "resized_h": 4,
                "resized_w": 6,
                "top": 1,
                "left": 1,
                "pad_value": 114,
                "swap_channels": True,
                "hwc": False,
                "mean": (0.0, 0.0, 0.0),
                "divisor": (255.0, 255.0, 255.0),
            },
        ),
        "_cpu.decode": (module.decode, {**heads, "boxes": f32(2, 16, 4), "scores": f32(2, 16, 3)}),
        "_cpu.decode_candidates": (
            module.decode_candidates,
            {
                **heads,
                **settings,
                "boxes": f32(2, 5, 4),
                "scores": f32(2, 5),
                "classes": np.zeros((2, 5), np.int32),
                "counts": np.zeros(2, np.int64),
            },
        ),
        "_cpu.batched_nms": (module.batched_nms, {"boxes": f32(2, 4, 4), "scores": f32(2, 4, 3), **settings, **nms}),
        "_cpu.nms_candidates": (
            module.nms_candidates,
            {
                "boxes": f32(2, 3, 4),
                "scores": f32(2, 3),
                "classes": np.zeros((2, 3), np.int32),
                "candidate_counts": np.zeros(2, np.int64),
                **nms,
            },
        ),
        "_cpu.fake_quantize": (module.fake_quantize, {"x": f32(2, 3), **quantize}),
        "_cpu.fake_quantize_backward": (
            module.fake_quantize_backward,
            {"grad": f32(2, 3), "x": f32(2, 3), **quantize},
        ),
        "_cpu.conv2d_bias_act": (
            module.conv2d_bias_act,
            {
                "x": f32(1, 4, 5, 3),
                "weight": f32(6, 3, 3, 3),
                "bias": f32(6),
                "residual": f32(1, 2, 3, 6),
                "out": f32(1, 2, 3, 6),
                "stride": 1,
                "padding": 0,
                "relu": True,
                "residual_scale": 0.5,
            },
        ),
        "_cpu.match_order": (
            module.match_order,
            {
                "scores": np.ones(3),
                "classes": np.zeros(3, np.int64),
                "max_det": 2,
                "order": np.zeros(3, np.int64),
                "rank": np.zeros(3, np.int32),
            },
        ),
        "_cpu.match_detections": (
            module.match_detections,
            {
                **matching()[0],
                **matching()[1],
                "order": np.arange(3),
                "matched": np.zeros((1, 2, 3), bool),
                "ignored": np.zeros((1, 2, 3), bool),
                "truth": np.zeros((1, 2, 3), np.int32),
                "truth_ignored": np.zeros((1, 2), bool),
            },
        ),
        "_cpu.set_num_threads": (module.set_num_threads, {"count": module.num_threads()}),
        "_cpu._use_isa": (module._use_isa, {"name": module.isa()}),
    }


def as_torch(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return [as_torch(item) for item in value] if isinstance(value, list) else value


CALLS = {**wrapper_calls(), **native_calls()}
REFUSALS = (TypeError, ValueError, OverflowError)  # the last for integers beyond 64 bits


def refusal(function: Callable[..., Any], arguments: dict[str, Any], *more: type[Exception]) -> str:
    """What the function said when it refused; empty if it took the arguments. Any other exception goes through."""
    try:
        function(**arguments)
    except (*REFUSALS, *more) as error:
        return str(error) or repr(error)
    return ""


@pytest.mark.parametrize("name", list(CALLS))
def test_arguments_that_fit_are_taken(name: str) -> None:
    function, arguments = CALLS[name]
    function(**arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy 1.26 warns where 2 refuses
@pytest.mark.parametrize("name", list(CALLS))
def test_no_argument_can_crash_it(name: str) -> None:
    function, arguments = CALLS[name]
    refused = 0
    for argument, good in arguments.items():
        for value in hostile_values().values():
            for hostile in (value, [value], [value] * 2) if isinstance(good, list) else (value,):
                refused += refusal(function, {**arguments, argument: hostile}) != ""
    assert refused > 10 * len(arguments)
    function(**arguments)  # nothing is broken afterwards


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", list(wrapper_calls()))
def test_no_argument_can_crash_the_torch_operators(name: str) -> None:
    function, arguments = CALLS[name]
    arguments = {key: as_torch(value) for key, value in arguments.items() if key != "out"}
    function(**arguments)
    for argument, good in arguments.items():
        for value in hostile_values().values():
            is_plain = isinstance(value, np.ndarray) and value.dtype.str in ("<f8", "<f2", "<i8", "|b1", "<f4")
            hostile = torch.from_numpy(np.ascontiguousarray(value)) if is_plain else value
            hostile = [hostile] if isinstance(good, list) else hostile
            refusal(function, {**arguments, argument: hostile}, RuntimeError)  # as torch's own schema check says


def test_tensors_without_memory_are_refused_or_traced() -> None:
    meta = torch.zeros(1, 4, 5, 3, device="meta")
    assert ops.conv2d_bias_act(meta, torch.zeros(6, 3, 3, 3, device="meta")).device.type == "meta"
    with pytest.raises((NotImplementedError, RuntimeError, ValueError)):
        ops.conv2d_bias_act(torch.zeros(1, 4, 5, 3).to_sparse(), torch.zeros(6, 3, 3, 3))


def test_arrays_that_other_libraries_make_are_read() -> None:
    """The native module takes whatever has the buffer protocol or DLPack."""
    import array
    import ctypes

    out = f32(4)
    scale = memoryview(array.array("f", [0.5]))
    x = (ctypes.c_float * 4)(0.1, 0.6, 1.1, -9.0)
    native().fake_quantize(x, scale, out, axis=-1, quant_min=-8, quant_max=7)
    assert out.tolist() == [0.0, 0.5, 1.0, -4.0]
    native().fake_quantize(torch.tensor([0.1, 0.6, 1.1, -9.0]), scale, out, axis=-1, quant_min=-8, quant_max=7)
    assert out.tolist() == [0.0, 0.5, 1.0, -4.0]
    frozen = np.frombuffer(bytes(16), np.float32)
    with pytest.raises(ValueError, match="out is written to and must not be read-only"):
        native().fake_quantize(x, scale, frozen, axis=-1, quant_min=-8, quant_max=7)


def test_sides_whose_product_overflows() -> None:
    """An empty array may claim any other sides."""
    import ctypes

    empty = (((ctypes.c_float * 0) * 2**40) * 2**40)()
    with pytest.raises(ValueError, match="scale must have shape"):
        native().fake_quantize(empty, np.ones(3, np.float32), empty, axis=0, quant_min=-8, quant_max=7)
    native().fake_quantize(empty, np.ones(1, np.float32), empty, axis=-1, quant_min=-8, quant_max=7)


def test_references_are_given_back() -> None:
    """Arguments live on only in their owners, also after a refusal."""
    import gc
    import sys

    x, scale = f32(5), np.ones(1, np.float32)
    tensor = torch.zeros(5)
    out = f32(5)
    before = sys.getrefcount(x), sys.getrefcount(tensor), sys.getrefcount(out)
    for value in (x, tensor) * 50:
        native().fake_quantize(value, scale, out, axis=-1, quant_min=-8, quant_max=7)
        with pytest.raises(ValueError, match="axis"):
            native().fake_quantize(value, scale, out, axis=7, quant_min=-8, quant_max=7)
        with pytest.raises(TypeError):
            native().fake_quantize(value, "scale", out, axis=-1, quant_min=-8, quant_max=7)
    del value
    gc.collect()
    assert (sys.getrefcount(x), sys.getrefcount(tensor), sys.getrefcount(out)) == before
    x.resize(9, refcheck=False)  # no export is left open
