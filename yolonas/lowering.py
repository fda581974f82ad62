"""Lowers a folded network to a flat list of steps on channels-last buffers, for the native engine.

A concatenation is one wide buffer, and its producers write beside each other, so nothing is ever copied. Where two
convolutions of the same kind read the same input they become one with the outputs of both. The order of the channels in
a buffer is free, therefore; the weights of the readers follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .config import SPP_KERNELS, STRIDES

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .nn import YoloNAS
    from .nn.backbone import Stage
    from .nn.blocks import SPP, Bottleneck, ConvUnit, CSPLayer, QARepVGG
    from .nn.head import Head
    from .nn.neck import DownStage, UpStage

INPUT = 0  # the number of the input's buffer: 3 channels at full size


class Buffer(NamedTuple):
    """Values of all pixels of a level, channels last: float32 where `scale` is 0, else int8 of that scale."""

    downscale: int  # log2 of how many times smaller than the input each side is
    channels: int
    scale: float = 0.0


class View(NamedTuple):
    """Channels `offset` to `offset + channels` of a buffer."""

    buffer: int
    offset: int
    channels: int

    def part(self, offset: int, channels: int) -> View:
        """Some of these channels, counted from the first of them."""
        assert 0 <= offset <= offset + channels <= self.channels
        return View(self.buffer, self.offset + offset, channels)

    def split(self, *channels: int) -> list[View]:
        """Neighbours of these widths, which fill the view."""
        assert sum(channels) == self.channels
        ends = np.cumsum(channels).tolist()
        return [self.part(end - width, width) for end, width in zip(ends, channels, strict=True)]


@dataclass
class Graph:
    """A network as buffers and steps.

    Attributes:
        buffers: buffer 0 is the input.
        steps: in the order in which they run. Every step has `op`, `name`, `input` and `output`, both a `View`.
            "conv": y = act(conv(x) + bias) + residual_scale * residual with `weight` (K, C, kh, kw), `bias` (K,),
            `stride`, padding kh // 2, `relu`, `residual` (a `View`, which may be the output itself, or None) and
            `residual_scale`. "upsample": a 2x2 transposed convolution of stride 2 with `weight` (C, K, 2, 2), `bias`.
            "max_pool5": the maximum of 5x5 windows, stride 1. Steps with weights have `modules`, the convolutions whose
            outputs they compute, in the order of the channels, and `weight_scale`, float32 (K,) if all of those are
            quantised, else None. `quantized_graph` has the steps on int8 buffers.
        outputs: per level the views `cls` and `reg` of the head outputs, and `stride` in input pixels per cell.
    """

    buffers: list[Buffer] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)

    def buffer(self, downscale: int, channels: int, scale: float = 0.0) -> View:
        """A new buffer, as a view of all its channels."""
        self.buffers.append(Buffer(downscale, channels, scale))
        return View(len(self.buffers) - 1, 0, channels)

    def downscale(self, view: View) -> int:
        return self.buffers[view.buffer].downscale

    def conv(
        self,
        name: str,
        x: View,
        weights: _Weights,
        out: View | None = None,
        *,
        relu: bool = True,
        residual: View | None = None,
        residual_scale: float = 0.0,
    ) -> View:
        """Adds a convolution and returns its output, which is a new buffer unless `out` is given."""
        stride = weights.stride
        out = out or self.buffer(self.downscale(x) + stride // 2, len(weights.weight))
        assert weights.weight.shape[:2] == (out.channels, x.channels)
        step = {"op": "conv", "name": name, "input": x, "output": out, **weights._asdict()}
        step |= {"relu": relu, "residual": residual, "residual_scale": residual_scale}
        self.steps.append(step)
        return out


def lower(model: YoloNAS) -> Graph:
    """The graph of a network in folded form. The weights keep their dtype; they may share memory with the module's.

    Raises:
        ValueError: the network is in another form.
    """
    if model.form != "folded":
        raise ValueError(f"lower: model must be in folded form, got {model.form!r}; call fuse_(model) first")
    graph = Graph()
    x = graph.buffer(0, 3)
    backbone, neck, heads = model.backbone, model.neck, model.heads
    x = graph.conv("backbone.stem.conv", x, _of(backbone.stem.conv))
    c2 = _stage(graph, "backbone.stage1", backbone.stage1, x)
    c3 = _stage(graph, "backbone.stage2", backbone.stage2, c2)
    c4 = _stage(graph, "backbone.stage3", backbone.stage3, c3)
    c5 = _stage(graph, "backbone.stage4", backbone.stage4, c4)
    c5 = _spp(graph, "backbone.context_module", backbone.context_module, c5)

    # A down stage joins its convolution with the reduced map of an up stage, which is written there at once.
    join4, inter1 = _down_join(graph, neck.neck4, c5)
    p4_up = _up_stage(graph, "neck.neck1", neck.neck1, c5, c4, c3, inter1)
    join3, inter2 = _down_join(graph, neck.neck3, p4_up)
    p3 = _up_stage(graph, "neck.neck2", neck.neck2, p4_up, c3, c2, inter2)
    p4 = _down_stage(graph, "neck.neck3", neck.neck3, p3, join3)
    p5 = _down_stage(graph, "neck.neck4", neck.neck4, p4, join4)

    for number, (head, x) in enumerate(zip((heads.head1, heads.head2, heads.head3), (p3, p4, p5), strict=True)):
        cls, reg = _head(graph, f"heads.head{number + 1}", head, x)
        graph.outputs.append({"cls": cls, "reg": reg, "stride": STRIDES[number]})
    return graph


# --- the blocks, each as its module in `nn` ---


def _stage(graph: Graph, name: str, stage: Stage, x: View) -> View:
    x = graph.conv(f"{name}.downsample", x, _of(stage.downsample))
    return _csp(graph, f"{name}.blocks", stage.blocks, x)


def _csp(graph: Graph, name: str, csp: CSPLayer, x: View) -> View:
    """The join is [conv1, conv2] and with `concat` one more part for each bottleneck; else they run in conv1's part."""
    hidden, blocks = csp.conv1.conv.out_channels, len(csp.bottlenecks)
    added = blocks if csp.concat else 0
    join = graph.buffer(graph.downscale(x), (2 + added) * hidden)
    last, plain, *outputs = join.split(*[hidden] * (2 + added))
    graph.conv(f"{name}.conv1+conv2", x, _stacked(_of(csp.conv1), _of(csp.conv2)), join.part(0, 2 * hidden))
    kept = [last]  # as the module has it: conv1 and what is made of it, then conv2
    for number, bottleneck in enumerate(csp.bottlenecks):
        last = _bottleneck(graph, f"{name}.bottlenecks.{number}", bottleneck, last, outputs[number] if added else last)
        kept = [*kept, last] if added else [last]
    return graph.conv(f"{name}.conv3", join, _reordered(_of(csp.conv3), [*kept, plain], join))


