"""Cross-layer equalisation: scales the channels between layers so that int8 fits all of them, in the float network.

For positive s, `relu(x) = relu(s * x) / s`: a layer's output channel may be multiplied by s, in its weights and bias,
and what reads it divides by s again, in its weights. The network computes the same, but one scale for all channels of
an activation loses less where their ranges are alike (Nagel et al. 2019, "Data-free quantization through weight
equalization and bias correction"). There, a channel's range is that of the weights that write it. Here it is measured
on pictures, as in Xiao et al. 2023, "SmoothQuant": weights with a scale per channel do not tell it, nor need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..nn.blocks import ConvUnit, CSPLayer, QARepVGG

if TYPE_CHECKING:
    from ..nn import YoloNAS
    from ..nn.neck import DownStage

Convolution = nn.Conv2d | nn.ConvTranspose2d

LIMIT = 8.0  # how far a channel's scale may lie from the mean: ranges of rare channels are hardly known


@dataclass(frozen=True)
class Part:
    """Input channels `first` to `first + channels` of a convolution."""

    module: Convolution
    first: int
    channels: int

    def weight(self) -> Tensor:
        """A view (K, channels, kh, kw) of the weights."""
        return _outputs_first(self.module)[:, self.first : self.first + self.channels]


@dataclass(frozen=True)
class Tied:
    """Channels that have to be scaled alike: each of `writers` has them as its outputs, each of `readers` reads them.

    Several writers are those whose outputs a bottleneck adds up.
    """

    writers: tuple[Convolution, ...]
    readers: tuple[Part, ...]


def equalize_(
    model: YoloNAS, batches: Iterable[np.ndarray], *, progress: Callable[[int], None] | None = None
) -> YoloNAS:
    """Equalises a network in folded form, in place, and returns it; what it computes stays the same up to rounding.

    With r1 the largest magnitude of a channel, and r2 that of the weights that read it, each as a part of the largest
    weight of its output channel, s = sqrt(r2 / r1): then both are sqrt(r1 * r2). In float64, rounded once at the end.

    Args:
        batches: float32 `(N, H, W, 3)` each, as for `collect_histograms`. The modules themselves run on them.
        progress: called after each batch with the number of its pictures.

    Raises:
        ValueError: the network is in another form or quantised; no batches; a batch of another shape or dtype.
    """
    if model.form != "folded" or model.activation_scales:
        found = "a quantised one" if model.activation_scales else f"form {model.form!r}"
        raise ValueError(f"equalize: model must be a float network in folded form, got {found}")
    ranges = _channel_ranges(model, batches, progress)
    with torch.no_grad():
        for module in ranges:
            module.double()
        for group in tied_channels(model):
            scale_(group, _equalizing(group, ranges))
        for module in ranges:
            module.float()
    return model


def scale_(group: Tied, scale: Tensor) -> None:
    """Multiplies channels by positive numbers where they are written, and divides by them where they are read."""
    for writer in group.writers:
        _outputs_first(writer).mul_(scale[:, None, None, None])
        writer.bias.mul_(scale)
    for part in group.readers:
        part.weight().div_(scale[:, None, None])


def tied_channels(model: YoloNAS) -> Iterator[Tied]:
    """All channels inside a folded network: but for the input and the outputs, those of every convolution."""
    backbone, neck, heads = model.backbone, model.neck, model.heads
    one, two, three, four = backbone.stage1, backbone.stage2, backbone.stage3, backbone.stage4
    up1, up2, down1, down2 = neck.neck1, neck.neck2, neck.neck3, neck.neck4
    yield _tied([backbone.stem.conv], one.downsample)
    for stage in (one, two, three, four):
        yield _tied([stage.downsample], *_entry(stage.blocks))
    for csp in (
        *(stage.blocks for stage in (one, two, three, four)),
        up1.blocks,
        up2.blocks,
        down1.blocks,
        down2.blocks,
    ):
        yield from _inside(csp)
    spp = backbone.context_module
    yield _tied([one.blocks.conv3], two.downsample, up2.reduce_skip2)
    yield _tied([two.blocks.conv3], three.downsample, up1.reduce_skip2, up2.reduce_skip1)
    yield _tied([three.blocks.conv3], four.downsample, up1.reduce_skip1)
    yield _tied([four.blocks.conv3], spp.cv1)
    yield _tied([spp.cv1], *_parts(spp.cv2, [spp.cv1.conv.out_channels] * (1 + len(spp.m))))  # maxima scale alike
    yield _tied([spp.cv2], up1.conv)

    for up, down in ((up1, down2), (up2, down1)):
        join = _parts(up.reduce_after_concat, [up.conv.conv.out_channels] * 3)
        yield _tied(
            [up.conv], up.upsample, *(part for conv in _entry(down.blocks) for part in _down_parts(down, conv)[1:])
        )
        for writer, part in zip((up.upsample, up.reduce_skip1, up.downsample), join, strict=True):
            yield _tied([writer], part)
        yield _tied([up.reduce_skip2], up.downsample)
        yield _tied([up.reduce_after_concat], *_entry(up.blocks))
    for down in (down1, down2):
        yield _tied([down.conv], *(_down_parts(down, conv)[0] for conv in _entry(down.blocks)))
    yield _tied([up1.blocks.conv3], up2.conv)
    yield _tied([up2.blocks.conv3], down1.conv, heads.head1.stem.seq)
    yield _tied([down1.blocks.conv3], down2.conv, heads.head2.stem.seq)
    yield _tied([down2.blocks.conv3], heads.head3.stem.seq)

    for head in (heads.head1, heads.head2, heads.head3):
        cls, reg = head.cls_convs[0].seq, head.reg_convs[0].seq
        yield _tied([head.stem.seq], cls, reg)
        yield _tied([cls], head.cls_pred)
        yield _tied([reg], head.reg_pred)


Unit = ConvUnit | QARepVGG | Convolution


def _inside(csp: CSPLayer) -> Iterator[Tied]:
    """What a bottleneck adds to has the channels of conv1, and so on to the last bottleneck."""
    hidden, bottlenecks = csp.conv1.conv.out_channels, list(csp.bottlenecks)
    *chain, plain = _parts(csp.conv3, [hidden] * (csp.conv3.conv.in_channels // hidden))
    yield _tied([csp.conv1, *(one.cv2 for one in bottlenecks)], *(one.cv1 for one in bottlenecks), *chain)
    yield _tied([csp.conv2], plain)
    for one in bottlenecks:
        yield _tied([one.cv1], one.cv2)


def _entry(csp: CSPLayer) -> tuple[ConvUnit, ConvUnit]:
    return csp.conv1, csp.conv2


def _down_parts(stage: DownStage, unit: ConvUnit) -> list[Part]:
    """Of a convolution that reads a down stage's join: its own half, and the skip's."""
    own = stage.conv.conv.out_channels
    return _parts(unit, [own, unit.conv.in_channels - own])


def _parts(unit: ConvUnit, widths: list[int]) -> list[Part]:
    assert sum(widths) == unit.conv.in_channels
    return [Part(unit.conv, sum(widths[:number]), width) for number, width in enumerate(widths)]


def _tied(writers: list[Unit], *readers: Unit | Part) -> Tied:
    modules = [_convolution(reader) if not isinstance(reader, Part) else reader for reader in readers]
    parts = [one if isinstance(one, Part) else Part(one, 0, one.in_channels) for one in modules]
    return Tied(tuple(_convolution(writer) for writer in writers), tuple(parts))


def _convolution(unit: Unit) -> Convolution:
    if isinstance(unit, QARepVGG):
        return unit.rbr_reparam
    return unit.conv if isinstance(unit, ConvUnit) else unit


def _channel_ranges(
    model: YoloNAS, batches: Iterable[np.ndarray], progress: Callable[[int], None] | None
) -> dict[Convolution, Tensor]:
    """The largest magnitude of each input channel of each convolution, float64 (C,)."""
    ranges = {
        module: torch.zeros(module.in_channels, dtype=torch.float64)
        for module in model.modules()
        if isinstance(module, Convolution)
    }

    def widen(module: nn.Module, inputs: tuple[Tensor]) -> None:
        torch.maximum(ranges[module], inputs[0].abs().amax((0, 2, 3)).double(), out=ranges[module])

    hooks = [module.register_forward_pre_hook(widen) for module in ranges]
    pictures = 0
    try:
        with torch.inference_mode():
            for batch in batches:
                model.forward_heads(torch.from_numpy(batch).permute(0, 3, 1, 2))
                pictures += len(batch)
                if progress is not None:
                    progress(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    if pictures == 0:
        raise ValueError("equalize: pictures must be at least one, got none")
    return ranges


def _equalizing(group: Tied, ranges: dict[Convolution, Tensor]) -> Tensor:
    written = torch.stack(
        [ranges[part.module][part.first : part.first + part.channels] for part in group.readers]
    ).amax(0)
    read = torch.stack([_largest_shares(part) for part in group.readers]).amax(0)
    used = (written > 0) & (read > 0)
    if not used.any():
        return torch.ones_like(written)
    logarithm = torch.where(used, (read / written).log() / 2, 0.0)
    mean = logarithm.sum() / used.sum()
    limit = math.log(LIMIT)
    return torch.where(used, logarithm.clamp(mean - limit, mean + limit), mean).exp()


def _largest_shares(part: Part) -> Tensor:
    largest = _outputs_first(part.module).abs().amax((1, 2, 3), keepdim=True)
    return (part.weight().abs() / torch.where(largest > 0, largest, 1.0)).amax((0, 2, 3))


def _outputs_first(module: Convolution) -> Tensor:
    """A view of the weights as (K, C, kh, kw)."""
    weight = module.weight.detach()
    return weight.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else weight
