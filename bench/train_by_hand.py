"""What one would write without this library to train YOLO-NAS S: plain torch modules, loss, average and step.

Straight from the published formulas, in the usual idioms, and independent of `yolonas` but for the names of the
weights, which are the checkpoints'.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)
BINS = 17  # of the distribution of each side's distance, 0 to 16 cells
TOP_K = 13  # candidate anchors per labelled box


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.bn = norm(channels_out)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Rep(nn.Module):
    """A 3x3 convolution with batch norm, a 1x1 convolution and perhaps the input, summed, normalised and cut at 0."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, *, identity: bool = False):
        super().__init__()
        self.identity = identity
        self.branch_3x3 = nn.Sequential()
        self.branch_3x3.add_module("conv", nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False))
        self.branch_3x3.add_module("bn", norm(channels_out))
        self.branch_1x1 = nn.Conv2d(channels_in, channels_out, 1, stride)
        self.post_bn = norm(channels_out)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch_3x3(x) + self.branch_1x1(x)
        if self.identity:
            y = y + x
        return self.act(self.post_bn(y))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, *, rep: bool):
        super().__init__()
        self.cv1 = Rep(channels, channels, identity=True) if rep else Unit(channels, channels, 3)
        self.cv2 = Rep(channels, channels, identity=True) if rep else Unit(channels, channels, 3)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.cv2(self.cv1(x))