def _bottleneck(graph: Graph, name: str, bottleneck: Bottleneck, x: View, out: View) -> View:
    inside = graph.conv(f"{name}.cv1", x, _of(bottleneck.cv1))
    scale = float(bottleneck.alpha.detach())
    return graph.conv(f"{name}.cv2", inside, _of(bottleneck.cv2), out, residual=x, residual_scale=scale)


def _spp(graph: Graph, name: str, spp: SPP, x: View) -> View:
    """Maxima over 9x9 and 13x13 are those over 5x5 of the ones before: two windows of 5 reach as far as one of 9."""
    assert SPP_KERNELS == (5, 9, 13)
    hidden = spp.cv1.conv.out_channels
    join = graph.buffer(graph.downscale(x), 4 * hidden)
    parts = join.split(*[hidden] * 4)
    graph.conv(f"{name}.cv1", x, _of(spp.cv1), parts[0])
    for number, (source, out) in enumerate(pairwise(parts)):
        graph.steps.append({"op": "max_pool5", "name": f"{name}.m.{number}", "input": source, "output": out})
    return graph.conv(f"{name}.cv2", join, _of(spp.cv2))


def _up_stage(graph: Graph, name: str, stage: UpStage, x: View, skip1: View, skip2: View, inter: View) -> View:
    """Writes the reduced `x` to `inter` and returns the joined map."""
    width = stage.conv.conv.out_channels
    join = graph.buffer(graph.downscale(skip1), 3 * width)
    enlarged, same, finer = join.split(width, width, width)
    graph.conv(f"{name}.conv", x, _of(stage.conv), inter)
    weights = _of(stage.upsample)._asdict()
    graph.steps.append({"op": "upsample", "name": f"{name}.upsample", "input": inter, "output": enlarged, **weights})
    graph.conv(f"{name}.reduce_skip1", skip1, _of(stage.reduce_skip1), same)
    reduced = graph.conv(f"{name}.reduce_skip2", skip2, _of(stage.reduce_skip2))
    graph.conv(f"{name}.downsample", reduced, _of(stage.downsample), finer)
    y = graph.conv(f"{name}.reduce_after_concat", join, _of(stage.reduce_after_concat))
    return _csp(graph, f"{name}.blocks", stage.blocks, y)


