"""The three networks as numbers: channel widths, depths and flags of YOLO-NAS S, M and L, and the COCO class names.

This is the only place that tells the sizes apart. It holds no code that computes anything and imports nothing heavy, so
that readers of checkpoints and the command line can use it without torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The states of a network between training and inference, in the order in which fusing goes through them:
#   training  QARepVGG blocks with all their branches, as trained
#   partial   each QARepVGG block is one 3x3 convolution and its post-BN; still trainable
#   full      the post-BN is folded too; the plain convolution units keep their BN
#   folded    every BN is folded: nothing but convolutions with a bias is left
FORMS = ("training", "partial", "full", "folded")

# What all sizes have in common.
STEM_CHANNELS = 48
SPP_CHANNELS = 384  # inside the pyramid pooling, whose input and output are the last stage's width
SPP_KERNELS = (5, 9, 13)
STRIDES = (8, 16, 32)  # input pixels per cell of the levels P3, P4, P5
REG_MAX = 16  # a box side is a distribution over 0..REG_MAX, in units of the stride

COCO_NAMES: tuple[str, ...] = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
# The ids that the COCO files give these classes: 1 to 90, where ten numbers have no class.
COCO_CATEGORY_IDS: tuple[int, ...] = tuple(
    number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)


@dataclass(frozen=True)
class DetectSettings:
    """What becomes a detection. The defaults are those of the published COCO weights."""

    conf: float = 0.25  # lowest score, 0..1
    iou: float = 0.7  # boxes that overlap a better one more than this are dropped, 0..1
    top_k: int = 1024  # pairs of anchor and class per picture before suppression
    max_det: int = 300  # boxes per picture
    multi_label: bool = True  # one anchor may be reported for several classes
    agnostic: bool = False  # boxes of different classes suppress each other
    classes: tuple[int, ...] | None = None  # only these; None: all


@dataclass(frozen=True)
class StageConfig:
    """One CSP stage of the backbone or the neck."""

    channels: int  # output width of the stage
    blocks: int  # number of bottlenecks
    hidden: int  # width inside the CSP layer
    concat: bool = False  # True: the CSP layer concatenates the output of every bottleneck, not only of the last


@dataclass(frozen=True)
class Variant:
    """Everything that differs between the sizes. Tuples run from fine to coarse, as the data flows."""

    name: str  # "s", "m" or "l"
    backbone: tuple[StageConfig, StageConfig, StageConfig, StageConfig]  # stage1..stage4, /4 to /32
    up: tuple[StageConfig, StageConfig]  # neck1 (/16), neck2 (/8)
    down: tuple[StageConfig, StageConfig]  # neck3 (/16), neck4 (/32)
    heads: tuple[int, int, int]  # widths of head1..head3 (/8, /16, /32)

    @property
    def model_name(self) -> str:
        """The name by which files and users call the network: `yolo_nas_s`."""
        return f"yolo_nas_{self.name}"


VARIANTS: dict[str, Variant] = {
    "s": Variant(
        name="s",
        backbone=(
            StageConfig(96, blocks=2, hidden=32),
            StageConfig(192, blocks=3, hidden=64),
            StageConfig(384, blocks=5, hidden=96),
            StageConfig(768, blocks=2, hidden=192),
        ),
        up=(StageConfig(192, blocks=2, hidden=64), StageConfig(96, blocks=2, hidden=48)),
        down=(StageConfig(192, blocks=2, hidden=64), StageConfig(384, blocks=2, hidden=64)),
        heads=(64, 128, 256),
    ),
    "m": Variant(
        name="m",
        backbone=(
            StageConfig(96, blocks=2, hidden=64, concat=True),
            StageConfig(192, blocks=3, hidden=128, concat=True),
            StageConfig(384, blocks=5, hidden=256, concat=True),
            StageConfig(768, blocks=2, hidden=384),
        ),
        up=(StageConfig(192, blocks=2, hidden=192), StageConfig(96, blocks=3, hidden=64)),
        down=(StageConfig(192, blocks=2, hidden=192), StageConfig(384, blocks=3, hidden=256)),
        heads=(96, 192, 384),
    ),
    "l": Variant(
        name="l",
        backbone=(
            StageConfig(96, blocks=2, hidden=96, concat=True),
            StageConfig(192, blocks=3, hidden=128, concat=True),
            StageConfig(384, blocks=5, hidden=256, concat=True),
            StageConfig(768, blocks=2, hidden=512, concat=True),
        ),
        up=(StageConfig(192, blocks=4, hidden=128), StageConfig(96, blocks=4, hidden=128)),
        down=(StageConfig(192, blocks=4, hidden=128), StageConfig(384, blocks=4, hidden=256)),
        heads=(128, 256, 512),
    ),
}


def variant_by_head_width(width: int) -> Variant:
    """The size whose first head is `width` channels wide, which is how a checkpoint without a name tells its size.

    Raises:
        ValueError: no size has that width.
    """
    for variant in VARIANTS.values():
        if variant.heads[0] == width:
            return variant
    known = ", ".join(f"{variant.heads[0]} ({name})" for name, variant in VARIANTS.items())
    raise ValueError(f"variant_by_head_width: width must be one of {known}, got {width}")


def variant_of_yaml(name: object) -> str | None:
    """The size, "s", "m" or "l", that a name such as `yolo_nas_s.yaml` asks for with random weights; None for others.

    Other libraries describe networks in such files. Nothing is read here: the three networks are known.
    """
    found = re.fullmatch(r"yolo[-_]?nas[-_]?([sml])\.ya?ml", str(name), re.IGNORECASE)
    return None if found is None else found[1].lower()
