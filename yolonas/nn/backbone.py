"""The backbone: from the picture to four feature maps at 1/4, 1/8, 1/16 and 1/32 of its size."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import SPP_CHANNELS, SPP_KERNELS, STEM_CHANNELS, StageConfig, Variant
from .blocks import SPP, CSPLayer, QARepVGG


class Stem(nn.Module):
    """The first convolution: half the resolution."""

    def __init__(self, channels_in: int, channels_out: int, *, form: str = "training"):
        super().__init__()
        self.conv = QARepVGG(channels_in, channels_out, stride=2, form=form)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Stage(nn.Module):
    """Half the resolution again, then a CSP layer."""

    def __init__(self, channels_in: int, stage: StageConfig, *, form: str = "training"):
        super().__init__()
        width = stage.channels
        self.downsample = QARepVGG(channels_in, width, stride=2, form=form)
        self.blocks = CSPLayer(width, width, stage.blocks, stage.hidden, concat=stage.concat, form=form)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Backbone(nn.Module):
    """Returns `(c2, c3, c4, c5)`: the outputs of stages 1 to 3, and of stage 4 after pyramid pooling."""

    def __init__(self, variant: Variant, *, form: str = "training"):
        super().__init__()
        one, two, three, four = variant.backbone
        self.stem = Stem(3, STEM_CHANNELS, form=form)
        self.stage1 = Stage(STEM_CHANNELS, one, form=form)
        self.stage2 = Stage(one.channels, two, form=form)
        self.stage3 = Stage(two.channels, three, form=form)
        self.stage4 = Stage(three.channels, four, form=form)
        self.context_module = SPP(four.channels, SPP_CHANNELS, four.channels, SPP_KERNELS, form=form)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c2 = self.stage1(self.stem(x))  # (N, 96, H/4, W/4)
        c3 = self.stage2(c2)  # (N, 192, H/8, W/8)
        c4 = self.stage3(c3)  # (N, 384, H/16, W/16)
        c5 = self.context_module(self.stage4(c4))  # (N, 768, H/32, W/32)
        return c2, c3, c4, c5