def _down_join(graph: Graph, stage: DownStage, skip: View) -> tuple[View, View]:
    """The buffer in which a down stage joins its two inputs, and the second one's part of it."""
    own, channels = stage.conv.conv.out_channels, stage.blocks.conv1.conv.in_channels
    join = graph.buffer(graph.downscale(skip), channels)
    return join, join.part(own, channels - own)


def _down_stage(graph: Graph, name: str, stage: DownStage, x: View, join: View) -> View:
    graph.conv(f"{name}.conv", x, _of(stage.conv), join.part(0, stage.conv.conv.out_channels))
    return _csp(graph, f"{name}.blocks", stage.blocks, join)


def _head(graph: Graph, name: str, head: Head, x: View) -> tuple[View, View]:
    x = graph.conv(f"{name}.stem", x, _of(head.stem.seq))
    both = _stacked(_of(head.cls_convs[0].seq), _of(head.reg_convs[0].seq))
    cls, reg = graph.conv(f"{name}.cls_convs+reg_convs", x, both).split(*[len(both.weight) // 2] * 2)
    return (
        graph.conv(f"{name}.cls_pred", cls, _of(head.cls_pred), relu=False),
        graph.conv(f"{name}.reg_pred", reg, _of(head.reg_pred), relu=False),
    )


# --- weights ---


class _Weights(NamedTuple):
    weight: np.ndarray  # (K, C, kh, kw), of a transposed convolution (C, K, kh, kw)
    bias: np.ndarray  # (K,)
    stride: int
    modules: tuple[nn.Conv2d | nn.ConvTranspose2d, ...]
    weight_scale: np.ndarray | None  # (K,)


def _of(module: ConvUnit | QARepVGG | nn.Conv2d | nn.ConvTranspose2d) -> _Weights:
    conv: Any = getattr(module, "rbr_reparam", None) or getattr(module, "conv", None) or module
    assert conv.transposed or conv.padding == (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2)
    assert conv.groups == 1
    assert conv.dilation == (1, 1)
    scale = getattr(conv, "weight_scale", None)
    return _Weights(
        *(_array(conv.weight), _array(conv.bias), conv.stride[0], (conv,)), None if scale is None else _array(scale)
    )


def _stacked(first: _Weights, second: _Weights) -> _Weights:
    """Two convolutions of one input as one: the outputs of the second come after those of the first."""
    assert first.stride == second.stride
    weight, bias = (np.concatenate(arrays) for arrays in zip(first[:2], second[:2], strict=True))
    scales = first.weight_scale, second.weight_scale
    scale = None if any(one is None for one in scales) else np.concatenate(scales)
    return _Weights(weight, bias, first.stride, first.modules + second.modules, scale)


def _reordered(weights: _Weights, order: Sequence[View], join: View) -> _Weights:
    """Weights whose input channels are those of `order`, for an input that has these parts where `join` has them."""
    by_module = np.concatenate([np.arange(view.offset, view.offset + view.channels) for view in order])
    assert sorted(by_module) == list(range(join.channels))
    weight = np.empty_like(weights.weight)
    weight[:, by_module] = weights.weight
    return weights._replace(weight=weight)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy()
