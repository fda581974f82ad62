"""Files of torch itself: TorchScript, and the programs of torch.export.

Both hold the network as `Deployed` has it and, as the extra file `CONFIG`, a JSON object: what `ExportSpec` says, and
the few keys that readers of other libraries look for. Neither names a device: they run wherever they are loaded to.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..config import STRIDES
from ..nn import YoloNAS
from .spec import ExportSpec
from .torch_module import MOST_CELLS, Deployed

CONFIG = "config.txt"


def write_torchscript(path: Path, model: YoloNAS, spec: ExportSpec) -> None:
    """Writes a TorchScript file. It takes any number of pictures, whatever `spec.batch` says.

    Raises:
        NotImplementedError, ValueError: as `Deployed`.
    """
    # GPUs compute on channels-last weights; others would be rearranged in every run.
    module = Deployed(model, spec).to(memory_format=torch.channels_last)
    with _deprecated(), path.open("wb") as file:
        traced = torch.jit.trace(module, _example(spec), check_trace=False)
        torch.jit.save(traced, file, _extra_files={CONFIG: _config(spec)})


def write_pt2(path: Path, model: YoloNAS, spec: ExportSpec) -> None:
    """Writes a program of torch.export.

    With `spec.dynamic_size` it takes sides from 64 on: an axis whose length can be 1, as on the coarsest level that of
    a side of 32, is always 1 to torch.export.

    Raises:
        NotImplementedError, ValueError: as `Deployed`.
    """
    axes = {}  # those that vary
    if spec.batch is None:
        axes[0] = torch.export.Dim("batch", min=1, max=65536)
    if spec.dynamic_size:
        most = MOST_CELLS * STRIDES[0] // STRIDES[-1]
        for axis, name in zip((1, 2) if spec.nhwc else (2, 3), ("height", "width"), strict=True):
            axes[axis] = STRIDES[-1] * torch.export.Dim(f"{name}_cells", min=2, max=most)
    program = torch.export.export(Deployed(model, spec), (_example(spec),), dynamic_shapes=(axes,), strict=False)
    for node in list(program.graph.nodes):
        # They would insist on the device that the program was made on.
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    buffer = io.BytesIO()  # a disk that is full would end the process inside of torch
    torch.export.save(program, buffer, extra_files={CONFIG: _config(spec)})
    path.write_bytes(buffer.getbuffer())


def read_torchscript(path: Path) -> tuple[Callable[[Tensor], Tensor | tuple[Tensor, ...]], ExportSpec]:
    """What a file computes on the CPU, and what it says of itself.

    Only for a file that this process has just written: loading runs code from the file.
    """
    extra = {CONFIG: ""}
    with _deprecated(), path.open("rb") as file:
        module = torch.jit.load(file, map_location="cpu", _extra_files=extra)
    return module, ExportSpec.from_json(extra[CONFIG])


def read_pt2(path: Path) -> tuple[Callable[[Tensor], Tensor | tuple[Tensor, ...]], ExportSpec]:
    """The same for a program of torch.export, and with the same caution."""
    extra = {CONFIG: ""}
    with path.open("rb") as file:
        module = torch.export.load(file, extra_files=extra).module()
    return module, ExportSpec.from_json(extra[CONFIG])


def _example(spec: ExportSpec) -> Tensor:
    """An input to follow through the network. Axes that may vary are longer than 1, so that none is taken for fixed."""
    height, width = (64, 96) if spec.dynamic_size else spec.preprocess.size
    shape = spec.input_shape(spec.batch or 2, height, width)
    return torch.zeros(shape, dtype=torch.uint8 if spec.uint8 else torch.float32)


def _config(spec: ExportSpec) -> str:
    plain = {
        "task": "detect",
        "stride": STRIDES[-1],
        "batch": spec.batch or 1,
        "imgsz": list(spec.preprocess.size),
    }
    return json.dumps({**spec.to_dict(), **plain}, ensure_ascii=False)


@contextmanager
def _deprecated() -> Iterator[None]:
    """Without the warnings that TorchScript is deprecated; who asks for it knows its age."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.(trace|trace_method|save|load)` is ", DeprecationWarning)
        yield
