"""How much memory a step of a training takes, known before it is taken."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from ..nn import YoloNAS

OVERHEAD = 1.3  # of a step beside what is kept for the way back: gradients on their way, working memory of convolutions


def bytes_per_picture(model: YoloNAS, size: tuple[int, int]) -> int:
    """What the way back needs of the way forth, for one float32 picture of `size` (height, width).

    Counted on a copy of the network that has shapes and no memory.
    """
    shapes = copy.deepcopy(model).to("meta").train()
    # The weights that quantisation rounds are kept too, whatever the number of pictures. Batch norms want two at least.
    two, three = (_kept_bytes(shapes, torch.empty(count, 3, *size, device="meta")) for count in (2, 3))
    return three - two


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process can still get on a device; None where that cannot be known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def fitting_batch(per_picture: float, free: int) -> int:
    """The most pictures whose step fits into `free` bytes; 0: not even one."""
    return int(free / (OVERHEAD * per_picture))


def _kept_bytes(model: YoloNAS, pictures: Tensor) -> int:
    kept: dict[int, int] = {}  # by storage, as one is often kept twice

    def count(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            held.append(tensor)  # so that no other storage takes its place
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.forward_heads(pictures)
    return sum(kept.values())
