"""Runs exported files through their own runtimes: one class each, from an input array to output arrays.

A session has `run(x)`, which takes the input that the file's `ExportSpec` describes and returns the outputs in the
order of `spec.output_names`, a `name`, and the `version` of the runtime. Any number of threads may use it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import _native
from .errors import CheckpointError, missing_package
from .exporting.ncnn import BIN_FILE, PARAM_FILE
from .exporting.spec import INPUT_NAME
from .native_engine import CpuDevice

if TYPE_CHECKING:
    from .exporting.spec import ExportSpec


class Session(Protocol):
    name: str
    version: str
    device: Any  # with a `type`

    def run(self, x: np.ndarray) -> list[np.ndarray]: ...


class OnnxSession:
    """ONNX Runtime, on the CPU.

    Raises:
        ImportError: onnxruntime is not installed. CheckpointError: it cannot use the file.
    """

    name = "onnxruntime"
    device = CpuDevice()

    def __init__(self, path: str | os.PathLike[str], spec: ExportSpec):
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_package("running ONNX files", "onnxruntime", "onnx") from error
        self.version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _native.cpu().num_threads()
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            raise CheckpointError(f"{path}: ONNX Runtime {self.version} cannot use it: {_one_line(error)}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._names = _checked_names(path, spec, [one.name for one in inputs], [one.name for one in outputs])

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        try:
            return list(self._session.run(self._names, {INPUT_NAME: x}))
        except Exception as error:
            raise RuntimeError(f"ONNX Runtime {self.version} failed: {_one_line(error)}") from None


class OpenVINOSession:
    """OpenVINO, on the CPU, for the `.xml` of a folder that `export` wrote, or for an ONNX file.

    Raises:
        ImportError: openvino is not installed. CheckpointError: it cannot use the file.
    """

    name = "openvino"
    device = CpuDevice()

    def __init__(self, path: str | os.PathLike[str], spec: ExportSpec):
        try:
            import openvino
        except ImportError as error:
            raise missing_package("running OpenVINO files", "openvino", "openvino") from error
        self.version = openvino.__version__.split("-")[0]
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": _native.cpu().num_threads()}
        # Without this it takes bfloat16 where the processor has it, whose numbers are coarser than float16's.
        settings["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            core = openvino.Core()
            self._model = core.compile_model(core.read_model(os.fspath(path)), "CPU", settings)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: OpenVINO {self.version} cannot use it: {_one_line(error)}") from None
        # A port may have several names: what is made of it by a step that does nothing, or what it is made of.
        inputs = [INPUT_NAME if INPUT_NAME in port.names else ", ".join(port.names) for port in self._model.inputs]
        outputs = [name for port in self._model.outputs for name in port.names]
        self._names = _checked_names(path, spec, inputs, outputs)
        self._lock = threading.Lock()  # the model runs one request at a time, whose outputs the next writes over

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        with self._lock:
            try:
                results = self._model({INPUT_NAME: x})
            except RuntimeError as error:
                raise RuntimeError(f"OpenVINO {self.version} failed: {_one_line(error)}") from None
            return [np.array(results[name]) for name in self._names]


class NcnnSession:
    """ncnn, on the CPU, for a folder that `export` wrote; a picture at a time.

    Files of precision "fp32" run in float32, others as ncnn does by itself on this machine.

    Raises:
        ImportError: ncnn is not installed. CheckpointError: it cannot use the files.
    """

    name = "ncnn"
    device = CpuDevice()

    def __init__(self, folder: str | os.PathLike[str], spec: ExportSpec):
        try:
            import ncnn
        except ImportError as error:
            raise missing_package("running ncnn files", "ncnn", "ncnn") from error
        self.version = ncnn.__version__
        self._ncnn = ncnn
        net = self._net = ncnn.Net()
        net.opt.num_threads = _native.cpu().num_threads()
        if spec.precision == "fp32":
            for option in dir(net.opt):
                if "fp16" in option or "bf16" in option:
                    setattr(net.opt, option, False)
        param, weights = (str(Path(folder) / name) for name in (PARAM_FILE, BIN_FILE))
        if net.load_param(param) or net.load_model(weights):
            raise CheckpointError(f"{folder}: ncnn {self.version} cannot use it; export it again")
        self._names = _checked_names(folder, spec, net.input_names(), net.output_names())

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        pictures = [self._picture(np.ascontiguousarray(picture)) for picture in x]
        return [np.stack(maps) for maps in zip(*pictures, strict=True)]

    def _picture(self, picture: np.ndarray) -> list[np.ndarray]:
        with self._net.create_extractor() as extractor:
            extractor.input(INPUT_NAME, self._ncnn.Mat(picture).clone())  # a Mat does not keep its array alive
            outputs = []
            for name in self._names:
                code, output = extractor.extract(name)
                if code:
                    raise RuntimeError(f"ncnn {self.version} failed: {name} gives {code}")
                outputs.append(np.array(output))
            return outputs


def _checked_names(path: Any, spec: ExportSpec, inputs: list[str], outputs: list[str]) -> list[str]:
    """The outputs' names, if the graph has them and the input that the metadata says."""
    missing = [name for name in spec.output_names if name not in outputs]
    if inputs != [INPUT_NAME] or missing:
        wanted = ", ".join(spec.output_names)
        raise CheckpointError(
            f"{Path(path).name}: the graph must have the input {INPUT_NAME} and the outputs {wanted}, as its metadata "
            f"says, got {', '.join(inputs[:4])} and {', '.join(outputs[:8])}; export it again"
        )
    return list(spec.output_names)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
