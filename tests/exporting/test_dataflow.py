"""The plain operations of a network: run one after another by torch they give what the engine gives."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quantized_networks import narrow, picture, quantize_

from yolonas.exporting.dataflow import Dataflow, check_weights, dataflow
from yolonas.native_engine import NativeEngine


def run(flow: Dataflow, x: np.ndarray) -> dict[str, np.ndarray]:
    """All maps, channels last, of pictures (N, H, W, 3)."""
    maps = {flow.input.name: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))}
    for op in flow.ops:
        inputs = [maps[one.name] for one in op.inputs]
        if op.kind in ("conv", "deconv"):
            weight = torch.from_numpy(np.ascontiguousarray(op.weight)).float()
            if op.weight_scale is not None:
                axis = 1 if op.kind == "deconv" else 0
                weight = weight * torch.from_numpy(op.weight_scale).view([-1 if i == axis else 1 for i in range(4)])
            bias = torch.from_numpy(op.bias)
            if op.kind == "deconv":
                y = F.conv_transpose2d(*inputs, weight, bias, stride=op.stride)
            else:
                y = F.conv2d(*inputs, weight, bias, stride=op.stride, padding=weight.shape[2] // 2)
            y = y.relu() if op.relu else y
        elif op.kind == "add":
            y = inputs[0] + op.scale * inputs[1]
        elif op.kind == "concat":
            y = torch.cat(inputs, 1)
        elif op.kind == "max_pool5":
            y = F.max_pool2d(*inputs, 5, 1, 2)
        else:
            assert op.kind == "quantize"
            y = (inputs[0] / op.scale).round().clamp(-128, 127) * op.scale
        assert y.shape[1] == op.output.channels
        assert y.shape[2] == x.shape[1] >> op.output.downscale
        assert op.output.name not in maps
        maps[op.output.name] = y
    return {name: value.permute(0, 2, 3, 1).numpy() for name, value in maps.items()}


@pytest.mark.parametrize("variant", ["s", "m", "l"])
@pytest.mark.parametrize("swapped", [False, True])
def test_it_computes_what_the_engine_computes(variant: str, swapped: bool) -> None:
    model, x = narrow(variant), picture(2, 64, 96)
    flow = dataflow(model, input_name="input", swap_channels=swapped)
    maps = run(flow, x[..., ::-1] if swapped else x)
    cls, reg = NativeEngine.of_module(model).heads(x)
    for one, expected in zip([*flow.cls, *flow.reg], [*cls, *reg], strict=True):
        np.testing.assert_allclose(maps[one.name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("variant", "convolutions", "sums"), [("s", 98, 20), ("m", 102, 22), ("l", 114, 28)])
def test_every_convolution_stands_alone(variant: str, convolutions: int, sums: int) -> None:
    """As many as the published networks have, without the two that are transposed."""
    flow = dataflow(narrow(variant), input_name="input")
    counts = Counter(op.kind for op in flow.ops)
    assert counts == {"conv": convolutions, "deconv": 2, "add": sums, "concat": 13, "max_pool5": 3}
    assert not any("+" in op.name for op in flow.ops)


@pytest.mark.parametrize("variant", ["s", "m", "l"])
def test_int8_values_lie_where_the_integer_engine_has_them(variant: str) -> None:
    """Sums of products are exact on one side and rounded on the other, so steps may be taken at other places."""
    x = picture(1, 64, 64)
    model = quantize_(narrow(variant), x)
    flow = dataflow(model, input_name="input")
    maps = run(flow, x)
    cls, reg = NativeEngine.of_module(model).heads(x)
    for one, expected in zip([*flow.cls, *flow.reg], [*cls, *reg], strict=True):
        noise = np.square(maps[one.name] - expected).mean() / np.square(expected).mean()
        assert 10 * np.log10(noise + 1e-30) < -25


def test_what_is_concatenated_in_int8_has_one_scale() -> None:
    flow = dataflow(quantize_(narrow("m"), picture(1, 64, 64)), input_name="input")
    scales = {op.output.name: op.scale for op in flow.ops if op.kind == "quantize"}
    joins = [op for op in flow.ops if op.kind == "concat"]
    assert joins
    for op in joins:
        assert len({scales[one.name] for one in op.inputs}) == 1


def test_layers_in_float_read_and_write_plain_maps() -> None:
    x = picture(1, 64, 64)
    model = quantize_(narrow("s"), x, kept=lambda name: name.startswith("backbone.stage2"))
    flow = dataflow(model, input_name="input")
    kept = [op for op in flow.ops if op.kind == "conv" and op.name.startswith("backbone.stage2")]
    assert kept
    assert all(op.weight_scale is None and op.weight.dtype == np.float32 for op in kept)
    cls, _ = NativeEngine.of_module(model).heads(x)
    maps = run(flow, x)
    noise = [np.square(maps[a.name] - b).mean() / np.square(b).mean() for a, b in zip(flow.cls, cls, strict=True)]
    assert max(noise) < 10**-2.5


@pytest.mark.parametrize(("value", "precision"), [(np.nan, "fp32"), (np.inf, "fp32"), (70_000, "fp16"), (1e-3, "")])
def test_weights_out_of_range_are_named(value: float, precision: str) -> None:
    model = narrow("s")
    with torch.no_grad():
        model.heads.head2.reg_pred.bias[3] = value
    flow = dataflow(model, input_name="input")
    if not precision:
        check_weights(flow, "fp16")
        return
    with pytest.raises(ValueError, match=r"weights of 'heads\.head2\.reg_pred' must lie within"):
        check_weights(flow, precision)
