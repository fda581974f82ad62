"""Runs a lowered graph step by step in plain torch: slow, obvious, and in the weights' dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from yolonas.lowering import INPUT, Graph, View


def run_graph(graph: Graph, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Class and box logits per level for `x` (N, 3, H, W), as `YoloNAS.forward_heads` gives them.

    Buffers begin as NaN, so that a channel that is read before it was written is noticed.
    """
    batch, _, height, width = x.shape
    buffers = [
        x.new_full((batch, channels, height >> downscale, width >> downscale), torch.nan)
        for downscale, channels in graph.buffers
    ]
    buffers[INPUT].copy_(x)

    def at(view: View) -> Tensor:
        return buffers[view.buffer][:, view.offset : view.offset + view.channels]

    for step in graph.steps:
        source, out = at(step["input"]), at(step["output"])
        if step["op"] == "max_pool5":
            y = F.max_pool2d(source, 5, stride=1, padding=2)
        elif step["op"] == "upsample":
            y = F.conv_transpose2d(source, torch.from_numpy(step["weight"]), torch.from_numpy(step["bias"]), stride=2)
        else:
            assert step["op"] == "conv"
            weight, bias = torch.from_numpy(step["weight"]), torch.from_numpy(step["bias"])
            y = F.conv2d(source, weight, bias, stride=step["stride"], padding=weight.shape[2] // 2)
            y = F.relu(y) if step["relu"] else y
            if step["residual"] is not None:
                y = y + step["residual_scale"] * at(step["residual"])
        out.copy_(y)
    return [at(level["cls"]) for level in graph.outputs], [at(level["reg"]) for level in graph.outputs]
