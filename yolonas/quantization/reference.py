"""What a mixed graph of `quantized_graph` computes, step by step in NumPy: slow, and written to be obviously right.

`run_integer` has the native engine's arithmetic: integer steps agree with it bit for bit, float steps up to rounding.
`run_fake_quantized` has real numbers in all buffers, in float64: each step computes on what int8 stands for and rounds
its result to what int8 can hold. It takes graphs without int8 buffers too, of weights in any precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lowering import INPUT, Graph, View
from ..ops import reference

Buffers = list[np.ndarray]


def run_integer(graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    """The output of each step by its name: int8 or float32 `(N, h, w, K)`, as its buffer is.

    Args:
        x: float32 `(N, H, W, 3)`, sides multiples of 32.
    """
    dtypes = [np.int8 if buffer.scale else np.float32 for buffer in graph.buffers]
    return _run(
        graph, integer_step, [np.zeros(shape, dtype) for shape, dtype in zip(_shapes(graph, x), dtypes, strict=True)], x
    )


def run_fake_quantized(graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    """The same in real numbers, all float64. Buffers begin as NaN, so that a channel read too early is noticed."""
    return _run(graph, fake_quantized_step, [np.full(shape, np.nan) for shape in _shapes(graph, x)], x)


def integer_step(graph: Graph, step: dict[str, Any], buffers: Buffers) -> np.ndarray:
    """What one step writes, given what all buffers hold."""
    x, scale = at(buffers, step["input"]), graph.buffers[step["input"].buffer].scale
    out_scale = graph.buffers[step["output"].buffer].scale
    if step["op"] == "max_pool5":
        return _max_pool5(x)
    if step["op"] == "dequantize":
        return x.astype(np.float32) * np.float32(scale)
    if step["op"] == "quantize":
        with np.errstate(over="ignore", invalid="ignore"):
            integers = np.rint(x * np.float32(1 / out_scale))
        integers = np.where(np.isnan(integers), -128, integers)
        return _widened(np.clip(integers, -128, 127).astype(np.int8), step["output"])
    if step.get("weight_scale") is None:
        return _convolution(step, x, buffers, step["weight"]).astype(np.float32)

    s_y = out_scale or 1.0
    arrays = {
        "multiplier": (scale * step["weight_scale"].astype(np.float64) / s_y).astype(np.float32),
        "offset": (step["bias"].astype(np.float64) / s_y).astype(np.float32),
    }
    dtype = np.int8 if out_scale else np.float32
    if step["op"] == "upsample":
        return _interleaved(lambda tap: reference.conv2d_s8(x, tap, **arrays, relu=False, dtype=dtype), step["weight"])
    residual, factor = None, 0.0
    if step["residual"] is not None:
        residual = at(buffers, step["residual"])
        factor = step["residual_scale"] * graph.buffers[step["residual"].buffer].scale / s_y
    return reference.conv2d_s8(
        *(x, step["weight"].transpose(0, 2, 3, 1)),
        **arrays,
        residual=residual,
        residual_multiplier=factor,
        stride=step["stride"],
        padding=step["weight"].shape[2] // 2,
        relu=step["relu"],
        dtype=dtype,
    )


def fake_quantized_step(graph: Graph, step: dict[str, Any], buffers: Buffers) -> np.ndarray:
    """The same in real numbers: of what all buffers stand for."""
    x = at(buffers, step["input"])
    scale = graph.buffers[step["output"].buffer].scale
    if step["op"] == "max_pool5":
        return _max_pool5(x)
    if step["op"] in ("quantize", "dequantize"):
        y = _widened(x, step["output"])
    else:
        weight, weight_scale = step["weight"].astype(np.float64), step.get("weight_scale")
        if weight_scale is not None:
            weight *= weight_scale[:, None, None] if step["op"] == "upsample" else weight_scale[:, None, None, None]
        y = _convolution(step, x, buffers, weight)
    return np.clip(np.rint(y / scale), -128, 127) * scale if scale else y


def at(buffers: Buffers, view: View) -> np.ndarray:
    """The channels of a view, `(N, h, w, K)`; writing to them writes to the buffer."""
    return buffers[view.buffer][..., view.offset : view.offset + view.channels]


Step = Callable[[Graph, dict[str, Any], Buffers], np.ndarray]


def _run(graph: Graph, compute: Step, buffers: Buffers, x: np.ndarray) -> dict[str, np.ndarray]:
    buffers[INPUT][...] = x
    outputs = {}
    for step in graph.steps:
        outputs[step["name"]] = compute(graph, step, buffers)
        at(buffers, step["output"])[...] = outputs[step["name"]]
    return outputs


def _shapes(graph: Graph, x: np.ndarray) -> list[tuple[int, ...]]:
    count, height, width, _ = x.shape
    return [(count, height >> one.downscale, width >> one.downscale, one.channels) for one in graph.buffers]


def _convolution(step: dict[str, Any], x: np.ndarray, buffers: Buffers, weight: np.ndarray) -> np.ndarray:
    """A convolution of either op, in float64."""
    bias = step["bias"]
    if step["op"] == "upsample":
        return _interleaved(lambda tap: reference.conv2d_bias_act(x, tap, bias, relu=False), weight)
    sizes = {"stride": step["stride"], "padding": weight.shape[2] // 2, "relu": step["relu"]}
    y = reference.conv2d_bias_act(x, weight.transpose(0, 2, 3, 1), bias, **sizes)
    if step["residual"] is None:
        return y
    return y + step["residual_scale"] * at(buffers, step["residual"]).astype(np.float64)


def _interleaved(convolution: Callable[[np.ndarray], np.ndarray], weight: np.ndarray) -> np.ndarray:
    """A transposed 2x2 convolution of stride 2: each tap of (C, K, 2, 2) is a 1x1 convolution, weights (K, 1, 1, C)."""
    taps = [[convolution(weight[:, :, row, column].T[:, None, None]) for column in range(2)] for row in range(2)]
    count, height, width, channels = taps[0][0].shape
    # (2, 2, N, H, W, K) to (N, H, 2, W, 2, K)
    return np.array(taps).transpose(2, 3, 0, 4, 1, 5).reshape(count, 2 * height, 2 * width, channels)


def _max_pool5(x: np.ndarray) -> np.ndarray:
    lowest = np.iinfo(np.int8).min if x.dtype == np.int8 else -np.inf
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=lowest)
    return np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2)).max(axis=(-2, -1))


def _widened(x: np.ndarray, out: View) -> np.ndarray:
    """With zeros for the channels that the output has more."""
    return np.pad(x, ((0, 0), (0, 0), (0, 0), (0, out.channels - x.shape[3])))
