"""The neck: brings coarse features up to 1/8 and fine ones back down to 1/32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import StageConfig, Variant
from .blocks import ConvUnit, CSPLayer


class UpStage(nn.Module):
    """Doubles the resolution of `x` and joins it with one skip of that resolution and one twice as fine.

    Returns `(inter, out)`: `x` reduced but not yet enlarged, which a down stage needs again, and the joined map.
    """

    def __init__(self, channels_in: int, skips: tuple[int, int], stage: StageConfig, *, form: str = "training"):
        super().__init__()
        width = stage.channels
        self.reduce_skip1 = ConvUnit(skips[0], width, 1, form=form)
        self.reduce_skip2 = ConvUnit(skips[1], width, 1, form=form)
        self.conv = ConvUnit(channels_in, width, 1, form=form)
        self.upsample = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.downsample = ConvUnit(width, width, 3, stride=2, form=form)
        self.reduce_after_concat = ConvUnit(3 * width, width, 1, form=form)
        self.blocks = CSPLayer(width, width, stage.blocks, stage.hidden, concat=stage.concat, form=form)

    def forward(self, x: Tensor, skip1: Tensor, skip2: Tensor) -> tuple[Tensor, Tensor]:
        inter = self.conv(x)
        same = self.reduce_skip1(skip1)
        finer = self.downsample(self.reduce_skip2(skip2))
        joined = self.reduce_after_concat(torch.cat([self.upsample(inter), same, finer], dim=1))
        return inter, self.blocks(joined)


class DownStage(nn.Module):
    """Halves the resolution of `x` and joins it with a skip of that resolution; plain 3x3 bottlenecks."""

    def __init__(self, channels_in: int, skip: int, stage: StageConfig, *, form: str = "training"):
        super().__init__()
        width = stage.channels
        self.conv = ConvUnit(channels_in, width // 2, 3, stride=2, form=form)
        self.blocks = CSPLayer(
            width // 2 + skip, width, stage.blocks, stage.hidden, concat=stage.concat, rep=False, form=form
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(torch.cat([self.conv(x), skip], dim=1))


class Neck(nn.Module):
    """Turns `(c2, c3, c4, c5)` into `(p3, p4, p5)` at 1/8, 1/16 and 1/32."""

    def __init__(self, variant: Variant, *, form: str = "training"):
        super().__init__()
        c2, c3, c4, c5 = (stage.channels for stage in variant.backbone)
        (up1, up2), (down1, down2) = variant.up, variant.down
        self.neck1 = UpStage(c5, (c4, c3), up1, form=form)
        self.neck2 = UpStage(up1.channels, (c3, c2), up2, form=form)
        self.neck3 = DownStage(up2.channels, up2.channels, down1, form=form)
        self.neck4 = DownStage(down1.channels, up1.channels, down2, form=form)

    def forward(self, c2: Tensor, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n1_inter, n1 = self.neck1(c5, c4, c3)  # (N, 192, H/32, W/32), (N, 192, H/16, W/16)
        n2_inter, p3 = self.neck2(n1, c3, c2)  # (N, 96, H/16, W/16), (N, 96, H/8, W/8)
        p4 = self.neck3(p3, n2_inter)  # (N, 192, H/16, W/16)
        p5 = self.neck4(p4, n1_inter)  # (N, 384, H/32, W/32)
        return p3, p4, p5