class Csp(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, blocks: int, hidden: int, *, rep: bool = True):
        super().__init__()
        self.conv1 = Unit(channels_in, hidden, 1)
        self.conv2 = Unit(channels_in, hidden, 1)
        self.conv3 = Unit(2 * hidden, channels_out, 1)
        self.bottlenecks = nn.Sequential(*[Bottleneck(hidden, rep=rep) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(torch.cat([self.bottlenecks(self.conv1(x)), self.conv2(x)], dim=1))


class Stage(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, blocks: int, hidden: int):
        super().__init__()
        self.downsample = Rep(channels_in, channels_out, 2)
        self.blocks = Csp(channels_out, channels_out, blocks, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Pyramid(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.cv1 = Unit(channels, hidden, 1)
        self.cv2 = Unit(4 * hidden, channels, 1)
        self.m = nn.ModuleList([nn.MaxPool2d(kernel, 1, kernel // 2) for kernel in (5, 9, 13)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return self.cv2(torch.cat([x] + [pool(x) for pool in self.m], dim=1))


class Up(nn.Module):
    def __init__(self, channels_in: int, same: int, finer: int, channels: int, hidden: int):
        super().__init__()
        self.reduce_skip1 = Unit(same, channels, 1)
        self.reduce_skip2 = Unit(finer, channels, 1)
        self.conv = Unit(channels_in, channels, 1)
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.downsample = Unit(channels, channels, 3, 2)
        self.reduce_after_concat = Unit(3 * channels, channels, 1)
        self.blocks = Csp(channels, channels, 2, hidden)

    def forward(self, x: Tensor, same: Tensor, finer: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        maps = [self.upsample(x), self.reduce_skip1(same), self.downsample(self.reduce_skip2(finer))]
        return x, self.blocks(self.reduce_after_concat(torch.cat(maps, dim=1)))


class Down(nn.Module):
    def __init__(self, channels_in: int, skip: int, channels: int):
        super().__init__()
        self.conv = Unit(channels_in, channels // 2, 3, 2)
        self.blocks = Csp(channels // 2 + skip, channels, 2, 64, rep=False)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(torch.cat([self.conv(x), skip], dim=1))


class Head(nn.Module):
    def __init__(self, channels_in: int, width: int, classes: int):
        super().__init__()
        self.stem = self.unit(channels_in, width, 1)
        self.cls_convs = nn.Sequential(self.unit(width, width, 3))
        self.reg_convs = nn.Sequential(self.unit(width, width, 3))
        self.cls_pred = nn.Conv2d(width, classes, 1)
        self.reg_pred = nn.Conv2d(width, 4 * BINS, 1)
        nn.init.constant_(self.cls_pred.bias, -math.log(99))

    @staticmethod
    def unit(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
        block = nn.Sequential()
        block.add_module("seq", Unit(channels_in, channels_out, kernel))
        return block

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.cls_pred(self.cls_convs(x)), self.reg_pred(self.reg_convs(x))


class Network(nn.Module):
    """YOLO-NAS S as it is trained. Returns class logits `(N, A, C)` and box logits `(N, A, 68)`.

    The state dict has the keys of the checkpoints, but for `rbr_reparam`, which training does not use.
    """

    def __init__(self, classes: int = 80):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Module()
        self.backbone.stem.conv = Rep(3, 48, 2)
        self.backbone.stage1 = Stage(48, 96, 2, 32)
        self.backbone.stage2 = Stage(96, 192, 3, 64)
        self.backbone.stage3 = Stage(192, 384, 5, 96)
        self.backbone.stage4 = Stage(384, 768, 2, 192)
        self.backbone.context_module = Pyramid(768, 384)
        self.neck = nn.Module()
        self.neck.neck1 = Up(768, 384, 192, 192, 64)
        self.neck.neck2 = Up(192, 192, 96, 96, 48)
        self.neck.neck3 = Down(96, 96, 192)
        self.neck.neck4 = Down(192, 192, 384)
        self.heads = nn.Module()
        self.heads.head1 = Head(96, 64, classes)
        self.heads.head2 = Head(192, 128, classes)
        self.heads.head3 = Head(384, 256, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        backbone, neck, heads = self.backbone, self.neck, self.heads
        c2 = backbone.stage1(backbone.stem.conv(x))
        c3 = backbone.stage2(c2)
        c4 = backbone.stage3(c3)
        c5 = backbone.context_module(backbone.stage4(c4))
        inter1, n1 = neck.neck1(c5, c4, c3)
        inter2, p3 = neck.neck2(n1, c3, c2)
        p4 = neck.neck3(p3, inter2)
        p5 = neck.neck4(p4, inter1)
        levels = [heads.head1(p3), heads.head2(p4), heads.head3(p5)]
        classes, boxes = (torch.cat([maps.flatten(2) for maps in kind], dim=2) for kind in zip(*levels, strict=True))
        return classes.transpose(1, 2), boxes.transpose(1, 2)


def anchors(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Centres `(A, 2)` x, y and strides `(A, 1)`, in pixels, for pictures of this size."""
    points, strides = [], []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        level = (torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * stride
        points.append(level)
        strides.append(torch.full((len(level), 1), float(stride)))
    return torch.cat(points), torch.cat(strides)


def padded(targets: Tensor, pictures: int) -> tuple[Tensor, Tensor]:
    """Rows `(M, 6)` picture, class, x1, y1, x2, y2 to classes `(N, G)` and boxes `(N, G, 4)`, zeros at the end."""
    rows = [targets[targets[:, 0] == number, 1:] for number in range(pictures)]
    rows = nn.utils.rnn.pad_sequence([*rows, targets.new_zeros(1, 5)], batch_first=True)[:pictures]
    return rows[..., 0].long(), rows[..., 1:]


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, points: Tensor, labels: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
    """The task-aligned assignment: of each anchor whether it is positive, its class, box and score."""
    corner = torch.maximum(truth[:, :, None, :2], boxes[:, None, :, :2])
    sides = (torch.minimum(truth[:, :, None, 2:], boxes[:, None, :, 2:]) - corner).clamp(min=0)
    overlap = sides.prod(dim=-1)  # (N, G, A)
    areas = (truth[..., 2:] - truth[..., :2]).prod(dim=-1)[:, :, None]
    areas = areas + (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)[:, None]
    iou = overlap / (areas - overlap + 1e-9)
    own = scores.transpose(1, 2).gather(1, labels[..., None].expand(-1, -1, scores.shape[1]))
    alignment = own * iou**6
    distances = torch.cat([points - truth[:, :, None, :2], truth[:, :, None, 2:] - points], dim=-1)
    inside = distances.amin(dim=-1) > 1e-9
    best = (alignment * inside).topk(min(TOP_K, len(points)), dim=-1).indices
    candidates = torch.zeros_like(inside).scatter(2, best, True) & inside
    several = candidates.sum(dim=1, keepdim=True) > 1
    winners = functional.one_hot(iou.argmax(dim=1), truth.shape[1]).transpose(1, 2).bool()
    candidates = torch.where(several, winners, candidates)

    alignment = alignment * candidates
    peak = (iou * candidates).amax(dim=-1, keepdim=True)
    score = (alignment / (alignment.amax(dim=-1, keepdim=True) + 1e-9) * peak).amax(dim=1)
    owner = candidates.float().argmax(dim=1)
    chosen = truth.gather(1, owner[..., None].expand(-1, -1, 4))
    return candidates.any(dim=1), labels.gather(1, owner), chosen, score


def giou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    sides = (torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])).clamp(min=0)
    overlap = sides.prod(dim=-1)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(dim=-1) for corners in (boxes, others)]
    union = areas[0] + areas[1] - overlap + 1e-10
    hull = (torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])).prod(dim=-1)
    hull = hull + 1e-10
    return 1 - overlap / union + (hull - union) / hull


class Loss(nn.Module):
    """PP-YOLOE's loss of pictures of one size: varifocal, GIoU and distribution focal loss."""

    def __init__(self, height: int, width: int):
        super().__init__()
        points, strides = anchors(height, width)
        self.register_buffer("points", points)
        self.register_buffer("strides", strides)
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32))

    def forward(self, classes: Tensor, boxes: Tensor, targets: Tensor) -> Tensor:
        pictures, count, kinds = classes.shape
        distances = boxes.view(pictures, count, 4, BINS).softmax(dim=-1) @ self.bins
        cells = self.points / self.strides
        found = torch.cat([cells - distances[..., :2], cells + distances[..., 2:]], dim=-1)  # in cells
        scores = classes.sigmoid()
        labels, truth = padded(targets, pictures)
        positive, label, wanted, score = assign(
            scores.detach(), found.detach() * self.strides, self.points, labels, truth
        )

        is_class = functional.one_hot(label, kinds) * positive[..., None]
        quality = is_class * score[..., None]
        weight = 0.75 * scores**2 * (1 - is_class) + quality * is_class
        cross_entropy = functional.binary_cross_entropy_with_logits(classes, quality, reduction="none")
        class_loss = (weight * cross_entropy).sum()

        score = score[positive]
        strides = self.strides.expand(pictures, -1, -1)[positive]
        cells = cells.expand(pictures, -1, -1)[positive]
        wanted = wanted[positive] / strides
        iou_loss = (giou_loss(found[positive], wanted) * score).sum()

        aims = torch.cat([cells - wanted[:, :2], wanted[:, 2:] - cells], dim=-1).clamp(0, 15.99)
        left = aims.long()
        share = (aims - left).flatten()
        logits = boxes[positive].view(-1, BINS)
        lower = functional.cross_entropy(logits, left.flatten(), reduction="none")
        upper = functional.cross_entropy(logits, left.flatten() + 1, reduction="none")
        sides = (lower * (1 - share) + upper * share).view(-1, 4)
        dfl_loss = (sides.mean(dim=-1) * score).sum()
        return (class_loss + 2.5 * iou_loss + 0.5 * dfl_loss) / quality.sum().clamp(min=1)


class Average:
    """The moving average of the weights."""

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(0.9997, (1 + step) / (10 + step))
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.mul_(decay).add_(value, alpha=1 - decay)


class Trainer:
    """Network, loss, optimizer and average, and steps with them.

    Args:
        weights: a state dict of a checkpoint; `rbr_reparam`, which training does not use, is left out.
        size: height and width of the pictures.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], *, size: tuple[int, int], classes: int = 80, learning_rate: float = 2e-4
    ):
        self.model = Network(classes)
        self.model.load_state_dict({key: value for key, value in weights.items() if ".rbr_reparam." not in key})
        self.model.train()
        self.loss = Loss(*size)
        kernels = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.model.parameters() if parameter.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": 1e-5}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate)
        self.average = Average(self.model)
        self.steps = 0

    def step(self, pictures: Tensor, targets: Tensor) -> float:
        """One step; the loss before it. Pictures `(N, 3, H, W)` float32, targets `(M, 6)` as for `padded`."""
        self.optimizer.zero_grad()
        loss = self.loss(*self.model(pictures), targets)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        self.average.update(self.model, self.steps)
        return loss.item()
