"""Writes a network as one ONNX file, straight from the plan: input, network, decoding, suppression, metadata."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from .dataflow import check_weights, dataflow
from .onnx_builder import Builder
from .onnx_network import add_input, add_network
from .onnx_post import add_outputs
from .spec import INPUT_NAME, metadata_texts

if TYPE_CHECKING:
    from ..nn import YoloNAS
    from .spec import ExportSpec

OPSET = 17


def write_onnx(
    path: str | os.PathLike[str], model: YoloNAS, spec: ExportSpec, *, opset: int = OPSET, for_tensorrt: bool = False
) -> None:
    """Writes the file, over what is there. The graph has standard operators only.

    Args:
        model: folded, float32, on the CPU; with scales if `spec.precision` is "int8".
        opset: 13 to 21. for_tensorrt: the form of INT8 that TensorRT documents, see `onnx_network`.

    Raises:
        ImportError: the package onnx is not installed. ValueError: weights that the precision has no numbers for.
    """
    b = Builder(opset)
    flow = dataflow(model, input_name=INPUT_NAME, swap_channels=spec.swaps_channels)
    check_weights(flow, spec.precision)
    add_input(b, spec)
    add_network(b, flow, half=spec.precision == "fp16", for_tensorrt=for_tensorrt)
    add_outputs(b, flow, spec)
    with Path(path).open("wb") as file:
        b.write(
            file,
            graph_name=f"yolo_nas_{spec.variant}",
            doc=f"YOLO-NAS {spec.variant.upper()}, {spec.num_classes} classes, {spec.precision}",
            version=__version__,
            metadata=metadata_texts(spec),
        )
