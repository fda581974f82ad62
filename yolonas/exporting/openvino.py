"""OpenVINO's own format, made of the ONNX file by OpenVINO: a folder with the graph, the weights and the metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import missing_package
from .spec import METADATA_KEY, metadata_texts, write_metadata

if TYPE_CHECKING:
    from .spec import ExportSpec


def write_openvino(folder: Path, onnx_path: Path, spec: ExportSpec) -> None:
    """Writes `yolo_nas_s.xml`, `.bin` and `metadata.yaml` into the folder, named after the network.

    The graph says the same of itself: under "yolonas" in its rt_info our JSON, under "model_info" the plain values.

    Raises:
        ImportError: openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing_package("export: OpenVINO files", "openvino", "openvino") from error
    # Read, not converted: what a conversion does beforehand keeps the compiler from fusing int8 layers.
    model = openvino.Core().read_model(onnx_path)
    for key, value in metadata_texts(spec).items():
        model.set_rt_info(value, [METADATA_KEY] if key == METADATA_KEY else ["model_info", key])
    # float16 weights stand in the ONNX file already; others must not be rounded.
    openvino.save_model(model, folder / f"yolo_nas_{spec.variant}.xml", compress_to_fp16=False)
    write_metadata(folder, spec)
