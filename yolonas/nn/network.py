"""The whole network: picture in, boxes and scores for every anchor out. Thresholds and suppression are elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import FORMS, VARIANTS, Variant
from .backbone import Backbone
from .head import Heads, Raw, decode, raw_outputs
from .neck import Neck

STRIDE = 32  # of the coarsest level: the sides of an input must be multiples of it


class YoloNAS(nn.Module):
    """YOLO-NAS S, M or L.

    Args:
        variant: "s", "m", "l", or the `Variant` itself.
        num_classes: number of classes C.
        form: one of `FORMS`; the module is built in it, and `fuse_` moves it to a later one. Forms "full" and "folded"
            are for inference: their parameters take no gradients.

    The initial values are random as for training. To load weights instead, build inside `with torch.device("meta")`,
    which costs nothing, and call `load_state_dict(state_dict, assign=True)`: every tensor is in the state dict.

    Attributes: `variant` (a `Variant`), `num_classes`, and `form`, the current one. If `activation_scales` is not empty
        the network is quantised: it has the scale of "input" and of the int8 output of each step of `lowering.lower`,
        by its name. Convolutions with a buffer `weight_scale`, float32 `(outputs,)`, then have int8 weights,
        `clip(rint(weight / weight_scale), -127, 127)`; the others stay in floating point. The modules compute without
        any of this; `quantized_graph` does not.
    """

    def __init__(self, variant: str | Variant, num_classes: int = 80, form: str = "training"):
        super().__init__()
        if isinstance(variant, str):
            if variant not in VARIANTS:
                raise ValueError(f"YoloNAS: variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
            variant = VARIANTS[variant]
        if num_classes < 1:
            raise ValueError(f"YoloNAS: num_classes must be at least 1, got {num_classes}")
        if form not in FORMS:
            raise ValueError(f"YoloNAS: form must be one of {', '.join(FORMS)}, got {form!r}")
        self.variant = variant
        self.num_classes = num_classes
        self.form = form
        self.activation_scales: dict[str, float] = {}
        self.backbone = Backbone(variant, form=form)
        self.neck = Neck(variant, form=form)
        self.heads = Heads(variant, num_classes, form=form)
        if form in ("full", "folded"):
            self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | tuple[tuple[Tensor, Tensor], Raw]:
        """Predicts for all anchors of a batch `(N, 3, H, W)`, H and W multiples of 32, values as the weights expect.

        Returns:
            In eval mode `(boxes, scores)`: `(N, A, 4)` xyxy in input pixels, not clipped, and `(N, A, C)` in 0..1, with
            A = HW/64 + HW/256 + HW/1024 anchors, fine to coarse, each level row by row. Both are float32 for
            half-precision weights, else in the weights' dtype. In training mode `((boxes, scores), raw)`, where raw is
            what a loss needs: see `head.raw_outputs`.

        Raises:
            ValueError: the input has another shape or dtype.
        """
        class_maps, box_maps = self.forward_heads(x)
        decoded = decode(class_maps, box_maps)
        if self.training:
            return decoded, raw_outputs(class_maps, box_maps)
        return decoded

    def forward_heads(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Before decoding: class logits `(N, C, h, w)` and box logits `(N, 68, h, w)`, levels fine to coarse."""
        self._check_input(x)
        return self.heads(*self.neck(*self.backbone(x)))

    def _check_input(self, x: Tensor) -> None:
        shape = tuple(x.shape)
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"YoloNAS: input must have shape (N, 3, H, W), got {shape}")
        if x.shape[2] < STRIDE or x.shape[3] < STRIDE or x.shape[2] % STRIDE or x.shape[3] % STRIDE:
            raise ValueError(f"YoloNAS: input height and width must be multiples of {STRIDE}, got {shape}")
        weight = self.heads.head1.cls_pred.weight
        if not x.is_floating_point() or (x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type)):
            raise ValueError(f"YoloNAS: input must have the weights' dtype {weight.dtype}, got {x.dtype} {shape}")
