"""The building blocks that backbone, neck and heads share. Nothing here knows about sizes S, M, L or about decoding.

Every block takes `form`, one of `config.FORMS`, and is built directly in that form; `nn.fuse` moves a block to a later
one. Tensors are `(N, C, H, W)`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_CHANNELS = 16  # fewer than these are not safe, see `PointwiseConv`


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """The batch norm of these networks; torch's defaults for eps and momentum would be wrong."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


class ConvUnit(nn.Module):
    """`relu(bn(conv(x)))`; in the folded form `bn` is None and the convolution has a bias."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, *, form: str = "training"):
        super().__init__()
        folded = form == "folded"
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=folded)
        self.bn = None if folded else batch_norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(x if self.bn is None else self.bn(x))


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution that is safe to train, channels last, with a stride and few input channels.

    It takes every so many pixels first, which gives the same sums. The gradient of such a convolution overruns memory
    in oneDNN 3 (torch 2.13 on CPUs with AVX-512).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels >= FEW_CHANNELS or self.stride == (1, 1):
            return super().forward(x)
        down, right = self.stride
        return F.conv2d(x[:, :, ::down, ::right], self.weight, self.bias, groups=self.groups)


class QARepVGG(nn.Module):
    """A 3x3 convolution that is trained as three parallel branches.

    training:       relu(post_bn( bn3(conv3x3(x)) + alpha * conv1x1(x) + identity * x ))
    partial:        relu(post_bn( rbr_reparam(x) ))
    full, folded:   relu( rbr_reparam(x) )

    YOLO-NAS uses groups 1, dilation 1, a 1x1 branch with bias, the post-BN and no learnable alpha; the other settings
    belong to the block as published. `rbr_reparam` exists in training form too, because checkpoints hold it: unused,
    with meaningless values, and excluded from gradients.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int = 1,
        *,
        identity: bool = False,  # needs channels_in == channels_out and stride 1
        groups: int = 1,
        dilation: int = 1,
        bias_1x1: bool = True,
        learn_alpha: bool = False,  # alpha is 1 otherwise
        post_bn: bool = True,
        form: str = "training",
    ):
        super().__init__()
        if identity and (channels_in != channels_out or stride != 1):
            raise ValueError(
                f"QARepVGG: identity must have equal channels and stride 1, "
                f"got {channels_in} -> {channels_out}, stride {stride}"
            )
        self.form = form
        self.identity = identity
        self.register_parameter("alpha", None)
        self.branch_3x3 = self.branch_1x1 = self.post_bn = None
        conv_3x3 = {"stride": stride, "padding": dilation, "dilation": dilation, "groups": groups}
        if form == "training":
            conv = nn.Conv2d(channels_in, channels_out, 3, **conv_3x3, bias=False)
            self.branch_3x3 = nn.Sequential(OrderedDict(conv=conv, bn=batch_norm(channels_out)))
            self.branch_1x1 = PointwiseConv(channels_in, channels_out, 1, stride, groups=groups, bias=bias_1x1)
            if learn_alpha:
                self.alpha = nn.Parameter(1 + 0.01 * torch.randn(1))
        if form in ("training", "partial") and post_bn:
            self.post_bn = batch_norm(channels_out)
        self.rbr_reparam = nn.Conv2d(channels_in, channels_out, 3, **conv_3x3).requires_grad_(form != "training")

    def forward(self, x: Tensor) -> Tensor:
        y = self._branches(x) if self.form == "training" else self.rbr_reparam(x)
        return F.relu(y if self.post_bn is None else self.post_bn(y))

    def _branches(self, x: Tensor) -> Tensor:
        pointwise = self.branch_1x1(x)
        if self.alpha is not None:
            pointwise = self.alpha * pointwise
        y = self.branch_3x3(x) + pointwise
        return y + x if self.identity else y


class Bottleneck(nn.Module):
    """`alpha * x + cv2(cv1(x))` with a learnable scalar on the shortcut; `rep` chooses QARepVGG or plain 3x3 units."""

    def __init__(self, channels: int, *, rep: bool, form: str = "training"):
        super().__init__()
        if rep:
            self.cv1 = QARepVGG(channels, channels, identity=True, form=form)
            self.cv2 = QARepVGG(channels, channels, identity=True, form=form)
        else:
            self.cv1 = ConvUnit(channels, channels, 3, form=form)
            self.cv2 = ConvUnit(channels, channels, 3, form=form)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.cv2(self.cv1(x))


class CSPLayer(nn.Module):
    """Two 1x1 paths, one of them through the bottlenecks, joined by a 1x1 unit.

    With `concat` the outputs of all bottlenecks and their input take part in the join. The plain path comes last.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        blocks: int,
        hidden: int,
        *,
        concat: bool = False,
        rep: bool = True,
        form: str = "training",
    ):
        super().__init__()
        self.concat = concat
        self.conv1 = ConvUnit(channels_in, hidden, 1, form=form)
        self.conv2 = ConvUnit(channels_in, hidden, 1, form=form)
        self.conv3 = ConvUnit(hidden * (blocks + 2 if concat else 2), channels_out, 1, form=form)
        self.bottlenecks = nn.Sequential(*(Bottleneck(hidden, rep=rep, form=form) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        steps = [self.conv1(x)]
        for bottleneck in self.bottlenecks:
            steps.append(bottleneck(steps[-1]))
        kept = steps if self.concat else steps[-1:]
        return self.conv3(torch.cat([*kept, self.conv2(x)], dim=1))


class SPP(nn.Module):
    """Spatial pyramid pooling: the input beside its maxima over growing windows."""

    def __init__(
        self, channels_in: int, hidden: int, channels_out: int, kernels: tuple[int, ...], *, form: str = "training"
    ):
        super().__init__()
        self.cv1 = ConvUnit(channels_in, hidden, 1, form=form)
        self.cv2 = ConvUnit(hidden * (len(kernels) + 1), channels_out, 1, form=form)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, stride=1, padding=kernel // 2) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], dim=1))
